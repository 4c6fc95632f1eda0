"""The decode step in CUDA graphs: captured and replayed it does what its kernels do, and needs nothing new."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scripted import EOS, TOKENIZER, Texts, is_clean
from torch._dynamo.utils import counters

from ds2ds import DS2DSModel, GenerationConfig, GenerationResult, Runtime
from ds2ds.attention.plain import PlainAttention
from ds2ds.attention.triton_decode import TritonPath
from ds2ds.engine.decode_graph.decoder import Decoder
from ds2ds.engine.decode_graph.graphs import can_overlap
from ds2ds.generation.running import Running

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TEXTS = {"A": "about A, with [b](B) and more", "B": "about B", "Long": "a long one " * 12}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("see [a](A) and [l](Long) now", {"max_new_tokens": 9, "temperature": 0.0}),
    ("p", {"max_new_tokens": 40, "temperature": 1.0, "top_k": 5, "seed": -7}),
    ("x [b](B)", {"max_new_tokens": 20, "temperature": 1.3, "top_p": 0.8, "seed": 2**62}),
    ("y" * 150, {"max_new_tokens": 25, "temperature": 0.0, "repetition_penalty": 1.5}),
    ("[l](Long) [b](B) and", {"max_new_tokens": 33, "temperature": 0.9, "min_p": 0.05, "repetition_penalty": 0.8}),
]


def new_runtime(dtype: torch.dtype, arena_tokens: int = 16_384, weights: str | None = None, **options: Any) -> Runtime:
    torch.manual_seed(0)
    model = DS2DSModel.from_config(
        vocab_size=TOKENIZER.vocab_size, num_layers=4, model_dim=128, num_heads=2, max_seq_len=1024, weight_tying=False
    ).to(device="cuda", dtype=dtype)
    runtime = Runtime(
        model, TOKENIZER, arena_tokens=arena_tokens, attention="triton", weights=weights, max_running=8, **options
    )
    # FlexAttention takes long to compile, and is not what this is about.
    store, rotary = runtime.engine.store, model.rotary
    runtime.engine.attention = TritonPath(store, rotary, prefill=partial(PlainAttention, store, rotary))
    return runtime


def decode_with(runtime: Runtime, **options: Any) -> Decoder:
    engine = runtime.engine
    engine.decoder = Decoder(runtime.model, engine.store, engine.limits.max_running, **options)
    return engine.decoder


def start(runtime: Runtime, prompt: str, **options: Any) -> Running:
    wide = {"max_context_length": 300, "max_tokens_per_document": 250, "max_link_depth": 1, "logprobs": True}
    config = GenerationConfig(**{"eos_token_id": EOS, "seed": 3, **wide, **options})
    return runtime._generator.start(prompt, None, Texts(TEXTS), config)


def serve(runtime: Runtime, move: bool = False) -> list[GenerationResult]:
    """The requests, each two steps after the one before. With `move`, every document moves in the midst of it."""
    arena = runtime.engine.store.arena
    runtime.engine.store.clear()
    running = []
    hole = arena.allocator.allocate(128) if move else None
    for prompt, options in REQUESTS:
        running.append(start(runtime, prompt, **options))
        runtime.engine.step()
        runtime.engine.step()
    if hole is not None:
        arena.allocator.release(hole)
        assert arena.compact()
    while not all(one.job.done for one in running):
        runtime.engine.step()
    assert [one.job.error for one in running] == [None] * len(running)
    assert is_clean(runtime)
    return [one.result() for one in running]


def assert_same(ours: list[GenerationResult], theirs: list[GenerationResult], tolerance: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(one.get_all_documents(), other.get_all_documents(), strict=True):
            assert (a.title, list(a.tokens or ())) == (b.title, list(b.tokens or ()))
            assert a.token_logprobs is not None and b.token_logprobs is not None
            np.testing.assert_allclose(a.token_logprobs, b.token_logprobs, atol=tolerance, rtol=0)


@pytest.mark.parametrize("weights", [None, "int8", "int8_dynamic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_it_is_what_its_kernels_do_one_by_one(dtype: torch.dtype, weights: str | None) -> None:
    captured, launched = new_runtime(dtype, weights=weights), new_runtime(dtype, weights=weights)
    assert captured.engine.decoder is not None  # by default
    decode_with(launched, capture=False)
    assert_same(serve(captured), serve(launched), 0)
    assert captured.engine.decoder.graphs.captured > 3


@pytest.mark.parametrize(
    ("dtype", "weights", "capture"),
    [
        (torch.float32, None, True),
        (torch.bfloat16, None, False),
        (torch.bfloat16, None, True),
        (torch.bfloat16, "int8", True),
    ],
)
def test_launches_that_overlap_make_no_difference(dtype: torch.dtype, weights: str | None, capture: bool) -> None:
    if not can_overlap(torch.device("cuda")):
        pytest.skip("launches overlap from compute capability 9.0 on")
    after, beside = new_runtime(dtype, weights=weights), new_runtime(dtype, weights=weights)
    decode_with(beside, capture=capture, overlap=True)
    for move in (False, True):
        expected = serve(after, move)
        for _ in range(3):
            assert_same(serve(beside, move), expected, 0)


@pytest.mark.parametrize("move", [False, True])
def test_it_is_what_it_is_without_graphs_and_without_running_ahead(move: bool) -> None:
    expected = serve(new_runtime(torch.float32, cuda_graphs=False))
    ahead, behind = (new_runtime(torch.float32) for _ in range(2))
    decode_with(behind, ahead=False)
    for runtime in (ahead, behind):
        assert_same(serve(runtime, move), expected, 1e-3)
    assert ahead.engine.decoder is not None and ahead.engine.decoder.dropped > 0


def compiled_kernels() -> int:
    """How many variants of our Triton kernels this process has."""
    modules = [module for name, module in sys.modules.items() if name.startswith("ds2ds.kernels")]
    functions = {id(f): f for module in modules for f in vars(module).values() if hasattr(f, "device_caches")}
    return sum(len(cache[0]) for function in functions.values() for cache in function.device_caches.values())


def test_after_warming_up_nothing_is_compiled_and_nothing_allocated() -> None:
    runtime = new_runtime(torch.bfloat16)
    decoder = runtime.engine.decoder
    assert decoder is not None
    decoder.warm_up(4, penalised=True)
    long = {"max_new_tokens": 400, "max_tokens_per_document": 600, "max_context_length": 600}
    long |= {"max_link_depth": 0, "eos_token_id": TOKENIZER.vocab_size}
    running = [start(runtime, prompt, **(options | long)) for prompt, options in REQUESTS[:4]]
    for _ in range(4):
        runtime.engine.step()
    assert all(one.request.context.root.tokens[one.request.context.root.given :] for one in running)
    torch.cuda.synchronize()

    def counted() -> dict[str, int]:
        memory = torch.cuda.memory_stats()
        return {
            "allocations": memory["allocation.all.allocated"],
            "segments": memory["segment.all.allocated"],
            "compiled kernels": compiled_kernels(),
            "compiled graphs": counters["stats"]["unique_graphs"],
            "captured": decoder.graphs.captured,
            "edited": decoder.edited,
            "dropped": decoder.dropped,
        }

    before, flights = counted(), decoder.flights
    assert before["compiled kernels"] > 5
    for _ in range(100):
        runtime.engine.step()
    torch.cuda.synchronize()
    assert counted() == before
    assert decoder.flights == flights + 100
    for one in running:
        runtime.engine.cancel(one.job)
    assert is_clean(runtime)


def test_a_step_is_launched_without_waiting_for_the_one_before() -> None:
    """The host is told of a step's tokens by an event of its own, whatever has been launched since."""
    runtime = new_runtime(torch.bfloat16)
    decoder = runtime.engine.decoder
    assert decoder is not None
    one = start(runtime, "p", max_new_tokens=200, max_link_depth=0, eos_token_id=TOKENIZER.vocab_size)
    for _ in range(5):
        runtime.engine.step()
    torch.cuda.synchronize()
    launch = decoder._launch

    def slow(*args: Any) -> Any:
        torch.cuda._sleep(10**9)  # in front of the step that is launched ahead: a good part of a second
        return launch(*args)

    decoder._launch = slow  # type: ignore[method-assign]
    finished = torch.cuda.Event()
    written = len(one.request.context.root.tokens)
    runtime.engine.step()
    finished.record()
    assert len(one.request.context.root.tokens) == written + 1
    assert not finished.query()
    torch.cuda.synchronize()
    runtime.engine.cancel(one.job)


def test_weights_that_are_elsewhere_are_captured_anew() -> None:
    runtime = new_runtime(torch.float32)
    decoder = runtime.engine.decoder
    assert decoder is not None
    first = serve(runtime)
    captured = decoder.graphs.captured
    assert_same(serve(runtime), first, 1e-4)
    assert decoder.graphs.captured == captured
    with torch.no_grad():
        for parameter in runtime.model.parameters():
            parameter.data = parameter.data.clone()
    runtime.model.load_state_dict(runtime.model.state_dict())  # a new version, so that it is noticed
    assert_same(serve(runtime), first, 1e-4)
    assert decoder.graphs.captured == 2 * captured
