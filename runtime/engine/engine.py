"""The engine: drives generation coroutines, any number at once, in flat batches over one arena."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

from ds2ds.attention.paths import attention_path
from ds2ds.cache.document_store import DocumentStore
from ds2ds.cache.retention import RETENTIONS
from ds2ds.documents.document import Document
from ds2ds.documents.generation_result import Trace
from ds2ds.engine.arena_size import make_arena
from ds2ds.engine.job import Job
from ds2ds.engine.planning import Planned, attach, plan
from ds2ds.engine.step import Stopwatch, forward, sample
from ds2ds.engine.work import Compute, Prefill, Sampled, Work
from ds2ds.errors import ConfigError
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.model.weights_identity import fingerprint


class Engine:
    """Runs jobs against one model and one KV arena.

    Args:
        arena_tokens: slots of the arena; None: see `default_arena_tokens`.
        document_store: share complete documents between requests, and keep them while there is room.
        retention: which of those that no request reads go first, a name in `RETENTIONS`.
        attention: what reads the arena, see `attention_path`.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        model: DS2DSModel,
        arena_tokens: int | None = None,
        *,
        document_store: bool = True,
        retention: str = "gdsf",
        attention: str = "auto",
    ) -> None:
        if retention not in RETENTIONS:
            raise ConfigError(f"retention must be one of {tuple(RETENTIONS)}, got {retention!r}")
        if not isinstance(document_store, bool):
            raise ConfigError(f"document_store must be True or False, got {document_store!r}")
        self.model = model
        self.store = DocumentStore(make_arena(model, arena_tokens), RETENTIONS[retention](), share=document_store)
        self.attention = attention_path(self.store, model.rotary, attention)
        self.queue: deque[Job] = deque()
        self.running: list[Job] = []

    def submit(self, coroutine: Work, window: list[Document], trace: Trace, need: int = 0) -> Job:
        """Queue a request; it runs as `step` is called. For `window` and `need` see Job."""
        job = Job(coroutine, window, trace, need)
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
        self._pass_prefilled()
        batch = self._plan()
        if not batch:
            return
        with Stopwatch() as watch:
            hidden = forward(self.model, self.attention, [one.chunk for one in batch])
        rows = sum(len(one.chunk) for one in batch)
        drawing: list[tuple[int, Job, Compute]] = []
        row = -1
        for one in batch:
            row += len(one.chunk)
            self._account(one, watch.seconds, rows)
            work = one.job.waiting
            document = one.chunk.document
            if isinstance(work, Compute) and work.document is document and one.chunk.stop == len(document.tokens):
                drawing.append((row, one.job, work))
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
        """Raise RuntimeError if the arena's books do not balance, or documents are in use though nothing runs."""
        self.store.check_integrity()
        loose = set(self.store.documents()).difference(*(job.touched for job in self.running))
        if loose:
            raise RuntimeError(
                f"documents {sorted(d.title for d in loose)} are in use, but no request runs that has them"
            )

    def _admit(self) -> None:
        """Start queued jobs, first come first served, while what all of them may need fits the arena."""
        while self.queue:
            needed = sum(job.need for job in self.running) + self.queue[0].need
            if self.running and needed > self.store.arena.slots:
                break
            self.store.use_weights(fingerprint(self.model))
            job = self.queue.popleft()
            self.running.append(job)
            if job.waiting is None:  # it is not one that was suspended
                self._send(job, None)

    def _pass_prefilled(self) -> None:
        """Let coroutines go on whose document is computed."""
        for job in list(self.running):
            while isinstance(job.waiting, Prefill) and self._is_computed(job, job.waiting):
                self._send(job, None)

    def _plan(self) -> list[Planned]:
        """A chunk for each running job that room can be made for.

        A job that finds the arena full waits while others go on. Where none can, the newest one gives up all it has
        and starts anew once it can have the arena to itself; if it had, it fails.
        """
        while self.running:
            planned = plan(self.store, self.running)
            if planned.batch:
                return planned.batch
            newest = self.running[-1]
            if len(self.running) > 1:
                self._suspend(newest)
            else:
                self._finish(newest, planned.full)
        return []

    def _is_computed(self, job: Job, work: Prefill) -> bool:
        attach(self.store, job, work.document)
        return self.store.computed(work.document) == len(work.document.tokens)

    def _account(self, one: Planned, seconds: float, rows: int) -> None:
        """Note that a chunk was computed in a batch of so many rows, and who had it computed for it."""
        document = one.chunk.document
        decode = document.in_progress and not math.isnan(document.logprobs[one.chunk.start])
        self.store.advance(document, one.chunk.stop, None if decode else seconds * len(one.chunk) / rows)
        one.job.trace.count_forward(len(one.chunk), seconds, decode)
        for job in one.sharing:
            job.trace.tokens_reused += len(one.chunk)

    def _send(self, job: Job, drawn: Sampled | None) -> None:
        before = job.waiting
        try:
            job.waiting = job.coroutine.send(drawn)
        except StopIteration:
            self._finish(job, None)
        except Exception as error:
            # Whatever goes wrong in one request, a corpus that raises included, ends that request alone.
            self._finish(job, error)
        else:
            if before is not None and job.waiting.document is not before.document:
                self._share_completed(job)

    def _suspend(self, job: Job) -> None:
        """Take what a job holds; it is computed anew when all others that run now are done."""
        self._release(job)
        self.running.remove(job)
        self.queue.appendleft(job)
        job.need = self.store.arena.slots

    def _finish(self, job: Job, error: Exception | None) -> None:
        job.waiting, job.done, job.error = None, True, error
        job.coroutine.close()
        if job in self.running:
            self.running.remove(job)
        else:
            self.queue.remove(job)
        self._share_completed(job)
        self._release(job)

    def _share_completed(self, job: Job) -> None:
        """Documents that were written are others' to use. The root is nobody's target."""
        for document in job.touched:
            if document.depth:
                self.store.complete(document)

    def _release(self, job: Job) -> None:
        for document in job.touched:
            self.store.release(document)
        job.touched.clear()
