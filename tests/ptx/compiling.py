"""Compiles kernels for launches, in another process: where tests run, kernels are for Triton's interpreter."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple


class Pointer(NamedTuple):
    """An argument's type, and whether it points to a multiple of 16."""

    kind: str
    aligned: bool


class Compiled(NamedTuple):
    """What came of it. `left` are the arguments that were not built in."""

    ptx: str
    shared: int
    warps: int
    left: list[str]


def compile_for(
    module: str, name: str, arguments: Mapping[str, Any], options: Mapping[str, Any], capability: int
) -> Compiled:
    """What a launch with these arguments would run on a GPU of this compute capability.

    Args:
        arguments: by name: `Pointer`, int, float, or what a constexpr is to be.
        options: num_warps and the like.
    """
    # The process is to import Triton without its interpreter. It starts with the first task.
    interpreted = os.environ.pop("TRITON_INTERPRET", None)
    try:
        task = _pool().submit(_compile, module, name, dict(arguments), dict(options), capability)
    finally:
        if interpreted is not None:
            os.environ["TRITON_INTERPRET"] = interpreted
    return task.result()


@functools.cache
def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _compile(
    module: str, name: str, arguments: dict[str, Any], options: dict[str, Any], capability: int
) -> Compiled:  # pragma: no cover - in the other process
    from ds2ds.kernels.build import Build, compile_build

    kernel = getattr(importlib.import_module(module), name)
    signature, constants, multiples = {}, {}, {}
    for parameter in kernel.params:
        value = arguments[parameter.name]
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (special and isinstance(value, int) and value == 1):
            constants[parameter.name] = value
        elif isinstance(value, Pointer):
            signature[parameter.name] = value.kind
            multiple = value.aligned
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
            multiple = False
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            multiple = value % 16 == 0
        if parameter.name in signature and special and multiple:
            multiples[parameter.name] = 16
    report = compile_build(Build(kernel, name, signature, constants, multiples, options), capability)
    return Compiled(report.ptx, report.shared_bytes, report.warps, list(signature))
