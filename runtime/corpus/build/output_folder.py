"""A folder that appears complete or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ds2ds.corpus.format import METADATA_NAME
from ds2ds.errors import CorpusError
from ds2ds.files import atomic_folder, check_place


def check_output(out: Path, force: bool, source: Path | None = None) -> None:
    """Whether a corpus may be written to `out`: a new or empty folder; with `force`, in place of another corpus.

    Args:
        source: what it is made of, which is not to be within it.

    Raises:
        CorpusError: it may not.
    """
    if source is not None and source.resolve().is_relative_to(out.resolve()):
        raise CorpusError(f"cannot write {out}: it holds the source {source}")
    try:
        check_place(out.resolve())
    except OSError as error:
        raise CorpusError(f"cannot write {out}: {error}") from error
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / METADATA_NAME).is_file():
        raise CorpusError(f"{out} exists and is no corpus: not replaced")
    if not force:
        raise CorpusError(f"{out} exists: pass --force (force=True) to replace this corpus")


@contextlib.contextmanager
def new_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends, and is deleted if it raises.

    Of a symbolic link it becomes what that leads to: the link stays, and the folder lies where its owner wants it.
    """
    check_output(out, force)
    with atomic_folder(out.resolve()) as folder:
        yield folder
        check_output(out, force)
