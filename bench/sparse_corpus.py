"""A corpus of any size on little disk: real names, links and offsets, shards that are mostly holes.

A shard is a sparse file: its header, and the first and last tokens of every STRIDE-th document. All others read as 0.
So billions of tokens take the disk of a few, while every offset, and every page fault on what is there, is real.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from corpus_scale import title

from ds2ds.corpus.format import GRAPH_NAME, HEADER_BYTES, Metadata, pack_header, write_metadata
from ds2ds.documents.title_utils import create_filename

STRIDE = 64
EDGE = 64
"""So many tokens at a document's start, and at its end, are written."""

STEPS = (1, 31, 1009, 77_773, 310_019, 599_999, 900_001, 1_200_007, 1_699_991, 2_000_003)
"""Document n links to documents n + step, round the end, as many of these as asked for."""


@dataclass(frozen=True)
class SparseCorpus:
    """The plan: which tokens where. Lengths vary by a factor of three around their mean."""

    documents: int
    tokens: int
    shards: int
    links: int = len(STEPS)
    dtype: str = "uint16"

    @property
    def width(self) -> int:
        """Bytes of a token."""
        return np.dtype(self.dtype).itemsize

    @property
    def per_shard(self) -> int:
        """Documents in a shard; the last one may have fewer."""
        return -(-self.documents // self.shards)

    def length(self, number: int) -> int:
        """In tokens: half the mean to one and a half of it, and the mean on average."""
        mean = self.tokens // self.documents
        return max(1, mean // 2 + number * 7919 % 1024 * mean // 1023)

    def edges(self, number: int) -> list[tuple[int, np.ndarray]]:
        """What of the document is in the file: (index of the first token, tokens) of each part; the rest is a hole."""
        if number % STRIDE:
            return []
        length = self.length(number)
        starts = dict.fromkeys([0, max(0, length - EDGE)])
        tokens = [((np.arange(at, min(at + EDGE, length)) * 31 + number) % 50_000) for at in starts]
        return [(at, part.astype(self.dtype)) for at, part in zip(starts, tokens, strict=True)]

    def body(self, number: int) -> np.ndarray:
        """[length] of `dtype`: what a reader must find."""
        body = np.zeros(self.length(number), dtype=self.dtype)
        for at, tokens in self.edges(number):
            body[at : at + len(tokens)] = tokens
        return body

    def links_of(self, number: int) -> tuple[list[int], list[int]]:
        """The documents that it links to, and those that link to it."""
        steps = [step for step in STEPS[: self.links] if step % self.documents]
        return [(number + s) % self.documents for s in steps], [(number - s) % self.documents for s in steps]

    def shard_members(self) -> Iterator[range]:
        """The documents of each shard."""
        for shard in range(self.shards):
            start = shard * self.per_shard
            yield range(min(start, self.documents), min(start + self.per_shard, self.documents))

    def write(self, folder: Path) -> None:
        """Write metadata, graph and shards; no index, as another program's corpus comes."""
        folder.mkdir(parents=True)
        names = [f"shard_{shard:06d}.bin" for shard in range(self.shards)]
        with (folder / GRAPH_NAME).open("w", encoding="utf-8", buffering=1 << 20) as graph:
            for shard, members in enumerate(self.shard_members()):
                offset = HEADER_BYTES
                with (folder / names[shard]).open("wb") as file:
                    for number in members:
                        for at, tokens in self.edges(number):
                            file.seek(offset + self.width * at)
                            file.write(tokens.tobytes())
                        graph.write(self._node(number, shard, offset))
                        offset += self.width * self.length(number)
                    file.truncate(offset)
                    file.seek(0)
                    file.write(pack_header((offset - HEADER_BYTES) // self.width, self.width))
        write_metadata(folder, Metadata("gpt2", self.dtype, tuple(names)))

    def _node(self, number: int, shard: int, offset: int) -> str:
        outgoing, incoming = self.links_of(number)
        node = {
            "normed_identifier": create_filename(title(number)),
            "raw_identifier": title(number),
            "outgoing": [create_filename(title(target)) for target in outgoing],
            "incoming": [create_filename(title(source)) for source in incoming],
            "tok_shard_idx": shard,
            "tok_offset_bytes": offset,
            "tok_len": self.length(number),
        }
        return json.dumps(node) + "\n"
