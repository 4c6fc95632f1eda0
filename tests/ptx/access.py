"""The instructions that touch memory, for some threads of a bundle at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .code import Instruction, names
from .memory import Access, Fault, Memory
from .translate import Registers, Unknown
from .values import Array, pair, part

if TYPE_CHECKING:
    from .machine import Bundle

_ATOMIC = {"add": np.add, "or": np.bitwise_or, "and": np.bitwise_and, "max": np.maximum, "min": np.minimum}


def size(one: Instruction) -> tuple[int, int]:
    """Bytes of a word that an ld, st or atom touches, and how many words a thread has of it."""
    return int(one.op[-1][1:]) // 8, next((int(word[1:]) for word in one.op if word in ("v2", "v4", "v8")), 1)


def touch(bundle: Bundle, one: Instruction, threads: Array, memory: Memory, random: np.random.Generator) -> None:
    """An instruction that touches memory, by these threads; `memory` is the global one."""
    registers = bundle.registers
    at = "shared" if "shared" in one.op else "global"
    by = _access(bundle, f"{one.source} {one.text}", threads)
    if one.op[:4] == ("cp", "async", "bulk", "prefetch"):
        memory.fetch(_address(registers, one[0], threads), _get(registers, one[1], 4, threads), by)
        return
    if one.op[:2] == ("cp", "async"):
        _copy(bundle, one, threads, memory, by)
        return
    if not threads.any():
        for name in one.writes:  # what they may go on to compute with it goes nowhere
            _put(bundle, name, threads[:0], threads)
        return
    memory = bundle.program.shared if at == "shared" else memory
    if one.op[0] in ("ldmatrix", "stmatrix"):
        _matrix(bundle, one, threads, memory, by)
        return
    width, count = size(one)
    address = _address(registers, one[0 if one.op[0] == "st" else 1], threads)
    if one.op[0] == "ld":
        loaded = memory.load(address, width, count, by)
        for i, name in enumerate(names(one[0])):
            _put(bundle, name, loaded[:, i], threads, signed=one.op[-1][0] == "s")
    elif one.op[0] == "st":
        columns = [_get(registers, name, width, threads) for name in names(one[1])]
        memory.store(address, np.stack(columns, axis=1), by)
    elif one.op[0] == "atom" and one.op[-2] in _ATOMIC:
        operands = _get(registers, one[2], width, threads)
        if one.op[-1][0] == "s":
            operands = operands.view(f"i{width}")
        order = random.permutation(operands.size)
        _put(bundle, one[0], memory.atomic(_ATOMIC[one.op[-2]], address, operands, order, by), threads)
    else:
        raise Unknown(one.text)


def _matrix(bundle: Bundle, one: Instruction, threads: Array, shared: Memory, by: Access) -> None:
    """Each register of a warp holds 8 rows of 8 numbers of 16 bits; 8 of the threads have the rows' addresses."""
    loads = one.op[0] == "ldmatrix"
    registers = names(one[0 if loads else 1])
    rows = _address(bundle.registers, one[1 if loads else 0], threads).reshape(-1, 32)[:, : 8 * len(registers)]
    if not threads.all() or (rows % 16).any():
        raise Fault(f"shared: not aligned to 16 bytes, or threads are missing: {by.text}")
    i, j = np.arange(32) // 4, np.arange(32) % 4
    # A thread has two numbers that are neighbours in a row, 4 bytes, or, transposed, in a column.
    kind, pieces = (np.uint16, [(2 * j, i), (2 * j + 1, i)]) if "trans" in one.op else (np.uint32, [(i, 2 * j)])
    for number, name in enumerate(registers):
        addresses = [(rows[:, 8 * number + row] + 2 * column).ravel() for row, column in pieces]
        if loads:
            loaded = [shared.load(address, kind().itemsize, 1, by)[:, 0] for address in addresses]
            bundle.registers[name] = pair(*loaded) if len(loaded) == 2 else loaded[0]
        else:
            for half, address in enumerate(addresses):
                shared.store(address, part(bundle.registers[name], kind, half)[:, None], by)


def _copy(bundle: Bundle, one: Instruction, threads: Array, memory: Memory, by: Access) -> None:
    """From global to shared memory. It counts as stored twice: when it sets out, unknown, and when it is waited for."""
    shared, pending = bundle.program.shared, bundle.pending
    if not threads.all():
        raise Unknown(f"for some threads only: {one.text}")
    if one.op[2] == "commit_group":
        pending.append([])
    elif one.op[2] in ("wait_group", "wait_all"):
        open_groups = 1 + int(one[0]) if one.op[2] == "wait_group" else 0
        for group in pending[: max(0, len(pending) - open_groups)]:
            for address, values, text in group:
                shared.store(address, values, _access(bundle, text, threads))
            group.clear()
    else:
        target, source = (_address(bundle.registers, one[i], threads) for i in (0, 1))
        whole = int(one[2], 0)
        length = np.full(target.size, whole) if len(one.operands) < 4 else _get(bundle.registers, one[3], 4, threads)
        there = length > 0
        if not np.isin(length, (0, whole)).all():
            raise Unknown(f"for part of its bytes: {one.text}")
        values = np.zeros((target.size, whole // 4), np.uint32)
        if there.any():
            values[there] = memory.load(source[there], 4, whole // 4, _access(bundle, by.text, there))
        shared.store(target, np.full_like(values, 0xA5A5A5A5), by)
        shared.forbid(target, whole)
        pending[-1].append((target, values, by.text))


def _access(bundle: Bundle, text: str, threads: Array) -> Access:
    return Access(text, bundle.program.stamp, bundle.warps[threads], ~bundle.waited[threads])


def _address(registers: Registers, operand: str, threads: Array) -> Array:
    base, _, offset = operand.strip("[] ").replace(" ", "").partition("+")
    start = np.zeros(threads.size, np.int64) if base == "global_smem" else registers[base].astype(np.int64)
    return start[threads] + int(offset or 0)


def _get(registers: Registers, name: str, width: int, threads: Array) -> Array:
    if name.startswith("%"):
        return registers[name][threads].astype(f"u{width}")
    return np.full(int(threads.sum()), int(name, 0) % 2 ** (8 * width), f"u{width}")


def _put(bundle: Bundle, name: str, loaded: Array, threads: Array, signed: bool = False) -> None:
    width = bundle.code.width(name) // 8
    if signed:
        loaded = loaded.view(f"i{loaded.itemsize}").astype(f"i{width}")
    held = bundle.registers.get(name)
    new = np.zeros(threads.size, f"u{width}") if held is None else held.copy()
    new[threads] = loaded.astype(f"u{width}")
    bundle.registers[name] = new
