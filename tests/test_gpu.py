"""On a CUDA device: backends against their naive twins, values and gradients. `pytest -m gpu`.

Run with LCX_TEST_PLATFORM=cuda. The float32 reference is computed at the highest matmul precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import lookup, mixers
from lcx.ops import pairs
from lcx.ops.attention import api

pytestmark = pytest.mark.gpu
B, T, H, N, K = 2, 512, 8, 4, 64


def _attend(backend, dtype, lanes, window, arrays):
    query, key, value = (a.astype(dtype) for a in arrays)
    seq = L.sequence(1, T)
    with api.backend(backend):
        return api.attend(pairs.Queries(query, seq), pairs.Keys(key, value, seq), lanes,
                          rotary_dim=K, scale=K**-0.5, window=window)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("backend", ["cudnn", "chunked"])
def test_attention_backends_match_the_reference(backend, turned, window):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(B, T, H, K), (B, T, N, K), (B, T, N, K)]
    arrays = [jax.random.normal(k, s).astype(jnp.bfloat16) for k, s in zip(keys, shapes)]
    weight = jax.random.normal(keys[3], (B, T, H, K))
    lanes = L.Lanes()
    if turned:
        frequency = L.split_frequency(10000.0 ** (-np.arange(0, K, 2) / K))
        factor = 1 + 0.1 * jnp.log1p(jnp.arange(T, dtype=jnp.float32))[None, :, None]
        lanes = L.Lanes(L.Rotation(jnp.asarray(frequency, jnp.float32)), (), L.Temperature(factor))

    def run(backend, dtype):
        loss = lambda arrays: jnp.sum(_attend(backend, dtype, lanes, window, arrays) * weight)
        out = _attend(backend, dtype, lanes, window, arrays)
        return out, jax.grad(loss)([a.astype(dtype) for a in arrays])

    with jax.default_matmul_precision("highest"):
        wanted, wanted_grads = jax.jit(lambda: run("reference", jnp.float32))()
    out, grads = jax.jit(lambda: run(backend, jnp.bfloat16))()
    for name, a, b in zip(("out", "query", "key", "value"), (out, *grads),
                          (wanted, *wanted_grads)):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        print(f"{backend} {name}: relative error {error:.1e}")
        assert error < 1e-2, name


@pytest.mark.parametrize("name", lookup.names(mixers.PACKAGE))
def test_mixer_forms_agree_on_the_device(name):
    length, width = 100, 128  # two chunks of 64; float32 products of 512 autotune for minutes
    mixer = lambda form: mixers.make(dict(name=name, form=form), position="no_pe", width=width,
                                     train_length=length)
    x, seq = jax.random.normal(jax.random.key(0), (2, length, width)), L.sequence(1, length)
    forms = [f for f in mixer("auto").forms if f != "step"] or ["auto"]
    with jax.default_matmul_precision("highest"):
        found = mixer(forms[0]).init(jax.random.key(1), x, seq)
        keys = iter(jax.random.split(jax.random.key(2), 100))
        moved = lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape)  # RWKV starts at zero
        found = jax.tree.map(moved, found)

        def run(form):
            loss = lambda x: jnp.sum(jnp.sin(mixer(form).apply(found, x, seq)[0]))
            return mixer(form).apply(found, x, seq)[0], jax.grad(loss)(x)

        results = {form: jax.jit(lambda form=form: run(form))() for form in forms}
    for form in forms[1:]:
        for a, b in zip(results[form], results[forms[0]]):
            error = float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
            print(f"{name} {form}: relative error {error:.1e}")
            assert error < 1e-4, form
