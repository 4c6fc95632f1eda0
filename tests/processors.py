"""The C files compiled for other processors than this one, of those that it can run."""

from __future__ import annotations

import atexit
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import pytest

from ds2ds.native import library as module
from ds2ds.native import operations as native

PROCESSORS = ("x86-64-v4", "x86-64-v3", "x86-64")
"""With AVX512 but not VNNI, with AVX2, and with neither."""


@lru_cache(maxsize=1)
def _folder() -> str:
    """Where what was compiled lies until the tests end."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return folder.name


@contextmanager
def compiled_for(processor: str) -> Iterator[None]:
    """Within, calls to compiled code take that of this processor."""
    if platform.machine() != "x86_64":
        pytest.skip("compiles for other processors of this kind")
    if not native.available():
        pytest.skip("there is no C compiler")
    if processor == "x86-64-v4" and "avx512f" not in module._processor():
        pytest.skip("this processor has no AVX512")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", _folder())
        patch.setattr(module, "FLAGS", tuple(f"-march={processor}" if "march" in f else f for f in module.FLAGS))
        module.library.cache_clear()
        try:
            assert native.available()
            yield
        finally:
            module.library.cache_clear()
