"""One request under way: what all parts of its generation share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ds2ds.attention.masks import READS_LINKS
from ds2ds.documents.document import Document, DocumentGrant
from ds2ds.documents.document_context import DocumentContext
from ds2ds.documents.generation_result import GeneratedDocument, Grant, Trace
from ds2ds.documents.layout import Layout
from ds2ds.documents.link_formats import DEFAULT_FORMAT, LINK_FORMATS, LinkFormat
from ds2ds.documents.title_match import found_by
from ds2ds.engine.work import Sampling
from ds2ds.errors import ConfigError
from ds2ds.generation.corpus_source import CorpusSource
from ds2ds.generation.events import Event
from ds2ds.generation.generation_config import GenerationConfig, parse_device
from ds2ds.generation.pairing import check_decodes
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.tokenizer import TextStream, Tokenizer

UNTITLED_ROOT = "root"
OPENING_TOKENS = 48


def fit_config(config: GenerationConfig, model: DS2DSModel) -> GenerationConfig:
    """The settings as this model will run them: the seed is drawn if none is set.

    Raises:
        ConfigError: the model cannot do what they ask.
    """
    check_decodes(model.config)
    longest, vocab_size = model.config.max_seq_len, model.config.vocab_size
    if config.eos_token_id > vocab_size:
        raise ConfigError(
            f"eos_token_id must be in the model's vocabulary of {vocab_size} (or {vocab_size}: no token ends a "
            f"document), got {config.eos_token_id}"
        )
    if unknown := [token for token in config.stop_token_ids if token >= vocab_size]:
        raise ConfigError(f"stop_token_ids must be in the model's vocabulary of {vocab_size}, got {unknown}")
    if config.max_context_length > longest:
        raise ConfigError(
            f"max_context_length must be at most the model's max_seq_len {longest}, got {config.max_context_length}"
        )
    if config.device is not None and parse_device(config.device).type != model.device.type:
        raise ConfigError(f"device is {config.device!r}, but the model is on {str(model.device)!r}")
    if config.seed is None:
        config = config.with_overrides(seed=int(torch.randint(2**62, ()).item()))
    return config


@dataclass(frozen=True)
class Request:
    """Attributes:
    config: its seed is set.
    listener: receives the events of the stream; None: nobody listens.
    mask_type: the model's. Only under cross_doc_link does a document read what it links to; under the others its
        links are followed just the same, and what they bring in is part of the result, but not of the view.
    interactive: links are followed as the reader decides.
    number: index of its prompt in a batch.
    titles: by what events and results call its documents besides the root; no two are equal.
    """

    config: GenerationConfig
    context: DocumentContext
    corpus: CorpusSource
    layout: Layout
    tokenizer: Tokenizer
    trace: Trace
    listener: Callable[[Event], None] | None = None
    mask_type: str = READS_LINKS
    interactive: bool = False
    number: int = 0
    link_format: LinkFormat = LINK_FORMATS[DEFAULT_FORMAT]
    titles: dict[Document, str] = field(default_factory=dict)
    _texts: dict[Document, tuple[tuple[int, int | None], str]] = field(default_factory=dict, init=False, repr=False)

    def emit(self, event: Event) -> None:
        """Tell who listens."""
        if self.listener is not None:
            self.listener(event)

    def sampling(self, document: Document) -> Sampling:
        """How this document's tokens are drawn. Its noise depends on the request's seed and its title alone."""
        config = self.config
        key = f"{config.seed}\n{document.title if document.depth else ''}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little", signed=True)
        return Sampling(
            config.temperature,
            config.top_k or 0,
            config.top_p,
            config.min_p,
            config.repetition_penalty,
            seed,
            config.top_logprobs,
        )

    def text(self, document: Document) -> str:
        """The document's text: no end marks, nothing from the stop string on."""
        state = len(document.tokens), document.text_end
        known = self._texts.get(document)
        if known is not None and known[0] == state:  # told when it is opened, when it is closed, and in the result
            return known[1]
        marks = {self.config.eos_token_id, self.layout.eos_token_id}
        text = self.tokenizer.decode([token for token in document.tokens if token not in marks])[: document.text_end]
        self._texts[document] = state, text
        return text

    def opening(self, title: str, tokens: Sequence[int]) -> str:
        """How a document starts below its heading: the text of the first OPENING_TOKENS."""
        at = len(self.layout.prefix(title))
        text = TextStream(self.tokenizer)
        marks = {self.config.eos_token_id, self.layout.eos_token_id}
        return "".join(text.feed(token) for token in tokens[at : at + OPENING_TOKENS] if token not in marks)

    def title(self, document: Document) -> str:
        """What events and results call a document.

        A supplied one that takes another's title is told from that, and one called as a root without title is from it.
        """
        if document.depth == 0:
            return document.title or UNTITLED_ROOT
        if document not in self.titles:
            name, copy, root = document.title, 2, self.title(self.context.root)
            while name == root or name in self.titles.values():
                name, copy = f"{document.title} ({copy})", copy + 1
            self.titles[document] = name
        return self.titles[document]

    def _grant(self, grant: DocumentGrant) -> Grant:
        return Grant(grant.position, self.title(grant.target), grant.end, grant.link, *found_by(grant.match))

    def record(self, document: Document) -> GeneratedDocument:
        """The document as a result holds it."""
        return GeneratedDocument(
            title=self.title(document),
            tokens=list(document.tokens),
            text=self.text(document),
            source=document.source,
            is_root=document.parent is None,
            parent_title=None if document.parent is None else self.title(document.parent),
            grants=[self._grant(grant) for grant in document.grants],
            depth=document.depth,
            truncated=document.truncated,
            finish_reason=document.finish_reason,
            given=document.given,
            token_logprobs=np.asarray(document.logprobs, dtype=np.float32) if self.config.tells_logprobs else None,
            top_logprobs=(
                [list(document.alternatives.get(at, ())) for at in range(len(document.tokens))]
                if self.config.top_logprobs
                else None
            ),
        )
