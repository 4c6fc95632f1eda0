"""`generate` as transformers has it, over a backend: ids in, ids out, a streamer told of each token.

    model = TransformersGenerate(Runtime.from_pretrained("demo"), corpus="demo")
    ids = model.generate(**tokenizer(["# Stack"], return_tensors="pt"), max_new_tokens=20, do_sample=True, top_p=0.9)

What the ids link to joins the attention of what follows, as always; it is not in the ids returned, but in
`results` of `return_dict_in_generate=True`. transformers itself is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Protocol

import torch
from torch import Tensor

from ds2ds.adapters.written import config_for, written_tokens
from ds2ds.backend import Backend
from ds2ds.documents.generation_result import GenerationResult
from ds2ds.errors import ConfigError
from ds2ds.generation.events import DocumentOpened, Done, TokenWritten
from ds2ds.generation.generation_config import GenerationConfig

MAX_LENGTH = 20
"""Tokens of prompt and continuation together where neither max_length nor max_new_tokens is given, as there."""

TOP_K = 50
"""Where tokens are drawn and top_k is not given, as there."""

# What transformers calls as we do, and means the same by.
SAME = ("top_p", "min_p", "repetition_penalty", "num_beams", "length_penalty", "early_stopping")

# Settings of transformers that change nothing if they have one of these values; else they are refused.
NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "use_cache": (True,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "diversity_penalty": (0.0,),
    "num_beam_groups": (1,),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
    "output_scores": (False,),
    "output_logits": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "logits_processor": ([],),
    "stopping_criteria": ([],),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "synced_gpus": (False,),
}

# Of no effect whatever they say: the ids of tokens that no row here needs, and notes that a config keeps.
PASSED_OVER = frozenset(
    ("bos_token_id", "decoder_start_token_id", "tokenizer", "transformers_version", "_from_model_config")
)

# Ours that the interface has another word for.
TRANSLATED = frozenset(("max_new_tokens", "temperature", "top_k", "eos_token_id", "stop", "seed", "device"))
OURS = frozenset(GenerationConfig.__dataclass_fields__) - TRANSLATED - set(SAME) - {"num_return_sequences"}


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
            int64 [B * num_return_sequences, longest], prompts included as they were given; or a GenerateOutput.

        Raises:
            ConfigError: (a ValueError) a setting is unknown, not supported, or out of range; it is named.
        """
        if (inputs is None) == (input_ids is None):
            raise ConfigError("give inputs or input_ids, and not both")
        rows = _rows(inputs if input_ids is None else input_ids)
        call = {**self.defaults, **_given(generation_config), **settings}
        asked = _Asked(self.backend, rows.shape[1], call)
        mask = _mask(rows, attention_mask, asked.pad, asked.eos)
        prompts = [_unpadded(row, kept) for row, kept in zip(rows, mask, strict=True)]
        corpus = call.get("corpus", self.corpus)
        if streamer is not None:
            results = [self._stream(prompts, rows, corpus, asked, streamer)]
        else:
            results = self._run(prompts, corpus, asked)
        sequences = [
            [*rows[index // asked.sequences].tolist(), *written_tokens(result.root_document)]
            for index, result in enumerate(results)
        ]
        padded = _padded(sequences, asked.pad, rows.device)
        if not asked.as_dict:
            return padded
        scores = [result.score for result in results if result.score is not None]
        return GenerateOutput(padded, torch.tensor(scores) if scores else None, results)

    def _run(self, prompts: list[list[int]], corpus: Any, asked: _Asked) -> list[GenerationResult]:
        """Row by row, and of each its sequences."""
        if asked.beams > 1:
            found = self.backend.generate_batch(prompts, corpus, asked.config(prompts))
            return [one for result in found for one in (result, *result.alternatives)]
        rounds = [
            self.backend.generate_batch(prompts, corpus, asked.config(prompts, number))
            for number in range(asked.sequences)
        ]
        return [one for row in zip(*rounds, strict=True) for one in row]

    def _stream(
        self, prompts: list[list[int]], rows: Tensor, corpus: Any, asked: _Asked, streamer: Streamer
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


class _Asked:
    """The settings of one call, translated."""

    def __init__(self, backend: Backend, length: int, call: Mapping[str, Any]) -> None:
        call = {name: value for name, value in call.items() if value is not None}
        self.backend = backend
        self.new = _new_tokens(call, length)
        self.beams = _integer("num_beams", call.get("num_beams", 1))
        self.sequences = _integer("num_return_sequences", call.get("num_return_sequences", 1))
        if self.sequences < 1:
            raise ConfigError(f"num_return_sequences must be positive, got {self.sequences}")
        self.seed = _integer("seed", call["seed"]) if "seed" in call else None
        self.as_dict = bool(call.get("return_dict_in_generate", False))
        ends = call.get("eos_token_id", backend.default_config().eos_token_id)
        ends = ends.tolist() if isinstance(ends, Tensor) else ends
        several = isinstance(ends, Iterable) and not isinstance(ends, str)
        self.eos = [_integer("eos_token_id", end) for end in (ends if several else [ends])]
        if not self.eos:
            raise ConfigError("eos_token_id must be a token id or a list of them, got none")
        self.pad = _integer("pad_token_id", call.get("pad_token_id", self.eos[0]))
        self.settings: dict[str, Any] = {
            "eos_token_id": self.eos[0],
            "stop_token_ids": tuple(self.eos[1:]),
            "stop": call.get("stop_strings", ()),
            **{name: call[name] for name in (*SAME, *OURS) if name in call},
        }
        if self.beams > 1:
            self.settings["num_return_sequences"] = self.sequences
        drawn = bool(call.get("do_sample", False))
        if drawn and self.beams > 1:
            raise ConfigError("do_sample=True with num_beams above 1 is not supported: a beam search draws nothing")
        if drawn:
            self.settings.update(temperature=call.get("temperature", 1.0), top_k=call.get("top_k", TOP_K))
        else:
            # As there: what shapes a distribution is of no effect where the likeliest token is taken.
            self.settings.update(temperature=0.0, top_k=None, top_p=1.0, min_p=0.0)
        if not drawn and self.beams == 1 and self.sequences > 1:
            raise ConfigError(
                f"num_return_sequences must be 1 without do_sample or beams, got {self.sequences}: they would be equal"
            )
        self._refuse(call)

    def config(self, prompts: Sequence[Sequence[int]], number: int = 0) -> GenerationConfig:
        """Of the sequence of this number: each has its own seed."""
        settings = dict(self.settings)
        if self.seed is not None:
            settings["seed"] = self.seed + number
        return config_for(self.backend, max(map(len, prompts)), self.new, settings)

    def _refuse(self, call: Mapping[str, Any]) -> None:
        """Raise ConfigError for what is not known, or asks for what there is not."""
        known = {"max_length", "max_new_tokens", "num_return_sequences", "seed", "return_dict_in_generate", "do_sample"}
        known |= {"eos_token_id", "pad_token_id", "stop_strings", "temperature", "top_k", "corpus"}
        known |= {*SAME, *OURS, *PASSED_OVER}
        for name, value in call.items():
            if name in known or (name in NO_EFFECT and value in NO_EFFECT[name]):
                continue
            if name in NO_EFFECT:
                raise ConfigError(f"{name}={value!r} is not supported; leave it out, or give {NO_EFFECT[name][0]!r}")
            raise ConfigError(f"{name} is not supported by generate; supported are {sorted(known - PASSED_OVER)}")


def _new_tokens(call: Mapping[str, Any], length: int) -> int:
    """Tokens to write: max_new_tokens, or what max_length leaves; of both the former counts, as there."""
    if "max_new_tokens" in call:
        return _integer("max_new_tokens", call["max_new_tokens"])
    longest = _integer("max_length", call.get("max_length", MAX_LENGTH))
    if longest <= length:
        raise ConfigError(f"the prompt has {length} tokens, which leaves none of max_length {longest}")
    return longest - length


def _integer(name: str, value: Any) -> int:
    try:
        return index(value)
    except TypeError as error:
        raise ConfigError(f"{name} must be an integer, got {value!r}") from error


def _given(config: Any) -> dict[str, Any]:
    """What a transformers GenerationConfig, or a dict, says differently from the defaults."""
    if config is None:
        return {}
    found = config.to_diff_dict() if hasattr(config, "to_diff_dict") else config
    if not isinstance(found, Mapping):
        raise ConfigError(f"generation_config must be transformers' GenerationConfig or a dict, got {config!r}")
    return {name: value for name, value in found.items() if value is not None}


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
