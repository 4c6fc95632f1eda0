"""Rows of a table by their numbers: the embeddings of tokens, and the hidden states that tokens are drawn from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ds2ds.native.operations import takes


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """table [n, width] at int64 rows [m]: [m, width].

    Where compiled code takes the step NumPy does it, on one thread. torch takes all its threads, from four rows on in
    some of its operations; and these then spin for 8 ms, each on a core that the threads of compiled code want (on 2
    cores sixteen sequences lost a twelfth of their speed by that).

    Raises:
        IndexError: there is no such row.
    """
    if not takes(table):
        return table[rows]
    numbers = rows.numpy()
    if numbers.size and numbers.min() < 0:  # which NumPy would count from the end
        raise IndexError(f"row {numbers.min()} of a table of {len(table)}")
    return torch.from_numpy(table.detach().numpy().take(numbers, axis=0))


class Embedding(nn.Embedding):
    """torch's, by `take_rows`."""

    def forward(self, input: Tensor) -> Tensor:
        """Token ids int64 [m] to their embeddings [m, width]."""
        return take_rows(self.weight, input) if takes(self.weight) else super().forward(input)
