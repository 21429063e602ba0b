"""What the tests of single mixers share: a packed row, moved parameters, streams in pieces."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx import lanes as L
from lcx import mixers

B, T, D = 2, 11, 16
SEGMENT = np.array([[1] * 4 + [2] * 1 + [3] * 6])
DOCUMENTS = ((0, 4), (4, 5), (5, 11))
PIECES = ((0, 3), (3, 4), (4, 11))  # across documents, and at the start of one


def packed(axes=1):
    """The packed row; further axes of the ids move unevenly."""
    index = np.concatenate([np.arange(b - a) for a, b in DOCUMENTS]).astype(float)
    ids = np.stack([index, index // 2, 5 * (index % 3)][:axes], -1)[None]
    return L.sequence(1, T, segment=SEGMENT, ids=ids)


def starts():
    return np.r_[True, SEGMENT[0, 1:] != SEGMENT[0, :-1]]


def build(spec, position="no_pe", form="auto"):
    spec = dict(name=spec) if isinstance(spec, str) else spec
    return mixers.make({**spec, "form": form}, position=position, width=D, train_length=8)


def inputs(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(B, T, D)))


def variables(mixer, seq, relay=None):
    """Variables in float64: the scheme's own numbers, and parameters drawn at random."""
    init = lambda: nn.unbox(mixer.init(jax.random.key(1), inputs(), seq, relay=relay,
                                       method="relayed"))
    rng = np.random.default_rng(2)
    draw = lambda p: jnp.asarray(0.4 * rng.normal(size=p.shape))
    numbers = jax.jit(lambda: init().get("numbers", {}))()  # the draws of init are never compiled
    return {"params": jax.tree.map(draw, jax.eval_shape(init)["params"]), "numbers": numbers}


def captured(mixer, found, x, seq, lanes=None):
    """Output, and what the mixer shows of its core: (y, inner, outer)."""
    call = jax.jit(lambda found, x: mixer.apply(found, x, seq, None, lanes,
                                                mutable=["intermediates"]))
    (y, _), seen = call(found, x)
    inner = {k: np.asarray(v) for k, v in seen["intermediates"]["inner"][0].items()
             if v is not None}
    return np.asarray(y), inner, np.asarray(seen["intermediates"]["outer"][0])


def stream(mixer, found, x, seq, pieces=PIECES):
    """Outputs of a request that arrives in pieces; the state keeps its structure and types."""
    state, outputs = mixer.init_state(x.shape[0], T, x.dtype), []
    kinds = jax.tree.map(lambda a: (a.shape, a.dtype), state)
    for a, b in pieces:
        y, state = mixer.apply(found, x[:, a:b], seq[a:b], state)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == kinds
        outputs.append(y)
    return jnp.concatenate(outputs, 1)


def ways(spec, position, forms, axes=1):
    """Outputs of one layer by every way of running it: whole in each form, pieces, documents."""
    seq = packed(axes)
    mixer, x = build(spec, position, forms[0]), inputs()
    found = variables(mixer, seq)

    @jax.jit
    def run(found, x):
        out = {form: build(spec, position, form).apply(found, x, seq)[0] for form in forms}
        out["pieces"] = stream(mixer, found, x, seq)
        alone = [mixer.apply(found, x[:, a:b], L.sequence(1, b - a, ids=seq.ids[:, a:b],
                                                          told_length=T))[0] for a, b in DOCUMENTS]
        out["documents alone"] = jnp.concatenate(alone, 1)
        return out

    return run(found, x)


def agree(found, tolerance=1e-10):
    """All of them are the first."""
    first, *rest = found
    for name in rest:
        np.testing.assert_allclose(found[name], found[first], rtol=0, atol=tolerance, err_msg=name)


def close(got, wanted, tolerance=1e-11):
    """Equal up to tolerance times the scale of what is wanted, or times 1 where that is smaller.

    `pytest -s -v` prints the error.
    """
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert np.isfinite(got).all() and got.shape == np.broadcast_shapes(got.shape, wanted.shape)
    scale = np.abs(wanted).max()
    error = np.abs(got - wanted).max()
    print(f"[largest error {error:.1e} of {scale:.1e}]", end=" ")
    assert error <= tolerance * max(1.0, scale), f"{error:.2e} > {tolerance:g} x {scale:.2e}"


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def silu(x):
    return x * sigmoid(x)


def rms(x, gain):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * gain


def conv(x, kernel, bias=0.0):
    """Causal depthwise convolution of the packed rows [B,T,C] by kernel [W,C], token by token."""
    out, window = np.zeros_like(x), len(kernel)
    for t in range(T):
        for back in range(window):
            if t - back >= 0 and SEGMENT[0, t - back] == SEGMENT[0, t]:
                out[:, t] += kernel[window - 1 - back] * x[:, t - back]
    return out + bias


def turn(angles, size, interleaved=False):
    """The matrix [size,size] that turns channel pairs by `angles`."""
    out, pairs = np.eye(size), len(angles)
    for m, angle in enumerate(angles):
        a, b = (2 * m, 2 * m + 1) if interleaved else (m, m + pairs)
        out[a, a] = out[b, b] = np.cos(angle)
        out[a, b], out[b, a] = -np.sin(angle), np.sin(angle)
    return out
