"""What `ds2ds serve` does on the host for each token that it streams, beside a device that computes nothing.

    python bench/serve_host.py

On a GPU this may be what streams wait for: a step of many rows takes the GPU about a millisecond. Server, engine and
decoder are as on a GPU; only the launch is replaced: its result is there after a given time, and is the tokens of a
text. The clients, in a process of their own on the same machine, read and count.

For each time that the device takes: the most tokens per second that it would give, those that came, and the server's
processor time per token. Medians over rounds. Prints a table, writes bench/results/serve_host_cpu.json; the last line
of the output is the same JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
import uvicorn
from host_step import POSITIONS, TEXT, NoDevice
from report import report
from rich.table import Table

from ds2ds import AsyncRuntime, Runtime
from ds2ds.bench.models import make_model
from ds2ds.engine.arena_size import KV_BLOCK
from ds2ds.engine.decode_graph import table_writer
from ds2ds.engine.decode_graph.decoder import Decoder
from ds2ds.engine.decode_graph.graphs import Bucket
from ds2ds.engine.decode_graph.host_copies import HostBuffer
from ds2ds.environment import environment
from ds2ds.server.app import create_app
from ds2ds.server.settings import ServerSettings

RESULT = Path(__file__).parent / "results" / "serve_host_cpu.json"
STEPS = (0.0, 1.0, 2.0, 4.0)
"""Milliseconds that the device takes for a step."""
TOLD = b'"text":'
"""What each event with text has once."""


class Busy(NoDevice):
    """A device that takes its time, one step after the other, while the host goes on."""

    seconds = 0.0
    free_at = 0.0

    def run(self, bucket: Bucket) -> None:
        super().run(bucket)
        self.free_at = max(self.free_at, time.perf_counter()) + self.seconds


class Arriving(HostBuffer):
    """What a step has drawn, which is there once the device is through with it."""

    def __init__(self, shape: tuple[int, ...], device: Busy) -> None:
        super().__init__(shape, torch.device("cpu"))
        self._device = device

    def fetch(self, rows: int, source: torch.Tensor) -> None:
        super().fetch(rows, source)
        self._there_at = self._device.free_at

    def wait(self) -> None:
        if (seconds := self._there_at - time.perf_counter()) > 0:
            time.sleep(seconds)


def serve(streams: int, parent: Connection) -> None:
    """A server: tells its port, and then, for each time of a step that it is told, the processor time it has taken; it
    ends when nobody can tell it any more."""
    torch.set_num_threads(1)
    model = make_model("1x64", torch.device("cpu"), torch.float32, POSITIONS)
    slots = streams * (POSITIONS + KV_BLOCK["cpu"])
    runtime = Runtime(model, arena_tokens=slots, attention="plain", cuda_graphs=False, max_running=streams)
    decoder = runtime.engine.decoder = Decoder(model, runtime.engine.store, streams, capture=False)
    device = Busy(decoder.tables, runtime.tokenizer.encode(TEXT))
    decoder.graphs = device  # type: ignore[assignment]
    decoder._arrived = [Arriving(buffer.values.shape, device) for buffer in decoder._arrived]
    app = create_app(AsyncRuntime(runtime), ServerSettings("none"))
    bound = socket.create_server(("127.0.0.1", 0), backlog=streams)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none"))

    def answer() -> None:
        while not server.started:
            time.sleep(0.01)
        with contextlib.suppress(EOFError):
            parent.send(bound.getsockname()[1])
            while True:
                device.seconds = parent.recv()
                parent.send(time.process_time())
        server.should_exit = True

    threading.Thread(target=answer, daemon=True).start()
    with patch.object(table_writer, "edit", lambda tables, edits: None):
        server.run(sockets=[bound])


@contextlib.contextmanager
def served(streams: int) -> Iterator[tuple[int, Connection]]:
    """A server's port, and where it is asked."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve, args=(streams, there))
    process.start()
    there.close()
    try:
        yield here.recv(), here
    except EOFError:
        raise typer.Exit(1) from None  # it has said why
    finally:
        here.close()
        process.join()


async def read(port: int, streams: int, tokens: int) -> tuple[int, int, float]:
    """Have so many texts streamed at a time: how many events with text came, in how many pieces, and the seconds."""
    asked = {"model": "none", "prompt": "A linker", "max_tokens": tokens, "ignore_eos": True, "temperature": 0.0}
    body = json.dumps({**asked, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    events = pieces = 0

    async def one() -> None:
        nonlocal events, pieces
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        rest = b""  # in which one may begin
        while data := await reader.read(2**16):
            events += (rest + data).count(TOLD)
            rest = data[1 - len(TOLD) :]
            pieces += 1
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(streams)))
    return events, pieces, time.perf_counter() - started


def measure(port: int, server: Connection, streams: int, tokens: int, step: float, rounds: int) -> dict[str, Any]:
    """One time of a step, in milliseconds; plain JSON types."""

    def cpu_seconds() -> float:
        server.send(step / 1000)
        return float(server.recv())

    found = []
    for _ in range(rounds):
        before = cpu_seconds()
        events, pieces, seconds = asyncio.run(read(port, streams, tokens))
        if events < streams * tokens:
            raise RuntimeError(f"{events} events came of {streams * tokens} tokens")
        found.append((events / seconds, 1e6 * (cpu_seconds() - before) / events, events / pieces))
    rate, cpu, together = (round(statistics.median(column), 1) for column in zip(*found, strict=True))
    return {
        "streams": streams,
        "step_ms": step,
        "device_tokens_per_second": round(1000 * streams / step) if step else None,
        "tokens_per_second": round(rate),
        "cpu_us_per_token": cpu,
        "tokens_per_read": together,
    }


def main(
    streams: Annotated[int, typer.Option(min=1, help="Texts that are streamed at a time.")] = 64,
    tokens: Annotated[int, typer.Option(min=1, max=POSITIONS // 2, help="Of each.")] = 400,
    step: Annotated[list[float], typer.Option(min=0, help="Device's milliseconds a step; may be given again.")] = list(  # noqa: B006
        STEPS
    ),
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    output: Annotated[Path, typer.Option(help="The JSON file.")] = RESULT,
) -> None:
    """Measure, print a table and write JSON."""
    with served(streams) as (port, server):
        measure(port, server, streams, tokens, 0.0, 1)  # whatever is done once
        results = [measure(port, server, streams, tokens, one, rounds) for one in step]
    table = Table("ms a step", "tokens/s, device", "tokens/s, clients", "µs of CPU a token", "tokens a read")
    for one in results:
        names = ("step_ms", "device_tokens_per_second", "tokens_per_second", "cpu_us_per_token", "tokens_per_read")
        table.add_row(*("" if one[name] is None else f"{one[name]:,}" for name in names))
    settings = {"streams": streams, "tokens": tokens, "rounds": rounds, "cores": os.cpu_count()}
    report(table, {"environment": environment(), "settings": settings, "results": results}, output)


if __name__ == "__main__":
    typer.run(main)
