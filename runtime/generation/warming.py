"""Prefilling documents of a corpus before anyone asks for them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ds2ds.documents.content import content_of
from ds2ds.documents.document import Document
from ds2ds.documents.generation_result import Trace
from ds2ds.engine.engine import Engine
from ds2ds.engine.work import Work
from ds2ds.errors import ArenaFullError
from ds2ds.generation.link_following import LinkFollower
from ds2ds.generation.request import Request


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
    engine: Engine,
    titles: Sequence[str],
    new_request: Callable[[], Request],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Warmed:
    """Compute documents one after the other, until the arena is full of them.

    Args:
        new_request: makes a request with an empty root; each document is brought in as its first link.
        progress: told (documents done, of how many).

    Raises:
        CorpusError: a title is not in the corpus, or its document is empty.
    """
    started = time.perf_counter()
    window: list[Document] = []
    trace = Trace()

    def prefill_all() -> Work:
        for title in titles:
            # Kept in the job's window, and so pinned: what does not fit beside the earlier ones ends the run.
            window.append((yield from LinkFollower(new_request()).prefill(title)))
            progress(len(window), len(titles))

    job = engine.submit(prefill_all(), window, trace)
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
