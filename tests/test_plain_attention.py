"""Attention over the arena against a softmax over explicitly gathered keys, one token and head at a time (S2, S3)."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_flex_attention import Pick, Tensors, World, assert_equal, one_token_each, whole
from test_flex_attention import compute as compute_batches
from test_flex_attention import run as run_batch
from test_flex_attention import world as small_world
from torch import Tensor

from ds2ds.attention import plain
from ds2ds.attention.compiled import cpu_attention
from ds2ds.attention.plain import PlainAttention
from ds2ds.attention.rotary import Rotary
from ds2ds.attention.view import Chunk
from ds2ds.cache.arena import KVArena
from ds2ds.cache.document_store import DocumentStore
from ds2ds.documents.document import Document, DocumentGrant
from ds2ds.native import operations as native
from ds2ds.native.invariance import batch_invariant

LAYERS, HEADS, HEAD_DIM = 2, 2, 8
FREQUENCIES = [1.0, 1 / 1024, 0.0, 0.0]  # radians per position of the pairs (x[i], x[i + 4])
SOME = settings(max_examples=25, deadline=None, derandomize=True)


def world(documents: list[Document], seed: int) -> World:
    return small_world(documents, seed, LAYERS, HEADS, HEAD_DIM)


@st.composite
def worlds(draw: st.DrawFn, most: int = 4) -> World:
    documents: list[Document] = []
    for index in range(draw(st.integers(1, most))):
        document = Document(f"d{index}", [0] * draw(st.integers(1, 9)))
        length = len(document.tokens)
        for position in sorted(draw(st.lists(st.integers(0, length), max_size=4 if documents else 0))):
            end = draw(st.none() | st.integers(position, length + 1))
            document.grants.append(DocumentGrant(position, draw(st.sampled_from(documents)), end))
        documents.append(document)
    return world(documents, draw(st.integers(0, 99)))


def naive(made: World, document: Document, layer: int, token: int, head: int) -> list[float]:
    """Every visible key with its distance from the query, a softmax over all of them, the mean of their values."""
    visible = [(document, s, token - s) for s in range(token + 1)]
    delta = 0
    for grant in document.grants:
        if grant.position <= token and (grant.end is None or token < grant.end):
            delta += len(grant.target.tokens)
            visible += [(grant.target, s, token + delta - s) for s in range(len(grant.target.tokens))]
    query = made.q[document][layer, token, head].tolist()
    weights, values = [], []
    for source, s, distance in visible:
        key = made.k[source][layer, s, head].tolist()
        score = 0.0
        for i, frequency in enumerate(FREQUENCIES):
            pair, other = complex(query[i], query[i + 4]), complex(key[i], key[i + 4])
            score += (pair * other.conjugate() * cmath.exp(-1j * distance * frequency)).real
        weights.append(math.exp(score / math.sqrt(HEAD_DIM)))
        values.append(made.v[source][layer, s, head].tolist())
    return [sum(w * v[i] for w, v in zip(weights, values, strict=True)) / sum(weights) for i in range(HEAD_DIM)]


def expected(made: World) -> Tensors:
    return {
        d: torch.tensor(
            [
                [[naive(made, d, layer, token, head) for head in range(HEADS)] for token in range(len(d.tokens))]
                for layer in range(LAYERS)
            ],
            dtype=torch.float64,
        )
        for d in made.documents
    }


def store_for(made: World, dtype: torch.dtype = torch.float64) -> DocumentStore:
    """All documents resident, each behind one that is soon gone, so that there is something to compact."""
    store = DocumentStore(KVArena(LAYERS, HEADS, HEAD_DIM, 256, 4, dtype), share=False)
    store.arena.data.fill_(torch.nan)  # whatever is read without having been written shows
    for document in made.documents:
        gone = Document("gone", [0])
        store.reserve(gone, set)
        store.reserve(document, set)
        store.release(gone)
    return store


def run(store: DocumentStore, made: World, chunks: Sequence[Chunk]) -> list[Tensor]:
    """One flat batch: for each chunk what its rows read, [layers, rows, heads, head_dim]."""
    return run_batch(store, made, cpu_attention(store, Rotary(HEAD_DIM, 256), chunks), chunks)


@contextmanager
def limits(key_block: int, slab_rows: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "KEY_BLOCK", key_block)
        patch.setattr(plain, "SLAB_ROWS", slab_rows)
        yield


def compute(
    made: World,
    pick: Pick,
    between: Callable[[DocumentStore], object] = lambda store: None,
    dtype: torch.dtype = torch.float64,
) -> Tensors:
    """Compute all documents in batches: `pick` chooses from the chunks that could be computed next, one a document."""
    store = store_for(made, dtype)
    prepare = partial(cpu_attention, store, Rotary(HEAD_DIM, 256))
    return compute_batches(store, made, prepare, pick, lambda: between(store))


def drawn(data: st.DataObject) -> Pick:
    """Some of the documents, in any order, each for any number of tokens."""

    def pick(ready: list[Chunk]) -> list[Chunk]:
        some = data.draw(st.lists(st.sampled_from(range(len(ready))), min_size=1, unique=True))
        return [
            Chunk(c.document, c.start, data.draw(st.integers(c.start + 1, c.stop)))
            for c in (ready[index] for index in some)
        ]

    return pick


TABLES = 1e-5  # what the rotary tables' float32 can make of positions up to 60


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("pick", [whole, one_token_each])
def test_a_value_that_is_not_finite_reaches_no_row_that_does_not_read_it(pick: Pick, value: float) -> None:
    document = Document("d", [0] * 9)
    made = world([document], 0)
    finite = expected(made)[document]
    made.v[document][1, 5, 1, 3] = value
    read = compute(made, pick)[document]
    assert not read[1, 5:, 1, 3].isfinite().any()
    read[1, 5:, 1, 3] = finite[1, 5:, 1, 3]
    torch.testing.assert_close(read, finite, atol=TABLES, rtol=0)


@SOME
@given(worlds(), st.data())
def test_any_chunks_in_any_batches_equal_the_naive_softmax(made: World, data: st.DataObject) -> None:
    assert_equal(compute(made, drawn(data)), expected(made), TABLES)


@SOME
@given(worlds(most=7), st.integers(1, 5), st.integers(1, 12), st.data())
def test_limits_do_not_change_results(made: World, key_block: int, slab_rows: int, data: st.DataObject) -> None:
    """Keys in many blocks, rows in many slabs: only the order of sums is another."""
    reference = compute(made, whole)
    with limits(key_block, slab_rows):
        assert_equal(compute(made, drawn(data)), reference, 1e-12)


@SOME
@given(worlds(), st.data())
def test_chunks_and_batches_do_not_change_results(made: World, data: st.DataObject) -> None:
    reference = compute(made, whole)
    assert_equal(compute(made, one_token_each), reference, 1e-12)
    assert_equal(compute(made, drawn(data)), reference, 1e-12)


@settings(SOME, max_examples=15)
@given(worlds(), st.data())
def test_compaction_between_batches_does_not_change_results(made: World, data: st.DataObject) -> None:
    reference = compute(made, whole)
    assert_equal(compute(made, drawn(data), lambda store: store.arena.compact()), reference, 1e-12)


def chain() -> World:
    """c reads b from its middle on, b reads a; c has read a for a while."""
    a, b, c = (Document(title, [0] * n) for title, n in (("a", 6), ("b", 5), ("c", 8)))
    b.grants = [DocumentGrant(2, a)]
    c.grants = [DocumentGrant(1, a, 5), DocumentGrant(3, b)]
    return world([a, b, c], 7)


def fan(targets: int = 7, reader: int = 9) -> World:
    """A reader of many documents, from all over; each third is evicted, so that the later ones move closer."""
    documents = [Document(f"t{i}", [0] * (2 + i % 4)) for i in range(targets)]
    grants = [
        DocumentGrant(i % reader, document, min(reader, i + 3) if i % 3 == 0 else None)
        for i, document in enumerate(documents)
    ]
    grants.sort(key=lambda grant: grant.position)
    return world([*documents, Document("reader", [0] * reader, grants=grants)], 11)


@pytest.mark.parametrize("made", [chain(), fan()], ids=["chain", "fan"])
@pytest.mark.parametrize("pick", [whole, one_token_each])
def test_graphs_with_evictions(pick: Pick, made: World) -> None:
    assert_equal(compute(made, pick), expected(made), TABLES)


def test_many_documents_are_read_in_slabs_and_blocks_within_the_limits() -> None:
    made = fan()
    reader = made.documents[-1]
    with limits(key_block=3, slab_rows=12):
        store = store_for(made)
        for document in made.documents[:-1]:
            run(store, made, [Chunk(document, 0, len(document.tokens))])
        run(store, made, [Chunk(reader, 0, 5)])
        chunk = Chunk(reader, 5, 9)
        (view,) = PlainAttention(store, Rotary(HEAD_DIM, 256), [chunk]).views
        ours = run(store, made, [chunk])[0]
    assert [piece.stop - piece.start for piece in view.own] == [4, 3, 2]  # the chunk itself, then what is before it
    assert len(view.others) > 1
    for slab in view.others:
        assert len(slab.rows) == len(slab.cos) == len(slab.sin) <= 12
        assert all(0 < piece.stop - piece.start <= 3 for _, piece in slab.pieces)
    assert any(len(slab.pieces) > 1 for slab in view.others)
    torch.testing.assert_close(ours, expected(made)[reader][:, 5:], atol=TABLES, rtol=0)


def test_documents_share_a_slab_as_far_as_its_rows_go() -> None:
    targets = [Document(title, [0] * 5) for title in "abc"]
    reader = Document("r", [0] * 4, grants=[DocumentGrant(0, target) for target in targets])
    made = world([*targets, reader], 0)
    store, rotary = store_for(made), Rotary(HEAD_DIM, 64)
    for most, sizes in ((12, [12]), (11, [8, 4]), (4, [4, 4, 4]), (3, [4, 4, 4])):
        with limits(key_block=64, slab_rows=most):
            (view,) = PlainAttention(store, rotary, [Chunk(reader, 0, 4)]).views
        assert [len(slab.rows) for slab in view.others] == sizes


def test_a_default_device_of_the_users_changes_nothing() -> None:
    made = chain()
    store, rotary = store_for(made), Rotary(HEAD_DIM, 64)
    for document, theirs in expected(made).items():
        rows = torch.stack([made.q[document], made.k[document]], dim=2)
        with torch.device("meta"):
            attend = PlainAttention(store, rotary, [Chunk(document, 0, len(document.tokens))])
            ours = [attend(layer, rows[layer], made.v[document][layer]) for layer in range(LAYERS)]
        torch.testing.assert_close(torch.stack(ours), theirs, atol=TABLES, rtol=0)


def test_documents_of_thousands_of_tokens_pass_the_real_limits() -> None:
    """More keys than KEY_BLOCK and more rows than SLAB_ROWS, against one softmax over all of them."""
    tokens = plain.KEY_BLOCK + 100
    far, near = Document("far", [0] * tokens), Document("near", [0] * 30)
    rows = plain.SLAB_ROWS // 2 + 10
    reader = Document("r", [0] * rows, grants=[DocumentGrant(0, near), DocumentGrant(0, far)])
    generator = torch.Generator().manual_seed(3)
    store = DocumentStore(KVArena(1, HEADS, HEAD_DIM, 4096, 4, torch.float64), share=False)
    rotary = Rotary(HEAD_DIM, 4096)
    keys, values = [], []
    for document, delta in ((far, 30 + tokens), (near, 30), (reader, 0)):
        store.reserve(document, set)
        n = len(document.tokens)
        qk, v = (torch.randn(n, parts, HEADS, HEAD_DIM, dtype=torch.float64, generator=generator) for parts in (2, 1))
        qk = qk / qk.square().mean(-1, keepdim=True).sqrt()
        attend = PlainAttention(store, rotary, [Chunk(document, 0, n)])
        ours = attend(0, qk, v[:, 0])
        keys.append((qk[:, 1], torch.arange(n) - delta))
        values.append(v[:, 0])
    assert len(attend.views[0].others) == 2 and len(attend.views[0].others[1].pieces) == 2
    # Distances as they would be in one packed sequence, and keys turned there.
    packed, at = (torch.cat(parts) for parts in zip(*keys, strict=True))
    shift = int(-at.min())
    turn = [complex(math.cos(f), math.sin(f)) for f in FREQUENCIES]
    angles = torch.tensor(turn, dtype=torch.complex128)

    def turned(x: Tensor, positions: Tensor) -> Tensor:
        half = torch.complex(x[..., :4], x[..., 4:])
        return half * angles.conj() ** positions[:, None, None]

    scores = torch.einsum(
        "qhc,khc->hqk", turned(qk[:, 0], torch.arange(rows) + shift), turned(packed, at + shift).conj()
    ).real
    hidden = at[None, :] > torch.arange(rows)[:, None]
    weights = (scores / math.sqrt(HEAD_DIM)).masked_fill(hidden, -torch.inf).softmax(-1)
    theirs = torch.einsum("hqk,khd->qhd", weights, torch.cat(values))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)  # float32 tables of angles up to 2500


def test_a_target_in_the_same_batch_is_read() -> None:
    """Each layer's keys are all written before any row of it reads."""
    made = chain()
    reads = run(store_for(made), made, [Chunk(d, 0, len(d.tokens)) for d in reversed(made.documents)])
    assert_equal(dict(zip(reversed(made.documents), reads, strict=True)), expected(made), TABLES)


def test_keys_are_stored_rotated_at_local_positions_and_values_as_they_are() -> None:
    made = chain()
    store = store_for(made)
    c = made.documents[2]
    for document in made.documents:
        run(store, made, [Chunk(document, 0, len(document.tokens))])
    for layer in range(LAYERS):
        keys, values = store.arena.read(layer, store.start(c), store.start(c) + 8)
        assert torch.equal(values, made.v[c][layer].transpose(0, 1))
        for token in range(8):
            x = made.k[c][layer, token]
            turned = [torch.complex(x[:, i], x[:, i + 4]) * cmath.exp(-1j * token * FREQUENCIES[i]) for i in range(4)]
            expected_key = torch.stack([*(z.real for z in turned), *(z.imag for z in turned)], dim=1)
            torch.testing.assert_close(keys[:, token], expected_key, atol=TABLES, rtol=0)


def test_only_the_chunks_own_slots_are_written() -> None:
    made = chain()
    store = store_for(made)
    a = made.documents[0]
    run(store, made, [Chunk(a, 0, 3)])
    start = store.start(a)
    assert store.arena.data[:, :, :, start : start + 3].isfinite().all()
    assert store.arena.data.isfinite().sum() == LAYERS * 2 * HEADS * 3 * HEAD_DIM


# Lower precisions


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("made", [chain(), fan()], ids=["chain", "fan"])
def test_lower_precisions_stay_close(dtype: torch.dtype, atol: float, made: World) -> None:
    store = store_for(made, dtype)
    reads = [run(store, made, [Chunk(d, 0, len(d.tokens))])[0] for d in made.documents]
    assert_equal(dict(zip(made.documents, reads, strict=True)), expected(made), atol)


def read_alone(qk: Tensor, v: Tensor, own: int) -> Tensor:
    """What the last row of qk [n, 2, heads, head_dim], v [n, heads, head_dim] reads.

    The last `own` rows are its document's, all before them another's, which it reads. Keys are stored as they are.
    """
    target, reader = Document("t", [0] * (len(qk) - own)), Document("r", [0] * own)
    reader.grants = [DocumentGrant(0, target)]
    store = DocumentStore(KVArena(1, qk.shape[2], qk.shape[3], 8192, 4, qk.dtype), share=False)
    for document, rows in ((target, slice(0, -own)), (reader, slice(-own, -1))):
        store.reserve(document, set)
        store.arena.write(0, store.start(document), qk[rows, 1], v[rows])
    return cpu_attention(store, Rotary(qk.shape[3], 8192), [Chunk(reader, own - 1, own)])(0, qk[-1:], v[-1:])[0]


HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("key_block", [171, 2048])
def test_sums_over_many_keys_are_float32_in_half_precision(dtype: torch.dtype, key_block: int) -> None:
    """With q = 0 all keys weigh the same: what is read is the mean of the values. They are whole, and so are sums."""
    n = 5000  # of odd whole numbers, bfloat16 holds those up to 256, and float16 those up to 2048
    qk = torch.zeros(n, 2, HEADS, 8, dtype=dtype)
    qk[:, 1] = torch.randn(n, HEADS, 8, generator=torch.Generator().manual_seed(0))
    v = torch.randint(-8, 9, (n, HEADS, 8), generator=torch.Generator().manual_seed(1))
    with limits(key_block, 512):
        read = read_alone(qk, v.to(dtype), own=2)
    assert torch.equal(read, (v.sum(0).float() / n).to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_are_float32_in_half_precision(dtype: torch.dtype) -> None:
    """Scores are multiples of 1/4 and values 0 or 1, both exact: what is read has no error but its own rounding."""
    generator = torch.Generator().manual_seed(2)
    qk = torch.zeros(5, 2, 64, 16, dtype=dtype)
    # Only pairs that positions do not turn; with head_dim 16 the scale is 1/4.
    still = [4, 5, 6, 7, 12, 13, 14, 15]
    qk[..., still] = torch.randint(-1, 2, (5, 2, 64, len(still)), generator=generator).to(dtype)
    v = torch.randint(0, 2, (5, 64, 16), generator=generator).to(dtype)
    scores = torch.einsum("hd,khd->hk", qk[-1, 0].double(), qk[:, 1].double()) / 4
    exact = torch.einsum("hk,khd->hd", scores.softmax(-1), v.double())
    error = (read_alone(qk, v, own=2).double() - exact).abs()
    assert (error <= torch.finfo(dtype).eps / 2 * exact + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_scores_there_are_neither_overflow_nor_vanish(dtype: torch.dtype, sign: int) -> None:
    """Queries and keys of head_dim 128 along one line score +-sqrt(128); exp of that is 82,000, and float16 ends at
    65,504. In 300 keys, whose weights are all the same."""
    n, head_dim = 300, 128
    qk = torch.zeros(n, 2, HEADS, head_dim)
    still = [*range(32, 64), *range(96, 128)]  # pairs that positions do not turn
    qk[..., still] = math.sqrt(2)
    qk[:, 1] *= sign
    v = torch.randint(-8, 9, (n, HEADS, head_dim), generator=torch.Generator().manual_seed(1))
    read = read_alone(qk.to(dtype), v.to(dtype), own=40)
    torch.testing.assert_close(read.double(), v.double().mean(0), atol=1e-6, rtol=torch.finfo(dtype).eps)


# Single rows in compiled code


@contextmanager
def compiled() -> Iterator[None]:
    """Where chunks of one token take the compiled way, if it is there: float32, without gradients."""
    if not native.available():
        pytest.skip("the C files could not be compiled")
    with torch.inference_mode():
        yield


@SOME
@given(worlds(most=6), st.data())
def test_compiled_rows_among_any_chunks_equal_the_naive_softmax(made: World, data: st.DataObject) -> None:
    with compiled():
        ours = compute(made, drawn(data), dtype=torch.float32)
        decoded = compute(made, one_token_each, dtype=torch.float32)
    reference = expected(made)
    assert_equal(ours, reference, 2e-5)
    assert_equal(decoded, reference, 2e-5)


@pytest.mark.parametrize("head_dim", [4, 12, 16, 20, 64, 96, 128, 512])
@pytest.mark.parametrize("own", [1, 16, 17, 40])
def test_compiled_rows_read_heads_of_any_width(head_dim: int, own: int) -> None:
    generator = torch.Generator().manual_seed(head_dim + own)
    qk = torch.randn(own + 33, 2, 3, head_dim, generator=generator)
    qk = qk / qk.square().mean(-1, keepdim=True).sqrt()
    v = torch.randn(own + 33, 3, head_dim, generator=generator)
    with compiled():
        ours = read_alone(qk, v, own)
    with_torch = read_alone(qk, v, own)  # gradients are on
    torch.testing.assert_close(ours, with_torch, atol=5e-6, rtol=1e-4)


@SOME
@given(worlds(most=6), st.data())
def test_rows_apart_are_the_same_bits_in_any_chunks(made: World, data: st.DataObject) -> None:
    with compiled(), batch_invariant():
        reference = compute(made, whole, dtype=torch.float32)
        ours = compute(made, drawn(data), dtype=torch.float32)
    assert all(torch.equal(ours[d], reference[d]) for d in made.documents)
    assert_equal(ours, expected(made), 2e-5)


def test_compiled_rows_do_not_depend_on_their_neighbours_or_the_threads() -> None:
    made = fan()
    *_, near, reader = made.documents
    threads = torch.get_num_threads()
    results = []
    try:
        for count, chunks in ((1, [Chunk(reader, 5, 6)]), (3, [Chunk(near, 0, 1), Chunk(reader, 5, 6)])):
            torch.set_num_threads(count)
            with compiled():
                store = store_for(made, torch.float32)
                for document in made.documents[:-1]:
                    run(store, made, [Chunk(document, 0, len(document.tokens))])
                run(store, made, [Chunk(reader, 0, 5)])
                results.append(run(store, made, chunks)[-1])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


# Errors


def test_a_view_longer_than_the_rotary_tables_is_an_error() -> None:
    made = chain()
    store = store_for(made)
    c = made.documents[2]
    # Token 7 reads a and b, 11 tokens, at distances of up to 7 + 5.
    PlainAttention(store, Rotary(HEAD_DIM, 13), [Chunk(c, 7, 8)])
    with pytest.raises(IndexError, match="index 12 is out of bounds"):
        PlainAttention(store, Rotary(HEAD_DIM, 12), [Chunk(c, 7, 8)])


def test_a_document_that_is_not_resident_cannot_be_read() -> None:
    made = chain()
    store = store_for(made)
    a, b, _ = made.documents
    store.release(a)
    with pytest.raises(KeyError):
        PlainAttention(store, Rotary(HEAD_DIM, 64), [Chunk(b, 0, 5)])
