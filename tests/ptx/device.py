"""Stands in for a GPU: this package's kernels, compiled for one, run on tensors in the CPU's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from .code import parse
from .compiling import Pointer, compile_for
from .kernel import Kernel
from .machine import Machine, Result
from .memory import POISON, Space
from .values import Array

_TYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg", "launch_pdl")

_kernels: dict[str, tuple[Kernel, int, int, list[str]]] = {}


class Device:
    """Launches kernels, one after the other.

    Args:
        capability: of the GPU to compile for.
        seed: of the order in which things happen.
        together: programs that run at the same time.
        bundles: the most that the warps of a program are cut into; None for as many as there are.
        change: what is to be done to a kernel before it runs.

    Attributes:
        results: of all launches, with the kernels' names.
        fetched: of each tensor's memory, by its address, how often the last launch asked for each byte to be brought
            closer.
    """

    def __init__(
        self,
        capability: int,
        seed: int = 0,
        together: int = 2,
        bundles: int | None = None,
        change: Callable[[str, Kernel], Kernel] | None = None,
    ) -> None:
        self.capability, self.seed, self.change = capability, seed, change
        self.together, self.bundles = together, bundles
        self.results: list[tuple[str, Result]] = []
        self.fetched: dict[int, Array] = {}
        self._written: dict[str, Array] = {}  # by the last launch
        # Of memory that `empty` has given: itself, so that it stays, and which of its bytes have been written.
        self._made: dict[int, tuple[torch.Tensor, Array]] = {}

    @contextmanager
    def runs(self, module: ModuleType, *names: str) -> Iterator[Device]:
        """Has the module's kernels of these names launched here, and its torch.empty poisoned."""
        with ExitStack() as stack:
            stack.enter_context(patch.object(module, "torch", _Torch(self)))
            for name in names:
                stack.enter_context(patch.object(module, name, _Launcher(self, getattr(module, name))))
            yield self

    @property
    def findings(self) -> list[str]:
        return [f"{name}: {finding}" for name, result in self.results for finding in result.findings]

    def empty(self, *shape: Any, dtype: torch.dtype = torch.float32, device: Any = None) -> torch.Tensor:
        made = torch.zeros(*shape, dtype=dtype)
        _bytes(made)[:] = POISON
        self._made[made.untyped_storage().data_ptr()] = made, np.zeros(made.untyped_storage().nbytes(), bool)
        return made

    def launch(self, jit: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        kernel, shared, warps, left = self._kernel(jit, arguments, options)
        tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
        storages = {str(tensor.untyped_storage().data_ptr()): _bytes(tensor) for tensor in tensors.values()}
        # As aligned as they are, and no more.
        beyond = {key: int(key) % 256 for key in storages}
        known = {key: self._made[int(key)][1] for key in storages if int(key) in self._made}
        space = Space(storages, kernel.cell, beyond, known)
        values = [*(_value(arguments[name], space) for name in left), 0, 0]  # and two that Triton adds
        self.seed += 1
        self.fetched.clear()
        overlaps = bool(options.get("launch_pdl"))
        machine = Machine(kernel, space, shared, warps, self.seed, self.together, self.bundles, overlaps)
        result = machine.launch(grid, dict(zip(kernel.code.parameters, values, strict=True)))
        for key, held in storages.items():
            held[:] = space.read(key)
            if key in known:
                known[key][:] = space.memory.known[space.pieces[key]]
            if (space.memory.early[space.pieces[key]] & self._written.get(key, False)).any():
                result.findings["loads, without waiting for its end, what the kernel before writes"] += 1
            self.fetched[int(key)] = space.memory.fetched[space.pieces[key]]
        self._written = {key: space.written(key) for key in storages}
        self.results.append((jit.fn.__name__, result))

    def _kernel(
        self, jit: Any, arguments: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[Kernel, int, int, list[str]]:
        described = {
            name: Pointer(f"*{_TYPES[value.dtype]}", value.data_ptr() % 16 == 0)
            if isinstance(value, torch.Tensor)
            else value
            for name, value in arguments.items()
        }
        key = repr((jit.fn.__module__, jit.fn.__name__, described, dict(options), self.capability))
        if key not in _kernels:
            made = compile_for(jit.fn.__module__, jit.fn.__name__, described, options, self.capability)
            _kernels[key] = Kernel(parse(made.ptx)), made.shared, made.warps, made.left
        kernel, shared, warps, left = _kernels[key]
        return self.change(jit.fn.__name__, kernel) if self.change else kernel, shared, warps, left


class _Launcher:
    """Where a kernel stood: kernel[grid](...)."""

    def __init__(self, device: Device, jit: Any) -> None:
        self.device, self.jit = device, jit

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*values: Any, **named: Any) -> None:
            options = {name: named.pop(name) for name in list(named) if name in _OPTIONS}
            arguments = dict(zip(self.jit.arg_names, values, strict=False)) | named
            self.device.launch(self.jit, grid, arguments, options)

        return launch


class _Torch:
    """torch, but for what makes memory without a value."""

    def __init__(self, device: Device) -> None:
        self.empty = device.empty
        self.empty_like = lambda tensor: device.empty(*tensor.shape, dtype=tensor.dtype)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _bytes(tensor: torch.Tensor) -> Array:
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy()


def _value(argument: Any, space: Space) -> int:
    """As a kernel's parameter holds it."""
    if isinstance(argument, torch.Tensor):
        place = space.address(str(argument.untyped_storage().data_ptr()))
        return place + int(argument.storage_offset()) * argument.itemsize
    return int(np.float32(argument).view(np.uint32) if isinstance(argument, float) else argument)
