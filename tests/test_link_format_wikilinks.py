"""Wikilinks: MediaWiki's rules one by one, and wikitextparser's reading of a page, of FOLDOC and of generated texts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import wikitextparser
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.documents.link_formats import link_format
from ds2ds.documents.link_formats.wikilinks import Wikilinks, _target, _WikilinkScanner
from ds2ds.documents.link_scanner import LinkScanner, ScannedLink
from ds2ds.tokenizer import as_tokenizer

WIKI = Wikilinks()
PAGE = Path(__file__).parent / "data" / "wikitext" / "page.wiki"


def scan(source: str) -> list[ScannedLink]:
    return WIKI.scanner("Some page").feed(source.encode())


def pairs(source: str) -> list[tuple[str, str]]:
    return [(link.target, link.text) for link in scan(source)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("[[a]]", [("a", "a")]),
        ("[[A b|c d]]", [("A b", "c d")]),
        ("[[a#Section|b]] [[a#Section]]", [("a", "b"), ("a", "a#Section")]),
        ("[[#Section]] [[#Section|a]] [[]] [[|a]] [[ ]]", []),
        ("[[ a_b__c ]]", [("a b c", "a_b__c")]),
        ("[[AT&amp;T]] [[Caf%C3%A9]] [[a&#39;s|&lt;b&gt;]]", [("AT&T", "AT&T"), ("Café", "Caf%C3%A9"), ("a's", "<b>")]),
        ("[[100%]] [[C%23|C#]]", [("100%", "100%"), ("C", "C#")]),
        ("[[a|b|c]]", [("a", "b|c")]),
        ("[[a|]]", [("a", "a")]),
        ("[[a|b]c]]", [("a", "b]c")]),
        ("[[a|b\nc]]", [("a", "b\nc")]),
        ("[[a\nb]] [[c\n|d]]", []),
        ("[[a[b]] [[a]b]] [[a{b]] [[a}b]] [[a<b]] [[a>b]]", []),
        ("[[a|''b'' <b>c</b> {{d|e}}]]", [("a", "''b'' <b>c</b> {{d|e}}")]),
        ("[[a|b [[c]] d]]", [("c", "c")]),
        ("[[a [[b]]", [("b", "b")]),
        ("[[[a]]]", [("a", "a")]),
        ("[a] [ [a] ] [http://a.b c] [[a] ]", []),
        ("[[File:a.png|thumb|of [[b]] and [[c|d]]]]", [("b", "b"), ("c", "d")]),
        ("[[image: a.png]] [[Media:a]] [[CATEGORY:a]] [[ category : a|b]]", []),
        ("[[:File:a.png]] [[:Category:a|b]]", [("File:a.png", "File:a.png"), ("Category:a", "b")]),
        ("[[Help:a]] [[fr:Chat]] [[2001: A Space Odyssey]]", [("Help:a", "Help:a"), ("fr:Chat", "fr:Chat"),
         ("2001: A Space Odyssey", "2001: A Space Odyssey")]),
        ("[[http://a.b/c#d e]]", [("http://a.b/c#d e", "http://a.b/c#d e")]),
        ("{{t|[[a]]|b=[[c|d]]}} {{{x|[[e]]}}}", [("a", "a"), ("c", "d"), ("e", "e")]),
        ("[[{{PAGENAME}}/a]]", []),
        ("<!-- [[a]] --> [[b]]", [("b", "b")]),
        ("[[a<!-- x -->b|c<!-- ]] -->d]]", [("ab", "cd")]),
        ("[<!-- x -->[a]<!-- x -->]", [("a", "a")]),
        ("<!-- [[a]] -> [[b]]", []),
        ("<nowiki>[[a]]</nowiki> [[b]] <NOWIKI>[[c]]</NoWiki>", [("b", "b")]),
        ("[<nowiki/>[a]] [[a]<nowiki/>] [[b<nowiki/>c]] [[d|e<nowiki />f]]", [("d", "ef")]),
        ("[[a|<nowiki>]]</nowiki>b]]", [("a", "b")]),
        ("[[a<nowiki>b</nowiki>]]", []),
        ('<pre class="x">[[a]]</pre><source lang="c">[[b]]</source><math>[[c]]</math>', []),
        ("<prefix>[[a]]</prefix> <ref>[[b]]</ref> a < [[c]] <- <!- [[d]]", [(c, c) for c in "abcd"]),
        ("<no[[a]]", [("a", "a")]),
        ("[[cat]]s", [("cat", "cat")]),
        ("[[日本|日本語]]", [("日本", "日本語")]),
        ("[[a]", []),
    ],
)  # fmt: skip
def test_links(source: str, expected: list[tuple[str, str]]) -> None:
    assert pairs(source) == expected


def test_offsets() -> None:
    assert scan("é [[a|b]] [[c]]") == [ScannedLink("b", "a", 3, 10, 6), ScannedLink("c", "c", 11, 16, 14)]


def test_a_link_fires_at_its_last_bracket() -> None:
    scanner = WIKI.scanner()
    source = "x [[a|b]]] [[c]]"
    fired = [at for at in range(len(source)) if scanner.feed(source[at : at + 1].encode())]
    assert fired == [8, 15]


def test_namespaces_are_the_wikis_to_name() -> None:
    german = Wikilinks(namespaces_without_links=frozenset({"datei", "kategorie"}))
    links = german.scanner().feed(b"[[Datei:a]] [[Kategorie:b]] [[File:c]]")
    assert [link.target for link in links] == ["File:c"]


def test_a_documents_end_completes_nothing() -> None:
    scanner = WIKI.scanner()
    for opened in (b"[[a", b"[[a|b]", b"[", b"<!-- ", b"<nowiki>", b"<now", b"<pre class="):
        assert scanner.feed(opened) == []
        scanner.reset()
        start = scanner.position
        (link,) = scanner.feed(b"[b] [[c]]")
        assert (link.target, link.start, link.end) == ("c", start + 4, start + 9)


def test_what_is_kept_is_bounded() -> None:
    for opened in (b"", b"[[a|", b"<nowiki>", b"<!--", b"<pre ", b"<"):
        scanner = _WikilinkScanner(frozenset())
        scanner.feed(opened)
        for _ in range(2000):
            scanner.feed(b"words in a row, ")
            assert len(scanner._body) <= 4200 and len(scanner._tag) <= 260 and len(scanner._tail) < 20
    assert pairs("[[a|" + "b" * 4000 + "]]") == [("a", "b" * 4000)]
    assert pairs("[[a|" + "b" * 5000 + "]] [[c]]") == [("c", "c")]


# Against wikitextparser


def read_by_wikitextparser(source: str) -> list[tuple[int, str]]:
    """Where each innermost link ends, and its target; those that lead to no document left out, as MediaWiki says."""
    links = wikitextparser.parse(source).wikilinks
    spans = [link.span for link in links]
    found = []
    for link, (start, end) in zip(links, spans, strict=True):
        holds_another = any(start < other_start and other_end < end for other_start, other_end in spans)
        # It gives a target with the comments in it, which are no part of it.
        target = wikitextparser.remove_markup(link.target) if "<!--" in link.target else link.target
        title = _target(target, WIKI.namespaces_without_links)
        if title is not None and not holds_another:
            found.append((end, title))
    return sorted(found)


def read_by_us(source: str) -> list[tuple[int, str]]:
    data = source.encode()
    return [(len(data[: link.end].decode()), link.target) for link in scan(source)]


def test_a_page_is_read_as_wikitextparser_reads_it() -> None:
    source = PAGE.read_text()
    expected = read_by_wikitextparser(source)
    assert read_by_us(source) == expected
    targets = [target for _, target in expected]
    assert len(targets) > 25
    assert {"Greenwood Publishing Group", "logo", "Café", "AT&T", "Category:Lisp (programming language)"} <= set(
        targets
    )


def test_foldoc_as_wikitext_is_read_as_wikitextparser_reads_it() -> None:
    tokenizer, links = as_tokenizer(), 0
    with DocumentCorpus("demo") as corpus:
        for number in range(0, len(corpus), len(corpus) // 700):
            markdown = tokenizer.decode(corpus.read(corpus.graph.node(number)).tolist())
            data, out, done = markdown.encode(), [], 0
            for link in LinkScanner().feed(data):
                out += [data[done : link.start].decode(), f"[[{link.target}|{link.text}]]"]
                done = link.end
            source = "".join([*out, data[done:].decode()])
            if "[[[" in source or "]]]" in source or "<" in source or "{{" in source:
                continue  # where the two differ on purpose, or the markdown is no wikitext
            expected = read_by_wikitextparser(source)
            assert read_by_us(source) == expected, source
            links += len(expected)
    assert links > 150


WORDS = st.sampled_from(
    ["a", "B c", "x_y", "é日", "&amp;", "Help:a", "File:a.png", "Category:b", ":File:c", "C++", "a#b"]
)
LINKS = st.builds(
    lambda target, text: f"[[{target}{text}]]", WORDS, st.sampled_from(["", "|b", "|b c|d", "|''e''", "| "])
)
PLAIN = st.sampled_from(
    ["a", " ", "\n", "== h ==\n", "'''b'''", "* ", "{{t}}", "<br/>", "<b>c</b>", "[http://a.b c]", "<!-- [[no]] -->",
     "é", "<nowiki>[[no]]</nowiki>", "<pre>[[no]]</pre>", "<math>[[no]]</math>", "| ", "a [b] c", "x < y"]
)  # fmt: skip
WITHIN = st.one_of(LINKS, PLAIN)
NESTED = st.one_of(
    WITHIN.map(lambda inner: f"[[File:x.png|thumb|of {inner}]]"),
    WITHIN.map(lambda inner: f"{{{{t|{inner}|b=c}}}}"),
    WITHIN.map(lambda inner: f"<ref>{inner}</ref>"),
)
TEXTS = st.lists(st.one_of(LINKS, PLAIN, NESTED), max_size=10).map(" ".join)


@settings(deadline=None, max_examples=250)
@given(TEXTS)
def test_texts_are_read_as_wikitextparser_reads_them(source: str) -> None:
    assert read_by_us(source) == read_by_wikitextparser(source), source


# Any pieces

FRAGMENTS = st.sampled_from(
    ["[", "]", "[[", "]]", "|", "#", "\n", "<", ">", "/", "<!--", "-->", "--", "<nowiki>", "</nowiki>", "<nowiki/>",
     "<pre ", "</pre>", "a", "é", " ", "&amp;", "File:", ":", "{{", "}}", "[[a|b]]"]
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.lists(FRAGMENTS, max_size=30).map("".join), st.lists(st.integers(0, 10**6), max_size=10))
def test_pieces_make_no_difference(source: str, cuts: list[int]) -> None:
    data = source.encode()
    whole = scan(source)
    for ends in ([cut % (len(data) + 1) for cut in cuts], range(len(data))):
        scanner = link_format("wikilinks").scanner("Some page")
        edges = sorted({0, *ends, len(data)})
        found = [link for start, end in pairwise(edges) for link in scanner.feed(data[start:end])]
        assert found == whole
