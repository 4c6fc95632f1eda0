"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, whatever goes wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ds2ds.errors import (
    ArenaFullError,
    ConfigError,
    Ds2dsError,
    QueueFullError,
    RuntimeClosedError,
)
from ds2ds.server.protocol import MAX_STOP, CompletionRequest

log = logging.getLogger("ds2ds.server")

_SHOWN = 80  # characters of a wrong value

_FORMS = {
    "prompt": "be a string, a list of strings, a list of token ids, or a list of such lists, and no list may be empty",
    "stop": f"be a string, or a list of at most {MAX_STOP} strings, none of them empty",
}
"""What a field must be that has several forms: the checks tell what keeps a value from being the first of them."""


class ApiError(Exception):
    """What a client is told.

    Attributes:
        status: of HTTP.
        param: the field of the request that is wrong.
        code: for programs to read.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "error": {"message": self.message, "type": self._type, "param": self.param, "code": self.code},
        }

    @property
    def _type(self) -> str:
        special = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return special.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def response(self) -> JSONResponse:
        return _AsciiResponse(self.body(), self.status, self.headers)


class _AsciiResponse(JSONResponse):
    """What a client sent comes back in messages; not all of it can be written as UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


def as_api_error(error: Exception, retry_after: int) -> ApiError:
    """What is told of an error of the backend. Of one that nobody foresaw the message goes to the log alone."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return too_many("too many requests wait already", retry_after)
    if isinstance(error, RuntimeClosedError):
        return ApiError(503, "the server is stopping", code="stopping")
    if isinstance(error, ConfigError):
        name, _, _ = str(error).partition(" must ")
        return ApiError(400, str(error), param=name if name in CompletionRequest.model_fields else None)
    if isinstance(error, ArenaFullError):
        return ApiError(400, str(error))
    if isinstance(error, Ds2dsError):
        log.error("a request failed: %s", error)
        return ApiError(500, str(error))
    log.error("a request failed", exc_info=error)
    return ApiError(500, "internal error; the server's log tells more")


def too_many(message: str, retry_after: int) -> ApiError:
    return ApiError(429, f"{message}: try again later", code="queue_full", headers={"Retry-After": str(retry_after)})


def shown(value: Any) -> str:
    """A wrong value, as far as it is worth to be told."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def install(app: FastAPI) -> None:
    """Let every error leave the app in OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def _told(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _invalid_request(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        told = str(error.detail)
        if error.__cause__ is not None:
            # Bytes that are no UTF-8, say, or too deep a nesting: FastAPI tells only that there is something.
            told = f"the body is no JSON that can be read: {error.__cause__}"
        if told == HTTPStatus(error.status_code).phrase:
            told = f"{told}: {request.method} {request.url.path}"
        return ApiError(error.status_code, told, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error, retry_after=1).response()


def _invalid_request(errors: Sequence[Any]) -> ApiError:
    """The first thing that is wrong with a request's body."""
    # Text that is no text has the form that it should have, and was tried in others, too.
    first = next((error for error in errors if error["type"] == "value_error"), errors[0])
    where = [str(part) for part in first["loc"][1:]]
    kind, message = first["type"], first["msg"]
    if kind == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    if kind == "refused_field":
        name = ".".join([*where, first["ctx"]["field"]])
        return ApiError(400, message, param=name, code="unsupported_parameter")
    if not where:
        return ApiError(400, f"the body must be a JSON object with model and prompt: {message}")
    field = where[0]
    if kind == "missing":
        return ApiError(400, f"{field} is missing", param=field, code="missing_required_parameter")
    # Behind a field that has several forms stands the one that was tried; on the page a prompt has but one.
    must = _FORMS.get(field) if len(where) > 1 and kind != "value_error" else None
    if must is None:
        _, should, must = message.partition(" should ")  # "Input should be ...", "List should have ..."
        must = must if should else f"be {message.removeprefix('Value error, ')}"
    return ApiError(400, f"{field} must {must}, got {shown(first['input'])}", param=field)
