"""Attention analysis: equal to the dense reference's softmax, whatever the arena went through; files and errors."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from link_graphs import VOCABULARY, TinyTokenizer, tiny_model
from scripted import TOKENIZER, Texts, decode, encode, follow, is_clean, small_model, small_runtime

from ds2ds import AttentionMap, DS2DSModel, GeneratedDocument, GenerationResult, Grant, Runtime
from ds2ds.analysis import attention_analysis
from ds2ds.errors import ArenaFullError, ConfigError, Ds2dsError

QUICK = settings(max_examples=40, deadline=None, derandomize=True)


def as_oracle(result: GenerationResult) -> dict[str, oracle.Document]:
    """The result's documents, dependencies first, the root last."""
    documents: dict[str, oracle.Document] = {}
    for document in (*result.auxiliary_documents, result.root_document):
        assert document.tokens is not None
        grants = [(grant.position, documents[grant.title], grant.end) for grant in document.grants]
        documents[document.title] = oracle.Document(document.title, list(document.tokens), grants)
    return documents


def dense(model: DS2DSModel, document: oracle.Document) -> tuple[list[str], list[np.ndarray]]:
    """Titles, the document's own first, and for each what its tokens received: float64 [n, layers, heads, tokens]."""
    layers = torch.stack(oracle.Oracle(model).attention(document)).permute(2, 0, 1, 3).numpy()
    received: dict[str, np.ndarray] = {document.title: layers[..., layers.shape[-1] - len(document.tokens) :]}
    at = 0
    for _, target, _ in document.grants:
        part = layers[..., at : at + len(target.tokens)]
        received[target.title] = received.get(target.title, 0) + part
        at += len(target.tokens)
    return list(received), list(received.values())


def check(found: AttentionMap, model: DS2DSModel, result: GenerationResult, title: str, atol: float) -> None:
    """Fail unless the map is that of the reference."""
    document = as_oracle(result)[title]
    titles, received = dense(model, document)
    assert list(found.titles) == titles
    assert found.shares.dtype == np.float32 and found.weights is not None
    assert found.shares.shape == (len(found.tokens), found.layers, found.heads, len(titles))
    for number, expected in enumerate(received):
        rows = expected[found.tokens]
        np.testing.assert_allclose(found.weights[number], rows, rtol=0, atol=atol)
        np.testing.assert_allclose(found.shares[..., number], rows.sum(-1), rtol=0, atol=atol)
    for row, token in enumerate(found.tokens):
        view = {t.title for p, t, e in document.grants if p <= token and (e is None or token < e)} | {title}
        assert [t for t, seen in zip(titles, found.in_view[row], strict=True) if seen] == [
            t for t in titles if t in view
        ]
    assert not found.shares[~np.broadcast_to(found.in_view[:, None, None], found.shares.shape)].any()
    np.testing.assert_allclose(found.shares.sum(-1), 1, atol=1e-6)


def double(seed: int, layers: int, heads: int) -> DS2DSModel:
    """In float64, rotary tables included."""
    model = copy.deepcopy(tiny_model(seed, layers, heads)).double()
    quarter = model.config.head_dim // 4
    rates = torch.tensor([1024.0 ** (-i / max(1, quarter - 1)) for i in range(quarter)] + [0.0] * quarter).double()
    rates[:quarter] = (1 / 1024) ** torch.linspace(0, 1, quarter, dtype=torch.float64)
    angles = torch.arange(model.config.max_seq_len)[:, None] * rates
    model.rotary.cos, model.rotary.sin = angles.cos().repeat(1, 2), torch.cat([angles.sin(), -angles.sin()], -1)
    return model


@st.composite
def results(draw: st.DrawFn) -> GenerationResult:
    """Up to five documents, each reading some of the earlier ones, some of them twice, some up to an end."""
    documents: list[GeneratedDocument] = []
    for number in range(draw(st.integers(1, 5))):
        length = draw(st.integers(1, 14))
        tokens = draw(st.lists(st.integers(0, len(VOCABULARY) - 1), min_size=length, max_size=length))
        grants = []
        for _ in range(draw(st.integers(0, 4)) if documents else 0):
            position = draw(st.integers(0, length))
            end = draw(st.none() | st.integers(position + 1, length + 2))
            grants.append(Grant(position, draw(st.sampled_from(documents)).title, end))
        documents.append(GeneratedDocument(f"D{number}", tokens=tokens, grants=grants, depth=1, parent_title="root"))
    root = dataclasses.replace(documents.pop(), title="root", depth=0, parent_title=None, is_root=True)
    return GenerationResult(root, documents)


@QUICK
@given(results(), st.sampled_from([(1, 2, 4), (2, 3, 4), (3, 4, 2)]), st.data())
def test_it_is_the_reference_s_softmax_on_random_graphs(
    result: GenerationResult, shape: tuple[int, int, int], data: st.DataObject
) -> None:
    exact = data.draw(st.booleans(), label="float64")
    model = double(*shape) if exact else tiny_model(*shape)
    documents = result.get_all_documents()
    place = data.draw(st.integers(0, len(documents) - 1), label="document")
    length = len(documents[place].tokens or ())
    asked = data.draw(st.none() | st.lists(st.integers(0, length - 1), min_size=1), label="tokens")
    runtime = Runtime(model, TinyTokenizer(), arena_tokens=512)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_analysis, "SCORES", data.draw(st.sampled_from([1, 60, 2**24]), label="scores"))
        found = runtime.attention(result, place, asked, per_token=True)
    assert found.tokens.tolist() == (list(range(length)) if asked is None else sorted(set(asked)))
    # The arrays themselves are float32.
    check(found, model, result, documents[place].title, 6e-8 if exact else 2e-5)
    assert is_clean(runtime)


@QUICK
@given(results(), st.sampled_from([(1, 2, 4), (3, 4, 2)]))
def test_in_float64_to_the_last_digits(result: GenerationResult, shape: tuple[int, int, int]) -> None:
    model = double(*shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_analysis, "STORED", np.float64)
        found = Runtime(model, TinyTokenizer(), arena_tokens=512).attention(result, per_token=True)
    titles, received = dense(model, as_oracle(result)["root"])
    for number in range(len(titles)):
        assert found.weights is not None
        np.testing.assert_allclose(found.weights[number], received[number], rtol=0, atol=1e-10)


CORPUS = Texts({"A": "about apples", "B": "a banana, see [A](A)", "C": "C is long " * 4})


def generated(monkeypatch: pytest.MonkeyPatch, runtime: Runtime, **options: Any) -> GenerationResult:
    """A root that links to A, B, A once more, and D, which the model writes; with room for one document beside it,
    each drives the one before out."""
    script: Mapping[str, str] = {"": " and [B](B), [A](A) again [D](D), end", "D": "d reads [A](A) too"}
    with monkeypatch.context() as patch:
        follow(patch, script)
        return runtime.generate("see [A](A)", corpus=CORPUS, max_new_tokens=200, seed=0, **options)


TIGHT = {"max_auxiliary_documents": 1}
NESTED = {"max_auxiliary_documents": 2, "max_link_depth": 2}


@pytest.mark.parametrize("options", [TIGHT, NESTED])
def test_what_was_evicted_and_linked_again_is_seen_just_while_it_was(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    runtime = small_runtime()
    result = generated(monkeypatch, runtime, **options)
    ended = [grant.title for grant in result.root_document.grants if grant.end is not None]
    assert ended == (["A", "B", "A"] if options is TIGHT else ["A", "B"])
    assert result.root_document.grants[-1].title == "D"
    for document in result.get_all_documents():
        found = runtime.attention(result, document.title, slice(None), per_token=True)
        check(found, runtime.model, result, document.title, 2e-5)
    assert is_clean(runtime)


@pytest.mark.parametrize("options", [{}, {"document_store": False}, {"arena_tokens": 384}, {"retention": "lru"}])
def test_nothing_depends_on_what_is_in_the_arena(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    runtime = small_runtime(**options)
    result = generated(monkeypatch, runtime, **TIGHT, max_context_length=200, max_tokens_per_document=100)
    warm = runtime.attention(result, per_token=True)
    again = runtime.attention(result, per_token=True)
    cold = small_runtime(**options).attention(result, per_token=True)
    for found in (warm, again, cold):
        check(found, runtime.model, result, "root", 2e-5)
    if options.get("document_store", True):
        assert again.trace.tokens_prefilled == 0 and again.trace.tokens_reused > 0
        assert cold.trace.tokens_reused == 0
        assert warm.trace.tokens_prefilled < cold.trace.tokens_prefilled
    assert is_clean(runtime)


def test_documents_read_far_apart_need_not_fit_together() -> None:
    """The arena has room for the root and one of its targets, but not for both."""
    targets = [GeneratedDocument(f"T{n}", tokens=encode(f"{n}" * 500), depth=1, parent_title="root") for n in (0, 1)]
    grants = [Grant(5, "T0", 100), Grant(600, "T1", 700)]
    tokens = encode("root " * 208)
    result = GenerationResult(GeneratedDocument("root", tokens=tokens, is_root=True, grants=grants), targets)
    model = small_model(0, 2048)
    runtime = Runtime(model, TOKENIZER, arena_tokens=len(tokens) + 512)
    for _ in range(2):
        check(runtime.attention(result, tokens=range(0, 1040, 60), per_token=True), model, result, "root", 2e-5)
    assert is_clean(runtime)
    with pytest.raises(ArenaFullError, match="arena_tokens"):
        Runtime(model, TOKENIZER, arena_tokens=len(tokens) + 256).attention(result)


def test_beside_requests_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = small_runtime()
    result = generated(monkeypatch, runtime, **TIGHT)
    events = runtime.stream("one two", max_new_tokens=30, seed=0)
    for _ in range(5):
        next(events)
    check(runtime.attention(result, per_token=True), runtime.model, result, "root", 2e-5)
    events.close()
    assert is_clean(runtime)


def test_without_weights_the_shares_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = small_runtime()
    result = generated(monkeypatch, runtime)
    one, other = runtime.attention(result), runtime.attention(result, per_token=True)
    assert one.weights is None
    np.testing.assert_array_equal(one.shares, other.shares)


def test_bfloat16_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(small_model()).to(torch.bfloat16)
    runtime = Runtime(model, TOKENIZER, arena_tokens=4096)
    result = generated(monkeypatch, runtime, **TIGHT)
    found = runtime.attention(result, per_token=True)
    np.testing.assert_allclose(found.shares.sum(-1), 1, atol=1e-5)
    exact = Runtime(copy.deepcopy(model).float(), TOKENIZER, arena_tokens=4096).attention(result)
    np.testing.assert_allclose(found.shares, exact.shares, atol=0.03)


# Which tokens


def test_by_default_the_tokens_that_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = small_runtime()
    result = generated(monkeypatch, runtime, **TIGHT)
    root = result.root_document
    assert root.tokens is not None and root.given == len(encode("see [A](A)"))
    assert runtime.attention(result).tokens.tolist() == list(range(root.given, len(root.tokens)))
    corpus_document = runtime.attention(result, "A")
    assert corpus_document.tokens.tolist() == list(range(len(encode("about apples"))))
    root.given = None
    assert len(runtime.attention(result).tokens) == len(root.tokens)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(3, [3]), (-1, [9]), (slice(2, 8, 3), [2, 5]), (range(4), [0, 1, 2, 3]), (np.array([5, 1, 5]), [1, 5])],
)
def test_tokens_are_chosen_in_many_ways(tokens: Any, expected: list[int]) -> None:
    result = GenerationResult(GeneratedDocument("root", tokens=encode("x" * 10), is_root=True))
    assert small_runtime().attention(result, tokens=tokens).tokens.tolist() == expected


def simple(**fields: Any) -> GenerationResult:
    values: dict[str, Any] = {"tokens": encode("see [a](a) now"), "is_root": True, "grants": [Grant(9, "a")], **fields}
    auxiliary = GeneratedDocument("a", tokens=encode("apple"), depth=1, parent_title="root")
    return GenerationResult(GeneratedDocument("root", **values), [auxiliary])


@pytest.mark.parametrize(
    ("result", "arguments", "message"),
    [
        (simple(), {"document": "b"}, "no document titled 'b'"),
        (simple(), {"document": 2}, r"document must be in \[0, 2\), got 2"),
        (simple(), {"document": 1.5}, "a title, an index or None, got 1.5"),
        (simple(), {"tokens": 14}, r"tokens of 'root' must be in \[0, 12\), got 14"),
        (simple(), {"tokens": ["x"]}, "indices, a range or a slice"),
        (simple(), {"tokens": []}, "at least one of the 12 tokens"),
        (simple(), {"tokens": slice(20, 30)}, "at least one"),
        (simple(), {"max_bytes": 100}, r"takes 384 bytes, more than max_bytes 100: ask for fewer tokens, or raise"),
        (simple(), {"max_bytes": 100, "per_token": True}, "fewer tokens, or per_token=False"),
        (simple(tokens=None, text="x"), {}, "'root' has no tokens"),
        (simple(tokens=[1, 9999]), {}, "token id 9999, outside the model's vocabulary"),
        (simple(tokens=[1] * 513), {}, "reads over 518 positions, more than the model's max_seq_len 512"),
        (simple(grants=[Grant(9, "missing")]), {}, "reads 'missing', but the result has none"),
    ],
)
def test_bad_input_is_named(result: GenerationResult, arguments: dict[str, Any], message: str) -> None:
    runtime = small_runtime()
    with pytest.raises(ConfigError, match=message):
        runtime.attention(result, **arguments)
    assert is_clean(runtime)


def test_grants_that_cannot_be() -> None:
    loop = simple()
    loop.auxiliary_documents[0].grants.append(Grant(0, "a"))
    with pytest.raises(ConfigError, match="reaches itself"):
        small_runtime().attention(loop)
    twice = simple()
    twice.auxiliary_documents.append(twice.auxiliary_documents[0])
    with pytest.raises(ConfigError, match="2 of the result's documents have that title"):
        small_runtime().attention(twice)


# The map


@pytest.fixture
def made() -> AttentionMap:
    return small_runtime().attention(simple(), per_token=True)


def test_means_by_document(made: AttentionMap) -> None:
    np.testing.assert_allclose(made.by_document(), made.shares.mean((1, 2)), atol=1e-7)
    np.testing.assert_allclose(made.by_document(1, [0]), made.shares[:, 1, 0], atol=1e-7)
    np.testing.assert_allclose(made.by_document(heads=np.int64(1)), made.shares[:, :, 1].mean(1), atol=1e-7)
    for bad in (2, -1, [], ["x"], 0.5):
        with pytest.raises(ConfigError, match="layers must be"):
            made.by_document(layers=bad)  # type: ignore[arg-type]


def test_the_texts_of_tokens_join_to_the_document_s_text() -> None:
    data = encode("a[é](日本) 🙂")
    texts = attention_analysis.token_texts(TOKENIZER, data)  # type: ignore[arg-type]
    assert "".join(texts) == decode(data) and len(texts) == len(data)
    # Bytes of a character: the last one has all of it.
    assert texts[2:4] == ["", "é"]
    assert attention_analysis.token_texts(TOKENIZER, [*data[:3]]) == ["a", "[", "\ufffd"]  # type: ignore[arg-type]
    assert attention_analysis.token_texts(TOKENIZER, []) == []  # type: ignore[arg-type]


def test_through_a_file_and_back(made: AttentionMap, tmp_path: Path) -> None:
    for name in ("map.npz", "without_ending"):
        made.to_npz(tmp_path / name)
        read = AttentionMap.from_npz(tmp_path / name)
        assert (read.titles, read.token_texts) == (made.titles, made.token_texts)
        for array in ("tokens", "shares", "in_view"):
            np.testing.assert_array_equal(getattr(read, array), getattr(made, array))
        assert made.weights is not None and read.weights is not None
        for ours, theirs in zip(read.weights, made.weights, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert {file.name for file in tmp_path.iterdir()} == {"map.npz", "without_ending"}
    dataclasses.replace(made, weights=None).to_npz(tmp_path / "small")
    assert AttentionMap.from_npz(tmp_path / "small").weights is None


def test_files_that_are_no_maps(made: AttentionMap, tmp_path: Path) -> None:
    with pytest.raises(Ds2dsError, match="cannot read"):
        AttentionMap.from_npz(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "strange.npz", about=np.frombuffer(b'{"format": "x"}', dtype=np.uint8))
    np.save(tmp_path / "array.npy", np.zeros(3))
    made.to_npz(tmp_path / "cut.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:500])
    for name in ("text.npz", "other.npz", "strange.npz", "array.npy", "cut.npz"):
        with pytest.raises(Ds2dsError, match="no attention map"):
            AttentionMap.from_npz(tmp_path / name)


def test_a_map_that_is_damaged_anywhere(made: AttentionMap, tmp_path: Path) -> None:
    made.to_npz(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    damaged = tmp_path / "damaged.npz"
    generator = random.Random(1)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        damaged.write_bytes(data)
        try:
            AttentionMap.from_npz(damaged)  # some bytes, as those of a date, say nothing
        except Ds2dsError:
            refused += 1
    assert refused > 200
    with np.load(tmp_path / "whole.npz") as arrays:
        kept = {name: array for name, array in arrays.items() if name != "weights_1"}
    assert "weights_0" in kept
    np.savez(damaged, **kept)
    with pytest.raises(Ds2dsError, match="no attention map"):
        AttentionMap.from_npz(damaged)


def test_a_file_in_the_way(made: AttentionMap, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Ds2dsError, match="cannot write"):
        made.to_npz(tmp_path / "file" / "map.npz")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_a_gpu_s_arena_is_read_alike(dtype: torch.dtype, atol: float) -> None:
    model = copy.deepcopy(small_model()).to(dtype)
    cpu = Runtime(copy.deepcopy(model).float(), TOKENIZER, arena_tokens=4096).attention(simple(), per_token=True)
    runtime = Runtime(model, TOKENIZER, device="cuda", arena_tokens=4096)
    gpu = runtime.attention(simple(), per_token=True)
    np.testing.assert_allclose(gpu.shares, cpu.shares, atol=atol)
    np.testing.assert_array_equal(gpu.in_view, cpu.in_view)
    assert is_clean(runtime)
