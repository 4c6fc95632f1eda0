"""Compiling kernels for GPUs that are not there, and what the compiler says of them.

Triton needs no GPU to go from a kernel to a cubin, only the types of its arguments. A `Build` has all that a launch
would have told it; the kernel modules list theirs in `builds()`. ``python -m ds2ds.kernels compile`` goes through all
of them for all architectures.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import multiprocessing
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

ARCHITECTURES = (80, 90, 100)
"""Compute capabilities that all kernels are built for: A100, H100, B200."""

KERNEL_MODULES = (
    "ds2ds.kernels.compaction_triton",
    "ds2ds.kernels.decode_attention",
    "ds2ds.kernels.decode_tables",
    "ds2ds.kernels.few_rows",
    "ds2ds.kernels.fused",
    "ds2ds.kernels.sampling.launch",
)

_FUSED = re.compile(r"\bfma\.r[nzmp](?:\.ftz)?(?:\.sat)?\.f32(?:x2)?\b")
_FLUSHING = re.compile(r"^\s*(?:@!?%\w+\s+)?(?!cvt\.|\w+\.approx\.)\w+(?:\.\w+)*\.ftz\b", re.MULTILINE)
_RESOURCES = re.compile(r"\bREG:(\d+) STACK:(\d+) .*\bLOCAL:(\d+)")


@dataclass(frozen=True)
class Build:
    """One kernel in one configuration, as a launch would compile it.

    Attributes:
        kernel: what @triton.jit made of a function.
        name: unique among all builds, such as "draw[tile=4096]".
        signature: types of the arguments that are no constants, in Triton's words: "*fp32", "i64", "i32".
        constexprs: values of all other arguments: those marked tl.constexpr, and those that Triton would take for
            constants, such as an integer that is 1 or a None.
        attrs: what an argument is a multiple of, if that is to be known: 16, in bytes for a pointer. Triton finds out
            by itself at a launch, so give it here for what is always such a multiple.
        options: num_warps, num_stages, enable_fp_fusion, ... as given at a launch.
        default: whether the package runs it by itself. If so, it must not spill.
        since: the first of ARCHITECTURES that it is for.
    """

    kernel: Any
    name: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    attrs: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    default: bool = True
    since: int = ARCHITECTURES[0]

    def faults(self, report: Report) -> list[str]:
        """What is wrong with what this was compiled to, in words; mostly nothing."""
        found = []
        if self.default and report.spill_bytes:
            found.append(f"spills {report.spill_bytes} bytes per thread to local memory")
        # To be the same, bit by bit, as a reference that rounds after each operation and keeps denormals.
        if self.options.get("enable_fp_fusion") is False:
            if report.fused:
                found.append(f"has {report.fused} fused multiply-adds of float32 despite enable_fp_fusion=False")
            if report.flushing:
                found.append(f"has {report.flushing} instructions that flush denormals to zero")
        return found


@dataclass(frozen=True)
class Report:
    """What a build has become.

    Attributes:
        warps: in a program.
        registers: per thread, of 32 bits.
        shared_bytes: of shared memory per program, without the 1024 that sm_90 and later keep for themselves.
        spill_bytes: of local memory per thread. Triton's kernels have no arrays there, so it is for spilled registers.
        seconds: to compile, next to nothing if it was in Triton's cache.
        ptx: the code before ptxas.
    """

    warps: int
    registers: int
    shared_bytes: int
    spill_bytes: int
    seconds: float
    ptx: str = field(repr=False)

    @property
    def fused(self) -> int:
        """Fused multiply-adds of float32, alone or in pairs; those of float64 are often libdevice's and meant."""
        return len(_FUSED.findall(self.ptx))

    @property
    def flushing(self) -> int:
        """Instructions that take denormals for zero. Not counted: approximations, such as ex2.approx.ftz, and
        conversions, as libdevice's floor is one that does.
        """
        return len(_FLUSHING.findall(self.ptx))


def compile_build(build: Build, capability: int) -> Report:
    """Compile for a GPU of this compute capability, say 90; none is needed.

    Raises:
        RuntimeError: the kernel was defined with TRITON_INTERPRET=1 and is not to be compiled, or the compiler's
            output cannot be understood.
        ValueError: the build's arguments are not the kernel's.
        Exception: what Triton raises if the kernel does not compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not isinstance(build.kernel, triton.JITFunction):
        raise RuntimeError(
            f"{build.name}: a {type(build.kernel).__name__} cannot be compiled; unset TRITON_INTERPRET "
            "before Python starts"
        )
    names = build.kernel.arg_names
    types = dict(build.signature)
    if sorted([*types, *build.constexprs]) != sorted(names) or not build.attrs.keys() <= types.keys():
        raise ValueError(
            f"{build.name}: each of {', '.join(names)} must have a type or a value, and attrs be of those with a type; "
            f"got types {types}, values {dict(build.constexprs)}, attrs {dict(build.attrs)}"
        )
    source = ASTSource(
        build.kernel,
        {name: types.get(name, "constexpr") for name in names},
        constexprs=dict(build.constexprs),
        attrs={(names.index(name),): [["tt.divisibility", value]] for name, value in build.attrs.items()},
    )
    start = time.perf_counter()
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(build.options))
    seconds = time.perf_counter() - start
    registers, spill_bytes = _resources(compiled.asm["cubin"], triton.knobs.nvidia.cuobjdump.path)
    return Report(
        warps=compiled.metadata.num_warps,
        registers=registers,
        shared_bytes=compiled.metadata.shared,
        spill_bytes=spill_bytes,
        seconds=seconds,
        ptx=compiled.asm["ptx"],
    )


def all_builds(modules: Iterable[str] = KERNEL_MODULES) -> list[Build]:
    """The builds that these modules list, by default all of the package's.

    Raises:
        ValueError: two have the same name.
    """
    found = [build for module in modules for build in importlib.import_module(module).builds()]
    twice = [name for name, times in Counter(build.name for build in found).items() if times > 1]
    if twice:
        raise ValueError(f"builds must have different names: {', '.join(twice)}")
    return found


@dataclass(frozen=True)
class Outcome:
    """How it went with one build: a report unless it did not compile, and what is wrong, in words."""

    name: str
    capability: int
    report: Report | None
    faults: tuple[str, ...]


def compile_all(
    targets: Iterable[tuple[str, int]], jobs: int, modules: tuple[str, ...] = KERNEL_MODULES
) -> Iterator[Outcome]:
    """Compile builds, by their names, each for a capability, in `jobs` processes.

    Outcomes come as they are ready. Processes, as threads in one wait for each other most of the time; spawned, as
    threads that libraries have started do not survive a fork. They are told names, as kernels cannot be pickled.
    """
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        tasks = {pool.submit(_attempt, modules, *target): target for target in targets}
        for task in as_completed(tasks):
            try:
                yield task.result()
            except BrokenProcessPool:
                yield Outcome(*tasks[task], None, ("is not compiled: a process died, on this or another build",))
    finally:
        pool.shutdown(cancel_futures=True)


def _attempt(modules: tuple[str, ...], name: str, capability: int) -> Outcome:
    build = _builds_by_name(modules)[name]
    try:
        with contextlib.redirect_stdout(None):  # Triton prints all PTX that ptxas refuses
            report = compile_build(build, capability)
    except Exception as error:
        return Outcome(name, capability, None, (f"does not compile: {_reason(error)}",))
    return Outcome(name, capability, report, tuple(build.faults(report)))


@functools.cache
def _builds_by_name(modules: tuple[str, ...]) -> dict[str, Build]:
    return {build.name: build for build in all_builds(modules)}


def _reason(error: BaseException) -> str:
    """What is wrong in the innermost of the kernel's functions; the others have only called it."""
    from triton.compiler.errors import CompilationError

    while isinstance(error.__cause__, CompilationError):
        error = error.__cause__
    if isinstance(error, CompilationError):
        return str(error)  # with the lines in question
    return f"{type(error).__name__}: {error}".partition("Repro command")[0].rstrip()


def _resources(cubin: bytes, cuobjdump: str) -> tuple[int, int]:
    """Registers and bytes of local memory that a thread of the one kernel in the cubin has.

    From the very code that will run. (ptxas -v tells of spills too, but only to whom runs it, and to run it again
    takes guessing the version and all the options that Triton gave it.)
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = subprocess.run([cuobjdump, "--dump-resource-usage", file.name], capture_output=True, text=True)
    kernels = _RESOURCES.findall(run.stdout)
    if run.returncode or len(kernels) != 1:
        raise RuntimeError(f"cuobjdump said nothing of use: {run.stdout.strip()} {run.stderr.strip()}")
    registers, stack, local = map(int, kernels[0])
    return registers, stack + local
