"""ds2ds with the instructions of other processors, of those that this one has, and without compiled code.

    python bench/processors.py

The C files compiled with AVX512 (but not VNNI, its products of bytes), AVX2 or neither; one sequence, in a process of
its own for each. Not what such a processor achieves, as this one is no other, but what its instructions cost.

Prints a table, writes bench/results/processors_cpu.json; the last line of the output is the same JSON.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import cpu_step
import torch
import typer
from decode import runtime_tokens
from options import as_arguments
from report import report
from rich.console import Console
from rich.table import Table

from ds2ds.environment import environment
from ds2ds.native import library
from ds2ds.native.operations import available
from ds2ds.runtime import Runtime

RESULT = Path(__file__).parent / "results" / "processors_cpu.json"
PROCESSORS = {"native": "this processor's", "x86-64-v4": "AVX512", "x86-64-v3": "AVX2", "x86-64": "neither"}
WITHOUT = "no compiled code"
WEIGHTS = ("float32", "int8", "int8_dynamic")


def worker(processor: str, size: str, context: int, tokens: int, rounds: int, threads: int) -> None:
    """Medians for each kind of weights, as one line of JSON."""
    torch.set_num_threads(threads)
    library.FLAGS = tuple(f"-march={processor}" if "march" in flag else flag for flag in library.FLAGS)
    if available() == (processor == WITHOUT):
        raise RuntimeError(f"compiled code is {'' if available() else 'not '}there")
    (prompt,) = cpu_step.prompts(1, context)
    found = {}
    for kind in WEIGHTS:
        model = cpu_step.variant(cpu_step.random_model(size), kind)
        runtime = Runtime(model, document_store=False)
        first, decode = [], []
        for _ in range(rounds + 1):
            written = runtime_tokens(runtime, prompt, tokens + 1)
            first.append(cpu_step.timed(lambda some=written: next(some)))
            decode.append(tokens / cpu_step.timed(lambda some=written: [next(some) for _ in range(tokens)]))
        found[kind] = {
            "prompt_tokens_per_second": round(context / statistics.median(first[1:]), 1),
            "tokens_per_second": round(statistics.median(decode[1:]), 1),
        }
    print(json.dumps(found))


def measure(processor: str, arguments: list[str], scratch: str) -> dict[str, Any]:
    variables = {"XDG_CACHE_HOME": scratch, library.SWITCH: "0" if processor == WITHOUT else "1"}
    command = [sys.executable, __file__, *arguments, "--only", processor]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **variables})
    return dict(json.loads(done.stdout))


def table(results: list[dict[str, Any]]) -> Table:
    out = Table("vectors", *WEIGHTS, title="One sequence, tokens/s decoded (and of the prompt read)")
    for result in results:
        speeds = (result[kind] for kind in WEIGHTS)
        cells = (f"{one['tokens_per_second']:.1f} ({one['prompt_tokens_per_second']:,.0f})" for one in speeds)
        out.add_row(result["vectors"], *cells)
    return out


def main(
    size: Annotated[str, typer.Option(help="LAYERSxWIDTH.")] = "12x768",
    context: Annotated[int, typer.Option(min=1)] = 256,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded in a round.")] = 32,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    only: Annotated[str, typer.Option(hidden=True)] = "",
    output: Annotated[Path, typer.Option(help="The JSON file.")] = RESULT,
) -> None:
    """Measure, print a table and write JSON."""
    if only:
        worker(only, size, context, tokens, rounds, threads)
        return
    x86 = platform.machine() == "x86_64"
    there = {"native": True, "x86-64-v4": x86 and "avx512bw" in library._processor(), "x86-64-v3": x86, "x86-64": x86}
    options = {"size": size, "context": context, "tokens": tokens, "rounds": rounds, "threads": threads}
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for processor, vectors in {**PROCESSORS, WITHOUT: WITHOUT}.items():
            if there.get(processor, True):
                Console(stderr=True).print(f"{vectors} ...")
                results.append({"vectors": vectors, **measure(processor, as_arguments(options), scratch)})
    measured = {"environment": environment(), "settings": options, "results": results}
    report(table(results), measured, output)


if __name__ == "__main__":
    typer.run(main)
