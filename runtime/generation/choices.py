"""What a reader is asked at a link, and what may be answered."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ds2ds.errors import ConfigError
from ds2ds.generation.text_checks import check_text, check_title


@dataclass(frozen=True)
class LinkQuestion:
    """A link has closed that would be followed: what is to be done?

    Links that would not be followed in any case, as beyond max_link_depth, to an external address or to a document
    still being written, are not asked about.

    Attributes:
        number: of the questions before it in this request.
        request: index of the prompt, for `generate_batch`; else 0.
        parent: title of the document that has the link.
        text, target: the link as it stands there.
        position: index of the first token of the parent after it.
        title: of the document that it leads to.
        depth: of that document.
        outcome: what following would do: "in_view": read a document that is there; "corpus": fetch it; "generated":
            let the model write it. A document that was evicted comes back as what it was, "supplied" included.
        tokens: of that document, layout included; None if it is to be written.
        preview: the start of its text below the heading; empty if it is to be written.
    """

    number: int
    request: int
    parent: str
    text: str
    target: str
    position: int
    title: str
    depth: int
    outcome: str
    tokens: int | None
    preview: str


@dataclass(frozen=True)
class Follow:
    """Do what would be done if nobody asked."""


@dataclass(frozen=True)
class Skip:
    """Leave the link alone. A later link to the same title is asked about again."""


@dataclass(frozen=True)
class Quit:
    """End the request here: all its documents end as they stand, and are its result."""


@dataclass(frozen=True)
class Supply:
    """Let the parent read this text.

    It is laid out like a document of the corpus, cut at max_tokens_per_document, and its own links are followed, or
    asked about, as those of a corpus document are. From now on the title means this text in this request: a document
    of that title that was there leaves the view, as if evicted.

    Args:
        title: None: the title that the link leads to.

    Raises:
        ConfigError: the text or the title is blank or no UTF-8, or the title has more than one line.
    """

    text: str
    title: str | None = None

    def __post_init__(self) -> None:
        check_text("a supplied text", self.text)
        if self.title is not None:
            check_title("a supplied title", self.title)


Answer: TypeAlias = Follow | Skip | Supply | Quit
OnLink: TypeAlias = Callable[[LinkQuestion], Answer]
AsyncOnLink: TypeAlias = Callable[[LinkQuestion], Answer | Awaitable[Answer]]


def check_answer(answer: Any) -> Answer:
    """Raise ConfigError unless it is an answer."""
    if not isinstance(answer, Follow | Skip | Supply | Quit):
        raise ConfigError(f"the answer to a link must be Follow(), Skip(), Supply(text) or Quit(), got {answer!r}")
    return answer


def check_on_link(on_link: Any, may_be_async: bool = False) -> None:
    """Raise ConfigError unless it is None or a function that can be asked."""
    if on_link is not None and not callable(on_link):
        raise ConfigError(f"on_link must be a function that takes a LinkQuestion, got {on_link!r}")
    if inspect.iscoroutinefunction(on_link) and not may_be_async:
        raise ConfigError("on_link must not be async here: use it with an AsyncRuntime")
