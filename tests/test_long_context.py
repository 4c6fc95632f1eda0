"""Windows of up to 32,768 tokens: positions, memory and the arena's size, against float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from scripted import TOKENIZER, small_model

from ds2ds import ConfigError, Runtime
from ds2ds.engine.arena_size import WINDOWS
from ds2ds.model.ds2ds_model import DS2DSModel

WINDOW = 32_768
SETTINGS: dict[str, Any] = {
    "max_context_length": WINDOW,
    "max_tokens_per_document": WINDOW,
    "max_link_depth": 0,
    "temperature": 0.0,
    "logprobs": True,
    "eos_token_id": TOKENIZER.vocab_size,  # no token ends a document
}


def tiny(num_layers: int, model_dim: int) -> DS2DSModel:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return DS2DSModel.from_config(
            vocab_size=TOKENIZER.vocab_size,
            num_layers=num_layers,
            model_dim=model_dim,
            num_heads=2,
            max_seq_len=WINDOW,
            weight_tying=False,
        )


def prompt(length: int) -> list[int]:
    return torch.randint(1, 257, (length,), generator=torch.Generator().manual_seed(1)).tolist()


def peak_mb() -> int:
    """The most memory this process ever had, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) >> 10


class LongOracle(oracle.Oracle):
    """The dense reference in slabs of rows: the last layer is computed for the last rows only, the others for all."""

    def last_rows(self, tokens: list[int], rows: int) -> torch.Tensor:
        """float64 [rows, vocab_size]: log-probabilities after each of the last tokens of a document without grants."""
        at, norm, pushed = torch.arange(len(tokens)), oracle.rms_norm, []
        x = self.weights["embedding.weight"][tokens]
        for layer in range(self.layers):
            prefix = f"backbone.layers.{layer}."
            if layer >= self.layers // 2 and pushed:
                x = x + self.weights["backbone.skip_weights"][layer - self.layers // 2] * pushed.pop()
            q, k, v = ((norm(x) @ w.T).unflatten(-1, (self.heads, -1)) for w in self.weights[prefix + "attn.Wqkv"])
            k = self._rotate(norm(k), at)
            if layer == self.layers - 1:
                q, x, at = q[-rows:], x[-rows:], at[-rows:]
            read = torch.cat([self._read(q[s : s + 256], k, v, at[s : s + 256]) for s in range(0, len(q), 256)])
            x = x + read @ self.weights[prefix + "attn.Wout.weight"].T
            up, gate = (norm(x) @ self.weights[prefix + "mlp.Wup_gate.weight"].T).chunk(2, -1)
            x = x + (up * gate * gate.sigmoid()) @ self.weights[prefix + "mlp.Wdown.weight"].T
            if layer < self.layers // 2:
                pushed.append(x)
                at = torch.arange(len(tokens))
        return (norm(x) @ self.weights["loss_fn.weight"].T).log_softmax(-1)

    def _read(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        last = int(at[-1]) + 1
        scores = torch.einsum("thd,shd->hts", self._rotate(oracle.rms_norm(q), at), k[:last]) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(at[:, None] < torch.arange(last), -torch.inf)
        return torch.einsum("hts,shd->thd", scores.softmax(-1), v[:last]).flatten(1)


def test_the_slabs_are_the_reference() -> None:
    model, tokens = small_model(), prompt(300)
    (whole,) = oracle.Oracle(model).log_probs([oracle.Document("", tokens)])
    torch.testing.assert_close(LongOracle(model).last_rows(tokens, 5), whole[-5:], atol=1e-10, rtol=0)


def write(model: DS2DSModel, length: int) -> int:
    """Decode at positions from `length` on, hold it to the reference; returns the growth of the peak memory, in MB."""
    runtime = Runtime(model, TOKENIZER)
    assert runtime.engine.store.arena.slots >= WINDOWS * WINDOW
    before = peak_mb()
    root = runtime.generate(prompt_tokens=prompt(length), max_new_tokens=4, **SETTINGS).root_document
    grown = peak_mb() - before
    assert len(root.tokens) == length + 4 and root.finish_reason == "max_new_tokens"
    expected = LongOracle(model).last_rows(root.tokens[:-1], 4)
    assert expected.argmax(-1).tolist() == root.tokens[-4:]
    np.testing.assert_allclose(root.token_logprobs[-4:], expected.amax(-1).numpy(), atol=1e-4)
    return grown


def test_positions_beyond_16k() -> None:
    """One layer: some seconds, most of them the reference's."""
    assert write(tiny(num_layers=1, model_dim=16), 17_000) < 200


@pytest.mark.slow
def test_a_prompt_of_30k_tokens() -> None:
    """Its scores alone would be 2 x 30,000 x 30,000 floats, 7 GB a layer. (On two cores that others use too: 13 s, and
    two to five minutes for the reference.)"""
    assert write(tiny(num_layers=2, model_dim=32), 30_000) < 200


def test_the_window_ends_where_the_model_does() -> None:
    model = tiny(num_layers=1, model_dim=16)
    runtime = Runtime(model, TOKENIZER)
    with pytest.raises(ConfigError, match="at most the model's max_seq_len 32768, got 32769"):
        runtime.generate("text", max_context_length=WINDOW + 1)
    with pytest.raises(ValueError, match="the prompt has 32769 tokens, more than max_context_length 32768"):
        runtime.generate(prompt_tokens=[1] * (WINDOW + 1), max_new_tokens=1, **SETTINGS)
