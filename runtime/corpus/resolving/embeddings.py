"""embeddings: the one title that means about the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from ds2ds.corpus.resolving.digits import same_digits
from ds2ds.corpus.resolving.encoder import Encoder
from ds2ds.corpus.resolving.resolver import Lazy, Titles
from ds2ds.corpus.resolving.vectors import Progress, Vectors, encode_titles, open_vectors
from ds2ds.documents.title_match import Match
from ds2ds.errors import ConfigError

# With all-MiniLM-L6-v2 (bench/results/resolving_cpu.json) this resolves 30% of the link texts that are not the title of
# their target rightly and 2% wrongly; 0.85 does 40% and 5%, and takes every tenth title that is not there for another.
MINIMUM = 0.9
_TIE = 1e-4  # vectors of one text differ by rounding, by what stood beside it in the batch
_CHUNK = 1 << 16


class EmbeddingResolver:
    """The title whose vector is nearest, if its cosine is high enough and no other title's is as high.

    Digits must be the same, as for ``edit``. The vectors of all titles are computed at the first look-up (or by
    ``prepare``) and kept in a file beside the corpus, 4 bytes a dimension and title, from which they are mapped; those
    of a corpus that has no folder stay in memory. A look-up reads them all.

    Args:
        minimum: the least cosine, in (0, 1].
    """

    name = "embeddings"

    def __init__(self, corpus: Any, encoder: Encoder, minimum: float = MINIMUM) -> None:
        if not 0 < minimum <= 1:
            raise ConfigError(f"the minimum of resolver 'embeddings' must be in (0, 1], got {minimum}")
        self.minimum = minimum
        self._encoder = encoder
        self._titles = Titles(corpus, self.name)
        self._folder = getattr(corpus, "path", None)
        self._progress: Progress = lambda done, total: None
        self._vectors: Lazy[Vectors] = Lazy(self._load)

    def _load(self) -> Vectors:
        if self._folder is None:
            return encode_titles(self._titles, self._encoder, self._progress)
        return open_vectors(self._folder, self._titles, self._encoder, self._progress)

    def prepare(self, progress: Progress) -> None:
        """Have the vectors ready; `progress` is told (titles done, of how many) if they have to be computed."""
        self._progress = progress
        self._vectors()

    def find(self, title: str) -> Match | None:
        vectors = self._vectors()
        (wanted,) = self._encoder.encode([title])
        scores = np.empty(len(vectors), dtype=np.float32)
        for start in range(0, len(vectors), _CHUNK):
            scores[start : start + _CHUNK] = vectors[start : start + _CHUNK] @ wanted
        near = np.flatnonzero(scores >= self.minimum)
        found: list[int] = []
        best = 0.0
        for number in near[np.argsort(-scores[near], kind="stable")].tolist():
            if found and scores[number] < best - _TIE:
                break
            if same_digits(title, self._titles[number]):
                best = best or float(scores[number])
                found.append(number)
        only = self._titles.only(found)
        return None if only is None else Match(only, self.name, round(min(best, 1.0), 4))
