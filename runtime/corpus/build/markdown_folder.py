"""build_corpus: a folder of markdown files, such as an Obsidian vault, becomes a corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ds2ds.corpus.build.links import rewrite_links
from ds2ds.corpus.build.note import Note, note_body, read_markdown
from ds2ds.corpus.build.output_folder import check_output
from ds2ds.corpus.build.report import BuildReport
from ds2ds.corpus.build.tokenizing import SourceDocument
from ds2ds.corpus.build.vault import Vault, read_vault
from ds2ds.corpus.build.writer import MAX_TOKENS_PER_SHARD, write_corpus
from ds2ds.errors import ConfigError, CorpusError

TITLES_FROM = ("name", "heading")


@dataclass(frozen=True, slots=True)
class _Loader:
    """Reads and converts one note; sent to each worker once."""

    vault: Vault

    def __call__(self, note: Note) -> SourceDocument:
        text, names = read_markdown(note.file), {note.own_title, note.path.stem}
        # A heading that is all there is repeats no name of the note's own (else it was left out), and so is its text.
        body = note_body(text, names | {note.title}) or note_body(text, names)
        return SourceDocument(note.title, rewrite_links(body, note, self.vault))


def build_corpus(
    source: str | Path,
    out: str | Path,
    *,
    title_from: str = "name",
    skip_unreadable: bool = False,
    max_tokens_per_shard: int = MAX_TOKENS_PER_SHARD,
    workers: int = 1,
    force: bool = False,
    search: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> BuildReport:
    """Make a corpus of the markdown files under `source`. The same files give the same bytes.

    A document's title is its front matter's ``title``, else its file's name without the ending; titles that several
    notes share get their folder before them ("a/Todo"). Its body is what follows the front matter, without a first
    heading that only repeats the title, and with links as ``links.rewrite_links`` says. Aliases lead links to the note,
    as its file's name does, and those that are one note's alone become the corpus' redirects.json
    (``resolving.redirects``). Hidden files and folders, and notes without a body, are left out.

    Args:
        source: the folder.
        out: the corpus to make (see ``write_corpus``, also for max_tokens_per_shard, workers, force and search).
        title_from: "name", or "heading" to prefer a heading at the head of the file over its name.
        skip_unreadable: leave out files that are not UTF-8, instead of raising.
        progress: called with the number of notes done and of all.

    Raises:
        CorpusError: no folder at `source`, no notes in it, a file that is not UTF-8, or `out` is taken.
        ConfigError: an argument is out of range.
    """
    source, out = Path(source), Path(out)
    if title_from not in TITLES_FROM:
        raise ConfigError(f"title_from must be one of {', '.join(TITLES_FROM)}, got {title_from!r}")
    check_output(out, force, source)
    vault, remarks = read_vault(source, title_from, skip_unreadable)
    if not vault.notes:
        raise CorpusError(f"no markdown files with text under {source} (*.md, *.markdown)")
    total = len(vault.notes)
    summary = write_corpus(
        out,
        vault.notes,
        load=_Loader(vault),
        max_tokens_per_shard=max_tokens_per_shard,
        workers=workers,
        force=force,
        search=search,
        redirects=vault.redirects(),
        links="markdown",
        progress=None if progress is None else lambda done: progress(done, total),
    )
    return BuildReport(summary, tuple(remarks))
