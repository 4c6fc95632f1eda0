"""Whether an engine decodes in CUDA graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds2ds.cache.document_store import DocumentStore
from ds2ds.errors import ConfigError
from ds2ds.model.ds2ds_model import DS2DSModel

if TYPE_CHECKING:
    from ds2ds.engine.decode_graph.decoder import Decoder


def make_decoder(
    model: DS2DSModel, store: DocumentStore, cuda_graphs: bool | str, attention: str, rows: int
) -> Decoder | None:
    """What decodes up to so many rows in CUDA graphs; None: nothing does, see `Engine`.

    Raises:
        ConfigError: it is asked for and cannot be, or cuda_graphs is neither True, False nor "auto".
    """
    if cuda_graphs not in (True, False, "auto"):
        raise ConfigError(f"cuda_graphs must be True, False or 'auto', got {cuda_graphs!r}")
    device = model.device.type
    possible = device == "cuda" and attention == "triton"
    if cuda_graphs is True and not possible:
        raise ConfigError(f"cuda_graphs needs a GPU and attention 'triton', got {device!r} and attention {attention!r}")
    if not (possible and cuda_graphs):
        return None
    # Imported here, as it brings in Triton, like attention "triton".
    from ds2ds.engine.decode_graph.decoder import Decoder

    return Decoder(model, store, rows)
