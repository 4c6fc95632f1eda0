"""A kernel to be launched, and what threads find in their registers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from .access import size
from .code import SPECIAL, Code
from .translate import Registers, Step, is_arithmetic, translate
from .values import Array


class Kernel:
    """A kernel's code, and what of it has been translated.

    Attributes:
        reached: places of instructions that have been executed, and of the first of those translated together.
    """

    def __init__(self, code: Code) -> None:
        self.code = code
        self.reached: set[int] = set()
        self._targets = set(code.labels.values())
        self._runs: dict[int, tuple[Step, int]] = {}
        self._single: dict[int, Step] = {}

    @cached_property
    def cell(self) -> int:
        """The largest number of bytes, up to 8, that all accesses to memory are multiples of."""
        listing = [one for one in self.code.instructions if one.op[0] in ("ld", "st", "atom") and "param" not in one.op]
        matrices = [2] if any(one.op[0] in ("cp", "ldmatrix", "stmatrix") for one in self.code.instructions) else []
        return min([8, *matrices, *(width * count for width, count in map(size, listing))])

    def run(self, at: int) -> tuple[Step, int]:
        """The instructions from here to the next that is no arithmetic, or that may be jumped to, and where that is."""
        if at not in self._runs:
            end, listing = at, self.code.instructions
            while (
                is_arithmetic(listing[end]) and listing[end].guard is None and (end == at or end not in self._targets)
            ):
                end += 1
            self._runs[at] = translate(self.code, listing[at:end]), end
        return self._runs[at]

    def single(self, at: int) -> Step:
        if at not in self._single:
            self._single[at] = translate(self.code, [self.code.instructions[at]])
        return self._single[at]


def at_start(
    code: Code, arguments: Mapping[str, int], place: Mapping[str, tuple[int, ...]], threads: Array
) -> Registers:
    """Registers as these threads of a program find them: their parameters, and where they are."""
    start = {name: np.full(threads.size, value, f"u{code.width(name) // 8}") for name, value in arguments.items()}
    for special in SPECIAL:
        name, axis = special[1:].split(".")
        start[special] = np.full(threads.size, place[name]["xyz".index(axis)], np.uint32)
    start["%tid.x"] = threads.astype(np.uint32)
    return start
