"""The requests that wait to run."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from ds2ds.engine.job import Job, turn
from ds2ds.errors import QueueFullError


class JobQueue:
    """Jobs in the order of their turn, at most so many.

    A suspended job, put back, has the place that it had: before all that were submitted after it. The bound is not for
    it, as it was let in before.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._jobs: list[Job] = []
        self._added = 0

    @property
    def is_full(self) -> bool:
        return len(self._jobs) >= self.most

    @property
    def first(self) -> Job:
        """Whose turn it is. Raises IndexError where nobody waits."""
        return self._jobs[0]

    def add(self, job: Job) -> None:
        """Queue a new job.

        Raises:
            QueueFullError: as many wait as may.
        """
        if self.is_full:
            raise self.full_error()
        job.number = self._added
        self._added += 1
        self.put_back(job)

    def put_back(self, job: Job) -> None:
        insort(self._jobs, job, key=turn)

    def remove(self, job: Job) -> None:
        self._jobs.remove(job)

    def full_error(self) -> QueueFullError:
        return QueueFullError(
            f"{len(self._jobs)} requests wait already, and max_queue is {self.most}: try again later, or give the "
            "runtime a larger max_queue, or a larger max_running, so that more run at a time"
        )

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)
