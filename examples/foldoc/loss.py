"""Cross-entropy over a large vocabulary without keeping its logits, and over the tokens that occur."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class CompactVocabulary:
    """The ids that occur in the training data, renumbered; all others share one last row.

    A token that never occurs gets only one kind of gradient, the same for all of them. Training one row in
    their place, counted `unseen` times in the softmax, gives the full softmax over the whole vocabulary at
    the price of the part that occurs.
    """

    def __init__(self, occurring: np.ndarray, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.seen = torch.from_numpy(np.unique(occurring).astype(np.int64))
        self.unseen = vocab_size - len(self.seen)
        self.compact = torch.full((vocab_size,), len(self.seen), dtype=torch.int64)
        self.compact[self.seen] = torch.arange(len(self.seen))

    @property
    def size(self) -> int:
        return len(self.seen) + 1

    def bias(self) -> Tensor:
        """float32 [size]: what the shared row's logit gains for standing for `unseen` tokens."""
        bias = torch.zeros(self.size)
        bias[-1] = math.log(self.unseen) if self.unseen else -math.inf
        return bias

    def expand(self, rows: Tensor) -> Tensor:
        """[size, D] to [vocab_size, D]."""
        return rows[self.compact]


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of F.linear(x, weight) + bias, gradients computed on the way, in chunks of rows."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, chunk: int) -> Tensor:  # type: ignore[override, no-untyped-def]
        low = weight.to(torch.bfloat16)
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight)
        losses = x.new_empty(len(x), dtype=torch.float32)
        for start in range(0, len(x), chunk):
            rows = slice(start, start + chunk)
            h, t = x[rows].to(torch.bfloat16), targets[rows]
            logits = F.linear(h, low).float().add_(bias)
            lse = logits.logsumexp(-1)
            index = torch.arange(len(t))
            losses[rows] = lse - logits[index, t]
            p = logits.sub_(lse[:, None]).exp_()
            p[index, t] -= 1
            p = p.to(torch.bfloat16)
            grad_x[rows] = (p @ low).to(x.dtype)
            grad_weight += p.t() @ h
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor):  # type: ignore[override, no-untyped-def]
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * grad, grad_weight * grad, None, None, None


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, chunk: int = 256
) -> tuple[Tensor, Tensor]:
    """Sum and (detached) list of natural-log cross-entropies; x [n, D], weight [V, D], bias [V], targets int64 [n]."""
    total, losses = _LinearCrossEntropy.apply(x, weight, bias, targets, chunk)
    return total, losses
