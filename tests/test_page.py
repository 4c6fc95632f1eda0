"""What the page asks of the server: its files, runs as events, answers to links, attention."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from scripted import TOKENIZER, Texts, follow, is_clean, small_runtime
from serving import FakeBackend, client_of, error_of, listening, parse_events

from ds2ds.documents.generation_result import GeneratedDocument, GenerationResult
from ds2ds.documents.link_formats import LINK_FORMATS
from ds2ds.errors import ArenaFullError
from ds2ds.generation.events import DocumentClosed, DocumentOpened, LinkClosed, TokenWritten
from ds2ds.server.errors import ApiError
from ds2ds.server.page.routes import ASSETS, OPEN_PATHS
from ds2ds.server.page.sessions import Session, Sessions
from ds2ds.server.page.telling import Telling

CORPUS = Texts({"A": "about A, with [b](B) and more", "B": "about B"})
HOSTILE = "a<script>alert(1)</script>\"'&"


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **options: Any) -> None:
        asyncio.run(test(*args, **options))

    return run


def body(prompt: str = "p", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": prompt, "max_tokens": 100, "seed": 1, **fields}


async def run(client: httpx.AsyncClient, prompt: str = "p", **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    answer = await client.post("/page/sessions", json=body(prompt, **fields))
    assert answer.status_code == 200, answer.text
    return [(name or "error", data) for name, data in parse_events(answer.text)]


def named(events: list[tuple[str, dict[str, Any]]], name: str) -> list[dict[str, Any]]:
    return [data for known, data in events if known == name]


def texts(events: list[tuple[str, dict[str, Any]]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for name, data in events:
        if name in ("opened", "text"):
            found[data["document"]] = found.get(data["document"], "") + data["text"]
    return found


def cut(text: str, place: list[int]) -> str:
    """What a browser has there."""
    return text.encode("utf-16-le")[2 * place[0] : 2 * place[1]].decode("utf-16-le")


# Its files


@in_loop
async def test_files_may_be_seen_by_anyone_and_bring_in_nothing_from_elsewhere() -> None:
    async with client_of(FakeBackend(), api_key="secret") as client:
        for path in OPEN_PATHS:
            answer = await client.get(path)
            assert answer.status_code == 200, path
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            addresses = set(re.findall(r"\w+://[^\s\"'`]+", answer.text))
            assert addresses <= {"http://www.w3.org/2000/svg"}, path
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", answer.text), path
        index = await client.get("/")
        assert index.headers["content-type"] == "text/html; charset=utf-8"
        linked = set(re.findall(r"(?:href|src)=\"(/[^\"]*)\"", index.text))
        assert linked == {"/page/page.css", "/page/page.js"} and linked <= OPEN_PATHS
        # No inline script, style or handler: the policy would not let them work.
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", index.text)
        assert (await client.get("/page/../app.py")).status_code in (401, 404)


def test_every_module_that_is_imported_is_there() -> None:
    for file in ASSETS.glob("*.js"):
        for name in re.findall(r"from \"\./([^\"]+)\"", file.read_text(encoding="utf-8")):
            assert (ASSETS / name).is_file(), (file.name, name)


@in_loop
async def test_requests_need_the_key_the_host_and_json() -> None:
    async with client_of(FakeBackend(), api_key="secret", allowed_hosts=("localhost",)) as client:
        for method, path in (
            ("GET", "/page/about"),
            ("POST", "/page/sessions"),
            ("POST", "/page/answers"),
            ("POST", "/page/attention"),
        ):
            assert (await client.request(method, path, json={})).status_code == 401, path
        key = {"Authorization": "Bearer secret"}
        assert (await client.get("/page/about", headers=key)).status_code == 200
        assert (await client.get("/", headers={"Host": "evil.example"})).status_code == 403
        foreign = {**key, "Origin": "http://evil.example"}
        assert (await client.post("/page/sessions", json=body(), headers=foreign)).status_code == 403
        plain = {**key, "Content-Type": "text/plain"}
        assert (await client.post("/page/sessions", content="{}", headers=plain)).status_code == 415


@in_loop
async def test_about() -> None:
    backend = FakeBackend()
    backend.limits = replace(backend.limits, has_headings=True)
    async with client_of(backend, {"c": CORPUS}, max_link_depth=2) as client:
        told = (await client.get("/page/about")).json()
        assert told["model"] == "m" and told["corpora"] == ["c", "none"]
        assert told["has_headings"] is True and told["max_link_depth"] == 2 and told["max_tokens"] == 512
        assert told["tells_attention"] is False and told["defaults"]["eviction_policy"] in told["eviction_policies"]
    async with client_of(small_runtime()) as client:
        assert (await client.get("/page/about")).json()["tells_attention"] is True


@in_loop
async def test_a_description_of_the_server_leaves_the_page_out() -> None:
    async with client_of(FakeBackend()) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert not [path for path in paths if path == "/" or path.startswith("/page")]


# A run


@in_loop
async def test_events_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " 😀 [one](A), [two](Z) [again](a)!", "Z": "about Z"})
    runtime = small_runtime()
    async with client_of(runtime, {"c": CORPUS}) as client:
        events = await run(client, "see [b](B)")
        names = [name for name, _ in events]
        assert names[:2] == ["session", "opened"] and names[-2:] == ["closed", "done"]
        opened = named(events, "opened")
        assert [(one["document"], one["title"], one["source"], one["parent"]) for one in opened] == [
            (0, "root", "generated", None),
            (1, "B", "corpus", 0),
            (2, "A", "corpus", 0),
            (3, "Z", "generated", 0),
        ]
        links = named(events, "link")
        whole = texts(events)
        assert whole[0] == "see [b](B) 😀 [one](A), [two](Z) [again](a)!"
        assert [cut(whole[0], link["place"]) for link in links] == ["[b](B)", "[one](A)", "[two](Z)", "[again](a)"]
        outcomes = [(link["outcome"], link["leads_to"]) for link in links]
        assert outcomes == [("corpus", None), ("corpus", None), ("generated", None), ("in_view", 2)]
        assert whole[2] == CORPUS.texts["A"] and whole[3].endswith("about Z")
        closed = {one["document"]: one for one in named(events, "closed")}
        assert [grant["document"] for grant in closed[0]["grants"]] == [1, 2, 3]
        # Beyond the depth nothing is followed, nor told; the page shows these links all the same.
        (beyond,) = closed[2]["links"]
        assert cut(whole[2], beyond["place"]) == "[b](B)" and beyond["target"] == "B"
        (done,) = named(events, "done")
        assert done["trace"]["links_found"] == 4 and done["finish_reason"] == "eos"
        assert len(client.app.state.page_sessions) == 1  # type: ignore[attr-defined]
    assert is_clean(runtime)


@in_loop
async def test_hostile_titles_and_texts_arrive_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f" <img src=x onerror=alert(1)> [{HOSTILE}]({HOSTILE})\n\ndata: no\n\nevent: no"
    follow(monkeypatch, {"": text, HOSTILE: "</script>"})
    async with client_of(small_runtime(), {"c": CORPUS}) as client:
        events = await run(client, "\x00<b>", max_tokens=200)
        assert texts(events)[0] == "\x00<b>" + text
        assert [one["title"] for one in named(events, "opened")] == ["root", HOSTILE]
        (link,) = named(events, "link")
        assert link["text"] == link["target"] == HOSTILE


@in_loop
async def test_settings_reach_the_backend() -> None:
    backend = FakeBackend()
    async with client_of(backend, {"c": CORPUS}) as client:
        given = {"max_auxiliary_documents": 2, "eviction_policy": "stop_new", "allow_corpus_fallback": False}
        await run(client, corpus="none", temperature=0.5, top_k=3, top_p=0.5, max_link_depth=2, **given)
        await run(client, max_link_depth=0, max_auxiliary_documents=2)
        (_, corpus, config), (_, other, alone) = backend.asked
        assert corpus is None and other is CORPUS
        assert {name: getattr(config, name) for name in given} == given
        assert (config.temperature, config.top_k, config.top_p, config.seed) == (0.5, 3, 0.5, 1)
        assert config.max_link_depth == 2 and config.max_new_tokens == 100
        # Without links no room is kept for documents, whatever is asked for.
        assert alone.max_link_depth == 0 and alone.max_auxiliary_documents == 0


WRONG = [
    ({"model": "other"}, 404, "model"),
    ({"prompt": ["a", "b"]}, 400, "prompt"),
    ({"prompt": [1, 2]}, 400, "prompt"),
    ({"n": 2}, 400, "n"),
    ({"echo": True}, 400, "echo"),
    ({"temperature": -1}, 400, "temperature"),
    ({"max_auxiliary_documents": -1}, 400, "max_auxiliary_documents"),
    ({"max_link_depth": 9}, 400, "max_link_depth"),
    ({"corpus": "other"}, 400, "corpus"),
    ({"eviction_policy": "coin"}, 400, None),
    ({"max_tokens": 5000}, 400, "max_tokens"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"interactive": "yes"}, 400, "interactive"),
    ({"colour": "red"}, 400, "colour"),
]


@in_loop
async def test_what_is_wrong_is_told_before_anything_runs() -> None:
    backend = FakeBackend()
    async with client_of(backend) as client:
        for fields, status, param in WRONG:
            answer = await client.post("/page/sessions", json={**body(), **fields})
            assert answer.status_code == status, (fields, answer.text)
            assert error_of(answer)["param"] == param, fields
        answer = await client.post("/page/sessions", json={**body(), "prompt": ["a"]})
        assert error_of(answer)["message"] == "prompt must be a valid string, got ['a']"
        assert not backend.asked
        assert len(client.app.state.page_sessions) == 0  # type: ignore[attr-defined]


@in_loop
async def test_errors_of_the_backend() -> None:
    async with client_of(FakeBackend(error=ArenaFullError("no room"))) as client:
        # The root was told already.
        assert (await run(client))[-1][1]["error"]["message"] == "no room"
        assert len(client.app.state.page_sessions) == 0  # type: ignore[attr-defined]
    backend = FakeBackend(hold=asyncio.Event())
    backend.limits = replace(backend.limits, max_running=1, max_queue=1)
    async with client_of(backend) as client:
        waiting = [asyncio.create_task(run(client)) for _ in range(2)]
        await asyncio.sleep(0.05)
        refused = await client.post("/page/sessions", json=body())
        assert refused.status_code == 429 and "retry-after" in refused.headers
        assert backend.hold is not None
        backend.hold.set()
        assert [events[-1][0] for events in await asyncio.gather(*waiting)] == ["done", "done"]


@in_loop
async def test_nothing_is_asked_of_a_server_without_a_model() -> None:
    def broken() -> Any:
        raise RuntimeError("no such checkpoint")

    async with client_of(broken) as client:
        await asyncio.sleep(0.05)
        assert (await client.get("/")).status_code == 200
        for answer in (await client.get("/page/about"), await client.post("/page/sessions", json=body())):
            assert answer.status_code == 503


# Links that the reader decides about


@contextlib.contextmanager
def streaming(url: str, **fields: Any) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    """The events of a run, as they come."""
    with (
        httpx.Client(timeout=20) as client,
        client.stream("POST", f"{url}/page/sessions", json=body(**fields)) as answer,
    ):
        assert answer.status_code == 200

        def events() -> Iterator[tuple[str, dict[str, Any]]]:
            held = ""
            for piece in answer.iter_text():
                *blocks, held = (held + piece).split("\n\n")
                for block in blocks:
                    ((name, data),) = parse_events(block + "\n\n")
                    yield name or "error", data

        yield events()


def decide(url: str, session: str, question: int, answer: str, **fields: Any) -> httpx.Response:
    told = {"session": session, "question": question, "answer": answer, **fields}
    return httpx.post(f"{url}/page/answers", json=told, timeout=20)


def test_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [one](A) [two](B) [three](C) [four](D) end"})
    runtime = small_runtime()
    plan: dict[str, dict[str, Any]] = {
        "A": {"answer": "follow"},
        "B": {"answer": "skip"},
        "C": {"answer": "supply", "text": "my own text"},
        "D": {"answer": "quit"},
    }
    with listening(runtime, {"c": CORPUS}) as (url, _):
        all_events: list[tuple[str, dict[str, Any]]] = []
        session = ""
        with streaming(url, interactive=True) as events:
            for name, data in events:
                all_events.append((name, data))
                session = data.get("session", session)
                if name == "asked":
                    number = data["number"]
                    assert decide(url, session, number + 1, "follow").status_code == 400
                    assert decide(url, session, number, "supply", text=" ").status_code == 400
                    assert decide(url, "other", number, "follow").status_code == 404
                    assert decide(url, session, number, "perhaps").status_code == 400
                    assert decide(url, session, number, **plan[data["target"]]).status_code == 200
        asked = named(all_events, "asked")
        assert [(one["target"], one["outcome"]) for one in asked] == [
            ("A", "corpus"),
            ("B", "corpus"),
            ("C", "generated"),
            ("D", "generated"),
        ]
        links = named(all_events, "link")
        assert [link["outcome"] for link in links] == ["corpus", "skipped", "supplied", "not_followed"]
        assert [link["place"] for link in links] == [one["place"] for one in asked]
        assert texts(all_events)[2] == "my own text"
        assert named(all_events, "done")[0]["finish_reason"] == "quit"
        # It goes on no more.
        assert decide(url, session, 4, "follow").status_code == 404
        metrics = httpx.get(f"{url}/metrics").text
        for source in ("corpus", "supplied"):
            assert f'ds2ds_documents_linked_total{{source="{source}"}} 1.0' in metrics
    assert is_clean(runtime)


def test_a_run_that_asks_nothing_takes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(FakeBackend(hold=asyncio.Event())) as (url, _), streaming(url) as events:
        session = next(events)[1]["session"]
        assert decide(url, session, 0, "follow").status_code == 404


@pytest.mark.parametrize("interactive", [False, True])
def test_a_reader_who_goes_ends_the_run(monkeypatch: pytest.MonkeyPatch, interactive: bool) -> None:
    if interactive:
        follow(monkeypatch, {"": " [one](A) end"})
    runtime = small_runtime()
    with listening(runtime, {"c": CORPUS}) as (url, app):
        with streaming(url, interactive=interactive, max_tokens=400, ignore_eos=True) as events:
            for name, _ in events:
                if name == ("asked" if interactive else "text"):
                    break
        deadline = time.monotonic() + 10
        while len(app.state.page_sessions) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(app.state.page_sessions) == 0
        assert app.state.service.held == 0
    assert is_clean(runtime)


# Attention


@in_loop
async def test_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [one](A) [two](B) end"})
    runtime = small_runtime()
    async with client_of(runtime, {"c": CORPUS}) as client:

        async def ask(document: int, token: int | None = None, session: str | None = None) -> httpx.Response:
            told = {"session": session or id, "document": document, "token": token}
            return await client.post("/page/attention", json=told)

        events = await run(client, "p", max_link_depth=2)
        id = events[0][1]["session"]
        whole = (await ask(0)).json()["documents"]
        numbers = {one["title"]: one["document"] for one in named(events, "opened")}
        assert [one["document"] for one in whole] == [0, numbers["A"], numbers["B"]]
        assert ["".join(one["tokens"]) for one in whole] == [texts(events)[one["document"]] for one in whole]
        length = len(whole[0]["tokens"])
        for token in range(length):
            assert abs(sum(one["shares"][token] for one in whole) - 1) < 1e-3
        assert whole[1]["shares"][0] == 0 and whole[1]["shares"][-1] > 0

        one_token = (await ask(0, length - 1)).json()["documents"]
        for of_one, of_all in zip(one_token, whole, strict=True):
            assert of_one["document"] == of_all["document"]
            assert of_one["share"] == of_all["shares"][-1]
            assert abs(sum(of_one["weights"]) - of_one["share"]) < 0.01
        # What is not in view yet is not told.
        assert [one["document"] for one in (await ask(0, 0)).json()["documents"]] == [0]
        # A document of the corpus, and what it read.
        assert [one["document"] for one in (await ask(numbers["A"])).json()["documents"]] == [
            numbers["A"],
            numbers["B"],
        ]

        assert (await ask(9)).status_code == 404
        assert (await ask(0, length)).status_code == 400
        assert (await ask(0, session="other")).status_code == 404
        assert (await ask(-1)).status_code == 400
    assert is_clean(runtime)


@in_loop
async def test_a_backend_may_not_tell_attention() -> None:
    async with client_of(FakeBackend()) as client:
        session = (await run(client))[0][1]["session"]
        answer = await client.post("/page/attention", json={"session": session, "document": 0})
        assert answer.status_code == 404 and "attention" in error_of(answer)["message"]


# What is kept


def ended(sessions: Sessions) -> Session:
    session = sessions.start()
    session.result = GenerationResult(GeneratedDocument("root", text="", is_root=True))
    sessions.end(session)
    return session


def test_results_are_kept_for_a_time_and_in_number() -> None:
    now = 0.0
    sessions = Sessions(most=2, seconds=10, clock=lambda: now)
    first = ended(sessions)
    assert sessions.ended(first.id) is first and first.stream is None
    now = 5
    second, third = ended(sessions), ended(sessions)
    with pytest.raises(ApiError, match="still kept"):
        sessions.ended(first.id)
    assert sessions.ended(second.id) is second and sessions.ended(third.id) is third
    now = 15.5
    for gone in (second, third):
        with pytest.raises(ApiError, match="still kept"):
            sessions.ended(gone.id)
    assert len(sessions) == 0


def test_a_run_without_a_result_is_forgotten() -> None:
    sessions = Sessions()
    session = sessions.start()
    assert sessions.running(session.id) is session and len(sessions) == 1
    with pytest.raises(ApiError, match="still kept"):
        sessions.ended(session.id)
    sessions.end(session)
    assert len(sessions) == 0
    with pytest.raises(ApiError, match="goes on"):
        sessions.running(session.id)
    assert len({Sessions().start().id for _ in range(100)}) == 100


# Places of links


def test_links_that_are_not_told_are_passed_over() -> None:
    telling = Telling()
    telling.tell(DocumentOpened("r", "generated", 0, None, "[x](X) é [y](Y)"))
    name, told = telling.tell(LinkClosed("r", "y", "Y", 9, "not_followed", "depth"))
    assert (name, told["place"], told["leads_to"], told["reason"]) == ("link", (9, 15), None, "depth")
    telling.tell(TokenWritten("r", 5, " [x](X)", -1.0))
    assert telling.tell(LinkClosed("r", "z", "Z", 9, "generated"))[1]["place"] is None
    assert telling.tell(LinkClosed("r", "x", "X", 12, "generated"))[1]["place"] == (16, 22)
    telling.tell(DocumentOpened("X", "generated", 1, "r", ""))
    telling.tell(DocumentClosed("X", "eos", GeneratedDocument("X", text="")))
    telling.tell(TokenWritten("r", 5, " [x](x) ", -1.0))
    assert telling.tell(LinkClosed("r", "x", "x", 14, "in_view"))[1]["leads_to"] == 1
    assert telling.tell(LinkClosed("r", "x", "x", 14, "skipped"))[1]["leads_to"] is None
    assert TOKENIZER.eos_token_id == 0
    with pytest.raises(TypeError, match="not an event"):
        telling.tell("event")  # type: ignore[arg-type]


def test_links_of_other_formats_have_places() -> None:
    telling = Telling(LINK_FORMATS["python"])
    telling.tell(DocumentOpened("p/m.py", "generated", 0, None, "é\nfrom . import (a,\n  b)\nimport c\n"))
    places = [
        telling.tell(LinkClosed("p/m.py", text, target, 5, "corpus"))[1]
        for text, target in ((".a", "p/a.py"), (".b", "p/b/__init__.py"), ("c", "c.py"))
    ]
    assert [(told["place"], told["words"]) for told in places] == [
        ((17, 18), "a"),
        ((22, 23), "b"),
        ((25, 33), "import c"),
    ]
    _, closed = telling.tell(DocumentClosed("p/m.py", "eos", GeneratedDocument("p/m.py", text="")))
    assert closed["links"] == []


@in_loop
async def test_a_run_tells_links_as_the_backend_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " then [[A|ape]]."})
    async with client_of(small_runtime(link_format="wikilinks"), {"c": CORPUS}) as client:
        events = await run(client, "see [[B]] [x](A)")
        links, whole = named(events, "link"), texts(events)
        assert [cut(whole[0], link["place"]) for link in links] == ["[[B]]", "[[A|ape]]"]
        assert [link["words"] for link in links] == ["B", "ape"]
