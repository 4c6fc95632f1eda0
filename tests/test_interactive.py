"""What a reader may decide at a link, and what becomes of it: `on_link` of a Runtime."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from link_graphs import TITLES
from scripted import (
    ByteTokenizer,
    Folding,
    Texts,
    agrees_with_oracle,
    encode,
    follow,
    grants,
    is_clean,
    same_documents,
    same_results,
    small_model,
    small_runtime,
)
from test_random_link_graphs import Request, check_scores, check_view, requests, runtime, snapshot, tight_requests

from ds2ds import (
    ConfigError,
    CorpusError,
    DocumentContext,
    Done,
    Follow,
    GenerationResult,
    LinkAsked,
    LinkClosed,
    LinkQuestion,
    Quit,
    Runtime,
    Skip,
    Supply,
    TokenWritten,
)
from ds2ds.generation.choices import Answer, OnLink
from ds2ds.generation.save import graph

TEXTS = {"A": "about A, with [b](B) and more", "B": "about B", "Long": "a long one " * 12}
OPTIONS: dict[str, Any] = {"max_new_tokens": 300, "max_tokens_per_document": 300, "seed": 3, "logprobs": True}


class Reader:
    """Answers by the title that a link leads to, and remembers what it was asked. Unknown titles are followed."""

    def __init__(self, answers: Mapping[str, Answer] | None = None) -> None:
        self.answers = answers or {}
        self.asked: list[LinkQuestion] = []

    def __call__(self, question: LinkQuestion) -> Answer:
        self.asked.append(question)
        return self.answers.get(question.title, Follow())


def run(prompt: str, on_link: OnLink | None, corpus: Any = None, layout: str = "null", **options: Any) -> Any:
    made = small_runtime(layout)
    result = made.generate(prompt, corpus=corpus, on_link=on_link, **{**OPTIONS, **options})
    assert is_clean(made)
    agrees_with_oracle(result)
    return result


def titles(result: Any) -> list[tuple[str, Any]]:
    return [(document.title, document.source) for document in result.auxiliary_documents]


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], None]:
    return lambda script: follow(monkeypatch, script)


Writes = Callable[[Mapping[str, str]], None]


# Questions


def test_a_question_tells_what_following_would_do(writes: Writes) -> None:
    writes({"": " so [q](Quince) and [a](A) and [b](B).", "Quince": "yellow"})
    reader = Reader()
    run("see [the a](A)", reader, Texts(TEXTS), max_link_depth=2)
    first = LinkQuestion(0, 0, "root", "the a", "A", len(encode("see [the a](A)")), "A", 1, "corpus", 28, TEXTS["A"])
    assert reader.asked[0] == replace(first, tokens=len(encode(TEXTS["A"])))
    told = [(q.number, q.parent, q.title, q.depth, q.outcome, q.tokens, q.preview) for q in reader.asked[1:]]
    a, b = (len(encode(TEXTS[title])) for title in "AB")
    assert told == [
        (1, "A", "B", 2, "corpus", b, "about B"),
        (2, "root", "Quince", 1, "generated", None, ""),
        (3, "root", "A", 1, "in_view", a, TEXTS["A"]),
        (4, "root", "B", 2, "in_view", b, "about B"),
    ]


def test_the_title_is_the_corpus_own_and_the_target_the_links() -> None:
    reader = Reader()
    run("see [x](LONG)", reader, Folding(TEXTS), max_new_tokens=1)
    assert [(q.text, q.target, q.title) for q in reader.asked] == [("x", "LONG", "Long")]


def test_a_preview_is_the_start_below_the_heading() -> None:
    reader = Reader()
    run("[l](Long)", reader, Texts({"Long": "é" * 100}), "identifier_prefix_bos_eos", max_new_tokens=1)
    (question,) = reader.asked
    assert question.preview == "é" * 24  # 48 tokens, which are bytes here
    assert question.tokens == len(encode("# Long\n\n")) + 200 + 2
    run("[l](Long)", reader, Texts({"Long": "xé" * 100}), max_new_tokens=1)
    assert reader.asked[-1].preview == "xé" * 16  # no half of a character


def test_an_evicted_document_comes_back_as_what_it_was(writes: Writes) -> None:
    writes({"": "[s](Own)[b](B)[s](Own)[b](B)"})
    reader = Reader({"Own": Supply("mine")})
    corpus = Texts(TEXTS)
    result = run("p", Reader({"Own": Supply("mine")}), corpus, max_auxiliary_documents=1, max_new_tokens=30)
    assert result.trace.links_supplied == 2  # supplied anew each time
    made = small_runtime()
    answers = iter([Supply("mine"), Follow(), Follow(), Follow()])
    asked = []

    def on_link(question: LinkQuestion) -> Answer:
        asked.append(question.outcome)
        return next(answers)

    result = made.generate("p", corpus=corpus, on_link=on_link, **OPTIONS, max_auxiliary_documents=1)
    assert asked == ["generated", "corpus", "supplied", "corpus"]
    assert titles(result) == [("Own", "supplied"), ("B", "corpus")]
    assert (result.trace.links_supplied, result.trace.links_from_corpus, result.trace.evictions) == (2, 2, 3)
    agrees_with_oracle(result)
    assert reader.asked == []


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("[x](https://x.org)", {}),
        ("[x]()", {}),
        ("[x](A)", {"max_link_depth": 0}),
        ("[x](Z)", {"allow_corpus_fallback": False}),
        ("[x](A)", {"process_prompt_links": False}),
        ("[x](A)", {"max_auxiliary_documents": 0}),
        ("[x](Long)", {"max_context_length": 100}),
    ],
)
def test_what_would_not_be_followed_is_not_asked(prompt: str, options: dict[str, Any]) -> None:
    reader = Reader()
    options = {"max_new_tokens": 1, **options}
    same_results(run(prompt, reader, Texts(TEXTS), **options), run(prompt, None, Texts(TEXTS), **options))
    assert reader.asked == []


def test_ancestors_and_self_are_not_asked(writes: Writes) -> None:
    writes({"": "[m](Me)", "Me": "I am [me](Me)"})
    reader = Reader()
    result = run("p", reader, max_link_depth=3)
    assert [q.title for q in reader.asked] == ["Me"]
    assert result.trace.links_not_followed == 1


# Follow and Skip


def test_following_everything_is_as_if_nobody_asked(writes: Writes) -> None:
    writes({"": " [q](Q), [b](B).", "Q": "on [l](Long), [r](R)", "R": "r"})
    for layout in ("null", "identifier_prefix_bos_eos"):
        reader = Reader()
        one = run("[a](A)", reader, Texts(TEXTS), layout, max_link_depth=2)
        other = run("[a](A)", None, Texts(TEXTS), layout, max_link_depth=2)
        same_results(one, other)
        assert len(reader.asked) == one.trace.links_found == 6
        assert replace(one.trace, seconds={}) == replace(other.trace, seconds={})


def test_a_skipped_link_leads_nowhere_and_is_asked_about_again(writes: Writes) -> None:
    writes({"": " [b](B) [a](A)"})
    answers = iter([Skip(), Follow(), Follow(), Follow()])
    asked: list[str] = []

    def on_link(question: LinkQuestion) -> Answer:
        asked.append(question.title)
        return next(answers)

    result = run("[a](A) x", on_link, Texts(TEXTS), max_link_depth=2)
    assert asked == ["A", "B", "A", "B"]
    assert titles(result) == [("B", "corpus"), ("A", "corpus")]
    assert [title for _, title, _ in grants(result.root_document)] == ["B", "A"]
    assert (result.trace.links_skipped, result.trace.links_from_corpus, result.trace.links_already_in_view) == (1, 2, 1)


def test_skipping_evicts_nothing(writes: Writes) -> None:
    writes({"": "[b](B)"})
    for answer, evictions in ((Skip(), 0), (Follow(), 1)):
        result = run("[a](A)", Reader({"B": answer}), Texts(TEXTS), max_auxiliary_documents=1)
        assert result.trace.evictions == evictions


# Supply


def test_a_supplied_text_is_read_like_a_document(writes: Writes) -> None:
    writes({"": " [b](B) x"})
    prompt = "see [q](Quince)"
    for layout, text in (("null", "{}"), ("identifier_prefix_bos_eos", "# Quince\n\n{}")):
        result = run(prompt, Reader({"Quince": Supply("yellow, like [l](Long)")}), Texts(TEXTS), layout)
        assert titles(result) == [("Quince", "supplied"), ("B", "corpus")]
        supplied, root = result.auxiliary_documents[0], result.root_document
        assert supplied.text == text.format("yellow, like [l](Long)")
        assert supplied.parent_title == root.title and (supplied.depth, supplied.finish_reason) == (1, None)
        assert np.isnan(supplied.token_logprobs).all() and not supplied.truncated
        assert grants(root)[0][1] == "Quince"
        # max_link_depth is 1: its link is left alone, and not asked about.
        assert (result.trace.links_supplied, result.trace.links_found) == (1, 2)


def test_its_own_links_are_asked_about_while_depth_allows(writes: Writes) -> None:
    writes({"": "x"})
    reader = Reader({"Q": Supply("yellow, like [b](B), no [a](A), [q](Q)"), "A": Skip()})
    result = run("[q](Q)", reader, Texts(TEXTS), max_link_depth=2)
    assert [(q.parent, q.title, q.depth) for q in reader.asked] == [("root", "Q", 1), ("Q", "B", 2), ("Q", "A", 2)]
    assert titles(result) == [("B", "corpus"), ("Q", "supplied")]
    assert [title for _, title, _ in grants(result.auxiliary_documents[1])] == ["B"]
    assert result.trace.links_not_followed == 1  # the one to itself


@pytest.mark.parametrize("longest", [300, 20])
@pytest.mark.parametrize("layout", ["null", "identifier_prefix", "identifier_prefix_bos_eos"])
def test_supplying_what_the_corpus_has_is_following(longest: int, layout: str, writes: Writes) -> None:
    def on_link(question: LinkQuestion) -> Answer:
        return Supply(TEXTS[question.title]) if question.outcome == "corpus" else Follow()

    writes({"": "x [b](B)"})
    made = small_runtime(layout)
    options = {**OPTIONS, "max_link_depth": 2, "max_tokens_per_document": longest}
    followed = made.generate("[a](A)", corpus=Texts(TEXTS), **options)
    supplied = made.generate("[a](A)", corpus=Texts(TEXTS), on_link=on_link, **options)
    auxiliary = [replace(document, source="corpus") for document in supplied.auxiliary_documents]
    assert {document.source for document in supplied.auxiliary_documents} == {"supplied"}
    for document in (found := followed.get_all_documents()):  # what is supplied was not looked up
        document.grants = [replace(grant, resolved_by=None, score=None) for grant in document.grants]
    for document in (ours := [supplied.root_document, *auxiliary]):
        document.grants = [replace(grant, resolved_by=None, score=None) for grant in document.grants]
    same_documents(ours, found)
    assert any(document.truncated for document in auxiliary) == (longest == 20)
    # Its keys and values are those that were there: the same content, of whatever origin.
    assert supplied.trace.documents_reused >= 1 and len(auxiliary) == 2
    assert supplied.trace.tokens_prefilled == 1  # the prompt's last token: no document was computed again
    assert is_clean(made)


def test_a_long_text_is_cut() -> None:
    result = run("[q](Q)", Reader({"Q": Supply("y" * 100)}), max_tokens_per_document=40, max_new_tokens=1)
    (supplied,) = result.auxiliary_documents
    assert (len(supplied.tokens), supplied.truncated) == (40, True)


def test_a_later_link_finds_it_in_view(writes: Writes) -> None:
    writes({"": " [b](B), [own](my own), [q](Q)", "Q": "q"})
    reader = Reader({"B": Supply("not what the corpus has"), "Q": Supply("mine", "My Own")})
    corpus = Texts(TEXTS)
    result = run("[b](B) [q](Q)", reader, corpus, max_link_depth=2)
    # The title that was given is what is found; the link's own title is asked about anew.
    assert [(q.title, q.outcome) for q in reader.asked] == [
        ("B", "corpus"),
        ("Q", "generated"),
        ("B", "in_view"),
        ("My Own", "in_view"),
        ("Q", "generated"),
    ]
    assert titles(result)[:2] == [("B", "supplied"), ("My Own", "supplied")]
    assert not corpus.fetched.get("A")


def test_it_takes_the_title_of_what_is_there(writes: Writes) -> None:
    """The other leaves the view, and is not found any more; results tell the two apart."""
    writes({"": " [b](B) between [b](B) after [b](b)"})
    answers = iter([Follow(), Supply("mine"), Follow(), Follow()])
    asked: list[LinkQuestion] = []

    def on_link(question: LinkQuestion) -> Answer:
        asked.append(question)
        return next(answers)

    result = run("[b](B)", on_link, Texts(TEXTS), "identifier_prefix")
    assert titles(result) == [("B", "corpus"), ("B (2)", "supplied")]
    assert result.auxiliary_documents[1].text == "# B\n\nmine"
    assert [(q.title, q.outcome) for q in asked[1:]] == [("B", "in_view"), ("B (2)", "in_view"), ("B (2)", "in_view")]
    (_, old, end), (position, new, last) = grants(result.root_document)
    assert (old, new, last) == ("B", "B (2)", None) and end is not None and end <= position
    assert result.trace.evictions == 1
    edges = graph(result)["edges"]
    assert len({edge["target"] for edge in edges}) == 2


def test_it_takes_the_title_of_what_was_evicted(writes: Writes) -> None:
    writes({"": "[b](B) x [l](Long) y [b](B) z [l](Long) w [b](B)"})
    answers = iter([Follow(), Follow(), Supply("mine"), Follow(), Follow()])
    result = run("p", lambda _: next(answers), Texts(TEXTS), max_auxiliary_documents=1)
    # The last link brings back the supplied one, not the corpus' own.
    assert titles(result) == [("B", "corpus"), ("Long", "corpus"), ("B (2)", "supplied")]
    assert [title for _, title, _ in grants(result.root_document)] == ["B", "Long", "B (2)", "Long", "B (2)"]


def test_many_of_one_title(writes: Writes) -> None:
    writes({"": "[b](B)" * 4 + "[c](B (2))", "B (2)": "written"})
    texts = iter(["one", "two", "three", "four"])

    def on_link(question: LinkQuestion) -> Answer:
        return Supply(next(texts), "B") if question.number < 4 else Follow()

    result = run("p", on_link)
    assert [title for title, _ in titles(result)] == ["B", "B (2)", "B (3)", "B (4)", "B (2) (2)"]
    assert result.auxiliary_documents[-1].source == "generated"


def test_it_cannot_take_the_title_of_what_is_being_written(writes: Writes) -> None:
    writes({"Home": " [q](Q)."})
    made = small_runtime()
    events = list(made.stream("x", title="Home", on_link=Reader({"Q": Supply("mine", "home")}), **OPTIONS))
    (link,) = [event for event in events if isinstance(event, LinkClosed)]
    assert (link.outcome, link.reason) == ("not_followed", "a document titled 'Home' is still being written")
    assert isinstance(events[-1], Done) and events[-1].result.auxiliary_documents == []


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("y" * 90, {"max_context_length": 60}, "90 tokens do not fit beside the documents in progress"),
        ("y" * 50, {"max_context_length": 60, "eviction_policy": "stop_new"}, "68 tokens would exceed"),
    ],
)
def test_a_text_without_room_is_told(text: str, options: dict[str, Any], reason: str) -> None:
    made = small_runtime()
    # That there is room for the document itself is why the question comes.
    settings = {**OPTIONS, "max_new_tokens": 1, **options}
    reader = Reader({"B": Supply(text)})
    events = list(made.stream("a prompt with [b](B)", corpus=Texts(TEXTS), on_link=reader, **settings))
    (link,) = [event for event in events if isinstance(event, LinkClosed)]
    assert link.outcome == "not_followed" and link.reason.startswith(reason)
    assert len(reader.asked) == 1 and is_clean(made)


def test_room_is_that_of_the_document_whose_title_it_takes(writes: Writes) -> None:
    writes({"": "x [a](A)"})
    answers = iter([Follow(), Supply("m" * 30)])
    options = {"max_context_length": 60, "eviction_policy": "stop_new", "max_auxiliary_documents": 1}
    result = run("[a](A)", lambda _: next(answers), Texts(TEXTS), **options)
    assert titles(result) == [("A", "corpus"), ("A (2)", "supplied")]
    # Where it finds no room even so, the other stays.
    answers = iter([Follow(), Supply("m" * 90)])
    result = run("[a](A)", lambda _: next(answers), Texts(TEXTS), **options)
    assert titles(result) == [("A", "corpus")] and grants(result.root_document)[0][2] is None
    assert result.trace.links_not_followed == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Supply(""), "a supplied text must be a string that is not blank, got ''"),
        (lambda: Supply(" \n"), "a supplied text must be a string that is not blank"),
        (lambda: Supply(5), "a supplied text must be a string that is not blank, got 5"),
        (lambda: Supply(None), "a supplied text must be a string that is not blank, got None"),
        (lambda: Supply("\udcff"), "a supplied text must be UTF-8 text"),
        (lambda: Supply("x", " "), "a supplied title must be a string that is not blank"),
        (lambda: Supply("x", "\udcff"), "a supplied title must be UTF-8 text"),
        (lambda: Supply("x", "a\nb"), "a supplied title must be one line"),
        (lambda: Supply("x", "a\n"), "a supplied title must be one line"),
    ],
)
def test_what_cannot_be_supplied(make: Callable[[], Supply], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


class Odd(ByteTokenizer):
    """Makes nothing of "zero", and something that the model does not know of "far"."""

    def encode(self, text: str) -> list[int]:
        return {"zero": [], "far": [9999]}[text] if text in ("zero", "far") else super().encode(text)


def test_a_text_that_the_tokenizer_or_the_model_cannot_take() -> None:
    made = Runtime(small_model(), Odd(), arena_tokens=4096)
    events = list(made.stream("[q](Q)", on_link=Reader({"Q": Supply("zero")}), max_new_tokens=1))
    assert [e.reason for e in events if isinstance(e, LinkClosed)] == ["an empty document"]
    with pytest.raises(CorpusError, match="document 'Q' would hold token id 9999"):
        made.generate("[q](Q)", on_link=Reader({"Q": Supply("far")}), max_new_tokens=1)
    assert is_clean(made)


# Quit


def test_quitting_ends_all_documents_as_they_stand(writes: Writes) -> None:
    writes({"": "see [q](Q) never", "Q": "on [a](A) never"})
    made = small_runtime()
    reader = Reader({"B": Quit()})
    events = list(made.stream("[l](Long)", corpus=Texts(TEXTS), on_link=reader, max_link_depth=3, **OPTIONS))
    assert [q.title for q in reader.asked] == ["Long", "Q", "A", "B"]
    assert isinstance(events[-1], Done) and is_clean(made)
    result = events[-1].result
    told = [(d.title, d.source, d.finish_reason) for d in result.get_all_documents()]
    assert told == [
        ("root", "generated", "quit"),
        ("Long", "corpus", None),
        ("A", "corpus", None),
        ("Q", "generated", "quit"),
    ]
    assert result.root_document.text == "[l](Long)see [q](Q)"
    assert [title for _, title, _ in grants(result.root_document)] == ["Long"]
    (link,) = [e for e in events if isinstance(e, LinkClosed) and e.target == "B"]
    assert (link.outcome, link.reason) == ("not_followed", "the reader quit")
    agrees_with_oracle(result)


def test_quitting_in_the_prompt() -> None:
    result = run("[a](A)", Reader({"A": Quit()}), Texts(TEXTS))
    assert result.root_document.finish_reason == "quit" and result.auxiliary_documents == []


# Who is asked, and when


def test_a_stream_tells_all_up_to_the_link_before_it_asks(writes: Writes) -> None:
    writes({"": "so [b](B) end"})
    told: list[str] = []

    def on_link(question: LinkQuestion) -> Answer:
        told.append(f"answer {question.title}")
        return Skip()

    for event in small_runtime().stream("x", corpus=Texts(TEXTS), on_link=on_link, **OPTIONS):
        match event:
            case TokenWritten():
                told.append(event.text)
            case LinkAsked():
                told.append(f"ask {event.question.title}")
            case LinkClosed():
                told.append(event.outcome)
    at = told.index("answer B")
    assert told[at - 1] == "ask B" and told[at + 1] == "skipped" and "".join(told[: at - 1]) == "so [b](B)"


@pytest.mark.parametrize("answer", [None, "follow", Follow, {"skip": True}])
def test_another_answer_is_an_error_of_its_request(answer: Any) -> None:
    made = small_runtime()
    with pytest.raises(ConfigError, match=r"the answer to a link must be Follow\(\), Skip\(\), Supply\(text\) or Quit"):
        made.generate("[a](A)", corpus=Texts(TEXTS), on_link=lambda _: answer, **OPTIONS)
    assert is_clean(made)


def test_what_the_callback_raises_ends_the_request_and_is_raised() -> None:
    made = small_runtime()

    def on_link(question: LinkQuestion) -> Answer:
        raise LookupError("no idea")

    with pytest.raises(LookupError, match="no idea"):
        made.generate("[a](A)", corpus=Texts(TEXTS), on_link=on_link, **OPTIONS)
    with pytest.raises(LookupError, match="no idea"):
        list(made.stream("[a](A)", corpus=Texts(TEXTS), on_link=on_link, **OPTIONS))
    assert is_clean(made)


def test_a_stream_that_is_left_at_a_question_frees_everything() -> None:
    made = small_runtime()
    stream = made.stream("p [a](A)", corpus=Texts(TEXTS), on_link=Reader(), **OPTIONS)
    for event in stream:
        if isinstance(event, LinkAsked):
            break
    assert made.engine.parked and not is_clean(made)
    stream.close()  # type: ignore[attr-defined]
    assert is_clean(made)


async def asynchronous(question: LinkQuestion) -> Answer:
    return Follow()


@pytest.mark.parametrize(
    ("on_link", "message"),
    [(5, "on_link must be a function that takes a LinkQuestion, got 5"), (asynchronous, "on_link must not be async")],
)
def test_what_cannot_be_asked(on_link: Any, message: str) -> None:
    made = small_runtime()
    for call in (made.generate, made.stream):
        with pytest.raises(ConfigError, match=message):
            call("p", on_link=on_link)
    with pytest.raises(ConfigError, match=message):
        made.generate_batch(["p"], on_link=on_link)


def test_a_callback_may_use_the_runtime() -> None:
    made = small_runtime()

    def on_link(question: LinkQuestion) -> Answer:
        return Supply(made.generate("inner", max_new_tokens=3, seed=1).root_document.text or "")

    result = made.generate("[a](A)", on_link=on_link, **{**OPTIONS, "max_new_tokens": 3})
    assert titles(result) == [("A", "supplied")] and is_clean(made)


# Batches


def test_a_batch_asks_for_each_prompt(writes: Writes) -> None:
    writes({"": " [b](B)"})
    made = small_runtime(arena_tokens=40_000, max_running=2)
    prompts = ["p", "q [a](A)", "r", "s [l](Long)"]
    reader = Reader({"B": Supply("mine"), "Long": Skip()})
    results = made.generate_batch(prompts, Texts(TEXTS), on_link=reader, max_link_depth=2, **OPTIONS)
    assert is_clean(made)
    for number, prompt in enumerate(prompts):
        asked = [replace(question, request=0) for question in reader.asked if question.request == number]
        alone = Reader(reader.answers)
        same_results(results[number], run(prompt, alone, Texts(TEXTS), max_link_depth=2))
        assert asked == alone.asked


def test_an_error_at_a_question_of_a_batch(writes: Writes) -> None:
    writes({"": "x"})

    def on_link(question: LinkQuestion) -> Answer:
        if question.request == 1:
            raise LookupError("no idea")
        return "?" if question.request == 2 else Follow()  # type: ignore[return-value]

    made = small_runtime(arena_tokens=40_000)
    prompts = ["[a](A)"] * 4
    results = made.generate_batch(prompts, Texts(TEXTS), on_link=on_link, return_errors=True, **OPTIONS)
    assert [type(result) for result in results] == [GenerationResult, LookupError, ConfigError, GenerationResult]
    with pytest.raises(LookupError, match="no idea"):
        made.generate_batch(prompts, Texts(TEXTS), on_link=on_link, **OPTIONS)
    assert is_clean(made)


# Over random graphs


def ask(request: Request, on_link: OnLink, on: Runtime | None = None) -> Any:
    return replace(request, options={**request.options, "on_link": on_link}).run(on)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(requests() | tight_requests())
def test_following_all_is_the_same_on_any_graph(request: Request) -> None:
    reader = Reader()
    asked, plain = ask(request, reader), request.run()
    assert snapshot(asked) == snapshot(plain)
    for one, other in zip(asked.get_all_documents(), plain.get_all_documents(), strict=True):
        np.testing.assert_allclose(one.token_logprobs, other.token_logprobs, atol=1e-4, rtol=0)
    trace = asked.trace
    assert len(reader.asked) == trace.links_found - trace.links_not_followed
    assert [question.number for question in reader.asked] == list(range(len(reader.asked)))
    assert trace.links_found == plain.trace.links_found and trace.links_skipped == 0


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(requests() | tight_requests(), st.sets(st.sampled_from(TITLES), min_size=1, max_size=3))
def test_skipping_is_as_if_the_corpus_had_it_not(request: Request, skipped: set[str]) -> None:
    if request.corpus is None:
        return
    request.options["allow_corpus_fallback"] = False
    less = type(request.corpus)({t: body for t, body in request.corpus.bodies.items() if t not in skipped})
    asked = ask(request, Reader(dict.fromkeys(skipped, Skip())))
    assert snapshot(asked) == snapshot(replace(request, corpus=less).run())


def choose(seed: int) -> OnLink:
    """Answers that differ from link to link, and are the same for the same questions."""
    dice = random.Random(seed)

    def on_link(question: LinkQuestion) -> Answer:
        text = "".join(
            dice.choice(["x", " t", "[x](A)", "[x](B).", " [t](C)", "\n"]) for _ in range(dice.randint(1, 9))
        )
        supplied = Supply(text + "x", dice.choice([None, None, "A", "D", "x"]))
        return dice.choice([Follow(), Skip(), supplied, supplied, Follow()])

    return on_link


def test_any_answers_on_any_graph_agree_with_the_oracle() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(requests() | tight_requests(), st.integers(0, 2**16))
    def run(request: Request, seed: int) -> None:
        result = ask(request, choose(seed))
        check_view(result, request)
        check_scores(result, request, seen)
        for document in result.auxiliary_documents:
            seen[str(document.source)] += 1
            seen["renamed"] += document.title.endswith(")")
            if document.source == "supplied":
                title = document.title.partition(" (")[0]
                start, tokens = request.prefix(title), [int(token) for token in document.tokens]
                assert tokens[: len(start)] == start[: len(tokens)]
                assert len(tokens) <= request.option("max_tokens_per_document")
                assert document.truncated or tokens[len(tokens) - len(request.suffix()) :] == request.suffix()
        trace = result.trace
        outcomes = ("from_corpus", "generated", "supplied", "already_in_view", "skipped", "not_followed")
        assert trace.links_found == sum(getattr(trace, f"links_{outcome}") for outcome in outcomes)
        seen["skipped"] += trace.links_skipped
        again = ask(request, choose(seed), runtime(request.model, request.layout))
        assert snapshot(again) == snapshot(result)

    run()
    assert min(seen["supplied"], seen["skipped"], seen["corpus"], seen["generated"], seen["renamed"]) > 5, seen


# The window


def context_with(sizes: Mapping[str, int], **options: Any) -> DocumentContext:
    context = DocumentContext(**{"max_context_length": 100, "max_auxiliary_documents": 2, **options})
    context.initialize_root([1] * 10)
    for title, size in sizes.items():
        context.add_corpus_document(title, [1] * size)
    return context


@pytest.mark.parametrize("policy", ["drop_oldest", "stop_new"])
@pytest.mark.parametrize("tokens", [1, 20, 60, 70, 71, 80, 90, 91])
@pytest.mark.parametrize("instead_of", [None, "A", "B"])
def test_whether_there_could_be_room_is_what_making_it_comes_to(
    policy: str, tokens: int, instead_of: str | None
) -> None:
    context = context_with({"A": 10, "B": 20}, eviction_policy=policy)
    before = list(context.window)
    other = None if instead_of is None else context.find(instead_of)
    could = context.could_make_room(tokens, other)
    assert context.window == before and context.evictions == 0
    assert context.make_room(tokens, other) == could
    if not could[0]:
        assert context.window == before and instead_of in (None, "A", "B")
        return
    assert context.total_tokens + tokens <= 100 and len(context.window) <= 2
    if other is not None:
        assert other not in context.window and context.recall(other.title) is None
        # No other leaves where that was room enough.
        kept = [document for document in before if document is not other]
        if sum(len(document.tokens) for document in kept) + tokens <= 100:
            assert context.window == kept
    # Room for one of two: only those that are replaced are not found again.
    evicted = {document.title for document in before if document not in context.window}
    assert {title for title in evicted if context.recall(title)} == evicted - {instead_of}


def test_one_that_was_evicted_can_be_replaced() -> None:
    context = context_with({"A": 10, "B": 20})
    old = context.find("A")
    assert old is not None
    context.evict(old)
    assert context.recall("a") is old
    assert context.make_room(5, old) == (True, "")
    new = context.open_corpus_document("A", [1] * 5, "supplied")
    context.complete_current_document()
    context.evict(new)
    assert context.recall("a") is new and new.source == "supplied"
