"""The forward pass of few rows, from token ids to logits: what `DS2DSModel.hidden` and `logits` do, in fewer launches.

A kernel costs a microsecond or two, however little it does, and the weights of a layer of 768 are read in five: of few
rows, how many kernels there are decides. So a layer is four products, each with the norm before it and the sum or the
gated unit after it, and attention, which norms queries and keys as it reads them. More rows are computed as in prefill.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor

from ds2ds.attention.attend import Attend
from ds2ds.kernels import few_rows
from ds2ds.model.backbone import Layer, Pushed, Skip
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.model.int8_weight import Int8Weight
from ds2ds.model.linear import Weight

FEW_ROWS = 16
"""For more, torch's products are thought to be faster; to be measured (bench/gpu_step.py)."""


def takes(model: DS2DSModel) -> bool:
    """Whether `few_rows_logits` can do with a model. Not where rows are to be rounded to int8 themselves."""
    head = model.loss_fn.weight
    return model.dtype in few_rows.MOST_ROWS and not (isinstance(head, Int8Weight) and head.dynamic)


def few_rows_logits(model: DS2DSModel, ids: Tensor, attend: Attend) -> Tensor:
    """Token ids [rows] to logits [rows, vocab_size].

    Args:
        attend: as the backbone calls it, but queries and keys are as they were projected, not normed yet.
    """
    x, pushed = model.embedding(ids), Pushed(model.backbone.skip_weights)
    for index, layer in enumerate(cast(list[Layer], model.backbone.layers)):
        attn, mlp = layer.attn, layer.mlp
        qkv = _product(x, attn.Wqkv, norm=True).view(len(x), 3, attn.heads, attn.head_dim)
        read = attend(index, qkv[:, :2], qkv[:, 2]).view(x.shape)
        x = _product(read, attn.Wout.weight, add=x)
        hidden = _product(x, mlp.Wup_gate.weight, norm=True, gated=True)
        x = _product(hidden, mlp.Wdown.weight, add=x, skip=pushed.skip_after(index))
        pushed.push(index, x)
    return _product(x, model.loss_fn.weight, norm=True)


def _product(
    x: Tensor,
    weight: Weight,
    *,
    norm: bool = False,
    gated: bool = False,
    add: Tensor | None = None,
    skip: Skip | None = None,
) -> Tensor:
    values, scales = (weight.values, weight.scales) if isinstance(weight, Int8Weight) else (weight, None)
    return few_rows.product(x, values, scales, norm=norm, gated=gated, add=add, skip=skip)
