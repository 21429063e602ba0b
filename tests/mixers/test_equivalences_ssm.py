"""Cells of the grid that are published state-space models under another name (BLOCKS U.8)."""

import jax
import jax.numpy as jnp
import numpy as np

from lcx import lanes as L
from lcx.mixers import hyena, s4d
from lcx.ops import pairs
from lcx.ops.linear import linear_attention, quadratic
from tests import mixer_cases as cases
from tests.mixers.test_gated_convolutions import HYENA
from tests.mixers.test_lru import LRU
from tests.mixers.test_lti import S4D, rotation
from tests.mixers.test_mamba3 import MAMBA3, layer


def always_present(found, x):
    """Inputs and parameters with which every trapezoid share is 1: Euler's rule."""
    x = x.at[..., -1].set(1.0)
    share = found["params"]["trapezoid"]
    share["kernel"] = jnp.zeros_like(share["kernel"]).at[-1].set(60.0)
    return found, x


def test_e12_mamba2_with_turned_keys_is_mamba3_under_eulers_rule(x64):
    """One linear attention over the turned features, step times key written: Mamba-2's core."""
    mixer, seq = cases.build(MAMBA3), cases.packed()
    found, x = always_present(cases.variables(mixer, seq), cases.inputs())
    y, inner, outer = cases.captured(mixer, found, x, seq)
    cases.close(y, layer(found["params"], np.asarray(x), share=np.ones((2, 11, 2))), 1e-12)
    value = np.einsum("btd,dhv->bthv", x, found["params"]["value"]["kernel"])
    cases.close(inner["value"], value, 1e-12)  # keys carry the step, a token's own as any other
    cases.close(np.sum(inner["query"] * inner["key"], -1), inner["own"], 1e-12)
    ssd, _ = linear_attention(*(jnp.asarray(inner[n]) for n in ("query", "key", "value")),
                              log_decay=jnp.asarray(inner["log_decay"]),
                              start=jnp.asarray(cases.starts())[None])
    cases.close(outer, ssd, 1e-12)


def test_e12_angles_that_do_not_change_are_rope(x64):
    """With equal steps and angles everywhere, the mixer's own turn is RoPE on query and key."""
    mixer, seq = cases.build(MAMBA3), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs().at[..., -1].set(1.0)
    p = found["params"]
    for name in ("step", "angle"):  # read the constant channel alone
        kernel = p[name]["kernel"]
        p[name]["kernel"] = jnp.zeros_like(kernel).at[-1].set(kernel[-1] if name == "angle" else 0)
    p["step_bias"] = jnp.full_like(p["step_bias"], 0.3)
    y = cases.captured(mixer, found, x, seq)[0]
    step = np.log1p(np.exp(0.3))
    angles = np.pi * np.tanh(np.asarray(p["angle"]["kernel"][-1])) * step
    still = {**p, "angle": dict(kernel=jnp.zeros_like(p["angle"]["kernel"]))}
    rope = L.Lanes(rotation(angles, interleaved=True))
    turned = cases.captured(mixer, {"params": still}, x, seq, rope)[0]
    cases.close(turned, y, 1e-12)


def test_e13_a_turn_of_values_under_a_constant_decay_is_the_lru(x64):
    """Weights gamma^(i-j) over values that turn (VO-RoPE) are lambda = gamma exp(-i theta)."""
    mixer, seq = cases.build(dict(LRU, state_dim=4)), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    nu = found["params"]["nu"]
    nu = jnp.broadcast_to(nu[:, :1], nu.shape)  # one gamma for each head
    found["params"]["nu"] = nu
    _, inner, outer = cases.captured(mixer, found, x, seq)
    theta = np.exp(found["params"]["theta"])
    for head in range(2):
        turn = L.ValueRotation(rotation(-theta[head]))
        gate = jnp.broadcast_to(-jnp.exp(nu[head, :1]), (1, 11, 1))
        gate = jnp.where(cases.starts()[None, :, None], 0.0, gate)
        lanes = L.Lanes(bias=(L.Separable(gate),), value=turn)
        one, total = jnp.ones((2, 11, 1, 1)), pairs.integrals(lanes)
        value = jnp.asarray(inner["value"][:, :, head:head + 1])
        got = quadratic.attend(pairs.Queries(one, seq, total),
                               pairs.Keys(one, value, seq.replace(length=None), total), lanes,
                               rotary_dim=0)
        cases.close(got[:, :, 0], outer[:, :, head], 1e-12)


def test_e16_a_linear_bias_widens_hyenas_window(x64):
    """exp(-m distance) times the filter is the filter whose window falls by m (L - 1) more."""
    plain, slopes = cases.build(HYENA), np.array([0.0625, 0.00390625])  # ALiBi's of two heads
    seq, x = cases.packed(), cases.inputs()
    found = cases.variables(plain, seq)
    biased = jax.jit(cases.build(HYENA, "alibi").apply)(
        {"params": {**found["params"], "position": {}},
         "numbers": {"position": {"slope": jnp.asarray(slopes)}}}, x, seq)[0]
    faster = lambda self, n, one=hyena.Implicit.one: one(self, n).replace(
        rate=self.rate[n] + slopes[:, None] * (self.length - 1))
    kept, hyena.Implicit.one = hyena.Implicit.one, faster
    try:
        wanted = jax.jit(lambda found: plain.apply(found, x, seq)[0])(found)
    finally:
        hyena.Implicit.one = kept
    assert np.abs(jax.jit(plain.apply)(found, x, seq)[0] - wanted).max() > 1e-4
    cases.close(biased, wanted, 1e-12)


def test_e17_ids_over_s_are_a_step_over_s(x64):
    """S4D's kernel read at distances l/s is that of the step divided by s, but for a constant of
    each mode that C takes in."""
    mixer, seq = cases.build(S4D), cases.packed()
    k = cases.variables(mixer, seq)["params"]["kernel"]
    pole = jax.lax.complex(-jnp.exp(k["log_rate"]), k["frequency"])
    read = jax.lax.complex(k["read"][..., 0], k["read"][..., 1])
    step, s = jnp.exp(k["log_step"]), 3.0
    whole, slow = (s4d.held(pole, read, step / by) for by in (1.0, s))
    constant = jnp.expm1(step[..., None] * pole) / jnp.expm1(step[..., None] * pole / s)
    at = jnp.sum(jnp.real(whole.weight * jnp.exp(
        jnp.arange(9.0)[:, None, None, None] / s * whole.log_pole)), -1)
    absorbed = s4d.held(pole, read * constant, step / s)
    cases.close(absorbed.taps(9), at, 1e-13)
    assert np.abs(slow.taps(9) - at).max() > 1e-3
