"""Under `model.batch_invariant` a request's logits are the same bits alone and among others (float32 on a CPU)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ds2ds import DS2DSModel, Runtime
from ds2ds.model.quantised import quantise_weights
from ds2ds.native import operations as native

SHAPE = {"vocab_size": 211, "num_layers": 4, "model_dim": 96, "num_heads": 3, "max_seq_len": 128}


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def compiled() -> None:
    if not native.available():
        pytest.skip("the C files could not be compiled, without which a Runtime refuses batch_invariant")


def made(weights: str = "float32") -> DS2DSModel:
    torch.manual_seed(0)
    model = DS2DSModel.from_config(**SHAPE, weight_tying=False)
    return model if weights == "float32" else quantise_weights(model, weights)


def prompts(count: int) -> list[list[int]]:
    """Of 1 to 37 tokens; the first one has 23."""
    generator = torch.Generator().manual_seed(5)
    lengths = [23, *torch.randint(1, 38, (count - 1,), generator=generator).tolist()]
    return [torch.randint(210, (length,), generator=generator).tolist() for length in lengths]


def written(
    model: DS2DSModel, batch: list[list[int]], new_tokens: int, batch_invariant: bool = True
) -> tuple[list[torch.Tensor], list[list[int]]]:
    """All logits that tokens of the first request were drawn from, [vocab_size] each, and everyone's tokens."""
    seen: list[torch.Tensor] = []
    plain = model.logits

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        out = plain(hidden)
        seen.append(out[0].clone())
        return out

    model.logits = logits  # type: ignore[method-assign]
    try:
        runtime = Runtime(model, document_store=False, batch_invariant=batch_invariant)
        results = runtime.generate_batch(
            batch, max_new_tokens=new_tokens, seed=3, temperature=1.0, max_link_depth=0, eos_token_id=210
        )
    finally:
        del model.logits
    tokens = [list(result.root_document.tokens) for result in results]
    return seen[: len(tokens[0]) - len(batch[0])], tokens


@pytest.mark.parametrize("others", [1, 2, 7, 15, 16, 20])
def test_logits_are_the_same_bits_alone_and_among_others(others: int, threads: int) -> None:
    model = made()
    batch = prompts(1 + others)
    alone, tokens = written(model, batch[:1], 6)
    among, all_tokens = written(model, batch, 6)
    assert len(alone) == len(among) >= 2
    for one, other in zip(alone, among, strict=True):
        assert torch.equal(one, other)
    assert tokens[0] == all_tokens[0]


@pytest.mark.parametrize("weights", ["int8", "int8_dynamic"])
def test_int8_weights_too(weights: str) -> None:
    model = made(weights)
    batch = prompts(21)
    for one, other in zip(written(model, batch[:1], 6)[0], written(model, batch, 6)[0], strict=True):
        assert torch.equal(one, other)


def test_a_prompt_from_the_document_store_gives_the_same_bits() -> None:
    """It was prefilled at once, and is then found but for its last token."""
    model = made()
    runtime = Runtime(model, batch_invariant=True)
    (prompt,) = prompts(1)
    seen = []
    for reused in (False, True):
        result = runtime.generate(
            prompt_tokens=prompt, max_new_tokens=8, seed=1, max_link_depth=0, eos_token_id=210, logprobs=True
        )
        assert (result.trace.tokens_reused > 0) == reused
        logprobs = result.root_document.token_logprobs
        assert logprobs is not None
        seen.append(logprobs[len(prompt) :].tolist())
    assert len(seen[0]) > 2 and seen[0] == seen[1]


def test_it_is_off_by_default_and_close_to_what_is_computed_then() -> None:
    model = made()
    batch = prompts(8)
    assert model.batch_invariant is False
    apart = written(model, batch, 3)[0][0]
    assert model.batch_invariant is True
    torch.testing.assert_close(written(model, batch, 3, False)[0][0], apart, atol=1e-4, rtol=1e-4)
