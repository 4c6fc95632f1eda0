"""What a link costs a running stream: the steps in which it closes, against plain tokens before and after.

    python bench/link_event.py

One stream writes given tokens (each step computes and draws as always, only the token drawn is replaced), and in them
links to documents of 128 tokens: every other one computed before, for an earlier request, and still in the arena. In
the step that draws a link's last token the host finds the target, fetches and grants it; the next one computes that
token, which does not read the target yet; the third looks for it in the store, prefills it if it is not there, and
computes the first token that reads it. "Extra" is what these three take beyond plain tokens; "follow" and "look up" are
the parts of it that the host spends in the generation's coroutine and in planning. Medians over links.

Prints a table, writes bench/results/link_event_{device}.json; the last line of the output is the same JSON.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from decode import RESULTS, SIZES, parse_size
from options import the_device, the_dtype
from report import keep, report
from reuse_models import DEMO, Library, links, make_runtime, synthetic
from rich.table import Table

from ds2ds.documents.document import Document
from ds2ds.engine import results as results_module
from ds2ds.engine import scheduler as scheduler_module
from ds2ds.engine.work import Sampled, Sampling
from ds2ds.environment import environment
from ds2ds.generation.events import Done, LinkClosed, TokenWritten
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.runtime import Runtime

KINDS = ("resident", "not resident")
PARTS = ("total", "follow", "look up")
NEIGHBOURS = 4
"""Plain tokens on either side that a link's steps are compared to."""


@dataclass
class Clock:
    """Seconds since the last token, and which of them were spent in which part.

    Attributes:
        tokens: for each token, seconds by part ("total", "follow", "look up").
    """

    tokens: list[dict[str, float]] = field(default_factory=list)
    _spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    _last: float = field(default_factory=time.perf_counter)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted."""

        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self._spent[part] += time.perf_counter() - started

        return call

    def token(self) -> None:
        now = time.perf_counter()
        self.tokens.append({**self._spent, "total": now - self._last})
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._last = now


@contextmanager
def watched(runtime: Runtime, clock: Clock, script: Sequence[int]) -> Iterator[None]:
    """Within, the engine is timed by parts, and the root writes the script whatever is drawn."""
    scheduler, draw, plan = runtime.engine.scheduler, results_module.sample, scheduler_module.plan

    def scripted(
        model: DS2DSModel, hidden: torch.Tensor, documents: Sequence[Document], settings: Sequence[Sampling]
    ) -> list[Sampled]:
        written = sum(logprob == logprob for logprob in documents[0].logprobs)
        return [Sampled(script[written], one.logprob) for one in draw(model, hidden, documents, settings)]

    results_module.sample, scheduler_module.plan = scripted, clock.timed("look up", plan)  # type: ignore[assignment]
    scheduler._send = clock.timed("follow", scheduler._send)  # type: ignore[method-assign]
    try:
        yield
    finally:
        results_module.sample, scheduler_module.plan = draw, plan
        del scheduler._send


def make_script(runtime: Runtime, titles: Sequence[str]) -> list[int]:
    """A link to each title, with enough plain tokens around it."""
    plain = runtime.tokenizer.encode(" and" * (2 * NEIGHBOURS + 2))
    script = list(plain)
    for title in titles:
        script += [*runtime.tokenizer.encode(f" {links([title])}"), *plain]
    return script


def stream(runtime: Runtime, library: Library) -> dict[str, list[dict[str, float]]]:
    """Extra seconds, by part, of each link of one stream; the even ones' documents are resident.

    Raises:
        RuntimeError: the stream did not go as it was written.
    """
    runtime.engine.store.clear()
    titles = library.titles
    settings = {
        "max_tokens_per_document": 4096,
        "max_context_length": 8192 + sum(library.lengths),
        "max_auxiliary_documents": len(titles),
        "temperature": 0.0,
    }
    runtime.warm(titles[::2], library.corpus, **settings)
    script = make_script(runtime, titles)
    clock = Clock()
    closed: list[int] = []
    trace = None
    with watched(runtime, clock, script):
        events = runtime.stream("Links:", corpus=library.corpus, max_new_tokens=len(script), **settings)
        for event in events:
            if isinstance(event, TokenWritten):
                clock.token()
            elif isinstance(event, LinkClosed):
                closed.append(len(clock.tokens) - 1)
            elif isinstance(event, Done):
                trace = event.result.trace
    if trace is None or len(closed) != len(titles) or trace.documents_reused != len(titles[::2]):
        raise RuntimeError(f"{len(titles)} links were to close, half of them to resident documents, but: {trace}")
    return {
        kind: [extra(clock.tokens, at) for at in closed[first::2]] for kind, first in zip(KINDS, (0, 1), strict=True)
    }


def extra(tokens: Sequence[dict[str, float]], at: int) -> dict[str, float]:
    """Seconds that a link costs beyond plain tokens, by part: it closes in token `at`, whose own pass does not read the
    target (S2) and gives `at` + 1; the target is computed, if need be, before the pass that gives `at` + 2.

    Compared to plain tokens: two before, which like the first two steps do not read the target, and one after.
    """
    before, steps, after = tokens[at - NEIGHBOURS : at], tokens[at : at + 3], tokens[at + 3 : at + 3 + NEIGHBOURS]
    found = {}
    for part in PARTS:
        plain = 2 * statistics.median(one[part] for one in before) + statistics.median(one[part] for one in after)
        found[part] = sum(one[part] for one in steps) - plain
    return found | {"plain": statistics.median(token["total"] for token in before)}


def measure(runtime: Runtime, library: Library, rounds: int) -> dict[str, Any]:
    """Microseconds, medians over all links of all rounds."""
    stream(runtime, library)
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, measured in stream(runtime, library).items():
            found[kind] += measured
    return {
        kind: {
            f"{part}_us".replace(" ", "_"): round(statistics.median(one[part] for one in measured) * 1e6, 1)
            for part in (*PARTS, "plain")
        }
        | {"links": len(measured)}
        for kind, measured in found.items()
    }


def table(results: list[dict[str, Any]]) -> Table:
    out = Table(title="A link in a stream, microseconds")
    for heading in ("model", "target", "plain token", "extra", "of it: follow", "look up"):
        out.add_column(heading, justify="right")
    for result in results:
        for kind in KINDS:
            figures = result[kind]
            cells = (f"{figures[name]:,.0f}" for name in ("plain_us", "total_us", "follow_us", "look_up_us"))
            out.add_row(result["model"], kind, *cells)
    return out


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    model: Annotated[list[str], typer.Option(help="demo or LAYERSxWIDTH; may be given again.")] = [DEMO, *SIZES],  # noqa: B006
    link: Annotated[int, typer.Option(min=2, help="Links of a stream.")] = 8,
    length: Annotated[int, typer.Option(min=1, max=512, help="Tokens of a target.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Streams.")] = 5,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure, print a table and write JSON."""
    for name in model:
        if name != DEMO:
            parse_size(name)
    where = the_device(device)
    precision = the_dtype(dtype, where)
    torch.set_num_threads(threads)
    measured: dict[str, Any] = {
        "environment": environment(where),
        "settings": {"device": device, "dtype": dtype, "rounds": rounds, "target_tokens": length},
    }
    library = synthetic(link, length)
    results = measured["results"] = []
    file = output / f"link_event_{where.type}.json"
    for name in model:
        runtime = make_runtime(name, where, precision)
        results.append({"model": name, **measure(runtime, library, rounds)})
        keep(measured, file)
        del runtime
    report(table(results), measured, file)


if __name__ == "__main__":
    typer.run(main)
