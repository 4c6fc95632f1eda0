"""Where a link leads: to a document in view, one evicted, one of the corpus, one to be written, or nowhere.

Nothing is brought in here, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ds2ds.documents.document import Document
from ds2ds.documents.link_scanner import ScannedLink, is_external
from ds2ds.documents.title_match import Match
from ds2ds.generation.request import Request


@dataclass(frozen=True)
class Target:
    """What a link leads to: a document that is there (`document`), or `tokens` to start one with, or nothing.

    Attributes:
        outcome: as in LinkClosed.
        truncated: `tokens` are not all that it has.
        reason: why it leads nowhere.
        match: how the corpus' title was found.
        instead_of: the document whose title a supplied one takes.
    """

    outcome: str
    title: str = ""
    document: Document | None = None
    tokens: Sequence[int] = ()
    truncated: bool = False
    reason: str = ""
    match: Match | None = None
    instead_of: Document | None = None


def nowhere(reason: str, match: Match | None = None) -> Target:
    """The target of a link that is not followed."""
    return Target("not_followed", reason=reason, match=match)


class LinkLocator:
    """Finds the targets of one request's links."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def locate(self, parent: Document, link: ScannedLink) -> Target:
        """Where a link leads, if it is followed and there can be room for its target."""
        corpus, context = self.request.corpus, self.request.context
        forbidden = self.forbidden(parent)
        if forbidden is not None:
            return nowhere(forbidden)
        title = corpus.choose_title(link, context)
        if not title.strip():
            return nowhere("empty target")
        if is_external(title):
            return nowhere("an external address")
        match = corpus.match(link, title, context)
        if match is not None:
            title = match.title
        known = self._known(title, None if match is None else match.title, bool(link.candidates))
        if known is not None:
            return self._again(known, parent, title, match)
        return self._to_be_written(title) if match is None else self._of_corpus(match)

    def supplied(self, title: str, text: str, exactly: bool = False) -> Target:
        """A document of the reader's, if there can be room for it; `exactly`: see `_known`."""
        request = self.request
        canonical = request.corpus.resolve(title)
        if exactly and canonical != title:
            canonical = None
        title = canonical or title
        body = request.tokenizer.encode(text)
        if not body:
            return nowhere("an empty document")
        tokens = request.layout.wrap(title, body)
        request.corpus.check_vocabulary(title, tokens)
        known = self._known(title, canonical, exactly)
        if known is not None and known.in_progress:
            return nowhere(f"a document titled {request.title(known)!r} is still being written")
        return self._new("supplied", title, tokens, instead_of=known)

    def forbidden(self, parent: Document) -> str | None:
        """Why links of this document are not followed; None if they are."""
        config = self.request.config
        if parent.depth >= config.max_link_depth:
            return f"max_link_depth {config.max_link_depth} is reached"
        if parent.depth > 0 and not config.allow_recursive_links:
            return "allow_recursive_links is off"
        return None

    def _known(self, title: str, canonical: str | None, exactly: bool) -> Document | None:
        """The request's own document of this title, in view or evicted.

        Args:
            canonical: the same title, where the corpus knows it; None: it does not.
            exactly: spelt just so, as a link's candidates are.
        """
        return self.request.corpus.same(self.request.context.recall(title, exactly), canonical)

    def _again(self, known: Document, parent: Document, title: str, match: Match | None) -> Target:
        if known.in_progress:
            return nowhere("a link to itself" if known is parent else "a document still being written", match)
        if known in self.request.context.window:
            return Target("in_view", title, known, match=match)
        fits, reason = self.request.context.could_make_room(len(known.tokens))
        return Target(known.source, title, known, match=match) if fits else nowhere(reason, match)

    def _of_corpus(self, match: Match) -> Target:
        tokens = self.request.corpus.tokens(match.title)
        return self._new("corpus", match.title, tokens, match) if tokens else nowhere("an empty document", match)

    def _to_be_written(self, title: str) -> Target:
        request = self.request
        if not request.config.allow_corpus_fallback:
            return nowhere("not in the corpus")
        tokens = request.layout.prefix(title) or [request.config.eos_token_id]
        request.corpus.check_vocabulary(title, tokens)
        fits, reason = request.context.could_make_room(len(tokens) + 1)
        return Target("generated", title, tokens=tokens) if fits else nowhere(reason)

    def _new(
        self,
        outcome: str,
        title: str,
        tokens: Sequence[int],
        match: Match | None = None,
        instead_of: Document | None = None,
    ) -> Target:
        """A complete document, cut to what one may have, if there can be room for it."""
        cut = tokens[: self.request.config.max_tokens_per_document]
        fits, reason = self.request.context.could_make_room(len(cut), instead_of)
        if not fits:
            return nowhere(reason, match)
        return Target(outcome, title, None, cut, len(cut) < len(tokens), match=match, instead_of=instead_of)
