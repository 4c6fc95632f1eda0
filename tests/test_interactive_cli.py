"""`ds2ds generate --interactive`: what is asked on the terminal, and what may be typed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from rich.console import Console
from test_cli_generate import PROMPT, folder, run
from test_summary import make_result

from ds2ds import ConfigError, Follow, LinkQuestion, Quit, Skip, Supply
from ds2ds.cli.asking import CHOICES, TerminalReader, edit_text
from ds2ds.cli.summary import figures
from ds2ds.documents.generation_result import GeneratedDocument
from ds2ds.generation.choices import Answer
from ds2ds.generation.events import DocumentClosed, DocumentOpened, LinkAsked, TokenWritten

__all__ = ["folder"]  # a fixture

QUESTION = LinkQuestion(0, 0, "Home", "the\n apple", "apple", 9, "Apple", 1, "corpus", 1200, "A fruit\nthat \x1bgrows")


class Terminal:
    """Types the lines given, one after the other, then ends the input. `edited` is what the editor gives."""

    def __init__(self, *typed: str, edited: str | Exception | None = None, width: int = 100) -> None:
        self.lines = list(typed)
        self.edited = edited
        self.paused = 0
        self.out = io.StringIO()
        console = Console(file=self.out, width=width)
        self.reader = TerminalReader(console, self.pause, self.read, self.edit)

    def pause(self) -> None:
        self.paused += 1

    def read(self, prompt: str) -> str:
        self.out.write(prompt)
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    def edit(self) -> str | None:
        if isinstance(self.edited, Exception):
            raise self.edited
        return self.edited


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["f"], Follow()),
        ([""], Follow()),
        ([" F "], Follow()),
        (["s"], Skip()),
        (["a"], Follow()),
        (["n"], Skip()),
        (["q"], Quit()),
        ([], Quit()),
        (["w", "one", "", " two", "."], Supply("one\n\n two")),
        (["w", "", "one", "", "."], Supply("one")),
        (["w", "."], Quit()),  # no text: asked again, and then the input ends
        (["w", "one", "two"], Supply("one\ntwo")),  # the end of input ends a text
        (["w", " ", ".", "s"], Skip()),
        (["w", "a\udcff", "."], Supply("a?")),
        (["e", "s"], Skip()),
        (["x", "follow", "s"], Skip()),
    ],
)
def test_what_is_typed(typed: list[str], answer: Answer) -> None:
    terminal = Terminal(*typed)
    assert terminal.reader(QUESTION) == answer
    assert terminal.paused == 1 and terminal.lines == []


def test_what_is_shown() -> None:
    terminal = Terminal("what", "f")
    terminal.reader(QUESTION)
    lines = terminal.out.getvalue().splitlines()
    assert lines[:3] == [
        "[the apple] -> Apple  (in the corpus, 1,200 tokens)",
        "  A fruit that �grows...",
        f"  {CHOICES}",
    ]
    assert lines[3].startswith("?   'what' is none of these: [f]ollow") and lines[5:] == ["? "]
    terminal = Terminal("f")
    terminal.reader(LinkQuestion(0, 0, "Home", "x", "Pear", 9, "Pear", 1, "generated", None, ""))
    assert terminal.out.getvalue().splitlines()[:2] == ["[x] -> Pear  (to be written by the model)", f"  {CHOICES}"]


def test_a_long_line_is_cut() -> None:
    terminal = Terminal("f")
    terminal.reader(LinkQuestion(0, 0, "Home", "x" * 300, "Pear", 9, "Pear", 1, "in_view", 3, "word " * 100))
    lines = terminal.out.getvalue().splitlines()
    assert all(len(line) <= 100 for line in lines) and lines[0].endswith("…") and lines[1].endswith("…")


@pytest.mark.parametrize("width", [20, 40, 80])
def test_what_can_be_answered_is_not_cut(width: int) -> None:
    terminal = Terminal("what", "f", width=width)
    terminal.reader(QUESTION)
    shown = terminal.out.getvalue()
    assert all(len(line) <= width for line in shown.replace("? ", "").splitlines())
    told = " ".join(shown.split()[shown.split().index("[f]ollow") :])
    choices = " ".join(CHOICES.split())
    assert told == f"{choices} ? 'what' is none of these: {choices} ?"


@pytest.mark.parametrize(("typed", "answer"), [("a", Follow()), ("n", Skip())])
def test_all_or_none_from_now_on(typed: str, answer: Answer) -> None:
    terminal = Terminal(typed)
    assert [terminal.reader(QUESTION) for _ in range(3)] == [answer] * 3
    assert terminal.paused == 1


@pytest.mark.parametrize(
    ("edited", "answer", "told"),
    [
        ("# Mine\n\ntext\n", Supply("# Mine\n\ntext"), ""),
        ("\n\n", Skip(), "there is no text"),
        (None, Skip(), "there is no text"),
        (click.ClickException("nano: Editing failed"), Skip(), "nano: Editing failed"),
    ],
)
def test_an_editor(edited: Any, answer: Answer, told: str) -> None:
    terminal = Terminal("e", "s", edited=edited)
    assert terminal.reader(QUESTION) == answer
    assert told in terminal.out.getvalue()


def test_the_users_own_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = tmp_path / "editor.py"
    editor.write_text("import os, sys\nopen(sys.argv[1], 'w').write('mine')\nos.utime(sys.argv[1], (5, 5))\n")
    monkeypatch.setenv("VISUAL", f"{sys.executable} {editor}")
    assert edit_text() == "mine"
    monkeypatch.setenv("VISUAL", str(tmp_path / "missing"))
    with pytest.raises(click.ClickException):
        edit_text()


@pytest.mark.parametrize(
    ("editor", "told"),
    [
        ("'", "cannot read the editor's name"),
        ('{python} -c \'import sys; open(sys.argv[1], "wb").write(b"\\xff")\'', "not UTF-8"),
    ],
)
def test_an_editor_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, editor: str, told: str) -> None:
    monkeypatch.setenv("VISUAL", editor.format(python=sys.executable))
    with pytest.raises(click.ClickException, match=told):
        edit_text()


# The command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json"], "it does not go with --json"),
        ([], "--interactive asks on the terminal, and standard input is none"),
    ],
)
def test_where_nobody_can_be_asked(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(tmp_path, "x", "--interactive", *arguments, model="missing", stdin="f\n")
    assert isinstance(done.exception, ConfigError) and message in str(done.exception)
    assert done.stdout == ""


def test_a_piped_output_is_refused_too(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    from ds2ds.cli.generate import _require_terminal

    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Tty())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(ConfigError, match="standard output is none"):
        _require_terminal(as_json=False)
    monkeypatch.setattr(sys, "stdout", Tty())
    _require_terminal(as_json=False)


def test_figures_count_what_was_supplied_and_skipped() -> None:
    line = figures(make_result(links_found=3, links_supplied=2, links_skipped=1), 0)
    assert "3 links (2 supplied, 1 skipped)" in line


def test_the_terminal_shows_a_supplied_document() -> None:
    from ds2ds.cli.rendering import TerminalRenderer

    out = io.StringIO()
    renderer = TerminalRenderer(Console(file=out, width=80))
    supplied = GeneratedDocument("Apple", tokens=[1, 2, 3], text="mine", source="supplied", truncated=True)
    root = GeneratedDocument("Home", tokens=[1], text="See [a](Apple) x")
    renderer.show(DocumentOpened("Home", "generated", 0, None, "See [a](Apple)"))
    renderer.show(LinkAsked(QUESTION))
    renderer.interrupt()
    out.write("<asked>\n")
    renderer.show(DocumentOpened("Apple", "supplied", 1, "Home", "mine"))
    renderer.show(DocumentClosed("Apple", None, supplied))
    renderer.show(TokenWritten("Home", 1, " x", 0.0))
    renderer.show(DocumentClosed("Home", "eos", root))
    renderer.finish()
    assert out.getvalue() == "See [a](Apple)\n<asked>\nx\n  -> Apple (supplied, 3 tokens, cut)\n"


class Session:
    """The command on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        import pty

        self.master, slave = pty.openpty()
        # A shell lets what it runs in the background ignore the interrupt, and that is inherited.
        code = "import signal; signal.signal(2, signal.default_int_handler); from ds2ds.cli import main; main()"
        environment = {**os.environ, "TERM": "dumb", "COLUMNS": "160"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "generate", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def until(self, text: str, seconds: float = 60) -> str:
        """Read on until this is shown; returns what came before it."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self.master, 4096).decode(errors="replace").replace("\r\n", "\n")
                except OSError:  # how Linux tells that the other end is closed
                    raise AssertionError(self.shown) from None
        before, _, self.shown = self.shown.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self, shown: str) -> None:
        """What the key sends where the terminal is the command's own; again until this is shown, in case it came just
        before a read, but not after that: a process that is ending would be killed."""
        for _ in range(60):
            self.process.send_signal(2)
            with contextlib.suppress(AssertionError):
                self.until(shown, seconds=1)
                return
        raise AssertionError(self.shown)

    def end(self, seconds: float = 60) -> str:
        """Read what is left."""
        deadline = time.monotonic() + seconds
        while True:
            assert time.monotonic() < deadline, self.shown
            if not select.select([self.master], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(self.master, 4096)
            except OSError:
                break
            if not data:
                break
            self.shown += data.decode(errors="replace").replace("\r\n", "\n")
        return self.shown

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def sessions() -> Iterator[list[Session]]:
    made: list[Session] = []
    yield made
    for session in made:
        session.close()


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_on_a_terminal(folder: Path, tmp_path: Path, sessions: list[Session]) -> None:
    out = tmp_path / "out"
    settings = ["-m", str(folder / "model"), "-c", str(folder / "corpus"), "--max-new-tokens", "2", "--seed", "1"]
    session = Session(PROMPT, "--interactive", "--save", str(out), *settings)
    sessions.append(session)
    before = session.until("[Apple] -> Apple  (in the corpus, ")
    assert "See [Apple](Apple) and [Pear](Pear)." in before
    assert "A fruit." in session.until("? ")
    session.type("w\n")
    session.until("a line with a single dot ends it")
    session.type("My own apple.\n.\n")
    assert "-> Apple (supplied, 9 tokens)" in session.until("[Pear] -> Pear  (to be written by the model)")
    session.until("? ")
    session.type("s\n")
    rest = " ".join(session.end().split())
    assert session.process.wait(60) == 0
    assert "└── Apple supplied" in rest
    assert "2 links (1 supplied, 1 skipped)" in rest
    graph = json.loads((out / "graph.json").read_text(encoding="utf-8"))
    assert [(node["title"], node["source"]) for node in graph["nodes"]] == [
        ("Home", "generated"),
        ("Apple", "supplied"),
    ]
    assert any("My own apple." in file.read_text(encoding="utf-8") for file in out.glob("apple*.md"))


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("typed", "code", "shown"), [("q\n", 0, ", quit"), ("\x03", 130, "interrupted after 0 tokens")]
)
def test_leaving_at_a_question(typed: str, code: int, shown: str, folder: Path, sessions: list[Session]) -> None:
    session = Session(PROMPT, "-i", "-m", str(folder / "model"), "-c", str(folder / "corpus"), "--seed", "1")
    sessions.append(session)
    session.until("[Apple] -> Apple")
    session.until("? ")
    if typed == "\x03":
        session.interrupt(shown)
    else:
        session.type(typed)
        session.until(shown)
    session.end()
    assert session.process.wait(60) == code
