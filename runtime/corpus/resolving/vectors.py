"""The vectors of all titles of a corpus, computed once and kept in a file.

The file's name holds a digest of the graph file and of the encoder, so one of another corpus or model is not found. It
lies beside the corpus, or in the user's cache where that cannot be written to, as the index does (``corpus/index.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ds2ds.corpus.format import GRAPH_NAME
from ds2ds.corpus.index import graph_fingerprint, places, unwritable
from ds2ds.corpus.resolving.encoder import Encoder
from ds2ds.corpus.resolving.resolver import Titles
from ds2ds.errors import CorpusError
from ds2ds.files import atomic_write

Vectors = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

_SCHEMA_VERSION = "1"
_BATCH = 1024


def _dimension(encoder: Encoder) -> int:
    return int(encoder.encode(["title"]).shape[1])


def _encode_all(titles: Titles, encoder: Encoder, out: Vectors, progress: Progress) -> None:
    """Fill `out`, a batch at a time."""
    all_titles, done = iter(titles), 0
    progress(0, len(titles))
    while batch := list(islice(all_titles, _BATCH)):
        out[done : done + len(batch)] = encoder.encode(batch)
        done += len(batch)
        progress(done, len(titles))


def encode_titles(titles: Titles, encoder: Encoder, progress: Progress) -> Vectors:
    """float32 [titles, dimension], in memory."""
    out = np.empty((len(titles), _dimension(encoder)), dtype=np.float32)
    _encode_all(titles, encoder, out, progress)
    return out


def vectors_name(folder: Path, encoder: Encoder) -> str:
    """The name of the file for this corpus, as it is now, and this encoder."""
    marks = "\n".join([_SCHEMA_VERSION, graph_fingerprint(folder / GRAPH_NAME), encoder.identity])
    return f"titles-{hashlib.blake2b(marks.encode(), digest_size=8).hexdigest()}.npy"


def open_vectors(folder: Path, titles: Titles, encoder: Encoder, progress: Progress) -> Vectors:
    """The vectors of the titles of the corpus in `folder`, mapped from their file; computed where there is none.

    Raises:
        CorpusError: the file can be written to neither place.
    """
    name = vectors_name(folder, encoder)
    tried = places(folder, name)
    for path in tried:
        kept = _map(path, len(titles))
        if kept is not None:
            return kept

    def write(partial: Path) -> None:
        shape = (len(titles), _dimension(encoder))
        out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        _encode_all(titles, encoder, out, progress)
        out.flush()

    for path in tried:
        try:
            atomic_write(path, write)
        except OSError as error:
            problem = error
            continue
        written = _map(path, len(titles))
        if written is not None:
            return written
        raise CorpusError(f"{path}: changed while it was written")
    raise unwritable("the titles' vectors", tried, problem)


def _map(path: Path, count: int) -> Vectors | None:
    """The vectors in the file, not read yet; None where there is none, or a damaged one."""
    try:
        vectors = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    fits = vectors.ndim == 2 and len(vectors) == count and vectors.dtype == np.float32
    return vectors if fits else None
