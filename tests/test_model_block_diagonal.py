"""The block-diagonal MLP: two dense maps whose other blocks are zero; as sharded as single."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import block_diag
from scipy.special import erf

from lcx import lookup
from lcx.errors import ConfigError
from tests.test_train_model import losses, small


def build(**options):
    return lookup.build("lcx.model.mlps", dict(name="block_diagonal", **options), width=8)


def test_it_is_dense_maps_with_zeros_off_the_diagonal(x64):
    mlp = build(hidden=12, num_blocks=4)
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    p = nn.unbox(mlp.init(jax.random.key(0), jnp.asarray(x)))["params"]
    p = jax.tree.map(lambda a: np.random.default_rng(1).normal(size=a.shape), p)
    assert {name: a.shape for name, a in p.items()} == {
        "in_kernel": (4, 2, 6), "out_kernel": (4, 3, 2), "bias": (8,)}
    both = x @ block_diag(*p["in_kernel"])
    gate, value = both[..., :12], both[..., 12:]
    wanted = (gate * 0.5 * (1 + erf(gate / np.sqrt(2))) * value) @ block_diag(*p["out_kernel"])
    np.testing.assert_allclose(mlp.apply({"params": p}, jnp.asarray(x)), wanted + p["bias"],
                               atol=1e-12)


def test_it_weighs_a_share_of_a_dense_one_and_starts_as_wide():
    for blocks in (1, 4):
        mlp = lookup.build("lcx.model.mlps", dict(name="block_diagonal", num_blocks=blocks),
                           width=64)
        p = nn.unbox(mlp.init(jax.random.key(0), jnp.zeros((1, 1, 64))))["params"]
        assert p["in_kernel"].size == 64 * 512 // blocks
        assert p["out_kernel"].size == 256 * 64 // blocks
        x = jax.random.normal(jax.random.key(1), (1, 500, 64))
        assert 0.3 < np.std(mlp.apply({"params": p}, x)) < 0.9, blocks


def test_blocks_that_do_not_divide_are_named():
    with pytest.raises(ConfigError, match="num_blocks=3 must divide width=8"):
        build(num_blocks=3).init(jax.random.key(0), jnp.zeros((1, 1, 8)))


@pytest.mark.full
def test_it_trains_on_a_mesh_as_on_one_device(x64):
    c = small(dict(name="short_conv"), dict(name="no_pe"))
    c.experiment.model.mlp, c.experiment.model.dtype = {"name": "block_diagonal"}, "float64"
    want, start, _ = losses(c, (1, 1, 1))
    assert losses(c, (2, 2, 2), start)[0] == pytest.approx(want, rel=1e-6)
