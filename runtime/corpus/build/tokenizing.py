"""The costly part of writing a corpus, in processes: load a document, tokenize its body, find its links."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from ds2ds.corpus.build.interrupts import interrupts_held_back
from ds2ds.corpus.statistics import LinkTarget, links_in
from ds2ds.documents.link_formats import LinkFormat, link_format
from ds2ds.errors import ConfigError, CorpusError
from ds2ds.tokenizer import Tokenizer, as_tokenizer

_BATCH = 32


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """A document to be written: its title (one line) and its body, with links of the corpus' format: in markdown,
    ``[text](Title)``."""

    title: str
    body: str


@dataclass(frozen=True, slots=True)
class TokenizedDocument:
    """A document's title, its body's tokens ([n] uint32) and what its links lead to, in order."""

    title: str
    tokens: npt.NDArray[np.uint32]
    targets: tuple[LinkTarget, ...]


class _Worker:
    def __init__(self, tokenizer: Tokenizer, load: Callable[[Any], SourceDocument] | None, links: LinkFormat) -> None:
        self.encode = tokenizer.encode
        self.load = load
        self.links = links

    def __call__(self, item: Any) -> TokenizedDocument:
        document = item if self.load is None else self.load(item)
        if not document.body:
            raise CorpusError(f"document {document.title!r} has an empty body")
        tokens = np.array(self.encode(document.body), dtype=np.uint32)
        return TokenizedDocument(document.title, tokens, links_in(document.body, document.title, self.links))


_worker: _Worker | None = None  # of this process, where it is one of a pool


def _start(load: Callable[[Any], SourceDocument] | None, link_format_name: str) -> None:
    global _worker
    _worker = _Worker(as_tokenizer(None), load, link_format(link_format_name))


def _work(items: list[Any]) -> list[TokenizedDocument]:
    if _worker is None:
        raise RuntimeError("_work runs in the processes that _start prepared")
    return [_worker(item) for item in items]


def tokenized(
    items: Iterable[Any],
    tokenizer_name: str,
    tokenizer: Any,
    load: Callable[[Any], SourceDocument] | None,
    workers: int,
    link_format_name: str,
) -> Iterator[TokenizedDocument]:
    """The documents of `items` in order, tokenized, by `workers` processes (1: in this one). See ``write_corpus``.

    Raises:
        ConfigError: an unknown tokenizer or link format, a custom tokenizer with several workers, or workers < 1.
        CorpusError: a document has an empty body.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    if tokenizer is None and tokenizer_name != "gpt2":
        raise ConfigError(f"only 'gpt2' is packaged: pass the tokenizer called {tokenizer_name!r} itself")
    if workers == 1:
        yield from map(_Worker(as_tokenizer(tokenizer), load, link_format(link_format_name)), items)
        return
    if tokenizer is not None:
        raise ConfigError(f"a tokenizer of your own needs workers=1, got workers={workers}")
    source = iter(items)
    batches = iter(lambda: list(islice(source, _BATCH)), [])
    first = list(islice(batches, workers))
    if not first:
        return
    with contextlib.ExitStack() as running:
        with interrupts_held_back():
            # Spawned, not forked: the caller may have threads (torch starts some), which a fork would tear.
            context = multiprocessing.get_context("spawn")
            # No more of them than there is work for.
            pool = running.enter_context(context.Pool(len(first), _start, (load, link_format_name)))
        pending: deque[Any] = deque()
        waiting = chain(first, batches)
        while True:
            # Few batches ahead, so that a large source is not read into memory.
            for batch in islice(waiting, 4 * len(first) - len(pending)):
                pending.append(pool.apply_async(_work, (batch,)))
            if not pending:
                return
            yield from pending.popleft().get()
