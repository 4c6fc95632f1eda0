"""Server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ds2ds.server.errors import ApiError

log = logging.getLogger("ds2ds.server")

DONE = b"data: [DONE]\n\n"

_JSON = json.JSONEncoder(allow_nan=False, separators=(",", ":"))

_LAST_WORDS = 1.0
"""Seconds that a client has to take the error that ends its stream; it may be the one that reads nothing."""


def encode(data: Any, event: str | None = None) -> bytes:
    """An event, named if it has a name. The data, plain JSON types, are one line, and ASCII: U+0085, U+2028 and others
    end a line for clients that split decoded text, as httpx's `iter_lines` does."""
    return (f"event: {event}\n" if event else "").encode() + f"data: {_JSON.encode(data)}\n\n".encode()


class EventSender:
    """Sends events; the answer's head goes with the first one, so that until then an error may be the answer."""

    def __init__(self, send: Send) -> None:
        self.started = False
        self._send = send

    async def send(self, event: bytes, last: bool = False) -> None:
        if not self.started:
            self.started = True
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": event, "more_body": not last})


class EventResponse(Response):
    """A stream.

    Args:
        write: sends everything; an ApiError that it raises after the first event ends the stream as an event.
    """

    media_type = "text/event-stream"

    def __init__(self, write: Callable[[EventSender, Receive], Awaitable[None]]) -> None:
        super().__init__()
        self._write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = EventSender(send)
        try:
            await self._write(sender, receive)
        except ApiError as error:
            if not sender.started:
                raise
            try:
                await asyncio.wait_for(sender.send(encode(error.body()), last=True), _LAST_WORDS)
            except TimeoutError:
                log.warning("a client did not take the end of its stream")
