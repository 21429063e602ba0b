"""Phases at ids up to 2^20 are within 1e-5 rad of float64: every rotation, and in a layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from tests.test_positions import EXAMPLES, WIDTH, make, theta

FAR, DIM, TRAINED = 2**20, 64, 4096
IDS = np.unique(np.concatenate([np.arange(200), 2 ** np.arange(21), 2 ** np.arange(1, 21) - 1,
                                FAR - np.arange(100),
                                np.random.default_rng(0).integers(0, FAR, 2000)])).astype(float)


def dynamic_ntk(length, factor=1.0, **_):
    growth = factor * length / TRAINED - (factor - 1)
    return theta(DIM, 1e4 * growth ** (DIM / (DIM - 2)))


def long_rope(length, factor=4.0, dynamic=False, original_length=TRAINED, **_):
    share = (length / original_length - 1) / (factor - 1) if dynamic else 1.0
    return theta(DIM) / (1 + (factor - 1) * share)


BY_LENGTH = {"dynamic_ntk": dynamic_ntk, "long_rope": long_rope}  # twins: the length told decides


def frequencies(spec, length, **where):
    """Radians per id [P] in float64, from the host alone; None where a scheme does not turn."""
    options = dict(spec)
    if options["name"] in BY_LENGTH:
        return BY_LENGTH[options.pop("name")](length, **options)
    parts = make(spec, **where).numbers().get("frequency")
    return None if parts is None else 2 * np.pi * np.asarray(parts, np.float64).sum(0)


ROTARY = [spec for spec in EXAMPLES
          if frequencies(spec, FAR, dim=DIM, train_length=TRAINED) is not None]


def off(angle, ids, frequency):
    """Largest distance in radians between angles and ids x frequency, up to whole turns."""
    error = np.asarray(angle, np.float64) - np.asarray(ids, np.float64) * frequency
    return np.abs(error - 2 * np.pi * np.round(error / (2 * np.pi))).max()


def spoken(spec):
    """The rotations in the lanes of a scheme, and its pair map, under a bfloat16 input."""
    scheme = make(spec, dim=DIM, train_length=TRAINED)
    x, seq = jnp.zeros((1, 1, WIDTH), jnp.bfloat16), L.sequence(1, 1, told_length=FAR)

    def run():
        carry = scheme.init_carry(1)
        found = nn.unbox(scheme.init(jax.random.key(0), x, seq, carry, method="lanes"))
        return scheme.apply(found, x, seq, carry, method="lanes")[0]

    lanes = jax.jit(run)()
    is_rotation = lambda value: isinstance(value, L.Rotation)
    leaves = jax.tree.leaves(lanes, is_leaf=is_rotation)
    return [leaf for leaf in leaves if is_rotation(leaf)], lanes.transport


@pytest.mark.parametrize("spec", ROTARY, ids=str)
def test_every_rotation_is_exact_to_a_million(spec):
    rotations, transport = spoken(spec)
    wanted = frequencies(spec, FAR, dim=DIM, train_length=TRAINED)
    if not rotations:  # by head: the next test; Sandwich's cosines: test_static_biases
        assert transport is None or isinstance(transport, L.ContentRotation)
    for rotation in rotations:
        axes = 1 if rotation.axis is None else max(rotation.axis) + 1
        ids = jnp.asarray(np.repeat(IDS[None, :, None], axes, -1), jnp.float32)
        angle = jax.jit(L.phase)(rotation, ids)
        assert angle.dtype == jnp.float32
        assert off(angle[0], IDS[:, None], wanted) < 1e-5
    for maps in getattr(transport, "pieces", ()):
        for one in maps:
            here = lambda ids, dtype, one=one: one(
                jax.tree.map(lambda a: jnp.asarray(a, dtype), transport.params),
                jnp.asarray(ids, dtype)[None, :, None])
            angle = jax.jit(L.phase)(transport.rotation, jax.jit(here, static_argnums=1)(
                IDS, jnp.float32))
            with jax.enable_x64(True):
                moved = np.asarray(here(IDS, jnp.float64))
            assert off(angle, moved, wanted) < 1e-5, one.__name__


@pytest.mark.parametrize("name, heads", [("multi_head_rope", 8), ("lrpe_rope", 4)])
def test_rotations_by_head_are_exact_to_a_million(name, heads):
    """They come as phases, not as a frequency; text turns whole heads, or each at its own rates."""
    scheme, x = make(name, dim=DIM, heads=heads), jnp.zeros((1, len(IDS), WIDTH), jnp.bfloat16)
    seq = L.sequence(1, len(IDS), ids=IDS[None, :, None])
    run = jax.jit(lambda: scheme.init_with_output(
        jax.random.key(0), x, seq, scheme.init_carry(1), method="lanes")[0][0].transport.phase)
    angle, pairs = run(), DIM // 2
    assert angle.dtype == jnp.float32 and angle.shape == (1, len(IDS), heads, pairs)
    rates = np.tile(theta(DIM), (heads, 1))
    if name == "lrpe_rope":
        rates = 1e4 ** (-2.0 * np.arange(heads * pairs) / (heads * DIM)).reshape(heads, pairs)
    for head in range(heads):
        assert off(angle[0, :, head], IDS[:, None], rates[head]) < 1e-5


@pytest.mark.parametrize("spec", [
    dict(name="rope"), dict(name="dynamic_ntk", factor=2.0), dict(name="self_extend", group=4)],
    ids=str)
def test_phases_inside_a_bfloat16_layer(spec, monkeypatch):
    """As training, evaluation and decoding compute them, seen on their way into the rotation."""
    seen, phase = [], L.phase

    def spy(rotation, ids):
        angle = phase(rotation, ids)
        jax.debug.callback(lambda *arrays: seen.append([np.asarray(a) for a in arrays]), ids, angle)
        return angle

    monkeypatch.setattr(L, "phase", spy)
    layer = mixers.make(dict(name="attention", num_heads=2), width=2 * DIM, position=spec,
                        train_length=TRAINED)
    x, start = jax.random.normal(jax.random.key(0), (1, 8, 2 * DIM), jnp.bfloat16), FAR - 8
    seq = L.sequence(1, 8, ids=start + np.arange(8.0)[None, :, None], told_length=FAR)
    found = nn.unbox(jax.jit(layer.init)(jax.random.key(1), x, seq))
    ladder = frequencies(spec, FAR, dim=DIM, train_length=TRAINED)

    def check(last):
        jax.effects_barrier()
        assert seen
        tops = []
        for ids, angle in seen:
            assert angle.dtype == np.float32 and angle.shape[-1] == DIM // 2
            reads = ids if ids.shape[-1] == angle.shape[-1] else ids[..., :1]
            assert off(angle, reads, ladder) < 1e-5
            tops.append(ids.max())
        assert last in tops  # an id that went through bfloat16 would be a multiple of 4096
        seen.clear()

    check(FAR - 1)  # of init
    loss = lambda params: layer.apply({**found, "params": params}, x, seq)[0].astype(float).sum()
    jax.jit(jax.grad(loss))(found["params"])
    check(FAR - 1)
    y, _ = jax.jit(layer.apply)(found, x, seq)
    assert y.dtype == jnp.bfloat16
    check(FAR - 1)
    state, step = layer.init_state(1, 8, jnp.bfloat16), jax.jit(layer.apply)
    for a, b in ((0, 5), (5, 6), (6, 7)):
        _, state = step(found, x[:, a:b], seq[a:b], state)
        check(start + b - 1)
