"""Time to the first token of a request that links documents: cold against a document store that has them.

    python bench/reuse.py

Each request is a new prompt, which no cache has seen; only the documents it links are the same. "direct": the prompt
holds all the links. "through one": the prompt links one document, whose body links all the others. "asked again": as
"direct", but the same prompt each time, as for another sample; warm, it has been computed before.

Cold, the store is cleared before; warm, earlier requests have computed the documents. Cold and warm take turns in one
process; times are medians over rounds, from calling `Runtime.stream` to its first TokenWritten, and "times faster" is
the median of each round's ratio. "By tokens" is what the ratio would be if each token computed took the same time.

Models are the packaged one on FOLDOC's documents, and random weights on documents of 512 random tokens.

Prints a table, writes bench/results/reuse_{device}.json; the last line of the output is the same JSON.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from decode import RESULTS, SIZES, parse_size
from options import the_device, the_dtype
from report import keep, report
from reuse_models import DEMO, HUB, Library, Shelf, foldoc, links, make_runtime, synthetic
from rich.console import Console
from rich.table import Table

from ds2ds.documents.generation_result import Trace
from ds2ds.environment import environment
from ds2ds.generation.events import Done, TokenWritten
from ds2ds.runtime import Runtime

SHAPES = ("direct", "through one", "asked again")
COUNTS = (1, 4, 16, 64)
DOCUMENT_TOKENS = 512
ROUNDS = 3


@dataclass(frozen=True)
class Request:
    """What is asked for again and again, each time in another prompt.

    Attributes:
        link_count: documents that the request brings in.
        linked_tokens: in them.
        numbers: of the prompts, one each time.
    """

    runtime: Runtime
    corpus: Shelf
    body: str
    link_count: int
    linked_tokens: int
    settings: dict[str, Any]
    numbers: Iterator[int]

    def prompt(self) -> str:
        # A link's target is read from the token after it on: some have to follow the last link.
        return f"Request {next(self.numbers)}. See {self.body}. In short, they say that"

    def clear(self) -> None:
        self.runtime.engine.store.clear()

    def run(self) -> tuple[float, Trace]:
        """Seconds to the first token.

        Raises:
            RuntimeError: not every document was brought in.
        """
        prompt = self.prompt()
        seconds, trace = 0.0, None
        started = time.perf_counter()
        for event in self.runtime.stream(prompt, corpus=self.corpus, **self.settings):
            if isinstance(event, TokenWritten):
                seconds = time.perf_counter() - started
            elif isinstance(event, Done):
                trace = event.result.trace
        if trace is None or trace.links_from_corpus != self.link_count or trace.evictions:
            raise RuntimeError(f"the request was to bring in {self.link_count} documents at once, but: {trace}")
        return seconds, trace


def make_request(runtime: Runtime, library: Library, shape: str, link_count: int) -> Request:
    """A request of some shape that brings in the library's first documents."""
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {SHAPES}, got {shape!r}")
    listed = links(library.titles[:link_count])
    through = shape == "through one"
    corpus = library.with_hub(runtime.tokenizer.encode(f"{listed} and others.")) if through else library.corpus
    body = links([HUB]) if through else listed
    tokens = sum(library.lengths[:link_count])
    # Generous: the layout's marks and headings, the prompt, the hub.
    window = tokens + 64 * link_count + 512
    settings = {
        "max_new_tokens": 1,
        "max_tokens_per_document": 2048,
        "max_context_length": window,
        "max_auxiliary_documents": link_count + 1,
        "max_link_depth": 2 if through else 1,
        "allow_corpus_fallback": False,
        "temperature": 0.0,
    }
    numbers = repeat(0) if shape == "asked again" else count()
    return Request(runtime, corpus, body, link_count + through, tokens, settings, numbers)


def race(request: Request, rounds: int) -> dict[str, Any]:
    """Let cold and warm take turns.

    Returns:
        {"cold": {...}, "warm": {...}, "times_faster", "by_tokens"}, plain JSON types.
    """
    # Cold, then warm: on a GPU either may compile something at its first time.
    for _ in range(2):
        request.run()
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    traces: dict[str, Trace] = {}
    for turn in range(rounds):
        # After a cold run the documents are there, so either may come first.
        for name in ("cold", "warm")[:: 1 if turn % 2 == 0 else -1]:
            if name == "cold":
                request.clear()
            taken, traces[name] = request.run()
            seconds[name].append(taken)
    ratios = [cold / warm for cold, warm in zip(seconds["cold"], seconds["warm"], strict=True)]
    if traces["cold"].tokens_prefilled < request.linked_tokens:
        raise RuntimeError(f"cold, {request.linked_tokens} linked tokens were to be computed, but: {traces['cold']}")
    computed = {name: trace.tokens_prefilled for name, trace in traces.items()}
    return {
        **{name: _figures(seconds[name], traces[name]) for name in seconds},
        "times_faster": round(statistics.median(ratios), 2),
        "by_tokens": round(computed["cold"] / computed["warm"], 2),
    }


def _figures(seconds: list[float], trace: Trace) -> dict[str, Any]:
    return {
        "milliseconds": round(statistics.median(seconds) * 1e3, 2),
        "rounds": [round(taken * 1e3, 2) for taken in seconds],
        "tokens_prefilled": trace.tokens_prefilled,
        "tokens_reused": trace.tokens_reused,
        "steps": trace.forward_passes,
    }


def table(results: list[dict[str, Any]]) -> Table:
    out = Table(title="Time to the first token")
    headings = ("model", "shape", "links", "tokens linked", "cold ms", "warm ms", "times faster", "by tokens")
    for heading in headings:
        out.add_column(heading, justify="right")
    for result in results:
        out.add_row(
            result["model"],
            result["shape"],
            str(result["links"]),
            f"{result['linked_tokens']:,}",
            *(f"{result[name]['milliseconds']:,.1f}" for name in ("cold", "warm")),
            f"{result['times_faster']:.1f}",
            f"{result['by_tokens']:.1f}",
        )
    return out


def library_for(model: str, largest: int, length: int) -> Library:
    return foldoc(largest) if model == DEMO else synthetic(largest, length)


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    model: Annotated[list[str], typer.Option(help="demo or LAYERSxWIDTH; may be given again.")] = [DEMO, *SIZES],  # noqa: B006
    shape: Annotated[list[str], typer.Option(help="May be given again.")] = list(SHAPES),  # noqa: B006
    link: Annotated[list[int], typer.Option(help="Links of a request; may be given again.")] = list(COUNTS),  # noqa: B006
    length: Annotated[int, typer.Option(min=1, max=DOCUMENT_TOKENS, help="Of random documents.")] = DOCUMENT_TOKENS,
    rounds: Annotated[int, typer.Option(min=1)] = ROUNDS,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure, print a table and write JSON."""
    unknown = sorted(set(shape) - set(SHAPES))
    if unknown or not all(1 <= number <= max(COUNTS) for number in link):
        raise typer.BadParameter(f"--shape must be among {SHAPES} and --link in [1, {max(COUNTS)}]")
    for name in model:
        if name != DEMO:
            parse_size(name)
    where = the_device(device)
    precision = the_dtype(dtype, where)
    torch.set_num_threads(threads)
    measured: dict[str, Any] = {
        "environment": environment(where),
        "settings": {"device": device, "dtype": dtype, "rounds": rounds, "document_tokens": length},
    }
    progress = Console(stderr=True)
    results = measured["results"] = []
    file = output / f"reuse_{where.type}.json"
    for name in model:
        runtime = make_runtime(name, where, precision)
        library = library_for(name, max(link), length)
        for form in shape:
            for number in link:
                progress.print(f"{name}, {form}, {number} links ...")
                request = make_request(runtime, library, form, number)
                asked = {"model": name, "shape": form, "links": number, "linked_tokens": request.linked_tokens}
                request.clear()
                results.append({**asked, **race(request, rounds)})
                keep(measured, file)
        del runtime
    report(table(results), measured, file)


if __name__ == "__main__":
    typer.run(main)
