"""Who reads whom how much: a document of a result once more through the model, with an attention that tells.

Generation knows nothing of this. What the document reads is in the store, or is computed again (S5); then the rows
asked for run against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from operator import index
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds2ds.analysis.attention_map import AttentionMap
from ds2ds.analysis.recorded_attention import RecordedAttention, Rows, rows_by_view
from ds2ds.attention.view import reads
from ds2ds.documents.document import Document, DocumentGrant
from ds2ds.documents.generation_result import GenerationResult, Trace
from ds2ds.documents.link_graph import link_graph
from ds2ds.engine.engine import Engine
from ds2ds.engine.limits import positive
from ds2ds.engine.work import Prefill, Work
from ds2ds.errors import ConfigError
from ds2ds.generation.running import queued
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.tokenizer import TextStream, Tokenizer

MAX_BYTES = 2**30
"""Most memory for the arrays of one map, unless the caller says otherwise."""

STORED = np.float32
"""What the arrays of a map are kept in."""

SCORES = 2**24
"""Most scores of one layer at once: 64 MiB in float32, and about three times that while they are worked on."""

Tokens = int | slice | Iterable[int] | None


def analyse_attention(
    engine: Engine,
    tokenizer: Tokenizer,
    result: GenerationResult,
    document: str | int | None,
    tokens: Tokens,
    per_token: bool,
    max_bytes: int,
) -> AttentionMap:
    """See `Runtime.attention`."""
    if not isinstance(result, GenerationResult):
        raise ConfigError(f"result must be a GenerationResult, got {result!r}")
    most = positive("max_bytes", max_bytes)
    place = _place(result, document)
    subject = _rebuild(result, place, engine.model)
    chosen = _chosen_tokens(result, place, tokens)
    documents = list(dict.fromkeys([subject, *(grant.target for grant in subject.grants)]))
    recorder = _Recorder(engine.model, documents, chosen, per_token, most)
    trace = Trace()
    batches = [
        batch for rows in rows_by_view(subject, chosen) for batch in _batches(rows, engine.model.config.num_heads)
    ]
    window: list[Document] = []

    def record_all() -> Work:
        for batch in batches:
            # Just these are pinned: all that a long document ever read need not fit the arena together.
            window[:] = dict.fromkeys([subject, *(target for target, _ in batch.view)])
            yield from _bring_in(engine, window)
            recorder.run(engine, batch)

    rounded = engine.store.arena.allocator.rounded
    need = max(
        sum(rounded(len(d.tokens)) for d in {subject, *(target for target, _ in batch.view)}) for batch in batches
    )
    for _ in engine.run(queued(engine, lambda: engine.submit(record_all(), window, trace, need))):
        pass
    texts = tuple(tuple(token_texts(tokenizer, one.tokens)) for one in documents)
    titles = [graphed.title for graphed in result.get_all_documents()]
    return AttentionMap(
        tuple([titles[place], *(one.title for one in documents[1:])]),
        texts,
        np.array(chosen, dtype=np.int64),
        recorder.shares,
        recorder.in_view,
        None if recorder.weights is None else tuple(recorder.weights),
        trace,
    )


def token_texts(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """The text of each token; of a character split between tokens the last one has all, the others nothing."""
    stream = TextStream(tokenizer)
    texts = [stream.feed(token) for token in tokens]
    if texts:
        texts[-1] += stream.finish()
    return texts


class _Recorder:
    """The arrays of a map, as they are filled."""

    def __init__(
        self, model: DS2DSModel, documents: list[Document], tokens: list[int], per_token: bool, max_bytes: int
    ) -> None:
        rows = (len(tokens), model.config.num_layers, model.config.num_heads)
        columns = len(documents) + (sum(len(one.tokens) for one in documents) if per_token else 0)
        size = int(np.prod(rows)) * columns * 4
        if size > max_bytes:
            less = "fewer tokens, or per_token=False" if per_token else "fewer tokens"
            raise ConfigError(
                f"the attention of {rows[0]:,} tokens, {rows[1]} layers and {rows[2]} heads to {columns:,} "
                f"{'documents and tokens' if per_token else 'documents'} takes {size:,} bytes, more than max_bytes "
                f"{max_bytes:,}: ask for {less}, or raise max_bytes"
            )
        self.column = {document: number for number, document in enumerate(documents)}
        self.row = {token: number for number, token in enumerate(tokens)}
        self.shares: NDArray[np.float32] = np.zeros((*rows, len(documents)), STORED)
        self.in_view: NDArray[np.bool_] = np.zeros((rows[0], len(documents)), np.bool_)
        self.weights: list[NDArray[np.float32]] | None = None
        if per_token:
            self.weights = [np.zeros((*rows, len(one.tokens)), STORED) for one in documents]

    @torch.inference_mode()
    def run(self, engine: Engine, batch: Rows) -> None:
        """Send the rows through the model; all that they read is in the arena."""
        rows = slice(self.row[batch.tokens[0]], self.row[batch.tokens[-1]] + 1)

        def record(layer: int, parts: Sequence[tuple[Document, Tensor]]) -> None:
            for document, part in parts:
                column = self.column[document]
                self.in_view[rows, column] = True
                # Added, for a document that is granted twice at a time is read twice.
                self.shares[rows, layer, :, column] += part.sum(-1).cpu().numpy()
                if self.weights is not None:
                    self.weights[column][rows, layer, :, : part.shape[-1]] += part.cpu().numpy()

        model = engine.model
        ids = torch.tensor([batch.document.tokens[token] for token in batch.tokens], device=model.device)
        model.hidden(ids, RecordedAttention(engine.store, model.rotary, batch, record))


def _bring_in(engine: Engine, documents: Sequence[Document]) -> Work:
    """Compute what is not in the arena, until all of it is there at once: what is not pinned yet may go meanwhile."""
    computed = engine.store.computed
    while (missing := next((d for d in documents if computed(d) < len(d.tokens)), None)) is not None:
        yield Prefill(missing)


def _batches(rows: Rows, heads: int) -> list[Rows]:
    """The same rows in pieces of at most SCORES scores, or of one row."""
    most = max(1, SCORES // (heads * rows.keys))
    return [Rows(rows.document, rows.tokens[at : at + most], rows.view) for at in range(0, len(rows.tokens), most)]


def _place(result: GenerationResult, document: str | int | None) -> int:
    documents = result.get_all_documents()
    if isinstance(document, str):
        found = result.get_document_by_title(document)
        if found is None:
            raise ConfigError(f"the result has no document titled {document!r}")
        return next(place for place, one in enumerate(documents) if one is found)
    try:
        place = 0 if document is None else index(document)
    except TypeError as error:
        raise ConfigError(f"document must be a title, an index or None, got {document!r}") from error
    if not 0 <= place < len(documents):
        raise ConfigError(f"document must be in [0, {len(documents)}), got {place}")
    return place


def _chosen_tokens(result: GenerationResult, place: int, tokens: Tokens) -> list[int]:
    """The indices asked for, ascending, each once."""
    document = result.get_all_documents()[place]
    length = len(document.tokens or ())
    if tokens is None:
        # Of a document that was not written here, or where that is not known: all.
        start = document.given or 0
        chosen = list(range(start if start < length else 0, length))
    elif isinstance(tokens, slice):
        chosen = list(range(*tokens.indices(length)))
    else:
        try:
            several: Any = [tokens] if isinstance(tokens, Integral) else tokens
            chosen = [index(one) for one in several]
        except TypeError as error:
            raise ConfigError(f"tokens must be indices, a range or a slice, got {tokens!r}") from error
    wrong = next((one for one in chosen if not -length <= one < length), None)
    if wrong is not None:
        raise ConfigError(f"tokens of {document.title!r} must be in [0, {length}), got {wrong}")
    if not chosen:
        raise ConfigError(f"tokens must name at least one of the {length} tokens of {document.title!r}, got {tokens!r}")
    return sorted({one % length for one in chosen})


def _rebuild(result: GenerationResult, place: int, model: DS2DSModel) -> Document:
    """A document of the result as it was computed, with all that it reads.

    Raises:
        ConfigError: one of them cannot be this model's, or has no tokens.
    """
    graph = link_graph(result)
    given = result.get_all_documents()
    needed = {place}
    for number in reversed(graph.order):  # readers first
        if number in needed:
            needed.update(edge.target for edge in graph.edges if edge.source == number)
    built: dict[int, Document] = {}
    for number in graph.order:  # what is read first
        if number in needed:
            built[number] = _document(given[number], model)
            built[number].grants = [
                DocumentGrant(edge.position, built[edge.target], edge.end)
                for edge in graph.edges
                if edge.source == number
            ]
            _check_positions(built[number], model)
    return built[place]


def _document(given: Any, model: DS2DSModel) -> Document:
    if not given.tokens:
        raise ConfigError(f"document {given.title!r} has no tokens, only text: its attention cannot be computed")
    tokens = [int(token) for token in given.tokens]
    wrong = next((token for token in tokens if not 0 <= token < model.config.vocab_size), None)
    if wrong is not None:
        raise ConfigError(
            f"document {given.title!r} holds token id {wrong}, outside the model's vocabulary of "
            f"{model.config.vocab_size}: another model wrote it"
        )
    return Document(given.title, tokens, depth=given.depth)


def _check_positions(document: Document, model: DS2DSModel) -> None:
    last = len(document.tokens)
    furthest = max([last, *(read.stop + read.delta for read in reads(document, 0, last))])
    if furthest > model.config.max_seq_len:
        raise ConfigError(
            f"document {document.title!r} reads over {furthest} positions, more than the model's max_seq_len "
            f"{model.config.max_seq_len}: another model wrote it"
        )
