"""A training run's settings that its weights do not show: those that this runtime computes otherwise are told of."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from ds2ds.attention.rotary import BASE
from ds2ds.errors import CheckpointError
from ds2ds.model.config import ModelConfig

_OF_TRAINING = {
    *("batch", "checkpoint", "checkpointing", "compile", "compiled", "dropout", "dtype", "grad", "gradient", "init"),
    *("initializer", "learning", "loss", "lr", "optimizer", "precision", "seed"),
}
"""Words in the names of settings that only training needs."""


def check_run_settings(settings: dict[str, Any], config: ModelConfig, file: Path) -> None:
    """Hold a run's settings against what its model will be computed with. Those that are null count as not given.

    Raises:
        CheckpointError: one of them has another value here.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    here = _computed_with(config)
    for name, value in given.items():
        if name in here and not (isinstance(value, int | float) and math.isclose(value, here[name], rel_tol=1e-6)):
            raise CheckpointError(
                f"{file}: {name} is {value!r}, but models are computed with {here[name]:g} here: this one's results "
                "would not be those of its training"
            )
    if "mask_type" not in given:
        warnings.warn(f"{file} names no mask_type: the model is taken for {config.mask_type!r}", stacklevel=3)
    unknown = given.keys() - here.keys() - config.__dataclass_fields__.keys()
    unknown = {name for name in unknown if not _OF_TRAINING & set(name.split("_"))}
    if unknown:
        listed = ", ".join(f"{name} {given[name]!r}" for name in sorted(unknown))
        warnings.warn(
            f"{file} has settings that are unknown here: {listed}. They are passed over; where one of them changes "
            "what the model computes, results are not those of its training",
            stacklevel=3,
        )


def _computed_with(config: ModelConfig) -> dict[str, float]:
    """What is the same for all models here, or follows from other settings, under the names it may have."""
    values = {
        ("rope_base", "rope_theta", "rotary_base", "rotary_theta"): BASE,
        ("head_dim",): float(config.head_dim),
        ("attn_scale", "attention_scale", "softmax_scale"): config.head_dim**-0.5,
    }
    return {name: value for names, value in values.items() for name in names}
