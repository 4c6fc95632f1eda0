"""The app: its routes, and what stands before them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST

from ds2ds import __version__
from ds2ds.backend import AsyncBackend
from ds2ds.server import errors
from ds2ds.server.completions import Completion
from ds2ds.server.errors import ApiError
from ds2ds.server.metrics import CountAnswers
from ds2ds.server.page.routes import OPEN_PATHS as PAGE_PATHS
from ds2ds.server.page.routes import add_page
from ds2ds.server.protocol import CompletionRequest, CompletionResponse, ErrorResponse, ModelCard, ModelList
from ds2ds.server.security import BodyLimit, Guard
from ds2ds.server.service import Service
from ds2ds.server.settings import ServerSettings
from ds2ds.server.sse import EventResponse

OPEN_PATHS = frozenset({"/health"}) | PAGE_PATHS
"""What may be seen without a key."""

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "Something in the request is wrong; `param` says what",
        401: "No API key, or a wrong one",
        403: "A Host or an Origin that may not use this server",
        404: "No such model",
        408: "The body came too slowly",
        413: "The body is too large",
        415: "The body is compressed, or not application/json",
        429: "Too much waits already; `Retry-After` says when to try again",
        500: "Internal error",
        503: "The model is being loaded, or the server is stopping",
        504: "The request's time is over",
    }.items()
}


_EVENT = {
    "description": "One event of a stream",
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}


def create_app(
    source: AsyncBackend | Callable[[], AsyncBackend],
    settings: ServerSettings,
    corpora: Mapping[str, Any] | None = None,
    on_loaded: Callable[[Service], None] = lambda service: None,
) -> FastAPI:
    """An app that serves a backend.

    Args:
        source: the backend, or what loads it: that is called in a thread once the app has started, and until it returns
            /health answers 503.
        corpora: what links lead to, by the names that requests have for it; the first is the default. What is named is
            whatever the backend's methods take as a corpus; better open it once than name its path.
        on_loaded: told when loading is over, well or not.

    `app.state.service` is the Service.
    """
    service = Service(source, corpora or {}, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def load() -> None:
            await service.load()
            on_loaded(service)

        loading = asyncio.create_task(load())
        yield
        await loading  # a thread cannot be stopped
        await service.aclose()

    # No pages of FastAPI's: they load their scripts from elsewhere.
    app = FastAPI(title="ds2ds", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    errors.install(app)
    _add_routes(app, service)
    add_page(app, service)
    paths = frozenset(route.path for route in app.routes if isinstance(route, APIRoute))
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Guard, settings=settings, open_paths=OPEN_PATHS)
    app.add_middleware(CountAnswers, metrics=service.metrics, paths=paths)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    created = int(time.time())

    def card() -> ModelCard:
        planner = service.planner
        return ModelCard(
            id=service.settings.model,
            created=created,
            max_model_len=planner.longest_prompt,
            corpora=list(service.corpora),
        )

    @app.post(
        "/v1/completions",
        response_model=CompletionResponse,
        responses={**_ERRORS, 200: {"content": {"text/event-stream": {"schema": _EVENT}}}},
        summary="Write a prompt on, and follow its links",
    )
    async def completions(body: Annotated[CompletionRequest, Body()], request: Request) -> Response:
        completion = Completion(service, body)
        if body.stream:
            return EventResponse(completion.stream)
        return await completion.answer(request.receive)

    @app.get("/v1/models", responses=_only(401, 403, 503), summary="The model that is served")
    async def models() -> ModelList:
        return ModelList(data=[card()])

    @app.get("/v1/models/{model:path}", responses=_only(401, 403, 404, 503), summary="The model that is served")
    async def model(model: str) -> ModelCard:
        if model != service.settings.model:
            known = service.settings.model
            raise ApiError(
                404, f"the model {errors.shown(model)} does not exist: this server has {known!r}", param="model"
            )
        return card()

    @app.head("/health", include_in_schema=False)  # all that some load balancers ask for
    @app.get("/health", responses={503: {"description": "Nothing can be served"}}, summary="Whether it can serve")
    async def health() -> JSONResponse:
        return JSONResponse({"status": service.state}, 200 if service.state == "ok" else 503)

    @app.get("/metrics", responses=_only(401, 403), response_class=Response, summary="For Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ERRORS[status] for status in statuses}
