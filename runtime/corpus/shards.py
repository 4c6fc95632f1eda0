"""Token shards: memory-mapped when first touched, checked then, and read by byte range."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ds2ds.corpus.format import HEADER_BYTES, check_header, token_dtype
from ds2ds.errors import CorpusError

OPEN_SHARDS = 128
"""Mapped at a time. A mapping holds a file descriptor, of which a process has 1,024 as a rule."""


class PretokShardedBackend:
    """The tokens of a corpus: `read(shard, offset, length)` from files that are opened when first needed.

    Of thousands of shards the OPEN_SHARDS that were read last stay mapped. Safe to share between threads and to use
    after a fork: a mapping is read-only, and one that a thread still reads outlives its place here.

    Args:
        folder: where the shards lie.
        shard_filenames: their names, in the order that `tok_shard_idx` counts.
        dtype_str: "uint16" or "uint32".

    Raises:
        CorpusError: another dtype.
    """

    def __init__(self, folder: str | Path, shard_filenames: Sequence[str], dtype_str: str) -> None:
        self.folder = Path(folder)
        self.paths = tuple(self.folder / name for name in shard_filenames)
        self.dtype = token_dtype(dtype_str, self.folder)
        # The one read last at the end. No lock, which a fork could inherit held: each step on it is atomic, and two
        # threads that miss the same shard map it twice, no more.
        self._maps: OrderedDict[int, npt.NDArray[Any]] = OrderedDict()
        self._closed = False

    def _tokens(self, shard: int) -> npt.NDArray[Any]:
        if self._closed:
            raise CorpusError(f"the corpus at {self.folder} is closed")
        if not 0 <= shard < len(self.paths):
            raise CorpusError(f"{self.folder}: no shard {shard}, metadata.json names {len(self.paths)}")
        tokens = self._maps.pop(shard, None)
        if tokens is None:
            tokens = self._map(self.paths[shard])
        self._maps[shard] = tokens
        while len(self._maps) > OPEN_SHARDS:
            self._maps.popitem(last=False)
        return tokens

    def _map(self, path: Path) -> npt.NDArray[Any]:
        count = check_header(path, self.dtype.itemsize)
        if not count:  # mmap refuses an empty range
            return np.empty(0, dtype=self.dtype)
        try:
            return np.asarray(np.memmap(path, dtype=self.dtype, mode="r", offset=HEADER_BYTES, shape=(count,)))
        except OSError as error:
            raise CorpusError(f"{path}: cannot map this shard ({error.strerror or error})") from error

    def read(self, shard: int, offset: int, length: int) -> npt.NDArray[Any]:
        """A copy of `length` tokens that begin `offset` bytes after the start of the shard's file.

        Returns:
            [length] of the corpus' dtype, writable: a copy outlives the corpus, and these are short.

        Raises:
            CorpusError: the shard is damaged, the range lies outside of it or splits a token, or it is closed.
        """
        tokens = self._tokens(shard)
        start, rest = divmod(offset - HEADER_BYTES, self.dtype.itemsize)
        if rest or start < 0 or length < 0 or start + length > len(tokens):
            raise CorpusError(
                f"{self.paths[shard]}: {length} tokens at byte {offset} do not lie within this shard: "
                f"{len(tokens)} tokens of {self.dtype.itemsize} bytes from byte {HEADER_BYTES} on"
            )
        return tokens[start : start + length].copy()

    def close(self) -> None:
        """Let go of the mappings. Closing twice is fine."""
        self._closed = True
        self._maps = OrderedDict()
