// The form: its fields, what they send, and how they are kept in the address (#...), which can be passed on.

import { $, el } from "./dom.js";

// name, label, smallest, largest, step, default, what it does
const NUMBERS = [
  ["max_tokens", "Tokens per document", 1, null, 1, 120, "Most tokens written in one document"],
  ["temperature", "Temperature", 0, 2, 0.05, 0.7, "0 takes the likeliest token"],
  ["top_k", "Top k", 0, 2 ** 31 - 1, 1, 50, "Sample among the k likeliest tokens; 0: all"],
  ["top_p", "Top p", 0.01, 1, 0.01, 1, "Sample among the likeliest tokens that reach this probability together"],
  ["min_p", "Min p", 0, 1, 0.01, 0, "Leave out tokens less likely than this share of the likeliest"],
  ["repetition_penalty", "Repetition penalty", 0.1, 10, 0.05, 1, "1: off"],
  ["max_link_depth", "Link depth", 0, null, 1, 1, "How far links are followed; 0: not at all"],
  ["max_auxiliary_documents", "Documents in view", 0, null, 1, 5, "Most linked documents in view at a time"],
];

const fields = new Map(); // name: {input, read, initial}

export function build(about) {
  const tops = { max_tokens: about.max_tokens, max_link_depth: about.max_link_depth };
  for (const [name, label, min, top, step, initial, hint] of NUMBERS) {
    const max = tops[name] ?? top;
    const start = Math.min(about.defaults[name] ?? initial, max ?? Infinity);
    const input = el("input", { type: "number", min, max, step: step < 1 ? "any" : step, required: true });
    add(name, input, start, () => input.valueAsNumber, label, hint);
  }
  const policy = el("select", {}, ...about.eviction_policies.map(name => new Option(name.replaceAll("_", " "), name)));
  add("eviction_policy", policy, about.defaults.eviction_policy, () => policy.value, "Who leaves the view",
    "Which document makes room for a new one; stop new: the new one stays out");
  const fallback = el("input", { type: "checkbox" });
  add("allow_corpus_fallback", fallback, about.defaults.allow_corpus_fallback, () => fallback.checked,
    "Write what the corpus lacks", "Otherwise links to it are not followed");
  $("corpus").append(...about.corpora.map(name => new Option(name)));
  keep("corpus", $("corpus"), about.corpora[0], () => $("corpus").value);
  keep("interactive", $("interactive"), false, () => $("interactive").checked);
  keep("seed", $("seed"), null, () => $("seed").valueAsNumber);
  keep("prompt", $("prompt"), about.has_headings ? "# Incremental linker\n\n" : "", () => $("prompt").value);
  newSeed();
  readAddress();
  $("ask").addEventListener("input", () => { later ||= setTimeout(writeAddress, 400); });
}

function add(name, input, initial, read, label, hint) {
  input.id = `set-${name}`;
  $("settings").append(el("label", { title: hint }, el("span", {}, label), input));
  keep(name, input, initial, read);
}

function keep(name, input, initial, read) {
  fields.set(name, { input, read, initial });
  if (initial !== null) set(input, initial);
}

function set(input, value) {
  if (input.type === "checkbox") input.checked = value === true || value === "true";
  else input.value = value;
}

export function newSeed() {
  $("seed").value = Math.floor(Math.random() * 2 ** 31);
}

export const values = () => Object.fromEntries([...fields].map(([name, { read }]) => [name, read()]));

export const field = name => fields.get(name)?.input;

// Browsers take no more than some hundred changes of the address in half a minute; some raise an error at the next one.
let later = 0;

export function writeAddress() {
  clearTimeout(later);
  later = 0;
  const changed = [...fields].filter(([, { read, initial }]) => read() !== initial);
  const query = new URLSearchParams(changed.map(([name, { read }]) => [name, String(read())]));
  history.replaceState(null, "", `#${query}`);
}

function readAddress() {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (fields.has(name)) set(fields.get(name).input, value);
  }
  // A choice that is not there leaves a select empty.
  for (const { input, initial } of fields.values()) if (input.value === "" && initial !== null && initial !== "") set(input, initial);
}
