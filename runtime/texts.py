"""What a Runtime tells at once: its limits, what goes on, default settings, and text as tokens and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ds2ds.backend import BackendLimits, BackendUsage
from ds2ds.documents.link_formats import LinkFormat
from ds2ds.engine.engine import Engine
from ds2ds.errors import ConfigError
from ds2ds.generation.generation_config import GenerationConfig
from ds2ds.generation.linked_doc_generator import LinkedDocumentGenerator
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.tokenizer import Tokenizer


class RuntimeTexts:
    """A Runtime's part of `ds2ds.backend.Texts`, and its usage. Nothing here waits for the engine."""

    model: DS2DSModel
    tokenizer: Tokenizer
    engine: Engine
    _generator: LinkedDocumentGenerator

    @property
    def limits(self) -> BackendLimits:
        """What this can do at most."""
        config, layout = self.model.config, self._generator.layout
        return BackendLimits(
            vocab_size=config.vocab_size,
            max_context_length=config.max_seq_len,
            eos_token_id=self.tokenizer.eos_token_id,
            arena_tokens=self.engine.store.arena.slots,
            max_running=self.engine.limits.max_running,
            max_queue=self.engine.limits.max_queue,
            has_headings=layout.has_heading,
            has_marks=layout.has_marks,
        )

    @property
    def link_format(self) -> LinkFormat:
        """How links are written in what this reads and writes."""
        return self._generator.link_format

    def usage(self) -> BackendUsage:
        """What goes on at this moment. Reads a few counters, so that any thread may ask."""
        engine, store = self.engine, self.engine.store
        return BackendUsage(
            running=len(engine.running),
            waiting=len(engine.queue),
            arena_tokens=store.arena.allocator.used,
            documents=store.shared_count,
            documents_dropped=store.dropped,
        )

    def default_config(self) -> GenerationConfig:
        """The settings of a request that gives none."""
        return self._generator.default_config()

    def tokenize(self, text: str) -> list[int]:
        """The token ids of a text, as a prompt's are; text that looks like a special token is ordinary text.

        A heading at its start is encoded by itself, where documents have one.

        Raises:
            ConfigError: it is no string.
        """
        if not isinstance(text, str):
            raise ConfigError(f"text must be a string, got {text!r}")
        return self._generator.layout.encode_start(text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ConfigError: an id is outside the vocabulary.
        """
        if not isinstance(tokens, Iterable):
            raise ConfigError(f"tokens must be a sequence of token ids, got {tokens!r}")
        for token in tokens:
            self.token_bytes(token)
        return self.tokenizer.decode(list(tokens))

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; none for EOS.

        Raises:
            ConfigError: it is outside the vocabulary.
        """
        known = self.tokenizer.vocab_size
        try:
            # By itself a tokenizer may take any id beyond its own for one that rounding up a vocabulary added.
            if known is not None and token >= max(known, self.model.config.vocab_size):
                raise ValueError("it is beyond the model's, too")
            return self.tokenizer.token_bytes(token)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"token id {token!r} is not in the vocabulary of {self.tokenizer.name}") from error
