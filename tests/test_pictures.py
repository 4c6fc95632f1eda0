"""Results to look at: drawings of link graphs, pages, heat maps. Titles and texts are whatever a model wrote."""

from __future__ import annotations

import base64
import json
import re
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import encode, small_runtime

from ds2ds import AttentionMap, GeneratedDocument, GenerationResult, Grant, link_graph_html, link_graph_svg
from ds2ds.documents.link_formats import LINK_FORMATS
from ds2ds.errors import ConfigError, Ds2dsError
from ds2ds.pictures.layered_layout import _apart, _crossings, layered_layout
from ds2ds.pictures.linked_text import LinkedTexts
from ds2ds.pictures.markup import escape, shorten

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
SVG = "{http://www.w3.org/2000/svg}"

HOSTILE = [
    "</script><script>alert(1)</script>",
    "</style><style>*{display:none}",
    "\"><img src=x onerror='alert(1)'>",
    "' onclick='x",
    "<!-- --><![CDATA[ ]]>&amp;&lt;",
    "نص عربي \u202egnirts desrever\u202c",
    "日本語 🙂 é\u0301",
    "null \x00 bell \x07 escape \x1b[31m",
    "lone \ud800 surrogate",
    "{{ 7 * 7 }} ${x} %s $x^2$",
    "\u2028line\u2029",
    "",
]


def document(title: str, text: str = "", **fields: Any) -> GeneratedDocument:
    values: dict[str, Any] = {"tokens": [1] * max(1, len(text)), "depth": 1, "parent_title": "root", **fields}
    return GeneratedDocument(title, text=text, **values)


def result_of(root_text: str, grants: list[Grant], *others: GeneratedDocument, **fields: Any) -> GenerationResult:
    root = document("root", root_text, is_root=True, depth=0, parent_title=None, grants=grants, **fields)
    return GenerationResult(root, list(others))


def example() -> GenerationResult:
    """root reads A until an eviction, and B; B reads A; C was brought in by A and never read."""
    return result_of(
        "see [the apple](A), then [B](b) and [gone](Nowhere)",
        [Grant(4, "A", 9), Grant(9, "B")],
        document("C", "cherry", source=Path("notes/c.md"), depth=2, parent_title="A"),
        document("A", "apple, [C](C)", source="corpus", truncated=True),
        document("B", "banana [a](A)", grants=[Grant(3, "A")], finish_reason="eos"),
    )


def hostile(text: str) -> GenerationResult:
    title = text or "empty"
    return result_of(f"[x](<A>) {text}", [Grant(3, title)], document(title, f"{text} [y](z)", source="corpus"))


class Elements(HTMLParser):
    """What a browser would make of a page, as far as it matters: elements and their attributes, and texts."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)


def stands_alone(page: str) -> Elements:
    """Fail if anything of the page lies elsewhere, or runs that is not its one script."""
    elements = Elements(page)
    for tag, attributes in elements.found:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "srcset", "action", "xlink:href"), (tag, name)
            if name == "href":
                assert value is not None and re.fullmatch(r"#(d\d+|graph)", value), value
    for style in re.findall(r"<style>(.*?)</style>", page, re.DOTALL):
        assert "@import" not in style and "url(" not in style
    assert "default-src 'none'" in page
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    if scripts:
        import hashlib

        digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
        assert len(scripts) == 1 and f"script-src 'sha256-{digest}'" in page
    return elements


def parsed(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return root


def of_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if name in (element.get("class") or "").split()]


# The drawing


def test_every_document_is_a_card_and_who_reads_whom_a_line() -> None:
    drawing = parsed(link_graph_svg(example()))
    cards = {next(card.iter(f"{SVG}title")).text: card for card in of_class(drawing, "card")}
    assert [title.partition(" (")[0] for title in cards if title] == ["root", "B", "A", "C"]  # left to right
    assert any("truncated" in title for title in cards if title)
    lines = {title.text: line for line in of_class(drawing, "from0") for title in line.iter(f"{SVG}title")}
    assert lines.keys() == {"root reads A: tokens 4 to 8", "root reads B: from token 9 on"}
    assert "evicted" in (lines["root reads A: tokens 4 to 8"].get("class") or "")
    unread = [line for line in of_class(drawing, "unread") if line.get("class", "").startswith("line unread from")]
    assert [next(line.iter(f"{SVG}title")).text for line in unread] == [
        "A brought in C, which left the view before any token read it"
    ]
    labels = {label.text for label in of_class(drawing, "label")}
    assert labels == {"the apple @4–8", "@9", "@3"}


def test_sources_have_their_colours_and_unknown_ones_share_one() -> None:
    result = example()
    result.auxiliary_documents[2].source = "supplied"  # one that this version does not know
    drawing = parsed(link_graph_svg(result))
    kinds = [card.get("class", "").split()[1] for card in of_class(drawing, "card")]
    assert kinds == ["generated", "other", "corpus", "other"]
    legend = {text.text for text in of_class(drawing, "legend")}
    assert {"generated", "corpus", "from elsewhere", "truncated", "brought in, never read"} <= legend
    assert "c.md" in {text.text for text in of_class(parsed(link_graph_svg(example())), "legend")}


def test_the_legend_tells_only_of_what_is_there() -> None:
    drawing = parsed(link_graph_svg(result_of("alone", [])))
    assert [text.text for text in of_class(drawing, "legend")] == ["generated"]
    assert len(of_class(drawing, "card")) == 1 and not of_class(drawing, "line")


def test_equal_results_give_equal_bytes() -> None:
    assert link_graph_svg(example()) == link_graph_svg(example())
    assert link_graph_html(example()) == link_graph_html(example())


def test_long_titles_are_shortened_and_whole_in_the_tooltip() -> None:
    title = "An exceedingly long title of a document"
    drawing = parsed(link_graph_svg(result_of("x", [Grant(0, title)], document(title))))
    assert "An exceedingly long tit…" not in "".join(drawing.itertext()).replace(title, "")
    names = [name.text or "" for name in of_class(drawing, "name")]
    assert any(name.endswith("…") and title.startswith(name[:-1]) for name in names)
    assert any(title in (tip.text or "") for tip in drawing.iter(f"{SVG}title"))


def test_documents_of_text_alone_can_be_drawn() -> None:
    result = result_of("x", [Grant(0, "A")], document("A", "apple", tokens=None))
    assert "text only" in link_graph_svg(result) and "apple" in link_graph_html(result)


def test_an_untitled_root_is_not_the_document_of_its_name() -> None:
    result = result_of("[r](root)", [Grant(3, "root")], document("root", "the other"))
    drawing = parsed(link_graph_svg(result))
    assert len(of_class(drawing, "card")) == 2 and len(of_class(drawing, "reads")) == 2  # one of the legend
    assert '<a class="read" href="#d1">' in link_graph_html(result)


def test_graphs_that_cannot_be() -> None:
    for draw in (link_graph_svg, link_graph_html):
        with pytest.raises(ConfigError, match="document 'root' reads 'B', but the result has none"):
            draw(result_of("x", [Grant(0, "B")], document("A")))
        with pytest.raises(ConfigError, match="2 of the result's documents"):
            draw(result_of("x", [Grant(0, "A")], document("A"), document("A")))
        with pytest.raises(ConfigError, match="reaches itself"):
            a, b = document("A", grants=[Grant(0, "B")]), document("B", grants=[Grant(0, "A")])
            draw(result_of("x", [Grant(0, "A")], a, b))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_titles_and_texts_are_but_text(text: str) -> None:
    drawing = parsed(link_graph_svg(hostile(text)))
    assert len(of_class(drawing, "card")) == 2
    page = link_graph_html(hostile(text))
    page.encode()  # whatever came in can be written
    elements, plain = stands_alone(page), stands_alone(link_graph_html(hostile("plain")))
    assert elements.count("script") == 0 and elements.count("style") == 2
    assert [tag for tag, _ in elements.found] == [tag for tag, _ in plain.found]


# The page of the drawing


def test_the_page_shows_every_document_with_its_links() -> None:
    page = link_graph_html(example())
    elements = stands_alone(page)
    assert elements.count("article") == 4 and elements.count("svg") == 1 and elements.count("script") == 0
    ids = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    targets = [attributes.get("href") for tag, attributes in elements.found if tag == "a"]
    assert all(target is not None and target[1:] in ids for target in targets)
    # Documents: 0 root, 1 C, 2 A, 3 B. A link that is read, one that is not, one to nowhere.
    assert '<a class="read" href="#d2"><span class="syntax">[</span>the apple<span class="syntax">](A)' in page
    assert '<a href="#d1" title="this document does not read it">' in page
    assert '<span class="nowhere" title="leads to no document of this result">' in page
    assert 'see <a class="read"' in page and ", then " in page
    assert '<a href="#d2"><bdi>A</bdi></a> <small>tokens 4 to 8</small>' in page
    assert "Brought in, and not read, by" in page


def test_text_in_a_page_is_the_document_s(text: str = "é [日本](A (b)) & <b>") -> None:
    result = result_of(text, [Grant(2, "A (b)")], document("A (b)"))
    shown = re.search(r'<div class="text" dir="auto">(.*?)</div>', link_graph_html(result), re.DOTALL)
    assert shown is not None and "".join(Elements(shown[1]).texts) == text


# The layout


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[float], list[tuple[int, int]]]:
    count = draw(st.integers(1, 14))
    pairs = [(source, target) for target in range(count) for source in range(target)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=25)) if pairs else []
    return draw(st.lists(st.sampled_from([10.0, 26.0, 60.0]), min_size=count, max_size=count)), edges


@QUICK
@given(graphs())
def test_what_is_read_lies_right_of_its_reader_and_nothing_overlaps(
    graph: tuple[list[float], list[tuple[int, int]]],
) -> None:
    heights, edges = graph
    layout = layered_layout(heights, edges, 12.0, edges[::3])
    for source, target in edges:
        assert layout.layer[source] < layout.layer[target]
        assert len(layout.passes[source, target]) == layout.layer[target] - layout.layer[source] - 1
    for one in range(len(heights)):
        assert layout.y[one] - heights[one] / 2 > -1e-9 and layout.y[one] + heights[one] / 2 < layout.height + 1e-9
        for other in range(one):
            if layout.layer[one] == layout.layer[other]:
                assert abs(layout.y[one] - layout.y[other]) > (heights[one] + heights[other]) / 2 + 12 - 1e-6
    assert layered_layout(heights, edges, 12.0, edges[::3]) == layout


def test_crossings_are_undone() -> None:
    """0 reads 1, 2, 3; each of these one leaf, given in the opposite order."""
    layout = layered_layout([20.0] * 7, [(0, 1), (0, 2), (0, 3), (3, 4), (2, 5), (1, 6)], 10.0)
    assert layout.layer == (0, 1, 1, 1, 2, 2, 2)
    assert sorted((1, 2, 3), key=lambda node: layout.y[node]) == [
        {4: 3, 5: 2, 6: 1}[leaf] for leaf in sorted((4, 5, 6), key=lambda node: layout.y[node])
    ]
    assert layout.y[0] == pytest.approx(layout.y[2])  # in the middle of what it reads
    # What a walk meets first is not always best: 1 and 3 read 4, 2 between them reads 5.
    layout = layered_layout([20.0] * 6, [(0, 1), (0, 2), (0, 3), (1, 4), (2, 5), (3, 4)], 10.0)
    assert (layout.y[4] < layout.y[5]) == (max(layout.y[1], layout.y[3]) < layout.y[2])
    assert (layout.y[4] > layout.y[5]) == (min(layout.y[1], layout.y[3]) > layout.y[2])
    assert _crossings([[0, 1], [2, 3]], {0: [3], 1: [2]}) == 1
    assert _crossings([[0, 1], [2, 3]], {0: [2, 3], 1: [2, 3]}) == 1
    assert _crossings([[0, 1], [2, 3]], {0: [2], 1: [2, 3]}) == 0


def test_weak_edges_draw_nothing_towards_each_other() -> None:
    edges = [(0, 1), (0, 2), (0, 3)]
    assert layered_layout([20.0] * 4, edges, 10.0, edges[1:]).y[0] == 10  # beside 1, which is topmost
    assert layered_layout([20.0] * 4, edges, 10.0).y[0] == 40  # in the middle of all three


@QUICK
@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(1, 50)), min_size=1, max_size=8), st.randoms())
def test_places_are_as_near_as_can_be_to_those_wanted(nodes: list[tuple[float, float]], random: Any) -> None:
    wanted, heights = [want for want, _ in nodes], [height for _, height in nodes]

    def fits(places: list[float], slack: float = 0.0) -> bool:
        return all(
            other - one >= (above + below) / 2 + 5 - slack
            for one, other, above, below in zip(places, places[1:], heights, heights[1:], strict=False)
        )

    def cost(places: list[float]) -> float:
        return sum((place - want) ** 2 for place, want in zip(places, wanted, strict=True))

    placed = _apart(wanted, heights, 5.0)
    assert fits(placed, slack=1e-6)
    for _ in range(30):  # the best of a convex set: no small step from it is better
        moved = [place + random.uniform(-1, 1) for place in placed]
        assert not fits(moved) or cost(moved) >= cost(placed) - 1e-6


def test_sixty_documents(n: int = 60) -> None:
    others = [document(f"D{i}", grants=[Grant(1, f"D{i // 2}")] if i > 1 else []) for i in range(n)]
    result = result_of("x", [Grant(i, f"D{i}") for i in range(n // 2, n)], *others)
    assert len(of_class(parsed(link_graph_svg(result)), "card")) == n + 1
    stands_alone(link_graph_html(result))


# Markup


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("abcdefgh", "abcdefgh"),
        ("abcdefghi", "abcdefg…"),
        ("日本語日本", "日本語…"),
        ("a \n\t b", "a b"),
        ("", ""),
        ("e\u0301" * 8, "e\u0301" * 8),
    ],
)
def test_shorten(text: str, shown: str) -> None:
    assert shorten(text, 8) == shown


@QUICK
@given(st.text())
def test_escaped_text_is_xml_and_comes_back(text: str) -> None:
    made = ElementTree.fromstring(f'<a b="{escape(text)}">{escape(text)}</a>')
    plain = re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\u202a-\u202e\u2066-\u2069]", "\ufffd", text)
    assert (made.text or "") == plain.replace("\r\n", "\n").replace("\r", "\n")
    assert made.get("b") == re.sub(r"[\t\n\r]", " ", plain.replace("\r\n", "\n"))


# The page of attention


@pytest.fixture(scope="module")
def made() -> AttentionMap:
    """Of a root that reads A, then A and B, then B."""
    others = [document("A", tokens=encode("apple")), document("B", tokens=encode("banana"))]
    root = result_of("", [Grant(5, "A", 14), Grant(9, "B")], *others, tokens=encode("see [a](A), é\n日 end"))
    return small_runtime().attention(root, tokens=range(3, 18), per_token=True)


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    values: dict[str, Any] = json.loads(found[1])
    return values


def unpacked(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=dtype)


def test_the_page_holds_the_arrays_in_few_bytes(made: AttentionMap) -> None:
    data = data_of(made.to_html())
    n, layers, heads, documents = made.shares.shape
    assert (data["rows"], data["shape"]) == (made.tokens.tolist(), [layers, heads]) == (data["rows"], data["kept"])
    assert [[one == "1" for one in row] for row in data["inView"]] == made.in_view.tolist()
    shares = unpacked(data["shares"], "<u2").reshape(n, layers, heads, documents) / 65535
    np.testing.assert_allclose(shares, made.shares, atol=1 / 65535)
    assert made.weights is not None
    for text, weights in zip(data["weights"], made.weights, strict=True):
        found = (unpacked(text, "u1").reshape(weights.shape) / 255.0) ** 2
        np.testing.assert_allclose(found, weights, atol=1 / 255)
        np.testing.assert_allclose(np.sqrt(found), np.sqrt(weights), atol=0.51 / 255)


def test_the_page_stands_alone_and_has_every_token(made: AttentionMap, tmp_path: Path) -> None:
    page = made.to_html(tmp_path / "new" / "attention.html")
    assert (tmp_path / "new" / "attention.html").read_text(encoding="utf-8") == page
    elements = stands_alone(page)
    assert elements.count("section") == 4 and elements.count("script") == 2
    options = [attributes for tag, attributes in elements.found if attributes.get("role") == "option"]
    assert len(options) == len(made.tokens)
    for number, texts in enumerate(made.token_texts):
        part = re.search(rf'id="d{number}">.*?</h2>\n<div[^>]*>(.*?)</div>', page, re.DOTALL)
        assert part is not None and "".join(Elements(part[1]).texts) == "".join(texts)
        assert part[1].count("<span") == len(texts)
    assert page == made.to_html()


def test_the_script_finds_what_it_looks_for(made: AttentionMap) -> None:
    page = made.to_html()
    ids = {attributes["id"] for _, attributes in Elements(page).found if "id" in attributes}
    wanted = set(re.findall(r'byId\("(\w+)"\)', page))
    assert len(wanted) > 5 and wanted <= ids


def test_a_page_of_one_document_has_no_others() -> None:
    page = small_runtime().attention(result_of("", [], tokens=encode("alone")), per_token=True).to_html()
    assert '<main class="alone">' in page and 'class="linked"' not in page


def test_what_is_too_much_for_a_page_is_put_in_as_means(made: AttentionMap) -> None:
    assert made.weights is not None
    whole = sum(weights.size for weights in made.weights)
    for most, kept, note in ((whole, [2, 2], None), (whole - 1, [2, 1], "over heads"), (whole // 4, [1, 1], "layers")):
        page = made.to_html(max_bytes=most)
        data = data_of(page)
        assert data["kept"] == kept
        assert note is None or note in page
        axes = tuple(axis for axis, count in ((1, kept[0]), (2, kept[1])) if count == 1)
        expected = made.weights[1].mean(axes, keepdims=True) if axes else made.weights[1]
        found = (unpacked(data["weights"][1], "u1").reshape(expected.shape) / 255.0) ** 2
        np.testing.assert_allclose(found, expected, atol=1 / 255)
        assert ('id="head"' in page, 'id="layer"' in page) == (kept[1] > 1, kept[0] > 1)
    with pytest.raises(ConfigError, match=rf"hold {whole // 4:,} bytes of weights, more than max_bytes 10"):
        made.to_html(max_bytes=10)


def test_a_page_needs_the_weights(made: AttentionMap, tmp_path: Path) -> None:
    bare = AttentionMap(made.titles, made.token_texts, made.tokens, made.shares, made.in_view)
    with pytest.raises(ConfigError, match="per_token=True"):
        bare.to_html(tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_tokens_and_titles_are_but_text_there_too(made: AttentionMap, text: str) -> None:
    texts = (tuple(text for _ in made.token_texts[0]), *made.token_texts[1:])
    shown = AttentionMap((text, *made.titles[1:]), texts, made.tokens, made.shares, made.in_view, made.weights)
    elements = stands_alone(shown.to_html())
    assert elements.count("script") == 2 and elements.count("style") == 1
    assert elements.count("section") == 4 and elements.count("li") == 0


# The heat map


def test_heat_maps(made: AttentionMap, tmp_path: Path) -> None:
    for name in ("a.png", "b.PNG"):
        made.heatmap(tmp_path / name, layers=0, heads=[1])
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    made.heatmap(tmp_path / "a.svg")
    made.heatmap(tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    drawn = "".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())
    for label in ("layer", "head", "share", "tokens 3 to 17", "in view of 9", "é", "↵", "日"):
        assert label in drawn
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.PNG", "a.svg", "b.svg"}


@pytest.mark.filterwarnings("error")
def test_hostile_tokens_and_titles_in_a_heat_map(made: AttentionMap, tmp_path: Path) -> None:
    texts = (tuple(HOSTILE) * 3, *made.token_texts[1:])
    titles = ("\n".join(HOSTILE), HOSTILE[-4], HOSTILE[-3])
    shown = AttentionMap(titles, texts, made.tokens, made.shares, made.in_view)
    for name in ("map.png", "map.svg"):
        shown.heatmap(tmp_path / name)
    ElementTree.parse(tmp_path / "map.svg")


def test_many_tokens_go_into_strips(tmp_path: Path) -> None:
    result = result_of("", [], tokens=encode("abcdefghij" * 15))
    small_runtime().attention(result).heatmap(tmp_path / "a.svg")
    drawn = "".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())
    assert all(f"tokens {first} to {first + 49}" in drawn for first in (0, 50, 100))


def test_heat_maps_that_cannot_be(made: AttentionMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"a \.png or \.svg file, got '.*a\.pdf'"):
        made.heatmap(tmp_path / "a.pdf")
    with pytest.raises(ConfigError, match=r"layers must be in \[0, 2\)"):
        made.heatmap(tmp_path / "a.png", layers=2)
    (tmp_path / "file").write_text("mine")
    for write in (made.heatmap, made.to_html):
        with pytest.raises(Ds2dsError, match="cannot write"):
            write(tmp_path / "file" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Ds2dsError, match=r"pip install 'ds2ds\[pictures\]'"):
        made.heatmap(tmp_path / "a.png")
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_a_map_read_from_a_file_gives_the_same_page(made: AttentionMap, tmp_path: Path) -> None:
    made.to_npz(tmp_path / "map.npz")
    assert AttentionMap.from_npz(tmp_path / "map.npz").to_html() == made.to_html()


def test_a_link_whose_target_was_found_by_another_title_leads_there() -> None:
    document = GeneratedDocument("compiler", tokens=[3], text="c", source="corpus", depth=1, parent_title="root")
    grants = [Grant(2, "compiler", None, "compilers", "edit", 0.9)]
    root = GeneratedDocument("root", tokens=[1, 2], text="[some](compilers) [x](y)", is_root=True, grants=grants)
    texts = LinkedTexts(GenerationResult(root, [document]))
    assert [(piece.text, piece.target) for piece in texts.pieces(0) if piece.link] == [
        ("some", 1),
        ("x", None),
    ]
    assert texts.link_text(0, 1) == "some"


def test_links_of_other_formats_are_marked_in_texts() -> None:
    code = "from pkg import one, two\nimport other\n"
    grants = [Grant(3, "pkg/one.py", None, "pkg/one.py"), Grant(3, "pkg/two/__init__.py", None, "pkg/two/__init__.py")]
    root = GeneratedDocument("main.py", tokens=[1, 2, 3, 4], text=code, is_root=True, grants=grants)
    rest = [
        GeneratedDocument(title, tokens=[1], text="", source="corpus", depth=1, parent_title="main.py")
        for title in ("pkg/one.py", "pkg/two/__init__.py")
    ]
    result = GenerationResult(root, rest, link_format=LINK_FORMATS["python"])
    texts = LinkedTexts(result)
    assert [(piece.text, piece.target) for piece in texts.pieces(0) if piece.link] == [
        ("one", 1),
        ("two", 2),
        ("import other", None),
    ]
    assert "".join(piece.whole for piece in texts.pieces(0)) == code
    assert texts.link_text(0, 2) == "pkg.two"
    page = link_graph_html(result)
    assert 'from pkg import <a class="read" href="#d1">one</a>, <a class="read" href="#d2">two</a>' in page
    assert result.to_dict()["link_format"] == "python"


def test_wikilinks_show_their_words() -> None:
    root = GeneratedDocument("root", tokens=[1], text="[[Ape|apes]] [[Bee]]", is_root=True)
    pieces = [
        piece
        for piece in LinkedTexts(GenerationResult(root, link_format=LINK_FORMATS["wikilinks"])).pieces(0)
        if piece.link
    ]
    assert [(piece.before, piece.text, piece.after) for piece in pieces] == [
        ("[[Ape|", "apes", "]]"),
        ("[[", "Bee", "]]"),
    ]
