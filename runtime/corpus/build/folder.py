"""build_folder: a folder of markdown, Python or LaTeX becomes a corpus."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ds2ds.corpus.build import latex_folder, python_tree, vault
from ds2ds.corpus.build.markdown_folder import build_corpus
from ds2ds.corpus.build.output_folder import check_output
from ds2ds.corpus.build.report import BuildReport
from ds2ds.corpus.build.source_files import SourceFolder, list_sources, load_document
from ds2ds.corpus.build.writer import MAX_TOKENS_PER_SHARD, write_corpus
from ds2ds.errors import ConfigError, CorpusError

ENDINGS = {"markdown": vault.ENDINGS, "python": python_tree.ENDINGS, "latex": latex_folder.ENDINGS}
FORMATS = ("auto", *ENDINGS, "latex+ref")

_READERS: dict[str, Callable[[Path, bool], SourceFolder]] = {
    "python": python_tree.read_python_tree,
    "latex": latex_folder.read_latex_folder,
    "latex+ref": partial(latex_folder.read_latex_folder, labels=True),
}
# A package has a readme, notes have a script: that many times as many files of one kind leave no doubt.
_MAJORITY = 10


def detect_format(source: Path) -> str:
    """What a folder holds, by the endings of its files.

    Raises:
        CorpusError: no such folder, no files of any kind, or of several kinds in numbers that leave a doubt.
    """
    endings = [path.suffix.lower() for _, path in list_sources(source, skip_unreadable=True, remarks=[])]
    counts = {name: sum(ending in known for ending in endings) for name, known in ENDINGS.items()}
    first, *others = sorted(counts, key=lambda name: -counts[name])
    if not counts[first]:
        known = ", ".join(f"*{ending}" for group in ENDINGS.values() for ending in group)
        raise CorpusError(f"no markdown, Python or LaTeX files under {source} ({known})")
    if _MAJORITY * sum(counts[name] for name in others) > counts[first]:
        found = ", ".join(f"{counts[name]} {name}" for name in (first, *others) if counts[name])
        raise CorpusError(f"{source} has files of several kinds ({found}): say which by --format (format=...)")
    return first


def build_folder(
    source: str | Path,
    out: str | Path,
    *,
    format: str = "auto",
    title_from: str = "name",
    skip_unreadable: bool = False,
    max_tokens_per_shard: int = MAX_TOKENS_PER_SHARD,
    workers: int = 1,
    force: bool = False,
    search: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> BuildReport:
    """Make a corpus of the files under `source`. The same files give the same bytes.

    Markdown: see ``markdown_folder.build_corpus``; Python: ``python_tree.read_python_tree``; LaTeX:
    ``latex_folder.read_latex_folder``. Hidden files and folders, compiled Python and virtual environments are left out.
    The links' format is recorded in the corpus.

    Args:
        source: the folder.
        out: the corpus to make (see ``write_corpus``, also for max_tokens_per_shard, workers, force and search).
        format: "markdown", "python", "latex", "latex+ref" (what labels stand for are documents too), or "auto": by what
            the folder holds.
        title_from: of markdown, see ``build_corpus``.
        skip_unreadable: leave out files that are not UTF-8, instead of raising.
        progress: called with the number of documents done and of all.

    Raises:
        CorpusError: no folder at `source`, no files in it, or of several kinds, a file that is not UTF-8, or `out` is
            taken.
        ConfigError: an argument is out of range.
    """
    source, out = Path(source), Path(out)
    if format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if format == "auto":
        format = detect_format(source)
    options: dict[str, Any] = {
        "max_tokens_per_shard": max_tokens_per_shard,
        "workers": workers,
        "force": force,
        "search": search,
    }
    if format == "markdown":
        return build_corpus(
            source, out, title_from=title_from, skip_unreadable=skip_unreadable, progress=progress, **options
        )
    if title_from != "name":
        raise ConfigError(f"title_from is for markdown: {format} files are titled by their paths, got {title_from!r}")
    check_output(out, force, source)
    found = _READERS[format](source, skip_unreadable)
    if not found.documents:
        raise CorpusError(
            f"no {format} files with text under {source} ({', '.join(ENDINGS[format.partition('+')[0]])})"
        )
    total = len(found.documents)
    summary = write_corpus(
        out,
        found.documents,
        load=load_document,
        links=found.links,
        progress=None if progress is None else lambda done: progress(done, total),
        **options,
    )
    return BuildReport(summary, found.remarks)
