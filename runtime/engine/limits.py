"""How much one step computes, how many requests run in it, and how many may wait."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

from ds2ds.errors import ConfigError

STEP_TOKENS = {"cpu": 256, "cuda": 2048}
"""Prefilled tokens of one step, unless the user says otherwise, for each type of device.

Measured with the packaged model on one thread of a busy CPU, where a request that decodes alone gets a token every
20 ms, beside ten prompts of 1,000 tokens. Without a limit it gets one every 2,300 ms, with 256 every 114 ms while
prefill is as fast (2,240 tokens/s), with 128 every 75 ms while prefill loses a quarter. The value for GPUs is a guess.
"""

MAX_RUNNING = 256
MAX_QUEUE = 1024


@dataclass(frozen=True)
class Limits:
    """Attributes:
    step_tokens: most tokens that one step prefills, of all requests together. Decoded ones come on top.
    max_running: most requests that run at a time, and so the most tokens that one step decodes. A request that decodes
        several documents at a time counts as so many.
    max_queue: most requests that wait to start.

    Raises:
        ConfigError: one of them is no positive integer.
    """

    step_tokens: int
    max_running: int = MAX_RUNNING
    max_queue: int = MAX_QUEUE

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, positive(field.name, getattr(self, field.name)))


def positive(name: str, value: Any) -> int:
    """It as Python's own; raises ConfigError unless it is a positive integer."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def check_priority(priority: Any) -> int:
    """It as Python's own; raises ConfigError unless it is an integer."""
    if not isinstance(priority, Integral) or isinstance(priority, bool):
        raise ConfigError(f"priority must be an integer (higher goes first), got {priority!r}")
    return int(priority)
