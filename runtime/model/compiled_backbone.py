"""The backbone in one call to compiled code: float32 on a CPU, weights of floats or of int8."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ds2ds.attention.compiled import CompiledAttention
from ds2ds.model.backbone import GLU, Attend, Attention, Backbone, Layer
from ds2ds.model.int8_weight import Int8Weight
from ds2ds.model.linear import Weight
from ds2ds.native import operations as native
from ds2ds.native.backbone import CWeight, backbone_rows

_OURS = {Backbone, Layer, Attention, GLU, nn.ModuleList, nn.Linear, Int8Weight}


class CompiledBackbone:
    """What `Backbone.forward` computes, with the weights as they are now: to be made anew when they may have changed.

    Between the products of few rows stand operations that are small, but in Python take as long as many a product.
    """

    def __init__(self, backbone: Backbone, weights: list[Weight], table: list[CWeight]) -> None:
        self.skips, self.weights = backbone.skip_weights, weights  # kept, as the table has but their addresses
        self.table = (CWeight * len(table))(*table)

    def forward(self, x: Tensor, attend: Attend) -> Tensor | None:
        """Token embeddings [rows, model_dim], overwritten, to final-normed hidden states.

        None, and nothing is done: what attends is something else.
        """
        if not isinstance(attend, CompiledAttention):
            return None
        return backbone_rows(x, self.table, self.skips, attend.reads, attend.arena.data, attend.scale)


def compiled_backbone(backbone: Backbone) -> CompiledBackbone | None:
    """None: compiled code cannot do with these weights, or modules are not what it stands for."""
    with torch.no_grad():
        if not native.takes(backbone.skip_weights) or not _is_plain(backbone):
            return None
        weights: list[Weight] = []
        for layer in cast(list[Layer], backbone.layers):
            weights += [layer.attn.Wqkv, layer.attn.Wout.weight, layer.mlp.Wup_gate.weight, layer.mlp.Wdown.weight]
        table = [one for one in map(_c_weight, weights) if one is not None]
        return CompiledBackbone(backbone, weights, table) if len(table) == len(weights) > 0 else None


def _is_plain(backbone: Backbone) -> bool:
    """Whether the modules are ours alone: nobody has put others in their place, or hooks into them, to be called."""
    for module in backbone.modules():
        if type(module) not in _OURS or module._forward_hooks or module._forward_pre_hooks:
            return False
    return not nn.modules.module._has_any_global_hook()


def _c_weight(weight: Weight) -> CWeight | None:
    if isinstance(weight, Int8Weight):
        if weight.packed is None:
            return None
        blocks, sums, scales = weight.packed
        digits = native.weight_digits(weight.dynamic)
        return CWeight(blocks.data_ptr(), sums.data_ptr(), scales.data_ptr(), *weight.shape, digits)
    if not native.takes(weight) or not weight.is_contiguous():
        return None
    return CWeight(weight.data_ptr(), None, None, weight.shape[:-1].numel(), weight.shape[-1], 0)
