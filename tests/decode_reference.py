"""The kernels of the decode step in plain PyTorch: what they are held to, and fast enough for many random requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ds2ds import Runtime
from ds2ds.attention.rotary import rotate
from ds2ds.engine.decode_graph import graphs, table_writer
from ds2ds.engine.decode_graph.decoder import Decoder
from ds2ds.kernels import SampleOutput, few_rows, sample_rows
from ds2ds.kernels.decode_tables import FIELDS, RECORD, DecodeTables

TOKEN, POSITION, SLOT, OTHERS, SEED = (*(FIELDS.index(name) for name in ("token", "position", "slot", "others")), 10)


def edit(tables: DecodeTables, edits: Tensor) -> None:
    for record in edits.tolist():
        row, others = record[0], record[OTHERS]
        tables.fields[:, row] = torch.tensor(record[:RECORD], dtype=torch.int32)
        parts = torch.tensor(record[RECORD : RECORD + 3 * others], dtype=torch.int32)
        tables.others[row, :others] = parts.view(-1, 3)


def lay_out(tables: DecodeTables, rows: int, width: int, part: int) -> None:
    for row in range(rows):
        token, position, slot, others = (int(tables.fields[field, row]) for field in (TOKEN, POSITION, SLOT, OTHERS))
        if token < 0:
            token = max(0, int(tables.drawn[-1 - token, 0]))
        tables.ids[row], tables.draw_at[row] = token, position + 1
        tables.seed[row] = tables.fields[SEED : SEED + 2, row].contiguous().view(torch.int64)[0]
        parts: list[list[int]] = []
        if slot >= 0:
            length, start = position + 1, slot - position
            parts = [[row, position, start + at, min(part, length - at)] for at in range(0, length, part)]
            parts += [[row, position + turn, at, keys] for turn, at, keys in tables.others[row, :others].tolist()]
        tables.first[row], tables.count[row] = row * width, len(parts)
        tables.parts[row * width : (row + 1) * width, 3] = 0
        if parts:
            tables.parts[row * width : row * width + len(parts)] = torch.tensor(parts, dtype=torch.int32)


def advance(tables: DecodeTables, rows: int, tokens: Tensor, logprobs: Tensor, status: Tensor, penalised: bool) -> None:
    for row, token in enumerate(tokens.tolist()):
        tables.drawn[row] = torch.stack([tokens[row].int(), logprobs[row].view(torch.int32), status[row]])
        tables.fields[TOKEN, row] = -1 - row
        if tables.fields[SLOT, row] >= 0:
            tables.fields[POSITION, row] += 1
            tables.fields[SLOT, row] += 1
        if penalised and token >= 0:
            words = tables.listed[row].numpy().view("uint32")
            words[token // 32] |= 1 << token % 32


def store_rows(data: Tensor, qk: Tensor, v: Tensor, cos: Tensor, sin: Tensor, position: Tensor, slot: Tensor) -> None:
    here = slot >= 0
    at = position[here].long()
    keys = rotate(qk[here, 1], cos[at, None], sin[at, None])
    data[:, :, slot[here].long()] = torch.stack([keys, v[here]]).transpose(1, 2).to(data.dtype)


def read_parts(
    data: Tensor, qk: Tensor, cos: Tensor, sin: Tensor, parts: Tensor, first: Tensor, count: Tensor, part: int
) -> Tensor:
    out = torch.zeros_like(qk[:, 0])
    for row, (begin, number) in enumerate(zip(first.tolist(), count.tolist(), strict=True)):
        total, summed = torch.zeros(out.shape[1], 1), torch.zeros(out.shape[1:])
        for _, at, start, keys in parts[begin : begin + number].tolist():
            query = rotate(qk[row, 0].float(), cos[at], sin[at]).unsqueeze(1)
            k, v = data[:, :, start : start + keys].float()
            weights = (query @ k.mT * k.shape[-1] ** -0.5).exp()
            total += weights.sum(-1)
            summed += (weights @ v)[:, 0]
        if number:
            out[row] = summed / total
    return out


def store_and_read(
    data: Tensor,
    qk: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    slot: Tensor,
    parts: Tensor,
    first: Tensor,
    count: Tensor,
    part: int,
    *,
    norm: bool,
) -> Tensor:
    qk = F.rms_norm(qk, (qk.shape[-1],)) if norm else qk
    position = torch.stack([parts[one, 1] for one in first.tolist()])  # a row's own parts come first
    store_rows(data, qk, v, cos, sin, position, slot)
    return read_parts(data, qk, cos, sin, parts, first, count, part)


def sample_on_device(
    logits: Tensor, settings: Sequence[Tensor], penalty: None, marked: tuple[Tensor, Tensor, Tensor] | None = None
) -> SampleOutput:
    names = ("temperature", "top_k", "top_p", "min_p", "seed", "position")
    given: dict[str, Any] = dict(zip(names, settings, strict=True))
    if marked is not None:
        bits = marked[1].numpy().view("uint8").reshape(len(logits), -1)
        unpacked = np.unpackbits(bits, axis=1, bitorder="little")
        rows = [torch.from_numpy(row).nonzero()[:, 0] for row in unpacked[:, : logits.shape[1]]]
        width = max(1, *map(len, rows))
        listed = torch.stack([torch.cat([row, row.new_full((width - len(row),), -1)]) for row in rows])
        given |= {"repetition_penalty": marked[0], "penalty_tokens": listed}
    return sample_rows(logits, **given, backend="torch")


PLAIN = {
    graphs: ("lay_out", "advance", "store_and_read", "sample_on_device"),
    table_writer: ("edit",),
    few_rows: ("product",),
}

product = few_rows.plain_product


def use_plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in PLAIN.items():
        for name in names:
            monkeypatch.setattr(module, name, globals()[name])


def decode_in_tables(runtime: Runtime, *, part: int = 4, ahead: bool = True) -> Decoder:
    """Let a runtime on a CPU decode as it would on a GPU, kernel by kernel."""
    engine = runtime.engine
    engine.decoder = Decoder(
        runtime.model, engine.store, engine.limits.max_running, part=part, capture=False, ahead=ahead
    )
    return engine.decoder
