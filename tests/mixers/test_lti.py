"""Time-invariant mixers: full layers against NumPy loops, every way of running them, refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from lcx import lanes as L
from lcx import lookup, mixers, positions
from lcx.errors import ConfigError, Refusal
from lcx.mixers import s4d
from lcx.ops import hippo
from tests import mixer_cases as cases
from tests.mixer_cases import B, D, T, sigmoid, turn

S4D = dict(name="s4d", num_heads=2, state_dim=6)
FORMS = ("quadratic", "chunked", "step")
ANGLES = np.array([1.1, 0.2, 0.7])


def rotation(angles=ANGLES, **options):
    return L.Rotation(jnp.asarray(L.split_frequency(angles)), **options)


def falling(params, distance):
    """A static bias per head: a logarithm, and a bump at distance 2."""
    bump = jnp.where(distance == 2, 0.7, 0.0)
    return jnp.stack([-jnp.log1p(jnp.abs(distance)), bump], -1) * params


def gates(shape, seed=3):
    draw = -np.random.default_rng(seed).random((T, *shape))
    return np.where(cases.starts().reshape(-1, *[1] * len(shape)), 0.0, draw)


def mixed(kernel, value, weight=None, matrix=None, fade=None):
    """sum_j K(i - j) weight(distance) [H] exp(fades in between) matrix(id_i - id_j) x_j."""
    ids = np.asarray(cases.packed().ids)[0, :, 0]
    out = np.zeros_like(value)
    for h in range(value.shape[2]):
        for j in range(T):
            total = np.zeros(value.shape[-1])
            for i in range(j, T):
                if i > j and cases.starts()[i]:
                    break
                total = total + (0 if fade is None or i == j else fade[i, h])
                x = value[:, j, h]
                x = x if matrix is None else x @ matrix(ids[i] - ids[j]).T
                factor = 1.0 if weight is None else weight(ids[i] - ids[j])[h]
                out[:, i, h] += kernel[i - j, h] * factor * np.exp(total) * x
    return out


def s4d_layer(params, x, **lanes):
    """arXiv:2206.11893, equation by equation."""
    p = jax.tree.map(np.asarray, params)
    k = p["kernel"]
    pole = -np.exp(k["log_rate"]) + 1j * k["frequency"]
    step, read = np.exp(k["log_step"])[..., None], k["read"][..., 0] + 1j * k["read"][..., 1]
    discrete = np.exp(step * pole)
    kernel = np.stack([(2 * read * (discrete - 1) / pole * discrete**n).sum(-1).real
                       for n in range(T)])
    value = x.reshape(B, T, 2, -1)
    y = mixed(kernel, value, **lanes) + p["skip"] * value
    y = (y * 0.5 * (1 + erf(y / np.sqrt(2)))).reshape(B, T, D)
    both = y @ p["out"]["kernel"].reshape(D, 2 * D) + p["out"]["bias"].reshape(-1)
    return both[..., :D] * sigmoid(both[..., D:])


def test_s4d_is_the_published_layer_under_every_lane(x64):
    mixer, seq = cases.build(S4D), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    layer = lambda **lanes: s4d_layer(found["params"], np.asarray(x), **lanes)
    run = lambda lanes=None: cases.captured(mixer, found, x, seq, lanes)[0]
    np.testing.assert_allclose(run(), layer(), atol=1e-12)
    for interleaved in (False, True):
        lanes = rotation(interleaved=interleaved)
        wanted = layer(matrix=lambda far, i=interleaved: turn(-ANGLES * far, 8, i))
        np.testing.assert_allclose(run(L.Lanes(lanes)), wanted, atol=1e-9)
        np.testing.assert_allclose(run(L.Lanes(value=L.ValueRotation(lanes))), wanted, atol=1e-9)
    gate, inside = gates((2,)), gates((2, 5), 4)
    spread = np.pad(inside, [(0, 0), (0, 0), (0, 3)])
    lanes = L.Lanes(L.Diagonal(jnp.asarray(inside)[None]), (L.Separable(jnp.asarray(gate)[None]),))
    np.testing.assert_allclose(run(lanes), layer(fade=gate[..., None] + spread), atol=1e-11)
    static = L.Toeplitz(jnp.asarray(1.0), falling)
    weight = lambda distance: np.exp(np.asarray(falling(1.0, jnp.asarray(distance))))
    np.testing.assert_allclose(run(L.Lanes(bias=(static,))), layer(weight=weight), atol=1e-11)
    # uneven gates beside a static bias: no transform, all pairs
    lanes = lanes.replace(bias=(*lanes.bias, static))
    wanted = layer(fade=gate[..., None] + spread, weight=weight)
    np.testing.assert_allclose(run(lanes), wanted, atol=1e-11)


def test_s4d_golden_kernel_and_starts():
    """One real mode, A = -1/2, step 0.1, without the factor 2: BLOCKS of arXiv:2206.11893."""
    modes = s4d.held(jnp.array([-0.5 + 0j]), jnp.array([1 + 0j]), jnp.array(0.1))
    np.testing.assert_allclose(modes.taps(3) / 2, [0.0975412, 0.0927840, 0.0882589], rtol=1e-6)
    pole, _ = s4d.STARTS["lin"](6)
    np.testing.assert_allclose(pole, [-0.5, -0.5 + 1j * np.pi, -0.5 + 2j * np.pi])
    pole, _ = s4d.STARTS["inv"](6)
    np.testing.assert_allclose(pole.imag, 6 / np.pi * np.array([5, 1, 0.2]))
    np.testing.assert_allclose(s4d.STARTS["real"](6)[0], [-1, -2, -3])
    pole, column = s4d.STARTS["legs"](64)
    np.testing.assert_allclose(pole.real, -0.5, atol=1e-9)
    assert np.abs(column.imag).max() <= 2.0 and (pole.imag > 0).all()
    # the spectrum that "inv" approximates
    assert abs(pole.imag[-1] / s4d.STARTS["inv"](64)[0].imag[0] - 1) < 0.05


def test_s4d_starts_as_published():
    mixer = mixers.make(dict(name="s4d", state_dim=64), position="no_pe", width=256, train_length=8)
    x, seq = jnp.zeros((1, 2, 256)), L.sequence(1, 2)
    p = nn.unbox(jax.jit(mixer.init)(jax.random.key(0), x, seq))["params"]
    step = np.exp(p["kernel"]["log_step"])
    assert 0.001 <= step.min() < 0.0015 and 0.07 < step.max() <= 0.1
    assert abs(np.log(step).mean() - np.log(0.01)) < 0.2
    np.testing.assert_allclose(np.exp(p["kernel"]["log_rate"]), 0.5, rtol=1e-6)
    np.testing.assert_allclose(np.square(p["kernel"]["read"]).mean((0, 1, 2)), 0.5, atol=0.03)
    assert abs(np.std(p["skip"]) - 1) < 0.15


@pytest.mark.parametrize("position,forms", [
    ("no_pe", FORMS), (["rope", "alibi"], FORMS), ("xpos", FORMS),
    (dict(name="t5_bias", num_buckets=8, max_distance=10), ("quadratic", "chunked")),
    (dict(name="rerope", window=3), ("quadratic",))], ids=str)
@pytest.mark.full  # the law suite runs every mixer so
def test_s4d_runs_every_way_alike(x64, position, forms):
    cases.agree(cases.ways(dict(S4D, chunk=4), position, forms))


def test_s4d_takes_uneven_ids_exactly(x64):
    """A transform would see even steps: these ids jump, so that it must not be taken."""
    seq = L.sequence(1, T, ids=jnp.asarray([[0, 1, 3, 4, 9, 10, 11, 30, 31, 33, 34.0]])[..., None])
    for position in ("kerple", "alibi"):
        mixer = cases.build(S4D, position)
        found, x = cases.variables(mixer, seq), cases.inputs()
        by_pairs = cases.build(S4D, position, "quadratic").apply(found, x, seq)[0]
        np.testing.assert_allclose(mixer.apply(found, x, seq)[0], by_pairs, atol=1e-11)
        even = mixer.apply(found, x, L.sequence(1, T))[0]
        assert np.abs(even - by_pairs).max() > 1e-3


def test_what_reads_the_tokens_is_refused():
    """A gate of the content and a rotation by it have no place in a kernel that is static."""
    for position in ("fox", "wall", "selective_rope", "path"):
        mixer, x = cases.build(S4D, position), cases.inputs()
        with pytest.raises(Refusal) as caught:
            jax.eval_shape(lambda m=mixer, x=x: m.init(jax.random.key(0), x, cases.packed()))
        assert caught.value.code == "R1", position
    with pytest.raises(ConfigError, match="even"):
        cases.build(dict(S4D, state_dim=5)).init(jax.random.key(0), cases.inputs(), cases.packed())
    with pytest.raises(ConfigError, match="lin"):
        cases.build(dict(S4D, start="line")).init(jax.random.key(0), cases.inputs(), cases.packed())


SITE = L.Site(num_heads=2, num_kv_heads=2, rotary_dim=8, key_dim=8, width=16, train_length=8,
              value_dim=8)


@pytest.mark.parametrize("name", lookup.names(positions.PACKAGE))
def test_a_gate_says_whether_it_is_read_from_the_tokens(name):
    scheme = positions.make(name, SITE, parent=None)
    for lane in mixers.lane_shapes(scheme, 16).values():
        if isinstance(lane, (L.Separable, L.Diagonal)):
            assert lane.content == scheme.content, name


def test_hippo_golden():
    matrix, column = hippo.legs(4)
    np.testing.assert_allclose(matrix[:2, :2], [[-1, 0], [-np.sqrt(3), -2]])
    np.testing.assert_allclose(column, np.sqrt([1, 3, 5, 7]))
    np.testing.assert_allclose(np.sort(np.linalg.eigvals(hippo.legs(5)[0]).real),
                               [-5, -4, -3, -2, -1], atol=1e-9)
    np.testing.assert_allclose(matrix[:, 0], -column)  # (1, 0, 0, 0) rests under an input of 1
    far = hippo.project(np.ones(4000), 4)[-1]
    np.testing.assert_allclose(far, [1, 0, 0, 0], atol=1e-3)
    # a past that Legendre polynomials can hold is held: u(s) = s on 0..t
    state = hippo.project(np.arange(1, 2001) - 0.5, 3)[-1]
    np.testing.assert_allclose(hippo.reconstruct(state, 5), 2000 * (np.arange(5) + 0.5) / 5,
                               atol=1.0)


def test_the_diagonal_form_of_legs_is_legs():
    size = 8
    matrix, column = hippo.legs(size)
    pole, low, inward = hippo.normal_plus_low_rank(size)
    # the other half are conjugates; the same impulse response through both bases
    full = np.diag(np.r_[pole, pole.conj()]) - np.outer(np.r_[low, low.conj()],
                                                        np.r_[low, low.conj()].conj())
    read = np.random.default_rng(0).normal(size=size)
    root = np.sqrt(np.arange(size) + 0.5)
    skew = matrix + np.outer(root, root)
    _, vectors = np.linalg.eigh(skew * -1j)
    kept = vectors[:, size // 2:]
    basis = np.concatenate([kept, kept.conj()], 1)
    for power in range(4):
        straight = read @ np.linalg.matrix_power(matrix, power) @ column
        turned = read @ basis @ np.linalg.matrix_power(full, power) @ np.r_[inward, inward.conj()]
        np.testing.assert_allclose(turned, straight, rtol=1e-8)


# ---- S4 ----------------------------------------------------------------------------------------


def s4_taps(k, steps, length):
    """Powers of the bilinear matrix of A = diag - P P^* and its conjugate half."""
    z = lambda name: k[name][..., 0] + 1j * k[name][..., 1]
    both = lambda a: np.concatenate([a, a.conj()], -1)
    pole = both(-np.exp(k["log_rate"]) + 1j * k["frequency"])
    low, column = both(z("low_rank")), both(z("column"))
    out = np.zeros((length, *steps.shape))
    for place in np.ndindex(steps.shape):
        a = np.diag(pole[place]) - np.outer(low[place], low[place].conj())
        one, half = np.eye(len(a)), steps[place] / 2
        left = np.linalg.inv(one - half * a)
        matrix, inward = left @ (one + half * a), 2 * half * left @ column[place]
        read = both(z("read"))[place] @ np.linalg.inv(
            one - np.linalg.matrix_power(matrix, k["length"]))
        for n in range(length):
            out[(n, *place)] = (read @ np.linalg.matrix_power(matrix, n) @ inward).real
    return out


@pytest.mark.parametrize("kernel_length", [4, 8, 30])
def test_s4_kernel_is_the_powers_of_the_bilinear_matrix(x64, kernel_length):
    """Shorter than the text (C is kept for 4 or 8 tokens of 11) and longer."""
    mixer = cases.build(dict(name="s4", num_heads=2, state_dim=6, kernel_length=kernel_length))
    seq, x = cases.packed(), cases.inputs()
    found = cases.variables(mixer, seq)
    _, inner, outer = cases.captured(mixer, found, x, seq)
    k = {name: np.asarray(a) for name, a in found["params"]["kernel"].items()}
    wanted = s4_taps(dict(k, length=kernel_length), np.exp(k["log_step"]), T)
    np.testing.assert_allclose(inner["kernel"], wanted, atol=1e-10 * np.abs(wanted).max())
    np.testing.assert_allclose(outer, mixed(wanted, inner["value"]), atol=1e-9)


def test_s4_starts_at_legs_whatever_length_it_is_kept_for():
    """The kernel of a fresh layer is C exp-like of HiPPO itself: the same for any kernel_length."""
    taps = []
    for kernel_length in (8, 16, 64):
        mixer = cases.build(dict(name="s4", num_heads=2, state_dim=8,
                                 kernel_length=kernel_length))
        seq, x = cases.packed(), cases.inputs().astype(jnp.float32)
        found = nn.unbox(jax.jit(mixer.init)(jax.random.key(0), x, seq))
        _, inner, _ = cases.captured(mixer, found, x, seq)
        taps.append(inner["kernel"])
    for other in taps[1:]:
        np.testing.assert_allclose(other, taps[0], atol=2e-4 * np.abs(taps[0]).max())


@pytest.mark.parametrize("position,forms", [(["rope", "alibi"], FORMS)], ids=str)
@pytest.mark.full  # the law suite runs every mixer so
def test_s4_runs_every_way_alike(x64, position, forms):
    spec = dict(name="s4", num_heads=2, state_dim=4, kernel_length=6, chunk=4)
    cases.agree(cases.ways(spec, position, forms), 1e-8)
