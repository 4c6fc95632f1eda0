"""The documents of a corpus by title, and the links between them, without reading the graph into memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ds2ds.corpus.format import GRAPH_NAME, read_metadata
from ds2ds.corpus.index import Progress, open_index, parse_node
from ds2ds.corpus.names import find_node
from ds2ds.errors import CorpusError

_COLUMNS = "id, title, identifier, shard, offset, length, line_start, line_length"
_PAGE = 4096
_REMEMBERED = 4096
"""Most titles of which is kept what they mean: the same few are linked again and again."""


@dataclass(frozen=True, slots=True)
class Node:
    """One document: its names, and where its tokens and its line in the graph file lie.

    Attributes:
        number: its place in the graph file, from 0.
        title: the raw title ("C++").
        identifier: the normalised title with its hash ("c_f6f87c").
        shard: index into the metadata's shard_filenames.
        offset: of its first token, in bytes from the start of the shard's file.
        length: in tokens.
        line_start, line_length: of its line in the graph file, in bytes.
    """

    number: int
    title: str
    identifier: str
    shard: int
    offset: int
    length: int
    line_start: int
    line_length: int


class GraphIndex:
    """The nodes and edges of `dataset_path`/tokenized_graph.jsonl.

    Nodes come from an SQLite index, built on first use where the corpus has none (or one that does not fit). Edges
    are read from the node's own line. Of documents that share a title or an identifier, the first counts. Safe to
    share between threads and to use after a fork.

    Args:
        progress: told (done, of how many) while an index is built: about a minute per million documents.

    Raises:
        CorpusError: no corpus there, or a malformed one.
    """

    def __init__(self, dataset_path: str | Path, progress: Progress = lambda done, total: None) -> None:
        self.folder = Path(dataset_path)
        self.metadata = read_metadata(self.folder)
        self._graph = self.folder / GRAPH_NAME
        self._database = open_index(self.folder, progress)
        self._found: dict[str, Node | None] = {}
        self._count = self._number(self._database.query("SELECT max(id) + 1 FROM nodes")[0][0])

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        """All raw titles, in the order of the graph file."""
        return (node.title for node in self.nodes())

    def __contains__(self, title: object) -> bool:
        return isinstance(title, str) and self.find(title) is not None

    # The three ways to a node that names.find_node goes.

    def by_title(self, title: str) -> int | None:
        return self._first("SELECT id FROM nodes WHERE title = ? ORDER BY id LIMIT 1", title)

    def by_identifier(self, identifier: str) -> int | None:
        return self._first("SELECT id FROM nodes WHERE identifier = ? ORDER BY id LIMIT 1", identifier)

    def by_key(self, key: str) -> int | None:
        rows = self._database.query("SELECT min(id) FROM nodes WHERE key = ? GROUP BY title LIMIT 2", (key,))
        return self._number(rows[0][0]) if len(rows) == 1 else None

    def _first(self, sql: str, name: str) -> int | None:
        rows = self._database.query(sql, (name,))
        return self._number(rows[0][0]) if rows else None

    def _number(self, found: object) -> int:
        if not isinstance(found, int) or found < 0:
            raise self._damaged(f"a number in it is {found!r}")
        return found

    def _damaged(self, what: str) -> CorpusError:
        return CorpusError(f"{self._database.path}: damaged, {what}; delete it to have it rebuilt")

    def find(self, title: str) -> Node | None:
        """The document that `title` means, by the rule of ``names.title_variants``, or None."""
        with contextlib.suppress(KeyError):
            return self._found[title]
        number = find_node(self, title)
        node = None if number is None else self._known(number)
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        self._found[title] = node
        return node

    def node(self, number: int) -> Node:
        """The node with this number.

        Raises:
            IndexError: there is none.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"node {number} of {len(self)}")
        return self._known(number)

    def _known(self, number: int) -> Node:
        """The node with this number, which the index has named."""
        rows = self._database.query(f"SELECT {_COLUMNS} FROM nodes WHERE id = ?", (number,))
        if not rows:
            raise self._damaged(f"node {number} is missing")
        for value in rows[0][3:]:
            self._number(value)
        return Node(*rows[0])

    def nodes(self) -> Iterator[Node]:
        """All nodes, in the order of the graph file."""
        sql = f"SELECT {_COLUMNS} FROM nodes WHERE id >= ? ORDER BY id LIMIT {_PAGE}"
        start = 0
        while rows := self._database.query(sql, (start,)):
            yield from (Node(*row) for row in rows)
            start = rows[-1][0] + 1

    def totals(self) -> tuple[int, int]:
        """The number of tokens in all documents, and of edges between them."""
        tokens, edges = self._database.query("SELECT tokens, links FROM totals")[0]
        return tokens, edges

    def most_linked(self, count: int) -> list[str]:
        """The raw titles of the documents that most others link to, most first, ties in the order of the graph file."""
        rows = self._database.query("SELECT title FROM nodes ORDER BY incoming DESC, id LIMIT ?", (count,))
        return [title for (title,) in rows]

    def sizes(self) -> tuple[int, int]:
        """The sizes of the graph file and of its index, in bytes."""
        return self._graph.stat().st_size, self._database.path.stat().st_size

    def _edges(self, title: str, field: str) -> list[str]:
        node = self.find(title)
        if node is None:
            raise CorpusError(f"{self.folder}: no document called {title!r}")
        with self._graph.open("rb") as file:
            file.seek(node.line_start)
            fields = parse_node(file.read(node.line_length), self._graph, node.number + 1)
        if fields["raw_identifier"] != node.title:
            raise CorpusError(f"{self._graph}, line {node.number + 1}: changed since the corpus was opened")
        numbers = ((name, self.by_identifier(name)) for name in fields[field])
        return [name if number is None else self._known(number).title for name, number in numbers]

    def outgoing(self, title: str) -> list[str]:
        """The titles that this document links to, in the order recorded (an unknown one by its identifier).

        Raises:
            CorpusError: no such document.
        """
        return self._edges(title, "outgoing")

    def incoming(self, title: str) -> list[str]:
        """The titles of the documents that link to this one; otherwise as ``outgoing``."""
        return self._edges(title, "incoming")

    def close(self) -> None:
        """Close the index. Closing twice is fine."""
        self._database.close()
        self._found = {}
