"""Links that are in a prompt already."""

from __future__ import annotations

from typing import Any

import pytest
from scripted import EOS, TOKENIZER, Texts, decode, encode

from ds2ds import ConfigError, DocumentContext, GenerationConfig, LinkDetector, PromptLinkProcessor
from ds2ds.generation.prompt_processor import find_links

TEXTS = {"A": "about A", "B": "about B", "Long": "x" * 40, "empty": ""}


def process(
    prompt: str, *, layout_policy: str = "null", title: str = "", context: DocumentContext | None = None, **options: Any
) -> tuple[list[str], DocumentContext]:
    context = context or DocumentContext(max_context_length=200)
    tokens = encode(prompt)
    context.initialize_root(tokens, title)
    config = GenerationConfig(**{"max_context_length": 200, "eos_token_id": EOS, **options})
    processor = PromptLinkProcessor(TOKENIZER, layout_policy)
    return processor.process_prompt(tokens, context, Texts(TEXTS), config), context


def granted(context: DocumentContext) -> list[tuple[int, str]]:
    return [(grant.position, grant.target.title) for grant in context.root.grants]


def test_positions_are_after_the_token_in_which_the_link_closes() -> None:
    tokens = encode("see [a](A). [b](B), end")
    found = find_links(LinkDetector(TOKENIZER).stream(), tokens)
    assert [(known.link.text, known.link.target) for known in found] == [("a", "A"), ("b", "B")]
    assert [decode(tokens[known.position - 1 : known.position]) for known in found] == [").", "), "]


def test_two_links_that_close_in_one_token() -> None:
    tokens = encode("see:[x](B)[y](C)")
    found = find_links(LinkDetector(TOKENIZER).stream(), tokens)
    assert [known.link.target for known in found] == ["B", "C"]
    assert [known.position for known in found] == [len(tokens)] * 2


def test_corpus_documents_are_granted_and_the_others_are_returned() -> None:
    missing, context = process("[a](A) [q](Q) [b](B) [r](R)")
    assert missing == ["Q", "R"]
    prompt = encode("[a](A) [q](Q) [b](B) [r](R)")
    assert granted(context) == [(len(encode("[a](A)")), "A"), (len(encode("[a](A) [q](Q) [b](B)")), "B")]
    assert [decode(document.tokens) for document in context.window] == [decode(prompt), "about A", "about B"]
    assert all(document.source == "corpus" and not document.in_progress for document in context.window[1:])
    assert context.current is context.root


def test_each_title_once() -> None:
    missing, context = process("[a](A) [q](Q) [a](A) [q](Q)")
    assert missing == ["Q"]
    assert [title for _, title in granted(context)] == ["A"]
    assert len(context.window) == 2


def test_nothing_is_missing_where_nothing_may_be_written() -> None:
    missing, context = process("[a](A) [q](Q)", allow_corpus_fallback=False)
    assert missing == [] and [title for _, title in granted(context)] == ["A"]


@pytest.mark.parametrize("options", [{"process_prompt_links": False}, {"max_link_depth": 0}])
def test_links_that_are_not_to_be_followed(options: dict[str, Any]) -> None:
    missing, context = process("[a](A) [q](Q)", **options)
    assert missing == [] and len(context.window) == 1 and context.root.grants == []


@pytest.mark.parametrize(
    "link", ["[x]()", "[x](&nbsp;)", "[x](https://example.org/A)", "[x](#A)", "[me](Root)", "[e](empty)"]
)
def test_links_that_lead_nowhere(link: str) -> None:
    missing, context = process(f"{link} end", title="Root")
    assert missing == [] and len(context.window) == 1 and context.root.grants == []


def test_a_document_in_view_is_granted_again() -> None:
    context = DocumentContext(max_context_length=200)
    tokens = encode("[a](A) end")
    context.initialize_root(tokens)
    already = context.add_corpus_document("A", [9])
    config = GenerationConfig(max_context_length=200, eos_token_id=EOS)
    corpus = Texts(TEXTS)
    assert PromptLinkProcessor(TOKENIZER).process_prompt(tokens, context, corpus, config) == []
    assert [grant.target for grant in context.root.grants] == [already]
    assert corpus.fetched == {}


def test_documents_are_laid_out_and_cut() -> None:
    _, context = process("[a](A) [l](Long)", layout_policy="bos_eos", max_tokens_per_document=9)
    documents = context.window[1:]
    assert [document.tokens for document in documents] == [[EOS, *encode("about A"), EOS], [EOS, *encode("x" * 8)]]
    assert [document.truncated for document in documents] == [False, True]


def test_room_is_made_as_the_context_allows() -> None:
    for policy, kept in [("drop_oldest", "B"), ("stop_new", "A")]:
        _, context = process("[a](A) [b](B)", context=DocumentContext(200, 1, policy))
        assert [title for _, title in granted(context)] == [kept]


def test_titles_that_differ_in_case_only() -> None:
    context = DocumentContext()
    tokens = encode("[x](actor) [y](Actor)")
    context.initialize_root(tokens)
    corpus = Texts({"actor": "one", "Actor": "two"})
    config = GenerationConfig(eos_token_id=EOS)
    PromptLinkProcessor(TOKENIZER).process_prompt(tokens, context, corpus, config)
    assert [decode(grant.target.tokens) for grant in context.root.grants] == ["one", "two"]


def test_no_corpus_and_no_document() -> None:
    context = DocumentContext()
    processor = PromptLinkProcessor(TOKENIZER)
    with pytest.raises(RuntimeError, match="no document is being written"):
        processor.process_prompt([1], context, None, GenerationConfig())
    context.initialize_root(encode("[a](A)"))
    assert processor.process_prompt(encode("[a](A)"), context, None, GenerationConfig()) == ["A"]


def test_what_is_no_corpus() -> None:
    context = DocumentContext()
    context.initialize_root([1])
    with pytest.raises(ConfigError, match="corpus must be"):
        PromptLinkProcessor(TOKENIZER).process_prompt([1], context, 5, GenerationConfig())


def test_gpt2_is_the_default_tokenizer() -> None:
    processor = PromptLinkProcessor()
    assert processor.tokenizer.name == "gpt2" and processor.vocab_size == 50257
