"""A runtime made in one of torch's modes and used in another: the same bits, and no error of torch's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from decode_reference import use_plain_kernels
from scripted import EOS, TOKENIZER, Texts, encode, is_clean

from ds2ds import AsyncRuntime, DS2DSModel, Runtime
from ds2ds.cache.document_store import DocumentStore
from ds2ds.engine.decode_graph.decoder import Decoder
from ds2ds.model.quantised import quantise_weights
from ds2ds.model.weights_identity import fingerprint

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "none": nullcontext,
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
}
CORPUS = Texts({"A": "about A, with [b](B) and more", "B": "about B"})
LIMITS = {"max_context_length": 400, "max_tokens_per_document": 300, "max_new_tokens": 6, "seed": 1, "logprobs": True}
CONFIG = {**LIMITS, "eos_token_id": EOS}


def new_model(seed: int = 0) -> DS2DSModel:
    """A model of its own, made in the mode that this is called in."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"vocab_size": TOKENIZER.vocab_size, "num_layers": 2, "model_dim": 32, "num_heads": 2}
        return DS2DSModel.from_config(max_seq_len=512, weight_tying=False, layout_policy="null", **sizes)


def new_runtime(**options: Any) -> Runtime:
    return Runtime(new_model(), TOKENIZER, "null", arena_tokens=1024, **options)


def bits(result: Any) -> list[Any]:
    return [(d.title, d.tokens, d.grants, d.token_logprobs.tobytes()) for d in result.get_all_documents()]


def all_of_it(runtime: Runtime, file: Path) -> list[Any]:
    """What a runtime gives that is used in every way."""
    told: list[Any] = [bits(runtime.generate("see [a](A) now", corpus=CORPUS, **CONFIG))]
    told += map(bits, runtime.generate_batch(["see [a](A) now", "x [b](B)"], CORPUS, **CONFIG))
    told += map(bits, runtime.score(["see [a](A) now", "x [b](B)"], CORPUS, **CONFIG))
    told.append(bits(runtime.generate("x [b](B)", corpus=CORPUS, num_beams=2, **CONFIG)))
    stored = runtime.save_cache(file)
    runtime.engine.store.clear()
    told.append((stored, runtime.load_cache(file)))
    runtime.engine.store.arena.compact()
    result = runtime.generate("see [a](A) now", corpus=CORPUS, **CONFIG)
    told += [bits(result), runtime.attention(result).shares.tobytes()]
    told.append(runtime.model.forward_inference(torch.tensor([encode("abc")])).numpy().tobytes())
    assert is_clean(runtime)
    return told


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize("weights", [None, "int8"])
def test_whatever_mode_it_was_made_in_and_whatever_it_is_used_in(
    weights: str | None, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr("ds2ds.cache.arena._compiled", lambda data: False)
    expected = all_of_it(new_runtime(weights=weights), tmp_path / "cache")
    for made in MODES:
        for used in MODES:
            with MODES[made]():
                runtime = new_runtime(weights=weights)
            with MODES[used]():
                assert all_of_it(runtime, tmp_path / "cache") == expected, (made, used)


@pytest.mark.parametrize(("made", "used"), [("inference", "none"), ("none", "inference")])
def test_flex_attention_too(made: str, used: str) -> None:
    with MODES[made]():
        runtime = new_runtime(attention="flex")
    with MODES[used]():
        runtime.engine.store.arena.data[0, 0, 0, 0] = 0.0
        ours = runtime.generate("see [a](A) now", corpus=CORPUS, **CONFIG)
    assert bits(ours) == bits(new_runtime(attention="flex").generate("see [a](A) now", corpus=CORPUS, **CONFIG))


@pytest.mark.parametrize("made", MODES)
def test_a_worker_has_a_mode_of_its_own(made: str, tmp_path: Path) -> None:
    with MODES[made]():
        runtime = new_runtime()

        async def generate() -> Any:
            async with AsyncRuntime(runtime) as asynchronous:
                await asynchronous.call(lambda runtime: runtime.engine.store.arena.compact())
                return await asynchronous.generate("see [a](A) now", corpus=CORPUS, **CONFIG)

        result = asyncio.run(generate())
    assert bits(result) == bits(new_runtime().generate("see [a](A) now", corpus=CORPUS, **CONFIG))


@pytest.mark.parametrize("used", MODES)
def test_the_decode_graphs_tables_too(used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Penalised requests that leave one another: rows of the tables are copied, listed and edited from the host."""

    def decoder(model: DS2DSModel, store: DocumentStore, *_: Any) -> Decoder:
        return Decoder(model, store, 4, part=4, capture=False)

    use_plain_kernels(monkeypatch)
    penalised = {**CONFIG, "repetition_penalty": 1.3}
    prompts = ["see [a](A) now", "x [b](B)", "p"]
    alone = [new_runtime().generate(prompt, corpus=CORPUS, **penalised) for prompt in prompts]
    for made in MODES:
        with MODES[made](), monkeypatch.context() as patch:
            patch.setattr("ds2ds.engine.engine.make_decoder", decoder)
            runtime = new_runtime()
        with MODES[used]():
            results = runtime.generate_batch(prompts, CORPUS, **penalised)
        assert [one.root_document.tokens for one in results] == [one.root_document.tokens for one in alone]


@pytest.mark.parametrize("moved", [False, True])
def test_weights_of_a_model_made_in_inference_mode_are_seen_to_change(moved: bool) -> None:
    """Tensors born in that mode have no version; what was computed with other weights would be found again."""
    with torch.inference_mode():
        model = new_model()
        if moved:
            model = model.double().float()
        before = fingerprint(model)
        model.load_state_dict(new_model(seed=1).state_dict())
        assert fingerprint(model) != before
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_model_quantised_in_inference_mode_moves_outside_of_it() -> None:
    tokens = torch.tensor([encode("abc")])
    with torch.inference_mode():
        model = quantise_weights(new_model())
    assert not any(buffer.is_inference() for buffer in model.buffers())
    assert torch.equal(
        model.to(torch.float64).to(torch.float32).forward_inference(tokens),
        quantise_weights(new_model()).forward_inference(tokens),
    )
