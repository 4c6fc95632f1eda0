"""Who may ask, and how much they may send: checked before anything of a request is read."""

from __future__ import annotations

import asyncio
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ds2ds.server.errors import ApiError
from ds2ds.server.settings import ServerSettings

_DISCARDED = 16
"""A body that is too large is read on up to so many times the limit, and thrown away: a client that is still sending
would not read the answer."""

_UNREAD = {"Connection": "close"}
"""Of an answer to a body that has not been read to its end; else the server would read on, and throw it away."""


class Guard:
    """Middleware: lets in whoever bears the key, by a name that this server has, from no foreign web page.

    Without a key, what keeps web pages away from a server on the reader's own machine is: a Host that must be one of
    `allowed_hosts` (a page whose name resolves to this machine has its own), an Origin that must be the same, and JSON,
    which no page may send elsewhere without asking first.

    Args:
        open_paths: need no key.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, open_paths: frozenset[str]) -> None:
        self.app, self.settings, self.open_paths = app, settings, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                self._check(scope, headers)
            except ApiError as error:
                if not await _read_on(headers, receive, self.settings):
                    error.headers |= _UNREAD
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = _without_port(headers.get("host", ""))
        allowed = self.settings.allowed_hosts
        if allowed is not None and host not in allowed:
            raise ApiError(403, f"this server is not {host!r}", code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and _without_port(_netloc(origin)) not in (host, *(allowed or ())):
            raise ApiError(403, f"pages from {origin!r} may not use this server", code="origin_not_allowed")
        if scope["path"] not in self.open_paths:
            self._check_key(headers.get("authorization", ""))
        if scope["method"] == "POST":
            content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
            if content_type != "application/json":
                raise ApiError(415, f"the body must be application/json, got {content_type!r}")
            encoding = headers.get("content-encoding", "identity").strip().lower()
            if encoding != "identity":
                raise ApiError(415, f"the body must come uncompressed, got Content-Encoding {encoding!r}")

    def _check_key(self, authorization: str) -> None:
        if self.settings.api_key is None:
            return
        scheme, _, key = authorization.partition(" ")
        # Compared as a whole, in a time that tells nothing of where they differ.
        same = hmac.compare_digest(key.strip().encode(), self.settings.api_key.encode())
        if scheme.lower() != "bearer" or not same:
            told = "wrong API key" if authorization else "no API key: send it as `Authorization: Bearer KEY`"
            raise ApiError(401, told, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


class BodyLimit:
    """Middleware: reads a request's body before it goes on, within a size and a time."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.settings.body_timeout):
                body = await _read(Headers(scope=scope), receive, self.settings.max_body_bytes)
        except TimeoutError:
            late = ApiError(
                408, f"the body did not come within {self.settings.body_timeout:g} seconds", headers=_UNREAD
            )
            await late.response()(scope, receive, send)
        except ApiError as error:
            await error.response()(scope, receive, send)
        else:
            if body is not None:
                await self.app(scope, _again(body, receive), send)


async def _read(headers: Headers, receive: Receive, most: int) -> bytes | None:
    """A body of at most so many bytes; None: the client went.

    Raises:
        ApiError: it has more.
    """
    too_large = ApiError(413, f"the body must have at most {most} bytes", code="body_too_large", headers=_UNREAD)
    told = headers.get("content-length", "")
    size = int(told) if told.isdecimal() else 0
    if size > most and (size > _DISCARDED * most or "expect" in headers):
        raise too_large
    body = bytearray()
    read = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        piece = message.get("body", b"")
        more = message.get("more_body", False)
        read += len(piece)
        if read <= most:
            body += piece
        elif read > _DISCARDED * most:
            break
    if read > most:
        raise too_large
    return bytes(body)


async def _read_on(headers: Headers, receive: Receive, settings: ServerSettings) -> bool:
    """Let the body of a request that is refused for something else come, within the same bounds; False: not all of it
    has. A client that waits to be asked for it is not asked."""
    if "expect" in headers:
        return False
    try:
        async with asyncio.timeout(settings.body_timeout):
            await _read(headers, receive, settings.max_body_bytes)
    except (TimeoutError, ApiError):
        return False
    return True


def _again(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then what else comes."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _without_port(host: str) -> str:
    name, colon, port = host.strip().lower().rpartition(":")
    return name if colon and port.isdecimal() and not name.endswith(":") else host.strip().lower()
