"""Cost of link detection per token, on one document of the packaged corpus's text.

    python -m pytest bench/test_links_bench.py --benchmark-only

`us_per_token` in the extra info is the median over rounds; it should stay under 3 and not grow with the length.
"""

from __future__ import annotations

from typing import Any

import pytest

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.documents.link_detector import LinkDetector, LinkStream

LENGTHS = (100, 1_000, 10_000, 100_000)


@pytest.fixture(scope="module")
def detector() -> LinkDetector:
    return LinkDetector()


@pytest.fixture(scope="module")
def tokens(detector: LinkDetector) -> list[int]:
    """Bodies of packaged documents, one after the other with a blank line between, as one document."""
    paragraph_end = detector.tokenizer.encode("\n\n")
    ids: list[int] = []
    with DocumentCorpus("demo") as corpus:
        for title in list(corpus.titles())[1000:]:
            body = corpus.get_document(title)
            if body is None:
                raise ValueError(f"the packaged corpus lists {title!r} but does not hold it")
            ids += body.tolist() + paragraph_end
            if len(ids) >= max(LENGTHS):
                return ids
    raise ValueError(f"the packaged corpus has only {len(ids)} tokens")


def feed(stream: LinkStream, ids: list[int]) -> int:
    return sum(len(stream.feed(token)) for token in ids)


def measure(benchmark: Any, detector: LinkDetector, ids: list[int]) -> None:
    benchmark.group = "links, per token"
    # Enough rounds for a median, of the same number of tokens at every length.
    rounds = max(5, 500_000 // len(ids))
    links = benchmark.pedantic(feed, setup=lambda: ((detector.stream(), ids), {}), rounds=rounds, warmup_rounds=2)
    benchmark.extra_info["tokens"] = len(ids)
    benchmark.extra_info["links"] = links
    benchmark.extra_info["us_per_token"] = round(benchmark.stats.stats.median / len(ids) * 1e6, 3)


@pytest.mark.parametrize("length", LENGTHS)
def test_text(benchmark: Any, detector: LinkDetector, tokens: list[int], length: int) -> None:
    measure(benchmark, detector, tokens[:length])


@pytest.mark.parametrize("length", LENGTHS)
def test_text_after_an_open_bracket(benchmark: Any, detector: LinkDetector, tokens: list[int], length: int) -> None:
    """The worst real case: one paragraph without end, its first bracket never closed."""
    newlines = set(detector.tokenizer.encode("\n") + detector.tokenizer.encode("\n\n"))
    open_bracket = detector.tokenizer.encode("![")
    measure(benchmark, detector, open_bracket + [token for token in tokens if token not in newlines][:length])
