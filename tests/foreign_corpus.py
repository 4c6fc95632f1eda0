"""A corpus on disk as another program would write it: straight from the format's description, without an index."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTHS = {"uint16": "H", "uint32": "I"}


def shard_bytes(tokens: Sequence[int], dtype: str = "uint16", **header: int) -> bytes:
    """A shard; `header` overrides magic, version, count or width."""
    width = struct.calcsize(WIDTHS[dtype])
    fields = {"magic": 11041999, "version": 1, "count": len(tokens), "width": width} | header
    head = struct.pack("<4i", *(fields[name] for name in ("magic", "version", "count", "width")))
    return head.ljust(1024, b"\0") + struct.pack(f"<{len(tokens)}{WIDTHS[dtype]}", *tokens)


def write_foreign_corpus(
    folder: Path,
    documents: Mapping[str, Sequence[int]],
    links: Mapping[str, Sequence[str]] | None = None,
    dtype: str = "uint16",
    documents_per_shard: int = 2,
    identifier: Any = lambda title: f"id:{title}",
) -> Path:
    """Write `documents` (title to tokens) and `links` (title to titles); identifiers are of the other program's own."""
    links = links or {}
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[int]] = []
    lines = []
    for number, (title, tokens) in enumerate(documents.items()):
        if number % documents_per_shard == 0:
            shards.append([])
        offset = 1024 + len(shards[-1]) * struct.calcsize(WIDTHS[dtype])
        shards[-1].extend(tokens)
        node = {
            "normed_identifier": identifier(title),
            "raw_identifier": title,
            "outgoing": [identifier(target) for target in links.get(title, [])],
            "incoming": [identifier(source) for source, targets in links.items() if title in targets],
            "tok_shard_idx": len(shards) - 1,
            "tok_offset_bytes": offset,
            "tok_len": len(tokens),
        }
        lines.append(json.dumps(node) + "\n")
    names = [f"tokens-{number}.bin" for number in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        (folder / name).write_bytes(shard_bytes(shard, dtype))
    (folder / "tokenized_graph.jsonl").write_text("".join(lines))
    metadata = {"tokenizer": "gpt2", "dtype_str": dtype, "shard_filenames": names}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder
