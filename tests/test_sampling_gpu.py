"""``sample_rows`` on a GPU: the kernels against the host reference, and what only a GPU can get wrong."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_sampling_kernel import (
    DRAWS,
    INF,
    NAN,
    OF_PROBABILITIES_KEPT,
    PROBABILITIES,
    QUICK,
    batches,
    columns,
    goodness_of_fit,
    naive_kept,
    same,
)
from torch import Tensor

from ds2ds.kernels import SampleOutput, SampleStatus, sample_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE, BACKEND = "cuda", "triton"
HALF = [torch.bfloat16, torch.float16]


def rows_for(vocab: int) -> list[dict]:
    """Settings of every kind, at their limits too, each row with a seed and a position of its own."""
    rows: list[dict] = [
        *({"top_k": k} for k in (1, 50, 1024, max(1, vocab // 2), max(1, vocab - 1), vocab, 2**31 - 1)),
        *({"top_p": p} for p in (0.9, 0.5, 0.999999, 1 - 2**-24, 1e-6, 1e-40)),
        *({"min_p": m} for m in (0.05, 1.0, 1e-9)),
        *({"temperature": t} for t in (0.0, 1.0, 0.3, 50.0, 1e-30, 1e-40, 1e30)),
        *({"temperature": t, "top_p": 0.9} for t in (0.7, 1e-3, 1e-30, 1e30)),
        {"top_k": 50, "top_p": 0.9},
        {"top_k": 50, "top_p": 0.9, "min_p": 0.02, "temperature": 0.8},
        {"top_k": 5000, "top_p": 0.999},
        {"top_k": 100_000, "top_p": 0.5, "temperature": 3.0},
        {"top_k": 300, "temperature": 1e-30},
        {"top_p": 0.95, "min_p": 0.01},
    ]
    draw = np.random.default_rng(vocab)
    for row in rows:
        row |= {"seed": int(draw.integers(-(2**63), 2**63)), "position": int(draw.integers(2**20))}
    return rows


def missing_in_runs(logits: Tensor) -> Tensor:
    gone = torch.rand(len(logits), -(-logits.shape[1] // 64)) < 0.7
    return logits.masked_fill(gone.repeat_interleave(64, dim=1)[:, : logits.shape[1]], -INF)


def one_finite(logits: Tensor) -> Tensor:
    ids = torch.randint(logits.shape[1], (len(logits), 1))
    return torch.full_like(logits, -INF).scatter_(1, ids, logits)


def clustered(logits: Tensor) -> Tensor:
    """What matters lies side by side: more near-equals in one stretch than there is room for candidates."""
    start = int(torch.randint(logits.shape[1], ()))
    out = logits - 8
    out[:, start : start + 6000] = 5 + logits[:, start : start + 6000] * 0.01
    return out


# From normal logits to those that break arithmetic, overflow what a kernel keeps, or tie wherever there is a cut.
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x * 4,
    "flat": lambda x: x * 0.01,
    "peaked": lambda x: torch.where(x > 3.0, x * 6, x * 2),
    "equal": lambda x: torch.full_like(x, 1.5),
    "rounded": lambda x: (x * 16).round() / 8,
    "two values": lambda x: (x > 0).float(),
    "signed zeros": lambda x: torch.where(x > 0, 0.0, -0.0),
    "neighbours": lambda x: 1 + (x * 9).round() * 2**-23,
    "missing in runs": missing_in_runs,
    "one finite": one_finite,
    "clustered": clustered,
    "rising": lambda x: torch.linspace(-20, 20, x.shape[1]).expand_as(x).clone(),
    "falling": lambda x: torch.linspace(20, -20, x.shape[1]).expand_as(x).clone(),
    "denormal": lambda x: x * 1e-40,
    "huge": lambda x: (x.double() * 1e38).clamp(-3.4e38, 3.4e38).float(),
}
OVERFLOWING = ("flat", "peaked", "rounded", "clustered")


def make(kind: str, count: int, vocab: int) -> Tensor:
    torch.manual_seed(vocab)
    return KINDS[kind](torch.randn(count, vocab))


def on_device(rows: list[dict]) -> dict[str, Tensor]:
    return {name: column.to(DEVICE) for name, column in columns(rows).items()}


def ours(logits: Tensor, rows: list[dict]) -> SampleOutput:
    """What the kernels return, brought to the host."""
    return host(sample_rows(logits.to(DEVICE), **on_device(rows), backend=BACKEND))


def host(out: SampleOutput) -> SampleOutput:
    return SampleOutput(*(column.cpu() for column in out))


def check(found: SampleOutput, logits: Tensor, rows: list[dict]) -> None:
    """Tokens and statuses are the reference's exactly, log-probabilities to within rounding."""
    expected = sample_rows(logits.cpu(), **columns(rows), backend="torch")
    differ = ((found.tokens != expected.tokens) | (found.status != expected.status)).nonzero().flatten().tolist()
    assert not differ, [(rows[i], [(int(o.tokens[i]), int(o.status[i])) for o in (found, expected)]) for i in differ]
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=1e-6, atol=1e-6, equal_nan=True)


@QUICK
@given(batches(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_small_rows(batch: tuple[np.ndarray, list[dict]], dtype: torch.dtype) -> None:
    logits = torch.from_numpy(batch[0]).to(dtype)
    check(ours(logits, batch[1]), logits, batch[1])


@QUICK
@given(batches(penalised=True), st.sampled_from([torch.float32, torch.bfloat16]))
def test_small_penalised_rows(batch: tuple[np.ndarray, list[dict]], dtype: torch.dtype) -> None:
    logits = torch.from_numpy(batch[0]).to(dtype)
    check(ours(logits, batch[1]), logits, batch[1])


@pytest.mark.parametrize(
    ("vocab", "dtype", "kinds"),
    [
        *((vocab, torch.float32, KINDS) for vocab in (1, 2, 33, 1000, 4096, 4097, 50257, 262144)),
        *((vocab, torch.bfloat16, KINDS) for vocab in (1, 1000, 50257)),
        *((vocab, torch.float16, KINDS) for vocab in (777, 4095)),
        # The host takes its time over large ones.
        *((vocab, torch.float32, OVERFLOWING) for vocab in (131072, 200003)),
        *((vocab, torch.bfloat16, OVERFLOWING) for vocab in (131071, 262144)),
        (50304, torch.float16, OVERFLOWING),
    ],
)
def test_every_setting_on_every_kind_of_logits(vocab: int, dtype: torch.dtype, kinds: Sequence[str]) -> None:
    rows = rows_for(vocab)
    for kind in kinds:
        logits = make(kind, len(rows), vocab).to(dtype).to(DEVICE)
        before = logits.clone()
        found = ours(logits, rows)
        assert torch.equal(logits, before), "the logits were modified"
        try:
            check(found, logits, rows)
        except AssertionError as error:
            raise AssertionError(f"{kind}: {error}") from error


@pytest.mark.parametrize("vocab", [7, 1000, 50257, 262144])
@pytest.mark.parametrize("kind", ["normal", "rounded", "missing in runs", "huge"])
def test_penalties(vocab: int, kind: str) -> None:
    rows = rows_for(vocab)
    logits = make(kind, len(rows), vocab)
    likely = logits.topk(min(vocab, 40)).indices.tolist()
    draw = np.random.default_rng(vocab)
    for i, row in enumerate(rows):
        # Those that matter, others, and some of them again; in the first row none.
        listed = [*likely[i][: draw.integers(41)], *draw.integers(0, vocab, draw.integers(600)).tolist()]
        row["listed"] = (listed + listed[::3])[: 1000 * i]
        row["repetition_penalty"] = [1.0, 1.3, 0.7, 2.0, 1e30, 1e-30][i % 6]
    check(ours(logits, rows), logits, rows)
    for row in rows:
        row["listed"] = []
    check(ours(logits, rows), logits, rows)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("vocab", [33, 50257, 262144])
def test_rows_without_a_softmax_are_reported_alone(vocab: int, dtype: torch.dtype) -> None:
    rows = rows_for(vocab)
    good = make("normal", len(rows), vocab).to(dtype)
    bits = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    negative = torch.tensor([-1], dtype=bits).view(dtype)  # a NaN with its sign bit set
    last = torch.full((len(rows), vocab), -INF, dtype=dtype)
    last[:, -1] = NAN
    spoilt = [good.clone() for _ in range(4)]
    spoilt[0][:, 0], spoilt[1][:, vocab // 2], spoilt[2][:, -1], spoilt[3][:, 3] = NAN, negative, INF, -INF
    logits = torch.stack([*spoilt, last, torch.full_like(last, -INF), good], dim=1).flatten(0, 1)
    spread = [row for row in rows for _ in range(7)]
    found = ours(logits, spread)
    check(found, logits, spread)
    assert found.status.reshape(-1, 7).unique(dim=0).tolist() == [[1, 1, 1, 0, 1, 2, 0]]


@pytest.mark.parametrize("vocab", [33, 50257])
def test_settings_out_of_range_are_reported_in_their_rows(vocab: int) -> None:
    bad = {
        "temperature": (-1.0, NAN, INF),
        "top_k": (-1, -(2**31)),
        "top_p": (0.0, -0.5, 1.5, NAN),
        "min_p": (-0.1, 1.25, NAN),
        "position": (-1, -(2**63)),
        "repetition_penalty": (0.0, -1.0, NAN, INF),
        "listed": ([0, vocab], [-2, 1], [2**40]),
    }
    wrong = [{name: value} for name, values in bad.items() for value in values]
    good = [row | {"repetition_penalty": 1.3, "listed": [2, 5]} for row in rows_for(vocab)][: len(wrong)]
    mixed = [row for i, pair in enumerate(zip(good, wrong, strict=False)) for row in (pair[0], good[-i] | pair[1])]
    logits = make("normal", len(mixed), vocab)
    found = ours(logits, mixed)
    check(SampleOutput(*(column[::2] for column in found)), logits[::2], mixed[::2])
    assert found.status[1::2].tolist() == [SampleStatus.INVALID] * (len(mixed) // 2)
    assert found.tokens[1::2].tolist() == [-1] * (len(mixed) // 2) and found.logprobs[1::2].isnan().all()


@pytest.mark.parametrize("vocab", [300, 50257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides(vocab: int, dtype: torch.dtype) -> None:
    rows = rows_for(vocab)
    logits = make("normal", len(rows), vocab).to(dtype).to(DEVICE)
    expected = ours(logits, rows)
    # NaN all around: a read beyond a row would show.
    wide = torch.full((len(rows), 3, vocab + 8), NAN, dtype=dtype, device=DEVICE)
    for offset in (0, 1, 3):
        view = wide[:, 1, offset : offset + vocab]
        view.copy_(logits)
        assert same(ours(view, rows), expected)
        view.fill_(NAN)
    assert same(ours(logits.t().contiguous().t(), rows), expected)
    assert same(ours(logits[:1].expand(len(rows), -1), rows), ours(logits[:1].repeat(len(rows), 1), rows))


@pytest.mark.parametrize("vocab", [1000, 50257, 131072, 262144])
def test_a_row_is_the_same_alone_and_in_any_batch(vocab: int) -> None:
    rows = (rows_for(vocab) * 2)[:64]
    kinds = ("normal", "flat", "rounded", "clustered")
    logits = torch.cat([make(kind, 16, vocab) for kind in kinds])[torch.randperm(64)].to(DEVICE)
    together = ours(logits, rows)
    for i, row in enumerate(rows):
        assert same(ours(logits[i : i + 1], [row]), SampleOutput(*(column[i : i + 1] for column in together)))
    order = torch.randperm(64)[:37].repeat(5)
    mixed = ours(logits[order.to(DEVICE)], [rows[i] for i in order])
    assert same(mixed, SampleOutput(*(column[order] for column in together)))


def test_more_rows_than_a_grid_has_columns_and_none() -> None:
    settings = {name: column.expand(66_000).contiguous() for name, column in on_device([{"top_k": 5}]).items()}
    settings["position"] = torch.arange(66_000, device=DEVICE)
    logits = make("normal", 1, 20).to(DEVICE).expand(66_000, -1)
    found = host(sample_rows(logits, **settings, backend=BACKEND))
    expected = sample_rows(logits, **settings, backend="torch")
    assert torch.equal(found.tokens, expected.tokens.cpu())
    nothing = sample_rows(logits[:0], **{name: column[:0] for name, column in settings.items()}, backend=BACKEND)
    assert [column.shape for column in nothing] == [(0,)] * 3


# Memory, streams and graphs


@pytest.fixture
def busy() -> tuple[Tensor, list[dict], SampleOutput]:
    """Logits and settings that need every buffer there is, and what comes of them."""
    rows = rows_for(50257)
    for i, row in enumerate(rows):
        row |= {"repetition_penalty": 1.2, "listed": list(range(i, 40 * i, 7))}
    logits = torch.cat([make(kind, len(rows), 50257) for kind in ("normal", "flat", "rounded")]).to(DEVICE)
    out = ours(logits, rows * 3)
    check(out, logits, rows * 3)
    return logits, rows * 3, out


def test_it_repeats_itself(busy: tuple[Tensor, list[dict], SampleOutput]) -> None:
    logits, rows, first = busy
    settings = on_device(rows)
    for _ in range(50):
        assert same(host(sample_rows(logits, **settings, backend=BACKEND)), first)


@pytest.mark.parametrize("byte", [0xFF, 0x00, 0x7F, 0xAA])
def test_what_memory_held_before_does_not_matter(
    byte: int, busy: tuple[Tensor, list[dict], SampleOutput], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, rows, first = busy
    settings = on_device(rows)
    blocks = [torch.full((2**n,), byte, dtype=torch.uint8, device=DEVICE) for n in range(9, 26) for _ in range(4)]
    del blocks
    assert same(host(sample_rows(logits, **settings, backend=BACKEND)), first)
    # The allocator may hand out other memory than that; a torch.empty that is dirty leaves nothing to chance.
    for where, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(where, name, dirtied(getattr(where, name), byte))
    assert same(host(sample_rows(logits, **settings, backend=BACKEND)), first)


def dirtied(allocate: Callable[..., Tensor], byte: int) -> Callable[..., Tensor]:
    def allocate_dirty(*arguments: object, **named: object) -> Tensor:
        out = allocate(*arguments, **named)
        out.view(-1).view(torch.uint8).fill_(byte)
        return out

    return allocate_dirty


def test_calls_of_other_shapes_in_between_do_not_matter(busy: tuple[Tensor, list[dict], SampleOutput]) -> None:
    logits, rows, first = busy
    for vocab in (5, 262144, 1000):
        other = rows_for(vocab)
        garbage = make("huge", len(other), vocab)
        garbage[::2] = NAN
        check(ours(garbage, other), garbage, other)
        assert same(ours(logits, rows), first)


def test_two_streams_do_not_share_memory(busy: tuple[Tensor, list[dict], SampleOutput]) -> None:
    logits, rows, first = busy
    settings = on_device(rows)
    flipped = {name: column.flip(0) for name, column in settings.items()}
    pairs = [(logits, settings), (logits.flip(0), flipped)]
    streams = [torch.cuda.Stream() for _ in pairs]
    torch.cuda.synchronize()
    found: list[list[SampleOutput]] = [[], []]
    for _ in range(20):
        for stream, (x, some), out in zip(streams, pairs, found, strict=True):
            with torch.cuda.stream(stream):
                out.append(sample_rows(x, **some, backend=BACKEND))
    torch.cuda.synchronize()
    for one, two in zip(*found, strict=True):
        assert same(host(one), first)
        assert same(SampleOutput(*(column.flip(0) for column in host(two))), first)


@pytest.fixture
def no_synchronisation() -> Iterator[None]:
    mode = torch.cuda.get_sync_debug_mode()
    yield
    torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.usefixtures("no_synchronisation")
def test_the_host_does_not_wait(busy: tuple[Tensor, list[dict], SampleOutput]) -> None:
    logits, rows, first = busy
    settings = on_device(rows)
    torch.cuda.set_sync_debug_mode("error")
    out = sample_rows(logits, **settings, backend=BACKEND)
    torch.cuda.set_sync_debug_mode("default")
    assert same(host(out), first)


def captured(logits: Tensor, settings: dict[str, Tensor]) -> tuple[torch.cuda.CUDAGraph, SampleOutput]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        sample_rows(logits, **settings, backend=BACKEND)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        out = sample_rows(logits, **settings, backend=BACKEND)
    return graph, out


def launches(graph: torch.cuda.CUDAGraph) -> int:
    """Nodes of the graph: kernels, copies, fills."""
    number = ctypes.c_size_t()
    driver = ctypes.CDLL("libcuda.so.1")
    assert driver.cuGraphGetNodes(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(number)) == 0
    return number.value


@pytest.mark.parametrize("penalised", [False, True])
def test_a_graph_replays_whatever_settings_and_logits_it_finds(penalised: bool) -> None:
    vocab, rows = 50257, rows_for(50257)
    if penalised:
        rows = [row | {"repetition_penalty": 1.0 + i / 9, "listed": [i, 50 * i]} for i, row in enumerate(rows)]
    settings = on_device([rows[0] | {"top_k": 3}] * len(rows))
    logits = make("equal", len(rows), vocab).to(DEVICE)
    graph, out = captured(logits, settings)
    assert launches(graph) <= (6 if penalised else 4)
    for kind in KINDS:
        rows = rows[1:] + rows[:1]
        logits.copy_(make(kind, len(rows), vocab))
        logits[5, 7] = NAN
        for name, column in columns(rows).items():
            settings[name].copy_(column)
        graph.replay()
        check(host(out), logits, rows)


# The distribution


@pytest.mark.parametrize("by", ["position", "seed"])
@pytest.mark.parametrize(("row", "kept"), OF_PROBABILITIES_KEPT)
def test_draws_follow_the_distribution(row: dict, kept: int, by: str) -> None:
    logits = torch.from_numpy(np.log(PROBABILITIES) + 3.0).float()
    counts = count_draws(logits, row, by, 5000)
    p = PROBABILITIES ** (1 / row.get("temperature", 1.0))
    survivors = np.sort(naive_kept(logits.numpy(), row)[0])
    assert len(survivors) == kept and counts.sum() == counts[survivors].sum() == DRAWS
    assert goodness_of_fit(counts[survivors], p[survivors] / p[survivors].sum()) < 6


@pytest.mark.parametrize(("row", "tail"), [({}, 0.1), ({"top_p": 0.95}, 0.05 / 0.95), ({"top_k": 12}, 0.0)])
def test_draws_from_a_real_vocabulary_follow_the_distribution(row: dict, tail: float) -> None:
    """Twelve tokens anywhere with 0.9 of the mass, and the rest on all others alike, of which top-p keeps a half."""
    vocab = 50257
    ids = np.sort(np.random.default_rng(4).choice(vocab, 12, replace=False))
    p = np.full(vocab, 0.1 / (vocab - 12))
    p[ids] = 0.9 * PROBABILITIES.clip(1e-4) / PROBABILITIES.clip(1e-4).sum()
    counts = count_draws(torch.from_numpy(np.log(p)).float(), row, "position", 2500)
    shares = (1 - tail) * p[ids] / p[ids].sum()
    cells, expected = counts[ids], shares
    if tail:
        cells, expected = np.append(cells, DRAWS - cells.sum()), np.append(shares, tail)
    assert cells.sum() == DRAWS
    assert goodness_of_fit(cells, expected) < 6


def count_draws(logits: Tensor, row: dict, by: str, at_once: int) -> np.ndarray:
    one = {name: column.expand(at_once).contiguous() for name, column in on_device([row]).items()}
    counts = torch.zeros(len(logits), dtype=torch.int64)
    for start in range(0, DRAWS, at_once):
        settings = one | {by: torch.arange(start, start + at_once, device=DEVICE)}
        out = sample_rows(logits.to(DEVICE).expand(at_once, -1), **settings, backend=BACKEND)
        assert (out.status == SampleStatus.OK).all()
        counts += out.tokens.cpu().bincount(minlength=len(logits))
    return counts.numpy()
