"""The FlexAttention path on a GPU: against the plain path there, and how often it compiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from test_flex_attention import World, assert_equal, at_random, compute, flex, one_token_each, plain, store_for, world
from torch._dynamo.utils import counters

from ds2ds.attention.view import Chunk
from ds2ds.cache.document_store import DocumentStore
from ds2ds.documents.document import Document, DocumentGrant

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CLOSE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def fresh_counters() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def library(head_dim: int = 64) -> World:
    """d reads three others, one of them again later, which read one another; of up to 180 tokens."""
    a, b, c, d, e = (Document(title, [0] * n) for title, n in (("a", 150), ("b", 17), ("c", 64), ("d", 180), ("e", 1)))
    b.grants = [DocumentGrant(2, a)]
    c.grants = [DocumentGrant(1, a, 25), DocumentGrant(3, b), DocumentGrant(30, a)]
    d.grants = [DocumentGrant(0, e), DocumentGrant(20, a, 150), DocumentGrant(129, c), DocumentGrant(160, a)]
    return world([a, b, c, e, d], 7, layers=2, heads=4, head_dim=head_dim)


def prefill(ready: list[Chunk]) -> list[Chunk]:
    """All that can be computed, in chunks of up to 140 tokens."""
    return [Chunk(c.document, c.start, min(c.stop, c.start + 140)) for c in ready]


def prefill_then_decode(ready: list[Chunk]) -> list[Chunk]:
    """The last eight tokens of each document one by one, beside what is prefilled."""
    return [Chunk(c.document, c.start, c.start + 1 if c.stop - c.start <= 8 else c.stop - 8) for c in ready]


def compiled() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    ("dtype", "head_dim", "block"),
    [
        (torch.bfloat16, 64, 128),
        (torch.bfloat16, 128, 16),
        (torch.float32, 64, 64),
        (torch.float32, 16, 16),
    ],
)
def test_it_equals_the_plain_path(dtype: torch.dtype, head_dim: int, block: int) -> None:
    made = library(head_dim)
    reference, store = (store_for(made, dtype, block, "cuda") for _ in range(2))
    expected = compute(reference, made, plain(reference), prefill)
    path = flex(store)
    for pick in (prefill, prefill_then_decode, at_random(3)):
        anew(store, made.documents)
        assert_equal(compute(store, made, path, pick), expected, CLOSE[dtype])


def test_nothing_is_compiled_after_warm_up() -> None:
    """Views, layers, compactions, buckets: one compilation for each bucket, and never another."""
    made = library()
    store = store_for(made, torch.bfloat16, 128, "cuda")
    path = flex(store)
    with torch._dynamo.config.patch(error_on_recompile=True):
        path.warm_up(decode_rows=16, prefill_rows=32)
        before = compiled()
        assert before == 3 + 3  # 4, 8 and 16 rows to decode; 8, 16 and 32 to prefill
        for pick in (prefill, prefill_then_decode, at_random(1), at_random(2)):
            anew(store, made.documents)
            compute(store, made, path, pick, store.arena.compact)
    assert compiled() == before


def test_a_row_does_not_depend_on_the_rest_of_its_batch() -> None:
    """To the bit, where the bucket is the same."""
    documents = [Document("a", [0] * 40), Document("b", [0] * 60)]
    made = world(documents, 7, heads=4, head_dim=64)
    reads = []
    for some in (documents[:1], documents):
        store = store_for(made, torch.bfloat16, 128, "cuda")
        part = World(some, made.q, made.k, made.v)
        reads.append(compute(store, part, flex(store), one_token_each)[documents[0]])
    assert torch.equal(*reads)


def anew(store: DocumentStore, documents: Sequence[Document]) -> None:
    """All of them not computed, in other places than before."""
    for document in documents:
        store.release(document)
    for document in reversed(documents):
        store.reserve(document, set)
