"""Where links are shown: whole, or by their names where one statement makes several."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds2ds.documents.link_formats import LINK_FORMATS, link_format
from ds2ds.documents.link_scanner import ScannedLink
from ds2ds.documents.link_spans import LinkSpan, link_spans


def spans_of(format: str, text: str) -> tuple[list[LinkSpan], bytes]:
    data = text.encode()
    return list(link_spans(link_format(format).scanner("pkg/mod.py").feed(data), data)), data


@pytest.mark.parametrize(
    ("format", "text", "shown"),
    [
        ("markdown", "é [x y](T u), [](V)", [("[x y](T u)", "x y"), ("[](V)", "")]),
        ("wikilinks", "a [[T|x y]] [[Q]]s", [("[[T|x y]]", "x y"), ("[[Q]]", "Q")]),
        ("python", "import a.b\nx = 1\n", [("import a.b", "import a.b")]),
        ("python", "import a.b, c as d\n", [("a.b", "a.b"), ("c", "c")]),
        ("python", "from .e import (f,\n    e)\n", [("f", "f"), ("e", "e")]),
        ("python", "from f import b, a as b\n", [("b", "b"), ("a", "a")]),
        ("latex", r"\input{x/y} \cite[see a][p. 2]{ab,b}", [(r"\input{x/y}",) * 2, ("ab", "ab"), ("b", "b")]),
        ("arxiv", r"We \cite{a,b}.", [(r"\cite{a,b}", r"\cite{a,b}")]),
        ("null", "[x](T)", []),
    ],
)
def test_what_is_shown_of_a_link(format: str, text: str, shown: list[tuple[str, str]]) -> None:
    spans, data = spans_of(format, text)
    assert [(data[s.start : s.end].decode(), data[s.words[0] : s.words[1]].decode()) for s in spans] == shown


def test_names_are_those_at_the_end_of_the_statement() -> None:
    spans, data = spans_of("python", "from e import e, f\n")
    assert [(s.start, s.end) for s in spans] == [(14, 15), (17, 18)] and data[14:15] == b"e"


@pytest.mark.parametrize(
    ("data", "names", "places"),
    [
        (b"\\cite{a}", ("a", "a"), [(6, 6), (6, 7)]),  # it stands there once
        (b"x , ab", ("", "ab"), [(4, 4), (4, 6)]),
        (b"x , ab", ("", ""), [(6, 6), (6, 6)]),
        (b"a, \xed\xa0\x80", ("a", "\ud800"), [(0, 1), (6, 6)]),  # no text of ours has such a name
    ],
)
def test_a_name_that_is_not_to_be_found_takes_no_room(
    data: bytes, names: tuple[str, str], places: list[tuple[int, int]]
) -> None:
    links = [ScannedLink(name, name, 0, len(data), 0) for name in names]
    spans = list(link_spans(links, data))
    assert [(span.start, span.end) for span in spans] == places == [span.words for span in spans]


def test_a_bracket_alone_makes_no_markdown() -> None:
    """Formats of other packages may have brackets, too."""
    (span,) = link_spans([ScannedLink("a", "a", 0, 4, 3)], b"[a]_")
    assert span.words == (0, 4)
    (span,) = link_spans([ScannedLink("a", "a", 0, 5, 2)], b"![](a")
    assert span.words == (0, 5)


MARKS = ["[a](b)", "[[a|b]]", "[[", "]]", "é", "\n", "[", "`"]
CODE = ["import a.b, c\n", "from . import (a,\n b)\n", "\\cite{a, b}", "\\input{é}"]


@given(st.sampled_from(sorted(LINK_FORMATS)), st.lists(st.sampled_from(MARKS + CODE), max_size=12).map("".join))
def test_spans_are_in_order_and_hold_their_words(format: str, text: str) -> None:
    spans, data = spans_of(format, text)
    at = 0
    for span in spans:
        assert at <= span.start <= span.words[0] <= span.words[1] <= span.end <= len(data)
        assert span.link.start <= span.start and span.end <= span.link.end
        data[span.start : span.end].decode()  # no character is split
        at = span.end
    assert [span.link for span in spans] == link_format(format).scanner("pkg/mod.py").feed(data)
