"""What the host does for each token when a GPU decodes, beside a device that computes nothing: microseconds a request.

    python bench/host_step.py

In a large batch this, not the GPU, may be what a step waits for. Engine, coroutines, link scanning, planning and
`engine.decode_graph` are as on a GPU, on one core; only the launch is replaced: it hands out the tokens of a text. A
real launch adds some ten microseconds a step, whatever the batch. Each request reads as many documents of 256 tokens
as its prompt links to.

Medians over rounds. Prints a table, writes bench/results/host_step_cpu.json; the last line of the output is the same
JSON.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from report import report
from rich.table import Table

from ds2ds.bench.models import make_model
from ds2ds.engine.arena_size import KV_BLOCK
from ds2ds.engine.decode_graph import table_writer
from ds2ds.engine.decode_graph.decoder import Decoder
from ds2ds.engine.decode_graph.graphs import Bucket
from ds2ds.environment import environment
from ds2ds.kernels.decode_tables import DecodeTables
from ds2ds.runtime import Runtime

RESULT = Path(__file__).parent / "results" / "host_step_cpu.json"
POSITIONS = 2048
LINKED_TOKENS = 256
WARM_UP = 20
TEXT = (
    "A linker joins object files into one program. It resolves what each of them leaves open, lays out their sections "
    "in memory, and writes down where everything is, so that a loader need not look for it again. "
)


class NoDevice:
    """Stands in for `Graphs`: every row draws the next token of a text."""

    def __init__(self, tables: DecodeTables, tokens: Sequence[int]) -> None:
        self.tables = tables
        self._tokens = cycle(tokens)

    def run(self, bucket: Bucket) -> None:
        self.tables.drawn[:, 0] = next(self._tokens)

    def use_weights(self) -> None:
        pass


class Library:
    """A corpus of documents of LINKED_TOKENS tokens, whatever their titles."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(islice(cycle(tokens), LINKED_TOKENS))

    def has_document(self, title: str) -> bool:
        return title.startswith("page")

    def get_document(self, title: str) -> list[int] | None:
        return self._tokens if self.has_document(title) else None


def measure(batch: int, links: int, steps: int, rounds: int) -> dict[str, Any]:
    """One batch size, plain JSON types."""
    model = make_model("1x64", torch.device("cpu"), torch.float32, POSITIONS)
    slots = 2 * batch * (POSITIONS + KV_BLOCK["cpu"] * (links + 2))
    runtime = Runtime(model, arena_tokens=slots, attention="plain", cuda_graphs=False, max_running=batch)
    engine, text = runtime.engine, runtime.tokenizer.encode(TEXT)
    length = POSITIONS - LINKED_TOKENS * links
    config = runtime._generator.default_config().with_overrides(
        max_new_tokens=length,
        max_tokens_per_document=length,
        max_context_length=POSITIONS,
        max_auxiliary_documents=max(1, links),
        temperature=0.0,
        allow_corpus_fallback=False,
    )
    prompt = TEXT + " ".join(f"[this](page {number})" for number in range(links))
    corpus = Library(text)
    running = [runtime._generator.start(prompt, None, corpus, config) for _ in range(batch)]
    while min(len(one.request.context.root.tokens) - one.request.context.root.given for one in running) < 1:
        engine.step()
    decoder = engine.decoder = Decoder(model, engine.store, batch, capture=False)
    decoder.graphs = NoDevice(decoder.tables, text)  # type: ignore[assignment]
    seconds = []
    with patch.object(table_writer, "edit", lambda tables, edits: None):
        for _ in range(WARM_UP):
            engine.step()
        edited = decoder.edited
        for _ in range(rounds):
            started = time.perf_counter()
            for _ in range(steps):
                engine.step()
            seconds.append((time.perf_counter() - started) / steps)
    if decoder.edited != edited or decoder.dropped:
        raise RuntimeError(
            f"{decoder.edited - edited} rows were edited and {decoder.dropped} dropped between plain tokens"
        )
    step = statistics.median(seconds)
    return {
        "batch": batch,
        "links": links,
        "step_us": round(step * 1e6, 1),
        "request_us": round(step * 1e6 / batch, 2),
        "fastest_request_us": round(min(seconds) * 1e6 / batch, 2),
    }


def main(
    batch: Annotated[list[int], typer.Option(help="Requests at a time; may be given again.")] = [1, 8, 64, 256],  # noqa: B006
    links: Annotated[list[int], typer.Option(help="Documents that each reads; may be given again.")] = [0, 4],  # noqa: B006
    steps: Annotated[int, typer.Option(min=1, help="Steps of a round.")] = 50,
    rounds: Annotated[int, typer.Option(min=1)] = 9,
    output: Annotated[Path, typer.Option(help="The JSON file.")] = RESULT,
) -> None:
    """Measure, print a table and write JSON."""
    if steps * rounds + WARM_UP > POSITIONS // 2:
        raise typer.BadParameter(f"--steps times --rounds may come to {POSITIONS // 2 - WARM_UP}, got {steps * rounds}")
    torch.set_num_threads(1)
    results = [measure(number, several, steps, rounds) for several in links for number in batch]
    table = Table(
        "requests", "documents each reads", "µs a step", "µs a request", "fastest round", title="The host's part"
    )
    for one in results:
        names = ("batch", "links", "step_us", "request_us", "fastest_request_us")
        table.add_row(*(f"{one[name]:,}" for name in names))
    settings = {"steps": steps, "rounds": rounds}
    report(table, {"environment": environment(), "settings": settings, "results": results}, output)


if __name__ == "__main__":
    typer.run(main)
