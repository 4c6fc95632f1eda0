"""The C files: compiled once, found again, done without where they cannot be had; the same bits on every processor."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from homeless import no_home
from processors import PROCESSORS, compiled_for

from ds2ds import DS2DSModel, Runtime
from ds2ds.model.int8_weight import LARGEST, MOST_INPUTS
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
    with pytest.warns(RuntimeWarning, match="every process compiles it anew") as told:
        loaded = library()
    assert "can be written to by others" in str(told[0].message)
    assert list(folder.iterdir()) == []
    if loaded is None:
        pytest.skip("there is no C compiler")
    assert torch.equal(native.gated_unit(torch.zeros(1, 4)), torch.zeros(1, 2))


def test_what_cannot_be_kept_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands where the folder is to be; and what is kept already is used though nothing can be added."""
    if library() is None:
        pytest.skip("there is no C compiler")
    (made,) = folder.iterdir()
    library.cache_clear()
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "nowhere"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library() is not None
    library.cache_clear()
    made.unlink()
    folder.rmdir()
    folder.touch()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(module.tempfile, "tempdir", str(scratch))
    with pytest.warns(RuntimeWarning, match=r"cannot be kept .* XDG_CACHE_HOME\."):
        assert library() is not None
    assert list(scratch.iterdir()) == []


def test_what_a_compiler_is_told_is_told_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if library() is None:
        pytest.skip("there is no C compiler")
    monkeypatch.setenv("CC", shlex.join([*module._compiler(), "-DOTHER"]))
    library.cache_clear()
    assert library() is not None and len(list(folder.iterdir())) == 2


def test_without_a_home_or_with_half_a_command_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    no_home(monkeypatch)
    with pytest.warns(RuntimeWarning, match=r"has no home.*a folder of the user's own, .*XDG_CACHE_HOME\."):
        library()
    library.cache_clear()
    monkeypatch.setenv("CC", "gcc 'x")
    with pytest.warns(RuntimeWarning, match="No closing quotation"):
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


def test_a_default_device_of_the_users_changes_nothing() -> None:
    if not native.available():
        pytest.skip("there is no C compiler")
    x, weight = torch.randn(50, 20), torch.randn(30, 20)
    packed = native.pack_int8(torch.ones(30, 20, dtype=torch.int8), torch.ones(30))

    def results() -> list[torch.Tensor]:
        return [native.linear_float(x, weight), native.linear_int8(x, packed), native.rms_norm(x), native.gated_unit(x)]

    expected = results()
    arena, moved = (torch.arange(40.0).view(1, 20, 2) for _ in range(2))
    native.move_slots(moved, [(8, 2, 5)])
    with torch.device("meta"):
        ours = results()
        native.move_slots(arena, [(8, 2, 5)])
    assert all(map(torch.equal, (*ours, arena), (*expected, moved)))


def test_what_these_functions_take() -> None:
    if not native.available():
        pytest.skip("there is no C compiler")
    x = torch.ones(2)
    with torch.no_grad():
        assert native.takes(x, x)
        for other in (x.double(), x.to("meta")):
            assert not native.takes(other) and not native.takes(x, other)
    assert not native.takes(x)


def test_what_is_given_may_lie_in_any_order() -> None:
    if not native.available():
        pytest.skip("there is no C compiler")
    x, weight = torch.randn(20, 50).t(), torch.randn(20, 30).t()
    packed = native.pack_int8(torch.ones(30, 20, dtype=torch.int8), torch.ones(30))
    torch.testing.assert_close(native.linear_float(x, weight), x @ weight.t(), atol=1e-5, rtol=1e-5)
    for function in (native.rms_norm, native.gated_unit, lambda x: native.linear_int8(x, packed)):
        assert torch.equal(function(x), function(x.contiguous()))


@pytest.mark.parametrize(("rows", "inputs"), [(1, 70), (5, 3), (64, 70), (65, 3)])
def test_the_room_that_products_are_given_suffices(rows: int, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.available():
        pytest.skip("there is no C compiler")
    x, packed = torch.randn(rows, inputs), native.pack_int8(torch.ones(50, inputs, dtype=torch.int8), torch.ones(50))
    rooms = []

    def guarded(size: int, **options: Any) -> torch.Tensor:
        rooms.append((size, torch.full((size + 2**16,), 165, **options)))
        return rooms[-1][1][:size]

    monkeypatch.setattr(torch, "empty", guarded)
    for dynamic in (False, True):
        native.linear_int8(x, packed, dynamic)
    assert len(rooms) == 2
    for size, whole in rooms:
        assert (whole[size:] == 165).all()


def test_products_without_inputs_are_zeros() -> None:
    if not native.available():
        pytest.skip("there is no C compiler")
    for rows in (0, 1, 50):
        assert torch.equal(native.linear_float(torch.ones(rows, 0), torch.ones(9, 0)), torch.zeros(rows, 9))


@pytest.mark.parametrize("shape", [(1, 5), (3, 16), (4, 2, 3, 20), (40, 70)])
def test_rms_norm_is_torchs(shape: tuple[int, ...]) -> None:
    if not native.available():
        pytest.skip("there is no C compiler")
    x = torch.randn(shape)
    for view in (x, x[:, : max(1, shape[1] // 2)], x.transpose(0, 1)):
        torch.testing.assert_close(native.rms_norm(view), torch.nn.functional.rms_norm(view, view.shape[-1:]))


def test_rms_norm_of_rows_near_zero() -> None:
    if not native.available():
        pytest.skip("there is no C compiler")
    for size in (0, 1e-30, 1e-4, 3e-4):
        x = torch.randn(3, 20, generator=torch.Generator().manual_seed(0)) * size
        torch.testing.assert_close(native.rms_norm(x), torch.nn.functional.rms_norm(x, (20,)))


def test_nothing_is_written_beyond_the_results() -> None:
    if not native.available():
        pytest.skip("there is no C compiler")

    def check(function: str, count: int, *given: object, room: tuple[int, ...] = ()) -> None:
        out = torch.full((count + 1024,), torch.nan)
        pointers = (one.data_ptr() if isinstance(one, torch.Tensor) else one for one in given)
        getattr(native.compiled(), function)(*pointers, out.data_ptr(), *room, 2)
        assert out[:count].isfinite().all() and out[count:].isnan().all()

    for rows, outputs, inputs in product((1, 3, 5, 33, 41, 65), (5, 50), (3, 70)):
        x, both, weight = torch.ones(rows, inputs), torch.ones(rows, 2 * inputs), torch.ones(outputs, inputs)
        packed = native.pack_int8(weight.to(torch.int8), torch.ones(outputs))
        room = torch.empty(native.int8_room(rows, inputs, 3), dtype=torch.uint8)
        check("linear_float", rows * outputs, rows, inputs, outputs, x, weight)
        for digits in (1, 3):
            given = (rows, inputs, outputs, digits, x, *packed)
            check("linear_int8", rows * outputs, *given, room=(room.data_ptr(),))
        check("rms_norm", rows * inputs, rows, 1, inputs, x, inputs, 1e-7)
        check("gated_unit", rows * inputs, rows, inputs, both)


def test_int8_rows_of_any_size_keep_their_largest_number() -> None:
    if not native.available():
        pytest.skip("there is no C compiler")
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-29, 38, (20_000, 1), generator=generator)
    x = (torch.rand(20_000, 1, generator=generator) + 0.2) * 10.0**exponents
    one = native.pack_int8(torch.ones(1, 1, dtype=torch.int8), torch.ones(1))
    for dynamic in (False, True):
        for rows in (x, -x):
            torch.testing.assert_close(native.linear_int8(rows, one, dynamic), rows, rtol=1e-6, atol=0)
    for tiny in (0.0, 1e-45, 1e-38, -1e-38):
        assert native.linear_int8(torch.full((1, 1), tiny), one).abs() < 1e-30
    for small in (1e-31, -1e-33):
        rows = torch.full((1, 1), small)
        torch.testing.assert_close(native.linear_int8(rows, one), rows, rtol=0, atol=1.2e-37)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_int8_products_have_the_same_bits_whatever_instructions_there_are(processor: str) -> None:
    generator = torch.Generator().manual_seed(0)
    cases = []
    sizes = [(1, 5, 3), (2, 16, 64), (3, 33, 70), (5, 129, 50), (7, 64, 4), (23, 100, 130), (1, 5, 4097), (5, 40, 9000)]
    for rows, outputs, inputs in sizes:
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
def test_the_largest_numbers_of_most_inputs_add_up(processor: str | None) -> None:
    """Digits' products add up in 32 bits."""
    if not native.available():
        pytest.skip("there is no C compiler")
    x = torch.tensor([1.0, -1.0, 1.0])[:, None].repeat(1, MOST_INPUTS)
    x[2, ::2] = 0.0
    values = torch.full((2, MOST_INPUTS), LARGEST, dtype=torch.int8)
    values[1] = -LARGEST
    weight = native.pack_int8(values, torch.ones(2))
    with compiled_for(processor) if processor else nullcontext():
        for dynamic in (False, True):
            torch.testing.assert_close(native.linear_int8(x, weight, dynamic), x @ values.float().T, rtol=1e-6, atol=0)


@pytest.mark.parametrize("processor", [None, *PROCESSORS])
def test_products_of_floats_on_other_processors(processor: str | None) -> None:
    """Few rows and many, of which some fill no tile or no group."""
    generator = torch.Generator().manual_seed(0)
    if not native.available():
        pytest.skip("there is no C compiler")
    with compiled_for(processor) if processor else nullcontext(), torch.inference_mode():
        for rows, outputs, inputs in product((1, 4, 15, 33, 48, 64, 65, 130), (5, 48, 50, 101), (3, 128, 130, 300)):
            x, weight = (torch.randn(n, inputs, generator=generator) for n in (rows, outputs))
            torch.testing.assert_close(native.linear_float(x, weight), x @ weight.T, atol=1e-4, rtol=1e-5)
