"""The recipes of configs/recipes.py: rules of their papers, and that each one trains."""

import importlib.util
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.config import load
from lcx.model import build_model

PATH = Path(__file__).parent.parent / "configs" / "recipes.py"
SPEC = importlib.util.spec_from_file_location("recipes", PATH)
recipes = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(recipes)


def parameters(model):
    """Shapes by path."""
    tokens, seq = jnp.zeros((1, 4), int), L.sequence(1, 4)
    return jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), tokens, seq)))["params"]


@pytest.mark.parametrize("depth, length, window", [(12, 512, 35), (24, 512, 17), (24, 4096, 134)])
def test_the_window_of_hwfa(depth, length, window):
    pattern = recipes.hwfa(depth, length)
    assert len(pattern) == depth
    assert {layer["mixer"]["window"] for layer in pattern[:-1]} == {window}
    assert (window - 1) * (depth - 1) + 1 <= 0.75 * length < window * (depth - 1) + 1
    assert pattern[-1]["mixer"]["window"] is None and pattern[-1]["position"] == "log_n"


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_a_recipe_loads_builds_and_trains(name):
    config = load(f"{PATH}:{name}", ["experiment.model.width=16"])
    assert config.experiment.model.depth % len(config.experiment.model.pattern) == 0
    small = recipes.RECIPES[name](3, 16)
    small = [small[0], small[-1]]  # one layer of each kind
    for layer in small:
        layer["mixer"] = {**layer["mixer"], "num_heads": 2}
    full = dict(config.experiment.model.to_dict(), vocab_size=11)
    build_model(full, config.experiment.data.train_length)
    model = build_model({**full, "depth": 2, "pattern": small, "mlp": None}, 16)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 17)))
    seq = L.sequence(1, 16)

    @jax.jit
    def step():
        found = nn.unbox(model.init(jax.random.key(0), tokens[:, :-1], seq))
        loss = lambda params: model.apply({**found, "params": params}, tokens[:, :-1],
                                          tokens[:, 1:], seq, method="score")[0].mean()
        return jax.value_and_grad(loss)(found["params"])

    value, slope = step()
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(slope))


def test_drope_takes_the_parameters_of_the_rope_run():
    of = lambda name: build_model({**load(f"{PATH}:{name}").experiment.model.to_dict(),
                                   "vocab_size": 11}, 128)
    rope, dropped = of("rope"), of("drope")
    assert jax.tree.structure(parameters(rope)) == jax.tree.structure(parameters(dropped))
    assert jax.tree.map(jnp.shape, parameters(rope)) == jax.tree.map(jnp.shape,
                                                                     parameters(dropped))


def test_the_sweep_has_every_recipe_and_unknown_ones_are_refused():
    members = list(recipes.sweep())
    assert [m["runtime.label"] for m in members] == [n for n in recipes.RECIPES if n != "drope"]
    with pytest.raises(ValueError, match="choose rope, hwfa"):
        recipes.get_config("hwfaa")
    assert len(PATH.read_text().splitlines()) <= 100
