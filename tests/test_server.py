"""The server before a backend that says what it is told to: shapes, refusals, limits, states."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scripted import EOS, TOKENIZER, encode
from serving import ALMOST, URL, FakeBackend, body, client_of, complete, error_of, events, settings

from ds2ds import (
    ArenaFullError,
    AsyncBackend,
    ConfigError,
    CorpusError,
    GenerationError,
    QueueFullError,
    RuntimeClosedError,
    WorkerError,
)
from ds2ds.server.protocol import CompletionRequest
from ds2ds.server.text import TextWriter, token_string

Test = Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]


def serve(test: Test, backend: Any = None, **options: Any) -> Any:
    async def main() -> Any:
        async with client_of(backend or FakeBackend(), **options) as client:
            return await test(client)

    return asyncio.run(main())


def refused(fields: dict[str, Any], backend: Any = None, **options: Any) -> dict[str, Any]:
    """The error of a request that is refused with 400, streamed or not; nothing reaches the backend."""
    backend = backend or FakeBackend()

    async def test(client: httpx.AsyncClient) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        answer = await client.post(URL, content=json.dumps({**body(), **fields}), headers=headers)
        assert answer.status_code == 400, answer.text
        content = json.dumps({**body(), **fields, "stream": fields.get("stream", True)})
        streamed = await client.post(URL, content=content, headers=headers)
        assert (streamed.status_code, streamed.json()) == (400, answer.json())
        return error_of(answer)

    error: dict[str, Any] = serve(test, backend, **options)
    assert error["type"] == "invalid_request_error" and backend.asked == []
    return error


# Answers


def test_an_answer_has_openais_shape() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        answer = await complete(client, "abc")
        assert answer.pop("id").startswith("cmpl-") and isinstance(answer.pop("created"), int)
        assert answer == {
            "object": "text_completion",
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "text": "hello",
                    "logprobs": None,
                    "finish_reason": "stop",
                    "documents": [],
                    "grants": [],
                }
            ],
            "usage": {
                "prompt_tokens": 3,
                "completion_tokens": 6,
                "total_tokens": 9,
                "prompt_tokens_details": {"cached_tokens": 0},
                "documents": {"count": 0, "tokens": 0, "written_tokens": 0, "cached_tokens": 0},
            },
        }

    assert isinstance(FakeBackend(), AsyncBackend)
    serve(test)


def test_a_stream_is_chunks_and_done() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        told = await events(client, "abc", max_tokens=3)
        assert [name for name, _ in told] == [None] * 5 and told[-1] == (None, "[DONE]")
        chunks = [data for _, data in told[:-1]]
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert {chunk["object"] for chunk in chunks} == {"text_completion"}
        assert all("usage" not in chunk for chunk in chunks)
        choices = [chunk["choices"][0] for chunk in chunks]
        assert [choice["text"] for choice in choices] == ["h", "e", "l", ""]
        assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]

        told = await events(client, "abc", max_tokens=3, stream_options={"include_usage": True})
        assert [data["usage"] for _, data in told[:-2]] == [None] * 4
        last = told[-2][1]
        assert last["choices"] == [] and last["usage"]["total_tokens"] == 6

    serve(test)


def test_an_event_is_one_line_whatever_ends_a_line() -> None:
    text = "a\u2028b\u2029c\x85d\x1ee\x0cf\rg\nh"

    async def test(client: httpx.AsyncClient) -> None:
        told = ""
        fields = body(stream=True, max_tokens=100)
        async with client.stream("POST", URL, json=fields) as stream:
            async for line in stream.aiter_lines():
                if line and line != "data: [DONE]":
                    told += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
        assert told == text

    serve(test, FakeBackend(text))


def test_prompts_of_every_kind_times_n_are_choices_in_order() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        backend = client.app.state.service.planner.backend  # type: ignore[attr-defined]
        for prompt, tokens in (
            ("ab", ["ab"]),
            (["ab", "c"], ["ab", "c"]),
            (encode("ab"), ["ab"]),
            ([encode("ab"), encode("c")], ["ab", "c"]),
            ("", [""]),
        ):
            backend.asked.clear()
            answer = await complete(client, prompt, n=2, seed=5, max_tokens=2)
            assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(tokens)))
            assert [TOKENIZER.decode(asked[0]) for asked in backend.asked] == [t for t in tokens for _ in range(2)]
            assert answer["usage"]["prompt_tokens"] == sum(map(len, tokens))
            assert answer["usage"]["completion_tokens"] == 4 * len(tokens)
            seeds = [asked[2].seed for asked in backend.asked]
            assert seeds[::2] == [5] * len(tokens) and seeds[1] != 5 and len(set(seeds[1::2])) == 1

    serve(test)


def test_settings_reach_the_backend_and_null_is_the_default() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        backend = client.app.state.service.planner.backend  # type: ignore[attr-defined]
        await complete(
            client,
            "abc",
            max_tokens=7,
            temperature=0.5,
            top_p=0.9,
            top_k=3,
            min_p=0.1,
            repetition_penalty=1.2,
            stop=["x", "yz"],
            stop_token_ids=[9],
            ignore_eos=True,
            max_link_depth=2,
            seed=-4,
            logprobs=2,
            echo=True,
            user="someone",
            corpus="b",
            best_of=1,
            logit_bias={},
            presence_penalty=0,
            frequency_penalty=0.0,
            suffix="",
        )
        _, corpus, config = backend.asked[0]
        assert corpus == "corpus b"
        wanted = {
            "max_new_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 3,
            "min_p": 0.1,
            "repetition_penalty": 1.2,
            "stop": ["x", "yz"],
            "stop_token_ids": [9],
            "ignore_eos": True,
            "max_link_depth": 2,
            "seed": -4,
            "logprobs": True,
            "prompt_logprobs": True,
            "top_logprobs": 2,
            "max_context_length": 512,
            "max_tokens_per_document": 512,
        }
        assert wanted.items() <= config.to_dict().items()

        await complete(client, "abc", **dict.fromkeys(set(CompletionRequest.model_fields) - {"model", "prompt"}))
        _, corpus, config = backend.asked[1]
        assert corpus == "corpus a" and config.max_new_tokens == 16 and config.seed is None
        assert (config.temperature, config.max_link_depth, config.logprobs) == (1.0, 1, False)

        # Where no link is followed, no room is kept for what links lead to.
        await complete(client, "abc", max_tokens=5, max_link_depth=0, corpus="none")
        _, corpus, config = backend.asked[2]
        assert corpus is None and config.max_context_length == config.max_tokens_per_document == 3 + 5

    serve(test, corpora={"a": "corpus a", "b": "corpus b"})


def test_logprobs_name_tokens_as_openai_does() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        (choice,) = (await complete(client, "ab", logprobs=1, max_tokens=9))["choices"]
        assert choice["text"] == "é)." and choice["logprobs"] == {
            "tokens": ["bytes:\\xc3", "bytes:\\xa9", ").", "<|endoftext|>"],
            "token_logprobs": [ALMOST] * 4,
            "top_logprobs": [
                {"bytes:\\xc3": ALMOST},
                {"bytes:\\xa9": ALMOST},
                {").": ALMOST},
                {"<|endoftext|>": ALMOST},
            ],
            "text_offset": [0, 0, 1, 3],
        }
        (choice,) = (await complete(client, "ab", logprobs=0, max_tokens=1))["choices"]
        assert choice["logprobs"]["top_logprobs"] is None and choice["logprobs"]["token_logprobs"] == [-0.5]
        streamed = [data["choices"][0] for _, data in (await events(client, "ab", logprobs=2, max_tokens=9))[:-1]]
        assert [one["text"] for one in streamed] == ["", "é", ").", "", ""]
        whole = (await complete(client, "ab", logprobs=2, max_tokens=9))["choices"][0]["logprobs"]
        for name, values in whole.items():
            assert [value for one in streamed if one["logprobs"] for value in one["logprobs"][name]] == values

    serve(test, FakeBackend("é)."))


# Refusals


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"surprise": 1}, "surprise", "unknown field 'surprise'"),
        ({"\ud800": 1}, "\\ud800", "unknown field"),
        ({"stream_options": {"x": 1}, "stream": True}, "stream_options.x", "unknown field 'x'"),
        ({"logit_bias": {"50256": -100}}, "logit_bias", "logit_bias is not supported"),
        ({"presence_penalty": 0.1}, "presence_penalty", "presence_penalty is not supported"),
        ({"frequency_penalty": -1}, "frequency_penalty", "frequency_penalty is not supported"),
        ({"suffix": "x"}, "suffix", "suffix is not supported"),
        ({"best_of": 2}, "best_of", "best_of is not supported: it must be n, 1, got 2"),
        ({"stream_options": {}, "stream": False}, "stream_options", "only for requests with stream"),
        ({"max_tokens": "16"}, "max_tokens", "max_tokens must be a valid integer, got '16'"),
        ({"max_tokens": 1.5}, "max_tokens", "max_tokens must be a valid integer"),
        ({"max_tokens": -1}, "max_tokens", "max_tokens must be greater than or equal to 0, got -1"),
        ({"max_tokens": True}, "max_tokens", "max_tokens must be a valid integer"),
        ({"max_tokens": 600}, "max_tokens", "the context has 512 tokens, but the prompt has 1 and max_tokens is 600"),
        ({"max_tokens": 10**40}, "max_tokens", "the context has 512 tokens"),
        ({"prompt": "x" * 600}, "prompt", "the context has 512 tokens, but the prompt has 600"),
        ({"prompt": []}, "prompt", "prompt must be a string, a list of strings, a list of token ids"),
        ({"prompt": [[]]}, "prompt", "prompt must be"),
        ({"prompt": [1, "a"]}, "prompt", "prompt must be"),
        ({"prompt": [True]}, "prompt", "prompt must be"),
        ({"prompt": None}, "prompt", "prompt must be"),
        ({"prompt": {"a": 1}}, "prompt", "prompt must be"),
        ({"prompt": "\ud800"}, "prompt", r"prompt must be text in Unicode, got '\ud800'"),
        ({"prompt": ["a", "\ud800"]}, "prompt", r"prompt must be text in Unicode, got '\ud800'"),
        ({"prompt": [1, 10**30]}, "prompt", "prompt must have token ids in"),
        ({"prompt": [-1]}, "prompt", "prompt must have token ids in"),
        ({"n": 0}, "n", "n must be greater than or equal to 1, got 0"),
        ({"n": 129}, "n", "prompts times n must be at most 128, got 1 x 129"),
        ({"prompt": ["a"] * 129}, "prompt", "prompts times n must be at most 128, got 129 x 1"),
        ({"n": 9}, "n", "prompts times n must be at most 8, got 9"),
        ({"temperature": 2.5}, "temperature", "temperature must be less than or equal to 2, got 2.5"),
        ({"temperature": -0.1}, "temperature", "temperature must be greater than or equal to 0"),
        ({"temperature": "1"}, "temperature", "temperature must be a valid number"),
        ({"top_p": 0}, "top_p", "top_p must be greater than 0, got 0"),
        ({"top_p": 1e-60}, "top_p", r"top_p must be in (0, 1]"),
        ({"top_k": -1}, "top_k", "top_k must be"),
        ({"min_p": 1.1}, "min_p", "min_p must be"),
        ({"repetition_penalty": 0}, "repetition_penalty", "repetition_penalty must be greater than or equal"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty", "repetition_penalty must be greater than or equal"),
        ({"stop": ""}, "stop", "stop must be a string, or a list of at most 16 strings, none of them empty, got ''"),
        ({"stop": ["a", ""]}, "stop", "stop must be a string, or a list of at most 16 strings"),
        ({"stop": ["a"] * 17}, "stop", "stop must be a string, or a list of at most 16 strings"),
        ({"stop": ["a", "\ud800"]}, "stop", r"stop must be text in Unicode, got '\ud800'"),
        ({"stop_token_ids": [1] * 65}, "stop_token_ids", "stop_token_ids must have at most 64 items"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "stop_token_ids must be"),
        ({"stop_token_ids": [10**9]}, "stop_token_ids", "stop_token_ids must have token ids in [0, 264)"),
        ({"seed": 2**63}, "seed", "seed must be less than"),
        ({"logprobs": 21}, "logprobs", "logprobs must be less than or equal to 20, got 21"),
        ({"logprobs": True}, "logprobs", "logprobs must be a valid integer, got True"),
        ({"echo": 1}, "echo", "echo must be a valid boolean, got 1"),
        ({"max_link_depth": 5}, "max_link_depth", "max_link_depth must be at most 4, got 5"),
        ({"corpus": "/etc"}, "corpus", "corpus must be one of ['c', 'none'], got '/etc'"),
        ({"model": None}, "model", "model must be a valid string, got None"),
        ({"user": 1}, "user", "user must be a valid string, got 1"),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields: dict[str, Any], param: str | None, message: str) -> None:
    if fields.get("stream") is None:
        fields.pop("stream", None)
    error = refused(fields, corpora={"c": None})
    assert error["param"] == param and message in error["message"], error


def test_where_no_links_are_followed_none_need_be_refused() -> None:
    backend = FakeBackend()
    serve(lambda client: complete(client), backend, max_link_depth=0)
    assert backend.asked[0][2].max_link_depth == 0
    error = refused({"max_link_depth": 1}, max_link_depth=0)
    assert error["message"] == "max_link_depth must be at most 0, got 1"


def test_limits_of_the_server() -> None:
    error = refused({"max_tokens": 6}, max_tokens=5)
    assert error["param"] == "max_tokens" and error["message"] == "max_tokens must be at most 5, got 6"
    error = refused({"max_tokens": 7, "prompt": "x" * 10}, max_context_length=16)
    assert error["code"] == "context_length_exceeded"
    error = refused({"n": 3}, max_choices=2)
    assert error["message"] == "prompts times n must be at most 2, got 1 x 3"


def test_no_default_is_beyond_the_limits() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        assert (await complete(client))["choices"][0]["text"] == "hel"

    backend = FakeBackend()
    serve(test, backend, max_tokens=3, max_link_depth=0)
    ((_, _, config),) = backend.asked
    assert (config.max_new_tokens, config.max_link_depth) == (3, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the body must be a JSON object"),
        (b"{", "the body is no JSON"),
        (b"nonsense", "the body is no JSON: Expecting value at character 0"),
        (b"[1]", "the body must be a JSON object"),
        (b'"text"', "the body must be a JSON object"),
        (b"null", "the body must be a JSON object"),
        (b'{"\xff"', "the body is no JSON that can be read: 'utf-8' codec can't decode byte 0xff in position 2"),
        (b"[" * 100_000, "while decoding a JSON array"),
        (b'{"model": "m", "prompt": "p", "seed": ' + b"9" * 5000 + b"}", "no JSON that can be read: Exceeds the limit"),
        (b'{"model": "m", "prompt": "p", "temperature": NaN}', "temperature must be a finite number, got nan"),
        (b'{"model": "m", "prompt": "p", "temperature": Infinity}', "temperature must be"),
        (b'{"prompt": "p"}', "model is missing"),
        (b'{"model": "m"}', "prompt is missing"),
    ],
)
def test_a_body_that_is_no_request_is_refused(content: bytes, message: str) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        answer = await client.post(URL, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert message in error_of(answer)["message"]

    serve(test)


def test_a_compressed_body_is_refused_as_that() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        answer = await client.post(URL, content=gzip.compress(json.dumps(body()).encode()), headers=headers)
        assert answer.status_code == 415
        assert error_of(answer)["message"] == "the body must come uncompressed, got Content-Encoding 'gzip'"
        headers["content-encoding"] = "identity"
        answer = await client.post(URL, content=json.dumps(body()).encode(), headers=headers)
        assert answer.status_code == 200

    serve(test)


def test_thousands_of_wrong_items_are_one_error_and_no_effort() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        for content in (
            {**body([1] * 100_000 + ["a"] * 100_000)},
            {**body([[True]] * 100_000)},
            {**body(), **{str(i): 1 for i in range(50_000)}},
            {**body(), "stop_token_ids": ["a"] * 100_000},
            {**body(), "stop": ["a"] * 100_000},
        ):
            answer = await client.post(URL, json=content)
            assert answer.status_code == 400 and len(answer.content) < 1000

    serve(test, max_body_bytes=2**24)


def test_other_models_paths_and_methods() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        answer = await client.post(URL, json={**body(), "model": "gpt-4"})
        error = error_of(answer)
        assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        answer = await client.get("/v1/models/other")
        assert answer.status_code == 404 and "'other' does not exist" in error_of(answer)["message"]
        answer = await client.get("/v1/chat/completions")
        assert answer.status_code == 404 and "GET /v1/chat/completions" in error_of(answer)["message"]
        answer = await client.get(URL)
        assert answer.status_code == 405 and error_of(answer) and answer.headers["allow"] == "POST"
        for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            answer = await client.post(URL, content=json.dumps(body()), headers={"content-type": content_type})
            assert answer.status_code == 415 and error_of(answer)

    serve(test)


def test_health_has_a_head() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        answer, head = await client.get("/health"), await client.head("/health")
        assert answer.status_code == head.status_code == 200
        assert not head.content and head.headers["content-length"] == answer.headers["content-length"]

    serve(test)


def test_models() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        (model,) = (await client.get("/v1/models")).json()["data"]
        assert isinstance(model.pop("created"), int)
        assert model == {
            "id": "a/m",
            "object": "model",
            "owned_by": "ds2ds",
            "max_model_len": 512,
            "corpora": ["x", "y"],
        }
        assert (await client.get("/v1/models/a/m")).json()["id"] == "a/m"

    serve(test, model="a/m", corpora={"x": None, "y": None})


# Errors of the backend


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (QueueFullError("9 wait"), 429, "too many requests wait already: try again later"),
        (ConfigError("temperature is odd"), 400, "temperature is odd"),
        (ArenaFullError("no room"), 400, "no room"),
        (CorpusError("shard 3 is damaged"), 500, "shard 3 is damaged"),
        (GenerationError("NaN"), 500, "NaN"),
        (RuntimeClosedError("closed"), 503, "the server is stopping"),
        (KeyError("secret path"), 500, "internal error; the server's log tells more"),
    ],
)
def test_an_error_of_the_backend_has_its_status(error: Exception, status: int, told: str) -> None:
    backend = FakeBackend(error=error)

    async def test(client: httpx.AsyncClient) -> None:
        for fields in ({}, {"stream": True}, {"max_tokens": 0}, {"n": 3}):
            answer = await client.post(URL, json=body(**fields))
            assert answer.status_code == status, answer.text
            assert error_of(answer)["message"] == told
            assert ("retry-after" in answer.headers) == (status == 429)
        assert backend.open == 0 and client.app.state.service.held == 0  # type: ignore[attr-defined]

    serve(test, backend)


def test_an_error_in_the_midst_of_a_stream_is_its_last_event() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        told = await events(client)
        assert [data["choices"][0]["text"] for _, data in told[:-1]] == ["h", "e"]
        name, data = told[-1]
        assert name is None and data["error"]["message"] == "NaN" and data["error"]["type"] == "server_error"

    serve(test, FakeBackend(error=GenerationError("NaN"), error_at=2))


def test_after_the_worker_has_failed_nothing_is_served() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        assert (await client.post(URL, json=body())).status_code == 500
        answer = await client.post(URL, json=body())
        assert answer.status_code == 503 and error_of(answer)["code"] == "failed"
        assert (await client.get("/health")).json() == {"status": "failed"}

    serve(test, FakeBackend(error=WorkerError("out of memory")))


# Limits


def test_what_finds_no_place_is_told_when_to_come_again() -> None:
    async def main() -> None:
        backend = FakeBackend(hold=asyncio.Event())
        assert backend.hold is not None
        async with client_of(backend, retry_after=7) as client:
            running = [asyncio.create_task(client.post(URL, json=body(n=4))) for _ in range(2)]
            while backend.open < 8:
                await asyncio.sleep(0.001)
            for fields in ({}, {"stream": True}):
                answer = await client.post(URL, json=body(**fields))
                assert answer.status_code == 429 and answer.headers["retry-after"] == "7"
                error = error_of(answer)
                assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
            backend.hold.set()
            assert [(await one).status_code for one in running] == [200, 200]
            assert (await client.post(URL, json=body())).status_code == 200

    asyncio.run(main())


def test_time_is_limited() -> None:
    async def main() -> None:
        backend = FakeBackend(hold=asyncio.Event())
        async with client_of(backend, request_timeout=0.05) as client:
            for fields in ({}, {"stream": True}, {"max_tokens": 0}):
                answer = await client.post(URL, json=body(**fields))
                assert answer.status_code == 504 and error_of(answer)["code"] == "timeout"
                assert backend.open == 0
            backend.error_at = 2
            told = await events(client)
            assert len(told) == 3 and told[-1][1]["error"]["code"] == "timeout"
            assert backend.open == 0 and backend.cancelled == 3

    asyncio.run(main())


def test_bodies_are_limited() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        async def pieces(count: int) -> Any:
            for _ in range(count):
                yield b" " * 100

        small = json.dumps(body()).encode()
        headers = {"content-type": "application/json"}
        exact = small + b" " * (1000 - len(small))
        assert (await client.post(URL, content=exact, headers=headers)).status_code == 200
        for content in (exact + b" ", b" " * 100_000, pieces(11), pieces(1000)):
            answer = await client.post(URL, content=content, headers=headers)
            assert answer.status_code == 413 and error_of(answer)["code"] == "body_too_large"

    serve(test, max_body_bytes=1000)


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        async def slowly() -> Any:
            yield b"{"
            await asyncio.sleep(10)

        answer = await client.post(URL, content=slowly(), headers={"content-type": "application/json"})
        assert answer.status_code == 408 and error_of(answer)

    serve(test, body_timeout=0.05)


# Who may ask


def test_the_api_key_is_asked_for() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic k3y"},
            {"authorization": "k3y"},
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
                answer = await client.get(path, headers=headers)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert error_of(answer)["type"] == "authentication_error"
            assert (await client.post(URL, content=b"no body is read", headers=headers)).status_code == 401
            assert (await client.get("/health", headers=headers)).status_code == 200
        headers = {"authorization": "bearer  k3y"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        assert (await client.post(URL, json=body(), headers=headers)).status_code == 200
        odd = {b"authorization": "Bearer kéy".encode("latin-1")}
        assert (await client.get("/v1/models", headers=odd)).status_code == 401

    serve(test, api_key="k3y")
    assert "k3y" not in repr(settings(api_key="k3y"))


def test_other_hosts_and_pages_are_kept_out() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]", "[::1]:8000"):
            assert (await client.get("/health", headers={"host": host})).status_code == 200, host
        for host in ("evil.example", "localhost.evil.example", "127.0.0.2", "", "[::2]"):
            answer = await client.get("/health", headers={"host": host})
            assert answer.status_code == 403 and error_of(answer)["type"] == "permission_error", host
        for origin in ("http://localhost:8000", "http://127.0.0.1"):
            assert (await client.post(URL, json=body(), headers={"origin": origin})).status_code == 200
        for origin in ("https://evil.example", "null", "", "http://[", "file://"):
            answer = await client.post(URL, json=body(), headers={"origin": origin})
            assert answer.status_code == 403 and error_of(answer)["code"] == "origin_not_allowed", origin

    serve(test, allowed_hosts=("localhost", "127.0.0.1", "[::1]"))


def test_where_any_host_is_allowed_pages_may_ask_their_own_server() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        for origin, status in (("http://my.example", 200), ("http://evil.example", 403)):
            headers = {"host": "my.example:8000", "origin": origin}
            assert (await client.post(URL, json=body(), headers=headers)).status_code == status

    serve(test)


# States


def test_nothing_is_served_while_the_model_is_loaded() -> None:
    go = threading.Event()
    backend = FakeBackend()

    def load() -> FakeBackend:
        go.wait(10)
        return backend

    async def main() -> None:
        async with client_of(load) as client:
            answer = await client.get("/health")
            assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
            for answer in (await client.post(URL, json=body()), await client.get("/v1/models")):
                assert answer.status_code == 503 and error_of(answer)["code"] == "loading"
                assert answer.headers["retry-after"] == "1"
            assert (await client.get("/metrics")).status_code == 200
            go.set()
            while (await client.get("/health")).status_code != 200:
                await asyncio.sleep(0.001)
            await complete(client)
        assert backend.closed

    asyncio.run(main())


def test_a_model_that_cannot_be_loaded() -> None:
    def load() -> FakeBackend:
        raise ConfigError("no such device")

    async def main() -> None:
        async with client_of(load) as client:
            while (await client.get("/health")).json() != {"status": "failed"}:
                await asyncio.sleep(0.001)
            assert (await client.post(URL, json=body())).status_code == 503
            assert str(client.app.state.service.failure) == "no such device"  # type: ignore[attr-defined]

    asyncio.run(main())


def test_a_context_longer_than_the_models_is_refused_when_it_is_loaded() -> None:
    async def main() -> None:
        async with client_of(lambda: FakeBackend(), max_context_length=513) as client:
            while (await client.get("/health")).json() != {"status": "failed"}:
                await asyncio.sleep(0.001)
            failure = str(client.app.state.service.failure)  # type: ignore[attr-defined]
            assert failure == "max_context_length must be at most the model's 512, got 513"

    asyncio.run(main())


def test_a_server_that_stops_lets_what_runs_end_and_cuts_off_what_does_not() -> None:
    async def main() -> None:
        backend = FakeBackend(hold=asyncio.Event(), error_at=1)
        assert backend.hold is not None
        async with client_of(backend, shutdown_timeout=0.2) as client:
            service = client.app.state.service  # type: ignore[attr-defined]
            whole = asyncio.create_task(client.post(URL, json=body()))
            streamed = asyncio.create_task(client.post(URL, json=body(stream=True)))
            while backend.open < 2:
                await asyncio.sleep(0.001)
            draining = asyncio.create_task(service.drain())
            await asyncio.sleep(0)
            assert (await client.get("/health")).json() == {"status": "stopping"}
            assert error_of(await client.post(URL, json=body()))["code"] == "stopping"
            assert not whole.done()
            answer = await whole
            assert answer.status_code == 503 and error_of(answer)["code"] == "stopping"
            assert '"code":"stopping"' in (await streamed).text.replace(" ", "")
            assert backend.open == 0
            await draining

    asyncio.run(main())


# Metrics


def test_metrics_count() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        await complete(client, "abc")
        await events(client, "ab", max_tokens=2)
        await client.post(URL, content=b"{", headers={"content-type": "application/json"})
        await client.get("/what/ever")
        answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        lines = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
        wanted = {
            "ds2ds_requests_running": 0,
            "ds2ds_requests_waiting": 3,
            "ds2ds_arena_tokens_used": 160,
            "ds2ds_documents_kept": 2,
            "ds2ds_arena_evictions_total": 7,
            "ds2ds_prompt_tokens_total": 5,
            "ds2ds_tokens_written_total": 8,
            "ds2ds_time_to_first_token_seconds_count": 2,
            "ds2ds_time_per_token_seconds_count": 2,
            "ds2ds_request_seconds_count": 2,
            'ds2ds_http_requests_total{path="/v1/completions",status="200"}': 2,
            'ds2ds_http_requests_total{path="/v1/completions",status="400"}': 1,
            'ds2ds_http_requests_total{path="other",status="404"}': 1,
        }
        assert {name: float(lines[name]) for name in wanted} == wanted

    serve(test)


# Settings


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": ""}, "model must have a name"),
        ({"api_key": ""}, "api_key must be printable ASCII, and not empty"),
        ({"api_key": "schlüssel"}, "api_key must be printable ASCII"),
        ({"api_key": " key"}, "api_key must be printable ASCII, and not empty or with spaces around it"),  # never met
        ({"max_body_bytes": 0}, "max_body_bytes must be an integer >= 1, got 0"),
        ({"max_choices": True}, "max_choices must be an integer >= 1, got True"),
        ({"retry_after": 0}, "retry_after must be an integer >= 1, got 0"),
        ({"max_link_depth": -1}, "max_link_depth must be an integer >= 0, got -1"),
        ({"max_tokens": 0}, "max_tokens must be an integer >= 1, got 0"),
        ({"max_context_length": 1.5}, "max_context_length must be an integer >= 1, got 1.5"),
        ({"body_timeout": 0}, "body_timeout must be positive and finite, got 0"),
        ({"request_timeout": float("inf")}, "request_timeout must be positive and finite, got inf"),
        ({"request_timeout": "1"}, "request_timeout must be positive and finite, got '1'"),
        ({"shutdown_timeout": -1}, "shutdown_timeout must be >= 0 and finite, got -1"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changed)
    assert EOS == 0


# Text


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="abé€ ", max_size=30),
    st.lists(st.text(alphabet="abé ", min_size=1, max_size=4), max_size=3),
    st.randoms(),
)
def test_text_is_cut_at_the_first_stop_string_however_its_bytes_come(text: str, stop: list[str], random: Any) -> None:
    data, pieces = text.encode(), []
    while data:
        size = random.randint(1, 4)
        pieces.append(data[:size])
        data = data[size:]
    writer, passed, told = TextWriter(stop), "", []
    for piece in pieces:
        told.append(writer.feed(piece))
        passed += told[-1]
        assert text.startswith(passed)
        if any(one in text[: writer.length] for one in stop):
            break  # here the one who draws tokens stops
        # All is shown but what may be the beginning of a stop string.
        held = [size for one in stop for size in range(len(one)) if text[: writer.length].endswith(one[:size])]
        assert len(passed) == writer.length - max(held, default=0)
    seen = text[: writer.length]
    found = [seen.find(one) for one in stop if one in seen]
    # Of the bytes of a character that has not all come, one replacement character is left.
    tail = b"".join(pieces[: len(told)]).decode(errors="replace")
    assert passed + writer.finish() == (seen[: min(found)] if found else tail)


def test_names_of_tokens() -> None:
    assert token_string(5, "é".encode(), 0) == "é"
    assert token_string(5, b"\xe2\x80", 0) == "bytes:\\xe2\\x80"
    assert token_string(0, b"", 0) == "<|endoftext|>" and token_string(5, b"", 0) == "<|5|>"
