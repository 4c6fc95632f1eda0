"""`ds2ds serve` under load: more and more clients at a time, beyond what it takes to have it do all it can.

    python bench/serve_load.py

Each client sends one streamed request after the other, over one connection of its own: a prompt with a link to a
document of FOLDOC, chosen by Zipf's law among those that most links lead to, so that the server's document store meets
what it would meet in use. EOS does not end a text, so that each request writes the same number of tokens.

Times are taken by the client, from sending a request to the first chunk that has text, and from there to the last
one, by the tokens after the first. A level's tokens per second are all its tokens by the time from its first request
to its last answer. "Saturated" is the first level that has 90% of the best one's. A request that is answered by
anything but a whole stream has failed, and is counted.

The server is a process of its own on the same machine, and clients and server share its cores.

Prints a table, writes bench/results/serve_load.json; the last line of the output is the same JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from report import report
from rich.console import Console
from rich.table import Table

from ds2ds.corpus.document_corpus import DEMO, DocumentCorpus
from ds2ds.environment import environment

RESULTS = Path(__file__).parent / "results"
LEVELS = (1, 2, 4, 8, 16, 32, 64)
TITLES = 200
SATURATED = 0.9
"""Of the most tokens per second."""


@dataclass(frozen=True)
class Answer:
    """One request that succeeded. Seconds; `per_token` is that of the tokens after the first."""

    first: float
    per_token: float
    whole: float
    tokens: int


class Failed(Exception):
    """A request was answered by something else than a whole stream."""


@dataclass(frozen=True)
class Load:
    """What is sent to the server at `url`."""

    url: str
    model: str
    titles: Sequence[str]
    tokens: int
    seed: int = 0

    def body(self, number: int) -> dict[str, Any]:
        """A request; the same number gives the same one."""
        at = random.Random(f"{self.seed} {number}")
        weights = [1 / rank for rank in range(1, len(self.titles) + 1)]
        (title,) = at.choices(self.titles, weights)
        return {
            "model": self.model,
            "prompt": f"# Note {number}\n\nSee [{title}]({title}). In short, it is",
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "seed": number,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    async def send(self, client: httpx.AsyncClient, number: int) -> Answer:
        """Raises Failed, or httpx.HTTPError."""
        started = time.perf_counter()
        times: list[float] = []
        tokens, done = 0, False
        async with client.stream("POST", f"{self.url}/v1/completions", json=self.body(number)) as stream:
            if stream.status_code != 200:
                raise Failed(f"status {stream.status_code}: {(await stream.aread()).decode(errors='replace')}")
            async for line in stream.aiter_lines():
                if not line:
                    continue
                data = line.removeprefix("data: ")
                done = data == "[DONE]"
                chunk = {} if done else json.loads(data)
                if "error" in chunk:
                    raise Failed(chunk["error"]["message"])
                if any(choice["text"] for choice in chunk.get("choices", ())):
                    times.append(time.perf_counter())
                if chunk.get("usage"):
                    tokens = chunk["usage"]["completion_tokens"]
        ended = time.perf_counter()
        if not done or tokens != self.tokens:
            raise Failed(f"{tokens} tokens of {self.tokens}, {'and' if done else 'but'} the stream's end came")
        return Answer(times[0] - started, (times[-1] - times[0]) / max(1, tokens - 1), ended - started, tokens)


async def level(load: Load, clients: int, requests: int, first: int) -> dict[str, Any]:
    """Let so many clients send requests, those numbered from `first` on, one after the other each.

    Returns:
        Plain JSON types; milliseconds.
    """
    numbers = iter(range(first, first + requests))
    answers: list[Answer] = []
    failures: list[str] = []

    async def client() -> None:
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as http:
            for number in numbers:
                try:
                    answers.append(await load.send(http, number))
                except (Failed, httpx.HTTPError) as error:
                    failures.append(f"{type(error).__name__}: {error}")

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - started
    return {
        "clients": clients,
        "requests": requests,
        "failed": len(failures),
        "failures": sorted(set(failures))[:5],
        "seconds": round(seconds, 6),
        "tokens_per_second": round(sum(answer.tokens for answer in answers) / seconds, 1),
        "time_to_first_token_ms": percentiles([answer.first for answer in answers]),
        "time_per_token_ms": percentiles([answer.per_token for answer in answers]),
        "request_ms": percentiles([answer.whole for answer in answers]),
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """In milliseconds; None of nothing."""
    if not seconds:
        return None
    p50, p99 = np.percentile(np.array(seconds) * 1000, (50, 99))
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}


def measure(load: Load, levels: Sequence[int], per_client: int, least: int, progress: Console) -> list[dict[str, Any]]:
    """Level by level; a short one before the first is not counted."""
    asyncio.run(level(load, 1, 2, 0))
    results: list[dict[str, Any]] = []
    first = 2
    for clients in levels:
        progress.print(f"{clients} at a time ...")
        requests = max(least, clients * per_client)
        results.append(asyncio.run(level(load, clients, requests, first)))
        first += requests
    return results


def saturated_at(results: Sequence[dict[str, Any]]) -> int:
    """With how many clients the server does about all it can; of the last level, it may be more than that."""
    enough = SATURATED * max(result["tokens_per_second"] for result in results)
    return next(int(result["clients"]) for result in results if result["tokens_per_second"] >= enough)


@contextlib.contextmanager
def server(model: str, threads: int) -> Iterator[str]:
    """A server of its own: its URL."""
    code = f"import torch; torch.set_num_threads({threads}); from ds2ds.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--model", model, "--name", DEMO, "--corpus", DEMO, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout is not None else ""
        if not line.startswith("serving "):
            raise typer.Exit(1)
        yield line.split()[-1]
    finally:
        process.terminate()
        process.wait()


def table(results: Sequence[dict[str, Any]]) -> Table:
    out = Table(title="ds2ds serve under load: milliseconds, p50 / p99")
    for heading in ("clients", "requests", "failed", "tokens/s", "to first token", "per token", "request"):
        out.add_column(heading, justify="right")
    for result in results:
        figures = [result[name] for name in ("time_to_first_token_ms", "time_per_token_ms", "request_ms")]
        out.add_row(
            str(result["clients"]),
            str(result["requests"]),
            str(result["failed"]),
            f"{result['tokens_per_second']:,.1f}",
            *("" if one is None else f"{one['p50']:,.1f} / {one['p99']:,.1f}" for one in figures),
        )
    return out


def main(
    model: Annotated[str, typer.Option(help='Checkpoint folder with documents of FOLDOC\'s kind, or "demo".')] = DEMO,
    url: Annotated[str | None, typer.Option(help="A server that runs already, and serves `demo`.")] = None,
    clients: Annotated[list[int], typer.Option(help="At a time; may be given again.")] = list(LEVELS),  # noqa: B006
    tokens: Annotated[int, typer.Option(min=2, help="Tokens that each request writes.")] = 32,
    per_client: Annotated[int, typer.Option(min=1, help="Requests of each client.")] = 4,
    least: Annotated[int, typer.Option(min=1, help="Requests of a level, at least.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the server.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure, print a table and write JSON. Exit code 1 if a request failed."""
    measured: dict[str, Any] = {
        "environment": environment(),
        "settings": {"model": model, "tokens": tokens, "per_client": per_client, "least": least, "threads": threads},
    }
    with DocumentCorpus(DEMO) as corpus:
        titles = corpus.most_linked(TITLES)
    with contextlib.nullcontext(url) if url is not None else server(model, threads) as address:
        load = Load(address, DEMO, titles, tokens)
        results = measure(load, sorted(clients), per_client, least, Console(stderr=True))
    measured["results"], measured["saturated_at"] = results, saturated_at(results)
    report(table(results), measured, output / "serve_load.json")
    if any(result["failed"] for result in results):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
