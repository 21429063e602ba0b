"""Sharded equals single for the real model: every mixer, and every scheme on attention.

In float64, where a wrong collective cannot pass for rounding: in float32 five steps of SGD carry a
rounding of 1e-7 in a gradient to 1e-4 in a parameter (`rebased`, whose weights are squares).
"""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lcx import lookup, sharding
from lcx.errors import ConfigError, Refusal, Unimplemented
from lcx.model import build_model
from lcx.train import build_program
from lcx.train.manifest import flat
from tests.train_stand_in import LENGTH, VOCAB, Batches, config

MESHES = [(2, 2, 2), *(pytest.param(m, marks=pytest.mark.full)
                       for m in [(8, 1, 1), (1, 8, 1), (1, 2, 4)])]


def options(package, name, **changes):
    """The first example of a component, with `changes` where it has such fields."""
    cls = lookup.find(package, name)
    example = next(iter(getattr(cls, "examples", ({},))))
    return dict(name=name, **{**example, **{k: v for k, v in changes.items()
                                            if k in lookup.fields(cls)}})


def small(mixer, position):
    c = config(optimizer=dict(name="sgd", learning_rate=0.1), schedule=dict(name="constant"))
    c.experiment.model = ConfigDict(
        dict(vocab_size=VOCAB, width=32, depth=1, mixer=mixer, position=position,
             mlp=dict(name="gated"), tie_embeddings=True),
        convert_dict=False)
    return c


def losses(c, sizes, start=None):
    """Five losses on a mesh, the state and the constants they began with, and the program."""
    return run(c, sizes, start)[:3]


def run(c, sizes, start=None):
    """The same, and the state after them."""
    mesh = sharding.make_mesh(*sizes)
    with jax.set_mesh(mesh):
        program = build_program(c, build_model(c.experiment.model, LENGTH), mesh)
        if start is None:
            start = jax.tree.map(widest, jax.device_get((program.init(), program.constants())))
        state = jax.device_put(start[0], jax.tree.map(lambda x: x.sharding, program.abstract))
        constants = jax.device_put(start[1], sharding.replicated(mesh))
        data, found = Batches(c), []
        for _ in range(5):
            state, metrics = program.step(state, constants, program.place(next(data)))
            found.append(float(metrics["loss"]))
    for name, leaf in flat(state.params).items():
        want = flat(program.abstract.params)[name].sharding
        assert leaf.sharding.is_equivalent_to(want, leaf.ndim), name
    return found, start, program, state


def widest(leaf):
    """A floating leaf in float64 where jax runs with it: all numbers are born float32."""
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return np.asarray(leaf, jnp.result_type(float)) if floating else leaf


@functools.cache
def single(mixer, position):
    found, start, program, state = run(cell(mixer, position), (1, 1, 1))
    return found, start, jax.device_get(flat(state.params))


def cell(mixer, position):
    c = small(options("lcx.mixers", mixer, num_heads=4), options("lcx.positions", position))
    c.experiment.model.dtype = "float64"
    return c


def check(mixer, position, mesh):
    try:
        c = cell(mixer, position)
        build_model(c.experiment.model, LENGTH)
    except (Refusal, Unimplemented) as error:
        pytest.skip(str(error))
    want, start, params = single(mixer, position)
    found, _, program, state = run(c, mesh, start)
    assert found == pytest.approx(want, rel=1e-6) and len(set(found)) == 5  # float32 numbers
    for name, leaf in flat(state.params).items():
        assert leaf.dtype == params[name].dtype == jnp.float64
        np.testing.assert_allclose(leaf, params[name], err_msg=name, rtol=0,
                                   atol=1e-9 * max(1e-3, np.abs(params[name]).max()))
    # What could be split is split: hardly any parameter is whole on every device.
    leaves = list(flat(program.abstract.params).values())
    whole = sum(x.size for x in leaves if x.sharding.is_fully_replicated)
    assert mesh == (8, 1, 1) or whole < 0.1 * sum(x.size for x in leaves)


MIXERS = lookup.names("lcx.mixers")
FAMILIES = {name: lookup.find("lcx.mixers", name).family for name in MIXERS}
LARGE = [f for f, size in Counter(FAMILIES.values()).items() if size >= 5]
OF_A_FAMILY = {FAMILIES[name]: name for name in reversed(MIXERS) if FAMILIES[name] in LARGE}
# one mixer of each large family; the last two read x by heads, without a projection
EVERYDAY = {*OF_A_FAMILY.values(), "s4d", "slstm"}


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("mixer", [
    pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.full) for name in MIXERS])
def test_every_mixer(mixer, mesh, x64):
    check(mixer, "no_pe", mesh)


@pytest.mark.full
@pytest.mark.parametrize("position", lookup.names("lcx.positions"))
def test_every_scheme_on_attention(position, x64):
    check("attention", position, (1, 2, 4))


def test_heads_that_do_not_divide_raise_before_anything_compiles(x64):
    with pytest.raises(ConfigError, match="tensor=8 does not divide 4 heads"):
        losses(cell("attention", "no_pe"), (1, 1, 8))
