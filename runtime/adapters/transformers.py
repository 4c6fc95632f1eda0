"""`generate` as transformers has it, over a backend: ids in, ids out, a streamer told of each token.

    model = TransformersGenerate(Runtime.from_pretrained("demo"), corpus="demo")
    ids = model.generate(**tokenizer(["# Stack"], return_tensors="pt"), max_new_tokens=20, do_sample=True, top_p=0.9)

What the ids link to joins the attention of what follows, as always; it is not in the ids returned, but in
`results` of `return_dict_in_generate=True`. transformers itself is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ds2ds.adapters.transformers_settings import MAX_LENGTH, TOP_K, Asked, given
from ds2ds.adapters.written import written_tokens
from ds2ds.backend import Backend
from ds2ds.documents.generation_result import GenerationResult
from ds2ds.errors import ConfigError
from ds2ds.generation.events import DocumentOpened, Done, TokenWritten

__all__ = ["MAX_LENGTH", "TOP_K", "GenerateOutput", "Streamer", "TransformersGenerate"]


class Streamer(Protocol):
    """As transformers' BaseStreamer: TextStreamer, TextIteratorStreamer and others are one."""

    def put(self, value: Tensor) -> None:
        """First the prompt, int64 [1, T], then each token, int64 [1]."""

    def end(self) -> None: ...


@dataclass(frozen=True)
class GenerateOutput:
    """What `return_dict_in_generate=True` returns.

    Attributes:
        sequences: int64 [rows, longest]: prompt and continuation, padded at the end.
        sequences_scores: float32 [rows] of a beam search, else None.
        results: each row's documents.
    """

    sequences: Tensor
    sequences_scores: Tensor | None
    results: list[GenerationResult]


class TransformersGenerate:
    """`generate` of a transformers model, over a backend.

    Args:
        corpus: where links lead, as for `Runtime.generate`.
        defaults: settings of every call, by the names that `generate` takes.
    """

    def __init__(self, backend: Backend, corpus: Any = None, **defaults: Any) -> None:
        self.backend = backend
        self.corpus = corpus
        self.defaults = defaults

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        streamer: Streamer | None = None,
        **settings: Any,
    ) -> Tensor | GenerateOutput:
        """Continue each row.

        Args:
            inputs: int64 [B, T], or `input_ids`: rows, padded on the left if attention_mask is 0 there (or, without a
                mask, where they hold pad_token_id and that is not EOS).
            generation_config: transformers' GenerationConfig, or a dict; `settings` win.
            streamer: told of the prompt and of each token as it is written, for one row without beams.
            settings: max_new_tokens or max_length, do_sample (False, the default, is greedy), temperature, top_k,
                top_p, min_p, repetition_penalty, num_beams, length_penalty, early_stopping, num_return_sequences,
                eos_token_id (one or several), pad_token_id, stop_strings, return_dict_in_generate; and of ours
                `corpus`, `seed`, and fields of GenerationConfig such as max_link_depth.

        Returns:
            int64 [B * num_return_sequences, longest], prompts included as they were given; or a GenerateOutput. A row
            has fewer sequences where the window leaves no room for more than one to be found with beams.

        Raises:
            ConfigError: (a ValueError) a setting is unknown, not supported, or out of range; it is named.
        """
        if (inputs is None) == (input_ids is None):
            raise ConfigError("give inputs or input_ids, and not both")
        rows = _rows(inputs if input_ids is None else input_ids)
        call = {**self.defaults, **given(generation_config), **settings}
        asked = Asked(self.backend, rows.shape[1], call)
        mask = _mask(rows, attention_mask, asked.pad, asked.eos)
        prompts = [_unpadded(row, kept) for row, kept in zip(rows, mask, strict=True)]
        corpus = call.get("corpus", self.corpus)
        if streamer is not None:
            found = [[self._stream(prompts, rows, corpus, asked, streamer)]]
        else:
            found = self._run(prompts, corpus, asked)
        sequences = [
            [*row, *written_tokens(result.root_document)]
            for row, results in zip(rows.tolist(), found, strict=True)
            for result in results
        ]
        padded = _padded(sequences, asked.pad, rows.device)
        if not asked.as_dict:
            return padded
        results = [result for several in found for result in several]
        scores = [result.score for result in results if result.score is not None]
        return GenerateOutput(padded, torch.tensor(scores, dtype=torch.float32) if scores else None, results)

    def _run(self, prompts: list[list[int]], corpus: Any, asked: Asked) -> list[list[GenerationResult]]:
        """Of each row its sequences."""
        if asked.beams > 1:
            found = self.backend.generate_batch(prompts, corpus, asked.config(prompts))
            return [[result, *result.alternatives] for result in found]
        rounds = [
            self.backend.generate_batch(prompts, corpus, asked.config(prompts, number))
            for number in range(asked.sequences)
        ]
        return [list(row) for row in zip(*rounds, strict=True)]

    def _stream(
        self, prompts: list[list[int]], rows: Tensor, corpus: Any, asked: Asked, streamer: Streamer
    ) -> GenerationResult:
        if len(prompts) != 1 or asked.sequences != 1 or asked.beams != 1:
            raise ConfigError(
                f"a streamer needs one row, one sequence and no beams, got {len(prompts)} rows, "
                f"{asked.sequences} sequences and {asked.beams} beams"
            )
        streamer.put(rows.cpu())
        root: str | None = None
        events = self.backend.stream(prompt_tokens=prompts[0], corpus=corpus, config=asked.config(prompts))
        for event in events:
            if isinstance(event, Done):
                streamer.end()
                return event.result
            if isinstance(event, DocumentOpened) and event.parent is None:
                root = event.title
            elif isinstance(event, TokenWritten) and event.title == root:
                streamer.put(torch.tensor([event.token]))
        raise RuntimeError("the stream ended without a result")


def _rows(ids: Any) -> Tensor:
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point() or 0 in ids.shape:
        got = f"shape {list(ids.shape)} of {ids.dtype}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ConfigError(f"input_ids must be integers of shape [B, T] with B, T >= 1, got {got}")
    return ids.long()


def _mask(rows: Tensor, mask: Tensor | None, pad: int, eos: Sequence[int]) -> Tensor:
    """bool [B, T]: what counts."""
    if mask is None:
        return rows != pad if pad not in eos else torch.ones_like(rows, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape != rows.shape:
        got = list(mask.shape) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise ConfigError(f"attention_mask must be a tensor of the shape of input_ids {list(rows.shape)}, got {got}")
    return mask != 0


def _unpadded(row: Tensor, kept: Tensor) -> list[int]:
    """A row without what stands before it.

    Raises:
        ConfigError: something is masked elsewhere: a document has no holes, and nothing can follow padding. Or all is,
            so that there is nothing to continue.
    """
    if not kept.any():
        raise ConfigError(
            "each row must hold a prompt, got one that is all padding (attention_mask 0, or pad_token_id)"
        )
    start = int(kept.int().argmax())
    if not kept[start:].all():
        raise ConfigError("attention_mask must be 0 at the start of a row alone (pad on the left), got 0 after a 1")
    return [int(token) for token in row[start:]]


def _padded(sequences: Sequence[Sequence[int]], pad: int, device: torch.device) -> Tensor:
    longest = max(map(len, sequences))
    return torch.tensor([[*tokens, *[pad] * (longest - len(tokens))] for tokens in sequences], device=device)
