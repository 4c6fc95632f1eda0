"""What a front end needs of whatever generates: one protocol for callers that wait, and its twin for asyncio.

`ds2ds.Runtime` and `ds2ds.AsyncRuntime` are these; the command line, the server and every adapter use nothing else, so
that anything with these methods can stand behind them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from ds2ds.analysis.attention_map import AttentionMap
from ds2ds.documents.generation_result import GenerationResult
from ds2ds.documents.link_formats import LinkFormat
from ds2ds.generation.choices import Answer
from ds2ds.generation.events import Event
from ds2ds.generation.generation_config import GenerationConfig


@dataclass(frozen=True)
class BackendLimits:
    """What a backend can do at most.

    Attributes:
        vocab_size: token ids are below it.
        max_context_length: most tokens in view of a request.
        eos_token_id: ends a document by default; None: the tokenizer has none.
        arena_tokens: most tokens whose keys and values are kept, of all requests together.
        max_running: most requests that run at a time.
        max_queue: most requests that wait.
        has_headings: documents start with "# {title}", as the model was trained.
        has_marks: EOS stands before a document, and is put before a prompt that lacks it.
    """

    vocab_size: int
    max_context_length: int
    eos_token_id: int | None
    arena_tokens: int
    max_running: int
    max_queue: int
    has_headings: bool
    has_marks: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class BackendUsage:
    """What a backend does at this moment.

    Attributes:
        running, waiting: requests that run, and that wait to start.
        arena_tokens: slots of the arena that hold something, or are reserved.
        documents: complete documents that the arena keeps for whoever reads them next, prompts among them.
        documents_dropped: how many of these had to go for others' room, since the start.
    """

    running: int
    waiting: int
    arena_tokens: int
    documents: int
    documents_dropped: int


class EventIterator(Protocol):
    """The events of one request. Closing it, or cancelling who reads it, cancels the request and frees what it held."""

    def __aiter__(self) -> AsyncIterator[Event]: ...

    def __anext__(self) -> Awaitable[Event]: ...

    async def aclose(self) -> None: ...


@runtime_checkable
class InteractiveEvents(EventIterator, Protocol):
    """What `AsyncBackend.stream(..., interactive=True)` gives, where a backend can ask about links."""

    async def answer(self, question: int, answer: Answer) -> None:
        """Let a request go on that waits at LinkAsked.

        Raises:
            ConfigError: no question of that number is open.
        """
        ...


@runtime_checkable
class TellsAttention(Protocol):
    """A Backend that can say what tokens of its results read; see `ds2ds.Runtime.attention`."""

    def attention(
        self,
        result: GenerationResult,
        document: str | int | None = None,
        tokens: Any = None,
        *,
        per_token: bool = False,
        max_bytes: int = ...,
    ) -> AttentionMap: ...


@runtime_checkable
class AsyncTellsAttention(Protocol):
    """An AsyncBackend that can; see `TellsAttention`."""

    async def attention(
        self,
        result: GenerationResult,
        document: str | int | None = None,
        tokens: Any = None,
        *,
        per_token: bool = False,
        max_bytes: int = ...,
    ) -> AttentionMap: ...


class Texts(Protocol):
    """What both kinds of backend tell at once."""

    @property
    def limits(self) -> BackendLimits: ...

    @property
    def link_format(self) -> LinkFormat:
        """How links are written in what it reads and writes."""
        ...

    def default_config(self) -> GenerationConfig:
        """The settings of a request that gives none."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """The token ids of a text, as a prompt's are."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens; what is no UTF-8 becomes U+FFFD."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for.

        Raises:
            ConfigError: it is outside the vocabulary.
        """
        ...


@runtime_checkable
class Backend(Texts, Protocol):
    """Generates for callers that wait. Arguments, results and errors are those of `ds2ds.Runtime`.

    One that can ask about links takes `on_link` beside the overrides, as a Runtime does; one that cannot refuses it as
    it refuses what else it does not know.
    """

    def generate(
        self,
        prompt: str | None = None,
        prompt_tokens: Iterable[int] | None = None,
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        title: str | None = None,
        priority: int = 0,
        **overrides: Any,
    ) -> GenerationResult: ...

    def stream(
        self,
        prompt: str | None = None,
        prompt_tokens: Iterable[int] | None = None,
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        title: str | None = None,
        priority: int = 0,
        **overrides: Any,
    ) -> Iterator[Event]: ...

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        priority: int = 0,
        return_errors: bool = False,
        **overrides: Any,
    ) -> list[Any]: ...

    def score(
        self,
        prompts: Sequence[str | Sequence[int]],
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        priority: int = 0,
        return_errors: bool = False,
        **overrides: Any,
    ) -> list[Any]: ...


@runtime_checkable
class AsyncBackend(Texts, Protocol):
    """Generates for any number of tasks of an event loop at a time, as `ds2ds.AsyncRuntime` does."""

    async def generate(
        self,
        prompt: str | None = None,
        prompt_tokens: Iterable[int] | None = None,
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        title: str | None = None,
        priority: int = 0,
        wait: bool = True,
        **overrides: Any,
    ) -> GenerationResult: ...

    def stream(
        self,
        prompt: str | None = None,
        prompt_tokens: Iterable[int] | None = None,
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        title: str | None = None,
        priority: int = 0,
        wait: bool = True,
        **overrides: Any,
    ) -> EventIterator: ...

    async def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        priority: int = 0,
        return_errors: bool = False,
        **overrides: Any,
    ) -> list[Any]: ...

    async def score(
        self,
        prompts: Sequence[str | Sequence[int]],
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        priority: int = 0,
        return_errors: bool = False,
        **overrides: Any,
    ) -> list[Any]: ...

    def usage(self) -> BackendUsage:
        """May be called at any time, also while it works and after it was closed; never waits."""
        ...

    async def aclose(self, cancel: bool = False) -> None: ...
