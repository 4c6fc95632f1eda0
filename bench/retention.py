"""Which documents to keep: hit rates of the store's policies on traces of requests, and what no policy can exceed.

    pip install scipy
    python bench/retention.py

Documents have the lengths of FOLDOC's, cut at 512 tokens. They are asked for one at a time, at random, the most linked
one most often (Zipf); the second trace is the first one with requests between that ask for a document which nobody
ever asks for again. The real store, retention and allocator run, over an arena as narrow as can be; a prefill is
simulated by what it would cost. The ceiling is `offline_bound.most_hits`: an optimum that knows the future, and may
keep parts of documents.

Rates are of the requests that follow Zipf's law, in documents and in tokens: all of them, the first ones of each
document too, which no cache can answer. Deterministic. Prints a table, writes bench/results/retention.json; the last
line of the output is the same JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from offline_bound import Ints, most_hits, repeats
from report import report
from rich.console import Console
from rich.table import Table

from ds2ds.cache.arena import KVArena
from ds2ds.cache.document_store import DocumentStore
from ds2ds.cache.retention import RETENTIONS
from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.documents.content import make_content
from ds2ds.documents.document import Document
from ds2ds.engine.arena_size import KV_BLOCK
from ds2ds.environment import environment

RESULT = Path(__file__).parent / "results" / "retention.json"
BLOCK = KV_BLOCK["cpu"]
LONGEST = 512
EXPONENTS = (0.8, 1.0)
ONCE = (0.0, 0.4)
ARENAS = (0.02, 0.05, 0.1, 0.2)
SEED = 0


@dataclass(frozen=True)
class Requests:
    """Attributes:
    trace: [requests], the document of each; documents from `counted` on are asked for once.
    lengths: [documents], in tokens.
    """

    trace: Ints
    lengths: Ints
    counted: int

    @property
    def sizes(self) -> Ints:
        """[documents], slots of the arena."""
        return -(-self.lengths // BLOCK) * BLOCK

    @property
    def total(self) -> tuple[int, int]:
        """Requests that count, and their tokens."""
        return self._count(self.trace)

    @property
    def repeats(self) -> tuple[int, int]:
        """Those of them whose document was asked for before: what an arena without bounds would answer."""
        return self._count(self.trace[repeats(self.trace)[1]])

    def _count(self, trace: Ints) -> tuple[int, int]:
        counted = trace[trace < self.counted]
        return len(counted), int(self.lengths[counted].sum())


@dataclass(frozen=True)
class Cost:
    """Seconds that a prefill takes. GDSF weighs documents by them."""

    per_document: float
    per_token: float

    def of(self, tokens: int) -> float:
        return self.per_document + self.per_token * tokens


class NarrowArena(KVArena):
    """An arena whose keys and values no one reads: a compaction is counted, and moves extents only."""

    def __init__(self, slots: int) -> None:
        super().__init__(layers=1, kv_heads=1, head_dim=4, slots=slots, block=BLOCK)
        self.compactions = self.moved = 0

    def compact(self) -> int:
        moved = sum(move.length for move in self.allocator.compact())
        self.compactions += 1
        self.moved += moved
        return moved


def foldoc_lengths() -> Ints:
    """[documents], the most linked one first."""
    with DocumentCorpus("demo") as corpus:
        nodes = (corpus.graph.find(title) for title in corpus.most_linked(len(corpus)))
        return np.array([min(node.length, LONGEST) for node in nodes if node is not None], dtype=np.int64)


def zipf(lengths: Ints, exponent: float, requests: int, once: float = 0.0) -> Requests:
    """So many requests, the document of rank r with a probability proportional to r ** -exponent.

    Args:
        lengths: by rank.
        once: share of all requests that further ones have, each for a document of its own, of a length drawn from
            `lengths`. The others are the same whatever the share.
    """
    popular, rare = np.random.default_rng(SEED), np.random.default_rng(SEED + 1)
    weights = np.cumsum(np.arange(1, len(lengths) + 1, dtype=float) ** -exponent)
    trace = np.searchsorted(weights / weights[-1], popular.random(requests), side="right")
    extra = round(requests * once / (1 - once))
    at = np.sort((rare.random(extra) * requests).astype(np.int64))
    trace = np.insert(trace, at, len(lengths) + np.arange(extra))
    more = lengths[(rare.random(extra) * len(lengths)).astype(np.int64)]
    return Requests(trace, np.concatenate([lengths, more]), len(lengths))


def replay(requests: Requests, retention: str, slots: int, cost: Cost) -> dict[str, int]:
    """Ask the store for each document in turn.

    Returns:
        {"documents": hits, "tokens": of them, "computed": tokens of the others, "compactions": n, "moved": slots that
        compactions moved}
    """
    arena = NarrowArena(slots)
    store = DocumentStore(arena, RETENTIONS[retention]())
    hits = tokens = computed = 0
    contents: dict[int, tuple[list[int], Any]] = {}
    for number in requests.trace.tolist():
        if number not in contents:
            body = np.full(int(requests.lengths[number]), number, dtype=np.int32)
            contents[number] = body.tolist(), make_content(body, ())
        document = Document(str(number), contents[number][0], content=contents[number][1])
        found = store.attach(document)
        if found is None:
            store.reserve(document, lambda document=document: {document})
            store.advance(document, len(document.tokens), cost.of(len(document.tokens)))
            computed += len(document.tokens)
        elif found != len(document.tokens):
            raise RuntimeError(f"the store has {found} tokens of a document of {len(document.tokens)}")
        else:
            hits, tokens = hits + 1, tokens + found
        store.release(document)
    store.check_integrity()
    return {
        "documents": hits,
        "tokens": tokens,
        "computed": computed,
        "compactions": arena.compactions,
        "moved": arena.moved,
    }


def measure(requests: Requests, slots: int, cost: Cost) -> dict[str, Any]:
    """Hit rates, in documents and tokens, of every policy and of the ceiling."""
    (documents, tokens), again = requests.total, requests.repeats
    ones = np.ones_like(requests.lengths)
    found = {name: replay(requests, name, slots, cost) for name in RETENTIONS}
    hits: dict[str, tuple[float, float]] = {name: (one["documents"], one["tokens"]) for name, one in found.items()}
    of_documents, of_tokens = (
        most_hits(requests.trace, requests.sizes, weights, slots) for weights in (ones, requests.lengths)
    )
    if any(pair[0] > of_documents + 1e-3 or pair[1] > of_tokens + 1e-3 for pair in hits.values()):
        raise RuntimeError(f"hits {hits} exceed what is possible, {of_documents} and {of_tokens}")
    hits["ceiling"] = of_documents, of_tokens
    return {
        "documents": {name: round(pair[0] / documents, 4) for name, pair in hits.items()},
        "tokens": {name: round(pair[1] / tokens, 4) for name, pair in hits.items()},
        "repeats": {"documents": round(again[0] / documents, 4), "tokens": round(again[1] / tokens, 4)},
        "compactions": {name: one["compactions"] for name, one in found.items()},
        "slots_moved_per_token_computed": {
            name: round(one["moved"] / one["computed"], 2) for name, one in found.items()
        },
    }


def table(results: Sequence[dict[str, Any]]) -> Table:
    out = Table(title="Hit rates (of the ceiling)")
    for heading in ("exponent", "asked once", "arena"):
        out.add_column(heading, justify="right")
    names = list(results[0]["documents"])
    for unit in ("documents", "tokens"):
        for name in names:
            out.add_column(f"{unit} {name}", justify="right")
    for result in results:
        cells = []
        for unit in ("documents", "tokens"):
            rates = result[unit]
            cells += [
                f"{rate:.1%}" + (f" ({rate / rates['ceiling']:.0%})" if name != "ceiling" else "")
                for name, rate in rates.items()
            ]
        out.add_row(str(result["exponent"]), f"{result['once']:.0%}", f"{result['arena']:.0%}", *cells)
    return out


def main(
    exponent: Annotated[list[float], typer.Option(help="Of Zipf's law; may be given again.")] = list(EXPONENTS),  # noqa: B006
    once: Annotated[list[float], typer.Option(help="Share of all requests; may be given again.")] = list(ONCE),  # noqa: B006
    arena: Annotated[list[float], typer.Option(help="Share of the corpus' tokens; may be given again.")] = list(ARENAS),  # noqa: B006
    requests: Annotated[int, typer.Option(min=1, help="Without those that come once.")] = 20_000,
    per_document: Annotated[float, typer.Option(help="Seconds that any prefill takes.")] = 2e-3,
    per_token: Annotated[float, typer.Option(help="Seconds more for each of its tokens.")] = 1e-4,
    output: Annotated[Path, typer.Option(help="The JSON file.")] = RESULT,
) -> None:
    """Replay, print a table and write JSON."""
    if not all(0 <= share < 1 for share in once):
        raise typer.BadParameter(f"--once must be in [0, 1), got {once}")
    lengths = foldoc_lengths()
    progress = Console(stderr=True)
    results = []
    for skew in exponent:
        for share_once in once:
            trace = zipf(lengths, skew, requests, share_once)
            for share in arena:
                progress.print(f"exponent {skew}, {share_once:.0%} once, arena {share:.0%} ...")
                slots = max(LONGEST, int(share * lengths.sum())) // BLOCK * BLOCK
                figures = measure(trace, slots, Cost(per_document, per_token))
                results.append({"exponent": skew, "once": share_once, "arena": share, "slots": slots, **figures})
    measured = {
        "environment": environment(),
        "settings": {
            "documents": len(lengths),
            "tokens": int(lengths.sum()),
            "longest": LONGEST,
            "block": BLOCK,
            "requests": requests,
            "seconds_per_document": per_document,
            "seconds_per_token": per_token,
            "seed": SEED,
        },
        "results": results,
    }
    report(table(results), measured, output)


if __name__ == "__main__":
    typer.run(main)
