"""The server before a real runtime, of a small random model: what it answers is what the runtime and the oracle say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from operator import itemgetter
from typing import Any

import httpx
import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scripted import EOS, TOKENIZER, Texts, decode, encode, follow, is_clean, small_model, small_runtime
from serving import URL, FakeBackend, body, client_of, complete, error_of, events

from ds2ds import Runtime
from ds2ds.server.plan import choice_seed
from ds2ds.server.sse import EventSender

CORPUS = Texts({"A": "about A, with [b](B) and more", "B": "about B"})
Test = Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]


def serve(test: Test, runtime: Runtime | None = None, corpora: Any = None, **options: Any) -> Any:
    """Run a test against a server; afterwards nothing is in use."""
    runtime = runtime or small_runtime(arena_tokens=20_000)

    async def main() -> Any:
        known = {"c": CORPUS} if corpora is None else corpora
        async with client_of(runtime, known, **options) as client:
            return await test(client)

    result = asyncio.run(main())
    assert is_clean(runtime)
    return result


def oracle_rows(tokens: Sequence[int]) -> Any:
    return oracle.Oracle(small_model()).log_probs([oracle.Document("", list(tokens))])[0]


# Texts


def test_texts_are_the_runtimes() -> None:
    options = {"max_new_tokens": 12, "max_link_depth": 0}

    async def test(client: httpx.AsyncClient) -> None:
        prompts = ["ab", "some text", ""]
        answer = await complete(client, prompts, n=3, max_tokens=12, seed=4, max_link_depth=0, temperature=0.9)
        for at, choice in enumerate(answer["choices"]):
            prompt, seed = prompts[at // 3], choice_seed(4, at % 3)
            result = small_runtime().generate(prompt, seed=seed, temperature=0.9, **options)
            root = result.root_document
            written = [token for token in root.tokens if token != EOS][len(encode(prompt)) :]
            assert choice["text"] == decode(written)
            assert choice["finish_reason"] == ("stop" if root.finish_reason == "eos" else "length")
        texts = [choice["text"] for choice in answer["choices"]]
        assert len(set(texts)) == 9
        again = await complete(client, prompts, n=3, max_tokens=12, seed=4, max_link_depth=0, temperature=0.9)
        assert [choice["text"] for choice in again["choices"]] == texts
        alone = await complete(client, prompts[1], max_tokens=12, seed=4, max_link_depth=0, temperature=0.9)
        assert alone["choices"][0]["text"] == texts[3]
        ids = await complete(client, encode(prompts[1]), max_tokens=12, seed=4, max_link_depth=0, temperature=0.9)
        assert ids["choices"][0]["text"] == texts[3]

    serve(test)


def test_without_a_seed_texts_differ_and_greedy_ones_do_not() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        answer = await complete(client, "ab", n=4, max_tokens=12)
        assert len({choice["text"] for choice in answer["choices"]}) > 1
        answer = await complete(client, "ab", n=4, max_tokens=12, temperature=0)
        assert len({choice["text"] for choice in answer["choices"]}) == 1

    serve(test)


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("ne", "o"),
        (["xx", "two"], "one "),
        ("e t", "on"),
        ("one", ""),
        ("three.", "one two three"),
        (["o thr", "wo"], "one t"),
        ("é", "one two three"),
    ],
)
def test_stop_strings_are_cut_from_texts_and_streams(monkeypatch: pytest.MonkeyPatch, stop: Any, text: str) -> None:
    follow(monkeypatch, {"": "one two three"})

    async def test(client: httpx.AsyncClient) -> None:
        for echo in (False, True):
            fields = {"prompt": "p ", "stop": stop, "max_tokens": 50, "echo": echo}
            (choice,) = (await complete(client, **fields))["choices"]
            assert choice["text"] == "p " * echo + text and choice["finish_reason"] == "stop"
            told = [data["choices"][0] for _, data in (await events(client, **fields))[:-1]]
            assert "".join(one["text"] for one in told) == choice["text"]
            assert [one["finish_reason"] for one in told] == [None] * (len(told) - 1) + ["stop"]

    serve(test)


def test_stop_tokens_and_eos(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": [*encode("ab"), EOS, *encode("cd)."), *encode("e")]})

    async def test(client: httpx.AsyncClient) -> None:
        answer = await complete(client, max_tokens=9)
        assert answer["choices"][0]["text"] == "ab" and answer["usage"]["completion_tokens"] == 3
        answer = await complete(client, max_tokens=9, ignore_eos=True, stop_token_ids=encode(")."))
        assert answer["choices"][0]["text"] == "abcd" and answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 6
        answer = await complete(client, max_tokens=4, ignore_eos=True)
        assert answer["choices"][0]["text"] == "abc" and answer["choices"][0]["finish_reason"] == "length"

    serve(test)


def test_characters_come_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    euro = encode("€")
    follow(monkeypatch, {"": [*encode("a"), *euro, *euro[:2]]})

    async def test(client: httpx.AsyncClient) -> None:
        (choice,) = (await complete(client, max_tokens=9))["choices"]
        assert choice["text"] == "a€\ufffd"
        told = [data["choices"][0]["text"] for _, data in (await events(client, max_tokens=9))[:-1]]
        assert told == ["a", "€", "\ufffd"]

    serve(test)


# Log-probabilities


def test_logprobs_are_the_oracles() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        for echo in (False, True):
            prompt = encode("ab cd")
            answer = await complete(
                client, prompt, logprobs=3, echo=echo, max_tokens=6, seed=1, max_link_depth=0, ignore_eos=True
            )
            (choice,) = answer["choices"]
            logs = choice["logprobs"]
            assert len(logs["tokens"]) == answer["usage"]["completion_tokens"] + echo * len(prompt)
            result = small_runtime().generate(
                prompt_tokens=prompt, max_new_tokens=6, seed=1, max_link_depth=0, ignore_eos=True
            )
            tokens = result.root_document.tokens
            rows = oracle_rows(tokens)
            first = 0 if echo else len(prompt)
            for at, (logprob, top, token) in enumerate(
                zip(logs["token_logprobs"], logs["top_logprobs"], tokens[first:], strict=True), start=first
            ):
                if at == 0:
                    assert logprob is None and top is None
                    continue
                assert abs(logprob - float(rows[at - 1, token])) < 1e-4
                best = rows[at - 1].topk(3)
                assert len(top) == (3 if token in best.indices else 4)
                np.testing.assert_allclose(sorted(top.values(), reverse=True)[:3], best.values, atol=1e-4)
                assert logprob in top.values()

    serve(test)


def test_text_offsets_point_into_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": encode("é [x")})

    async def test(client: httpx.AsyncClient) -> None:
        for echo in (False, True):
            (choice,) = (await complete(client, "añ). ", echo=echo, logprobs=0, max_tokens=20))["choices"]
            logs, text = choice["logprobs"], choice["text"]
            assert text == "añ). " * echo + "é [x"
            for token, offset in zip(logs["tokens"], logs["text_offset"], strict=True):
                if not token.startswith(("bytes:", "<|")):
                    assert text[offset : offset + len(token)] == token
            assert logs["tokens"][-1] == "<|endoftext|>" and logs["text_offset"][-1] == len(text)

    serve(test)


@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_stream_adds_up_to_the_whole_answer(data: st.DataObject) -> None:
    fields = {
        "prompt": data.draw(st.lists(st.sampled_from(["", "a", "é x", "see [a](A) "]), min_size=1, max_size=2)),
        "n": data.draw(st.integers(1, 2)),
        "seed": data.draw(st.integers(0, 9)),
        "max_tokens": data.draw(st.integers(0, 8)),
        "echo": data.draw(st.booleans()),
        "logprobs": data.draw(st.none() | st.integers(0, 2)),
        "stop": data.draw(st.none() | st.lists(st.sampled_from(["e", " t", "ab"]), max_size=2)),
        "max_link_depth": data.draw(st.integers(0, 2)),
        "documents": True,
    }

    async def test(client: httpx.AsyncClient) -> None:
        whole = await complete(client, **fields)
        told = await events(client, **fields, stream_options={"include_usage": True})
        assert told[-1] == (None, "[DONE]")
        usage = told[-2][1]["usage"]
        for counts in (usage, whole["usage"]):
            counts.pop("prompt_tokens_details")
            counts["documents"].pop("cached_tokens")  # the second time, there is more to find
        assert usage == whole["usage"]
        for choice in whole["choices"]:
            parts = [
                part
                for name, data in told[:-2]
                if name is None
                for part in data["choices"]
                if part["index"] == choice["index"]
            ]
            assert "".join(part["text"] for part in parts) == choice["text"]
            assert parts[-1]["finish_reason"] == choice["finish_reason"]
            if choice["logprobs"] is None:
                assert all(part["logprobs"] is None for part in parts)
            else:
                for name, values in choice["logprobs"].items():
                    found = [value for part in parts if part["logprobs"] for value in part["logprobs"][name] or ()]
                    # The same tokens in other steps: the same figures up to rounding.
                    if name in ("tokens", "text_offset"):
                        assert found == values
                    else:
                        assert len(found) == len(values or ())
            closed = [
                {key: value for key, value in data.items() if key != "choice"}
                for name, data in told[:-2]
                if name == "document.closed" and data["choice"] == choice["index"]
            ]
            assert closed == choice["documents"]

    serve(test)


# What lm-eval's local-completions sends and reads (`_create_payload` and `parse_logprobs`)


def lm_eval_reads(answer: dict[str, Any], context_lengths: Sequence[int]) -> list[tuple[float, bool]]:
    """The sum of the continuation's log-probabilities, and whether it is what greedy decoding gives."""
    results = []
    choices = sorted(answer["choices"], key=itemgetter("index"))
    for choice, length in zip(choices, context_lengths, strict=True):
        logprobs = choice["logprobs"]["token_logprobs"][length:-1]
        tops = choice["logprobs"]["top_logprobs"][length:-1]
        results.append((sum(logprobs), all(one == max(top.values()) for one, top in zip(logprobs, tops, strict=True))))
    return results


@pytest.mark.parametrize("layout", ["null", "bos_eos"])
def test_lm_eval_reads_what_the_oracle_says(layout: str) -> None:
    greedy: list[int] = encode("ab c")
    for _ in range(4):
        greedy.append(int(oracle_rows([EOS] * (layout != "null") + greedy)[-1].argmax()))
    requests = [(encode("some context"), encode(" and more")), (encode("x"), encode("y")), (greedy[:4], greedy[4:])]
    requests.append(([EOS], encode("rolling")))

    async def test(client: httpx.AsyncClient) -> None:
        answer = await complete(
            client,
            [context + continuation for context, continuation in requests],
            temperature=0,
            max_tokens=1,
            logprobs=1,
            seed=1234,
            echo=True,
        )
        assert answer["usage"]["prompt_tokens"] == sum(len(a) + len(b) for a, b in requests)
        read = lm_eval_reads(answer, [len(context) for context, _ in requests])
        for (context, continuation), (found, found_greedy) in zip(requests, read, strict=True):
            marks = [EOS] if layout != "null" and context[0] != EOS else []
            tokens = marks + context + continuation
            rows = oracle_rows(tokens)
            places = range(len(marks) + len(context), len(tokens))
            assert abs(found - sum(float(rows[at - 1, tokens[at]]) for at in places)) < 1e-3
            assert found_greedy == all(int(rows[at - 1].argmax()) == tokens[at] for at in places)
        assert [is_greedy for _, is_greedy in read] == [False, False, True, False]

    model = small_model(layout_policy=layout)
    serve(test, Runtime(model, TOKENIZER, layout, arena_tokens=20_000))


def test_the_longest_prompt_is_the_whole_context() -> None:
    for layout, longest in (("null", 512), ("bos_eos", 511)):

        async def test(client: httpx.AsyncClient, longest: int = longest) -> None:
            (model,) = (await client.get("/v1/models")).json()["data"]
            assert model["max_model_len"] == longest
            answer = await complete(client, encode("x") * (longest - 1), max_tokens=1, logprobs=1, echo=True)
            assert len(answer["choices"][0]["logprobs"]["tokens"]) == longest
            answer = await complete(client, encode("x") * longest, max_tokens=0, logprobs=1, echo=True)
            assert len(answer["choices"][0]["logprobs"]["tokens"]) == longest
            refused = await client.post(URL, json=body(encode("x") * longest, max_tokens=1))
            assert refused.status_code == 400 and error_of(refused)["code"] == "context_length_exceeded"

        serve(test, Runtime(small_model(layout_policy=layout), TOKENIZER, layout, arena_tokens=20_000))


def test_nothing_is_written_where_max_tokens_is_0() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        prompt = encode("see [a](A) it")
        answer = await complete(client, prompt, max_tokens=0, echo=True, logprobs=1, max_link_depth=2)
        (choice,) = answer["choices"]
        assert choice["text"] == "see [a](A) it" and choice["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 0
        (scored,) = small_runtime().score([prompt], CORPUS, max_link_depth=2, top_logprobs=1)
        assert choice["logprobs"]["token_logprobs"][0] is None
        np.testing.assert_allclose(
            choice["logprobs"]["token_logprobs"][1:], scored.root_document.token_logprobs[1:], atol=1e-5
        )
        assert [document["title"] for document in choice["documents"]] == ["B", "A"]
        (choice,) = (await complete(client, prompt, max_tokens=0))["choices"]
        assert choice["text"] == "" and choice["logprobs"] is None

    serve(test)


# Linked documents


def test_what_came_while_the_server_was_busy_is_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token is an event, as ever."""
    sent: list[bytes] = []
    send = EventSender.send

    async def counted(self: EventSender, event: bytes, last: bool = False) -> None:
        sent.append(event)
        await send(self, event, last)

    monkeypatch.setattr(EventSender, "send", counted)

    async def test() -> None:
        async with client_of(FakeBackend("abcdefgh")) as client:  # says it all at once
            told = await events(client)
        assert [data["choices"][0]["text"] for _, data in told[:-1]] == [*"abcdefgh", ""]

    asyncio.run(test())
    assert [event.count(b"data: ") for event in sent] == [9, 1]


def test_linked_documents_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "see [a](A) and [n](New).", "New": "a new one"})

    async def test(client: httpx.AsyncClient) -> None:
        answer = await complete(client, "p ", max_tokens=60, max_link_depth=2, corpus="c")
        (choice,) = answer["choices"]
        assert choice["text"] == "see [a](A) and [n](New)."
        told = [(d["title"], d["source"], d["text"], d["depth"], d["parent"]) for d in choice["documents"]]
        assert told == [
            ("B", "corpus", "about B", 2, "A"),
            ("A", "corpus", "about A, with [b](B) and more", 1, "root"),
            ("New", "generated", "a new one", 1, "root"),
        ]
        assert [d["finish_reason"] for d in choice["documents"]] == [None, None, "eos"]
        position = len(encode("about A, with [b](B)"))
        assert choice["documents"][1]["grants"] == [{"title": "B", "position": position, "end": None}]
        grants = choice["grants"]
        assert [grant["title"] for grant in grants] == ["A", "New"]
        assert grants[0]["position"] == len(encode("p see [a](A)"))
        usage = answer["usage"]["documents"]
        assert usage["count"] == 3 and usage["written_tokens"] == len(encode("a new one")) + 1
        assert usage["tokens"] == sum(d["tokens"] for d in choice["documents"])
        assert usage["cached_tokens"] == 0

        again = await complete(client, "p ", max_tokens=60, max_link_depth=2, documents=False)
        assert again["choices"][0]["documents"] is None and again["choices"][0]["grants"] is None
        assert again["usage"]["documents"]["cached_tokens"] > 0
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == len(encode("p ")) - 1

        plain = await events(client, "p ", max_tokens=60, max_link_depth=2)
        assert {name for name, _ in plain} == {None}
        told = await events(client, "p ", max_tokens=60, max_link_depth=2, documents=True)
        named = [(name, data) for name, data in told if name is not None]
        assert [(name, data.get("title")) for name, data in named if name != "document.text"] == [
            ("link", "root"),
            ("document.opened", "A"),
            ("link", "A"),
            ("document.opened", "B"),
            ("document.closed", "B"),
            ("document.closed", "A"),
            ("link", "root"),
            ("document.opened", "New"),
            ("document.closed", "New"),
        ]
        assert "".join(data["text"] for name, data in named if name == "document.text") == "a new one"
        assert all(data["choice"] == 0 for _, data in named)
        assert named[0][1]["target"] == "A" and named[0][1]["outcome"] == "corpus"
        texts = "".join(data["choices"][0]["text"] for name, data in told[:-1] if name is None)
        assert texts == "see [a](A) and [n](New)."

    serve(test)


def test_the_corpus_is_the_requests_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "[a](A)", "A": "mine"})

    async def test(client: httpx.AsyncClient) -> None:
        for corpus, text in ((None, "first"), ("one", "first"), ("two", "second"), ("none", "mine")):
            (choice,) = (await complete(client, max_tokens=60, corpus=corpus))["choices"]
            assert [document["text"] for document in choice["documents"]] == [text]
        (choice,) = (await complete(client, max_tokens=60, max_link_depth=0))["choices"]
        assert choice["documents"] == []

    serve(test, corpora={"one": Texts({"A": "first"}), "two": Texts({"A": "second"})})


def test_a_corpus_that_fails_is_an_error_of_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def has_document(self, title: str) -> bool:
            raise OSError("disk gone")

        def get_document(self, title: str) -> Any:
            raise OSError("disk gone")

    follow(monkeypatch, {"": "[a](A)"})

    async def test(client: httpx.AsyncClient) -> None:
        answer = await client.post(URL, json=body(max_tokens=60))
        assert answer.status_code == 500 and "disk" not in error_of(answer)["message"]
        told = await events(client, max_tokens=60)
        assert told[-1][1]["error"]["type"] == "server_error"
        assert (await complete(client, max_tokens=60, corpus="none", max_link_depth=0))["choices"]

    serve(test, corpora={"c": Broken()})


def test_usage_of_the_engine_is_in_the_metrics() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        await complete(client, "see [a](A) it", max_tokens=3, max_link_depth=2)
        await complete(client, "see [a](A) it", max_tokens=3, max_link_depth=2)
        text = (await client.get("/metrics")).text
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert float(lines["ds2ds_documents_reused_total"]) == 1  # A; with it there, B need not be looked at
        assert float(lines['ds2ds_documents_linked_total{source="corpus"}']) == 4
        assert float(lines["ds2ds_documents_kept"]) == 3  # A, B, and the prompt
        assert float(lines["ds2ds_arena_tokens_used"]) > 0 and float(lines["ds2ds_requests_running"]) == 0

    serve(test)
