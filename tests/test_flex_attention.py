"""The FlexAttention path against a softmax over explicitly gathered keys (S2, S3), and against the plain path."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from ds2ds.attention.attend import Attend, AttentionPath
from ds2ds.attention.block_tables import BlockTable, Bucket
from ds2ds.attention.flex import FlexPath
from ds2ds.attention.flex_kernel import Kind, check_gpu, read_rows
from ds2ds.attention.plain import PlainAttention
from ds2ds.attention.rotary import Rotary
from ds2ds.attention.view import Chunk
from ds2ds.cache.arena import KVArena
from ds2ds.cache.document_store import DocumentStore
from ds2ds.documents.document import Document, DocumentGrant

HEADS, HEAD_DIM, BLOCK = 2, 16, 16
FREQUENCIES = torch.tensor([1024.0 ** (-i / 3) for i in range(4)] + [0.0] * 4, dtype=torch.float64)
POSITIONS = 512
SOME = settings(max_examples=20, deadline=None, derandomize=True)
TABLES = 1e-5  # what the rotary tables' float32 can make of positions up to 100
SMALL = Kind(3, 8, 8, "TRITON")  # tiles of 3 queries, so that chunks here have several, and several launches
Doc = Document
Tensors = dict[Doc, Tensor]


@pytest.fixture(autouse=True, scope="module")
def small_steps() -> Iterator[None]:
    """Eager FlexAttention without its detour over Dynamo, which would trace it anew for every call; on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class World:
    """Documents, each granted only earlier ones, and for each the unrotated q, k and v [layers, n, heads, head_dim]."""

    documents: list[Doc]
    q: Tensors
    k: Tensors
    v: Tensors


def world(documents: list[Doc], seed: int, layers: int = 1, heads: int = HEADS, head_dim: int = HEAD_DIM) -> World:
    """Random float64 q, k and v; q and k of unit mean square, as the model norms them."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensors:
        shapes = {d: (layers, len(d.tokens), heads, head_dim) for d in documents}
        return {d: torch.randn(*shape, dtype=torch.float64, generator=generator) for d, shape in shapes.items()}

    def normed(rows: Tensors) -> Tensors:
        return {d: x / x.square().mean(-1, keepdim=True).sqrt() for d, x in rows.items()}

    return World(documents, normed(draw()), normed(draw()), draw())


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Up to four documents, some longer than a block; grants with ends, of several targets, or of one again."""
    documents: list[Doc] = []
    for index in range(draw(st.integers(1, 4))):
        document = Doc(f"d{index}", [0] * draw(st.integers(1, 9) | st.just(18)))
        length = len(document.tokens)
        for position in sorted(draw(st.lists(st.integers(0, length), max_size=4 if documents else 0))):
            end = draw(st.none() | st.integers(position, length + 1))
            document.grants.append(DocumentGrant(position, draw(st.sampled_from(documents)), end))
        documents.append(document)
    return world(documents, draw(st.integers(0, 99)))


def naive(made: World, document: Doc) -> Tensor:
    """float64 [layers, n, heads, head_dim]: for each token every visible key with its distance, and one softmax."""
    half = HEAD_DIM // 2

    def pairs(x: Tensor) -> Tensor:
        return torch.complex(x[..., :half], x[..., half:])

    tokens = []
    for token in range(len(document.tokens)):
        visible = [(document, torch.arange(token + 1), token)]
        delta = 0
        for grant in document.grants:
            if grant.position <= token and (grant.end is None or token < grant.end):
                delta += len(grant.target.tokens)
                visible.append((grant.target, torch.arange(len(grant.target.tokens)), token + delta))
        keys = torch.cat([pairs(made.k[source][:, at]) for source, at, _ in visible], dim=1)
        values = torch.cat([made.v[source][:, at] for source, at, _ in visible], dim=1)
        distance = torch.cat([query - at for _, at, query in visible])[:, None, None]
        turned = pairs(made.q[document][:, None, token]) * torch.polar(torch.ones(()).double(), -distance * FREQUENCIES)
        scores = (turned * keys.conj()).real.sum(-1) / math.sqrt(HEAD_DIM)
        tokens.append((scores.softmax(1)[..., None] * values).sum(1))
    return torch.stack(tokens, dim=1)


def store_for(
    made: World, dtype: torch.dtype = torch.float64, block: int = BLOCK, device: str = "cpu"
) -> DocumentStore:
    """All documents resident, each behind one that is gone, so that there is something to compact.

    Slots that were not written hold NaN for keys and large values: masked keys may be NaN, masked values count 0 times.
    """
    layers, _, heads, head_dim = made.q[made.documents[0]].shape
    need = sum(-(-len(d.tokens) // block) + 1 for d in made.documents) * block
    store = DocumentStore(KVArena(layers, heads, head_dim, need, block, dtype, device), share=False)
    store.arena.data[:, 0] = torch.nan
    store.arena.data[:, 1] = 1e6
    for document in made.documents:
        gone = Doc("gone", [0])
        store.reserve(gone, set)
        store.reserve(document, set)
        store.release(gone)
    return store


def run(store: DocumentStore, made: World, attend: Attend, chunks: Sequence[Chunk]) -> list[Tensor]:
    """One flat batch: for each chunk what its rows read, [layers, rows, heads, head_dim], on the CPU."""
    data = store.arena.data
    layers = []
    for layer in range(data.shape[0]):

        def rows(of: Tensors, layer: int = layer) -> Tensor:
            return torch.cat([of[c.document][layer, c.start : c.stop] for c in chunks]).to(data)

        v = rows(made.v)
        read = attend(layer, torch.stack([rows(made.q), rows(made.k)], dim=1), v)
        assert (read.shape, read.dtype) == (v.shape, v.dtype)
        layers.append(read.cpu())
    for chunk in chunks:
        store.advance(chunk.document, chunk.stop)
    return list(torch.stack(layers).split([len(chunk) for chunk in chunks], dim=1))


Pick = Callable[[list[Chunk]], list[Chunk]]


def compute(
    store: DocumentStore, made: World, prepare: AttentionPath, pick: Pick, between: Callable[[], object] = lambda: None
) -> Tensors:
    """Compute all documents in batches: `pick` chooses from the chunks that could be computed next, one a document."""
    done: dict[Doc, list[Tensor]] = {d: [] for d in made.documents}
    while unfinished := [d for d in made.documents if store.computed(d) < len(d.tokens)]:
        ready = [
            Chunk(d, store.computed(d), len(d.tokens))
            for d in unfinished
            if all(store.computed(grant.target) == len(grant.target.tokens) for grant in d.grants)
        ]
        batch = pick(ready)
        for chunk, read in zip(batch, run(store, made, prepare(batch), batch), strict=True):
            done[chunk.document].append(read)
        between()
    return {d: torch.cat(parts, dim=1) for d, parts in done.items()}


def whole(ready: list[Chunk]) -> list[Chunk]:
    """One document at a time, all of it."""
    return ready[:1]


def one_token_each(ready: list[Chunk]) -> list[Chunk]:
    """Decoding: a row of every document that can go on."""
    return [Chunk(chunk.document, chunk.start, chunk.start + 1) for chunk in ready]


def at_random(seed: int) -> Pick:
    """Some of the documents, in any order, each for any number of tokens, often one."""
    random = Random(seed)

    def pick(ready: list[Chunk]) -> list[Chunk]:
        some = random.sample(ready, random.randint(1, len(ready)))
        return [
            Chunk(c.document, c.start, random.choice([c.start + 1, random.randint(c.start + 1, c.stop)])) for c in some
        ]

    return pick


def flex(store: DocumentStore, **settings: object) -> FlexPath:
    head_dim, device = store.arena.data.shape[-1], store.arena.data.device
    return FlexPath(store, Rotary(head_dim, POSITIONS, device), **settings)  # type: ignore[arg-type]


def plain(store: DocumentStore) -> AttentionPath:
    head_dim, device = store.arena.data.shape[-1], store.arena.data.device
    rotary = Rotary(head_dim, POSITIONS, device)
    return lambda chunks: PlainAttention(store, rotary, chunks)


def assert_equal(ours: Tensors, theirs: Tensors, atol: float) -> None:
    for document, values in theirs.items():
        torch.testing.assert_close(ours[document].double(), values.double(), atol=atol, rtol=0)


@SOME
@given(worlds(), st.integers(0, 99), st.sampled_from([16, 64]))
def test_any_chunks_in_any_batches_equal_the_naive_softmax(made: World, seed: int, block: int) -> None:
    store = store_for(made, block=block)
    ours = compute(store, made, flex(store, prefill=SMALL), at_random(seed))
    assert_equal(ours, {d: naive(made, d) for d in made.documents}, TABLES)


@SOME
@given(worlds(), st.integers(0, 99))
def test_it_equals_the_plain_path(made: World, seed: int) -> None:
    """Tightly, in float64: both have the same float32 tables, and the softmax scale is a power of two."""
    reference = store_for(made)
    expected = compute(reference, made, plain(reference), whole)
    store = store_for(made)
    assert_equal(compute(store, made, flex(store, prefill=SMALL), at_random(seed)), expected, 1e-12)
    for d in made.documents:
        ours, theirs = (s.arena.data[:, :, :, s.start(d) : s.start(d) + len(d.tokens)] for s in (store, reference))
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@settings(SOME, max_examples=8)
@given(worlds(), st.integers(0, 99))
def test_compaction_between_steps_does_not_change_results(made: World, seed: int) -> None:
    still, moving = store_for(made), store_for(made)
    expected = compute(still, made, flex(still, prefill=SMALL), at_random(seed))
    ours = compute(moving, made, flex(moving, prefill=SMALL), at_random(seed), moving.arena.compact)
    assert_equal(ours, expected, 1e-12)


def family() -> World:
    """b reads a; c reads a for a while, then b, then a again; d, of 140 tokens, reads nothing. Two layers."""
    a, b, c, d = (Doc(title, [0] * n) for title, n in (("a", 20), ("b", 5), ("c", 40), ("d", 140)))
    b.grants = [DocumentGrant(2, a)]
    c.grants = [DocumentGrant(1, a, 25), DocumentGrant(3, b), DocumentGrant(30, a)]
    return world([a, b, c, d], 7, layers=2)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, TABLES), (torch.float32, 2e-5), (torch.bfloat16, 5e-2)])
def test_tiles_of_128_and_decoding_in_one_batch(dtype: torch.dtype, atol: float) -> None:
    made = family()
    store = store_for(made, dtype)
    path = flex(store)
    a, b, c, d = made.documents
    expected = {document: naive(made, document) for document in made.documents}
    for batch in (
        [Chunk(d, 0, 132), Chunk(a, 0, 20)],
        [Chunk(d, 132, 133), Chunk(b, 0, 4)],
        [Chunk(b, 4, 5), Chunk(d, 133, 134), Chunk(c, 0, 24)],
        [Chunk(d, 134, 140), Chunk(c, 24, 25)],
        [Chunk(c, 25, 40)],
    ):
        for chunk, read in zip(batch, run(store, made, path(batch), batch), strict=True):
            theirs = expected[chunk.document][:, chunk.start : chunk.stop]
            torch.testing.assert_close(read.double(), theirs, atol=atol, rtol=0)


def test_a_target_in_the_same_batch_is_read() -> None:
    """Each layer's keys are all written before any row of it reads."""
    made = family()
    store = store_for(made)
    batch = [Chunk(document, 0, len(document.tokens)) for document in reversed(made.documents)]
    reads = run(store, made, flex(store)(batch), batch)
    assert_equal(
        {c.document: r for c, r in zip(batch, reads, strict=True)}, {d: naive(made, d) for d in made.documents}, TABLES
    )


def test_a_view_of_more_documents_than_a_bucket_has_room_for() -> None:
    """One tile has more rows than a launch, and more than FAN."""
    targets = [Doc(f"t{i}", [0] * 2) for i in range(11)]
    reader = Doc("reader", [0] * 7, grants=[DocumentGrant(i % 3, target) for i, target in enumerate(targets)])
    reader.grants.sort(key=lambda grant: grant.position)
    made = world([*targets, reader], 3)
    store = store_for(made)
    assert_equal(compute(store, made, flex(store, prefill=SMALL), whole), {reader: naive(made, reader)}, TABLES)


def test_a_row_does_not_depend_on_the_rest_of_its_batch() -> None:
    """To the bit, where the bucket is the same."""
    made = family()
    a, d = made.documents[0], made.documents[3]
    reads = []
    for batch in ([Chunk(a, 0, 20)], [Chunk(d, 0, 20), Chunk(a, 0, 20)]):
        store = store_for(made)
        reads.append(run(store, made, flex(store)(batch), batch)[-1])
    assert torch.equal(*reads)


def test_a_document_whose_rows_are_nan_reaches_no_other() -> None:
    """Not even the one that has its slots afterwards, and leaves the last of them unwritten."""
    made = family()
    a, b, _, d = made.documents
    store = store_for(made)
    for document in made.documents:
        store.release(document)
    store.reserve(d, set)
    broken = World([d], {d: made.q[d]}, {d: made.k[d] * torch.nan}, {d: made.v[d] * torch.nan})
    path = flex(store)
    batch = [Chunk(d, 0, 140)]
    assert run(store, broken, path(batch), batch)[0].isnan().all()
    store.release(d)
    for document in (a, b):
        store.reserve(document, set)
        assert store.start(document) < 140
        batch = [Chunk(document, 0, len(document.tokens))]
        torch.testing.assert_close(run(store, made, path(batch), batch)[0], naive(made, document), atol=TABLES, rtol=0)


def test_values_that_were_never_written_are_made_finite_and_others_left_alone() -> None:
    store = store_for(family())
    store.arena.data[:] = torch.nan
    store.arena.data[0, 1, 0, 3] = 7.0
    flex(store)
    assert store.arena.data[:, 1].isfinite().all()
    assert (store.arena.data[0, 1, 0, 3] == 7.0).all()


def few() -> World:
    """b reads a, then a again; c reads both. Two layers."""
    a, b, c = (Doc(title, [0] * n) for title, n in (("a", 18), ("b", 5), ("c", 7)))
    b.grants = [DocumentGrant(2, a, 3), DocumentGrant(4, a)]
    c.grants = [DocumentGrant(1, a, 5), DocumentGrant(3, b)]
    return world([a, b, c], 5, layers=2)


def test_buckets_compile_once_and_views_never() -> None:
    """Whatever documents are read, in every layer, after a compaction, and from bucket to bucket and back."""
    counter = CompileCounter()
    made = few()
    store = store_for(made, torch.float32)
    path = flex(store, compiler=counter, prefill=Kind(8, 8, 16, "TRITON"))
    expected = {document: naive(made, document) for document in made.documents}
    with torch._dynamo.config.patch(error_on_recompile=True):
        path.warm_up(decode_rows=8, prefill_rows=16)
        assert counter.frame_count == 4  # 4 and 8 rows to decode, 8 and 16 to prefill
        for pick in (whole, one_token_each, at_random(1), at_random(2)):
            for document in made.documents:
                store.release(document)
            for document in reversed(made.documents):
                store.reserve(document, set)
            assert_equal(compute(store, made, path, pick, store.arena.compact), expected, 2e-5)
    assert counter.frame_count == 4


@pytest.mark.parametrize(
    ("tokens", "launched"),
    [
        (24, [8]),  # tiles of 3 queries, a row each: as many as one launch takes
        (25, [8, 1]),
        (48, [8, 8]),
    ],
)
def test_a_launch_takes_as_many_rows_as_its_kind_and_no_more(tokens: int, launched: list[int]) -> None:
    made = world([Doc("long", [0] * tokens)], 0)
    attend = flex(store_for(made), prefill=SMALL)([Chunk(made.documents[0], 0, tokens)])
    assert [int(launch.table.count.sum()) for launch in attend.launches] == launched


def test_a_tile_of_more_rows_than_a_launch_takes_has_one_of_its_own() -> None:
    targets = [Doc(f"t{index}", [0]) for index in range(9)]
    reader = Doc("reader", [0] * 6)
    reader.grants = [DocumentGrant(3, target) for target in targets]
    made = world([*targets, reader], 0)
    path = flex(store_for(made), prefill=SMALL)
    for first, launched in ((0, [1, 10]), (3, [10])):
        attend = path([Chunk(reader, first, 6)])
        assert [int(launch.table.count.sum()) for launch in attend.launches] == launched


def test_a_step_ends_with_the_next() -> None:
    made = family()
    store = store_for(made)
    path = flex(store)
    batch = [Chunk(made.documents[0], 0, 2)]
    first = path(batch)
    path(batch)
    with pytest.raises(RuntimeError, match="attention of a step that has ended"):
        run(store, made, first, batch)


def test_a_view_longer_than_the_rotary_tables_is_an_error() -> None:
    made = family()
    store = store_for(made)
    c = made.documents[2]
    # Token 35 reads b and a, 25 tokens, at distances of up to 35 + 25.
    FlexPath(store, Rotary(HEAD_DIM, 61))([Chunk(c, 35, 36)])
    with pytest.raises(ValueError, match="positions 60 to 61 exceed the table's 60"):
        FlexPath(store, Rotary(HEAD_DIM, 60))([Chunk(c, 35, 36)])


def test_the_rotary_tables_may_end_with_the_view() -> None:
    """A tile's unused queries would stand beyond it."""
    made = family()
    store = store_for(made)
    a = made.documents[0]
    batch = [Chunk(a, 0, 20)]
    (read,) = run(store, made, FlexPath(store, Rotary(HEAD_DIM, 20))(batch), batch)
    torch.testing.assert_close(read, naive(made, a), atol=TABLES, rtol=0)


def test_a_document_of_the_rotary_tables_length_ends_in_a_block_of_its_own() -> None:
    made = world([Doc("a", [0] * (2 * BLOCK + 1))], 0)
    document = made.documents[0]
    store = store_for(made)
    path = FlexPath(store, Rotary(HEAD_DIM, len(document.tokens)))
    assert_equal(compute(store, made, path, whole), {document: naive(made, document)}, TABLES)


def test_buckets_are_powers_of_two() -> None:
    """Each is compiled once: were they any numbers, any view would be compiled for."""
    sizes = [SMALL.bucket(rows, fan) for rows, fan in ((1, 1), (8, 8), (9, 9), (17, 16))]
    assert sizes == [Bucket(3, 8, 8), Bucket(3, 8, 8), Bucket(3, 16, 16), Bucket(3, 32, 16)]


def test_tiles_that_see_nothing_read_zeros() -> None:
    store = store_for(family())
    table = BlockTable(Bucket(1, 4, 8), 2, store.arena.slots, BLOCK, torch.device("cpu"))
    queries = torch.ones(4, 1, HEADS, HEAD_DIM, dtype=torch.float64)
    rotary = Rotary(HEAD_DIM, 8)
    rows = (table.mask, table.position, table.tile, table.first, table.count)
    read = read_rows(queries, *store.arena.data[0], *rows, rotary.cos, rotary.sin, fan=8, options={})
    assert torch.equal(read, torch.zeros_like(queries))


def test_a_document_that_is_not_resident_cannot_be_read() -> None:
    made = family()
    store = store_for(made)
    a, b, *_ = made.documents
    store.release(a)
    with pytest.raises(KeyError):
        flex(store)([Chunk(b, 0, 5)])


def test_what_the_gpu_kernels_cannot_do_is_an_error() -> None:
    def check(head_dim: int = 16, block: int = 16, dtype: torch.dtype = torch.float32, slots: int = 1024) -> None:
        check_gpu(torch.empty(2, 2, 4, slots, head_dim, dtype=dtype, device="meta"), block)

    check(dtype=torch.float16)
    with pytest.raises(ValueError, match="a head_dim of at least 16, got 8"):
        check(head_dim=8)
    for block in (8, 48):
        with pytest.raises(ValueError, match=f"a block of 16 slots or a higher power of two, got {block}"):
            check(block=block)
    with pytest.raises(ValueError, match=r"needs float32, bfloat16 or float16, got torch\.float64"):
        check(dtype=torch.float64)
    # 2^25 slots of 4 heads of 16 dimensions are 2^31 numbers, one more than 31 bits count.
    check(slots=2**25 - 128, block=128)
    with pytest.raises(ValueError, match="at most 33,554,304 slots of such keys, got an arena of 33,554,432"):
        check(slots=2**25, block=128)
