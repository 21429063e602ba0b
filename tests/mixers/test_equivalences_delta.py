"""Cells of the delta family that are one model under two names (the cores, on packed rows)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import positions
from lcx.mixers.delta_family import DeltaMixer
from lcx.mixers.linear_family import LinearMixer
from tests import mixer_cases as cases

B, T, H, K, V, D = 2, 21, 2, 4, 3, 8
SEGMENT = np.array([[1] * 8 + [2] * 1 + [3] * 12, [1] * 13 + [2] * 8])
FORMS = ("quadratic", "chunked", "step")


class Core(DeltaMixer):
    """The family's core alone."""

    def site(self):
        return L.Site(H, H, K, K, D, T, value_dim=V)


class LinearCore(LinearMixer):
    def site(self):
        return L.Site(H, H, K, K, D, T, value_dim=V)


@pytest.fixture
def draw(x64):
    """query, unit key, value, beta, gates per head and per channel (all <= 0)."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=(B, T, H, *shape)))
    key = normal(K)
    gates = [-jnp.asarray(rng.exponential(0.4, size=(B, T, H, *shape))) for shape in ((), (K,))]
    return (normal(K), key / jnp.linalg.norm(key, axis=-1, keepdims=True), normal(V),
            jnp.asarray(rng.uniform(0, 1, size=(B, T, H))), *gates)


def packed():
    return L.sequence(B, T, segment=SEGMENT)


def run(query, key, value, lanes=None, form="auto", **options):
    core = Core(position="no_pe", width=D, train_length=T, form=form, chunk=8)
    x, lanes = jnp.zeros((B, T, D)), L.Lanes() if lanes is None else lanes
    return jax.jit(lambda *a: core.apply({}, *a, x, packed(), None, lanes, None, **options,
                                         method="mix")[0])(query, key, value)


def close(got, wanted):
    assert np.abs(wanted).max() > 0.1
    cases.close(got, wanted, 1e-12)


def alibi():
    """ALiBi's increments on the packed rows, zero at each start, and the slopes."""
    scheme = positions.make("alibi", LinearCore("no_pe", D, T).site(), parent=None)
    found = scheme.init_with_output(jax.random.key(0), jnp.zeros((B, T, D)), packed(),
                                    scheme.init_carry(B), method="lanes")[0][0]
    return found, -found.bias[0].increment[0, 1]


@pytest.mark.parametrize("form", FORMS)
def test_e8_gates_alike_in_all_channels_make_kda_gated_delta_net(draw, form):
    query, key, value, beta, gate, _ = draw
    options = dict(beta=beta, form=form)
    tied = jnp.broadcast_to(gate[..., None], key.shape)
    close(run(query, key, value, log_decay=tied, **options),
          run(query, key, value, log_decay=gate, **options))


def test_e8_gated_delta_net_that_forgets_nothing_is_delta_net(draw):
    query, key, value, beta, gate, _ = draw
    close(run(query, key, value, beta=beta, log_decay=0 * gate),
          run(query, key, value, beta=beta))


@pytest.mark.parametrize("form", FORMS)
def test_e8_gated_delta_net_2_with_one_gate_is_kda(draw, form):
    query, key, value, beta, _, gate = draw
    one = jnp.ones_like(beta)
    both = run(query, key, beta[..., None] * value, erase=beta[..., None] * key, beta=one,
               log_decay=gate, form=form)
    close(both, run(query, key, value, beta=beta, log_decay=gate, form=form))


def test_e10_delta_net_under_alibi_is_gated_delta_net_with_a_constant_gate(draw):
    query, key, value, beta, gate, _ = draw
    lanes, slopes = alibi()
    assert slopes.shape == (H,) and (slopes > 0).all()
    constant = jnp.broadcast_to(-slopes, gate.shape)
    close(run(query, key, value, lanes, beta=beta),
          run(query, key, value, beta=beta, log_decay=constant))


def test_e11_linear_attention_under_the_path_of_its_keys_is_delta_net(draw):
    query, key, value, beta, _, _ = draw
    core = LinearCore(position="no_pe", width=D, train_length=T, chunk=8)
    lanes = L.Lanes(L.Householder(key, beta))
    linear = jax.jit(lambda *a: core.apply({}, *a, packed(), lanes, (), None, method="mix")[0])
    close(linear(query, beta[..., None] * key, value), run(query, key, value, beta=beta))


@pytest.mark.parametrize("form", FORMS)
def test_e22_delta_product_of_one_write_is_gated_delta_net(draw, form):
    query, key, value, beta, gate, _ = draw
    each = [a[:, :, None] for a in (key, value, beta)]
    close(run(query, *each[:2], beta=each[2], log_decay=gate, form=form),
          run(query, key, value, beta=beta, log_decay=gate, form=form))


def test_e22_delta_product_of_two_writes_is_twice_as_many_tokens(draw):
    """Its gates on the first of each two tokens, its reads on the second."""
    query, key, value, beta, gate, _ = draw
    pairs = [a.reshape(B, T, 1, *a.shape[2:]) for a in (key, value, beta)]
    twice = [jnp.concatenate([a, a[:, ::-1]], 2) for a in pairs]
    got = run(query, *twice[:2], beta=twice[2], log_decay=gate)
    memory = np.zeros((B, H, K, V))
    for t in range(T):
        starts = (t == 0) | (SEGMENT[:, t] != SEGMENT[:, max(t - 1, 0)])
        memory = memory * (1 - starts)[:, None, None, None] * np.exp(gate[:, t])[..., None, None]
        for n in range(2):
            k, v, b = (np.asarray(a[:, t, n]) for a in twice)
            error = v - np.einsum("bhkv,bhk->bhv", memory, k)
            memory = memory + np.einsum("bh,bhk,bhv->bhkv", b, k, error)
        cases.close(got[:, t], np.einsum("bhkv,bhk->bhv", memory, query[:, t]), 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_e22_rwkv7_that_reads_what_has_faded_is_kda(draw, form):
    query, key, value, beta, _, gate = draw
    strength = beta[..., None]
    rwkv = run(query, strength * key, value, erase=jnp.exp(gate) * key, write=strength * key,
               undecayed=True, beta=jnp.ones_like(beta), log_decay=gate, form=form)
    close(rwkv, run(query, key, value, beta=beta, log_decay=gate, form=form))
    other = run(query, strength * key, value, erase=key, write=strength * key, undecayed=True,
                beta=jnp.ones_like(beta), log_decay=gate, form=form)
    assert np.abs(other - rwkv).max() > 0.01  # the same numbers read before the gate: another model


def test_a_gate_that_forgets_all_leaves_no_infinity_in_an_erase_before_it(draw):
    query, key, value, beta, gate, _ = draw
    closed = gate.at[:, 5].set(-jnp.inf)
    found = [run(query, key, value, beta=beta, log_decay=g, erase=key, undecayed=True)
             for g in (closed, gate.at[:, 5].set(-50.0))]
    assert np.isfinite(found[0]).all()
    close(*found)
