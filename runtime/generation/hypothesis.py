"""One hypothesis of a beam search: everything that was written so far, in the order in which it was written.

Generation is a function of the tokens it is sent. So a hypothesis is a coroutine with a request of its own, and the
tokens that it was sent; and another that begins alike is a new coroutine that is sent the same ones again. That
computes nothing: keys and values are copied from the documents in progress there, and complete documents are shared by
their content.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ds2ds.documents.document import Document
from ds2ds.documents.generation_result import Trace
from ds2ds.engine.work import Compute, Sampled
from ds2ds.generation.events import Event
from ds2ds.generation.link_following import LinkFollower
from ds2ds.generation.request import Request


class Moment(NamedTuple):
    """Where a hypothesis stood before a token: what it was sent, and the documents in progress, the root first."""

    sent: tuple[Sampled, ...]
    documents: list[Document]


class Hypothesis:
    """A hypothesis of `request`: a new one, or one that goes on from a moment of another.

    Args:
        request: gives the settings, what the root starts with, and a corpus that gives the same when asked again.

    Attributes:
        request: the same with a window, a trace and events of its own.
        events: what happened in it, if anybody listens.
        sent: the tokens written, in all documents.
        logprob: the sum of their log-probabilities.
        document: what the next token is written in; None once the root has ended.
    """

    def __init__(self, request: Request, start: Moment | None = None) -> None:
        self.events: list[Event] = []
        context = request.context.restarted()
        listener = None if request.listener is None else self.events.append
        self.request = replace(request, context=context, trace=Trace(), listener=listener, titles={})
        self.sent: list[Sampled] = []
        self.logprob = 0.0
        self.document: Document | None = None
        self._coroutine = LinkFollower(self.request).write_root()
        self._go_on(None)
        if start is not None:
            for token in start.sent:
                self.write(token)
            for mine, theirs in zip(self._in_progress(), start.documents, strict=True):
                mine.origin = theirs.origin or theirs

    def write(self, token: Sampled) -> None:
        """Write the next token, and go on up to where another is needed."""
        if self.document is None:
            raise RuntimeError("the hypothesis is finished and takes no more tokens")
        # For a token to be found all before it were computed: by the engine, or, in a replay, back then.
        self.document.settled = len(self.document.tokens)
        self.sent.append(token)
        self.logprob += token.logprob
        self._go_on(token)

    def moment(self) -> Moment:
        """For others to go on from. Taken before this one does: it may end documents that these still write."""
        return Moment(tuple(self.sent), self._in_progress())

    def _in_progress(self) -> list[Document]:
        return [document for document in self.request.context.window if document.in_progress]

    def _go_on(self, token: Sampled | None) -> None:
        try:
            work = self._coroutine.send(token)
        except StopIteration:
            self.document = None
            return
        if not isinstance(work, Compute):
            raise RuntimeError(f"a hypothesis is sent tokens, and cannot wait for {work}")
        self.document = work.document
