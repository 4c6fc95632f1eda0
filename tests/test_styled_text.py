"""Links are styled once they close; lines are wrapped at words, whatever the pieces the text comes in."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.cli.styled_text import LINK_STYLE, TARGET_STYLE, LinkMarker, WordWrap, printable
from ds2ds.documents.link_formats import LINK_FORMATS, Scanner, link_format
from ds2ds.documents.link_scanner import LinkScanner


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:stop] for start, stop in pairwise(edges)]


def mark(pieces: list[str], style: str = "") -> list[tuple[str, str]]:
    marker = LinkMarker()
    return [part for piece in pieces for part in marker.feed(piece, style)] + marker.flush()


def styled(parts: list[tuple[str, str]], *styles: str) -> str:
    return "".join(text for text, style in parts if style in styles)


cuts = st.lists(st.integers(0, 1000), max_size=12)


def test_a_link_is_styled_and_what_surrounds_it_is_not() -> None:
    parts = mark(["a [li", "nk](Tar", "get). b"], "bold")
    assert parts == [
        ("a ", "bold"),
        ("[", TARGET_STYLE),
        ("link", LINK_STYLE),
        ("](Target)", TARGET_STYLE),
        (". b", "bold"),
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a [b](c", "a "),
        ("a [b", "a "),
        ("array[i] = 3", "array[i] = 3"),
        ("[1] note", "[1] note"),
        ("a [b\n", "a [b\n"),
        ("a [" + "b" * 201, "a [" + "b" * 201),
    ],
)
def test_only_what_may_become_a_link_is_held_back(text: str, shown: str) -> None:
    marker = LinkMarker()
    assert "".join(part for part, _ in marker.feed(text)) == shown
    assert shown + "".join(part for part, _ in marker.flush()) == text


@given(st.text(alphabet="ab é[]()\n\\`!<>", max_size=60), cuts)
def test_no_text_is_lost_and_every_link_ends_styled(text: str, cuts: list[int]) -> None:
    parts = mark(pieces_of(text, cuts))
    assert "".join(part for part, _ in parts) == text
    links = LinkScanner().feed(text.encode())
    assert styled(parts, LINK_STYLE, TARGET_STYLE).count(")") >= len(links)
    if not links:
        assert not styled(parts, LINK_STYLE, TARGET_STYLE)


@given(st.lists(st.text(alphabet="ab é", min_size=1, max_size=8), max_size=5), cuts)
def test_plain_links_are_styled_whole(words: list[str], cuts: list[int]) -> None:
    links = [f"[{word}](x{word})" for word in words]
    parts = mark(pieces_of(" and ".join(links), cuts))
    assert styled(parts, LINK_STYLE, TARGET_STYLE) == "".join(links)


def wrap(pieces: list[str], width: int, margin: str = "") -> str:
    out: list[str] = []
    wrapper = WordWrap(lambda text, style: out.append(text), lambda: width)
    wrapper.margin = margin
    for piece in pieces:
        first, *others = piece.split("\n")
        wrapper.write(first)
        for line in others:
            wrapper.newline()
            wrapper.write(line)
    wrapper.interrupt()
    return "".join(out)


def test_lines_break_at_words() -> None:
    assert wrap(["one two th", "ree four\n\n  five"], 10) == "one two\nthree four\n\n  five\n"


def test_wide_characters_take_two_columns() -> None:
    assert wrap(["日本 日本 日本"], 9) == "日本 日本\n日本\n"


def test_each_line_has_the_margin() -> None:
    assert wrap(["one two\n\nthree"], 7, "| ") == "| one\n| two\n|\n| three\n"


def test_what_follows_an_interruption_goes_on_with_the_text() -> None:
    out: list[str] = []
    wrapper = WordWrap(lambda text, style: out.append(text), lambda: 80)
    wrapper.write("a [b](b)")
    wrapper.interrupt()
    wrapper.interrupt()
    out.append("-> b\n")
    wrapper.write(" c")
    wrapper.interrupt()
    wrapper.newline()  # the text's own line end: the line has ended already
    wrapper.write("d")
    wrapper.interrupt()
    assert "".join(out) == "a [b](b)\n-> b\nc\nd\n"


@given(st.text(alphabet="abc  \n", max_size=80), cuts, st.integers(8, 30))
def test_wrapping_keeps_the_words_fits_and_is_the_same_in_pieces(text: str, cuts: list[int], width: int) -> None:
    text = re.sub(r"\S{8}", lambda match: match[0] + " ", text)  # no word longer than a line
    lines = wrap([text], width)
    assert lines.split() == text.split()
    assert all(len(line) <= width or not line.strip() for line in re.sub(r"^ +", "", lines, flags=re.M).split("\n"))
    assert wrap(pieces_of(text, cuts), width) == lines


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\nc\td\x07\x9b") == "a�[2Jb\nc    d��"


@pytest.mark.parametrize(
    ("format", "text", "marked"),
    [
        ("wikilinks", "a [[T|x]] [b](c)", "x"),
        ("python", "import a.b\nfrom q import (c,\n  d)\nx = 1\n", "import a.bcd"),
        ("python", "i = from_\nimport  x", ""),
        ("latex", r"\textbf{a} \cite[p.~2]{b, c} \ref{d}", "bc"),
        ("latex+ref", r"\ref{d}", r"\ref{d}"),
        ("arxiv", r"\cite{b,c}", r"\cite{b,c}"),
        ("null", "[a](b)", ""),
    ],
)
@given(cuts=cuts)
@settings(max_examples=30)
def test_links_of_other_formats(format: str, text: str, marked: str, cuts: list[int]) -> None:
    marker = LinkMarker(link_format(format), "m.py")
    parts = [part for piece in pieces_of(text, cuts) for part in marker.feed(piece)] + marker.flush()
    assert "".join(part for part, _ in parts) == text
    # Whatever the pieces, a link is held back from its first byte on.
    assert styled(parts, LINK_STYLE) == marked


def test_a_format_of_another_package_is_styled_where_its_links_end() -> None:
    class Marks:
        name = "marks"

        def scanner(self, document_title: str = "") -> Scanner:
            return link_format("markdown").scanner(document_title)

    marker = LinkMarker(Marks())
    assert marker.feed("a [b") == [("a [b", "")]
    assert marker.feed("](c) d") == [("](c)", LINK_STYLE), (" d", "")]


@given(st.sampled_from(sorted(LINK_FORMATS)), st.text(alphabet="ab é[](){}\n\\|`,.*import fromcite", max_size=80), cuts)
def test_no_text_is_lost_in_any_format(format: str, text: str, cuts: list[int]) -> None:
    marker = LinkMarker(link_format(format), "p/m.py")
    parts = [part for piece in pieces_of(text, cuts) for part in marker.feed(piece)] + marker.flush()
    assert "".join(part for part, _ in parts) == text
