"""``ds2ds bench``: how fast this machine is with this model, and whether that has changed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ds2ds.bench.compare import Change, compare, read_result
from ds2ds.cli.progress import progress_bar
from ds2ds.cli.summary import count
from ds2ds.corpus.document_corpus import DEMO
from ds2ds.errors import ConfigError
from ds2ds.files import atomic_write_text, check_writable

app = typer.Typer(invoke_without_command=True, help="Measure how fast documents are written here.")

ALL = "all"
_HEADINGS = {
    "time_to_first_token_ms": "ms to first",
    "time_per_token_ms": "ms/token",
    "tokens_per_second": "tokens/s",
}


@app.callback()
def bench(
    context: typer.Context,
    workload: Annotated[
        list[str],
        typer.Option(
            "--workload",
            "-w",
            help="single: one request; batch: many at once, arriving together; links: requests that link FOLDOC's "
            "documents, chosen by Zipf's law, four at a time; long: one with a long prompt; all. May be given again.",
        ),
    ] = [ALL],  # noqa: B006
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help='Checkpoint folder; "demo" is packaged; 12x768 and the like: random weights.'
        ),
    ] = DEMO,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the weights; default float32 on a CPU, bfloat16 on a GPU.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="int8 or int8_dynamic: rounded to 8 bits.")] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            help="Requests at once, for batch; may be given again; default 1, 8, 64 and 256, as memory allows."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens that each request writes, at least 2.")] = 32,
    prompt_tokens: Annotated[
        int | None,
        typer.Option("--context", help="Tokens of a prompt, but for links; default 64, for long all the model takes."),
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests, for links.")] = 16,
    rounds: Annotated[int, typer.Option(help="Times that each workload is served; figures are medians.")] = 3,
    seed: Annotated[int, typer.Option(help="Of prompts and of which documents are linked.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the JSON to a file, too.")] = None,
) -> None:
    """Measure how fast documents are written here; `ds2ds bench compare` holds two results against each other.

    Greedy; no token ends a document; a round before the first is not counted. The last line of the output is JSON.
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    if output is not None and output.is_dir():
        raise ConfigError(f"{output} is a folder: name a file")
    if output is not None:
        check_writable(output)
    import torch

    from ds2ds.bench.suite import BATCHES, WORKLOADS, Settings, run

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    names = WORKLOADS if ALL in workload else tuple(dict.fromkeys(workload))
    sizes = tuple(batch) if batch else None
    settings = Settings(names, model, where, dtype, sizes, tokens, prompt_tokens, requests, rounds, seed, weights)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with progress_bar("rounds") as progress:
            measured = run(settings, progress)
    finally:
        torch.set_num_threads(before)
    _show(measured)
    left_out = [size for size in BATCHES if size not in measured["settings"]["batch"]]
    if "batch" in names and not batch and left_out:
        typer.echo(f"left out for want of memory: {', '.join(map(str, left_out))} requests at once", err=True)
    text = json.dumps(measured, allow_nan=False)
    typer.echo(text)  # first, so that a file that cannot be written does not cost the result
    if output is not None:
        atomic_write_text(output, text + "\n")


@app.command("compare")
def compare_(
    old: Annotated[Path, typer.Argument(help="A file of `ds2ds bench --output`.")],
    new: Annotated[Path, typer.Argument(help="Another one.")],
    tolerance: Annotated[float, typer.Option(help="Share by which a figure may get slower.")] = 0.1,
    force: Annotated[bool, typer.Option("--force", help="Compare other machines and settings all the same.")] = False,
) -> None:
    """Tell what got slower, by more than the tolerance and by more than rounds vary. Exit code 1 if anything did."""
    changes = compare(read_result(old), read_result(new), tolerance, force=force)
    slower = [change for change in changes if change.slower]
    faster = sum(change.faster for change in changes)
    if slower:
        _print_table("Slower", _slower_rows(slower))
    typer.echo(f"{count(len(changes), 'figure')} compared: {len(slower)} slower, {faster} faster")
    if slower:
        raise typer.Exit(1)


def _refuse_options(context: typer.Context) -> None:
    """What a run is measured with means nothing to a command below."""
    given = [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    if given:
        raise ConfigError(f"{given} are settings of a measurement: `ds2ds bench {context.invoked_subcommand}` has none")


def _show(measured: dict[str, Any]) -> None:
    on, settings = measured["environment"], measured["settings"]
    machine = on["gpu"] or f"{count(on['threads'], 'thread')} of {on['cpu']}"
    kind = settings["weights"] or settings["dtype"]
    title = f"{settings['model']} ({settings['parameters'] / 1e6:.0f}M, {kind}) on {machine}"
    _print_table(title, [_row(result) for result in measured["results"]])


def _row(result: dict[str, Any]) -> dict[str, str]:
    """Headings and cells. "of floor" is the least time that a step can take at this memory's speed, by what it took;
    "hits" the share of the prompts' and documents' tokens that were found computed."""
    per_token, cache = result["time_per_token_ms"], result["cache"]
    at_once = "" if result["at_once"] == result["requests"] else f", {result['at_once']} at a time"
    return {
        "workload": result["workload"],
        "requests": f"{result['requests']}{at_once}",
        _HEADINGS["time_to_first_token_ms"]: f"{result['time_to_first_token_ms']['median']:,.1f}",
        _HEADINGS["time_per_token_ms"]: f"{per_token['median']:,.2f}",
        "p99 ms": f"{per_token['p99']:,.2f}",
        _HEADINGS["tokens_per_second"]: f"{result['tokens_per_second']['median']:,.1f}",
        "each": f"{result['tokens_per_second_per_request']['median']:,.1f}",
        "of floor": f"{result['floor']['share']:.0%}",
        "hits": f"{cache['hit_rate']:.0%}" if cache["documents"] else "",
    }


def _slower_rows(changes: Sequence[Change]) -> list[dict[str, str]]:
    """Where memory got slower by as much, it was the machine, or what else ran on it."""
    return [
        {
            "workload": change.workload,
            "requests": str(change.requests),
            "figure": _HEADINGS[change.figure],
            "old": f"{change.old:,.4g}",
            "new": f"{change.new:,.4g}",
            "slower by": f"{change.slowdown:.0%}",
            "allowed": f"{change.allowed:.0%}",
            "memory slower by": f"{change.memory:.0%}",
        }
        for change in changes
    ]


def _print_table(title: str, rows: Sequence[dict[str, str]]) -> None:
    """A table on a terminal; in a log a line for each row, its cells named."""
    if not sys.stdout.isatty():
        typer.echo(title)
        for row in rows:
            typer.echo("  " + "  ".join(f"{name} {cell}" for name, cell in row.items() if cell))
        return
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("workload", "figure") else "right")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
