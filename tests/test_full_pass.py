"""The full pass for FlexAttention: block masks held to the dense definitions, masks kept, attention through both."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from ds2ds.attention import full_pass, masks
from ds2ds.attention.block_masks import block_mask, padded_length
from ds2ds.attention.granted import granted_areas
from ds2ds.attention.masks import MASKS
from ds2ds.attention.token_masks import TOKEN_MASKS
from ds2ds.documents.spans import DocSpan, SpanGrant
from ds2ds.model.ds2ds_model import DS2DSModel

CPU = torch.device("cpu")
NAMES = sorted(MASKS)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def spans_of(lengths: Sequence[int], grants: Sequence[Sequence[SpanGrant]] = ()) -> list[DocSpan]:
    spans, at = [], 0
    for index, length in enumerate(lengths):
        spans.append(DocSpan(f"d{index}", at, at + length, tuple(grants[index]) if grants else ()))
        at += length
    return spans


def random_spans(length: int, documents: int, grants: int, seed: int = 0) -> list[DocSpan]:
    chance = random.Random(seed)
    cuts = [0, *sorted(chance.sample(range(1, length), documents - 1)), length]
    lengths = [stop - start for start, stop in pairwise(cuts)]
    found: list[list[SpanGrant]] = [[] for _ in lengths]
    for _ in range(grants if documents > 1 else 0):
        reader, target = chance.sample(range(documents), 2)
        position = chance.randrange(lengths[reader] + 1)
        end = None if chance.random() < 0.6 else position + chance.randrange(lengths[reader] + 1)
        found[reader].append(SpanGrant(position, target, end))
    return spans_of(lengths, found)


@st.composite
def packed(draw: st.DrawFn) -> tuple[int, list[list[DocSpan]]]:
    """One or two rows of one length: some documents are empty, some pairs have several grants, in any order."""
    length = draw(st.integers(1, 150))
    rows = []
    for _ in range(draw(st.integers(1, 2))):
        cuts = [0, *sorted(draw(st.lists(st.integers(0, length), max_size=7))), length]
        lengths = [stop - start for start, stop in pairwise(cuts)]
        grants: list[list[SpanGrant]] = [[] for _ in lengths]
        for _ in range(draw(st.integers(0, 12)) if len(lengths) > 1 else 0):
            reader, step = draw(st.integers(0, len(lengths) - 1)), draw(st.integers(1, len(lengths) - 1))
            end = draw(st.none() | st.integers(0, lengths[reader] + 2))
            position = draw(st.integers(0, lengths[reader] + 1))
            grants[reader].append(SpanGrant(position, (reader + step) % len(lengths), end))
        rows.append(spans_of(lengths, grants))
    return length, rows


def dense(name: str, length: int, rows: Sequence[Sequence[DocSpan]]) -> Tensor:
    return torch.stack([MASKS[name](length, spans) for spans in rows])


def listed(counts: Tensor, indices: Tensor) -> Tensor:
    """bool [rows, query blocks, key blocks] of the blocks that a BlockMask lists."""
    flags = torch.zeros_like(indices, dtype=torch.bool)
    for place in torch.cartesian_prod(*(torch.arange(size) for size in counts.shape)).tolist():
        chosen = indices[(*place, slice(int(counts[tuple(place)])))]
        flags[(*place, chosen.long())] = True
        assert len(chosen.unique()) == len(chosen)
    return flags[:, 0]


def pairs(mask: BlockMask, batch: int) -> Tensor:
    """bool [batch, padded, padded]: what the mask_mod alone says."""
    tokens = torch.arange(mask.seq_lengths[0])
    rows = torch.arange(batch)[:, None, None]
    visible = mask.mask_mod(rows, torch.tensor(0), tokens[:, None], tokens[None, :])
    return visible.expand(batch, len(tokens), len(tokens))


# Tables.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("block", [1, 16, 48, 128])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(sequence=packed())
def test_blocks_and_token_mask_are_the_dense_definition(
    name: str, block: int, sequence: tuple[int, list[list[DocSpan]]]
) -> None:
    length, rows = sequence
    mask = block_mask(name, length, rows, CPU, block)
    padded, blocks = mask.seq_lengths[0], mask.seq_lengths[0] // block
    assert mask.shape == (len(rows), 1, padded, padded)
    expected = dense(name, length, rows)
    visible = pairs(mask, len(rows))
    assert torch.equal(visible[:, :length, :length], expected)

    some, every = listed(mask.kv_num_blocks, mask.kv_indices), listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert not (some & every).any()
    grow = torch.ones(block, block, dtype=torch.bool)
    computed = torch.kron(some, grow) & visible | torch.kron(every, grow)
    assert torch.equal(computed[:, :length, :length], expected)
    # No key of padding is read; a block is listed only where a pair is visible, and as full where all pairs are.
    assert not computed[:, :length, length:].any()
    whole = torch.zeros(len(rows), padded, padded, dtype=torch.bool)
    whole[:, :length, :length] = expected
    tiles = whole.unflatten(1, (blocks, block)).unflatten(3, (blocks, block))
    assert torch.equal(some | every, tiles.any(4).any(2))
    real = torch.arange(padded).view(blocks, block) < length
    assert torch.equal(every, (tiles | ~real[:, :, None, None]).all(4).all(2) & real.any(1)[:, None])


@pytest.mark.parametrize("name", NAMES)
def test_one_row_of_tables_serves_a_batch(name: str) -> None:
    spans = random_spans(90, 4, 9)
    visible = pairs(block_mask(name, 90, [spans], CPU, 32), 3)[:, :90, :90]
    assert torch.equal(visible, dense(name, 90, [spans] * 3))


def test_more_granted_documents_than_a_word_has_bits() -> None:
    lengths = [1 + index % 3 for index in range(70)] + [80]
    grants = [SpanGrant(index, index, None if index % 2 else index + 3) for index in range(70)]
    spans = spans_of(lengths, [()] * 70 + [grants])
    length = spans[-1].end
    mask = block_mask("cross_doc_link", length, [spans], CPU, 16)
    assert torch.equal(pairs(mask, 1)[:, :length, :length], dense("cross_doc_link", length, [spans]))


def test_areas_by_hand() -> None:
    grants = [
        *(SpanGrant(7, 0, 9), SpanGrant(1, 0, 3), SpanGrant(2, 0, 5), SpanGrant(5, 0, 5)),
        *(SpanGrant(6, 1), SpanGrant(11, 1), SpanGrant(0, 2), SpanGrant(9, 0, 99)),
    ]
    spans = spans_of([4, 3, 0, 10], [(), (), (), grants])
    assert sorted(granted_areas(spans).tolist()) == [[8, 12, 0, 4], [13, 17, 4, 7], [14, 17, 0, 4]]
    assert granted_areas(spans_of([4, 3])).shape == (0, 4)


@pytest.mark.parametrize(("length", "padded"), [(1, 128), (128, 128), (129, 256), (300, 512), (2048, 2048)])
def test_lengths_are_padded_to_powers_of_two(length: int, padded: int) -> None:
    assert padded_length(length) == padded
    assert padded_length(5, 3) == 6


def captured(mask: BlockMask) -> list[Tensor]:
    cells = mask.mask_mod.__closure__ or ()
    listings = [mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices]
    return [tensor for tensor in listings if tensor is not None] + [cell.cell_contents for cell in cells]


@pytest.mark.parametrize("name", NAMES)
def test_tables_keep_their_shapes_when_spans_change(name: str) -> None:
    # A shape or stride that changes is a kernel that is compiled anew; and so is whatever else a mask_mod captures.
    kinds = set()
    for length, documents, grants in [(257, 1, 0), (300, 5, 3), (500, 40, 90), (512, 100, 200)]:
        tensors = captured(block_mask(name, length, [random_spans(length, documents, grants)] * 2, CPU))
        assert all(isinstance(tensor, Tensor) and tensor.dtype == torch.int32 for tensor in tensors)
        kinds.add(tuple((tensor.shape, tensor.stride()) for tensor in tensors))
    assert len(kinds) == 1
    for shape, stride in kinds.pop():
        # The CUDA kernel finds rows by strides, also by those of a dimension of one.
        assert stride == torch.empty(shape).stride()


def test_a_long_sequence_of_thousands_of_grants() -> None:
    spans = random_spans(32_768, 800, 4000)
    mask = block_mask("cross_doc_link", 32_768, [spans], CPU)
    assert sum(tensor.nbytes for tensor in captured(mask)) < 4 * 2**20
    q, kv = torch.randint(0, 32_768, (2, 20_000), generator=torch.Generator().manual_seed(0))
    home = masks.document_ids(32_768, spans)
    held = {(index, grant.target): [] for index, span in enumerate(spans) for grant in span.grants}  # type: ignore[var-annotated]
    for index, span in enumerate(spans):
        for grant in span.grants:
            held[index, grant.target].append(grant)
    expected = []
    for row, column in zip(q.tolist(), kv.tolist(), strict=True):
        own, other = int(home[row]), int(home[column])
        at = row - spans[own].start
        granted = any(g.position <= at and (g.end is None or at < g.end) for g in held.get((own, other), ()))
        expected.append(granted or (own == other and column <= row))
    visible = mask.mask_mod(torch.tensor(0), torch.tensor(0), q, kv)
    assert visible.tolist() == expected
    assert 0 < sum(expected) < 20_000
    blocks = listed(mask.kv_num_blocks, mask.kv_indices) | listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert blocks[0, q // 128, kv // 128][visible].all()


# Attention.


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    # Eager FlexAttention is traced as well, and torch counts its shapes.
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def inputs(batch: int, length: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k and v [batch, 2, length, 16], not contiguous."""
    made = torch.randn(3, batch, length, 2, 16, generator=torch.Generator().manual_seed(length))
    return [x.transpose(1, 2) for x in made.to(device, dtype).unbind(0)]


def both(name: str, length: int, rows: list[list[DocSpan]], qkv: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Attention with the block mask, and with the dense one."""
    first, second = (
        full_pass.attend(*qkv, full_pass.full_mask(name, length, rows, qkv[0].device, blocks=blocks))
        for blocks in (True, False)
    )
    return first, second


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", NAMES)
def test_both_masks_give_one_attention(name: str) -> None:
    for rows in (1, 2):
        spans = [random_spans(150, 5, 9, seed) for seed in range(rows)]
        blocks, plain = both(name, 150, spans, inputs(2, 150))
        assert blocks.shape == plain.shape == (2, 2, 150, 16)
        torch.testing.assert_close(blocks, plain, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_model_takes_a_block_mask() -> None:
    made, ids, spans = tiny(), tokens_of(2, 70), random_spans(70, 4, 9)
    mask = full_pass.full_mask("cross_doc_link", 70, [spans], CPU, blocks=True)
    with torch.inference_mode():
        logits = made.logits(made(ids, mask))
    torch.testing.assert_close(logits, made.forward_inference(ids, spans), atol=1e-4, rtol=0)


def test_a_block_mask_for_fewer_tokens_is_refused() -> None:
    mask = full_pass.full_mask("full", 128, [spans_of([128])], CPU, blocks=True)
    with pytest.raises(ValueError, match="for at most 128 tokens, got 129"):
        full_pass.attend(*inputs(1, 129), mask)


def tiny(**settings: Any) -> DS2DSModel:
    shape = {"vocab_size": 31, "num_layers": 2, "model_dim": 32, "num_heads": 2, "max_seq_len": 1024}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DS2DSModel.from_config(**{**shape, **settings})


def tokens_of(batch: int, length: int) -> Tensor:
    return torch.randint(0, 31, (batch, length), generator=torch.Generator().manual_seed(0))


def test_compiled_attention_is_for_what_cuda_kernels_take() -> None:
    cuda = torch.device("cuda")
    assert full_pass.takes_blocks(cuda, torch.bfloat16, 64)
    assert full_pass.takes_blocks(cuda, torch.float32, 16)
    assert not full_pass.takes_blocks(cuda, torch.float64, 64)
    assert not full_pass.takes_blocks(cuda, torch.float32, 8)
    assert not full_pass.takes_blocks(CPU, torch.float32, 64)


# Masks kept while the structure stays.


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the masks that are built, dense or block, from here on."""
    built: list[str] = []

    def counted(kind: str, table: dict[str, Any], name: str) -> None:
        make = table[name]
        monkeypatch.setitem(table, name, lambda *args: (built.append(kind + name), make(*args))[1])

    for name in NAMES:
        counted("", masks.MASKS, name)
        counted("block ", TOKEN_MASKS, name)
    full_pass._kept.cache_clear()
    yield built
    full_pass._kept.cache_clear()


def test_a_mask_is_built_once_while_the_structure_stays(builds: list[str]) -> None:
    made, ids = tiny(), tokens_of(2, 60)
    first = made.forward_inference(ids, random_spans(60, 4, 5))
    assert torch.equal(made.forward_inference(ids, tuple(random_spans(60, 4, 5))), first)
    assert torch.equal(made.forward_inference(ids, [random_spans(60, 4, 5)]), first)
    tiny(num_layers=1).forward_inference(ids[:1], random_spans(60, 4, 5))
    assert builds == ["cross_doc_link"]


def test_a_mask_is_built_anew_when_anything_changes(builds: list[str]) -> None:
    made, ids = tiny(), tokens_of(2, 60)
    before, after = (spans_of([20, 40], [(), (SpanGrant(at, 0),)]) for at in (4, 5))
    logits = made.forward_inference(ids, before)
    changed = made.forward_inference(ids, after)
    assert builds == ["cross_doc_link"] * 2
    assert (logits != changed).any(-1).sum(1).tolist() == [36, 36]
    made.forward_inference(ids, spans_of([20, 40], [(), (SpanGrant(4, 0, 9),)]))
    made.forward_inference(ids, [before, after])
    made.forward_inference(ids[:, :20], before[:1])
    tiny(mask_type="causal").forward_inference(ids, before)
    assert builds == ["cross_doc_link"] * 6 + ["causal"]
    full_pass.full_mask("causal", 60, [before], CPU, blocks=True)
    full_pass.full_mask("causal", 60, [before], CPU, blocks=True)
    full_pass.full_mask("causal", 60, [before], torch.device("meta"), blocks=True)
    assert builds[7:] == ["block causal"] * 2


def test_few_masks_are_kept_and_no_large_one(builds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def make(length: int, blocks: bool = False) -> None:
        full_pass.full_mask("full", length, [spans_of([length])], CPU, blocks=blocks)

    for length in range(1, 10):
        make(length)
    assert full_pass._kept.cache_info().currsize == full_pass.KEPT_MASKS
    monkeypatch.setattr(full_pass, "LARGEST_KEPT", 2 * 60**2 - 1)
    builds.clear()
    for _ in range(2):
        make(60)
        make(90)
        make(90, blocks=True)
        full_pass.full_mask("full", 60, [spans_of([60])] * 2, CPU, blocks=False)
    assert builds == ["full", "full", "block full", "full", "full"] + ["full"] * 3


def test_a_refused_structure_leaves_nothing_behind(builds: list[str]) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="end at 50, but there are 60 tokens"):
            tiny().forward_inference(tokens_of(1, 60), spans_of([50]))
    assert builds == []


@pytest.mark.parametrize("blocks", [True, False])
def test_a_mask_made_in_inference_mode_serves_training(blocks: bool, builds: list[str]) -> None:
    with torch.inference_mode():
        mask = full_pass.full_mask("doc_causal", 60, [spans_of([60])], CPU, blocks=blocks)
    tensors = captured(mask) if isinstance(mask, BlockMask) else [mask]
    assert not any(tensor.is_inference() for tensor in tensors)


# Compiled. All of it stands under a limit of one compilation, and so needs the limit that full_pass sets.


def compiled_attention_equals_the_dense_one(
    name: str, device: str, dtype: torch.dtype = torch.float32, atol: float = 1e-4
) -> None:
    graphs = torch._dynamo.utils.counters["stats"]
    with torch.inference_mode(), torch._dynamo.config.patch(recompile_limit=1):
        for rows in (1, 2):
            before = graphs["unique_graphs"]
            for length, documents, grants in [(300, 1, 0), (500, 9, 20), (512, 30, 60), (257, 5, 9)]:
                spans = [random_spans(length, documents, grants, seed) for seed in range(rows)]
                blocks, plain = both(name, length, spans, inputs(2, length, device, dtype))
                torch.testing.assert_close(blocks, plain, atol=atol, rtol=0)
            # Other spans and lengths of one power of two run what was compiled for the first.
            assert graphs["unique_graphs"] - before <= 1
    assert torch._dynamo.config.recompile_limit != full_pass.COMPILED_SHAPES


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles C++")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", NAMES)
def test_compiled_attention_equals_the_dense_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    full_pass._compiled()  # before it is put in the place of what it compiles
    monkeypatch.setattr(full_pass, "_flex", full_pass._compiled_flex)
    compiled_attention_equals_the_dense_one(name, "cpu", atol=1e-5)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("name", "dtype", "atol"),
    [*((name, torch.float32, 1e-4) for name in NAMES), ("cross_doc_link", torch.bfloat16, 3e-2)],
)
def test_a_gpu_equals_the_dense_mask(name: str, dtype: torch.dtype, atol: float) -> None:
    compiled_attention_equals_the_dense_one(name, "cuda", dtype, atol)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.usefixtures("fresh_compiler")
def test_a_models_full_pass_on_a_gpu_equals_the_cpus() -> None:
    made, ids = tiny(), tokens_of(2, 700)
    rows = [random_spans(700, 6, 20, seed) for seed in range(2)]
    expected = [made.forward_inference(ids, spans) for spans in (None, rows[0], rows)]
    made.to("cuda")
    assert full_pass.takes_blocks(made.device, made.dtype, made.config.head_dim)
    for spans, logits in zip((None, rows[0], rows), expected, strict=True):
        torch.testing.assert_close(made.forward_inference(ids, spans).cpu(), logits, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@needs_cuda
def test_models_that_no_kernel_takes_run_on_a_gpu_with_the_dense_mask() -> None:
    ids, spans = tokens_of(2, 60), random_spans(60, 4, 5)
    for made in (tiny().double(), tiny(num_heads=8)):
        expected = made.forward_inference(ids, spans)
        torch.testing.assert_close(made.to("cuda").forward_inference(ids, spans).cpu(), expected, atol=1e-3, rtol=1e-3)
