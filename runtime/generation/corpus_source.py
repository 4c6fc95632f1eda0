"""Where targets come from: a DocumentCorpus, or anything with has_document and get_document."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.documents.document import Document
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
    """Laid-out documents of a corpus, checked against the model's vocabulary; of no corpus, none.

    Raises:
        ConfigError: the corpus says that another tokenizer made it.
    """

    def __init__(self, corpus: Corpus | None, layout: Layout, vocab_size: int, tokenizer_name: str = "custom") -> None:
        made_with = getattr(getattr(corpus, "metadata", None), "tokenizer", None)
        if made_with is not None and tokenizer_name not in (made_with, "custom"):
            raise ConfigError(f"the corpus was made with tokenizer {made_with!r}, the runtime has {tokenizer_name!r}")
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
        body = [int(token) for token in body]
        if not body:
            return []
        tokens = self.layout.wrap(title, body)
        self.check_vocabulary(title, tokens)
        return tokens

    def check_vocabulary(self, title: str, tokens: Iterable[int]) -> None:
        """Raise CorpusError if a document is to hold ids outside the model's vocabulary."""
        wrong = next((token for token in tokens if not 0 <= token < self.vocab_size), None)
        if wrong is not None:
            raise CorpusError(
                f"document {title!r} would hold token id {wrong}, outside the model's vocabulary of "
                f"{self.vocab_size}: corpus, tokenizer and eos_token_id must be of this model"
            )

    def remembered(self) -> CorpusSource:
        """The same source, which asks its corpus about each title once."""
        return _Remembered(self)

    def same(self, document: Document | None, canonical: str | None) -> Document | None:
        """`document`, which was found by its folded title, or None if the corpus knows it as another document.

        A corpus may have both "Actor" and "actor".
        """
        if document is None or canonical is None or document.title == canonical:
            return document
        return document if self.resolve(document.title) in (None, canonical) else None


class _Remembered(CorpusSource):
    def __init__(self, source: CorpusSource) -> None:
        vars(self).update(vars(source))
        self._resolved: dict[str, str | None] = {}
        self._tokens: dict[str, list[int]] = {}

    def resolve(self, title: str) -> str | None:
        if title not in self._resolved:
            self._resolved[title] = super().resolve(title)
        return self._resolved[title]

    def tokens(self, title: str) -> list[int]:
        if title not in self._tokens:
            self._tokens[title] = super().tokens(title)
        return self._tokens[title]
