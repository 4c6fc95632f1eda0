"""Training run directories to checkpoints: ``hyperparameters.json`` and ``checkpoints/best_model.pt``."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ds2ds.documents.link_formats import DEFAULT_FORMAT
from ds2ds.errors import CheckpointError, ConfigError
from ds2ds.model.checkpoint import EMBEDDING, HEAD, build_model, save_checkpoint
from ds2ds.model.config import ModelConfig
from ds2ds.model.ds2ds_model import DS2DSModel

COMPILE_PREFIX = "_orig_mod."


def load_run(run_dir: str | Path) -> DS2DSModel:
    """The model of a training run.

    ``hyperparameters.json`` is {"model": {num_layers, model_dim, num_heads, max_seq_len, mask_type, link_detector,
    weight_tying, ...}, "data": {layout_policy: null | name}}; settings that only training needs are passed over.
    The weights are read with ``weights_only=True``: a file that would run code is refused.

    Raises:
        CheckpointError: a file is missing, damaged or unsafe, or the weights do not fit the settings.
    """
    run = Path(run_dir)
    settings_file = run / "hyperparameters.json"
    weights_file = run / "checkpoints" / "best_model.pt"
    for file in (settings_file, weights_file):
        if not file.is_file():
            raise CheckpointError(f"no {file.relative_to(run)} in {run}: not a training run directory")
    try:
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        model_settings: dict[str, Any] = dict(settings["model"])
        layout = (settings.get("data") or {}).get("layout_policy")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{settings_file} must hold {{'model': {{...}}, 'data': {{...}}}}: {error!r}") from error
    state = _read_state(weights_file)
    if EMBEDDING not in state:
        raise CheckpointError(f"{weights_file} has no {EMBEDDING}; it has {sorted(state)[:5]} ...")
    known = {name: value for name, value in model_settings.items() if name in ModelConfig.__dataclass_fields__}
    known["vocab_size"] = state[EMBEDDING].shape[0]
    known["layout_policy"] = layout or "null"
    if known.get("link_detector") is None:  # null, or not said
        known["link_detector"] = DEFAULT_FORMAT
    # What the weights say counts: a head that is there and differs is not tied.
    if HEAD in state:
        known["weight_tying"] = torch.equal(state[HEAD], state[EMBEDDING])
    try:
        config = ModelConfig.from_dict(known)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{settings_file}: {error}") from error
    return build_model(config, state, str(weights_file))


def import_run(run_dir: str | Path, out: str | Path) -> ModelConfig:
    """Convert a training run directory to a checkpoint folder; returns its config. Nothing is written on an error."""
    model = load_run(run_dir)
    save_checkpoint(model, out)
    return model.config


def _read_state(file: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than tensors and is not unpickled, since that could run code: save "
            f"{{'model': model.state_dict()}} alone ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # a damaged file fails in torch.load in a dozen ways, KeyError and IndexError among them
        raise CheckpointError(f"cannot read {file}: {error!r}") from error
    state = loaded.get("model") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{file} must hold {{'model': state_dict}}")
    return {name.replace(COMPILE_PREFIX, ""): tensor for name, tensor in state.items()}
