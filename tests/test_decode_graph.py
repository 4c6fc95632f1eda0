"""Decoding in tables on the device, one step ahead of the host: the same tokens, views and documents as without.

Here the step runs eagerly, in the order in which a GPU would run it: a step that is launched ahead is computed before
the host has seen the tokens of the one before. Its kernels are stood in for by plain PyTorch (decode_reference.py),
but where it is they that are tested, in Triton's interpreter.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import decode_reference as reference
import numpy as np
import oracle
import pytest
import test_random_link_graphs as graphs_of_links
import torch
from decode_reference import PLAIN, decode_in_tables, use_plain_kernels
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from link_graphs import texts
from scripted import (
    EOS,
    TOKENIZER,
    Texts,
    agrees_with_oracle,
    encode,
    finish,
    is_clean,
    same_documents,
    small_model,
    small_runtime,
)
from torch.utils._python_dispatch import TorchDispatchMode

from ds2ds import ConfigError, DS2DSModel, GenerationConfig, GenerationError, Runtime
from ds2ds.attention.block_tables import QUERY_BLOCK
from ds2ds.attention.flex import FlexPath
from ds2ds.attention.plain import PlainAttention
from ds2ds.attention.triton_decode import TritonPath
from ds2ds.attention.view import Chunk
from ds2ds.cache.arena import KVArena
from ds2ds.cache.document_store import DocumentStore
from ds2ds.documents.document import Document, DocumentGrant
from ds2ds.documents.generation_result import Trace
from ds2ds.engine.decode_graph import decoder as decoder_module
from ds2ds.engine.decode_graph import graphs
from ds2ds.engine.decode_graph.choosing import decodable
from ds2ds.engine.decode_graph.decoder import Decoder, Flight
from ds2ds.engine.decode_graph.graphs import Bucket, Graphs
from ds2ds.engine.decode_graph.row import Room, Row, row_at
from ds2ds.engine.job import Job
from ds2ds.engine.step import forward
from ds2ds.engine.work import Compute, Sampled, Sampling
from ds2ds.generation.running import Running
from ds2ds.kernels import SampleOutput, decode_tables
from ds2ds.kernels import few_rows as few_rows_kernels
from ds2ds.kernels.decode_tables import FIELDS, RECORD, DecodeTables
from ds2ds.model.quantised import quantise_weights
from ds2ds.native import operations as native

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="runs on the GPU there: test_decode_graph_gpu.py"),
    # NumPy remarks on NaN and infinity, which a GPU does not.
    pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning"),
]

GREEDY = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0)
PENALISED = Sampling(0.0, 0, 1.0, 0.0, 5.0, 0)
TEXTS = {"A": "about A, with [b](B) and more", "B": "about B", "Long": "a long one " * 12}
PROMPTS = ["see [a](A) and [l](Long) now", "p", "x [b](B)", "[q](Unknown)", "y" * 30]


@pytest.fixture
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    use_plain_kernels(monkeypatch)


class Poisoned(Decoder):
    """What is computed ahead is NaN in the arena until its result counts: nobody may read it before."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.hidden: dict[Document, tuple[int, torch.Tensor]] = {}

    def _read(self, flight: Flight, due: Collection[Document]) -> None:
        super()._read(flight, due)
        self.hidden = {}
        if self._last is not None and self._last is not flight:
            for document, row in self._last.rows.items():
                slot = row.start + self._last.position[document]
                slots = self.store.arena.data[..., slot, :]
                self.hidden[document] = slot, slots.clone()
                slots.fill_(torch.nan)

    def _computed(self, rows: Mapping[Document, Row]) -> dict[Document, Row]:
        computed = super()._computed(rows)
        for document in computed:
            slot, values = self.hidden.pop(document)
            self.store.arena.data[..., slot, :] = values
        return computed


def poisoned(runtime: Runtime, part: int = 4, **options: Any) -> Poisoned:
    engine = runtime.engine
    engine.decoder = Poisoned(
        runtime.model, engine.store, engine.limits.max_running, part=part, capture=False, **options
    )
    return engine.decoder


def config(**options: Any) -> GenerationConfig:
    wide = {"max_context_length": 500, "max_tokens_per_document": 480, "max_link_depth": 1, "logprobs": True}
    return GenerationConfig(**{"eos_token_id": EOS, "seed": 3, "max_new_tokens": 12, **wide, **options})


def start(runtime: Runtime, prompt: str, corpus: Any = None, **options: Any) -> Running:
    return runtime._generator.start(prompt, None, corpus, config(**options))


# Random requests


@functools.cache
def decoding_runtime(model: tuple[int, int, int], layout: str, arena_tokens: int | None = None) -> Runtime:
    runtime = graphs_of_links.new_runtime(model, layout, arena_tokens)
    poisoned(runtime)
    return runtime


MANY = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def agrees(request: graphs_of_links.Request, seen: Counter[str]) -> None:
    ours = request.run(decoding_runtime(request.model, request.layout))
    assert graphs_of_links.snapshot(ours) == graphs_of_links.snapshot(request.run())
    graphs_of_links.check_scores(ours, request, seen)
    seen["evictions"] += ours.trace.evictions
    seen["ends"] += sum(g.end is not None for d in ours.get_all_documents() for g in d.grants)
    seen["generated"] += sum(d.source == "generated" for d in ours.auxiliary_documents)
    seen["eos"] += sum(d.finish_reason == "eos" for d in ours.get_all_documents())


def over_requests(examples: int, seen: Counter[str]) -> None:
    @settings(MANY, max_examples=examples)
    @given(graphs_of_links.tight_requests() | graphs_of_links.tight_requests() | graphs_of_links.requests())
    def run(request: graphs_of_links.Request) -> None:
        agrees(request, seen)

    run()


more_prompts = st.lists(texts(), min_size=2, max_size=4)


def over_batches(examples: int, arena_tokens: int | None, steps: Counter[str]) -> None:
    @settings(MANY, max_examples=examples)
    @given(graphs_of_links.tight_requests() if arena_tokens else graphs_of_links.requests(), more_prompts)
    def run(request: graphs_of_links.Request, more: list[list[int]]) -> None:
        on = decoding_runtime(request.model, request.layout, arena_tokens)
        graphs_of_links.check_batch(on, request, more)
        decoder = on.engine.decoder
        assert decoder is not None
        for name in ("flights", "edited", "dropped"):
            steps[name] += getattr(decoder, name)
            setattr(decoder, name, 0)

    run()


def test_random_requests_are_what_they_are_without_it(plain_kernels: None) -> None:
    seen: Counter[str] = Counter()
    over_requests(30, seen)
    assert min(seen["evictions"], seen["ends"], seen["generated"], seen["eos"]) > 3, seen


def test_random_batches_are_what_they_are_without_it(plain_kernels: None) -> None:
    steps: Counter[str] = Counter()
    over_batches(6, None, steps)
    assert 0 < steps["dropped"] < steps["edited"], steps


def test_random_batches_in_a_crowded_arena(plain_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests wait for each other, are suspended, and documents move between steps."""
    moved = []
    compact = KVArena.compact
    monkeypatch.setattr(KVArena, "compact", lambda arena: moved.append(compact(arena)) or moved[-1])
    over_batches(12, graphs_of_links.CROWDED, Counter())
    assert any(moved)


@pytest.mark.slow
def test_soak(plain_kernels: None) -> None:
    over_requests(500, Counter())
    over_batches(200, None, Counter())
    over_batches(200, graphs_of_links.CROWDED, Counter())


# Requests that come, go and differ


def assert_same_as_alone(running: Running, prompt: str, corpus: Any = None, **options: Any) -> None:
    assert running.job.error is None
    alone = small_runtime().generate(prompt, corpus=corpus, config=config(**options))
    same_documents(running.result().get_all_documents(), alone.get_all_documents())
    agrees_with_oracle(running.result())


VARIED: list[dict[str, Any]] = [
    {"max_new_tokens": 4, "temperature": 0.0},
    {"max_new_tokens": 15, "temperature": 1.0, "top_k": 5, "seed": -7},
    {"max_new_tokens": 9, "temperature": 1.3, "top_p": 0.8, "seed": 2**62},
    {"max_new_tokens": 14, "temperature": 0.0, "repetition_penalty": 1.5},
    {"max_new_tokens": 16, "temperature": 0.9, "min_p": 0.05, "repetition_penalty": 0.8, "seed": 1},
]


@pytest.mark.parametrize("ahead", [True, False])
def test_requests_join_and_leave_each_with_its_own_settings(ahead: bool, plain_kernels: None) -> None:
    """The first to leave make room for those behind them, which move up in the tables with their penalty."""
    runtime, corpus = small_runtime(max_running=8), Texts(TEXTS)
    decoder = decode_in_tables(runtime, ahead=ahead)
    running = []
    for prompt, options in zip(PROMPTS, VARIED, strict=True):
        running.append(start(runtime, prompt, corpus, **options))
        runtime.engine.step()
        runtime.engine.step()
    finish(runtime, *running)
    assert is_clean(runtime)
    assert ahead or not decoder.dropped
    for one, prompt, options in zip(running, PROMPTS, VARIED, strict=True):
        assert_same_as_alone(one, prompt, corpus, **options)


def test_between_plain_tokens_nothing_comes_from_the_host_and_nothing_moves(plain_kernels: None) -> None:
    runtime = small_runtime(max_running=4)
    decoder = poisoned(runtime)
    running = [start(runtime, prompt, max_new_tokens=40, max_link_depth=0) for prompt in PROMPTS[1:4]]
    runtime.engine.step()
    runtime.engine.step()

    def addresses() -> list[int]:
        writer = decoder._writer
        buffers = [writer._buffer, writer._other, writer._listed, *decoder._arrived]
        return [t.data_ptr() for t in vars(decoder.tables).values()] + [b.values.ctypes.data for b in buffers]

    before, flights = addresses(), decoder.flights
    assert decoder.edited == 3
    for _ in range(25):
        runtime.engine.step()
    assert (decoder.edited, decoder.dropped, decoder.flights) == (3, 0, flights + 25)
    assert addresses() == before
    for one in running:
        runtime.engine.cancel(one.job)
    assert is_clean(runtime)


def test_documents_that_move_between_steps(plain_kernels: None) -> None:
    runtime, corpus = small_runtime(), Texts(TEXTS)
    decoder = poisoned(runtime)
    arena = runtime.engine.store.arena
    holes = [arena.allocator.allocate(32)]
    options = {"max_new_tokens": 12, "temperature": 1.0}
    running = []
    for prompt in PROMPTS[:3]:
        running.append(start(runtime, prompt, corpus, **options))
        runtime.engine.step()
        runtime.engine.step()
        holes.append(arena.allocator.allocate(16))
    for hole in holes[:-1]:
        assert hole is not None
        arena.allocator.release(hole)
        assert arena.compact()
        runtime.engine.step()
    assert holes[-1] is not None
    arena.allocator.release(holes[-1])
    finish(runtime, *running)
    assert decoder.dropped > len(running)  # not only those that were at their ends
    for one, prompt in zip(running, PROMPTS, strict=False):
        assert_same_as_alone(one, prompt, corpus, **options)


def test_a_request_that_is_cancelled_while_its_next_token_is_on_its_way(plain_kernels: None) -> None:
    runtime = small_runtime()
    decoder = poisoned(runtime)
    first, second = (start(runtime, prompt, temperature=1.0) for prompt in ("p", "y" * 30))
    for _ in range(4):
        runtime.engine.step()
    runtime.engine.cancel(first.job)
    # Into the room that it leaves, while it is still written to.
    third = start(runtime, "x" * 40, temperature=1.0)
    finish(runtime, second, third)
    assert decoder.dropped >= 3
    assert_same_as_alone(second, "y" * 30, temperature=1.0)
    assert_same_as_alone(third, "x" * 40, temperature=1.0)


def test_views_in_too_many_parts_are_decoded_without_it(plain_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "MOST_PARTS", 8)
    runtime, corpus = small_runtime(), Texts(TEXTS)
    decoder = poisoned(runtime)
    options = {"max_new_tokens": 12, "temperature": 1.0}
    running = [start(runtime, prompt, corpus, **options) for prompt in ("see [b](B) x", "x" * 22, "[l](Long)")]
    finish(runtime, *running)
    # The second has 32 tokens, and so 8 parts of 4, before it is done; the third never has so few.
    assert 0 < decoder.flights < 24
    for one, prompt in zip(running, ("see [b](B) x", "x" * 22, "[l](Long)"), strict=True):
        assert_same_as_alone(one, prompt, corpus, **options)


def test_a_view_may_have_as_many_parts_as_the_tables(plain_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "MOST_PARTS", 8)
    bench = Bench()
    most, more = (bench.document("a" * length) for length in (32, 33))
    assert bench.decoder.row(most, GREEDY) is not None and bench.decoder.row(more, GREEDY) is None


def test_up_to_the_model_s_last_position(plain_kernels: None) -> None:
    options: dict[str, Any] = {"max_context_length": 40, "max_tokens_per_document": 40, "max_new_tokens": 100}
    options |= {"eos_token_id": TOKENIZER.vocab_size, "seed": 3, "temperature": 1.0, "logprobs": True}
    results = []
    for decoding in (False, True):
        runtime = Runtime(small_model(max_seq_len=40), TOKENIZER, arena_tokens=256)
        if decoding:
            poisoned(runtime)
        results.append(runtime.generate("[b](B) and so", corpus=Texts({"B": "about B"}), **options))
    assert len(results[0].root_document.tokens) + len(results[0].auxiliary_documents[0].tokens) >= 40
    same_documents(*(result.get_all_documents() for result in results))


def test_a_row_without_usable_logits_ends_its_request_alone(
    plain_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = small_runtime()
    poisoned(runtime)

    def fail(logits: torch.Tensor, settings: Any, penalty: None, marked: Any = None) -> Any:
        drawn = reference.sample_on_device(logits, settings, penalty, marked)
        for row, (temperature, position) in enumerate(zip(settings[0].tolist(), settings[5].tolist(), strict=True)):
            if temperature == 0.5 and position == 7:
                drawn.tokens[row], drawn.logprobs[row], drawn.status[row] = -1, torch.nan, 1
        return drawn

    monkeypatch.setattr("ds2ds.engine.decode_graph.graphs.sample_on_device", fail)
    failing, other = start(runtime, "ppp", temperature=0.5), start(runtime, "y" * 30, temperature=1.0)
    finish(runtime, failing, other)
    assert isinstance(failing.job.error, GenerationError)
    assert "no usable logits for token 7 of '' (status 1" in str(failing.job.error)
    assert_same_as_alone(other, "y" * 30, temperature=1.0)
    assert is_clean(runtime)


# What was computed ahead, and whether it counts


class Bench:
    """A store, documents in progress of which all but the last token is computed, and a decoder."""

    def __init__(self, max_seq_len: int = 512, own_model: bool = False, **options: Any) -> None:
        self.model = small_model(max_seq_len=max_seq_len)
        if own_model:  # to be changed: the other one is everybody's
            self.model = copy.deepcopy(self.model)
        self.store = DocumentStore(KVArena(2, 2, 16, 512), share=False)
        self.decoder = Decoder(self.model, self.store, 4, **{"part": 4, "capture": False, **options})

    def document(self, text: str, *targets: Document, capacity: int = 60) -> Document:
        document = Document(text[:1], encode(text), capacity=capacity)
        document.grants = [DocumentGrant(0, target) for target in targets]
        self.compute(document, len(document.tokens) - 1)
        return document

    def compute(self, document: Document, stop: int) -> None:
        self.store.reserve(document, set)
        first = self.store.computed(document)
        if first < stop:
            path = functools.partial(PlainAttention, self.store, self.model.rotary)
            forward(self.model, path, [Chunk(document, first, stop)])
            self.store.advance(document, stop)

    def step(self, *documents: Document, sampling: Sampling = GREEDY) -> list[int]:
        """Decode, and let those that got a token have it; returns the tokens."""
        rows = {document: self.decoder.row(document, sampling) for document in documents}
        drawn = self.decoder.decode({document: row for document, row in rows.items() if row is not None})
        for document, result in drawn.items():
            assert isinstance(result, Sampled)
            self.store.advance(document, len(document.tokens))
            document.append(result.token, result.logprob)
        return [document.tokens[-1] for document in drawn]


def scores_agree(*documents: Document) -> None:
    made: dict[Document, oracle.Document] = {}
    for document in documents:
        grants = [(grant.position, made[grant.target], grant.end) for grant in document.grants]
        made[document] = oracle.Document(document.title, document.tokens, grants)
    for document, scores in zip(made, oracle.Oracle(small_model()).log_probs(list(made.values())), strict=True):
        for index in np.flatnonzero(~np.isnan(document.logprobs)):
            assert abs(scores[index - 1, document.tokens[index]] - document.logprobs[index]) < 1e-4


def test_a_result_counts_if_the_row_is_what_the_books_ask_for(plain_kernels: None) -> None:
    bench = Bench()
    target = bench.document("about")
    target.capacity = None
    bench.compute(target, 5)
    a = bench.document("abc", capacity=40)
    bench.step(a)
    bench.step(a)
    assert (bench.decoder.flights, bench.decoder.dropped) == (3, 0)
    # A grant from the next token on is what the flight that is under way does not have.
    a.add_grant(len(a.tokens) - 1, target)
    bench.step(a)
    assert bench.decoder.dropped == 1
    # A grant from the one after that on is in time.
    a.end_grants(target)
    a.add_grant(len(a.tokens), target)
    bench.step(a)
    assert bench.decoder.dropped == 2
    bench.step(a)
    a.tokens[-1:], a.logprobs[-1:] = [7], [np.nan]  # somebody writes another token than the one drawn
    bench.step(a)
    assert bench.decoder.dropped == 3
    bench.step(a)
    assert bench.decoder.dropped == 3
    scores_agree(target, a)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_token_that_was_drawn_once_and_stands_there_twice(ahead: bool, plain_kernels: None) -> None:
    """The last token is the one drawn, at another position."""
    bench = Bench(ahead=ahead)
    a = bench.document("abc")
    bench.step(a)
    bench.step(a)
    a.append(a.tokens[-1], np.nan)
    bench.compute(a, len(a.tokens) - 1)
    bench.step(a)
    assert bench.decoder.dropped == ahead
    assert bench.decoder.edited == 2
    scores_agree(a)


def test_a_document_that_was_dropped_and_computed_anew_starts_anew(plain_kernels: None) -> None:
    """To the same slots, with the same tokens, as the row that was computed ahead."""
    bench = Bench()
    a = bench.document("abc")
    bench.step(a)
    slot = bench.store.start(a)
    bench.store.release(a)
    bench.store.arena.data.fill_(torch.nan)
    bench.compute(a, len(a.tokens) - 1)
    assert bench.store.start(a) == slot
    bench.step(a)
    bench.step(a)
    assert bench.decoder.dropped == 1
    scores_agree(a)


def test_other_settings_and_other_weights_start_anew(plain_kernels: None) -> None:
    bench = Bench()
    a = bench.document("abc")
    bench.step(a)
    bench.step(a, sampling=PENALISED)
    assert bench.decoder.dropped == 1
    bench.step(a, sampling=PENALISED)
    flights = bench.decoder.flights
    bench.store.use_weights(b"others")
    bench.step(a, sampling=PENALISED)
    assert bench.decoder.flights == flights + 2
    scores_agree(a)


def test_what_does_not_follow_from_the_step_before_is_written_by_the_host(plain_kernels: None) -> None:
    """Where each step is launched once the one before was read."""
    bench = Bench(ahead=False)
    a = bench.document("abc")
    for _ in range(4):
        bench.step(a)
    assert bench.decoder.edited == 1
    a.tokens[-1:], a.logprobs[-1:] = [7], [np.nan]  # somebody writes another token than the one drawn
    bench.step(a)
    assert bench.decoder.edited == 2
    for _ in range(3):
        bench.step(a, sampling=PENALISED)
    assert bench.decoder.edited == 3
    scores_agree(a)
    listed = np.unpackbits(bench.decoder.tables.listed[0].numpy().view("uint8"), bitorder="little")
    assert set(np.flatnonzero(listed)) == set(a.tokens)


def test_a_target_that_is_not_computed_keeps_its_reader_out_of_the_next_flight(plain_kernels: None) -> None:
    bench = Bench()
    target = bench.document("about")
    target.capacity = None
    a, b = bench.document("abc"), bench.document("by", capacity=40)
    bench.step(a, b)
    bench.step(a, b)
    a.add_grant(len(a.tokens), target)
    # What is under way does not read it and counts; what is launched now would.
    assert len(bench.step(a, b)) == 2
    bench.compute(target, 5)
    assert bench.step(a, b) == [b.tokens[-1]]
    assert len(bench.step(a, b)) == 2
    assert bench.decoder.dropped == 0
    scores_agree(target, a, b)


def test_a_document_without_room_for_one_more_token_is_not_launched_ahead(plain_kernels: None) -> None:
    bench = Bench()
    a = bench.document("a" * 14, capacity=16)  # an extent of 16 slots
    bench.step(a)
    assert bench.decoder.flights == 2
    bench.step(a)
    assert bench.decoder.flights == 3
    bench.step(a)
    assert (bench.decoder.flights, bench.decoder.dropped) == (3, 0)
    scores_agree(a)


def test_a_view_beyond_the_rotary_tables_is_not_launched_ahead(plain_kernels: None) -> None:
    bench = Bench(max_seq_len=16)
    target = bench.document("about")
    target.capacity = None
    bench.compute(target, 5)
    a = bench.document("a" * 11, target)
    assert bench.decoder.row(a, GREEDY) is not None  # token 10, turned to 15
    bench.step(a)
    assert bench.decoder.flights == 1
    assert bench.decoder.row(a, GREEDY) is None


def test_who_has_left_writes_nothing_any_more(plain_kernels: None) -> None:
    """Of four rows the last one goes, and the step still has four."""
    bench = Bench()
    documents = [bench.document(letter * 3) for letter in "abcd"]
    bench.step(*documents)
    bench.step(*documents[:3])
    gone = bench.store.entry(documents[3])
    bench.store.arena.data.nan_to_num_()
    assert gone is not None
    slots = bench.store.arena.data[..., gone.extent.start : gone.extent.stop, :]
    before = slots.clone()
    for _ in range(3):
        bench.step(*documents[:3])
    assert torch.equal(slots, before)


def test_what_the_next_token_reads_is_attached_and_what_is_not_decoded_is_left_to_others(plain_kernels: None) -> None:
    bench = Bench()
    bench.store.share = True
    found = Document("found", encode("about"))
    bench.compute(found, 5)
    target = Document("found", encode("about"))
    a = bench.document("abc")
    a.add_grant(3, target)
    asked = {a: GREEDY, bench.document("by"): replace(GREEDY, top=2)}  # the second wants the likeliest tokens
    written = {
        document: Job((_ for _ in ()), [], Trace(), 0, waiting=Compute(document, sampling))
        for document, sampling in asked.items()
    }
    rows, rest = decodable(bench.decoder, written)
    assert list(rows) == [a]
    assert rest == {document: job for document, job in written.items() if document is not a}
    # It is there for the step that is launched next: the document need not be left out of that.
    assert bench.store.entry(target) is bench.store.entry(found)
    assert list(written[a].touched) == [target]


def test_shapes_of_steps_are_powers_of_two(plain_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else there would be a graph for each number of rows and parts."""
    bench = Bench()
    run: list[Bucket] = []
    monkeypatch.setattr(bench.decoder.graphs, "run", run.append)
    for number, text in ((1, "abc"), (3, "a" * 19)):  # 1 and 5 parts of 4
        bench.decoder.decode({d: bench.decoder.row(d, GREEDY) for d in (bench.document(text) for _ in range(number))})
    assert run == [Bucket(1, 4, False)] * 2 + [Bucket(4, 8, False)] * 2


def test_a_step_has_penalties_if_any_row_has(plain_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for drawn in ((PENALISED, GREEDY), (GREEDY, PENALISED), (GREEDY, GREEDY)):
        bench = Bench(ahead=False)
        run: list[Bucket] = []
        monkeypatch.setattr(bench.decoder.graphs, "run", run.append)
        documents = (bench.document("abc") for _ in drawn)
        bench.decoder.decode({d: bench.decoder.row(d, one) for d, one in zip(documents, drawn, strict=True)})
        assert run == [Bucket(2, 4, PENALISED in drawn)]


@pytest.mark.parametrize(("asked", "there"), [(1, 16), (16, 16), (17, 32), (33, 64)])
def test_tables_have_room_for_a_bucket_and_their_columns_are_aligned(asked: int, there: int) -> None:
    tables = Decoder(small_model(), DocumentStore(KVArena(2, 2, 16, 64)), asked, capture=False).tables
    assert tables.rows == there
    assert all(tables.column(name, asked).data_ptr() % 16 == 0 for name in FIELDS)


def test_more_of_the_likeliest_tokens_than_there_are_is_all(plain_kernels: None) -> None:
    drawn = []
    for top_k in (0, 2**40):
        bench = Bench()
        a = bench.document("abc")
        for _ in range(3):
            bench.step(a, sampling=Sampling(1.0, top_k, 1.0, 0.0, 1.0, 5))
        drawn.append(a.tokens)
    assert drawn[0] == drawn[1]


ROOM = Room(part=4, parts=16, positions=64)


def a_row(store: DocumentStore, document: Document, position: int, room: Room = ROOM) -> Row:
    row = row_at(store, document, position, GREEDY, room)
    assert row is not None
    return row


def test_rows_of_the_books() -> None:
    store = DocumentStore(KVArena(1, 1, 4, 128))
    near, far = Document("near", [0] * 9), Document("far", [0] * 3)
    a = Document("a", [0] * 5, grants=[DocumentGrant(0, near), DocumentGrant(4, far)], capacity=20)
    for document in (near, far, a):
        store.reserve(document, set)
    start = [store.start(document) for document in (near, far, a)]
    row = a_row(store, a, 4)
    others = ((9, start[0], 4), (9, start[0] + 4, 4), (9, start[0] + 8, 1), (12, start[1], 3))
    assert (row.entry, row.start, row.others.parts, row.sampling) == (store.entry(a), start[2], others, GREEDY)
    assert (row.others.since, row.others.delta) == (4, 12)
    assert row == a_row(store, a, 5)
    assert row != a_row(store, a, 3)
    assert a_row(store, a, 3).others.parts == others[:3]
    assert a_row(store, a, 3).until == 4
    assert row.stands(store, a, 4, GREEDY) and row.stands(store, a, 5, replace(GREEDY))
    assert not row.stands(store, a, 3, GREEDY)
    assert not row.stands(store, a, 4, replace(GREEDY, temperature=1.0))
    assert not replace(row, start=row.start + 2).stands(store, a, 4, GREEDY)
    a.grants = [*a.grants, DocumentGrant(9, near)]
    assert not row.stands(store, a, 4, GREEDY)
    with pytest.raises(KeyError):
        row_at(store, Document("b", [0], grants=[DocumentGrant(0, near)]), 0, GREEDY, ROOM)


@pytest.mark.parametrize(
    ("room", "until"),
    [
        (ROOM, 32),  # the extent
        (Room(part=4, parts=7, positions=64), 16),  # 4 parts of its own beside 3
        (Room(part=4, parts=16, positions=30), 21),
        (Room(part=4, parts=4, positions=64), 4),
    ],
)
def test_how_far_there_is_room_for_a_row(room: Room, until: int) -> None:
    store = DocumentStore(KVArena(1, 1, 4, 128))
    target = Document("target", [0] * 9)
    a = Document("a", [0] * 2, grants=[DocumentGrant(0, target)], capacity=20)
    for document in (target, a):
        store.reserve(document, set)
    row = a_row(store, a, 1, room)
    assert row.until == until
    assert row.stands(store, a, until - 1, GREEDY) and not row.stands(store, a, until, GREEDY)
    assert row_at(store, a, until - 1, GREEDY, room) == row
    assert row_at(store, a, until, GREEDY, room) is None


@given(st.data())
def test_a_row_is_kept_only_while_the_next_token_reads_the_same(data: st.DataObject) -> None:
    """Whatever happens between two tokens, the row that stands has what is in view now, where it is now."""
    store = DocumentStore(KVArena(1, 1, 4, 256), share=False)
    pages = [Document(f"page {number}", [0] * length) for number, length in enumerate((9, 3, 16))]
    wedge = Document("wedge", [0] * 5)
    root = Document("root", [0], capacity=40)
    # What lies before the wedge does not move.
    for document in data.draw(st.sampled_from(([wedge, *pages, root], [root, wedge, *pages]))):
        store.reserve(document, set)
    row = a_row(store, root, 0)
    kept = 0
    for _ in range(data.draw(st.integers(1, 12))):
        page = data.draw(st.sampled_from(pages))
        match data.draw(st.sampled_from(("nothing", "link", "evict", "move", "later"))):
            case "link":
                root.add_grant(len(root.tokens), page)
            case "evict":
                root.end_grants(page)
            case "move":  # and leaves a gap for the next one
                store.release(page if wedge not in store.documents() else wedge)
                store.arena.compact()
                store.reserve(page, set)
            case "later":  # a view that changes ahead of the tokens
                root.add_grant(len(root.tokens) + 2, page)
        root.settled = len(root.tokens)
        root.append(0, 0.0)
        last = len(root.tokens) - 1
        if row.stands(store, root, last, GREEDY):
            kept += 1
        else:
            row = a_row(store, root, last)
        parts, delta = [], 0
        for target in (grant.target for grant in root.grants if grant.covers(last)):
            delta += len(target.tokens)
            for at in range(0, len(target.tokens), 4):
                parts.append((delta, store.start(target) + at, min(4, len(target.tokens) - at)))
        assert row.others.parts == tuple(parts)
        assert (row.entry, row.start) == (store.entry(root), store.start(root))
        assert row.stands(store, root, last, GREEDY)
    event(f"{min(kept, 3)} times or more")


# The kernels


@st.composite
def tables(draw: st.DrawFn) -> tuple[DecodeTables, torch.Tensor, int, int]:
    """Tables in use, edits for some rows, and how many rows a step has, of up to how many parts."""
    dice = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    made = DecodeTables.make(16, 8, 70, "cpu")
    for tensor in (made.fields, made.others, made.drawn, made.listed, made.parts, made.seed):
        tensor.random_(0, 60, generator=dice)
    made.drawn[::2, 0] = -1  # nothing could be drawn; an embedding has no such row
    rows = draw(st.sampled_from([1, 2, 4, 8]))
    made.fields[FIELDS.index("slot")] = torch.randint(-1, 3, (16,), generator=dice) * 40
    made.fields[FIELDS.index("position")] = torch.randint(0, 17, (16,), generator=dice)
    made.fields[FIELDS.index("others")] = torch.randint(0, 4, (16,), generator=dice)
    made.fields[FIELDS.index("token")] = torch.randint(-rows, 60, (16,), generator=dice)
    edits = torch.randint(-(2**31), 2**31 - 1, (rows, RECORD + 3 * 8), generator=dice, dtype=torch.int32)
    edits[:, 0] = torch.randperm(16, generator=dice)[:rows]
    edits[:, 1] = torch.randint(-rows, 60, (rows,), generator=dice)
    edits[:, 2] = torch.randint(0, 17, (rows,), generator=dice)
    edits[:, 3] = 100
    edits[:, 4] = torch.randint(0, 4, (rows,), generator=dice)
    return made, edits, rows, 8


def copied(made: DecodeTables) -> DecodeTables:
    return DecodeTables(*(tensor.clone() for tensor in vars(made).values()))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(tables(), st.booleans())
def test_the_kernels_do_what_their_reference_does(
    case: tuple[DecodeTables, torch.Tensor, int, int], penalised: bool
) -> None:
    ours, edits, rows, width = case
    theirs = copied(ours)
    drawn = torch.arange(-1, rows - 1) * 9, torch.randn(rows), torch.arange(rows, dtype=torch.int32)
    for module, made in ((decode_tables, ours), (reference, theirs)):
        module.edit(made, edits)
        module.lay_out(made, rows, width, 4)
        module.advance(made, rows, *drawn, penalised)
    for name, tensor in vars(ours).items():
        expected = getattr(theirs, name)
        if name == "parts":  # of one that is not there, only that matters
            absent = expected[:, 3] == 0
            assert not tensor[absent, 3].any()
            tensor, expected = tensor[~absent], expected[~absent]
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("few_rows", [0, 16])
def test_the_whole_step_in_the_interpreter(few_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel of ours that a GPU runs, in prefill too; where products are PyTorch's there, they are here."""
    monkeypatch.setattr("ds2ds.model.linear.FEW_ROWS", 0)
    monkeypatch.setattr("ds2ds.native.operations.takes", lambda *tensors: False)
    for module in ("backbone", "linear"):
        monkeypatch.setattr(f"ds2ds.model.{module}.fuses", lambda x: len(x) > 0)
    runtime, corpus = small_runtime(max_running=2), Texts({"B": "about B"})
    decoder = poisoned(runtime, part=16, few_rows=few_rows)
    options: list[dict[str, Any]] = [
        {"max_new_tokens": 4, "temperature": 1.0, "top_k": 20},
        {"max_new_tokens": 6, "temperature": 0.0, "repetition_penalty": 1.3},
    ]
    running = [start(runtime, prompt, corpus, **own) for prompt, own in zip(PROMPTS[1:3], options, strict=True)]
    finish(runtime, *running)
    assert decoder.flights > 0
    monkeypatch.undo()
    for one, prompt, own in zip(running, PROMPTS[1:3], options, strict=True):
        assert_same_as_alone(one, prompt, corpus, **own)


# Settings


def test_graphs_need_a_gpu_and_our_kernels() -> None:
    for wrong, message in (
        ({"cuda_graphs": True}, "cuda_graphs needs a GPU and attention 'triton', got 'cpu' and attention 'auto'"),
        ({"cuda_graphs": "on"}, "cuda_graphs must be True, False or 'auto', got 'on'"),
    ):
        with pytest.raises(ConfigError, match=message):
            small_runtime(**wrong)
    assert small_runtime().engine.decoder is None


def test_warming_up_captures_every_bucket_that_may_come(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[Bucket] = []
    monkeypatch.setattr(Graphs, "prepare", lambda self, bucket: prepared.append(bucket))
    decoder = decode_in_tables(small_runtime(max_running=40), part=64)
    decoder.warm_up(3, parts=9)
    assert sorted(prepared) == [Bucket(rows, width, False) for rows in (1, 2, 4) for width in (4, 8, 16)]
    prepared.clear()
    decoder.warm_up(penalised=True)
    assert {bucket.rows for bucket in prepared} == {1, 2, 4, 8, 16, 32, 64}
    assert {bucket.width for bucket in prepared} == {4, 8, 16}  # 512 positions, in parts of 64, and as many more
    assert len(set(prepared)) == len(prepared) == 7 * 3 * 2
    prepared.clear()
    decoder.warm_up(1000, parts=1000)  # but none that the tables have no room for
    assert max(prepared) == (64, 128, False)
    assert max(bucket.width for bucket in prepared) == 128


def test_without_a_gpu_there_is_nothing_to_warm_up() -> None:
    runtime = small_runtime()
    decoder = decode_in_tables(runtime)
    runtime.warm_up()
    assert (decoder.flights, decoder.graphs.captured) == (0, 0)


def test_what_runs_before_a_capture_leaves_no_trace(plain_kernels: None) -> None:
    bench = Bench()
    bench.store.arena.data.nan_to_num_()
    bench.step(bench.document("abc"), bench.document("by"), sampling=Sampling(1.0, 0, 1.0, 0.0, 1.5, 0))
    tables = bench.decoder.tables
    state = tables.fields, tables.others, tables.drawn, tables.listed, bench.store.arena.data
    before = [tensor.clone() for tensor in state]
    with bench.decoder.graphs._undisturbed():
        bench.decoder.graphs.compute(Bucket(4, 8, True))
        assert not torch.equal(tables.drawn, before[2]) and not torch.equal(tables.listed, before[3])
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(state, before, strict=True))


class FakeGraph:
    replay: Callable[[], None]


class FakeCuda:
    """As much of torch.cuda as a capture needs, on a CPU: a graph is what was computed, and a replay computes it again.

    Attributes:
        live: how many graphs each pool has. As in torch, one that has had some and has none takes no more.
        captured: (pool, stream, of how many rows) of each graph; warmed: the streams that something was computed on.
        waits: (stream, for which other one) in their order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.live: Counter[int] = Counter()
        self.captured: list[tuple[int, int, int]] = []
        self.warmed: list[int] = []
        self.waits: list[tuple[int, int]] = []
        self.stream = 0
        numbers = itertools.count(1)
        for name, stand_in in {
            "Stream": lambda device: self.of_number(next(numbers)),
            "current_stream": lambda device: self.of_number(0),
            "stream": self.on,
            "graph_pool_handle": lambda: next(numbers),
            "CUDAGraph": FakeGraph,
            "graph": self.graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        compute = Graphs.compute

        def watched(of: Graphs, bucket: Bucket) -> None:
            self.warmed.append(self.stream)
            self.bucket, self.of = bucket, of
            compute(of, bucket)

        monkeypatch.setattr(Graphs, "compute", watched)

    def of_number(self, number: int) -> SimpleNamespace:
        return SimpleNamespace(number=number, wait_stream=lambda other: self.waits.append((number, other.number)))

    @contextlib.contextmanager
    def on(self, stream: SimpleNamespace) -> Iterator[None]:
        self.stream, before = stream.number, self.stream
        yield
        self.stream = before

    @contextlib.contextmanager
    def graph(self, graph: FakeGraph, pool: int, stream: SimpleNamespace, capture_error_mode: str) -> Iterator[None]:
        assert self.live.get(pool) != 0, "use_count > 0 INTERNAL ASSERT FAILED"
        assert stream.number in self.warmed, "a capture on a stream that cuBLAS has no workspace for"
        assert self.waits[-2:] == [(stream.number, 0), (0, stream.number)], "what is on one stream overtakes another"
        assert not gc.isenabled(), "an old graph may come to its end in a capture"
        assert capture_error_mode == "thread_local", "another thread's use of the GPU would spoil the capture"
        kept = [tensor.clone() for tensor in (*self.of.tables.state, self.of.arena.data)]
        with self.on(stream):
            yield
        for tensor, before in zip((*self.of.tables.state, self.of.arena.data), kept, strict=True):
            tensor.copy_(before)  # a capture computes nothing
        self.live[pool] += 1
        self.captured.append((pool, stream.number, self.bucket.rows))
        of, bucket = self.of, self.bucket
        graph.replay = lambda: of.compute(bucket)
        weakref.finalize(graph, self.live.subtract, [pool])


def test_graphs_are_captured_on_one_stream_and_anew_for_other_weights(
    plain_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch)
    bench = Bench(capture=True)
    a, b = bench.document("abc"), bench.document("by")
    for number in (1, 2):
        bench.store.use_weights(bytes([number]))
        for parameter in bench.model.parameters():
            parameter.data = parameter.data.clone()
        bench.step(a)
        bench.step(a)
        bench.step(a, b)
        bench.step(a, b)
        # Of as many rows, but more parts: another graph.
        bench.step(bench.document("c" * 18))
        bench.step(a)
        assert bench.decoder.graphs.captured == 3 * number
    assert gc.isenabled()
    pools, streams, rows = zip(*cuda.captured, strict=True)
    assert rows == (1, 2, 1) * 2
    assert pools[0] == pools[1] == pools[2] != pools[3] == pools[4] == pools[5]
    assert len(set(streams)) == 1 and set(cuda.warmed) == {0, streams[0]}
    scores_agree(a, b)


ELSEWHERE: dict[str, Callable[[DS2DSModel], None]] = {
    "a parameter": lambda model: setattr(model.embedding.weight, "data", model.embedding.weight.data.clone()),
    "an int8 weight": lambda model: setattr(model.loss_fn.weight, "stored", model.loss_fn.weight.stored.clone()),
    "a rotary table": lambda model: setattr(model.rotary, "sin", model.rotary.sin.clone()),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_whatever_of_a_model_is_elsewhere_is_captured_anew(
    what: str, plain_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "available", lambda: False)  # int8 weights lie as they do on a GPU
    FakeCuda(monkeypatch)
    bench = Bench(own_model=True, capture=True)
    quantise_weights(bench.model)
    a = bench.document("abc")
    for captured in (1, 2):
        for number in range(2):
            bench.store.use_weights(bytes([captured, number]))
            bench.step(a)
            assert bench.decoder.graphs.captured == captured
        ELSEWHERE[what](bench.model)


def test_a_model_that_is_quantised_is_computed_as_one_from_then_on(
    plain_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    FakeCuda(monkeypatch)
    bench = Bench(own_model=True, capture=True)
    a = bench.document("abc")
    assert bench.decoder.graphs.few_rows == 16
    bench.step(a)
    quantise_weights(bench.model, "int8_dynamic")
    bench.store.use_weights(b"rounded")
    bench.step(a)
    assert (bench.decoder.graphs.few_rows, bench.decoder.graphs.captured) == (0, 2)


def test_what_was_captured_to_warm_up_is_kept(plain_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    bench = Bench(capture=True)
    bench.decoder.warm_up(2, parts=9)
    captured = bench.decoder.graphs.captured
    assert captured == 2 * 3
    bench.store.use_weights(b"as they were")
    bench.step(bench.document("abc"), bench.document("by"))
    assert bench.decoder.graphs.captured == captured


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_warming_up_meets_every_bucket_of_flex_attention() -> None:
    runtime = small_runtime(attention="flex", arena_tokens=160, max_running=1)
    path = runtime.engine.attention
    assert isinstance(path, FlexPath)
    runtime.warm_up()
    met = set(path._kernels)
    options = {"max_context_length": 70, "max_tokens_per_document": 50, "max_new_tokens": 5}
    runtime.generate(PROMPTS[2], corpus=Texts(TEXTS), config=config(**options))
    assert met == set(path._kernels) and {bucket.queries for bucket in met} == {1, QUERY_BLOCK}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_where_our_kernels_decode_flex_attention_warms_up_for_prefill_alone() -> None:
    runtime = small_runtime(attention="triton", arena_tokens=160, max_running=1)
    runtime.warm_up()
    path = runtime.engine.attention
    assert isinstance(path, TritonPath) and isinstance(path.prefill, FlexPath)
    assert {bucket.queries for bucket in path.prefill._kernels} == {QUERY_BLOCK}


# What a step launches


class Recorder(TorchDispatchMode):
    """The names of all operations that compute something, in their order, as a GPU would be given them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not self.inside and name not in ("view", "unsqueeze", "slice", "select", "flatten", "reshape", "detach"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))

    def kernel(self, name: str, result: Any) -> Any:
        """One of ours: whatever it takes to make the result is no operation of its own."""

        def launch(*args: Any, **options: Any) -> Any:
            self.names.append(name)
            self.inside = True
            made = result(*args, **options)
            self.inside = False
            return made

        return launch


def launches(model: DS2DSModel, few_rows: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a step of four rows launches on a GPU."""
    recorder = Recorder()
    made: dict[str, Any] = dict.fromkeys(PLAIN[graphs], lambda *args, **options: None)
    made["store_and_read"] = lambda data, qk, *rest, **options: torch.zeros_like(qk[:, 0]).contiguous()
    kinds = (torch.int64, torch.float32, torch.int32)
    made["sample_on_device"] = lambda logits, *rest, marked: SampleOutput(
        *(torch.zeros(4, dtype=kind) for kind in kinds)
    )
    for name, result in made.items():
        monkeypatch.setattr(graphs, name, recorder.kernel(name, result))
    ours = {
        "rounded": lambda x: torch.zeros_like(x),
        "rms_norm": lambda x: torch.zeros(x.shape, dtype=x.dtype),
        "add_norm": lambda x, y, skip=None: (torch.zeros_like(x), torch.zeros_like(x)),
        "gated_unit": lambda x: torch.zeros_like(x[:, : x.shape[1] // 2]).contiguous(),
    }
    small = SimpleNamespace(**{name: recorder.kernel(name, result) for name, result in ours.items()})
    for module in ("backbone", "linear"):
        monkeypatch.setattr(f"ds2ds.model.{module}.fuses", lambda x: True)
        monkeypatch.setattr(f"ds2ds.model.{module}.fused", lambda: small)
    product = recorder.kernel("product", few_rows_kernels.plain_product)
    monkeypatch.setattr(few_rows_kernels, "product", product)
    store = DocumentStore(KVArena(model.config.num_layers, 2, 16, 64, dtype=model.dtype))
    decoder = Decoder(model, store, 4, capture=False, few_rows=few_rows)
    with recorder:
        decoder.graphs.compute(Bucket(4, 4, True))
    return recorder.names


# Of each layer. Of few rows four products and attention; else four products, attention, the norm of queries and keys,
# the gated unit, and two sums that are normed.
OF_FEW_ROWS = {"store_and_read": 1, "product": 4}
OF_MANY_ROWS = {**dict.fromkeys(("store_and_read", "gated_unit", "rms_norm"), 1), "add_norm": 2}


@pytest.mark.parametrize(
    ("weights", "few_rows", "product"),
    [
        (None, 16, ["product"]),
        (None, 3, ["linear"]),
        ("int8", 16, ["product"]),
        ("int8", 3, ["product"]),
        ("int8_dynamic", 16, ["rounded", "product"]),
    ],
)
def test_a_step_launches_kernels_alone_and_how_many(
    weights: str | None, few_rows: int, product: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that waits for the device or reads from it, which a graph could not have."""
    monkeypatch.setattr(native, "available", lambda: False)  # int8 weights lie as they do on a GPU
    few = few_rows == 16 and weights != "int8_dynamic"
    per_layer = OF_FEW_ROWS if few else OF_MANY_ROWS | dict.fromkeys(product, 4)
    counts = []
    for layers in (4, 6):
        with torch.random.fork_rng(devices=[]):
            model = DS2DSModel.from_config(
                vocab_size=64, num_layers=layers, model_dim=32, num_heads=2, max_seq_len=64
            ).bfloat16()
        names = launches(quantise_weights(model, weights) if weights else model, few_rows, monkeypatch)
        before = ["lay_out", "embedding", *([] if few else ["rms_norm"])]
        after = [*product, "sample_on_device", "advance"]
        assert (names[: len(before)], names[-len(after) :]) == (before, after)
        counts.append(Counter(names[len(before) : -len(after)]))
    assert {name: (counts[1][name] - counts[0][name]) / 2 for name in counts[0]} == per_layer
    assert all(count == 4 * per_layer[name] for name, count in counts[0].items())


@pytest.mark.parametrize("change", ["in place", "replaced", "int8"])
def test_weights_that_change_while_a_launched_step_is_out(
    change: str, plain_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs then goes on, and who comes after reads the new weights alone."""
    monkeypatch.setattr(native, "available", lambda: False)
    FakeCuda(monkeypatch)
    model, other = copy.deepcopy(small_model()), small_model(seed=1)
    runtime = Runtime(model, TOKENIZER, "null", arena_tokens=4096)
    engine, corpus = runtime.engine, Texts(TEXTS)
    decoder = engine.decoder = Decoder(model, engine.store, 4, part=4)
    earlier = start(runtime, PROMPTS[0], corpus)
    while len(earlier.request.context.root.tokens) < len(encode(PROMPTS[0])) + 4:
        engine.step()
    flight, captured = decoder._last, decoder.graphs.captured
    assert flight is not None and not flight.read
    if change == "in place":
        model.load_state_dict(other.state_dict())
    elif change == "replaced":
        model.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)
    else:
        model.load_state_dict(other.state_dict())
        quantise_weights(model)
    later = start(runtime, PROMPTS[0], corpus)
    finish(runtime, earlier, later)
    assert is_clean(runtime)
    assert earlier.job.error is None
    assert (decoder.graphs.captured > captured) or change == "in place"
    alone = Runtime(model, TOKENIZER, "null", arena_tokens=4096).generate(PROMPTS[0], corpus=corpus, config=config())
    same_documents(later.result().get_all_documents(), alone.get_all_documents())
