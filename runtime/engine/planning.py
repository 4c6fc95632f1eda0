"""What the next step computes: every running job's next token, and as much prefill as the step has tokens for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ds2ds.attention.view import Chunk, targets
from ds2ds.cache.document_store import DocumentStore
from ds2ds.cache.entry import Entry
from ds2ds.documents.document import Document
from ds2ds.engine.job import Job
from ds2ds.engine.work import Score
from ds2ds.errors import ArenaFullError

PREFILL_CHUNK = 512
"""Most tokens of one document in one step: bounds the memory that scores take."""

LEAST_SHARE = 16
"""Tokens that each prefilling job gets in a step before the first ones get more, while there are so many: a short
prompt need not wait for the end of a long one that came before it."""


@dataclass(slots=True)
class Planned:
    """A chunk, the job that computes it, and those that wait for the same document to be computed.

    Attributes:
        decodes: it is a document's last token alone, and one that was written.
    """

    chunk: Chunk
    job: Job
    decodes: bool = False
    sharing: list[Job] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What a step computes.

    Attributes:
        written: documents of which just the last token is left to compute, one that was written, and whose they are.
        prefills: all else.
        full: why there is nothing for some job, if so: it found no room and waits.
    """

    written: dict[Document, Job]
    prefills: list[Planned]
    full: ArenaFullError | None = None

    def __bool__(self) -> bool:
        return bool(self.written or self.prefills)

    def jobs(self) -> set[Job]:
        """Those of which something is computed."""
        return {*self.written.values(), *(one.job for one in self.prefills)}


def last_tokens(written: Mapping[Document, Job]) -> list[Planned]:
    """The last token of each document."""
    return [
        Planned(Chunk(document, len(document.tokens) - 1, len(document.tokens)), job, decodes=True)
        for document, job in written.items()
    ]


def plan(store: DocumentStore, jobs: Sequence[Job], step_tokens: int, parked: Sequence[Job] = ()) -> Plan:
    """Choose what is computed of each job and reserve room for it; what is read is pinned.

    Tokens are decoded in any case. Documents are prefilled in the order of the jobs, of each first the one without
    which it cannot go on; what is left of the step's tokens goes to others that it will need.

    Args:
        jobs: in the order in which they are to be served.
        step_tokens: most tokens to prefill.
        parked: jobs of which nothing is computed, though what they hold is pinned.
    """
    step = _Step(store, (*jobs, *parked))
    prefills: list[Planned] = []
    rest: list[tuple[Job, Iterator[Chunk]]] = []
    for job in jobs:
        for document in job.pending:
            if lacks_last_alone(store, document):  # most of what is ever planned
                step.written[document] = job
                continue
            # Where there are more jobs than tokens, the last ones have to wait.
            one, others = step.take_first(job, document, may_prefill=len(prefills) < step_tokens)
            if one is not None and document not in step.written:
                prefills.append(one)
            if others is not None:
                rest.append((job, others))
    left = step_tokens
    for one, tokens in zip(prefills, shares(step_tokens, [len(one.chunk) for one in prefills]), strict=True):
        one.chunk = _first_tokens(one.chunk, tokens)
        left -= tokens
    for job, others in rest:
        left -= step.take_more(job, others, left)
    return Plan(step.written, list(step.planned.values()), step.full)


def shares(tokens: int, wanted: Sequence[int]) -> list[int]:
    """Share out tokens, first come first served, but for LEAST_SHARE to each who wants so many.

    That is less where it would take more than half of the tokens, and at least 1: no more may share than there are
    tokens.
    """
    least = min(LEAST_SHARE, max(1, tokens // (2 * max(1, len(wanted)))))
    given = [min(want, least) for want in wanted]
    left = tokens - sum(given)
    for index, want in enumerate(wanted):
        more = min(want - given[index], left)
        given[index] += more
        left -= more
    return given


class _Step:
    """A plan as it is made.

    Attributes:
        used: what is read in this step besides the jobs' windows. It must be resident together, or two documents would
            drive each other out for ever.
        written: as for Plan.
        planned: prefills, by the entry that a chunk is computed into.
    """

    def __init__(self, store: DocumentStore, jobs: Sequence[Job]) -> None:
        self.store, self.jobs = store, jobs
        self.used: set[Document] = set()
        self.written: dict[Document, Job] = {}
        self.planned: dict[Entry, Planned] = {}
        self.full: ArenaFullError | None = None

    def take_first(
        self, job: Job, document: Document, may_prefill: bool
    ) -> tuple[Planned | None, Iterator[Chunk] | None]:
        """Plan what a job cannot go on with a document without, unless it is computed already in this step.

        Returns:
            It, and what else is ready to be computed for the document; both None if the document has to wait.
        """
        while True:
            chunks = ready(self.store, job, document, self.used)
            chunk = next(chunks)
            if self._shares(job, chunk):
                return None, chunks
            if not (may_prefill or _is_written(chunk.document, chunk.start)):
                return None, None
            try:
                one = self._take(job, chunk)
            except ArenaFullError as error:
                self.full = error
                return None, None
            if one is not None:
                return one, chunks
            # What was found of a prompt had to go for the room it was to be copied to: all of it is computed.

    def take_more(self, job: Job, chunks: Iterator[Chunk], tokens: int) -> int:
        """Plan up to so many tokens of other documents that are ready; returns how many."""
        taken = 0
        while taken < tokens and (chunk := next(chunks, None)) is not None:
            if self._shares(job, chunk):
                continue
            try:
                one = self._take(job, _first_tokens(chunk, tokens - taken))
            except ArenaFullError:
                break  # no harm done: nothing waits for it in this step
            taken += 0 if one is None else len(one.chunk)
        return taken

    def _shares(self, job: Job, chunk: Chunk) -> bool:
        """Whether the chunk's document is computed in this step already."""
        entry = self.store.entry(chunk.document)
        if entry is None or entry not in self.planned:
            return False
        one = self.planned[entry]
        if job is not one.job and job not in one.sharing:
            one.sharing.append(job)
        return True

    def _take(self, job: Job, chunk: Chunk) -> Planned | None:
        """Plan a chunk; None if less is computed of its document, now that it has room."""
        known, forked = self.store.entry(chunk.document), chunk.document.origin is not None
        entry = self.store.reserve(chunk.document, self._pinned)
        job.touched[chunk.document] = None
        if entry.computed != chunk.start:
            return None
        if known is None:
            job.trace.tokens_reused += chunk.start
            job.trace.prompt_tokens_reused += 0 if forked else chunk.start
        one = Planned(chunk, job)
        if _is_written(chunk.document, chunk.start):
            self.written[chunk.document] = job
        else:
            self.planned[entry] = one
        return one

    def _pinned(self) -> set[Document]:
        return self.used.union(*(job.window for job in self.jobs))


def ready(store: DocumentStore, job: Job, document: Document, used: set[Document]) -> Iterator[Chunk]:
    """What can be computed at once on the way to a document: some that it reads and the store lacks, or itself.

    Args:
        used: all that is read for it is added here.
    """
    work = job.waiting
    # Not by recursion: a chain of documents may be longer than Python's stack is deep.
    pending, seen = [document], set[Document]()
    while pending:
        one = pending.pop()
        if one in seen:
            continue
        seen.add(one)
        attach(store, job, one)
        last = work.stop if isinstance(work, Score) and work.document is one else len(one.tokens)
        start = store.computed(one) or store.found(one)
        stop = min(last, start + PREFILL_CHUNK)
        if job.narrow:
            changes = (at for grant in one.grants for at in (grant.position, grant.end) if at is not None)
            stop = min([stop, *(at for at in changes if at > start)])
        reads = targets(one, start, stop)
        used.add(one)
        used.update(reads)
        for target in reads:
            attach(store, job, target)
        missing = [target for target in reads if store.computed(target) < len(target.tokens)]
        if not missing:
            yield Chunk(one, start, stop)
        pending += reversed(missing)


def attach(store: DocumentStore, job: Job, document: Document) -> None:
    """Let a document use what the store has of it; counts what this job need not compute."""
    found = store.attach(document)
    if found is not None:
        job.trace.tokens_reused += found
        job.trace.documents_reused += 1
        job.touched[document] = None


def lacks_last_alone(store: DocumentStore, document: Document) -> bool:
    """Whether nothing is missing for a document's last token, one that was written, and that is all to be computed."""
    last = len(document.tokens) - 1
    if store.computed(document) != last or not _is_written(document, last):
        return False
    for grant in document.grants:
        if grant.covers(last) and store.computed(grant.target) < len(grant.target.tokens):
            return False
    return True


def _is_written(document: Document, start: int) -> bool:
    """Whether a document's tokens from this one on are its last one alone, and that was written."""
    return document.in_progress and document.given <= start == len(document.tokens) - 1


def _first_tokens(chunk: Chunk, tokens: int) -> Chunk:
    return Chunk(chunk.document, chunk.start, min(chunk.stop, chunk.start + tokens))
