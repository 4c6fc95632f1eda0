"""Where each request is, in the queue, among those that run, or parked, and how it goes on from there."""

from __future__ import annotations

from bisect import insort
from typing import Any

from ds2ds.cache.document_store import DocumentStore
from ds2ds.documents.document import Document
from ds2ds.engine.admission import may_start
from ds2ds.engine.holding import release, release_abandoned, share_completed
from ds2ds.engine.job import Job, turn
from ds2ds.engine.job_queue import JobQueue
from ds2ds.engine.limits import Limits
from ds2ds.engine.planning import Plan, attach, plan
from ds2ds.engine.work import Ask, Prefill, Rank
from ds2ds.errors import GenerationError


class Scheduler:
    """The jobs of an engine, which has its lock whenever it calls.

    Attributes:
        queue: those that wait to run, for the first time or again.
        running: in the order of their turn.
        parked: those that asked something and do not run again yet; if answered, also queued.
        sending: a coroutine is at work, and with it what it calls: a corpus, say.
    """

    def __init__(self, store: DocumentStore, limits: Limits) -> None:
        self.queue = JobQueue(limits.max_queue)
        self.running: list[Job] = []
        self.parked: list[Job] = []
        self.sending = False
        self._store = store
        self._limits = limits
        self._full = False  # a job found no room in the last plan

    def next_to_start(self) -> Job | None:
        """The queued job whose turn it is, if there is room for it."""
        if not self.queue:
            return None
        job = self.queue.first
        may = may_start(job, self.running, self._store, self._limits.max_running, full=self._full)
        return job if may else None

    def start(self, job: Job) -> None:
        """Let a queued job run, up to the work that it waits for."""
        self.queue.remove(job)
        insort(self.running, job, key=turn)
        if job in self.parked:
            self.parked.remove(job)
            answer, job.answer = job.answer, None
            self._send(job, answer)
        elif job.waiting is None:  # it is not one that was suspended
            self._send(job, None)

    def pass_prefilled(self) -> None:
        """Let coroutines go on whose document is computed."""
        for job in list(self.running):
            while isinstance(job.waiting, Prefill) and self._is_computed(job, job.waiting):
                self._send(job, None)

    def plan(self) -> Plan:
        """What is computed of the running jobs, as far as room can be made for it.

        Where a job finds the arena full, parked ones give up all they have. Then it waits while others go on. Where
        none can, the last in turn gives up all it has and starts anew once it can have the arena to itself; if it has,
        it computes what it needs piece by piece, and if that is too much, it fails.
        """
        while self.running:
            parked = [job for job in self.parked if job.touched]
            planned = plan(self._store, self.running, self._limits.step_tokens, parked)
            self._full = planned.full is not None
            if planned.full is not None and parked:
                release(self._store, max(parked, key=turn))
                continue
            if planned:
                return planned
            last = self.running[-1]
            if len(self.running) > 1:
                self._suspend(last)
            elif not last.narrow:
                last.narrow = True
            else:
                self.finish(last, planned.full)
        return Plan({}, [])

    def hand_over(self, job: Job, document: Document, result: Any) -> None:
        """Note what a document came to; once there is something for all that a job waits for, it goes on."""
        if job.done:
            return  # another of its documents has failed
        if isinstance(result, GenerationError):
            self.finish(job, result)
            return
        work = job.waiting
        if not isinstance(work, Rank):
            self._send(job, result)
            return
        job.drawn[document] = result
        if not job.pending:
            drawn, job.drawn = job.drawn, {}
            self._send(job, [drawn[one] for one in work.documents])

    def finish(self, job: Job, error: Exception | None) -> None:
        """End a job and free what it holds. No effect on one that is done."""
        if job.done:
            return
        job.waiting, job.question, job.done, job.error = None, None, True, error
        job.coroutine.close()
        for place in (self.running, self.parked, self.queue):
            if job in place:
                place.remove(job)
        share_completed(self._store, job)
        release(self._store, job)

    def _send(self, job: Job, answer: Any) -> None:
        """Let a running job go on with what its work came to, up to the next."""
        before, sending = job.waiting, self.sending
        self.sending = True
        try:
            job.waiting = job.coroutine.send(answer)
        except StopIteration:
            self.finish(job, None)
        except RecursionError as error:
            too_deep = GenerationError(
                "documents that bring in documents are more levels deep than Python's stack: lower max_link_depth"
            )
            too_deep.__cause__ = error
            self.finish(job, too_deep)
        except Exception as error:
            # Whatever goes wrong in one request, a corpus that raises included, ends that request alone.
            self.finish(job, error)
        else:
            if job.waiting is not before and before is not None and job.waiting.documents != before.documents:
                if isinstance(job.waiting, Rank):
                    release_abandoned(self._store, job)
                share_completed(self._store, job)
            if isinstance(job.waiting, Ask):
                job.question = job.waiting.question
                self.running.remove(job)
                self.parked.append(job)
        finally:
            self.sending = sending

    def _suspend(self, job: Job) -> None:
        """Take what a job holds, to be computed anew: when there is room for all that it may need, and the next time
        when all others that run now are done."""
        release(self._store, job)
        self.running.remove(job)
        self.queue.put_back(job)
        if job.suspended:
            job.need = self._store.arena.slots
        job.suspended = True

    def _is_computed(self, job: Job, work: Prefill) -> bool:
        attach(self._store, job, work.document)
        return self._store.computed(work.document) == len(work.document.tokens)
