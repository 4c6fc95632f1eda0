"""Prefilled documents, kept across processes: `warm`, `save_cache`, `load_cache`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from scripted import (
    TOKENIZER,
    Texts,
    agrees_with_oracle,
    encode,
    grants,
    is_clean,
    same_documents,
    small_model,
    small_runtime,
)

from ds2ds import CacheError, ConfigError, CorpusError, DS2DSModel, Runtime
from ds2ds.cache.store_file import describe
from ds2ds.model.weights_identity import digest, fingerprint

TEXTS = {
    "A": "about A, with [b](B) and more",
    "B": "about B, and [c](C) too",
    "C": "the last one",
    "Long": "a long one " * 12,
    "Empty": "",
}
DEEP: dict[str, Any] = {"max_link_depth": 3, "max_auxiliary_documents": 9}
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "seed": 3, "logprobs": True, "allow_corpus_fallback": False, **DEEP}
PROMPT = "[a](A), [l](Long): "


def length(*titles: str) -> int:
    return sum(len(encode(TEXTS[title])) for title in titles)


# Warming


def test_a_warmed_document_is_found_computed() -> None:
    runtime = small_runtime()
    warmed = runtime.warm(["Long", "A"], Texts(TEXTS), **DEEP)
    assert (warmed.documents, warmed.left_out) == (["Long", "A"], [])
    assert (warmed.tokens_prefilled, warmed.tokens_reused) == (length("Long", "A", "B", "C"), 0)
    assert is_clean(runtime)
    result = runtime.generate(PROMPT, corpus=Texts(TEXTS), **OPTIONS)
    assert result.trace.tokens_prefilled == len(encode(PROMPT))
    assert result.trace.tokens_reused == length("A", "Long")
    agrees_with_oracle(result)
    same_documents(
        result.get_all_documents(), small_runtime().generate(PROMPT, corpus=Texts(TEXTS), **OPTIONS).get_all_documents()
    )


def test_warming_again_computes_nothing() -> None:
    runtime = small_runtime()
    runtime.warm(["A", "B"], Texts(TEXTS), **DEEP)
    again = runtime.warm(["A", "B", "A"], Texts(TEXTS), **DEEP)
    assert again.documents == ["A", "B"]
    assert (again.tokens_prefilled, again.tokens_reused) == (0, length("A", "B"))


def test_what_is_warmed_is_what_the_settings_make_of_it() -> None:
    runtime = small_runtime("identifier_prefix")
    runtime.warm(["Long", "A"], Texts(TEXTS), max_tokens_per_document=40, max_link_depth=1)
    options = {**OPTIONS, "max_tokens_per_document": 40, "max_link_depth": 1}
    cut = runtime.generate(PROMPT, corpus=Texts(TEXTS), **options)
    assert cut.trace.documents_reused == 2 and cut.get_document_by_title("Long").truncated
    whole = runtime.generate(PROMPT, corpus=Texts(TEXTS), **{**options, "max_tokens_per_document": 200})
    assert whole.trace.tokens_reused == len(cut.get_document_by_title("A").tokens)  # which was not cut


def test_warming_draws_nothing_from_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.randint(2**62, ())
    torch.manual_seed(0)
    small_runtime().warm(["A"], Texts(TEXTS))
    assert torch.equal(torch.randint(2**62, ()), expected)


def test_warming_stops_when_the_arena_is_full() -> None:
    corpus = Texts({f"D{i}": f"document {i} " * 5 for i in range(9)})
    runtime = small_runtime(arena_tokens=256)
    done = []
    warmed = runtime.warm([f"D{i}" for i in range(9)], corpus, progress=lambda one, total: done.append((one, total)))
    assert warmed.documents == ["D0", "D1", "D2", "D3"] and warmed.left_out == ["D4", "D5", "D6", "D7", "D8"]
    assert done == [(1, 9), (2, 9), (3, 9), (4, 9)]
    assert len(runtime.engine.store.shared()) == 4 and is_clean(runtime)
    # Others may have the room when they need it.
    assert runtime.generate("x" * 200, max_tokens_per_document=210, max_new_tokens=3).root_document


def test_what_cannot_be_warmed() -> None:
    runtime = small_runtime()
    with pytest.raises(CorpusError, match=r"the corpus has no documents titled \['X', 'Y'\]"):
        runtime.warm(["A", "X", "Y"], Texts(TEXTS))
    assert not runtime.engine.store.shared()
    with pytest.raises(CorpusError, match=r"documents titled \['0', '1', '2', '3', '4'\], and 3 more"):
        runtime.warm(list("01234567"), Texts(TEXTS))
    with pytest.raises(CorpusError, match="document 'Empty' cannot be brought in: an empty document"):
        runtime.warm(["Empty"], Texts(TEXTS))
    with pytest.raises(ConfigError, match="warm needs a corpus that has the titles, got None"):
        runtime.warm(["A"])
    with pytest.raises(ConfigError, match="titles must be a sequence of titles, got '"):
        runtime.warm("A", Texts(TEXTS))
    with pytest.raises(ConfigError, match="max_link_depth must be at least 1"):
        runtime.warm(["A"], Texts(TEXTS), max_link_depth=0)
    assert is_clean(runtime)


@pytest.mark.parametrize("what", ["warm", "save_cache", "load_cache"])
def test_without_the_store_there_is_nothing_to_keep(what: str, tmp_path: Path) -> None:
    runtime = small_runtime(document_store=False)
    arguments = (["A"], Texts(TEXTS)) if what == "warm" else (tmp_path / "cache",)
    with pytest.raises(ConfigError, match=f"{what} needs the document store, which is off"):
        getattr(runtime, what)(*arguments)


# Files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    runtime = small_runtime()
    runtime.warm(["Long", "A"], Texts(TEXTS), **DEEP)
    assert runtime.save_cache(tmp_path / "cache.safetensors") == 4
    return tmp_path / "cache.safetensors"


def test_what_was_saved_is_found_computed(file: Path) -> None:
    runtime = small_runtime(arena_tokens=1024)
    assert runtime.load_cache(file) == 4
    assert is_clean(runtime)
    result = runtime.generate(PROMPT, corpus=Texts(TEXTS), **OPTIONS)
    assert (result.trace.tokens_prefilled, result.trace.documents_reused) == (len(encode(PROMPT)), 2)
    assert [title for _, title, _ in grants(result.get_document_by_title("B"))] == ["C"]
    agrees_with_oracle(result)
    assert runtime.load_cache(file) == 4  # they are there already
    assert len(runtime.engine.store.shared()) == 5  # and the prompt


def test_what_requests_were_prompted_with_is_not_saved(tmp_path: Path) -> None:
    runtime = small_runtime()
    runtime.generate(PROMPT, corpus=Texts(TEXTS), **OPTIONS)
    assert len(runtime.engine.store.shared()) == 5
    assert runtime.save_cache(tmp_path / "cache") == 4
    secret = torch.tensor(encode(PROMPT), dtype=torch.int32)
    saved = load_file(tmp_path / "cache")["tokens"]
    assert not any(torch.equal(part, secret) for part in saved.unfold(0, len(secret), 1))


def test_nor_what_they_wrote_to_it_when_its_attention_was_looked_at(tmp_path: Path) -> None:
    runtime = small_runtime()
    result = runtime.generate(PROMPT, corpus=Texts(TEXTS), **OPTIONS)
    before = len(runtime.engine.store.shared())
    for document in range(len(result.get_all_documents())):
        runtime.attention(result, document)
    assert len(runtime.engine.store.shared()) == before + 1  # the root is there for the next one who looks
    assert runtime.attention(result).trace.tokens_prefilled == 0
    assert runtime.save_cache(tmp_path / "cache") == 4


def test_nor_is_what_was_computed_in_part(tmp_path: Path) -> None:
    runtime = small_runtime(step_tokens=16)
    running = runtime._generator.start("[l](Long) x", None, Texts(TEXTS), runtime._config(None, OPTIONS))
    runtime.engine.step()
    runtime.engine.cancel(running.job)
    assert [entry.computed for entry in runtime.engine.store.shared()] == [16]
    assert runtime.save_cache(tmp_path / "cache") == small_runtime().load_cache(tmp_path / "cache") == 0


def test_a_document_of_the_same_tokens_as_a_prompt_is_saved(tmp_path: Path) -> None:
    runtime = small_runtime()
    runtime.generate("the same words", **OPTIONS)
    assert runtime.save_cache(tmp_path / "cache") == 0
    warmed = runtime.warm(["Words"], Texts({"Words": "the same words"}))
    assert (warmed.tokens_prefilled, warmed.tokens_reused) == (0, len(encode("the same words")))
    assert runtime.save_cache(tmp_path / "cache") == 1


def test_keys_and_values_are_the_same_to_the_bit(file: Path) -> None:
    first, second = small_runtime(), small_runtime(arena_tokens=640)
    first.warm(["Long", "A"], Texts(TEXTS), **DEEP)
    second.load_cache(file)

    def values(runtime: Runtime) -> dict[bytes, torch.Tensor]:
        store = runtime.engine.store
        return {
            e.content.digest: store.arena.data[..., e.extent.start : e.extent.start + e.computed, :]
            for e in store.shared()
        }

    ours, theirs = values(first), values(second)
    assert ours.keys() == theirs.keys() and len(ours) == 4
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_another_process_finds_them(file: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_cache_file import *\n"
        "runtime = small_runtime()\n"
        "print(runtime.load_cache(sys.argv[2]))\n"
        "print(runtime.generate(PROMPT, corpus=Texts(TEXTS), **OPTIONS).trace.documents_reused)\n"
    )
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(file)]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split() == ["4", "2"]


def test_a_small_arena_takes_the_most_valuable(file: Path) -> None:
    runtime = small_runtime(arena_tokens=96)
    assert runtime.load_cache(file) == 3  # all but Long, which has no room
    assert {len(entry.content) for entry in runtime.engine.store.shared()} == {length(t) for t in "ABC"}
    assert is_clean(runtime)


@pytest.mark.parametrize(
    ("short", "long", "comes_in"),
    [
        ((1, 1.0), (2, 1.0), "Long"),
        ((2, 1.0), (1, 1.0), "Short"),
        ((1, 1.0), (1, 2.0), "Long"),
        ((3, 1.0), (4, 1.0), "Short"),
    ],
)
def test_of_two_that_do_not_both_fit_the_one_worth_more_per_slot_comes_in(
    short: tuple[int, float], long: tuple[int, float], comes_in: str, tmp_path: Path
) -> None:
    texts = {"Short": "x" * 20, "Long": "y" * 30}
    runtime, small = small_runtime(), small_runtime(arena_tokens=32)
    runtime.warm(texts, Texts(texts))
    entries = runtime.engine.store.shared()
    for entry, (uses, cost) in zip(entries, (short, long), strict=True):
        entry.uses, entry.cost = uses, cost
    runtime.save_cache(tmp_path / "cache")
    assert small.load_cache(tmp_path / "cache") == 1
    assert small.warm([comes_in], Texts(texts)).tokens_prefilled == 0


def test_loading_drops_nothing(file: Path) -> None:
    runtime = small_runtime(arena_tokens=160)
    runtime.warm(["One"], Texts({"One": "x" * 140}))
    assert runtime.load_cache(file) == 1
    assert runtime.warm(["One"], Texts({"One": "x" * 140})).tokens_prefilled == 0


def test_a_chain_of_documents_longer_than_pythons_stack_is_deep(tmp_path: Path) -> None:
    """Each reads the one before it, which a link of the prompt has brought in; only three of them stay in view."""
    chain = {str(n): f"[a]({n - 1}). x" if n else "x" for n in range(600)}
    prompt = "".join(f"[a]({title})" for title in chain)
    limits = {"max_context_length": 8192, "max_tokens_per_document": 8192, "max_auxiliary_documents": 3}
    made = [Runtime(small_model(max_seq_len=8192), TOKENIZER, arena_tokens=30_000) for _ in range(2)]
    result = made[0].generate(prompt, corpus=Texts(chain), max_link_depth=2, max_new_tokens=2, seed=0, **limits)
    assert result.trace.tokens_prefilled == sum(len(encode(text)) for text in (prompt, *chain.values()))
    assert made[0].save_cache(tmp_path / "cache") == made[1].load_cache(tmp_path / "cache") == len(chain)
    assert all(map(is_clean, made))


def test_an_empty_store_can_be_saved_too(tmp_path: Path) -> None:
    assert small_runtime().save_cache(tmp_path / "cache") == 0
    assert small_runtime().load_cache(tmp_path / "cache") == 0
    assert describe(tmp_path / "cache")["documents"] == "0"


def test_what_reads_stays_when_what_it_read_is_gone(tmp_path: Path) -> None:
    """A's key needs the content of B and C, whether they are in the arena or not."""
    runtime = small_runtime()
    runtime.warm(["A"], Texts(TEXTS), **DEEP)
    store = runtime.engine.store
    for entry in store.shared():
        if len(entry.content) != length("A"):
            store._drop(entry)
    assert runtime.save_cache(tmp_path / "cache") == 1
    assert describe(tmp_path / "cache")["documents"] == "1, and 2 that they read"
    other = small_runtime()
    assert other.load_cache(tmp_path / "cache") == 1
    result = other.generate("[a](A) ", corpus=Texts(TEXTS), **OPTIONS)
    assert result.trace.tokens_reused == length("A")
    agrees_with_oracle(result)


def other_weights() -> Runtime:
    return small_runtime(seed=1)


def other_dtype() -> Runtime:
    model = DS2DSModel(small_model().config).eval()
    model.load_state_dict(small_model().state_dict())
    return Runtime(model.to(torch.bfloat16), TOKENIZER, arena_tokens=4096)


def other_bits() -> Runtime:
    """Batch-invariant: the same bits always, which what the file's runtime computed has not."""
    model = DS2DSModel(small_model().config).eval()
    model.load_state_dict(small_model().state_dict())
    model.batch_invariant = True  # as Runtime sets it, where there is a C compiler
    return Runtime(model, TOKENIZER, arena_tokens=4096)


@pytest.mark.parametrize("make", [other_weights, other_dtype, other_bits])
def test_a_file_of_other_weights_is_refused(make: Callable[[], Runtime], file: Path) -> None:
    runtime = make()
    with pytest.raises(CacheError, match="was computed with other weights than this model's, in another dtype"):
        runtime.load_cache(file)
    assert not runtime.engine.store.shared()


def test_a_file_that_may_not_be_read_is_not_said_to_be_missing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str = "r") -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CacheError, match=r"cannot read .*Permission denied"):
        describe(file)


def test_a_file_that_is_not_there_or_no_cache(tmp_path: Path) -> None:
    runtime = small_runtime()
    with pytest.raises(CacheError, match="nothing does not exist"):
        runtime.load_cache(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello, this is no safetensors file")
    with pytest.raises(CacheError, match=r"cannot read .*text"):
        runtime.load_cache(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(CacheError, match="other is no file of prefilled documents"):
        runtime.load_cache(tmp_path / "other")
    with pytest.raises(CacheError, match="cannot write"):
        runtime.save_cache(tmp_path / "text" / "below")


def test_a_truncated_file_is_refused(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) - 100])
    runtime = small_runtime()
    with pytest.raises(CacheError, match="cannot read"):
        runtime.load_cache(file)
    assert not runtime.engine.store.shared()


def without(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def replaced(tensors: dict[str, torch.Tensor], name: str, value: Any) -> None:
    tensors[name] = value(tensors[name])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: without(t, "grants"), "grants is missing"),
        (lambda t: replaced(t, "tokens", lambda x: x.float()), "tokens is missing, or is no 1-dimensional torch.int32"),
        (lambda t: replaced(t, "tokens", lambda x: x + 1000), "token ids outside the model's vocabulary"),
        (lambda t: replaced(t, "tokens", lambda x: x[1:].clone()), "do not add up"),
        (lambda t: replaced(t, "uses", lambda x: x[1:].clone()), "do not add up"),
        (lambda t: replaced(t, "lengths", lambda x: x - x), "do not add up"),
        (lambda t: replaced(t, "grants", lambda x: x.flip(1).contiguous()), "cannot read document"),
        (lambda t: replaced(t, "grants", lambda x: x[:, :3].contiguous()), "do not add up"),
        (lambda t: replaced(t, "kv.0", lambda x: x[..., 1:, :].contiguous()), r"kv.0 is F32 \[2, 2, 2, .*should be"),
        (lambda t: replaced(t, "kv.0", lambda x: x.double()), r"kv.0 is F64 .* should be F32"),
    ],
)
def test_a_damaged_file_is_refused_whole(damage: Callable[..., None], message: str, file: Path) -> None:
    tensors = load_file(file)
    damage(tensors)
    metadata = {"format": "ds2ds documents 1", "weights": digest(small_model())}
    save_file(tensors, file, metadata=metadata)
    runtime = small_runtime()
    with pytest.raises(CacheError, match=f"damaged: .*{message}"):
        runtime.load_cache(file)
    assert not runtime.engine.store.shared() and is_clean(runtime)


def test_saving_leaves_an_earlier_file_alone_if_it_fails(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("ds2ds.cache.store_file.save_file", fail)
    with pytest.raises(CacheError, match="no space left"):
        small_runtime().save_cache(file)
    assert file.read_bytes() == before and [path.name for path in file.parent.iterdir()] == [file.name]


# The weights' identity


def test_the_digest_is_of_the_contents_and_the_fingerprint_of_changes() -> None:
    one, other = (DS2DSModel(small_model().config) for _ in range(2))
    for model in (one, other):
        model.load_state_dict(small_model().state_dict())
    assert digest(one) == digest(other) == digest(small_model()) != digest(small_model(1))
    assert fingerprint(one) == fingerprint(one) != fingerprint(other)
    before = fingerprint(one), digest(one)
    with torch.no_grad():
        one.backbone.layers[1].mlp.Wdown.weight[3, 2] += 1
    assert fingerprint(one) != before[0] and digest(one) != before[1]
    with torch.inference_mode():
        frozen = DS2DSModel(small_model().config)
        assert fingerprint(frozen) == fingerprint(frozen)
    assert digest(one.to(torch.bfloat16)) != digest(other)
