"""What each way to resolve a title finds on FOLDOC: rightly, wrongly, or not at all, and what a look-up takes.

    python bench/resolving.py --model FOLDER_OR_NAME

Titles that other entries link to are changed as writers change them (case, hyphens, number, slips of the finger), and
each resolver is asked for them alone. Besides, the texts of real links whose target is called otherwise, and titles
whose own document is taken out of the corpus first: whatever is found for one of these counts as wrong, though some are
other names of one thing. The default minimums are chosen from this table. Without --model embeddings are left out.

Prints tables, writes bench/results/resolving_cpu.json; the last line of the output is the same JSON.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from report import report
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ds2ds.corpus.document_corpus import DocumentCorpus, corpus_folder
from ds2ds.corpus.resolving.chain import ResolverChain
from ds2ds.corpus.resolving.edit import MINIMUM as EDIT_MINIMUM
from ds2ds.corpus.resolving.edit import EditResolver
from ds2ds.corpus.resolving.embeddings import MINIMUM as EMBEDDINGS_MINIMUM
from ds2ds.corpus.resolving.embeddings import EmbeddingResolver
from ds2ds.corpus.resolving.encoder import SentenceEncoder
from ds2ds.corpus.resolving.exact import ExactResolver
from ds2ds.corpus.resolving.folded import FoldedResolver
from ds2ds.corpus.resolving.resolver import Resolver
from ds2ds.corpus.search import corpus_tokenizer, document_text
from ds2ds.documents.link_scanner import LinkScanner, is_external
from ds2ds.documents.title_match import Match
from ds2ds.documents.title_utils import title_key
from ds2ds.environment import environment

RESULT = Path(__file__).parent / "results" / "resolving_cpu.json"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ACCENTS = dict(zip("aeioucn", "áéïôüçñ", strict=True))
EDIT_MINIMUMS = (0.75, 0.8, 0.85, 0.875, 0.9)
EMBEDDINGS_MINIMUMS = (0.7, 0.8, 0.85, 0.9, 0.95)
SCALE = 1_000_000
SCALE_LOOK_UPS = 20

Look = tuple[str, str | None]  # what is looked up, and the title that is right; None: nothing is
Found = list[Match | None]


def slip(word: str, dice: random.Random) -> str:
    """One letter too many, too few, another, or two that changed places."""
    at = dice.randrange(len(word))
    letter = dice.choice(LETTERS)
    swapped = word[:at] + word[at : at + 2][::-1] + word[at + 2 :]
    return dice.choice(
        [word[:at] + letter + word[at:], word[:at] + word[at + 1 :], word[:at] + letter + word[at + 1 :], swapped]
    )


def other_spacing(title: str, dice: random.Random) -> str:
    """A hyphen or space as the other one, or as none; one between words written as one is not guessed."""
    old = dice.choice([mark for mark in "- " if mark in title] or ["-"])
    return title.replace(old, dice.choice(["", " " if old == "-" else "-"]), 1)


def plural(title: str, dice: random.Random) -> str:
    if title.endswith("y") and title[-2:-1] not in "aeiou":
        return title[:-1] + "ies"
    return title + ("es" if title.endswith(("s", "x", "ch", "sh")) else "s")


def singular(title: str, dice: random.Random) -> str:
    return title[:-1] if title.endswith("s") and not title.endswith("ss") else title


CHANGES: dict[str, Callable[[str, random.Random], str]] = {
    "other case": lambda title, dice: dice.choice([title.upper(), title.lower(), title.title()]),
    "hyphen or space": other_spacing,
    "accent": lambda title, dice: "".join(ACCENTS.get(letter, letter) for letter in title),
    "plural": plural,
    "singular": singular,
    "one slip": slip,
    "two slips": lambda title, dice: slip(slip(title, dice) or "a", dice),
}


class Without:
    """A corpus as if some of its documents were not there."""

    def __init__(self, corpus: DocumentCorpus, gone: set[str]) -> None:
        self._corpus, self._gone = corpus, gone
        self._by_key: dict[str, set[str]] = {}
        for title in self.titles():
            self._by_key.setdefault(title_key(title), set()).add(title)

    def titles(self) -> Iterator[str]:
        return (title for title in self._corpus.titles() if title not in self._gone)

    def resolve(self, title: str) -> str | None:
        found = self._corpus.resolve(title)
        if found not in self._gone:
            return found
        others = self._by_key.get(title_key(title), set())  # what the corpus' rule tries last
        return next(iter(others)) if len(others) == 1 else None


class Remembering:
    """An encoder that computes each text once."""

    def __init__(self, source: str) -> None:
        self._encoder = SentenceEncoder(source)
        self._known: dict[str, Any] = {}
        self.identity = self._encoder.identity

    def encode(self, texts: Sequence[str]) -> Any:
        new = [text for text in texts if text not in self._known]
        if new:
            self._known.update(zip(new, self._encoder.encode(new), strict=True))
        return np.stack([self._known[text] for text in texts])


class Titles:
    """A corpus of titles alone, in memory."""

    def __init__(self, titles: Sequence[str]) -> None:
        self._titles = titles

    def __len__(self) -> int:
        return len(self._titles)

    def titles(self) -> Iterator[str]:
        return iter(self._titles)

    def title_at(self, number: int) -> str:
        return self._titles[number]


def link_texts(corpus: DocumentCorpus) -> list[Look]:
    """The text and the target's title of each link that is called otherwise than its target, each pair once."""
    pairs: dict[Look, None] = {}
    tokenizer = corpus_tokenizer(corpus)
    for title in track(list(corpus.titles()), description="links", transient=True):
        for link in LinkScanner().feed((document_text(corpus, title, tokenizer) or "").encode()):
            target = None if is_external(link.target) else corpus.resolve(link.target)
            if target is not None and link.text and title_key(link.text) != title_key(target):
                pairs[link.text, target] = None
    return list(pairs)


def look_ups(corpus: DocumentCorpus, count: int, dice: random.Random) -> dict[str, list[Look]]:
    """What is looked up, by what was done to it."""
    linked = [title for title in corpus.titles() if corpus.graph.incoming(title)]
    asked: dict[str, list[Look]] = {}
    for name, change in CHANGES.items():
        changed = ((change(title, dice), title) for title in dice.sample(linked, len(linked)))
        asked[name] = [pair for pair in changed if pair[0] and pair[0] != pair[1]][:count]
    texts = link_texts(corpus)
    asked["link text"] = dice.sample(texts, min(count, len(texts)))
    return asked


def answers(resolver: Resolver, looks: Sequence[Look]) -> tuple[Found, list[float]]:
    """What it finds, and the microseconds of each look-up."""
    found, took = [], []
    for text, _ in looks:
        start = time.perf_counter_ns()
        found.append(resolver.find(text))
        took.append((time.perf_counter_ns() - start) / 1e3)
    return found, took


def shares(found: Found, looks: Sequence[Look], minimum: float = 0.0) -> dict[str, float]:
    """The shares that were resolved rightly and wrongly; the rest was not."""
    titles = [match.title if match is not None and match.score >= minimum else None for match in found]
    right = sum(title is not None and title == truth for title, (_, truth) in zip(titles, looks, strict=True))
    wrong = sum(title is not None and title != truth for title, (_, truth) in zip(titles, looks, strict=True))
    return {"right": round(right / len(looks), 4), "wrong": round(wrong / len(looks), 4)}


def resolvers_of(corpus: Any, encoder: Remembering | None) -> dict[str, Resolver]:
    """Each with the lowest minimum of the sweep: the likest title is the same under any."""
    made: dict[str, Resolver] = {
        "exact": ExactResolver(corpus),
        "folded": FoldedResolver(corpus),
        "edit": EditResolver(corpus, EDIT_MINIMUMS[0]),
    }
    if encoder is not None:
        made["embeddings"] = EmbeddingResolver(corpus, encoder, EMBEDDINGS_MINIMUMS[0])
    return made


def rows(name: str, found: Found, looks: Sequence[Look]) -> dict[str, dict[str, float]]:
    minimums = {"edit": EDIT_MINIMUMS, "embeddings": EMBEDDINGS_MINIMUMS}.get(name)
    if minimums is None:
        return {name: shares(found, looks)}
    return {f"{name}:{minimum}": shares(found, looks, minimum) for minimum in minimums}


def microseconds(corpus: DocumentCorpus, model: str | None, looks: Sequence[Look]) -> dict[str, float]:
    """The median of a look-up with the default minimums, after the first, which makes what is kept."""
    timed: dict[str, Resolver] = {
        "exact": ExactResolver(corpus),
        "folded": FoldedResolver(corpus),
        "edit": EditResolver(corpus),
    }
    if model is not None:
        timed["embeddings"] = EmbeddingResolver(corpus, SentenceEncoder(model))
    medians = {}
    for name, resolver in timed.items():
        resolver.find("warm")
        medians[name] = round(statistics.median(answers(resolver, looks)[1]), 1)
    return medians


def at_scale(corpus: DocumentCorpus, count: int, dice: random.Random) -> dict[str, Any]:
    """What folded and edit cost with so many titles, made of the words of FOLDOC's."""
    words = [word for title in corpus.titles() for word in title.split()]
    titles = list(dict.fromkeys(" ".join(dice.choices(words, k=dice.randint(1, 4))) for _ in range(count)))
    asked: list[Look] = [(slip(title, dice), title) for title in dice.sample(titles, SCALE_LOOK_UPS)]
    measured: dict[str, Any] = {"titles": len(titles)}
    for resolver in (FoldedResolver(Titles(titles)), EditResolver(Titles(titles))):
        start = time.perf_counter()
        resolver.find("warm")
        first = time.perf_counter() - start
        found, took = answers(resolver, asked)
        measured[resolver.name] = {
            "first_look_up_s": round(first, 2),
            "look_up_us": round(statistics.median(took), 1),
            "slowest_us": round(max(took), 1),
            **shares(found, asked),
        }
    return measured


def markdown_table(file: Path) -> str:
    """The table of docs/titles.md: the resolvers with their default minimums."""
    measured = json.loads(file.read_text(encoding="utf-8"))
    edit, embeddings = (f"{name}:{minimum}" for name, minimum in measured["defaults"].items())
    names = ["exact", "folded", edit, embeddings, "exact,folded,edit"]
    lines = ["| looked up | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for kind, row in measured["results"].items():
        cells = (f"{row[name]['right']:.0%} / {row[name]['wrong']:.1%}" for name in names)
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    model: Annotated[str | None, typer.Option(help="A sentence-transformers model: its folder, or a name.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Look-ups of each kind.")] = 500,
    scale: Annotated[int, typer.Option(min=1000, help="Titles of the large corpus.")] = SCALE,
    seed: Annotated[int, typer.Option()] = 0,
    output: Annotated[Path, typer.Option(help="The JSON file.")] = RESULT,
) -> None:
    """Measure, print tables and write JSON."""
    dice = random.Random(seed)
    encoder = None if model is None else Remembering(model)
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        # A copy: vectors are kept beside the corpus.
        folder = Path(shutil.copytree(corpus_folder("demo"), Path(temporary) / "corpus"))
        corpus = DocumentCorpus(folder)
        asked = look_ups(corpus, count, dice)
        gone = dice.sample([title for title in corpus.titles() if corpus.graph.incoming(title)], count)
        absent: list[Look] = [(title, None) for title in gone]
        cases: list[tuple[str, Any, list[Look]]] = [(kind, corpus, looks) for kind, looks in asked.items()]
        cases.append(("its document is not there", Without(corpus, set(gone)), absent))
        whole = resolvers_of(corpus, encoder)
        for kind, source, looks in cases:
            resolvers = whole if source is corpus else resolvers_of(source, encoder)
            results[kind] = {}
            for name, resolver in resolvers.items():
                description = f"{kind}: {name}"
                found = answers(resolver, list(track(looks, description=description, transient=True)))[0]
                results[kind] |= rows(name, found, looks)
            chain = ResolverChain([resolvers["exact"], resolvers["folded"], EditResolver(source)])
            results[kind] |= rows("exact,folded,edit", answers(chain, looks)[0], looks)
        took = microseconds(corpus, model, asked["one slip"][:200])
        titles = len(corpus)
        large = at_scale(corpus, scale, dice)
        corpus.close()

    table = Table(title=f"Of {count} look-ups each among {titles:,} titles: % right / % wrong")
    names = list(results["one slip"])
    for heading in ("looked up", *names):
        table.add_column(heading, justify="left" if heading == "looked up" else "right")
    for kind, row in results.items():
        table.add_row(kind, *(f"{row[name]['right']:.0%}/{row[name]['wrong']:.1%}" for name in names))
    speed = Table("resolver", "µs a look-up", f"the same among {large['titles']:,} titles", "its first look-up, s")
    for name, value in took.items():
        there = large.get(name)
        speed.add_row(
            name,
            f"{value:,.0f}",
            *((f"{there['look_up_us']:,.0f}", f"{there['first_look_up_s']}") if there else ("", "")),
        )
    Console(width=200).print(table)
    measured = {
        "environment": environment(),
        "titles": titles,
        "look_ups": {kind: len(looks) for kind, _, looks in cases},
        "model": None if model is None else Path(model).parent.name if Path(model).is_dir() else model,
        "defaults": {"edit": EDIT_MINIMUM, "embeddings": EMBEDDINGS_MINIMUM},
        "results": results,
        "look_up_us": took,
        "large": large,
    }
    report(speed, measured, output)


if __name__ == "__main__":
    typer.run(main)
