"""Resolvers made from what a user writes, once for each corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds2ds.corpus.resolving.embeddings import EmbeddingResolver
from ds2ds.corpus.resolving.encoder import SentenceEncoder
from ds2ds.corpus.resolving.exact import EXACT, ExactResolver
from ds2ds.corpus.resolving.folded import FoldedResolver
from ds2ds.corpus.resolving.redirects import REDIRECTS_NAME, RedirectResolver, read_redirects
from ds2ds.corpus.resolving.resolver import Lazy, Resolver
from ds2ds.corpus.resolving.specification import ResolverSpec, parse_resolver
from ds2ds.corpus.resolving.vectors import Progress
from ds2ds.errors import ConfigError

if TYPE_CHECKING:
    from ds2ds.corpus.document_corpus import DocumentCorpus


def make_resolver(corpus: Any, spec: ResolverSpec) -> Resolver:
    """A resolver of this corpus.

    Raises:
        ConfigError: the corpus lacks what it needs, its file or model is not there, or its package is not installed;
            CorpusError: its file is damaged.
    """
    minimum = {} if spec.minimum is None else {"minimum": spec.minimum}
    if spec.name == EXACT:
        return ExactResolver(corpus)
    if spec.name == "folded":
        return FoldedResolver(corpus)
    if spec.name == "redirects":
        file = _redirects_file(corpus, spec.source)
        return RedirectResolver(corpus, read_redirects(file), str(file))
    if spec.name == "edit":
        from ds2ds.corpus.resolving.edit import EditResolver  # opening a corpus does not load rapidfuzz

        return EditResolver(corpus, **minimum)
    return EmbeddingResolver(corpus, SentenceEncoder(spec.source or ""), **minimum)


def _redirects_file(corpus: Any, source: str | None) -> Path:
    if source is not None:
        return Path(source)
    folder: Path | None = getattr(corpus, "path", None)
    if folder is None:
        raise ConfigError(f"resolver 'redirects' needs a file, redirects=FILE: {type(corpus).__name__} has no folder")
    return folder / REDIRECTS_NAME


def prepare_resolvers(corpus: DocumentCorpus, texts: Sequence[str], progress: Progress) -> None:
    """Make these resolvers ahead of the first look-up, with what takes minutes: the vectors of embeddings.

    Args:
        progress: told (titles done, of how many) while vectors are computed.

    Raises:
        ConfigError, CorpusError: see ``make_resolver``.
    """
    for text in texts:
        resolver = corpus.resolver(text)
        if isinstance(resolver, EmbeddingResolver):
            resolver.prepare(progress)


class CorpusResolvers:
    """The resolvers of one corpus that were asked for, each made once."""

    def __init__(self) -> None:
        self._made: dict[ResolverSpec, Lazy[Resolver]] = {}

    def get(self, corpus: Any, text: str) -> Resolver:
        """The resolver that `text` describes (see ``specification``); `corpus` is the same in every call.

        Raises:
            ConfigError, CorpusError: see ``make_resolver``.
        """
        spec = parse_resolver(text)
        # setdefault is atomic: threads that ask at once share one Lazy, and that makes it once.
        return self._made.setdefault(spec, Lazy(lambda: make_resolver(corpus, spec)))()
