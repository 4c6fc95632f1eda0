"""One choice: what its events tell becomes text, log-probabilities and linked documents."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

from ds2ds.backend import AsyncBackend
from ds2ds.documents.generation_result import GeneratedDocument, GenerationResult
from ds2ds.generation.events import DocumentClosed, DocumentOpened, Done, Event, LinkClosed, TokenWritten
from ds2ds.server.plan import ChoicePlan
from ds2ds.server.protocol import LinkedDocument, Logprobs, ReadGrant
from ds2ds.server.text import TextWriter, token_string

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON lacks."""

_LENGTH = ("max_new_tokens", "max_tokens_per_document", "context_full", None)


@dataclass(frozen=True)
class TextPart:
    """More of a choice's text; the last part has the finish reason."""

    text: str
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


@dataclass(frozen=True)
class DocumentPart:
    """Something that happened in or to a linked document, or a link that closed: the name of an event, and its data."""

    event: str
    data: dict[str, Any]


Part: TypeAlias = TextPart | DocumentPart


class Choice:
    """Reads the events of one choice.

    Attributes:
        written: tokens of its text, the one that ended it included.
        written_for_documents: those of the linked documents.
        result: what the backend returned, once it has.
    """

    def __init__(self, backend: AsyncBackend, plan: ChoicePlan) -> None:
        self.plan = plan
        self.written = self.written_for_documents = 0
        self.result: GenerationResult | None = None
        self._backend = backend
        self._open: list[tuple[str, TextWriter]] = []
        self._text = TextWriter(plan.config.stop)
        echoed = map(self._bytes, plan.prompt if plan.echo else ())
        self._prompt = b"".join(echoed).decode(errors="replace")
        self._tokens: list[TokenWritten] = []
        # The log-probabilities of a prompt come with the result, and they stand first.
        self._together = plan.echo and plan.logprobs is not None

    async def events(self) -> AsyncGenerator[Event, None]:
        """Let the backend write, or score the prompt if nothing is to be written."""
        plan = self.plan
        if plan.writes:
            stream = self._backend.stream(prompt_tokens=plan.prompt, corpus=plan.corpus, config=plan.config)
            async with aclosing(stream) as events:
                async for event in events:
                    yield event
        else:
            (result,) = await self._backend.score([plan.prompt], plan.corpus, plan.config)
            for event in _events_of(result):
                yield event

    def read(self, event: Event) -> Iterator[Part]:
        """What to pass on of an event."""
        if isinstance(event, DocumentOpened):
            self._open.append((event.title, TextWriter(self.plan.config.stop)))
            if len(self._open) > 1:
                yield DocumentPart("document.opened", _opened(event))
            elif self._prompt and not self._together:
                yield TextPart(self._prompt)
        elif isinstance(event, TokenWritten):
            title, text = self._open[-1]
            if len(self._open) > 1:
                self.written_for_documents += 1
                if piece := text.feed(self._bytes(event.token, self.plan.config.stop_token_ids)):
                    yield DocumentPart("document.text", {"title": title, "text": piece})
            else:
                yield from self._written(event)
        elif isinstance(event, LinkClosed):
            yield DocumentPart("link", _link(event))
        elif isinstance(event, DocumentClosed):
            self._open.pop()
            if self._open:
                yield DocumentPart("document.closed", linked_document(event.document).model_dump())
        elif isinstance(event, Done):
            yield self._ended(event.result)

    def _written(self, event: TokenWritten) -> Iterator[TextPart]:
        self.written += 1
        if self._together:
            self._tokens.append(event)
            return
        log = None if self.plan.logprobs is None else self._new_log()
        part = TextPart(self._feed(event, log), log)
        if part.text or log is not None:
            yield part

    def _ended(self, result: GenerationResult) -> TextPart:
        self.result = result
        root = result.root_document
        text, log = "", None
        if self._together:
            log = self._new_log()
            text = self._prompt
            self._log_prompt(log, root)
            text += "".join(self._feed(event, log) for event in self._tokens)
        return TextPart(text + self._text.finish(), log, finish_reason(root.finish_reason))

    def _feed(self, event: TokenWritten, log: Logprobs | None) -> str:
        if log is not None:
            self._log(log, event.token, event.logprob, event.top, len(self._prompt) + self._text.length)
        return self._text.feed(self._bytes(event.token, self.plan.config.stop_token_ids))

    def _bytes(self, token: int, ending: Sequence[int] = ()) -> bytes:
        """What of a token is text: the mark that ends a document is none."""
        return b"" if token == self.plan.config.eos_token_id or token in ending else self._backend.token_bytes(token)

    def _new_log(self) -> Logprobs:
        return Logprobs(tokens=[], token_logprobs=[], top_logprobs=[] if self.plan.logprobs else None, text_offset=[])

    def _log_prompt(self, log: Logprobs, root: GeneratedDocument) -> None:
        """Each token of the prompt as the client has it; marks that the layout put before it are left out."""
        first = len(root.tokens or ()) - self.written - len(self.plan.prompt)
        text = TextWriter()
        for at, token in enumerate(self.plan.prompt, start=first):
            known = at > first and root.token_logprobs is not None
            logprob = float(root.token_logprobs[at]) if known and root.token_logprobs is not None else None
            top = root.top_logprobs[at] if known and root.top_logprobs is not None else ()
            self._log(log, token, logprob, top, text.length)
            text.feed(self._bytes(token))

    def _log(
        self, log: Logprobs, token: int, logprob: float | None, top: Iterable[tuple[int, float]], offset: int
    ) -> None:
        likeliest = tuple(top)
        # One figure for one token: these come from another sum than that, and may differ in the last digit.
        logprob = dict(likeliest).get(token, logprob)
        log.tokens.append(self._name(token))
        log.text_offset.append(offset)
        log.token_logprobs.append(None if logprob is None else _finite(logprob))
        if log.top_logprobs is None:
            return
        if logprob is None:
            log.top_logprobs.append(None)
            return
        named: dict[str, float] = {}
        for other, value in (*likeliest, (token, logprob)):
            named.setdefault(self._name(other), _finite(value))
        log.top_logprobs.append(named)

    def _name(self, token: int) -> str:
        return token_string(token, self._backend.token_bytes(token), self._backend.limits.eos_token_id)


async def write_choice(choice: Choice, emit: Callable[[Event, Iterable[Part]], None]) -> None:
    """Read a choice to its end; each event goes to `emit` with what is to be passed on of it."""
    async with aclosing(choice.events()) as events:
        async for event in events:
            emit(event, choice.read(event))


def finish_reason(reason: str | None) -> str:
    """In OpenAI's words."""
    return "length" if reason in _LENGTH else "stop"


def linked_document(document: GeneratedDocument) -> LinkedDocument:
    return LinkedDocument(
        title=document.title,
        source=str(document.source),
        text=document.text or "",
        depth=document.depth,
        parent=document.parent_title,
        finish_reason=document.finish_reason,
        truncated=document.truncated,
        tokens=len(document.tokens or ()),
        grants=grants(document),
    )


def grants(document: GeneratedDocument) -> list[ReadGrant]:
    return [ReadGrant(title=grant.title, position=grant.position, end=grant.end) for grant in document.grants]


def _events_of(result: GenerationResult) -> Sequence[Event]:
    """What would have been told of documents that are all there."""
    root, *others = result.get_all_documents()
    events: list[Event] = [_opening(root)]
    for document in others:
        events += [_opening(document), DocumentClosed(document.title, document.finish_reason, document)]
    return [*events, DocumentClosed(root.title, root.finish_reason, root), Done(result)]


def _opening(document: GeneratedDocument) -> DocumentOpened:
    return DocumentOpened(
        document.title, str(document.source), document.depth, document.parent_title, document.text or ""
    )


def _opened(event: DocumentOpened) -> dict[str, Any]:
    return {
        "title": event.title,
        "source": event.source,
        "depth": event.depth,
        "parent": event.parent,
        "text": event.text,
    }


def _link(event: LinkClosed) -> dict[str, Any]:
    return {
        "title": event.title,
        "text": event.text,
        "target": event.target,
        "position": event.position,
        "outcome": event.outcome,
        "reason": event.reason,
    }


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB
