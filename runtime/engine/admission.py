"""Whether a request may start beside those that run: there are places for a number of them, and room in the arena."""

from __future__ import annotations

from collections.abc import Sequence

from ds2ds.cache.document_store import DocumentStore
from ds2ds.engine.job import Job


def may_start(job: Job, running: Sequence[Job], store: DocumentStore, max_running: int, *, full: bool) -> bool:
    """Whether a job may start. Alone it may always.

    It may where all that run can have all that they may need. That is seldom what they come to: so it may, too, where
    there is room for what it starts with and, then still, for all that one of them may need. A job that was suspended
    knows better.

    Args:
        full: one of those that run has found no room just now.
    """
    jobs = (*running, job)
    if sum(one.width for one in jobs) > max_running:
        return False
    needs = [one.need for one in jobs]
    if not running or sum(needs) <= store.arena.slots:
        return True
    if job.suspended or full:
        return False
    coming = sum(_starts_with(one, store) for one in jobs if not one.touched)
    return store.in_use + coming + max(needs) <= store.arena.slots


def _starts_with(job: Job, store: DocumentStore) -> int:
    """Slots that the documents take which a job begins with."""
    rounded = store.arena.allocator.rounded
    return sum(rounded(document.capacity or len(document.tokens)) for document in job.window)
