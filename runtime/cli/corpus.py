"""``ds2ds corpus``: make a corpus of a folder, and look into one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from ds2ds.cli.progress import open_corpus_telling, progress_bar
from ds2ds.cli.styled_text import printable
from ds2ds.corpus.build.folder import ENDINGS, FORMATS, build_folder
from ds2ds.corpus.build.markdown_folder import TITLES_FROM
from ds2ds.corpus.build.writer import MAX_TOKENS_PER_SHARD
from ds2ds.corpus.document_corpus import DEMO, DocumentCorpus
from ds2ds.corpus.resolving.chain import ResolverChain
from ds2ds.corpus.resolving.making import prepare_resolvers
from ds2ds.corpus.resolving.redirects import REDIRECTS_NAME
from ds2ds.corpus.resolving.specification import resolver_order
from ds2ds.corpus.search import CorpusSearch, corpus_tokenizer, document_text
from ds2ds.corpus.statistics import sample_links
from ds2ds.documents.link_formats import DEFAULT_FORMAT
from ds2ds.errors import ConfigError, CorpusError

app = typer.Typer(no_args_is_help=True, help="Make a corpus of notes or sources, and look into one.")

CorpusOption = Annotated[str, typer.Option("--corpus", "-c", help='Folder of the corpus; "demo" is FOLDOC.')]

_LANGUAGES = {"python": "python", "latex": "latex"}  # of bodies that are no markdown
_BYTES_PER_WORKER = 1 << 20  # a process takes a second to start, in which one tokenizes about this much
_MARK = ("\x02", "\x03")  # around the words found, until they are styled


def _workers(source: Path) -> int:
    """As many processes as there are cores to use, unless the files are too few to be worth it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    endings = {ending for group in ENDINGS.values() for ending in group}
    files = [file for file in source.rglob("*") if file.suffix in endings and file.is_file()] if source.is_dir() else []
    size = sum(file.stat().st_size for file in files)
    return max(1, min(cores, size // _BYTES_PER_WORKER))


@app.command()
def build(
    source: Annotated[
        Path, typer.Argument(help="Folder of markdown (such as an Obsidian vault), Python or LaTeX files.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the corpus.")],
    format: Annotated[
        str, typer.Option(help=f"What the folder holds: {', '.join(FORMATS)}; auto: what most of its files are.")
    ] = "auto",
    title_from: Annotated[str, typer.Option(help=f"Title without front matter: {' or '.join(TITLES_FROM)}.")] = "name",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: as many as help.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a corpus that is already there.")] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out files that cannot be read or are not UTF-8.")
    ] = False,
    max_tokens_per_shard: Annotated[int, typer.Option(min=1, help="Most tokens of a file.")] = MAX_TOKENS_PER_SHARD,
    search: Annotated[bool, typer.Option(help="Make the full-text index, too.")] = True,
) -> None:
    """Make a corpus of a folder: its files are the documents, their links or imports or citations the graph."""
    # As Ctrl-C does, so that no half-written folder is left beside `out`. SIGHUP: the terminal is closed.
    for name in ("SIGTERM", "SIGHUP"):
        ending = getattr(signal, name, None)
        if ending is not None and signal.getsignal(ending) == signal.SIG_DFL:  # nohup has it ignored
            signal.signal(ending, lambda number, frame: sys.exit(128 + number))
    with progress_bar("documents") as progress:
        report = build_folder(
            source,
            out,
            format=format,
            title_from=title_from,
            skip_unreadable=skip_unreadable,
            max_tokens_per_shard=max_tokens_per_shard,
            workers=workers or _workers(source),
            force=force,
            search=search,
            progress=progress,
        )
    for remark in report.remarks:
        typer.echo(f"note: {remark}", err=True)
    summary = report.summary
    typer.echo(
        f"{out}: {summary.documents:,} documents, {summary.tokens:,} tokens, {summary.links:,} links "
        f"({summary.unresolved:,} of them to documents that do not exist)"
    )


@app.command()
def info(
    corpus_path: Annotated[str | None, typer.Argument(metavar="CORPUS", help="Folder of the corpus.")] = None,
    corpus: Annotated[
        str | None,
        typer.Option("--corpus", "-c", help='The same; default "demo", which is FOLDOC.', show_default=False),
    ] = None,
    sample: Annotated[
        int, typer.Option(min=0, help="Documents to read for the share of links that resolve; 0: all.")
    ] = 1000,
) -> None:
    """What a corpus holds."""
    if corpus_path is not None and corpus is not None:
        raise ConfigError(f"give one corpus, got {corpus_path!r} and --corpus {corpus!r}")
    named = corpus if corpus_path is None else corpus_path
    with open_corpus_telling(DEMO if named is None else named) as documents:
        tokens, edges = documents.graph.totals()
        links = sample_links(documents, corpus_tokenizer(documents), sample)
        share = f"{links.resolving / links.found:.2%}" if links.found else "none"
        size = sum(path.stat().st_size for path in documents.shards.paths)
        graph_size, index_size = documents.graph.sizes()
        rows = {
            "path": str(documents.path),
            "documents": f"{len(documents):,}",
            "tokens": f"{tokens:,}",
            "links": f"{edges:,} (pairs of documents)",
            "resolving": f"{share} of {links.found:,} links in {links.documents:,} documents",
            "format": documents.metadata.link_format or f"{DEFAULT_FORMAT} (not recorded)",
            "tokenizer": f"{documents.metadata.tokenizer}, {documents.metadata.dtype_str}",
            "shards": f"{len(documents.shards.paths):,}, {size / 1e6:,.1f} MB",
            "graph": f"{graph_size / 1e6:,.1f} MB, index {index_size / 1e6:,.1f} MB",
        }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(value))
    console = Console()
    if console.is_terminal:
        console.print(table)
    else:
        for name, value in rows.items():
            typer.echo(f"{name:<10} {value}")


@app.command()
def show(
    title: Annotated[str, typer.Argument(help="Title of the document.")],
    corpus: CorpusOption = DEMO,
) -> None:
    """Print a document and its links."""
    with open_corpus_telling(corpus) as documents:
        resolved = documents.resolve(title)
        if resolved is None:
            raise CorpusError(_unknown(title, documents))
        text = document_text(documents, resolved, corpus_tokenizer(documents))
        language = _LANGUAGES.get(documents.metadata.link_format or DEFAULT_FORMAT)
        links = {
            "Links to": documents.graph.outgoing(resolved),
            "Linked from": documents.graph.incoming(resolved),
        }
    console = Console()
    if not console.is_terminal:
        typer.echo(f"# {resolved}\n\n{text}\n")
    elif language is not None:
        code = Syntax(printable(text or ""), language, word_wrap=True)
        console.print(Text(printable(resolved), style="bold"), code, sep="\n\n")
    else:
        console.print(Markdown(printable(f"# {resolved}\n\n{text}")))
        console.print()
    for name, titles in links.items():
        if titles:
            listed = ", ".join(titles)
            listed = printable(listed) if console.is_terminal else listed
            console.print(Text(f"{name}: ", style="bold") + Text(listed, style="cyan"), soft_wrap=True)


def _unknown(title: str, documents: DocumentCorpus) -> str:
    """Names the titles closest to one that is unknown."""
    from ds2ds.corpus.resolving.edit import EditResolver  # it loads rapidfuzz, which is for those who need it

    close = EditResolver(documents).closest(title, limit=5, minimum=0.6)
    message = f"{documents.path} has no document called {title!r}"
    return f"{message}; close to it: {', '.join(match.title for match in close)}" if close else message


@app.command()
def resolve(
    title: Annotated[str, typer.Argument(help="A link's target.")],
    corpus: CorpusOption = DEMO,
    resolvers: Annotated[
        str | None,
        typer.Option(
            help="Resolvers, with commas: exact, folded, redirects[=FILE], edit[:MINIMUM], embeddings=MODEL[:MINIMUM]; "
            "default: those that need no model, redirects where the corpus has some."
        ),
    ] = None,
) -> None:
    """What each resolver takes a link's target to mean; the first that finds a document leads the link there."""
    names = () if resolvers is None else resolver_order(resolvers)
    with open_corpus_telling(corpus) as documents, progress_bar("titles", once_told=True) as progress:
        if resolvers is None:
            redirects = ["redirects"] if (documents.path / REDIRECTS_NAME).exists() else []
            names = resolver_order(["exact", "folded", *redirects, "edit"])
        prepare_resolvers(documents, names, progress)
        found = [ResolverChain([documents.resolver(name)]).find(title) for name in names]
    first = next((match for match in found if match is not None), None)
    for name, match in zip(names, found, strict=True):
        outcome = "-" if match is None else f"{match.title}\t{match.score:.2f}"
        typer.echo(f"{name}\t{outcome}")
    if first is None:
        sys.exit(1)


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(help="What to look for.")],
    corpus: CorpusOption = DEMO,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Documents to list.")] = 10,
) -> None:
    """Full-text search, the best match first."""
    with open_corpus_telling(corpus) as documents, progress_bar("indexing", once_told=True) as progress:
        index = CorpusSearch(documents, progress=lambda done: progress(done, len(documents)))
        hits = index.search(" ".join(words), limit, *_MARK)
        index.close()
    if not hits:
        typer.echo("nothing found", err=True)
        sys.exit(1)
    console = Console()
    for hit in hits:
        if console.is_terminal:
            console.print(Text(printable(hit.title), style="bold cyan"))
            console.print(Text("  ") + _styled(hit.snippet))
        else:
            typer.echo(f"{hit.title}\t{_unmarked(hit.snippet)}")


def _styled(snippet: str) -> Text:
    text = Text()
    for piece in snippet.split(_MARK[0]):
        found, mark, rest = piece.rpartition(_MARK[1])
        text.append(printable(found), style="bold" if mark else "")
        text.append(printable(rest), style="dim")
    return text


def _unmarked(snippet: str) -> str:
    return snippet.replace(_MARK[0], "").replace(_MARK[1], "")
