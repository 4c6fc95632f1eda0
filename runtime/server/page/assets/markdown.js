// Texts out of the page: to the clipboard, and into files.

import { $, el } from "./dom.js";

export async function copy(text) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else copyOldWay(text); // over plain HTTP from another machine there is no clipboard
  $("note").textContent = "Copied";
}

function copyOldWay(text) {
  const area = el("textarea", { class: "visually-hidden" });
  area.value = text;
  window.document.body.append(area);
  area.select();
  window.document.execCommand("copy");
  area.remove();
}

export function save(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/markdown;charset=utf-8" }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
  $("note").textContent = `Saved ${name}`;
}

export const fileName = title => `${title.normalize("NFKC").replace(/[^\p{L}\p{N}]+/gu, "_").replace(/^_+|_+$/g, "").slice(0, 80) || "document"}.md`;

// All documents in one: the root first. One that has no heading of its own is given one.
export function together(documents) {
  const parts = documents.map(({ number, title, text }) =>
    number === 0 || text.startsWith("# ") ? text.trimEnd() : `# ${title}\n\n${text.trimEnd()}`);
  return parts.join("\n\n---\n\n") + "\n";
}
