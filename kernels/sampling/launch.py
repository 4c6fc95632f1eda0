"""Sampling on a GPU: the workspace, and the launches. docs/sampling.md explains the algorithm.

mark    [rows]         only with a repetition penalty: a bitmap of the listed tokens
scan    [rows, tiles]  reads the logits once: the largest of a tile and of every group of tokens, and rough sums
choose  [rows]         settles greedy rows; for the others, which tokens may be kept, if these are few, or bounds
draw    [rows, tiles]  reads the rows that need it once more: exact masses, bounds of scores, tokens between the bounds
finish  [rows]         finds the cuts among the tokens in question, draws from those kept, and picks the token

No kernel waits for the host or for another program. A row's result is the same in any batch: tiles do not depend on
it, and what is added up in no fixed order is integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
import triton

from ..overlap import CAPABILITY, launch_options
from .choose import choose
from .draw import draw
from .finish import finish
from .rows import SampleOutput
from .scan import mark, scan

if TYPE_CHECKING:
    from ..build import Build

# Arguments that are no pointers to float32, as Triton names types; `logits` is of any dtype.
TYPES = {
    **dict.fromkeys(("stride", "vocab", "words", "tiles", "width", "capacity"), "i32"),
    **dict.fromkeys(("listed", "refused", "top_k", "first", "pending", "low_key", "high_key", "count"), "*i32"),
    **dict.fromkeys(("chosen", "ids", "status", "spare"), "*i32"),
    **dict.fromkeys(("seed", "position", "tokens", "mass_both", "goals"), "*i64"),
    "raw_total": "*fp64",
}


@dataclass(frozen=True)
class Sizes:
    """How the work is cut up; all powers of two. Results do not depend on them, but for the last bits of logprobs."""

    tile: int = 2048  # tokens of a program that reads a row's logits
    group: int = 32  # tokens whose largest logit top-k looks at first: 128 bytes of float32
    capacity: int = 32768  # tokens in question that a row's buffer holds; where there are more, the row is read again
    chunk: int = 2048  # tokens, or groups of them, that `choose` handles at once
    pool: int = 512  # candidates that `finish` handles at once
    sample: int = 8192  # tokens that tell where top-p is likely to cut
    pairs: int = 128  # candidates that are all compared with each other, 8 at least
    scan_warps: int = 2
    draw_warps: int = 2
    row_warps: int = 16


SIZES = Sizes()
MARK_WARPS = 4

# A kernel is compiled for its TILES, and for a capacity that is a multiple of 16 or not: one for all vocabularies.
LEAST_TILES = 128
LEAST_CAPACITY = 16


def sample_on_device(
    logits: torch.Tensor,
    settings: Sequence[torch.Tensor],
    penalty: tuple[torch.Tensor, torch.Tensor] | None,
    sizes: Sizes = SIZES,
    marked: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> SampleOutput:
    """Sample a token for each row of logits [B, V], on their device.

    Args:
        settings: temperature, top_k, top_p, min_p, seed and position, each [B], as ``sample_rows`` takes them.
        penalty: repetition_penalty [B] and penalty_tokens [B, N].
        marked: instead of it, what ``mark`` makes of one, on the device: repetition_penalty, `listed` int32 [B, V / 32]
            and `refused` int32 [B].

    Four launches, one more with a penalty to mark. Values out of range give status INVALID.
    """
    device = logits.device
    batch, vocab = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    temperature, top_k, top_p, min_p, seed, position = (s.to(device, non_blocking=True).contiguous() for s in settings)
    tiles, groups, words = triton.cdiv(vocab, sizes.tile), triton.cdiv(vocab, sizes.group), triton.cdiv(vocab, 32)

    capacity = min(sizes.capacity, max(LEAST_CAPACITY, triton.next_power_of_2(vocab)))

    def floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(batch, *shape, dtype=dtype, device=device)

    def integers(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(batch, *shape, dtype=dtype, device=device)

    out = SampleOutput(integers(dtype=torch.int64), floats(), integers())
    if not batch:
        return out
    listed = refused = by = out.status  # not looked at where there is no penalty
    if marked is not None:
        by, listed, refused = marked
    elif penalty is not None:
        by, tokens = (s.to(device, non_blocking=True).contiguous() for s in penalty)
        listed, refused = integers(words), integers()
        mark[(batch,)](tokens, tokens.shape[1], vocab, words, listed, refused, CHUNK=sizes.chunk, num_warps=MARK_WARPS)

    peak, first, raw_peak, raw_sum, weight = floats(tiles), integers(tiles), floats(tiles), floats(tiles), floats(tiles)
    group_peak, group_weight, goals = floats(groups), floats(groups), integers(3, dtype=torch.int64)
    top, raw_top, raw_total = floats(), floats(), floats(dtype=torch.float64)
    pending, low_key, high_key, count = integers(), integers(), integers(), integers()
    chosen = integers(max(1, capacity // sizes.group))
    pool = floats(capacity), floats(capacity), integers(capacity), capacity
    mass_both, earliest, lowest = integers(tiles, 2, dtype=torch.int64), floats(tiles), floats()
    spare = integers(4 * sizes.pairs)

    row = (logits, logits.stride(0), vocab, listed, words, by, temperature, top_k, top_p)
    found = (pending, low_key, high_key, count)
    shared: dict[str, Any] = {"PENALISED": penalty is not None or marked is not None, "enable_fp_fusion": False}
    shared |= launch_options()
    per_tile = {"TILE": sizes.tile, **shared}
    tiles_at_most = max(LEAST_TILES, triton.next_power_of_2(tiles))
    per_row = {"TILES": tiles_at_most, "num_warps": sizes.row_warps, **shared}
    scan[(batch, tiles)](
        *row, peak, first, raw_peak, raw_sum, weight, group_peak, group_weight,
        GROUP=sizes.group, num_warps=sizes.scan_warps, **per_tile,
    )  # fmt: skip
    choose[(batch,)](
        *row, min_p, position, refused,
        peak, first, raw_peak, raw_sum, weight, group_peak, group_weight, tiles,
        top, raw_top, raw_total, *found, lowest, goals, chosen, *pool, *out,
        TILE=sizes.tile, GROUP=sizes.group, SAMPLE=sizes.sample, CHUNK=sizes.chunk, **per_row,
    )  # fmt: skip
    draw[(batch, tiles)](
        *row, seed, position, peak, top, *found, lowest, *pool[2:], mass_both, earliest,
        num_warps=sizes.draw_warps, **per_tile,
    )  # fmt: skip
    finish[(batch,)](
        *row, min_p, seed, position, top, raw_top, raw_total, *found, goals, *pool,
        mass_both, earliest, tiles, spare, *out[:2],
        TILE=sizes.tile, PAIRS=sizes.pairs, CHUNK=sizes.pool, **per_row,
    )  # fmt: skip
    return out


def builds() -> Iterator[Build]:
    """What can be launched: every dtype, with and without a penalty.

    Rows whose stride and length are multiples of 16 are read in wider words than others, such as GPT-2's 50,257.
    """
    per_row = {"TILES": LEAST_TILES}
    constants: list[tuple[Any, dict[str, int], int]] = [
        (scan, {"TILE": SIZES.tile, "GROUP": SIZES.group}, SIZES.scan_warps),
        (
            choose,
            {"TILE": SIZES.tile, "GROUP": SIZES.group, "SAMPLE": SIZES.sample, "CHUNK": SIZES.chunk, **per_row},
            SIZES.row_warps,
        ),
        (draw, {"TILE": SIZES.tile}, SIZES.draw_warps),
        (finish, {"TILE": SIZES.tile, "PAIRS": SIZES.pairs, "CHUNK": SIZES.pool, **per_row}, SIZES.row_warps),
    ]
    kinds = [("fp32", True), ("fp32", False), ("bf16", True), ("fp16", True)]
    for (kernel, values, warps), (dtype, aligned), penalised in product(constants, kinds, (False, True)):
        yield _build(kernel, {**values, "PENALISED": penalised, "OVERLAP": False}, warps, dtype, aligned)
    for (kernel, values, warps), dtype in product(constants, ("fp32", "bf16")):
        yield _build(kernel, {**values, "PENALISED": False, "OVERLAP": True}, warps, dtype, aligned=True)
    yield _build(mark, {"CHUNK": SIZES.chunk}, MARK_WARPS, "fp32", True)


def _build(kernel: Any, constants: dict[str, int], warps: int, dtype: str, aligned: bool) -> Build:
    from ..build import ARCHITECTURES, Build

    types = {argument: TYPES.get(argument, "*fp32") for argument in kernel.arg_names if argument not in constants}
    if "logits" in types:
        types["logits"] = f"*{dtype}"
    multiples = {name: 16 for name, kind in types.items() if kind.startswith("*")}
    if aligned:
        multiples |= {name: 16 for name in ("stride", "vocab") if name in types}
    if "capacity" in types:
        multiples["capacity"] = 16
    overlaps = bool(constants.get("OVERLAP"))
    marks = {"penalty": constants.get("PENALISED"), "any stride": not aligned, "overlapping": overlaps}
    details = [dtype, *(mark for mark, there in marks.items() if there)]
    return Build(
        kernel=kernel,
        name=f"{kernel.__name__}[{' '.join(details)}]",
        signature=types,
        constexprs=constants,
        attrs=multiples,
        options={"num_warps": warps, "enable_fp_fusion": False},
        since=CAPABILITY if overlaps else ARCHITECTURES[0],
    )
