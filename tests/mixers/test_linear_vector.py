"""Mixers with gates per channel: initial values, precision, and the selective scan of Mamba."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.ops.scan.selective import selective_scan
from tests import mixer_cases as cases
from tests.linear_cases import B, T, close, layer, run, started

MIXERS = [("gla", {}), ("hgrn2", {}), ("rwkv6", dict(blend_rank=4, decay_rank=4)),
          ("mamba1", dict(state_dim=4))]


def first_values(name, **options):
    return started(layer(name, **options), L.sequence(1, T), jnp.float32, spread=0.0)[1]["params"]


def test_initial_values_are_the_published_ones():
    """Golden numbers of the reference layers: RWKV-LM's tables, state-spaces/mamba, fla's GLA."""
    gla = first_values("gla")
    assert (np.asarray(gla["rate_up"]["bias"]) == 0).all()
    np.testing.assert_allclose(nn.sigmoid(0.0) ** (1 / 16), 0.957603, atol=1e-6)
    rwkv = first_values("rwkv6", depth_ratio=0.0, depth_left=1.0, blend_rank=3)
    decay = np.asarray(rwkv["decay"]).reshape(-1)  # -6 + 5 (n / 15)^0.7
    np.testing.assert_allclose(decay[[0, 1, 15]], [-6, -5.248886, -1], atol=1e-5)
    np.testing.assert_allclose(np.asarray(rwkv["bonus"]).reshape(-1)[:4], [0, 0.1, -0.1, 0],
                               atol=1e-7)
    blend = np.asarray(rwkv["blend"])  # 1 - n/16, and 1 - sqrt(n/16) for r and g
    np.testing.assert_allclose(blend[:, 4], [0.75, 0.75, 0.75, 0.75, 0.5, 0.5], atol=1e-6)
    last = first_values("rwkv6", depth_ratio=1.0, depth_left=0.25, blend_rank=3)
    np.testing.assert_allclose(np.asarray(last["blend"])[3, 1], 0.2, atol=1e-6)  # 1 - (1/16)^.25-.3
    np.testing.assert_allclose(np.asarray(last["bonus"]).reshape(-1)[[0, 15]], [1, 0.0], atol=1e-6)
    mamba = first_values("mamba1", expand=32, state_dim=4)
    np.testing.assert_allclose(np.exp(mamba["log_rate"])[3], [1, 2, 3, 4], rtol=1e-6)
    step = nn.softplus(mamba["step_bias"])
    assert 0.00099 < step.min() < 0.0011 and 0.095 < step.max() < 0.10001
    assert np.abs(mamba["step_up"]["kernel"]).max() <= 1.0  # rank 1


@pytest.mark.parametrize("name,options", MIXERS, ids=[name for name, _ in MIXERS])
def test_bfloat16_keeps_a_wide_memory(name, options):
    mixer, seq = layer(name, "rope" if name != "mamba1" else "no_pe", **options), L.sequence(1, T)
    x, found = started(mixer, seq, jnp.float32, spread=0.1)
    y, state = run(mixer, found, x.astype(jnp.bfloat16), seq, mixer.init_state(B, T, jnp.bfloat16))
    core = getattr(state, "core", state)
    assert y.dtype == jnp.bfloat16 and core.memory.dtype == jnp.float32
    close(np.asarray(y, np.float32), run(mixer, found, x, seq)[0], 0.08)
    assert mixer.state_size(8) == mixer.state_size(4096)


@pytest.mark.parametrize("position", ["xpos", ["xpos", "cope"], ["xpos", "t5_bias"]], ids=str)
def test_a_token_that_reads_before_its_own_gates_reads_behind_the_scheme_s_fade(position, x64):
    """RWKV-6 under a rotation with a fade of its own: one answer over pairs and from a memory."""
    forms = ("quadratic", "chunked", "step") if position == "xpos" else ("quadratic",)
    cases.agree(cases.ways(dict(name="rwkv6", num_heads=2, blend_rank=4, decay_rank=4, chunk=4),
                           position, forms))


def scan_loop(query, key, value, step, rate, fade, state, start):
    out, state = np.zeros(value.shape), np.array(state)
    for b in range(len(value)):
        for t in range(value.shape[1]):
            state[b] = 0 if start[b, t] else state[b]
            gate = np.exp(step[b, t][:, None] * rate + fade[b, t][:, None])
            state[b] = gate * state[b] + np.outer(value[b, t], key[b, t])
            out[b, t] = state[b] @ query[b, t]
    return out, state


def test_the_selective_scan_is_the_loop_and_its_gradient_a_difference(x64):
    rng, (length, channels, size) = np.random.default_rng(0), (23, 3, 4)
    draw = lambda *shape: rng.normal(size=shape)
    given = dict(query=draw(2, length, size), key=draw(2, length, size),
                 value=draw(2, length, channels), step=rng.exponential(size=(2, length, channels)),
                 rate=-rng.exponential(size=(channels, size)),
                 fade=-rng.exponential(0.2, size=(2, length, channels)),
                 state=draw(2, channels, size))
    start = rng.random((2, length)) < 0.15
    scan = jax.jit(lambda x, chunk: selective_scan(**x, start=start, chunk=chunk),
                   static_argnums=1)
    for chunk in (1, 7, 64):
        for got, want in zip(scan(given, chunk), scan_loop(**given, start=start)):
            close(got, want)
    weight = draw(2, length, channels)
    total = jax.jit(lambda x: jnp.sum(weight * selective_scan(**x, start=start, chunk=7)[0]))
    slope = jax.jit(jax.grad(total))({n: jnp.asarray(a) for n, a in given.items()})
    for name, a in given.items():
        along = draw(*a.shape)
        ends = [total({**given, name: a + s * 1e-6 * along}) for s in (1, -1)]
        np.testing.assert_allclose((ends[0] - ends[1]) / 2e-6, np.sum(slope[name] * along),
                                   rtol=1e-6)
