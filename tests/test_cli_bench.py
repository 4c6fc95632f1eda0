"""`ds2ds bench` and `ds2ds bench compare` on the command line."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from ds2ds import CheckpointError, ConfigError
from ds2ds.cli import app

TINY = ["--model", "2x64", "--device", "cpu", "--threads", "1", "--rounds", "2", "--tokens", "4"]


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("ds2ds.bench.floor.BUFFER_BYTES", {"cpu": 2**22})
    threads = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == threads


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """A run of everything, and its file."""
    file = tmp_path_factory.mktemp("bench") / "sub" / "all.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ds2ds.bench.floor.BUFFER_BYTES", {"cpu": 2**22})
        sizes = ["--batch", "3", "--batch", "1", "--context", "24", "--requests", "3"]
        return bench(*TINY, *sizes, "--output", str(file)), file


def test_the_last_line_is_the_file_and_says_everything(run: tuple[Result, Path]) -> None:
    done, file = run
    assert done.exit_code == 0, done.output
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured == json.loads(file.read_text())
    assert list(file.parent.iterdir()) == [file]
    assert measured["environment"]["threads"] == 1 and measured["environment"]["torch"] == torch.__version__
    settings = measured["settings"]
    assert (settings["model"], settings["dtype"], settings["batch"]) == ("2x64", "float32", [1, 3])
    assert settings["weights"] is None
    assert platform.node() not in done.stdout
    results = measured["results"]
    assert [(one["workload"], one["requests"]) for one in results] == [
        ("single", 1),
        ("batch", 1),
        ("batch", 3),
        ("links", 3),
        ("long", 1),
    ]
    for one in results:
        assert one["tokens"] == 4 and one["at_once"] == one["requests"]
        assert 0 < one["time_per_token_ms"]["median"] <= one["time_per_token_ms"]["p99"]
        assert one["tokens_per_second"]["median"] > 0 and one["floor"]["share"] > 0
        assert len(one["tokens_per_second"]["rounds"]) == 2
    assert results[3]["cache"]["documents"] >= 12
    assert results[4]["prompt_tokens"] == 24


def test_a_log_gets_plain_lines(run: tuple[Result, Path]) -> None:
    done, _ = run
    title, *lines, _ = done.stdout.splitlines()
    assert title.startswith("2x64 (3M, float32) on 1 thread of ")
    assert len(lines) == 5 and lines[0].startswith("  workload single  requests 1  ms to first ")
    assert "  hits " in lines[3] and "hits" not in lines[0]
    assert "rounds: 10 of 10" in done.stderr and "left out" not in done.stderr


def test_a_result_that_cannot_be_written_after_all_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError("no space")

    monkeypatch.setattr("ds2ds.cli.bench.atomic_write_text", full)
    done = bench(*TINY, "--workload", "single", "--output", str(tmp_path / "b.json"))
    assert isinstance(done.exception, OSError) and "no space" in str(done.exception)
    assert json.loads(done.stdout.splitlines()[-1])["results"]


def test_a_terminal_gets_a_table(run: tuple[Result, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from ds2ds.cli.bench import _show

    measured = json.loads(run[1].read_text())
    measured["settings"]["model"] = "[/x]"  # a path is no markup
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stdout, "isatty", lambda: True)
        patch.setenv("COLUMNS", "100")
        _show(measured)
    shown = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert "[/x] (" in shown and "─" in shown and "ms/token" in shown and max(map(len, shown.splitlines())) <= 100


def test_the_same_documents_are_linked_each_time() -> None:
    runs = [bench(*TINY, "--workload", "links", "--requests", "4", "--seed", "5") for _ in range(2)]
    one, two = (json.loads(done.stdout.splitlines()[-1])["results"][0] for done in runs)
    assert one["cache"] == two["cache"] and one["requests"] == 4


def test_int8_weights_are_measured_and_not_compared_with_others(run: tuple[Result, Path], tmp_path: Path) -> None:
    file = tmp_path / "int8.json"
    done = bench(*TINY, "--workload", "single", "--context", "24", "--weights", "int8", "--output", str(file))
    assert done.exit_code == 0 and done.stdout.startswith("2x64 (3M, int8) on 1 thread of ")
    measured, floats = (json.loads(path.read_text()) for path in (file, run[1]))
    assert measured["settings"]["weights"] == "int8"
    assert measured["settings"]["parameters"] == floats["settings"]["parameters"]
    read = [one["results"][0]["floor"]["weight_bytes"] for one in (measured, floats)]
    assert read[0] < read[1] / 3
    refused = bench("compare", str(run[1]), str(file))
    assert "weights was None and is 'int8'" in str(refused.exception)
    del floats["settings"]["weights"]  # as in a file from before there was such a setting
    run_before = tmp_path / "before.json"
    run_before.write_text(json.dumps(floats))
    assert bench("compare", str(run_before), str(run[1])).exit_code == 0


def planted(file: Path, folder: Path, factor: float) -> Path:
    """The same result, everything `factor` times slower, and its rounds all alike."""
    measured = json.loads(file.read_text())
    for result in measured["results"]:
        for name, power in (("time_to_first_token_ms", 1), ("time_per_token_ms", 1), ("tokens_per_second", -1)):
            value = result[name]["median"] * factor**power
            result[name] |= {"median": value, "rounds": [value, value]}
    path = folder / f"{factor}.json"
    path.write_text(json.dumps(measured))
    return path


def test_compare_exits_1_with_what_got_slower(run: tuple[Result, Path], tmp_path: Path) -> None:
    old, same, slow = (str(planted(run[1], tmp_path, factor)) for factor in (1.0, 1.05, 1.3))
    fine = bench("compare", old, same)
    assert (fine.exit_code, fine.stdout) == (0, "15 figures compared: 0 slower, 0 faster\n")
    found = bench("compare", old, slow)
    assert found.exit_code == 1
    title, first, *_, last = found.stdout.splitlines()
    assert title == "Slower" and last == "15 figures compared: 15 slower, 0 faster"
    assert "workload single" in first and "slower by 30%" in first and "allowed 10%  memory slower by 0%" in first
    assert bench("compare", old, slow, "--tolerance", "0.4").exit_code == 0
    assert bench("compare", slow, old).stdout == "15 figures compared: 0 slower, 15 faster\n"


def test_another_machine_is_refused_unless_forced(run: tuple[Result, Path], tmp_path: Path) -> None:
    measured = json.loads(run[1].read_text())
    measured["environment"]["cpu"] = "another"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(measured))
    refused = bench("compare", str(run[1]), str(other))
    assert isinstance(refused.exception, ConfigError) and "and is 'another'" in str(refused.exception)
    assert bench("compare", str(run[1]), str(other), "--force").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--workload", "fast"], ConfigError, "got ['fast']"),
        (["--tokens", "1"], ConfigError, "tokens must be at least 2"),
        (["--batch", "0"], ConfigError, "batch must be at least 1, got [0]"),
        (["--rounds", "0"], ConfigError, "rounds must be at least 1"),
        (["--model", "2x63"], ConfigError, "got '2x63'"),
        (["--model", "nowhere"], CheckpointError, "no config.json in nowhere"),
        (["--dtype", "int3", "--model", "1x64"], ConfigError, "dtype must be"),
        (["--weights", "int3", "--model", "1x64"], ConfigError, "weights must be None or one of"),
        (["--device", "tpu"], ConfigError, "device must be 'cpu' or 'cuda'"),
        (["--context", "3000", "--device", "cpu"], ConfigError, "context 3000 and 32 tokens exceed"),
        (["--model", "1x64", "--context", "9999999"], ConfigError, "exceed the 1,048,576 positions"),
        (["--output", "DIR"], ConfigError, "is a folder: name a file"),
        (
            ["--output", "BELOW", "--model", "nowhere"],
            NotADirectoryError,
            "Not a directory",
        ),  # before the model is read
        (["--seed", "3", "compare", "FILE", "FILE"], ConfigError, "['seed'] are settings of a measurement"),
        (["compare", "FILE", "FILE"], ConfigError, "is no result of `ds2ds bench --output`"),
        (["compare", "DIR", "FILE"], ConfigError, "cannot read"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, arguments: list[str], error: type[Exception], message: str) -> None:
    (tmp_path / "file").write_text("mine")
    places = {"DIR": tmp_path, "FILE": tmp_path / "file", "BELOW": tmp_path / "file" / "below"}
    done = bench(*(str(places.get(argument, argument)) for argument in arguments))
    assert isinstance(done.exception, error) and message in str(done.exception)
    assert (tmp_path / "file").read_text() == "mine"


def test_help_names_both_commands() -> None:
    shown = bench("--help")
    assert shown.exit_code == 0 and "compare" in shown.stdout and "--workload" in shown.stdout


def test_a_file_that_is_there_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text("old")
    done = bench(*TINY, "-w", "single", "--context", "8", "--output", str(file))
    assert done.exit_code == 0
    result: dict[str, Any] = json.loads(file.read_text())
    assert [one["workload"] for one in result["results"]] == ["single"]
