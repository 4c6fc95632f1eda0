"""What the settings of a request may be; see GenerationConfig for what they mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeAlias

import torch

from ds2ds.corpus.resolving.specification import resolver_order
from ds2ds.documents.eviction import EVICTION_POLICIES
from ds2ds.errors import ConfigError

MOST_TOP_LOGPROBS = 20

Rule: TypeAlias = tuple[str, Callable[[Any], bool]]
"""What a value must be, in words and as a test."""

_POSITIVE: Rule = "be positive", lambda value: 0 < value < math.inf
_NOT_NEGATIVE: Rule = "be >= 0", lambda value: 0 <= value < math.inf

INTEGERS: dict[str, Rule] = {
    "max_new_tokens": _POSITIVE,
    "max_tokens_per_document": _POSITIVE,
    "max_context_length": _POSITIVE,
    "max_auxiliary_documents": _NOT_NEGATIVE,
    "max_link_depth": _NOT_NEGATIVE,
    "eos_token_id": _NOT_NEGATIVE,
    "top_k": _NOT_NEGATIVE,
    "top_logprobs": (f"be in [0, {MOST_TOP_LOGPROBS}]", lambda value: 0 <= value <= MOST_TOP_LOGPROBS),
    "seed": ("fit in 64 bits", lambda value: -(2**63) <= value < 2**63),
    "num_beams": _POSITIVE,
    "num_return_sequences": _POSITIVE,
}
NUMBERS: dict[str, Rule] = {
    "temperature": _NOT_NEGATIVE,
    "top_p": ("be in (0, 1]", lambda value: 0 < value <= 1),
    "min_p": ("be in [0, 1]", lambda value: 0 <= value <= 1),
    "repetition_penalty": _POSITIVE,
    "length_penalty": ("be in [-10, 10]", lambda value: abs(value) <= 10),
}
SWITCHES = (
    "allow_corpus_fallback",
    "process_prompt_links",
    "allow_recursive_links",
    "logprobs",
    "prompt_logprobs",
    "ignore_eos",
)
OPTIONAL = ("top_k", "seed")
"""What may be None."""

WITH_BEAMS: dict[str, tuple[Any, ...]] = {
    "temperature": (1.0, 0.0),
    "top_k": (None, 0),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "repetition_penalty": (1.0,),
    "prompt_logprobs": (False,),
    "top_logprobs": (0,),
}
"""What the settings may be that a beam search cannot do with: those of sampling, since nothing is drawn, off."""


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that may be given in several forms, each in the one that it is kept in.

    Raises:
        ConfigError: a setting is out of range.
    """
    kept: dict[str, Any] = {}
    for name, rule in INTEGERS.items():
        if not (name in OPTIONAL and settings[name] is None):
            kept[name] = _integer(name, settings[name])
            _check(name, kept[name], kept[name], rule)
    for name, rule in NUMBERS.items():
        kept[name] = _number(name, settings[name])
        _check(name, _in_float32(kept[name]), kept[name], rule)
    for name in SWITCHES:
        if not isinstance(settings[name], bool):
            raise ConfigError(f"{name} must be True or False, got {settings[name]!r}")
    policy, stopping = settings["eviction_policy"], settings["early_stopping"]
    if not isinstance(policy, str) or policy not in EVICTION_POLICIES:
        raise ConfigError(f"eviction_policy must be one of {tuple(EVICTION_POLICIES)}, got {policy!r}")
    if not isinstance(stopping, bool) and stopping != "never":
        raise ConfigError(f"early_stopping must be True, False or 'never', got {stopping!r}")
    _check_beams(settings)
    return kept | {
        "stop": _stop(settings["stop"]),
        "stop_token_ids": _stop_token_ids(settings["stop_token_ids"]),
        "title_resolution": _title_resolution(settings["title_resolution"]),
    }


def _check(name: str, value: float, given: Any, rule: Rule) -> None:
    must, holds = rule
    if not holds(value):
        if rule in (_POSITIVE, _NOT_NEGATIVE) and isinstance(value, float) and not math.isfinite(value):
            must += " and finite in float32"
        raise ConfigError(f"{name} must {must}, got {given}")


def _integer(name: str, value: Any) -> int:
    """As Python's own: numpy's are taken, too."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} must be an integer, got {value!r}")
    return int(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{name} must be a number, got {value!r}")
    return int(value) if isinstance(value, Integral) else float(value)


def _in_float32(value: float) -> float:
    """As the sampler computes: 1e39 is infinite there, and 1e-60 is 0."""
    if isinstance(value, int):
        value = max(-(2**200), min(value, 2**200))  # of an integer beyond 2**1024 no float can be made
    return torch.tensor(float(value), dtype=torch.float32).item()


def _check_beams(settings: Mapping[str, Any]) -> None:
    beams, returned = settings["num_beams"], settings["num_return_sequences"]
    if returned > beams:
        raise ConfigError(f"num_return_sequences must be at most num_beams {beams}, got {returned}")
    for name, allowed in WITH_BEAMS.items():
        if beams > 1 and settings[name] not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise ConfigError(f"{name} must be {wanted} with num_beams above 1, got {settings[name]}")


def _stop(given: Any) -> tuple[str, ...]:
    stop = (given,) if isinstance(given, str) else given
    if not isinstance(stop, Sequence) or not all(isinstance(text, str) and text for text in stop):
        raise ConfigError(f"stop must be a string or a sequence of strings, none of them empty, got {given!r}")
    return tuple(stop)


def _stop_token_ids(given: Any) -> tuple[int, ...]:
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    if not listed or not all(isinstance(i, Integral) and not isinstance(i, bool) and int(i) >= 0 for i in given):
        raise ConfigError(f"stop_token_ids must be a sequence of token ids >= 0, got {given!r}")
    return tuple(map(int, given))


def _title_resolution(given: Any) -> tuple[str, ...]:
    if not isinstance(given, str | Sequence):
        raise ConfigError(f"title_resolution must be a string or a sequence of strings, got {given!r}")
    try:
        return resolver_order(given) if given else ()
    except ConfigError as error:
        raise ConfigError(f"title_resolution: {error}") from error
