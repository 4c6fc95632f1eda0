"""DocumentCorpus: the documents that links bring in, by title."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

from ds2ds.corpus.graph_index import GraphIndex, Node
from ds2ds.corpus.index import Progress
from ds2ds.corpus.names import title_variants
from ds2ds.corpus.resolving.making import CorpusResolvers
from ds2ds.corpus.resolving.resolver import Resolver
from ds2ds.corpus.shards import PretokShardedBackend
from ds2ds.errors import CorpusError

DEMO = "demo"
SAMPLE = 32
HEAD = 64


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a glance at a document shows: its first HEAD tokens, its last one, and the largest id. It is not empty."""

    title: str
    head: tuple[int, ...]
    last: int
    largest: int


def corpus_folder(dataset_path: str | Path) -> Path:
    """The folder that a corpus' name means: "demo" is the packaged FOLDOC, anything else a path.

    Raises:
        CorpusError: "demo", where this installation lacks the packaged corpus.
    """
    if dataset_path != DEMO:
        return Path(dataset_path)
    folder = Path(str(files("ds2ds") / "data" / "foldoc"))
    if not folder.is_dir():
        raise CorpusError(f"the packaged corpus is not installed: there is no folder {folder}")
    return folder


class DocumentCorpus:
    """A pretokenized corpus on disk, opened without reading it.

    Args:
        dataset_path: a folder with metadata.json, tokenized_graph.jsonl and shards; or "demo", the packaged FOLDOC
            (a folder of that name is "./demo").
        progress: told (done, of how many) while the corpus is indexed, which happens once, at its first opening.

    Attributes:
        path: the folder.
        metadata: its metadata.json (tokenizer, dtype_str, shard_filenames).
        graph: its GraphIndex.
        shards: its PretokShardedBackend.
        layouts_checked: the layouts with which the documents' own has been compared (``generation.pairing``).

    Safe to share between threads and to use after a fork. After ``close`` every look-up raises CorpusError.

    Raises:
        CorpusError: no corpus there, or a malformed one: names the file and the reason.
    """

    def __init__(self, dataset_path: str | Path, progress: Progress = lambda done, total: None) -> None:
        self.path = corpus_folder(dataset_path)
        self.graph = GraphIndex(self.path, progress)
        self.metadata = self.graph.metadata
        self.shards = PretokShardedBackend(self.path, self.metadata.shard_filenames, self.metadata.dtype_str)
        self._resolvers = CorpusResolvers()
        self.layouts_checked: set[tuple[str, int, str]] = set()

    def __len__(self) -> int:
        return len(self.graph)

    def __contains__(self, title: object) -> bool:
        return title in self.graph

    def titles(self) -> Iterator[str]:
        """All raw titles, in the order of the graph file."""
        return iter(self.graph)

    def title_at(self, number: int) -> str:
        """The raw title at this place, from 0, of the graph file."""
        return self.graph.node(number).title

    def resolver(self, text: str) -> Resolver:
        """The resolver of this corpus that `text` describes, as in "edit:0.9" (see ``resolving.specification``).

        Made once, with all that it keeps.

        Raises:
            ConfigError, CorpusError: it cannot be made.
        """
        return self._resolvers.get(self, text)

    def resolve(self, title: str) -> str | None:
        """The raw title of the document that `title` means (see ``get_title_variants``), or None."""
        node = self.graph.find(title)
        return None if node is None else node.title

    def has_document(self, title: str) -> bool:
        """Whether `title` means a document of this corpus."""
        return title in self.graph

    def get_document(self, title: str) -> npt.NDArray[Any] | None:
        """The tokens of a document's body, or None where `title` means no document.

        Returns:
            [tokens], uint16 or uint32 as stored; a copy, so it may be written to and outlives the corpus.

        Raises:
            CorpusError: the document's shard is missing or damaged, or the corpus is closed.
        """
        node = self.graph.find(title)
        return None if node is None else self.read(node)

    def read(self, node: Node) -> npt.NDArray[Any]:
        """The tokens of a node of this corpus' graph, as ``get_document`` gives them."""
        try:
            return self.shards.read(node.shard, node.offset, node.length)
        except CorpusError as error:
            raise CorpusError(f"document {node.title!r}: {error}") from error

    def most_linked(self, count: int) -> list[str]:
        """The raw titles of the documents that most others link to, most first, ties in the order of the graph file."""
        return self.graph.most_linked(count)

    @cached_property
    def sample(self) -> tuple[Sampled, ...]:
        """A glance at SAMPLE evenly spaced documents (all, if there are no more), the empty ones left out."""
        count = min(SAMPLE, len(self))
        nodes = (self.graph.node(i * len(self) // count) for i in range(count))
        bodies = ((node.title, self.read(node)) for node in nodes)
        return tuple(
            Sampled(title, tuple(body[:HEAD].tolist()), int(body[-1]), int(body.max()))
            for title, body in bodies
            if len(body)
        )

    def get_title_variants(self, title: str) -> list[str]:
        """The names under which `title` is looked for, in order: as it is (a raw title or an identifier), with single
        spaces for runs of spaces and underscores, as an identifier (``create_filename``), and its ``title_key``, which
        folds case and spacing and finds a document only if it is the key of one title alone. Punctuation is never
        folded.
        """
        return title_variants(title)

    def close(self) -> None:
        """Let go of the files. Closing twice is fine."""
        self.graph.close()
        self.shards.close()

    def __enter__(self) -> DocumentCorpus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
