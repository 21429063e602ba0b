"""The erase that reads along one vector and writes along another: both forms against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.ops.linear import linear_attention

B, T, H, K, V = 2, 37, 2, 4, 3
KINDS = ("own key", "delta", "turned")


def draw(kind):
    rng = np.random.default_rng(0)
    erase = rng.normal(size=(B, T, H, K))
    x = dict(query=rng.normal(size=(B, T, H, K)), key=rng.normal(size=(B, T, H, K)),
             value=rng.normal(size=(B, T, H, V)), state=rng.normal(size=(B, H, K, V)),
             erase=erase / np.linalg.norm(erase, axis=-1, keepdims=True),
             write=0.5 * rng.normal(size=(B, T, H, K)), beta=rng.uniform(0, 1, size=(B, T, H)),
             log_decay=-rng.exponential(0.3, size=(B, T, H, K)))
    if kind == "delta":
        x["key"] = None
    if kind == "turned":
        x["rotation"] = rng.normal(size=(B, T, H, 1))
    return x, rng.uniform(size=(B, T)) < 0.1


def loop(x, start):
    state, out = np.array(x["state"]), np.zeros((B, T, H, V))
    for b in range(B):
        for h in range(H):
            s = state[b, h]
            for t in range(T):
                s = s * (not start[b, t])
                if "rotation" in x:  # the pair (0, 1)
                    c, d = np.cos(x["rotation"][b, t, h, 0]), np.sin(x["rotation"][b, t, h, 0])
                    s = np.block([[np.array([[c, -d], [d, c]]), np.zeros((2, 2))],
                                  [np.zeros((2, 2)), np.eye(2)]]) @ s
                s = np.exp(x["log_decay"][b, t, h])[:, None] * s
                w, beta = x["write"][b, t, h], x["beta"][b, t, h]
                s = s - beta * np.outer(w, x["erase"][b, t, h] @ s)
                k = beta * w if x["key"] is None else x["key"][b, t, h]
                s = s + np.outer(k, x["value"][b, t, h])
                out[b, t, h] = x["query"][b, t, h] @ s
            state[b, h] = s
    return out, state


def run(x, start, **options):
    x = dict(x)
    return linear_attention(x.pop("query"), x.pop("key"), x.pop("value"), start=start, **x,
                            **options)


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_are_the_loop_with_one_gradient(kind, x64):
    x, start = draw(kind)
    wanted = loop(x, start)
    x = {n: None if a is None else jnp.asarray(a) for n, a in x.items()}
    rng = np.random.default_rng(1)
    weigh = [rng.normal(size=a.shape) for a in wanted]

    def functional(x, **options):
        found = run(x, jnp.asarray(start), **options)
        return sum(jnp.sum(a * w) for a, w in zip(found, weigh)), found

    both = {}
    for form in ("recurrent", "chunked"):
        grad = jax.jit(jax.grad(lambda x, f=form: functional(x, form=f, chunk=16), has_aux=True))
        both[form], found = grad(x)
        for a, w in zip(found, wanted):
            np.testing.assert_allclose(a, w, atol=1e-11)
    for name, a in both["chunked"].items():
        if a is not None:
            np.testing.assert_allclose(a, both["recurrent"][name], atol=1e-10, err_msg=name)
            assert np.abs(a).max() > 1e-3, name


def test_a_write_needs_an_erase():
    x, start = draw("own key")
    x.update(erase=None, beta=None)
    with pytest.raises(ValueError, match="write needs an erase"):
        run({n: None if a is None else jnp.asarray(a) for n, a in x.items()}, jnp.asarray(start))
