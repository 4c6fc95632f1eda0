"""The recursion of a document graph: write a document, and at each link that closes, bring in its target.

    until the document ends:
        decode one token, append it, feed the link detector
        if a link closed and depth < max_link_depth:
            in view: grant | in the corpus: fetch, resolve its own links while depth allows, grant
            else if allow_corpus_fallback: write it recursively, then grant and return here

An interactive request asks, for each link that would be followed, before anything is brought in.
These are coroutines: they yield what they need computed, and are sent the token drawn (see engine/work.py).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from ds2ds.attention.masks import READS_LINKS
from ds2ds.documents.document import Document
from ds2ds.documents.link_detector import LinkDetector
from ds2ds.documents.link_scanner import ScannedLink, is_external
from ds2ds.documents.title_match import Match, found_by
from ds2ds.engine.work import Ask, Item, Prefill, Score, Work
from ds2ds.errors import CorpusError
from ds2ds.generation.choices import Follow, LinkQuestion, Skip, Supply, check_answer
from ds2ds.generation.events import DocumentClosed, DocumentOpened, LinkAsked, LinkClosed
from ds2ds.generation.prompt_processor import find_links
from ds2ds.generation.request import Request
from ds2ds.generation.single_doc_generator import write_document


@dataclass(frozen=True)
class Target:
    """What a link leads to: a document that is there (`document`), or `tokens` to start one with, or nothing.

    `instead_of` is the document whose title a supplied one takes.
    """

    outcome: str
    title: str = ""
    document: Document | None = None
    tokens: tuple[int, ...] = ()
    truncated: bool = False
    reason: str = ""
    match: Match | None = None
    instead_of: Document | None = None


def _nowhere(reason: str, match: Match | None = None) -> Target:
    return Target("not_followed", reason=reason, match=match)


QUIT = _nowhere("the reader quit")


class _Quit(Exception):
    """The reader wants no more."""


class LinkFollower:
    """Writes the documents of one request."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.context = request.context
        self.detector = LinkDetector(request.tokenizer, request.link_format)
        self._asked = 0

    def write_root(self) -> Work:
        """Everything: the links in the prompt, then the root, and what it comes to link to."""
        root = self.context.root
        try:
            yield from self._open_root()
            if self.request.config.prompt_logprobs:
                yield from self._score(root)
            yield from self._write(root)
        except _Quit:
            while root.in_progress:
                document = self.context.current
                document.finish_reason = "quit" if document.source == "generated" else None
                self._close(document)

    def score_root(self) -> Work:
        """Say how likely the prompt's tokens are, with what its links lead to in view; nothing is written."""
        yield from self._open_root()
        yield from self._score(self.context.root)
        self._close(self.context.root)

    def _open_root(self) -> Work:
        root = self.context.root
        self._opened(root)
        if self.request.config.process_prompt_links:
            yield from self._resolve_links(root)

    def _score(self, root: Document) -> Work:
        """Note how likely each token that the root has is, given those before it."""
        if len(root.tokens) < 2:
            return
        root.fresh_from = 0
        scored = yield Score(root, 1, self.request.config.top_logprobs)
        for position, one in enumerate(scored, start=1):
            root.logprobs[position] = one.logprob
            if one.top:
                root.alternatives[position] = one.top

    def _write(self, document: Document) -> Work:
        """Write the current document to its end, following its links, and close it."""
        stream = self.detector.stream(document.title)
        for token in document.tokens:
            stream.feed(token)

        def follow_closed(token: int) -> Work:
            for link in stream.feed(token):
                yield from self._follow(document, link, len(document.tokens))

        yield from write_document(self.request, document, follow_closed)
        self._close(document)

    def _resolve_links(self, document: Document) -> Work:
        """Bring in what a document links to before it is computed (dependencies first)."""
        for known in find_links(self.detector, document.tokens, document.title):
            yield from self._follow(document, known.link, known.position)

    def _follow(self, parent: Document, link: ScannedLink, position: int) -> Work:
        """Bring in a link's target, if it has one, and let the parent read it from `position` on."""
        found = self._locate(parent, link)
        if self.request.interactive and found.outcome != "not_followed":
            found = yield from self._ask(parent, link, position, found)
        self._count(found)
        written = link.choose(lambda title: title == found.title)
        reads = self.request.mask_type == READS_LINKS
        reason = found.reason or ("" if reads else f"not read: the model's mask_type is {self.request.mask_type}")
        self.request.emit(
            LinkClosed(
                self.request.title(parent),
                link.text,
                written,
                position,
                found.outcome,
                reason,
                *found_by(found.match),
            )
        )
        if found is QUIT:
            raise _Quit
        if found.outcome in ("not_followed", "skipped"):
            return
        target = yield from self._bring_in(found)
        if target in self.context.window:
            self.context.note_link(target)
            if reads:
                parent.add_grant(position, target, written, found.match)

    def prefill(self, title: str) -> Generator[Item, Any, Document]:
        """Compute a document of the corpus as a link of the root to it would bring it in. The root is not computed.

        Raises:
            CorpusError: no link to it would be followed.
        """
        found = self._locate(self.context.root, ScannedLink(title, title, 0, 0, 0))
        if found.outcome != "corpus":
            raise CorpusError(f"document {title!r} cannot be brought in: {found.reason or 'not in the corpus'}")
        document = yield from self._bring_in(found)
        yield Prefill(document)
        return document

    def _bring_in(self, found: Target) -> Generator[Item, Any, Document]:
        """The document that a followed link leads to, complete. What it reads may have driven it out of the window."""
        target = found.document
        if target is None and found.outcome != "generated":
            self.context.make_room(len(found.tokens), found.instead_of)
            target = self.context.open_corpus_document(found.title, found.tokens, found.outcome)
            target.truncated = found.truncated
            self._opened(target)
            if self._may_follow(target) is None:
                yield from self._resolve_links(target)
            self._close(target)
        elif target is None:
            self.context.make_room(len(found.tokens) + 1)
            target = self.context.start_auxiliary_generation(found.title, found.tokens)
            self._opened(target)
            yield from self._write(target)
        elif target not in self.context.window:
            self.context.make_room(len(target.tokens))
            self.context.readmit(target)
        return target

    def _locate(self, parent: Document, link: ScannedLink) -> Target:
        """Where a link leads, if there can be room for it."""
        request, config, context = self.request, self.request.config, self.context
        forbidden = self._may_follow(parent)
        if forbidden is not None:
            return _nowhere(forbidden)
        title = request.corpus.choose_title(link, context)
        if not title or is_external(title):
            return _nowhere("an external address" if title else "empty target")
        match = request.corpus.match(link, title, context)
        canonical = None if match is None else match.title
        title = canonical or title
        known = request.corpus.same(context.find(title), canonical)
        if known is not None:
            if known.in_progress:
                return _nowhere("a document still being written" if known is not parent else "a link to itself", match)
            return Target("in_view", title, known, match=match)
        evicted = request.corpus.same(context.find_evicted(title), canonical)
        if evicted is not None:
            fits, reason = context.could_make_room(len(evicted.tokens))
            return Target(evicted.source, title, evicted, match=match) if fits else _nowhere(reason, match)
        if canonical is not None:
            tokens = request.corpus.tokens(canonical)
            if not tokens:
                return _nowhere("an empty document", match)
            cut = tokens[: config.max_tokens_per_document]
            fits, reason = context.could_make_room(len(cut))
            if not fits:
                return _nowhere(reason, match)
            return Target("corpus", title, None, tuple(cut), len(cut) < len(tokens), match=match)
        if not config.allow_corpus_fallback:
            return _nowhere("not in the corpus")
        tokens = request.layout.prefix(title) or [config.eos_token_id]
        request.corpus.check_vocabulary(title, tokens)
        fits, reason = context.could_make_room(len(tokens) + 1)
        return Target("generated", title, None, tuple(tokens)) if fits else _nowhere(reason)

    def _ask(self, parent: Document, link: ScannedLink, position: int, found: Target) -> Generator[Ask, Any, Target]:
        """Where the reader wants a link to lead that would lead to `found`."""
        request, document = self.request, found.document
        title, tokens = (found.title, found.tokens) if document is None else (document.title, document.tokens)
        to_be_written = document is None and found.outcome == "generated"
        question = LinkQuestion(
            number=self._asked,
            request=request.number,
            parent=request.title(parent),
            text=link.text,
            target=link.target,
            position=position,
            title=title if document is None else request.title(document),
            depth=parent.depth + 1 if document is None else document.depth,
            outcome=found.outcome,
            tokens=None if to_be_written else len(tokens),
            preview="" if to_be_written else request.opening(title, tokens),
        )
        self._asked += 1
        request.emit(LinkAsked(question))
        answer = check_answer((yield Ask(parent, question)))
        if isinstance(answer, Follow):
            return found
        if isinstance(answer, Supply):
            return self._supplied(answer.title or title, answer.text)
        return Target("skipped") if isinstance(answer, Skip) else QUIT

    def _supplied(self, title: str, text: str) -> Target:
        """A document of the reader's, if there can be room for it."""
        request = self.request
        canonical = request.corpus.resolve(title)
        title = canonical or title
        body = request.tokenizer.encode(text)
        if not body:
            return _nowhere("an empty document")
        tokens = request.layout.wrap(title, body)
        request.corpus.check_vocabulary(title, tokens)
        cut = tokens[: request.config.max_tokens_per_document]
        known = self._known(title, canonical)
        if known is not None and known.in_progress:
            return _nowhere(f"a document titled {request.title(known)!r} is still being written")
        fits, reason = self.context.could_make_room(len(cut), known)
        if not fits:
            return _nowhere(reason)
        return Target("supplied", title, None, tuple(cut), len(cut) < len(tokens), instead_of=known)

    def _known(self, title: str, canonical: str | None) -> Document | None:
        """The document of this title that is in view, or was evicted."""
        corpus, context = self.request.corpus, self.context
        return corpus.same(context.find(title), canonical) or corpus.same(context.find_evicted(title), canonical)

    def _may_follow(self, parent: Document) -> str | None:
        """Why links of this document are not followed; None if they are."""
        config = self.request.config
        if parent.depth >= config.max_link_depth:
            return f"max_link_depth {config.max_link_depth} is reached"
        if parent.depth > 0 and not config.allow_recursive_links:
            return "allow_recursive_links is off"
        return None

    def _count(self, found: Target) -> None:
        trace = self.request.trace
        trace.links_found += 1
        counter = {
            "in_view": "links_already_in_view",
            "corpus": "links_from_corpus",
            "generated": "links_generated",
            "supplied": "links_supplied",
            "skipped": "links_skipped",
            "not_followed": "links_not_followed",
        }[found.outcome]
        setattr(trace, counter, getattr(trace, counter) + 1)
        if found.match is not None:
            resolver = found.match.resolver
            trace.links_resolved_by[resolver] = trace.links_resolved_by.get(resolver, 0) + 1

    def _opened(self, document: Document) -> None:
        request = self.request
        parent = None if document.parent is None else request.title(document.parent)
        request.emit(
            DocumentOpened(request.title(document), document.source, document.depth, parent, request.text(document))
        )

    def _close(self, document: Document) -> None:
        request = self.request
        if self.context.complete_current_document() is not document:
            raise RuntimeError(f"document {document.title!r} was closed while another was being written")
        request.emit(DocumentClosed(request.title(document), document.finish_reason, request.record(document)))
