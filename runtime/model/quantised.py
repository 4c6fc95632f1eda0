"""Models with int8 weights: a quarter of the bytes of float32, and decoding is bound by the bytes it reads."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ds2ds.errors import ConfigError
from ds2ds.model.backbone import Layer
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.model.int8_weight import Int8Weight

KINDS = ("int8", "int8_dynamic")


@torch.inference_mode(False)
def quantise_weights(model: DS2DSModel, kind: str = "int8") -> DS2DSModel:
    """Replace the weights of all linear layers by int8 ones, in place; returns the model.

    The embedding stays as it is, of which a token reads one row; a head that was tied to it gets an int8 copy. Such a
    model cannot be trained or saved. What it computes differs from the float model's, and so do the keys of its cache.

    Args:
        kind: "int8" rounds the weights alone; "int8_dynamic" also what is multiplied with them, row by row, which is
            faster for several rows at once on a CPU, and a launch more for each product on a GPU. `bench/quantised.py`
            measures what either costs in perplexity.

    Raises:
        ConfigError: there is no such kind, or the model is quantised already; ValueError: a weight is not finite.
    """
    if kind not in KINDS:
        raise ConfigError(f"weights must be one of {KINDS} to be quantised, got {kind!r}")
    if is_quantised(model):
        raise ConfigError("the model's weights are int8 already: quantise a model of floats")
    places: list[tuple[nn.Module, str]] = [(model.loss_fn, "weight")]
    for layer in (cast(Layer, module) for module in model.backbone.layers):
        places.append((layer.attn, "Wqkv"))
        places += [(linear, "weight") for linear in (layer.attn.Wout, layer.mlp.Wup_gate, layer.mlp.Wdown)]
    # All are made before any is put in place, so that an error leaves the model as it was.
    made = [Int8Weight(getattr(module, name), dynamic=kind == "int8_dynamic") for module, name in places]
    for (module, name), weight in zip(places, made, strict=True):
        delattr(module, name)
        module.add_module(name, weight)
    return model


def is_quantised(model: nn.Module) -> bool:
    return any(isinstance(module, Int8Weight) for module in model.modules())
