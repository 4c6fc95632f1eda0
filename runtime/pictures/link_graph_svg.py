"""The link graph of a result as SVG: the root left, what it reads right of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.cells import cell_len

from ds2ds.documents.generation_result import GenerationResult
from ds2ds.documents.link_graph import Edge, LinkGraph, link_graph
from ds2ds.documents.title_utils import title_key
from ds2ds.pictures.document_card import CARD, OTHER, SOURCES, card_height, draw_card, source_class, source_name
from ds2ds.pictures.layered_layout import Layout, layered_layout
from ds2ds.pictures.linked_text import LinkedTexts
from ds2ds.pictures.markup import asset, escape, shorten

BETWEEN, GAP, MARGIN = 148, 12, 20
"""Room for lines between two layers, between two cards, and around it all."""

LEAST_SCALE = 0.75
"""A page with less room for the drawing lets it be scrolled."""

_Box = tuple[float, float, float, float]


def link_graph_svg(result: GenerationResult) -> str:
    """The documents of a result and who reads whom, as an SVG image that needs nothing else.

    A card's height tells how many tokens it has, its colour where it comes from. An arrow says from which token on
    its reader reads the document, dashed if only up to an eviction; a dotted line, that a link brought a document in
    which left the view before any token read it. Equal results give equal bytes.

    Raises:
        ConfigError: a grant names no document of the result, or a document reaches itself.
    """
    return draw_link_graph(result, lambda index: None)


def draw_link_graph(result: GenerationResult, address: Callable[[int], str | None]) -> str:
    """`link_graph_svg`, each card a link to where `address` says its document is, if anywhere."""
    drawing = _Drawing(result)
    layout = drawing.layout
    width = 2 * MARGIN + CARD + max(layout.layer) * (CARD + BETWEEN)
    legend, height = drawing.legend(), 2 * MARGIN + layout.height
    width = max(width, 2 * MARGIN + sum(wide for _, wide in legend))
    keys, at = [], MARGIN
    for key, wide in legend:
        keys.append(f'<g transform="translate({at},{height + 6:.1f})">{key}</g>')
        at += wide
    title = f"Link graph of {result.root_document.title}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="link-graph" width="{width}" height="{height + 34:.0f}" '
        f'viewBox="0 0 {width} {height + 34:.0f}" style="min-width: {width * LEAST_SCALE:.0f}px" role="group" '
        f'aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        f"<style>{asset('link_graph.css')}</style>",
        '<defs><marker id="link-graph-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'markerUnits="userSpaceOnUse" orient="auto"><path class="arrow" d="M0 .5 8 4 0 7.5 2 4z"/></marker></defs>',
        '<rect class="paper" width="100%" height="100%"/>',
        *drawing.lines(),
        *(drawing.card(index, address(index)) for index in drawing.reading_order()),
        *keys,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


@dataclass(frozen=True)
class _Line:
    """One arrow: all grants of one document to another, or, with none, that the one brought in the other."""

    source: int
    target: int
    grants: tuple[Edge, ...]

    @property
    def style(self) -> str:
        if not self.grants:
            return "unread"
        return "evicted" if self.grants[-1].end is not None else "reads"


class _Drawing:
    def __init__(self, result: GenerationResult) -> None:
        self.documents = result.get_all_documents()
        self.texts = LinkedTexts(result)
        self.lines_drawn = _lines(link_graph(result))
        self.read = {0} | {line.target for line in self.lines_drawn if line.grants}
        most = max(len(document.tokens or ()) for document in self.documents) or 1
        self.heights = [card_height(one, most, small=i not in self.read) for i, one in enumerate(self.documents)]
        edges = [(line.source, line.target) for line in self.lines_drawn]
        unread = {(line.source, line.target) for line in self.lines_drawn if not line.grants}
        self.layout: Layout = layered_layout(self.heights, edges, GAP, unread)
        self.labels: list[_Box] = []
        self.outgoing = self._ports(lambda line: line.source, lambda line: line.target, 0)
        self.incoming = self._ports(lambda line: line.target, lambda line: line.source, -1)

    def reading_order(self) -> list[int]:
        """Left to right, top to bottom: the order in which the keyboard goes through them."""
        return sorted(range(len(self.documents)), key=lambda index: (self.layout.layer[index], self.layout.y[index]))

    def card(self, index: int, address: str | None) -> str:
        x = MARGIN + self.layout.layer[index] * (CARD + BETWEEN)
        y = MARGIN + self.layout.y[index] - self.heights[index] / 2
        drawn = draw_card(self.documents[index], self.heights[index], small=index not in self.read)
        name, to = ("g", "") if address is None else ("a", f' href="{escape(address)}"')
        kind = f"card {source_class(self.documents[index])} n{index}"
        kind += " root" * (index == 0) + " small" * (index not in self.read)
        return f'<{name} class="{kind}" transform="translate({x},{y:.1f})"{to}>{drawn}</{name}>'

    def lines(self) -> list[str]:
        drawn = []
        for line in sorted(self.lines_drawn, key=lambda line: ("reads", "evicted", "unread").index(line.style)):
            points = self._points(line)
            way = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
            for number, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
                bend = (x1 - x0) / 2
                way.append(
                    f"H{x1:.1f}"
                    if number % 2
                    else f"C{x0 + bend:.1f} {y0:.1f} {x1 - bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
                )
            arrow = "" if line.style == "unread" else ' marker-end="url(#link-graph-arrow)"'
            drawn.append(
                f'<g class="line {line.style} from{line.source}"><title>{escape(self._told(line))}</title>'
                f'<path class="way" d="{" ".join(way)}"{arrow}/>{self._label(line, points)}</g>'
            )
        return drawn[::-1]  # what matters most had the choice of its label's place, and is above the others

    def legend(self) -> list[tuple[str, int]]:
        """The keys to what is in the drawing, each with the room it takes."""
        keys = []
        for source in (*SOURCES, OTHER):
            names = sorted({source_name(one) for one in self.documents if source_class(one) == source})
            if names:
                name = names[0] if len(names) == 1 else "from elsewhere"
                keys.append((f'<rect class="key {source}" y="-9" width="11" height="11"/>', 17, name))
        styles = {line.style for line in self.lines_drawn}
        for style, name in (
            ("reads", "reads, from token @ on"),
            ("evicted", "reads until evicted"),
            ("unread", "brought in, never read"),
        ):
            if style in styles:
                keys.append((f'<g class="line {style}"><path class="way" d="M0-4H26"/></g>', 32, name))
        if any(document.truncated for document in self.documents):
            keys.append(('<path class="torn" d="M0-12H18V-1l-3 3-3-3-3 3-3-3-3 3-3-3z"/>', 24, "truncated"))
        return [
            (f'{mark}<text class="legend" x="{indent}">{escape(shorten(name, 30))}</text>', indent + 7 * len(name) + 16)
            for mark, indent, name in keys
        ]

    def _points(self, line: _Line) -> list[tuple[float, float]]:
        """Where the line leaves its source, enters and leaves each layer that it passes, and ends."""
        layer = self.layout.layer[line.source]
        left = MARGIN + layer * (CARD + BETWEEN)
        points = [(left + CARD, self.outgoing[line])]
        for y in self.layout.passes[line.source, line.target]:
            left += CARD + BETWEEN
            points += [(left, MARGIN + y), (left + CARD, MARGIN + y)]
        return [*points, (left + CARD + BETWEEN, self.incoming[line])]

    def _ports(self, end: Callable[[_Line], int], other: Callable[[_Line], int], nearest: int) -> dict[_Line, float]:
        """At which height each line touches a card: spread over its side, in the order of where they come from."""

        def towards(line: _Line, far: int) -> float:
            passes = self.layout.passes[line.source, line.target]
            return passes[nearest] if passes else self.layout.y[far]

        touching: dict[int, list[_Line]] = defaultdict(list)
        for line in self.lines_drawn:
            touching[end(line)].append(line)
        ports = {}
        for index, lines in touching.items():
            lines.sort(key=lambda line: towards(line, other(line)))
            room = self.heights[index] - 12
            step = min(13.0, room / len(lines))
            first = MARGIN + self.layout.y[index] - step * (len(lines) - 1) / 2
            ports.update({line: first + step * number for number, line in enumerate(lines)})
        return ports

    def _label(self, line: _Line, points: Sequence[tuple[float, float]]) -> str:
        """The line's label where it covers no other; where there is no such place, its tooltip must do."""
        if not line.grants:
            return ""
        where = ", ".join(_span(grant) for grant in line.grants)
        text = self.texts.link_text(line.source, line.target)
        if text is not None and title_key(text) != title_key(self.documents[line.target].title):
            where = f"{shorten(text, max(6, 21 - len(where)))} {where}"
        label = shorten(where, 23)
        wide = 6.2 * cell_len(label)
        # First at the end that fewer lines share, and on the side from which the line does not come.
        at_source = sum(other.source == line.source for other in self.lines_drawn)
        at_target = sum(other.target == line.target for other in self.lines_drawn)
        for end in (True, False) if at_target <= at_source else (False, True):
            (x, y), (_, beyond) = (points[-1], points[-2]) if end else (points[0], points[1])
            left = x - 10 - wide if end else x + 5
            for down in (13, -4) if beyond < y - 8 else (-4, 13):
                box = (left, y + down - 10, left + wide, y + down + 2)
                if not any(_overlap(box, other) for other in self.labels):
                    self.labels.append(box)
                    place = f'x="{x - 10:.1f}" text-anchor="end"' if end else f'x="{left:.1f}"'
                    return f'<text class="label" y="{y + down:.1f}" {place}>{escape(label)}</text>'
        return ""

    def _told(self, line: _Line) -> str:
        source, target = (self.documents[index].title for index in (line.source, line.target))
        if not line.grants:
            return f"{source} brought in {target}, which left the view before any token read it"
        spans = "; ".join(told_span(grant) for grant in line.grants)
        return f"{source} reads {target}: {spans}"


def _lines(graph: LinkGraph) -> list[_Line]:
    grants: dict[tuple[int, int], list[Edge]] = {}
    for edge in graph.edges:
        grants.setdefault((edge.source, edge.target), []).append(edge)
    read = {target for _, target in grants}
    lines = [_Line(*ends, tuple(edges)) for ends, edges in grants.items()]
    lines += [
        _Line(parent, index, ())
        for index, parent in enumerate(graph.parents)
        if parent is not None and index not in read
    ]
    return lines


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _span(edge: Edge) -> str:
    return f"@{edge.position}" if edge.end is None else f"@{edge.position}–{edge.end - 1}"


def told_span(edge: Edge) -> str:
    """Which tokens read a document, in words."""
    return f"from token {edge.position} on" if edge.end is None else f"tokens {edge.position} to {edge.end - 1}"
