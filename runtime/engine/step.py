"""One step: a flat batch of chunks through the model, and the next tokens drawn."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ds2ds.attention.attend import AttentionPath
from ds2ds.attention.view import Chunk
from ds2ds.documents.document import Document
from ds2ds.engine.work import Sampled, Sampling
from ds2ds.errors import GenerationError
from ds2ds.kernels import sample_rows
from ds2ds.model.compiled_backbone import CompiledBackbone
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.native import sampling as compiled_sampling
from ds2ds.native.operations import available

SCORED_ROWS = 64
"""Most rows whose logits are in memory at once: 13 MB of float32 for a vocabulary of 50,000."""


def misfit(weight: Tensor, data: Tensor) -> GenerationError | None:
    """What is wrong if weights are not as they were when the arena was made for them, which compiled code relies on."""
    if weight.dtype == data.dtype and weight.device == data.device:
        return None
    now, then = (f"{one.dtype} on {one.device}" for one in (weight, data))
    return GenerationError(f"the model is {now}, but its Runtime was made with {then}: move it back, or make a new one")


@torch.inference_mode()
def forward(
    model: DS2DSModel, attention: AttentionPath, chunks: Sequence[Chunk], compiled: CompiledBackbone | None = None
) -> Tensor:
    """Compute the chunks' tokens, once: keys and values into the arena, final hidden states [rows, model_dim] out.

    Args:
        compiled: the model's backbone, see `DS2DSModel.hidden`.
    """
    ids = [token for chunk in chunks for token in chunk.document.tokens[chunk.start : chunk.stop]]
    return model.hidden(torch.tensor(ids, device=model.device), attention(chunks), compiled)


@torch.inference_mode()
def sample(
    model: DS2DSModel, hidden: Tensor, documents: Sequence[Document], settings: Sequence[Sampling]
) -> list[Sampled | GenerationError]:
    """Draw the next token of each document from its last row's hidden state [rows, model_dim].

    A row that cannot be sampled (NaN logits, nothing left) gives an error for its request alone.
    """
    logits = model.logits(hidden).float()
    penalised = any(s.repetition_penalty != 1 for s in settings)
    draw = compiled_sampling.sample_rows if logits.is_cpu and available() else sample_rows
    drawn = draw(
        logits,
        temperature=torch.tensor([s.temperature for s in settings], dtype=torch.float32),
        top_k=torch.tensor([min(s.top_k, logits.shape[1]) for s in settings], dtype=torch.int32),
        top_p=torch.tensor([s.top_p for s in settings], dtype=torch.float32),
        min_p=torch.tensor([s.min_p for s in settings], dtype=torch.float32),
        seed=torch.tensor([s.seed for s in settings], dtype=torch.int64),
        position=torch.tensor([len(document.tokens) for document in documents], dtype=torch.int64),
        repetition_penalty=(
            torch.tensor([s.repetition_penalty for s in settings], dtype=torch.float32) if penalised else None
        ),
        penalty_tokens=_padded(documents) if penalised else None,
    )
    likeliest = _likeliest(logits, [s.top for s in settings])
    columns = (drawn.tokens.tolist(), drawn.logprobs.tolist(), drawn.status.tolist(), likeliest)
    return [outcome(document, *values) for document, *values in zip(documents, *columns, strict=True)]


def outcome(
    document: Document, token: int, logprob: float, status: int, top: tuple[tuple[int, float], ...] = ()
) -> Sampled | GenerationError:
    """What the sampler said of a document's next token, see `SampleStatus`."""
    return unusable(document, f"status {status}: ") if status else Sampled(token, logprob, top)


def unusable(document: Document, said: str = "") -> GenerationError:
    """The error of a document whose next token cannot be had from its logits; `said`: by what this is known."""
    return GenerationError(
        f"the model gave no usable logits for token {len(document.tokens)} of {document.title!r} "
        f"({said}NaN or infinite, or none left): check the weights and the dtype"
    )


@torch.inference_mode()
def score(model: DS2DSModel, hidden: Tensor, tokens: Sequence[int], top: int) -> list[Sampled] | GenerationError:
    """How likely each token was after the row before it: hidden states [len(tokens), model_dim] of those rows.

    An error where a row has NaN or infinite logits.
    """
    scored: list[Sampled] = []
    for at in range(0, len(tokens), SCORED_ROWS):
        some = tokens[at : at + SCORED_ROWS]
        logits = model.logits(hidden[at : at + SCORED_ROWS]).float()
        given = logits.gather(1, torch.tensor(some, device=logits.device)[:, None])[:, 0]
        total = logits.logsumexp(-1)
        if not total.isfinite().all():
            return GenerationError("the model gave NaN or infinite logits: check the weights and the dtype")
        scored += map(Sampled, some, (given - total).tolist(), _likeliest(logits, [top] * len(some)))
    return scored


def _likeliest(logits: Tensor, counts: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """For each row of [rows, V] as many (token, log-probability) as asked for, the likeliest first."""
    most = min(max(counts, default=0), logits.shape[1])
    if most == 0:
        return [()] * len(counts)
    values, tokens = logits.topk(most)
    logprobs = values - logits.logsumexp(-1, keepdim=True)
    rows = zip(tokens.tolist(), logprobs.tolist(), counts, strict=True)
    return [tuple(zip(ids[:count], given[:count], strict=True)) for ids, given, count in rows]


def _padded(documents: Sequence[Document]) -> Tensor:
    """int64 [B, N]: each document's tokens, once each, padded with -1."""
    seen = [sorted(set(document.tokens)) for document in documents]
    width = max(len(tokens) for tokens in seen)
    return torch.tensor([tokens + [-1] * (width - len(tokens)) for tokens in seen], dtype=torch.int64)


class Stopwatch:
    """Seconds spent in a block, as `with Stopwatch() as watch: ...; watch.seconds`."""

    seconds = 0.0

    def __enter__(self) -> Stopwatch:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._started
