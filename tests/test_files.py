"""A file is there whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from homeless import no_home

from ds2ds.files import atomic_folder, atomic_write, atomic_write_text, user_cache


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def names(folder: Path) -> list[str]:
    """All files, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_as_utf8_in_folders_that_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "note.md"
    atomic_write_text(path, "né\n→")
    assert path.read_bytes() == "né\n→".encode()
    assert names(path.parent) == ["note.md"]


def test_an_older_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a much longer old content")
    atomic_write(path, lambda partial: partial.write_bytes(b"new"))
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_until_the_write_is_done_readers_see_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    seen = []

    def write(partial: Path) -> None:
        partial.write_text("new")
        seen.append(path.read_text())
        seen.append(partial.is_relative_to(path.parent))  # another file system could not be renamed from

    atomic_write(path, write)
    assert seen == ["old", True]


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("bad"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("old", ["old", None])
def test_a_failing_write_leaves_everything_as_it_was(error: BaseException, old: str | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)

    def write(partial: Path) -> None:
        partial.write_text("half of the n")
        raise error

    with pytest.raises(type(error)) as raised:
        atomic_write(path, write)
    assert raised.value is error
    assert names(tmp_path) == (["file"] if old is not None else [])
    assert old is None or path.read_text() == old


def test_a_failing_rename_leaves_no_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "inside").touch()
    with pytest.raises(OSError):
        atomic_write_text(path, "text")
    assert names(tmp_path) == ["folder"]
    assert names(path) == ["inside"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"  # as /dev/null, which whoever may write in /dev would take from everyone
    os.mkfifo(path)
    with pytest.raises(FileExistsError, match=f"{path} is no regular file"):
        atomic_write_text(path, "text")
    assert path.is_fifo()
    assert names(tmp_path) == ["pipe"]


def test_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write_text(path, "half \ud800")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_permissions_are_those_of_a_plain_open(umask: int, tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "ours", "text")
    (tmp_path / "plain").write_text("text")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"ours": 0o666 & ~umask, "plain": 0o666 & ~umask}
    assert os.umask(umask) == umask  # and the process's own mask is as it was


def test_writes_that_meet_do_not_share_a_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write(partial: Path) -> None:
        partial.write_text("first")
        atomic_write_text(path, "second")

    atomic_write(path, write)
    assert path.read_text() == "first"
    assert names(tmp_path) == ["file"]


def test_the_cache_is_where_the_variable_says_or_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert user_cache() == Path("/elsewhere/ds2ds")
    for named in ("", "relative"):  # as its specification has it
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert user_cache() == tmp_path / ".cache" / "ds2ds"
    no_home(monkeypatch)
    with pytest.raises(FileNotFoundError, match="no home, and XDG_CACHE_HOME names no folder"):
        user_cache()


def write_and_wait(path: str, kind: str) -> subprocess.Popen[str]:
    """A process that is in the midst of writing a file or a folder."""
    code = """
import sys, time
from pathlib import Path
from ds2ds.files import atomic_folder, atomic_write

def wait(new):
    print(new, flush=True)
    time.sleep(600)

path = Path(sys.argv[1])
if sys.argv[2] == "file":
    atomic_write(path, lambda new: (new.write_text("half"), wait(new)))
else:
    with atomic_folder(path) as new:
        (new / "inside").write_text("half")
        wait(new)
"""
    process = subprocess.Popen([sys.executable, "-c", code, path, kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline()
    return process


def write(path: Path, kind: str) -> None:
    if kind == "file":
        atomic_write_text(path, "whole")
    else:
        with atomic_folder(path) as new:
            (new / "inside").write_text("whole")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_leaves_is_cleared_away_and_what_a_live_one_writes_is_not(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    other = tmp_path / ".out.notes.partial"  # another's, though it looks much like one
    other.mkdir()
    process = write_and_wait(str(path), kind)
    try:
        during = names(tmp_path)
        assert len(during) == 2
        write(path, kind)
        assert names(tmp_path) == sorted([*during, "out"])
    finally:
        process.kill()
        process.communicate()
    assert names(tmp_path) == sorted([*during, "out"])
    write(path, kind)
    assert names(tmp_path) == [other.name, "out"]


def test_what_stood_there_comes_back_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    """The next write fails, and must not cost what no longer stood in its place."""
    path = tmp_path / "out"
    write(path, "folder")
    code = """
import os, signal, sys
from pathlib import Path
from ds2ds.files import atomic_folder

rename = os.rename

def killed(old, new):
    rename(old, new)
    os.kill(os.getpid(), signal.SIGKILL)

os.rename = killed
with atomic_folder(Path(sys.argv[1])):
    pass
"""
    assert subprocess.run([sys.executable, "-c", code, path]).returncode < 0
    assert not path.exists()
    with pytest.raises(RuntimeError), atomic_folder(path):
        raise RuntimeError
    assert names(tmp_path) == ["out"]
    assert (path / "inside").read_text() == "whole"


def test_what_stood_there_comes_back_after_an_interrupt_between_the_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    write(path, "folder")
    rename = os.rename

    def interrupted(old: Path, new: Path) -> None:
        monkeypatch.undo()
        rename(old, new)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), atomic_folder(path):
        monkeypatch.setattr(os, "rename", interrupted)
    assert names(tmp_path) == ["out"]
    assert (path / "inside").read_text() == "whole"


def test_a_workplace_that_is_cleared_away_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    mkdir = Path.mkdir

    def cleared_at_first(self: Path, *arguments: Any, **options: Any) -> None:
        mkdir(self, *arguments, **options)
        if self.suffix == ".partial":
            made.append(self)
            if len(made) == 1:
                self.rmdir()

    monkeypatch.setattr(Path, "mkdir", cleared_at_first)
    atomic_write_text(tmp_path / "file", "text")
    assert len(made) == 2 and names(tmp_path) == ["file"]


def test_a_folder_that_may_not_be_listed_may_be_written_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", refuse)
        atomic_write_text(tmp_path / "file", "text")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_all_is_on_the_disk_before_it_has_its_name(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    fsync = os.fsync

    def synced(opened: int) -> None:
        told.append(os.fstat(opened).st_ino)
        assert not (tmp_path / "out").exists()
        fsync(opened)

    monkeypatch.setattr(os, "fsync", synced)
    write(tmp_path / "out", kind)
    out = tmp_path / "out"
    assert told == [(out if kind == "file" else out / "inside").stat().st_ino]
