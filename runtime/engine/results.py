"""What a step's hidden states come to: tokens drawn, ranked or scored, for the jobs that wait for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ds2ds.documents.document import Document
from ds2ds.engine.job import Job
from ds2ds.engine.planning import Planned
from ds2ds.engine.ranking import rank
from ds2ds.engine.step import Stopwatch, sample, score
from ds2ds.engine.work import Compute, Rank, Score
from ds2ds.errors import GenerationError
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.model.embedding import take_rows


class Result(NamedTuple):
    """What a job gets for a document that it waits for: as `engine.work` says for its work, or a GenerationError."""

    job: Job
    document: Document
    value: Any


def results(model: DS2DSModel, batch: Sequence[Planned], hidden: Tensor) -> list[Result]:
    """All that a batch came to, of hidden states [rows, model_dim] in its order. Counts the time of drawing."""
    return [*_scored(model, batch, hidden), *_drawn(model, batch, hidden)]


def _scored(model: DS2DSModel, batch: Sequence[Planned], hidden: Tensor) -> list[Result]:
    """How likely the tokens were that came after those computed, of documents whose last part this was."""
    ended: list[Result] = []
    row = 0
    for one in batch:
        work, chunk = one.job.waiting, one.chunk
        rows = hidden[row : row + len(chunk)]
        row += len(chunk)
        if not isinstance(work, Score) or work.document is not chunk.document:
            continue
        first = max(work.start, chunk.start + 1)
        following = work.document.tokens[first : chunk.stop + 1]
        scored = score(model, rows[len(rows) - len(following) :], following, work.top)
        if isinstance(scored, GenerationError):
            ended.append(Result(one.job, work.document, scored))
            continue
        work.found.update(zip(range(first, chunk.stop + 1), scored, strict=True))
        if chunk.stop == work.stop:
            value = [work.found[at] for at in range(work.start, work.stop + 1)]
            ended.append(Result(one.job, work.document, value))
    return ended


def _drawn(model: DS2DSModel, batch: Sequence[Planned], hidden: Tensor) -> list[Result]:
    """The next tokens, drawn or ranked, of documents that were computed to their end for that."""
    drawing: list[tuple[int, Job, Document, Compute]] = []
    ranking: list[tuple[int, Job, Document, Rank]] = []
    row = -1
    for one in batch:
        row += len(one.chunk)
        job, work, document = one.job, one.job.waiting, one.chunk.document
        if work is None or document not in work.documents or one.chunk.stop < len(document.tokens):
            continue
        if isinstance(work, Compute):
            drawing.append((row, job, document, work))
        elif isinstance(work, Rank):
            ranking.append((row, job, document, work))
    values: list[Any] = []
    with Stopwatch() as watch:
        if drawing:
            rows, _, documents, works = zip(*drawing, strict=True)
            values += sample(model, _rows(hidden, rows), documents, [work.sampling for work in works])
        if ranking:
            rows, _, documents, ranks = zip(*ranking, strict=True)
            values += rank(model, _rows(hidden, rows), documents, [work.most for work in ranks])
    waiting = [*drawing, *ranking]
    for job in {job for _, job, *_ in waiting}:
        job.trace.seconds["sampling"] += watch.seconds
    return [Result(job, document, value) for (_, job, document, _), value in zip(waiting, values, strict=True)]


@torch.inference_mode()
def _rows(hidden: Tensor, rows: Sequence[int]) -> Tensor:
    """Some of them, in ascending order; of a step that only decodes all."""
    return hidden if len(rows) == len(hidden) else take_rows(hidden, torch.tensor(rows, device=hidden.device))
