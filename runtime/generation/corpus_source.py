"""Where targets come from: a DocumentCorpus, or anything with has_document and get_document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.corpus.resolving.chain import ResolverChain
from ds2ds.corpus.resolving.exact import ExactResolver
from ds2ds.corpus.resolving.resolving_corpus import ResolvingCorpus
from ds2ds.documents.document import Document
from ds2ds.documents.document_context import DocumentContext
from ds2ds.documents.layout import Layout
from ds2ds.documents.link_formats import LinkFormat, same_family
from ds2ds.documents.link_scanner import ScannedLink
from ds2ds.documents.title_match import Match
from ds2ds.errors import ConfigError, CorpusError
from ds2ds.generation.pairing import check_ids


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

    Args:
        title_resolution: the resolvers to try, as in GenerationConfig; none: those of a ResolvingCorpus, or exact.

    Raises:
        ConfigError: a resolver cannot be made, or the corpus says that its links are of another format; CorpusError:
            what a resolver needs is damaged.
    """

    def __init__(
        self,
        corpus: Corpus | None,
        layout: Layout,
        vocab_size: int,
        title_resolution: Sequence[str] = (),
        link_format: LinkFormat | None = None,
    ) -> None:
        self._others = ResolverChain(())
        if corpus is not None:
            resolving = corpus if isinstance(corpus, ResolvingCorpus) else ResolvingCorpus(corpus, ())
            corpus = resolving.corpus
            # The first one is exact, which `resolve` is.
            asked_for = ResolverChain([resolving.resolver(text) for text in title_resolution[1:]])
            self._others = asked_for if title_resolution else resolving.others
        written = getattr(getattr(corpus, "metadata", None), "link_format", None)
        if written is not None and link_format is not None and not same_family(written, link_format.name):
            raise ConfigError(
                f"the corpus has links of the format {written!r}, the runtime reads {link_format.name!r}: choose "
                f"another corpus, or link_format={written!r}"
            )
        self.corpus = corpus
        self.layout = layout
        self.vocab_size = vocab_size

    def resolve(self, title: str) -> str | None:
        """The title under which the corpus knows a document by its own rule, or None."""
        match = None if self.corpus is None else ExactResolver(self.corpus).find(title)
        return None if match is None else match.title

    def match(self, link: ScannedLink, title: str, context: DocumentContext) -> Match | None:
        """The document of the corpus that a link means by a title (`choose_title`), or None.

        A link that has candidates means one of them just so, or nothing. For any other, what the corpus has under just
        this title comes first, then the request's own documents of this title, which are for `context` to give; only
        then whatever the other resolvers take it to mean.
        """
        canonical = self.resolve(title)
        if link.candidates:
            return Match(title, ExactResolver.name) if canonical == title else None
        if canonical is not None:
            return Match(canonical, ExactResolver.name)
        if context.recall(title) is not None:
            return None
        return self._others.find(title)

    def choose_title(self, link: ScannedLink, context: DocumentContext) -> str:
        """The title that a link means: of its candidates the first that is in the corpus, or that the request has."""
        return link.choose(lambda title: self.resolve(title) == title or context.has_title(title))

    def tokens(self, title: str) -> list[int]:
        """A document's tokens as the model reads them: layout prefix, body, layout suffix. Empty if the body is.

        Raises:
            CorpusError: it is gone, is no sequence of token ids, or holds ids outside the model's vocabulary.
        """
        body = self.corpus.get_document(title) if self.corpus is not None else None
        if body is None:
            raise CorpusError(f"the corpus has document {title!r}, but gave None for it")
        body = _token_ids(title, body)
        if not body:
            return []
        tokens = self.layout.wrap(title, body)
        self.check_vocabulary(title, tokens)
        return tokens

    def check_vocabulary(self, title: str, tokens: Sequence[int]) -> None:
        """Raise CorpusError if a document is to hold ids outside the model's vocabulary."""
        check_ids(title, tokens, self.vocab_size)

    def remembered(self) -> CorpusSource:
        """The same source, which asks its corpus about each title once."""
        return _Remembered(self)

    def same(self, document: Document | None, canonical: str | None) -> Document | None:
        """`document`, which was found by its folded title, or None if a link to `canonical` means another.

        A corpus may have both "Actor" and "actor"; of one that it does not know it has another spelling. One that is
        still being written is meant all the same: it links to itself, or to its ancestor.
        """
        if document is None or canonical is None or document.title == canonical:
            return document
        known = self.resolve(document.title)
        return document if known == canonical or (known is None and document.in_progress) else None


def _token_ids(title: str, body: Any) -> list[int]:
    """The integers that a corpus, which may be anyone's, gave for a document; text is none, though bytes are numbers.

    Raises:
        CorpusError: it gave something else.
    """
    body = body.tolist() if hasattr(body, "tolist") else body
    if isinstance(body, Iterable) and not isinstance(body, str | bytes | dict):
        ids = list(body)
        kinds = set(map(type, ids))
        if kinds <= {int}:
            return ids
        if all(issubclass(kind, Integral) for kind in kinds):
            return list(map(int, ids))
    got = f"{type(body).__name__} {str(body)[:80]!r}" if isinstance(body, Sequence) else type(body).__name__
    raise CorpusError(f"the corpus must give token ids for document {title!r}, got {got}")


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
