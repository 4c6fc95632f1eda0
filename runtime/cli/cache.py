"""``ds2ds cache``: prefill documents of a corpus into a file that later runs start from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ds2ds.cli.loading import load_runtime
from ds2ds.cli.progress import open_corpus_telling, progress_bar
from ds2ds.cli.summary import count
from ds2ds.corpus.document_corpus import DEMO
from ds2ds.errors import CacheError, ConfigError
from ds2ds.files import check_writable

app = typer.Typer(no_args_is_help=True, help="Prefill documents of a corpus into a file that later runs start from.")


@app.command()
def warm(
    out: Annotated[Path, typer.Argument(help="The file, a safetensors file, for generate's --cache.")],
    titles: Annotated[
        list[str] | None, typer.Argument(help='Titles, the most wanted first; "-" reads them from standard input.')
    ] = None,
    most_linked: Annotated[
        int | None, typer.Option(min=1, help="Instead of titles: as many documents, those that most links lead to.")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help='Checkpoint folder; "demo" is packaged.')] = DEMO,
    corpus: Annotated[str, typer.Option("--corpus", "-c", help='Folder of the corpus; "demo" is FOLDOC.')] = DEMO,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the weights, as generate will have them.")] = None,
    weights: Annotated[str | None, typer.Option(help="int8 or int8_dynamic, as generate will have them.")] = None,
    arena_tokens: Annotated[int | None, typer.Option(help="Tokens that the KV arena holds, and so the file.")] = None,
    max_tokens_per_document: Annotated[int, typer.Option(help="As generate will have it.")] = 512,
    max_link_depth: Annotated[int, typer.Option(help="As generate will have it.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is already there.")] = False,
) -> None:
    """Compute documents as links would bring them in, and save their keys and values."""
    if out.is_dir():
        raise CacheError(f"{out} is a folder: name a file")
    if out.exists() and not force:
        raise CacheError(f"{out} is already there: pass --force to replace it")
    try:
        check_writable(out)  # before all the work, not after it
    except OSError as error:
        raise CacheError(f"cannot write {out}: {error}") from error
    if bool(titles) == (most_linked is not None):
        raise ConfigError("give titles, or --most-linked N, and not both")
    with open_corpus_telling(corpus) as opened:
        if most_linked is not None:
            wanted = opened.most_linked(most_linked)
        else:
            wanted = _read_titles() if titles == ["-"] else titles or []
        runtime = load_runtime(model, device, dtype, weights=weights, arena_tokens=arena_tokens)
        with progress_bar("prefilling") as progress:
            warmed = runtime.warm(
                wanted,
                opened,
                progress=progress,
                max_tokens_per_document=max_tokens_per_document,
                max_link_depth=max_link_depth,
            )
        saved = runtime.save_cache(out)
    tokens = f"{warmed.tokens_prefilled:,} tokens in {warmed.seconds:.1f} s"
    typer.echo(f"{out}: {count(saved, 'document')}, {tokens}, {out.stat().st_size / 1e6:,.1f} MB")
    if warmed.left_out:
        left_out = count(len(warmed.left_out), "title")
        sys.stderr.write(f"{left_out} found no room, from {warmed.left_out[0]!r} on: raise --arena-tokens\n")


def _read_titles() -> list[str]:
    """A title a line, from standard input.

    Raises:
        ConfigError: it is not UTF-8.
    """
    try:
        return sys.stdin.read().splitlines()
    except UnicodeError as error:
        raise ConfigError("titles on standard input must be UTF-8 text") from error


@app.command()
def info(file: Annotated[Path, typer.Argument(help="A file that `ds2ds cache warm` made.")]) -> None:
    """What a file of prefilled documents holds."""
    from ds2ds.cache.store_file import describe

    for name, value in describe(file).items():
        typer.echo(f"{name:<10} {value}")
