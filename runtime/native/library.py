"""The C files here, compiled for this processor at their first use: the one part of the runtime that is not Python.

torch has no kernel that reads int8 weights for a few float32 rows at the speed of memory, and a step of many small
operations spends its time between them (docs/performance.md has the figures). The compiled library lies in the user's
cache folder under a hash of all it depends on; where there is no such folder, every process compiles it for itself.
Without a compiler of the system's the one of the `ziglang` package does; without any, or where DS2DS_NATIVE=0 asks for
it, everything runs on torch's own operations, slower, and that is announced once.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from ds2ds.files import user_cache

FOLDER = Path(__file__).parent
SOURCES = ("pool.c", "linear.c", "int8.c", "elementwise.c", "attention.c", "backbone.c", "arena.c", "sampling.c")
HEADERS = ("native.h", "vectors.h", "panels.h", "noise.h")
SWITCH = "DS2DS_NATIVE"
X86 = platform.machine() in ("x86_64", "AMD64")
APPLE = sys.platform == "darwin" and not X86
# All that this processor has. Apple's clang takes that for granted on Apple's own, and older ones refuse to be told.
TUNED = () if APPLE else ("-march=native",) if X86 else ("-mcpu=native",)
FLAGS = ("-O3", *TUNED, "-ffp-contract=off", "-pthread", "-fPIC")
WIDE = "-mprefer-vector-width=512"
SECONDS = 120

_POINTER, _INTEGER, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "linear_float": (*[_INTEGER] * 3, *[_POINTER] * 3, _THREADS),
    "linear_int8": (*[_INTEGER] * 4, *[_POINTER] * 6, _THREADS),
    "gated_unit": (*[_INTEGER] * 2, *[_POINTER] * 2, _THREADS),
    "rms_norm": (*[_INTEGER] * 3, _POINTER, _INTEGER, ctypes.c_float, _POINTER, _THREADS),
    "attend_rows": (
        *[_INTEGER] * 2,
        *[_POINTER, _INTEGER] * 2,
        *[_POINTER] * 3,
        _INTEGER,
        ctypes.c_float,
        _POINTER,
        _THREADS,
    ),
    "backbone_rows": (
        *[_INTEGER] * 3,
        *[_POINTER] * 2,
        ctypes.c_float,
        *[_POINTER] * 4,
        _INTEGER,
        ctypes.c_float,
        _POINTER,
        _THREADS,
    ),
    "move_slots": (*[_INTEGER] * 2, *[_POINTER] * 2, _INTEGER, _THREADS),
    "sample_rows": (*[_INTEGER] * 2, _POINTER, _INTEGER, *[_POINTER] * 3, _INTEGER, *[_POINTER] * 3, _THREADS),
}
_COUNT = ("sample_rows",)
"""Functions that return a number."""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled functions of SOURCES; None, after a warning, where they cannot be had."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        loaded = _load()
        for name, arguments in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, ctypes.c_int if name in _COUNT else None
    except (OSError, subprocess.SubprocessError, AttributeError, ValueError) as error:  # ValueError: CC cannot be split
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else ""
        reason = said or str(error)
        warnings.warn(
            f"steps on the CPU run on torch's own operations, which is slower: {', '.join(SOURCES)} could not be "
            f"compiled ({reason}). It takes a C compiler, or pip install 'ds2ds[compiler]'. {SWITCH}=0 silences this.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return loaded


def _load() -> ctypes.CDLL:
    """The shared library, compiled unless one for the same source, compiler and processor is kept.

    Where none can be kept it is compiled for this process alone: that takes seconds, and every step is faster by more.
    """
    compiler = _compiler()
    version = _run([*compiler, "--version"])
    texts = [(FOLDER / name).read_text(encoding="utf-8") for name in (*SOURCES, *HEADERS)]
    facts = (texts, compiler[1:], FLAGS, WIDE, version, _processor())
    name = f"rows-{hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()}.so"
    kept: Path | None = None
    try:
        kept = _cache_folder() / name
        if kept.is_file():
            return ctypes.CDLL(str(kept))
        scratch = tempfile.TemporaryDirectory(dir=kept.parent)
    except OSError as error:
        kept, scratch = None, tempfile.TemporaryDirectory()
        warnings.warn(
            f"what steps on the CPU run cannot be kept ({error}), so that every process compiles it anew. It takes a "
            "folder of the user's own, ~/.cache or XDG_CACHE_HOME.",
            RuntimeWarning,
            stacklevel=3,
        )
    with scratch as folder:
        made = Path(folder) / name
        _compile(compiler, made)
        if kept is not None:
            with made.open("rb") as file:
                os.fsync(file)  # after a loss of power a name would stand there of a file cut off, which nobody mends
            made = made.replace(kept)
        return ctypes.CDLL(str(made))


def _compile(compiler: list[str], target: Path) -> None:
    wide = (WIDE,) if X86 else ()
    objects = {str(target.with_name(f"{name}.o")): str(FOLDER / name) for name in SOURCES}
    with ThreadPoolExecutor() as pool:
        commands = [[*compiler, *FLAGS, *wide, "-c", source, "-o", to] for to, source in objects.items()]
        list(pool.map(_run, commands))
    _run([*compiler, *FLAGS, "-shared", *objects, "-o", str(target), "-lm"])


def _compiler() -> list[str]:
    """The command that CC names, else the system's own, else what `pip install "ds2ds[compiler]"` brings."""
    if named := shlex.split(os.environ.get("CC", "")):
        return named
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec("ziglang") is None:
        raise OSError("there is no C compiler")
    return [sys.executable, "-m", "ziglang", "cc"]


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS).stdout


def _cache_folder() -> Path:
    """A folder that only this user can write to, since what lies there is run."""
    folder = user_cache()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    facts = folder.stat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise OSError(f"{folder} can be written to by others")
    return folder


def _processor() -> str:
    """What TUNED goes by: a cache folder may be shared by machines."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else [platform.processor()]
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
