"""Sampling of one token per row, each row under its own settings.

The rule, per row, in this order (DESIGN.md, section 4):

1. Repetition penalty (Keskar et al., "CTRL", 2019): the logit x of each listed token, once however often it is
   listed, becomes x / penalty if positive, else x * penalty. Call the result x, float32.
2. Temperature T > 0: y = (x - max x) / T in float32. T = 0 takes the largest x, lowest id, and stops here.
3. Rank by x, larger first, ties to the lower id. Top-k keeps the first k.
4. Softmax over the survivors: w = exp(y) in float32; the mass of a token is the integer floor(w * 2**44).
5. Top-p keeps a token if the masses ranked before it sum to less than ceil(p * total), so the one that crosses
   p stays. p = 1 is off. The product is taken in float64.
6. Min-p keeps a token if w >= min_p, since w is its probability over that of the likeliest one.
7. The token is the one with the largest y + Gumbel noise in float32 (see philox.py), ties to the lower id.

Integer masses, because integers sum to the same total in any order: the kept set and the log-probability of a row
do not depend on the batch, on threads or, in a kernel, on how a row is split. 2**44 leaves room for 2**18 tokens
and cuts off less than 2**-44 of the likeliest token's probability from each.

A logit of -inf is a token that is not there, in every statistic. A row with a NaN or +inf has no softmax, before
or after the penalty: status NOT_FINITE.
"""

from __future__ import annotations

import torch

from ..backends import use_triton
from .host import sample_on_host
from .rows import (
    Rows,
    SampleOutput,
    SampleStatus,
    check_penalty_shapes,
    check_penalty_values,
    check_shapes,
    check_values,
    on_host,
)

__all__ = ["SampleOutput", "SampleStatus", "sample_rows"]


def sample_rows(
    logits: torch.Tensor,
    *,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    repetition_penalty: torch.Tensor | None = None,
    penalty_tokens: torch.Tensor | None = None,
    backend: str = "auto",
) -> SampleOutput:
    """Sample one token per row. The module's docstring states the rule.

    Args:
        logits: float32, bfloat16 or float16 [B, V], any strides, 1 <= V <= 262,144. Not modified.
        temperature: float32 [B], >= 0 and finite; 0 is greedy.
        top_k: int32 [B], >= 0; 0, or V and above, is off.
        top_p: float32 [B] in (0, 1]; 1 is off.
        min_p: float32 [B] in [0, 1]; 0 is off.
        seed: int64 [B], any value.
        position: int64 [B], >= 0. A row's noise is a function of (seed, position, token id) alone.
        repetition_penalty: float32 [B], > 0 and finite; 1 is off. Given if and only if penalty_tokens is.
        penalty_tokens: int64 [B, N], the token ids each row penalises; -1 is padding, repeats count once.
        backend: "triton" computes on the GPU that the logits are on, "torch" on the host, wherever they are; "auto" is
            the one that suits the logits' device.

    Returns:
        SampleOutput, on the device of the logits. The backends give the same tokens and statuses; log-probabilities
        differ by rounding, 1e-6.

    With "triton" and all settings on the GPU nothing is read back and the number of launches is fixed, so that the
    call can be captured in a CUDA graph. Values cannot be refused then: where one is not as above the row's status is
    INVALID.

    Raises:
        ValueError: a shape, dtype or value is not as above, or the backend cannot be had for these tensors.
    """
    triton = use_triton(backend, logits)
    settings = (temperature, top_k, top_p, min_p, seed, position)
    dtypes = (torch.float32, torch.int32, torch.float32, torch.float32, torch.int64, torch.int64)
    check_shapes(logits, **dict(zip(Rows._fields, zip(settings, dtypes, strict=True), strict=True)))
    check_penalty_shapes(logits, repetition_penalty, penalty_tokens)
    penalty = None if repetition_penalty is None or penalty_tokens is None else (repetition_penalty, penalty_tokens)
    if not triton or all(tensor.device.type == "cpu" for tensor in (*settings, *(penalty or ()))):
        rows = Rows._make(map(on_host, settings))
        check_values(rows)
        listed = None if penalty is None else (on_host(penalty[0]), on_host(penalty[1]))
        if listed is not None:
            check_penalty_values(*listed, logits.shape[1])
    if triton:
        from .launch import sample_on_device

        with torch.cuda.device_of(logits):  # no effect on a CPU, where the kernels are interpreted
            return sample_on_device(logits, settings, penalty)
    return SampleOutput(*(torch.from_numpy(a).to(logits.device) for a in sample_on_host(logits, rows, listed)))
