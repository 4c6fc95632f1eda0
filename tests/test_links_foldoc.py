"""Every link of the packaged corpus, token by token, against the record its converter wrote."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.documents.link_detector import LinkDetector

RECORD = Path(__file__).parent / "data" / "foldoc_links.jsonl.gz"
LEAST_DOCUMENTS, LEAST_LINKS = 11_800, 48_000

Links = list[tuple[int, str]]


@pytest.fixture(scope="module")
def recorded() -> dict[str, Links]:
    """title -> [(offset of the byte after `)` in the body's UTF-8, target)]"""
    with gzip.open(RECORD, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return {row["title"]: [(end, target) for end, target in row["links"]] for row in rows}


@pytest.fixture(scope="module")
def found() -> dict[str, Links]:
    """The same as the stream finds it; each link must come from the token in which its `)` lies."""
    detector = LinkDetector()
    links: dict[str, Links] = {}
    with DocumentCorpus("demo") as corpus:
        for title in corpus.titles():
            tokens = corpus.get_document(title)
            assert tokens is not None
            stream, start, links[title] = detector.stream(), 0, []
            for token in tokens.tolist():
                end = start + len(detector.tokenizer.token_bytes(token))
                for link in stream.feed(token):
                    assert start < link.end <= end, (title, link, start, end)
                    links[title].append((link.end, link.target))
                start = end
    return links


def test_record_is_of_the_packaged_corpus(recorded: dict[str, Links], found: dict[str, Links]) -> None:
    assert recorded.keys() == found.keys()
    assert len(recorded) >= LEAST_DOCUMENTS
    assert sum(map(len, recorded.values())) >= LEAST_LINKS


def test_every_link_is_found_once_and_no_other(recorded: dict[str, Links], found: dict[str, Links]) -> None:
    differing = [(title, links, found[title]) for title, links in recorded.items() if links != found[title]]
    assert not differing, differing[:3]


def test_every_target_is_a_document(found: dict[str, Links]) -> None:
    targets = {target for links in found.values() for _, target in links}
    assert targets <= found.keys()


def test_one_token_of_each_link_ends_it(found: dict[str, Links]) -> None:
    """The detector that looks at one position at a time agrees, on a sample of documents."""
    detector = LinkDetector()
    titles = [title for title in found if found[title]][::400]
    with DocumentCorpus("demo") as corpus:
        for title in titles:
            tokens = corpus.get_document(title)
            assert tokens is not None
            detected = [detector.detect_link_at_position(tokens, position) for position in range(len(tokens))]
            assert [link.target for link in detected if link] == [target for _, target in found[title]]
