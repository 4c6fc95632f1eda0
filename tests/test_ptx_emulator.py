"""The emulator of `tests/ptx` on PTX written by hand, sound and not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ptx.code import parse
from ptx.kernel import Kernel
from ptx.machine import Machine, Result
from ptx.memory import Fault, Space
from ptx.translate import Unknown
from ptx.values import Array, multiply_16x8x16

THREADS = np.arange(64, dtype=np.uint32)


def kernel(body: str) -> Kernel:
    """A kernel of (input, output), with the number of its thread in %r1, and addresses of that word of each in %rd."""
    head = ".visible .entry test(\n\t.param .u64 .ptr .global .align 1 a,\n\t.param .u64 b\n)\n.reqntid 64\n{\n"
    registers = ".reg .pred %p<9>;\n.reg .b16 %rs<9>;\n.reg .b32 %r<30>;\n.reg .b64 %rd<9>;\n"
    start = """
        ld.param.b64 %rd1, [a];
        ld.param.b64 %rd2, [b];
        mov.u32 %r1, %tid.x;
        mad.wide.u32 %rd3, %r1, 4, %rd1;
        mad.wide.u32 %rd4, %r1, 4, %rd2;
        ld.global.b32 %r2, [%rd3];
    """
    return Kernel(parse(f"{head}{registers}{start}{body}\nret;\n}}\n"))


def run(
    body: str, given: Array = THREADS, size: int = 64, grid: int = 1, seed: int = 0, bundles: int | None = None
) -> tuple[Array, Result]:
    """What two warps make of 64 words, in a space where the output has no value yet."""
    made = kernel(body)
    arrays = {"a": given, "b": np.zeros(size, np.uint32)}
    space = Space(arrays, made.cell, known={"b": np.zeros(size * 4, bool)})
    machine = Machine(made, space, 1024, 2, seed, bundles=bundles)
    result = machine.launch((grid,), {name: space.address(name) for name in arrays})
    return space.read("b"), result


def computed(line: str, given: Array = THREADS) -> Array:
    """%r3 after this, of the input in %r2."""
    out, result = run(f"{line}\nst.global.b32 [%rd4], %r3;", given.view(np.uint32))
    assert not result.findings
    return out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("add.s32 %r3, %r2, -5;", THREADS - 5),
        ("mul.hi.u32 %r3, %r2, -1;", (THREADS.astype(np.uint64) * (2**32 - 1)) >> 32),
        ("shl.b32 %r3, %r2, 31;", THREADS << 31),
        ("shl.b32 %r3, %r1, 32;", THREADS * 0),
        ("sub.s32 %r2, %r2, 32;\nshr.s32 %r3, %r2, 2;", (THREADS.astype(np.int32) - 32) >> 2),
        ("sub.s32 %r2, %r2, 32;\ndiv.s32 %r3, %r2, 5;", np.trunc((THREADS - 32.0) / 5)),
        ("bfe.u32 %r3, %r2, 1, 3;", THREADS >> 1 & 7),
        ("bfe.s32 %r3, %r2, 0, 3;", (THREADS.astype(np.int32) ^ 4) % 8 - 4),
        ("prmt.b32 %r3, %r2, 0x81, 0x4C00U;", THREADS | THREADS << 8 | 0xFF0000 | 0x81000000),
        ("setp.lt.u32 %p1, %r2, 9;\nselp.b32 %r3, 7, %r2, %p1;", np.where(THREADS < 9, 7, THREADS)),
        ("mov.b32 %r3, 1;\nsetp.gt.u32 %p1, %r2, 9;\n@%p1 mov.b32 %r3, 2;", np.where(THREADS > 9, 2, 1)),
        ("mov.b64 %rd5, {%r2, %r1};\nshr.u64 %rd5, %rd5, 32;\ncvt.u32.u64 %r3, %rd5;", THREADS),
        ("popc.b32 %r3, %r2;", np.bitwise_count(THREADS)),
        ("redux.sync.add.s32 %r3, %r2, -1;", np.repeat([496, 496 + 1024], 32)),
        ("shfl.sync.bfly.b32 %r3, %r2, 3, 31, -1;", THREADS ^ 3),
        ("shfl.sync.up.b32 %r3, %r2, 4, 0, -1;", np.where(THREADS % 32 < 4, THREADS, THREADS - 4)),
    ],
)
def test_integers(line: str, expected: Array) -> None:
    assert computed(line).tolist() == (expected.astype(np.int64) & 0xFFFFFFFF).tolist()


def in_bfloat16(x: Array) -> Array:
    return torch.tensor(x).bfloat16().float().numpy()


def in_int32(x: Array) -> Array:
    return np.nan_to_num(np.trunc(x.clip(-(2.0**31), 2.0**31)))


ODD = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, 2.5, -3e38], np.float32)


@pytest.mark.parametrize(
    ("line", "of"),
    [
        ("max.f32 %r3, %r2, 0f00000000;", lambda x: np.where(np.isnan(x) | (x <= 0), np.float32(0), x)),
        ("mul.rn.f32 %r3, %r2, 0f3F000000;", lambda x: x * np.float32(0.5)),
        ("fma.rn.f32 %r3, %r2, 0f3F000000, 0f3F800000;", lambda x: x * np.float32(0.5) + np.float32(1)),
        ("cvt.rn.bf16.f32 %rs1, %r2;\ncvt.f32.bf16 %r3, %rs1;", in_bfloat16),
        ("setp.geu.f32 %p1, %r2, 0f00000000;\nselp.f32 %r3, %r2, 0fBF800000, %p1;", lambda x: np.where(x < 0, -1, x)),
        ("cvt.rzi.s32.f32 %r3, %r2;\ncvt.rn.f32.s32 %r3, %r3;", in_int32),
    ],
)
def test_floats(line: str, of: Callable[[Array], Array]) -> None:
    given = np.resize(ODD, 64)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(computed(line, given).view(np.float32), of(given))


def test_tensor_cores() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-8, 8, shape).astype(np.float32) for shape in ((16, 16), (16, 8), (16, 8)))
    row, column = np.arange(32) // 4, np.arange(32) % 4 * 2

    def halves(low: Array, high: Array) -> Array:
        return (low.view(np.uint32) >> 16) | (high.view(np.uint32) & 0xFFFF0000)

    left = [halves(a[r, k], a[r, k + 1]) for k in (column, column + 8) for r in (row, row + 8)]
    right = [halves(b[k, row], b[k + 1, row]) for k in (column, column + 8)]
    places = [(r, k) for r in (row, row + 8) for k in (column, column + 1)]
    out = multiply_16x8x16("bf16", [c[place].view(np.uint32) for place in places], left, right)
    for ours, place in zip(out, places, strict=True):
        assert (ours.view(np.float32) == (a @ b + c)[place]).all()


LOOP = """
    mov.b32 %r3, 0;
    mov.b32 %r4, 0;
$again:
    setp.ge.u32 %p1, %r4, %r2;
    @%p1 bra $done;
    add.s32 %r4, %r4, 1;
    and.b32 %r5, %r4, 1;
    setp.eq.b32 %p2, %r5, 0;
    @%p2 bra $again;
    add.s32 %r3, %r3, %r4;
    bra.uni $again;
$done:
    redux.sync.max.u32 %r6, %r4, -1;
    add.s32 %r3, %r3, %r6;
    st.global.b32 [%rd4], %r3;
"""


@pytest.mark.parametrize("bundles", [1, 2])
def test_threads_that_part_meet_again(bundles: int) -> None:
    """Each adds up the odd numbers up to its own, in as many turns as that takes."""
    out, result = run(LOOP, bundles=bundles)
    assert out.tolist() == [((i + 1) // 2) ** 2 + (31 if i < 32 else 63) for i in range(64)]
    assert not result.findings and result.barriers == 0


EXCHANGE = """
    shl.b32 %r3, %r1, 2;
    mov.b32 %r4, global_smem;
    add.s32 %r4, %r4, %r3;
    st.shared.b32 [%r4], %r2;
    bar.sync 0;
    xor.b32 %r5, %r3, 252;
    ld.shared.b32 %r6, [%r5];
    bar.sync 0;
    st.shared.b32 [%r4], %r6;
    bar.sync 0;
    ld.shared.b32 %r6, [%r4];
    st.global.b32 [%rd4], %r6;
"""


@pytest.mark.parametrize("seed", range(4))
def test_an_exchange_with_barriers(seed: int) -> None:
    out, result = run(EXCHANGE, grid=1, seed=seed)
    assert out.tolist() == THREADS[::-1].tolist()
    assert not result.findings and result.barriers == 3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("barrier", [0, 1])
def test_a_race_is_found_in_every_order(seed: int, barrier: int) -> None:
    """Whichever warp comes first, in one bundle or in two. Nobody needs the third barrier."""
    made = kernel(EXCHANGE).code
    for number, expected in ((barrier, True), (2, False)):
        space = Space({"a": THREADS, "b": THREADS}, 4)
        machine = Machine(Kernel(made.without("bar.sync", number)), space, 1024, 2, seed)
        result = machine.launch((1,), {name: space.address(name) for name in "ab"})
        assert any(finding.startswith("shared: ") for finding in result.findings) == expected


@pytest.mark.parametrize(
    ("body", "grid", "finding"),
    [
        ("st.global.b32 [%rd2], %r1;", 1, "threads store different values to one place"),
        ("st.global.b32 [%rd2], 7;", 1, None),
        ("mov.u32 %r3, %ctaid.x;\nst.global.b32 [%rd4], %r3;", 2, "stores what another stores"),
        ("st.global.b32 [%rd3], %r2;", 2, "another"),
        ("atom.global.gpu.acq_rel.add.u32 %r3, [%rd1], 1;", 2, "changes what another touches"),
        ("ld.shared.b32 %r3, [global_smem+4];", 1, "shared: loads what nothing has stored"),
        ("ld.global.b32 %r3, [%rd4];", 1, "global: loads what nothing has stored"),
        ("st.global.b32 [%rd4], %r2;\nld.global.b32 %r3, [%rd4];", 1, None),
        ("st.global.b32 [%rd4], %r2;\nxor.b32 %r3, %r1, 32;\nmad.wide.u32 %rd5, %r3, 4, %rd2;\n"
         "ld.global.b32 %r3, [%rd5];", 1, "global: "),
    ],
)  # fmt: skip
def test_accesses_in_no_order(body: str, grid: int, finding: str | None) -> None:
    for seed in range(3):
        _, result = run(body, grid=grid, seed=seed)
        assert any(finding in found for found in result.findings) if finding else not result.findings


def test_atomic_additions_of_many_programs() -> None:
    """Each thread gets a place of its own, whatever the order."""
    body = """
        atom.global.gpu.acq_rel.add.u32 %r3, [%rd1], 1;
        mad.wide.u32 %rd5, %r3, 4, %rd2;
        st.global.b32 [%rd5], 1;
    """
    made = kernel(body.replace("%r2", "%r7"))
    made = Kernel(made.code.without(r"ld\.global"))
    space = Space({"a": np.zeros(64, np.uint32), "b": np.zeros(192, np.uint32)}, 4)
    result = Machine(made, space, 0, 2, 5, together=3).launch((3,), {name: space.address(name) for name in "ab"})
    assert not result.findings
    assert space.read("b").tolist() == [1] * 192 and space.read("a")[0] == 192


LOWER = "setp.lt.u32 %p1, %r1, 32;"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("st.global.b32 [%rd4+4], %r2;", "global: out of bounds"),
        ("st.global.b32 [%rd4+-4], %r2;", "global: out of bounds"),
        ("ld.global.v2.b32 {%r3, %r4}, [%rd3];", "not aligned to 8 bytes"),
        ("ld.shared.b32 %r3, [global_smem+1024];", "shared: out of bounds"),
        ("setp.lt.u32 %p1, %r1, 40;\n@%p1 redux.sync.add.s32 %r3, %r2, -1;", "threads of a warp are missing"),
        (f"{LOWER}\n@%p1 bra $a;\nbar.sync 0;\nbra.uni $b;\n$a:\nbar.sync 0;\n$b:", "different barriers"),
    ],
)  # fmt: skip
def test_what_a_gpu_would_not_survive(body: str, message: str) -> None:
    with pytest.raises(Fault, match=message):
        run(body)


def test_an_access_that_its_guard_forbids_is_none() -> None:
    out, result = run("setp.lt.u32 %p1, %r1, 0;\n@%p1 st.global.b32 [%rd1+-4], %r2;\nst.global.b32 [%rd4], %r2;")
    assert out.tolist() == THREADS.tolist() and not result.findings


def test_what_is_not_emulated_is_refused() -> None:
    for line in ("tanh.approx.f32 %r3, %r2;", "fma.rn.bf16x4 %r3, %r2, %r2, %r2;", "add.sat.f32 %r3, %r2, %r2;"):
        with pytest.raises(Unknown):
            run(line)
    with pytest.raises(ValueError, match="not understood: what"):
        kernel("what?")


@pytest.mark.parametrize(("stride", "sectors"), [(0, 2), (4, 8), (8, 16), (16, 32)])
def test_sectors_are_counted(stride: int, sectors: int) -> None:
    """Of two warps that load a word each thread; a word that all want is one."""
    given = np.zeros(64 * 4, np.uint32)
    _, result = run(f"mul.lo.s32 %r3, %r1, {stride};\ncvt.u64.u32 %rd5, %r3;\nadd.s64 %rd5, %rd5, %rd1;\n"
                    "ld.global.b32 %r4, [%rd5];", given)  # fmt: skip
    (traffic,) = (one for one in result.traffic["global"] if "%rd5" in one.text)
    assert (traffic.requests, traffic.units, traffic.asked) == (2, sectors, 256 if stride else 8)


@pytest.mark.parametrize(("shift", "passes"), [(2, 1), (3, 2), (5, 8)])
def test_passes_through_shared_memory_are_counted(shift: int, passes: int) -> None:
    """Threads of a warp store a word each, this far apart: a bank is 4 bytes wide, and there are 32."""
    _, result = run(f"and.b32 %r3, %r1, 31;\nshl.b32 %r3, %r3, {shift};\nst.shared.b32 [%r3], 0;")
    (traffic,) = result.traffic["shared"]
    assert (traffic.requests, traffic.units, traffic.least) == (2, 2 * passes, 2)
