"""Prefilling documents of a corpus before anyone asks for them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ds2ds.documents.content import content_of
from ds2ds.documents.document import Document
from ds2ds.documents.generation_result import Trace
from ds2ds.engine.engine import Engine
from ds2ds.engine.work import Work
from ds2ds.errors import ArenaFullError, ConfigError, CorpusError
from ds2ds.generation.corpus_source import open_corpus
from ds2ds.generation.generation_config import GenerationConfig
from ds2ds.generation.link_following import LinkFollower
from ds2ds.generation.linked_doc_generator import LinkedDocumentGenerator
from ds2ds.generation.request import Request
from ds2ds.generation.running import queued


@dataclass(frozen=True)
class Warmed:
    """What `Runtime.warm` did.

    Attributes:
        documents: titles whose document is in the arena now, in the order given.
        left_out: titles that found no room.
        tokens_prefilled, tokens_reused: computed now, and found there.
        seconds: wall time.
    """

    documents: list[str]
    left_out: list[str]
    tokens_prefilled: int
    tokens_reused: int
    seconds: float


def warm(
    generator: LinkedDocumentGenerator,
    titles: Iterable[str],
    corpus: Any,
    config: GenerationConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Warmed:
    """See `Runtime.warm`. Each document is brought in as the first link of a request with an empty root."""
    generator.engine.require_store("warm")
    opened = open_corpus(corpus)
    if opened is None:
        raise ConfigError("warm needs a corpus that has the titles, got None")
    if isinstance(titles, str) or not isinstance(titles, Iterable):
        raise ConfigError(f"titles must be a sequence of titles, got {titles!r}")
    wanted = list(dict.fromkeys(titles))
    missing = [title for title in wanted if not opened.has_document(title)]
    if missing:
        more = f", and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise CorpusError(f"the corpus has no documents titled {missing[:5]}{more}")
    if config.max_link_depth == 0:
        raise ConfigError("max_link_depth must be at least 1 for documents to be brought in, got 0")
    config = config.with_overrides(allow_corpus_fallback=False, seed=0)
    new_request = partial(generator.new_request, None, (), opened, config)
    return _prefill(generator.engine, wanted, new_request, progress or (lambda done, total: None))


def _prefill(
    engine: Engine, titles: Sequence[str], new_request: Callable[[], Request], progress: Callable[[int, int], None]
) -> Warmed:
    """Compute documents one after the other, until the arena is full of them."""
    started = time.perf_counter()
    window: list[Document] = []
    trace = Trace()

    def prefill_all() -> Work:
        for title in titles:
            # Kept in the job's window, and so pinned: what does not fit beside the earlier ones ends the run.
            window.append((yield from LinkFollower(new_request()).prefill(title)))
            progress(len(window), len(titles))

    job = queued(engine, lambda: engine.submit(prefill_all(), window, trace))
    with contextlib.suppress(ArenaFullError):
        for _ in engine.run(job):
            pass
    # Beside other requests even these may have been dropped again.
    here = {title for title, document in zip(titles, window, strict=False) if engine.store.holds(content_of(document))}
    return Warmed(
        [title for title in titles if title in here],
        [title for title in titles if title not in here],
        trace.tokens_prefilled,
        trace.tokens_reused,
        time.perf_counter() - started,
    )
