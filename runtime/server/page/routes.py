"""The page's files and requests, in an app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI
from fastapi.responses import JSONResponse, Response

from ds2ds.backend import AsyncTellsAttention, InteractiveEvents
from ds2ds.documents.eviction import EVICTION_POLICIES
from ds2ds.server.errors import ApiError, as_api_error
from ds2ds.server.page.attention import of_token, overview
from ds2ds.server.page.protocol import AnswerRequest, AttentionRequest, SessionRequest
from ds2ds.server.page.run import Run
from ds2ds.server.page.sessions import Sessions
from ds2ds.server.plan import NO_CORPUS
from ds2ds.server.service import Service
from ds2ds.server.sse import EventResponse

ASSETS = Path(__file__).parent / "assets"

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}

_HEADERS = {
    # Nothing from elsewhere, and nothing that a text could bring in: the page's own files, and requests to this server.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def _files() -> dict[str, Path]:
    files = {f"/page/{file.name}": file for file in sorted(ASSETS.iterdir()) if file.suffix in _TYPES}
    return {"/" if path == "/page/index.html" else path: file for path, file in files.items()}


OPEN_PATHS = frozenset(_files())
"""What the page consists of may be seen without a key; it asks for the key itself."""


def add_page(app: FastAPI, service: Service) -> None:
    """Add the page at `/`. Its requests are its own: they are in no description, and may change with it."""
    sessions = Sessions()
    app.state.page_sessions = sessions
    for path, file in _files().items():
        _add_file(app, path, file)

    def route(path: str) -> Any:
        return app.post(path, include_in_schema=False)

    @app.get("/page/about", include_in_schema=False)
    async def about() -> JSONResponse:
        return JSONResponse(_about(service))

    @route("/page/sessions")
    async def start(body: Annotated[SessionRequest, Body()]) -> Response:
        return EventResponse(Run(service, sessions, body).stream)

    @route("/page/answers")
    async def answer(body: Annotated[AnswerRequest, Body()]) -> JSONResponse:
        stream = sessions.running(body.session).stream
        if not isinstance(stream, InteractiveEvents):
            raise ApiError(404, "the session asks nothing", param="session")
        try:
            await stream.answer(body.question, body.choice())
        except Exception as error:
            raise as_api_error(error, service.retry_after) from error
        return JSONResponse({})

    @route("/page/attention")
    async def attention(body: Annotated[AttentionRequest, Body()]) -> JSONResponse:
        session, backend = sessions.ended(body.session), service.planner.backend
        if not isinstance(backend, AsyncTellsAttention):
            raise ApiError(404, "this server's model does not tell its attention")
        try:
            if body.token is None:
                return JSONResponse(await overview(backend, session, body.document))
            return JSONResponse(await of_token(backend, session, body.document, body.token))
        except Exception as error:
            raise as_api_error(error, service.retry_after) from error


def _add_file(app: FastAPI, path: str, file: Path) -> None:
    content, kind = file.read_bytes(), _TYPES[file.suffix]

    @app.get(path, include_in_schema=False)
    async def told() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=_HEADERS)


def _about(service: Service) -> dict[str, Any]:
    """What the page needs to know before it can ask for anything."""
    planner = service.planner
    default = planner.default.to_dict()
    names = ("max_link_depth", "max_auxiliary_documents", "allow_corpus_fallback", "eviction_policy")
    return {
        "model": service.settings.model,
        "corpora": [*service.corpora, NO_CORPUS],
        "has_headings": planner.limits.has_headings,
        "max_link_depth": service.settings.max_link_depth,
        "max_tokens": service.settings.max_tokens or planner.longest_prompt,
        "eviction_policies": list(EVICTION_POLICIES),
        "tells_attention": isinstance(planner.backend, AsyncTellsAttention),
        "defaults": {name: default[name] for name in names},
    }
