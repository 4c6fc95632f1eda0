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
from typing import Any

from ds2ds.attention.masks import READS_LINKS
from ds2ds.documents.document import Document
from ds2ds.documents.link_detector import LinkStream
from ds2ds.documents.link_scanner import ScannedLink
from ds2ds.documents.title_match import found_by
from ds2ds.engine.work import Ask, Item, Prefill, Score, Work
from ds2ds.errors import CorpusError
from ds2ds.generation.choices import Follow, LinkQuestion, Skip, Supply, check_answer
from ds2ds.generation.events import DocumentClosed, DocumentOpened, LinkAsked, LinkClosed
from ds2ds.generation.link_target import LinkLocator, Target, nowhere
from ds2ds.generation.prompt_processor import KnownLink, find_links
from ds2ds.generation.request import Request
from ds2ds.generation.single_doc_generator import limit_reached, write_document

QUIT = nowhere("the reader quit")


class _Quit(Exception):
    """The reader wants no more."""


class LinkFollower:
    """Writes the documents of one request."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.context = request.context
        self.locator = LinkLocator(request)
        self._asked = 0

    def write_root(self) -> Work:
        """Everything: the links in the prompt, then the root, and what it comes to link to."""
        root = self.context.root
        try:
            stream = yield from self._open_root()
            if self.request.config.prompt_logprobs:
                # Who has to leave for the first token leaves now: what the prompt reads is the same, scored or not.
                limit_reached(self.request, root, written=0)
                yield from self._score(root)
            yield from self._write(root, stream)
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

    def _open_root(self) -> Generator[Item, Any, LinkStream]:
        """Bring in what the prompt links to; returns the stream that has read it."""
        root = self.context.root
        self._opened(root)
        stream, links = self._read(root)
        if self.request.config.process_prompt_links:
            yield from self._follow_all(root, links)
        return stream

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

    def _read(self, document: Document) -> tuple[LinkStream, list[KnownLink]]:
        """A stream that has read what the document has, and the links in it."""
        stream = LinkStream(self.request.tokenizer, self.request.link_format.scanner(document.title))
        return stream, find_links(stream, document.tokens)

    def _write(self, document: Document, stream: LinkStream) -> Work:
        """Write the current document, which `stream` has read, to its end, following its links, and close it."""

        def follow_closed(token: int) -> Work | None:
            links = stream.feed(token)
            if not links:
                return None
            return self._follow_all(document, [KnownLink(len(document.tokens), link) for link in links])

        yield from write_document(self.request, document, follow_closed)
        self._close(document)

    def _follow_all(self, document: Document, links: list[KnownLink]) -> Work:
        """Bring in what a document links to, in order."""
        for known in links:
            yield from self._follow(document, known.link, known.position)

    def _follow(self, parent: Document, link: ScannedLink, position: int) -> Work:
        """Bring in a link's target, if it has one, and let the parent read it from `position` on."""
        found = self.locator.locate(parent, link)
        if self.request.interactive and found.outcome != "not_followed":
            found = yield from self._ask(parent, link, position, found)
        self._count(found)
        written = link.choose(lambda title: title == found.title)
        reads = self.request.mask_type == READS_LINKS
        reason = found.reason or ("" if reads else f"not read: the model's mask_type is {self.request.mask_type}")
        parent_title, match = self.request.title(parent), found_by(found.match)
        self.request.emit(LinkClosed(parent_title, link.text, written, position, found.outcome, reason, *match))
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
        found = self.locator.locate(self.context.root, ScannedLink(title, title, 0, 0, 0))
        if found.outcome != "corpus":
            raise CorpusError(f"document {title!r} cannot be brought in: {found.reason or 'not in the corpus'}")
        document = yield from self._bring_in(found)
        yield Prefill(document)
        return document

    def _bring_in(self, found: Target) -> Generator[Item, Any, Document]:
        """The document that a followed link leads to, complete. What it reads may have driven it out of the window."""
        context, tokens = self.context, found.tokens
        if found.document is not None:
            if found.document not in context.window:
                context.make_room(len(found.document.tokens))
                context.readmit(found.document)
            return found.document
        if found.outcome == "generated":
            context.make_room(len(tokens) + 1)
            target = context.start_auxiliary_generation(found.title, tokens)
            self._opened(target)
            stream, _ = self._read(target)  # a heading that looks like a link leads nowhere
            yield from self._write(target, stream)
            return target
        context.make_room(len(tokens), found.instead_of)
        target = context.open_corpus_document(found.title, tokens, found.outcome)
        target.truncated = found.truncated
        self._opened(target)
        if self.locator.forbidden(target) is None:
            _, links = self._read(target)
            heading = len(self.request.layout.prefix(target.title))
            yield from self._follow_all(target, [known for known in links if known.position > heading])
        self._close(target)
        return target

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
            return self.locator.supplied(answer.title or title, answer.text, exactly=bool(link.candidates))
        return Target("skipped") if isinstance(answer, Skip) else QUIT

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
        if request.listener is not None:  # else its record is made for the result alone
            request.emit(DocumentClosed(request.title(document), document.finish_reason, request.record(document)))
