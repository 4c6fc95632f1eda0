"""Many requests in one batch: how steps are filled, who goes first, and that no request notices the others."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from link_graphs import TITLES, VOCABULARY, TinyCorpus, TinyTokenizer, ids, tiny_model
from scripted import (
    EOS,
    Texts,
    agrees_with_oracle,
    encode,
    finish,
    follow,
    is_clean,
    same_documents,
    small_runtime,
)

from ds2ds import ArenaFullError, ConfigError, GenerationConfig, GenerationResult, QueueFullError, Runtime
from ds2ds.attention.view import Chunk, targets
from ds2ds.cache.arena import KVArena
from ds2ds.cache.document_store import DocumentStore
from ds2ds.documents.document import Document
from ds2ds.documents.generation_result import Trace
from ds2ds.engine import engine as engine_module
from ds2ds.engine.job import Job
from ds2ds.engine.planning import LEAST_SHARE, plan, shares
from ds2ds.engine.work import Compute, Prefill, Sampling, Work
from ds2ds.generation.running import Running


@dataclass
class Part:
    """What a step computed of one document."""

    document: Document
    tokens: int
    decoded: bool


class Steps(list[list[Part]]):
    """Every forward pass."""

    def prefilled(self, step: int) -> int:
        return sum(part.tokens for part in self[step] if not part.decoded)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    """All steps, as they are made; each chunk goes on where its document ends, and all that it reads is computed."""
    seen = Steps()
    compute = engine_module.forward

    def forward(model: Any, attention: Any, chunks: list[Chunk], *rest: Any) -> torch.Tensor:
        (store, _) = attention.args
        seen.append([])
        for chunk in chunks:
            document = chunk.document
            if store.computed(document) != chunk.start:
                raise AssertionError(f"{document.title!r} is computed up to {store.computed(document)}")
            for target in targets(document, chunk.start, chunk.stop):
                if store.computed(target) != len(target.tokens):
                    raise AssertionError(f"{document.title!r} reads {target.title!r}, which is not computed")
            decoded = document.in_progress and len(chunk) == 1 and chunk.start >= document.given
            seen[-1].append(Part(document, len(chunk), decoded))
        return compute(model, attention, chunks, *rest)

    monkeypatch.setattr(engine_module, "forward", forward)
    yield seen


def config(**options: Any) -> GenerationConfig:
    wide = {"max_context_length": 500, "max_tokens_per_document": 480, "max_link_depth": 0, "logprobs": True}
    return GenerationConfig(**{"eos_token_id": EOS, "seed": 3, "max_new_tokens": 20, **wide, **options})


def start(runtime: Runtime, prompt: str, corpus: Any = None, *, priority: int = 0, **options: Any) -> Running:
    return runtime._generator.start(prompt, None, corpus, config(**options), None, priority)


def written(running: Running) -> int:
    root = running.request.context.root
    return len(root.tokens) - root.given


def same_as_alone(running: Running, prompt: str, corpus: Any = None, **options: Any) -> None:
    assert running.job.error is None
    alone = small_runtime().generate(prompt, corpus=corpus, config=config(**options))
    same_documents(running.result().get_all_documents(), alone.get_all_documents())


# A step's tokens


@pytest.mark.parametrize("seed", range(200))
def test_shares(seed: int) -> None:
    dice = random.Random(seed)
    tokens = dice.choice([1, 5, 16, 100, 512])
    wanted = [dice.choice([1, 7, 16, 40, 512]) for _ in range(dice.randint(1, min(tokens, 64)))]
    given = shares(tokens, wanted)
    assert all(0 <= got <= want for got, want in zip(given, wanted, strict=True))
    assert sum(given) == min(tokens, sum(wanted))
    least = min(LEAST_SHARE, max(1, tokens // (2 * len(wanted))))
    assert all(got >= min(want, least) for got, want in zip(given, wanted, strict=True))
    # First come, first served: who is short of what he wants leaves no more than the least to those after him.
    short = next((index for index, got in enumerate(given) if got < wanted[index]), len(given))
    assert all(got <= least for got in given[short + 1 :])


def test_shares_of_nobody() -> None:
    assert shares(512, []) == []


@pytest.mark.parametrize("step_tokens", [1, 3, 20, 64, 1000])
def test_no_step_prefills_more_than_it_may(step_tokens: int, steps: Steps) -> None:
    runtime = small_runtime(arena_tokens=20_000, step_tokens=step_tokens, document_store=False)
    prompts = ["x" * 7 * (index % 4) + f" request {index}" for index in range(10)]
    running = [start(runtime, prompt, max_new_tokens=5) for prompt in prompts]
    finish(runtime, *running)
    prefilled = [steps.prefilled(step) for step in range(len(steps))]
    assert max(prefilled) == min(step_tokens, sum(prefilled))
    needed = sum(len(encode(prompt)) for prompt in prompts)
    assert sum(prefilled) == needed
    full = needed // step_tokens  # none leaves anything over that it could do
    assert prefilled[:full] == [step_tokens] * full
    for one, prompt in zip(running, prompts, strict=True):
        same_as_alone(one, prompt, max_new_tokens=5)
    assert is_clean(runtime)


def test_a_decoding_request_gets_a_token_in_each_step_beside_huge_prefills(steps: Steps) -> None:
    runtime = small_runtime(arena_tokens=20_000, step_tokens=32)
    decoding = start(runtime, "p", max_new_tokens=100)
    runtime.engine.step()
    huge = [start(runtime, f"{letter}" * 400) for letter in "xyz"]
    for step in range(1, 38):
        assert written(decoding) == step
        runtime.engine.step()
        assert steps.prefilled(step) == 32  # 3 * 400 tokens take 37.5 steps
        assert sum(part.tokens for part in steps[step]) == 32 + 1 + sum(written(one) > 1 for one in huge)
    finish(runtime, decoding, *huge)
    same_as_alone(decoding, "p", max_new_tokens=100)
    assert is_clean(runtime)


def test_a_short_prompt_does_not_wait_for_the_end_of_a_long_one() -> None:
    runtime = small_runtime(arena_tokens=20_000, step_tokens=64)
    long, short = start(runtime, "x" * 400), start(runtime, "y" * 30)
    for _ in range(2):
        runtime.engine.step()
    assert written(long) == 0 and written(short) == 1
    finish(runtime, long, short)


def test_a_document_written_for_one_request_does_not_stall_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [q](Q) and so on and on and on", "Q": "a long article " * 4})
    runtime = small_runtime(arena_tokens=20_000)
    writer, plain = (start(runtime, "p", max_link_depth=depth, max_new_tokens=90) for depth in (1, 0))
    for step in range(1, 30):
        runtime.engine.step()
        assert written(plain) == min(step, len(encode(" [q](Q) and so on and on and on")) + 1)
    assert writer.request.context.find("Q") is not None and not writer.job.done
    finish(runtime, writer, plain)


def test_documents_that_do_not_need_each_other_are_computed_in_one_step(steps: Steps) -> None:
    texts = {"A": "see [c](C) a", "B": "all about b", "C": "c is [d](D) and", "D": "d", "E": "e"}
    prompt = "[a](A)[b](B)[e](E) so"
    for step_tokens, passes in [(1000, 4), (12, 5), (4, 13)]:
        steps.clear()
        runtime = small_runtime(step_tokens=step_tokens)
        result = runtime.generate(prompt, corpus=Texts(texts), config=config(max_link_depth=3, max_new_tokens=1))
        titles = [[part.document.title for part in step] for step in steps]
        if step_tokens == 1000:
            assert titles == [["D", "B", "E"], ["C"], ["A"], [""]]
        assert len(steps) == result.trace.forward_passes and len(steps) >= passes
        assert max(steps.prefilled(step) for step in range(len(steps))) <= step_tokens
        assert sum(steps.prefilled(step) for step in range(len(steps))) == result.trace.tokens_prefilled
        agrees_with_oracle(result)
        assert is_clean(runtime)


def test_a_graph_of_many_paths_is_walked_once(steps: Steps) -> None:
    """A ladder of documents, each of which reads both of the next rung: 2 ** 12 paths, 24 documents."""
    texts = {f"{side}{rung}": f"{side} [l](L{rung + 1})[r](R{rung + 1}) x" for rung in range(12) for side in "LR"}
    runtime = small_runtime()
    options = {"max_link_depth": 20, "max_auxiliary_documents": 40, "allow_corpus_fallback": False}
    result = runtime.generate("[l](L0)[r](R0) x", corpus=Texts(texts), config=config(**options))
    assert sum(1 for _ in result.auxiliary_documents) == 24
    # Two of a rung go in one step, and no more of them: each reads the rung before.
    computed = [{part.document.title for part in step} for step in steps[:12]]
    assert computed == [{f"L{rung}", f"R{rung}"} for rung in reversed(range(12))]
    agrees_with_oracle(result)


@pytest.mark.parametrize("name", ["step_tokens", "max_running", "max_queue"])
@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "many"])
def test_wrong_limits(name: str, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be a positive integer, got {wrong!r}"):
        small_runtime(**{name: wrong})


# Joining and leaving


def test_requests_join_and_leave_at_every_step(steps: Steps) -> None:
    runtime = small_runtime(arena_tokens=40_000, step_tokens=16)
    corpus = Texts({"A": "about A, with [b](B) and more", "B": "about B"})
    dice = random.Random(5)
    prompts, options, running, cancelled = [], [], [], []
    for step in range(40):
        prompts.append(dice.choice(["p", "see [a](A) ", "x" * 40, "[b](B)[a](A)"]) + str(step))
        options.append({"max_new_tokens": dice.randint(1, 12), "seed": step, "max_link_depth": 2})
        running.append(start(runtime, prompts[-1], corpus, **options[-1]))
        if step % 5 == 4:
            leaver = dice.choice(running)
            cancelled.append(leaver.job)
            runtime.engine.cancel(leaver.job)
        runtime.engine.step()
        runtime.engine.check_integrity()
    assert len({len(step) for step in steps}) > 8
    finish(runtime, *running)
    for one, prompt, settings in zip(running, prompts, options, strict=True):
        if one.job not in cancelled:
            same_as_alone(one, prompt, corpus, **settings)
    assert is_clean(runtime)


# Who goes first


def order_of_start(runtime: Runtime, running: list[Running]) -> list[int]:
    """The requests, by index, as they started; they are run to their end."""
    started: list[int] = []
    while not all(one.job.done for one in running):
        runtime.engine.step()
        waiting = [*runtime.engine.queue]
        started += [i for i, one in enumerate(running) if one.job not in waiting and i not in started]
    return started


def test_first_come_first_served() -> None:
    runtime = small_runtime(max_running=2)
    running = [start(runtime, f"p{index}", max_new_tokens=1 + index % 3) for index in range(7)]
    assert order_of_start(runtime, running) == [*range(7)]
    assert is_clean(runtime)


def test_higher_priority_first() -> None:
    runtime = small_runtime(max_running=1)
    priorities = [0, -1, 5, 0, 5, 2]
    running = [start(runtime, f"p{index}", priority=priority) for index, priority in enumerate(priorities)]
    assert order_of_start(runtime, running) == [2, 4, 5, 0, 3, 1]
    runtime.generate("p", priority=-3, max_new_tokens=1)
    assert list(runtime.stream("p", priority=3, max_new_tokens=1)) and runtime.generate_batch(["p"], priority=1)


@pytest.mark.parametrize("wrong", [0.5, "high", None, True])
def test_wrong_priorities(wrong: Any) -> None:
    runtime = small_runtime()
    for call in (runtime.generate, runtime.stream):
        with pytest.raises(ConfigError, match="priority must be an integer"):
            call("p", priority=wrong)
    with pytest.raises(ConfigError, match="priority must be an integer"):
        runtime.generate_batch(["p"], priority=wrong)
    assert is_clean(runtime)


def test_what_runs_is_not_interrupted_by_a_higher_priority() -> None:
    runtime = small_runtime(max_running=1)
    first = start(runtime, "p")
    runtime.engine.step()
    urgent = start(runtime, "u", priority=9)
    while not first.job.done:
        runtime.engine.step()
        assert written(urgent) == 0
    finish(runtime, urgent)


def test_prefill_is_shared_out_by_priority(steps: Steps) -> None:
    runtime = small_runtime(step_tokens=64, arena_tokens=20_000)
    running = [start(runtime, "x" * 300, priority=priority, max_tokens_per_document=400) for priority in (0, 1)]
    runtime.engine.step()
    shares_of = {part.document: part.tokens for part in steps[0]}
    assert [shares_of[one.request.context.root] for one in running] == [LEAST_SHARE, 64 - LEAST_SHARE]
    finish(runtime, *running)


def test_no_one_overtakes_a_request_that_waits_for_room() -> None:
    """The second needs more than is free beside the first. The third would fit, and waits for its turn."""
    runtime = small_runtime(arena_tokens=700)
    sizes = [60, 480, 60]
    running = [
        start(runtime, f"p{i}", max_context_length=size, max_tokens_per_document=size, max_auxiliary_documents=1)
        for i, size in enumerate(sizes)
    ]
    assert order_of_start(runtime, running) == [0, 1, 2]


def test_a_suspended_request_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [l](Long) x"})
    runtime = small_runtime(arena_tokens=128)
    corpora = [Texts({"Long": text * 40}) for text in "yzab"]
    options = {"max_tokens_per_document": 48, "max_link_depth": 1, "max_new_tokens": 99}
    running = [start(runtime, "p", corpus, **options) for corpus in corpora[:2]]
    for one in running:
        one.job.need = 0  # so that both start, though there is no room for both targets
    runtime.engine.step()
    while running[1].job not in runtime.engine.queue:
        runtime.engine.step()
    late, urgent = (start(runtime, "p", corpora[2 + i], priority=i, **options) for i in range(2))
    assert [*runtime.engine.queue] == [urgent.job, running[1].job, late.job]
    assert order_of_start(runtime, [*running, late, urgent]) == [0, 3, 1, 2]
    for one, corpus in zip([*running, late, urgent], corpora, strict=True):
        same_as_alone(one, "p", corpus, **options)
    assert is_clean(runtime)


def test_where_there_is_no_room_for_all_the_lowest_priority_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [l](Long) x"})
    runtime = small_runtime(arena_tokens=128)
    corpora = [Texts({"Long": text * 40}) for text in "yz"]
    options = {"max_tokens_per_document": 48, "max_link_depth": 1, "max_new_tokens": 99}
    running = [start(runtime, "p", corpora[i], priority=i, **options) for i in range(2)]
    for one in running:
        one.job.need = 0
    while not running[1].job.done:
        runtime.engine.step()
        assert running[1].job not in runtime.engine.queue
    assert not running[0].job.done
    finish(runtime, running[0])
    for one, corpus in zip(running, corpora, strict=True):
        same_as_alone(one, "p", corpus, **options)


# Bounds


def test_no_more_run_at_a_time_than_may(steps: Steps) -> None:
    runtime = small_runtime(arena_tokens=40_000, max_running=3)
    results = runtime.generate_batch([f"p{index}" for index in range(10)], config=config())
    assert len(results) == 10
    assert max(len(step) for step in steps) == 3


def test_who_was_suspended_twice_waits_until_the_others_are_done() -> None:
    runtime = small_runtime(arena_tokens=40_000)
    first, second = start(runtime, "p"), start(runtime, "q")
    runtime.engine.step()
    for starts_again in (True, False):
        runtime.engine.scheduler._suspend(second.job)
        runtime.engine.step()
        assert (second.job in runtime.engine.running) == starts_again
    while not first.job.done:
        assert second.job not in runtime.engine.running
        runtime.engine.step()
    finish(runtime, second)
    same_as_alone(second, "q")


def test_no_more_wait_than_may() -> None:
    runtime = small_runtime(max_running=1, max_queue=2)
    running = [start(runtime, f"p{index}") for index in range(3)]  # one runs, two wait
    message = "2 requests wait already, and max_queue is 2: try again later, or give the runtime a larger max_queue"
    with pytest.raises(QueueFullError, match=message):
        start(runtime, "q")
    with pytest.raises(QueueFullError):
        start(runtime, "r", priority=7)
    runtime.engine.cancel(running[1].job)
    running.append(start(runtime, "r", priority=7))
    finish(runtime, *running)
    assert is_clean(runtime)


def test_a_suspended_request_returns_to_a_queue_that_is_full() -> None:
    runtime = small_runtime(max_queue=1, max_running=1)
    first = start(runtime, "p")
    runtime.engine.step()
    second = start(runtime, "q")
    runtime.engine.scheduler._suspend(first.job)
    assert [*runtime.engine.queue] == [first.job, second.job]
    finish(runtime, first, second)
    same_as_alone(first, "p")


@pytest.mark.parametrize(("max_running", "max_queue"), [(1, 1), (3, 2), (50, 1)])
def test_calls_of_a_runtime_make_room_by_themselves(max_running: int, max_queue: int) -> None:
    runtime = small_runtime(arena_tokens=40_000, max_running=max_running, max_queue=max_queue)
    prompts = [f"prompt {index}" for index in range(12)]
    most = 0
    submit = runtime.engine.submit

    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal most
        job = submit(*args, **kwargs)
        most = max(most, len(runtime.engine.queue))
        return job

    runtime.engine.submit = watched  # type: ignore[method-assign]
    results = runtime.generate_batch(prompts, config=config())
    assert most == max_queue
    streams = [runtime.stream(prompt, config=config()) for prompt in prompts]
    for stream in streams:
        next(stream)
    ends = [[*stream][-1].result for stream in streams]
    for result, end, prompt in zip(results, ends, prompts, strict=True):
        alone = runtime.generate(prompt, config=config())
        same_documents(result.get_all_documents(), alone.get_all_documents())
        same_documents(end.get_all_documents(), alone.get_all_documents())
    assert is_clean(runtime)


# Cancelling


@pytest.mark.parametrize("stage", ["queued", "prefilling", "prefilling a target", "decoding", "suspended"])
def test_cancelling_frees_at_once_what_was_held(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [q](Q) x" * 9, "Q": "y" * 50})
    runtime = small_runtime(arena_tokens=4096, step_tokens=16, document_store=False)
    prompt = {"prefilling": "z" * 90, "prefilling a target": "[l](Long) x"}.get(stage, "p")
    other = start(runtime, "other", max_new_tokens=50)
    for _ in range(3):
        runtime.engine.step()
    alone = runtime.engine.store.arena.allocator.used
    victim = start(runtime, prompt, Texts({"Long": "w" * 90}), max_link_depth=1, max_new_tokens=99)
    if stage != "queued":
        for _ in range(30 if stage in ("decoding", "suspended") else 3):
            runtime.engine.step()
        assert runtime.engine.store.arena.allocator.used > alone
        assert (written(victim) > 0) == (stage in ("decoding", "suspended"))
    if stage == "suspended":
        runtime.engine.scheduler._suspend(victim.job)
    documents = victim.request.context.window
    runtime.engine.cancel(victim.job)
    assert runtime.engine.store.arena.allocator.used == alone
    assert victim.job.done and not victim.job.touched
    assert all(runtime.engine.store.entry(document) is None for document in documents)
    assert [*runtime.engine.running] == [other.job] and not len(runtime.engine.queue)
    runtime.engine.check_integrity()
    finish(runtime, other)
    assert is_clean(runtime) and runtime.engine.store.arena.allocator.used == 0


# Neighbours

TINY = TinyTokenizer()


def random_text(dice: random.Random, pieces: int) -> list[int]:
    links = [
        ids(b"[x](", b"A", b")"),
        ids(b"[x](B)."),
        ids(b" [t](C)"),
        ids(b"[t](A)[x](D)"),
        ids(b"[x](", b"D", b")."),
    ]
    words = [ids(b"x"), ids(b" t"), ids(b"."), ids(b"\n"), ids(b"[", b"x")]
    tokens: list[int] = []
    for _ in range(pieces):
        tokens += dice.choice(links if dice.random() < 0.4 else words)
    return tokens


def random_settings(dice: random.Random) -> dict[str, Any]:
    return {
        "max_new_tokens": dice.choice([1, 8, 16, 24]),
        "temperature": dice.choice([0.0, 0.0, 0.7, 1.0, 1.5]),
        "top_k": dice.choice([None, None, 1, 5]),
        "top_p": dice.choice([1.0, 1.0, 0.9, 0.5]),
        "min_p": dice.choice([0.0, 0.0, 0.1]),
        "repetition_penalty": dice.choice([1.0, 1.0, 1.3]),
        "seed": dice.randrange(2**40),
        "max_link_depth": dice.choice([0, 1, 2, 3]),
        "max_auxiliary_documents": dice.choice([1, 2, 4]),
        "max_context_length": dice.choice([120, 200, 400]),
        "max_tokens_per_document": dice.choice([100, 110]),
        "allow_corpus_fallback": dice.random() < 0.5,
        "eviction_policy": dice.choice(["drop_oldest", "stop_new", "least_recently_linked", "largest_first"]),
        "eos_token_id": 0,
        "logprobs": True,
    }


def outcome(running: Running) -> GenerationResult | Exception:
    return running.job.error or running.result()


def assert_same_tokens(ours: Any, theirs: Any, about: str) -> int:
    """Fail, saying how close the call was, unless both have the same documents; returns how many tokens they have."""
    if isinstance(theirs, ArenaFullError):
        assert isinstance(ours, ArenaFullError), about
        return 0
    assert isinstance(ours, GenerationResult), (about, ours)
    for one, other in zip(ours.get_all_documents(), theirs.get_all_documents(), strict=False):
        pairs = enumerate(zip(one.tokens, other.tokens, strict=False))
        differs = next((index for index, (a, b) in pairs if a != b), None)
        if differs is not None:
            scores = [float(document.token_logprobs[differs]) for document in (one, other)]
            pytest.fail(
                f"{about}: token {differs} of {one.title!r} is {one.tokens[differs]} (logprob {scores[0]}) "
                f"among others, {other.tokens[differs]} (logprob {scores[1]}) alone"
            )
    # Log-probabilities to rounding, all else exactly: titles, tokens, grants, finish reasons.
    same_documents(ours.get_all_documents(), theirs.get_all_documents())
    return sum(len(document.tokens) for document in ours.get_all_documents())


def mix(seed: int, requests: int) -> int:
    """Requests that join at random steps a runtime of random limits: each as in a runtime that it has to itself."""
    dice = random.Random(seed)
    model = tiny_model(*dice.choice([(1, 2, 4), (2, 3, 2), (4, 2, 2)]))
    corpora = [None, *(TinyCorpus({t: random_text(dice, dice.randint(2, 6)) for t in TITLES[n:]}) for n in range(3))]
    arena_tokens = dice.choice([800, 3000, 40_000])
    options = {
        "step_tokens": dice.choice([1, 7, 32, 512]),
        "max_running": dice.choice([2, 16, 256]),
        "document_store": dice.random() < 0.7,
        "retention": dice.choice(["gdsf", "lru"]),
    }
    runtime = Runtime(model, TINY, device="cpu", arena_tokens=arena_tokens, **options)
    asked = [
        (random_text(dice, dice.randint(1, 20)), dice.choice(corpora), GenerationConfig(**random_settings(dice)))
        for _ in range(requests)
    ]
    running: list[Running] = []
    for prompt, corpus, settings in asked:
        running.append(runtime._generator.start(None, prompt, corpus, settings, None, dice.choice([0, 0, 1])))
        for _ in range(dice.choice([0, 0, 1, 3])):
            runtime.engine.step()
    finish(runtime, *running)
    assert is_clean(runtime)
    tokens = 0
    for index, (one, (prompt, corpus, settings)) in enumerate(zip(running, asked, strict=True)):
        by_itself = Runtime(model, TINY, device="cpu", arena_tokens=arena_tokens)
        lone = by_itself._generator.start(None, prompt, corpus, settings)
        finish(by_itself, lone)
        tokens += assert_same_tokens(outcome(one), outcome(lone), f"mix {seed}, request {index}")
    return tokens


def test_a_request_does_not_notice_its_neighbours() -> None:
    assert len(VOCABULARY) == TINY.vocab_size
    assert sum(mix(seed, requests) for seed, requests in enumerate([2, 5, 17, 33, 64])) > 3000


@pytest.mark.slow
def test_a_request_does_not_notice_its_neighbours_in_many_mixes() -> None:
    tokens = sum(mix(1000 + seed, 1 + seed * 7 % 64) for seed in range(100))
    print(f"{tokens} tokens")
    assert tokens > 100_000


def test_neighbours_of_the_packaged_model() -> None:
    runtime = Runtime.from_pretrained("demo", "cpu", arena_tokens=20_000, step_tokens=48)
    prompts = ["# Incremental linker\n\nA [linker](linker)", "see [the compiler](compiler). It", "# Hash", "A queue is"]
    settings = [{"temperature": 0.7, "top_k": 50}, {"temperature": 0.0}, {"top_p": 0.9}]
    configs = [
        GenerationConfig(max_new_tokens=16, seed=index, max_context_length=1024, logprobs=True, **s)
        for index, s in enumerate(settings)
    ]
    asked = [(prompt, settings) for prompt in prompts for settings in configs]
    running = [runtime._generator.start(prompt, None, "demo", settings) for prompt, settings in asked]
    finish(runtime, *running)
    for one, (prompt, settings) in zip(running, asked, strict=True):
        alone = runtime.generate(prompt, corpus="demo", config=settings)
        assert_same_tokens(outcome(one), alone, prompt)
    assert is_clean(runtime)


def idle() -> Work:
    """Needs nothing."""
    yield from ()


def test_a_target_s_token_is_not_taken_for_a_written_one() -> None:
    """Though it stands where the reader's last token does: it is prefilled, and the step has no tokens left for it."""
    store = DocumentStore(KVArena(1, 1, 4, 256), share=False)
    other, target = Document("other", [0] * 30), Document("target", [0] * 6)
    reader = Document("reader", [0] * 5, capacity=20)
    reader.append(0, 0.0)
    reader.add_grant(5, target)
    for document in (reader, target):
        store.reserve(document, set)
        store.advance(document, 5)
    jobs = [Job(idle(), [one], Trace(), 0) for one in (other, reader)]
    jobs[1].window.append(target)
    jobs[0].waiting = Prefill(other)
    jobs[1].waiting = Compute(reader, Sampling(0.0, 0, 1.0, 0.0, 1.0, 0))
    planned = plan(store, jobs, 1)
    assert [(one.chunk.document, len(one.chunk)) for one in planned.prefills] == [(other, 1)]
    assert not planned.written


def test_a_token_whose_target_is_found_is_a_written_one_and_takes_none_of_the_step_s_tokens() -> None:
    """What it reads is computed, if under another document's name."""
    store = DocumentStore(KVArena(1, 1, 4, 256))
    found, target, other = Document("t", [1] * 6), Document("t", [1] * 6), Document("other", [0] * 30)
    reader = Document("reader", [0] * 5, capacity=20)
    reader.append(0, 0.0)
    reader.add_grant(5, target)
    for document, computed in ((found, 6), (reader, 5)):
        store.reserve(document, set)
        store.advance(document, computed)
    jobs = [Job(idle(), [one], Trace(), 0) for one in (reader, other)]
    jobs[0].window.append(target)
    jobs[0].waiting = Compute(reader, Sampling(0.0, 0, 1.0, 0.0, 1.0, 0))
    jobs[1].waiting = Prefill(other)
    planned = plan(store, jobs, 1)
    assert planned.written == {reader: jobs[0]}
    assert [(one.chunk.document, len(one.chunk)) for one in planned.prefills] == [(other, 1)]
    assert jobs[0].trace.documents_reused == 1


CALLS: dict[str, Callable[[Runtime, GenerationResult], Any]] = {
    "generate": lambda runtime, result: runtime.generate("q", config=config()),
    "stream": lambda runtime, result: [*runtime.stream("q", config=config())],
    "generate_batch": lambda runtime, result: runtime.generate_batch(["q", "r", "s"], config=config()),
    "score": lambda runtime, result: runtime.score(["q", "r", "s"], config=config()),
    "warm": lambda runtime, result: runtime.warm(["A"], Texts({"A": "text"}), config(max_link_depth=1)),
    "attention": lambda runtime, result: runtime.attention(result),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_place_that_another_thread_takes_is_waited_for_again(call: str, taken: int) -> None:
    runtime = small_runtime(max_running=1, max_queue=1)
    result = runtime.generate("p", config=config())
    others = [start(runtime, "o"), start(runtime, "o")]  # one runs, one waits: the queue is full
    make_way = runtime.engine.make_way

    def raced() -> None:
        make_way()
        if len(others) < 2 + taken:
            others.append(start(runtime, "o"))

    runtime.engine.make_way = raced  # type: ignore[method-assign]
    CALLS[call](runtime, result)
    assert len(others) == 2 + taken
    finish(runtime, *others)
    assert is_clean(runtime)
