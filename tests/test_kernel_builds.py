"""All kernels compile for all GPUs; and what would tell otherwise, on kernels that are made to fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ds2ds.kernels.build import Build, Report

pytest.importorskip("triton")


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, where kernels are not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(Path(__file__).parent), **variables}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def compile_kernels(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "ds2ds.kernels", "compile", "--jobs", "2", *options, **variables)


def table(run: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], list[str]]:
    """What is printed: (name, architecture) -> registers, warps, shared bytes, spilled bytes, seconds."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in run.stdout.splitlines()[1:]]
    return {(name, target): figures for name, target, *figures in rows}


@pytest.fixture(scope="module")
def made_to_fail() -> subprocess.CompletedProcess[str]:
    return compile_kernels("--module", "kernels_to_build")


def test_every_kernel_builds_for_every_gpu() -> None:
    result = compile_kernels()
    assert result.returncode == 0, result.stdout + result.stderr
    assert {target for _, target in table(result)} == {"sm_80", "sm_90", "sm_100"}


def test_a_sound_kernel_passes() -> None:
    result = compile_kernels("--module", "kernels_to_build", "--kernel", "sound fused", "--arch", "90")
    assert result.returncode == 0, result.stderr
    assert "FAILED" not in result.stderr
    figures = table(result)
    assert set(figures) == {("sound fused add", "sm_90")}
    registers, warps, shared, spilled, seconds = figures["sound fused add", "sm_90"]
    assert 8 <= int(registers) <= 255
    assert warps == "8"
    assert spilled == "0"
    assert float(seconds) >= 0
    assert shared.replace(",", "").isdigit()


def test_a_spill_is_found_and_fails_only_by_default(made_to_fail: subprocess.CompletedProcess[str]) -> None:
    assert made_to_fail.returncode == 1
    figures = table(made_to_fail)
    for target in ("sm_80", "sm_90", "sm_100"):
        # The same code with all registers that it wants, and with 32.
        assert figures["sound rescale", target][3] == "0"
        spilled = figures["spilling rescale", target][3]
        assert int(spilled.replace(",", "")) > 0
        assert figures["sound spare rescale", target][3] == spilled
        # Said once for all that spill the same, which is for the compiler to decide.
        failed = rf"FAILED spilling rescale for (sm_\d+, )*{target}(, sm_\d+)*: spills {int(spilled)} bytes per thread"
        assert re.search(failed, made_to_fail.stderr)
    assert "FAILED sound" not in made_to_fail.stderr


def test_contracted_and_flushing_kernels_fail(made_to_fail: subprocess.CompletedProcess[str]) -> None:
    everywhere = "for sm_80, sm_90, sm_100: has 1"
    assert f"FAILED fused {everywhere} fused multiply-adds of float32" in made_to_fail.stderr
    assert f"FAILED flushing {everywhere} instructions that flush denormals" in made_to_fail.stderr


def test_errors_of_the_compiler_are_told_by_name_and_briefly(made_to_fail: subprocess.CompletedProcess[str]) -> None:
    assert "FAILED broken for sm_80, sm_90, sm_100: does not compile: at 2:19:\ndef reads_no_such_thing" in (
        made_to_fail.stderr
    )
    assert "nonsense is not defined" in made_to_fail.stderr
    for target in ("sm_80", "sm_90", "sm_100"):
        assert f"FAILED refused for {target}: does not compile: PTXASError" in made_to_fail.stderr
    assert "Traceback" not in made_to_fail.stderr
    assert len(made_to_fail.stderr.splitlines()) < 60


def test_weights_of_few_rows_are_read_16_bytes_at_a_time() -> None:
    """By every thread, straight into shared memory; and they meet x on tensor cores."""
    code = (
        "from ds2ds.kernels.build import compile_build\nfrom ds2ds.kernels.few_rows import builds\n"
        "for build in builds():\n"
        "    if 'bf16, 8 rows' in build.name and ', norm' in build.name:\n"
        "        print(compile_build(build, 90).ptx, end='====')\n"
    )
    codes = run("-c", code).stdout.split("====")[:-1]
    # Of bfloat16 and int8, with and without a rest: 8 outputs in 8 and 4 warps, gated or not, and 64 not gated; and of
    # each kind of weight a gated one and one that is not, overlapping.
    assert len(codes) == 2 * 2 * (2 + 2 + 1) + 2 * 2
    for ptx in codes:
        copies = re.findall(r"cp\.async\.\w+\.shared\.global\S* \[[^]]*\], \[[^]]*\], (\w+)", ptx)
        assert copies and set(copies) == {"0x10"}
        # Besides there are at most the scales.
        assert set(re.findall(r"ld\.global\S*", ptx)) <= {"ld.global.b32", "ld.global.v4.b32"}
        assert "mma.sync.aligned.m16n8k16" in ptx


def test_what_is_interpreted_cannot_be_compiled() -> None:
    result = compile_kernels("--module", "kernels_to_build", TRITON_INTERPRET="1")
    assert result.returncode == 2
    assert result.stderr.strip().endswith("unset TRITON_INTERPRET")
    code = "import kernels_to_build as k; from ds2ds.kernels.build import compile_build as c; c(next(k.builds()), 90)"
    result = run("-c", code, TRITON_INTERPRET="1")
    assert "RuntimeError: sound add: " in result.stderr and "unset TRITON_INTERPRET" in result.stderr


def test_arguments_and_names_are_checked() -> None:
    code = (
        "import dataclasses, kernels_to_build as k; from ds2ds.kernels.build import all_builds, compile_build\n"
        "build = next(k.builds())\n"
        "for wrong in ({'signature': {'x': '*fp32'}}, {'constexprs': {}}, {'attrs': {'BLOCK': 16}}):\n"
        "    try: compile_build(dataclasses.replace(build, **wrong), 90)\n"
        "    except ValueError as error: print(error)\n"
        "try: all_builds(['kernels_to_build'] * 2)\n"
        "except ValueError as error: print(error)\n"
    )
    lines = run("-c", code).stdout.splitlines()
    assert len(lines) == 4
    assert all(
        line.startswith("sound add: each of x, y, out, n, BLOCK must have a type or a value") for line in lines[:3]
    )
    assert lines[3].startswith("builds must have different names: sound add, ")


def test_a_name_that_no_build_has() -> None:
    result = compile_kernels("--module", "kernels_to_build", "--kernel", "nothing")
    assert result.returncode == 2
    assert result.stderr == "error: no build for sm_80, sm_90, sm_100 has 'nothing' in its name\n"


def test_what_a_gpu_does_not_have_is_not_built_for_it() -> None:
    merging = "--kernel", "attention_merge[bf16 heads of 64, overlapping]"
    assert {target for _, target in table(compile_kernels(*merging))} == {"sm_90", "sm_100"}
    result = compile_kernels(*merging, "--arch", "80")
    assert result.returncode == 2 and result.stderr.startswith("error: no build for sm_80 has 'attention_merge")


@pytest.mark.parametrize(
    ("line", "fused", "flushing"),
    [
        ("fma.rn.f32 \t%f1, %f2, %f3, %f4;", 1, 0),
        ("@%p1 fma.rn.ftz.f32 \t%f1, %f2, %f3, %f4;", 1, 1),
        ("fma.rn.f32x2 \t%rd1, %rd2, %rd3, %rd4;", 1, 0),
        ("fma.rn.f64 \t%fd1, %fd2, %fd3, %fd4;", 0, 0),
        ("mad.lo.s32 \t%r1, %r2, %r3, %r4;", 0, 0),
        ("mul.rn.f32 \t%f1, %f2, %f3;", 0, 0),
        ("mul.ftz.f32 \t%f1, %f2, %f3;", 0, 1),
        ("setp.lt.ftz.f32 \t%p1, %f2, %f3;", 0, 1),
        ("div.full.ftz.f32 \t%f1, %f2, %f3;", 0, 1),
        ("ex2.approx.ftz.f32 \t%f1, %f2;", 0, 0),
        ("cvt.rmi.ftz.f32.f32 \t%f1, %f2;", 0, 0),
    ],
)
def test_instructions_that_are_counted(line: str, fused: int, flushing: int) -> None:
    report = Report(4, 16, 0, 0, 0.0, f"// %bb.0:\n\t{line}\n\tret;\n")
    assert (report.fused, report.flushing) == (fused, flushing)
    exact = Build(None, "one", {}, options={"enable_fp_fusion": False})
    assert len(exact.faults(report)) == bool(fused) + bool(flushing)
    assert Build(None, "one", {}, options={"enable_fp_fusion": True}).faults(report) == []
