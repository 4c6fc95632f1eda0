"""`/v1/completions`: runs a request's choices, and answers as a whole or as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Iterable
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response
from starlette.types import Receive

from ds2ds.generation.events import Event
from ds2ds.server import sse
from ds2ds.server.choice import Choice, DocumentPart, Part, TextPart, grants, linked_document, write_choice
from ds2ds.server.errors import as_api_error
from ds2ds.server.metrics import TokenClock
from ds2ds.server.plan import ChoicePlan
from ds2ds.server.protocol import (
    CompletionChoice,
    CompletionRequest,
    CompletionResponse,
    DocumentsDetails,
    Logprobs,
    PromptTokensDetails,
    Usage,
)
from ds2ds.server.service import Disconnected, Service

log = logging.getLogger("ds2ds.server")

T = TypeVar("T")

CLIENT_GONE = 499
"""What is noted of an answer that nobody waits for."""


class Completion:
    """One request under way."""

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        self.service, self.body = service, body
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.choices: list[Choice] = []
        self._started = time.perf_counter()

    async def answer(self, receive: Receive) -> Response:
        """The whole answer, once there is one. Nothing is computed on for a client that has gone.

        Raises:
            ApiError: there is none.
        """
        try:
            whole = await self._supervised(self._whole(), receive)
        except Disconnected:
            return Response(status_code=CLIENT_GONE)
        return JSONResponse(whole.model_dump())

    async def stream(self, sender: sse.EventSender, receive: Receive) -> None:
        """Send everything as it comes.

        Raises:
            ApiError: it cannot go on.
        """
        with contextlib.suppress(Disconnected):
            await self._supervised(self._send_parts(sender), receive)

    async def _supervised(self, work: Any, receive: Receive) -> Any:
        status = "ok"
        try:
            return await self.service.supervise(work, receive)
        except Disconnected:
            status = "client gone"
            self.service.metrics.disconnects.inc()
            raise
        except Exception as error:
            told = as_api_error(error, self.service.retry_after)
            status = str(told.status)
            raise told from error
        finally:
            seconds = time.perf_counter() - self._started
            self.service.metrics.whole.observe(seconds)
            written = sum(choice.written for choice in self.choices)
            log.info(
                "%s: %s, %d choices, %d tokens written, %.3f s", self.id, status, len(self.choices), written, seconds
            )

    async def _plan(self) -> list[ChoicePlan]:
        return await self.service.planner.plan(self.body)

    async def _whole(self) -> CompletionResponse:
        plans = await self._plan()
        parts: list[list[TextPart]] = [[] for _ in plans]

        def take(index: int, part: Part) -> None:
            if isinstance(part, TextPart):
                parts[index].append(part)

        with self.service.admitted(len(plans)):
            await self._run(plans, take)
        tells_documents = self.body.documents is not False
        return CompletionResponse(
            id=self.id,
            created=self.created,
            model=self.body.model,
            choices=[
                _whole_choice(choice, told, tells_documents) for choice, told in zip(self.choices, parts, strict=True)
            ],
            usage=self._usage(),
        )

    async def _send_parts(self, sender: sse.EventSender) -> None:
        plans = await self._plan()
        outbox: asyncio.Queue[tuple[int, Part] | None] = asyncio.Queue()
        with self.service.admitted(len(plans)):
            running = asyncio.ensure_future(self._run(plans, lambda index, part: outbox.put_nowait((index, part))))
            running.add_done_callback(lambda _: outbox.put_nowait(None))
            try:
                ended = False
                while not ended:
                    items = await _all_of(outbox)
                    ended = items[-1] is None
                    if events := b"".join(self._event(*item) for item in items if item is not None):
                        await sender.send(events)
                await running
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        if self._tells_usage:
            await sender.send(sse.encode({**self._head(), "choices": [], "usage": self._usage().model_dump()}))
        await sender.send(sse.DONE, last=True)

    async def _run(self, plans: list[ChoicePlan], take: Any) -> None:
        """Run all choices, and hand on what they tell; what goes wrong in one ends all.

        Raises: what a backend raises.
        """
        metrics, backend = self.service.metrics, self.service.planner.backend
        self.choices = [Choice(backend, plan) for plan in plans]
        metrics.prompt_tokens.inc(self._prompt_tokens())

        async def run(choice: Choice) -> None:
            clock = TokenClock(metrics, self._started)

            def emit(event: Event, parts: Iterable[Part]) -> None:
                clock.tick(event)
                for part in parts:
                    take(choice.plan.index, part)

            await write_choice(choice, emit)
            clock.stop()
            if choice.result is not None:
                metrics.ended(choice.result)

        tasks = [asyncio.ensure_future(run(choice)) for choice in self.choices]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.body.model}

    def _event(self, index: int, part: Part) -> bytes:
        """Nothing for one that the client has not asked for."""
        if isinstance(part, DocumentPart):
            return sse.encode({"choice": index, **part.data}, part.event) if self.body.documents else b""
        choice = {
            "index": index,
            "text": part.text,
            "logprobs": None if part.logprobs is None else part.logprobs.model_dump(),
            "finish_reason": part.finish_reason,
        }
        return sse.encode({**self._head(), "choices": [choice], **({"usage": None} if self._tells_usage else {})})

    @property
    def _tells_usage(self) -> bool:
        options = self.body.stream_options
        return options is not None and bool(options.include_usage)

    def _prompt_tokens(self) -> int:
        return sum(len(choice.plan.prompt) for choice in self.choices if choice.plan.first)

    def _usage(self) -> Usage:
        prompt, written = self._prompt_tokens(), sum(choice.written for choice in self.choices)
        cached = 0
        documents = DocumentsDetails(count=0, tokens=0, written_tokens=0, cached_tokens=0)
        for choice in self.choices:
            if choice.result is None:
                continue
            trace = choice.result.trace
            if choice.plan.first:
                cached += min(trace.prompt_tokens_reused, len(choice.plan.prompt))
            documents.count += len(choice.result.auxiliary_documents)
            documents.tokens += sum(len(one.tokens or ()) for one in choice.result.auxiliary_documents)
            documents.written_tokens += choice.written_for_documents
            documents.cached_tokens += trace.tokens_reused - trace.prompt_tokens_reused
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=written,
            total_tokens=prompt + written,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
            documents=documents,
        )


async def _all_of(queue: asyncio.Queue[T]) -> list[T]:
    """What is in a queue, once there is anything: a server that lags behind sends more at a time, and catches up."""
    items = [await queue.get()]
    while not queue.empty():
        items.append(queue.get_nowait())
    return items


def _whole_choice(choice: Choice, parts: list[TextPart], tells_documents: bool) -> CompletionChoice:
    if choice.result is None or not parts:
        raise RuntimeError(f"choice {choice.plan.index} ended without a result")
    documents = granted = None
    if tells_documents:
        documents = [linked_document(document) for document in choice.result.auxiliary_documents]
        granted = grants(choice.result.root_document)
    return CompletionChoice(
        index=choice.plan.index,
        text="".join(part.text for part in parts),
        logprobs=_joined([part.logprobs for part in parts if part.logprobs is not None], choice.plan.logprobs),
        finish_reason=parts[-1].finish_reason,
        documents=documents,
        grants=granted,
    )


def _joined(logs: list[Logprobs], asked: int | None) -> Logprobs | None:
    if asked is None:
        return None
    return Logprobs(
        tokens=[token for log in logs for token in log.tokens],
        token_logprobs=[value for log in logs for value in log.token_logprobs],
        top_logprobs=[top for log in logs for top in log.top_logprobs or ()] if asked else None,
        text_offset=[offset for log in logs for offset in log.text_offset],
    )
