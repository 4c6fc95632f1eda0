"""Which of a step's chunks the decoder takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ds2ds.attention.view import targets
from ds2ds.documents.document import Document
from ds2ds.engine.planning import Planned, attach
from ds2ds.engine.work import Compute

if TYPE_CHECKING:
    from ds2ds.engine.decode_graph.decoder import Decoder
    from ds2ds.engine.decode_graph.row import Row


def decodable(decoder: Decoder, batch: Sequence[Planned]) -> tuple[dict[Document, tuple[Planned, Row]], list[Planned]]:
    """The tokens that the decoder can draw, with what it takes for each, and the rest of the batch."""
    decoding: dict[Document, tuple[Planned, Row]] = {}
    rest: list[Planned] = []
    for one in batch:
        work, document = one.job.waiting, one.chunk.document
        row = None
        if one.decodes and isinstance(work, Compute) and not work.sampling.top:
            row = decoder.row(document, work.sampling)
        if row is None:
            rest.append(one)
            continue
        decoding[document] = one, row
        if not row.others.last(document, one.chunk.stop):
            # What the token after it reads besides: it is about to be launched.
            for target in targets(document, one.chunk.stop, one.chunk.stop + 1):
                attach(decoder.store, one.job, target)
    return decoding, rest
