"""The runtime against the dense oracle on random graphs of linked documents.

Whatever a request did, its result says which documents there are, of which tokens, and what each was granted.
From that alone the oracle recomputes every predicted token. Whether the grants themselves are right is asked
separately, by reading the documents' links anew.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from link_graphs import (
    EOS,
    VOCABULARY,
    TinyCorpus,
    TinyTokenizer,
    corpora,
    ids,
    link_sites,
    texts,
    tiny_model,
)
from oracle import Document, Oracle

from ds2ds import GenerationConfig, Runtime
from ds2ds.documents.link_detector import LinkDetector

MAX_SEQ_LEN = 4096
CROWDED = 384  # slots
ROOMY = 16_384
TOKENIZER = TinyTokenizer()
MODELS = [(1, 2, 4), (2, 3, 2), (4, 2, 2), (6, 3, 4)]  # seed, layers, heads
LAYOUTS = ["null", "bos_eos", "identifier_prefix", "identifier_prefix_bos_eos"]

DEFAULTS = GenerationConfig().to_dict()
MOSTLY_TRUE = st.sampled_from([True, True, True, True, False])
# Limits that no request below comes near, so that nothing is evicted, refused or cut short.
WIDE = {
    "max_context_length": MAX_SEQ_LEN,
    "max_auxiliary_documents": 1000,
    "max_tokens_per_document": 512,
    "eos_token_id": EOS,
    "logprobs": True,
}


@functools.cache
def runtime(model: tuple[int, int, int], layout: str) -> Runtime:
    """One per model and layout, so that requests also meet what earlier ones left behind."""
    return new_runtime(model, layout)


def new_runtime(model: tuple[int, int, int], layout: str, arena_tokens: int | None = None) -> Runtime:
    weights = tiny_model(*model, MAX_SEQ_LEN)
    # Where room is no matter, not the default of a GiB: there is one for each model and layout, and all are kept.
    return Runtime(weights, TOKENIZER, layout, device="cpu", arena_tokens=arena_tokens or ROOMY)


@functools.cache
def crowded_runtime(model: tuple[int, int, int], layout: str) -> Runtime:
    return new_runtime(model, layout, CROWDED)


@functools.cache
def oracle(model: tuple[int, int, int]) -> Oracle:
    return Oracle(tiny_model(*model, MAX_SEQ_LEN))


@dataclass
class Request:
    prompt: list[int]
    corpus: TinyCorpus | None = None
    model: tuple[int, int, int] = MODELS[0]
    layout: str = "null"
    title: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, on: Runtime | None = None) -> Any:
        on = on or runtime(self.model, self.layout)
        options = {**WIDE, **self.options}
        result = on.generate(prompt_tokens=self.prompt, corpus=self.corpus, title=self.title, **options)
        on.engine.check_integrity()  # nothing is lost or left over
        return result

    def option(self, name: str) -> Any:
        return {**DEFAULTS, **WIDE, **self.options}[name]

    @property
    def bodies(self) -> dict[str, list[int]]:
        return self.corpus.bodies if self.corpus else {}

    def prefix(self, title: str | None) -> list[int]:
        """What the layout puts before a document's body, written anew. A root without title has no heading."""
        has_heading = self.layout.startswith("identifier_prefix") and title is not None
        heading = TOKENIZER.encode(f"# {title}\n\n") if has_heading else []
        return [EOS] * self.layout.endswith("bos_eos") + heading

    def suffix(self) -> list[int]:
        return [EOS] * self.layout.endswith("bos_eos")


@st.composite
def requests(draw: st.DrawFn, temperatures: tuple[float, ...] = (0.0, 1.0)) -> Request:
    options = {
        "max_new_tokens": draw(st.sampled_from([12, 20, 24, 1])),
        "temperature": draw(st.sampled_from(temperatures)),
        "seed": draw(st.integers(0, 2**31)),
        "max_link_depth": draw(st.sampled_from([3, 3, 3, 2, 2, 1, 0])),
        "allow_corpus_fallback": draw(st.booleans()),
        "process_prompt_links": draw(MOSTLY_TRUE),
        "allow_recursive_links": draw(MOSTLY_TRUE),
    }
    return Request(
        prompt=draw(texts(3) | texts()),
        corpus=draw(st.one_of(corpora(), corpora(), corpora(), st.none())),
        model=draw(st.sampled_from(MODELS)),
        layout=draw(st.sampled_from(LAYOUTS)),
        title=draw(st.sampled_from([None, "A", "D"])),
        options=options,
    )


@st.composite
def tight_requests(draw: st.DrawFn) -> Request:
    request = draw(requests())
    start = len(request.prefix(request.title)) + len(request.prompt)
    request.options |= {
        "max_new_tokens": draw(st.sampled_from([16, 40])),
        "max_auxiliary_documents": draw(st.integers(1, 3)),
        "max_context_length": start + draw(st.sampled_from([30, 60, 12, 100])),
        "max_tokens_per_document": draw(st.sampled_from([512, 512, 40, 16])),
        "eviction_policy": draw(st.sampled_from(["drop_oldest", "stop_new"])),
    }
    longest = max(request.options["max_tokens_per_document"], start + 1)
    return replace(request, options={**request.options, "max_tokens_per_document": longest})


# What every result must satisfy


def as_oracle_documents(result: Any) -> dict[str, Document]:
    """Dependencies first; a target that is missing, or comes later, is a KeyError."""
    documents: dict[str, Document] = {}
    for document in (*result.auxiliary_documents, result.root_document):
        assert document.title not in documents, f"two documents are titled {document.title!r}"
        grants = [(grant.position, documents[grant.title], grant.end) for grant in document.grants]
        documents[document.title] = Document(document.title, [int(token) for token in document.tokens], grants)
    return documents


def check_scores(result: Any, request: Request, seen: Counter[str]) -> None:
    """Log-probabilities within 1e-4 of the oracle's; greedy tokens its argmax, near ties aside."""
    documents = as_oracle_documents(result)
    scores = dict(zip(documents, oracle(request.model).log_probs(list(documents.values())), strict=True))
    for document in result.get_all_documents():
        logprobs = document.token_logprobs
        assert logprobs.dtype == np.float32 and logprobs.shape == (len(document.tokens),)
        predicted = np.flatnonzero(~np.isnan(logprobs))
        assert 0 not in predicted
        for index in predicted:
            distribution, token = scores[document.title][index - 1], int(document.tokens[index])
            assert abs(float(distribution[token]) - float(logprobs[index])) < 1e-4, (document.title, index)
            seen["tokens"] += 1
            seen["tokens reading others"] += any(g.position < index for g in document.grants)
            if request.option("temperature") == 0 and int(distribution.argmax()) != token:
                assert float(distribution.max() - distribution[token]) < 1e-5, (document.title, index)
                seen["near ties"] += 1


def check_documents(result: Any, request: Request) -> None:
    """Each document is what its source, the layout and the limits make of it."""
    root, longest = result.root_document, request.option("max_tokens_per_document")
    documents = {document.title: document for document in result.get_all_documents()}
    for document in documents.values():
        tokens, predicted = [int(token) for token in document.tokens], ~np.isnan(document.token_logprobs)
        if document is root:
            assert document.parent_title is None and document.depth == 0 and document.source == "generated"
            start = [*request.prefix(request.title), *request.prompt]
            assert request.title in (None, document.title)
        else:
            assert document.depth == documents[document.parent_title].depth + 1 <= request.option("max_link_depth")
            start = request.prefix(document.title) or [EOS]
        if document.source == "corpus":
            whole = [
                *request.prefix(document.title),
                *request.bodies[document.title],
                *request.suffix(),
            ]
            assert tokens == whole[:longest] and document.truncated == (len(whole) > longest)
            assert not predicted.any() and document.finish_reason is None
            continue
        assert tokens[: len(start)] == start and not predicted[: len(start)].any()
        written = tokens[len(start) :]
        assert len(tokens) <= max(longest, len(start))
        assert EOS not in written[:-1]
        assert (document.finish_reason == "eos") == (written[-1:] == [EOS] and bool(predicted[-1]))
        if document.finish_reason == "max_new_tokens":
            assert predicted.sum() == request.option("max_new_tokens")
        assert predicted.sum() <= request.option("max_new_tokens")
        assert document.truncated == (document.finish_reason == "max_tokens_per_document")


def check_view(result: Any, request: Request) -> None:
    """At no token is more in view than the window holds; grants are in order, none open twice for a title."""
    length = {document.title: len(document.tokens) for document in result.get_all_documents()}
    for document in result.get_all_documents():
        positions = [grant.position for grant in document.grants]
        assert positions == sorted(positions)
        for grant in document.grants:
            assert 1 <= grant.position <= len(document.tokens)
            assert grant.end is None or grant.position < grant.end <= len(document.tokens)
        for t in range(len(document.tokens)):
            in_view = [g.title for g in document.grants if g.position <= t and (g.end is None or t < g.end)]
            assert len(in_view) == len(set(in_view)) <= request.option("max_auxiliary_documents")
            assert t + 1 + sum(length[title] for title in in_view) <= request.option("max_context_length")


def fold(title: str) -> str:
    return " ".join(title.split()).casefold()


def expected_grants(document: Any, result: Any, request: Request) -> list[tuple[int, str]]:
    """(position, title) of what a document must have been granted, where no limit is ever reached."""
    is_root = document is result.root_document
    if document.depth >= request.option("max_link_depth"):
        return []
    if not is_root and not request.option("allow_recursive_links"):
        return []
    ignored = 0
    if is_root and not request.option("process_prompt_links"):
        ignored = len(request.prefix(request.title)) + len(request.prompt)
    titles = {fold(other.title): other.title for other in result.get_all_documents()}
    lineage, ancestor = set(), document
    while ancestor is not None:
        lineage.add(fold(ancestor.title))
        ancestor = result.get_document_by_title(ancestor.parent_title) if ancestor.parent_title is not None else None
    expected: list[tuple[int, str]] = []
    for index, target in link_sites(document.tokens):
        key = fold(target)
        if index < ignored or not key or key.startswith("#") or key in lineage:
            continue
        if target not in request.bodies and not request.option("allow_corpus_fallback"):
            continue
        if all(fold(title) != key for _, title in expected):
            expected.append((index + 1, titles[key]))
    return expected


def check_grants(result: Any, request: Request) -> None:
    """For a wide request: exactly the grants that the documents' own texts call for, for good."""
    for document in result.get_all_documents():
        given = [(grant.position, grant.title) for grant in document.grants]
        assert given == expected_grants(document, result, request), document.title
        assert all(grant.end is None for grant in document.grants)
    granted = {grant.title for document in result.get_all_documents() for grant in document.grants}
    assert granted == {document.title for document in result.auxiliary_documents}
    assert result.trace.evictions == 0
    if request.corpus:
        assert all(count == 1 for count in request.corpus.fetched.values()), request.corpus.fetched


def check_grants_are_of_links(result: Any, request: Request) -> None:
    """For any request: what was granted is what a link at that place names."""
    for document in result.get_all_documents():
        sites = {(index + 1, fold(target)) for index, target in link_sites(document.tokens)}
        assert {(grant.position, fold(grant.title)) for grant in document.grants} <= sites
        if document.depth >= request.option("max_link_depth"):
            assert not document.grants


def snapshot(result: Any) -> list[Any]:
    return [
        (d.title, list(d.tokens), d.grants, d.source, d.parent_title, d.depth, d.finish_reason, d.truncated)
        for d in result.get_all_documents()
    ]


# The tests: what is run, over how many examples


def over_wide_requests(examples: int, seen: Counter[str]) -> Callable[[], None]:
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(requests())
    def run(request: Request) -> None:
        result = request.run()
        check_documents(result, request)
        check_view(result, request)
        check_grants(result, request)
        check_scores(result, request, seen)
        for document in result.get_all_documents():
            seen[document.source] += 1
            seen[f"depth {document.depth}"] += 1
            seen["grants"] += len(document.grants)

    return run


def over_tight_requests(examples: int, seen: Counter[str]) -> Callable[[], None]:
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(tight_requests())
    def run(request: Request) -> None:
        result = request.run()
        check_documents(result, request)
        check_view(result, request)
        check_grants_are_of_links(result, request)
        check_scores(result, request, seen)
        seen["evictions"] += result.trace.evictions
        seen["ends"] += sum(g.end is not None for d in result.get_all_documents() for g in d.grants)
        for document in result.get_all_documents():
            seen[f"finish {document.finish_reason}"] += 1
            seen["truncated"] += document.truncated
            granted = [grant.title for grant in document.grants]
            seen["granted again"] += len(granted) - len(set(granted))

    return run


def assert_rare_ties(seen: Counter[str]) -> None:
    assert seen["near ties"] <= seen["tokens"] / 1000, seen


def test_wide_requests_agree_with_the_oracle_and_with_their_own_links() -> None:
    seen: Counter[str] = Counter()
    over_wide_requests(120, seen)()
    assert_rare_ties(seen)
    # The graphs must be worth the name, or all of this would say little.
    assert min(seen["generated"], seen["corpus"], seen["grants"], seen["tokens reading others"]) > 100, seen
    assert seen["depth 3"] >= 5, seen


def test_tight_requests_agree_with_the_oracle_and_stay_within_their_limits() -> None:
    seen: Counter[str] = Counter()
    over_tight_requests(120, seen)()
    assert_rare_ties(seen)
    assert min(seen["evictions"], seen["ends"], seen["finish context_full"], seen["truncated"]) > 10, seen
    assert seen["granted again"] > 0, seen


@pytest.mark.slow
def test_soak() -> None:
    seen: Counter[str] = Counter()
    over_wide_requests(2000, seen)()
    over_tight_requests(2000, seen)()
    assert_rare_ties(seen)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(requests() | tight_requests())
def test_same_seed_same_result_whatever_ran_before(request: Request) -> None:
    fresh = new_runtime(request.model, request.layout)
    first, second = request.run(fresh), request.run(fresh)
    used = request.run()
    assert snapshot(first) == snapshot(second) == snapshot(used)
    for document, other in zip(first.get_all_documents(), used.get_all_documents(), strict=True):
        np.testing.assert_allclose(document.token_logprobs, other.token_logprobs, atol=1e-4, rtol=0)


def check_batch(on: Runtime, request: Request, more: list[list[int]]) -> None:
    """A batch gives, for each prompt, what a request of its own gives."""
    start = len(request.prefix(None)) + max(len(prompt) for prompt in more)
    options = {**WIDE, **request.options}
    for name in ("max_context_length", "max_tokens_per_document"):
        options[name] = max(options[name], start + 1)
    prompts = [request.prompt, *more]
    batch = on.generate_batch(prompts, corpus=request.corpus, **options)
    on.engine.check_integrity()
    for prompt, result in zip(prompts, batch, strict=True):
        alone = replace(request, prompt=prompt, options=options, title=None)
        assert snapshot(result) == snapshot(alone.run())
        check_scores(result, alone, Counter())


more_prompts = st.lists(texts(), min_size=1, max_size=3)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(requests() | tight_requests(), more_prompts)
def test_a_batch_equals_its_requests_one_by_one(request: Request, more: list[list[int]]) -> None:
    check_batch(runtime(request.model, request.layout), request, more)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(tight_requests(), more_prompts)
def test_a_batch_in_a_crowded_arena_changes_nothing(request: Request, more: list[list[int]]) -> None:
    # Hardly more slots than one request may need: requests wait for each other, and documents move.
    check_batch(crowded_runtime(request.model, request.layout), request, more)


def test_different_seeds_differ() -> None:
    request = Request(ids(b"x", b" [", b"x"), options={"max_new_tokens": 30, "temperature": 1.0, "max_link_depth": 0})
    texts_of = {
        tuple(replace(request, options={**request.options, "seed": s}).run().root_document.tokens) for s in range(5)
    }
    assert len(texts_of) == 5


# Cases worth naming

LINK_A, LINK_B, LINK_C = ids(b"[x](", b"A", b")"), ids(b"[x](B)."), ids(b" [t](C)")


def shape(result: Any) -> dict[str, list[tuple[int, str]]]:
    return {d.title: [(g.position, g.title) for g in d.grants] for d in result.auxiliary_documents}


@pytest.mark.parametrize("depth, expected", [(0, {}), (1, {"A": []}), (2, {"B": [], "A": [(1, "B")]})])
def test_a_cycle_in_the_corpus_ends_at_the_document_in_progress(depth: int, expected: dict[str, Any]) -> None:
    corpus = TinyCorpus({"A": [*LINK_B, *ids(b"x")], "B": [*LINK_A, *ids(b" t")]})
    options = {
        "max_link_depth": depth,
        "max_new_tokens": 1,
        "temperature": 0.0,
        "allow_corpus_fallback": False,
    }
    request = Request([*LINK_A, *ids(b"x")], corpus, options=options)
    result = request.run()
    assert shape(result) == expected
    check_scores(result, request, Counter())


def test_a_shared_target_is_one_document() -> None:
    corpus = TinyCorpus({"A": [*LINK_C, *ids(b"x")], "B": [*ids(b"x"), *LINK_C], "C": ids(b"x", b"x")})
    request = Request([*LINK_A, *LINK_B, *LINK_C], corpus, options={"max_link_depth": 2, "max_new_tokens": 1})
    result = request.run()
    assert shape(result) | {"A": [(1, "C")], "B": [(2, "C")], "C": []} == shape(result)
    assert [(g.position, g.title) for g in result.root_document.grants][:3] == [(3, "A"), (4, "B"), (5, "C")]
    assert corpus.fetched["C"] == 1
    check_scores(result, request, Counter())


def test_two_links_in_one_token_are_granted_in_their_order() -> None:
    corpus = TinyCorpus({"A": ids(b"x", b"x"), "D": ids(b" t")})
    request = Request([*ids(b"[t](A)[x](D)"), *ids(b"x")], corpus, options={"max_new_tokens": 3, "temperature": 0.0})
    result = request.run()
    assert [(g.position, g.title) for g in result.root_document.grants][:2] == [(1, "A"), (1, "D")]
    check_scores(result, request, Counter())


def test_an_empty_prompt_starts_from_eos() -> None:
    request = Request([], options={"max_new_tokens": 12, "temperature": 1.0, "seed": 3, "max_link_depth": 1})
    result = request.run()
    assert result.root_document.tokens[0] == EOS and len(result.root_document.tokens) > 1
    check_scores(result, request, Counter())


def test_links_in_the_prompt_can_be_left_alone() -> None:
    corpus = TinyCorpus({"A": ids(b"x")})
    options = {"process_prompt_links": False, "max_new_tokens": 1, "temperature": 0.0}
    assert Request([*LINK_A, *ids(b"x")], corpus, options=options).run().auxiliary_documents == []


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, len(VOCABULARY) - 1), max_size=30))
def test_our_own_reading_of_links_is_the_detectors(tokens: list[int]) -> None:
    stream = LinkDetector(TOKENIZER).stream()
    assert link_sites(tokens) == [(i, link.target) for i, token in enumerate(tokens) for link in stream.feed(token)]


def test_the_checks_can_fail() -> None:
    """A grant that is off by one, or missing, is noticed."""
    corpus = TinyCorpus({"A": ids(b"x", b" t", b"B")})
    request = Request(
        [*ids(b"x"), *LINK_A, *ids(b" t")],
        corpus,
        options={"max_new_tokens": 8, "allow_corpus_fallback": False},
    )
    result = request.run()
    check_grants(result, request)
    check_scores(result, request, Counter())
    grants = result.root_document.grants
    for wrong in ([replace(grants[0], position=grants[0].position + 1), *grants[1:]], grants[1:]):
        result.root_document.grants = wrong
        with pytest.raises(AssertionError):
            check_grants(result, request)
        with pytest.raises(AssertionError):
            check_scores(result, request, Counter())
