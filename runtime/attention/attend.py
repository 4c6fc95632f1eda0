"""How a decoder and attention meet: what the backbone calls for each layer, and what makes that for a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

from ds2ds.attention.view import Chunk

Attend: TypeAlias = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, qk, v) -> what the rows read, [rows, heads, head_dim] like v.

qk is [rows, 2, heads, head_dim]: queries and keys, normed, not yet rotated.
"""

AttentionPath: TypeAlias = Callable[[Sequence[Chunk]], Attend]
"""Makes of a step's chunks what attends for their rows."""
