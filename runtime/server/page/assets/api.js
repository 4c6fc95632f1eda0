// Requests to the server. The key stays in this tab.

const KEY = "ds2ds-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: value => sessionStorage.setItem(KEY, value),
};

export class ServerError extends Error {
  constructor(status, message, param) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

async function send(path, body, signal) {
  // No header can hold another one, and no server has it.
  if (!/^[ -~]*$/.test(key.get())) throw new ServerError(401, "wrong API key: it has other characters than ASCII’s");
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { ...options, headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server cannot be reached.");
  }
  if (!response.ok) {
    const told = await response.json().catch(() => ({}));
    throw new ServerError(response.status, told.error?.message ?? `The server answered ${response.status}.`, told.error?.param);
  }
  return response;
}

export const ask = async (path, body) => (await send(path, body)).json();

// The events of a stream: [name, data]. Leaving the loop, or aborting the signal, ends the request on the server.
export async function* events(path, body, signal) {
  const response = await send(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (held + value).split("\n\n");
      held = blocks.pop();
      for (const block of blocks) yield parse(block);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  let name = "error"; // the one event that has no name
  let data = "";
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    if (line.startsWith("data: ")) data = line.slice(6);
  }
  return [name, JSON.parse(data)];
}
