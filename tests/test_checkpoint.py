"""Checkpoint folders: what is saved comes back, damage is named, and a failed save changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_model import model
from torch import Tensor

import ds2ds
from ds2ds.errors import CheckpointError
from ds2ds.model import checkpoint
from ds2ds.model.checkpoint import demo_path, load_checkpoint, save_checkpoint

FILES = ["config.json", "model.safetensors"]


def contents(folder: Path) -> dict[str, bytes]:
    """All files, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(model(), tmp_path / "ck")
    return tmp_path / "ck"


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors")


# What is saved comes back.


@pytest.mark.parametrize("weight_tying", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip(weight_tying: bool, num_layers: int, dtype: torch.dtype, tmp_path: Path) -> None:
    saved = model(num_layers=num_layers, weight_tying=weight_tying, mask_type="doc_causal", layout_policy="bos_eos")
    saved.to(dtype)
    save_checkpoint(saved, tmp_path / "a" / "b")
    assert sorted(contents(tmp_path / "a" / "b")) == FILES
    loaded = load_checkpoint(str(tmp_path / "a" / "b"))
    assert loaded.config == saved.config
    assert loaded.dtype == dtype
    assert not loaded.training
    assert (loaded.loss_fn.weight is loaded.embedding.weight) is weight_tying
    ours, theirs = loaded.state_dict(), saved.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded.forward_inference(tokens), saved.forward_inference(tokens))


@pytest.mark.parametrize("weight_tying", [True, False])
def test_a_tied_head_is_stored_once(weight_tying: bool, tmp_path: Path) -> None:
    save_checkpoint(model(weight_tying=weight_tying), tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as opened:
        names = set(opened.keys())
        assert opened.metadata() == {"format": "pt"}
    assert "embedding.weight" in names
    assert ("loss_fn.weight" in names) is not weight_tying


def test_the_dtype_asked_for_wins_over_the_files(folder: Path) -> None:
    loaded = load_checkpoint(folder, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert loaded.rotary.cos.dtype == torch.float32
    assert torch.equal(loaded.embedding.weight, model().embedding.weight.bfloat16())


def test_config_is_json_of_the_models_settings(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text()) == model().config.to_dict()


def test_a_tied_checkpoint_may_hold_the_same_head_again(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({"loss_fn.weight": state["embedding.weight"].clone()}))
    loaded = load_checkpoint(folder)
    assert loaded.loss_fn.weight is loaded.embedding.weight


def test_the_demo_lies_in_the_package(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert demo_path() == Path(ds2ds.__file__).parent / "data" / "demo"
    monkeypatch.setattr(checkpoint, "demo_path", lambda: folder)
    assert load_checkpoint("demo").config == model().config


# Damage.


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config.json in .*nowhere \(the folder does not exist\)"):
        load_checkpoint(tmp_path / "nowhere")


def test_a_missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config.json in .*ck \(it is not there\).*ds2ds model import"):
        load_checkpoint(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model.safetensors in .*ck$"):
        load_checkpoint(folder)


def test_weights_that_are_a_link_to_nowhere(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("blobs/1")
    with pytest.raises(CheckpointError, match=r"no model.safetensors in .*: it is a link to .*1, which is not there"):
        load_checkpoint(folder)


def test_a_config_that_an_editor_gave_a_byte_order_mark(folder: Path) -> None:
    config = folder / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    load_checkpoint(folder)


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*config.json"):
        load_checkpoint(folder / "model.safetensors")


@pytest.mark.parametrize(
    "text", [b'{"vocab_size": 11,', b"", b"\xff\xfe", b"[" * 100_000], ids=["cut", "empty", "no UTF-8", "deep"]
)
def test_a_damaged_config(text: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"cannot read .*config.json: "):
        load_checkpoint(folder)


def test_a_config_that_is_no_object(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(CheckpointError, match=r"config.json must hold an object, got list"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3, "bias": True}, r"config.json: unknown model settings \['bias', 'depth'\]"),
        ({"num_heads": 0}, r"config.json: num_heads must be a positive integer, got 0"),
        ({"mask_type": "diagonal"}, r"config.json: mask_type must be one of .* got 'diagonal'"),
        ({"mask_type": ["causal"]}, r"config.json: mask_type must be one of .* got \['causal'\]"),
        ({"weight_tying": None}, r"config.json: weight_tying must be True or False, got None"),
        ({"tokenizer": None}, r"config.json: tokenizer must be the name of a tokenizer, got None"),
        ({"vocab_size": 10**13}, r"there is no memory for ModelConfig\(vocab_size=10000000000000, "),
        ({"max_seq_len": 10**13}, r"there is no memory for ModelConfig\("),
        ({"layout_policy": None}, r"config.json: layout_policy must be one of"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str, folder: Path) -> None:
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_a_missing_setting(folder: Path) -> None:
    (folder / "config.json").write_text('{"vocab_size": 11, "model_dim": 16, "num_heads": 2}')
    with pytest.raises(CheckpointError, match=r"config.json: missing model settings \['num_layers'\]"):
        load_checkpoint(folder)


def cut(data: bytes) -> bytes:
    return data[: len(data) - 100]


def scramble_header(data: bytes) -> bytes:
    return data[:8] + b"\xff" * 32 + data[40:]


def test_weights_that_may_not_be_read_are_not_said_to_be_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "model.safetensors":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"cannot read .*model.safetensors: .*Permission denied"):
        load_checkpoint(folder)


@pytest.mark.parametrize("damage", [cut, scramble_header, lambda data: b"", lambda data: b"not safetensors"])
def test_damaged_weights(damage: Callable[[bytes], bytes], folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"cannot read .*model.safetensors: "):
        load_checkpoint(folder)


def test_missing_unexpected_and_misshapen_tensors_are_all_named(folder: Path) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        del state["backbone.layers.0.attn.Wqkv"]
        del state["backbone.skip_weights"]
        state["backbone.layers.2.attn.Wqkv"] = torch.zeros(3, 16, 16)
        state["extra"] = torch.zeros(1)
        state["backbone.layers.1.mlp.Wdown.weight"] = torch.zeros(128, 16)
        state["backbone.layers.1.attn.Wout.weight"] = torch.zeros(16, 16, dtype=torch.int32)

    edit_weights(folder, edit)
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(folder)
    message = str(raised.value)
    assert str(folder / "model.safetensors") in message
    for problem in (
        "missing backbone.layers.0.attn.Wqkv",
        "missing backbone.skip_weights",
        "unexpected backbone.layers.2.attn.Wqkv",
        "unexpected extra",
        "backbone.layers.1.mlp.Wdown.weight has shape [128, 16], expected [16, 128]",
        "backbone.layers.1.attn.Wout.weight is torch.int32, expected floats",
    ):
        assert problem in message
    assert "more" not in message


def test_of_many_problems_the_first_are_named_and_the_rest_counted(folder: Path) -> None:
    edit_config(folder, num_layers=5)  # three layers of four tensors are missing, and a skip weight
    with pytest.raises(CheckpointError, match=r"missing backbone.layers.2.attn.Wqkv; .*, and 5 more$"):
        load_checkpoint(folder)


def test_layers_without_number_are_not_made(folder: Path) -> None:
    edit_config(folder, num_layers=10**9)
    with pytest.raises(CheckpointError, match=r"does not fit .*: it has \d+ tensors, fewer than layers"):
        load_checkpoint(folder)


def test_a_missing_embedding(folder: Path) -> None:
    edit_weights(folder, lambda state: state.pop("embedding.weight"))
    with pytest.raises(CheckpointError, match=r"missing embedding.weight"):
        load_checkpoint(folder)


def test_an_untied_checkpoint_needs_its_head(folder: Path) -> None:
    edit_config(folder, weight_tying=False)
    with pytest.raises(CheckpointError, match=r"missing loss_fn.weight"):
        load_checkpoint(folder)


def test_a_tied_checkpoint_with_another_head_is_refused(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({"loss_fn.weight": state["embedding.weight"] + 1}))
    with pytest.raises(CheckpointError, match=r"weight_tying is on, but loss_fn.weight differs from embedding.weight"):
        load_checkpoint(folder)


def test_a_tied_head_is_not_told_from_itself_by_nan(folder: Path) -> None:
    edit_weights(folder, lambda state: state["embedding.weight"].fill_(torch.nan))
    assert bool(load_checkpoint(folder).embedding.weight.isnan().all())


def test_a_misshapen_head(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({"loss_fn.weight": torch.zeros(10, 16)}))
    with pytest.raises(CheckpointError, match=r"loss_fn.weight has shape \[10, 16\], expected \[11, 16\]"):
        load_checkpoint(folder)


# A failed save.


def failing_save_file(state: dict[str, Tensor], file: Path, **options: Any) -> None:
    Path(file).write_bytes(b"half of a file")
    raise OSError("disk full")


def test_a_save_that_fails_leaves_the_old_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)
    monkeypatch.setattr(checkpoint, "save_file", failing_save_file)
    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint to .*disk full"):
        save_checkpoint(model(1, num_layers=4), folder)
    assert contents(folder) == before


def test_a_save_that_fails_leaves_nothing_in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "save_file", failing_save_file)
    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint to .*disk full"):
        save_checkpoint(model(), tmp_path / "new")
    assert contents(tmp_path / "new") == {}


def test_a_config_that_cannot_be_written_leaves_the_old_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of one model under the configuration of another would be worse than either."""
    before = contents(folder)

    def fail(path: Path, *arguments: Any, **options: Any) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint to .*disk full"):
        save_checkpoint(model(1, num_layers=4), folder)
    monkeypatch.undo()
    assert contents(folder) == before


def test_saving_again_replaces_both_files(folder: Path) -> None:
    other = model(1, num_layers=4, weight_tying=False)
    save_checkpoint(other, folder)
    assert sorted(contents(folder)) == FILES
    loaded = load_checkpoint(folder)
    assert loaded.config == other.config
    assert torch.equal(loaded.loss_fn.weight, other.loss_fn.weight)
