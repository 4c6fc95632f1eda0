"""Writing one document: what ends it, what its text is, and that seeds make it repeatable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scripted import EOS, MERGED, TOKENIZER, encode, follow, run, same_documents, small_model, small_runtime

from ds2ds import ConfigError, DocumentContext, GenerationConfig, SingleDocumentGenerator, Trace
from ds2ds.documents.document import Document
from ds2ds.documents.layout import Layout
from ds2ds.generation.corpus_source import CorpusSource
from ds2ds.generation.request import Request, fit_config
from ds2ds.kernels import sample_rows
from ds2ds.tokenizer import TextStream, as_tokenizer


def write(
    prompt: str = "p", context: DocumentContext | None = None, **options: Any
) -> tuple[int, Document, DocumentContext]:
    """One untitled document, written by itself."""
    context = context or DocumentContext(max_context_length=200, max_tokens_per_document=100)
    document = context.initialize_root(encode(prompt))
    config = GenerationConfig(**{"max_context_length": 200, "eos_token_id": EOS, "seed": 0, **options})
    return SingleDocumentGenerator(TOKENIZER).generate(small_model(), context, config), document, context


# Limits


def test_eos_ends_a_document_and_belongs_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "abc"})
    written, document, context = write("p")
    assert written == 4 and document.tokens == [*encode("pabc"), EOS]
    assert (document.finish_reason, document.truncated, document.in_progress) == ("eos", False, False)
    assert context.completed == [document]
    assert np.isnan(document.logprobs).tolist() == [True] + [False] * 4


def test_eos_in_the_prompt_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "abc"})
    context = DocumentContext()
    document = context.initialize_root([EOS, 5, EOS])
    config = GenerationConfig(max_context_length=200, eos_token_id=EOS)
    assert SingleDocumentGenerator(TOKENIZER).generate(small_model(), context, config) == 4
    assert document.tokens == [EOS, 5, EOS, *encode("abc"), EOS]


@pytest.mark.parametrize(
    ("options", "written", "reason", "truncated"),
    [
        ({"max_new_tokens": 3}, 3, "max_new_tokens", False),
        ({"max_tokens_per_document": 6}, 4, "max_tokens_per_document", True),
        ({"max_context_length": 6}, 4, "context_full", False),
        ({"max_new_tokens": 4, "max_tokens_per_document": 6}, 4, "max_new_tokens", False),
        ({"max_tokens_per_document": 6, "max_context_length": 6}, 4, "max_tokens_per_document", True),
        ({"max_tokens_per_document": 1}, 0, "max_tokens_per_document", True),
        ({"max_context_length": 2}, 0, "context_full", False),
    ],
)
def test_limits(
    options: dict[str, int], written: int, reason: str, truncated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(monkeypatch, {"": "a" * 50})
    count, document, _ = write("pp", **options)
    assert (count, document.finish_reason, document.truncated) == (written, reason, truncated)
    assert document.tokens == encode("pp" + "a" * written)


def test_room_for_the_next_token_is_made_by_evicting(monkeypatch: pytest.MonkeyPatch) -> None:
    """And for the limit of the config, not that of the context, which is wider here."""
    follow(monkeypatch, {"": "a" * 50})
    context = DocumentContext(max_context_length=1000)
    document = context.initialize_root(encode("p"))
    for title in "AB":
        document.add_grant(1, context.add_corpus_document(title, encode("x" * 10)))
    config = GenerationConfig(max_context_length=30, max_new_tokens=15, eos_token_id=EOS)
    assert SingleDocumentGenerator(TOKENIZER).generate(small_model(), context, config) == 15
    # 21 in view and 9 written make 30; the tenth, written with token 9 still to compute, drives A out.
    assert [(g.target.title, g.position, g.end) for g in document.grants] == [("A", 1, 9), ("B", 1, None)]


@pytest.mark.parametrize("reserved", [1, 16, 100])
def test_a_document_may_grow_as_the_config_says_whatever_its_context_reserved(
    reserved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not grow over the documents that lie beside it in the arena."""

    def scores(max_tokens_per_document: int) -> list[float]:
        context = DocumentContext(200, max_tokens_per_document=max_tokens_per_document)
        document = context.initialize_root(encode("p"))
        document.add_grant(1, context.add_corpus_document("A", encode("x" * 16)))
        config = GenerationConfig(max_context_length=200, eos_token_id=EOS)
        SingleDocumentGenerator(TOKENIZER).generate(small_model(), context, config)
        return document.logprobs

    follow(monkeypatch, {"": "abcd" * 15})
    np.testing.assert_allclose(scores(reserved), scores(150), atol=1e-5)


def test_grants_are_read_and_other_documents_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "abcd"})

    def scores(aside: str, granted: str | None) -> list[float]:
        context = DocumentContext(200)
        document = context.initialize_root(encode("p"))
        context.add_corpus_document("B", encode(aside))
        if granted is not None:
            document.add_grant(1, context.add_corpus_document("A", encode(granted)))
        config = GenerationConfig(max_context_length=200, eos_token_id=EOS)
        SingleDocumentGenerator(TOKENIZER).generate(small_model(), context, config)
        return document.logprobs[1:]

    # The first token was drawn from the prompt alone, which no grant reaches.
    np.testing.assert_allclose(scores("one", "x")[0], scores("two", None)[0], atol=1e-6)
    np.testing.assert_allclose(scores("one", "x"), scores("two", "x"), atol=1e-6)
    assert np.abs(np.subtract(scores("one", "x"), scores("one", "y"))[1:]).max() > 1e-3


def test_links_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "see [a](A) now"})
    _, document, context = write("p")
    assert document.grants == [] and len(context.window) == 1


def test_without_a_document_there_is_nothing_to_write() -> None:
    generator = SingleDocumentGenerator(TOKENIZER)
    with pytest.raises(RuntimeError, match="no document is being written"):
        generator.generate(small_model(), DocumentContext(), GenerationConfig())


def test_a_window_longer_than_the_model() -> None:
    with pytest.raises(ConfigError, match="max_context_length must be at most the model's max_seq_len 512, got 513"):
        write(max_context_length=513)


def test_another_device_than_the_models() -> None:
    class Elsewhere:
        config = small_model().config
        device = torch.device("cuda", 0)

    with pytest.raises(ConfigError, match="device is 'cpu', but the model is on 'cuda:0'"):
        fit_config(GenerationConfig(max_context_length=9, device="cpu", eos_token_id=0), Elsewhere())  # type: ignore[arg-type]


# Stop strings


@pytest.mark.parametrize(
    ("writes", "stop", "text"),
    [
        ("one. two", ".", "one"),
        ("one\n\ntwo", ["\n\n"], "one"),
        ("one two three", ["three", "two"], "one "),  # the first to come, not the first named
        ("one two", ["wo", "two"], "one "),  # of two that end together, the one that starts first
        ("see [x](B)", "](", "see [x"),  # in one token
        ("see [x](B). on", ")", "see [x](B"),  # inside a token
        ("see the end", "e the", "se"),  # across tokens
        ("pp.", "pp.", ""),
        ("abab!", "aba", ""),
        ("a🦉b", "🦉", "a"),
        ("naïve", "ïv", "na"),
        ([*encode("a"), *encode("[x](B)[y](C)")], "](", "a[x"),  # twice in one token: cut at the first
    ],
)
def test_a_stop_string_ends_the_document_and_is_cut_from_its_text(
    writes: str | Sequence[int], stop: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(monkeypatch, {"": writes})
    document = run("p.p", stop=stop).root_document
    assert (document.finish_reason, document.text) == ("stop", f"p.p{text}")
    whole = encode(writes) if isinstance(writes, str) else list(writes)
    assert document.tokens == [*encode("p.p"), *whole[: len(document.tokens) - 3]]


def test_the_tokens_end_with_the_one_that_completes_the_stop_string(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "see the end"})
    assert run("p", stop="e the").root_document.tokens == encode("psee the")


@pytest.mark.parametrize("stop", ["pa", "p", "zz", "bc"])
def test_what_the_prompt_has_stops_nothing(stop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where a stop string would begin in the prompt and end in what is written."""
    follow(monkeypatch, {"": "ab"})
    document = run("bcp", stop=stop).root_document
    assert (document.finish_reason, document.text) == ("eos", "bcpab")


def test_a_stop_string_that_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "x" * 90 + " end" + "x" * 20})
    assert run("p", stop="end").root_document.text == "p" + "x" * 90 + " "


@pytest.mark.parametrize(("begun", "written"), [("é", 1), ("€", 2), ("€", 1), ("🦉", 3), ("🦉", 1)])
def test_a_stop_string_is_cut_where_it_is_after_a_character_that_the_prompt_began(
    begun: str, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    character = encode(begun)
    follow(monkeypatch, {"": [*character[-written:], *encode("abSTOP!")]})
    made = small_runtime()
    result = made.generate(prompt_tokens=[*encode("p"), *character[:-written]], stop="STOP", seed=0)
    assert result.root_document.text == f"p{begun}ab"


def test_a_stop_string_in_a_token_that_begins_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripted.MERGED", (*MERGED[:-1], b"P\xf0\x9f"))
    follow(monkeypatch, {"": "abSTOP🦉"})
    assert run("p", stop="STOP").root_document.text == "pab"


def test_a_stop_string_comes_before_a_link_that_closes_in_the_same_token(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "see [a](A). on"})
    result = run("p", stop=").")
    assert result.root_document.text == "psee [a](A" and result.trace.links_found == 0


def test_eos_comes_before_a_stop_string(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "ab"})
    assert run("p", stop="b").root_document.finish_reason == "stop"
    assert run("p", stop="bc").root_document.finish_reason == "eos"


# Text as it comes


def test_a_character_split_between_tokens_comes_with_its_last_byte() -> None:
    text = TextStream(TOKENIZER)
    assert [text.feed(token) for token in encode("a🦉é")] == ["a", "", "", "", "🦉", "", "é"]


def test_bytes_that_are_no_text_are_replaced() -> None:
    text = TextStream(TOKENIZER)
    assert [text.feed(token) for token in [0xFF + 1, 0xC3 + 1, ord("a") + 1]] == ["�", "", "�a"]


def test_gpt2_splits_characters_too() -> None:
    tokenizer = as_tokenizer(None)
    ids = tokenizer.encode("an owl: 🦉!")
    text = TextStream(tokenizer)
    pieces = [text.feed(token) for token in ids]
    assert "".join(pieces) == "an owl: 🦉!" and "" in pieces


# Seeds


def tokens(**options: Any) -> Any:
    options = {"max_context_length": 200, "max_new_tokens": 12, "logprobs": True, **options}
    return small_runtime().generate("p", **options).root_document


def test_a_seed_repeats_itself_whatever_torch_draws() -> None:
    torch.manual_seed(1)
    first = tokens(seed=5)
    torch.manual_seed(2)
    same_documents([first], [tokens(seed=5)])
    assert tokens(seed=6).tokens != first.tokens


def test_without_a_seed_torch_manual_seed_decides() -> None:
    torch.manual_seed(1)
    first, second = tokens(), tokens()
    assert first.tokens != second.tokens
    torch.manual_seed(1)
    assert (tokens().tokens, tokens().tokens) == (first.tokens, second.tokens)


def test_the_seed_that_was_drawn_is_in_the_result() -> None:
    result = small_runtime().generate("p", max_new_tokens=12)
    again = small_runtime().generate("p", config=result.generation_config)
    assert again.root_document.tokens == result.root_document.tokens


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}])
def test_settings_that_leave_one_token_are_greedy(options: dict[str, Any]) -> None:
    assert tokens(seed=5, **options).tokens == tokens(seed=6, temperature=0).tokens


def request(**options: Any) -> Request:
    config = GenerationConfig(eos_token_id=EOS, **options)
    layout = Layout("null", encode, EOS)
    source = CorpusSource(None, layout, TOKENIZER.vocab_size)
    return Request(config, DocumentContext(), source, layout, TOKENIZER, Trace())


def test_noise_depends_on_the_seed_and_the_title_alone() -> None:
    """So that a document comes out the same whatever was written before it, and two documents differ."""

    def seed(title: str, tokens: list[int], depth: int, seed: int) -> int:
        return request(seed=seed).sampling(Document(title, tokens, depth=depth)).seed

    assert seed("A", [1], 1, seed=5) == seed("A", [2, 3], 2, seed=5)
    assert len({seed("A", [1], 1, 5), seed("B", [1], 1, 5), seed("A", [1], 1, 6), seed("", [1], 0, 5)}) == 4
    # The root's title does not count: with and without one, the same prompt gives the same text.
    assert seed("A", [1], 0, seed=5) == seed("", [1], 0, seed=5)


def test_noise_is_of_the_position_in_the_document() -> None:
    """Each token is the kernel's draw from the full pass, keyed by where it stands."""
    document = tokens(seed=5, temperature=1.3)
    logits = small_model().forward_inference(torch.tensor([document.tokens]))[0]
    seed = request(seed=5).sampling(Document("", [], depth=0)).seed
    for index in range(1, len(document.tokens)):
        drawn = sample_rows(
            logits[index - 1 : index],
            temperature=torch.tensor([1.3]),
            top_k=torch.tensor([0], dtype=torch.int32),
            top_p=torch.ones(1),
            min_p=torch.zeros(1),
            seed=torch.tensor([seed]),
            position=torch.tensor([index]),
        )
        assert int(drawn.tokens) == document.tokens[index]


def test_extreme_settings_are_within_reach() -> None:
    assert tokens(seed=5, top_k=2**40).tokens == tokens(seed=5).tokens
    assert tokens(seed=5, repetition_penalty=1).tokens == tokens(seed=5).tokens
    # Integers are numbers too: a heavy penalty leaves no repetition.
    written = tokens(seed=5, repetition_penalty=1000, temperature=0).tokens
    assert len(set(written)) == len(written) > len(set(tokens(seed=5, temperature=0).tokens))


def test_log_probabilities_are_of_the_raw_distribution() -> None:
    hot, cold = tokens(seed=5, temperature=2.0), tokens(seed=5, temperature=2.0, top_k=40, max_new_tokens=1)
    ids = torch.tensor([hot.tokens])
    expected = small_model().forward_inference(ids)[0].log_softmax(-1)
    for index in range(1, len(hot.tokens)):
        assert abs(float(expected[index - 1, hot.tokens[index]]) - hot.token_logprobs[index]) < 1e-4
    assert abs(float(expected[0, cold.tokens[1]]) - cold.token_logprobs[1]) < 1e-4
