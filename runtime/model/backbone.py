"""The pre-norm decoder. Attention itself is passed in, so that the full pass and the cached one share the rest."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds2ds.model.config import ModelConfig
from ds2ds.model.fusion import fused, fuses
from ds2ds.model.linear import gated_unit, linear
from ds2ds.native import operations as native

Attend = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, qk, v) -> what the rows read, [rows, heads, head_dim] like v.

qk is [rows, 2, heads, head_dim]: queries and keys, normed, not yet rotated.
"""


def rms_norm(x: Tensor) -> Tensor:
    """RMSNorm over the last dimension, without weights."""
    if len(x) and native.takes(x):
        return native.rms_norm(x)
    return fused().rms_norm(x) if fuses(x) else F.rms_norm(x, (x.shape[-1],))


def add_norm(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x + y, and the norm of that."""
    if fuses(x):
        return fused().add_norm(x, y)
    total = x + y
    return total, rms_norm(total)


class Attention(nn.Module):
    """Projections around attention: Wqkv [3, heads * head_dim, model_dim] and Wout."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.num_heads, config.head_dim
        self.Wqkv = nn.Parameter(torch.empty(3, config.model_dim, config.model_dim))
        self.Wout = nn.Linear(config.model_dim, config.model_dim, bias=False)

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        qkv = linear(x, self.Wqkv).view(x.shape[0], 3, self.heads, self.head_dim)
        return linear(attend(layer, rms_norm(qkv[:, :2]), qkv[:, 2]).reshape(x.shape), self.Wout.weight)


class GLU(nn.Module):
    """Gated linear unit: Wdown(up * silu(gate)), where Wup_gate gives (up, gate)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.Wup_gate = nn.Linear(config.model_dim, 2 * config.mlp_dim, bias=False)
        self.Wdown = nn.Linear(config.mlp_dim, config.model_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(gated_unit(linear(x, self.Wup_gate.weight)), self.Wdown.weight)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = GLU(config)

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        x, normed = add_norm(x, self.attn(rms_norm(x), layer, attend))
        return x + self.mlp(normed)


class Backbone(nn.Module):
    """Layers with U-shaped skips: layer i's output joins, weighted, before layer n - 1 - i (even n)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.skip_weights = nn.Parameter(torch.ones(config.num_layers // 2))

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """Residual stream in, final-normed hidden states out; both [rows, model_dim]."""
        half = len(self.layers) // 2
        pushed: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            if index >= half and pushed:
                x = torch.addcmul(x, self.skip_weights[index - half], pushed.pop())
            x = layer(x, index, attend)
            if index < half:
                pushed.append(x)
        return rms_norm(x)
