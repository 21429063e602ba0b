"""What every mixer starts with: as many numbers as its reference, drawn as the reference does.

A matrix W x starts normal with variance 1 / fan_in unless the reference has a law of its own (a
plain N(0, 0.02^2) is that of 2,500 channels); gains start at 1 and biases at 0. What else there is
stands in LAWS, leaf by leaf. Tables of numbers (RWKV, LRU, S4, xLSTM) are tested with their layers.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import lookup, mixers

D, H = 128, 4  # channels of the layer, heads
K, E, Q = D // H, 2 * D, D * D
PLAIN = dict(query=Q, key=Q, value=Q, out=Q)
MAMBA2 = dict(gate=D * E, value=D * E, key=D * 64, query=D * 64, step=D * H, step_bias=H,
              log_rate=H, skip=H, norm_scale=E, out=E * D, query_conv=5 * 64, key_conv=5 * 64,
              value_conv=5 * E)  # the convolutions of four tokens have biases
LOW_RANK = dict(rate_in=D * K, rate=K * D, gate_in=D * K, a_log=H, dt_bias=D)
NETWORK = 6 * 128 + 2 * 129 * 128 + 128 + 128 * D  # of Monarch Mixer's filters: 5 inputs, 128 wide
# The numbers of each module of the default layer.
SIZES = {
    "attention": PLAIN,
    "based": dict(PLAIN, query=D * H * 16, key=D * H * 16),
    "comba": dict(qkv=D * (2 * D + E), conv=4 * (2 * D + E), beta=D * H, rate=D * H, a_log=H,
                  dt_bias=H, damping=H, correction=H, gate=D * E, norm=2 * K, out=E * D),
    "cosformer": PLAIN,
    "delta_former": dict(PLAIN, beta=D * H + H),
    "delta_net": dict(qkv=3 * Q, conv=4 * 3 * D, beta=D * H, norm=K, out=Q),
    "delta_product": dict(qkv=D * (3 * D + 2 * E), conv=4 * (3 * D + 2 * E), beta=2 * D * H,
                          rate=D * H, a_log=H, dt_bias=H, gate=D * E, norm=2 * K, out=E * D),
    "diag_attention": PLAIN,
    "differential_attention": dict(PLAIN, norm=2 * K, lambda_query_1=K, lambda_query_2=K,
                                   lambda_key_1=K, lambda_key_2=K),
    "fixed_sparse": PLAIN,
    "flash": dict(gate=D * E, value=D * E, base=D * 128, gain_scale=4 * 128, shift=4 * 128,
                  out=E * D),
    "gated_delta_net": dict(  # keys of 3/4 D, values of twice that
        qkv=D * 3 * D, conv=4 * 3 * D, beta=D * H, rate=D * H, a_log=H, dt_bias=H,
        gate=D * 3 * D // 2, norm=48, out=D * 3 * D // 2),
    "gated_delta_net2": dict(LOW_RANK, qkv=3 * Q, conv=4 * 3 * D, erase=Q, write=Q,
                             gate=K * D + D, norm=K, out=Q),
    "gau": dict(gate=D * E, value=D * E, base=D * 128, gain_scale=2 * 128, shift=2 * 128,
                out=E * D),
    "gla": dict(PLAIN, query=Q // 2, key=Q // 2, gate=Q, rate_down=16 * D,
                rate_up=16 * D // 2 + D // 2, norm=K),
    "gru": dict(inputs=3 * Q + 3 * D, recurrent=3 * Q, bias=D, out=Q),
    "gsa": dict(PLAIN, gate=Q, norm=D),
    "h3": dict(query=Q + D, key=Q + D, value=Q + D, out=Q + D, shift=64 * D, shift_skip=D,
               kernel=D * (4 * 32 + 1), skip=D),
    "hgrn": dict({"in": Q}, forget=Q, gate=Q, norm=D, out=Q),
    "hgrn2": dict(query=Q, forget=Q, value=Q, norm_scale=D, out=Q),
    "hyena": dict({"in": 3 * Q + 3 * D}, conv=4 * 3 * D, skip=D, out=Q + D,
                  filter=4 * 64 + 2 * 65 * 64 + 64 + 64 * D),
    "kda": dict(LOW_RANK, qkv=3 * Q, conv=4 * 3 * D, beta=D * H, gate=K * D, norm=K, out=Q),
    "lightning": dict(PLAIN, gate=Q, norm=D),
    "linear_attention": PLAIN,
    "linformer": dict(PLAIN, mix_keys=64 * 256, mix_values=64 * 256),
    "log_linear_mamba2": dict(MAMBA2, level=D * H * 16, level_rate=H * 16),
    "lru": dict({"in": 2 * Q}, nu=D, theta=D, gamma=D, skip=D, out=2 * Q),
    "lstm": dict(inputs=4 * Q, recurrent=4 * Q, bias=4 * D, out=Q),
    "mamba1": dict(value=D * E, gate=D * E, conv=5 * E, key=E * 16, query=E * 16,
                   step_down=E * D // 16, step_up=D // 16 * E, step_bias=E, log_rate=E * 16,
                   skip=E, out=E * D),
    "mamba2": MAMBA2,
    "mamba3": dict(gate=D * E, value=D * E, key=D * 64, query=D * 64, key_norm=64, query_norm=64,
                   key_bias=H * 64, query_bias=H * 64, angle=D * 16, rate=D * H, step=D * H,
                   step_bias=H, trapezoid=D * H, skip=H, out=E * D),
    "mamba3_mimo": dict(  # of rank 4
        gate=D * E, value=D * E, key=D * 4 * 64, query=D * 4 * 64, key_norm=64, query_norm=64,
        key_bias=H * 4 * 64, query_bias=H * 4 * 64, angle=D * 16, rate=D * H, step=D * H,
        step_bias=H, trapezoid=D * H, value_gain=4 * E, gate_gain=4 * E, out_gain=4 * E, skip=H,
        out=E * D),
    "min_gru": dict({"in": Q + D}, gate=Q + D, out=Q),
    "min_lstm": dict({"in": Q + D}, gate=Q + D, forget=Q + D, out=Q),
    "mla": dict(query=D * H * 48, latent=D * (128 + 16), latent_norm=128, key_up=128 * D,
                value_up=128 * D, out=Q),
    "mlstm": dict(query=Q // 2, key=Q // 2, value=Q, gate=Q, input_gate=D * H + H,
                  forget_gate=D * H + H, norm=D, out=Q),
    "moba": PLAIN,
    "monarch_mixer": dict({"in": 3 * Q + 3 * D, "filter": NETWORK, "residual": NETWORK},
                          conv=4 * 3 * D, filter_skip=D, residual_skip=D, out=Q + D),
    "norm_attention": dict(PLAIN, norm=D),
    "nsa": dict(PLAIN, key=D * K, value=D * K, branch=D * H * 3),  # up to 16 queries to a key head
    "performer": PLAIN,
    "rebased": dict(PLAIN, query=D * H * 16, key=D * H * 16, norm_scale=16, norm_bias=16),
    "retention": dict(PLAIN, value=2 * Q, gate=2 * Q, out=2 * Q),
    "rglru": dict({"in": Q + D}, gate=Q + D, conv=5 * D, input_gate=D * K + D,
                  recurrence_gate=D * K + D, rate=D, out=Q + D),
    "rwkv4": dict(key=Q, value=Q, receptance=Q, out=Q, blend_scale=3 * D, decay_bias=D,
                  bonus_bias=D),
    "rwkv6": dict(PLAIN, gate=Q, blend=6 * D, blend_down=5 * 32 * D, blend_up=5 * 32 * D, decay=D,
                  decay_down=64 * D, decay_up=64 * D, bonus=D, norm_scale=D, norm_bias=D),
    "rwkv7": dict(PLAIN, blend_scale=6 * D, decay_in=32 * D, decay=32 * D, decay_bias=D,
                  rate_in=32 * D, rate=32 * D, rate_bias=D, gate_in=64 * D, gate=64 * D,
                  removal_scale=D, key_scale=D, bonus_scale=D, norm_scale=D, norm_bias=D),
    "s4": dict(kernel=D * (8 * 32 + 1), skip=D, out=2 * Q + 2 * D),  # 32 pairs of complex modes
    "s4d": dict(kernel=D * (4 * 32 + 1), skip=D, out=2 * Q + 2 * D),
    "short_conv": dict({"in": 3 * Q}, kernel=3 * D, out=Q),
    "sigmoid_attention": PLAIN,
    "simple_gla": dict(PLAIN, query_conv=4 * D, key_conv=4 * D, value_conv=4 * D, gate=Q,
                       rate=D * H + H, norm=K),
    "sink_attention": dict(PLAIN, sink=H),
    "slstm": dict(inputs=4 * D * K, recurrent=4 * D * K, bias=4 * D, conv=5 * D, norm=D),
    "stick_breaking": PLAIN,
    "streaming_attention": PLAIN,
    "strided_sparse": PLAIN,
}


def built(name):
    return mixers.make(name, position="no_pe", width=D, train_length=64, parent=None)


def started(name, key):
    x, seq = jnp.zeros((1, 2, D)), L.sequence(1, 2)
    return nn.unbox(built(name).init(key, x, seq)["params"])


@pytest.mark.parametrize("name", SIZES)
def test_as_many_numbers_as_the_reference(name):
    found = jax.eval_shape(lambda: started(name, jax.random.key(0)))
    assert {module: sum(leaf.size for leaf in jax.tree.leaves(leaves))
            for module, leaves in found.items()} == SIZES[name]


def test_every_mixer_has_its_row():
    own = {"monarch_mixer", "mlstm_v1"}  # whose own tests say how they start
    missing = set(lookup.names(mixers.PACKAGE)) - own - set(SIZES)
    assert not missing, f"say in SIZES how many numbers the reference of {missing} has"


# ---- how they are drawn --------------------------------------------------------------------------


def spread(a, deviation, bounded):
    """Mean 0 and this deviation, as many draws as there are; bounded: uniform, else normal."""
    assert abs(a.mean()) < 4 * deviation / np.sqrt(a.size)
    assert abs(a.std() / deviation - 1) < 3 / np.sqrt(a.size) + 0.01
    largest = np.abs(a).max() / deviation
    assert largest <= np.sqrt(3) * (1 + 1e-6) if bounded else largest > 2 or a.size < 100


def normal(deviation):
    return lambda a: spread(a, deviation, False)


def uniform(bound):
    return lambda a: spread(a, bound / np.sqrt(3), True)


def constant(value):
    return lambda a: np.testing.assert_allclose(a, value, rtol=1e-6)


def rates(low):
    """The logarithm of a uniform rate up to 16."""
    return lambda a: between(np.exp(a), low, 16)


def steps(a):
    """The bias whose softplus is log-uniform in [1e-3, 1e-1]."""
    between(np.log(np.logaddexp(0, a)), np.log(1e-3), np.log(1e-1))


def between(a, low, high):
    """Uniform from low to high."""
    assert low - 1e-3 <= a.min() and a.max() <= high * (1 + 1e-3 * np.sign(high))
    assert abs(a.mean() - (low + high) / 2) < 4 * (high - low) / np.sqrt(12 * a.size)


def elsewhere(a):
    """A table, or a law of the layer's own test."""


XAVIER = lambda gain, fan: uniform(gain * np.sqrt(6 / fan))
# mixer, leaf, law: the first that fits, else those of the module's docstring.
LAWS = [
    ("retention", "(query|key)/kernel", XAVIER(2**-2.5, 2 * D)),
    ("retention", "(value|gate)/kernel", XAVIER(2**-2.5, 3 * D)),
    ("retention", "out/kernel", XAVIER(0.5, 3 * D)),
    ("norm_attention", "(query|key|value)/kernel", XAVIER(2**-0.5, 2 * D)),
    ("gla", "rate_up/kernel", normal(16**-0.5)),
    ("gau|flash", "gain_scale", normal(0.02)), ("gau|flash", "shift", constant(0)),
    ("linformer", "mix_.*", uniform(1 / 16)),
    ("differential_attention", "lambda_.*", normal(0.1)),
    ("sink_attention", "sink", constant(0)),
    ("mla", "(key|value)_up", normal(128**-0.5)),
    ("gated_delta_net|delta_product|comba", "a_log", rates(0)),
    ("kda|gated_delta_net2", "a_log", rates(1)), (".*mamba2", "log_rate", rates(1)),
    (".*", "dt_bias", steps), ("mamba.*|.*mamba2", "step_bias", steps),
    ("comba", "damping|correction", constant(1)),
    ("mamba.*|.*mamba2", "skip", constant(1)), ("mamba3.*", "(key|query)_bias", constant(1)),
    ("mamba3_mimo", "gate_gain", constant(1)), ("mamba3_mimo", "(value|out)_gain", constant(0.25)),
    ("mamba1", "log_rate", lambda a: np.testing.assert_allclose(
        np.exp(a), np.tile(np.arange(1, 17), (E, 1)), rtol=1e-6)),
    ("mamba1", "step_up/kernel", uniform((D // 16) ** -0.5)),
    (".*mamba2", "level_rate", constant(1)),
    ("lru", "in/kernel", normal((2 * D) ** -0.5)), ("lru", "out/kernel", normal(D**-0.5)),
    ("lru|s4|s4d", "skip", normal(1)), ("h3|hyena|monarch_mixer", ".*skip", normal(1)),
    ("lru", "nu|theta|gamma", elsewhere),
    ("s4d?", "out/kernel", normal(D**-0.5)),
    ("h3|s4d", "kernel/log_rate", constant(np.log(0.5))),
    ("h3|s4d", "kernel/read", normal(0.5**0.5)),
    ("h3|s4d", "kernel/frequency", lambda a: np.testing.assert_allclose(
        a, np.broadcast_to(np.pi * np.arange(32), a.shape), rtol=1e-5)),
    ("h3|s4.?", "kernel/log_step", lambda a: between(a, np.log(1e-3), np.log(1e-1))),
    ("s4", "kernel/.*", elsewhere),
    ("h3", "shift/kernel", uniform(64**-0.5)),
    ("hyena|monarch_mixer", "conv/(kernel|bias)", uniform(3**-0.5)),
    ("hyena", "filter/frequency", constant(1)), ("hyena", "filter/.*_0", uniform(3**-0.5)),
    ("hyena", "filter/.*", uniform(1 / 8)),
    ("monarch_mixer", ".*/frequency", constant(10)), ("monarch_mixer", ".*/.*_0", uniform(5**-0.5)),
    ("monarch_mixer", "(filter|residual)/.*", uniform(128**-0.5)),
    ("short_conv", "kernel", uniform(3**-0.5)),
    ("rglru", "conv/kernel", normal(0.05)), ("rglru", "conv/bias", constant(0)),
    ("rglru", ".*_gate/kernel", normal(K**-0.5)), ("rglru", "rate", elsewhere),
    ("rwkv.|slstm|mlstm|gru|lstm", ".*", elsewhere),
    (".*", ".*conv/(kernel|bias)", uniform(0.5)),
    (".*", "(.*/|norm_)scale", constant(1)), (".*", "(.*/|norm_)bias", constant(0)),
]


def law(name, leaf, shape):
    for mixer, pattern, found in LAWS:
        if re.fullmatch(mixer, name) and re.fullmatch(pattern, leaf):
            return found
    assert leaf.endswith("/kernel"), f"{name}: no law for {leaf}"
    return normal((int(np.prod(shape[:-1])) if leaf == "out/kernel" else shape[0]) ** -0.5)


@pytest.mark.full
@pytest.mark.parametrize("name", SIZES)
def test_drawn_as_the_reference_draws(name):
    for path, a in jax.tree_util.tree_leaves_with_path(started(name, jax.random.key(1))):
        leaf = jax.tree_util.keystr(path, simple=True, separator="/")
        try:
            law(name, leaf, a.shape)(np.asarray(a, np.float64))
        except AssertionError as wrong:
            raise AssertionError(f"{name}, {leaf} {a.shape}: {wrong}") from wrong


def test_rates_and_steps_of_many_heads():
    """The laws of four numbers show little: the same ones of 512 heads."""
    mixer = mixers.make(dict(name="gated_delta_net", num_heads=512, head_dim=1, expand_v=1),
                        position="no_pe", width=8, train_length=8, parent=None)

    @jax.jit
    def gates():  # nothing else of the layer is compiled
        found = mixer.init(jax.random.key(0), jnp.zeros((1, 2, 8)), L.sequence(1, 2))["params"]
        return nn.unbox((found["a_log"], found["dt_bias"]))

    rate, step = (np.asarray(a, np.float64) for a in gates())
    rates(0)(rate)
    steps(step)
