"""The engine: drives generation coroutines, any number at once, in flat batches over one arena."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ds2ds.attention.plain import Chunk
from ds2ds.attention.view import targets
from ds2ds.cache.arena import KVArena
from ds2ds.cache.document_cache import DocumentCache
from ds2ds.documents.document import Document
from ds2ds.documents.document_context import DocumentContext
from ds2ds.documents.generation_result import Trace
from ds2ds.engine.step import Stopwatch, forward, sample
from ds2ds.engine.work import Compute, Sampled, Work
from ds2ds.errors import ArenaFullError
from ds2ds.model.ds2ds_model import DS2DSModel

PREFILL_CHUNK = 512
"""Most tokens of one document in one step: bounds the memory that scores take."""

CPU_ARENA_BYTES = 2**30
"""Default size of the arena on a CPU, unless the model's max_seq_len needs more."""


@dataclass(eq=False)
class Job:
    """One request: its coroutine, its window, and what it waits for.

    Attributes:
        need: slots of the arena that the request may come to fill; it starts when they are free.
        waiting: the work it asked for last; None before it starts and once it is done.
        error: what ended the request early; None while it runs and after it ended well.
        touched: the documents computed for it, whose slots are free again when it is done.
    """

    coroutine: Work
    context: DocumentContext
    trace: Trace
    need: int
    waiting: Compute | None = None
    done: bool = False
    error: Exception | None = None
    touched: dict[Document, None] = field(default_factory=dict)


def default_arena_tokens(model: DS2DSModel) -> int:
    """Room for four windows of the model's length, or for CPU_ARENA_BYTES, whichever is more."""
    config = model.config
    per_token = config.num_layers * 2 * config.model_dim * model.dtype.itemsize
    return max(4 * config.max_seq_len, CPU_ARENA_BYTES // per_token)


class Engine:
    """Runs jobs against one model and one KV arena.

    Args:
        arena_tokens: slots of the arena; None: see `default_arena_tokens`.
    """

    def __init__(self, model: DS2DSModel, arena_tokens: int | None = None) -> None:
        config = model.config
        self.model = model
        slots = default_arena_tokens(model) if arena_tokens is None else arena_tokens
        arena = KVArena(
            config.num_layers,
            config.num_heads,
            config.head_dim,
            slots,
            dtype=model.dtype,
            device=model.device,
        )
        self.cache = DocumentCache(arena)
        self.queue: deque[Job] = deque()
        self.running: list[Job] = []

    def submit(self, coroutine: Work, context: DocumentContext, trace: Trace, need: int = 0) -> Job:
        """Queue a request; it runs as `step` is called. For `need` see Job."""
        job = Job(coroutine, context, trace, need)
        self.queue.append(job)
        return job

    def run(self, job: Job) -> Iterator[None]:
        """Step until the job is done, yielding after each step. Left early, the job is cancelled.

        Raises:
            Ds2dsError: what the request failed with.
        """
        try:
            while not job.done:
                self.step()
                yield
        finally:
            self.cancel(job)
        if job.error is not None:
            raise job.error

    def cancel(self, job: Job) -> None:
        """End a job and free what it holds. No effect on one that is done."""
        if not job.done:
            self._finish(job, None)

    def step(self) -> None:
        """Compute one chunk of every running job in one batch, and hand each drawn token to its coroutine."""
        self._admit()
        batch = self._next_batch()
        if not batch:
            return
        with Stopwatch() as watch:
            hidden = forward(self.model, self.cache, [chunk for _, chunk in batch])
        drawing: list[tuple[int, Job, Compute]] = []
        row = -1
        for job, chunk in batch:
            row += len(chunk)
            document = chunk.document
            decode = document.in_progress and not math.isnan(document.logprobs[chunk.start])
            job.trace.count_forward(len(chunk), watch.seconds, decode)
            work = job.waiting
            if work is not None and work.document is chunk.document and chunk.stop == len(chunk.document.tokens):
                drawing.append((row, job, work))
        if drawing:
            with Stopwatch() as watch:
                drawn = sample(
                    self.model,
                    hidden[[row for row, _, _ in drawing]],
                    [work.document for _, _, work in drawing],
                    [work.sampling for _, _, work in drawing],
                )
            for (_, job, _), result in zip(drawing, drawn, strict=True):
                job.trace.seconds["sampling"] += watch.seconds
                if isinstance(result, Sampled):
                    self._send(job, result)
                else:
                    self._finish(job, result)

    def check_integrity(self) -> None:
        """Raise RuntimeError if the arena's books do not balance, or slots are held though nothing runs."""
        self.cache.check_integrity()
        held = self.cache.arena.allocator.used
        if held and not self.running:
            raise RuntimeError(f"{held} slots of the arena are held, but no request runs")

    def _admit(self) -> None:
        """Start queued jobs, first come first served, while what all of them may need fits the arena."""
        while self.queue:
            needed = sum(job.need for job in self.running) + self.queue[0].need
            if self.running and needed > self.cache.arena.slots:
                break
            job = self.queue.popleft()
            self.running.append(job)
            self._send(job, None)

    def _next_batch(self) -> list[tuple[Job, Chunk]]:
        """A chunk for each running job that room can be made for.

        A job that finds the arena full waits while others go on. Where none can, the newest one fails.
        """
        while self.running:
            pinned = {document for job in self.running for document in job.context.window}
            batch: list[tuple[Job, Chunk]] = []
            full: ArenaFullError | None = None
            for job in self.running:
                try:
                    batch.append((job, self._next_chunk(job, pinned)))
                except ArenaFullError as error:
                    full = error
            if batch:
                return batch
            self._finish(self.running[-1], full)
        return []

    def _next_chunk(self, job: Job, pinned: set[Document]) -> Chunk:
        """What to compute next for a job: first of all what its document reads. Room is reserved, reads are pinned."""
        if job.waiting is None:
            raise RuntimeError("a running job waits for nothing")
        document = job.waiting.document
        while True:
            stop = min(len(document.tokens), document.computed + PREFILL_CHUNK)
            reads = targets(document, document.computed, stop)
            # Pinned on the way down: what is read together is resident together, or two would drive each other out.
            pinned.update((document, *reads))
            missing = next((target for target in reads if target.computed < len(target.tokens)), None)
            if missing is None:
                break
            document = missing
        self.cache.reserve(document, pinned)
        job.touched[document] = None
        return Chunk(document, document.computed, stop)

    def _send(self, job: Job, drawn: Sampled | None) -> None:
        before = job.waiting
        try:
            job.waiting = next(job.coroutine) if drawn is None else job.coroutine.send(drawn)
        except StopIteration:
            self._finish(job, None)
        except Exception as error:
            # Whatever goes wrong in one request, a corpus that raises included, ends that request alone.
            self._finish(job, error)
        else:
            if before is not None and job.waiting.document is not before.document:
                for document in job.touched:
                    self.cache.trim(document)

    def _finish(self, job: Job, error: Exception | None) -> None:
        job.waiting, job.done, job.error = None, True, error
        job.coroutine.close()
        if job in self.running:
            self.running.remove(job)
        else:
            self.queue.remove(job)
        for document in job.touched:
            self.cache.free(document)
