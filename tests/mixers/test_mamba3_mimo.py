"""Mamba-3 with several inputs and outputs: beside NumPy loops, beside `mamba3`, and its starts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from lcx.errors import ConfigError, Unimplemented
from tests import mixer_cases as cases
from tests.mixer_cases import silu
from tests.mixers.test_mamba3 import MAMBA3, lanes_and_meanings, normed, recall

MIMO = dict(MAMBA3, name="mamba3_mimo", rank=3)


def layer(params, x, **lanes):
    """arXiv:2603.15569 with R inputs and outputs per head; lanes as in `recall`."""
    p = jax.tree.map(np.asarray, params)
    project = lambda name: np.einsum("btd,d...->bt...", x, p[name]["kernel"])
    by_rank = lambda name: np.swapaxes(p[name], 0, 1)
    q, k = (np.repeat(normed(project(n), p[f"{n}_norm"]["scale"]), len(p["skip"]), 3)
            + by_rank(f"{n}_bias") for n in ("query", "key"))
    v, z = (project(n)[:, :, None] * by_rank(f"{n}_gain") for n in ("value", "gate"))
    y = recall(p, x, q, k, v, **lanes) + p["skip"][:, None] * v
    y = (by_rank("out_gain") * y * silu(z)).sum(2)
    return np.einsum("bthv,hvd->btd", y, p["out"]["kernel"])


def test_mamba3_mimo_is_the_published_layer_under_the_lanes(x64):
    mixer, seq = cases.build(MIMO), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    for lanes, options in lanes_and_meanings():
        y = mixer.apply(found, x, seq, None, lanes)[0]
        np.testing.assert_allclose(y, layer(found["params"], np.asarray(x), **options), atol=1e-9)


def test_one_rank_is_mamba3(x64):
    several, one = cases.build(dict(MIMO, rank=1)), cases.build(MAMBA3)
    x, seq = cases.inputs(), cases.packed()
    found = cases.variables(several, seq)
    p = dict(found["params"])
    p.update({name: jnp.ones_like(p[name]) for name in ("value_gain", "gate_gain", "out_gain")})
    same = {name: p[name] for name in p if not name.endswith("_gain")}
    for name in ("query", "key"):
        same[name] = dict(kernel=p[name]["kernel"][:, 0])
        same[f"{name}_bias"] = p[f"{name}_bias"][:, 0]
    cases.close(several.apply({"params": p}, x, seq)[0], one.apply({"params": same}, x, seq)[0])


@pytest.mark.parametrize("position,forms", [
    (["rope", "alibi"], ("chunked", "step", "quadratic")), ("path", ("chunked", "step")),
    (["selective_rope", dict(name="vo_rope")], ("chunked", "step")), ("cope", ("quadratic",)),
    (["rope", dict(name="t5_bias", num_buckets=8, max_distance=10)], ("quadratic",))], ids=str)
@pytest.mark.full  # the law suite runs every mixer so
def test_mamba3_mimo_runs_every_way_alike(x64, position, forms):
    cases.agree(cases.ways(dict(MIMO, head_dim=4, chunk=4), position, forms))


def test_mamba3_mimo_starts_as_published():
    spec = dict(name="mamba3_mimo", num_heads=64, state_dim=16, num_groups=2)
    mixer = mixers.make(spec, position="no_pe", width=64, train_length=8)
    init = jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 2, 64)), L.sequence(1, 2))
    p = nn.unbox(init)["params"]
    step = np.logaddexp(0, np.asarray(p["step_bias"]))
    assert 0.001 <= step.min() < 0.002 and 0.05 < step.max() <= 0.1001
    for name, shape, start in (("query_bias", (64, 4, 16), 1.0), ("key_bias", (64, 4, 16), 1.0),
                               ("skip", (64,), 1.0), ("value_gain", (64, 4, 2), 0.25),
                               ("gate_gain", (64, 4, 2), 1.0), ("out_gain", (64, 4, 2), 0.25)):
        np.testing.assert_array_equal(p[name], np.full(shape, start))
    assert p["query"]["kernel"].shape == p["key"]["kernel"].shape == (64, 4, 2, 16)


def test_the_memory_is_as_large_as_that_of_one_input():
    several, one = (cases.build(spec).init_state(2, 8) for spec in (MIMO, MAMBA3))
    assert several.core.memory.shape == one.core.memory.shape == (2, 2, 8, 3)
    assert several.key.shape == (2, 3, 2, 8) and several.value.shape == (2, 3, 2, 3)


def test_mamba3_mimo_says_what_is_not_there():
    start = lambda spec, position, form="auto": jax.eval_shape(lambda: cases.build(
        spec, position, form).init(jax.random.key(0), cases.inputs(), cases.packed()))
    for position, form in (("wall", "auto"), ("t5_bias", "chunked"), ("kerple", "chunked")):
        with pytest.raises(Unimplemented):
            start(MIMO, position, form)
    with pytest.raises(ConfigError, match="rank. must be int, 1 or more"):
        start(dict(MIMO, rank=0), "no_pe")
