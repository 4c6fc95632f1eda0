"""Instructions that touch registers only, as Python: `R` has an array for each register, one value for each thread.

Registers hold unsigned integers of their width, or truth values. No array is ever changed, only replaced.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from . import values
from .code import Code, Instruction, names

Registers = dict[str, Any]
Step = Callable[[Registers, int], None]

_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_OPPOSITE = {"equ": "!=", "neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}
_OPERATOR = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>"}
_HALVES = {"add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "fma": "{} * {} + {}", "neg": "-{}", "abs": "abs({})"}
_HALVES |= {"min": "least({}, {})", "max": "largest({}, {})"}
_ROUNDING = {"rmi": "floor", "rpi": "ceil", "rzi": "trunc", "rni": "rint"}
_EXTREME = {"min": ("minimum", "least"), "max": ("maximum", "largest")}
_CLOSE = {"ex2": "exp2({})", "rsqrt": "1 / sqrt({})", "rcp": "1 / {}", "sqrt": "sqrt({})"}
_MODIFIERS = {
    "rn",
    "rz",
    "rm",
    "rp",
    "rmi",
    "rzi",
    "rni",
    "rpi",
    "ftz",
    "lo",
    "hi",
    "wide",
    "approx",
    "full",
    "sync",
    "and",
}


# Words of an instruction's name besides modifiers, where they are not one, its type.
_WORDS = {"ld": 2, "setp": 2, "cvt": 2, "shfl": 2, "redux": 2, "mma": 8}
_MEMORY = ("ld", "st", "atom", "cp", "ldmatrix", "stmatrix")


class Unknown(Exception):
    """An instruction that is not emulated."""


def is_arithmetic(one: Instruction) -> bool:
    return one.op[0] not in (*_MEMORY, "bra", "bar", "ret", "griddepcontrol") or "param" in one.op


def translate(code: Code, instructions: Sequence[Instruction]) -> Step:
    """Them all as one function; guards are the caller's to see to."""
    lines = [line for one in instructions for line in _lines(code, one)]
    return _compiled("\n ".join(["def step(R, n):", *lines, "pass"]))


@cache
def _compiled(text: str) -> Step:
    scope: dict[str, Any] = dict(vars(values))
    scope["full"] = np.full
    exec(text, scope)
    return scope["step"]


def _lines(code: Code, one: Instruction) -> list[str]:
    try:
        return _translated(code, one)
    except (KeyError, IndexError, ValueError) as error:
        raise Unknown(f"{one.text} ({error!r})") from error


def _translated(code: Code, one: Instruction) -> list[str]:
    name, *rest = one.op
    kinds = [word for word in rest if word not in _MODIFIERS]
    if len(kinds) != _WORDS.get(name, 1) and name != "nothing":
        raise Unknown(one.text)
    kind = kinds[-1] if kinds else ""

    def read(place: int, kind: str = kind) -> str:
        return _read(code, one[place], kind)

    def to(value: str, made: str = kind) -> list[str]:
        return [f"R[{one[0]!r}] = {_stored(code, one[0], value, made, one)}"]

    if name == "nothing":
        return []
    if name == "ld":
        return to(_widened(code, read(1), one[0], kind), "raw")
    if name == "mov":
        return _move(code, one)
    if name in _HALVES and kind in ("f16", "bf16", "f16x2", "bf16x2"):
        return to(_halves(code, one, kind), "raw")
    if name in ("mul", "mad") and "wide" in rest:
        wide = kind[0].upper() + str(2 * int(kind[1:]))
        product = f"({read(1)}).astype({wide}) * ({read(2)}).astype({wide})"
        return to(product + (f" + {read(3, wide.lower())}" if name == "mad" else ""), wide.lower())
    if name == "mul" and "hi" in rest:
        wide = kind[0].upper() + "64"
        return to(f"(({read(1)}).astype({wide}) * ({read(2)}) >> {wide}(32)).astype({kind.upper()})")
    if name in ("mad", "fma"):
        if kind == "f32":
            return to(f"(({read(1)}).astype(F64) * ({read(2)}) + ({read(3)})).astype(F32)")
        return to(f"{read(1)} * {read(2)} + {read(3)}")
    if name in ("shl", "shr"):
        kind = kind.replace("b", "u")
        return to(f"{read(1, kind)} {_OPERATOR[name]} ({read(2, 'u32')}).astype({kind.upper()})", kind)
    if name in _OPERATOR:
        return to(f"{read(1)} {_OPERATOR[name]} {read(2)}")
    if name == "div":
        return to(f"{read(1)} / {read(2)}" if kind[0] == "f" else f"divide({read(1)}, {read(2)})")
    if name in ("min", "max"):
        return to(f"{_EXTREME[name][kind[0] == 'f']}({read(1)}, {read(2)})")
    if name in ("not", "neg", "abs"):
        return to({"not": "~{}", "neg": "-{}", "abs": "abs({})"}[name].format(read(1)))
    if name == "selp":
        return to(f"where({read(3, 'pred')}, {read(1)}, {read(2)})")
    if name == "setp":
        return _set_predicate(one, rest[0], kind, read)
    if name == "cvt":
        return _convert(code, one)
    if name == "bfe":
        return to(f"bit_field({read(1, 'u' + kind[1:])}, {one[2]}, {one[3]}, {kind[0] == 's'})", "raw")
    if name == "prmt":
        return to(f"permute({read(1)}, {read(2)}, {one[3].rstrip('U')})")
    if name == "popc":
        return to(f"count_bits({read(1)}).astype(U32)", "raw")
    if name == "redux":
        return to(f"reduce({rest[1]!r}, {read(1)})")
    if name == "shfl":
        return to(f"exchange({rest[1]!r}, {read(1)}, {read(2, 'u32')}, {one[3]})")
    if name in _CLOSE:
        value = _CLOSE[name].format(read(1))
        return to(f"rough({value})" if kind == "f32" and "approx" in rest else value)
    if name == "mma" and "m16n8k16" in kinds:
        c, a, b = (", ".join(f"R[{register!r}]" for register in names(one[place])) for place in (3, 1, 2))
        targets = ", ".join(f"R[{register!r}]" for register in names(one[0]))
        return [f"{targets} = multiply_16x8x16({rest[-2]!r}, [{c}], [{a}], [{b}])"]
    raise Unknown(one.text)


def _read(code: Code, operand: str, kind: str) -> str:
    """The operand as an array (or, where it is a number, a scalar) of this type."""
    name = kind.upper().replace("B", "U")
    if operand.startswith("%") or operand in code.parameters:
        held = f"R[{operand!r}]"
        if kind == "pred" or name == f"U{code.width(operand)}":
            return held
        if kind == "bf16":
            return f"from_bf16({held})"
        narrow = int(name[1:]) < code.width(operand)
        return f"{held}.astype(U{name[1:]}).view({name})" if narrow else f"{held}.view({name})"
    if kind == "pred":
        return str(int(operand, 0) != 0)
    return f"{name}({_number(operand, name)})"


def _number(text: str, name: str) -> str:
    if text[:2] in ("0f", "0d"):
        if name[0] != "F":
            return f"0x{text[2:]}"
        value = struct.unpack(">f" if text[1] == "f" else ">d", bytes.fromhex(text[2:]))[0]
        return f"float({str(value)!r})"
    if text == "global_smem":
        return "0"
    value, bits = int(text.rstrip("U"), 0), int(name[1:])
    value %= 2**bits
    return str(value - 2**bits if name[0] == "S" and value >= 2 ** (bits - 1) else value)


def _stored(code: Code, register: str, value: str, kind: str, one: Instruction) -> str:
    """What a register is to hold of a value of this type."""
    if not any("%" in operand or operand in code.parameters for operand in one.operands[1:]):
        value = f"full(n, {value})"
    if kind in ("pred", "raw"):
        return value
    return f"({value}).view(U{code.width(register)})"


def _widened(code: Code, value: str, register: str, kind: str) -> str:
    """As many bits as the register has: by its sign, if it has one."""
    bits = code.width(register)
    if int(kind[1:]) == bits:
        return f"({value}).view(U{bits})"
    return f"({value}).astype({'S' if kind[0] == 's' else 'U'}{bits}).view(U{bits})"


def _move(code: Code, one: Instruction) -> list[str]:
    target, source = one[0], one[1]
    kind = one.op[1]
    if target.startswith("{"):
        pieces = names(target)
        bits = int(kind[1:]) // len(pieces)
        whole = _read(code, source, kind)
        return [f"R[{name!r}] = part({whole}, U{bits}, {i})" for i, name in enumerate(pieces) if name.startswith("%")]
    if source.startswith("{"):
        low, high = (_read(code, name, f"u{int(kind[1:]) // 2}") for name in names(source))
        return [f"R[{target!r}] = {_stored(code, target, f'pair({low}, {high})', 'raw', one)}"]
    return [f"R[{target!r}] = {_stored(code, target, _read(code, source, kind), kind, one)}"]


def _set_predicate(one: Instruction, how: str, kind: str, read: Callable[..., str]) -> list[str]:
    if kind.endswith("x2"):
        targets = one[0].split("|")
        wide = "from_bf16(part({}, U16, {}))" if kind == "bf16x2" else "part({}, F16, {})"
        pairs = [[wide.format(read(place, "b32"), half) for place in (1, 2)] for half in (0, 1)]
    else:
        targets, pairs = [one[0]], [[read(1), read(2)]]
    lines = []
    for target, (a, b) in zip(targets, pairs, strict=True):
        if how in ("num", "nan"):
            value = f"isnan({a}) | isnan({b})"
            value = f"~({value})" if how == "num" else value
        else:
            value = f"{a} {_COMPARE[how]} {b}" if how in _COMPARE else f"~({a} {_OPPOSITE[how]} {b})"
        if "and" in one.op:
            value = f"({value}) & {read(3, 'pred')}"
        lines.append(f"R[{target!r}] = {value}")
    return lines


def _halves(code: Code, one: Instruction, kind: str) -> str:
    """Arithmetic of numbers of 16 bits, or of two of them at once: in float32, then rounded."""
    form, pack = _HALVES[one.op[0]], "to_bf16" if kind[0] == "b" else "to_f16"
    wide = "from_bf16({})" if kind[0] == "b" else "({}).view(F16).astype(F32)"
    held = [_read(code, operand, "b32" if kind.endswith("x2") else "b16") for operand in one.operands[1:]]
    if not kind.endswith("x2"):
        return f"{pack}({form.format(*map(wide.format, held))})"
    halves = [[wide.format(f"part({operand}, U16, {half})") for operand in held] for half in (0, 1)]
    return "pair({}, {})".format(*(f"{pack}({form.format(*operands)})" for operands in halves))


def _convert(code: Code, one: Instruction) -> list[str]:
    *how, made, kind = one.op[1:]
    target, bits = one[0], code.width(one[0])
    if made.endswith("x2"):
        pack = "to_bf16" if made == "bf16x2" else "to_f16"
        low, high = (f"{pack}({_read(code, one[place], kind)})" for place in (2, 1))
        return [f"R[{target!r}] = pair({low}, {high})"]
    value = _read(code, one[1], kind)
    if kind[0] == "f" and made[0] in "fsu":
        for word in how:
            if word in _ROUNDING and (made[0] != "f" or made == kind):
                value = f"{_ROUNDING[word]}({value})"
    if made == "bf16":
        value = f"to_bf16({value})"
    elif made == "f16":
        value = f"to_f16({value})"
    elif made[0] == "f":
        value = f"({value}).astype({made.upper()}).view(U{bits})"
    elif kind[0] in "fb":
        value = _widened(code, f"to_integer({value}, {made.upper()})", target, made)
    else:
        value = _widened(code, f"({value}).astype({made.upper()})", target, made)
    return [f"R[{target!r}] = {_stored(code, target, value, 'raw', one)}"]
