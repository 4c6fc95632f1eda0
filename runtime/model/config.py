"""The shape of a model and what it was trained with: a checkpoint's ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ds2ds.attention.masks import MASKS
from ds2ds.documents.layout import LAYOUT_POLICIES
from ds2ds.documents.link_formats import link_format
from ds2ds.errors import ConfigError

POSITIVE_INTEGERS = ("vocab_size", "num_layers", "model_dim", "num_heads", "max_seq_len")


@dataclass(frozen=True)
class ModelConfig:
    """Raises ConfigError, naming field and value, when a value is out of range."""

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    max_seq_len: int = 2048
    mask_type: str = "cross_doc_link"
    weight_tying: bool = True
    layout_policy: str = "null"
    link_detector: str = "markdown"
    tokenizer: str = "gpt2"

    def __post_init__(self) -> None:
        for name in POSITIVE_INTEGERS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} must be a positive integer, got {value!r}")
        if self.model_dim % self.num_heads or self.head_dim % 4:
            raise ConfigError(
                f"model_dim must be num_heads times a multiple of 4, got {self.model_dim} and {self.num_heads} heads"
            )
        if not isinstance(self.mask_type, str) or self.mask_type not in MASKS:
            raise ConfigError(f"mask_type must be one of {sorted(MASKS)}, got {self.mask_type!r}")
        if self.layout_policy not in LAYOUT_POLICIES:
            raise ConfigError(f"layout_policy must be one of {LAYOUT_POLICIES}, got {self.layout_policy!r}")
        if not isinstance(self.weight_tying, bool):
            raise ConfigError(f"weight_tying must be True or False, got {self.weight_tying!r}")
        if not isinstance(self.tokenizer, str):
            raise ConfigError(f"tokenizer must be the name of a tokenizer, got {self.tokenizer!r}")
        if not isinstance(self.link_detector, str):
            raise ConfigError(f"link_detector must be the name of a link format, got {self.link_detector!r}")
        link_format(self.link_detector)

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        """GLU width: int(8/3 model_dim), rounded up to a multiple of 128."""
        return -(-int(8 * self.model_dim / 3) // 128) * 128

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise ConfigError(f"unknown model settings {unknown}; known are {sorted(cls.__dataclass_fields__)}")
        require(values, POSITIVE_INTEGERS[:4])
        return cls(**values)


def require(values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises ConfigError, naming those that are missing."""
    missing = [name for name in names if name not in values]
    if missing:
        raise ConfigError(f"missing model settings {missing}")
