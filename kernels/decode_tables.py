"""The tables of decode steps that follow one another on a device, and the launches around the layers of each.

edit     [edits]  puts in place what the host has changed, a row of the tables each
lay_out  [rows]   what the rows compute now: token ids, and the parts that attention reads (see decode_attention.py)
advance  [rows]   takes in what was drawn: each row is one position and one slot further on, and its next token is that

Between two plain tokens of the same documents nothing comes from the host: a row's own document grows by one slot,
which `lay_out` knows from its position, and the others that it reads stay where they are and at the same distance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .overlap import CAPABILITY, launch_options, take_over

if TYPE_CHECKING:
    from .build import Build

FIELDS = ("row", "token", "position", "slot", "others", "temperature", "top_k", "top_p", "min_p", "penalty")
"""What a row of the tables has, a 32-bit word each; then come the lower and the upper half of its seed."""

RECORD = 16
"""Words of a row in `edits` before its parts; a power of two."""

# Where they are, as kernels need it.
TOKEN = tl.constexpr(1)
POSITION = tl.constexpr(2)
SLOT = tl.constexpr(3)
OTHERS = tl.constexpr(4)
SEED = tl.constexpr(10)
RECORD_WORDS = tl.constexpr(RECORD)

_ONE_WARP: dict[str, Any] = {"num_warps": 1, "enable_fp_fusion": True}


@dataclass(frozen=True)
class DecodeTables:
    """Device memory for up to `rows` rows, each reading up to `width` parts, made once.

    Attributes:
        fields: int32 [RECORD, rows], see FIELDS; floats by their bits. `token` is the id to compute, or -1 - i: the
            one that row i drew last. A row whose slot is below 0 is not there: it stores and reads nothing.
        others: int32 [rows, width, 3], the parts that a row reads of other documents: how far its query is turned
            beyond its own position, first slot, number of keys.
        drawn: int32 [rows, 3], what the last step drew: token (-1: none could be), bits of its log-probability, status.
        listed: int32 [rows, words], a bit for each token of the row's document, for the repetition penalty.
        ids, draw_at, seed: int64 [rows]: what the step computes, the position of what it draws, and the noise's seed.
        parts: int32 [rows * width, 4]; first, count: int32 [rows]; as `read_parts` takes them.
        refused: int32 [rows], zeros: no token is listed that does not exist.
    """

    fields: Tensor
    others: Tensor
    drawn: Tensor
    listed: Tensor
    ids: Tensor
    draw_at: Tensor
    seed: Tensor
    parts: Tensor
    first: Tensor
    count: Tensor
    refused: Tensor

    @classmethod
    def make(cls, rows: int, width: int, vocab: int, device: torch.device | str) -> DecodeTables:
        """Tables without a row in them; rows and width are powers of two."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        fields = zeros(RECORD, rows)
        fields[SLOT.value] = -1
        fields[FIELDS.index("top_p")].view(torch.float32).fill_(1.0)
        fields[FIELDS.index("penalty")].view(torch.float32).fill_(1.0)
        return cls(
            fields=fields,
            others=zeros(rows, width, 3),
            drawn=zeros(rows, 3),
            listed=zeros(rows, -(-vocab // 32)),
            ids=zeros(rows, dtype=torch.int64),
            draw_at=zeros(rows, dtype=torch.int64),
            seed=zeros(rows, dtype=torch.int64),
            parts=zeros(rows * width, 4),
            first=zeros(rows),
            count=zeros(rows),
            refused=zeros(rows),
        )

    @property
    def rows(self) -> int:
        return self.fields.shape[1]

    @property
    def width(self) -> int:
        return self.others.shape[1]

    def column(self, name: str, rows: int) -> Tensor:
        """A field of the first rows, [rows]: float32 where it is a float, else int32."""
        column = self.fields[FIELDS.index(name), :rows]
        return column.view(torch.float32) if name in ("temperature", "top_p", "min_p", "penalty") else column

    def settings(self, rows: int) -> tuple[Tensor, ...]:
        """As `sample_on_device` takes them."""
        columns = (self.column(name, rows) for name in ("temperature", "top_k", "top_p", "min_p"))
        return (*columns, self.seed[:rows], self.draw_at[:rows])

    def penalised(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """The repetition penalty of each row, and what it is for, as `sample_on_device` takes them."""
        return self.column("penalty", rows), self.listed[:rows], self.refused[:rows]

    @property
    def state(self) -> tuple[Tensor, ...]:
        """All that a step leaves for the next one."""
        return self.fields, self.others, self.drawn, self.listed


def edit(tables: DecodeTables, edits: Tensor) -> None:
    """Replace rows: int32 [n, RECORD + 3 * width], FIELDS and the seed, from word RECORD on the parts of others."""
    _edit[(len(edits),)](edits, edits.stride(0), tables.fields, tables.rows, tables.others, tables.width, **_ONE_WARP)


def lay_out(tables: DecodeTables, rows: int, width: int, part: int) -> None:
    """Fill in ids, draw_at, seed, parts, first and count for the first rows, none of which has more than width parts.

    Args:
        width: of the parts laid out, a power of two.
        part: most keys of a part.
    """
    _lay_out[(rows,)](
        tables.fields, tables.rows, tables.drawn, tables.others, tables.width,
        tables.ids, tables.draw_at, tables.seed, tables.parts, tables.first, tables.count,
        PART=part, WIDTH=width, **_ONE_WARP,
    )  # fmt: skip


def advance(tables: DecodeTables, rows: int, tokens: Tensor, logprobs: Tensor, status: Tensor, penalised: bool) -> None:
    """Take in what was drawn for the first rows: int64, float32 and int32, [rows] each."""
    _advance[(rows,)](
        tokens, logprobs, status, tables.drawn, tables.fields, tables.rows, tables.listed, tables.listed.shape[1],
        PENALISED=penalised, **_ONE_WARP, **launch_options(),
    )  # fmt: skip


@triton.jit(do_not_specialize=["stride", "rows", "width"])
def _edit(edits, stride, fields, rows, others, width):
    record = edits + tl.program_id(0) * stride
    row = tl.load(record)
    word = tl.arange(0, RECORD_WORDS)
    tl.store(fields + word * rows + row, tl.load(record + word))
    number = 3 * tl.load(record + OTHERS)
    for start in range(0, number, RECORD_WORDS):
        here = start + word < number
        values = tl.load(record + RECORD_WORDS + start + word, mask=here, other=0)
        tl.store(others + row * 3 * width + start + word, values, mask=here)


@triton.jit(do_not_specialize=["rows", "width"])
def _lay_out(
    fields, rows, drawn, others, width, ids, draw_at, seed, parts, first, count, PART: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    token = tl.load(fields + TOKEN * rows + row)
    position = tl.load(fields + POSITION * rows + row)
    slot = tl.load(fields + SLOT * rows + row)
    # A row that could draw nothing is at its end; what is computed for it then is not looked at.
    fed = tl.maximum(tl.load(drawn + 3 * tl.maximum(-1 - token, 0)), 0)
    tl.store(ids + row, tl.where(token < 0, fed, token).to(tl.int64))
    tl.store(draw_at + row, (position + 1).to(tl.int64))
    low = tl.load(fields + SEED * rows + row).to(tl.uint32, bitcast=True).to(tl.int64)
    high = tl.load(fields + (SEED + 1) * rows + row).to(tl.int64)
    tl.store(seed + row, (high << 32) | low)
    # Its own document first, of which it reads all up to itself, then the others.
    own = tl.where(slot >= 0, (position + PART) // PART, 0)
    number = tl.where(slot >= 0, tl.load(fields + OTHERS * rows + row), 0)
    part = tl.arange(0, WIDTH)
    at = part * PART
    theirs = (part >= own) & (part < own + number)
    other = others + 3 * (row * width + part - own)
    turn = tl.load(other, mask=theirs, other=0)
    start = tl.where(theirs, tl.load(other + 1, mask=theirs, other=0), slot - position + at)
    keys = tl.where(part < own, tl.minimum(position + 1 - at, PART), tl.load(other + 2, mask=theirs, other=0))
    laid = parts + 4 * (row * WIDTH + part)
    tl.store(laid, row)
    tl.store(laid + 1, position + turn)
    tl.store(laid + 2, start)
    tl.store(laid + 3, keys)
    tl.store(first + row, row * WIDTH)
    tl.store(count + row, own + number)


@triton.jit(do_not_specialize=["rows", "words"])
def _advance(
    tokens, logprobs, status, drawn, fields, rows, listed, words, PENALISED: tl.constexpr, OVERLAP: tl.constexpr
):  # fmt: skip
    if OVERLAP:
        take_over()
    row = tl.program_id(0)
    token = tl.load(tokens + row).to(tl.int32)
    tl.store(drawn + 3 * row, token)
    tl.store(drawn + 3 * row + 1, tl.load(logprobs + row).to(tl.int32, bitcast=True))
    tl.store(drawn + 3 * row + 2, tl.load(status + row))
    position = fields + POSITION * rows + row
    slot = fields + SLOT * rows + row
    here = (tl.load(slot) >= 0).to(tl.int32)
    tl.store(fields + TOKEN * rows + row, -1 - row)
    tl.store(position, tl.load(position) + here)
    tl.store(slot, tl.load(slot) + here)
    if PENALISED:
        word = listed + row.to(tl.int64) * words + (token >> 5)
        known = tl.load(word, mask=token >= 0, other=0)
        tl.store(word, known | (1 << (token & 31)), mask=token >= 0)


def builds() -> Iterator[Build]:
    """For the fewest and the most parts of a row, with and without a penalty, and overlapping."""
    from .build import ARCHITECTURES, Build

    kernels: list[tuple[Any, str, dict[str, Any]]] = [(_edit, "", {})]
    kernels += [(_lay_out, f"[{width} parts]", {"PART": 128, "WIDTH": width}) for width in (4, 128)]
    kernels += [(_advance, "[penalty]" if on else "", {"PENALISED": on, "OVERLAP": False}) for on in (False, True)]
    kernels.append((_advance, "[overlapping]", {"PENALISED": False, "OVERLAP": True}))
    types = dict.fromkeys(("stride", "rows", "width", "words"), "i32")
    types |= dict.fromkeys(("ids", "draw_at", "seed", "tokens"), "*i64") | {"logprobs": "*fp32"}
    for kernel, detail, constants in kernels:
        signature = {name: types.get(name, "*i32") for name in kernel.arg_names if name not in constants}
        yield Build(
            kernel=kernel,
            name=f"decode{kernel.__name__}{detail}",
            signature=signature,
            constexprs=constants,
            attrs={name: 16 for name, kind in signature.items() if kind.startswith("*")},
            options=_ONE_WARP,
            since=CAPABILITY if constants.get("OVERLAP") else ARCHITECTURES[0],
        )
