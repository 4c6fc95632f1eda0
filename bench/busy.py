"""Decoding on a CPU beside other programs that want its cores: ds2ds, transformers and CTranslate2.

    python bench/busy.py

Each contestant decodes one sequence in a process of its own, as cpu_step.py measures it: alone, beside one program that
never rests, beside as many as there are threads, and beside another process that does the same.

Prints a table, writes bench/results/busy_cpu.json; the last line of the output is the same JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import baselines
import cpu_step
import torch
import typer
from options import as_arguments
from report import report
from rich.console import Console
from rich.table import Table

from ds2ds.environment import environment

RESULT = Path(__file__).parent / "results" / "busy_cpu.json"
CONTESTANTS = ("ds2ds-float32", "ds2ds-int8", "transformers", "ctranslate2-int8")
CONDITIONS = ("alone", "one busy", "all busy", "two of them")


def worker(name: str, size: str, context: int, tokens: int, rounds: int, threads: int) -> None:
    """Tokens per second of each round, as one line of JSON."""
    torch.set_num_threads(threads)
    model, prompt = cpu_step.random_model(size), cpu_step.prompts(1, context)
    with tempfile.TemporaryDirectory() as scratch:
        if name.startswith("ds2ds"):
            one = cpu_step.ours(model, name, prompt, 64 + tokens * rounds)
        else:
            gpt2 = baselines.gpt2_like(model.config, torch.device("cpu"), torch.float32)
            if name == "transformers":
                one = cpu_step.transformers(gpt2, prompt)
            else:
                baselines.convert_for_ctranslate2(gpt2, Path(scratch))
                one = cpu_step.ctranslate2(Path(scratch), name.removeprefix("ctranslate2-"), prompt, threads)
        one.seconds(3)
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps([tokens / max(one.seconds(tokens), 1e-9) for _ in range(rounds)]), flush=True)
        sys.stdin.readline()  # it goes on as a process that wants nothing until the other one has ended, too


@contextmanager
def processes(commands: list[list[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Ended when left."""
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for command in commands
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def line(process: subprocess.Popen[str]) -> str:
    """What it prints next. Raises RuntimeError: it has ended."""
    said = process.stdout.readline() if process.stdout else ""
    if not said:
        raise RuntimeError(f"{process.args} ended with {process.wait()}")
    return said


def measure(worker_command: list[str], condition: str, threads: int) -> list[float]:
    """The rounds of one contestant, or of two."""
    others = {"one busy": 1, "all busy": threads}.get(condition, 0)
    with processes([worker_command] * (2 if condition == "two of them" else 1)) as running:
        for process in running:
            line(process)
        with processes([[sys.executable, "-c", "while True: pass"]] * others):
            for process in running:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            return [speed for process in running for speed in json.loads(line(process))]


def table(results: list[dict[str, Any]]) -> Table:
    out = Table("tokens/s", *CONDITIONS, title="Decoding one sequence beside other programs")
    for name in dict.fromkeys(r["contestant"] for r in results):
        speeds = {r["condition"]: r["tokens_per_second"] for r in results if r["contestant"] == name}
        cells = (f"{speeds[c]:.1f} ({speeds[c] / speeds['alone']:.0%})" if c in speeds else "" for c in CONDITIONS)
        out.add_row(name, *cells)
    return out


def main(
    size: Annotated[str, typer.Option(help="LAYERSxWIDTH.")] = "12x768",
    context: Annotated[int, typer.Option(min=1)] = 128,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a round.")] = 32,
    rounds: Annotated[int, typer.Option(min=1)] = 9,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    contestant: Annotated[list[str], typer.Option(help="May be given again.")] = list(CONTESTANTS),  # noqa: B006
    only: Annotated[str, typer.Option(hidden=True)] = "",
    output: Annotated[Path, typer.Option(help="The JSON file.")] = RESULT,
) -> None:
    """Measure, print a table and write JSON."""
    if only:
        worker(only, size, context, tokens, rounds, threads)
        return
    if unknown := sorted(set(contestant) - set(CONTESTANTS)):
        raise typer.BadParameter(f"--contestant must be among {CONTESTANTS}, got {unknown}")
    results: list[dict[str, Any]] = []
    options = {"size": size, "context": context, "tokens": tokens, "rounds": rounds, "threads": threads}
    for name in contestant:
        for condition in CONDITIONS:
            Console(stderr=True).print(f"{name}, {condition} ...")
            speeds = measure([sys.executable, __file__, *as_arguments(options), "--only", name], condition, threads)
            results.append(
                {
                    "contestant": name,
                    "condition": condition,
                    "tokens_per_second": round(statistics.median(speeds), 2),
                    "rounds": [round(speed, 2) for speed in speeds],
                }
            )
    measured = {"environment": environment(), "versions": baselines.versions(), "settings": options, "results": results}
    report(table(results), measured, output)


if __name__ == "__main__":
    typer.run(main)
