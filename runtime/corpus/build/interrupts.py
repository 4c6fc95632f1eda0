"""Ctrl-C while processes are started, which a terminal sends to them, too."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Processes that are started here never see Ctrl-C: who started them ends them.

    Nor does this one before they are started, which takes seconds: a pool that is half made cannot be ended.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # or the pool starts it, and it lets interrupts through again
    held: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()  # no other is interrupted
    # A signal that is blocked in this thread may reach another one, and then is the main thread's to handle.
    handler = signal.signal(signal.SIGINT, lambda number, frame: held.append(number)) if is_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_main:
            signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
    if held:
        raise KeyboardInterrupt
