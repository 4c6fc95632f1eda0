"""Decoding with the next step launched before the last tokens are read.

A *flight* is a step that has been launched. In each call of `decode` the flight that was launched in the call before
is checked, the next one is launched, and only then are the tokens of the first one read. While the host reads them,
looks for links and plans, the device computes.

So a flight computes for each document of the one before it the token that is only being drawn, fed to it on the
device, with the view that the host knows of. What must hold:

1. A flight's result counts if and only if it computed what the books of the host now ask for: the row that the host
   would write for the document's next token (`row_at`) is the row that was computed, and the token fed to it is the
   document's. Else it is dropped, and the row is computed anew in the next flight. So nobody has to tell why a row is
   no longer right: an end of the document, a cancelled request, an eviction, another view, an extent that moved.
2. A link's `)` is computed without the grant (S2). So the flight that was launched before the link was seen is right
   about that token, and about the one drawn from it; the host has until the next flight to bring in the target. If
   the target is not computed by then, the document is left out of that flight.
3. A row is ahead of the books by one token. It writes one slot, the one after the last computed token, in the extent
   of its own document. Until its result counts, the store does not count that token as computed, so it is not settled
   (S4), nobody reads it, and it is written again by whoever computes it.
4. All launches are on one stream. A flight that is dropped has written before anything that is launched after it: a
   prefill into the slots that were freed, or a compaction.
5. Noise is keyed by the position: a token that is drawn again from the same logits is the same.
6. What is on the device for the next flight follows from the last one: `edit` writes only rows that differ from that.
   Between two plain tokens of the same documents none does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field

import numpy as np

from ds2ds.attention.view import targets
from ds2ds.cache.document_store import DocumentStore
from ds2ds.documents.document import Document
from ds2ds.engine.decode_graph.forward import FEW_ROWS
from ds2ds.engine.decode_graph.graphs import Bucket, Graphs
from ds2ds.engine.decode_graph.host_copies import HostBuffer
from ds2ds.engine.decode_graph.row import Row, row_at
from ds2ds.engine.decode_graph.table_writer import TableWriter
from ds2ds.engine.step import outcome
from ds2ds.engine.work import Sampled, Sampling
from ds2ds.errors import GenerationError
from ds2ds.kernels.decode_attention import PART
from ds2ds.kernels.decode_tables import DecodeTables
from ds2ds.model.ds2ds_model import DS2DSModel

MOST_PARTS = 128
"""Parts that a row may read. What reads more is not decoded here."""

FEWEST_PARTS = 4


@dataclass
class Flight:
    """A step that was launched.

    Attributes:
        rows: what it computes for each document.
        place: which row of the tables each document has.
        fed: the token that each row computes; of one that is fed on the device, None until the flight before was read.
        arrived: what was drawn, as `DecodeTables.drawn` has it, once it is there.
        read: what the host has looked at.
    """

    rows: dict[Document, Row]
    place: dict[Document, int]
    fed: dict[Document, int | None]
    arrived: HostBuffer
    read: dict[Document, Sampled | GenerationError] = field(default_factory=dict)


class Decoder:
    """Decodes one token of each of some documents at a time. One for each engine, which calls it from one thread.

    Args:
        rows: most documents at a time.
        part: most keys of a part, a power of two.
        capture: in CUDA graphs, see `Graphs`.
        ahead: launch the next step before reading the last one.
        few_rows, overlap: see `Graphs`.

    Attributes:
        flights, edited, dropped: how many steps were launched, how many rows the host wrote for them, and how many
            rows were computed that did not count.
    """

    def __init__(
        self,
        model: DS2DSModel,
        store: DocumentStore,
        rows: int,
        *,
        part: int = PART,
        capture: bool = True,
        ahead: bool = True,
        few_rows: int = FEW_ROWS,
        overlap: bool = False,
    ) -> None:
        device = store.arena.data.device
        rows = max(16, _power(rows))  # so that every column of the tables is aligned
        self.model, self.store, self.part, self.ahead = model, store, part, ahead
        self.tables = DecodeTables.make(rows, MOST_PARTS, model.config.vocab_size, device)
        self.graphs = Graphs(model, store.arena, self.tables, part, capture, few_rows, overlap)
        self.flights = self.edited = self.dropped = 0
        self._positions = len(model.rotary.cos)
        self._weights = b""
        self._last: Flight | None = None
        self._places: dict[Document, int] = {}  # rows of the tables that are there
        self._writer = TableWriter(self.tables, model.config.vocab_size)
        # In turns: one may be on its way while the host reads the other.
        self._arrived = [HostBuffer((rows, 3), device) for _ in range(2)]

    def row(self, document: Document, sampling: Sampling) -> Row | None:
        """The row that computes the document's last token.

        None where it cannot: its view is in more than MOST_PARTS parts, or reaches beyond the rotary tables.

        Raises:
            KeyError: the document, or one that it reads, is not resident.
        """
        before = None if self._last is None else self._last.rows.get(document)
        row = row_at(self.store, document, len(document.tokens) - 1, sampling, self.part, before)
        return row if row is before or self._takes(row) else None

    def decode(self, rows: Mapping[Document, Row]) -> dict[Document, Sampled | GenerationError]:
        """Compute these rows, and draw the next token of each document. All that they read is computed.

        Returns:
            What was drawn, for one of them at least, in their order; whoever is missing is to be asked for again.
        """
        if self.store.weights != self._weights:
            self._weights, self._last = self.store.weights, None
            self.graphs.use_weights()
        due = [document for document, row in rows.items() if self._has_computed(document, row)]
        if self._last is not None and not self._last.read:
            self.dropped += len(self._last.rows) - len(due)
        flight = self._last
        if flight is None or not due:
            due = list(rows)
            self._last = flight = self._launch(rows, {d for d, row in rows.items() if self._continues(d, row)})
        if self.ahead:
            following = {document: self._following(document, rows[document]) for document in due}
            onward = {d: row for d in rows if (row := following.get(d) if d in following else rows[d]) is not None}
            if onward:
                self._last = self._launch(onward, onward.keys() & following.keys())
        self._read(flight, due)
        return flight.read

    def warm_up(self, rows: int | None = None, parts: int | None = None, penalised: bool = False) -> None:
        """Capture every graph of up to so many rows and parts, so that no step has to. No effect without graphs.

        Args:
            rows: None: as many as there may be.
            parts: None: as many as a document of the model's max_seq_len has, or two of half that length, and so on.
        """
        # Else the first step would take these weights for others, and forget all that was captured of them.
        self.graphs.use_weights()
        if parts is None:
            parts = 2 * -(-self.model.config.max_seq_len // self.part)
        for number in _powers(1, min(rows or self.tables.rows, self.tables.rows)):
            for width in _powers(FEWEST_PARTS, min(parts, MOST_PARTS)):
                for also in {False, penalised}:
                    self.graphs.prepare(Bucket(number, width, also))

    def _takes(self, row: Row) -> bool:
        return row.parts(self.part) <= MOST_PARTS and row.farthest < self._positions

    def _has_computed(self, document: Document, row: Row) -> bool:
        """Whether the last flight, not read yet, computes just this."""
        last = self._last
        if last is None or last.read or last.rows.get(document) != row:
            return False
        return last.fed[document] == document.tokens[row.position]

    def _continues(self, document: Document, row: Row) -> bool:
        """Whether the row follows from one of the last flight, which has been read."""
        last = self._last
        drawn = None if last is None else last.read.get(document)
        if last is None or not isinstance(drawn, Sampled) or drawn.token != document.tokens[row.position]:
            return False
        before = last.rows[document]
        return (before.entry, before.position + 1, before.sampling) == (row.entry, row.position, row.sampling)

    def _following(self, document: Document, row: Row) -> Row | None:
        """The row of the token that is being drawn from this one; None if it cannot be computed yet, or not here."""
        position = row.position + 1
        if position >= row.entry.extent.length:
            return None
        if row.others.last(document, position):
            following = row.following()
        else:
            for target in targets(document, position, position + 1):
                if self.store.computed(target) < len(target.tokens):
                    return None
            following = row_at(self.store, document, position, row.sampling, self.part)
        return following if self._takes(following) else None

    def _launch(self, rows: Mapping[Document, Row], fed: Set[Document]) -> Flight:
        """Launch a step of these rows; the token of those that are fed is what the last flight drew for them."""
        last, before = self._last, self._places
        places = self._places = _places(rows.keys(), before)
        edits: list[tuple[int, Row | None, int]] = []
        tokens: dict[Document, int | None] = {}
        penalised, width = False, FEWEST_PARTS
        for document, row in rows.items():
            place = places[document]
            penalised = penalised or row.sampling.repetition_penalty != 1
            if (parts := row.parts(self.part)) > width:
                width = parts
            if last is not None and document in fed:
                tokens[document] = None
                if before[document] != place or not last.rows[document].precedes(row):
                    edits.append((place, row, -1 - before[document]))
                if before[document] != place and row.sampling.repetition_penalty != 1:
                    self.tables.listed[place].copy_(self.tables.listed[before[document]])
            else:
                tokens[document] = document.tokens[row.position]
                edits.append((place, row, document.tokens[row.position]))
                if row.sampling.repetition_penalty != 1:
                    self._writer.list_tokens(place, document.tokens)
        if places is not before:
            gone = set(before.values()).difference(places.values())
            edits += [(place, None, 0) for place in gone]
        self._writer.write(edits)
        self.edited += len(edits)
        self.graphs.run(Bucket(_power(len(rows)), _power(width), penalised))
        arrived = self._arrived[self.flights % 2]
        arrived.fetch(len(rows), self.tables.drawn)
        self.flights += 1
        return Flight(dict(rows), places, tokens, arrived)

    def _read(self, flight: Flight, due: Collection[Document]) -> None:
        """Wait for a flight, and look at what it drew for these documents."""
        flight.arrived.wait()
        values = flight.arrived.values[: len(flight.rows)]
        tokens, statuses = values[:, 0].tolist(), values[:, 2].tolist()
        logprobs = values.view(np.float32)[:, 1].tolist()
        onward = {} if self._last is None or self._last is flight else self._last.fed
        for document in due:
            at = flight.place[document]
            token = tokens[at]
            flight.read[document] = outcome(document, token, logprobs[at], statuses[at])
            if document in onward:
                onward[document] = token


def _places(documents: Set[Document], before: dict[Document, int]) -> dict[Document, int]:
    """A row of the tables for each, the first ones; who has one of these keeps it. The same dict if all have."""
    if documents == before.keys():
        return before
    number = len(documents)
    kept = {document: before[document] for document in documents if before.get(document, number) < number}
    free = iter(sorted(set(range(number)).difference(kept.values())))
    return {document: kept[document] if document in kept else next(free) for document in documents}


def _power(number: int) -> int:
    """The least power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


def _powers(least: int, most: int) -> list[int]:
    """Powers of two from `least` to the first that is not below `most`."""
    powers = [least]
    while powers[-1] < most:
        powers.append(2 * powers[-1])
    return powers
