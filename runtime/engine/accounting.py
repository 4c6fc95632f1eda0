"""What a step has computed, noted in the store and in the traces of those for whom it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ds2ds.cache.document_store import DocumentStore
from ds2ds.engine.job import Job
from ds2ds.engine.planning import Planned


def account(store: DocumentStore, batch: Sequence[Planned], seconds: float) -> None:
    """Note that a batch was computed and how long it took."""
    rows = sum(len(one.chunk) for one in batch)
    counts: dict[Job, list[int]] = {}  # tokens prefilled and decoded
    for one in batch:
        chunk, tokens = one.chunk, len(one.chunk)
        counts.setdefault(one.job, [0, 0])[one.decodes] += tokens
        for job in one.sharing:
            job.trace.tokens_reused += tokens
        store.advance(chunk.document, chunk.stop, None if one.decodes else seconds * tokens / rows)
    for job, (prefilled, decoded) in counts.items():
        job.trace.count_forward(prefilled, decoded, seconds)


def account_decoded(store: DocumentStore, batch: Iterable[Planned], seconds: float) -> None:
    """The same of a batch that decoded a token of each of its jobs, and nothing else."""
    for one in batch:
        store.advance(one.chunk.document, one.chunk.stop)
        one.job.trace.count_forward(0, 1, seconds)
