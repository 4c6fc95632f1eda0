// Asking the reader at a link: follow it, skip it, or read the reader's own text.

import { $, count } from "./dom.js";

const KEYS = { f: "follow", s: "skip", w: "write", a: "all", Escape: "quit" };
const WOULD = {
  in_view: "it is in view already",
  corpus: "from the corpus",
  generated: "the corpus lacks it: the model would write it",
  supplied: "your text from before",
};

export class Question {
  constructor() {
    $("choices").addEventListener("click", event => {
      const chosen = event.target.closest("[data-answer]");
      if (chosen) this.choose(chosen.dataset.answer);
    });
    $("own").addEventListener("submit", event => {
      event.preventDefault();
      this.answer({ answer: "supply", text: $("own-text").value });
    });
    $("own-back").addEventListener("click", () => this.write(false));
    $("question").addEventListener("keydown", event => {
      if (event.key === "Enter" && event.ctrlKey) $("own").requestSubmit();
    });
  }

  get open() { return $("question").open; }

  // True if a key meant something here.
  key(event) {
    if (!this.open || event.ctrlKey || event.metaKey || event.altKey) return false;
    if (!$("own").hidden) {
      if (event.key === "Escape") this.write(false);
      return event.key === "Escape";
    }
    if (event.target.matches("input, textarea, select") && event.key !== "Escape") return false;
    if (KEYS[event.key]) this.choose(KEYS[event.key]);
    return event.key in KEYS;
  }

  // `answer` sends what was chosen, {answer, text}; what that raises is shown, and the question stays.
  ask(asked, answer) {
    this.send = answer;
    $("question-title").textContent = `Follow “${asked.title}”?`;
    const tokens = asked.tokens === null ? "" : `, ${count(asked.tokens, "token")}`;
    $("question-about").textContent = `A link in ${asked.parent}: ${WOULD[asked.outcome]}${tokens}`;
    $("question-preview").textContent = asked.preview && `${asked.preview} …`;
    $("own-text").value = "";
    this.told("");
    $("question").show();
    this.write(false);
  }

  close() {
    $("question").close();
  }

  choose(answer) {
    if (answer === "write") this.write(true);
    else this.answer({ answer });
  }

  write(own) {
    $("own").hidden = !own;
    $("choices").hidden = own;
    (own ? $("own-text") : $("choices").firstElementChild).focus({ preventScroll: true });
  }

  async answer(chosen) {
    try {
      this.close();
      await this.send(chosen);
    } catch (error) {
      $("question").show();
      this.told(error.message);
    }
  }

  told(message) {
    $("question-error").textContent = message;
    $("question-error").hidden = !message;
  }
}
