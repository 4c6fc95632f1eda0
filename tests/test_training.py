"""The demo model's training code: the loss is the full softmax's, packs are what S3 says, updates are orthogonal."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

FOLDOC = Path(__file__).parents[1] / "examples" / "foldoc"
sys.path.insert(0, str(FOLDOC))

import data  # noqa: E402
import loss  # noqa: E402
import muon  # noqa: E402


def document(title: str, length: int, *links: tuple[int, str]) -> data.LinkedDocument:
    return data.LinkedDocument(title, np.arange(length), links)


def test_the_compact_loss_is_that_of_the_whole_vocabulary() -> None:
    torch.manual_seed(0)
    vocabulary = loss.CompactVocabulary(np.array([3, 1, 7, 3]), vocab_size=40)
    assert vocabulary.size == 4 and vocabulary.unseen == 37
    weight = torch.randn(vocabulary.size, 16, requires_grad=True)
    x = torch.randn(9, 16, requires_grad=True)
    targets = torch.tensor([1, 3, 7, 7, 1, 3, 1, 1, 7])
    total, losses = loss.linear_cross_entropy(x, weight, vocabulary.bias(), vocabulary.compact[targets], chunk=4)
    total.backward()
    ours = [x.grad, weight.grad]
    x.grad = weight.grad = None
    expected = F.cross_entropy(F.linear(x, vocabulary.expand(weight)), targets, reduction="none")
    expected.sum().backward()
    # The products are in bfloat16, with eight bits.
    torch.testing.assert_close(losses, expected.detach(), atol=0.05, rtol=0.02)
    for mine, theirs in zip(ours, [x.grad, weight.grad], strict=True):
        assert mine is not None and theirs is not None
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


def test_a_pack_puts_the_first_target_next_to_the_root() -> None:
    documents = {d.title: d for d in (document("a", 5), document("b", 7), document("long", 90))}
    root = document("root", 10, (3, "a"), (4, "long"), (6, "b"), (20, "a"))
    pack = data.make_pack(root, documents, max_tokens=30)
    assert [(span.title, span.start, span.end) for span in pack.spans] == [("b", 0, 7), ("a", 7, 12), ("root", 12, 22)]
    assert [(g.position, pack.spans[g.target].title) for g in pack.spans[-1].grants] == [(3, "a"), (6, "b")]


def test_a_batch_masks_what_is_not_granted_and_counts_each_token_once() -> None:
    documents = {"a": document("a", 5)}
    packs = [data.make_pack(document("root", 10, (3, "a")), documents, 30), data.make_pack(document("x", 4), {}, 30)]
    batch = data.collate(packs, [[False, True], [True]], multiple=8)
    assert batch.tokens.shape == (2, 16) and batch.mask.shape == (2, 1, 16, 16)
    seen = batch.mask[0, 0]
    assert not seen[5:8, :5].any() and seen[8:15, :5].all()
    assert not seen[:5, 5:].any() and not seen[5:15, 5:15].triu(1).any()
    assert batch.predict.tolist() == [*range(5, 14), 16, 17, 18]
    assert batch.targets.tolist() == [*range(1, 10), 1, 2, 3]
    alone = data.collate(packs, [[False, True], [True]], linked=False, multiple=8)
    assert not alone.mask[0, 0, 5:, :5].any()


def test_an_epoch_has_every_document_once_as_root_and_at_most_once_as_a_counted_target() -> None:
    titles = [f"d{i}" for i in range(60)]
    documents = {t: document(t, 5 + i, (2, titles[(i * 7 + 1) % 60])) for i, t in enumerate(titles)}
    batches = data.epoch_batches(documents, titles, (64, 128), 256, seed=3)
    roots = [pack.documents[-1].title for packs, _ in batches for pack in packs]
    assert sorted(roots) == sorted(titles)
    counted = [
        d.title
        for packs, counts in batches
        for pack, flags in zip(packs, counts, strict=True)
        for d, flag in zip(pack.documents[:-1], flags[:-1], strict=True)
        if flag
    ]
    assert len(counted) == len(set(counted)) > 0
    again = data.epoch_batches(documents, titles, (64, 128), 256, seed=3)
    assert [[p.documents[-1].title for p in packs] for packs, _ in again] == [
        [p.documents[-1].title for p in packs] for packs, _ in batches
    ]


def test_the_held_out_split_does_not_move() -> None:
    documents = {f"t{i}": document(f"t{i}", 3) for i in range(400)}
    train, held_out = data.split(documents)
    assert len(held_out) == 300 and len(train) == 100 and not set(train) & set(held_out)
    assert data.split(dict(reversed(documents.items()))) == (train, held_out)


def test_muon_steps_along_orthogonal_matrices_each_by_itself() -> None:
    torch.manual_seed(0)
    # Rectangular: a random square matrix has singular values so small that five iterations do not lift them.
    for shape in ((3, 64, 16), (64, 16), (16, 64)):
        update = muon.orthogonalise(torch.randn(shape))
        singular = torch.linalg.svdvals(update.float())
        assert singular.min() > 0.5 and singular.max() < 1.4
    stack = torch.randn(2, 8, 8)
    torch.testing.assert_close(muon.orthogonalise(stack)[1], muon.orthogonalise(stack[1]), atol=0.02, rtol=0.02)
