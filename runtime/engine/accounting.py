"""What a step has computed, noted in the store and in the traces of those for whom it was."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ds2ds.cache.document_store import DocumentStore
from ds2ds.documents.document import Document
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


def account_decoded(
    store: DocumentStore, drawn: Collection[Document], jobs: Mapping[Document, Job], seconds: float
) -> None:
    """Note that the last token of each of these documents was computed, and how long that took."""
    store.advance_written(drawn)
    for document in drawn:
        jobs[document].trace.count_decoded(seconds)
