"""`generate` as transformers calls it: ids in, ids out; what is accepted is honoured, the rest is refused by name."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch
from scripted import EOS, TOKENIZER, Texts, decode, encode, follow, is_clean, small_runtime

from ds2ds import ConfigError
from ds2ds.adapters.transformers import GenerateOutput, TransformersGenerate

CORPUS = Texts({"B": "body", "C": "see"})


def model(**defaults: Any) -> TransformersGenerate:
    return TransformersGenerate(small_runtime(), **defaults)


def ids(*texts: str, pad: int = EOS) -> torch.Tensor:
    rows = [encode(text) for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([[pad] * (longest - len(row)) + row for row in rows])


class Collected:
    def __init__(self) -> None:
        self.put_values: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.put_values.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


def test_greedy_continues_the_rows_as_the_runtime_does() -> None:
    adapter = model(max_link_depth=0)
    out = adapter.generate(ids("abc"), max_new_tokens=6)
    expected = small_runtime().generate("abc", temperature=0, max_new_tokens=6, max_link_depth=0).root_document.tokens
    assert out.dtype == torch.int64 and out.tolist() == [expected]
    assert is_clean(adapter.backend)


def test_rows_of_different_lengths_are_padded_as_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "xy"})
    batch = ids("a", "abc")
    out = model().generate(input_ids=batch, attention_mask=(batch != EOS).long(), max_new_tokens=5)
    assert out.tolist() == [[EOS, EOS, *encode("axy"), EOS], [*encode("abcxy"), EOS]]


def test_shorter_continuations_are_padded_at_the_end() -> None:
    adapter = model(max_link_depth=0)
    rows = ids("ab", "cd")
    long = adapter.generate(rows, max_new_tokens=8, pad_token_id=7, do_sample=False).tolist()
    ends = long[0][4]  # what the first row writes third ends it, if it is an EOS
    short = adapter.generate(rows, max_new_tokens=8, pad_token_id=7, eos_token_id=[EOS, ends]).tolist()
    for row, whole in zip(short, long, strict=True):
        end = next((at for at in range(2, len(row)) if row[at] in (EOS, ends)), len(row) - 1)
        assert row[: end + 1] == whole[: end + 1] and set(row[end + 1 :]) <= {7}
    assert len(short[0]) == len(short[1])


def test_another_token_that_ends_a_row_is_no_mark_around_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layouts with marks have the model's EOS there, as it was in training."""
    follow(monkeypatch, {"": [*encode("[x](B)"), EOS, *encode("on.more")]})
    adapter = TransformersGenerate(small_runtime("bos_eos"), corpus=CORPUS)
    (dot,), (semicolon,) = encode("."), encode(";")
    settings = {"max_new_tokens": 30, "return_dict_in_generate": True}
    for ends in (dot, [semicolon, dot]):
        out = adapter.generate(ids("a:"), eos_token_id=ends, pad_token_id=EOS, **settings)
        root, linked = out.results[0].get_all_documents()
        assert root.tokens == [EOS, *encode("a:[x](B)"), EOS, *encode("on.")]  # its own EOS was not to end it
        assert linked.tokens == [EOS, *encode("body"), EOS]
        assert out.sequences.tolist() == [root.tokens[1:]]
    both = adapter.generate(ids("a:"), eos_token_id=[semicolon, EOS], stop_token_ids=[dot], **settings)
    assert both.sequences.tolist() == [[*encode("a:[x](B)"), EOS]]
    never = adapter.generate(ids("a:"), eos_token_id=264, pad_token_id=EOS, **settings)
    assert never.results[0].root_document.finish_reason == "max_new_tokens"
    added = adapter.generate(ids("a:"), eos_token_id=semicolon, stop_token_ids=[dot], **settings)
    assert added.results[0].root_document.finish_reason == "stop"


def test_a_pad_token_that_is_not_eos_needs_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "!"})
    out = model().generate(ids("a", "abc", pad=9), pad_token_id=9, max_new_tokens=2, return_dict_in_generate=True)
    assert [result.root_document.text for result in out.results] == ["a!", "abc!"]
    with pytest.raises(ConfigError, match="each row must hold a prompt, got one that is all padding"):
        model().generate(torch.full((1, 2), 9), pad_token_id=9)


def test_without_a_length_there_are_twenty_tokens_in_all() -> None:
    assert model(max_link_depth=0, eos_token_id=5).generate(ids("abc")).shape == (1, 20)
    assert model(max_link_depth=0, eos_token_id=5).generate(ids("abc"), max_length=9).shape == (1, 9)
    with pytest.raises(ConfigError, match="the prompt has 3 tokens, which leaves none of max_length 3"):
        model().generate(ids("abc"), max_length=3)


def test_links_join_the_attention_and_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "[x](B) on"})
    out = model(corpus=CORPUS).generate(ids("a "), max_new_tokens=20, return_dict_in_generate=True)
    assert isinstance(out, GenerateOutput) and out.sequences_scores is None
    assert [document.title for document in out.results[0].get_all_documents()] == ["root", "B"]
    assert decode(out.sequences[0].tolist()) == "a [x](B) on"
    plain = model(corpus=CORPUS).generate(ids("a "), max_new_tokens=20, corpus=Texts({}), allow_corpus_fallback=False)
    assert plain.tolist() == out.sequences.tolist()


def test_long_prompts_are_not_cut_by_a_documents_limit() -> None:
    out = model(max_link_depth=0, eos_token_id=5).generate(ids("x" * 450), max_new_tokens=30)
    assert out.shape == (1, 480)  # the window has 512; a document's default limit is 512 too
    with pytest.raises(ValueError, match="more than max_context_length 512"):
        model().generate(ids("x" * 520), max_new_tokens=1)


def test_sampling_is_seeded_and_sequences_differ() -> None:
    adapter = model(max_link_depth=0)
    settings = {"do_sample": True, "max_new_tokens": 8, "num_return_sequences": 3, "top_k": 0}
    once = adapter.generate(ids("ab", "cd"), seed=5, **settings)
    assert once.shape[0] == 6 and torch.equal(once, adapter.generate(ids("ab", "cd"), seed=5, **settings))
    assert [row[:2] for row in once.tolist()] == [encode("ab")] * 3 + [encode("cd")] * 3
    assert len({tuple(row) for row in once.tolist()}) == 6
    torch.manual_seed(3)
    first = adapter.generate(ids("ab"), **settings)
    torch.manual_seed(3)
    assert torch.equal(first, adapter.generate(ids("ab"), **settings))


def test_sampling_draws_among_fifty_unless_told_otherwise() -> None:
    adapter = model(max_link_depth=0)
    result = adapter.generate(ids("a"), do_sample=True, max_new_tokens=1, return_dict_in_generate=True).results[0]
    assert (result.generation_config.top_k, result.generation_config.temperature) == (50, 1.0)
    result = adapter.generate(ids("a"), temperature=0.3, max_new_tokens=1, return_dict_in_generate=True).results[0]
    assert (result.generation_config.top_k, result.generation_config.temperature) == (None, 0.0)  # greedy


def test_beams_are_searched_and_scored() -> None:
    adapter = model(max_link_depth=0)
    settings = {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 6, "length_penalty": 0.5}
    out = adapter.generate(ids("ab", "cd"), return_dict_in_generate=True, **settings)
    assert out.sequences.shape[0] == 4 and out.sequences_scores.shape == (4,)
    for row, prompt in enumerate(("ab", "cd")):
        best = small_runtime().generate(prompt, temperature=0, max_link_depth=0, **settings)
        for at, expected in enumerate((best, *best.alternatives)):
            found = out.sequences[2 * row + at].tolist()
            assert found[: len(expected.root_document.tokens)] == expected.root_document.tokens
            assert float(out.sequences_scores[2 * row + at]) == pytest.approx(expected.score, abs=1e-4)
    assert torch.equal(
        adapter.generate(ids("ab"), num_beams=4, max_new_tokens=6),
        adapter.generate(ids("ab"), num_beams=4, max_new_tokens=6, temperature=0.3, top_k=5),
    )  # of no effect where nothing is drawn


def test_scores_are_of_float32_whatever_torchs_default() -> None:
    adapter, before = model(max_link_depth=0), torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        out = adapter.generate(ids("ab"), num_beams=2, max_new_tokens=4, return_dict_in_generate=True)
    finally:
        torch.set_default_dtype(before)
    assert out.sequences_scores.tolist() == [pytest.approx(out.results[0].score, rel=1e-6)]


def test_a_row_that_fills_the_window_leaves_the_others_theirs() -> None:
    settings = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 4, "pad_token_id": 9}
    rows = ids("x" * 512, "ab", pad=9)
    out = model(max_link_depth=0).generate(rows, **settings)
    assert out.shape[0] == 3  # nothing can be written behind the first, and so but one sequence be found
    assert out[0, :512].tolist() == rows[0].tolist()
    assert out[1:].tolist() == model(max_link_depth=0).generate(rows[1:], **settings).tolist()


def test_a_stop_string_ends_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "one;two"})
    out = model().generate(ids("p"), stop_strings=[";"], max_new_tokens=20)
    assert decode(out[0].tolist()) == "pone;"  # the tokens stay, as there


def test_a_streamer_is_told_of_the_prompt_and_each_token_of_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "x[y](new)[z](root)", "new": "unseen", "root": "nor this, which is no root"})
    streamer = Collected()
    out = model().generate(ids("ab"), streamer=streamer, max_new_tokens=30)
    prompt, *tokens = streamer.put_values
    assert prompt == encode("ab") and [*prompt, *(token for (token,) in tokens)] == out[0].tolist()
    assert streamer.ended == 1


def test_transformers_own_streamer_prints_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    follow(monkeypatch, {"": " and more words"})
    printed = io.StringIO()
    with redirect_stdout(printed):
        streamer = transformers.TextStreamer(TOKENIZER, skip_prompt=True)
        model().generate(ids("ab"), streamer=streamer, max_new_tokens=20)
    assert printed.getvalue() == " and more words\n"


def test_transformers_own_config_is_read() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GenerationConfig(do_sample=True, top_k=3, temperature=0.5, max_new_tokens=2, pad_token_id=7)
    adapter = model(max_link_depth=0)
    out = adapter.generate(ids("ab"), config, temperature=0.25, return_dict_in_generate=True, seed=0)
    used = out.results[0].generation_config
    assert (used.top_k, used.temperature, used.max_new_tokens) == (3, 0.25, 2)
    with pytest.raises(ConfigError, match="no_repeat_ngram_size=2 is not supported"):
        adapter.generate(ids("ab"), transformers.GenerationConfig(no_repeat_ngram_size=2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"unheard_of": 1}, "unheard_of is not supported by generate; supported are"),
        ({"typical_p": 0.5}, "typical_p=0.5 is not supported; leave it out, or give 1.0"),
        ({"output_scores": True}, "output_scores=True is not supported"),
        ({"min_new_tokens": 3}, "min_new_tokens=3 is not supported"),
        ({"top_p": 2.0, "do_sample": True}, r"top_p must be in \(0, 1\], got 2.0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be positive, got 0"),
        ({"max_new_tokens": 2.7}, "max_new_tokens must be an integer, got 2.7"),
        ({"max_length": float("inf")}, "max_length must be an integer, got inf"),
        ({"num_return_sequences": 0, "do_sample": True}, "num_return_sequences must be positive, got 0"),
        ({"num_return_sequences": "2"}, "num_return_sequences must be an integer, got '2'"),
        ({"num_beams": "2"}, "num_beams must be an integer, got '2'"),
        ({"seed": "1", "do_sample": True}, "seed must be an integer, got '1'"),
        ({"pad_token_id": [0]}, r"pad_token_id must be an integer, got \[0\]"),
        ({"eos_token_id": "13"}, "eos_token_id must be an integer, got '13'"),
        ({"num_return_sequences": 2}, "num_return_sequences must be 1 without do_sample or beams, got 2"),
        ({"do_sample": True, "num_beams": 2}, "a beam search draws nothing"),
        ({"eos_token_id": []}, "eos_token_id must be a token id or a list of them, got none"),
        ({"eos_token_id": [EOS, -1]}, r"eos_token_id must be in \[0, 264\], got -1"),
        ({"eos_token_id": 265}, r"eos_token_id must be in \[0, 264\], got 265"),
        ({"stop_token_ids": 5, "eos_token_id": 3}, "stop_token_ids must be a sequence of token ids >= 0, got 5"),
        ({"stop_strings": 5}, "stop must be a string or a sequence of strings, none of them empty, got 5"),
        ({"attention_mask": torch.ones(1, 5)}, r"the shape of input_ids \[1, 2\], got \[1, 5\]"),
        ({"attention_mask": [[1, 1]]}, r"must be a tensor of the shape of input_ids \[1, 2\], got a list"),
        ({"attention_mask": torch.tensor([[0, 0]])}, "each row must hold a prompt, got one that is all padding"),
        ({"attention_mask": torch.tensor([[1, 0]])}, "got 0 after a 1"),
        ({"generation_config": 3}, "generation_config must be transformers' GenerationConfig or a dict, got 3"),
        ({"input_ids": torch.ones(1, 2)}, "inputs or input_ids, and not both"),
        ({"streamer": Collected(), "do_sample": True, "num_return_sequences": 2}, "a streamer needs one row"),
        ({"streamer": Collected(), "num_beams": 2}, "1 sequences and 2 beams"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences must be at most num_beams 2, got 3"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(call: dict[str, Any], message: str) -> None:
    adapter = model()
    with pytest.raises(ConfigError, match=message):
        adapter.generate(ids("ab"), **call)
    assert is_clean(adapter.backend)


@pytest.mark.parametrize(
    "rows", [torch.ones(2), torch.ones(1, 2, dtype=torch.float32), torch.ones(1, 0, dtype=torch.long), [[1, 2]]]
)
def test_ids_of_another_shape_are_refused(rows: Any) -> None:
    with pytest.raises(ConfigError, match=r"input_ids must be integers of shape \[B, T\]"):
        model().generate(rows)


def test_settings_without_effect_are_accepted() -> None:
    out = model(max_link_depth=0).generate(
        ids("ab"), max_new_tokens=2, use_cache=True, bos_token_id=0, num_beam_groups=1, min_length=0
    )
    assert out.shape[0] == 1
