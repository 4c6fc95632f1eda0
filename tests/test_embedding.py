"""Rows of a table by their numbers, and threads: a step on a CPU wakes none but those of compiled code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds2ds.model.embedding import Embedding, take_rows
from ds2ds.native import operations as native


@given(st.lists(st.integers(0, 29), max_size=50), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_rows_are_torchs(rows: list[int], dtype: torch.dtype) -> None:
    table, numbers = torch.randn(30, 7, dtype=dtype), torch.tensor(rows, dtype=torch.int64)
    with torch.inference_mode():
        assert torch.equal(take_rows(table, numbers), table[numbers])
    embedding = Embedding(30, 7, dtype=dtype)
    with torch.inference_mode():
        assert torch.equal(embedding(numbers), embedding.weight[numbers])


@pytest.mark.parametrize("row", [-1, 30])
def test_rows_that_are_not_there(row: int) -> None:
    with torch.inference_mode(), pytest.raises(IndexError):
        Embedding(30, 7)(torch.tensor([2, row]))


def test_embeddings_have_gradients() -> None:
    embedding = Embedding(30, 7)
    embedding(torch.tensor([3, 3])).sum().backward()
    assert embedding.weight.grad is not None and embedding.weight.grad[3].tolist() == [2.0] * 7


STEPS = """
import os, time, torch
from ds2ds import DS2DSModel, Runtime
torch.set_num_threads(2)  # of more than there are cores none would spin
model = DS2DSModel.from_config(vocab_size=5000, num_layers=3, model_dim=384, num_heads=6, max_seq_len=512)
runtime = Runtime(model, arena_tokens=8192, weights={weights!r})
def worked():
    threads = os.listdir("/proc/self/task")
    return {{int(n): int(open(f"/proc/self/task/{{n}}/schedstat").read().split()[0]) for n in threads}}
time.sleep(0.3)  # till they sleep who made the model
before = worked()
prompts = [[at + 1] * (100 + at) for at in range(16)]
runtime.generate_batch(prompts, max_new_tokens=8, temperature=0.8, top_k=9, seed=0, eos_token_id=0)
print([after - before[n] for n, after in worked().items() if n in before and n != os.getpid()])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.skipif(not native.available(), reason="there is no C compiler")
@pytest.mark.parametrize("weights", [None, "int8"])
def test_a_step_leaves_torchs_threads_asleep(weights: str | None) -> None:
    """They would spin for milliseconds after each of torch's operations, on cores that the next product wants."""
    command = [sys.executable, "-c", STEPS.format(weights=weights)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DS2DS_NATIVE": "1"})
    assert done.returncode == 0, done.stderr
    nanoseconds = json.loads(done.stdout)
    # On a busy machine one may be on its way to sleep still, for microseconds; spinning would take 8 ms a step.
    assert len(nanoseconds) > 1 and max(nanoseconds) < 1e6, nanoseconds
