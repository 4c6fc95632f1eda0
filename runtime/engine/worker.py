"""A thread that owns an engine."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from ds2ds.engine.desk import Desk
from ds2ds.engine.engine import Engine


class Worker:
    """Steps an engine in a thread of its own while it has work, and sleeps while it has none, or none but to wait for
    an answer.

    What others want of the engine they post; it runs between two steps, in the order in which it was posted. Nobody
    else may touch the engine until the worker has stopped.

    Args:
        desk: told, in the worker's thread, of each step and of each time that something posted has run, and of the end.

    Attributes:
        stopped: done once nothing more will run.
    """

    def __init__(self, engine: Engine, desk: Desk) -> None:
        self.stopped: Future[None] = Future()
        self.stopped.set_running_or_notify_cancel()  # so that nobody who waits for it can cancel it
        self._engine, self._desk = engine, desk
        # Reentrant, as Condition makes it: a garbage collection may post or stop from anywhere, in here too.
        self._wake = threading.Condition()
        self._posted: deque[Callable[[], None]] = deque()
        self._stopping = self._at_once = self._ended = False
        # A daemon, so that a worker that nobody stopped does not keep the interpreter from exiting.
        self._thread = threading.Thread(target=self._run, name="ds2ds-worker", daemon=True)
        self._thread.start()

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop, or has failed."""
        return self._stopping

    def post(self, function: Callable[[], None]) -> bool:
        """Let a function, which must not raise, run between two steps. False: the worker has stopped, it never will."""
        with self._wake:
            if self._ended:
                return False
            self._posted.append(function)
            self._wake.notify()
            return True

    def stop(self, at_once: bool) -> None:
        """Stop when there is no more work, and nothing that waits for an answer, or after the step that is under way.
        Does not wait for that.
        """
        with self._wake:
            self._stopping = True
            self._at_once |= at_once
            self._wake.notify()

    def join(self) -> None:
        """Wait for the thread's end. No effect in the thread itself."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            while self._turn():
                pass
        except BaseException as error:
            # Whatever it is, all who wait are told: nobody else would ever notice.
            failure = error
        try:
            self._desk.end(failure)
            with self._wake:
                self._stopping = self._ended = True
            self._run_posted()
            self._desk.after()
        finally:
            self._stopping = self._ended = True
            self.stopped.set_result(None)

    def _turn(self) -> bool:
        """Run what was posted, then one step; False: that was all."""
        with self._wake:
            while not (self._posted or self._engine.busy or self._at_once or self._drained):
                self._wake.wait()
            if self._at_once or not (self._posted or self._engine.busy):
                return False
        if self._run_posted():
            self._desk.after()
        if self._engine.busy:
            self._engine.step()
            self._desk.after()
        return True

    @property
    def _drained(self) -> bool:
        return self._stopping and not self._engine.parked

    def _run_posted(self) -> bool:
        """Run what was posted so far."""
        with self._wake:
            functions = list(self._posted)
            self._posted.clear()
        for function in functions:
            function()
        return bool(functions)
