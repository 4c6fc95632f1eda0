"""The corpus on disk: metadata.json, tokenized_graph.jsonl and the shards' header (DESIGN 5)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ds2ds.errors import CorpusError

METADATA_NAME = "metadata.json"
GRAPH_NAME = "tokenized_graph.jsonl"

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
MAGIC = 11041999
VERSION = 1
MAX_TOKENS = 2**31 - 1  # of a shard: its header counts them in an int32

_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def token_dtype(dtype_str: str, source: Path) -> np.dtype[Any]:
    """The little-endian dtype of a corpus' tokens.

    Raises:
        CorpusError: `dtype_str`, read from `source`, is neither "uint16" nor "uint32".
    """
    if dtype_str not in _DTYPES:
        raise CorpusError(f"{source}: dtype_str must be one of {', '.join(_DTYPES)}, got {dtype_str!r}")
    return _DTYPES[dtype_str]


@dataclass(frozen=True, slots=True)
class Metadata:
    """What metadata.json says: the tokenizer's name, the tokens' dtype, the shards' file names in order, and the format
    of the documents' links (`ds2ds.documents.link_formats`); None: it does not say, as corpora of others do not."""

    tokenizer: str
    dtype_str: str
    shard_filenames: tuple[str, ...]
    link_format: str | None = None


def read_metadata(folder: Path) -> Metadata:
    """Read and check `folder`/metadata.json.

    Raises:
        CorpusError: the folder or one of its two text files is missing, or metadata.json is not as it should be.
    """
    if not folder.exists():
        raise CorpusError(f"no corpus at {folder}: there is no such folder")
    if not folder.is_dir():
        raise CorpusError(f"no corpus at {folder}: it is a file, expected a folder with {METADATA_NAME}")
    path = folder / METADATA_NAME
    missing = [needed.name for needed in (path, folder / GRAPH_NAME) if not needed.is_file()]
    if len(missing) == 2:
        raise CorpusError(
            f"no corpus at {folder}: {METADATA_NAME} is missing; `ds2ds corpus build {folder} OUT` makes one of notes "
            "or sources"
        )
    if missing:
        raise CorpusError(f"no corpus at {folder}: {missing[0]} is missing")
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(fields, dict):
        raise CorpusError(f"{path}: expected a JSON object, got {type(fields).__name__}")
    missing = [name for name in ("tokenizer", "dtype_str", "shard_filenames") if name not in fields]
    if missing:
        raise CorpusError(f"{path}: missing {', '.join(missing)}")
    tokenizer, dtype_str, shards = fields["tokenizer"], fields["dtype_str"], fields["shard_filenames"]
    if not isinstance(tokenizer, str):
        raise CorpusError(f"{path}: tokenizer must be a string, got {tokenizer!r}")
    if not (isinstance(shards, list) and all(isinstance(name, str) for name in shards)):
        raise CorpusError(f"{path}: shard_filenames must be a list of strings, got {shards!r}")
    if not isinstance(dtype_str, str):
        raise CorpusError(f"{path}: dtype_str must be a string, got {dtype_str!r}")
    token_dtype(dtype_str, path)
    links = fields.get("link_format")
    if not isinstance(links, str | None):
        raise CorpusError(f"{path}: link_format must be a string, got {links!r}")
    return Metadata(tokenizer, dtype_str, tuple(shards), links)


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Write `folder`/metadata.json."""
    fields: dict[str, Any] = {
        "tokenizer": metadata.tokenizer,
        "dtype_str": metadata.dtype_str,
        "shard_filenames": list(metadata.shard_filenames),
    }
    if metadata.link_format is not None:
        fields["link_format"] = metadata.link_format
    (folder / METADATA_NAME).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def pack_header(token_count: int, bytes_per_token: int) -> bytes:
    """A shard's first 1,024 bytes.

    Raises:
        CorpusError: more tokens than its int32 can count.
    """
    if token_count > MAX_TOKENS:
        raise CorpusError(f"a shard holds at most {MAX_TOKENS:,} tokens, got {token_count:,}")
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:4] = (MAGIC, VERSION, token_count, bytes_per_token)
    return header.tobytes()


def check_header(path: Path, bytes_per_token: int) -> int:
    """Check a shard's header against its size and the corpus' dtype; return its number of tokens.

    Raises:
        CorpusError: missing file, truncated file, another magic or version, another token size.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError as error:
        raise CorpusError(f"{path}: cannot read this shard ({error.strerror or error})") from error
    if len(head) < HEADER_BYTES:
        raise CorpusError(f"{path}: truncated, {size} bytes hold no header of {HEADER_BYTES}")
    magic, version, count, width = (int(value) for value in np.frombuffer(head, dtype="<i4", count=4))
    if magic != MAGIC:
        raise CorpusError(f"{path}: not a token shard, its magic number is {magic}, expected {MAGIC}")
    if version != VERSION:
        raise CorpusError(f"{path}: shard version {version}, this reader knows {VERSION}")
    if width != bytes_per_token:
        raise CorpusError(f"{path}: {width} bytes per token, {METADATA_NAME} says {bytes_per_token}")
    expected = HEADER_BYTES + count * width
    if count < 0 or size != expected:
        raise CorpusError(f"{path}: {size} bytes, but its header promises {count} tokens ({expected} bytes)")
    return count
