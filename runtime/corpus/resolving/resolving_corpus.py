"""ResolvingCorpus: a corpus that finds documents by more than its own rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.corpus.resolving.chain import ResolverChain
from ds2ds.corpus.resolving.exact import EXACT, ExactResolver
from ds2ds.corpus.resolving.making import CorpusResolvers
from ds2ds.corpus.resolving.resolver import Resolver
from ds2ds.documents.title_match import Match
from ds2ds.errors import ConfigError


class ResolvingCorpus:
    """A corpus and the resolvers that are tried, in order, where its own rule knows no document.

    Args:
        corpus: a DocumentCorpus, or any object with `has_document(title)` and `get_document(title)`. Most resolvers
            need its `titles()`, too. They read those once: of a corpus that changes, make a new ResolvingCorpus.
        resolvers: Resolver objects, or names as in GenerationConfig.title_resolution ("folded", "edit:0.9", ...).

    Attributes:
        corpus: the corpus given.
        others: the chain that comes after its own rule.

    Raises:
        ConfigError, CorpusError: a resolver cannot be made.
    """

    def __init__(self, corpus: Any, resolvers: Sequence[str | Resolver]) -> None:
        if isinstance(corpus, ResolvingCorpus):
            raise ConfigError("corpus is a ResolvingCorpus already: give all resolvers at once")
        if isinstance(resolvers, str):
            raise ConfigError(f"resolvers must be a sequence of resolvers or their names, got {resolvers!r}")
        self.corpus = corpus
        self._resolvers = CorpusResolvers()
        self._exact = ExactResolver(corpus)
        made = [self.resolver(one) if isinstance(one, str) else one for one in resolvers if one != EXACT]
        self.others = ResolverChain(made)

    def resolver(self, text: str) -> Resolver:
        """The resolver of this corpus that `text` describes; its state is kept here, or by the corpus given."""
        if isinstance(self.corpus, DocumentCorpus):
            return self.corpus.resolver(text)
        return self._resolvers.get(self.corpus, text)

    def match(self, title: str) -> Match | None:
        """The document that `title` means, and who found it."""
        return self._exact.find(title) or self.others.find(title)

    def resolve(self, title: str) -> str | None:
        """The raw title of the document that `title` means, or None."""
        match = self.match(title)
        return None if match is None else match.title

    def has_document(self, title: str) -> bool:
        """Whether `title` means a document."""
        return self.match(title) is not None

    def get_document(self, title: str) -> Any:
        """What the corpus gives for the document that `title` means, or None."""
        resolved = self.resolve(title)
        return None if resolved is None else self.corpus.get_document(resolved)
