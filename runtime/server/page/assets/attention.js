// Colour by attention: how much every token read of other documents, and what one token read of all of them.

import { $, el } from "./dom.js";

export class Attention {
  constructor(documents, fetchAttention, onError) {
    Object.assign(this, { documents, fetchAttention, onError, on: false, known: new Map(), chosen: null });
    $("attention").addEventListener("click", () => this.toggle());
  }

  // A result is there (or none any more).
  ready(yes) {
    this.known.clear();
    this.chosen = null;
    if (this.on) this.toggle();
    $("attention").disabled = !yes;
  }

  async toggle() {
    this.on = !this.on;
    $("attention").setAttribute("aria-pressed", String(this.on));
    $("documents").classList.toggle("attending", this.on);
    $("read").hidden = !this.on;
    this.chosen = null;
    if (this.on) await this.refresh();
  }

  // The documents that are shown, as tokens; without a chosen token each is coloured by what it read of others.
  async refresh() {
    if (!this.on) return;
    const shown = [this.documents.root, this.documents.shown].filter(Boolean);
    for (const document of shown) await this.overview(document);
    if (this.chosen) return this.colourByChosen();
    for (const document of shown) {
      const own = document.read?.find(one => one.document === document.number).shares ?? [];
      this.colour(document, own.map(share => 1 - share));
    }
    $("read-what").textContent = "Coloured: how much each token read of other documents. Choose a token to see what it read.";
    $("shares").replaceChildren();
  }

  async overview(document) {
    if (document.read) return;
    const told = await this.get({ document: document.number });
    if (!told) return;
    document.read = told.documents;
    for (const one of told.documents) this.tokenise(this.documents.all.get(one.document), one.tokens);
  }

  tokenise(document, tokens) {
    if (document.tokens) return;
    let end = 0;
    document.tokens = tokens.map((text, at) => {
      const start = end;
      end += text.length;
      const link = document.links.find(({ place }) => place && start < place[1] && end > place[0]);
      return el("span", { role: "option", id: `token-${document.number}-${at}`, "data-at": at, "aria-selected": "false",
        class: text ? link && `linked ${link.outcome}` : "mark" }, text || "◇");
    });
    document.list = el("div", {
      class: "tokens", role: "listbox", tabindex: 0, "aria-label": `Tokens of ${document.title}`,
      onclick: event => event.target.dataset.at && this.choose(document, Number(event.target.dataset.at)),
      onkeydown: event => this.move(document, event),
    }, ...document.tokens);
    document.article.append(document.list);
  }

  move(document, event) {
    const here = this.chosen?.document === document ? this.chosen.at : -1;
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: document.tokens.length - 1 }[event.key];
    if (event.key === "Escape" && this.chosen) {
      event.stopPropagation();
      this.unselect();
      this.refresh();
    }
    if (to === undefined) return;
    event.preventDefault();
    if (to >= 0 && to < document.tokens.length) this.choose(document, to);
  }

  unselect() {
    this.chosen?.document.tokens[this.chosen.at].setAttribute("aria-selected", "false");
    this.chosen = null;
  }

  async choose(document, at) {
    this.unselect();
    const chosen = this.chosen = { document, at, read: null };
    const token = document.tokens[at];
    token.setAttribute("aria-selected", "true");
    token.scrollIntoView({ block: "nearest" });
    document.list.setAttribute("aria-activedescendant", token.id);
    const told = await this.get({ document: document.number, token: at });
    if (this.chosen !== chosen || !told) return; // another was chosen meanwhile
    chosen.read = told.documents;
    this.colourByChosen();
  }

  colourByChosen() {
    const { document, at, read } = this.chosen;
    if (!read) return;
    const most = Math.max(...read.flatMap(one => one.weights));
    const weights = new Map(read.map(one => [one.document, one.weights]));
    for (const other of this.documents.list()) {
      if (other.tokens) this.colour(other, (weights.get(other.number) ?? []).map(weight => Math.sqrt(weight / most)));
    }
    $("read-what").replaceChildren("What ", el("q", {}, el("bdi", {}, document.tokens[at].textContent)), ` read (token ${at + 1})`);
    $("shares").replaceChildren(...read.map(one => this.bar(one)));
  }

  bar({ document: number, share }) {
    const other = this.documents.all.get(number);
    const bar = el("i");
    bar.style.width = `${share * 100}%`;
    return el("li", {}, el("button", { type: "button", class: number ? other.source : "root", onclick: () => this.documents.choose(number) },
      el("bdi", {}, other.title), el("span", {}, `${(share * 100).toFixed(1)}%`), el("span", { class: "track" }, bar)));
  }

  colour(document, heat) {
    document.tokens?.forEach((token, at) => token.style.setProperty("--a", (heat[at] ?? 0).toFixed(3)));
  }

  async get(which) {
    const name = JSON.stringify(which);
    try {
      if (!this.known.has(name)) this.known.set(name, await this.fetchAttention(which));
      return this.known.get(name);
    } catch (error) {
      this.onError(error);
      return null;
    }
  }
}
