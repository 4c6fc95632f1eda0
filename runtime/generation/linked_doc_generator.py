"""LinkedDocumentGenerator: from a prompt to a linked set of documents."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Iterable
from numbers import Integral
from typing import Any

from ds2ds.corpus.names import is_unicode
from ds2ds.documents import link_formats
from ds2ds.documents.document_context import DocumentContext
from ds2ds.documents.generation_result import GenerationResult, Trace
from ds2ds.documents.layout import Layout, heading_title
from ds2ds.documents.link_formats import LinkFormat
from ds2ds.engine.engine import Engine
from ds2ds.engine.limits import check_priority
from ds2ds.engine.work import Work
from ds2ds.errors import ConfigError
from ds2ds.generation.beam_search import BeamSearch
from ds2ds.generation.choices import OnLink, check_on_link
from ds2ds.generation.corpus_source import CorpusSource, open_corpus
from ds2ds.generation.events import Done, Event
from ds2ds.generation.generation_config import GenerationConfig
from ds2ds.generation.link_following import LinkFollower
from ds2ds.generation.pairing import check_corpus, check_encodes, check_separator, check_tokenizer
from ds2ds.generation.request import Request, fit_config
from ds2ds.generation.running import Running, queued
from ds2ds.generation.text_checks import check_title
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.tokenizer import Tokenizer, as_tokenizer


class LinkedDocumentGenerator:
    """Writes a document, and what its links lead to.

    Args:
        model: a DS2DSModel.
        tokenizer_encode: text to ids; None, with the next one, for the packaged GPT-2.
        tokenizer_decode: ids to text.
        tokenizer: instead of the two, whatever `ds2ds.tokenizer.as_tokenizer` takes.
        layout_policy: what stands around a document's body, whatever the model's config says; None: that.
        link_format: how links are written: a name, or a format of your own (`ds2ds.documents.link_formats`); None: what
            the model's config says.
        engine: an engine of this model, to share its arena with other requests; None: one of its own.

    Raises:
        ConfigError: the model is no DS2DSModel, or an argument does not fit it.
    """

    def __init__(
        self,
        model: DS2DSModel,
        tokenizer_encode: Callable[[str], Iterable[int]] | None = None,
        tokenizer_decode: Callable[[Any], str] | None = None,
        *,
        tokenizer: Any = None,
        layout_policy: str | None = None,
        link_format: str | LinkFormat | None = None,
        engine: Engine | None = None,
    ) -> None:
        if not isinstance(model, DS2DSModel):
            raise ConfigError(f"model must be a DS2DSModel, got {type(model).__name__}")
        if (tokenizer_encode is None) != (tokenizer_decode is None):
            raise ConfigError("give both tokenizer_encode and tokenizer_decode, or neither")
        if tokenizer_encode is not None:
            if tokenizer is not None:
                raise ConfigError("give a tokenizer, or tokenizer_encode and tokenizer_decode, not both")
            tokenizer = (tokenizer_encode, tokenizer_decode)
        self.model = model
        self.tokenizer: Tokenizer = as_tokenizer(tokenizer)
        check_tokenizer(model.config, self.tokenizer)
        self.link_format = link_formats.link_format(model.config.link_detector if link_format is None else link_format)
        self.engine = engine or Engine(model)
        policy = model.config.layout_policy if layout_policy is None else layout_policy
        # A layout remembers headings: requests share it.
        self._layout = functools.lru_cache(8)(functools.partial(Layout, policy, self.tokenizer.encode))

    def generate(
        self,
        prompt: str | None = None,
        prompt_tokens: Iterable[int] | None = None,
        corpus: Any = None,
        config: GenerationConfig | None = None,
        title: str | None = None,
        priority: int = 0,
        on_link: OnLink | None = None,
    ) -> GenerationResult:
        """Write to the end; see `Runtime.generate`."""
        check_on_link(on_link)
        config = config or self.default_config()
        request = self.new_request(prompt, prompt_tokens, corpus, config, title, interactive=on_link is not None)
        running = queued(self.engine, lambda: self.submit(request, priority))
        for _ in self.engine.run(running.job, on_link):
            pass
        return running.result()

    def stream(
        self,
        prompt: str | None = None,
        prompt_tokens: Iterable[int] | None = None,
        corpus: Any = None,
        config: GenerationConfig | None = None,
        title: str | None = None,
        priority: int = 0,
        on_link: OnLink | None = None,
    ) -> Generator[Event, None, None]:
        """Write, telling each event as it happens. Arguments are checked at once; closing the iterator cancels."""
        check_priority(priority)
        check_on_link(on_link)
        events: list[Event] = []
        config = config or self.default_config()
        interactive = on_link is not None
        request = self.new_request(prompt, prompt_tokens, corpus, config, title, events.append, interactive)
        return self._stream(request, events, priority, on_link)

    def _stream(
        self, request: Request, events: list[Event], priority: int, on_link: OnLink | None
    ) -> Generator[Event, None, None]:
        # Queued by the first `next`, so that an iterator dropped before that leaves nothing behind.
        running = queued(self.engine, lambda: self.submit(request, priority))
        for _ in self.engine.run(running.job, on_link):
            while events:  # another thread's step may tell more meanwhile
                yield events.pop(0)
        yield Done(running.result())

    def default_config(self) -> GenerationConfig:
        """The defaults, as far as the model's length and the tokenizer's EOS allow.

        Beside a tokenizer that has ids the model does not know, no token ends a document: it is not the model's, and
        prompts can only be given as ids.
        """
        config, vocab_size = GenerationConfig(), self.model.config.vocab_size
        eos = config.eos_token_id if self.tokenizer.eos_token_id is None else self.tokenizer.eos_token_id
        if (self.tokenizer.vocab_size or 0) > vocab_size:
            eos = min(eos, vocab_size)
        longest = min(config.max_context_length, self.model.config.max_seq_len)
        return config.with_overrides(max_context_length=longest, eos_token_id=eos)

    @functools.cached_property
    def layout(self) -> Layout:
        """What stands around the documents of a request that gives no settings."""
        return self._layout(self.default_config().eos_token_id)

    def start(
        self,
        prompt: str | None,
        prompt_tokens: Iterable[int] | None,
        corpus: Any,
        config: GenerationConfig,
        title: str | None = None,
        priority: int = 0,
    ) -> Running:
        """Check a request and queue it in the engine.

        Raises:
            ConfigError, CorpusError: an argument does not fit; QueueFullError: the engine's queue is full.
        """
        return self.submit(self.new_request(prompt, prompt_tokens, corpus, config, title), priority)

    def submit(self, request: Request, priority: int = 0) -> Running:
        """Queue a request in the engine.

        Raises:
            QueueFullError: the engine's queue is full; ConfigError: priority is no integer.
        """
        if request.config.num_beams == 1:
            return self._submit(request, LinkFollower(request).write_root(), priority)
        search, beams = BeamSearch(request), request.config.num_beams
        need = beams * self._need(request.config)
        job = self.engine.submit(search.run(), search.window, request.trace, need, priority, beams)
        return Running(request, job, time.perf_counter(), search)

    def submit_score(self, request: Request, priority: int) -> Running:
        """Queue a request that says how likely its prompt is, and writes nothing; its settings are those of `scoring`.

        Raises: as for `submit`.
        """
        return self._submit(request, LinkFollower(request).score_root(), priority)

    def _submit(self, request: Request, work: Work, priority: int) -> Running:
        job = self.engine.submit(work, request.context.window, request.trace, self._need(request.config), priority)
        return Running(request, job, time.perf_counter())

    def new_request(
        self,
        prompt: str | None,
        prompt_tokens: Iterable[int] | None,
        corpus: Any,
        config: GenerationConfig,
        title: str | None = None,
        listener: Callable[[Event], None] | None = None,
        interactive: bool = False,
        number: int = 0,
    ) -> Request:
        """Check a request's arguments, and open its root. For `interactive` and `number` see Request.

        Raises:
            ConfigError, CorpusError: an argument does not fit.
        """
        config = fit_config(config, self.model)
        if interactive and config.num_beams > 1:
            raise ConfigError(f"links cannot be decided one by one in a beam search: num_beams is {config.num_beams}")
        most = self.engine.limits.max_running
        if config.num_beams > most:
            raise ConfigError(f"num_beams must be at most the runtime's max_running {most}, got {config.num_beams}")
        layout = self._layout(config.eos_token_id)
        tokens, title = self._root(prompt, prompt_tokens, title, layout)
        context = DocumentContext(
            config.max_context_length,
            config.max_auxiliary_documents,
            config.eviction_policy,
            config.max_tokens_per_document,
            config.max_new_tokens,
        )
        context.initialize_root(tokens, title)
        vocab_size = self.model.config.vocab_size
        source = CorpusSource(open_corpus(corpus), layout, vocab_size, config.title_resolution, self.link_format)
        check_corpus(source.corpus, layout, vocab_size, self.tokenizer)
        mask_type, links = self.model.config.mask_type, self.link_format
        return Request(
            config, context, source, layout, self.tokenizer, Trace(), listener, mask_type, interactive, number, links
        )

    def _root(
        self, prompt: str | None, prompt_tokens: Iterable[int] | None, title: str | None, layout: Layout
    ) -> tuple[list[int], str]:
        """The tokens and the title that the root starts with.

        Marks that the layout puts at a document's start are added where the prompt lacks them. The heading is
        added only for a title that is given; a prompt that starts with a heading has its title from there. Nothing
        is put before a prompt that starts with it.
        """
        vocab_size = self.model.config.vocab_size
        if (prompt is None) == (prompt_tokens is None):
            raise ConfigError("give prompt or prompt_tokens, and not both")
        if prompt is not None and not isinstance(prompt, str):
            raise ConfigError(f"prompt must be a string, got {type(prompt).__name__}")
        if prompt is not None and not is_unicode(prompt):
            raise ConfigError("prompt must be UTF-8 text: it holds half of a surrogate pair")
        if title is not None:
            check_title("title", title)
        if prompt is not None:
            check_encodes(self.tokenizer, vocab_size)
        tokens = layout.encode_start(prompt) if prompt is not None else _token_ids(prompt_tokens)
        tokens = layout.begin(title, tokens)
        if layout.has_marks or not tokens:
            check_separator(layout, vocab_size)
        # A document that would start from nothing starts from the document separator.
        tokens = tokens or [layout.eos_token_id]
        wrong = next((token for token in tokens if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise ConfigError(f"prompt tokens must be in [0, {vocab_size}), got {wrong}")
        if title is None and layout.has_heading:
            text = self.tokenizer.decode([token for token in tokens if token != layout.eos_token_id])
            title = heading_title(text)
        return tokens, title or ""

    def _need(self, config: GenerationConfig) -> int:
        """Slots that a request may fill: its window, what documents in progress reserve, and rounding."""
        reserved = min(config.max_tokens_per_document, config.max_context_length) * (config.max_link_depth + 1)
        rounding = self.engine.store.arena.allocator.block * (config.max_auxiliary_documents + 1)
        return config.max_context_length + reserved + rounding


def _token_ids(tokens: Any) -> list[int]:
    """A flat list of ints from a list, an array or a tensor ([T] or [1, T])."""
    given = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    if not isinstance(given, Iterable):
        raise ConfigError(f"prompt_tokens must be a flat sequence of integers, got {given!r}")
    values = list(given)
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if not all(isinstance(value, Integral) and not isinstance(value, bool) for value in values):
        raise ConfigError(f"prompt_tokens must be a flat sequence of integers, got {str(values)[:80]}")
    return [int(value) for value in values]
