"""Training run directories become checkpoints; what is damaged or unsafe is refused and writes nothing."""

from __future__ import annotations

import io
import json
import os
import random
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from test_model import model as small_model
from torch import Tensor

from ds2ds.errors import CheckpointError
from ds2ds.model.checkpoint import load_checkpoint
from ds2ds.model.import_run import import_run, load_run

model = partial(small_model, num_layers=3)

HYPERPARAMETERS: dict[str, Any] = {
    "model": {
        "num_layers": 3,
        "model_dim": 16,
        "num_heads": 2,
        "max_seq_len": 32,
        "mask_type": "doc_causal",
        "link_detector": "markdown",
        "weight_tying": True,
        "dropout": 0.1,
        "compile": True,
    },
    "data": {"layout_policy": None, "batch_size": 8},
    "optimizer": {"lr": 0.01},
}


def tied_state() -> dict[str, Tensor]:
    return dict(model().state_dict())


def write_run(folder: Path, state: Any, data: dict[str, Any] | None = None, **model_settings: Any) -> Path:
    """A run directory; `state` is what the checkpoint has under "model"."""
    (folder / "checkpoints").mkdir(parents=True)
    settings = {**HYPERPARAMETERS, "model": {**HYPERPARAMETERS["model"], **model_settings}}
    if data is not None:
        settings["data"] = data
    (folder / "hyperparameters.json").write_text(json.dumps(settings))
    torch.save({"model": state, "step": 100, "optimizer": {"lr": 0.1}}, folder / "checkpoints" / "best_model.pt")
    return folder


def refuse(run: Path, message: str) -> None:
    """Importing fails with this message, and nothing is written."""
    out = run.parent / "out"
    with pytest.raises(CheckpointError, match=message):
        import_run(run, out)
    assert not out.exists()


def prefixed(state: dict[str, Tensor], prefix: str, module: str) -> dict[str, Tensor]:
    """As torch.compile names what lies below `module`."""
    return {
        f"{module}{prefix}{name.removeprefix(module)}" if name.startswith(module) else name: tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("module", ["", "backbone.", "loss_fn.", None])
@pytest.mark.parametrize("weight_tying", [True, False])
def test_a_run_becomes_a_checkpoint(module: str | None, weight_tying: bool, tmp_path: Path) -> None:
    trained = model(weight_tying=weight_tying)
    state = dict(trained.state_dict())
    stored = state if module is None else prefixed(state, "_orig_mod.", module)
    assert module is None or any("_orig_mod." in name for name in stored)
    run = write_run(tmp_path / "run", stored, weight_tying=weight_tying)
    config = import_run(run, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.config == config
    assert (config.vocab_size, config.num_layers, config.model_dim, config.num_heads) == (11, 3, 16, 2)
    assert (config.max_seq_len, config.mask_type, config.link_detector) == (32, "doc_causal", "markdown")
    assert config.weight_tying is weight_tying
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(
    ("data", "layout"),
    [
        ({"layout_policy": None}, "null"),
        ({"layout_policy": "null"}, "null"),
        ({}, "null"),
        (None, "null"),
        ({"layout_policy": "bos_eos"}, "bos_eos"),
        ({"layout_policy": "identifier_prefix"}, "identifier_prefix"),
        ({"layout_policy": "identifier_prefix_bos_eos"}, "identifier_prefix_bos_eos"),
    ],
)
def test_layouts(data: dict[str, Any] | None, layout: str, tmp_path: Path) -> None:
    assert load_run(write_run(tmp_path / "run", tied_state(), data)).config.layout_policy == layout


def test_a_run_may_say_nothing_of_its_data(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tied_state())
    for settings in ({"model": HYPERPARAMETERS["model"]}, {"model": HYPERPARAMETERS["model"], "data": None}):
        (run / "hyperparameters.json").write_text(json.dumps(settings))
        assert load_run(run).config.layout_policy == "null"


def test_the_weights_say_whether_the_head_is_tied(tmp_path: Path) -> None:
    untied = dict(model(weight_tying=False).state_dict())
    assert load_run(write_run(tmp_path / "a", untied, weight_tying=True)).config.weight_tying is False
    assert load_run(write_run(tmp_path / "b", tied_state(), weight_tying=False)).config.weight_tying is True


def test_a_tied_run_may_leave_out_the_head(tmp_path: Path) -> None:
    state = tied_state()
    del state["loss_fn.weight"]
    loaded = load_run(write_run(tmp_path / "run", state))
    assert loaded.loss_fn.weight is loaded.embedding.weight
    assert torch.equal(loaded.embedding.weight, state["embedding.weight"])


def test_an_untied_run_without_its_head_is_refused(tmp_path: Path) -> None:
    state = tied_state()
    del state["loss_fn.weight"]
    refuse(write_run(tmp_path / "run", state, weight_tying=False), "missing loss_fn.weight")


def test_parameters_are_tensors_too(tmp_path: Path) -> None:
    state = {name: torch.nn.Parameter(tensor) for name, tensor in tied_state().items()}
    loaded = load_run(write_run(tmp_path / "run", state))
    assert torch.equal(loaded.embedding.weight, state["embedding.weight"])


# Refused.


@pytest.mark.parametrize("file", ["hyperparameters.json", "checkpoints/best_model.pt"])
def test_missing_files(file: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tied_state())
    (run / file).unlink()
    refuse(run, rf"no {file} in .*run: not a training run directory")


def test_a_missing_folder(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", r"no hyperparameters.json in .*nowhere")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"model"', "{}", '{"model": 3}', '{"model": "abc"}', '{"model": {}, "data": ["bos_eos"]}']
)
def test_damaged_hyperparameters(text: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tied_state())
    (run / "hyperparameters.json").write_text(text)
    refuse(run, "hyperparameters.json must hold {'model'")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 0}, "hyperparameters.json: num_layers must be a positive integer, got 0"),
        ({"num_heads": "2"}, "hyperparameters.json: num_heads must be a positive integer, got '2'"),
        ({"mask_type": "diagonal"}, "hyperparameters.json: mask_type must be one of"),
        ({"mask_type": {}}, "hyperparameters.json: "),
        ({"model_dim": 32}, r"best_model.pt does not fit .*embedding.weight has shape \[11, 16\], expected \[11, 32\]"),
        ({"num_layers": 2}, "unexpected backbone.layers.2.attn.Wqkv"),
        ({"num_layers": 4}, "missing backbone.layers.3.attn.Wqkv"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    refuse(write_run(tmp_path / "run", tied_state(), **settings), message)


def test_missing_settings_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tied_state())
    (run / "hyperparameters.json").write_text('{"model": {"model_dim": 16}}')
    refuse(run, r"hyperparameters.json: missing model settings \['num_layers', 'num_heads', 'max_seq_len'\]")


@pytest.mark.parametrize("settings", [{"max_seq_len": None}, {"num_heads": None}])
def test_settings_that_are_null_are_missing(settings: dict[str, Any], tmp_path: Path) -> None:
    (name,) = settings
    refuse(write_run(tmp_path / "run", tied_state(), **settings), rf"missing model settings \['{name}'\]")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_base": 10000}, "rope_base is 10000, but models are computed with 1024 here"),
        ({"rope_theta": "10k"}, "rope_theta is '10k', but models are computed with 1024 here"),
        ({"head_dim": 4}, "head_dim is 4, but models are computed with 8 here"),
        ({"attn_scale": 0.12}, "attn_scale is 0.12, but models are computed with 0.353553 here"),
    ],
)
def test_what_the_weights_do_not_show_is_refused_where_it_differs(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    refuse(write_run(tmp_path / "run", tied_state(), **settings), f"hyperparameters.json: {message}")


def test_what_the_weights_do_not_show_is_taken_where_it_is_the_same(tmp_path: Path) -> None:
    same = {"rope_base": 1024, "head_dim": 8, "attn_scale": 8**-0.5, "softcap": None, "use_checkpointing": True}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_run(write_run(tmp_path / "run", tied_state(), **same))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"softcap": 15, "bias": False},
            "settings that are unknown here: bias False, softcap 15. They are passed over",
        ),
        ({"mask_type": None}, "names no mask_type: the model is taken for 'cross_doc_link'"),
    ],
)
def test_what_may_change_results_is_told(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tied_state(), **settings)
    with pytest.warns(UserWarning, match=message):
        load_run(run)


@pytest.mark.parametrize("layout", ["title_first", 3, ["bos_eos"]])
def test_an_unknown_layout(layout: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tied_state(), {"layout_policy": layout})
    refuse(run, "hyperparameters.json: layout_policy must be one of")


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = tied_state()
    state["extra"] = torch.zeros(2)
    state["backbone.skip_weights"] = torch.ones(2)
    del state["backbone.layers.0.mlp.Wdown.weight"]
    run = write_run(tmp_path / "run", state)
    refuse(run, "(?s)missing backbone.layers.0.mlp.Wdown.weight.*unexpected extra.*skip_weights has shape")


def test_a_state_without_an_embedding_says_what_is_there(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"encoder.weight": torch.zeros(2, 2)})
    refuse(run, r"best_model.pt has no embedding.weight; it has \['encoder.weight'\]")


@pytest.mark.parametrize(
    "saved",
    [
        [torch.zeros(2)],
        {"state_dict": {}},
        {"model": [1, 2]},
        torch.zeros(3),
    ],
    ids=["list", "another key", "no dict", "tensor"],
)
def test_something_else_in_the_file(saved: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tied_state())
    torch.save(saved, run / "checkpoints" / "best_model.pt")
    refuse(run, r"best_model.pt must hold {'model': state_dict}")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("embedding.weight", "text", "its 'model' must map names to tensors, got 'embedding.weight': str"),
        (1, torch.zeros(3), "its 'model' must map names to tensors, got 1: Tensor"),
        ("loss_fn.weight", torch.zeros(11, 16, device="meta"), "loss_fn.weight is a meta tensor, which has no numbers"),
        ("backbone.skip_weights", torch.ones(1).to_sparse(), "backbone.skip_weights is a tensor of layout"),
    ],
    ids=["no tensor", "no name", "meta", "sparse"],
)
def test_something_else_in_the_state_dict(name: Any, value: Any, told: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {**tied_state(), name: value})
    refuse(run, f"best_model.pt: {told}")


class Intruder:
    """Unpickled without care, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(zipped: bool, tmp_path: Path) -> None:
    target = tmp_path / "broken_in"
    run = write_run(tmp_path / "run", tied_state())
    file = run / "checkpoints" / "best_model.pt"
    torch.save({"model": tied_state(), "x": Intruder(target)}, file, _use_new_zipfile_serialization=zipped)
    refuse(run, "holds more than tensors and is not unpickled, since that could run code")
    assert not target.exists()
    torch.load(file, weights_only=False)  # it would have run
    assert target.exists()


def test_what_is_not_unpickled_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tied_state())
    torch.save({"model": tied_state(), "loss": np.float64(2.5)}, run / "checkpoints" / "best_model.pt")
    refuse(run, r"not unpickled, .* alone \(Unsupported global: GLOBAL numpy\S+ was not an allowed global.*\)$")


def zipped(count: int) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": tied_state()}, buffer)
    return buffer.getvalue()[:count]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", r"empty; what torch.save wrote is needed, {'model': model.state_dict\(\)} \(EOFError\)$"),
        (b"no such page\nat all", r"text that starts with 'no such page'; .* \(Unsupported operand 110\)$"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS, and `git lfs pull` gets the file"),
        (zipped(900), r"cut off or damaged, .*failed finding central directory\)$"),
        (save({"embedding.weight": torch.zeros(11, 16)}), r"a safetensors file; .*\(Unsupported operand \d+\)$"),
        (b"\x93NUMPY" + bytes(60), "damaged, or of another program; what torch.save wrote is needed"),
    ],
    ids=["empty", "text", "pointer", "cut off", "safetensors", "other"],
)
def test_a_file_that_torch_did_not_write_is_told_for_what_it_is(data: bytes, told: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tied_state())
    (run / "checkpoints" / "best_model.pt").write_bytes(data)
    refuse(run, f"cannot read .*best_model.pt: it is {told}")


def damaged(data: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(3)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        return rng.randbytes(rng.randrange(60))
    changed = bytearray(data)
    for _ in range(3):
        changed[rng.randrange(min(len(data), 2000))] = rng.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_the_damage_it_is_a_checkpoint_error(zipped: bool, tmp_path: Path) -> None:
    """Reading fails in a dozen ways (KeyError, IndexError, struct.error, ...); none of them comes through."""
    run = write_run(tmp_path / "run", tied_state())
    buffer = io.BytesIO()
    torch.save({"model": tied_state()}, buffer, _use_new_zipfile_serialization=zipped)
    rng, refused = random.Random(0), 0
    for _ in range(150):
        (run / "checkpoints" / "best_model.pt").write_bytes(damaged(buffer.getvalue(), rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load_run(run)  # a changed weight is not damage that can be seen
            except CheckpointError as error:
                assert "best_model.pt" in str(error)
                refused += 1
    assert refused > 75
