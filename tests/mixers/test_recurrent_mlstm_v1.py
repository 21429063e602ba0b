"""The first mLSTM block: as published on a packed row, in every form; how it starts."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from lcx.errors import ConfigError
from tests import mixer_cases as cases
from tests.mixer_cases import DOCUMENTS, B, D, T, conv, sigmoid, silu
from tests.mixers.test_recurrent_mlstm import naive

SPEC = dict(name="mlstm_v1", num_heads=2, block=4, conv_window=3)
H, V = 2, D  # twice the width in two heads


def test_it_is_the_published_block(x64):
    mixer, seq = cases.build(SPEC), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    p = jax.tree.map(np.asarray, found["params"])
    u, z = np.moveaxis(np.einsum("btd,dhgv->bthgv", x, p["up"]["kernel"]), 3, 0)
    flat = conv(u.reshape(B, T, -1), p["conv"]["kernel"], p["conv"]["bias"])
    seen = silu(flat).reshape(u.shape)

    def blocks(name, a):
        out = np.zeros_like(a)
        for h in range(H):
            for n in range(V // 4):
                out[:, :, h, 4 * n : 4 * n + 4] = a[:, :, h, 4 * n : 4 * n + 4] @ p[name][h, n]
        return out

    q, k, v = blocks("query", seen), blocks("key", seen), blocks("value", u)
    told = np.stack([q, k, v], 3).reshape(B, T, -1)
    gate = lambda name: told @ p[name]["kernel"].reshape(-1, H) + p[name]["bias"]
    h = naive(dict(query=q / np.sqrt(V), key=k, value=v, log_input=gate("input_gate"),
                   log_forget=np.log(sigmoid(gate("forget_gate")))), [a for a, _ in DOCUMENTS])
    apart = h - h.mean(-1, keepdims=True)
    h = apart / np.sqrt((apart**2).mean(-1, keepdims=True) + 1e-5) * p["norm"]["scale"]
    wanted = np.einsum("bthv,hvd->btd", (h + p["skip_scale"] * seen) * silu(z),
                       p["down"]["kernel"])
    np.testing.assert_allclose(mixer.apply(found, x, seq)[0], wanted, rtol=0,
                               atol=2e-5)  # eps of the denominator is not in the definition


def test_every_way_of_running_agrees(x64):
    cases.agree(cases.ways(dict(SPEC, chunk=4), ["rope", "fox"], ("quadratic", "chunked", "step")))


def test_starts():
    mixer = cases.build(SPEC)
    p = jax.tree.map(np.asarray, nn.unbox(jax.jit(mixer.init)(
        jax.random.key(0), cases.inputs(), cases.packed()))["params"])
    assert not p["input_gate"]["kernel"].any() and not p["forget_gate"]["kernel"].any()
    np.testing.assert_array_equal(p["forget_gate"]["bias"], [3, 6])
    assert 0 < np.abs(p["input_gate"]["bias"]).max() < 0.5
    assert (p["skip_scale"] == 1).all() and (p["norm"]["scale"] == 1).all()
    for kernel in (p["up"]["kernel"], p["query"], p["value"]):
        np.testing.assert_allclose(kernel.std(), np.sqrt(0.4 / D), rtol=0.2)


def test_blocks_must_divide_a_head():
    with pytest.raises(ConfigError, match="block=5 must divide .* 32 channels"):
        cases.build(dict(SPEC, block=5)).site()
