"""Servers for tests: a backend that says what it is told to, an app without a socket, and one with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from scripted import EOS, TOKENIZER, encode

from ds2ds import AsyncRuntime, BackendLimits, BackendUsage, GenerationConfig, Runtime
from ds2ds.documents.generation_result import GeneratedDocument, GenerationResult
from ds2ds.documents.link_formats import LINK_FORMATS, LinkFormat
from ds2ds.generation.events import DocumentClosed, DocumentOpened, Done, Event, TokenWritten
from ds2ds.server.app import create_app
from ds2ds.server.settings import ServerSettings

URL = "/v1/completions"
ALMOST = -0.5000001
"""A token's own log-probability as the list of the likeliest ones has it: from another sum, and so a little off."""


@dataclass
class FakeBackend:
    """Writes `text` for every prompt, then EOS.

    Attributes:
        error: raised instead of the token at `error_at`.
        hold: where one is set, tokens from `error_at` on wait for it.
        asked: (prompt, corpus, config) of each request.
        open: streams that have begun and not ended; cancelled: how many ended before they had told all.
    """

    text: str = "hello"
    error: Exception | None = None
    error_at: int = 0
    hold: asyncio.Event | None = None
    asked: list[tuple[Any, Any, GenerationConfig]] = field(default_factory=list)
    open: int = 0
    cancelled: int = 0
    closed: bool = False
    link_format: LinkFormat = LINK_FORMATS["markdown"]
    limits: BackendLimits = field(
        default_factory=lambda: BackendLimits(TOKENIZER.vocab_size, 512, EOS, 4096, 4, 4, False)
    )

    def default_config(self) -> GenerationConfig:
        return GenerationConfig(max_context_length=512, eos_token_id=EOS)

    def tokenize(self, text: str) -> list[int]:
        return encode(text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return TOKENIZER.decode(tokens)

    def token_bytes(self, token: int) -> bytes:
        return TOKENIZER.token_bytes(token)

    def usage(self) -> BackendUsage:
        return BackendUsage(self.open, 3, 160, 2, 7)

    async def stream(
        self, prompt: Any = None, prompt_tokens: Any = None, corpus: Any = None, config: Any = None, **_: Any
    ) -> AsyncGenerator[Event, None]:
        self.asked.append((prompt_tokens, corpus, config))
        self.open += 1
        told_all = False
        prompt = list(prompt_tokens)
        try:
            yield DocumentOpened("root", "generated", 0, None, TOKENIZER.decode(prompt))
            written = [*encode(self.text), EOS][: config.max_new_tokens]
            for at, token in enumerate(written):
                if at >= self.error_at and self.hold is not None:
                    await self.hold.wait()
                if at >= self.error_at and self.error is not None:
                    raise self.error
                yield TokenWritten("root", token, "", -0.5, ((token, ALMOST), (7, -1.5))[: config.top_logprobs])
            reason = "eos" if written[-1] == EOS else "max_new_tokens"
            root = GeneratedDocument("root", tokens=prompt + written, text="", is_root=True, finish_reason=reason)
            yield DocumentClosed("root", reason, root)
            told_all = True
            yield Done(GenerationResult(root, generation_config=config))
        finally:
            self.open -= 1
            self.cancelled += not told_all

    async def generate(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError

    async def generate_batch(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError

    async def score(self, prompts: Any, corpus: Any = None, config: Any = None, **_: Any) -> list[Any]:
        self.asked.append((prompts[0], corpus, config))
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        return [GenerationResult(GeneratedDocument("root", tokens=list(prompts[0]), text="", is_root=True))]

    async def aclose(self, cancel: bool = False) -> None:
        self.closed = True


def settings(**changed: Any) -> ServerSettings:
    return ServerSettings(**{"model": "m", **changed})


@contextlib.asynccontextmanager
async def client_of(
    source: Any, corpora: Any = None, headers: dict[str, str] | None = None, **changed: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app around a backend, or a Runtime; no socket is in between."""
    if isinstance(source, Runtime):
        source = AsyncRuntime(source)
    app = create_app(source, settings(**changed), corpora)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers, timeout=60) as client,
    ):
        client.app = app  # type: ignore[attr-defined]
        for _ in range(1000):
            if app.state.service.state != "loading" or callable(source):
                break
            await asyncio.sleep(0.001)
        yield client


def body(prompt: Any = "p", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": prompt, **fields}


async def complete(client: httpx.AsyncClient, prompt: Any = "p", **fields: Any) -> dict[str, Any]:
    answer = await client.post(URL, json=body(prompt, **fields))
    assert answer.status_code == 200, answer.text
    values: dict[str, Any] = answer.json()
    return values


async def events(client: httpx.AsyncClient, prompt: Any = "p", **fields: Any) -> list[tuple[str | None, Any]]:
    """(name, data) of each event of a stream; the end is (None, "[DONE]")."""
    answer = await client.post(URL, json=body(prompt, stream=True, **fields))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return parse_events(answer.text)


def parse_events(text: str) -> list[tuple[str | None, Any]]:
    found = []
    for block in text.split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        data = lines["data"]
        found.append((lines.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error in an answer, in OpenAI's shape."""
    values = answer.json()
    assert set(values) == {"error"}, values
    assert set(values["error"]) == {"message", "type", "param", "code"}
    assert isinstance(values["error"]["message"], str) and values["error"]["message"]
    error: dict[str, Any] = values["error"]
    return error


@contextlib.contextmanager
def listening(source: Any, corpora: Any = None, **changed: Any) -> Iterator[tuple[str, FastAPI]]:
    """A server with a socket of its own, in a thread of its own: its URL and its app."""
    if isinstance(source, Runtime):
        source = AsyncRuntime(source)
    app = create_app(source, settings(**changed), corpora)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="on", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started or app.state.service.state == "loading":
            threading.Event().wait(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", app
    finally:
        server.should_exit = True
        thread.join()
