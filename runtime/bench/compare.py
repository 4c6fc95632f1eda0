"""Two results of `ds2ds bench`: what got slower, by more than its rounds vary.

A figure has changed if its median differs by more than the tolerance, and by more than NOISE times what the rounds of
both results vary by (their median absolute deviation). What slows all of one run down, such as another program beside
it, looks like a change: how fast memory was read between the rounds tells of that, and is shown beside. p99 is not
looked at: a few rounds have too few tokens for it.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds2ds.errors import ConfigError

NOISE = 3.0
FIGURES = {"time_to_first_token_ms": "lower", "time_per_token_ms": "lower", "tokens_per_second": "higher"}
"""What is compared, and which is better."""

MACHINE = ("cpu", "cores", "gpu", "threads", "system")
SETTINGS = ("model", "parameters", "device", "dtype", "tokens", "context", "seed")
LATER = ("weights",)
"""Settings that older files do not have, where it was None."""

_KEY = ("workload", "requests")


@dataclass(frozen=True)
class Change:
    """One figure in both results.

    Attributes:
        slowdown: how much longer things take now: 0.3 is 30% longer; below 0, they got faster.
        allowed: how large a change has to be to count.
    memory: how much longer it took, in the same rounds, to read memory: what the machine itself contributes.
    """

    workload: str
    requests: int
    figure: str
    old: float
    new: float
    slowdown: float
    allowed: float
    memory: float

    @property
    def slower(self) -> bool:
        return self.slowdown > self.allowed

    @property
    def faster(self) -> bool:
        # 30% longer and back again is 1 / 1.3.
        return 1 / (1 + self.slowdown) - 1 > self.allowed


def read_result(path: Path) -> dict[str, Any]:
    """A file that `ds2ds bench --output` wrote.

    Raises:
        ConfigError: it is missing, or something else.
    """
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
        for result in measured["results"]:
            for part in _KEY:
                hash(result[part])
            if not _is_positive(result["floor"]["read_gb_per_second"]):
                raise ValueError("read_gb_per_second is not above 0")
            for figure in FIGURES:
                rounds = result[figure]["rounds"]
                values = [*rounds, result[figure]["median"]] if isinstance(rounds, list) else []
                if len(values) < 2 or not all(map(_is_positive, values)):
                    raise ValueError(f"{figure} has no rounds, or is not above 0")
        for part in ("settings", "environment"):
            if not isinstance(measured[part], dict):
                raise ValueError(f"its {part} are no JSON object")
        missing = [name for name in SETTINGS if name not in measured["settings"]]
        missing += [name for name in MACHINE if name not in measured["environment"]]
        if missing:
            raise ValueError(f"it does not say {missing}")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is no result of `ds2ds bench --output`: {error}") from error
    found: dict[str, Any] = measured
    return found


def _is_positive(value: Any) -> bool:
    """Whether it is a number above 0, and finite: JSON as Python reads it has NaN and integers that no float holds."""
    return isinstance(value, int | float) and 0 < value <= sys.float_info.max


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Why two results cannot be compared: each setting, and each fact of the machine, that is not the same."""
    pairs = [(name, old["settings"].get(name), new["settings"].get(name)) for name in (*SETTINGS, *LATER)]
    pairs += [(name, old["environment"][name], new["environment"][name]) for name in MACHINE]
    return [f"{name} was {before!r} and is {after!r}" for name, before, after in pairs if before != after]


def compare(old: dict[str, Any], new: dict[str, Any], tolerance: float, *, force: bool = False) -> list[Change]:
    """Every figure that both results have, in the order of the new one.

    Args:
        tolerance: changes up to this never count: 0.1 is 10%.
        force: compare what differs in machine or settings all the same.

    Raises:
        ConfigError: the tolerance is below 0, the results cannot be compared, or have no workload in common.
    """
    if not 0 <= tolerance < math.inf:
        raise ConfigError(f"tolerance must be 0 or more, got {tolerance}")
    different = differences(old, new)
    if different and not force:
        raise ConfigError(f"these results cannot be compared (--force does it all the same): {'; '.join(different)}")
    before = {tuple(result[part] for part in _KEY): result for result in old["results"]}
    changes = []
    for result in new["results"]:
        known = before.get(tuple(result[part] for part in _KEY))
        if known is not None:
            changes += [_change(name, known, result, tolerance) for name in FIGURES]
    if not changes:
        raise ConfigError("these results have no workload in common")
    return changes


def _change(name: str, old: dict[str, Any], new: dict[str, Any], tolerance: float) -> Change:
    before, after = old[name]["median"], new[name]["median"]
    ratio = after / before if FIGURES[name] == "lower" else before / after
    noise = NOISE * math.hypot(spread(old[name]["rounds"]), spread(new[name]["rounds"]))
    memory = old["floor"]["read_gb_per_second"] / new["floor"]["read_gb_per_second"] - 1
    key = new["workload"], new["requests"]
    return Change(*key, name, before, after, ratio - 1, max(tolerance, noise), memory)


def spread(rounds: Sequence[float]) -> float:
    """How far rounds are from their median: the median of that, relative. One outlier of three moves it little."""
    middle = statistics.median(rounds)
    return statistics.median(abs(value - middle) for value in rounds) / middle
