"""bench/serve_load.py and bench/serve_host.py count what they say they count."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scripted import Texts, small_runtime
from serving import FakeBackend, listening

from ds2ds import GenerationError, QueueFullError

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import serve_host
import serve_load

QUIET = Console(quiet=True)


def test_levels_are_measured_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = ["A", "B"]
    runtime = small_runtime(arena_tokens=20_000)
    step = runtime.engine.step

    def slow() -> None:  # else a text's tokens may all come at once
        time.sleep(0.005)
        step()

    monkeypatch.setattr(runtime.engine, "step", slow)
    with listening(runtime, {"c": Texts({"A": "about A", "B": "about B"})}) as (url, _):
        load = serve_load.Load(url, "m", titles, tokens=5)
        results = serve_load.measure(load, (1, 2), per_client=2, least=3, progress=QUIET)
    assert [(result["clients"], result["requests"], result["failed"]) for result in results] == [(1, 3, 0), (2, 4, 0)]
    for result in results:
        assert result["tokens_per_second"] == pytest.approx(5 * result["requests"] / result["seconds"], rel=0.05)
        for name in ("time_to_first_token_ms", "time_per_token_ms", "request_ms"):
            assert 0 < result[name]["p50"] <= result[name]["p99"]
        assert result["time_to_first_token_ms"]["p50"] < result["request_ms"]["p50"]
    assert serve_load.table(results).row_count == 2


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        (FakeBackend(error=QueueFullError("full")), "status 429"),
        (FakeBackend("x" * 9, error=GenerationError("NaN"), error_at=2), "Failed: NaN"),
        (FakeBackend("x"), "2 tokens of 5"),
    ],
)
def test_a_request_that_fails_is_counted(backend: Any, told: str) -> None:
    with listening(backend) as (url, _):
        load = serve_load.Load(url, "m", ["A"], tokens=5)
        (result,) = serve_load.measure(load, (2,), per_client=2, least=1, progress=QUIET)
    assert result["failed"] == 4 and told in result["failures"][0]
    assert result["time_per_token_ms"] is None and serve_load.table([result]).row_count == 1


def test_where_it_is_saturated() -> None:
    def results(*speeds: float) -> list[dict[str, Any]]:
        return [{"clients": 2**at, "tokens_per_second": speed} for at, speed in enumerate(speeds)]

    assert serve_load.saturated_at(results(10, 19, 30, 32, 29)) == 4
    assert serve_load.saturated_at(results(10, 19, 30)) == 4
    assert serve_load.saturated_at(results(10, 8)) == 1


def test_a_number_is_always_the_same_request() -> None:
    load = serve_load.Load("", "m", ["A", "B", "C"], tokens=5)
    bodies = [load.body(number) for number in range(200)]
    assert bodies == [load.body(number) for number in range(200)]
    linked = [body["prompt"].partition("](")[2][0] for body in bodies]
    assert linked.count("A") > linked.count("B") > linked.count("C") > 0


def test_the_server_s_own_part_of_a_token() -> None:
    """Every token comes, or `measure` raises; a device that takes its time gives no more than it can."""
    with serve_host.served(2) as (port, server):
        results = [serve_host.measure(port, server, 2, tokens=20, step=step, rounds=1) for step in (0.0, 20.0)]
    fast, slow = results
    assert fast["device_tokens_per_second"] is None and slow["device_tokens_per_second"] == 100
    assert 0 < slow["tokens_per_second"] <= 100 * 1.1  # the first token comes of the prefill
    assert all(result["cpu_us_per_token"] > 0 for result in results)
    assert slow["tokens_per_read"] < 2


def test_a_server_that_is_measured_ends_with_whoever_measures() -> None:
    with pytest.raises(ZeroDivisionError), serve_host.served(1) as (port, _):
        raise ZeroDivisionError
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
