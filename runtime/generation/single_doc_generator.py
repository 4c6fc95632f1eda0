"""Writing one document: decode a token, append it, until something ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ds2ds.documents.document import Document
from ds2ds.documents.document_context import DocumentContext
from ds2ds.documents.generation_result import Trace
from ds2ds.documents.layout import Layout
from ds2ds.engine.engine import Engine
from ds2ds.engine.work import Compute, Work
from ds2ds.errors import ConfigError
from ds2ds.generation.corpus_source import CorpusSource
from ds2ds.generation.events import TokenWritten
from ds2ds.generation.generation_config import GenerationConfig
from ds2ds.generation.request import Request, fit_config
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.tokenizer import TextStream, as_tokenizer

AfterToken = Callable[[int], Work | None]
"""What is to be done after a token, before the next one: follow the links that close in it. None: nothing."""


def no_links(token: int) -> None:
    """For documents whose links are not looked at."""


def write_document(request: Request, document: Document, after_token: AfterToken = no_links) -> Work:
    """Write the context's current document up to its end, and set its finish reason; it is left open."""
    config = request.config
    sampling = request.sampling(document)
    text = TextStream(request.tokenizer)
    told = request.listener is not None or bool(config.stop)
    recent = ""  # what was written last, where a stop string may have begun
    longest = max(map(len, config.stop), default=0)
    written = left = 0
    next_token = Compute(document, sampling)
    ends, eos, listener = config.stop_token_ids, None if config.ignore_eos else config.eos_token_id, request.listener
    while True:
        if not left:
            if (reason := limit_reached(request, document, written)) is not None:
                break
            left = tokens_left(request, document, written)
        token, logprob, top = yield next_token
        left -= 1
        stops = token in ends
        if stops:
            document.text_end = len(request.text(document))
        if top:
            document.alternatives[len(document.tokens)] = top
        document.append(token, logprob)
        written += 1
        piece = text.feed(token) if told and not stops else ""
        if listener is not None:
            listener(TokenWritten(request.title(document), token, piece, logprob, top))
        if stops or token == eos:
            reason = "stop" if stops else "eos"
            break
        if config.stop:
            recent += piece
            found = [recent.find(stop) for stop in config.stop if stop in recent]
            if found:
                # Counted from the end: a character may begin in the prompt and end in what is written.
                after = len(recent) - min(found) + len(text.finish())
                document.text_end = len(request.text(document)) - after
                reason = "stop"
                break
            recent = recent[-longest:]
        work = after_token(token)
        if work is not None:
            yield from work
            left = 0  # another window
    document.finish_reason = reason
    document.truncated = reason == "max_tokens_per_document"


def limit_reached(request: Request, document: Document, written: int) -> str | None:
    """The limit that forbids one more token, after making room in the window."""
    config, context = request.config, request.context
    if written >= config.max_new_tokens:
        return "max_new_tokens"
    if len(document.tokens) >= config.max_tokens_per_document:
        return "max_tokens_per_document"
    if context.total_tokens < config.max_context_length:
        return None
    context.evict_if_needed(1)
    return None if context.total_tokens < config.max_context_length else "context_full"


def tokens_left(request: Request, document: Document, written: int) -> int:
    """How many tokens may be written before a limit can be reached, while the window has the same documents."""
    config = request.config
    return min(
        config.max_new_tokens - written,
        config.max_tokens_per_document - len(document.tokens),
        config.max_context_length - request.context.total_tokens,
    )


class SingleDocumentGenerator:
    """Writes one document without looking at its links.

    Args:
        tokenizer: as `ds2ds.tokenizer.as_tokenizer` takes it (stop strings need text); None: GPT-2.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self.tokenizer = as_tokenizer(tokenizer)

    def generate(self, model: DS2DSModel, context: DocumentContext, config: GenerationConfig) -> int:
        """Write the context's current document to its end, and close it.

        The documents that it was granted are read as they stand. Its finish reason is set on the document. The limits
        are the config's, in place of those that the context was made with.

        Returns:
            The number of tokens written.

        Raises:
            RuntimeError: no document is being written; ConfigError: a setting does not fit the model, or num_beams is
                above 1.
        """
        document = context.current
        if config.num_beams > 1:
            raise ConfigError(
                f"num_beams must be 1 for a document in a given context, got {config.num_beams}: search with "
                "Runtime.generate, where max_link_depth=0 looks at no links"
            )
        config = fit_config(config, model)
        longest = min(config.max_tokens_per_document, config.max_context_length)
        context.max_context_length = config.max_context_length
        document.capacity = max(len(document.tokens), longest)
        layout = Layout("null", self.tokenizer.encode, config.eos_token_id)
        source = CorpusSource(None, layout, model.config.vocab_size)
        request = Request(config, context, source, layout, self.tokenizer, Trace())
        before = len(document.tokens)
        engine = Engine(model)
        for _ in engine.run(engine.submit(write_document(request, document), context.window, request.trace)):
            pass
        context.complete_current_document()
        return len(document.tokens) - before
