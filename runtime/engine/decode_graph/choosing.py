"""Which of the documents that lack their last token alone the decoder takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ds2ds.attention.view import targets
from ds2ds.documents.document import Document
from ds2ds.engine.job import Job
from ds2ds.engine.planning import attach
from ds2ds.engine.work import Compute

if TYPE_CHECKING:
    from ds2ds.engine.decode_graph.decoder import Decoder
    from ds2ds.engine.decode_graph.row import Row


def decodable(decoder: Decoder, written: Mapping[Document, Job]) -> tuple[dict[Document, Row], dict[Document, Job]]:
    """The rows of those whose next token the decoder can draw, and the others."""
    rows: dict[Document, Row] = {}
    rest: dict[Document, Job] = {}
    for document, job in written.items():
        work = job.waiting
        row = None
        if isinstance(work, Compute) and not work.sampling.top:
            row = decoder.row(document, work.sampling)
        if row is None:
            rest[document] = job
            continue
        rows[document] = row
        stop = len(document.tokens)
        if stop >= row.until:
            # What the token after it reads besides: it is about to be launched.
            for target in targets(document, stop, stop + 1):
                attach(decoder.store, job, target)
    return rows, rest
