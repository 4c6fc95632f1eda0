"""A sentence-transformers model, as the embedding resolver asks for one."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ds2ds.errors import ConfigError
from ds2ds.extras import require_extra


class Encoder(Protocol):
    """Turns texts into vectors.

    Attributes:
        identity: differs between encoders that give different vectors; kept vectors are found by it.
    """

    @property
    def identity(self) -> str: ...

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [texts, dimension], each of length 1."""
        ...


class SentenceEncoder:
    """A sentence-transformers model.

    Args:
        source: its folder, or a name that sentence-transformers knows (which it may download).
        device: None: what sentence-transformers picks.

    Raises:
        ConfigError: sentence-transformers is not installed, or knows no such model.
    """

    def __init__(self, source: str, device: str | None = None) -> None:
        require_extra("embeddings", "resolver 'embeddings'", "sentence_transformers")
        from sentence_transformers import SentenceTransformer

        try:
            self._model: Any = SentenceTransformer(source, device=device)
        except (OSError, ValueError) as error:
            raise ConfigError(f"resolver 'embeddings' cannot load the model {source!r}: {error}") from error
        self.identity = _digest(self._model)
        # Its tokenizer may not be used by two threads at a time.
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        with self._lock:
            vectors = self._model.encode(
                list(texts), batch_size=64, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
            )
        return np.asarray(vectors, dtype=np.float32)


def _digest(model: Any) -> str:
    """Over the model's structure and all of its weights."""
    import torch  # sentence-transformers has loaded it

    hashed = hashlib.blake2b(repr(model).encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        hashed.update(name.encode())
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
