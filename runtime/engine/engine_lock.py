"""Who has an engine to itself, and what has to wait until he lets it go."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class EngineLock:
    """A reentrant lock, which does what was put off before it is let go.

    A garbage collection may come at any point of a step, and run the end of an abandoned stream there, in the thread
    that takes the step: to wait for the lock would be for ever, and to free at once what the stream's request holds
    would be under the hands of who plans with it, computes into it or iterates over it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._put_off: deque[Callable[[], None]] = deque()

    def do(self, function: Callable[[], None]) -> None:
        """Call a function, with the lock: at once, or, if this thread has it already, just before it is let go."""
        with self:
            if self._depth > 1:
                self._put_off.append(function)
            else:
                function()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        try:
            # What is put off meanwhile is done here, too.
            while self._depth == 1 and self._put_off:
                self._put_off.popleft()()
        finally:
            self._depth -= 1
            self._lock.release()
