"""Half-truncated rotary position embedding, applied at any position to any row."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 1024.0


class Rotary:
    """Tables for positions 0..max_positions-1.

    The first half of the ``head_dim / 2`` frequencies is ``(1/1024) ** linspace(0, 1, head_dim / 4)``, the
    second half zero: those pairs carry content and no position (DESIGN 5, the model).

    Attributes:
        cos, sin: float32 [max_positions, head_dim], in the form that `rotate` takes: (cos, cos) and (sin, -sin).
    """

    def __init__(self, head_dim: int, max_positions: int, device: torch.device | str = "cpu") -> None:
        if head_dim % 4:
            raise ValueError(f"head_dim must be divisible by 4, got {head_dim}")
        # Angles in double precision: a float32 angle is off by 2e-3 radians at position 32,000, by another amount at
        # each, and keys would seem to move.
        frequencies = (1 / BASE) ** torch.linspace(0, 1, head_dim // 4, dtype=torch.float64)
        frequencies = torch.cat([frequencies, torch.zeros_like(frequencies)])
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float64), frequencies)
        cos, sin = angles.cos().float(), angles.sin().float()
        self.cos = cos.repeat(1, 2).to(device)
        self.sin = torch.cat([sin, -sin], dim=-1).to(device)

    def to(self, device: torch.device | str) -> Rotary:
        self.cos, self.sin = self.cos.to(device), self.sin.to(device)
        return self

    def at(self, positions: Tensor | slice) -> tuple[Tensor, Tensor]:
        """cos and sin of some positions, each float32 [n, 1, head_dim] (broadcast over heads).

        Raises:
            ValueError: a slice ends beyond the table; IndexError: an index does.
        """
        # Plain slicing would come back short, and a single row would then be broadcast to all.
        if isinstance(positions, slice) and positions.stop > len(self.cos):
            raise ValueError(f"positions {positions.start} to {positions.stop} exceed the table's {len(self.cos)}")
        return self.cos[positions].unsqueeze(-2), self.sin[positions].unsqueeze(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x1, x2), the two halves of the last dimension, to (x1 c + x2 s, x2 c - x1 s).

    Args:
        x: [..., heads, head_dim]; cos, sin: as Rotary has them, broadcastable to x, float32.

    Returns:
        x's shape and dtype; the arithmetic is float32 at least.
    """
    x1, x2 = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([x2, x1], dim=-1) * sin).to(x.dtype)
