"""A grid of programs on one imagined processor: warps in bundles, switched at random where they touch memory.

A bundle is some warps of a program that run in step. A program's warps are cut into bundles at random, from all in one
to each alone, and whenever one has touched memory another may go on in its place. Threads of a bundle that part at a
branch go on as several strands, of which the one furthest behind runs, until they meet again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .access import touch
from .code import Code, Instruction
from .kernel import Kernel, at_start
from .memory import Fault, Memory, Space, Traffic
from .translate import Registers, Step, is_arithmetic
from .values import Array


@dataclass
class Strand:
    """Threads of a bundle that are at the same place. `threads` is None for all of them."""

    at: int
    threads: Array | None = None
    waits: bool = False


@dataclass
class Bundle:
    """Warps that run in step.

    Attributes:
        warps: the number of each thread's.
        waited: whether what each thread does comes after the end of the kernel before.
        pending: copies on their way, by group.
    """

    program: Program
    code: Code
    warps: Array
    waited: Array
    registers: Registers
    strands: list[Strand] = field(default_factory=lambda: [Strand(0)])
    pending: list[list[tuple[Array, Array, str]]] = field(default_factory=lambda: [[]])

    def next(self) -> Strand | None:
        """The strand that is furthest behind, after joining those that have met."""
        if len(self.strands) > 1:
            met: dict[tuple[int, bool], Strand] = {}
            for strand in self.strands:
                other = met.setdefault((strand.at, strand.waits), strand)
                other.threads = self.all_of(other) | self.all_of(strand)
            self.strands = list(met.values())
            if len(self.strands) == 1 and self.all_of(self.strands[0]).all():
                self.strands[0].threads = None
        ready = [strand for strand in self.strands if not strand.waits]
        return min(ready, key=lambda strand: strand.at, default=None)

    def all_of(self, strand: Strand) -> Array:
        return np.ones(self.warps.size, bool) if strand.threads is None else strand.threads


@dataclass
class Program:
    """One of a grid, between two barriers."""

    number: int
    shared: Memory
    bundles: list[Bundle] = field(default_factory=list)
    stretch: int = 1

    @property
    def stamp(self) -> int:
        return (self.number + 1 << 32) | self.stretch


@dataclass
class Result:
    """What a launch did: what was wrong with it, how often; its traffic by memory; and of a program, on average, how
    many barriers it passed and how many instructions each of its warps took.
    """

    findings: Counter[str]
    traffic: dict[str, list[Traffic]]
    barriers: float
    instructions: float


class Machine:
    """One launch.

    Args:
        seed: of the order of programs, bundles and warps.
        together: programs that run at the same time.
        bundles: the most that a program's warps are cut into; None for as many as there are warps.
        overlaps: it may have started before the end of the kernel before.
    """

    def __init__(
        self,
        kernel: Kernel,
        space: Space,
        shared: int,
        warps: int,
        seed: int,
        together: int = 2,
        bundles: int | None = None,
        overlaps: bool = False,
    ) -> None:
        self.overlaps = overlaps
        self.kernel, self.space, self.shared, self.warps = kernel, space, shared, warps
        self.together, self.bundles = together, min(bundles or warps, warps)
        self.random = np.random.default_rng(seed)
        self.issued = self.barriers = 0
        self.shared_traffic: dict[str, Traffic] = {}

    def launch(self, grid: tuple[int, ...], arguments: Mapping[str, int]) -> Result:
        """Run all programs with these arguments, by the names of the kernel's parameters.

        Raises:
            Fault: a GPU would stop, or hang.
            Unknown: an instruction is not emulated.
        """
        grid = (*grid, 1, 1)[:3]
        places = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
        waiting = [int(number) for number in self.random.permutation(len(places))]
        findings, running = Counter[str](), list[Program]()
        with np.errstate(all="ignore"):
            while waiting or running:
                while waiting and len(running) < self.together:
                    number = waiting.pop()
                    running.append(self._program(number, places[number], grid, arguments))
                program = running[int(self.random.integers(len(running)))]
                if not self._advance(program):
                    running.remove(program)
                    findings += program.shared.findings
        memory = self.space.memory
        traffic = {"global": list(memory.traffic.values()), "shared": list(self.shared_traffic.values())}
        programs = len(places)
        return Result(
            findings + memory.findings, traffic, self.barriers / programs, self.issued / programs / self.warps
        )

    def _program(
        self, number: int, place: tuple[int, ...], grid: tuple[int, ...], arguments: Mapping[str, int]
    ) -> Program:
        program = Program(number, Memory("shared", self.shared, min(4, self.kernel.cell)))
        program.shared.open[:] = True
        program.shared.traffic = self.shared_traffic
        pieces = int(self.random.integers(1, self.bundles + 1))
        cuts = np.sort(self.random.permutation(self.warps - 1)[: pieces - 1] + 1)
        for warps in np.split(self.random.permutation(self.warps), cuts):
            threads = (warps[:, None] * 32 + np.arange(32)).ravel()
            at = {"ctaid": place, "nctaid": grid, "ntid": (32 * self.warps, 1, 1), "tid": (0, 0, 0)}
            registers = at_start(self.kernel.code, arguments, at, threads)
            waited = np.full(threads.size, not self.overlaps)
            program.bundles.append(Bundle(program, self.kernel.code, np.repeat(warps, 32), waited, registers))
        return program

    def _advance(self, program: Program) -> bool:
        """Let one bundle run up to its next access to memory; False if the program has ended."""
        ready = [bundle for bundle in program.bundles if bundle.next()]
        if ready:
            bundle = ready[int(self.random.integers(len(ready)))]
            while (strand := bundle.next()) is not None and not self._step(bundle, strand):
                pass
            return True
        waiting = [strand for bundle in program.bundles for strand in bundle.strands]
        if len({strand.at for strand in waiting}) > 1:
            raise Fault("threads wait at different barriers")
        for strand in waiting:
            strand.at, strand.waits = strand.at + 1, False
        program.stretch += 1
        self.barriers += bool(waiting)
        return bool(waiting)

    def _step(self, bundle: Bundle, strand: Strand) -> bool:
        """Go on by one instruction, or by all to the next that is no arithmetic; True if another may go on now."""
        at, one = strand.at, self.kernel.code.instructions[strand.at]
        self.kernel.reached.add(at)
        whole = strand.threads is None
        warps = bundle.warps.size // 32 if whole else int(bundle.all_of(strand).reshape(-1, 32).any(axis=1).sum())
        if is_arithmetic(one) and whole and one.guard is None:
            step, strand.at = self.kernel.run(at)
            step(bundle.registers, bundle.warps.size)
            self.issued += warps * (strand.at - at)
            return False
        self.issued += warps
        if one.op[0] == "bar":
            strand.waits = True
            return True
        if one.op[0] == "griddepcontrol":
            strand.at += 1
            self._depend(bundle, bundle.all_of(strand), one)
            return True
        if one.op[0] == "ret":
            if not bundle.waited[bundle.all_of(strand)].all():
                self.space.memory.findings["a thread has not waited for the end of the kernel before"] += 1
            bundle.strands.remove(strand)
            return False
        threads = bundle.all_of(strand)
        if one.guard is not None:
            threads = threads & (bundle.registers[one.guard[0]] == one.guard[1])
        if one.op[0] == "bra":
            self._branch(bundle, strand, threads, self.kernel.code.labels[one.operands[-1]])
            return False
        strand.at += 1
        if is_arithmetic(one):
            _masked(bundle, one, self.kernel.single(at), threads)
            return False
        touch(bundle, one, threads, self.space.memory, self.random)
        return True

    def _depend(self, bundle: Bundle, threads: Array, one: Instruction) -> None:
        if one.op[1] == "wait":
            bundle.waited |= threads
        elif not bundle.waited[threads].all():
            # Else the next kernel would run beside this one and the one before.
            self.space.memory.findings["the next kernel is let go before the end of the kernel before"] += 1

    def _branch(self, bundle: Bundle, strand: Strand, there: Array, target: int) -> None:
        here = bundle.all_of(strand) & ~there
        if not here.any():
            strand.at = target
            return
        strand.at += 1
        if there.any():
            strand.threads = here
            bundle.strands.append(Strand(target, there))


def _masked(bundle: Bundle, one: Instruction, step: Step, threads: Array) -> None:
    """Arithmetic of some threads: the others keep what they have."""
    if one.op[0] in ("shfl", "redux", "mma"):
        lanes = threads.reshape(-1, 32)
        if (lanes.any(axis=1) != lanes.all(axis=1)).any():
            raise Fault(f"threads of a warp are missing: {one.text}")
    old = {name: bundle.registers.get(name) for name in one.writes}
    step(bundle.registers, bundle.warps.size)
    for name, before in old.items():
        new = bundle.registers[name]
        bundle.registers[name] = np.where(threads, new, np.zeros_like(new) if before is None else before)
