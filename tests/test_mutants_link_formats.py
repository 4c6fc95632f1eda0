"""Wikilinks and Python's imports where mutation testing found no test: docs/mutation.md."""

from __future__ import annotations

import pytest

from ds2ds.documents.link_formats import link_format
from ds2ds.documents.link_formats.python_imports import _LONGEST_STATEMENT
from ds2ds.documents.link_formats.wikilinks import _LONGEST_LINK, _LONGEST_TAG
from ds2ds.documents.link_scanner import ScannedLink


def scan(name: str, *pieces: str | bytes, title: str = "p/q/m.py") -> list[ScannedLink]:
    scanner = link_format(name).scanner(title)
    return [link for piece in pieces for link in scanner.feed(piece.encode() if isinstance(piece, str) else piece)]


def bytewise(name: str, source: str) -> list[ScannedLink]:
    return scan(name, *(bytes([byte]) for byte in source.encode()))


# Wikilinks


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # Titles
        ("[[File:a:b.png]] [[Category:a:b|c]] [[Media:a]]", []),
        ("[[a\n]] [[a\nb|c]] [[\na]]", []),
        ("[[a\tb]] [[a _\u3000b]]", [("a b", "a\tb"), ("a b", "a _\u3000b")]),
        ("[[&#65;&#x42;&#X43;&frac12;]]", [("ABC½", "ABC½")]),
        ("[[&#1114109;&#x10FFFD;&#x10fffd;]]", [("\U0010fffd" * 3, "\U0010fffd" * 3)]),
        ("[[&ltx;|&ampx; &amp &lt;]]", [("&ltx;", "&ampx; &amp <")]),  # names that HTML lacks
        # Comments
        ("<!--> [[a]] --> [[b]]", [("b", "b")]),
        ("<!----> [[a]]", [("a", "a")]),
        ("<!-- -> -- > - -->[[a]]", [("a", "a")]),
        # Tags
        ("<nowiki></nowiki>[[a]] <math>x [[b]]</math>[[c]]", [("a", "a"), ("c", "c")]),
        ("<nowiki>x [[a]]</nowiki>", []),
        ("<pre\nx>[[a]]</pre><pre\tx>[[a]]</pre><pre/>[[b]]", [("b", "b")]),
        ("[[a|<no>]] [[b|c <prefix> <!- d]]", [("a", "<no>"), ("b", "c <prefix> <!- d")]),
        # Brackets and bars that do not stand side by side
        ("[|[a]] [[a]|]] [[b|c]|]]", [("b", "c]|")]),
    ],
)  # fmt: skip
def test_wikilinks(source: str, expected: list[tuple[str, str]]) -> None:
    whole = scan("wikilinks", source)
    assert [(link.target, link.text) for link in whole] == expected
    assert bytewise("wikilinks", source) == whole


@pytest.mark.parametrize(
    "tag", ["nowiki", "pre", "syntaxhighlight", "source", "math", "chem", "score", "timeline", "templatedata"]
)
def test_tags_whose_content_is_no_markup(tag: str) -> None:
    assert scan("wikilinks", f"<{tag}>[[a]]</{tag}>") == []


@pytest.mark.parametrize("cut", range(1, len("</nowiki>")))
def test_what_hides_a_part_ends_in_pieces(cut: int) -> None:
    source = "<!-- [[x]]--><nowiki>[[y]]</nowiki>[[a]] [[b]]"
    expected = [ScannedLink("a", "a", 35, 40, 38), ScannedLink("b", "b", 41, 46, 44)]
    for end in (source.index("-->"), source.index("</")):
        assert scan("wikilinks", source[: end + cut], source[end + cut :]) == expected


def test_the_middle_of_a_wikilink() -> None:
    assert [link.middle for link in scan("wikilinks", "[[a|b|c]] [[d<!-- ] | -->|e]]")] == [3, 25]
    assert [link.middle for link in scan("wikilinks", "[[a]<!-- x -->] [[b]]")] == [3, 19]


def test_bytes_that_are_no_utf8() -> None:
    assert [(link.target, link.text) for link in scan("wikilinks", b"[[a\xff|\xfe]]")] == [("a\ufffd", "\ufffd")]


def test_the_longest_wikilink_and_tag() -> None:
    assert _LONGEST_LINK == 4096 and _LONGEST_TAG == 256
    for length, links in ((4095, 1), (4096, 0)):
        assert len(scan("wikilinks", f"[[a|{'b' * (length - 2)}]]")) == links
    for length, links in ((256, 0), (257, 1)):
        assert len(scan("wikilinks", f"<pre {'b' * (length - 6)}>[[a]]")) == links


# Python's imports


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # Names that `strip` could eat from; as a keyword begins, or as another word ends
        ("from a import X, aX\nfrom a import (X, XaX,)\n", ["a.X", "a.aX", "a.X", "a.XaX"]),
        ("import iffy, a.is_b as as_c\n", ["iffy", "a.is_b"]),
        ("fromé import a\nfrom1 import a\nimport 1a\nfrom a import 1\n", []),
        # White space
        ("\fimport\fa\f\n\r\nimport b\r\n", ["a", "b"]),
        ("from a import ( b , c , )\nfrom a import ( b )\nfrom a import (b,c)\n", ["a.b", "a.c", "a.b", "a.b", "a.c"]),
        ("from a import * \nimport a . b , c \nimport a,b as c \n", ["a.*", "a.b", "c", "a", "b"]),
        ("from a import b , c\nfrom . a import b\nfrom a import (b)  # why\n", ["a.b", "a.c", ".a.b", "a.b"]),
        # Lines that a backslash joins
        ("\\\nimport a\n", ["a"]),
        ("x = \\\nimport a\nx\\\nimport b\n", []),
        # A statement stands where one can start, and is nothing else
        ("'a' import b\nx import c\nx = '' import d\n", []),
        ("import a = 1\nimport b + c\nimport d)\n", []),
        ("from a import (b = 1\nimport c\n", ["c"]),
        ("from a import (b) import c\n", ["a.b"]),
        ("import1(a,\nimport c\n", ["c"]),
        # Strings and comments
        ("x = ''; import a\nx = \"b\"; import c\n", ["a", "c"]),
        ("x = 'a; import b;'\nx = \"c; import d;\"\n", []),
        ("x = '''''\nimport a\n'''; import b\n", ["b"]),
        ("x = 'a \\\\'; import b\n", ["b"]),
        ("x = '''\\\\'''; import a\n", ["a"]),
        ("x = '''a\\'''; import b\n'''; import c\n", ["c"]),
        ("x = '''''''''; import a;\n'''\nimport b\n", ["b"]),
        ("# a\nimport b\nx = 1  # so: import a; import d; it's\nimport c\n", ["b", "c"]),
        ("from a import (  # x)\n    b\n)\nimport c\n", ["a.b", "c"]),
    ],
)
def test_imports(source: str, expected: list[str]) -> None:
    whole = scan("python", source)
    assert [link.text for link in whole] == expected
    assert bytewise("python", source) == whole


def test_imports_that_are_no_utf8() -> None:
    assert [link.text for link in scan("python", b"import a\xff\nimport b\n")] == ["b"]


def test_the_longest_import() -> None:
    assert _LONGEST_STATEMENT == 1 << 16
    for length, links in ((1 << 16, 1), ((1 << 16) + 1, 0)):
        assert len(scan("python", f"import {'a' * (length - 7)}\n")) == links
