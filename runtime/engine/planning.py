"""What the next step computes: a chunk for every job that room can be made for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ds2ds.attention.view import Chunk, targets
from ds2ds.cache.document_store import DocumentStore
from ds2ds.cache.entry import Entry
from ds2ds.documents.document import Document
from ds2ds.engine.job import Job
from ds2ds.errors import ArenaFullError

PREFILL_CHUNK = 512
"""Most tokens of one document in one step: bounds the memory that scores take."""


@dataclass(frozen=True)
class Planned:
    """A chunk, the job that computes it, and those that wait for the same document to be computed."""

    chunk: Chunk
    job: Job
    sharing: list[Job] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """Attributes:
    full: why there is nothing for some job, if so: it found no room and waits.
    """

    batch: list[Planned]
    full: ArenaFullError | None


def plan(store: DocumentStore, jobs: Sequence[Job]) -> Plan:
    """Choose a chunk for each job and reserve room for it; what is read is pinned."""
    used: set[Document] = set()
    planned: dict[Entry, Planned] = {}
    full: ArenaFullError | None = None

    def pinned() -> set[Document]:
        return used.union(*(job.window for job in jobs))

    for job in jobs:
        one: Planned | None = None
        while one is None:
            chunk = next_chunk(store, job, used)
            known = store.entry(chunk.document)
            if known is not None and known in planned:
                planned[known].sharing.append(job)
                break
            try:
                entry = store.reserve(chunk.document, pinned)
            except ArenaFullError as error:
                full = error
                break
            job.touched[chunk.document] = None
            # Where what was found of a prompt had to go for the room it was to be copied to, all of it is computed.
            if entry.computed == chunk.start:
                if known is None:
                    job.trace.tokens_reused += chunk.start
                one = planned[entry] = Planned(chunk, job)
    return Plan(list(planned.values()), full)


def next_chunk(store: DocumentStore, job: Job, used: set[Document]) -> Chunk:
    """What to compute next for a job: first of all what its document reads, unless the store has it.

    Args:
        used: what is read together must be resident together, or two documents would drive each other out for ever; all
            of it is added here.
    """
    if job.waiting is None:
        raise RuntimeError("a running job waits for nothing")
    document = job.waiting.document
    while True:
        attach(store, job, document)
        start = store.computed(document) or store.found(document)
        stop = min(len(document.tokens), start + PREFILL_CHUNK)
        reads = targets(document, start, stop)
        used.add(document)
        used.update(reads)
        for target in reads:
            attach(store, job, target)
        missing = next((target for target in reads if store.computed(target) < len(target.tokens)), None)
        if missing is None:
            return Chunk(document, start, stop)
        document = missing


def attach(store: DocumentStore, job: Job, document: Document) -> None:
    """Let a document use what the store has of it; counts what this job need not compute."""
    found = store.attach(document)
    if found is not None:
        job.trace.tokens_reused += found
        job.trace.documents_reused += 1
        job.touched[document] = None
