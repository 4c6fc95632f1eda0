"""Our decode attention kernels on a GPU, against the plain path there."""

from __future__ import annotations

import pytest
import torch
from test_flex_attention import (
    POSITIONS,
    World,
    assert_equal,
    at_random,
    compute,
    one_token_each,
    plain,
    store_for,
    whole,
)
from test_flex_gpu import library, prefill_then_decode

from ds2ds.attention.attend import AttentionPath
from ds2ds.attention.rotary import Rotary
from ds2ds.attention.triton_decode import TritonPath
from ds2ds.cache.document_store import DocumentStore

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CLOSE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def triton(store: DocumentStore, prefill: AttentionPath | None = None) -> TritonPath:
    return TritonPath(store, Rotary(store.arena.data.shape[-1], POSITIONS, "cuda"), prefill)


@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_it_equals_the_plain_path(dtype: torch.dtype, head_dim: int) -> None:
    made = library(head_dim)
    reference = store_for(made, dtype, 128, "cuda")
    expected = compute(reference, made, plain(reference), whole)
    for pick in (one_token_each, prefill_then_decode, at_random(3)):
        store = store_for(made, dtype, 128, "cuda")
        # FlexAttention takes seconds to compile, for each dtype and width anew.
        ours = triton(store, plain(store))
        assert_equal(compute(store, made, ours, pick, store.arena.compact), expected, CLOSE[dtype])


def test_beside_flex_attention_it_equals_the_plain_path() -> None:
    made = library()
    reference, store = (store_for(made, torch.bfloat16, 128, "cuda") for _ in range(2))
    expected = compute(reference, made, plain(reference), whole)
    found = compute(store, made, triton(store), prefill_then_decode, store.arena.compact)
    assert_equal(found, expected, CLOSE[torch.bfloat16])


def test_a_row_does_not_depend_on_its_batch_to_the_bit() -> None:
    made = library()
    a, b = made.documents[:2]
    b.grants.clear()
    reads = []
    for some in ([a], [a, b]):
        store = store_for(made, torch.bfloat16, 128, "cuda")
        part = World(some, made.q, made.k, made.v)
        reads.append(compute(store, part, triton(store), one_token_each)[a])
    assert torch.equal(*reads)
