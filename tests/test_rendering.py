"""Events as plain text and as a terminal shows them."""

from __future__ import annotations

import io
import re

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ds2ds import DocumentClosed, DocumentOpened, GeneratedDocument, LinkClosed, TokenWritten
from ds2ds.cli.rendering import PlainRenderer, Renderer, TerminalRenderer
from ds2ds.documents.link_formats import LINK_FORMATS
from ds2ds.generation.events import Event
from ds2ds.generation.stop_filter import StopFilter


def opened(title: str, text: str, depth: int = 0, source: str = "generated") -> Event:
    return DocumentOpened(title, source, depth, None if depth == 0 else "parent", text)


def token(title: str, text: str) -> Event:
    return TokenWritten(title, 1, text, -1.0)


def closed(title: str, text: str, tokens: int = 3, source: str = "generated", truncated: bool = False) -> Event:
    reason = "eos" if source == "generated" else None
    document = GeneratedDocument(title, tokens=[0] * tokens, text=text, source=source, truncated=truncated)
    return DocumentClosed(title, reason, document)


STORY = [
    opened("Home", "# Home\n\n"),
    token("Home", "A ["),
    token("Home", "fruit](Apple"),
    token("Home", "),"),
    LinkClosed("Home", "fruit", "Apple", 7, "corpus"),
    opened("Apple", "all of the apple", 1, "corpus"),
    opened("Tree", "all of the tree", 2, "corpus"),
    closed("Tree", "all of the tree", 40, "corpus", truncated=True),
    closed("Apple", "all of the apple", 260, "corpus"),
    token("Home", " or"),
    token("Home", " [Pear](Pear)"),
    LinkClosed("Home", "Pear", "Pear", 9, "generated"),
    opened("Pear", "# Pear\n\n", 1),
    token("Pear", "Is"),
    token("Pear", " green"),
    token("Pear", ""),
    closed("Pear", "# Pear\n\nIs green", 12),
    token("Home", "."),
    token("Home", " End"),
    closed("Home", "# Home\n\nA [fruit](Apple), or [Pear](Pear). End"),
]


def render(renderer: Renderer, events: list[Event]) -> None:
    for event in events:
        renderer.show(event)
    renderer.finish()


def on_terminal(events: list[Event], width: int = 80, stop: tuple[str, ...] = (), colour: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colour, color_system="standard" if colour else None)
    render(TerminalRenderer(console, stop), events)
    return out.getvalue()


def as_plain(events: list[Event], stop: tuple[str, ...] = ()) -> str:
    out = io.StringIO()
    render(PlainRenderer(out, stop), events)
    return out.getvalue()


def test_plain_is_the_root_alone() -> None:
    assert as_plain(STORY) == "# Home\n\nA [fruit](Apple), or [Pear](Pear). End\n"


def test_plain_shows_each_token_as_it_comes() -> None:
    out = io.StringIO()
    renderer = PlainRenderer(out)
    renderer.show(STORY[0])
    renderer.show(STORY[1])
    assert out.getvalue() == "# Home\n\nA ["


def test_plain_ends_with_one_line_end() -> None:
    assert as_plain([opened("Home", "a\n"), closed("Home", "a\n")]) == "a\n"
    assert as_plain([opened("Home", ""), closed("Home", "")]) == ""


def test_the_terminal_shows_what_links_bring_in() -> None:
    assert on_terminal(STORY) == (
        "# Home\n"
        "\n"
        "A [fruit](Apple), or [Pear](Pear)\n"
        "  -> Apple (corpus, 260 tokens)\n"
        "    -> Tree (corpus, 40 tokens, cut)\n"
        "  -> Pear (being written)\n"
        "  | # Pear\n"
        "  |\n"
        "  | Is green\n"
        "  <- Pear (12 tokens, eos)\n"
        ". End\n"
    )


def test_documents_are_told_of_at_the_end_of_the_line() -> None:
    events = [*STORY[:9], token("Home", " red.\n\nMore"), closed("Home", "# Home\n\nA [fruit](Apple), red.\n\nMore")]
    assert on_terminal(events) == (
        "# Home\n\nA [fruit](Apple), red.\n  -> Apple (corpus, 260 tokens)\n    -> Tree (corpus, 40 tokens, cut)\n"
        "\nMore\n"
    )


def test_a_corpus_document_that_waits_for_one_being_written() -> None:
    events = [
        opened("Home", "[A](A)"),
        opened("A", "see [B](B)", 1, "corpus"),
        opened("B", "", 2),
        token("B", "text"),
        closed("B", "text", 2),
        closed("A", "see [B](B)", 5, "corpus"),
        token("Home", " end"),
        closed("Home", "[A](A) end"),
    ]
    assert on_terminal(events) == (
        "[A](A)\n  -> A (corpus)\n    -> B (being written)\n    | text\n    <- B (2 tokens, eos)\nend\n"
    )


def test_links_and_notices_have_colours() -> None:
    shown = on_terminal(STORY, colour=True)
    assert "\x1b[2;36m[\x1b[0m\x1b[36mfruit\x1b[0m\x1b[2;36m](Apple)\x1b[0m," in shown
    assert "\x1b[2m  -> Apple (corpus, 260 tokens)\x1b[0m\n" in shown
    assert "\x1b[1mHome\x1b[0m" in shown  # the prompt


def test_an_interrupted_stream_shows_what_was_written() -> None:
    assert on_terminal(STORY[:3]) == "# Home\n\nA [fruit](Apple\n"
    assert on_terminal(STORY[:15]).endswith("  | # Pear\n  |\n  | Is green\n")
    assert as_plain(STORY[:3]) == "# Home\n\nA [fruit](Apple\n"


def test_titles_cannot_drive_the_terminal() -> None:
    assert "\x1b" not in on_terminal([opened("Home", ""), opened("\x1b[2J", "", 1), closed("\x1b[2J", "")])


def test_a_stop_string_is_not_shown() -> None:
    events = [
        opened("Home", "A STOP in the prompt. "),
        token("Home", "Text ST"),
        token("Home", "ART S"),
        token("Home", "TOP."),
        closed("Home", "A STOP in the prompt. Text START "),
    ]
    shown = "A STOP in the prompt. Text START "
    assert as_plain(events, ("STOP",)) == shown + "\n"
    assert on_terminal(events, stop=("STOP",)) == shown.rstrip() + "\n"


@given(
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=12),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_nothing_of_a_stop_string_passes(pieces: list[str], stop: list[str]) -> None:
    text, passed = StopFilter(stop), ""
    whole = ""
    for piece in pieces:
        whole += piece
        passed += text.feed(piece)
        found = [whole.find(one) for one in stop if one in whole]
        if found:
            whole = whole[: min(found)]
            break
        assert whole.startswith(passed)
        assert len(whole) - len(passed) <= max(map(len, stop)) - 1
    assert passed + text.flush(whole) == whole


def test_links_of_the_model_s_format_are_marked() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, color_system="standard")
    story = [
        opened("m.py", "import os\n"),
        token("m.py", "x = [1](2)\nfrom a import b"),
        token("m.py", "\n"),
        closed("m.py", "import os\nx = [1](2)\nfrom a import b\n"),
    ]
    render(TerminalRenderer(console, link_format=LINK_FORMATS["python"]), story)
    cyan = "".join(re.findall(r"\x1b\[36m([^\x1b]*)\x1b", out.getvalue()))
    assert cyan.replace(" ", "") == "importosfromaimportb"
