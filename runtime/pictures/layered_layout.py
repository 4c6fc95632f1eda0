"""A layered drawing of a graph without cycles: sources left, everything right of what points to it.

Layers by longest path, order within a layer by barycentres (Sugiyama, Tagawa and Toda, 1981), places by least squares:
every node as near to the mean of its neighbours as the order and the room between nodes allow.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

Node = int | tuple[int, int, int]
"""A node, or (source, target, layer): the place where an edge passes a layer."""

SWEEPS = 12
PASS_HEIGHT = 8.0
"""Room for an edge that passes a layer."""


@dataclass(frozen=True)
class Layout:
    """Attributes:
    layer: of each node, 0 for those that nothing points to.
    y: of each node's middle, from 0 on; to the top of the topmost one it is half that one's height.
    passes: for each edge, where it passes the layers between its ends.
    height: of the whole.
    """

    layer: tuple[int, ...]
    y: tuple[float, ...]
    passes: dict[tuple[int, int], tuple[float, ...]]
    height: float


def layered_layout(
    heights: Sequence[float], edges: Sequence[tuple[int, int]], gap: float, weak: Collection[tuple[int, int]] = ()
) -> Layout:
    """Place nodes of these heights.

    Args:
        edges: (source, target), each once, without cycles; the first ones are drawn topmost where all else is equal.
        gap: least room between two nodes of a layer.
        weak: edges that do not draw their ends towards each other.
    """
    layer = _longest_paths(len(heights), edges)
    layers: list[list[Node]] = [[] for _ in range(max(layer) + 1)]
    left: dict[Node, list[Node]] = {}
    right: dict[Node, list[Node]] = {}
    for node in _first_met(len(heights), edges):
        layers[layer[node]].append(node)
        for source, target in edges:
            if source == node:
                way: list[Node] = [node, *((node, target, at) for at in range(layer[node] + 1, layer[target])), target]
                for at, passing in enumerate(way[1:-1], start=layer[node] + 1):
                    layers[at].append(passing)
                for one, other in pairwise(way):
                    right.setdefault(one, []).append(other)
                    left.setdefault(other, []).append(one)
    layers = _ordered(layers, left, right)
    for source, target in weak:
        if layer[target] == layer[source] + 1:
            right[source].remove(target)
            left[target].remove(source)
    y = _placed(layers, left, right, lambda node: heights[node] if isinstance(node, int) else PASS_HEIGHT, gap)
    top = min(y[node] - height / 2 for node, height in enumerate(heights))
    bottom = max(y[node] + height / 2 for node, height in enumerate(heights))
    passes = {
        (source, target): tuple(y[source, target, at] - top for at in range(layer[source] + 1, layer[target]))
        for source, target in edges
    }
    return Layout(tuple(layer), tuple(y[node] - top for node in range(len(heights))), passes, bottom - top)


def _longest_paths(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    layer = [0] * count
    for _ in range(count):
        for source, target in edges:
            layer[target] = max(layer[target], layer[source] + 1)
    return layer


def _first_met(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """All nodes in the order in which a walk along the edges, deep first, meets them."""
    met: dict[int, None] = {}
    targets = {target for _, target in edges}
    stack = [node for node in reversed(range(count)) if node not in targets]
    while stack:
        node = stack.pop()
        if node not in met:
            met[node] = None
            stack.extend(target for source, target in reversed(edges) if source == node)
    return list(met)


def _ordered(layers: list[list[Node]], left: dict[Node, list[Node]], right: dict[Node, list[Node]]) -> list[list[Node]]:
    """The layers' nodes in the order of fewest crossings found by sweeps to the right and to the left."""
    best, fewest = layers, _crossings(layers, right)
    for sweep in range(SWEEPS):
        rightwards = sweep % 2 == 0
        neighbours = left if rightwards else right
        swept = [list(nodes) for nodes in layers]
        for at in range(len(layers)) if rightwards else reversed(range(len(layers))):
            place = {node: index for nodes in swept for index, node in enumerate(nodes)}

            def barycentre(node: Node, place: dict[Node, int] = place) -> float:
                found = neighbours.get(node, [])  # noqa: B023 (used within this sweep only)
                return sum(place[other] for other in found) / len(found) if found else place[node]

            swept[at].sort(key=barycentre)
        layers = swept
        crossings = _crossings(layers, right)
        if crossings < fewest:
            best, fewest = layers, crossings
    return best


def _crossings(layers: Sequence[Sequence[Node]], right: dict[Node, list[Node]]) -> int:
    crossings = 0
    for nodes, following in pairwise(layers):
        place = {node: index for index, node in enumerate(following)}
        seen: list[int] = []
        for node in nodes:
            ends = sorted(place[other] for other in right.get(node, []))
            crossings += sum(len(seen) - bisect_left(seen, end + 1) for end in ends)
            for end in ends:
                insort(seen, end)
    return crossings


def _placed(
    layers: Sequence[Sequence[Node]],
    left: dict[Node, list[Node]],
    right: dict[Node, list[Node]],
    height: Callable[[Node], float],
    gap: float,
) -> dict[Node, float]:
    y: dict[Node, float] = {}
    for nodes in layers:
        total = sum(map(height, nodes)) + gap * (len(nodes) - 1)
        at = -total / 2
        for node in nodes:
            y[node] = at + height(node) / 2
            at += height(node) + gap
    for sweep in range(SWEEPS):
        rightwards = sweep % 2 == 0
        neighbours = left if rightwards else right
        for nodes in layers if rightwards else reversed(layers):
            wanted = []
            for node in nodes:
                found = neighbours.get(node, [])
                wanted.append(sum(y[other] for other in found) / len(found) if found else y[node])
            y.update(zip(nodes, _apart(wanted, [height(node) for node in nodes], gap), strict=True))
    return y


def _apart(wanted: Sequence[float], heights: Sequence[float], gap: float) -> list[float]:
    """Places in the same order, at least `gap` apart, as near as can be to those wanted in the mean of squares.

    By pooling adjacent violators: nodes that would overlap become a block, which lies where its mean wants to be.
    """
    offsets = [0.0]
    for one, other in pairwise(heights):
        offsets.append(offsets[-1] + (one + other) / 2 + gap)
    blocks: list[tuple[float, int]] = []  # sum of wishes, nodes
    for want, offset in zip(wanted, offsets, strict=True):
        block = (want - offset, 1)
        while blocks and blocks[-1][0] / blocks[-1][1] > block[0] / block[1]:
            before = blocks.pop()
            block = (before[0] + block[0], before[1] + block[1])
        blocks.append(block)
    starts = [total / count for total, count in blocks for _ in range(count)]
    return [start + offset for start, offset in zip(starts, offsets, strict=True)]
