"""What /metrics tells, in Prometheus' format."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ds2ds.backend import BackendUsage
from ds2ds.documents.generation_result import GenerationResult
from ds2ds.generation.events import Event, TokenWritten

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SOURCES = ("generated", "supplied")
_WHOLE = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """Counters of one server.

    Args:
        usage: what the backend does at this moment; None while there is none.
    """

    def __init__(self, usage: Callable[[], BackendUsage | None]) -> None:
        self.registry = registry = CollectorRegistry()
        registry.register(_Usage(usage))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"ds2ds_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"ds2ds_{name}", text, buckets=buckets, registry=registry)

        self.answers = counter("http_requests", "Answers, by path and status", "path", "status")
        self.disconnects = counter("disconnects", "Requests whose client went before the end")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self.tokens_written = counter("tokens_written", "Tokens written, those of linked documents included")
        self.tokens_reused = counter("tokens_reused", "Tokens of prompts and documents that were found computed")
        self.documents = counter("documents_linked", "Documents that links brought in, by where from", "source")
        self.documents_reused = counter("documents_reused", "Documents that were found computed")
        self.evictions = counter("view_evictions", "Documents that left a request's view for others")
        self.first = histogram("time_to_first_token_seconds", "From the request to a text's first token", _FIRST)
        self.per_token = histogram("time_per_token_seconds", "Between tokens, the mean of a text", _PER_TOKEN)
        self.whole = histogram("request_seconds", "From a request to the end of its answer", _WHOLE)

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def ended(self, result: GenerationResult) -> None:
        """Count what a choice came to."""
        trace = result.trace
        self.tokens_reused.inc(trace.tokens_reused)
        self.documents_reused.inc(trace.documents_reused)
        self.evictions.inc(trace.evictions)
        for document in result.auxiliary_documents:
            # A document's source may be a file's path: that is the corpus, too, and no label of its own.
            self.documents.labels(document.source if document.source in _SOURCES else "corpus").inc()


class TokenClock:
    """When the tokens of a choice come.

    Args:
        started: when its request came, by `time.perf_counter`.
    """

    def __init__(self, metrics: Metrics, started: float) -> None:
        self._metrics, self._started = metrics, started
        self._first: float | None = None
        self._tokens = 0

    def tick(self, event: Event) -> None:
        if not isinstance(event, TokenWritten):
            return
        self._last = time.perf_counter()
        self._metrics.tokens_written.inc()
        self._tokens += 1
        if self._first is None:
            self._first = self._last
            self._metrics.first.observe(self._first - self._started)

    def stop(self) -> None:
        """The choice has ended."""
        if self._first is not None and self._tokens > 1:
            self._metrics.per_token.observe((self._last - self._first) / (self._tokens - 1))


class CountAnswers:
    """Middleware: counts the answers to known paths by their status."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.answers.labels(path, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted)


class _Usage:
    """Asks the backend whenever somebody looks."""

    def __init__(self, usage: Callable[[], BackendUsage | None]) -> None:
        self._usage = usage

    def describe(self) -> list[Metric]:
        """Nothing is asked when this is registered: the names are told when there is something to tell."""
        return []

    def collect(self) -> Iterator[Metric]:
        usage = self._usage()
        if usage is None:
            return
        for name, text, value in (
            ("requests_running", "Texts that are being written", usage.running),
            ("requests_waiting", "Texts that wait to be begun", usage.waiting),
            ("arena_tokens_used", "Slots of the KV arena that hold a token or are reserved", usage.arena_tokens),
            ("documents_kept", "Complete documents in the arena", usage.documents),
        ):
            yield GaugeMetricFamily(f"ds2ds_{name}", text, value=value)
        yield CounterMetricFamily(
            "ds2ds_arena_evictions", "Documents that left the arena for others", value=usage.documents_dropped
        )
