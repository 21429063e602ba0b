"""State spaces and long convolutions beside the authors' code, and LFM2's convolution.

The authors' repositories are no packages: LCX_PARITY_SOURCES names a folder with their checkouts as
owner/name (state-spaces/s4, state-spaces/mamba, HazyResearch/safari, HazyResearch/m2,
NicolasZucchet/minimal-LRU);
without it those comparisons are skipped.
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import lookup, mixers
from lcx.ops import hippo
from lcx.ops.conv import Dplr

pytestmark = pytest.mark.parity
T, D = 24, 16


@pytest.fixture
def beside(error, x64):
    """beside(spec, params, call, reference): a mixer with these parameters and a torch function at
    the same input; values, and gradients of the input."""
    import torch

    def check(spec, params, call, reference, limit=1e-12):
        x = torch.tensor(np.random.default_rng(5).normal(size=(2, T, D)), requires_grad=True)
        wanted = call(x)
        torch.sin(wanted).sum().backward()
        mixer = mixers.make(spec, position="no_pe", width=D, train_length=T)
        seq, own = L.sequence(1, T), jnp.asarray(x.detach().numpy())
        found = jax.eval_shape(lambda: mixer.init(jax.random.key(0), own, seq))
        given = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), params)
        assert jax.tree.map(jnp.shape, nn.unbox(found["params"])) == jax.tree.map(jnp.shape, given)
        got, pull = jax.vjp(lambda x: mixer.apply({"params": given}, x, seq)[0], own)
        wanted = wanted.detach().numpy()
        scale = np.abs(wanted).max()
        error(spec["name"], reference, "output", got / scale, wanted / scale, limit)
        gradient = x.grad.numpy()
        scale = np.abs(gradient).max()
        error(spec["name"], reference, "gradient of the input", pull(jnp.cos(got))[0] / scale,
              gradient / scale, 100 * limit)

    return check


def randomised(layer, seed=0, scale=0.3):
    """Every parameter drawn anew, in float64."""
    import torch

    torch.manual_seed(seed)
    layer = layer.double()
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(0, scale)
    return layer.eval()


def array(tensor):
    return tensor.detach().numpy()


def linear(layer, *shape):
    """Kernel (and bias) of a torch map, its outputs as `shape`."""
    out = dict(kernel=array(layer.weight).T.reshape(-1, *shape))
    return out if layer.bias is None else dict(out, bias=array(layer.bias).reshape(shape))


def depthwise(conv):
    out = dict(kernel=array(conv.weight)[:, 0].T)
    return out if conv.bias is None else dict(out, bias=array(conv.bias))


def test_short_conv(transformers, beside):
    from transformers.models.lfm2 import modeling_lfm2 as lfm2

    config = transformers.Lfm2Config(hidden_size=D, num_attention_heads=4, num_key_value_heads=4,
                                     num_hidden_layers=1, layer_types=["conv"], conv_L_cache=3,
                                     conv_bias=False)
    layer = randomised(lfm2.Lfm2ShortConv(config, 0))
    inward = linear(layer.in_proj, 3, 4, D // 4)
    params = {"in": inward, "out": dict(kernel=array(layer.out_proj.weight).T.reshape(4, -1, D)),
              "kernel": array(layer.conv.weight)[:, 0].T.reshape(3, 4, -1)}
    beside(dict(name="short_conv"), params, layer, "Lfm2ShortConv")


def test_s4d(source, beside):
    import torch

    module = source("state-spaces/s4/models/s4/s4d.py", ("src", "src.models"),
                    src__models__nn=dict(DropoutNd=torch.nn.Dropout))
    layer = randomised(module.S4D(D, d_state=8, transposed=False))
    kernel, out = layer.kernel, layer.output_linear[0]
    channels = lambda a: array(a).reshape(4, D // 4, *a.shape[1:])
    params = dict(
        kernel=dict(log_step=channels(kernel.log_dt), log_rate=channels(kernel.log_A_real),
                    frequency=channels(kernel.A_imag), read=channels(kernel.C)),
        skip=channels(layer.D),
        out=dict(kernel=array(out.weight)[..., 0].T.reshape(4, D // 4, 2, D),
                 bias=array(out.bias).reshape(2, D)))
    beside(dict(name="s4d", state_dim=8), params, lambda x: layer(x)[0], "state-spaces/s4")


@pytest.mark.parametrize("length", [16, 24])
def test_s4_kernel(source, error, x64, length):
    """Kept for 16 tokens, read at 16 and, doubled, at 24; and LegS as both start from it."""
    import torch

    same = dict(rank_zero_only=lambda function: function)
    module = source("state-spaces/s4/models/s4/s4.py", pytorch_lightning__utilities=same)
    torch.manual_seed(0)
    layer = module.SSMKernelDPLR(d_model=3, d_state=8, l_max=16, init="legs").double()
    layer.backend = "naive"
    wanted = array(layer(L=length)[0])[0].T
    if length == 16:  # phases of eigenvectors are free
        pole, low, column, _ = module.nplr("legs", 8, dtype=torch.double, B_clip=None)
        found = (np.abs(array(p).ravel()) for p in (pole, low, column))
        for name, theirs, ours in zip(("poles", "P", "B"), found, hippo.normal_plus_low_rank(8)):
            error("s4", "state-spaces/s4", f"magnitudes of {name}", np.sort(np.abs(ours)),
                  np.sort(theirs), 1e-12)
    step, pole, column, read, low, _ = (array(p.resolve_conj()) for p in layer._get_params())
    kept = int(layer.l_kernel)
    rows = lambda a: jnp.asarray(np.broadcast_to(a.reshape(-1, 4), (3, 4)))
    step = jnp.asarray(step.reshape(3, 1))
    kernel = Dplr(rows(pole) * step, rows(low) * jnp.sqrt(step), rows(column) * step, rows(read),
                  kept)
    scale = np.abs(wanted).max()
    error("s4", "state-spaces/s4", f"kernel of {length}, kept for {kept}",
          kernel.taps(length) / scale, wanted / scale, 1e-9)


def test_hyena(source, beside):
    module = source("HazyResearch/safari/standalone_hyena.py")
    layer = randomised(module.HyenaOperator(D, l_max=T, order=3, filter_order=8, emb_dim=5))
    maps = [m for m in layer.filter_fn.implicit_filter if hasattr(m, "weight")]
    sine = layer.filter_fn.implicit_filter[1]
    filters = dict(frequency=array(sine.freq)[0],
                   out=array(maps[-1].weight).T.reshape(8, 2, 4, D // 4))
    for n, layer_map in enumerate(maps[:-1]):
        filters[f"kernel_{n}"] = array(layer_map.weight).T
        filters[f"bias_{n}"] = array(layer_map.bias)
    layer.filter_fn.pos_emb.z.data = module.PositionalEmbedding(5, T).z.double()
    params = {"in": linear(layer.in_proj, 4, D), "conv": depthwise(layer.short_filter),
              "filter": filters,
              "skip": array(layer.filter_fn.bias).reshape(2, 4, D // 4),
              "out": linear(layer.out_proj, D)}
    # the authors' positions are float32 numbers
    beside(dict(name="hyena", order=3, filter_width=8, bands=2), params, layer, "safari", 1e-6)


@pytest.fixture
def optim_module():
    """The authors' base of modules, without what it tells their optimiser."""
    import torch

    class OptimModule(torch.nn.Module):
        def register(self, name, tensor, *_, **__):
            self.register_parameter(name, torch.nn.Parameter(tensor))

    return OptimModule


@pytest.mark.parametrize("residual", [True, False])
def test_monarch_mixer(source, beside, optim_module, residual):
    module = source("HazyResearch/m2/bert/src/mm/monarch_mixer_sequence_mixer.py",
                    ("src", "src.mm", "src.utils"), "bert",
                    src__utils__train=dict(OptimModule=optim_module))
    layer = randomised(module.MonarchMixerSequenceMixing(
        D, l_max=T, hyena_emb_dim=5, hyena_filter_order=8, residual_long_conv=residual))
    params = {"in": linear(layer.in_linear, 3, D), "conv": depthwise(layer.short_filter),
              "out": linear(layer.out_linear, D)}
    kinds = sys.modules["src.mm.hyena_utils"]
    for name, theirs in (("filter", "filter_fn"), ("residual", "filter_fn2"))[:1 + residual]:
        network = getattr(layer, theirs)
        network.pos_emb.z.data = kinds.PositionalEmbedding(5, T).z.double()
        network.pos_emb.t.data = kinds.PositionalEmbedding(5, T).t.double()
        network.modulation.deltas.data = kinds.ExponentialModulation(D).deltas.double()
        maps = [m for m in network.implicit_filter if hasattr(m, "weight")]
        params[name] = dict(frequency=array(network.implicit_filter[1].freq)[0],
                            out=array(maps[-1].weight).T.reshape(8, 1, 4, D // 4))
        for n, layer_map in enumerate(maps[:-1]):
            params[name] |= {f"kernel_{n}": array(layer_map.weight).T,
                             f"bias_{n}": array(layer_map.bias)}
        params[f"{name}_skip"] = array(network.bias).reshape(4, D // 4)
    # the authors' positions are float32 numbers
    beside(dict(name="monarch_mixer", filter_width=8, residual=residual), params,
           lambda x: layer(x)[0], "m2", 1e-6)


def test_block_diagonal_mlp(source, error, x64):
    import torch

    packages = ("src", "src.mm")
    Linear = source("HazyResearch/m2/bert/src/mm/blockdiag_linear.py", packages,
                    "bert").BlockdiagLinear
    products = sys.modules["src.mm.blockdiag_multiply"]  # the quick one rounds to bfloat16
    inward, outward = (randomised(Linear(*sizes, bias=bias, nblocks=4))
                       for *sizes, bias in ((D, 48, False), (24, D, True)))
    for layer in (inward, outward):
        layer.forward_matmul = lambda x, layer=layer: products.blockdiag_multiply_reference(
            x, layer.weight)
    x = torch.tensor(np.random.default_rng(5).normal(size=(2, T, D)))
    both = inward(x)  # as the authors' gated MLP, without its norm and residual
    wanted = outward(torch.nn.functional.gelu(both[..., :24]) * both[..., 24:])
    swapped = lambda layer: jnp.asarray(array(layer.weight)).swapaxes(1, 2)
    params = dict(in_kernel=swapped(inward), out_kernel=swapped(outward),
                  bias=jnp.asarray(array(outward.bias)))
    mlp = lookup.build("lcx.model.mlps", dict(name="block_diagonal", hidden=24), width=D)
    got = mlp.apply({"params": params}, jnp.asarray(array(x)))
    error("mlp block_diagonal", "m2", "output", got, array(wanted), 1e-12)


@pytest.mark.parametrize("head_dim", [1, 2])
def test_h3(source, beside, optim_module, head_dim):
    import logging

    import torch

    packages = ("src", "src.models", "src.models.sequence", "src.models.sequence.ssm", "src.ops",
                "src.utils")
    module = source("HazyResearch/safari/src/models/sequence/h3.py", packages,
                    src__utils__train=dict(OptimModule=optim_module, get_logger=logging.getLogger))
    layer = randomised(module.H3(D, d_state=6, head_dim=head_dim, n_ssm=D // head_dim))
    shift, diagonal = layer.ssm_k_kernel.kernel, layer.kernel.kernel
    with torch.no_grad():  # the shift's input vector stays where it starts
        shift.B.zero_()[..., 0] = 1.0
    count = D // head_dim // 4
    channels = lambda a: a.reshape(4, count, *a.shape[1:])
    whole = lambda a: array(a)[..., 0] + 1j * array(a)[..., 1]
    read = channels(whole(diagonal.B) * whole(diagonal.C)[0])
    out = linear(layer.output_linear, D)  # the authors' heads are the inner axis here
    out["kernel"] = np.swapaxes(out["kernel"].reshape(head_dim, -1, D), 0, 1).reshape(D, D)
    params = dict(
        query=linear(layer.q_proj, D), key=linear(layer.k_proj, D), value=linear(layer.v_proj, D),
        shift=dict(kernel=array(shift.C)[0].T[::-1].copy()), shift_skip=array(layer.ssm_k_D),
        kernel=dict(log_step=channels(array(diagonal.log_dt)),
                    log_rate=channels(array(diagonal.inv_A_real)),
                    frequency=channels(array(diagonal.A_imag)),
                    read=np.stack([read.real, read.imag], -1)),
        skip=channels(array(layer.D)), out=out)
    # the authors round the shift's kernel to float32
    beside(dict(name="h3", state_dim=6, head_dim=head_dim), params, layer, "safari", 1e-6)


def test_lru(source, error, x64):
    module = source("NicolasZucchet/minimal-LRU/lru/model.py")
    layer, x = module.LRU(d_hidden=12, d_model=D), np.random.default_rng(0).normal(size=(T, D))
    p = layer.init(jax.random.key(0), x)["params"]
    wanted = layer.apply({"params": p}, x)
    both = lambda a, b: np.stack([np.asarray(p[a]), np.asarray(p[b])])
    inward = both("B_re", "B_im").reshape(2, 4, 3, D).transpose(3, 1, 0, 2)
    outward = both("C_re", "C_im") * np.array([1, -1])[:, None, None]
    params = {"nu": p["nu_log"].reshape(4, 3), "theta": p["theta_log"].reshape(4, 3),
              "gamma": p["gamma_log"].reshape(4, 3), "skip": p["D"], "in": dict(kernel=inward),
              "out": dict(kernel=outward.reshape(2, D, 4, 3).transpose(2, 0, 3, 1))}
    mixer = mixers.make(dict(name="lru", state_dim=12), position="no_pe", width=D, train_length=T)
    params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), params)
    got = mixer.apply({"params": params}, jnp.asarray(x)[None], L.sequence(1, T))[0][0]
    error("lru", "minimal-LRU", "output", got, wanted, 1e-4)  # the authors' lambda is complex64


def test_mamba3(source, error, x64):
    import torch

    kernels = dict(mamba3_siso_combined=None, mamba3_siso_step=None)
    packages = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "mamba_ssm.ops.triton.mamba3")
    stem = "mamba_ssm__ops__triton__mamba3__mamba3_siso_"
    module = source("state-spaces/mamba/tests/ops/triton/test_mamba3_siso.py", packages,
                    **{stem + "combined": kernels, stem + "step": kernels})
    mixer, p, x = mamba3_beside(dict(name="mamba3"))
    given = mamba3_given(p, x)
    y, _ = module.mamba3_siso_step_ref(**{k: torch.tensor(v) for k, v in given.items()})
    wanted = np.einsum("bthv,hvd->btd", array(y), p["out"]["kernel"])
    got = mixer.apply({"params": jax.tree.map(jnp.asarray, p)}, jnp.asarray(x), L.sequence(1, T))[0]
    error("mamba3", "state-spaces/mamba, test's step reference", "output", got, wanted, 1e-9)


def mamba3_beside(spec):
    """A layer of two groups, its parameters and an input, all drawn at random."""
    spec = dict(spec, num_heads=4, head_dim=6, state_dim=8, num_groups=2)
    mixer = mixers.make(spec, position="no_pe", width=D, train_length=T)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, T, D))
    shapes = nn.unbox(jax.eval_shape(
        lambda: mixer.init(jax.random.key(0), jnp.asarray(x), L.sequence(1, T))))
    return mixer, jax.tree.map(lambda a: 0.4 * rng.normal(size=a.shape), shapes["params"]), x


def mamba3_given(p, x):
    """What the reference recurrences of Mamba-3 take, from the parameters of a layer."""
    project = lambda name: np.einsum("btd,d...->bt...", x, p[name]["kernel"])
    step = np.logaddexp(0, project("step") + p["step_bias"])
    r = project("rate")
    rate = np.where(r >= 0, 1 + r, 1 / (1 - np.minimum(r, 0)))
    norm = lambda a, gain: a / np.sqrt((a * a).mean(-1, keepdims=True) + 1e-5) * gain
    features = lambda name: norm(project(name), p[f"{name}_norm"]["scale"])
    angles = np.repeat(project("angle")[:, :, None], 4, 2)
    return dict(Q=features("query"), K=features("key"), V=project("value"),
                ADT=np.swapaxes(-rate * step, 1, 2), DT=np.swapaxes(step, 1, 2),
                Trap=np.swapaxes(project("trapezoid"), 1, 2), Q_bias=p["query_bias"],
                K_bias=p["key_bias"], Angles=angles, D=p["skip"], Z=project("gate"))


def test_mamba3_mimo(source, error, x64):
    """Output, and the slopes of what belongs to a rank."""
    import torch

    module = source("state-spaces/mamba/tests/ops/tilelang/test_mamba3_mimo.py")
    mixer, p, x = mamba3_beside(dict(name="mamba3_mimo", rank=3))
    names = dict(Q_bias="query_bias", K_bias="key_bias", D="skip", MIMO_V="value_gain",
                 MIMO_Z="gate_gain", MIMO_O="out_gain")
    given = {k: torch.tensor(v) for k, v in mamba3_given(p, x).items()}
    given |= {k: torch.tensor(p[name]).requires_grad_() for k, name in names.items()}
    y = torch.einsum("bthv,hvd->btd", module.mamba3_MIMO_step_ref(**given)[0],
                     torch.tensor(p["out"]["kernel"]))
    torch.sin(y).sum().backward()

    def run(params):
        got = mixer.apply({"params": params}, jnp.asarray(x), L.sequence(1, T))[0]
        return jnp.sin(got).sum(), got

    slopes, got = jax.grad(run, has_aux=True)(jax.tree.map(jnp.asarray, p))
    row = "mamba3_mimo", "state-spaces/mamba, test's step reference"
    error(*row, "output", got, array(y), 1e-9)
    for k, name in names.items():
        error(*row, f"gradient of {name}", slopes[name], array(given[k].grad), 1e-8)
