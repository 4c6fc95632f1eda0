"""The pre-norm decoder. Attention itself is passed in, so that the full pass and the cached one share the rest."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds2ds.attention.attend import Attend
from ds2ds.model.config import ModelConfig
from ds2ds.model.fusion import fused, fuses
from ds2ds.model.linear import gated_unit, linear
from ds2ds.native import operations as native


def rms_norm(x: Tensor) -> Tensor:
    """RMSNorm over the last dimension, without weights."""
    if len(x) and native.takes(x):
        return native.rms_norm(x)
    return fused().rms_norm(x) if fuses(x) else F.rms_norm(x, (x.shape[-1],))


class Skip(NamedTuple):
    """What joins the residual stream between two layers, past those between: weights[which] * other.

    Attributes:
        weights: [n].
        other: [rows, model_dim]; None: the stream itself, as it leaves the first half of the layers.
    """

    weights: Tensor
    which: int
    other: Tensor | None


def add_norm(x: Tensor, y: Tensor, skip: Skip | None = None) -> tuple[Tensor, Tensor]:
    """x + y, and what skips layers on top, and the norm of that."""
    if fuses(x):
        return fused().add_norm(x, y, skip)
    total = x + y
    if skip is not None:
        total = torch.addcmul(total, skip.weights[skip.which], total if skip.other is None else skip.other)
    return total, rms_norm(total)


class Attention(nn.Module):
    """Projections around attention: Wqkv [3, heads * head_dim, model_dim] and Wout."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.num_heads, config.head_dim
        self.Wqkv = nn.Parameter(torch.empty(3, config.model_dim, config.model_dim))
        self.Wout = nn.Linear(config.model_dim, config.model_dim, bias=False)

    def forward(self, normed: Tensor, layer: int, attend: Attend) -> Tensor:
        qkv = linear(normed, self.Wqkv).view(len(normed), 3, self.heads, self.head_dim)
        return linear(attend(layer, rms_norm(qkv[:, :2]), qkv[:, 2]).reshape(normed.shape), self.Wout.weight)


class GLU(nn.Module):
    """Gated linear unit: Wdown(up * silu(gate)), where Wup_gate gives (up, gate)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.Wup_gate = nn.Linear(config.model_dim, 2 * config.mlp_dim, bias=False)
        self.Wdown = nn.Linear(config.mlp_dim, config.model_dim, bias=False)

    def forward(self, normed: Tensor) -> Tensor:
        return linear(gated_unit(linear(normed, self.Wup_gate.weight)), self.Wdown.weight)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = GLU(config)

    def forward(
        self, x: Tensor, normed: Tensor, layer: int, attend: Attend, skip: Skip | None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream, and its norm: as it comes, and as the next layer gets it."""
        x, normed = add_norm(x, self.attn(normed, layer, attend))
        return add_norm(x, self.mlp(normed), skip)


class Pushed:
    """Outputs of the first half of the layers, until they join before the second: layer i's, weighted, before layer
    n - 1 - i (of an even number; of an odd one the last layer is joined by none)."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self._outputs: list[Tensor] = []

    def skip_after(self, layer: int) -> Skip | None:
        """What joins what this layer gives, for the next one."""
        half = len(self.weights)
        index = layer + 1 - half
        if not 0 <= index < half:
            return None
        # The first to join is what was pushed last, by the layer just before.
        return Skip(self.weights, index, self._outputs.pop() if index else None)

    def push(self, layer: int, output: Tensor) -> None:
        """Keep what a layer gave, if it joins later than at once."""
        if layer < len(self.weights) - 1:
            self._outputs.append(output)


class Backbone(nn.Module):
    """Layers with U-shaped skips, see `Pushed`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.skip_weights = nn.Parameter(torch.ones(config.num_layers // 2))

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """Residual stream in, final-normed hidden states out; both [rows, model_dim]."""
        normed, pushed = rms_norm(x), Pushed(self.skip_weights)
        for index, layer in enumerate(self.layers):
            x, normed = layer(x, normed, index, attend, pushed.skip_after(index))
            pushed.push(index, x)
        return normed
