"""Attention of decoded tokens over the arena: time beside the floor, each path beside the others.

    python bench/attention.py --device cuda --dtype bfloat16

Some tokens are decoded at once, each in a document of its own that reads others, all of one length. Timed is what the
model calls for each layer: new keys and values stored, all in view read. The floor is one read of the keys and values
in view at the speed of a large copy in the same run. On a GPU the layers' calls lie in a CUDA graph. A GPU has the
paths "flex", "triton" and "plain", a CPU the last.

Prints a table, writes bench/results/attention_{device}.json; the last line of the output is the same JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from decode import HEAD_DIM, RESULTS, parse_size
from options import the_device, the_dtype
from report import keep, report
from rich.table import Table
from sampling_clock import make_clock

from ds2ds.attention.paths import attention_path
from ds2ds.attention.rotary import Rotary
from ds2ds.attention.view import Chunk
from ds2ds.cache.arena import KVArena
from ds2ds.cache.document_store import DocumentStore
from ds2ds.documents.document import Document, DocumentGrant
from ds2ds.engine.arena_size import KV_BLOCK
from ds2ds.environment import environment

PATHS = {"cuda": ("flex", "triton", "plain"), "cpu": ("plain",)}
# Tokens decoded at once, documents that each reads besides its own, tokens of each document.
SHAPES = {
    "cuda": ((1, 0, 1024), (1, 7, 256), (1, 15, 1024), (16, 7, 256), (64, 0, 1024), (64, 7, 256)),
    "cpu": ((1, 0, 1024), (1, 7, 256), (16, 7, 256)),
}


def documents(rows: int, others: int, length: int) -> Iterator[list[Document]]:
    """For each row its document, of which the last token is to be computed, and before it those that it reads."""
    for row in range(rows):
        read = [Document(f"{row} {index}", [0] * length) for index in range(others)]
        yield [*read, Document(str(row), [0] * length, grants=[DocumentGrant(0, target) for target in read])]


def computed(
    size: str, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype
) -> tuple[DocumentStore, list[Chunk]]:
    """A store that has all of them, and the chunks to compute."""
    layers, width = parse_size(size)
    rows, others, length = shape
    block = KV_BLOCK[device.type]
    slots = rows * (others + 1) * -(-length // block) * block
    arena = KVArena(layers, width // HEAD_DIM, HEAD_DIM, slots, block, dtype, device)
    arena.data.normal_()
    store = DocumentStore(arena, share=False)
    chunks = []
    for group in documents(*shape):
        for document in group:
            store.reserve(document, set)
            store.advance(document, len(document.tokens) - (document is group[-1]))
        chunks.append(Chunk(group[-1], length - 1, length))
    return store, chunks


def measure(
    size: str, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype, budget: float
) -> dict[str, Any]:
    store, chunks = computed(size, shape, device, dtype)
    layers, _, heads, _, width = store.arena.data.shape
    rotary = Rotary(width, (shape[1] + 2) * shape[2], device)
    qk = torch.randn(len(chunks), 2, heads, width, device=device)
    qk = (qk / qk.square().mean(-1, keepdim=True).sqrt()).to(dtype)
    v = torch.randn(len(chunks), heads, width, device=device, dtype=dtype)
    clock = make_clock(device, budget)
    read = shape[0] * (shape[1] + 1) * shape[2] * 2 * heads * width * dtype.itemsize
    floor = read / clock.copy_bandwidth()
    result: dict[str, Any] = {
        "rows": shape[0],
        "others": shape[1],
        "length": shape[2],
        "floor_us": round(floor * 1e6, 3),
    }
    expected = None
    for name in PATHS[device.type]:
        attend = attention_path(store, rotary, name)(chunks)
        calls = clock.prepare(lambda layer, attend=attend: attend(layer, qk, v), range(layers), name != "plain")
        expected = calls.tokens.float() if expected is None else expected
        seconds = clock.seconds(calls)
        result[name] = {
            "microseconds": round(seconds * 1e6, 2),
            "times_floor": round(seconds / floor, 2),
            "difference": round(float((calls.tokens.float() - expected).abs().max()), 5),
        }
    return result


def table(results: list[dict[str, Any]], paths: tuple[str, ...]) -> Table:
    out = Table(title="Attention of decoded tokens, one layer")
    for heading in ("tokens", "documents", "of tokens", "floor µs", *(f"{name} µs (x floor)" for name in paths)):
        out.add_column(heading, justify="right")
    for result in results:
        taken = [f"{result[name]['microseconds']:,.1f} ({result[name]['times_floor']:.1f})" for name in paths]
        shape = (str(result["rows"]), str(result["others"] + 1), str(result["length"]))
        out.add_row(*shape, f"{result['floor_us']:,.1f}", *taken)
    return out


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    size: Annotated[str, typer.Option(help="LAYERSxWIDTH, whose arena it is.")] = "12x768",
    budget: Annotated[float, typer.Option(help="Seconds for one path and shape.")] = 0.3,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure, print a table and write JSON."""
    where = the_device(device)
    precision = the_dtype(dtype, where)
    torch.set_num_threads(threads)
    settings = {"device": device, "dtype": dtype, "size": size}
    results: list[dict[str, Any]] = []
    measured = {"environment": environment(where), "settings": settings, "results": results}
    file = output / f"attention_{where.type}.json"
    for shape in SHAPES[where.type]:
        with torch.inference_mode():
            results.append(measure(size, shape, where, precision, budget))
        keep(measured, file)
    report(table(results, PATHS[where.type]), measured, file)


if __name__ == "__main__":
    typer.run(main)
