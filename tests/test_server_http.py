"""The server behind a socket: the openai client, clients that go away, and many of all kinds at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from scripted import EOS, Texts, encode, follow, is_clean, small_runtime
from serving import URL, FakeBackend, body, listening

from ds2ds import AsyncRuntime, Runtime
from ds2ds.generation.events import DocumentClosed
from ds2ds.server.plan import choice_seed

CORPUS = Texts({"A": "about A, with [b](B) and more", "B": "about B"})


@contextlib.contextmanager
def openai_client(source: Any, **options: Any) -> Iterator[openai.OpenAI]:
    with listening(source, {"c": CORPUS}, **options) as (url, _):
        key = options.get("api_key") or "none"
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
            yield client


def text_alone(prompt: str, seed: int, max_tokens: int = 12, **options: Any) -> str:
    """What a runtime of its own writes."""
    result = small_runtime().generate(prompt, seed=seed, max_new_tokens=max_tokens, max_link_depth=0, **options)
    tokens = result.root_document.tokens[len(encode(prompt)) :]
    text: str = small_runtime().detokenize([token for token in tokens if token != EOS])
    return text


# The openai client

OFF: dict[str, Any] = {"max_link_depth": 0}


def test_openai_client() -> None:
    with openai_client(small_runtime(arena_tokens=20_000)) as client:
        plain = client.completions.create(model="m", prompt="some text", max_tokens=12, seed=3, extra_body=OFF)
        assert plain.choices[0].text == text_alone("some text", 3)
        assert plain.usage is not None and plain.usage.prompt_tokens == len(encode("some text"))
        assert plain.usage.prompt_tokens_details is not None
        assert plain.usage.prompt_tokens_details.cached_tokens == 0
        assert [model.id for model in client.models.list()] == ["m"]
        assert client.models.retrieve("m").id == "m"

        stream = client.completions.create(
            model="m",
            prompt="some text",
            max_tokens=12,
            seed=3,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=OFF,
        )
        chunks = list(stream)
        assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == plain.choices[0].text
        assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == plain.choices[0].finish_reason
        assert chunks[-1].choices == [] and chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens

        several = client.completions.create(
            model="m", prompt=["a", "some text"], n=2, max_tokens=12, seed=3, logprobs=2, echo=True, extra_body=OFF
        )
        assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
        seeds = [choice_seed(3, at) for at in (0, 1)]
        expected = [prompt + text_alone(prompt, seed or 0) for prompt in ("a", "some text") for seed in seeds]
        assert [choice.text for choice in several.choices] == expected
        logprobs = several.choices[2].logprobs
        assert logprobs is not None and logprobs.tokens is not None and logprobs.token_logprobs is not None
        assert logprobs.tokens[0] == "s" and logprobs.token_logprobs[0] is None
        assert logprobs.top_logprobs is not None and len(logprobs.top_logprobs) == len(logprobs.tokens)


def test_openai_client_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "see [a](A) and more"})
    with openai_client(small_runtime(arena_tokens=20_000)) as client:
        answer = client.completions.create(model="m", prompt="p", max_tokens=50, stop=["more", "x"])
        assert answer.choices[0].text == "see [a](A) and " and answer.choices[0].finish_reason == "stop"
        documents = answer.choices[0].model_extra["documents"]  # type: ignore[index]
        assert [document["title"] for document in documents] == ["A"]
        stream = client.completions.create(model="m", prompt="p", max_tokens=50, stop="more", stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == "see [a](A) and "


def test_openai_client_meets_its_errors() -> None:
    with openai_client(FakeBackend(), api_key="k3y") as client:
        assert client.completions.create(model="m", prompt="p").choices[0].text == "hello"
        with pytest.raises(openai.NotFoundError, match="does not exist") as missing:
            client.completions.create(model="gpt-4", prompt="p")
        assert missing.value.code == "model_not_found" and missing.value.param == "model"
        with pytest.raises(openai.BadRequestError, match="logit_bias is not supported") as refused:
            client.completions.create(model="m", prompt="p", logit_bias={"1": 1})
        assert refused.value.param == "logit_bias" and refused.value.type == "invalid_request_error"
        with pytest.raises(openai.BadRequestError, match="temperature must be"):
            client.completions.create(model="m", prompt="p", temperature=3, stream=True)
        with pytest.raises(openai.AuthenticationError, match="wrong API key"):
            client.with_options(api_key="other").completions.create(model="m", prompt="p")
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="m", messages=[])


def test_openai_client_retries_where_it_is_told_to() -> None:
    from ds2ds import QueueFullError

    class FullAtFirst(FakeBackend):
        def stream(self, *args: Any, **options: Any) -> Any:
            self.error = QueueFullError("full") if len(self.asked) < 2 else None
            return super().stream(*args, **options)

    backend = FullAtFirst()
    with openai_client(backend) as client:
        with pytest.raises(openai.RateLimitError, match="try again later") as full:
            client.completions.create(model="m", prompt="p")
        assert full.value.response.headers["retry-after"] == "1"
        answer = client.with_options(max_retries=2).completions.create(model="m", prompt="p")
        assert answer.choices[0].text == "hello" and len(backend.asked) == 3


# Clients that go away


def request_bytes(fields: dict[str, Any]) -> bytes:
    content = json.dumps(body(**fields)).encode()
    head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize(
    "fields", [{}, {"stream": True}, {"n": 3}, {"n": 3, "stream": True, "logprobs": 1, "echo": True}]
)
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_goes_ends_its_request(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], reset: bool
) -> None:
    follow(monkeypatch, {"": "x" * 1000})
    runtime = small_runtime(arena_tokens=20_000)
    served = AsyncRuntime(runtime)
    with listening(served) as (url, app):
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(request_bytes({"max_tokens": 500, **fields}))
            until(lambda: served.usage().running == fields.get("n", 1))
            assert app.state.service.held == fields.get("n", 1)
            if fields == {"stream": True}:
                assert b"text/event-stream" in client.recv(200)
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        until(lambda: served.usage().running == 0 and app.state.service.held == 0)
        text = httpx.get(f"{url}/metrics").text
        assert "ds2ds_disconnects_total 1.0" in text
        assert httpx.post(url + URL, json=body(max_tokens=3)).status_code == 200
    assert is_clean(runtime)


def test_a_client_that_goes_while_its_request_waits() -> None:
    backend = FakeBackend(hold=asyncio.Event())
    with listening(backend) as (url, app):
        port = int(url.rpartition(":")[2])
        for fields in ({}, {"stream": True}, {"max_tokens": 0}):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(request_bytes(fields))
                until(lambda: app.state.service.held == 1)
            until(lambda: app.state.service.held == 0 and backend.open == 0)


def test_a_client_that_goes_before_its_body_has_come() -> None:
    backend = FakeBackend()
    with listening(backend) as (url, app):
        port = int(url.rpartition(":")[2])
        for size in (0, 20, 100, len(request_bytes({})) - 1):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(request_bytes({})[:size])
        assert httpx.post(url + URL, json=body()).status_code == 200
        assert len(backend.asked) == 1 and app.state.service.held == 0


def test_a_client_that_reads_nothing_does_not_hold_up_others(caplog: pytest.LogCaptureFixture) -> None:
    backend = FakeBackend("x" * 500)
    backend.limits = replace(backend.limits, max_running=20)
    model = "m" * 1000  # is in every chunk: together more than the sockets' buffers hold
    with listening(backend, request_timeout=3.0, model=model) as (url, app):
        port = int(url.rpartition(":")[2])
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(request_bytes({"model": model, "stream": True, "max_tokens": 500, "n": 20}))
            until(lambda: len(backend.asked) == 20)
            until(lambda: backend.open == 0)  # it was written to its end all the same
            assert httpx.get(f"{url}/health").status_code == 200
            until(lambda: app.state.service.held == 0)
            until(lambda: "a client did not take the end of its stream" in caplog.text)


def test_nothing_is_written_on_to_a_client_that_has_gone(caplog: pytest.LogCaptureFixture) -> None:
    written, gone = threading.Event(), threading.Event()

    class Busy(FakeBackend):
        """Has the event loop to itself while the client goes; then there is much to be sent at once."""

        async def stream(self, *args: Any, **options: Any) -> Any:
            async for event in super().stream(*args, **options):
                if isinstance(event, DocumentClosed):
                    written.set()
                    gone.wait(20)
                yield event

    backend = Busy("x" * 100)
    with listening(backend) as (url, app):
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(request_bytes({"stream": True, "max_tokens": 100}))
            assert written.wait(20)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        gone.set()
        until(lambda: app.state.service.held == 0 and backend.open == 0)
    assert "socket.send() raised exception" not in caplog.text


@pytest.mark.parametrize(
    "refused", ["", "Authorization: Bearer wrong", "Origin: http://elsewhere", "Content-Encoding: gzip"]
)
def test_a_body_without_an_end_is_not_read_without_an_end(refused: str) -> None:
    key = "Authorization: Bearer k" if "Authorization" not in refused else refused
    more = "" if refused in ("", key) else f"{refused}\r\n"
    with listening(FakeBackend(), max_body_bytes=1000, api_key="k") as (url, _):
        port = int(url.rpartition(":")[2])
        for length in ("Transfer-Encoding: chunked", "Content-Length: 99999999999"):
            head = (
                f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{length}\r\n"
                f"{key}\r\n{more}\r\n"
            )
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(head.encode())
                with pytest.raises(ConnectionError):
                    for _ in range(100_000):
                        client.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")


@pytest.mark.parametrize(
    ("length", "expect", "kept"), [(900, "", True), (3000, "", False), (900, "100-continue", False)]
)
def test_who_is_refused_has_the_answer_once_the_body_has_come(length: int, expect: str, kept: bool) -> None:
    with listening(FakeBackend(), max_body_bytes=1000, api_key="k") as (url, _):
        head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
        head += f"Expect: {expect}\r\n" if expect else ""
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            client.settimeout(20)
            client.sendall(head.encode() + b"\r\n")
            if not expect:
                client.sendall(b" " * length)
            answer = client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 401 ") and (b"connection: close" not in answer.lower()) == kept
            if not kept:
                while client.recv(65536):  # its end, or what is left of the answer
                    pass


def test_who_is_refused_and_sends_nothing_is_not_waited_for() -> None:
    with listening(FakeBackend(), body_timeout=0.2, api_key="k") as (url, _):
        head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            client.settimeout(20)
            client.sendall(head.encode())
            answer = b""
            while piece := client.recv(65536):
                answer += piece
            assert answer.startswith(b"HTTP/1.1 401 ")


# Many of all kinds


class Crowd:
    """Requests of many kinds against one server, some of which must not be disturbed by the others."""

    def __init__(self, url: str, seed: int) -> None:
        self.url, self.port = url, int(url.rpartition(":")[2])
        self.random = random.Random(seed)
        self.client = httpx.AsyncClient(
            base_url=url, timeout=120, limits=httpx.Limits(max_connections=None, max_keepalive_connections=20)
        )
        self.leavers = 0
        self.healthy: list[tuple[str, int, str]] = []

    async def run(self, count: int) -> dict[str, int]:
        kinds = [
            self.plain,
            self.streamed,
            self.leaves,
            self.leaves_stream,
            self.bad_json,
            self.oversized,
            self.refused,
        ]
        chosen = [self.random.choice(kinds) for _ in range(count)]
        async with self.client:
            await asyncio.gather(*(kind(at) for at, kind in enumerate(chosen)))
        return {kind.__name__: chosen.count(kind) for kind in kinds}

    async def plain(self, at: int) -> None:
        answer = await self.client.post(URL, json=self.request(at))
        assert answer.status_code == 200, answer.text
        self.healthy.append((f"p{at % 7}", at, answer.json()["choices"][0]["text"]))

    async def streamed(self, at: int) -> None:
        answer = await self.client.post(URL, json={**self.request(at), "stream": True})
        assert answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n")
        blocks = [json.loads(block.removeprefix("data: ")) for block in answer.text.split("\n\n")[:-2]]
        self.healthy.append((f"p{at % 7}", at, "".join(block["choices"][0]["text"] for block in blocks)))

    async def leaves(self, at: int, stream: bool = False) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        links = {"prompt": "see [a](A) and [x](New) so ", "max_tokens": 100, "max_link_depth": 2, "stream": stream}
        writer.write(request_bytes(links))
        await asyncio.sleep(self.random.random() * 0.5)
        if stream and self.random.random() < 0.5:
            await reader.read(300)
        if self.random.random() < 0.5:
            writer.transport.abort()
        writer.close()

    async def leaves_stream(self, at: int) -> None:
        await self.leaves(at, stream=True)

    async def bad_json(self, at: int) -> None:
        content = bytes(self.random.randrange(256) for _ in range(50)) if at % 2 else b'{"model": "m", "prompt": '
        answer = await self.client.post(URL, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and "error" in answer.json()

    async def oversized(self, at: int) -> None:
        content = b" " * (20_000 * (1 + at % 3))
        answer = await self.client.post(URL, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413 and "error" in answer.json()

    async def refused(self, at: int) -> None:
        answer = await self.client.post(URL, json=body(prompt=[10**9]))
        assert answer.status_code == 400

    def request(self, at: int) -> dict[str, Any]:
        return body(f"p{at % 7}", seed=at, max_tokens=8, max_link_depth=0, temperature=0.9)


def crowd(count: int, seed: int) -> None:
    runtime = small_runtime(arena_tokens=20_000)
    served = AsyncRuntime(runtime)
    with listening(served, {"c": CORPUS}, max_body_bytes=10_000) as (url, app):

        async def main() -> Crowd:
            people = Crowd(url, seed)
            kinds = await people.run(count)
            assert min(kinds.values()) > 0
            people.leavers = kinds["leaves"] + kinds["leaves_stream"]
            return people

        people = asyncio.run(main())
        until(lambda: app.state.service.held == 0 and served.usage().running == 0, 60)
        assert httpx.get(f"{url}/health").status_code == 200
        metrics = httpx.get(f"{url}/metrics").text
        (gone,) = re.findall(r"^ds2ds_disconnects_total (\S+)$", metrics, re.MULTILINE)
        assert 0 < float(gone) <= people.leavers
        after = httpx.post(url + URL, json=body("p", seed=1, max_tokens=4, max_link_depth=0))
        assert after.status_code == 200
    assert is_clean(runtime)
    runtime.engine.store.clear()
    assert runtime.engine.store.arena.allocator.used == 0
    assert len(people.healthy) > count // 5
    for prompt, at, text in people.healthy:
        assert text == text_alone(prompt, at, 8, temperature=0.9), (prompt, at)


def test_a_hundred_of_all_kinds_do_each_other_no_harm() -> None:
    crowd(100, 0)


@pytest.mark.slow
def test_five_hundred_of_all_kinds_leave_no_memory_behind() -> None:
    crowd(500, 1)
    gc.collect()
    before = resident_megabytes()
    for seed in range(2, 5):
        crowd(500, seed)
    gc.collect()
    assert resident_megabytes() - before < 30


def resident_megabytes() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_from_a_runtime_of_its_own_nothing_is_left() -> None:
    runtime: Runtime = small_runtime()
    with listening(runtime) as (url, _):
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    assert is_clean(runtime)
