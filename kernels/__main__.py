"""``python -m ds2ds.kernels compile``: build all kernels for all GPUs, without one, and fail where a build is unfit."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from .build import ARCHITECTURES, KERNEL_MODULES, Outcome, all_builds, compile_all

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Triton kernels, without a GPU.")


@app.callback()
def _root() -> None:
    pass  # With only one command and no callback, typer would take `compile` for an argument.


@app.command("compile")
def compile_kernels(
    arch: Annotated[list[int] | None, typer.Option(help="Compute capabilities, by default 80, 90 and 100.")] = None,
    kernel: Annotated[str, typer.Option(help="Only builds that have this in their names.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Processes that compile.")] = min(os.cpu_count() or 1, 8),
    module: Annotated[list[str] | None, typer.Option(help="Modules with builds(), by default the package's.")] = None,
) -> None:
    """Compile kernels and print what they use of a GPU.

    Exit code 1 if a build does not compile, if one that the package runs by itself spills registers, or if one without
    fp fusion has fused multiply-adds or flushes denormals.
    """
    from triton import knobs

    if knobs.runtime.interpret:
        _refuse("kernels that are to be interpreted cannot be compiled; unset TRITON_INTERPRET")
    arches, modules = tuple(arch or ARCHITECTURES), tuple(module or KERNEL_MODULES)
    builds = [build for build in all_builds(modules) if kernel in build.name]
    targets = [(build.name, arch) for build in builds for arch in arches if arch >= build.since]
    if not targets:
        _refuse(f"no build for {', '.join(f'sm_{arch}' for arch in arches)} has {kernel!r} in its name")
    outcomes = list(_watch(compile_all(targets, jobs, modules), len(targets)))
    outcomes.sort(key=lambda outcome: targets.index((outcome.name, outcome.capability)))
    _print_table(outcomes)
    # What is wrong on all architectures alike is said once.
    failures: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        for fault in outcome.faults:
            failures.setdefault((outcome.name, fault), []).append(f"sm_{outcome.capability}")
    for (name, fault), places in failures.items():
        typer.echo(f"FAILED {name} for {', '.join(places)}: {fault}", err=True)
    if failures:
        raise typer.Exit(1)


def _refuse(reason: str) -> NoReturn:
    typer.echo(f"error: {reason}", err=True)
    raise typer.Exit(2)


def _watch(outcomes: Iterable[Outcome], total: int) -> Iterable[Outcome]:
    """Pass them on and show how many there have been: a bar on a terminal, ten lines in a log."""
    console = Console(stderr=True)
    columns = TextColumn("compiling"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        for done, outcome in enumerate(outcomes, 1):
            bar.advance(task)
            if not console.is_terminal and done * 10 // total > (done - 1) * 10 // total:
                typer.echo(f"compiled {done} of {total}", err=True)
            yield outcome


def _print_table(outcomes: Iterable[Outcome]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("kernel", no_wrap=True)
    for heading in ("arch", "registers", "warps", "shared bytes", "spilled bytes", "seconds"):
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        report, target = outcome.report, f"sm_{outcome.capability}"
        if report is None:
            table.add_row(outcome.name, target, *["-"] * 5, style="red")
            continue
        figures = (report.registers, report.warps, report.shared_bytes, report.spill_bytes)
        cells = (*(f"{figure:,}" for figure in figures), f"{report.seconds:.2f}")
        table.add_row(outcome.name, target, *cells, style="red" if outcome.faults else "")
    terminal = Console().is_terminal
    # A log has no width.
    Console(width=None if terminal else 200, markup=False, highlight=False).print(table)


if __name__ == "__main__":
    app(prog_name="python -m ds2ds.kernels")
