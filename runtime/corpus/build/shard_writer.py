"""Token shards, written one after another."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ds2ds.corpus.format import HEADER_BYTES, MAX_TOKENS, pack_header, token_dtype
from ds2ds.errors import ConfigError, CorpusError


class ShardWriter:
    """Appends documents to shards of at most `max_tokens` tokens each (a longer document has a shard of its own).

    Attributes:
        filenames: the shards begun so far, in order.
    """

    def __init__(self, folder: Path, dtype_str: str, max_tokens: int) -> None:
        if max_tokens < 1:
            raise ConfigError(f"max_tokens_per_shard must be positive, got {max_tokens}")
        if max_tokens > MAX_TOKENS:
            raise ConfigError(f"max_tokens_per_shard must be at most {MAX_TOKENS:,}, got {max_tokens:,}")
        self.folder = folder
        self.dtype = token_dtype(dtype_str, folder)
        self.max_tokens = max_tokens
        self.filenames: list[str] = []
        self._file: BinaryIO | None = None
        self._count = 0

    def append(self, tokens: npt.NDArray[Any]) -> tuple[int, int, int]:
        """Write one document's tokens, [n] integers; return (shard, offset in bytes from the file's start, n).

        Raises:
            CorpusError: a token id does not fit the shard's dtype.
        """
        limit = np.iinfo(self.dtype).max
        if tokens.size and not (tokens.min() >= 0 and tokens.max() <= limit):
            raise CorpusError(f"token ids must lie in 0..{limit} for {self.dtype.name}, got {tokens.max()}")
        if self._file is None or (self._count and self._count + len(tokens) > self.max_tokens):
            self._finish()
            self.filenames.append(f"shard_{len(self.filenames):06d}.bin")
            self._file = (self.folder / self.filenames[-1]).open("wb")
            self._file.write(pack_header(0, self.dtype.itemsize))
        place = (len(self.filenames) - 1, HEADER_BYTES + self._count * self.dtype.itemsize, len(tokens))
        self._file.write(tokens.astype(self.dtype).tobytes())
        self._count += len(tokens)
        return place

    def _finish(self) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._file.write(pack_header(self._count, self.dtype.itemsize))
            self._file.close()
        self._file, self._count = None, 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()
