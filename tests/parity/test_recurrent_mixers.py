"""Recurrent mixers beside transformers' layers and fla's loops: outputs and gradients."""

import functools
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers

pytestmark = pytest.mark.parity

B, T, D, H = 2, 48, 32, 4


def numpy(tensor):
    return tensor.detach().double().numpy()


def randomised(module, scale=0.3):
    """The torch module in float64 with normal parameters."""
    import torch

    torch.manual_seed(0)
    module = module.double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return module


def beside(name, reference, module, call, spec, mapping, error, limit, seq=None, slope_limit=None,
           compared=None, slopes=True):
    """Output and gradients (of x and of every mapped parameter) of a torch module and a mixer.

    mapping: path in our parameters -> (torch parameter, its array in our shape); compared: path ->
    which entries of its gradient.
    """
    import torch

    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, B, T, D))
    told = torch.tensor(x, requires_grad=True)
    y = call(module, told)
    if slopes:
        (y * torch.tensor(weight)).sum().backward()

    mixer = mixers.make(spec, position="no_pe", width=D, train_length=T)
    seq = L.sequence(1, T) if seq is None else seq
    init = jax.eval_shape(lambda: nn.unbox(mixer.init(jax.random.key(0), jnp.asarray(x), seq)))
    shapes = {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf
              in jax.tree_util.tree_leaves_with_path(init["params"])}
    assert shapes.keys() == mapping.keys()

    def ours(kind):
        values = {}
        for path, (parameter, shape) in mapping.items():
            array = numpy(parameter if kind == "value" else parameter.grad)
            values[path] = shape(array)
            assert values[path].shape == shapes[path], path
        return values

    def run(flat, x):
        params = {}
        for path, array in flat.items():
            *parents, leaf = path.split(".")
            functools.reduce(lambda d, key: d.setdefault(key, {}), parents, params)[leaf] = array
        out = mixer.apply({"params": params}, x, seq)[0]
        return jnp.sum(out * weight), out

    flat = jax.tree.map(jnp.asarray, ours("value"))
    (_, out), (found, slope) = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(
        flat, jnp.asarray(x))
    error(name, reference, f"output, {T} tokens", out, numpy(y), limit)
    if not slopes:
        return
    wanted, worst = ours("grad"), 0.0
    wanted["x"], found["x"] = numpy(told.grad), slope
    for path in wanted:
        scale = np.abs(wanted[path]).max()
        assert scale > 0, path
        off = np.abs(np.asarray(found[path]) - wanted[path]) / scale
        worst = max(worst, (off * (compared or {}).get(path, 1.0)).max())
    error(name, reference, "gradients of x and all parameters, relative", worst, 0.0,
          slope_limit or limit)


def heads(size):
    """A torch linear weight [H*size, D] as our kernel [D,H,size]."""
    return lambda w: w.T.reshape(-1, H, size)


def test_mlstm(transformers, error, x64):
    from transformers.models.xlstm import modeling_xlstm as xlstm

    config = transformers.xLSTMConfig(
        hidden_size=D, num_heads=H, num_hidden_layers=1, mode="train", chunk_size=16,
        return_last_states=True, norm_reduction_force_float32=False,
        autocast_kernel_dtype="float32")
    layer = randomised(xlstm.xLSTMLayer(config))
    plain = lambda w: w.T
    mapping = {
        "query.kernel": (layer.q.weight, heads(4)), "key.kernel": (layer.k.weight, heads(4)),
        "value.kernel": (layer.v.weight, heads(8)),
        "gate.kernel": (layer.ogate_preact.weight, heads(8)),
        "input_gate.kernel": (layer.igate_preact.weight, plain),
        "input_gate.bias": (layer.igate_preact.bias, plain),
        "forget_gate.kernel": (layer.fgate_preact.weight, plain),
        "forget_gate.bias": (layer.fgate_preact.bias, plain),
        "norm.scale": (layer.multihead_norm.weight, lambda w: w.reshape(H, 8)),
        "out.kernel": (layer.out_proj.weight, lambda w: w.T.reshape(H, 8, D))}
    for chunk in (16, 7):
        beside("mlstm", "xLSTM-7B layer", layer, lambda m, x: m(x)[0],
               dict(name="mlstm", chunk=chunk), mapping, error, 1e-9, slope_limit=1e-5)
        layer.zero_grad()


@pytest.mark.parametrize("chunk", [16, 7])
def test_mlstm_v1(transformers, source, error, x64, chunk):
    """Steps start their frame at 0 as ours does, the authors' whole form has none there: they
    differ by the epsilon beside the sum."""
    import torch

    source("NX-AI/xlstm/xlstm/components/ln.py",
           ("xlstm", "xlstm.components", "xlstm.blocks", "xlstm.blocks.mlstm"))
    xlstm = importlib.import_module("xlstm.blocks.mlstm.layer")
    layer = randomised(xlstm.mLSTMLayer(xlstm.mLSTMLayerConfig(
        num_heads=H, embedding_dim=D, context_length=T)))
    cell = layer.mlstm_cell
    cell.outnorm.residual_weight = False  # its gain is 1 + w
    blocks = lambda w: w.swapaxes(1, 2).reshape(H, -1, 4, 4)
    gate = lambda w: w.T.reshape(3, H, -1, H).swapaxes(0, 1)
    same = lambda w: w
    mapping = {
        "up.kernel": (layer.proj_up.weight,
                      lambda w: w.T.reshape(D, 2, H, -1).swapaxes(1, 2)),
        "conv.kernel": (layer.conv1d.conv.weight, lambda w: w[:, 0].T),
        "conv.bias": (layer.conv1d.conv.bias, same),
        "query": (layer.q_proj.weight, blocks), "key": (layer.k_proj.weight, blocks),
        "value": (layer.v_proj.weight, blocks),
        "input_gate.kernel": (cell.igate.weight, gate), "input_gate.bias": (cell.igate.bias, same),
        "forget_gate.kernel": (cell.fgate.weight, gate),
        "forget_gate.bias": (cell.fgate.bias, same),
        "norm.scale": (cell.outnorm.weight, lambda w: w.reshape(H, -1)),
        "skip_scale": (layer.learnable_skip, lambda w: w.reshape(H, -1)),
        "down.kernel": (layer.proj_down.weight, lambda w: w.T.reshape(H, -1, D))}
    spec = dict(name="mlstm_v1", chunk=chunk)
    beside("mlstm_v1", "xLSTM mLSTMLayer", layer, lambda m, x: m(x), spec, mapping, error, 2e-6,
           slope_limit=1e-5)

    def steps(module, x):
        state, outs = {}, []
        with torch.no_grad():
            for t in range(T):
                y, state = module.step(x[:, t : t + 1], **state)
                outs.append(y)
        return torch.cat(outs, 1)

    layer.zero_grad()
    beside("mlstm_v1", "xLSTM mLSTMLayer, its steps", layer, steps, spec, mapping, error, 1e-12,
           slopes=False)


def test_rwkv4(transformers, error, x64):
    from transformers.models.rwkv import modeling_rwkv as rwkv

    layer = randomised(rwkv.RwkvSelfAttention(transformers.RwkvConfig(
        hidden_size=D, attention_hidden_size=D, num_hidden_layers=1)))
    apart = lambda w: w.reshape(H, 8)

    class Blend:
        """The three blends of the reference as one parameter."""

        def __init__(self, parts):
            self.parts = parts

        def detach(self):
            import torch
            return torch.cat([p.detach().reshape(1, D) for p in self.parts])

        @property
        def grad(self):
            import torch
            return torch.cat([p.grad.reshape(1, D) for p in self.parts])

    blend = Blend([layer.time_mix_key, layer.time_mix_value, layer.time_mix_receptance])
    mapping = {
        "blend_scale": (blend, lambda w: w), "decay_bias": (layer.time_decay, apart),
        "bonus_bias": (layer.time_first, apart), "key.kernel": (layer.key.weight, heads(8)),
        "value.kernel": (layer.value.weight, heads(8)),
        "receptance.kernel": (layer.receptance.weight, heads(8)),
        "out.kernel": (layer.output.weight, lambda w: w.T.reshape(H, 8, D))}
    for form in ("chunked", "quadratic"):  # the reference rounds keys to float32
        beside(f"rwkv4, {form}", "RWKV-4 time mixing", layer, lambda m, x: m(x)[0],
               dict(name="rwkv4", form=form), mapping, error, 2e-6, slope_limit=1e-5)
        layer.zero_grad()


@pytest.mark.parametrize("documents", [1, 2])
def test_rglru(documents, transformers, error, x64):
    """Packed, the reference's convolution reads across the boundary: there it keeps one tap."""
    import torch
    from transformers.models.recurrent_gemma import modeling_recurrent_gemma as gemma

    block = randomised(gemma.RecurrentGemmaRecurrentBlock(transformers.RecurrentGemmaConfig(
        hidden_size=D, lru_width=D, num_attention_heads=H, conv1d_width=4), 0))
    lru = block.rg_lru
    lru._rnn_scan = functools.partial(lru._rnn_scan, acc_dtype=torch.float64)
    place, segment = np.arange(T), None
    if documents == 2:
        place, segment = place % 29, 1 + (place >= 29)[None]
        with torch.no_grad():
            block.conv_1d.weight[..., :3] = 0
    seq = L.sequence(1, T, segment=segment)
    ids = torch.tensor(np.repeat(place[None], B, 0))
    same, apart = lambda w: w, lambda w: w.reshape(H, 8)
    linear = lambda module: {"kernel": (module.weight, lambda w: w.T), "bias": (module.bias, same)}
    mapping = {
        **{f"gate.{k}": v for k, v in linear(block.linear_y).items()},
        **{f"in.{k}": v for k, v in linear(block.linear_x).items()},
        **{f"out.{k}": v for k, v in linear(block.linear_out).items()},
        "conv.kernel": (block.conv_1d.weight, lambda w: w[:, 0].T),
        "conv.bias": (block.conv_1d.bias, same), "rate": (lru.recurrent_param, apart),
        "input_gate.kernel": (lru.input_gate_weight, same),
        "input_gate.bias": (lru.input_gate_bias, same),
        "recurrence_gate.kernel": (lru.recurrent_gate_weight, same),
        "recurrence_gate.bias": (lru.recurrent_gate_bias, same)}
    last = np.array([0, 0, 0, 1.0])[:, None]  # gradients of taps read across the boundary too
    beside(f"rglru, {documents} segments", "RecurrentGemma block", block,
           lambda m, x: m(x, ids, None, use_cache=False)[0], dict(name="rglru"), mapping, error,
           1e-10, seq=seq, compared={"conv.kernel": last} if documents == 2 else None)


def test_hgrn(error):
    torch = pytest.importorskip("torch")
    hgrn = pytest.importorskip("fla.ops.hgrn.naive")

    mixer = mixers.make(dict(name="hgrn", lower_bound=0.2), position="no_pe", width=D,
                        train_length=T)
    x, seq = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, D)), jnp.float32), \
        L.sequence(1, T)
    found = nn.unbox(mixer.init(jax.random.key(0), x, seq))
    _, seen = mixer.apply(found, x, seq, mutable=["intermediates"])
    inner, outer = seen["intermediates"]["inner"][0], seen["intermediates"]["outer"][0]
    given = [torch.tensor(np.array(inner[name]).reshape(B, T, D))
             for name in ("value", "log_decay")]
    wanted, _ = hgrn.naive_recurrent_hgrn(*given)
    error("hgrn", "fla naive HGRN", f"states, {T} tokens", outer.reshape(B, T, D), wanted, 2e-6)
