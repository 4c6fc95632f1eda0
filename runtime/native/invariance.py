"""Batch-invariant execution: whether rows are computed as if each were alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_rows_apart: ContextVar[bool] = ContextVar("rows_apart", default=False)


@contextmanager
def batch_invariant(on: bool = True) -> Iterator[None]:
    """Within, a row's numbers do not depend, in any bit, on the rows beside it (float32 on a CPU).

    With compiled code (``ds2ds.native``) not on how a document was cut into chunks either, so that a prompt computed
    at once, in parts or found in the document store gives the same bits. Prefill pays a little for it: each row
    attends by itself. ``bench/cpu_step.py`` measures how much.
    """
    token = _rows_apart.set(on)
    try:
        yield
    finally:
        _rows_apart.reset(token)


def rows_apart() -> bool:
    """Whether batch-invariant execution is on here."""
    return _rows_apart.get()
