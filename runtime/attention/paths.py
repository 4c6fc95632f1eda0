"""Which attention reads the arena: FlexAttention on a GPU, compiled code or plain PyTorch on a CPU."""

from __future__ import annotations

from functools import partial
from typing import Protocol, runtime_checkable

from ds2ds.attention.attend import AttentionPath
from ds2ds.attention.compiled import cpu_attention
from ds2ds.attention.flex import FlexPath
from ds2ds.attention.full_pass import takes_blocks
from ds2ds.attention.rotary import Rotary
from ds2ds.cache.document_store import DocumentStore
from ds2ds.errors import ConfigError

PATHS = ("auto", "flex", "plain", "triton")


@runtime_checkable
class WarmsUp(Protocol):
    """A path that compiles what it needs at its first use, or before."""

    def warm_up(self, decode_rows: int) -> None:
        """Compile it for steps of up to so many (token, document) pairs to decode."""


def attention_path(store: DocumentStore, rotary: Rotary, name: str = "auto") -> AttentionPath:
    """One for an engine.

    Args:
        name: "flex", "plain" (compiled code where it can be, else PyTorch), "triton" (our own kernels where a step only
            decodes, flex for the rest), or "auto": flex on a GPU for what its kernels take (no float64, no heads below
            16), else plain.

    Raises:
        ConfigError: there is no such path, or it cannot do with this arena.
    """
    if name not in PATHS:
        raise ConfigError(f"attention must be one of {PATHS}, got {name!r}")
    data = store.arena.data
    if name == "auto":
        name = "flex" if takes_blocks(data.device, data.dtype, data.shape[-1]) else "plain"
    if name == "plain":
        return partial(cpu_attention, store, rotary)
    try:
        if name == "triton":
            # Imported here, as it brings in Triton, which is slow to import and not to be had on every system.
            from ds2ds.attention.triton_decode import TritonPath

            return TritonPath(store, rotary)
        return FlexPath(store, rotary)
    except ValueError as error:
        raise ConfigError(str(error)) from error
