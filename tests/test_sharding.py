"""Mesh and logical axis rules: what is split where, and that nothing replicates silently."""

import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lcx import sharding
from lcx.errors import ConfigError


def boxed(shape, *names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def spec(mesh, shape, *names):
    return sharding.shardings({"w": boxed(shape, *names)}, mesh)["w"].spec


def test_mesh_fills_the_devices_with_auto_axes():
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert dict(sharding.make_mesh(1, -1, 1).shape) == {"data": 1, "fsdp": 8, "tensor": 1}


def test_a_smaller_mesh_takes_the_first_devices():
    assert sharding.make_mesh(2, 1, 1).devices.size == 2
    assert sharding.make_mesh(-1, devices=jax.devices()[:3]).devices.size == 3


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (16, 1, 1), (-1, -1, 1), (0, 1, 1),
                                   (-2, 1, 1)])
def test_a_mesh_that_does_not_divide_the_devices_raises(sizes):
    with pytest.raises(ConfigError, match="mesh"):
        sharding.make_mesh(*sizes)


@pytest.mark.parametrize(
    "shape, names, expected",
    [
        ((16, 8, 4), ("width", "heads", "head_dim"), P("fsdp", "tensor", None)),
        ((8, 4, 16), ("heads", "head_dim", "width"), P("tensor", None, "fsdp")),
        ((3, 16, 32), ("depth", "width", "mlp"), P(None, "fsdp", "tensor")),
        ((64, 16), ("vocab", "width"), P("tensor", "fsdp")),
        ((16, 16), ("width", "width"), P("fsdp", None)),  # each mesh axis once: the left one
        ((16, 6), ("width", "kv_heads"), P("fsdp", "tensor")),
        ((16, 3), ("width", "kv_heads"), P("fsdp", None)),  # replicated, see below
        ((16, 4), ("width", None), P("fsdp", None)),
        ((), (), P()),
    ],
)
def test_weights_lie_where_the_rules_say(shape, names, expected):
    assert spec(sharding.make_mesh(2, 2, 2), shape, *names) == expected


def test_kv_heads_that_do_not_divide_are_replicated_and_logged(caplog):
    mesh = sharding.make_mesh(2, 1, 4)
    with caplog.at_level(logging.WARNING, "lcx.sharding"):
        assert spec(mesh, (16, 2, 4), "width", "kv_heads", "head_dim")[1] is None
    assert "2 kv_heads" in caplog.text and "replicated" in caplog.text


def test_heads_that_do_not_divide_raise():
    with pytest.raises(ConfigError, match="tensor=4 does not divide 6 heads"):
        spec(sharding.make_mesh(2, 1, 4), (16, 6, 4), "width", "heads", "head_dim")


def test_a_misspelt_axis_raises_and_a_suggestion_is_made():
    mesh = sharding.make_mesh()
    with pytest.raises(ValueError, match=r"\['w'\].*'widht'; did you mean 'width'"):
        spec(mesh, (16, 4), "widht", "heads")
    with pytest.raises(ValueError, match="did you mean 'length'"):
        sharding.shard(jnp.ones((2, 3)), "batch lenght")  # with no mesh set, too


def test_a_wrong_rank_raises():
    with pytest.raises(ValueError, match="2 names"):
        sharding.shard(jnp.ones((2, 3, 4)), "batch length")
    with pytest.raises(ValueError, match="2 names"):
        spec(sharding.make_mesh(), (16,), "width", "heads")


def test_shard_constrains_under_a_mesh_and_is_the_identity_without():
    x = jnp.ones((8, 4, 16))
    assert sharding.shard(x, "batch length width") is x
    with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
        y = jax.jit(lambda x: sharding.shard(x * 2, "batch length heads"))(x)
        assert y.sharding.spec == P(("data", "fsdp"), None, "tensor")
        # A batch of 2 is still split over the first of its axes, a batch of 1 over none.
        y = jax.jit(lambda x: sharding.shard(x * 2, "batch length heads"))(x[:2])
        assert y.sharding.spec[0] == "data"
        y = jax.jit(lambda x: sharding.shard(x * 2, "batch length heads"))(x[:1])
        assert y.sharding.spec[0] is None


def test_underscore_leaves_an_axis_to_the_compiler():
    with jax.set_mesh(sharding.make_mesh(1, 1, 8)):
        x = jax.device_put(jnp.ones((8, 16)), P(None, "tensor"))
        free = jax.jit(lambda x: sharding.shard(x, "batch _"))(x)
        whole = jax.jit(lambda x: sharding.shard(x, "batch width"))(x)
    assert free.sharding.shard_shape(x.shape) == (8, 2)
    assert whole.sharding.shard_shape(x.shape) == (8, 16)


def test_shard_does_nothing_inside_shard_map():
    def body(x):
        assert x.shape == (8, 4)
        return sharding.shard(x, "batch width")

    with jax.set_mesh(sharding.make_mesh(4, 1, 2)):
        y = jax.jit(jax.shard_map(body, in_specs=P("data"), out_specs=P("data")))(jnp.ones((32, 4)))
    assert (y == 1).all()


def test_a_batch_is_split_over_every_axis_that_holds_data():
    mesh = sharding.make_mesh(2, 2, 2)
    assert sharding.batch_ways(mesh) == 4
    assert sharding.batch_sharding(mesh).shard_shape((8, 5)) == (2, 5)
