"""The harness' LM: its scores are the reference's, its tasks run, what it is asked for is honoured or refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lm_eval
import oracle
import pytest
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from scripted import EOS, TOKENIZER, Texts, encode, follow, is_clean, small_model, small_runtime

from ds2ds import ConfigError
from ds2ds.adapters.lm_eval import DS2DSLM

CORPUS = Texts({"B": "body"})


def lm(**options: Any) -> DS2DSLM:
    return DS2DSLM(backend=small_runtime(), **{"max_link_depth": 0, **options})


def ask(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=index) for index, one in enumerate(arguments)]


def reference(context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """The dense reference's log-likelihood, and whether each token is the likeliest."""
    tokens = [*context, *continuation]
    rows = oracle.Oracle(small_model()).log_probs([oracle.Document("", tokens)])[0]
    at = range(len(context), len(tokens))
    return (
        sum(float(rows[t - 1, tokens[t]]) for t in at),
        all(int(rows[t - 1].argmax()) == tokens[t] for t in at),
    )


def same(found: tuple[float, bool], expected: tuple[float, bool]) -> bool:
    return found[0] == pytest.approx(expected[0], abs=1e-3) and found[1] == expected[1]


def test_log_likelihoods_are_the_references() -> None:
    model = lm()
    pairs = [("some context", " goes on"), ("a ", "b"), ("", "alone"), ("x", " y z")]
    found = model.loglikelihood(ask("loglikelihood", *pairs), disable_tqdm=True)
    for (context, continuation), answer in zip(pairs, found, strict=True):
        before = len(encode(context.rstrip())) or 1
        tokens = encode(context + continuation) if context else [EOS, *encode(continuation)]
        assert same(answer, reference(tokens[:before], tokens[before:]))
    assert is_clean(model.backend)


def test_what_greedy_decoding_writes_is_greedy() -> None:
    model = lm()
    written = small_runtime().generate("abc", temperature=0, max_new_tokens=4, max_link_depth=0).root_document.tokens
    greedy, other = model._loglikelihood_tokens(
        [(None, written[:3], written[3:]), (None, written[:3], [*written[3:-1], (written[-1] + 1) % 264])],
        disable_tqdm=True,
    )
    assert greedy[1] and not other[1] and greedy[0] > other[0]


def test_what_a_context_links_to_is_in_view_of_its_continuation() -> None:
    pair = ask("loglikelihood", ("see [x](B) now", " and then"))
    alone = lm().loglikelihood(pair, disable_tqdm=True)[0][0]
    linked = lm(max_link_depth=1, corpus=CORPUS).loglikelihood(pair, disable_tqdm=True)[0][0]
    assert abs(alone - linked) > 1e-4


def test_texts_longer_than_the_window_are_scored_in_windows_each_token_once() -> None:
    text = "words of a long text " * 4
    tokens = encode(text)
    found = lm(max_length=20).loglikelihood_rolling(ask("loglikelihood_rolling", (text,), ("b",)), disable_tqdm=True)
    expected, done = 0.0, 0
    while done < len(tokens):
        count = min(19, len(tokens) - done)
        window = [EOS, *tokens][max(0, done + count - 19) : done + count + 1]
        expected += reference(window[:-count], window[-count:])[0]
        done += count
    assert found[0] == pytest.approx(expected, abs=1e-2)
    assert found[1] == pytest.approx(reference([EOS], encode("b"))[0], abs=1e-3)


def test_contexts_too_long_are_cut_from_the_left() -> None:
    tokens = encode("a long context and its end")
    ((likelihood, greedy),) = lm(max_length=12)._loglikelihood_tokens([(None, tokens[:-3], tokens[-3:])], True)
    assert same((likelihood, greedy), reference(tokens[-12:-3], tokens[-3:]))


@pytest.mark.parametrize("layout", ["null", "bos_eos", "identifier_prefix", "identifier_prefix_bos_eos"])
def test_what_is_longer_than_the_window_is_scored_and_continued_under_any_layout(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DS2DSLM(backend=small_runtime(layout), max_link_depth=0)
    text = "x" * 1200
    scored = model.loglikelihood(ask("loglikelihood", (text, "yz"), ("a", text)), disable_tqdm=True)
    rolled = model.loglikelihood_rolling(ask("loglikelihood_rolling", (text,)), disable_tqdm=True)
    assert all(math.isfinite(one) and one < 0 for one in (*rolled, *(likelihood for likelihood, _ in scored)))
    follow(monkeypatch, {"": "y" * 100})
    asked = ask("generate_until", (text, {"max_gen_toks": 40}))
    assert model.generate_until(asked, disable_tqdm=True) == ["y" * 40]


def test_texts_are_written_until_a_stop_string(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "one two\nthree"})
    asked = ask(
        "generate_until",
        ("q:", {"until": ["\n"], "max_gen_toks": 50}),
        ("another:", {"until": "two", "max_gen_toks": 50, "do_sample": False, "temperature": 1.0}),
        ("third:", {"max_gen_toks": 3}),
        ("", {"until": [], "max_gen_toks": 60}),
    )
    assert lm().generate_until(asked, disable_tqdm=True) == ["one two", "one ", "one", "one two\nthree"]


def test_sampling_is_what_a_task_asks_for() -> None:
    model = lm(seed=1)
    tokens, greedy = model._prompt(encode("a"), {})
    assert (tokens, greedy.temperature, greedy.max_new_tokens, greedy.seed) == (encode("a"), 0.0, 256, 1)
    assert model._prompt(encode("a"), {"do_sample": True})[1].temperature == 1.0
    assert model._prompt(encode("a"), {"temperature": 0.5, "top_p": 0.9})[1].top_p == 0.9
    assert model._prompt(encode("a"), {"temperature": 0.5, "do_sample": False})[1].temperature == 0.0
    with pytest.raises(ConfigError, match="stop must be a string or a sequence of strings, none of them empty, got 5"):
        model._prompt(encode("a"), {"until": 5})
    with pytest.raises(ConfigError, match=r"asks for \['best_of'\], which ds2ds does not have"):
        model._prompt(encode("a"), {"best_of": 2})


def test_a_long_context_leaves_room_for_what_is_to_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "y" * 100})
    (text,) = lm(max_length=64).generate_until(
        ask("generate_until", ("x" * 200, {"max_gen_toks": 40})), disable_tqdm=True
    )
    assert text == "y" * 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unheard_of": 1}, r"unknown arguments \['unheard_of'\] of the ds2ds model"),
        ({"pretrained": "demo"}, "pretrained .* or backend, and not both"),
        ({"max_length": 1}, r"max_length must be in \[2, 512\], got 1"),
        ({"max_length": 513}, r"max_length must be in \[2, 512\], got 513"),
        ({"max_gen_toks": 0}, r"max_gen_toks must be in \[1, 512\), got 0"),
        ({"temperature": -1}, "temperature must be >= 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lm(**options)


def test_batch_size_bounds_what_runs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def load(path: str, device: Any, dtype: Any, **options: Any) -> Any:
        seen.append(options)
        return small_runtime()

    monkeypatch.setattr("ds2ds.adapters.lm_eval.Runtime.from_pretrained", load)
    for size in (None, "auto", "auto:4", 8, "16"):
        DS2DSLM(pretrained="demo", batch_size=size)
    assert seen == [{}, {}, {}, {"max_running": 8}, {"max_running": 16}]
    with pytest.raises(ConfigError, match="batch_size must be a positive integer or 'auto'"):
        DS2DSLM(pretrained="demo", batch_size="many")


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskManager:
    """Three small tasks on local data, one of each kind."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    data = tmp_path / "data.jsonl"
    rows = [{"question": f"q{n} ", "choices": ["yes", "no", "maybe"], "answer": n % 3} for n in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    source["dataset_kwargs"]["cache_dir"] = str(tmp_path / "cache")
    kinds: dict[str, dict[str, Any]] = {
        "local_choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}],
        },
        "local_perplexity": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}}",
            "metric_list": [{"metric": "byte_perplexity"}],
        },
        "local_writing": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "abc",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, kind in kinds.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, **source, **kind}))
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def test_the_harness_scores_tasks_as_a_direct_computation_does(
    tasks: TaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["local_choice", "local_perplexity", "local_writing"]
    report = lm_eval.simple_evaluate(model=lm(), tasks=names, task_manager=tasks, bootstrap_iters=0)
    correct, total, letters = 0, 0.0, 0
    for n in range(6):
        question = f"q{n} "
        before = len(encode(question.rstrip()))
        scores = []
        for choice in ("yes", "no", "maybe"):
            tokens = encode(f"{question} {choice}")  # the harness puts a space between
            scores.append(reference(tokens[:before], tokens[before:])[0])
        correct += scores.index(max(scores)) == n % 3
        total += reference([EOS], encode(question))[0]
        letters += len(question)
    results = report["results"]
    assert results["local_choice"]["acc,none"] == pytest.approx(correct / 6)
    assert results["local_perplexity"]["byte_perplexity,none"] == pytest.approx(math.exp(-total / letters), rel=1e-4)
    assert results["local_writing"]["exact_match,none"] == 0.0


def test_importing_registers_the_model() -> None:
    from lm_eval.api.registry import get_model

    assert get_model("ds2ds") is DS2DSLM
    assert lm().tok_encode("a") == TOKENIZER.encode("a") and lm().eot_token_id == EOS
