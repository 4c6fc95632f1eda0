"""What a job holds of the arena: shared with others once it is complete, released when it is needed no more."""

from __future__ import annotations

from ds2ds.cache.document_store import DocumentStore
from ds2ds.documents.document import Document
from ds2ds.engine.job import Job


def share_completed(store: DocumentStore, job: Job) -> None:
    """Documents that were written are others' to use. The root is nobody's target."""
    for document in job.touched:
        if document.depth:
            store.complete(document)


def release_abandoned(store: DocumentStore, job: Job) -> None:
    """Release what a search has in its window no more. Of its forks one gets its place, for others to copy from."""
    kept = set(job.window)
    heirs: dict[Document, Document] = {}
    # The fork that has most in common with the origin comes first: it has all that any other has.
    for document in sorted(job.window, key=lambda document: -document.settled):
        origin = document.origin
        if origin in heirs:
            document.origin = heirs[origin]
        elif origin is not None and origin not in kept and store.inherit(document):
            heirs[origin] = document
            job.touched[document] = None
    kept.update(document.origin for document in job.window if document.origin is not None)
    for document in [document for document in job.touched if document not in kept]:
        store.release(document)
        del job.touched[document]


def release(store: DocumentStore, job: Job) -> None:
    """Release all that it holds."""
    for document in job.touched:
        store.release(document)
    job.touched.clear()
