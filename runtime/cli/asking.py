"""Asking on the terminal what is to be done at a link."""

from __future__ import annotations

from collections.abc import Callable

import click
from rich.console import Console
from rich.text import Text

from ds2ds.cli.styled_text import printable
from ds2ds.cli.summary import count
from ds2ds.generation.choices import Answer, Follow, LinkQuestion, Quit, Skip, Supply

CHOICES = "[f]ollow  [s]kip  [w]rite your own  [e]ditor  [a]ll from now on  [n]one from now on  [q]uit"
END_OF_TEXT = "."

_WOULD = {
    "in_view": "in view already",
    "corpus": "in the corpus",
    "generated": "to be written by the model",
    "supplied": "supplied before",
}


def edit_text() -> str | None:
    """A text written in the user's editor; None: nothing was saved.

    Raises:
        click.ClickException: the editor did not run, or what it saved is no UTF-8.
    """
    try:
        return click.edit("", extension=".md")
    except UnicodeDecodeError as error:
        raise click.ClickException("what the editor saved is not UTF-8") from error
    except ValueError as error:  # quotes without an end
        raise click.ClickException(f"cannot read the editor's name in $VISUAL or $EDITOR: {error}") from error


class TerminalReader:
    """Answers by what is typed at a terminal. Enter follows; the end of input quits.

    Args:
        pause: called before anything is asked, for what is being shown to end its line.
        read: reads one line after a prompt; EOFError: there is no more.
        edit: as `edit_text`.
    """

    def __init__(
        self,
        console: Console,
        pause: Callable[[], None],
        read: Callable[[str], str] = input,
        edit: Callable[[], str | None] = edit_text,
    ) -> None:
        self._console, self._pause, self._read, self._edit = console, pause, read, edit
        self._always: Answer | None = None

    def __call__(self, question: LinkQuestion) -> Answer:
        if self._always is not None:
            return self._always
        self._pause()
        self._show(question)
        try:
            while True:
                answer = self._answer(self._read("? ").strip().lower())
                if answer is not None:
                    return answer
        except EOFError:
            self._console.print()
            return Quit()

    def _answer(self, typed: str) -> Answer | None:
        """None: ask again."""
        match typed:
            case "" | "f":
                return Follow()
            case "s":
                return Skip()
            case "w":
                return self._supplied(self._typed_text())
            case "e":
                return self._supplied(self._edited_text())
            case "a":
                self._always = Follow()
                return self._always
            case "n":
                self._always = Skip()
                return self._always
            case "q":
                return Quit()
        self._tell(f"{typed!r} is none of these: {CHOICES}")
        return None

    def _typed_text(self) -> str:
        self._tell("your text; a line with a single dot ends it")
        lines: list[str] = []
        try:
            while (line := self._read("")) != END_OF_TEXT:
                lines.append(line)
        except EOFError:
            # It ends the text, as it does where others take text. If it was the end of input, the next read says so.
            self._console.print()
        return "\n".join(lines)

    def _edited_text(self) -> str:
        try:
            return self._edit() or ""
        except click.ClickException as error:
            self._tell(error.message)
            return ""

    def _supplied(self, text: str) -> Answer | None:
        text = text.strip("\n").encode(errors="replace").decode()  # a terminal may give what is no UTF-8
        if text.strip():
            return Supply(text)
        self._tell("there is no text")
        return None

    def _show(self, question: LinkQuestion) -> None:
        title, text = printable(question.title), " ".join(printable(question.text).split())
        size = "" if question.tokens is None else f", {count(question.tokens, 'token')}"
        named = Text(f"[{text}] -> ", style="cyan").append(title, style="bold cyan")
        self._print(named.append(f"  ({_WOULD[question.outcome]}{size})", style="dim"))
        preview = " ".join(printable(question.preview).split())
        if preview:
            self._print(Text(f"  {preview}...", style="dim"))
        self._tell(CHOICES)

    def _tell(self, message: str) -> None:
        """All of it, on as many lines as that takes."""
        for line in Text(message).wrap(self._console, max(self._console.width - 2, 1)):
            self._print(Text("  ", style="dim").append(line.plain.rstrip()))

    def _print(self, line: Text) -> None:
        """On one line: what does not fit is cut."""
        line.truncate(self._console.width, overflow="ellipsis")
        self._console.print(line, highlight=False)
