"""The recursion itself: what the stream tells of it, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from scripted import Texts, encode, follow, small_runtime

from ds2ds import DocumentClosed, DocumentOpened, Done, LinkClosed, TokenWritten


def story(prompt: str, corpus: Any = None, **options: Any) -> list[str]:
    """The events of a run in short, tokens written one after the other in one document joined."""
    told: list[str] = []
    for event in small_runtime().stream(prompt, corpus=corpus, **options):
        match event:
            case DocumentOpened():
                told.append(f"open {event.title} {event.source} {event.depth} {event.parent} {event.text!r}")
            case TokenWritten():
                start = f"write {event.title}: "
                if told[-1].startswith(start):
                    told[-1] += event.text
                else:
                    told.append(start + event.text)
            case LinkClosed():
                told.append(f"link {event.title} [{event.text}]({event.target}) {event.position} {event.outcome}")
            case DocumentClosed():
                told.append(f"close {event.title} {event.finish_reason}")
            case Done():
                told.append("done")
    return told


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Any:
    def script(texts: Mapping[str, str]) -> None:
        follow(monkeypatch, texts)

    return script


def test_the_prompts_links_come_before_the_root_is_written(writes: Any) -> None:
    writes({"": " more", "Q": "on Q"})
    assert story("[a](A) [q](Q)", Texts({"A": "about A"})) == [
        "open root generated 0 None '[a](A) [q](Q)'",
        "link root [a](A) 5 corpus",
        "open A corpus 1 root 'about A'",
        "close A None",
        "link root [q](Q) 10 generated",
        "open Q generated 1 root ''",
        "write Q: on Q",
        "close Q eos",
        "write root:  more",
        "close root eos",
        "done",
    ]


def test_a_document_pauses_while_its_targets_are_written(writes: Any) -> None:
    writes({"": " [q](Q) z", "Q": " [r](R) y", "R": "x"})
    assert story("p", max_link_depth=2) == [
        "open root generated 0 None 'p'",
        "write root:  [q](Q)",
        "link root [q](Q) 6 generated",
        "open Q generated 1 root ''",
        "write Q:  [r](R)",
        "link Q [r](R) 6 generated",
        "open R generated 2 Q ''",
        "write R: x",
        "close R eos",
        "write Q:  y",
        "close Q eos",
        "write root:  z",
        "close root eos",
        "done",
    ]


def test_a_corpus_documents_links_are_resolved_before_it_closes(writes: Any) -> None:
    writes({"": " z"})
    corpus = Texts({"A": "to [b](B), [c](C)", "B": "about B", "C": "to [b](B)"})
    assert story("[a](A)", corpus, max_link_depth=3) == [
        "open root generated 0 None '[a](A)'",
        "link root [a](A) 5 corpus",
        "open A corpus 1 root 'to [b](B), [c](C)'",
        f"link A [b](B) {len(encode('to [b](B), '))} corpus",
        "open B corpus 2 A 'about B'",
        "close B None",
        f"link A [c](C) {len(encode('to [b](B), [c](C)'))} corpus",
        "open C corpus 2 A 'to [b](B)'",
        f"link C [b](B) {len(encode('to [b](B)'))} in_view",
        "close C None",
        "close A None",
        "write root:  z",
        "close root eos",
        "done",
    ]


def test_links_that_are_not_followed_are_told_and_those_of_corpus_documents_at_full_depth_are_not(writes: Any) -> None:
    writes({"": " [q](Q) [x]() z", "Q": " [r](R) y"})
    told = story("[a](A)", Texts({"A": "to [b](B)"}))
    assert [line for line in told if line.startswith("link")] == [
        "link root [a](A) 5 corpus",
        f"link root [q](Q) {5 + len(encode(' [q](Q)'))} generated",
        "link Q [r](R) 6 not_followed",
        f"link root [x]() {5 + len(encode(' [q](Q) [x]()'))} not_followed",
    ]


def test_a_document_that_returns_is_not_opened_again(writes: Any) -> None:
    writes({"": " [a](A) 1 [b](B) 2 [a](A) 3"})
    told = story("p", Texts({"A": "about A", "B": "about B"}), max_auxiliary_documents=1)
    assert [line.split(" ")[:2] for line in told if line.startswith("open")] == [
        ["open", "root"],
        ["open", "A"],
        ["open", "B"],
    ]
    assert [line.rpartition(" ")[2] for line in told if line.startswith("link")] == ["corpus"] * 3


def test_markup_in_the_text_and_title_of_a_link(writes: Any) -> None:
    link = r" [a *b*](<C (x)>)"
    writes({"": f"{link} z"})
    assert f"link root [a *b*](C (x)) {1 + len(encode(link))} corpus" in story("p", Texts({"C (x)": "about C"}))
