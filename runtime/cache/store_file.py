"""Prefilled documents on disk: one safetensors file, good for the weights that computed it and no others.

Tensors: `tokens` int32 [all tokens], `lengths` int64 [documents], `grants` int64 [grants, 4] (document, position, end
or -1, target), `uses` int64 [documents], `cost` float64 [documents], seconds, and for each document whose keys and
values are there `kv.{index}` [layers, 2, kv_heads, length, head_dim]. A document stands after those that it reads.
Cache keys are not in the file; they are computed from what is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ds2ds.cache.document_store import DocumentStore
from ds2ds.documents.content import Content, ContentGrant, make_content
from ds2ds.errors import CacheError
from ds2ds.files import atomic_write

FORMAT = "ds2ds documents 1"
TABLES = {
    "tokens": (torch.int32, 1),
    "lengths": (torch.int64, 1),
    "grants": (torch.int64, 2),
    "uses": (torch.int64, 1),
    "cost": (torch.float64, 1),
}
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}


def save_store(store: DocumentStore, path: Path, weights: str) -> int:
    """Write every document that is shared and computed to its end; returns how many. Prompts are not among them.

    Args:
        weights: digest of the weights that computed it.

    Raises:
        CacheError: the file cannot be written; what was there before is still there.
    """
    kept = [entry for entry in store.shared() if not entry.prompt]
    entries = {e.content: e for e in kept if e.content is not None and e.computed == len(e.content)}
    contents = _dependencies_first(list(entries))
    number = {content.digest: index for index, content in enumerate(contents)}
    grants = [
        (index, grant.position, -1 if grant.end is None else grant.end, number[grant.target.digest])
        for index, content in enumerate(contents)
        for grant in content.grants
    ]
    held = [entries.get(content) for content in contents]
    tensors = {
        "tokens": torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *(content.tokens for content in contents)])),
        "lengths": torch.tensor([len(content) for content in contents], dtype=torch.int64),
        "grants": torch.tensor(grants, dtype=torch.int64).view(-1, 4),
        "uses": torch.tensor([entry.uses if entry else 0 for entry in held], dtype=torch.int64),
        "cost": torch.tensor([entry.cost if entry else 0.0 for entry in held], dtype=torch.float64),
    }
    for index, entry in enumerate(held):
        if entry is not None:
            tensors[f"kv.{index}"] = store.slots(entry).contiguous().cpu()
    try:
        atomic_write(path, lambda file: save_file(tensors, file, metadata={"format": FORMAT, "weights": weights}))
    except (OSError, SafetensorError) as error:
        raise CacheError(f"cannot write {path}: {error}") from error
    return len(entries)


def load_store(store: DocumentStore, path: Path, weights: str, vocab_size: int) -> int:
    """Bring in the documents of a file, the most valuable first, as far as room is free.

    Returns:
        How many of them are in the arena now.

    Raises:
        CacheError: the file is missing or damaged, or is of other weights. Nothing is brought in then.
    """
    with _opened(path) as (file, metadata):
        if metadata.get("weights") != weights:
            raise CacheError(
                f"{path} was computed with other weights than this model's, in another dtype, rounded otherwise "
                "(weights), or under another batch_invariant"
            )
        tables = _read_tables(file, path)
        return _bring_in(store, file, path, tables, _read_contents(tables, path, vocab_size))


def describe(path: Path) -> dict[str, str]:
    """What a file holds, in words.

    Raises:
        CacheError: it is missing, or no file of prefilled documents.
    """
    with _opened(path) as (file, metadata):
        lengths = _read_tables(file, path)["lengths"]
        held = [name for name in file.keys() if name.startswith("kv.")]  # noqa: SIM118 (not a dict)
        shape = file.get_slice(held[0]).get_shape() if held else None
        others = f", and {len(lengths) - len(held):,} that they read" if len(lengths) > len(held) else ""
        return {
            "documents": f"{len(held):,}{others}",
            "tokens": f"{int(lengths.sum()):,}",
            "size": f"{path.stat().st_size / 1e6:,.1f} MB",
            "shape": "nothing" if shape is None else f"{shape[0]} layers, {shape[2]} heads of {shape[4]}",
            "weights": f"sha256 {metadata.get('weights', '')[:16]}",
        }


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    try:
        path.open("rb").close()  # of one that may not be read, safetensors says that it is not there
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CacheError(
                    f"{path} is no file of prefilled documents: `ds2ds cache warm` and `save_cache` write them"
                )
            yield file, metadata
    except FileNotFoundError:
        raise CacheError(f"{path} does not exist") from None
    except (OSError, SafetensorError) as error:
        raise CacheError(f"cannot read {path}: {error}") from error


def _bring_in(store: DocumentStore, file: Any, path: Path, tables: dict[str, Tensor], contents: list[Content]) -> int:
    names = set(file.keys())
    held = [index for index in range(len(contents)) if f"kv.{index}" in names]
    expected = list(store.arena.data.shape)
    for index in held:
        part = file.get_slice(f"kv.{index}")
        expected[3] = len(contents[index])
        if part.get_shape() != expected or part.get_dtype() != DTYPES[store.arena.data.dtype]:
            found = f"{part.get_dtype()} {part.get_shape()}"
            wanted = f"{DTYPES[store.arena.data.dtype]} {expected}"
            raise CacheError(f"{path} is damaged: kv.{index} is {found}, and should be {wanted}")
    uses, cost = tables["uses"].tolist(), tables["cost"].tolist()
    held.sort(key=lambda index: uses[index] * cost[index] / len(contents[index]), reverse=True)
    here = 0
    for index in held:
        if not store.holds(contents[index]):
            values = file.get_tensor(f"kv.{index}")
            entry = store.insert(contents[index], cost[index], uses[index])
            if entry is None:
                continue
            store.slots(entry).copy_(values)
        here += 1
    return here


def _read_tables(file: Any, path: Path) -> dict[str, Tensor]:
    names = set(file.keys())
    tables: dict[str, Tensor] = {}
    for name, (dtype, dimensions) in TABLES.items():
        table = file.get_tensor(name) if name in names else None
        if table is None or table.dtype != dtype or table.dim() != dimensions:
            raise CacheError(f"{path} is damaged: {name} is missing, or is no {dimensions}-dimensional {dtype}")
        tables[name] = table
    return tables


def _read_contents(tables: dict[str, Tensor], path: Path, vocab_size: int) -> list[Content]:
    """All documents of the file, checked."""
    tokens, lengths = tables["tokens"].numpy(), tables["lengths"].tolist()
    fits = sum(lengths) == len(tokens) and min(lengths, default=1) > 0 and tables["grants"].shape[1] == 4
    if not fits or not len(tables["uses"]) == len(tables["cost"]) == len(lengths):
        raise CacheError(f"{path} is damaged: its documents do not add up")
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise CacheError(f"{path} is damaged: it holds token ids outside the model's vocabulary of {vocab_size}")
    of_document: dict[int, list[tuple[int, int, int]]] = {}
    for document, position, end, target in tables["grants"].tolist():
        if not 0 <= target < document < len(lengths) or position < 0 or end < -1:
            raise CacheError(f"{path} is damaged: document {document} cannot read document {target}")
        of_document.setdefault(document, []).append((position, end, target))
    contents: list[Content] = []
    at = 0
    for index, length in enumerate(lengths):
        read = tuple(
            ContentGrant(position, contents[target], None if end < 0 else end)
            for position, end, target in of_document.get(index, [])
        )
        contents.append(make_content(tokens[at : at + length].copy(), read))
        at += length
    return contents


def _dependencies_first(contents: Sequence[Content]) -> list[Content]:
    """These and all that they read, each once, after all that it reads. Equal contents are one."""
    ordered: dict[Content, None] = {}
    known: dict[bytes, Content] = {content.digest: content for content in contents}

    # Not by recursion: a chain of documents may be longer than Python's stack is deep.
    pending = list(reversed(contents))
    while pending:
        content = pending.pop()
        if content in ordered:
            continue
        reads = [known.setdefault(grant.target.digest, grant.target) for grant in content.grants]
        missing = [target for target in reads if target not in ordered]
        if missing:
            pending += [content, *reversed(missing)]
        else:
            ordered[content] = None
    return list(ordered)
