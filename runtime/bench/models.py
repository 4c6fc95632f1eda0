"""What is measured: a checkpoint, or random weights of a size that is asked for by name."""

from __future__ import annotations

import re

import torch

from ds2ds.errors import ConfigError
from ds2ds.model.checkpoint import load_checkpoint
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.tokenizer.gpt2 import VOCAB_SIZE

HEAD_DIM = 64
MAX_SEQ_LEN = 4096
MOST_POSITIONS = 2**20


def parse_size(name: str) -> tuple[int, int] | None:
    """Layers and width of "LAYERSxWIDTH"; None if the name is of another form.

    Raises:
        ConfigError: there is no such model.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", name)
    if match is None:
        return None
    layers, width = int(match[1]), int(match[2])
    if not layers or not width or width % HEAD_DIM:
        raise ConfigError(f"a model LAYERSxWIDTH needs layers, and a width that {HEAD_DIM} divides, got {name!r}")
    return layers, width


def make_model(name: str, device: torch.device, dtype: torch.dtype, positions: int = MAX_SEQ_LEN) -> DS2DSModel:
    """A checkpoint folder's model, "demo" the packaged one; or random weights, always the same, for "LAYERSxWIDTH".

    Args:
        positions: max_seq_len of a model with random weights, heads of HEAD_DIM and GPT-2's vocabulary.

    Raises:
        ConfigError, CheckpointError: there is no such model.
    """
    size = parse_size(name)
    if size is None:
        return load_checkpoint(name, device, dtype)
    if positions > MOST_POSITIONS:
        raise ConfigError(
            f"context and tokens come to {positions:,}: they exceed the {MOST_POSITIONS:,} positions at most"
        )
    layers, width = size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DS2DSModel.from_config(
            vocab_size=VOCAB_SIZE,
            num_layers=layers,
            model_dim=width,
            num_heads=width // HEAD_DIM,
            max_seq_len=positions,
        )
    return model.to(device=device, dtype=dtype)
