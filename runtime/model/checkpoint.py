"""Checkpoints on disk: a folder with ``config.json`` and ``model.safetensors``, saved atomically, loaded checked."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ds2ds.errors import CheckpointError, ConfigError
from ds2ds.files import atomic_write, checked_path
from ds2ds.model.config import ModelConfig
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.model.int8_weight import Int8Weight

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
EMBEDDING, HEAD = "embedding.weight", "loss_fn.weight"


def demo_path() -> Path:
    """The packaged checkpoint, trained on FOLDOC."""
    return Path(str(files("ds2ds"))) / "data" / "demo"


def save_checkpoint(model: DS2DSModel, path: str | Path) -> None:
    """Write config.json and model.safetensors into a folder, in the model's dtype; a tied head is stored once.

    Where either cannot be written, both files stay as they were.

    Raises:
        CheckpointError: the weights are quantised: a checkpoint holds floats; or the folder cannot be written.
    """
    path = Path(path)
    if isinstance(model.loss_fn.weight, Int8Weight):
        raise CheckpointError(f"cannot save int8 weights to {path}: save the model before it is quantised")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.weight_tying:
        del state[HEAD]

    def write(config: Path) -> None:
        config.write_text(json.dumps(model.config.to_dict(), indent=2) + "\n", encoding="utf-8")
        atomic_write(path / WEIGHTS_NAME, lambda weights: save_file(state, weights, metadata={"format": "pt"}))

    # The weights are put in place once the configuration is written too, and only its renaming is left.
    try:
        atomic_write(path / CONFIG_NAME, write)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write a checkpoint to {path}: {error}") from error


def load_checkpoint(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> DS2DSModel:
    """Read a checkpoint folder ("demo": the packaged one).

    Args:
        dtype: the weights' dtype in memory; None keeps the file's.

    Raises:
        CheckpointError: a file is missing or damaged, or tensors are missing, unexpected or misshapen (named).
    """
    path = demo_path() if path == "demo" else checked_path(path)
    config = _read_config(path)
    state = _read_weights(path / WEIGHTS_NAME)
    return build_model(config, state, str(path / WEIGHTS_NAME)).to(device=device, dtype=dtype or state[EMBEDDING].dtype)


def parse_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The dtype that weights are to have in memory; None: float32 on a CPU, bfloat16 on a GPU.

    Raises:
        ConfigError: it is none of floats.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    parsed = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if parsed not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise ConfigError(f"dtype must be float32, bfloat16, float16 or float64, got {dtype!r}")
    return parsed


def build_model(config: ModelConfig, state: dict[str, Tensor], source: str) -> DS2DSModel:
    """A model with these weights, in eval mode; `source` names them in errors.

    It is of float64 if any of them is, else of float32, so that none is rounded: what they are to be in the end is the
    caller's to say.

    Raises:
        CheckpointError: tensors are missing, unexpected or misshapen, or the head of a tied model differs from its
            embedding.
    """
    if config.num_layers > len(state):  # so many may take hours to make
        raise CheckpointError(f"{source} does not fit {config}: it has {len(state)} tensors, fewer than layers")
    try:
        model = DS2DSModel(config).eval()
    except (RuntimeError, MemoryError) as error:  # torch raises the former
        raise CheckpointError(f"there is no memory for {config}: {str(error).splitlines()[0]}") from error
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    state = dict(state)
    if config.weight_tying and EMBEDDING in state:
        head = state.setdefault(HEAD, state[EMBEDDING])
        given = head is not state[EMBEDDING]  # else NaN in it would make it differ from itself
        if given and head.shape == state[EMBEDDING].shape and not bool((head == state[EMBEDDING]).all()):
            raise CheckpointError(f"{source}: weight_tying is on, but {HEAD} differs from {EMBEDDING}")
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    problems += [
        f"{name} has shape {list(state[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    problems += [f"{name} is {t.dtype}, expected floats" for name, t in state.items() if not t.is_floating_point()]
    if problems:
        more = f", and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(f"{source} does not fit {config}: {'; '.join(problems[:8])}{more}")
    widest = torch.float64 if any(tensor.dtype == torch.float64 for tensor in state.values()) else torch.float32
    model.to(widest).load_state_dict(state)  # torch's default dtype may be less
    return model


def _read_config(path: Path) -> ModelConfig:
    file = path / CONFIG_NAME
    try:
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
        there = "the folder does not exist" if not path.exists() else "it is not there"
        raise CheckpointError(
            f"no {CONFIG_NAME} in {path} ({there}); a training run directory is converted by `ds2ds model import`"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} must hold an object, got {type(values).__name__}")
    try:
        return ModelConfig.from_dict(values)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def _read_weights(file: Path) -> dict[str, Tensor]:
    if file.is_symlink() and not file.exists():
        raise CheckpointError(f"no {file.name} in {file.parent}: it is a link to {file.readlink()}, which is not there")
    if not file.is_file():
        others = sorted(path.name for path in file.parent.iterdir() if path.name not in (CONFIG_NAME, file.name))
        there = f"; it has {', '.join(others[:5])}: the weights must be in one file of that name" if others else ""
        raise CheckpointError(f"no {file.name} in {file.parent}{there}")
    try:
        file.open("rb").close()  # of one that may not be read, safetensors says that it is not there
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
