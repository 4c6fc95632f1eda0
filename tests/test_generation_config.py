"""Every setting: its default, its range, and what is said when it is wrong."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest
import torch

from ds2ds import ConfigError, GenerationConfig
from ds2ds.generation.generation_config import parse_device

DEFAULTS = {
    "max_new_tokens": 100,
    "temperature": 1.0,
    "top_k": None,
    "top_p": 1.0,
    "max_tokens_per_document": 512,
    "max_context_length": 2048,
    "max_auxiliary_documents": 5,
    "max_link_depth": 1,
    "allow_corpus_fallback": True,
    "eviction_policy": "drop_oldest",
    "process_prompt_links": True,
    "allow_recursive_links": True,
    "eos_token_id": 50256,
    "device": None,
    "seed": None,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "stop": [],
    "logprobs": False,
    "prompt_logprobs": False,
    "top_logprobs": 0,
    "stop_token_ids": [],
    "ignore_eos": False,
    "title_resolution": [],
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_return_sequences": 1,
}

BEAMS = ("num_beams", "num_return_sequences")
POSITIVE = ("max_new_tokens", "max_tokens_per_document", "max_context_length", *BEAMS)
NOT_NEGATIVE = ("max_auxiliary_documents", "max_link_depth", "eos_token_id", "top_k")
INTEGERS = (*POSITIVE, *NOT_NEGATIVE, "seed", "top_logprobs")
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "length_penalty")
SWITCHES = (
    "allow_corpus_fallback",
    "process_prompt_links",
    "allow_recursive_links",
    "logprobs",
    "prompt_logprobs",
    "ignore_eos",
)


def error(**settings: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        GenerationConfig(**settings)
    assert isinstance(raised.value, ValueError)
    return str(raised.value)


def test_defaults() -> None:
    assert GenerationConfig().to_dict() == DEFAULTS


def test_every_field_is_in_one_of_the_groups_below() -> None:
    others = {"eviction_policy", "device", "stop", "stop_token_ids", "title_resolution", "early_stopping"}
    assert {field.name for field in fields(GenerationConfig)} == {*INTEGERS, *NUMBERS, *SWITCHES} | others


@pytest.mark.parametrize("name", POSITIVE)
def test_positive(name: str) -> None:
    for value in (0, -1):
        assert error(**{name: value}) == f"{name} must be positive, got {value}"
    assert getattr(GenerationConfig(**{name: 1}), name) == 1


@pytest.mark.parametrize("name", NOT_NEGATIVE)
def test_not_negative(name: str) -> None:
    assert error(**{name: -1}) == f"{name} must be >= 0, got -1"
    assert getattr(GenerationConfig(**{name: 0}), name) == 0


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", [1.0, "3", True, math.nan, [1]])
def test_not_an_integer(name: str, value: Any) -> None:
    assert error(**{name: value}) == f"{name} must be an integer, got {value!r}"


@pytest.mark.parametrize("name", [name for name in INTEGERS if name not in ("top_k", "seed")])
def test_none_is_not_an_integer(name: str) -> None:
    assert error(**{name: None}) == f"{name} must be an integer, got None"


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["1", None, False, [1.0]])
def test_not_a_number(name: str, value: Any) -> None:
    assert error(**{name: value}) == f"{name} must be a number, got {value!r}"


@pytest.mark.parametrize(
    ("name", "rule", "wrong", "right"),
    [
        ("temperature", "must be >= 0", [-0.1, -1], [0, 0.0, 1, 100.0]),
        ("temperature", "must be >= 0 and finite in float32", [math.inf, -math.inf, math.nan, 1e39, 10**400], []),
        ("top_p", "must be in (0, 1]", [0, 0.0, -0.5, 1.5, math.nan, 1e-60], [1, 1.0, 1e-6]),
        ("min_p", "must be in [0, 1]", [-0.1, 1.1, math.nan], [0, 1, 0.05]),
        ("repetition_penalty", "must be positive", [0, -1.0, 1e-60], [1, 2, 0.5]),
        ("repetition_penalty", "must be positive and finite in float32", [math.inf, math.nan, 1e39], []),
    ],
)
def test_ranges(name: str, rule: str, wrong: list[float], right: list[float]) -> None:
    """Out of range is also what leaves the range in float32, in which the sampler computes."""
    for value in wrong:
        assert error(**{name: value}) == f"{name} {rule}, got {value}"
    for value in right:
        assert getattr(GenerationConfig(**{name: value}), name) == value


def test_numbers_of_numpy_are_taken_as_pythons() -> None:
    integers = {name: np.int64(1) for name in INTEGERS}
    numbers = {name: np.float32(0.5) for name in NUMBERS}
    config = GenerationConfig(**integers, **numbers, stop_token_ids=[np.int32(7)])
    assert config == GenerationConfig(**dict.fromkeys(integers, 1), **dict.fromkeys(numbers, 0.5), stop_token_ids=[7])
    assert json.loads(json.dumps(config.to_dict()))["temperature"] == 0.5
    assert type(GenerationConfig(temperature=np.int64(1)).temperature) is int
    for name in ("seed", "temperature"):
        assert error(**{name: np.bool_(True)}).endswith(f"got {np.bool_(True)!r}")
    assert error(top_p=np.float32(2)) == "top_p must be in (0, 1], got 2.0"


def test_messages_of_the_design() -> None:
    assert error(max_new_tokens=-1) == "max_new_tokens must be positive, got -1"
    assert error(top_p=1.5) == "top_p must be in (0, 1], got 1.5"
    known = "('drop_oldest', 'stop_new', 'least_recently_linked', 'largest_first')"
    message = f"eviction_policy must be one of {known}, got 'drop_newest'"
    assert error(eviction_policy="drop_newest") == message


@pytest.mark.parametrize("value", [None, 1, ["drop_oldest"]])
def test_eviction_policy_of_another_type(value: Any) -> None:
    assert error(eviction_policy=value).endswith(f"got {value!r}")


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", [0, 1, None, "yes"])
def test_switches(name: str, value: Any) -> None:
    assert error(**{name: value}) == f"{name} must be True or False, got {value!r}"
    assert getattr(GenerationConfig(**{name: True}), name) is True
    assert getattr(GenerationConfig(**{name: False}), name) is False


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_a_seed_has_64_bits(seed: int) -> None:
    assert error(seed=seed) == f"seed must fit in 64 bits, got {seed}"


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63), 0, None])
def test_seeds(seed: int | None) -> None:
    assert GenerationConfig(seed=seed).seed == seed


@pytest.mark.parametrize("stop", [5, None, "", [""], ["a", ""], [1], b"x", {"a"}])
def test_wrong_stop_strings(stop: Any) -> None:
    expected = f"stop must be a string or a sequence of strings, none of them empty, got {stop!r}"
    assert error(stop=stop) == expected


@pytest.mark.parametrize(("stop", "kept"), [("ab", ("ab",)), (["a", "b"], ("a", "b")), ((), ())])
def test_stop_strings(stop: Any, kept: tuple[str, ...]) -> None:
    assert GenerationConfig(stop=stop).stop == kept


@pytest.mark.parametrize("device", ["gpu", "tpu:0", "mps", "", "cpu:x"])
def test_unknown_devices(device: str) -> None:
    assert error(device=device) == f"device must be 'cpu' or 'cuda' (or 'cuda:N'), got {device!r}"


def test_a_device_that_is_not_here() -> None:
    count = torch.cuda.device_count()
    device = f"cuda:{count}"
    assert error(device=device) == f"device '{device}' is not here: torch sees {count} CUDA devices"


def test_devices() -> None:
    config = GenerationConfig(device=torch.device("cpu"))
    assert config.device == "cpu" and json.loads(json.dumps(config.to_dict()))["device"] == "cpu"
    assert config == GenerationConfig(device="cpu")
    assert parse_device("cpu") == torch.device("cpu")
    assert parse_device(torch.device("cpu")) == torch.device("cpu")


def test_to_dict_round_trip_through_json() -> None:
    config = GenerationConfig(
        max_new_tokens=3, temperature=0.5, top_k=7, stop=["a", "b"], seed=-1, device="cpu", logprobs=True
    )
    assert GenerationConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert GenerationConfig(**json.loads(json.dumps(GenerationConfig().to_dict()))) == GenerationConfig()


def test_overrides_are_checked_and_leave_the_original_alone() -> None:
    config = GenerationConfig(max_new_tokens=3)
    assert config.with_overrides(temperature=0.0) == GenerationConfig(max_new_tokens=3, temperature=0.0)
    assert config.temperature == 1.0
    with pytest.raises(ConfigError, match="max_new_tokens must be positive, got 0"):
        config.with_overrides(max_new_tokens=0)


def test_unknown_overrides_are_named() -> None:
    with pytest.raises(ConfigError) as raised:
        GenerationConfig().with_overrides(temprature=1.0, top_k=3, beams=2)
    assert str(raised.value).startswith("unknown generation settings ['beams', 'temprature']; known are [")
    assert "'temperature'" in str(raised.value)


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        GenerationConfig().seed = 3  # type: ignore[misc]
