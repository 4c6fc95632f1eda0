"""A result as a graph: which of its documents reads which, by their places in the result."""

from __future__ import annotations

from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from ds2ds.documents.generation_result import GenerationResult
from ds2ds.errors import ConfigError


@dataclass(frozen=True)
class Edge:
    """From token `position` on, up to `end` (None: to its last), document `source` reads all of `target`.

    Documents are told by their index in `GenerationResult.get_all_documents()`: 0 is the root.
    """

    source: int
    target: int
    position: int
    end: int | None = None


@dataclass(frozen=True)
class LinkGraph:
    """Attributes:
    edges: every grant, by document, in the order in which it was given.
    parents: for each document the one whose link brought it in; None for the root.
    order: the documents, each after all that it reads or brought in.
    """

    edges: tuple[Edge, ...]
    parents: tuple[int | None, ...]
    order: tuple[int, ...]


def link_graph(result: GenerationResult) -> LinkGraph:
    """The graph of a result, whose grants and parents are by title.

    Raises:
        ConfigError: a title is not, or more than once, among the documents that a grant may mean; or a document
            reaches itself.
    """
    documents = result.get_all_documents()
    # An untitled root may share its name with a document, but is never granted (S2).
    by_title: dict[str, list[int]] = {}
    for index, document in enumerate(documents[1:], start=1):
        by_title.setdefault(document.title, []).append(index)

    def find(title: str, reader: str) -> int:
        found = by_title.get(title, [])
        if len(found) != 1:
            many = f"{len(found)} of the result's documents have that title" if found else "the result has none"
            raise ConfigError(f"document {reader!r} reads {title!r}, but {many}")
        return found[0]

    edges = tuple(
        Edge(index, find(grant.title, document.title), grant.position, grant.end)
        for index, document in enumerate(documents)
        for grant in document.grants
    )
    parents: list[int | None] = [None]
    for document in documents[1:]:
        parents.append(0 if document.depth <= 1 else by_title.get(document.parent_title or "", [0])[0])
    below: dict[int, list[int]] = {index: [] for index in range(len(documents))}
    for edge in edges:
        below[edge.source].append(edge.target)
    for index, parent in enumerate(parents):
        if parent is not None:
            below[parent].append(index)
    try:
        order = tuple(TopologicalSorter(below).static_order())
    except CycleError as error:
        titles = " -> ".join(repr(documents[index].title) for index in error.args[1])
        raise ConfigError(f"a document reaches itself, which grants never do: {titles}") from error
    return LinkGraph(edges, tuple(parents), order)
