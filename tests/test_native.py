"""The C files: compiled once, found again, done without where they cannot be had; the same bits on every processor."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import pytest
import torch
from processors import PROCESSORS, compiled_for

from ds2ds import DS2DSModel, Runtime
from ds2ds.native import library as module
from ds2ds.native import operations as native
from ds2ds.native.library import library


@pytest.fixture(autouse=True)
def loaded_anew() -> Iterator[None]:
    library.cache_clear()
    yield
    library.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ds2ds"


def test_it_is_compiled_once_and_then_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if library() is None:
        pytest.skip("there is no C compiler")
    (made,) = folder.iterdir()
    assert made.suffix == ".so" and folder.stat().st_mode & 0o077 == 0
    library.cache_clear()
    commands: list[list[str]] = []
    run = module._run
    monkeypatch.setattr(module, "_run", lambda command: commands.append(command) or run(command))
    assert library() is not None and [command[1:] for command in commands] == [["--version"]]


def test_without_a_compiler_that_is_said_once_and_everything_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match=r"slower: pool\.c, .* could not be compiled \(there is no C compiler\)"):
        assert not native.available()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not native.available()
        model = DS2DSModel.from_config(vocab_size=31, num_layers=2, model_dim=16, num_heads=2, max_seq_len=64)
        Runtime(model, weights="int8").generate(prompt_tokens=[1, 2], max_new_tokens=3, eos_token_id=30)
    with pytest.raises(RuntimeError, match="not available"):
        native.gated_unit(torch.ones(1, 4))


def test_the_compiler_is_the_users_then_the_systems_then_ziglangs(monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = {"cc": "/bin/cc", "gcc": "/bin/gcc"}
    monkeypatch.setattr(module.shutil, "which", on_path.get)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name == "ziglang" or None)
    monkeypatch.setenv("CC", "ccache 'my gcc'")
    assert module._compiler() == ["ccache", "my gcc"]
    monkeypatch.setenv("CC", "")
    assert module._compiler() == ["/bin/cc"]
    del on_path["cc"]
    assert module._compiler() == ["/bin/gcc"]
    on_path.clear()
    assert module._compiler() == [sys.executable, "-m", "ziglang", "cc"]


def test_what_the_compiler_says_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    shutil.copytree(module.FOLDER, sources)
    (sources / "linear.c").write_text("int main(void) { return nothing; }\n")
    monkeypatch.setattr(module, "FOLDER", sources)
    if module.shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    with pytest.warns(RuntimeWarning, match="nothing"):
        assert library() is None
    assert list(folder.iterdir()) == []


def test_a_compiler_that_fails_without_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str]) -> str:
        raise subprocess.CalledProcessError(1, command[0], "", "")

    monkeypatch.setattr(module, "_run", fail)
    with pytest.warns(RuntimeWarning, match="returned non-zero exit status 1"):
        assert library() is None


def test_a_folder_that_others_write_to_is_not_used(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="can be written to by others"):
        assert library() is None


def test_it_can_be_switched_off_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.SWITCH, "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not native.available()


def test_a_compiler_that_hangs_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str]) -> str:
        raise subprocess.TimeoutExpired(command, module.SECONDS)

    monkeypatch.setattr(module, "_run", hang)
    with pytest.warns(RuntimeWarning, match="timed out after 120 seconds"):
        assert library() is None


@pytest.mark.parametrize("shape", [(1, 5), (3, 16), (4, 2, 3, 20), (40, 70)])
def test_rms_norm_is_torchs(shape: tuple[int, ...]) -> None:
    if not native.available():
        pytest.skip("there is no C compiler")
    x = torch.randn(shape)
    for view in (x, x[:, : max(1, shape[1] // 2)], x.transpose(0, 1)):
        torch.testing.assert_close(native.rms_norm(view), torch.nn.functional.rms_norm(view, view.shape[-1:]))


@pytest.mark.parametrize("processor", PROCESSORS)
def test_int8_products_have_the_same_bits_whatever_instructions_there_are(processor: str) -> None:
    generator = torch.Generator().manual_seed(0)
    cases = []
    for rows, outputs, inputs in [(1, 5, 3), (2, 16, 64), (3, 33, 70), (5, 129, 50), (7, 64, 4), (23, 100, 130)]:
        values = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=generator)
        weight = native.pack_int8(values, torch.rand(outputs, generator=generator))
        cases.append((torch.randn(rows, inputs, generator=generator), weight))

    def products() -> list[torch.Tensor]:
        return [native.linear_int8(x, weight, dynamic) for x, weight in cases for dynamic in (False, True)]

    here = products()
    with compiled_for(processor):
        there = products()
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("processor", [None, *PROCESSORS])
def test_products_of_floats_on_other_processors(processor: str | None) -> None:
    """Few rows and many, of which some fill no vector, no panel or no strip."""
    generator = torch.Generator().manual_seed(0)
    if not native.available():
        pytest.skip("there is no C compiler")
    with compiled_for(processor) if processor else nullcontext(), torch.inference_mode():
        for rows, outputs, inputs in product((1, 4, 15, 33, 48, 64, 65, 130), (5, 48, 50, 101), (3, 128, 130, 300)):
            x, weight = (torch.randn(n, inputs, generator=generator) for n in (rows, outputs))
            torch.testing.assert_close(native.linear_float(x, weight), x @ weight.T, atol=1e-4, rtol=1e-5)
