"""Training runs of every kind, from their directory to what they write: layouts, heads, masks, compile prefixes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from scripted import EOS, TOKENIZER, Texts, encode, follow, grants, is_clean
from torch import Tensor

from ds2ds import ConfigError, Runtime
from ds2ds.attention.masks import BIDIRECTIONAL
from ds2ds.documents.layout import LAYOUT_POLICIES, Layout
from ds2ds.errors import CheckpointError
from ds2ds.generation.events import LinkClosed
from ds2ds.model.checkpoint import load_checkpoint
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.model.import_run import import_run, load_run
from ds2ds.tokenizer import as_tokenizer

DECODED = ("cross_doc_link", "doc_causal", "causal")
CORPUS = {"A": "about [b](B).", "B": "a leaf"}
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 60,
    "max_tokens_per_document": 200,
    "max_context_length": 512,
    "max_link_depth": 2,
    "seed": 0,
    "logprobs": True,
}


def trained(vocab_size: int = TOKENIZER.vocab_size, weight_tying: bool = True, **settings: Any) -> DS2DSModel:
    shape = {"num_layers": 2, "model_dim": 32, "num_heads": 2, "max_seq_len": 512}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        model = DS2DSModel.from_config(vocab_size=vocab_size, weight_tying=weight_tying, **{**shape, **settings})
        model.backbone.skip_weights.uniform_(0.5, 1.5)
    return model


def write_run(
    folder: Path,
    model: DS2DSModel,
    layout: str = "null",
    state: dict[str, Tensor] | None = None,
    **settings: Any,
) -> Path:
    """A run directory as training leaves it, with much that only training needs."""
    config = model.config
    shape = {name: getattr(config, name) for name in ("num_layers", "model_dim", "num_heads", "max_seq_len")}
    about = {"mask_type": config.mask_type, "link_detector": "markdown", "weight_tying": config.weight_tying}
    extra = {"dropout": 0.0, "compile": True, "attn_scale": None}
    hyperparameters = {
        "model": {**shape, **about, **extra, **settings},
        "data": {"layout_policy": None if layout == "null" else layout, "shuffle": True},
        "optimizer": {"lr": 0.01},
    }
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    state = dict(model.state_dict()) if state is None else state
    optimizer = {"state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"model": state, "optimizer": optimizer, "step": 5}, folder / "checkpoints" / "best_model.pt")
    return folder


def compiled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As torch.compile of each layer, and DistributedDataParallel around it all, name the tensors."""
    return {"module." + name.replace("layers.0.", "layers.0._orig_mod."): tensor for name, tensor in state.items()}


def agrees_with_oracle(result: Any, model: DS2DSModel) -> None:
    known: dict[str, oracle.Document] = {}
    for document in (*result.auxiliary_documents, result.root_document):
        read = [(position, known[title], end) for position, title, end in grants(document)]
        known[document.title] = oracle.Document(document.title, list(document.tokens), read)
    for title, scores in zip(known, oracle.Oracle(model).log_probs([*known.values()]), strict=True):
        found = result.get_document_by_title(title)
        predicted = np.flatnonzero(~np.isnan(found.token_logprobs))
        expected = [float(scores[index - 1, found.tokens[index]]) for index in predicted]
        np.testing.assert_allclose(found.token_logprobs[predicted], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("layout", "weight_tying", "mask_type", "prefixes"),
    list(itertools.product(LAYOUT_POLICIES, (True, False), DECODED, (True, False))),
)
def test_from_a_run_directory_to_linked_documents(
    layout: str, weight_tying: bool, mask_type: str, prefixes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(weight_tying=weight_tying, mask_type=mask_type)
    state = compiled(dict(model.state_dict())) if prefixes else None
    assert not prefixes or all(name.startswith("module.") for name in state or ())
    config = import_run(write_run(tmp_path / "run", model, layout, state), tmp_path / "out")
    assert (config.layout_policy, config.weight_tying, config.mask_type) == (layout, weight_tying, mask_type)

    follow(monkeypatch, {"Root": " then [q](Q) and [a](A) end", "Q": "made"})
    runtime = Runtime.from_pretrained(tmp_path / "out", "cpu", tokenizer=TOKENIZER, arena_tokens=2048)
    result = runtime.generate("see [a](A),", corpus=Texts(CORPUS), title="Root", **OPTIONS)
    assert is_clean(runtime)

    # S1: prefix, body, suffix; what is written ends with the EOS that is drawn.
    around = Layout(layout, encode, EOS)
    tokens = {document.title: list(document.tokens) for document in result.get_all_documents()}
    prompt, written = encode("see [a](A),"), encode(" then [q](Q) and [a](A) end")
    assert tokens == {
        "Root": [*around.prefix("Root"), *prompt, *written, EOS],
        "A": around.wrap("A", encode(CORPUS["A"])),
        "B": around.wrap("B", encode(CORPUS["B"])),
        "Q": [*(around.prefix("Q") or [EOS]), *encode("made"), EOS],
    }
    assert [document.title for document in result.auxiliary_documents] == ["B", "A", "Q"]

    # Only a model that was trained to read what it links to does.
    root, start = result.root_document, len(around.prefix("Root"))
    # The prompt's `),` are two tokens; the link closes in the first.
    links = [("A", len(encode("see [a](A)"))), ("Q", len(prompt) + len(encode(" then [q](Q)")))]
    expected = [(start + position, title, None) for title, position in links] if mask_type == "cross_doc_link" else []
    assert grants(root) == expected
    agrees_with_oracle(result, load_checkpoint(tmp_path / "out"))


@pytest.mark.parametrize("mask_type", ["doc_causal", "causal"])
def test_a_model_that_reads_one_document_gives_the_numbers_of_its_own_full_pass(
    mask_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(monkeypatch, {"": " and [q](Q) on", "Q": "made"})
    model = trained(mask_type=mask_type)
    runtime = Runtime(model, TOKENIZER, arena_tokens=2048)
    events = list(runtime.stream("see [a](A)", corpus=Texts(CORPUS), **OPTIONS))
    result = events[-1].result  # type: ignore[union-attr]
    assert len(result.auxiliary_documents) == 3
    for document in result.get_all_documents():
        assert not document.grants
        full = model.forward_inference(torch.tensor([document.tokens])).log_softmax(-1)[0]
        for index in np.flatnonzero(~np.isnan(document.token_logprobs)):
            assert abs(full[index - 1, document.tokens[index]] - document.token_logprobs[index]) < 1e-4
    closed = [event for event in events if isinstance(event, LinkClosed)]
    assert [event.outcome for event in closed] == ["corpus", "corpus", "generated"]
    assert {event.reason for event in closed} == {f"not read: the model's mask_type is {mask_type}"}


def test_a_checkpoints_mask_type_may_be_changed_to_let_it_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_run(write_run(tmp_path / "run", trained(mask_type="doc_causal")), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "mask_type": "cross_doc_link"}))
    follow(monkeypatch, {"": " on"})
    runtime = Runtime.from_pretrained(tmp_path / "out", "cpu", tokenizer=TOKENIZER, arena_tokens=2048)
    result = runtime.generate("see [a](A)", corpus=Texts(CORPUS), **OPTIONS)
    assert [title for _, title, _ in grants(result.root_document)] == ["A"]


@pytest.mark.parametrize("mask_type", BIDIRECTIONAL)
def test_a_model_that_reads_ahead_does_not_write_but_its_full_pass_runs(mask_type: str, tmp_path: Path) -> None:
    import_run(write_run(tmp_path / "run", trained(mask_type=mask_type)), tmp_path / "out")
    runtime = Runtime.from_pretrained(tmp_path / "out", "cpu", tokenizer=TOKENIZER, arena_tokens=64)
    message = f"mask_type '{mask_type}' reads tokens that come later .* DS2DSModel.forward_inference runs it"
    with pytest.raises(ConfigError, match=message):
        runtime.generate("text", **OPTIONS)
    with pytest.raises(ConfigError, match=message):
        runtime.generate_batch(["text"], **OPTIONS)
    with pytest.raises(ConfigError, match=message):
        runtime.model.generate(prompt="text", tokenizer=TOKENIZER, **OPTIONS)
    assert runtime.model.forward_inference(torch.tensor([encode("text")])).shape == (1, 4, TOKENIZER.vocab_size)


# How a root starts


@pytest.fixture(scope="module")
def gpt2_model() -> DS2DSModel:
    return trained(50304, max_seq_len=64)  # a padded vocabulary, as training code makes them


@pytest.mark.parametrize("layout", LAYOUT_POLICIES)
def test_a_root_starts_as_in_training_however_it_is_given(layout: str, gpt2_model: DS2DSModel) -> None:
    """GPT-2 encodes a heading together with what follows otherwise than by itself, as the layout does."""
    runtime = Runtime(gpt2_model, None, layout, arena_tokens=256)
    encode = as_tokenizer().encode
    around = Layout(layout, encode, 50256)
    assert encode("# Big O\n\nIt grows") != [*encode("# Big O\n\n"), *encode("It grows")]

    def root(prompt: str | None = None, **given: Any) -> tuple[str, list[int]]:
        made = runtime.generate(prompt, max_new_tokens=1, max_context_length=64, seed=0, **given).root_document
        return made.title, made.tokens[:-1]

    body = encode("It grows")
    expected = ("Big O", [*around.prefix("Big O"), *body])
    assert root("It grows", title="Big O") == expected
    assert root(prompt_tokens=body, title="Big O") == expected
    assert root(prompt_tokens=expected[1], title="Big O") == expected  # all of the prefix is there
    if around.has_heading:
        assert root("# Big O\n\nIt grows") == expected
        assert root("# Big O\n\nIt grows", title="Big O") == expected
        assert root(prompt_tokens=expected[1]) == expected
        assert root("# Big O\nIt grows")[1][-len(encode("# Big O\nIt grows")) :] == encode("# Big O\nIt grows")
    mark = [50256] * around.has_marks
    assert root("It grows") == ("root", [*mark, *body])
    assert root(prompt_tokens=[*mark, *body]) == ("root", [*mark, *body])
    assert root("") == ("root", [50256])


@pytest.mark.parametrize("layout", LAYOUT_POLICIES)
def test_a_text_has_the_ids_that_it_has_as_a_prompt(layout: str, gpt2_model: DS2DSModel) -> None:
    runtime = Runtime(gpt2_model, None, layout, arena_tokens=256)
    for text in ("# Big O\n\nIt grows", "# Big O\n\n", "It grows", "# Big O\nIt grows", ""):
        made = [
            runtime.generate(**given, max_new_tokens=1, max_context_length=64, seed=0).root_document
            for given in ({"prompt": text}, {"prompt_tokens": runtime.tokenize(text)})
        ]
        assert made[0].tokens == made[1].tokens and made[0].title == made[1].title
        assert runtime.detokenize(runtime.tokenize(text)) == text


@pytest.mark.parametrize("layout", LAYOUT_POLICIES)
def test_a_document_that_a_limit_ends_has_no_suffix(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "[q](Q)[a](A)", "Q": "a long text"})
    runtime = Runtime(trained(), TOKENIZER, layout, arena_tokens=2048)
    around = Layout(layout, encode, EOS)
    cut = {**OPTIONS, "max_tokens_per_document": len(around.prefix("A")) + 8, "max_new_tokens": 6}
    result = runtime.generate("", corpus=Texts({"A": "about everything"}), **cut)
    made = result.get_document_by_title("Q")
    assert made is not None and made.finish_reason == "max_new_tokens"
    assert made.tokens == [*(around.prefix("Q") or [EOS]), *encode("a long text")[:6]]


def test_an_id_of_a_padded_vocabulary_has_no_text(gpt2_model: DS2DSModel, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": [50300, 11, 50303]})
    result = Runtime(gpt2_model, arena_tokens=128).generate("One", max_new_tokens=3, max_context_length=64, seed=0)
    assert result.root_document.tokens[-3:] == [50300, 11, 50303] and result.root_document.text == "One,"


def test_an_id_beyond_a_padded_vocabulary_is_refused(gpt2_model: DS2DSModel) -> None:
    runtime = Runtime(gpt2_model, arena_tokens=128)
    assert runtime.token_bytes(50303) == b"" and runtime.detokenize([50303]) == ""
    for call in (lambda: runtime.token_bytes(50304), lambda: runtime.detokenize([11, 50304])):
        with pytest.raises(ConfigError, match="token id 50304 is not in the vocabulary of gpt2"):
            call()


# What runs look like


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("weight_tying", [True, False])
def test_weights_keep_their_dtype(dtype: torch.dtype, weight_tying: bool, tmp_path: Path) -> None:
    model = trained(weight_tying=weight_tying).to(dtype)
    import_run(write_run(tmp_path / "run", model), tmp_path / "out")
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.dtype == dtype and loaded.config.weight_tying is weight_tying
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert (loaded.loss_fn.weight is loaded.embedding.weight) is weight_tying


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16])
def test_weights_are_not_rounded(dtype: torch.dtype, default: torch.dtype, tmp_path: Path) -> None:
    state = {name: tensor.to(dtype) / 3 for name, tensor in trained(weight_tying=False).state_dict().items()}
    run = write_run(tmp_path / "run", trained(weight_tying=False), state=state)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)  # as a training script may
        import_run(run, tmp_path / "out")
        loaded = load_checkpoint(tmp_path / "out")
    finally:
        torch.set_default_dtype(before)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_weights_of_two_dtypes_become_float32(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in trained().state_dict().items()}
    state["embedding.weight"] = state["embedding.weight"].bfloat16()
    state["loss_fn.weight"] = state["embedding.weight"].float()  # the same numbers: tied
    loaded = load_run(write_run(tmp_path / "run", trained(), state=state))
    assert loaded.dtype == torch.float32 and loaded.config.weight_tying
    assert torch.equal(loaded.embedding.weight, state["loss_fn.weight"])


@pytest.mark.parametrize("name", ["rotary.cos", "backbone.layers.0.attn.rotary.angular_freq", "rotary_emb.inv_freq"])
def test_rotary_tables_among_the_weights_are_passed_over(name: str, tmp_path: Path) -> None:
    state = {**trained().state_dict(), name: torch.zeros(3)}
    assert load_run(write_run(tmp_path / "run", trained(), state=state)).config.num_layers == 2


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    state = dict(trained().state_dict())
    state["module.backbone.skip_weights"] = state["backbone.skip_weights"]
    run = write_run(tmp_path / "run", trained(), state=state)
    with pytest.raises(CheckpointError, match=r"has backbone.skip_weights twice, once as module.backbone.skip_weights"):
        load_run(run)


@pytest.mark.parametrize(("under_model", "under_data"), [("bos_eos", "null"), ("null", "bos_eos")])
def test_layouts_that_contradict_each_other_are_refused(under_model: str, under_data: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", trained(), under_data, layout_policy=under_model)
    told = f"layout_policy '{under_model}' under 'model', but '{under_data}' under 'data', which counts: let them"
    with pytest.raises(CheckpointError, match=told):
        load_run(run)
    run = write_run(tmp_path / "other", trained(), "bos_eos", layout_policy="bos_eos")
    assert load_run(run).config.layout_policy == "bos_eos"


def test_null_settings_count_as_not_given(tmp_path: Path) -> None:
    config = load_run(write_run(tmp_path / "run", trained(), weight_tying=None, link_detector=None)).config
    assert config.weight_tying and config.link_detector == "markdown"
    run = write_run(tmp_path / "other", trained(), num_heads=None)
    with pytest.raises(CheckpointError, match=r"hyperparameters.json: missing model settings \['num_heads'\]"):
        load_run(run)


@pytest.mark.parametrize(
    ("named", "rows", "fits"),
    [(200, 256, True), (264, 264, True), (128, 256, False), (0, 64, False), (-1, 64, False), (True, 64, False)],
)
def test_the_vocabulary_of_settings_and_weights(named: int, rows: int, fits: bool, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", trained(rows), vocab_size=named)
    if fits:
        assert load_run(run).config.vocab_size == rows
        return
    with pytest.raises(CheckpointError, match=f"names a vocab_size of {named}, but embedding.* has {rows} rows"):
        load_run(run)


def test_links_in_place_of_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", trained())
    best = run / "checkpoints" / "best_model.pt"
    best.rename(run / "checkpoints" / "step_100.pt")
    best.symlink_to("step_100.pt")
    (tmp_path / "linked").symlink_to(run)
    assert load_run(tmp_path / "linked").config.num_layers == 2
    best.unlink()
    best.symlink_to("step_200.pt")
    with pytest.raises(CheckpointError, match=r"link to step_200.pt, which is not there\); .* has step_100.pt"):
        load_run(run)


def test_errors_name_what_is_there_instead(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", trained())
    best = run / "checkpoints" / "best_model.pt"
    import_run(run, tmp_path / "out")
    with pytest.raises(CheckpointError, match="out is a checkpoint, not a training run directory: it needs no import"):
        load_run(tmp_path / "out")
    best.rename(run / "checkpoints" / "last.pt")
    with pytest.raises(CheckpointError, match=r"no checkpoints/best_model.pt in .*checkpoints has last.pt: rename"):
        load_run(run)
    torch.save({"model_state_dict": {}, "epoch": 3}, best)
    with pytest.raises(CheckpointError, match=r"must hold {'model': state_dict}, got a dict with \['epoch', 'model_s"):
        load_run(run)
    with pytest.raises(CheckpointError, match="a training run directory is converted by `ds2ds model import`"):
        load_checkpoint(run)
    weights = tmp_path / "out" / "model.safetensors"
    weights.rename(tmp_path / "out" / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"no model.safetensors in .*it has model-00001-of-00002.safetensors"):
        load_checkpoint(tmp_path / "out")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", trained())
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint to .*file/out: .*Not a directory"):
        import_run(run, tmp_path / "file" / "out")
