"""One small task, three ways: lm-eval over HTTP, lm-eval's class of ours, and by hand. They give the same score."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import transformers
from lm_eval.tasks import TaskManager
from serving import listening

from ds2ds import DocumentCorpus, Runtime
from ds2ds.adapters.lm_eval import DS2DSLM

QUESTIONS = [
    ("A [compiler](compiler) translates", ["source code", "bananas", "the sea"], 0),
    ("A linker joins", ["the sea", "object files", "a melody"], 1),
    ("An operating system manages", ["the weather", "a melody", "hardware resources"], 2),
    ("A [byte](byte) has eight", ["bits", "wings", "moons"], 0),
    ("Unix is an", ["apple pie", "operating system", "umbrella stand"], 1),
]


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime.from_pretrained("demo")


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskManager:
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    data = tmp_path / "data.jsonl"
    rows = [{"question": question, "choices": choices, "answer": answer} for question, choices, answer in QUESTIONS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "local_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "local_choice.yaml").write_text(json.dumps(task))
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """GPT-2's, as transformers reads it, from the packaged files."""
    packaged = Path(str(files("ds2ds") / "data" / "gpt2"))
    made = transformers.GPT2TokenizerFast(vocab=str(packaged / "encoder.json"), merges=str(packaged / "vocab.bpe"))
    made.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def evaluated(tasks: TaskManager, **model: Any) -> tuple[float, list[tuple[float, bool]]]:
    """The accuracy, and each choice's log-likelihood and whether it is greedy, question by question."""
    report = lm_eval.simple_evaluate(
        tasks=["local_choice"], task_manager=tasks, bootstrap_iters=0, log_samples=True, **model
    )
    samples = sorted(report["samples"]["local_choice"], key=lambda sample: sample["doc_id"])
    answers = [(float(one[0][0]), str(one[0][1]) == "True") for sample in samples for one in sample["resps"]]
    return report["results"]["local_choice"]["acc,none"], answers


def test_over_http_by_class_and_by_hand(runtime: Runtime, tasks: TaskManager, tokenizer: str) -> None:
    by_class = evaluated(tasks, model=DS2DSLM(backend=runtime, corpus="demo"))

    expected, right = [], 0
    for question, choices, answer in QUESTIONS:
        before = runtime.tokenize(question)
        texts = [runtime.tokenize(f"{question} {choice}") for choice in choices]
        assert all(text[: len(before)] == before for text in texts)
        scored = runtime.score(texts, corpus="demo")
        # From the end: the layout puts a mark before the prompt.
        lengths = [len(text) - len(before) for text in texts]
        sums = [math.fsum(r.root_document.token_logprobs[-n:]) for r, n in zip(scored, lengths, strict=True)]
        right += sums.index(max(sums)) == answer
        expected += sums
        assert ("[" in question) == bool(scored[0].auxiliary_documents)  # what is linked is in view

    with listening(runtime, {"demo": DocumentCorpus("demo")}, model="demo") as (url, _):
        arguments = {"model": "demo", "base_url": f"{url}/v1/completions", "tokenizer": tokenizer}
        over_http = evaluated(
            tasks,
            model="local-completions",
            model_args={**arguments, "tokenizer_backend": "huggingface", "max_length": 1024},
        )

    assert by_class[0] == over_http[0] == pytest.approx(right / len(QUESTIONS))
    assert right >= 3  # the model knows a little; an accuracy of nothing would prove nothing
    for (ours, greedy), (theirs, also), direct in zip(by_class[1], over_http[1], expected, strict=True):
        assert ours == pytest.approx(direct, abs=1e-3) and theirs == pytest.approx(direct, abs=1e-3)
        assert greedy == also
