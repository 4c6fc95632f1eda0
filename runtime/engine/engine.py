"""The engine: drives generation coroutines, any number at once, in flat batches over one arena."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from ds2ds.attention.flex_kernel import DECODE, FAN
from ds2ds.attention.paths import WarmsUp, attention_path
from ds2ds.cache.document_store import DocumentStore
from ds2ds.cache.retention import RETENTIONS
from ds2ds.documents.document import Document
from ds2ds.documents.generation_result import Trace
from ds2ds.engine.accounting import account, account_decoded
from ds2ds.engine.arena_size import make_arena
from ds2ds.engine.decode_graph.choosing import decodable
from ds2ds.engine.decode_graph.making import make_decoder
from ds2ds.engine.engine_lock import EngineLock
from ds2ds.engine.job import Job
from ds2ds.engine.limits import MAX_QUEUE, MAX_RUNNING, STEP_TOKENS, Limits, check_priority, positive
from ds2ds.engine.planning import last_tokens
from ds2ds.engine.results import results
from ds2ds.engine.scheduler import Scheduler
from ds2ds.engine.step import Stopwatch, forward, misfit
from ds2ds.engine.work import AnyWork
from ds2ds.errors import ConfigError, GenerationError
from ds2ds.model.compiled_backbone import CompiledBackbone, compiled_backbone
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.model.weights_identity import fingerprint

if TYPE_CHECKING:
    from ds2ds.engine.decode_graph.decoder import Decoder


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

    Threads may share it: each method has it alone, and whoever takes a step takes it for all.

    Args:
        arena_tokens: slots of the arena; None: see `default_arena_tokens`.
        document_store: share complete documents between requests, and keep them while there is room.
        retention: which of those that no request reads go first, a name in `RETENTIONS`.
        attention: what reads the arena, see `attention_path`.
        cuda_graphs: decode in CUDA graphs, each launched before the tokens of the one before are read
            (`engine.decode_graph`). It needs a GPU and attention "triton"; "auto": where there are both. A document
            that begins to decode, or whose view has changed late, may then be one step later than the others.
        step_tokens: most tokens that one step prefills, of all requests together; None: see `STEP_TOKENS`. Smaller ones
            keep the pace of requests that decode, larger ones may prefill faster.
        max_running: most requests that run at a time.
        max_queue: most requests that wait to start.

    Raises:
        ConfigError: an argument is out of range.
    """

    @torch.inference_mode(False)  # what is made here is written to in whatever mode steps are taken in
    def __init__(
        self,
        model: DS2DSModel,
        arena_tokens: int | None = None,
        *,
        document_store: bool = True,
        retention: str = "gdsf",
        attention: str = "auto",
        cuda_graphs: bool | str = "auto",
        step_tokens: int | None = None,
        max_running: int = MAX_RUNNING,
        max_queue: int = MAX_QUEUE,
    ) -> None:
        if not isinstance(retention, str) or retention not in RETENTIONS:
            raise ConfigError(f"retention must be one of {tuple(RETENTIONS)}, got {retention!r}")
        if not isinstance(document_store, bool):
            raise ConfigError(f"document_store must be True or False, got {document_store!r}")
        if step_tokens is None:
            step_tokens = STEP_TOKENS[model.device.type]
        self.limits = Limits(step_tokens, max_running, max_queue)
        self.lock = EngineLock()
        self.model = model
        self.store = DocumentStore(make_arena(model, arena_tokens), RETENTIONS[retention](), share=document_store)
        self.attention = attention_path(self.store, model.rotary, attention)
        self.compiled: CompiledBackbone | None = None
        self._weight = model.embedding.weight  # the same object when the model is cast or moved in place
        self.decoder = make_decoder(model, self.store, cuda_graphs, attention, max_running)
        self.scheduler = Scheduler(self.store, self.limits)
        self.queue, self.running, self.parked = self.scheduler.queue, self.scheduler.running, self.scheduler.parked

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do. With an answer it may have."""
        return bool(self.running or self.queue)

    def submit(
        self, coroutine: AnyWork, window: list[Document], trace: Trace, need: int = 0, priority: int = 0, width: int = 1
    ) -> Job:
        """Queue a request; it runs as `step` is called. For `window`, `need`, `priority` and `width` see Job.

        Raises:
            QueueFullError: max_queue requests wait already; ConfigError: priority is no integer, or width is more than
                max_running.
        """
        if width > self.limits.max_running:
            raise ConfigError(f"{width} documents at a time are more than max_running {self.limits.max_running}")
        job = Job(coroutine, window, trace, need, check_priority(priority), width)
        with self.lock:
            self.has_room()
            self.queue.add(job)
        return job

    def has_room(self) -> bool:
        """Whether one more request may be submitted. If the queue is full, those in it that can start do so first."""
        with self.lock:
            if self.queue.is_full:
                self._admit()
            return not self.queue.is_full

    def make_way(self) -> None:
        """Step until one more request may be submitted."""
        while not self.has_room():
            self.step()

    def warm_up(self, rows: int | None = None, *, repetition_penalty: bool = False) -> None:
        """Compile and capture ahead what steps on a GPU need, so that none waits for it; see `Runtime.warm_up`."""
        most = self.limits.max_running
        rows = most if rows is None else min(positive("rows", rows), most)
        with self._on_device():
            if isinstance(self.attention, WarmsUp):
                self.attention.warm_up(min(rows * FAN, DECODE.most))
            if self.decoder is not None:
                self.decoder.warm_up(rows, penalised=repetition_penalty)

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
        with self.lock:
            job.question, job.answer = None, answer
            self.queue.put_back(job)

    def cancel(self, job: Job, error: Exception | None = None) -> None:
        """End a job, with an error if one is given, and free what it holds. No effect on one that is done.

        From within a step, as a garbage collection may do it, the job ends as the step does.
        """
        self.lock.do(lambda: self.scheduler.finish(job, error))

    def step(self) -> None:
        """Compute what the plan says of all running jobs in one batch, and hand each drawn token to its coroutine.

        Raises:
            GenerationError: it is called from within a coroutine, which would have to wait for itself.
        """
        with self.lock, self._on_device():
            if self.scheduler.sending:
                raise GenerationError(
                    "what a runtime calls in the midst of a step, as a corpus or a progress, cannot have it compute: "
                    "give that a Runtime of its own"
                )
            self._step()

    def _step(self) -> None:
        self._admit()
        self.scheduler.pass_prefilled()
        planned = self.scheduler.plan()
        if planned and (error := misfit(self._weight, self.store.arena.data)) is not None:
            for job in planned.jobs():
                self.scheduler.finish(job, error)
            return
        written = planned.written
        if self.decoder is not None and written:
            written = self._decode(self.decoder, written)
        batch = [*last_tokens(written), *planned.prefills]
        if not batch:
            return
        with Stopwatch() as watch:
            hidden = forward(self.model, self.attention, [one.chunk for one in batch], self.compiled)
        account(self.store, batch, watch.seconds)
        for result in results(self.model, batch, hidden):
            self.scheduler.hand_over(*result)

    def require_store(self, what: str) -> None:
        """Raise ConfigError, naming what needs it, if documents are not shared."""
        if not self.store.share:
            raise ConfigError(
                f"{what} needs the document store, which is off: make the Runtime with document_store=True"
            )

    def check_integrity(self) -> None:
        """Raise RuntimeError if the arena's books do not balance, or documents are in use though nothing runs."""
        with self.lock:
            self.store.check_integrity()
            loose = set(self.store.documents()).difference(*(job.touched for job in (*self.running, *self.parked)))
        if loose:
            raise RuntimeError(
                f"documents {sorted(d.title for d in loose)} are in use, but no request runs that has them"
            )

    def _on_device(self) -> AbstractContextManager[object]:
        """Triton launches, and events are recorded, on the current GPU, which each thread has of its own."""
        device = self.store.arena.data.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _admit(self) -> None:
        """Start queued jobs in their turn, while there is room for them."""
        while (job := self.scheduler.next_to_start()) is not None:
            # Between requests weights may change, hooks come and go.
            self.store.use_weights(fingerprint(self.model))
            self.compiled = compiled_backbone(self.model.backbone)
            self._weight = self.model.embedding.weight
            self.scheduler.start(job)

    def _decode(self, decoder: Decoder, written: Mapping[Document, Job]) -> dict[Document, Job]:
        """Let the decoder draw what it can, at least one token where there is any for it; returns the rest."""
        rows, rest = decodable(decoder, written)
        if rows:
            with Stopwatch() as watch:
                drawn = decoder.decode(rows)
            account_decoded(self.store, drawn, written, watch.seconds)
            for document, result in drawn.items():
                self.scheduler.hand_over(written[document], document, result)
        return rest
