"""One request under way: what all parts of its generation share."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ds2ds.documents.document import Document
from ds2ds.documents.document_context import DocumentContext
from ds2ds.documents.generation_result import GeneratedDocument, Grant, Trace
from ds2ds.documents.layout import Layout
from ds2ds.documents.link_formats import DEFAULT_FORMAT, LINK_FORMATS, LinkFormat
from ds2ds.engine.work import Sampling
from ds2ds.errors import ConfigError
from ds2ds.generation.corpus_source import CorpusSource
from ds2ds.generation.events import Event
from ds2ds.generation.generation_config import GenerationConfig, parse_device
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.tokenizer import Tokenizer

UNTITLED_ROOT = "root"


def fit_config(config: GenerationConfig, model: DS2DSModel) -> GenerationConfig:
    """The settings as this model will run them: the seed is drawn if none is set.

    Raises:
        ConfigError: the model cannot do what they ask.
    """
    longest = model.config.max_seq_len
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
    emit: receives the events of the stream.
    """

    config: GenerationConfig
    context: DocumentContext
    corpus: CorpusSource
    layout: Layout
    tokenizer: Tokenizer
    trace: Trace
    emit: Callable[[Event], None]
    link_format: LinkFormat = LINK_FORMATS[DEFAULT_FORMAT]

    def sampling(self, document: Document) -> Sampling:
        """How this document's tokens are drawn. Its noise depends on the request's seed and its title alone."""
        config = self.config
        key = f"{config.seed}\n{document.title if document.depth else ''}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little", signed=True)
        return Sampling(
            config.temperature, config.top_k or 0, config.top_p, config.min_p, config.repetition_penalty, seed
        )

    def text(self, document: Document) -> str:
        """The document's text: no end marks, nothing from the stop string on."""
        marks = {self.config.eos_token_id, self.layout.eos_token_id}
        text = self.tokenizer.decode([token for token in document.tokens if token not in marks])
        return text[: document.text_end]

    def title(self, document: Document) -> str:
        return document.title or UNTITLED_ROOT

    def record(self, document: Document) -> GeneratedDocument:
        """The document as a result holds it."""
        return GeneratedDocument(
            title=self.title(document),
            tokens=list(document.tokens),
            text=self.text(document),
            source=document.source,
            is_root=document.parent is None,
            parent_title=None if document.parent is None else self.title(document.parent),
            grants=[Grant(grant.position, self.title(grant.target), grant.end) for grant in document.grants],
            depth=document.depth,
            truncated=document.truncated,
            finish_reason=document.finish_reason,
            token_logprobs=np.asarray(document.logprobs, dtype=np.float32) if self.config.logprobs else None,
        )


class TextStream:
    """The text of tokens as they come; a character split between tokens comes with its last byte."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(self._token_bytes(token))
