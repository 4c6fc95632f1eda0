"""The engine: drives generation coroutines, any number at once, in flat batches over one arena."""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from ds2ds.attention.paths import attention_path
from ds2ds.cache.document_store import DocumentStore
from ds2ds.cache.retention import RETENTIONS
from ds2ds.documents.document import Document
from ds2ds.documents.generation_result import Trace
from ds2ds.engine.arena_size import make_arena
from ds2ds.engine.job import Job, turn
from ds2ds.engine.job_queue import JobQueue
from ds2ds.engine.limits import MAX_QUEUE, MAX_RUNNING, STEP_TOKENS, Limits, check_priority
from ds2ds.engine.planning import Planned, attach, plan
from ds2ds.engine.step import Stopwatch, forward, sample, score
from ds2ds.engine.work import Ask, Compute, Prefill, Sampled, Score, Work
from ds2ds.errors import ConfigError, GenerationError
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.model.weights_identity import fingerprint


class Engine:
    """Runs jobs against one model and one KV arena.

    Requests start in the order of their priority, within one priority first come first served, and none overtakes
    another that waits for room: so each one starts, unless requests of a higher priority keep coming. What runs is not
    interrupted for others, but where the arena is full the last in that order waits, or gives up what it has and starts
    anew, and keeps its place. In each step every running request whose next token can be drawn gets it, whatever else
    is computed beside it.

    A request that asks its reader something is parked: it counts as none that runs until it is answered, and then has
    its place in the queue again. What it holds of the arena it keeps, but where the arena is full it gives that up
    first, and computes it anew.

    Args:
        arena_tokens: slots of the arena; None: see `default_arena_tokens`.
        document_store: share complete documents between requests, and keep them while there is room.
        retention: which of those that no request reads go first, a name in `RETENTIONS`.
        attention: what reads the arena, see `attention_path`.
        step_tokens: most tokens that one step prefills, of all requests together; None: see `STEP_TOKENS`. Smaller ones
            keep the pace of requests that decode, larger ones may prefill faster.
        max_running: most requests that run at a time.
        max_queue: most requests that wait to start.

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
        step_tokens: int | None = None,
        max_running: int = MAX_RUNNING,
        max_queue: int = MAX_QUEUE,
    ) -> None:
        if retention not in RETENTIONS:
            raise ConfigError(f"retention must be one of {tuple(RETENTIONS)}, got {retention!r}")
        if not isinstance(document_store, bool):
            raise ConfigError(f"document_store must be True or False, got {document_store!r}")
        if step_tokens is None:
            step_tokens = STEP_TOKENS[model.device.type]
        self.limits = Limits(step_tokens, max_running, max_queue)
        self.model = model
        self.store = DocumentStore(make_arena(model, arena_tokens), RETENTIONS[retention](), share=document_store)
        self.attention = attention_path(self.store, model.rotary, attention)
        self.queue = JobQueue(max_queue)
        self.running: list[Job] = []
        self.parked: list[Job] = []  # those that asked something and do not run again yet; if answered, also queued

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do. With an answer it may have."""
        return bool(self.running or self.queue)

    def submit(self, coroutine: Work, window: list[Document], trace: Trace, need: int = 0, priority: int = 0) -> Job:
        """Queue a request; it runs as `step` is called. For `window`, `need` and `priority` see Job.

        Raises:
            QueueFullError: max_queue requests wait already; ConfigError: priority is no integer.
        """
        job = Job(coroutine, window, trace, need, check_priority(priority))
        self.has_room()
        self.queue.add(job)
        return job

    def has_room(self) -> bool:
        """Whether one more request may be submitted. If the queue is full, those in it that can start do so first."""
        if self.queue.is_full:
            self._admit()
        return not self.queue.is_full

    def make_way(self) -> None:
        """Step until one more request may be submitted."""
        while not self.has_room():
            self.step()

    def run(self, job: Job, reader: Callable[[Any], Any] | None = None) -> Iterator[None]:
        """Step until the job is done, yielding after each step. Left early, the job is cancelled.

        Args:
            reader: gives the answers to what the job asks, after the step in which it does; what it raises ends the
                job and is raised. None: it asks nothing.

        Raises:
            Ds2dsError: what the request failed with.
        """
        try:
            while not job.done:
                self.step()
                yield
                if job.question is not None:
                    if reader is None:
                        raise RuntimeError(f"nobody is there to answer {job.question!r}")
                    self.answer(job, reader(job.question))
        finally:
            self.cancel(job)
        if job.error is not None:
            raise job.error

    def answer(self, job: Job, answer: Any) -> None:
        """Answer what a job asks: it goes on in its turn.

        Raises:
            RuntimeError: it asks nothing.
        """
        if job.question is None:
            raise RuntimeError("a job was answered that asks nothing")
        job.question, job.answer = None, answer
        self.queue.put_back(job)

    def cancel(self, job: Job, error: Exception | None = None) -> None:
        """End a job, with an error if one is given, and free what it holds. No effect on one that is done."""
        if not job.done:
            self._finish(job, error)

    def step(self) -> None:
        """Compute what the plan says of all running jobs in one batch, and hand each drawn token to its coroutine."""
        self._admit()
        self._pass_prefilled()
        batch = self._plan()
        if not batch:
            return
        with Stopwatch() as watch:
            hidden = forward(self.model, self.attention, [one.chunk for one in batch])
        self._account(batch, watch.seconds)
        self._score(batch, hidden)
        self._draw(batch, hidden)

    def check_integrity(self) -> None:
        """Raise RuntimeError if the arena's books do not balance, or documents are in use though nothing runs."""
        self.store.check_integrity()
        loose = set(self.store.documents()).difference(*(job.touched for job in (*self.running, *self.parked)))
        if loose:
            raise RuntimeError(
                f"documents {sorted(d.title for d in loose)} are in use, but no request runs that has them"
            )

    def _admit(self) -> None:
        """Start queued jobs in their turn, while what all of them may need fits the arena."""
        while self.queue and len(self.running) < self.limits.max_running:
            job = self.queue.first
            needed = sum(job.need for job in (*self.running, job))
            if self.running and needed > self.store.arena.slots:
                break
            self.store.use_weights(fingerprint(self.model))
            self.queue.remove(job)
            insort(self.running, job, key=turn)
            if job in self.parked:
                self.parked.remove(job)
                answer, job.answer = job.answer, None
                self._send(job, answer)
            elif job.waiting is None:  # it is not one that was suspended
                self._send(job, None)

    def _pass_prefilled(self) -> None:
        """Let coroutines go on whose document is computed."""
        for job in list(self.running):
            while isinstance(job.waiting, Prefill) and self._is_computed(job, job.waiting):
                self._send(job, None)

    def _plan(self) -> list[Planned]:
        """What is computed of the running jobs, as far as room can be made for it.

        Where a job finds the arena full, parked ones give up all they have. Then it waits while others go on. Where
        none can, the last in turn gives up all it has and starts anew once it can have the arena to itself; if it has,
        it computes what it needs piece by piece, and if that is too much, it fails.
        """
        while self.running:
            parked = [job for job in self.parked if job.touched]
            planned = plan(self.store, self.running, self.limits.step_tokens, parked)
            if planned.full is not None and parked:
                self._release(max(parked, key=turn))
                continue
            if planned.batch:
                return planned.batch
            last = self.running[-1]
            if len(self.running) > 1:
                self._suspend(last)
            elif not last.narrow:
                last.narrow = True
            else:
                self._finish(last, planned.full)
        return []

    def _is_computed(self, job: Job, work: Prefill) -> bool:
        attach(self.store, job, work.document)
        return self.store.computed(work.document) == len(work.document.tokens)

    def _account(self, batch: Sequence[Planned], seconds: float) -> None:
        """Note what was computed, for whom, and that the batch took so long."""
        rows = sum(len(one.chunk) for one in batch)
        of_job: dict[Job, list[Planned]] = defaultdict(list)
        for one in batch:
            of_job[one.job].append(one)
            for job in one.sharing:
                job.trace.tokens_reused += len(one.chunk)
        for job, parts in of_job.items():
            decodes = parts[0].decodes  # and then it is all there is of this job
            job.trace.count_forward(sum(len(one.chunk) for one in parts), seconds, decodes)
            for one in parts:
                share = None if decodes else seconds * len(one.chunk) / rows
                self.store.advance(one.chunk.document, one.chunk.stop, share)

    def _score(self, batch: Sequence[Planned], hidden: Tensor) -> None:
        """Say how likely the tokens were that came after those computed, where that was asked for."""
        row = 0
        for one in batch:
            work, chunk = one.job.waiting, one.chunk
            rows = hidden[row : row + len(chunk)]
            row += len(chunk)
            if not isinstance(work, Score) or work.document is not chunk.document:
                continue
            first = max(work.start, chunk.start + 1)
            following = work.document.tokens[first : chunk.stop + 1]
            scored = score(self.model, rows[len(rows) - len(following) :], following, work.top)
            if isinstance(scored, GenerationError):
                self._finish(one.job, scored)
                continue
            work.found.update(zip(range(first, chunk.stop + 1), scored, strict=True))
            if chunk.stop == work.stop:
                self._send(one.job, [work.found[at] for at in range(work.start, work.stop + 1)])

    def _draw(self, batch: Sequence[Planned], hidden: Tensor) -> None:
        """Draw the next token of each document that was computed to its end for that; hidden is [rows, model_dim]."""
        drawing: list[tuple[int, Job, Compute]] = []
        row = -1
        for one in batch:
            row += len(one.chunk)
            work, document = one.job.waiting, one.chunk.document
            if isinstance(work, Compute) and work.document is document and one.chunk.stop == len(document.tokens):
                drawing.append((row, one.job, work))
        if not drawing:
            return
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

    def _send(self, job: Job, outcome: Any) -> None:
        """Let a running job go on with what its work came to, up to the next."""
        before = job.waiting
        try:
            job.waiting = job.coroutine.send(outcome)
        except StopIteration:
            self._finish(job, None)
        except Exception as error:
            # Whatever goes wrong in one request, a corpus that raises included, ends that request alone.
            self._finish(job, error)
        else:
            if before is not None and job.waiting.document is not before.document:
                self._share_completed(job)
            if isinstance(job.waiting, Ask):
                job.question = job.waiting.question
                self.running.remove(job)
                self.parked.append(job)

    def _suspend(self, job: Job) -> None:
        """Take what a job holds; it is computed anew when all others that run now are done."""
        self._release(job)
        self.running.remove(job)
        self.queue.put_back(job)
        job.need = self.store.arena.slots

    def _finish(self, job: Job, error: Exception | None) -> None:
        job.waiting, job.question, job.done, job.error = None, None, True, error
        job.coroutine.close()
        for place in (self.running, self.parked, self.queue):
            if job in place:
                place.remove(job)
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
