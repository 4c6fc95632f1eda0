"""`ds2ds generate` on a tiny random model and a tiny corpus: what is printed where, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from ds2ds import DS2DSModel, GenerationConfig, Runtime, create_filename
from ds2ds.cli import app
from ds2ds.corpus.build.writer import SourceDocument, write_corpus
from ds2ds.corpus.document_corpus import SAMPLE
from ds2ds.errors import CheckpointError, ConfigError, CorpusError
from ds2ds.generation.events import Event, TokenWritten
from ds2ds.model.checkpoint import save_checkpoint

PROMPT = "# Home\n\nSee [Apple](Apple) and [Pear](Pear)."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints `model` (documents with headings) and `bare` (without), and a `corpus`."""
    folder = tmp_path_factory.mktemp("generate")
    for name, layout in (("model", "identifier_prefix_bos_eos"), ("bare", "null")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = DS2DSModel.from_config(
                vocab_size=50257, num_layers=2, model_dim=32, num_heads=2, max_seq_len=256, layout_policy=layout
            )
        save_checkpoint(model, folder / name)
    write_corpus(folder / "corpus", [SourceDocument("Apple", "A fruit."), SourceDocument("Plum", "Blue.")])
    return folder


def run(folder: Path, *arguments: str, model: str = "model", stdin: str | None = None) -> Result:
    """Runs the command; 4 tokens per document with a fixed seed, unless the arguments say otherwise."""
    defaults = ["--model", str(folder / model), "--max-new-tokens", "4", "--seed", "1"]
    return CliRunner().invoke(app, ["generate", *defaults, *arguments], input=stdin)


def result_of(folder: Path, *arguments: str, **keywords: Any) -> dict[str, Any]:
    done = run(folder, *arguments, "--json", **keywords)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def test_json_is_the_whole_result_and_nothing_else(folder: Path) -> None:
    result = result_of(folder, PROMPT, "--corpus", str(folder / "corpus"), "--logprobs")
    assert [document["title"] for document in result["auxiliary_documents"]] == ["Apple", "Pear"]
    assert [document["source"] for document in result["auxiliary_documents"]] == ["corpus", "generated"]
    assert result["generation_config"]["max_new_tokens"] == 4
    root = result["root_document"]
    assert len(root["token_logprobs"]) == len(root["tokens"])
    assert root["token_logprobs"][0] is None and root["token_logprobs"][-1] < 0


@pytest.mark.parametrize("stop", [(), ("--stop", "e")])
def test_piped_output_is_the_text_of_the_root(folder: Path, stop: tuple[str, ...]) -> None:
    arguments = (PROMPT, "--corpus", str(folder / "corpus"), "--max-new-tokens", "30", *stop)
    done = run(folder, *arguments)
    root = result_of(folder, *arguments)["root_document"]
    assert done.exit_code == 0
    assert done.stdout.rstrip("\n") == root["text"].rstrip("\n")
    assert root["finish_reason"] == ("stop" if stop else "max_new_tokens")
    assert "Home  generated" in done.stderr
    assert "├── Apple  corpus" in done.stderr and "└── Pear  generated" in done.stderr
    assert "tokens/s" in done.stderr and "seed 1" in done.stderr


def test_the_same_seed_gives_the_same_text(folder: Path) -> None:
    first, again, other = (run(folder, "# A", "--seed", seed).stdout for seed in ("1", "1", "2"))
    assert first == again != other


def test_a_heading_alone_is_completed(folder: Path) -> None:
    for prompt in ("# Home", "# Home\n", "# Home\n\n"):
        root = result_of(folder, prompt)["root_document"]
        assert root["title"] == "Home"
        assert root["text"].startswith("# Home\n\n")
        assert root["tokens"] == result_of(folder, "--title", "Home")["root_document"]["tokens"]
    assert result_of(folder, "# Home\ntext")["root_document"]["text"].startswith("# Home\ntext")


def test_a_heading_stays_as_it_is_without_an_identifier_layout(folder: Path) -> None:
    text = result_of(folder, "# Home", "--stop", "\n", model="bare")["root_document"]["text"]
    assert text.startswith("# Home") and not text.startswith("# Home\n")


def test_a_title_puts_a_heading_before_the_prompt(folder: Path) -> None:
    root = result_of(folder, "is where", "--title", "Home")["root_document"]
    assert root["title"] == "Home"
    assert root["text"].startswith("# Home\n\nis where")


def test_a_title_of_two_lines_is_refused_before_the_model_is_loaded(folder: Path) -> None:
    done = run(folder, "x", "--title", "a\nb", model="missing")
    assert isinstance(done.exception, ConfigError) and str(done.exception) == r"title must be one line, got 'a\nb'"


def test_the_prompt_from_standard_input(folder: Path) -> None:
    piped = result_of(folder, "-", stdin="one [two](two\n")
    given = result_of(folder, "one [two](two")
    assert piped["root_document"] == given["root_document"]


def test_save(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(folder, PROMPT, "--corpus", str(folder / "corpus"), "--save", str(out))
    assert done.exit_code == 0
    assert {entry.name for entry in out.iterdir()} == {
        *(f"{create_filename(title)}.md" for title in ("Home", "Apple", "Pear")),
        "graph.json",
        "graph.html",
        "graph.svg",
        "result.json",
    }
    home = (out / f"{create_filename('Home')}.md").read_text(encoding="utf-8")
    assert home.rstrip("\n") == done.stdout.rstrip("\n")
    assert f"saved to {out}" in done.stderr


def test_a_folder_with_something_else_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    done = run(tmp_path, "x", "--save", str(tmp_path), model="missing")
    assert isinstance(done.exception, ConfigError)
    assert "something else" in str(done.exception)


def command() -> Any:
    return typer.main.get_command(app).commands["generate"]  # type: ignore[attr-defined]


def test_every_setting_is_an_option_and_its_help_tells_the_default() -> None:
    options = {option.name: option for option in command().params}
    for name, field in GenerationConfig.__dataclass_fields__.items():
        assert f"--{name.replace('_', '-')}" in options[name].opts
        assert options[name].default is None
        if field.default not in (None, ()):
            assert f"default {field.default}" in options[name].help, name


GIVEN: dict[str, Any] = {
    "max_new_tokens": 3,
    "temperature": 0.5,
    "top_k": 4,
    "top_p": 0.9,
    "max_tokens_per_document": 50,
    "max_context_length": 200,
    "max_auxiliary_documents": 2,
    "max_link_depth": 3,
    "allow_corpus_fallback": False,
    "eviction_policy": "stop_new",
    "process_prompt_links": False,
    "allow_recursive_links": False,
    "eos_token_id": 5,
    "device": "cpu",
    "seed": 0,
    "min_p": 0.1,
    "repetition_penalty": 1.5,
    "stop": ["a", "b"],
    "logprobs": True,
    "prompt_logprobs": True,
    "top_logprobs": 2,
    "stop_token_ids": [7, 9],
    "ignore_eos": True,
    "title_resolution": ["exact", "folded", "edit:0.9"],
    "num_beams": 1,
    "length_penalty": 0.5,
    "early_stopping": "never",
    "num_return_sequences": 1,
}
LISTED_WITH_COMMAS = ("title_resolution",)


def test_options_reach_the_settings(folder: Path) -> None:
    assert GIVEN.keys() == GenerationConfig.__dataclass_fields__.keys()
    arguments = []
    for name, value in GIVEN.items():
        option = name.replace("_", "-")
        value = ",".join(value) if name in LISTED_WITH_COMMAS else value
        if isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        else:
            for one in value if isinstance(value, list) else [value]:
                arguments += [f"--{option}", str(one)]
    used = result_of(folder, "x", *arguments)["generation_config"]
    assert used == {**GIVEN, "device": None}  # the device went to the runtime


def test_options_not_given_leave_the_defaults(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    real = Runtime.stream

    def stream(self: Runtime, *arguments: Any, **settings: Any) -> Iterator[Event]:
        seen.append(settings)
        return real(self, *arguments, **settings)

    monkeypatch.setattr(Runtime, "stream", stream)
    assert run(folder, "x").exit_code == 0
    assert seen == [{"corpus": None, "title": None, "max_new_tokens": 4, "seed": 1}]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["x", "--top-p", "2"], ConfigError, "top_p must be in (0, 1], got 2.0"),
        (["x", "--max-new-tokens", "0"], ConfigError, "max_new_tokens must be positive, got 0"),
        (["x", "--eviction-policy", "lru"], ConfigError, "eviction_policy must be one of"),
        (["x", "--stop", ""], ConfigError, "stop must be"),
        (["x", "--max-context-length", "999"], ConfigError, "max_seq_len 256, got 999"),
        (["x", "--device", "tpu"], ConfigError, "device must be"),
        (["x", "--dtype", "int8"], ConfigError, "dtype must be"),
        (["x", "--corpus", "missing"], CorpusError, "missing"),
        (["x", "--model", "missing"], CheckpointError, "no config.json in missing"),
        (["word " * 300], ConfigError, "the prompt has 302 tokens, more than max_context_length 256"),
        ([], ConfigError, "give a prompt"),
        (["a\udcff"], ConfigError, "must be UTF-8"),
    ],
)
def test_bad_input_is_named(folder: Path, arguments: list[str], error: type[Exception], message: str) -> None:
    done = run(folder, *arguments)
    assert type(done.exception) is error
    assert message in str(done.exception)
    assert done.stdout == ""


def test_the_model_is_never_replaced(folder: Path) -> None:
    done = run(folder, "x", "--save", str(folder), "--force")
    assert isinstance(done.exception, ConfigError) and "would be replaced" in str(done.exception)
    assert (folder / "model").is_dir()


def test_a_value_of_the_wrong_type_is_a_usage_error(folder: Path) -> None:
    done = run(folder, "x", "--top-k", "many")
    assert done.exit_code == 2
    assert "--top-k" in done.stderr


def test_a_damaged_corpus_ends_the_text_with_a_line_end(folder: Path, tmp_path: Path) -> None:
    documents = [SourceDocument(f"Page {number}", "A page.") for number in range(2 * SAMPLE)]
    documents[1] = SourceDocument("Apple", "A fruit.")  # every other one is looked at before anything is written
    write_corpus(tmp_path / "corpus", documents, max_tokens_per_shard=1)
    with open(tmp_path / "corpus" / "shard_000001.bin", "r+b") as shard:
        shard.truncate(1025)
    done = run(folder, PROMPT, "--corpus", str(tmp_path / "corpus"))
    assert isinstance(done.exception, CorpusError)
    assert "shard_000001.bin" in str(done.exception)
    assert done.stdout == PROMPT + "\n"


def test_a_prompt_that_leaves_no_room_is_remarked_on(folder: Path) -> None:
    done = run(folder, "one two three four five", "--max-tokens-per-document", "3")
    assert done.exit_code == 0
    assert "raise --max-tokens-per-document" in done.stderr


def test_a_result_that_cannot_be_saved_is_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ConfigError("cannot save the result")

    monkeypatch.setattr("ds2ds.generation.save.save_result", fail)
    done = run(folder, "x", "--json", "--save", str(folder / "unsaved"))
    assert isinstance(done.exception, ConfigError) and json.loads(done.stdout)["root_document"]


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    real = Runtime.stream

    def stream(self: Runtime, *arguments: Any, **settings: Any) -> Iterator[Event]:
        for event in real(self, *arguments, **settings):
            yield event
            if isinstance(event, TokenWritten):
                raise KeyboardInterrupt

    monkeypatch.setattr(Runtime, "stream", stream)
    done = run(folder, "# Home", *arguments)
    assert done.exit_code == 130
    assert done.stderr == "interrupted after 1 token\n"
    assert done.stdout.startswith("# Home\n\n") if not arguments else done.stdout == ""


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_on_a_terminal(folder: Path) -> None:
    import pty

    master, slave = pty.openpty()
    code = "import sys; from ds2ds.cli import main; main()"
    arguments = ["generate", PROMPT, "-m", str(folder / "model"), "-c", str(folder / "corpus"), "--max-new-tokens", "2"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(master)
    assert process.wait() == 0
    assert b"\x1b[36mApple" in shown
    for part in ("-> Apple (corpus, ", "-> Pear (being written)", "<- Pear (", "└── ", "tokens/s"):
        assert part.encode() in shown
