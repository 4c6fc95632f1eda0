"""Attention in compiled code over documents of any length, in any chunks: what `PlainAttention` computes in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processors import PROCESSORS, compiled_for
from torch import Tensor

from ds2ds.attention.compiled import CompiledAttention, cpu_attention
from ds2ds.attention.plain import PlainAttention
from ds2ds.attention.rotary import Rotary
from ds2ds.attention.row_reads import TOGETHER
from ds2ds.attention.view import Chunk
from ds2ds.cache.arena import KVArena
from ds2ds.cache.document_store import DocumentStore
from ds2ds.documents.document import Document, DocumentGrant
from ds2ds.native import operations as native
from ds2ds.native.invariance import batch_invariant
from ds2ds.native.operations import RowReads

pytestmark = pytest.mark.skipif(not native.available(), reason="there is no C compiler")

POSITIONS = 2048
SOME = settings(max_examples=40, deadline=None, derandomize=True)
# Around vectors of 16, scores of 48 keys and panels of 64 rows.
LENGTHS = st.one_of(st.integers(1, 200), st.sampled_from([4, 5, 15, 16, 17, 47, 48, 49, 63, 64, 65, 96, 97, 128, 129]))


@dataclass(frozen=True)
class World:
    """Documents, each granted only earlier ones; of each qk [n, 2, heads, head_dim] and v [n, heads, head_dim]."""

    documents: list[Document]
    qk: dict[Document, Tensor]
    v: dict[Document, Tensor]


def world(documents: list[Document], heads: int, head_dim: int, seed: int) -> World:
    generator = torch.Generator().manual_seed(seed)
    qk, v = {}, {}
    for document in documents:
        rows = torch.randn(len(document.tokens), 3, heads, head_dim, generator=generator)
        v[document], both = rows[:, 2], rows[:, :2]
        qk[document] = both / both.square().mean(-1, keepdim=True).sqrt()
    return World(documents, qk, v)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    documents: list[Document] = []
    for index in range(draw(st.integers(1, 4))):
        document = Document(f"d{index}", [0] * draw(LENGTHS))
        length = len(document.tokens)
        for position in sorted(draw(st.lists(st.integers(0, length), max_size=4 if documents else 0))):
            end = draw(st.none() | st.integers(position, length + 1))
            document.grants.append(DocumentGrant(position, draw(st.sampled_from(documents)), end))
        documents.append(document)
    head_dim = draw(st.sampled_from([4, 12, 16, 20, 64, 72, 128]))
    return world(documents, draw(st.integers(1, 3)), head_dim, draw(st.integers(0, 99)))


class Computed:
    """An arena in which documents are computed, chunk by chunk; what has not been written is NaN."""

    def __init__(self, made: World, dtype: torch.dtype = torch.float32) -> None:
        self.made, self.dtype = made, dtype
        _, _, heads, dim = made.qk[made.documents[0]].shape
        self.store = DocumentStore(KVArena(1, heads, dim, 2048, 4, dtype), share=False)
        self.store.arena.data.fill_(torch.nan)
        self.rotary = Rotary(dim, POSITIONS)
        for document in made.documents:
            self.store.reserve(document, set)

    def batch(self, chunks: Sequence[Chunk]) -> Tensor:
        """What the chunks' rows read, [rows, heads, head_dim]."""
        qk, v = (
            torch.cat([rows[c.document][c.start : c.stop] for c in chunks]).to(self.dtype)
            for rows in (self.made.qk, self.made.v)
        )
        attend = cpu_attention(self.store, self.rotary, chunks)
        assert isinstance(attend, CompiledAttention if self.dtype == torch.float32 else PlainAttention)
        read = attend(0, qk, v)
        for chunk in chunks:
            self.store.advance(chunk.document, chunk.stop)
        return read


@pytest.fixture(autouse=True)
def as_in_a_step() -> Iterator[None]:
    threads = torch.get_num_threads()
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def whole(made: World, dtype: torch.dtype) -> dict[Document, Tensor]:
    """Each document in one chunk."""
    computed = Computed(made, dtype)
    return {d: computed.batch([Chunk(d, 0, len(d.tokens))]) for d in made.documents}


def in_chunks(made: World, data: st.DataObject) -> dict[Document, Tensor]:
    """Several documents at a time, each for any number of tokens."""
    computed = Computed(made)
    done: dict[Document, list[Tensor]] = {document: [] for document in made.documents}
    while unfinished := [d for d in made.documents if computed.store.computed(d) < len(d.tokens)]:
        batch = []
        for document in unfinished:
            start, length = computed.store.computed(document), len(document.tokens)
            if all(computed.store.computed(g.target) == len(g.target.tokens) for g in document.grants):
                batch.append(
                    Chunk(document, start, data.draw(st.sampled_from([start + 1, length, (start + length + 1) // 2])))
                )
        parts = computed.batch(batch).split([len(chunk) for chunk in batch])
        for chunk, part in zip(batch, parts, strict=True):
            done[chunk.document].append(part)
    return {document: torch.cat(parts) for document, parts in done.items()}


@SOME
@given(worlds(), st.integers(1, 3), st.data())
def test_it_reads_what_plain_attention_does(made: World, threads: int, data: st.DataObject) -> None:
    torch.set_num_threads(threads)
    expected = whole(made, torch.float64)
    for ours in (whole(made, torch.float32), in_chunks(made, data)):
        for document in made.documents:
            torch.testing.assert_close(ours[document].double(), expected[document], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_reaches_no_row_that_does_not_read_it(value: float) -> None:
    a, b = Document("a", [0] * 20), Document("b", [0] * 150)
    b.grants = [DocumentGrant(30, a, 40)]
    made = world([a, b], 2, 64, 0)
    expected = whole(made, torch.float32)
    made.v[a][10, 0, 3], made.v[b][100, 1, 5] = value, value
    spoiled = whole(made, torch.float32)
    for document, head, where in ((a, 0, range(10, 20)), (b, 0, range(30, 40)), (b, 1, range(100, 150))):
        reading = torch.zeros(len(document.tokens), dtype=torch.bool)
        reading[list(where)] = True
        assert not spoiled[document][reading, head].isfinite().all(-1).any()
        assert torch.equal(spoiled[document][~reading, head], expected[document][~reading, head])


@pytest.mark.parametrize("processor", PROCESSORS)
def test_it_does_on_other_processors(processor: str) -> None:
    for head_dim, lengths in ((20, (17, 150)), (64, (100, 131)), (128, (1, 70))):
        a, b = (Document(str(n), [0] * n) for n in lengths)
        b.grants = [DocumentGrant(60, a)]
        made = world([a, b], 2, head_dim, 0)
        expected = whole(made, torch.float64)
        with compiled_for(processor):
            ours = whole(made, torch.float32)
        for document in made.documents:
            torch.testing.assert_close(ours[document].double(), expected[document], atol=2e-5, rtol=2e-5)


@SOME
@given(worlds(), st.data())
def test_rows_apart_have_the_same_bits_however_they_are_cut(made: World, data: st.DataObject) -> None:
    with batch_invariant():
        ours, others = in_chunks(made, data), whole(made, torch.float32)
    assert all(torch.equal(ours[document], others[document]) for document in made.documents)


def test_a_chunks_bits_depend_neither_on_other_chunks_nor_on_threads() -> None:
    a, b, c = (Document(title, [0] * n) for title, n in (("a", 90), ("b", 150), ("c", 3)))
    b.grants = [DocumentGrant(70, a)]
    made = world([a, b, c], 2, 64, 0)
    seen = []
    for threads, others in ((1, []), (2, [Chunk(c, 0, 3)]), (5, [Chunk(c, 0, 1)])):
        torch.set_num_threads(threads)
        computed = Computed(made)
        computed.batch([Chunk(a, 0, 90)])
        seen.append(computed.batch([*others, Chunk(b, 0, 150)])[-150:])
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


def test_rows_and_values_may_lie_apart_in_memory() -> None:
    document = Document("d", [0] * 70)
    made = world([document], 3, 16, 1)
    rows = torch.cat([made.qk[document], made.v[document][:, None]], dim=1)  # as the model's product has them
    results = []
    for qk, v in ((rows[:, :2], rows[:, 2]), (rows[:, :2].clone(), rows[:, 2].clone())):
        computed = Computed(made)
        attend = cpu_attention(computed.store, computed.rotary, [Chunk(document, 0, 70)])
        results.append(attend(0, qk, v))
    assert torch.equal(*results)


def test_a_read_that_grows_may_be_cut_in_two() -> None:
    rotary, generator = Rotary(16, 64), torch.Generator().manual_seed(0)
    qk, v = torch.randn(30, 2, 1, 16, generator=generator), torch.randn(30, 1, 16, generator=generator)

    def read(*reads: list[int]) -> Tensor:
        chunks = torch.tensor([[0, 30, 5, 0, len(reads)]])
        table = RowReads(chunks, torch.tensor(reads), rotary.cos, rotary.sin)
        return native.attend_rows(qk, v, table, torch.zeros(2, 1, 40, 16), 0.25)

    torch.testing.assert_close(read([0, 12, 5, 6, 1, 3], [12, 18, 5, 18, 1, 15]), read([0, 30, 5, 6, 1, 3]))


def test_the_largest_scores_there_are_neither_overflow_nor_vanish() -> None:
    """Of head_dim 512 they are +-22.6: exp of that is 6.6e9, or 1.5e-10."""
    n = TOGETHER + 1
    document = Document("d", [0] * n)
    still = [*range(128, 256), *range(384, 512)]  # pairs that positions do not turn
    v = torch.randint(-8, 9, (n, 1, 512), generator=torch.Generator().manual_seed(1)).float()
    for sign in (1, -1):
        qk = torch.zeros(n, 2, 1, 512)
        qk[..., still] = 2**0.5
        qk[:, 1] *= sign
        computed = Computed(World([document], {document: qk}, {document: v}))
        read = computed.batch([Chunk(document, 0, n)])
        mean = v.cumsum(0) / torch.arange(1, n + 1)[:, None, None]
        torch.testing.assert_close(read, mean, atol=1e-5, rtol=1e-5)


def test_a_position_beyond_the_rotary_table_is_an_error() -> None:
    a, b = Document("a", [0] * 11), Document("b", [0] * 8)
    b.grants = [DocumentGrant(1, a)]
    made = world([a, b], 1, 8, 0)
    for positions, last in ((19, None), (18, 18)):
        computed = Computed(made)
        computed.batch([Chunk(a, 0, 11)])
        computed.rotary = Rotary(8, positions)
        if last is None:
            computed.batch([Chunk(b, 0, 8)])
        else:
            with pytest.raises(IndexError, match=f"position {last} is beyond the rotary table's {positions}"):
                computed.batch([Chunk(b, 0, 8)])


def test_so_is_one_of_a_document_that_reads_no_other() -> None:
    a = Document("a", [0] * 11)
    computed = Computed(world([a], 1, 8, 0))
    computed.rotary = Rotary(8, 10)
    computed.batch([Chunk(a, 0, 10)])
    with pytest.raises(IndexError, match="position 10 is beyond the rotary table's 10"):
        computed.batch([Chunk(a, 10, 11)])


def test_a_document_that_is_not_resident_cannot_be_read() -> None:
    a, b = Document("a", [0] * 3), Document("b", [0] * 8)
    b.grants = [DocumentGrant(1, a)]
    computed = Computed(world([a, b], 1, 8, 0))
    computed.store.release(a)
    with pytest.raises(KeyError):
        computed.batch([Chunk(b, 0, 8)])
