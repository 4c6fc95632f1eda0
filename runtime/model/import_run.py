"""Training run directories to checkpoints: ``hyperparameters.json`` and ``checkpoints/best_model.pt``."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ds2ds.documents.link_formats import DEFAULT_FORMAT
from ds2ds.errors import CheckpointError, ConfigError
from ds2ds.model.checkpoint import CONFIG_NAME, EMBEDDING, HEAD, build_model, save_checkpoint
from ds2ds.model.config import POSITIVE_INTEGERS, ModelConfig, require
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.model.run_settings import check_run_settings

_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|module)\.")
"""What torch.compile and DistributedDataParallel put into names, wherever the wrapped module stands."""

_TABLES = re.compile(r"(?<![^.])rotary(?:_emb)?\.|(?<![^.])inv_freq$")
"""Rotary tables, where they were saved as buffers: they hold no weights, and are made anew."""

VOCABULARY_PADDING = 128
"""Rows by which an embedding may exceed `vocab_size`: training code rounds it up to a multiple of 64 or 128."""


def load_run(run_dir: str | Path) -> DS2DSModel:
    """The model of a training run.

    ``hyperparameters.json`` is {"model": {num_layers, model_dim, num_heads, max_seq_len, mask_type, link_detector,
    weight_tying, ...}, "data": {layout_policy: null | name}}; for the others see ``check_run_settings``, and those that
    are null count as not given. Weights all bfloat16, float16 or float64 stay so; others become float32.
    A wrong `num_heads` cannot be seen: the weights have the same shapes under any. The weights are read with
    ``weights_only=True``: a file that would run code is refused.

    Raises:
        CheckpointError: a file is missing, damaged or unsafe, or the weights do not fit the settings.
    """
    run = Path(run_dir)
    settings_file = run / "hyperparameters.json"
    weights_file = run / "checkpoints" / "best_model.pt"
    for file in (settings_file, weights_file):
        if not file.is_file():
            raise CheckpointError(_missing(run, file))
    try:
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        model_settings: dict[str, Any] = dict(settings["model"])
        layout = (settings.get("data") or {}).get("layout_policy")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{settings_file} must hold {{'model': {{...}}, 'data': {{...}}}}: {error!r}") from error
    state = _read_state(weights_file)
    if EMBEDDING not in state:
        raise CheckpointError(f"{weights_file} has no {EMBEDDING}; it has {sorted(state)[:5]} ...")
    fields = ModelConfig.__dataclass_fields__
    known = {name: value for name, value in model_settings.items() if name in fields and value is not None}
    rows = len(state[EMBEDDING]) if state[EMBEDDING].dim() else 0
    named = known.get("vocab_size", rows)
    if type(named) is not int or not 0 < named <= rows < named + VOCABULARY_PADDING:
        raise CheckpointError(
            f"{settings_file} names a vocab_size of {named!r}, but {EMBEDDING} in {weights_file} has {rows} rows: "
            "settings and weights are of two runs"
        )
    known["vocab_size"] = rows
    layout = layout or "null"
    if known.setdefault("layout_policy", layout) != layout:
        raise CheckpointError(
            f"{settings_file} names layout_policy {known['layout_policy']!r} under 'model', but {layout!r} under "
            "'data', which counts: let them agree"
        )
    if known.get("link_detector") is None:  # null, or not said
        known["link_detector"] = DEFAULT_FORMAT
    # What the weights say counts: a head that is there and differs is not tied.
    if HEAD in state:
        known["weight_tying"] = state[HEAD].shape == state[EMBEDDING].shape and bool(
            (state[HEAD] == state[EMBEDDING]).all()
        )
    try:
        require(known, POSITIVE_INTEGERS)
        config = ModelConfig.from_dict(known)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{settings_file}: {error}") from error
    check_run_settings(model_settings, config, settings_file)
    model, dtypes = build_model(config, state, str(weights_file)), {tensor.dtype for tensor in state.values()}
    kept = dtypes in ({torch.bfloat16}, {torch.float16}, {torch.float64})
    return model.to(dtypes.pop() if kept else torch.float32)


def _missing(run: Path, file: Path) -> str:
    """What to say of a file that is not there: also what is there in its place."""
    if (run / CONFIG_NAME).is_file():
        return f"{run} is a checkpoint, not a training run directory: it needs no import"
    if not run.is_dir():
        return f"no {file.relative_to(run)} in {run}: not a training run directory (it does not exist)"
    message = f"no {file.relative_to(run)} in {run}: not a training run directory"
    if file.is_symlink():
        message += f" (it is a link to {file.readlink()}, which is not there)"
    others = sorted(path.name for path in file.parent.iterdir() if path != file) if file.parent.is_dir() else []
    if file.parent != run and others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        message += f"; {file.parent.name} has {', '.join(others[:5])}{more}: rename or link the one to import"
    return message


def import_run(run_dir: str | Path, out: str | Path) -> ModelConfig:
    """Convert a training run directory to a checkpoint folder; returns its config. Nothing is written on an error."""
    model = load_run(run_dir)
    save_checkpoint(model, out)
    return model.config


def _read_state(file: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in torch.load in a dozen ways, KeyError and IndexError among them
        # What torch met there. Its message puts that behind advice on how to take the risk.
        unpickling = isinstance(error, pickle.UnpicklingError)
        cause = error.__context__ if unpickling and error.__context__ else error
        met = str(cause).split(". ")[0] or type(cause).__name__
        if not unpickling or "GLOBAL" not in met:
            raise CheckpointError(
                f"cannot read {file}: it is {_kind(file)}; what torch.save wrote is needed, "
                f"{{'model': model.state_dict()}} ({met})"
            ) from error
        raise CheckpointError(
            f"{file} holds more than tensors and is not unpickled, since that could run code: save "
            f"{{'model': model.state_dict()}} alone ({met})"
        ) from error
    state = loaded.get("model") if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        there = f"a dict with {sorted(map(str, loaded))[:5]}" if isinstance(loaded, dict) else type(loaded).__name__
        raise CheckpointError(f"{file} must hold {{'model': state_dict}}, got {there}")
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            kind = type(value).__name__
            raise CheckpointError(f"{file}: its 'model' must map names to tensors, got {name!r}: {kind}")
        if value.is_meta or value.layout != torch.strided:
            kind = "a meta tensor, which has no numbers" if value.is_meta else f"a tensor of layout {value.layout}"
            raise CheckpointError(f"{file}: {name} is {kind}: save dense tensors on a CPU or a GPU")
    return _weights_alone(state, file)


def _kind(file: Path) -> str:
    """What a file that torch cannot read may be, by how it starts."""
    with file.open("rb") as opened:
        start = opened.read(40)
    if not start:
        return "empty"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, and `git lfs pull` gets the file itself"
    if start[8:9] == b"{":
        return "a safetensors file"
    if start.startswith(b"PK"):
        return "cut off or damaged, or another archive than torch.save's"
    if start.isascii() and (line := start.decode().partition("\n")[0]).isprintable():
        return f"text that starts with {line!r}"
    return "damaged, or of another program"


def _weights_alone(state: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The weights under their own names."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        own = _WRAPPERS.sub("", name)
        if own in found:
            raise CheckpointError(f"{file} has {own} twice, once as {name}")
        if not _TABLES.search(own):
            found[own] = tensor
    return found
