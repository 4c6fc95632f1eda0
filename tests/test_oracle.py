"""The oracle against the model's own full pass, where that can express it, and against what S1-S5 say."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from link_graphs import VOCABULARY, tiny_model
from oracle import Document, Oracle
from torch import Tensor

from ds2ds.documents.spans import DocSpan, SpanGrant
from ds2ds.model.ds2ds_model import DS2DSModel

assert_equal = partial(torch.testing.assert_close, atol=1e-9, rtol=0)
QUICK = settings(max_examples=40, deadline=None, derandomize=True)

shapes = st.sampled_from([(1, 2, 4), (2, 3, 4), (3, 4, 2)])  # seed, layers, heads
tokens = st.lists(st.integers(0, len(VOCABULARY) - 1), min_size=1, max_size=10)


def double(seed: int, num_layers: int, num_heads: int) -> DS2DSModel:
    """The model in float64, rotary tables included."""
    model = copy.deepcopy(tiny_model(seed, num_layers, num_heads)).double()
    quarter = model.config.head_dim // 4
    frequencies = torch.zeros(2 * quarter, dtype=torch.float64)
    frequencies[:quarter] = (1 / 1024) ** torch.linspace(0, 1, quarter, dtype=torch.float64)
    angles = torch.arange(model.config.max_seq_len)[:, None] * frequencies
    model.rotary.cos = angles.cos().repeat(1, 2)
    model.rotary.sin = torch.cat([angles.sin(), -angles.sin()], dim=-1)
    return model


def packed(model: DS2DSModel, documents: list[Document]) -> list[Tensor]:
    """Log-probabilities of each document from one full pass over the documents, packed in the order given."""
    starts = [0]
    for document in documents:
        starts.append(starts[-1] + len(document.tokens))
    spans = [
        DocSpan(
            d.title,
            start,
            start + len(d.tokens),
            tuple(SpanGrant(p, documents.index(g), e) for p, g, e in d.grants),
        )
        for d, start in zip(documents, starts, strict=False)
    ]
    sequence = torch.tensor([[token for document in documents for token in document.tokens]])
    log_probs = model.forward_inference(sequence, spans)[0].log_softmax(-1)
    return list(log_probs.split([len(document.tokens) for document in documents]))


@st.composite
def fan_out(draw: st.DrawFn) -> Document:
    """A document with up to four grants of documents that have none."""
    document = Document("d", draw(st.lists(st.integers(0, len(VOCABULARY) - 1), min_size=4, max_size=16)))
    positions = draw(st.lists(st.integers(0, len(document.tokens)), max_size=4))
    document.grants = [(p, Document(f"g{i}", draw(tokens)), None) for i, p in enumerate(sorted(positions))]
    return document


@QUICK
@given(shapes, fan_out())
def test_fan_out_equals_the_packed_pass(shape: tuple[int, int, int], document: Document) -> None:
    model = double(*shape)
    everything = [*(target for _, target, _ in reversed(document.grants)), document]
    for ours, theirs in zip(Oracle(model).log_probs(everything), packed(model, everything), strict=True):
        assert_equal(ours, theirs)


@QUICK
@given(shapes, st.lists(tokens, min_size=2, max_size=4), st.data())
def test_chain_equals_the_packed_pass(shape: tuple[int, int, int], parts: list[list[int]], data: st.DataObject) -> None:
    chain: list[Document] = []
    for index, part in enumerate(parts):
        grants: list[tuple[int, Document, int | None]] = (
            [(data.draw(st.integers(0, len(part))), chain[-1], None)] if chain else []
        )
        chain.append(Document(f"d{index}", part, grants))
    model = double(*shape)
    for ours, theirs in zip(Oracle(model).log_probs(chain), packed(model, chain), strict=True):
        assert_equal(ours, theirs)


@QUICK
@given(shapes, fan_out(), st.data())
def test_eviction_of_the_last_grant_equals_the_packed_pass(
    shape: tuple[int, int, int], document: Document, data: st.DataObject
) -> None:
    # The leftmost document leaves no gap behind, so fixed positions can still express it.
    if document.grants:
        position, target, _ = document.grants[-1]
        end = data.draw(st.integers(position, len(document.tokens)))
        document.grants[-1] = (position, target, end)
    model = double(*shape)
    everything = [*(target for _, target, _ in reversed(document.grants)), document]
    assert_equal(Oracle(model).log_probs([document])[0], packed(model, everything)[-1])


@QUICK
@given(fan_out(), st.data())
def test_any_eviction_in_one_layer_equals_the_pass_over_what_is_in_view(
    document: Document, data: st.DataObject
) -> None:
    # In one layer a key depends on its token alone, so each token can be asked in a packing of its own view.
    document.grants = [
        (p, g, data.draw(st.none() | st.integers(p, len(document.tokens)))) for p, g, _ in document.grants
    ]
    model = double(5, 1, 4)
    [ours] = Oracle(model).log_probs([document])
    for t in range(len(document.tokens)):
        now = Document("d", document.tokens[: t + 1])
        now.grants = [(0, g, None) for p, g, e in document.grants if p <= t and (e is None or t < e)]
        theirs = packed(model, [*(g for _, g, _ in reversed(now.grants)), now])[-1]
        assert_equal(ours[t], theirs[t])


@QUICK
@given(shapes, fan_out(), st.integers(0, 16))
def test_eviction_rewrites_nothing_before_it(shape: tuple[int, int, int], document: Document, end: int) -> None:
    oracle = Oracle(double(*shape))
    [before] = oracle.log_probs([document])
    document.grants = [(p, g, max(p, end)) for p, g, _ in document.grants]
    [after] = oracle.log_probs([document])
    assert_equal(after[:end], before[:end])


def diamond() -> tuple[Document, Document]:
    """A document, and one that it reads, with every kind of grant between them."""
    leaf = Document("leaf", [1, 2, 3, 4, 5])
    left = Document("left", [6, 7, 8, 9], [(2, leaf, None)])
    right = Document("right", [10, 11, 12], [(1, leaf, None)])
    root = Document("root", list(range(1, 15)), [(3, left, 9), (5, right, None), (7, leaf, None), (11, left, None)])
    return root, leaf


@pytest.mark.parametrize("shape", [(1, 2, 4), (2, 3, 4)])
def test_every_detail_of_a_grant_shows(shape: tuple[int, int, int]) -> None:
    """So that a runtime which gets one of them wrong by one cannot agree with the oracle to 1e-4."""
    oracle = Oracle(tiny_model(*shape))
    [right] = oracle.log_probs([diamond()[0]])

    def change(**changes: object) -> float:
        root, leaf = diamond()
        for name, value in changes.items():
            match name:
                case "root":
                    root.grants = value(root.grants)  # type: ignore[operator]
                case "leaf":
                    leaf.tokens = value  # type: ignore[assignment]
                case "left":
                    root.grants[0][1].grants = value(leaf)  # type: ignore[operator]
        return float((oracle.log_probs([root])[0] - right).abs().max())

    assert change() == 0
    assert change(root=lambda g: [(4, g[0][1], 9), *g[1:]]) > 1e-2  # position
    assert change(root=lambda g: [(3, g[0][1], 10), *g[1:]]) > 1e-2  # end
    assert change(root=lambda g: [g[1], g[0], *g[2:]]) > 1e-2  # order, hence delta
    assert change(root=lambda g: g[:3]) > 1e-2  # granted again
    assert change(leaf=[1, 2, 3, 4, 6]) > 1e-2  # a target's last token
    assert change(left=lambda leaf: []) > 1e-2  # a target's own grants
    assert change(left=lambda leaf: [(3, leaf, None)]) > 1e-2


def test_a_document_depends_on_nothing_else_in_the_call() -> None:
    oracle = Oracle(tiny_model(2, 3, 4))
    root, leaf = diamond()
    together = oracle.log_probs([leaf, root, Document("other", [3, 2, 1])])
    assert torch.equal(together[0], oracle.log_probs([leaf])[0])
    assert torch.equal(together[1], oracle.log_probs([root])[0])


def test_single_precision_tables_are_near() -> None:
    """The model as it runs, float32 throughout, agrees to what float32 allows."""
    model = tiny_model(2, 3, 4)
    root = Document("d", [1 + i % 20 for i in range(60)], [(20, Document("g", list(range(20))), None)])
    theirs = packed(model, [root.grants[0][1], root])[-1]
    torch.testing.assert_close(Oracle(model).log_probs([root])[0], theirs.double(), atol=5e-5, rtol=0)


def test_cycles_and_empty_documents_are_errors() -> None:
    oracle = Oracle(tiny_model(1))
    document = Document("d", [1, 2])
    document.grants = [(1, Document("e", [1], [(0, document, None)]), None)]
    with pytest.raises(ValueError, match="'d' reaches itself"):
        oracle.log_probs([document])
    with pytest.raises(ValueError, match="'e' is empty"):
        oracle.log_probs([Document("e", [])])
