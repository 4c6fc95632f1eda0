"""Decoding with the next step launched before the last tokens are read.

A *flight* is a step that has been launched. In each call of `decode` the flight that was launched in the call before
is checked, the next one is launched, and only then are the tokens of the first one read. While the host reads them,
looks for links and plans, the device computes.

So a flight computes for each document of the one before it the token that is only being drawn, fed to it on the
device, with the view that the host knows of. What must hold:

1. A flight's result counts if and only if it computed what the books of the host now ask for: the row that the host
   would write for the document's last token (`row`) is the row that was computed, at that token's position, and the
   token fed to it is the document's. Else it is dropped, and the row is computed anew in the next flight. So nobody
   has to tell why a row is no longer right: an end of the document, a cancelled request, an eviction, another view, an
   extent that moved.
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
from ds2ds.engine.decode_graph.row import Room, Row, row_at
from ds2ds.engine.decode_graph.table_writer import Edit, TableWriter
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
        rows: how it computes a token of each document.
        position: of that token in its document.
        place: which row of the tables each document has.
        fed: the token that each row computes; of one that is fed on the device, None until the flight before was read.
        arrived: what was drawn, as `DecodeTables.drawn` has it, once it is there.
        read: what the host has looked at.
    """

    rows: Mapping[Document, Row]
    position: dict[Document, int]
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
        self.model, self.store, self.ahead = model, store, ahead
        self.room = Room(part, MOST_PARTS, len(model.rotary.cos))
        self.tables = DecodeTables.make(rows, MOST_PARTS, model.config.vocab_size, device)
        self.graphs = Graphs(model, store.arena, self.tables, part, capture, few_rows, overlap)
        self.flights = self.edited = self.dropped = 0
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
        last, position = self._last, len(document.tokens) - 1
        known = None if last is None else last.rows.get(document)
        if known is not None and known.stands(self.store, document, position, sampling):
            return known
        return row_at(self.store, document, position, sampling, self.room)

    def decode(self, rows: Mapping[Document, Row]) -> dict[Document, Sampled | GenerationError]:
        """Compute these rows, and draw the next token of each document. All that they read is computed.

        Args:
            rows: as `row` gives them now.

        Returns:
            What was drawn, for one of them at least, in their order; whoever is missing is to be asked for again.
        """
        if self.store.weights != self._weights:
            self._weights, self._last = self.store.weights, None
            self.graphs.use_weights()
        flight = self._last
        due: Mapping[Document, Row] = self._computed(rows)
        if flight is not None and not flight.read:
            self.dropped += len(flight.rows) - len(due)
        if flight is None or not due:
            due = rows
            position = {document: len(document.tokens) - 1 for document in rows}
            self._last = flight = self._launch(rows, position, self._continued(rows))
        if self.ahead:
            following = self._following(rows, due)
            if following:
                # Of what is due, the token that is being drawn, which the host does not have yet.
                position = {d: len(d.tokens) - (d not in due) for d in following}
                self._last = self._launch(following, position, due)
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
            parts = 2 * -(-self.model.config.max_seq_len // self.room.part)
        for number in _powers(1, min(rows or self.tables.rows, self.tables.rows)):
            for width in _powers(FEWEST_PARTS, min(parts, MOST_PARTS)):
                for also in {False, penalised}:
                    self.graphs.prepare(Bucket(number, width, also))

    def _computed(self, rows: Mapping[Document, Row]) -> dict[Document, Row]:
        """Those of which the last flight, not read yet, computes just this."""
        last = self._last
        if last is None or last.read:
            return {}
        computed, position, fed = last.rows, last.position, last.fed
        found = {}
        for document, row in rows.items():
            known = computed.get(document)
            if (known is row or known == row) and (
                position[document] == len(document.tokens) - 1 and fed[document] == document.tokens[-1]
            ):
                found[document] = row
        return found

    def _continued(self, rows: Mapping[Document, Row]) -> set[Document]:
        """Those whose token is the one that the last flight, which has been read, drew, with settings like theirs."""
        last, found = self._last, set[Document]()
        if last is None:
            return found
        for document, row in rows.items():
            drawn, token = last.read.get(document), (len(document.tokens) - 1, document.tokens[-1])
            if not isinstance(drawn, Sampled) or last.rows[document].sampling != row.sampling:
                continue
            if (last.position[document] + 1, drawn.token) == token:
                found.add(document)
        return found

    def _following(self, rows: Mapping[Document, Row], due: Mapping[Document, Row]) -> Mapping[Document, Row]:
        """The rows of the tokens that are being drawn of what is due, and those of the others as they are.

        Whoever is missing has none that can be computed yet, or here.
        """
        following = dict(rows)
        for document, row in due.items():
            position = len(document.tokens)
            if position < row.until:
                continue
            after, read = None, targets(document, position, position + 1)
            if all(self.store.computed(target) == len(target.tokens) for target in read):
                after = row_at(self.store, document, position, row.sampling, self.room)
            if after is None:
                del following[document]
            else:
                following[document] = after
        return following

    def _launch(self, rows: Mapping[Document, Row], position: dict[Document, int], fed: Collection[Document]) -> Flight:
        """Launch a step that computes the tokens at these positions.

        Args:
            fed: those that are at the position after the one of the last flight, which drew their tokens.
        """
        last, before = self._last, self._places
        places = self._places = _places(rows.keys(), before)
        edits: list[Edit] = []
        tokens: dict[Document, int | None] = {}
        penalised, width, part = False, FEWEST_PARTS, self.room.part
        for document, row in rows.items():
            at = position[document]
            if (parts := at // part + 1 + len(row.others.parts)) > width:
                width = parts
            has_penalty = row.sampling.repetition_penalty != 1
            penalised = penalised or has_penalty
            if last is not None and document in fed:
                tokens[document] = None
                moved, known = places is not before and places[document] != before[document], last.rows[document]
                if moved or (known is not row and known != row):
                    edits.append(Edit(places[document], row, at, -1 - before[document]))
                if moved and has_penalty:
                    self.tables.listed[places[document]].copy_(self.tables.listed[before[document]])
            else:
                tokens[document] = token = document.tokens[at]
                edits.append(Edit(places[document], row, at, token))
                if has_penalty:
                    self._writer.list_tokens(places[document], document.tokens)
        if places is not before:
            gone = set(before.values()).difference(places.values())
            edits += [Edit(place) for place in gone]
        self._writer.write(edits)
        self.edited += len(edits)
        self.graphs.run(Bucket(_power(len(rows)), _power(width), penalised))
        arrived = self._arrived[self.flights % 2]
        arrived.fetch(len(rows), self.tables.drawn)
        self.flights += 1
        return Flight(rows, position, places, tokens, arrived)

    def _read(self, flight: Flight, due: Collection[Document]) -> None:
        """Wait for a flight, and look at what it drew for these documents."""
        flight.arrived.wait()
        values = flight.arrived.values[: len(flight.rows)]
        tokens, statuses = values[:, 0].tolist(), values[:, 2].tolist()
        logprobs = values.view(np.float32)[:, 1].tolist()
        read, place = flight.read, flight.place
        onward = {} if self._last is None or self._last is flight else self._last.fed
        for document in due:
            at = place[document]
            token, status = tokens[at], statuses[at]
            read[document] = outcome(document, token, logprobs[at], status) if status else Sampled(token, logprobs[at])
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
