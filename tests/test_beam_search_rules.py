"""The rules of a beam search alone: no model, no arena, but a table of probabilities in which EOS is never far."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from beam_reference import search
from hypothesis import given, settings
from hypothesis import strategies as st
from link_graphs import EOS, IDS, VOCABULARY, TinyTokenizer, tiny_model

from ds2ds import GenerationConfig
from ds2ds.engine.work import Rank, Sampled
from ds2ds.generation.beam_search import BeamSearch
from ds2ds.generation.hypothesis import Hypothesis
from ds2ds.generation.linked_doc_generator import LinkedDocumentGenerator

Table = Callable[[tuple[int, ...]], list[float]]
"""The log-probability of every token after those written."""

PROMPT = [IDS[b"x"]]
WRITTEN = (EOS, *(IDS[text] for text in (b"A", b"x", b".", b" t")))  # no links in them


def drawn(seed: int, of_eos: float = 1.0) -> Table:
    """Other probabilities after whatever was written, of five tokens, no two equal; EOS has so many times more."""

    def table(tokens: tuple[int, ...]) -> list[float]:
        dice = Random(f"{seed} {tokens}")
        weights = [(dice.random() + 0.05) * (of_eos if token == EOS else 1) for token in WRITTEN]
        logprobs = dict(zip(WRITTEN, (math.log(weight / sum(weights)) for weight in weights), strict=True))
        return [logprobs.get(token, -math.inf) for token in range(len(VOCABULARY))]

    return table


def even(tokens: tuple[int, ...]) -> list[float]:
    """All five alike."""
    return [-math.log(5) if token in WRITTEN else -math.inf for token in range(len(VOCABULARY))]


class Watched:
    """A table, and the longest tokens that it was asked about."""

    def __init__(self, table: Table) -> None:
        self.table, self.longest = table, 0

    def __call__(self, tokens: tuple[int, ...]) -> list[float]:
        self.longest = max(self.longest, len(tokens))
        return self.table(tokens)


@functools.cache
def generator() -> LinkedDocumentGenerator:
    return LinkedDocumentGenerator(tiny_model(0), tokenizer=TinyTokenizer())


def searched(table: Table, **options: Any) -> BeamSearch:
    """Search as the engine lets it, with what the table says."""
    beams = BeamSearch(generator().new_request(None, PROMPT, None, GenerationConfig(eos_token_id=EOS, **options)))
    work = beams.run()
    answer = None
    while True:
        try:
            asked = work.send(answer)
        except StopIteration:
            return beams
        assert isinstance(asked, Rank) and asked.most == 2 * options["num_beams"]
        assert set(asked.documents) <= set(beams.window)
        answer = []
        for document in asked.documents:
            logprobs = table(tuple(document.tokens[len(PROMPT) :]))
            found = [Sampled(token, logprob) for token, logprob in enumerate(logprobs) if logprob > -math.inf]
            answer.append(sorted(found, key=lambda one: -one.logprob)[: asked.most])


def assert_by_the_rules(
    table: Table, most: int, limit: str, stops: tuple[bytes, ...], links: bool, **options: Any
) -> None:
    """At most so many tokens, by one of the limits; what is in `stops` ends a hypothesis as EOS does.

    Args:
        links: they would be followed, and what they bring in written: any number of tokens may be to come.
    """
    theirs, ours = Watched(table), Watched(table)
    ends = {EOS, *(IDS[text] for text in stops)}
    expected = search(
        theirs,
        lambda tokens: tokens[-1] in ends or len(tokens) == most,
        num_beams=options["num_beams"],
        length_penalty=options["length_penalty"],
        early_stopping=options["early_stopping"],
        most_tokens=math.inf if links else most,
    )
    limits = {"max_new_tokens": 50, "max_tokens_per_document": 60, "max_context_length": 70}
    limits |= {limit: most + (0 if limit == "max_new_tokens" else len(PROMPT))}
    beams = searched(ours, max_link_depth=int(links), stop=[text.decode() for text in stops], **limits, **options)
    assert [tuple(one.token for one in found.sent) for found in beams.finished] == [one.tokens for one in expected]
    assert [beams.score(one) for one in beams.finished] == pytest.approx([one.score for one in expected])
    assert ours.longest == theirs.longest, "it went on though nothing could improve, or stopped before"
    assert beams.window == []


SETTINGS: dict[str, Any] = {
    "num_beams": st.integers(2, 5),
    "length_penalty": st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.5]),
    "early_stopping": st.sampled_from([True, False, "never"]),
    "most": st.integers(1, 7),
    "limit": st.sampled_from(["max_new_tokens", "max_tokens_per_document", "max_context_length"]),
    "stops": st.sampled_from([(), (b"A", b"."), (b"A", b".", b" t")]),
    "links": st.booleans(),
}


@settings(max_examples=600, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), of_eos=st.sampled_from([1, 30]), **SETTINGS)
def test_it_goes_by_the_rules(seed: int, of_eos: float, **case: Any) -> None:
    assert_by_the_rules(drawn(seed, of_eos), **case)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(**SETTINGS)
def test_equals_go_by_rank_and_then_by_token(**case: Any) -> None:
    assert_by_the_rules(even, **case)


def test_fewer_to_return_are_the_best_of_as_many() -> None:
    options: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 5, "max_link_depth": 0}
    every, one = (searched(drawn(3), num_return_sequences=number, **options) for number in (4, 1))
    assert [found.sent for found in one.finished] == [found.sent for found in every.finished]
    assert one.best == one.finished[:1] and every.best == every.finished


def test_a_fork_of_what_is_not_computed_yet_copies_from_where_that_would() -> None:
    request = generator().new_request(None, PROMPT, None, GenerationConfig(eos_token_id=EOS, num_beams=2))
    first = Hypothesis(request)
    first.write(Sampled(IDS[b"A"], 0.0))
    fork = Hypothesis(request, first.moment())
    again = Hypothesis(request, fork.moment())
    assert fork.document is not None and again.document is not None and first.document is not None
    assert fork.document.origin is again.document.origin is first.document
    assert again.sent == first.sent and again.document.tokens == [*PROMPT, IDS[b"A"]]
