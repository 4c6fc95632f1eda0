"""sampling.c: a token for each row, the same that `ds2ds.kernels.sample_rows` draws in NumPy."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ds2ds.kernels import SampleOutput
from ds2ds.native.operations import compiled


def sample_rows(
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
    repetition_penalty: Tensor | None = None,
    penalty_tokens: Tensor | None = None,
) -> SampleOutput:
    """As ``ds2ds.kernels.sample_rows`` for logits on the CPU, and settings of the dtypes that it states, in range.

    Raises:
        MemoryError: there was no room for what is to be ranked, 16 bytes a token.
    """
    given = logits.float()
    if given.stride(1) != 1:
        given = given.contiguous()
    rows, vocab = given.shape
    settings = [column.cpu().contiguous() for column in (temperature, top_k, top_p, min_p, seed, position)]
    penalty = None if repetition_penalty is None else repetition_penalty.cpu().contiguous()
    listed = None if penalty_tokens is None else penalty_tokens.cpu().contiguous()
    dtypes = (torch.int64, torch.float32, torch.int32)
    drawn = SampleOutput(*(torch.empty(rows, dtype=dtype, device="cpu") for dtype in dtypes))
    failed = compiled().sample_rows(
        rows,
        vocab,
        given.data_ptr(),
        given.stride(0),
        (ctypes.c_void_p * len(settings))(*(column.data_ptr() for column in settings)),
        None if penalty is None else penalty.data_ptr(),
        None if listed is None else listed.data_ptr(),
        0 if listed is None else listed.shape[1],
        *(column.data_ptr() for column in drawn),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError(f"no memory to rank the {vocab} tokens of {failed} rows")
    return drawn
