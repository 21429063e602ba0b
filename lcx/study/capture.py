"""What the layers of a model compute inside, on given tokens: lanes, mixer inputs, attention."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx.errors import ConfigError, DataError, did_you_mean
from lcx.lanes import sequence
from lcx.model.reach import Same, reach_of
from lcx.ops.attention import api
from lcx.types import wide_dtype

KINDS = ("lanes", "inner", "outer", "attention")


def capture(model: Any, variables: Any, inputs: np.ndarray,
            what: Collection[str] = KINDS) -> list[dict[str, Any]]:
    """Run a model on token ids [T] or [B,T] and return what each layer computed, first layer first.

    lanes: what its scheme said; inner: what its mixer's core took in (query, key, value, gates);
    outer: what the core gave, [B,T,H,V]; attention: the weights [B,H,T,S], of softmax mixers only.
    All layers hold all T tokens at once: take a few hundred. Raises ConfigError on an unknown
    kind, and where attention is all that was asked for and no layer has a softmax.
    """
    what = (what,) if isinstance(what, str) else tuple(what)
    for kind in what:
        if kind not in KINDS:
            raise ConfigError(f"cannot capture '{kind}'" + did_you_mean(kind, KINDS))
    inputs = np.atleast_2d(np.asarray(inputs))
    if inputs.ndim != 2 or not inputs.size or not np.issubdtype(inputs.dtype, np.integer):
        raise DataError(f"capture takes token ids [T] or [B,T], got {inputs.dtype} of shape "
                        f"{inputs.shape}; encode a text with run.encode(text)")
    if inputs.min() < 0 or inputs.max() >= model.vocab_size:
        raise DataError(f"token ids must lie in 0..{model.vocab_size - 1}; encode the text with "
                        "the tokenizer that the model was trained with")

    reach_of(model).require(model.apply, variables, inputs.shape[1])
    found = _program(Same(model), "attention" in what)(variables, inputs)
    layers = _by_depth(found["layers"], model.depth // len(model.layers), len(model.layers), what)
    if what == ("attention",) and not any(layers):
        raise ConfigError("no layer of this model has attention weights: its mixers have no "
                          "softmax; capture 'inner' for what they compute")
    return layers


@functools.lru_cache(maxsize=16)
def _program(same: Same, weigh: bool):
    """The jitted capturing call of a model; jit keeps one executable per shape."""
    def run(variables, inputs):
        with nn.intercept_methods(_weigh if weigh else _as_it_is):
            return same.model.apply(variables, inputs, sequence(1, inputs.shape[1]),
                                    mutable=["intermediates"])[1]["intermediates"]

    return jax.jit(run)


def _weigh(method, args, kwargs, context):
    """Beside the output of a softmax, its weights: those that values one-hot by key come out as."""
    if context.method_name == "softmax" and not context.module.is_initializing():
        queries, keys, lanes = args[:3]
        slots, groups = keys.value.shape[1:3]
        one_hot = jnp.eye(slots, dtype=wide_dtype())[None, :, None]
        one_hot = jnp.broadcast_to(one_hot, (keys.value.shape[0], slots, groups, slots))
        if getattr(lanes, "value", None) is not None:  # acts on values, not on weights
            lanes = lanes.replace(value=None)
        with api.backend("reference"):
            weights = api.attend(queries, keys.replace(value=one_hot), lanes,
                                 rotary_dim=context.module.site().rotary_dim, **kwargs)
        context.module.sow("intermediates", "attention", jnp.swapaxes(weights, 1, 2))
    return method(*args, **kwargs)


def _as_it_is(method, args, kwargs, context):
    return method(*args, **kwargs)


def _by_depth(found: Any, periods: int, pattern: int, what: Collection[str]) -> list[dict]:
    """From one entry per place in the pattern, stacked over depth, to one per layer."""
    layers = []
    for period in range(periods):
        for place in range(pattern):
            sown = _named(found[f"layer_{place}"], what)
            layers.append(jax.tree.map(lambda leaf, n=period: leaf[n], sown))
    return layers


def _named(tree: Any, what: Collection[str]) -> dict[str, Any]:
    """The captured kinds of a layer, wherever in its modules they were sown."""
    found = {}
    for key, value in tree.items():
        if key in KINDS:
            if key in what:
                found[key] = value[0]  # sow keeps a tuple of calls; a layer is called once
        elif isinstance(value, dict):
            found |= _named(value, what)
    return found
