"""A folder beside what is being written, in which it is written, and that nobody else has to clear away."""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

OLD = "old"
"""What stood at `path` is kept in a workplace under this name until its successor has taken its place; if none has when
the workplace is deleted, it goes back."""

_LOCK = "lock"


@contextlib.contextmanager
def workplace(path: Path) -> Iterator[Path]:
    """A folder beside `path`, so that what is made there can be renamed to it; deleted at the end.

    Who is killed leaves it behind. So it holds a file that its owner has locked, and the lock ends with the owner's
    process: those for the same `path` that nobody holds are deleted first.

    Raises:
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path)
    place, lock = _new(path)
    try:
        with lock:
            yield place
    finally:
        with contextlib.suppress(OSError):
            _delete(place, path)


def _new(path: Path) -> tuple[Path, IO[str]]:
    while True:
        place = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        place.mkdir()
        try:
            lock = (place / _LOCK).open("w")
        except FileNotFoundError:
            continue  # somebody found it before it was locked, and has cleared it away
        _take(lock, wait=True)
        if (place / _LOCK).exists():
            return place, lock
        lock.close()  # the same


def _clear(path: Path) -> None:
    """Delete what was left behind, as far as it is ours to delete."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.partial")
    try:
        left = [entry for entry in path.parent.iterdir() if ours.fullmatch(entry.name)]
    except PermissionError:
        return  # a folder may be written in, and not be listed
    for place in left:
        with contextlib.suppress(OSError), (place / _LOCK).open("w") as lock:
            if _take(lock, wait=False):
                _delete(place, path)


def _delete(place: Path, path: Path) -> None:
    """Whatever ended between two renames must not cost what stood there."""
    if (place / OLD).exists() and not path.exists():
        (place / OLD).rename(path)
    shutil.rmtree(place, ignore_errors=True)


def _take(lock: IO[str], *, wait: bool) -> bool:
    """Whether the lock is ours now. Some file systems have none, and there nothing is cleared away."""
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True
