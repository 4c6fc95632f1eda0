"""The command line's front door."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from ds2ds import __version__
from ds2ds.cli import bench, cache, corpus, model
from ds2ds.cli.generate import generate
from ds2ds.cli.serve import serve
from ds2ds.errors import Ds2dsError

# Commands import torch when they run, so that --help and `corpus` are quick.
app = typer.Typer(no_args_is_help=True, help="Fast decoding for document-graph language models.")
app.command()(generate)
app.command()(serve)
app.add_typer(corpus.app, name="corpus")
app.add_typer(model.app, name="model")
app.add_typer(cache.app, name="cache")
app.add_typer(bench.app, name="bench")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ds2ds {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; what ds2ds raises on purpose becomes one line on stderr and exit code 2.

    So does what the system refuses, such as to write to a disk that is full.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed, as in `ds2ds ... >&-`
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (until the end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # models write characters that a terminal's encoding may lack
    try:
        app()
    except (Ds2dsError, OSError) as error:
        sys.stderr.write(f"ds2ds: error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
