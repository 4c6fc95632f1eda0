"""PTX as Triton writes it, one instruction a line, taken apart: instructions, labels, registers and parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

SPECIAL = tuple(f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz")

_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)^\{(.*?)^\}\s*(?:\.file|\Z)", re.DOTALL | re.MULTILINE)
_PARAMETER = re.compile(r"\.param\s+\.([bsuf]\d+)[^,]*?\b(\w+)\s*(?:,|$)", re.MULTILINE)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%?)(\w+)(?:<\d+>)?;")
_FILE = re.compile(r'^\s*\.file\s+(\d+) "(?:.*/)?([^"/]+)"', re.MULTILINE)
_LOCATION = re.compile(r"\.loc\s+(\d+) (\d+)")
_INSTRUCTION = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*);")
_SCOPE = re.compile(r"\{ \.reg \.\w+ \w+; (.*;) \}")
_OPERANDS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


@dataclass(frozen=True)
class Instruction:
    """One line of PTX.

    Attributes:
        text: as it stands there.
        source: file and line of the kernel that it comes from, as the compiler says.
        guard: the predicate register it hangs on, and the value that has it executed; None if it always is.
        op: its name, cut at the points: ("ld", "global", "v4", "b32").
        operands: as they stand there; "{...}" and "[...]" are one each.
    """

    text: str
    source: str
    guard: tuple[str, bool] | None
    op: tuple[str, ...]
    operands: tuple[str, ...]

    def __getitem__(self, place: int) -> str:
        return self.operands[place]

    @cached_property
    def writes(self) -> tuple[str, ...]:
        """The registers that it sets."""
        if self.op[0] in (
            "st",
            "bra",
            "bar",
            "barrier",
            "ret",
            "exit",
            "cp",
            "stmatrix",
            "red",
            "membar",
            "fence",
            "griddepcontrol",
        ):
            return ()
        return tuple(name for name in names(self[0]) if name.startswith("%"))


@dataclass
class Code:
    """A kernel. `labels` are places in `instructions`; parameters and registers are by name, with their types."""

    name: str
    parameters: dict[str, str]
    registers: dict[str, str]
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def width(self, register: str) -> int:
        """Bits; 1 of a predicate."""
        if register in SPECIAL:
            return 32
        if register in self.parameters:
            return int(self.parameters[register][1:])
        kind = self.registers[register.rstrip("0123456789")]
        return 1 if kind == "pred" else int(kind[1:])

    def without(self, pattern: str, number: int = 0) -> Code:
        """The same without one instruction, that of this number among those whose text has the pattern."""
        places = [at for at, one in enumerate(self.instructions) if re.search(pattern, one.text)]
        changed = list(self.instructions)
        changed[places[number]] = Instruction("nothing", "", None, ("nothing",), ())
        return Code(self.name, self.parameters, self.registers, changed, self.labels)


def names(operand: str) -> list[str]:
    """What a "{...}" holds, or the one operand."""
    return [name for name in re.split(r"[{},\s]+", operand) if name]


def parse(ptx: str) -> Code:
    """The one kernel in this text.

    Raises:
        ValueError: there is none, or a line that is no instruction.
    """
    entry = _ENTRY.search(ptx)
    if entry is None:
        raise ValueError("no kernel in this PTX")
    name, parameters, _, body = entry.groups()
    files = dict(_FILE.findall(ptx))
    code = Code(name, {name: kind for kind, name in _PARAMETER.findall(parameters)}, {})
    source, local = "", list[str]()
    for line in body.splitlines():
        line = _SCOPE.sub(r"\1", line.partition("//")[0].strip())
        if local:  # within braces, registers of their own
            line = re.sub(rf"(?<![\w.%])({'|'.join(local)})(?=\d+\b)", r"%.\1", line)
            local = [] if line == "}" else local
        if found := _LOCATION.match(line):
            source = f"{files.get(found[1], found[1])}:{found[2]}"
        elif found := _REGISTERS.match(line):
            code.registers[f"%{'' if found[2] else '.'}{found[3]}"] = found[1]
            if not found[2]:
                local.append(found[3])
        elif line.endswith(":"):
            code.labels[line[:-1]] = len(code.instructions)
        elif found := _INSTRUCTION.fullmatch(line):
            negated, guard, op, operands = found.groups()
            hangs = (guard, not negated) if guard else None
            if ".param" in op:
                operands = operands.translate({91: None, 93: None})
            code.instructions.append(
                Instruction(
                    line, source, hangs, tuple(op.replace("::cta", "").split(".")), tuple(_OPERANDS.findall(operands))
                )
            )
        elif line and not line.startswith((".", "{", "}")):
            raise ValueError(f"not understood: {line}")
    return code
