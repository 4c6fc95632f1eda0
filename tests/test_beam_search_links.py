"""Beam search across documents: the same as its definition, and as a search of everything that could be written.

What is written after which tokens is generation's own (its coroutine, sent the tokens); all probabilities are the dense
reference's.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import oracle
import pytest
import torch
from beam_reference import Found, search
from hypothesis import given, settings
from hypothesis import strategies as st
from link_graphs import EOS, IDS, VOCABULARY, TinyCorpus, TinyTokenizer, corpora, ids, texts, tiny_model
from scripted import counting, is_clean, same_documents

from ds2ds import DS2DSModel, GenerationConfig, GenerationResult, Runtime
from ds2ds.documents.document import Document
from ds2ds.documents.document_context import DocumentContext
from ds2ds.engine.ranking import rank
from ds2ds.engine.work import Compute, Sampled
from ds2ds.generation.link_following import LinkFollower


@functools.cache
def exact_model(seed: int) -> DS2DSModel:
    """In float64 and not too sure of itself, so that no two scores are equal to rounding (of float32)."""
    model = copy.deepcopy(tiny_model(seed)).double()
    with torch.no_grad():
        model.loss_fn.weight.mul_(0.4)
    return model


class Tree:
    """All that can be written from a prompt: the next tokens' log-probabilities at each node, and where it ends."""

    def __init__(self, runtime: Runtime, prompt: Sequence[int], corpus: Any, config: GenerationConfig) -> None:
        self.runtime, self.prompt, self.corpus, self.config = runtime, list(prompt), corpus, config
        self.oracle = oracle.Oracle(runtime.model)
        self.at = functools.cache(self._at)
        self.next_logprobs = functools.cache(self._next_logprobs)

    def _at(self, tokens: tuple[int, ...]) -> tuple[Document | None, DocumentContext]:
        """The document that waits for a token after these, and all others."""
        request = self.runtime._generator.new_request(None, self.prompt, self.corpus, self.config)
        coroutine = LinkFollower(request).write_root()
        work, left = next(coroutine, None), list(tokens)
        while work is not None and left:
            assert isinstance(work, Compute)
            work.document.settled = len(work.document.tokens)  # what it read by then stays
            try:
                work = coroutine.send(Sampled(left.pop(0), 0.0))
            except StopIteration:
                work = None
        assert not left
        return None if work is None else work.document, request.context

    def ends(self, tokens: tuple[int, ...]) -> bool:
        return self.at(tokens)[0] is None

    def _next_logprobs(self, tokens: tuple[int, ...]) -> list[float]:
        document, _ = self.at(tokens)
        assert document is not None
        plain: dict[Document, oracle.Document] = {}

        def as_data(one: Document) -> oracle.Document:
            if one not in plain:
                grants = [(grant.position, as_data(grant.target), grant.end) for grant in one.grants]
                plain[one] = oracle.Document(one.title, list(one.tokens), grants)
            return plain[one]

        values: list[float] = self.oracle.log_probs([as_data(document)])[0][-1].tolist()
        return values

    def leaves(self, tokens: tuple[int, ...] = (), total: float = 0.0) -> list[tuple[tuple[int, ...], float]]:
        if self.ends(tokens):
            return [(tokens, total)]
        logprobs = self.next_logprobs(tokens)
        return [leaf for token, one in enumerate(logprobs) for leaf in self.leaves((*tokens, token), total + one)]


def runtime_for(model: DS2DSModel, tokenizer: Any, layout: str = "null", **options: Any) -> Runtime:
    return Runtime(model, tokenizer, layout, arena_tokens=2**17, max_running=4096, **options)


def found_by(result: GenerationResult) -> list[GenerationResult]:
    return [result, *result.alternatives]


def agree(result: GenerationResult, expected: list[Found], tree: Tree) -> None:
    """The same documents and scores, in the same order."""
    assert [one.score for one in found_by(result)] == pytest.approx([one.score for one in expected], abs=1e-5)
    for one, found in zip(found_by(result), expected, strict=True):
        _, context = tree.at(found.tokens)
        documents = context.get_all_documents()
        assert [list(d.tokens or ()) for d in one.get_all_documents()] == [d.tokens for d in documents]
        grants = [[(g.position, g.target.title, g.end) for g in d.grants] for d in documents]
        assert [[(g.position, g.title, g.end) for g in d.grants] for d in one.get_all_documents()] == grants


def cases(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        return settings(max_examples=examples, deadline=None)(
            given(
                seed=st.integers(0, 3),
                prompt=texts(1, 3),
                corpus=corpora(),
                beams=st.integers(2, 5),
                length_penalty=st.sampled_from([-0.5, 0.0, 1.0, 2.0]),
                early_stopping=st.sampled_from([True, False, "never"]),
                max_new_tokens=st.integers(1, 5),
                depth=st.integers(1, 2),
                most_documents=st.integers(1, 3),
                window=st.integers(40, 120),
                policy=st.sampled_from(["drop_oldest", "stop_new", "largest_first"]),
                document_store=st.booleans(),
            )(test)
        )

    return decorate


def check(
    seed: int,
    prompt: list[int],
    corpus: TinyCorpus,
    beams: int,
    length_penalty: float,
    early_stopping: bool | str,
    max_new_tokens: int,
    depth: int,
    most_documents: int,
    window: int,
    policy: str,
    document_store: bool,
) -> None:
    config = GenerationConfig(
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        max_new_tokens=max_new_tokens,
        max_link_depth=depth,
        max_auxiliary_documents=most_documents,
        max_context_length=window,
        max_tokens_per_document=30,
        eviction_policy=policy,
        eos_token_id=EOS,
        seed=0,
    )
    # With headings, or two documents might write each other's text with the same score.
    runtime = runtime_for(exact_model(seed), TinyTokenizer(), "identifier_prefix", document_store=document_store)
    tree = Tree(runtime, prompt[:30], corpus, config)
    expected = search(
        tree.next_logprobs,
        tree.ends,
        num_beams=beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    agree(runtime.generate(prompt_tokens=prompt[:30], corpus=corpus, config=config), expected, tree)
    assert is_clean(runtime)


@cases(15)
def test_it_is_what_its_definition_says(**case: Any) -> None:
    check(**case)


@pytest.mark.slow
@cases(300)
def test_it_is_what_its_definition_says_in_many_cases(**case: Any) -> None:
    check(**case)


# A vocabulary so small that everything can be tried

PIECES = (b"", b"a", b")", b"[a](a")


class FourTokens(TinyTokenizer):
    name = "four"
    vocab_size = len(PIECES)

    def encode(self, text: str) -> list[int]:
        data, ids = text.encode(), []
        while data:
            ids.append(max((i for i, p in enumerate(PIECES) if p and data.startswith(p)), key=lambda i: len(PIECES[i])))
            data = data[len(PIECES[ids[-1]]) :]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(PIECES[token] for token in ids).decode()

    def token_bytes(self, token: int) -> bytes:
        return PIECES[token]


@functools.cache
def four_model(seed: int) -> DS2DSModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DS2DSModel.from_config(
            vocab_size=4, num_layers=2, model_dim=32, num_heads=2, max_seq_len=64, weight_tying=False
        ).double()


class Bodies(dict[str, list[int]]):
    has_document = dict.__contains__
    get_document = dict.get


@functools.cache
def everything(seed: int, prompt: str, in_corpus: bool, limits: tuple[tuple[str, Any], ...]) -> tuple[Tree, list[Any]]:
    corpus = Bodies({"aa": [1, 3, 2]} if in_corpus else {})
    config = GenerationConfig(**dict(limits), max_context_length=48, max_tokens_per_document=16, eos_token_id=0, seed=0)
    tree = Tree(runtime_for(four_model(seed), FourTokens()), FourTokens().encode(prompt), corpus, config)
    return tree, tree.leaves()


CASES: list[Any] = [
    # a link that closes after one more token leads to "a", which is to be written, or "aa", which the corpus may have
    pytest.param(0, "[a](a", True, {"max_new_tokens": 3}, id="one is written, one from the corpus"),
    pytest.param(1, "[a](a", False, {"max_new_tokens": 2}, id="both are written"),
    pytest.param(2, "a", False, {"max_new_tokens": 3}, id="the link is written too"),
    pytest.param(3, "[a](a", True, {"max_new_tokens": 2, "max_link_depth": 2}, id="links of links"),
    pytest.param(4, "[a](a", False, {"max_new_tokens": 3, "max_auxiliary_documents": 1}, id="one at a time"),
]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize(("seed", "prompt", "in_corpus", "limits"), CASES)
def test_wide_enough_it_finds_the_best_of_all(
    seed: int, prompt: str, in_corpus: bool, limits: dict[str, Any], length_penalty: float
) -> None:
    tree, leaves = everything(seed, prompt, in_corpus, tuple(limits.items()))
    ranked = sorted(leaves, key=lambda leaf: -leaf[1] / len(leaf[0]) ** length_penalty)
    scores = [total / len(tokens) ** length_penalty for tokens, total in ranked]
    assert math.fsum(math.exp(total) for _, total in leaves) == pytest.approx(1)
    assert any(len(tree.at(tokens)[1].get_all_documents()) > 1 for tokens, _ in leaves)

    def beams(number: int) -> GenerationResult:
        config = tree.config.with_overrides(
            num_beams=number,
            num_return_sequences=min(number, 5),
            length_penalty=length_penalty,
            early_stopping="never",
        )
        result = tree.runtime.generate(prompt_tokens=tree.prompt, corpus=tree.corpus, config=config)
        assert is_clean(tree.runtime)
        return result

    expected = [Found(tokens, score) for (tokens, _), score in zip(ranked, scores, strict=True)]
    agree(beams(len(leaves)), expected[:5], tree)
    exact = {written(tree, found.tokens): found.score for found in expected}
    for number in (2, 3, 6):
        found = beams(number)
        # The runtime takes logarithms in float32, the reference in float64.
        assert found.score == pytest.approx(exact[documents_of(found)], abs=1e-6)
        assert found.score is not None and found.score <= scores[0] + 1e-6


# What it costs


def test_documents_of_the_corpus_are_computed_once_for_all_beams(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = TinyCorpus({"A": ids(b"x", b" t", b"."), "B": ids(b"B", b"C", b"D", b" ")})
    prompt = ids(b"[x](", b"A", b")", b"x", b"[x](", b"B)", b" t")
    runtime = runtime_for(exact_model(0), TinyTokenizer())
    config = GenerationConfig(num_beams=4, max_new_tokens=5, allow_corpus_fallback=False, eos_token_id=EOS)
    with counting(monkeypatch) as rows:
        trace = runtime.generate(prompt_tokens=prompt, corpus=corpus, config=config).trace
    assert corpus.fetched == {"A": 1, "B": 1}
    assert trace.tokens_prefilled == 3 + 4 + len(prompt)
    assert trace.tokens_decoded == 4 * 4
    assert sum(rows) == trace.tokens_prefilled + trace.tokens_decoded and rows[-4:] == [4] * 4
    assert is_clean(runtime)


def test_a_beam_pays_for_its_own_tail_in_all_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root's first token closes a link, and every hypothesis writes the document that it leads to."""
    prompt = ids(b"x", b" t", b"[x](", b"A")
    plain = set(ids(b"x", b" t", b".", b" "))

    def scripted(model: DS2DSModel, hidden: torch.Tensor, documents: Sequence[Document], most: Sequence[int]) -> Any:
        """The link first, and no other."""
        found = rank(model, hidden, documents, [len(VOCABULARY)] * len(documents))
        close = [Sampled(IDS[b")"], -0.5)]
        return [
            close if document.tokens == prompt else [one for one in ranked if one.token in plain]
            for document, ranked in zip(documents, found, strict=True)
        ]

    monkeypatch.setattr("ds2ds.engine.results.rank", scripted)
    runtime = runtime_for(exact_model(0), TinyTokenizer())
    config = GenerationConfig(num_beams=4, num_return_sequences=4, max_new_tokens=3, eos_token_id=EOS)
    with counting(monkeypatch) as rows:
        result = runtime.generate(prompt_tokens=prompt, config=config)
    # The root; A: what it starts with, then a token for each hypothesis and step; in the root the link's `)`. Then some
    # hypotheses go on with one A between them, and each A's last token is computed, as it is to be read.
    different = rows[5]
    assert different < 4
    assert rows == [len(prompt), 1, 4, 4, 4, different, 4]
    assert (result.trace.documents_reused, result.trace.tokens_prefilled) == (
        4 - different,
        len(prompt) + 1 + different,
    )
    assert {one.trace.links_generated for one in found_by(result)} == {1}
    assert result.trace.tokens_decoded == 4 + 4 + 4 + 4
    assert is_clean(runtime)


def test_without_the_store_it_finds_the_same() -> None:
    corpus = TinyCorpus({"A": ids(b"x", b" t", b".")})
    prompt = ids(b"[x](", b"A", b")", b"x", b"[x](", b"B", b")")
    options: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 5, "logprobs": True}
    shared, own = (
        runtime_for(exact_model(1), TinyTokenizer(), document_store=on).generate(
            prompt_tokens=prompt, corpus=corpus, **options
        )
        for on in (True, False)
    )
    assert len(found_by(shared)) == 4
    for one, other in zip(found_by(shared), found_by(own), strict=True):
        same_documents(one.get_all_documents(), other.get_all_documents())


def documents_of(result: GenerationResult) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(document.tokens or ()) for document in result.get_all_documents())


def written(tree: Tree, tokens: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(document.tokens) for document in tree.at(tokens)[1].get_all_documents())
