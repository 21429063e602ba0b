"""What a stream remembers: as much as a mixer says, of the same shapes after each call."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from lcx import lanes as L
from lcx import lookup, mixers

WIDTH, LENGTH = 32, 24
# Leaves that hold tokens as they came, in the dtype of the layer; all that is summed stays float32.
TOKENS = ("keys.key", "keys.value", "sinks.key", "sinks.value", "tail", "inputs")


def specs():
    return [dict(name=name, **example) for name in lookup.names(mixers.PACKAGE)
            for example in lookup.find(mixers.PACKAGE, name).examples[:1]]


def named(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec["name"])
def test_a_state_is_as_large_as_said_and_stays_so(spec):
    mixer = mixers.make(spec, position="no_pe", width=WIDTH, train_length=16, parent=None)

    def stream():
        x = jnp.zeros((2, 5, WIDTH), jnp.bfloat16)
        seq, state = L.sequence(1, 5), mixer.init_state(2, LENGTH, jnp.bfloat16)
        found = nn.unbox(mixer.init(jax.random.key(0), x, seq))
        return state, mixer.apply(found, x, seq, state)

    before, (y, after) = jax.eval_shape(stream)
    before, after = named(before), named(after)
    assert y.dtype == jnp.bfloat16
    assert ({name: (a.shape, a.dtype) for name, a in before.items()}
            == {name: (a.shape, a.dtype) for name, a in after.items()})
    floats = {name: a for name, a in before.items() if jnp.issubdtype(a.dtype, jnp.floating)}
    assert sum(a.size for a in floats.values()) == 2 * mixer.state_size(LENGTH)
    narrow = {name for name, a in floats.items() if a.dtype != jnp.float32}
    assert all(name.endswith(TOKENS) for name in narrow), narrow
