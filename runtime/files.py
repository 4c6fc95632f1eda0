"""Files and folders that are either there whole or not at all, and folders that are the user's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ds2ds.errors import ConfigError
from ds2ds.workplace import OLD, workplace


def check_place(path: Path) -> None:
    """Whether something may be made at `path`, as far as that shows before it is tried; it may take long to get there.

    Raises:
        OSError: it may not.
    """
    ancestor = next(parent for parent in path.absolute().parents if parent.exists())
    if not ancestor.is_dir():
        raise NotADirectoryError(f"Not a directory: {ancestor}")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write in {ancestor}")


def check_writable(path: Path) -> None:
    """The same of a file, as `atomic_write` makes it."""
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is no regular file, and is not replaced")
    check_place(path)


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new file beside `path`, then rename it there; on an error `path` stays as it was.

    Raises:
        OSError: it cannot be written, or what is there is a folder, or a device, which is not ours to replace.
    """
    check_writable(path)
    with workplace(path) as place:
        new = place / "new"
        write(new)
        # Some writers make files that are theirs alone; give what a plain open would have given.
        mask = os.umask(0)
        os.umask(mask)
        new.chmod(0o666 & ~mask)
        _to_disk(new)
        os.replace(new, path)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, which takes its place when the block ends; if it raises, `path` stays as it was.

    Raises:
        OSError: it cannot be made, or not put in place.
    """
    with workplace(path) as place:
        new, old = place / "new", place / OLD
        new.mkdir()
        yield new
        for made in new.rglob("*"):
            if made.is_file():
                _to_disk(made)
        if path.exists():
            os.rename(path, old)
        os.rename(new, path)


def _to_disk(path: Path) -> None:
    """Before the name is given away: else it may be there after a power failure, and what it names not."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write` of UTF-8 text."""
    atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def checked_path(path: Any) -> Path:
    """A path that was given; raises ConfigError if it is none."""
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"path must be a string or a path, got {path!r}")
    return Path(path)


def user_home() -> Path | None:
    """None where the user has none: a container may run as an id that has no name, without HOME."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def user_cache() -> Path:
    """Where what is made once is kept for this user; it may have to be made first.

    Raises:
        FileNotFoundError: there is no such place.
    """
    named, home = Path(os.environ.get("XDG_CACHE_HOME", "")), user_home()
    if named.is_absolute():  # else its specification has it ignored
        return named / "ds2ds"
    if home is None:
        raise FileNotFoundError("this user has no home, and XDG_CACHE_HOME names no folder")
    return home / ".cache" / "ds2ds"
