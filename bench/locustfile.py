"""`ds2ds serve` under locust's load: users of someone else's making, more of them at each level.

    ds2ds serve &
    locust -f bench/locustfile.py --headless --host http://127.0.0.1:8000

Every user sends one streamed completion after the other, with a link to a document of FOLDOC; a stream that does not
end with [DONE], or has an error in it, has failed. Each level lasts DS2DS_LEVEL_SECONDS (10). Writes
bench/results/serve_locust.json: for each level requests, failures, and p50 and p99 of the time to the first chunk and
of the whole stream, in milliseconds. `bench/serve_load.py` measures more closely; this one is not of our making.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from locust import HttpUser, LoadTestShape, events, task
from report import report
from rich.table import Table

from ds2ds.corpus.document_corpus import DEMO, DocumentCorpus
from ds2ds.environment import environment

LEVELS = (1, 2, 4, 8, 16, 32, 64)
SECONDS = float(os.environ.get("DS2DS_LEVEL_SECONDS", "10"))
TOKENS = 32
RESULTS = Path(__file__).parent / "results"

with DocumentCorpus(DEMO) as corpus:
    TITLES = corpus.most_linked(200)
WHERE = environment()

level = 0
firsts: dict[int, list[float]] = defaultdict(list)
wholes: dict[int, list[float]] = defaultdict(list)
failures: dict[int, list[str]] = defaultdict(list)


class Levels(LoadTestShape):
    """LEVELS users at a time, one level after the other."""

    def tick(self) -> tuple[int, float] | None:
        global level
        at = int(self.get_run_time() // SECONDS)
        if at >= len(LEVELS):
            return None
        level = LEVELS[at]
        return level, 100.0


class Reader(HttpUser):
    """Asks for completions, and reads them as they come."""

    @task
    def complete(self) -> None:
        now, number = level, random.randrange(10**9)
        title = random.choices(TITLES, [1 / rank for rank in range(1, len(TITLES) + 1)])[0]
        body = {
            "model": DEMO,
            "prompt": f"# Note {number}\n\nSee [{title}]({title}). In short, it is",
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "seed": number,
            "stream": True,
        }
        started = time.perf_counter()
        first, last = None, b""
        with self.client.post("/v1/completions", json=body, stream=True, catch_response=True) as answer:
            if answer.status_code != 200:
                problem: str | None = f"status {answer.status_code}"
            else:
                for line in answer.iter_lines():
                    if line:
                        first = first or time.perf_counter()
                        last = line if isinstance(line, bytes) else line.encode()
                        # A document may be called "error", too.
                        if b'"error"' in last and "error" in json.loads(last.removeprefix(b"data: ")):
                            break
                problem = None if last == b"data: [DONE]" else f"the stream ended with {last[:80]!r}"
            if problem is None and first is not None:
                firsts[now].append(first - started)
                wholes[now].append(time.perf_counter() - started)
                answer.success()
            else:
                failures[now].append(problem or "no chunk came")
                answer.failure(failures[now][-1])


def _figures(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    p50, p99 = np.percentile(np.array(seconds) * 1000, (50, 99))
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}


@events.quitting.add_listener
def write(**_: Any) -> None:
    """Print the table and write the results."""
    results = [
        {
            "users": users,
            "requests": len(wholes[users]) + len(failures[users]),
            "failed": len(failures[users]),
            "failures": sorted(set(failures[users]))[:5],
            "first_chunk_ms": _figures(firsts[users]),
            "stream_ms": _figures(wholes[users]),
        }
        for users in LEVELS
    ]
    table = Table(title="ds2ds serve under locust: milliseconds, p50 / p99")
    for heading in ("users", "requests", "failed", "first chunk", "stream"):
        table.add_column(heading, justify="right")
    for result in results:
        cells = [result["first_chunk_ms"], result["stream_ms"]]
        table.add_row(
            *(str(result[name]) for name in ("users", "requests", "failed")),
            *("" if one is None else f"{one['p50']:,.0f} / {one['p99']:,.0f}" for one in cells),
        )
    settings = {"level_seconds": SECONDS, "tokens": TOKENS, "levels": list(LEVELS)}
    measured = {"environment": WHERE, "settings": settings, "results": results}
    report(table, json.loads(json.dumps(measured)), RESULTS / "serve_locust.json")
