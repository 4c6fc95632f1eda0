from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ds2ds.cli import app, main
from ds2ds.cli.progress import progress_bar

NOTES = {
    "Tree.md": "# Tree\n\nA [[Graph|graph]] without **cycles**.",
    "Graph.md": "Nodes and edges; see [[Tree]] and [[Forest]].",
}


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "notes"
    folder.mkdir()
    for name, text in NOTES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def corpus(notes: Path) -> str:
    out = notes.parent / "corpus"
    result = CliRunner().invoke(app, ["corpus", "build", str(notes), str(out)])
    assert result.exit_code == 0, result.output
    assert f"{out}: 2 documents, " in result.stdout
    assert "3 links (1 of them to documents that do not exist)" in result.stdout
    assert "documents: 2 of 2" in result.stderr
    return str(out)


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """What the command `ds2ds` does: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["ds2ds", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("arguments", [["CORPUS"], ["--corpus", "CORPUS"], ["CORPUS", "--sample", "0"]])
def test_info(corpus: str, arguments: list[str], capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    arguments = [argument.replace("CORPUS", corpus) for argument in arguments]
    code, out, _ = run(capsys, monkeypatch, "corpus", "info", *arguments)
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["path"] == corpus
    assert lines["documents"] == "2"
    assert lines["links"] == "2 (pairs of documents)"
    assert lines["resolving"] == "66.67% of 3 links in 2 documents"
    assert lines["tokenizer"] == "gpt2, uint16"


def test_info_is_about_foldoc_by_default(capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run(capsys, monkeypatch, "corpus", "info", "--sample", "50")
    assert code == 0
    assert "resolving  100.00% of " in out


def test_show_prints_markdown_and_links(corpus: str, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run(capsys, monkeypatch, "corpus", "show", "tree", "-c", corpus)
    assert code == 0
    assert out == ("# Tree\n\nA [graph](Graph) without **cycles**.\n\nLinks to: Graph\nLinked from: Graph\n")


def test_show_suggests_titles_for_an_unknown_one(corpus: str, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run(capsys, monkeypatch, "corpus", "show", "Trees", "-c", corpus)
    assert (code, out) == (2, "")
    assert err == f"ds2ds: error: {corpus} has no document called 'Trees'; close to it: Tree\n"
    code, _, err = run(capsys, monkeypatch, "corpus", "show", "qqqq", "-c", corpus)
    assert (code, err) == (2, f"ds2ds: error: {corpus} has no document called 'qqqq'\n")


def test_search(corpus: str, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run(capsys, monkeypatch, "corpus", "search", "node", "edge", "-c", corpus)
    assert code == 0
    assert out == "Graph\tNodes and edges; see [Tree](Tree) and [Forest](Forest).\n"
    code, out, err = run(capsys, monkeypatch, "corpus", "search", "zebra", "-c", corpus)
    assert (code, out, err) == (1, "", "nothing found\n")
    code, out, _ = run(capsys, monkeypatch, "corpus", "search", "-n", "1", "-c", corpus, "--", 'tree" OR (-')
    assert (code, out.count("\n")) == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "NOTES", "CORPUS"], "exists: pass --force"),
        (["build", "NOWHERE", "OUT"], "no folder at"),
        (["build", "NOTES", "BELOW"], "below: Not a directory: "),
        (["build", "NOTES", "OUT", "--title-from", "x"], "title_from must be one of name, heading, got 'x'"),
        (["info", "NOWHERE"], "there is no such folder"),
        (["info", ""], "no corpus at ."),
        (["info", "CORPUS", "-c", "CORPUS"], "give one corpus, got "),
        (["show", "Tree", "-c", "NOTES"], "metadata.json is missing; `ds2ds corpus build "),
    ],
)
def test_errors_are_one_line(notes: Path, corpus: str, arguments: list[str], message: str, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    paths = {
        "NOTES": str(notes),
        "CORPUS": corpus,
        "NOWHERE": str(notes / "nowhere"),
        "OUT": str(notes.parent / "out"),
        "BELOW": f"{corpus}/metadata.json/below",
    }
    code, out, err = run(capsys, monkeypatch, "corpus", *(paths.get(word, word) for word in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("ds2ds: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (notes.parent / "out").exists()


def test_build_reports_what_it_leaves_out(tmp_path: Path, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("x")
    (tmp_path / "notes" / "b.md").write_bytes(b"\xff")
    arguments = ["corpus", "build", str(tmp_path / "notes"), str(tmp_path / "out")]
    code, _, err = run(capsys, monkeypatch, *arguments)
    assert code == 2
    assert "b.md: not UTF-8" in err
    code, _, err = run(capsys, monkeypatch, *arguments, "--skip-unreadable", "--no-search")
    assert code == 0
    assert "note: skipped: " in err
    assert not (tmp_path / "out" / "search.sqlite").exists()


def test_on_a_terminal_markdown_is_rendered(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    shown = CliRunner().invoke(app, ["corpus", "show", "Tree", "-c", corpus]).stdout
    assert "\x1b[" in shown
    assert "**" not in shown
    found = CliRunner().invoke(app, ["corpus", "search", "cycles", "-c", corpus]).stdout
    assert "\x1b[1mcycles\x1b[0m" in found
    assert "\x02" not in found


@pytest.mark.parametrize("kind", ["md", "py"])
def test_notes_cannot_drive_the_terminal(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / f"a\x1b[7m.{kind}").write_text("words \x1b]0;mine\x07 [[b\x1b[7m]]\n")
    (tmp_path / "notes" / f"b\x1b[7m.{kind}").write_text("[[a\x1b[7m]]\n")
    out = str(tmp_path / "out")
    assert CliRunner().invoke(app, ["corpus", "build", str(tmp_path / "notes"), out]).exit_code == 0
    title = "a\x1b[7m" + ("" if kind == "md" else ".py")
    for arguments in (["show", title], ["search", "words"]):
        shown = CliRunner().invoke(app, ["corpus", *arguments, "-c", out]).stdout
        assert "words" in shown and "\ufffd" in shown
        assert "\x1b[7m" not in shown and "\x1b]0" not in shown and "\x07" not in shown


def test_the_command_is_installed(corpus: str) -> None:
    command = Path(sys.executable).with_name("ds2ds")
    if not command.exists():
        pytest.skip("ds2ds is not installed as a command")
    shown = subprocess.run([command, "corpus", "show", "Tree", "-c", corpus], capture_output=True, text=True)
    assert shown.returncode == 0
    assert shown.stdout.startswith("# Tree\n")


def test_progress_in_a_log_is_a_line_a_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("notes") as progress:
        for done in range(1, 2001):
            progress(done, 2000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1] == "notes: 2,000 of 2,000"


def test_on_a_terminal_there_is_no_bar_for_what_is_not_to_be_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with progress_bar("indexing", once_told=True):
        pass
    assert capsys.readouterr().err == ""
    with progress_bar("indexing", once_told=True) as progress:
        progress(1, 2)
        progress(2, 2)
    assert "indexing" in capsys.readouterr().err
    with progress_bar("documents"):
        assert "documents" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="no SIGTERM that a process can catch")
@pytest.mark.parametrize("ended_by", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_that_is_ended_leaves_nothing_behind(tmp_path: Path, ended_by: str, workers: int) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(2000):
        (notes / f"{number}.md").write_text(f"[[{number + 1}]] " + "words " * 200)
    arguments = ["corpus", "build", str(notes), str(tmp_path / "out"), "--workers", str(workers)]
    command = [sys.executable, "-m", "ds2ds", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as build:
        assert build.stderr is not None and build.stderr.readline().startswith("documents: ")
        number = signal.Signals[ended_by]
        if ended_by == "SIGINT":
            os.killpg(build.pid, number)  # as a terminal does: all processes get it
        else:
            build.send_signal(number)
        told = build.communicate()[1]
    assert build.returncode == 128 + number
    assert "Traceback" not in told
    assert os.listdir(tmp_path) == ["notes"]


@pytest.mark.skipif(os.name != "posix", reason="a shell's limits")
def test_an_index_that_finds_no_room_is_told_in_a_line(notes: Path, tmp_path: Path) -> None:
    command = 'ulimit -f 8; exec "$0" -m ds2ds corpus build "$@"'
    build = subprocess.run(
        ["sh", "-c", command, sys.executable, str(notes), str(tmp_path / "out")], capture_output=True, text=True
    )
    assert build.returncode == 2
    assert re.fullmatch("ds2ds: error: cannot write .*/index.sqlite: disk I/O error", build.stderr.splitlines()[-1])
    assert "Traceback" not in build.stderr
    assert not os.listdir(tmp_path)
