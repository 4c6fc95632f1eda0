"""One request of the command line: asked of any `Backend`, and followed to its result."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from ds2ds.cli.rendering import Renderer
from ds2ds.cli.summary import count
from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.generation.events import Done, Event, TokenWritten

if TYPE_CHECKING:
    from ds2ds.backend import Backend
    from ds2ds.documents.generation_result import GenerationResult
    from ds2ds.generation.choices import OnLink

_HEADING_ALONE = re.compile(r"# [^\n]+\n*")


def start(
    backend: Backend,
    prompt: str,
    title: str | None,
    corpus: DocumentCorpus | None,
    settings: dict[str, Any],
    on_link: OnLink | None,
) -> Iterator[Event]:
    """The events of the request, which begins when the first is read.

    Args:
        prompt: where documents have headings, one that is only a heading is completed by the blank line below it.
        settings: fields of GenerationConfig.
        on_link: asked about links; a backend that cannot ask refuses it.

    Raises:
        ConfigError: the backend does not take the request.
    """
    if title is None and backend.limits.has_headings and _HEADING_ALONE.fullmatch(prompt):
        prompt = prompt.rstrip("\n") + "\n\n"
    asked: dict[str, Any] = {} if on_link is None else {"on_link": on_link}
    return backend.stream(prompt, corpus=corpus, title=title, **asked, **settings)


def follow(events: Iterator[Event], renderer: Renderer | None) -> tuple[GenerationResult, int]:
    """The result, and how many tokens were written. Interrupted, what was written so far stays shown."""
    written = 0
    try:
        for event in events:
            if isinstance(event, Done):
                return event.result, written
            written += isinstance(event, TokenWritten)
            if renderer is not None:
                renderer.show(event)
    except KeyboardInterrupt:
        if renderer is not None:
            renderer.finish()
            renderer = None
        sys.stderr.write(f"interrupted after {count(written, 'token')}\n")
        raise typer.Exit(130) from None
    finally:
        if renderer is not None:
            renderer.finish()
    raise RuntimeError("the stream ended without a result")
