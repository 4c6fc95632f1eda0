"""Our decode attention kernels, interpreted, against the plain path and against FlexAttention's."""

from __future__ import annotations

import decode_reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_flex_attention import (
    POSITIONS,
    SMALL,
    World,
    assert_equal,
    at_random,
    compute,
    few,
    flex,
    one_token_each,
    plain,
    small_steps,  # noqa: F401
    store_for,
    whole,
    world,
    worlds,
)

from ds2ds.attention.paths import attention_path
from ds2ds.attention.rotary import Rotary
from ds2ds.attention.triton_decode import TritonDecode, TritonPath, check_arena
from ds2ds.attention.view import Chunk
from ds2ds.cache.document_store import DocumentStore
from ds2ds.documents.document import Document, DocumentGrant
from ds2ds.errors import ConfigError
from ds2ds.kernels import decode_attention
from ds2ds.kernels.decode_attention import read_parts, store_and_read, store_rows

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="runs on the GPU there: test_triton_attention_gpu.py"),
    # NumPy remarks on a division by zero, which a GPU does not.
    pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning"),
]
SOME = settings(max_examples=3, deadline=None, derandomize=True)
CLOSE = 2e-5  # float32


def triton(store: DocumentStore, part: int = 16) -> TritonPath:
    """Rows that do not decode go to FlexAttention, uncompiled, which is the default too."""
    rotary = Rotary(store.arena.data.shape[-1], POSITIONS)
    return TritonPath(store, rotary, flex(store, prefill=SMALL), part)


def expected(made: World) -> dict:
    reference = store_for(made)
    return compute(reference, made, plain(reference), whole)


@SOME
@given(worlds(), st.sampled_from([4, 16, 128]))
def test_decoding_equals_the_plain_path(made: World, part: int) -> None:
    store = store_for(made, torch.float32)
    assert_equal(compute(store, made, triton(store, part), one_token_each), expected(made), CLOSE)


@SOME
@given(worlds(), st.integers(0, 99))
def test_any_chunks_in_any_batches_equal_the_plain_path(made: World, seed: int) -> None:
    """Keys and values in the arena too, whoever stored them."""
    reference = store_for(made)
    theirs = compute(reference, made, plain(reference), whole)
    store = store_for(made, torch.float32)
    assert_equal(compute(store, made, triton(store), at_random(seed), store.arena.compact), theirs, CLOSE)
    for d in made.documents:
        ours, others = (s.arena.data[:, :, :, s.start(d) : s.start(d) + len(d.tokens)] for s in (store, reference))
        torch.testing.assert_close(ours.double(), others, atol=CLOSE, rtol=0)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, CLOSE), (torch.float16, 5e-3)])
def test_views_over_several_parts_and_layers(dtype: torch.dtype, atol: float) -> None:
    made = few()
    store = store_for(made, dtype)
    assert_equal(compute(store, made, triton(store, 4), one_token_each), expected(made), atol)


def test_a_target_in_the_same_batch_is_read_either_way() -> None:
    """By a row that decodes of a chunk that does not, and the other way round."""
    for lengths in ((1, 5), (5, 1)):
        a = Document("a", [0] * lengths[0])
        b = Document("b", [0] * lengths[1], grants=[DocumentGrant(0, a)])
        made = world([a, b], 3)
        theirs = expected(made)

        def together(ready: list[Chunk], documents: tuple[Document, Document] = (a, b)) -> list[Chunk]:
            return [Chunk(d, 0, len(d.tokens)) for d in documents]

        store = store_for(made, torch.float32)
        assert_equal(compute(store, made, triton(store), together), theirs, CLOSE)


def test_a_row_does_not_depend_on_its_batch_to_the_bit() -> None:
    documents = [Document("a", [0] * 20), Document("b", [0] * 33)]
    made = world(documents, 7)
    reads = []
    for some in (documents[:1], documents):
        store = store_for(made, torch.float32)
        part = World(some, made.q, made.k, made.v)
        reads.append(compute(store, part, triton(store), one_token_each)[documents[0]])
    assert torch.equal(*reads)


def test_tables_are_aligned_however_many_rows_there_are() -> None:
    """For addresses that are not multiples of 16 bytes Triton compiles a kernel anew, in the midst of a step."""
    made = world([Document(title, [0] * 3) for title in "abcde"], 7)
    store = store_for(made, torch.float32)
    for rows in range(1, 6):
        decode = TritonDecode(store, Rotary(16, POSITIONS), [Chunk(d, 0, 1) for d in made.documents[:rows]])
        for column in (decode.position, decode.slot, decode.first, decode.count):
            assert column.shape == (rows,) and column.is_contiguous() and column.data_ptr() % 16 == 0


def test_parts_that_are_not_there_count_nothing() -> None:
    """A table may be longer than what it shows, as a captured graph needs it."""
    data, qk = torch.randn(2, 2, 32, 16), torch.randn(2, 2, 2, 16)
    rotary = Rotary(16, 64)
    parts = torch.tensor([[0, 3, 0, 4], [1, 5, 8, 7], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.int32)
    first, count = torch.tensor([[0, 1, 2], [1, 1, 0]], dtype=torch.int32)
    qk = torch.cat([qk, qk[:1]])
    out = read_parts(data, qk, rotary.cos, rotary.sin, parts, first, count, 8)
    assert torch.equal(out[:2], read_parts(data, qk[:2], rotary.cos, rotary.sin, parts[:2], first[:2], count[:2], 8))
    assert (out[2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_queries_and_keys_may_be_normed_as_they_are_read(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rotary, before = Rotary(16, 64), torch.randn(2, 2, 32, 16).to(dtype)
    qk, v = torch.randn(3, 2, 2, 16).to(dtype) * 5, torch.randn(3, 2, 16).to(dtype)
    slot = torch.tensor([7, -1, 31], dtype=torch.int32)
    parts = torch.tensor([[0, 4, 3, 5], [0, 9, 20, 8], [2, 63, 31, 1]], dtype=torch.int32)
    first, count = torch.tensor([[0, 2, 2], [2, 0, 1]], dtype=torch.int32)
    found = []
    for kernels in (decode_attention, decode_reference):
        data, tables = before.clone(), (rotary.cos, rotary.sin, slot, parts, first, count)
        found.append((data, kernels.store_and_read(data, qk, v, *tables, 8, norm=True)))
    close = 1e-6 if dtype == torch.float32 else 2e-3
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=close, rtol=close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_new_may_be_stored_as_it_is_read(dtype: torch.dtype) -> None:
    """Also at a part's beginning and end, of a row that is not there, and of numbers that are none."""
    torch.manual_seed(0)
    rotary, qk = Rotary(16, 64), torch.randn(4, 2, 2, 16).to(dtype)
    v = torch.randn(2, 16, 4).to(dtype).permute(2, 0, 1)
    v[1, 0, 3], v[3, 1, 5], qk[3, 1, 1, 2] = torch.inf, torch.nan, torch.nan
    position, slot = torch.tensor([[8, 15, 0, 3], [10, 31, -1, 14]], dtype=torch.int32)
    parts = [[0, 8, 2, 8], [0, 8, 10, 1], [1, 15, 16, 8], [1, 15, 24, 8], [1, 18, 0, 3], [0, 0, 0, 0], [3, 3, 11, 4]]
    table = [torch.tensor(one, dtype=torch.int32) for one in (parts, [0, 2, 5, 6], [2, 3, 0, 1])]
    stored = torch.randn(2, 2, 32, 16).to(dtype)
    also = stored.clone()
    store_rows(stored, qk, v, rotary.cos, rotary.sin, position, slot)
    separate = read_parts(stored, qk, rotary.cos, rotary.sin, *table, 8)
    together = store_and_read(also, qk, v, rotary.cos, rotary.sin, slot, *table, 8)
    torch.testing.assert_close(also, stored, rtol=0, atol=0, equal_nan=True)
    close = 1e-5 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(together, separate, rtol=close, atol=close, equal_nan=True)
    assert together[:3].isfinite().all() and together[3, 1].isnan().all()


def test_values_may_lie_in_any_order() -> None:
    """As torch's products of few rows on a CPU give them: transposed."""
    torch.manual_seed(0)
    rotary, qk, v = Rotary(16, 8), torch.randn(3, 2, 2, 16), torch.randn(3, 2, 16)
    at = torch.arange(3, dtype=torch.int32)
    found = []
    for values in (v, v.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        data = torch.zeros(2, 2, 8, 16)
        store_rows(data, qk, values, rotary.cos, rotary.sin, at, at)
        found.append(data)
    assert torch.equal(*found) and torch.equal(found[0][1, :, :3], v.transpose(0, 1))


def test_what_is_read_of_a_row_that_is_nan_is_nan() -> None:
    """Else who reads a document without usable numbers would go on as if it were empty."""
    data, qk = torch.randn(2, 1, 16, 16), torch.randn(2, 2, 1, 16)
    data[0, :, 3] = torch.nan
    rotary = Rotary(16, 64)
    parts = torch.tensor([[0, 3, 0, 3], [1, 5, 8, 4], [1, 5, 0, 4]], dtype=torch.int32)
    first, count = torch.tensor([[0, 1], [1, 2]], dtype=torch.int32)
    out = read_parts(data, qk, rotary.cos, rotary.sin, parts, first, count, 4)
    assert out[0].isfinite().all() and out[1].isnan().all()


def test_what_the_kernels_cannot_do_is_an_error() -> None:
    for wrong, message in (
        (torch.zeros(1, 2, 1, 16, 12), "power of two from 4 on, got 12"),
        (torch.zeros(1, 2, 1, 16, 16, dtype=torch.float64), "needs float32, bfloat16 or float16, got torch.float64"),
    ):
        with pytest.raises(ValueError, match=message):
            check_arena(wrong)
    made = world([Document("a", [0] * 3)], 1)
    with pytest.raises(ConfigError, match=r"got torch\.float64"):
        attention_path(store_for(made), Rotary(16, POSITIONS), "triton")
    prepare = attention_path(store_for(made, torch.float32), Rotary(16, POSITIONS), "triton")
    assert isinstance(prepare, TritonPath)


def test_a_view_longer_than_the_rotary_tables_is_an_error() -> None:
    a = Document("a", [0] * 9)
    b = Document("b", [0] * 1, grants=[DocumentGrant(0, a)])
    store = store_for(world([a, b], 3), torch.float32)
    with pytest.raises(ValueError, match="position 9 exceeds the table's 9"):
        TritonPath(store, Rotary(16, 9))([Chunk(b, 0, 1)])
