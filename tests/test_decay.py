"""Weight decay shrinks matrices and taps, and leaves every timescale as it was, to the bit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from lcx import lanes as L
from lcx import lookup, mixers, positions, sharding, weights
from lcx.errors import ConfigError
from lcx.model import build_model, mlps
from lcx.model.layer import MLPS
from lcx.train import build_program
from lcx.train.decay import decayed
from lcx.train.manifest import flat
from tests.train_stand_in import LENGTH, VOCAB, Batches, StandIn, config

D, T = 32, 8
# Written by hand from the papers' formulas, and not read from the code: what decays, and what does
# not, of a component's own parameters. Those of the shared layers go by their name: a `kernel`
# multiplies activations, a `bias` and a norm's `scale` are added and multiplied elementwise.
STATE_SPACE = "kernel/log_step kernel/log_rate kernel/frequency kernel/read skip"
FILTER = "{0}/kernel_0 {0}/kernel_1 {0}/kernel_2 {0}/out"
OF_FILTER = "{0}/bias_0 {0}/bias_1 {0}/bias_2 {0}/frequency"
OWN = {
    "mixers.comba": ("", "a_log dt_bias correction damping"),
    "mixers.delta_product": ("", "a_log dt_bias"),
    "mixers.differential_attention": (
        "", "lambda_key_1 lambda_key_2 lambda_query_1 lambda_query_2"),
    "mixers.flash": ("", "gain_scale shift"),
    "mixers.gated_delta_net": ("", "a_log dt_bias"),
    "mixers.gated_delta_net2": ("", "a_log dt_bias"),
    "mixers.gau": ("", "gain_scale shift"),
    "mixers.gru": ("recurrent", ""),
    "mixers.h3": ("", STATE_SPACE + " shift_skip"),
    "mixers.hgrn2": ("", "norm_scale"),
    "mixers.hyena": (FILTER.format("filter"), OF_FILTER.format("filter") + " skip"),
    "mixers.kda": ("", "a_log dt_bias"),
    "mixers.linformer": ("mix_keys mix_values", ""),
    "mixers.log_linear_mamba2": ("", "log_rate step_bias skip norm_scale level_rate"),
    "mixers.lru": ("", "nu theta gamma skip"),
    "mixers.lstm": ("recurrent", ""),
    "mixers.mamba1": ("", "log_rate step_bias skip"),
    "mixers.mamba2": ("", "log_rate step_bias skip norm_scale"),
    "mixers.mamba3": ("", "step_bias key_bias query_bias skip"),
    "mixers.mamba3_mimo": (
        "", "step_bias key_bias query_bias skip value_gain gate_gain out_gain"),
    "mixers.mla": ("key_up value_up", ""),
    "mixers.mlstm_v1": ("query key value", "skip_scale"),
    "mixers.monarch_mixer": (
        FILTER.format("filter") + " " + FILTER.format("residual"),
        OF_FILTER.format("filter") + " " + OF_FILTER.format("residual")
        + " filter_skip residual_skip"),
    "mixers.rebased": ("", "norm_scale norm_bias"),
    "mixers.rglru": ("", "rate"),
    "mixers.rwkv4": ("", "decay_bias bonus_bias blend_scale"),
    "mixers.rwkv6": ("blend_up", "decay bonus blend norm_scale norm_bias"),
    "mixers.rwkv7": ("", "decay_bias rate_bias share_bias blend_scale removal_scale key_scale "
                     "bonus_scale norm_scale norm_bias"),
    "mixers.s4": ("", STATE_SPACE + " kernel/column kernel/low_rank"),
    "mixers.s4d": ("", STATE_SPACE),
    "mixers.sink_attention": ("", "sink"),
    "mixers.slstm": ("inputs recurrent", ""),
    "model.mlps.block_diagonal": ("in_kernel out_kernel", ""),
    "model.mlps.channel_mix": ("", "blend_scale"),
    "model.mlps.moe": ("experts_in experts_out", ""),
    "positions.abacus": ("", "table"),
    "positions.bipe": ("", "table"),
    "positions.complex_order": ("", "frequency"),
    "positions.cope": ("", "table"),
    "positions.dape": ("inner outer", "offset"),
    "positions.deberta": ("", "keys queries"),
    "positions.fire": ("inner outer", "offset c_scale threshold_scale"),
    "positions.floater": ("", "start"),
    "positions.grape_a": ("key query", "rate"),
    "positions.grape_m": ("", "log_freq"),
    "positions.grape_m_content": ("", "log_freq"),
    "positions.hyperbolic_hope": ("", "excess"),
    "positions.kerple": ("", "rate exponent decay shape"),
    "positions.learned": ("", "table"),
    "positions.lrpe": ("", "frequency"),
    "positions.multiplicative": ("", "table"),
    "positions.path": ("conv", ""),
    "positions.pope": ("", "shift"),
    "positions.selective_rope": ("conv", ""),
    "positions.shaw": ("", "keys values"),
    "positions.t5_bias": ("", "table"),
    "positions.transformer_xl": ("project", "content place"),
    "positions.xlnet": ("project", "content place segment kinds"),
}


def x():
    return jnp.zeros((2, T, D))


def of_mixer(spec):
    mixer, seq = mixers.make(spec, position="no_pe", width=D, train_length=T), L.sequence(1, T)
    yield lambda key: mixer.init(key, x(), seq, relay=mixer.empty_relay(x()), method="relayed")


def of_scheme(spec):
    scheme, seq = positions.make(spec, L.Site(4, 4, 8, 8, D, 16, True, 8)), L.sequence(1, T)
    yield lambda key: scheme.init(key, x(), seq, scheme.init_carry(2), method="lanes")
    for embed in positions.make_embed(spec, D, 16, vocab_size=VOCAB):
        yield lambda key, embed=embed: embed.init(key, x(), seq, jnp.zeros((2, T), int))


def of_mlp(spec):
    mlp = lookup.build(MLPS, spec, width=D)
    seq = (L.sequence(1, T),) if isinstance(mlp, mlps.StreamedMlp) else ()
    yield lambda key: mlp.init(key, x(), *seq)


PACKAGES = {mixers.PACKAGE: of_mixer, positions.PACKAGE: of_scheme, MLPS: of_mlp}
COMPONENTS = [(package, name) for package in PACKAGES for name in lookup.names(package)]


def flags(package, name):
    """Whether each parameter of a component decays, over all its examples."""
    found = {}
    for example in getattr(lookup.find(package, name), "examples", ({},)):
        for init in PACKAGES[package](dict(name=name, **example)):
            boxed = jax.eval_shape(init, jax.random.key(0)).get("params", {})
            for path, flag in flatten_dict(decayed(boxed), sep="/").items():
                assert found.setdefault(path, flag) == flag
    return found


@pytest.mark.parametrize("package, name", COMPONENTS)
def test_every_parameter_says_whether_it_decays_and_rightly(package, name):
    told = OWN.get(f"{package.removeprefix('lcx.')}.{name}", ("", ""))
    decays, keeps = (set(names.split()) for names in told)
    found = flags(package, name)
    assert decays | keeps <= set(found), "the table names parameters that are not there"
    for path, flag in found.items():
        last, own = path.rsplit("/", 1)[-1], decays | keeps
        assert path in own or last in ("kernel", "bias", "scale"), (
            f"write in OWN of {__file__} whether '{path}' decays")
        assert flag == (path in decays or path not in own and last == "kernel"), path


def test_a_table_of_names_that_are_gone_is_no_table():
    assert set(OWN) <= {f"{package.removeprefix('lcx.')}.{name}" for package, name in COMPONENTS}


def test_no_gradient_leaves_every_memory_as_it_was():
    """Three steps on a batch that weighs nothing: matrices shrink by (1 - rate x decay) a step."""
    c = config(optimizer=dict(name="adamw", learning_rate=0.5, weight_decay=0.5),
               schedule=dict(name="constant"), steps=3)
    c.experiment.model = ConfigDict(dict(
        vocab_size=VOCAB, width=16, depth=2, pattern=(dict(mixer="s4d"), dict(mixer="rwkv6")),
        mixer="attention", position="no_pe", mlp=None), convert_dict=False)
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        program = build_program(c, build_model(c.experiment.model, LENGTH), mesh)
        state, constants = program.init(), program.constants()
        before = flat(jax.device_get(state.params))
        batch = next(Batches(c))
        batch["weights"] = np.zeros_like(batch["weights"])
        for _ in range(3):
            state, metrics = program.step(state, constants, program.place(batch))
        after = flat(jax.device_get(state.params))
    assert metrics["grad_norm"] == 0
    for path, value in before.items():
        matrix = path.endswith((".kernel", ".blend_up"))
        np.testing.assert_allclose(after[path], value * (0.75**3 if matrix else 1),
                                   rtol=1e-6 if matrix else 0, err_msg=path)
    slowest = [np.exp(-found["layers.layer_1.mixer.decay"].min()) for found in (before, after)]
    np.testing.assert_allclose(slowest, np.exp(6), rtol=1e-6)  # tokens; 13 if it decayed


@pytest.mark.parametrize("options", [{}, dict(remat="full"), dict(share_position=True)], ids=str)
def test_the_model_says_it_too(options):
    """Under the scan over depth, remat, shared schemes and multi-token prediction."""
    model = build_model(dict(
        vocab_size=VOCAB, width=16, depth=4, mixer="attention", position="t5_bias",
        mlp="moe", pattern=(dict(), dict(mlp="gated")), tie_embeddings=False, predict_ahead=1,
        **options), LENGTH)
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, LENGTH), int),
                           L.sequence(1, LENGTH))["params"]
    for path, leaf in flatten_dict(boxed, sep="/").items():
        assert isinstance(leaf, weights.Weight) and len(leaf.names) == leaf.value.ndim
        assert (leaf.names[:1] == ("depth",)) == path.startswith("layers/")
    found = flatten_dict(decayed(boxed), sep="/")
    kept = {path for path, flag in found.items() if not flag}
    assert kept == {path for path in found
                    if path.endswith(("scale", "bias", "table")) or path == "embedding"}
    assert any(path.startswith("ahead_1/") for path in kept) and found["head"]


class Silent(nn.Module):
    """A layer whose only parameter says nothing of decay."""

    boxed: bool

    @nn.compact
    def __call__(self, inputs, seq):
        init = nn.initializers.ones
        init = nn.with_logical_partitioning(init, ("width", "mlp")) if self.boxed else init
        return inputs @ self.param("silent", init, (4, 4))


@pytest.mark.parametrize("boxed", [True, False])
def test_a_parameter_that_says_nothing_raises_before_anything_compiles(boxed):
    params = jax.eval_shape(Silent(boxed).init, jax.random.key(0), jnp.ones((2, 4)), None)["params"]
    with pytest.raises(ConfigError, match=r"below/silent does not say .*lcx\.weights\.matrix"):
        decayed({"below": params})


def test_neither_rank_nor_name_decides():
    boxed = jax.eval_shape(StandIn(depth=3).init, jax.random.key(0), jnp.ones((2, 8), int),
                           L.sequence(1, 8))["params"]
    assert boxed["gain"].value.shape == (3, 16)  # a matrix by its shape
    assert {n for n, d in flat(decayed(boxed)).items() if d} == {"query", "key", "out"}
    kernel = weights.free(nn.initializers.ones, ("width", "mlp"))(None, (4, 4))
    bias = weights.matrix(nn.initializers.ones, ("vocab",))(None, (4,))
    assert decayed(dict(kernel=kernel, bias=bias)) == dict(kernel=False, bias=True)
