// The documents: the root, and beside it one of those that links lead to, by tabs. Texts grow, and links light up.

import { $, count, el } from "./dom.js";
import { copy, fileName, save } from "./markdown.js";

const OUTCOMES = {
  corpus: "from the corpus",
  generated: "written by the model",
  supplied: "your text",
  in_view: "in view already",
  skipped: "skipped",
  not_followed: "not followed",
  asking: "waits for your choice",
};

export const outcomeText = link => OUTCOMES[link.outcome] + (link.reason ? `: ${link.reason}` : "");

class Document {
  constructor({ document: number, title, source, depth, parent, text }) {
    Object.assign(this, { number, title, source, depth, parent, text: "", links: [], tokens: null, finished: false });
    this.told = el("span", { class: "faint" });
    this.body = el("div", { class: "text" });
    this.article = el("article", { class: `document ${number ? source : "root"} writing` },
      el("header", {},
        el("h2", {}, el("bdi", {}, title)),
        this.told,
        el("span", { class: "grow" }),
        el("button", { type: "button", onclick: () => copy(this.text) }, "Copy"),
        el("button", { type: "button", "aria-label": `Save ${title} as markdown`, onclick: () => save(fileName(title), this.text) }, "Save")),
      this.body);
    this.startTail("");
    this.append(text);
    this.tell(number ? OUTCOMES[source] : "");
  }

  tell(...parts) {
    this.told.textContent = parts.filter(Boolean).join(" · ");
  }

  append(text) {
    this.text += text;
    this.tail.appendData(text);
  }

  // What comes after the last link is one text node.
  startTail(text) {
    this.tailStart = this.text.length - text.length;
    this.tail = window.document.createTextNode(text);
    this.body.append(this.tail);
  }

  addLink(link, onclick) {
    this.links.push(link);
    link.button = el("button", { type: "button", onclick }, link.words || link.target || "link");
    if (link.place) {
      const rest = this.tail.splitText(link.place[0] - this.tailStart).data.slice(link.place[1] - link.place[0]);
      this.tail.nextSibling.replaceWith(link.button);
      this.startTail(rest);
    }
    this.light(link);
  }

  light(link) {
    link.button.className = `link ${link.outcome}`;
    link.button.title = `${link.target} (${outcomeText(link)})`;
  }
}

export class Documents {
  constructor(onShow) {
    this.onShow = onShow;
    this.all = new Map();
    this.narrow = matchMedia("(max-width: 760px)"); // there it covers the root, and so comes only when asked for
    $("fold").addEventListener("click", () => this.fold());
    $("tabs").addEventListener("keydown", event => this.moveTab(event));
  }

  clear() {
    this.all.clear();
    this.shown = null;
    this.chosen = false; // by the reader: what opens then does not take its place
    $("root").replaceChildren();
    $("tabs").replaceChildren();
    $("panels").replaceChildren();
    this.fold();
  }

  get root() { return this.all.get(0); }

  list() { return [...this.all.values()]; }

  open(told) {
    const document = new Document(told);
    this.all.set(document.number, document);
    if (document.number === 0) {
      $("root").replaceChildren(document.article);
      return document;
    }
    const id = `document-${document.number}`;
    document.tab = el("button", {
      type: "button", role: "tab", id: `tab-${document.number}`, "aria-controls": id, "aria-selected": "false", tabindex: -1,
      class: document.source, onclick: () => this.choose(document.number),
    }, el("bdi", {}, document.title));
    for (const [name, value] of Object.entries({ id, role: "tabpanel", "aria-labelledby": document.tab.id, tabindex: 0 })) {
      document.article.setAttribute(name, value);
    }
    document.article.hidden = true;
    $("tabs").append(document.tab);
    $("panels").append(document.article);
    const link = this.all.get(document.parent)?.links.at(-1);
    if (link) link.leadsTo = document.number;
    // What others brought in stays behind its tab: beside the root stands what the root reads.
    if (!this.chosen && !this.narrow.matches && (document.depth === 1 || !this.shown)) this.show(document.number);
    return document;
  }

  link(told) {
    const document = this.all.get(told.document);
    const { text, words, target, outcome, reason, place, position, leads_to: leadsTo } = told;
    const asked = document.links.at(-1);
    if (asked?.outcome === "asking") {
      Object.assign(asked, { outcome, reason, position, leadsTo });
      document.light(asked);
      return asked;
    }
    const link = { text, words, target, outcome, reason, place, position, leadsTo };
    document.addLink(link, () => this.followLink(link));
    return link;
  }

  ask(told) {
    return this.link({ ...told, outcome: "asking", reason: "", leads_to: null });
  }

  followLink(link) {
    if (link.leadsTo === 0) this.root.article.scrollIntoView({ block: "nearest" });
    else if (link.leadsTo) this.choose(link.leadsTo);
    $("note").textContent = `${link.target}: ${outcomeText(link)}`;
  }

  close({ document: number, tokens, finish_reason: reason, truncated, grants, links }) {
    const document = this.all.get(number);
    for (const link of links) this.link({ ...link, document: number, outcome: "not_followed", reason: "" });
    document.finished = true;
    document.grants = grants;
    document.article.classList.remove("writing");
    document.tell(number ? OUTCOMES[document.source] : "", count(tokens, "token"), truncated && "cut",
      reason && reason !== "eos" ? `ended by ${reason.replaceAll("_", " ")}` : "");
    for (const grant of grants) {
      const link = document.links.find(one => one.position === grant.position && !one.leadsTo);
      if (link) link.leadsTo = grant.document;
    }
  }

  choose(number) {
    this.chosen = true;
    this.show(number);
  }

  show(number) {
    if (number === 0) return;
    for (const document of this.all.values()) {
      if (!document.tab) continue;
      const selected = document.number === number;
      document.article.hidden = !selected;
      document.tab.setAttribute("aria-selected", String(selected));
      document.tab.tabIndex = selected ? 0 : -1;
      if (selected) this.shown = document;
    }
    $("beside").hidden = false;
    $("documents").classList.remove("alone");
    const tab = this.shown.tab;
    $("tabs").scrollLeft = tab.offsetLeft - ($("tabs").clientWidth - tab.clientWidth) / 2;
    this.onShow(this.shown);
  }

  fold() {
    $("beside").hidden = true;
    $("documents").classList.add("alone");
    this.shown = null;
  }

  moveTab(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const tabs = this.list().filter(document => document.tab);
    const next = tabs.at((tabs.indexOf(this.shown) + step) % tabs.length);
    this.choose(next.number);
    next.tab.focus();
  }
}
