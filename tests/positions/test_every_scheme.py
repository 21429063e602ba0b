"""What every scheme owes a long-context user: exact cached decoding, and memory linear in length.

Each run takes one scheme of every kind of lane; all of them stand behind the marker `full`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers, positions
from tests.laws.cells import Block, in_layers, name_of, represents, specs, variables

HEADS, WIDTH, LONG = 2, 32, 2**14
PREFILLS, STEPS = (5, 9, 3), 20  # 37 tokens, trained on 16


CASES = [pytest.param(spec, id=name_of(spec), marks=(
    () if represents(spec) and in_layers(spec["name"]) else pytest.mark.full))
    for spec in specs(positions.PACKAGE)]


def axes_of(spec) -> int:
    scheme = positions.make(spec, L.Site(2, 2, 16, 16, WIDTH, 16, value_dim=16), parent=None)
    return mixers.lane_shapes(scheme, WIDTH).axes


@pytest.mark.parametrize("spec", CASES)
def test_cached_decoding_equals_the_whole(spec, x64):
    """Three uneven prefills and twenty single steps, past the train length, in float64."""
    length = sum(PREFILLS) + STEPS
    block = Block(spec, dict(name="attention", num_kv_heads=2))
    ids = np.stack([np.arange(length, dtype=float)] * axes_of(spec), -1)
    seq = L.sequence(1, length, ids=ids[None])
    x = jax.random.normal(jax.random.key(0), (2, length, WIDTH), jnp.float64)
    found = variables(block, seq, x)
    whole = jax.jit(lambda x: block.apply(found, x, seq)[0])(x)
    state = block.make(parent=None).init_state(2, length, x.dtype)
    call = jax.jit(lambda x, seq, state: block.apply(found, x, seq, state))
    at, pieces = 0, []
    for size in (*PREFILLS, *[1] * STEPS):
        y, state = call(x[:, at:at + size], seq[at:at + size], state)
        pieces.append(y)
        at += size
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spec", CASES)
def test_memory_is_linear_in_length(spec):
    """The chunked form at 16k tokens holds no array of all pairs (1 GiB for each head)."""
    mixer = mixers.make(dict(name="attention", num_heads=HEADS, form="chunked"), position=spec,
                        width=WIDTH, train_length=LONG)
    x = jax.ShapeDtypeStruct((1, LONG, WIDTH), jnp.float32)
    seq = jax.eval_shape(lambda: L.sequence(1, LONG, ids=jnp.zeros((1, LONG, axes_of(spec)))))
    shapes = nn.unbox(jax.eval_shape(mixer.init, jax.random.key(0), x, seq))
    compiled = jax.jit(lambda v, x, seq: mixer.apply(v, x, seq)[0]).lower(shapes, x, seq).compile()
    held = compiled.memory_analysis().temp_size_in_bytes
    assert held < 2 * LONG * LONG, f"{held / 2**20:.0f} MB: half of one head's square or more"
