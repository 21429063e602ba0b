"""Linear attention over 8192 tokens with gates between 1 - 1e-7 and 0: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.ops.linear import linear_attention

pytestmark = pytest.mark.full
T, H, K, V = 8192, 2, 16, 8
KINDS = ("scalar", "vector", "vector turn", "scalar delta", "vector delta", "vector turn delta")


def draw(kind):
    """Operands in bfloat16's numbers: what the chunked form gets is exactly what the twin gets."""
    rng = np.random.default_rng(3)
    x = {name: rng.normal(size=(1, T, H, size)) for name, size in (
        ("query", K), ("key", K), ("value", V))}
    shape = (1, T, H, K) if "vector" in kind else (1, T, H)
    # most tokens forget next to nothing, some nearly or wholly everything
    x["log_decay"] = -rng.choice([1e-7, 1e-4, 1e-2, 1.0, 30.0, np.inf], size=shape,
                                 p=[0.6, 0.3, 0.09, 0.0085, 0.001, 0.0005])
    if "turn" in kind:
        x["rotation"] = rng.choice([1.0, 0.1, 1e-4], size=(1, T, H, K // 2))
    if "delta" in kind:
        erase = x.pop("key")
        x["erase"] = erase / np.linalg.norm(erase, axis=-1, keepdims=True)
        x["beta"] = rng.uniform(0, 1, size=(1, T, H))
    rounded = lambda a: np.asarray(jnp.asarray(a, jnp.bfloat16).astype(jnp.float32), np.float64)
    return {name: rounded(a) for name, a in x.items()}


def slopes(x, wide, narrow, form):
    """Output and gradients; matmul operands in `narrow`, gates and strengths in `wide`."""
    exact = ("log_decay", "beta", "rotation")
    x = {n: jnp.asarray(a, wide if n in exact else narrow) for n, a in x.items()}
    weight = np.random.default_rng(4).normal(size=(1, T, H, V))

    @jax.jit
    def run(x):
        def total(x):
            rest = {n: a for n, a in x.items() if n not in ("query", "key", "value")}
            out, _ = linear_attention(x["query"], x.get("key"), x["value"], form=form, **rest)
            return jnp.sum(out.astype(wide) * weight), out

        (_, out), grads = jax.value_and_grad(total, has_aux=True)(x)
        return {"out": out, **grads}

    return {n: np.asarray(a.astype(wide), np.float64) for n, a in run(x).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_and_extreme_gates(kind):
    """Within 1e-3 of float64 in float32, within 2e-2 with bfloat16 matmuls (relative, by norm)."""
    x = draw(kind)
    with jax.enable_x64(True):
        want = slopes(x, jnp.float64, jnp.float64, "recurrent")
    for narrow, limit in ((jnp.float32, 1e-3), (jnp.bfloat16, 2e-2)):
        got = slopes(x, jnp.float32, narrow, "chunked")
        for name in want:
            assert np.isfinite(got[name]).all(), name
            error = np.linalg.norm(got[name] - want[name]) / np.linalg.norm(want[name])
            print(f"{kind:18} {narrow.__name__:9} {name:10} {error:.1e}")
            assert error < limit, f"{name} in {narrow.__name__}: {error:.1e}"
