"""The link scanner by example. Numbered deviations are those of the module's docstring."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds2ds.documents.link_scanner import LinkScanner, ScannedLink, is_external


def links(text: str | bytes) -> list[tuple[str, str]]:
    """(text, target) of the links, fed at once and byte by byte, which must agree."""
    data = text.encode() if isinstance(text, str) else text
    whole = LinkScanner().feed(data)
    scanner = LinkScanner()
    assert [link for byte in data for link in scanner.feed(bytes([byte]))] == whole
    return [(link.text, link.target) for link in whole]


def targets(text: str) -> list[str]:
    return [target for _, target in links(text)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("[a](b)", [("a", "b")]),
        ("x [a b](b), [c](d).", [("a b", "b"), ("c", "d")]),
        ("[a]()[](<>)", [("a", ""), ("", "")]),
        ("[日本](Ελλάδα) [🦉](é)", [("日本", "Ελλάδα"), ("🦉", "é")]),
        ("[a [b] c](d)", [("a [b] c", "d")]),
        ("[[a](b)]", [("a", "b")]),
        (r"[a\]\[](b)", [("a][", "b")]),
        (r"\[a](b)", []),
        (r"\\[a](b)", [("a", "b")]),
        (r"[a\](b)", []),
        (r"[a\\](b)", [("a\\", "b")]),
        ("[a] (b)", []),
        ("[a]", []),
        ("[a](b", []),
        ("a](b)", []),
    ],
)
def test_text(source: str, expected: list[tuple[str, str]]) -> None:
    assert links(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("[a](b(c)d)", ["b(c)d"]),
        (r"[a](b\)c)", ["b)c"]),
        (r"[a](b\(c)", ["b(c"]),
        ("[a](b(c)", []),
        ("[a](<b) c>)", ["b) c"]),
        (r"[a](<b\>c>)", ["b>c"]),
        ("[a](<b<c>)", []),
        ("[a](<b>c)", []),
        ("[a](<b\nc>)", []),
        ("[a](b[c]d)", ["b[c]d"]),
        ("[a](b`c) `", ["b`c"]),
        ("[a](b%20c)", ["b%20c"]),
        ("[a](&lt;&amp;&#65;&#x42;)", ["<&AB"]),
        ("[a](one &#10; line&NewLine;&#x2028;of text) [b](<&#13;two>)", ["one line of text", "two"]),
        ("[a](&nosuch;&amp)", ["&nosuch;&amp"]),
        (r"[a](\&amp;)", ["&amp;"]),
        (r"[a](b\c)", [r"b\c"]),
        ("[a](  b\t)", ["b"]),
    ],
)
def test_destination(source: str, expected: list[str]) -> None:
    assert targets(source) == expected


@pytest.mark.parametrize(
    "title", ['"t"', "'t'", '"t(u"', r'"t\"u"', '"t\nu"', '"it\'s"', '"t" ', '"a (b) c"', '"`[x]"', '""']
)
def test_title_is_not_part_of_the_target(title: str) -> None:
    assert targets(f"[a](b {title}) [c](d)") == ["b", "d"]
    assert targets(f"[a](<b> {title}) [c](d)") == ["b", "d"]


def test_what_is_no_title() -> None:
    assert targets('[a]("b")') == ['"b"']
    assert targets('[a]( "b" )') == ['"b"']
    assert targets('[a](b"c")') == ['b"c"']
    assert targets('[a](<b>"c")') == []
    assert targets('[a](<b> "c" "d")') == []
    assert targets('[a](<b> "c" d)') == []


def test_code_spans_hide_links() -> None:
    assert targets("`[a](b)` [c](d)") == ["d"]
    assert targets("``[a](b)` [c](d)`` [e](f)") == ["f"]
    assert targets("`[a`](b)") == []
    assert targets("[`]`](b)") == ["b"]
    assert targets(r"\`[a](b)`") == ["b"]
    assert targets(r"`\`[a](b)") == ["b"]
    assert targets(r"\``[a](b)` [c](d)") == ["d"]


def test_images_are_no_links_but_may_stand_in_one() -> None:
    assert targets("![a](b) [c](d)") == ["d"]
    assert links("[![a](b)](c)") == [("![a](b)", "c")]
    assert targets(r"\![a](b)") == ["b"]
    assert targets("! [a](b)") == ["b"]
    assert targets("!![a](b)") == []
    assert targets("![a [b](c)](d)") == ["c"]
    assert targets("![a](b[c) d](e)") == []


def test_innermost_link_counts() -> None:
    assert links("[a [b](c) d](e)") == [("b", "c")]
    assert links("[[[a](b)](c)](d)") == [("a", "b")]
    assert links("[a [b](c)](d) [e](f)") == [("b", "c"), ("e", "f")]
    assert links("![x [y [a](b) ] ](c[d) e](f)") == [("a", "b")]


def test_1_whitespace_in_raw_destinations() -> None:
    assert targets("[a](Turing machine)") == ["Turing machine"]
    assert targets("[a](Turing\n  machine)") == targets("[a](Turing \r\n machine)") == ["Turing machine"]
    assert targets('[a](The page "its title")') == ["The page"]
    assert targets('[a](The "quoted" page)') == ['The "quoted" page']
    assert targets("[a](Rock 'n' roll 'em)") == ["Rock 'n' roll 'em"]
    assert targets('[a](b (c "d"))') == ['b (c "d")']
    assert targets('[a](5.25" floppy (disk))') == ['5.25" floppy (disk)']


def test_2_parentheses_after_a_raw_destination_are_part_of_it() -> None:
    assert targets("[a](Smalltalk (language))") == ["Smalltalk (language)"]
    assert targets("[a](<Smalltalk> (language))") == ["Smalltalk"]
    assert targets(r"[a](<b> (c\)d)) [e](<f> (g(h))") == ["b"]


def test_3_nothing_waits_for_later_text() -> None:
    assert links("[a](b[c](d))") == [("c", "d")]
    assert links("[a](b and [c](d) e") == [("c", "d")]
    assert links("[x [a](b](c))") == [("x [a](b", "c")]
    assert targets("[a](Algol '68)") == ["Algol '68"]
    assert targets('[a](b "c) d") [e](f)') == ['b "c', "f"]
    assert targets("[a](b![c](d)e)") == ["b![c](d)e"]


def test_4_open_backticks_hide_links_until_the_paragraph_ends() -> None:
    assert targets("a ` [a](b)\n[c](d)\n\n[e](f)") == ["f"]
    assert targets("`` [a](b) ` [c](d)\n \t\n[e](f)") == ["f"]


def test_5_tags_are_text() -> None:
    assert targets('[a <b c="](d)">') == ["d"]
    assert targets("<http://a[b](c)>") == ["c"]


def test_6_paragraphs_end_at_blank_lines() -> None:
    assert targets("[a\nb](c)") == ["c"]
    assert targets("[a\n\nb](c)") == targets("[a\n \t\r\nb](c)") == targets("[a](b\n\nc)") == []
    assert targets("[a\n# b](c)") == ["c"]
    assert targets("[a]: b\n\n[a] [a][a]") == []


def test_6_fences_hide_links_across_blank_lines() -> None:
    assert targets("```py\na[0](b)\n\n[c](d)\nx ``` [e](f)\n```\n[g](h)") == ["h"]
    assert targets("x\n````\n\n```\n\n[a](b)\n`````\n[c](d)") == ["d"]
    assert targets("``` `[a](b)` ``` [c](d)") == ["d"]
    assert targets("[a ``` b\n\n[c](d)") == ["d"]
    assert targets("[a\n```\nb\n```\n](c)") == []


def test_7_at_most_32_destinations_are_followed() -> None:
    assert targets("![a](" * 31 + "[a](b" + ")") == ["b"]
    assert targets("[a](" + "![a](" * 31 + ")" * 32) == ["![a](" * 31 + ")" * 31]
    assert targets("[a](" + "![a](" * 32 + ")" * 33) == []


def test_offsets_count_bytes_of_the_whole_stream() -> None:
    scanner = LinkScanner()
    assert scanner.feed("é [a".encode()) == []
    assert scanner.feed(b"](b) ") == [ScannedLink("a", "b", start=3, end=9, middle=5)]
    scanner.reset()
    assert scanner.feed(b"[c](d)") == [ScannedLink("c", "d", start=10, end=16, middle=12)]
    assert scanner.position == 16


@pytest.mark.parametrize("start", ["[a](", "[a", "`", "[a]", "\\", "!", "```\n", "`" * 3])
def test_reset_forgets_what_is_open(start: str) -> None:
    scanner = LinkScanner()
    scanner.feed(start.encode())
    scanner.reset()
    assert [link.target for link in scanner.feed(b"[x](y)")] == ["y"]


def test_invalid_utf8_is_replaced() -> None:
    assert links(b"[\xff](\xc3)") == [("\ufffd", "\ufffd")]


@given(st.text(st.sampled_from("[]()\\`!<>\"' \nab"), max_size=60), st.data())
def test_pieces_do_not_matter(text: str, data: st.DataObject) -> None:
    source = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(source)))))
    scanner = LinkScanner()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(source)], strict=True):
        found += scanner.feed(source[start:end])
    assert found == LinkScanner().feed(source)
    for link in found:
        raw = source[link.start : link.end]
        assert raw.startswith(b"[") and raw.endswith(b")")
        assert source[link.middle : link.middle + 2] == b"]("


@given(st.binary(max_size=80))
def test_any_bytes_are_read(data: bytes) -> None:
    LinkScanner().feed(data)


def test_nothing_is_kept_while_nothing_is_open() -> None:
    scanner = LinkScanner()
    scanner.feed(b"[a](b) and [[c](d)], ![e](f). `g` (h) i!")
    assert not scanner._buffer


def seconds_for(pattern: bytes, count: int) -> float:
    """Time to scan `pattern` repeated, then what would close it all; the best of three."""
    best = float("inf")
    for _ in range(3):
        scanner = LinkScanner()
        start = time.process_time()
        for _ in range(count):
            scanner.feed(pattern)
        scanner.feed(b')"' * count)
        scanner.feed(b")](" * count)
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize(
    "pattern",
    [
        "[", "![", "`", "`a", "]", "](", "[](", "![](", "[a](b \"(", '[a](b "(")', "[a](<",
        "[a](<b> (", "\\", "[]", "[\n", "(", "[a](b) [", "![a](b) [", "[a](b ![", "` [a](b)", "[a ",
    ],
)  # fmt: skip
def test_adversarial_input_costs_linear_time(pattern: str) -> None:
    """Eight times the input costs eight times as much, and a margin for noise; quadratic would be 64 times."""
    data = pattern.encode()
    assert seconds_for(data, 8000) < 24 * max(seconds_for(data, 1000), 1e-3)


def test_a_hundred_thousand_open_brackets() -> None:
    scanner = LinkScanner()
    assert scanner.feed(b"[" * 100_000) == []
    assert [link.target for link in scanner.feed(b"a](b)")] == ["b"]
    assert scanner.feed(b"]" * 100_000 + b"(c)") == []


@pytest.mark.parametrize(
    "target",
    [
        "http://a.b", "HTTPS://a", "ftp://x y", "git+ssh://a", "mailto:a@b", "tel:+1", "data:,x",
        "javascript:f()", "//host/a", "#part",
    ],
)  # fmt: skip
def test_external(target: str) -> None:
    assert is_external(target)


@pytest.mark.parametrize(
    "target",
    [
        "", "C: the language", "std::vector", "Note: x", "javascript: the good parts", "C#", "/usr/bin",
        "a/b.md", "1://x", "and http://a", "c:/x",
    ],
)  # fmt: skip
def test_not_external(target: str) -> None:
    assert not is_external(target)
