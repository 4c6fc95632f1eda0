// The page: what the keys and buttons do, and one run from its first event to its last.

import { ask, events, key } from "./api.js";
import { Attention } from "./attention.js";
import { Documents, outcomeText } from "./documents.js";
import { $, count } from "./dom.js";
import { Graph } from "./graph.js";
import { copy, fileName, save, together } from "./markdown.js";
import { Question } from "./question.js";
import { build, field, newSeed, values, writeAddress } from "./settings.js";

const documents = new Documents(shown => { graph.mark(shown.number); attention.refresh(); });
const graph = new Graph(number => documents.choose(number));
const question = new Question();
const attention = new Attention(documents, which => ask("/page/attention", { session: run.session, ...which }), showError);

let about = null;
let run = null; // {abort, session, written, started, all}

async function connect() {
  try {
    about = await ask("/page/about");
  } catch (error) {
    if (error.status === 401) return askForKey(key.get() ? error.message : "needs an API key");
    $("model").textContent = error.message;
    if (error.status === 503 || error.status === 0) setTimeout(connect, 1000);
    return;
  }
  $("key-row").hidden = true;
  $("model").textContent = about.model;
  build(about);
  hint();
  $("prompt").focus();
}

function askForKey(why) {
  $("model").textContent = why;
  $("key-row").hidden = false;
  $("key").focus();
}

function hint() {
  const lacks = about.has_headings && !/^# [^\n]+\n\n/.test($("prompt").value);
  $("hint").textContent = lacks ? "This model’s documents start with a heading: “# Title”, then an empty line." : "";
}

async function start() {
  if (run?.abort || !about) return;
  const invalid = $("ask").querySelector(":invalid");
  if (invalid?.closest("#settings")) showSettings(true); // or the browser could not say what is wrong
  if (!$("ask").reportValidity()) return;
  writeAddress();
  showError(null);
  $("note").textContent = "";
  documents.clear();
  graph.clear();
  attention.ready(false);
  const abort = new AbortController();
  run = { abort, session: null, written: 0, started: 0, all: false };
  busy(true);
  announce("Writing");
  try {
    for await (const [name, data] of events("/page/sessions", { model: about.model, ...values() }, abort.signal)) {
      if (!abort.signal.aborted) take(name, data);
    }
    if (run.abort && !abort.signal.aborted) throw new Error("The connection broke before the end.");
  } catch (error) {
    if (error.name === "AbortError") $("status").textContent = `Stopped · ${count(run.written, "token")}`;
    else showError(error);
    for (const unfinished of $("result").querySelectorAll(".writing")) unfinished.classList.remove("writing");
  }
  run.abort = null;
  question.close();
  busy(false);
}

function take(name, data) {
  if (name === "error") throw new Error(data.error.message);
  if (name === "session") run.session = data.session;
  if (name === "opened") {
    $("result").hidden = false;
    graph.add(documents.open(data));
    graph.mark(documents.shown?.number);
  }
  if (name === "text") {
    documents.all.get(data.document).append(data.text);
    run.started ||= performance.now();
    run.written += 1;
    follow(documents.all.get(data.document));
  }
  if (name === "asked") askReader(data);
  if (name === "link") {
    const link = documents.link(data);
    if (link.leadsTo) graph.connect(data.document, link.leadsTo);
    announce(`Link to ${link.target}: ${outcomeText(link)}`);
  }
  if (name === "closed") {
    documents.close(data);
    graph.finish(data);
  }
  if (name === "done") finish(data);
}

function askReader(asked) {
  const link = documents.ask(asked);
  const askedAt = performance.now();
  const send = chosen => {
    run.started += performance.now() - askedAt; // what the reader takes is not the model's time
    run.all ||= chosen.answer === "all";
    const answer = chosen.answer === "all" ? "follow" : chosen.answer;
    return ask("/page/answers", { session: run.session, question: asked.number, ...chosen, answer });
  };
  if (run.all) return send({ answer: "follow" }).catch(showError);
  link.button.scrollIntoView({ block: "nearest" });
  announce(`A link to ${asked.title}. Follow, skip, or write your own text?`);
  question.ask(asked, send);
}

function finish({ finish_reason: reason, trace }) {
  run.abort = null;
  const seconds = (performance.now() - run.started) / 1000;
  const speed = run.written > 1 ? ` · ${Math.round((run.written - 1) / seconds)} tokens/s` : "";
  $("status").textContent = `${count(run.written, "token")} written${speed} · ${count(trace.tokens_prefilled, "token")} prefilled, `
    + `${trace.tokens_reused.toLocaleString("en")} reused · ${count(trace.evictions, "eviction")} · ended by ${reason.replaceAll("_", " ")}`;
  announce(`Done: ${count(run.written, "token")} in ${count(documents.all.size, "document")}`);
  attention.ready(about.tells_attention);
}

// While it is written, a document is read at its end, unless the reader has scrolled away.
function follow(document) {
  const box = document.body;
  if (box.scrollHeight - box.scrollTop - box.clientHeight < 80) box.scrollTop = box.scrollHeight;
}

let nextStatus = 0;
function tick() {
  if (run?.abort && run.started && !question.open && performance.now() > nextStatus) {
    nextStatus = performance.now() + 250;
    const seconds = (performance.now() - run.started) / 1000;
    $("status").textContent = `${count(run.written, "token")} · ${Math.round(run.written / Math.max(seconds, 0.1))} tokens/s`;
  }
}
setInterval(tick, 250);

// A screen reader is told the newest thing, every two seconds at most.
let news = "";
function announce(text) {
  news = text;
}
setInterval(() => {
  if (news) $("live").textContent = news;
  news = "";
}, 2000);

function busy(yes) {
  $("start").disabled = yes;
  $("stop").disabled = !yes;
  $("result").setAttribute("aria-busy", String(yes));
}

function stop() {
  if (!run?.abort) return;
  run.abort.abort();
}

function showError(error) {
  $("error").hidden = !error;
  $("error").textContent = error?.message ?? "";
  if (error?.status === 401) askForKey(error.message);
  const wrong = error?.param && field(error.param);
  if (wrong) {
    if (wrong.closest("#settings")) showSettings(true);
    wrong.focus();
  }
}

function showSettings(yes) {
  $("settings").hidden = !yes;
  $("more").setAttribute("aria-expanded", String(yes));
}

$("more").addEventListener("click", () => showSettings($("settings").hidden));
$("ask").addEventListener("submit", event => { event.preventDefault(); start(); });
$("stop").addEventListener("click", stop);
$("prompt").addEventListener("input", () => about && hint());
$("new-seed").addEventListener("click", () => { newSeed(); writeAddress(); });
$("key").addEventListener("change", () => { key.set($("key").value); showError(null); if (!about) connect(); });
$("copy").addEventListener("click", () => copy(together(documents.list())));
$("save").addEventListener("click", () => save(fileName(documents.root?.title ?? ""), together(documents.list())));
window.addEventListener("keydown", event => {
  if (question.key(event)) event.preventDefault();
  else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    if (!question.open) start();
  } else if (event.key === "Escape") stop();
});

connect();
