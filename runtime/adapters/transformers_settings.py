"""The settings of transformers' `generate`, translated; what is unknown, or asks for what there is not, is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any

from torch import Tensor

from ds2ds.adapters.written import config_for
from ds2ds.backend import Backend
from ds2ds.errors import ConfigError
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


class Asked:
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
        own = backend.default_config().eos_token_id
        ends = call.get("eos_token_id", own)
        ends = ends.tolist() if isinstance(ends, Tensor) else ends
        several = isinstance(ends, Iterable) and not isinstance(ends, str)
        self.eos = [_integer("eos_token_id", end) for end in (ends if several else [ends])]
        if not self.eos:
            raise ConfigError("eos_token_id must be a token id or a list of them, got none")
        self.pad = _integer("pad_token_id", call.get("pad_token_id", self.eos[0]))
        vocab_size = backend.limits.vocab_size  # itself: no token ends a row
        for end in self.eos:
            if not 0 <= end <= vocab_size:
                raise ConfigError(f"eos_token_id must be in [0, {vocab_size}], got {end}")
        others = [end for end in self.eos if end not in (own, vocab_size)]
        more = call.get("stop_token_ids", ())
        self.settings: dict[str, Any] = {
            # The model's EOS also stands around documents, where layouts have marks: whatever ends a row, it stays so.
            "ignore_eos": own not in self.eos,
            "stop": call.get("stop_strings", ()),
            **{name: call[name] for name in (*SAME, *OURS) if name in call},
            "stop_token_ids": (*others, *more) if isinstance(more, Sequence) else more,
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


def given(config: Any) -> dict[str, Any]:
    """What a transformers GenerationConfig, or a dict, says differently from the defaults."""
    if config is None:
        return {}
    found = config.to_diff_dict() if hasattr(config, "to_diff_dict") else config
    if not isinstance(found, Mapping):
        raise ConfigError(f"generation_config must be transformers' GenerationConfig or a dict, got {config!r}")
    return {name: value for name, value in found.items() if value is not None}
