"""From a config to a model: the pattern of layers, checked in full before anything compiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lcx import lookup, mixers, positions
from lcx.errors import ConfigError, did_you_mean
from lcx.lanes import sequence
from lcx.model.lm import _POLICIES, LanguageModel

__all__ = ["LanguageModel", "build_model", "has_position_parameters"]


def build_model(config: Mapping[str, Any], train_length: int) -> LanguageModel:
    """The model of `config.experiment.model`. Raises ConfigError, Refusal or Unimplemented.

    `pattern` is one period of layers; each entry may set its own position, mixer or mlp, and
    takes the rest from the model's.
    """
    options = {key: config[key] for key in config}
    default = {key: _plain(options.pop(key)) for key in ("position", "mixer", "mlp")}
    pattern = _plain(options.pop("pattern", None)) or ({},)
    layers = []
    for entry in pattern:
        for key in entry:
            if key not in default:
                raise ConfigError(f"a layer of the pattern has no '{key}'"
                                  + did_you_mean(key, default))
        layers.append({**default, **entry})
    if options["depth"] % len(layers):
        raise ConfigError(f"depth={options['depth']} is not a multiple of the pattern's "
                          f"{len(layers)} layers")
    if options.get("predict_ahead", 0) < 0:
        raise ConfigError(f"predict_ahead={options['predict_ahead']}: give how many tokens beyond "
                          "the next one are predicted, or 0")
    weight = LanguageModel.ahead_weight
    if not options.get("predict_ahead") and options.get("ahead_weight", weight) != weight:
        raise ConfigError(f"ahead_weight={options['ahead_weight']} weighs the losses of further "
                          "tokens, of which there are none: set predict_ahead, or leave it out")
    if options.get("remat", "none") not in _POLICIES:
        raise ConfigError(f"unknown remat '{options['remat']}'"
                          + did_you_mean(options["remat"], _POLICIES))
    lookup.check_options(LanguageModel, "model", options, ("layers", "train_length"))
    model = LanguageModel(layers=tuple(layers), train_length=train_length, **options)
    check(model)
    return model


def check(model: LanguageModel) -> list[str]:
    """Bind every layer's scheme and mixer by their shapes alone; returns the recorded notes."""
    notes = []
    for number, layer in enumerate(model.layers):
        mixer = model._mixer(number)
        model._mlp(number)
        lanes, _ = mixer.structure()
        positions.make_embed(layer["position"], model.width, model.train_length,
                             vocab_size=model.vocab_size)
        notes += mixers.bind(type(mixer), lanes)
    return notes


def has_position_parameters(model: LanguageModel) -> bool:
    """Whether any layer's scheme has parameters, which layers could share."""
    def parameters(number: int) -> Any:
        scheme, x = model._scheme(number), jnp.zeros((1, 1, model.width))
        return scheme.init(jax.random.key(0), x, sequence(1, 1), scheme.init_carry(1),
                           method="lanes").get("params", {})

    return any(jax.tree.leaves(jax.eval_shape(lambda n=number: parameters(n)))
               for number in range(len(model.layers)))


def _plain(value: Any) -> Any:
    """Plain dicts, tuples and scalars out of a ConfigDict's nodes."""
    if isinstance(value, Mapping) or hasattr(value, "to_dict"):
        return {key: _plain(value[key]) for key in value}
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    return value
