"""Where targets come from: a DocumentCorpus, or anything with has_document and get_document."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.documents.layout import Layout
from ds2ds.errors import ConfigError, CorpusError


@runtime_checkable
class Corpus(Protocol):
    """What the runtime asks of a corpus. `get_document` gives an array or iterable of token ids, or None.

    A corpus may also have `resolve(title) -> str | None`: the title under which it knows a document.
    """

    def has_document(self, title: str) -> bool: ...

    def get_document(self, title: str) -> Any: ...


def open_corpus(corpus: Any) -> Corpus | None:
    """A corpus from what the caller gave: None, a path, "demo", or an object with has_document and get_document.

    Raises:
        ConfigError: it is none of these; CorpusError: the path holds no corpus.
    """
    if corpus is None:
        return None
    if isinstance(corpus, str | Path):
        return DocumentCorpus(corpus)
    if not isinstance(corpus, Corpus):
        raise ConfigError(
            f"corpus must be a path, 'demo', or have has_document and get_document, got {type(corpus).__name__}"
        )
    return corpus


class CorpusSource:
    """Laid-out documents of a corpus, checked against the model's vocabulary; of no corpus, none."""

    def __init__(self, corpus: Corpus | None, layout: Layout, vocab_size: int) -> None:
        self.corpus = corpus
        self.layout = layout
        self.vocab_size = vocab_size

    def resolve(self, title: str) -> str | None:
        """The title under which the corpus knows a document, or None."""
        if self.corpus is None:
            return None
        resolve = getattr(self.corpus, "resolve", None)
        if resolve is not None:
            found: str | None = resolve(title)
            return found
        return title if self.corpus.has_document(title) else None

    def tokens(self, title: str) -> list[int]:
        """A document's tokens as the model reads them: layout prefix, body, layout suffix. Empty if the body is.

        Raises:
            CorpusError: it is gone, or holds ids outside the model's vocabulary.
        """
        body = self.corpus.get_document(title) if self.corpus is not None else None
        if body is None:
            raise CorpusError(f"the corpus has document {title!r}, but gave None for it")
        if hasattr(body, "tolist"):
            body = body.tolist()
        ids = np.fromiter((int(token) for token in body), dtype=np.int64)
        if not len(ids):
            return []
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocab_size:
            raise CorpusError(
                f"document {title!r} of the corpus holds token id {low if low < 0 else high}, outside the model's "
                f"vocabulary of {self.vocab_size}: it was tokenized for another model"
            )
        return self.layout.wrap(title, ids.tolist())
