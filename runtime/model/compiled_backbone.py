"""The backbone in one call to compiled code: float32 on a CPU, weights of floats or of int8."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ds2ds.attention.attend import Attend
from ds2ds.attention.compiled import CompiledAttention
from ds2ds.model.backbone import GLU, Attention, Backbone, Layer
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
        # The numbers themselves are kept, as the table has but their addresses: a parameter may get others meanwhile.
        self.skips = backbone.skip_weights.detach()
        self.weights = [one.packed if isinstance(one, Int8Weight) else one.detach() for one in weights]
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
        if len(table) < len(weights) or not _fits(table, backbone.skip_weights):
            return None
        return CompiledBackbone(backbone, weights, table)


def _is_plain(backbone: Backbone) -> bool:
    """Whether the modules are ours alone: nobody has put others in their place, or hooks into them, to be called."""
    for module in backbone.modules():
        if type(module) not in _OURS or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return False
    return not nn.modules.module._has_any_global_hook()


def _fits(table: list[CWeight], skips: Tensor) -> bool:
    """Whether all layers have the first one's shapes, which compiled code takes for granted."""
    width, wide = table[0].inputs, table[3].inputs
    shapes = [(3 * width, width), (width, width), (2 * wide, width), (width, wide)]
    layers = len(table) // len(shapes)
    all_of_them = [(weight.outputs, weight.inputs) for weight in table]
    return all_of_them == shapes * layers and skips.shape == (layers // 2,) and skips.is_contiguous()


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
