"""From a prompt to a linked set of documents. Every result is also held to the dense oracle (see scripted.run)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripted import EOS, TOKENIZER, Texts, decode, encode, follow, grants, run, small_model, small_runtime

from ds2ds import ConfigError, CorpusError, GenerationConfig, LinkClosed, LinkedDocumentGenerator
from ds2ds.corpus.build.writer import SourceDocument, write_corpus

Writes = Callable[[Mapping[str, str | Sequence[int]]], None]


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    """Say what each document writes; the root is ""."""
    return lambda script: follow(monkeypatch, script)


def after(text: str) -> int:
    """The position of a grant whose link closes in the last token of this text."""
    return len(encode(text))


def summary(result: Any) -> list[tuple[str, str, int, str | None]]:
    return [(d.title, d.source, d.depth, d.parent_title) for d in result.get_all_documents()]


def outcomes(prompt: str, corpus: Any = None, **options: Any) -> list[tuple[str, str, str]]:
    """(target, outcome, reason) of every link of a run."""
    options = {"max_new_tokens": 300, "max_tokens_per_document": 300, **options}
    events = small_runtime().stream(prompt, corpus=corpus, **options)
    return [(e.target, e.outcome, e.reason) for e in events if isinstance(e, LinkClosed)]


# Where targets come from


def test_no_links(writes: Writes) -> None:
    writes({"": " and no more"})
    result = run("text", Texts({"A": "about A"}))
    root = result.root_document
    assert summary(result) == [("root", "generated", 0, None)]
    assert root.tokens == [*encode("text"), *encode(" and no more"), EOS] and root.text == "text and no more"
    assert (root.is_root, root.finish_reason, root.grants) == (True, "eos", [])
    written = after(" and no more")
    trace = result.trace
    assert (trace.links_found, trace.evictions) == (0, 0)
    assert (trace.forward_passes, trace.tokens_prefilled, trace.tokens_decoded) == (1 + written, 4, written)


def test_a_link_into_the_corpus(writes: Writes) -> None:
    corpus = Texts({"A": "about A"})
    writes({"": "see [a](A). More"})
    result = run("p", corpus)
    assert summary(result) == [("root", "generated", 0, None), ("A", "corpus", 1, "root")]
    assert grants(result.root_document) == [(after("psee [a](A)."), "A", None)]
    document = result.auxiliary_documents[0]
    assert document.tokens == encode("about A") and document.text == "about A"
    assert (document.finish_reason, document.truncated, document.is_root) == (None, False, False)
    assert np.isnan(document.token_logprobs).all()
    trace = result.trace
    assert (trace.links_found, trace.links_from_corpus, trace.links_generated) == (1, 1, 0)
    assert (trace.tokens_prefilled, trace.tokens_decoded) == (1 + 7, after("see [a](A). More"))


def test_a_link_that_is_written(writes: Writes) -> None:
    writes({"": "see [q](Q). More", "Q": "on Q"})
    result = run("p")
    assert summary(result) == [("root", "generated", 0, None), ("Q", "generated", 1, "root")]
    assert grants(result.root_document) == [(after("psee [q](Q)."), "Q", None)]
    document = result.auxiliary_documents[0]
    # Without a layout it would start from nothing, so it starts from EOS; and EOS ended it.
    assert document.tokens == [EOS, *encode("on Q"), EOS]
    assert (document.text, document.finish_reason) == ("on Q", "eos")
    assert (result.trace.links_found, result.trace.links_generated, result.trace.links_from_corpus) == (1, 1, 0)


@pytest.mark.parametrize("corpus", [Texts({"root": "of a tree"}), None])
def test_a_document_called_as_an_untitled_root_is_told_from_it(corpus: Texts | None, writes: Writes) -> None:
    writes({"": "see [r](root) [r](root) x", "root": "of a tree"})
    result = run("p", corpus)
    assert [document.title for document in result.get_all_documents()] == ["root", "root (2)"]
    assert {title for _, title, _ in grants(result.root_document)} == {"root (2)"}
    assert result.trace.links_already_in_view == 1


def test_corpus_and_written_documents_together(writes: Writes) -> None:
    writes({"": " [q](Q) and [b](B).", "Q": "see [a](A)"})
    result = run("[a](A) first", Texts({"A": "about A", "B": "about B"}), max_link_depth=2)
    titles = ["A", "Q", "B"]  # each before what reads it
    assert [document.title for document in result.auxiliary_documents] == titles
    assert [title for _, title, _ in grants(result.root_document)] == titles
    assert grants(result.get_document_by_title("Q")) == [(1 + after("see [a](A)"), "A", None)]
    trace = result.trace
    assert (trace.links_from_corpus, trace.links_generated, trace.links_already_in_view) == (2, 1, 1)


def test_two_links_that_close_in_one_token(writes: Writes) -> None:
    writes({"": "go:[x](B)[y](C) on"})
    result = run("p", Texts({"B": "about B", "C": "about C"}))
    position = after("pgo:[x](B)[y](C)")
    assert grants(result.root_document) == [(position, "B", None), (position, "C", None)]


def test_a_link_in_the_last_token_that_may_be_written_is_followed_too(writes: Writes) -> None:
    writes({"": "see [a](A) more"})
    result = run("p", Texts({"A": "about A"}), max_new_tokens=after("see [a](A)"))
    assert grants(result.root_document) == [(after("psee [a](A)"), "A", None)]
    assert result.root_document.finish_reason == "max_new_tokens"


def test_a_corpus_on_disk(writes: Writes, tmp_path: Path) -> None:
    """Titles are looked up as the corpus does it, and documents go by the corpus' title for them."""
    documents = [SourceDocument("Big O", "see [next](Next one)"), SourceDocument("Next one", "the end")]
    write_corpus(tmp_path / "c", documents, tokenizer_name="bytes", tokenizer=TOKENIZER, search=False)
    writes({"": "see [x](big_o), [y](BIG  O) and more"})
    result = run("p", tmp_path / "c", max_link_depth=2)
    assert [(d.title, d.text) for d in result.auxiliary_documents] == [
        ("Next one", "the end"),
        ("Big O", "see [next](Next one)"),
    ]
    assert [title for _, title, _ in grants(result.root_document)] == ["Big O"]
    assert result.trace.links_already_in_view == 1


# Depth


CHAIN = {"": " [1](D1) x", "D1": " [2](D2) x", "D2": " [3](D3) x", "D3": " [4](D4) x", "D4": "end"}


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_written_documents_are_followed_to_the_depth_allowed(depth: int, writes: Writes) -> None:
    writes(CHAIN)
    result = run("p", max_link_depth=depth)
    assert summary(result)[1:] == [
        (f"D{d}", "generated", d, "root" if d == 1 else f"D{d - 1}") for d in range(depth, 0, -1)
    ]
    documents = {document.title: document for document in result.get_all_documents()}
    for parent, child in zip(["root", "D1", "D2"], ["D1", "D2", "D3"], strict=True):
        if parent in documents:
            expected = [child] if documents[parent].depth < depth else []
            assert [title for _, title, _ in grants(documents[parent])] == expected
    assert (result.trace.links_generated, result.trace.links_not_followed) == (depth, 1)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_corpus_documents_are_followed_to_the_depth_allowed(depth: int, writes: Writes) -> None:
    writes({"": " and more"})
    result = run("see [1](D1) x", Texts(CHAIN), max_link_depth=depth)
    assert [d.title for d in result.auxiliary_documents] == [f"D{d}" for d in range(depth, 0, -1)]
    for document in result.auxiliary_documents[1:]:
        assert [(position, title) for position, title, _ in grants(document)] == [
            (after(f" [{document.depth + 1}](D{document.depth + 1})"), f"D{document.depth + 1}")
        ]


def test_a_corpus_document_may_lead_to_one_that_is_written(writes: Writes) -> None:
    """Dependencies first: what a corpus document links to is there before it is read."""
    writes({"": " [a](A) x", "Q": "on Q"})
    result = run("p", Texts({"A": "see [q](Q) x"}), max_link_depth=2)
    assert summary(result)[1:] == [("Q", "generated", 2, "A"), ("A", "corpus", 1, "root")]
    assert grants(result.get_document_by_title("A")) == [(after("see [q](Q)"), "Q", None)]


def test_at_full_depth_even_a_document_in_view_is_not_granted(writes: Writes) -> None:
    writes({"": " [q](Q) x", "Q": "see [a](A) x"})
    result = run("[a](A)", Texts({"A": "about A"}), max_link_depth=1)
    assert grants(result.get_document_by_title("Q")) == []


# Links that grant nothing


def test_a_link_to_oneself(writes: Writes) -> None:
    writes({"Big O": "see [me](big o) x", "": ""})
    result = run("p", title="Big O")
    assert summary(result) == [("Big O", "generated", 0, None)] and grants(result.root_document) == []


def test_a_link_to_an_ancestor(writes: Writes) -> None:
    writes({"Root": " [q](Q) x", "Q": " [up](Root) [a](A) x", "A": ""})
    result = run("p", Texts({"A": " [up](Q) [top](Root) x"}), title="Root", max_link_depth=3)
    assert [document.title for document in result.auxiliary_documents] == ["A", "Q"]
    assert grants(result.get_document_by_title("A")) == []
    assert [title for _, title, _ in grants(result.get_document_by_title("Q"))] == ["A"]


def test_a_cycle_in_the_corpus(writes: Writes) -> None:
    corpus = Texts({"A": "to [b](B) x", "B": "to [a](A) x [b](B) x"})
    writes({"": " [a](A) [b](B) x"})
    result = run("p", corpus, max_link_depth=3)
    assert [document.title for document in result.auxiliary_documents] == ["B", "A"]
    assert grants(result.get_document_by_title("A")) == [(after("to [b](B)"), "B", None)]
    assert grants(result.get_document_by_title("B")) == []
    assert [title for _, title, _ in grants(result.root_document)] == ["A", "B"]
    assert corpus.fetched == {"A": 1, "B": 1}


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ("[x]()", "empty target"),
        ("[x](&nbsp;)", "empty target"),
        ("[x](https://example.org)", "an external address"),
        ("[x](#part)", "an external address"),
        ("[x](Root)", "a link to itself"),
        ("[x](Empty)", "an empty document"),
        ("[x](Missing)", "not in the corpus"),
    ],
)
@pytest.mark.parametrize("where", ["prompt", "output"])
def test_links_that_lead_nowhere(link: str, reason: str, where: str, writes: Writes) -> None:
    writes({"Root": f" {link} end" if where == "output" else " end"})
    prompt = "p" if where == "output" else f"p {link}"
    corpus = Texts({"Empty": "", "A": "about A"})
    result = run(prompt, corpus, title="Root", allow_corpus_fallback=False)
    assert result.auxiliary_documents == [] and grants(result.root_document) == []
    assert (result.trace.links_found, result.trace.links_not_followed) == (1, 1)
    events = small_runtime().stream(prompt, corpus=corpus, title="Root", allow_corpus_fallback=False)
    assert [(e.outcome, e.reason) for e in events if isinstance(e, LinkClosed)] == [("not_followed", reason)]


def test_an_ancestor_is_called_so(writes: Writes) -> None:
    writes({"": " [q](Q) x", "Q": " [r](R) x", "R": " [q](Q) x"})
    assert outcomes("p", max_link_depth=3) == [
        ("Q", "generated", ""),
        ("R", "generated", ""),
        ("Q", "not_followed", "a document still being written"),
    ]


def test_the_empty_document_is_not_written_instead(writes: Writes) -> None:
    writes({"": " [e](Empty) x"})
    assert run("p", Texts({"Empty": ""})).auxiliary_documents == []


# In view


def test_a_title_in_view_is_granted_once_and_loaded_once(writes: Writes) -> None:
    corpus = Texts({"A": "about A"})
    writes({"": " [a](A) [a](A) x"})
    result = run("[a](A)", corpus)
    assert grants(result.root_document) == [(after("[a](A)"), "A", None)]
    assert corpus.fetched == {"A": 1} and len(result.auxiliary_documents) == 1
    assert (result.trace.links_from_corpus, result.trace.links_already_in_view) == (1, 2)


def test_a_written_title_is_not_written_again(writes: Writes) -> None:
    writes({"": " [q](Q) [q](q) x", "Q": "on Q"})
    result = run("p")
    assert len(result.auxiliary_documents) == 1
    assert [title for _, title, _ in grants(result.root_document)] == ["Q"]


def test_each_document_has_its_own_grant_of_what_is_in_view(writes: Writes) -> None:
    corpus = Texts({"A": "about A", "C": "on [a](A) x"})
    writes({"": " [c](C) x"})
    result = run("[a](A)", corpus, max_link_depth=2)
    assert grants(result.get_document_by_title("C")) == [(after("on [a](A)"), "A", None)]
    assert [title for _, title, _ in grants(result.root_document)] == ["A", "C"]
    assert corpus.fetched == {"A": 1, "C": 1}


def test_visibility_is_not_transitive(writes: Writes) -> None:
    writes({"": " [c](C) x"})
    result = run("p", Texts({"A": "about A", "C": "on [a](A) x"}), max_link_depth=2)
    assert [title for _, title, _ in grants(result.root_document)] == ["C"]


def test_titles_that_differ_in_case_only_are_two_documents_if_the_corpus_has_both(writes: Writes) -> None:
    writes({"": " [x](Actor) [y](actor) [z](Actor) x"})
    result = run("p", Texts({"actor": "one", "Actor": "two"}))
    assert [title for _, title, _ in grants(result.root_document)] == ["Actor", "actor"]
    assert [document.text for document in result.auxiliary_documents] == ["two", "one"]


# Eviction


def test_an_evicted_document_comes_back_without_being_written_again(writes: Writes) -> None:
    start, middle, last = " [p](P) one", " [q](Q) two", " [p](P) three"
    writes({"": start + middle + last, "P": "on P", "Q": "on Q"})
    result = run("r", max_auxiliary_documents=1)
    first, second = after(f"r{start} [q](Q)"), after(f"r{start}{middle} [p](P)")
    # An evicted document was last read by the token before the one in which the next link closed, which is
    # drawn by then but not computed.
    assert grants(result.root_document) == [
        (after("r [p](P)"), "P", first - 1),
        (first, "Q", second - 1),
        (second, "P", None),
    ]
    assert [document.title for document in result.auxiliary_documents] == ["P", "Q"]
    assert result.trace.evictions == 2
    # P was written once, and its tokens computed once.
    assert result.trace.tokens_decoded == sum(len(encode(t)) for t in (start + middle + last, "on P", "on Q"))


def test_an_evicted_corpus_document_comes_back_without_being_fetched_again(writes: Writes) -> None:
    corpus = Texts({"A": "about A", "B": "about B"})
    writes({"": " [a](A) one [b](B) two [a](A) three"})
    result = run("r", corpus, max_auxiliary_documents=1)
    assert [(title, end is None) for _, title, end in grants(result.root_document)] == [
        ("A", False),
        ("B", False),
        ("A", True),
    ]
    assert corpus.fetched == {"A": 1, "B": 1}


def test_what_a_prompt_no_longer_has_room_for_is_not_granted(writes: Writes) -> None:
    """Before the prompt is computed, no token has read what is evicted."""
    writes({"": " x"})
    result = run("[a](A) [b](B)", Texts({"A": "about A", "B": "about B"}), max_auxiliary_documents=1)
    assert [title for _, title, _ in grants(result.root_document)] == ["B"]
    assert [document.title for document in result.auxiliary_documents] == ["A", "B"]


def test_stop_new_keeps_what_is_in_view(writes: Writes) -> None:
    writes({"": " [b](B) x [q](Q) x [a](A) x"})
    corpus = Texts({"A": "about A", "B": "about B"})
    options = {"max_auxiliary_documents": 1, "eviction_policy": "stop_new"}
    result = run("[a](A)", corpus, **options)
    assert grants(result.root_document) == [(after("[a](A)"), "A", None)]
    assert result.trace.evictions == 0 and result.trace.links_not_followed == 2
    reason = "max_auxiliary_documents 1 are in view"
    assert outcomes("[a](A)", corpus, **options) == [
        ("A", "corpus", ""),
        ("B", "not_followed", reason),
        ("Q", "not_followed", reason),
        ("A", "in_view", ""),
    ]


def test_drop_oldest_drops_the_one_that_came_first(writes: Writes) -> None:
    writes({"": " [c](C) x"})
    corpus = Texts({"A": "a" * 30, "B": "b" * 10, "C": "c" * 30})
    result = run("[a](A) [b](B) x", corpus, max_context_length=80)
    assert [(title, end is None) for _, title, end in grants(result.root_document)] == [
        ("A", False),
        ("B", True),
        ("C", True),
    ]


def test_for_its_next_token_a_document_drives_out_others_under_either_policy(writes: Writes) -> None:
    writes({"": "x" * 60})
    for policy in ("drop_oldest", "stop_new"):
        result = run("[a](A)", Texts({"A": "a" * 50}), max_context_length=80, eviction_policy=policy)
        start = after("[a](A)")
        # 80 tokens are in view once 80 - 50 are written; the last of them is not computed when A goes.
        assert grants(result.root_document) == [(start, "A", 29)]
        assert result.root_document.finish_reason == "eos" and result.trace.evictions == 1


def test_no_auxiliary_documents(writes: Writes) -> None:
    writes({"": " [b](B) [q](Q) x"})
    for policy in ("drop_oldest", "stop_new"):
        corpus = Texts({"A": "about A", "B": "about B"})
        result = run("[a](A)", corpus, max_auxiliary_documents=0, eviction_policy=policy)
        assert result.auxiliary_documents == [] and result.trace.links_not_followed == 3


def test_a_document_that_never_fits_evicts_nothing(writes: Writes) -> None:
    writes({"": " [big](Big) x"})
    corpus = Texts({"A": "about A", "Big": "x" * 90})
    result = run("[a](A)", corpus, max_context_length=90)
    assert grants(result.root_document) == [(after("[a](A)"), "A", None)] and result.trace.evictions == 0


def test_documents_in_progress_stay(writes: Writes) -> None:
    """Q is being written when A comes; only B, complete, can make room."""
    writes({"": " [q](Q) x", "Q": " [a](A) y"})
    corpus = Texts({"A": "about A", "B": "about B"})
    result = run("[b](B)", corpus, max_auxiliary_documents=2, max_link_depth=2)
    assert [title for _, title, _ in grants(result.get_document_by_title("Q"))] == ["A"]
    assert [(title, end is None) for _, title, end in grants(result.root_document)] == [("B", False), ("Q", True)]


def test_a_written_document_keeps_the_view_it_was_written_with(writes: Writes) -> None:
    """Q's own grant of A ends while Q is written; the oracle holds Q's later tokens to that."""
    writes({"": " [q](Q) and on", "Q": " [a](A) one [b](B) two"})
    corpus = Texts({"A": "about A", "B": "about B"})
    result = run("r", corpus, max_auxiliary_documents=2, max_link_depth=2)
    ended, kept = result.get_document_by_title("Q").grants
    assert (ended.title, kept.title, kept.end) == ("A", "B", None)
    assert ended.end == 1 + after(" [a](A) one [b](B)") - 1


# Switches


def test_without_fallback_nothing_is_written_but_the_root(writes: Writes) -> None:
    writes({"": " [q](Q) [a](A) x"})
    result = run("[r](R)", Texts({"A": "about A"}), allow_corpus_fallback=False)
    assert summary(result)[1:] == [("A", "corpus", 1, "root")]
    assert run("[r](R)", None, allow_corpus_fallback=False).auxiliary_documents == []


def test_without_recursive_links_only_the_root_is_followed(writes: Writes) -> None:
    writes({"": " [q](Q) [a](A) x", "Q": " [b](B) x"})
    corpus = Texts({"A": " [b](B) x", "B": "about B"})
    result = run("p", corpus, max_link_depth=3, allow_recursive_links=False)
    assert [document.title for document in result.auxiliary_documents] == ["Q", "A"]
    assert all(document.grants == [] for document in result.auxiliary_documents)


def test_without_prompt_links_only_what_is_written_is_followed(writes: Writes) -> None:
    corpus = Texts({"A": "about A", "B": "about B"})
    writes({"": " [b](B) x"})
    result = run("[a](A)", corpus, process_prompt_links=False)
    assert grants(result.root_document) == [(after("[a](A) [b](B)"), "B", None)]
    assert result.trace.links_found == 1 and corpus.fetched == {"B": 1}


# Links of the prompt


def test_a_link_in_the_prompts_last_token(writes: Writes) -> None:
    writes({"": " x"})
    result = run("see [a](A).", Texts({"A": "about A"}))
    assert grants(result.root_document) == [(after("see [a](A)."), "A", None)]


def test_a_link_that_is_the_whole_prompt(writes: Writes) -> None:
    writes({"": " x"})
    result = run("[x](B)[y](C)", Texts({"B": "about B", "C": "about C"}))
    assert len(result.root_document.tokens) == 1 + after(" x") + 1
    assert grants(result.root_document) == [(1, "B", None), (1, "C", None)]


@pytest.mark.parametrize("cut", range(1, len("see [a](A)")))
@pytest.mark.parametrize("prompt_links", [True, False])
def test_a_link_that_the_prompt_opens_and_the_output_closes(cut: int, prompt_links: bool, writes: Writes) -> None:
    text = "see [a](A)"
    writes({"": text[cut:] + " x"})
    result = run(text[:cut], Texts({"A": "about A"}), process_prompt_links=prompt_links)
    assert grants(result.root_document) == [(after(text[:cut]) + after(text[cut:]), "A", None)]


def test_a_title_that_the_prompts_links_need_written(writes: Writes) -> None:
    writes({"": " x", "Q": "on Q"})
    result = run("see [q](Q) now", max_link_depth=1)
    assert summary(result)[1:] == [("Q", "generated", 1, "root")]
    assert grants(result.root_document) == [(after("see [q](Q)"), "Q", None)]


# How documents end


@pytest.mark.parametrize(
    ("options", "reason", "written"),
    [
        ({}, "eos", 12),
        ({"max_new_tokens": 5}, "max_new_tokens", 5),
        ({"max_tokens_per_document": 9}, "max_tokens_per_document", 8),
        ({"max_context_length": 20}, "context_full", 6),
        ({"stop": "8"}, "stop", 9),
    ],
)
def test_every_way_to_end(options: dict[str, Any], reason: str, written: int, writes: Writes) -> None:
    """Of a written document; the root has 13 tokens by then, and one token, EOS, starts the other."""
    writes({"": " x", "Q": "0123456789ab"[: 11 if not options else 12]})
    result = run("[a root](Q) ab", **options)
    document = result.auxiliary_documents[0]
    assert (document.finish_reason, document.truncated) == (reason, reason == "max_tokens_per_document")
    assert np.count_nonzero(~np.isnan(document.token_logprobs)) == written
    assert document.text == "0123456789ab"[: written - (reason in ("eos", "stop"))]


def test_a_root_that_is_as_long_as_the_window(writes: Writes) -> None:
    writes({"": ""})
    result = run("x" * 40, max_context_length=40)
    assert result.root_document.finish_reason == "context_full" and len(result.root_document.tokens) == 40
    assert result.trace.forward_passes == 0


def test_a_document_that_ends_with_a_full_context_makes_room_for_its_parent(writes: Writes) -> None:
    writes({"": " [q](Q) and on", "Q": "x" * 50})
    result = run("r", max_context_length=40)
    root, document = result.get_all_documents()
    assert document.finish_reason == "context_full" and len(document.tokens) == 40 - after("r [q](Q)")
    assert root.finish_reason == "eos" and root.grants == []  # it was evicted before any token read it


def test_long_corpus_documents_are_cut_and_say_so(writes: Writes) -> None:
    corpus = Texts({"A": "a" * 30, "B": "b" * 20})
    writes({"": " x"})
    result = run("[a](A)[b](B)", corpus, max_tokens_per_document=20)
    assert [(d.text, d.truncated) for d in result.auxiliary_documents] == [("a" * 20, True), ("b" * 20, False)]


def test_links_beyond_the_cut_are_not_followed(writes: Writes) -> None:
    writes({"": " x"})
    corpus = Texts({"A": "a" * 15 + "[b](B) x", "B": "about B"})
    result = run("[a](A)", corpus, max_tokens_per_document=18, max_link_depth=2)
    assert [document.title for document in result.auxiliary_documents] == ["A"]


# Layouts


@pytest.mark.parametrize(
    ("layout", "bos", "heading"),
    [
        ("null", False, False),
        ("bos_eos", True, False),
        ("identifier_prefix", False, True),
        ("identifier_prefix_bos_eos", True, True),
    ],
)
def test_layouts(layout: str, bos: bool, heading: bool, writes: Writes) -> None:
    writes({"Root": " [a](A) [q](Q) x", "Q": "on Q"})
    result = run("p", Texts({"A": "about A"}), layout=layout, title="Root")

    def start(title: str) -> list[int]:
        return [EOS] * bos + (encode(f"# {title}\n\n") if heading else [])

    root, corpus, written = result.get_all_documents()
    assert root.tokens == [*start("Root"), *encode("p"), *encode(" [a](A) [q](Q) x"), EOS]
    assert corpus.tokens == [*start("A"), *encode("about A"), *[EOS] * bos]
    assert written.tokens == [*(start("Q") or [EOS]), *encode("on Q"), EOS]
    assert root.text == ("# Root\n\np [a](A) [q](Q) x" if heading else "p [a](A) [q](Q) x")
    assert np.isnan(written.token_logprobs[: len(start("Q") or [EOS])]).all()


@pytest.mark.parametrize("layout", ["identifier_prefix", "identifier_prefix_bos_eos"])
def test_a_heading_that_looks_like_a_link_leads_nowhere(layout: str, writes: Writes) -> None:
    writes({"": r" [q](\[y\](B)) x", "[y](B)": "on [c](C)"})
    corpus = Texts({"[x](B)": "[c](C) on", "B": "about B", "C": "about C"})
    result = run(r"p [a](\[x\](B))", corpus, layout=layout, max_link_depth=2)
    found = [(document.title, document.source) for document in result.get_all_documents()]
    assert found == [("root", "generated"), ("C", "corpus"), ("[x](B)", "corpus"), ("[y](B)", "generated")]


@pytest.mark.parametrize(
    ("layout", "prompt", "tokens", "title"),
    [
        ("null", "# Big O\n\ntext", encode("# Big O\n\ntext"), "root"),
        ("identifier_prefix", "# Big O\n\ntext", encode("# Big O\n\ntext"), "Big O"),
        ("identifier_prefix_bos_eos", "# Big O\n\ntext", [EOS, *encode("# Big O\n\ntext")], "Big O"),
        ("identifier_prefix", "text", encode("text"), "root"),
        ("bos_eos", "text", [EOS, *encode("text")], "root"),
        ("bos_eos", "", [EOS], "root"),
        ("null", "", [EOS], "root"),
    ],
)
def test_a_root_without_a_title(layout: str, prompt: str, tokens: list[int], title: str, writes: Writes) -> None:
    """A heading names the root, where the layout has headings; marks are put before a prompt that lacks them."""
    writes({"": "", "Big O": ""})
    root = run(prompt, layout=layout).root_document
    assert (root.title, root.tokens) == (title, [*tokens, EOS])


def test_marks_are_not_put_twice(writes: Writes) -> None:
    writes({"": ""})
    runtime = small_runtime("bos_eos")
    result = runtime.generate(prompt_tokens=[EOS, 5])
    assert result.root_document.tokens == [EOS, 5, EOS]


def test_a_heading_makes_its_title_a_link_to_oneself(writes: Writes) -> None:
    writes({"Big O": " [me](big O) x"})
    result = run("# Big O\n\n", layout="identifier_prefix")
    assert result.auxiliary_documents == [] and result.trace.links_not_followed == 1


# Arguments


def generator(**settings: Any) -> LinkedDocumentGenerator:
    return LinkedDocumentGenerator(small_model(), tokenizer=TOKENIZER, **settings)


def test_the_signature_of_the_design(writes: Writes) -> None:
    """Encode and decode as a pair of callables, keywords as front ends give them."""
    writes({"": "see [a](A) x"})
    made = LinkedDocumentGenerator(small_model(), encode, decode)
    config = GenerationConfig(max_context_length=200, eos_token_id=EOS)
    corpus = Texts({"A": "about A"})
    by_text = made.generate(prompt="p", prompt_tokens=None, corpus=corpus, config=config)
    by_tokens = made.generate(prompt_tokens=encode("p"), corpus=corpus, config=config)
    assert by_text.root_document.tokens == by_tokens.root_document.tokens
    assert grants(by_text.root_document) == [(after("psee [a](A)"), "A", None)]
    assert by_text.generation_config.max_context_length == 200


@pytest.mark.parametrize(
    "tokens",
    [
        [5, 6],
        (5, 6),
        iter([5, 6]),
        np.array([5, 6], dtype=np.uint16),
        list(np.array([5, 6])),
        torch.tensor([5, 6]),
        torch.tensor([[5, 6]]),
        [[5, 6]],
    ],
    ids=["list", "tuple", "iterator", "array", "numpy integers", "tensor", "row", "nested"],
)
def test_prompt_tokens_of_any_kind(tokens: Any, writes: Writes) -> None:
    writes({"": ""})
    root = generator().generate(prompt_tokens=tokens).root_document
    assert root.tokens == [5, 6, EOS] and all(type(token) is int for token in root.tokens)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give prompt or prompt_tokens, and not both"),
        ({"prompt": "p", "prompt_tokens": [1]}, "give prompt or prompt_tokens, and not both"),
        ({"prompt": 5}, "prompt must be a string, got int"),
        ({"prompt": [1]}, "prompt must be a string, got list"),
        ({"prompt_tokens": [0.5]}, r"prompt_tokens must be a flat sequence of integers, got \[0.5\]"),
        ({"prompt_tokens": [[1], [2]]}, "prompt_tokens must be a flat sequence of integers"),
        ({"prompt_tokens": "ab"}, "prompt_tokens must be a flat sequence of integers"),
        ({"prompt_tokens": [True]}, "prompt_tokens must be a flat sequence of integers"),
        ({"prompt_tokens": 3}, "prompt_tokens must be a flat sequence of integers, got 3"),
        ({"prompt_tokens": np.array(3)}, "prompt_tokens must be a flat sequence of integers, got 3"),
        ({"prompt": "p\ud800"}, "prompt must be UTF-8 text"),
        ({"prompt": "p", "title": 3}, "title must be a string that is not blank, got 3"),
        ({"prompt": "p", "title": " "}, "title must be a string that is not blank, got ' '"),
        ({"prompt": "p", "title": "\ud800"}, r"title must be UTF-8 text, got '\\ud800'"),
        ({"prompt": "p", "title": "a\nb"}, r"title must be one line, got 'a\\nb'"),
        ({"prompt": "p", "title": "a\n"}, r"title must be one line, got 'a\\n'"),
        ({"prompt": "p", "title": "a\u2028b"}, r"title must be one line, got 'a\\u2028b'"),
        ({"prompt_tokens": [1, 264]}, r"prompt tokens must be in \[0, 264\), got 264"),
        ({"prompt_tokens": [-1]}, r"prompt tokens must be in \[0, 264\), got -1"),
        ({"prompt": "p", "corpus": 5}, "corpus must be a path"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    made = generator()
    with pytest.raises(ConfigError, match=message):
        made.generate(**arguments)
    assert not made.engine.queue and not made.engine.running


def test_a_prompt_longer_than_the_window() -> None:
    with pytest.raises(ValueError, match="the prompt has 513 tokens, more than max_context_length 512"):
        generator().generate(prompt="x" * 513)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer_encode": encode}, "give both tokenizer_encode and tokenizer_decode, or neither"),
        ({"tokenizer_decode": decode}, "give both tokenizer_encode and tokenizer_decode, or neither"),
        ({"tokenizer_encode": encode, "tokenizer_decode": decode, "tokenizer": TOKENIZER}, "not both"),
        ({"tokenizer": 5}, "tokenizer must be None, have encode and decode"),
    ],
)
def test_wrong_tokenizers(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LinkedDocumentGenerator(small_model(), **settings)


def test_what_is_no_model() -> None:
    with pytest.raises(ConfigError, match="model must be a DS2DSModel, got Linear"):
        LinkedDocumentGenerator(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


def test_an_unknown_layout() -> None:
    with pytest.raises(ConfigError, match="layout_policy must be one of"):
        generator(layout_policy="nothing").generate(prompt="p")


def test_the_models_own_layout_is_the_default(writes: Writes) -> None:
    writes({"Root": ""})
    model = small_model(layout_policy="identifier_prefix")
    result = LinkedDocumentGenerator(model, tokenizer=TOKENIZER).generate(prompt="p", title="Root")
    assert result.root_document.text == "# Root\n\np"


def test_defaults_fit_the_model_and_the_tokenizer() -> None:
    config = generator().default_config()
    assert (config.max_context_length, config.eos_token_id) == (512, EOS)
    # GPT-2's tokenizer is not this model's: no token ends a document.
    assert LinkedDocumentGenerator(small_model()).default_config().eos_token_id == 264


def test_an_eos_outside_the_vocabulary_is_refused() -> None:
    made = generator()
    config = GenerationConfig(max_context_length=200)  # EOS is GPT-2's, the model knows 264 tokens
    with pytest.raises(ConfigError, match=r"eos_token_id must be in the model's vocabulary of 264 .*, got 50256"):
        made.generate("[q](Q)", config=config)
    assert not made.engine.running


def test_an_eos_just_outside_the_vocabulary_ends_nothing_and_cannot_start_a_document(writes: Writes) -> None:
    made = generator()
    with pytest.raises(CorpusError, match=r"document 'Q' would hold token id 264, outside .* of 264"):
        made.generate("[q](Q)", config=GenerationConfig(max_context_length=200, eos_token_id=264))
    assert not made.engine.running


def test_a_heading_outside_the_vocabulary_cannot_start_a_document() -> None:
    """The tokenizer is GPT-2's; the prompt is spelled in ids that the model knows."""
    made = LinkedDocumentGenerator(small_model(), layout_policy="identifier_prefix")
    spelled = [token for letter in "[q](Query)" for token in made.tokenizer.encode(letter)]
    with pytest.raises(CorpusError, match=r"document 'Query' would hold token id \d+, outside .* of 264"):
        made.generate(prompt_tokens=spelled, config=GenerationConfig(max_context_length=200, eos_token_id=0))
    assert not made.engine.running
