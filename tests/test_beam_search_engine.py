"""What a fork has of another document's keys and values, and searches that are short of room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from link_graphs import EOS, TinyCorpus, TinyTokenizer, corpora, texts, tiny_model
from scripted import is_clean, same_documents

from ds2ds import Runtime
from ds2ds.cache.arena import KVArena
from ds2ds.cache.document_store import DocumentStore
from ds2ds.documents.document import Document
from ds2ds.documents.generation_result import Trace
from ds2ds.engine.holding import release_abandoned
from ds2ds.engine.job import Job
from ds2ds.engine.work import AnyWork, Rank
from ds2ds.errors import ArenaFullError


def store_of(slots: int = 96) -> DocumentStore:
    store = DocumentStore(KVArena(1, 1, 2, slots, block=16))
    store.arena.data.copy_(torch.arange(store.arena.data.numel()).view_as(store.arena.data))
    return store


def writing(tokens: list[int], origin: Document | None = None) -> Document:
    """A document of depth 1 that may come to hold 20 tokens, all but the last of them settled if it is a fork."""
    document = Document("D", tokens, depth=1, parent=Document("", [1]), capacity=20)
    document.origin = origin
    document.settled = len(tokens) - 1 if origin is not None else 0
    return document


def nothing() -> set[Document]:
    return set()


def resident(store: DocumentStore, tokens: list[int], computed: int) -> Document:
    document = writing(tokens)
    store.reserve(document, nothing)
    store.advance(document, computed)
    return document


def test_a_fork_starts_with_a_copy() -> None:
    store = store_of()
    origin = resident(store, [5, 6, 7, 8], 3)
    fork = writing([5, 6, 7, 9], origin)
    assert store.found(fork) == 3
    entry = store.reserve(fork, nothing)
    assert (store.computed(fork), fork.settled, fork.origin, store.found(fork)) == (3, 3, None, 0)
    source = store.entry(origin)
    assert source is not None and entry is not source
    assert torch.equal(store.slots(entry), store.slots(source))
    store.check_integrity()


@pytest.mark.parametrize("settled", [0, 1, 2])
def test_no_more_is_copied_than_was_settled_when_the_fork_began(settled: int) -> None:
    """What is computed after that may read other documents: a root's, whose prompt's links were not all resolved."""
    store = store_of()
    origin = resident(store, [5, 6, 7, 8, 9], 5)
    fork = writing([5, 6, 1], origin)
    fork.settled = settled
    store.reserve(fork, nothing)
    assert store.computed(fork) == settled
    heir = writing([5, 6, 1], origin)
    heir.settled = settled
    assert store.inherit(heir) and store.computed(heir) == settled


def test_a_fork_of_what_is_gone_starts_from_nothing() -> None:
    store = store_of()
    origin = resident(store, [5, 6, 7], 2)
    fork = writing([5, 6, 1], origin)
    store.release(origin)
    assert store.found(fork) == 0 and not store.inherit(fork)
    store.reserve(fork, nothing)
    assert (store.computed(fork), fork.origin) == (0, None)
    store.check_integrity()


def test_an_abandoned_place_is_inherited() -> None:
    store = store_of()
    origin = resident(store, [5, 6, 7, 8], 4)
    fork, entry, used = writing([5, 6, 7, 9], origin), store.entry(origin), store.arena.allocator.used
    assert store.inherit(fork)
    assert store.entry(fork) is entry and store.entry(origin) is None
    assert (store.computed(fork), fork.settled, fork.origin, store.arena.allocator.used) == (3, 3, None, used)
    assert not store.inherit(fork)
    store.release(origin)  # no effect
    store.check_integrity()


def searching(store: DocumentStore, window: list[Document], *touched: Document) -> Job:
    return Job((_ for _ in ()), window, Trace(), 0, touched=dict.fromkeys(touched))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_of_forks_the_one_with_most_in_common_gets_the_place_and_the_others_copy_from_it(order: Sequence[int]) -> None:
    """A root's fork may wait for its turn while the origin is written further, and is forked again."""
    store = store_of()
    origin = resident(store, [5, 6, 7, 8, 9], 5)
    forks = [writing([5, *rest], origin) for rest in ([1], [6, 1], [6, 7, 1])]  # settled to 1, 2 and 3 tokens
    job = searching(store, [forks[index] for index in order], origin)
    place = store.entry(origin)
    release_abandoned(store, job)
    least, less, most = forks
    assert store.entry(most) is place and store.entry(origin) is None
    assert (least.origin, less.origin, most.origin) == (most, most, None)
    assert [store.computed(most), store.found(less), store.found(least)] == [3, 2, 1]
    assert list(job.touched) == [most]
    for fork in (least, less):
        store.reserve(fork, nothing)
    assert [store.computed(fork) for fork in forks] == [1, 2, 3]
    store.check_integrity()


def test_what_is_written_on_or_cannot_be_inherited_stays_for_its_forks_and_nothing_else_does() -> None:
    store = store_of()
    live, found, gone = (resident(store, [5, 6, 7, token], 3) for token in (1, 2, 3))
    found.capacity = None
    store.complete(found)
    forks = [writing([5, 6, 7, 9], origin) for origin in (live, found)]
    job = searching(store, [live, *forks], live, found, gone)
    release_abandoned(store, job)
    assert [fork.origin for fork in forks] == [live, found]
    assert [store.found(fork) for fork in forks] == [3, 3]
    assert list(job.touched) == [live, found] and store.entry(gone) is None
    store.check_integrity()


def test_a_dead_hypothesis_leaves_its_document_to_a_fork_and_not_to_others() -> None:
    """Though it was complete: what is shared is what live hypotheses have written."""
    engine = Runtime(tiny_model(0), TinyTokenizer(), arena_tokens=256).engine
    origin = resident(engine.store, [5, 6, 7, 8], 3)
    origin.capacity = None
    fork, place = writing([5, 6, 7, 9], origin), engine.store.entry(origin)

    def work() -> AnyWork:
        yield Rank((origin,), 2)
        yield Rank((fork,), 2)

    job = Job(work(), [fork], Trace(), 0, touched={origin: None})
    job.waiting = next(job.coroutine)
    engine.scheduler._send(job, [[]])
    assert job.waiting == Rank((fork,), 2)
    assert engine.store.entry(fork) is place and engine.store.shared() == []


def test_a_place_that_others_may_find_is_not_inherited() -> None:
    store = store_of()
    origin = resident(store, [5, 6, 7, 8], 3)
    origin.capacity = None
    store.complete(origin)
    fork = writing([5, 6, 7, 9], origin)
    assert not store.inherit(fork)
    store.reserve(fork, nothing)
    assert store.computed(fork) == 3 and store.computed(origin) == 3
    store.check_integrity()


def test_a_fork_that_is_complete_by_then_is_shared_like_any_other() -> None:
    store = store_of()
    origin = resident(store, [5, 6, 7, 8], 3)
    fork = writing([5, 6, 7, 9], origin)
    fork.capacity = None
    store.reserve(fork, nothing)
    same = writing([5, 6, 7, 9])
    same.capacity = None
    assert store.attach(same) == 3 and store.entry(same) is store.entry(fork)
    store.check_integrity()


def test_a_fork_of_old_weights_is_never_shared() -> None:
    store = store_of()
    origin = resident(store, [5, 6, 7, 8], 3)
    store.use_weights(b"new")
    fork = writing([5, 6, 7, 9], origin)
    store.reserve(fork, nothing)
    fork.capacity = None
    store.complete(fork)
    assert store.shared() == []
    store.check_integrity()


def test_a_fork_that_finds_no_room_leaves_all_as_it_was() -> None:
    store = store_of(32)
    origin = resident(store, [5, 6, 7, 8], 3)
    fork = writing([5, 6, 7, 9], origin)
    with pytest.raises(ArenaFullError):
        store.reserve(fork, nothing)
    assert store.found(fork) == 3 and fork.origin is origin
    store.check_integrity()


def short_of_room(
    seed: int, prompts: list[list[int]], corpus: TinyCorpus, beams: int, slots: int, document_store: bool
) -> None:
    options: dict[str, Any] = {
        "corpus": corpus,
        "num_beams": beams,
        "num_return_sequences": beams,
        "max_new_tokens": 5,
        "max_tokens_per_document": 32,
        "max_context_length": 80,
        "max_auxiliary_documents": 2,
        "max_link_depth": 2,
        "eos_token_id": EOS,
        "logprobs": True,
    }
    model = tiny_model(seed)

    def runtime_of(slots: int, document_store: bool = True) -> Runtime:
        # With headings, or two documents might write each other's text with the same score.
        return Runtime(model, TinyTokenizer(), "identifier_prefix", arena_tokens=slots, document_store=document_store)

    alone = [runtime_of(2**14).generate(prompt_tokens=prompt, **options) for prompt in prompts]
    runtime = runtime_of(slots, document_store)
    runtime._generator._need = lambda config: 0  # type: ignore[method-assign]
    corpus_of = options.pop("corpus")
    config = runtime._config(None, options)
    running = [runtime._generator.start(None, prompt, corpus_of, config) for prompt in prompts]
    for _ in range(2000):  # a few hundred at most, even where all start anew
        runtime.engine.step()
        runtime.engine.check_integrity()
        if not runtime.engine.busy:
            break
    assert is_clean(runtime)
    for one, expected in zip(running, alone, strict=True):
        if one.job.error is not None:
            assert isinstance(one.job.error, ArenaFullError)
            continue
        found = one.result()
        assert found.score == pytest.approx(expected.score, abs=1e-4)
        pairs = zip([found, *found.alternatives], [expected, *expected.alternatives], strict=True)
        for first, second in pairs:
            same_documents(first.get_all_documents(), second.get_all_documents())


CASES: dict[str, Any] = {
    "seed": st.integers(0, 3),
    "prompts": st.lists(texts(1, 3).map(lambda tokens: tokens[:30]), min_size=1, max_size=3),
    "corpus": corpora(),
    "beams": st.integers(2, 4),
    "slots": st.integers(10, 40).map(lambda blocks: 16 * blocks),
    "document_store": st.booleans(),
}


@settings(max_examples=15, deadline=None)
@given(**CASES)
def test_short_of_room_it_finds_the_same_or_says_so(**case: Any) -> None:
    short_of_room(**case)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(**CASES)
def test_short_of_room_it_finds_the_same_or_says_so_in_many_cases(**case: Any) -> None:
    short_of_room(**case)
