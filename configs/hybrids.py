"""Hybrids of published models as layer patterns, at the size of a laptop.

`lcx train configs/hybrids.py:griffin`, or all in one figure: `lcx sweep configs/hybrids.py`. Each
is one function from the train length to one period of layers (mixer, then MLP); windows are that
share of the train length which the published window is of the published training length.
"""

from lcx.config import base_config


def layer(mixer, position="no_pe", **mlp):
    return dict(mixer=mixer, position=position, **mlp)


def attention(**options):
    return dict(name="attention", **options)


def griffin(length):
    """Griffin (arXiv:2402.19427): 2 recurrent blocks to 1 of multi-query attention in a window of
    1024, trained at 2048; RoPE inside the window. Its MLP gates by GELU, ours by SiLU.
    """
    local = attention(num_kv_heads=1, window=length // 2)
    return [layer("rglru"), layer("rglru"), layer(local, "rope")]


def jamba(length):
    """Jamba (arXiv:2403.19887): 1 layer of attention in 8, the fifth, the others Mamba; no
    positions. Its mixtures of experts in every second layer are dense here.
    """
    mamba = layer("mamba1")
    return [mamba] * 4 + [layer(attention(num_kv_heads=1))] + [mamba] * 3


def samba(length):
    """Samba (arXiv:2406.07522): Mamba and attention with RoPE in a window in turns. The window is
    2048 of 4096.
    """
    return [layer("mamba1"), layer(attention(window=length // 2), "rope")]


def kimi_linear(length):
    """Kimi Linear (arXiv:2510.26692): 3 layers of Kimi Delta Attention to 1 of latent attention
    without positions. Its experts are left out.
    """
    return [layer("kda")] * 3 + [layer("mla")]


def qwen3_next(length):
    """Qwen3-Next (huggingface.co/Qwen/Qwen3-Next-80B-A3B-Instruct): 3 Gated DeltaNet to 1 gated
    attention, with QK-norm and RoPE on a quarter of the channels. Its experts are left out.
    """
    full = attention(num_kv_heads=1, qk_norm=True, gate=True)
    return [layer("gated_delta_net")] * 3 + [layer(full, dict(name="rope", fraction=0.25))]


def nemotron_h(length):
    """Nemotron-H (arXiv:2504.03624): "M-M-M-M-M*-" of its 8B model, where M is Mamba-2, * attention
    without positions and - an MLP with a squared ReLU.
    """
    mlp = dict(mlp="squared_relu")
    return [layer("mamba2", **mlp)] * 4 + [layer("mamba2", mlp=None)] + [
        layer(attention(num_kv_heads=1), **mlp)]


HYBRIDS = {hybrid.__name__: hybrid for hybrid in (
    griffin, jamba, samba, kimi_linear, qwen3_next, nemotron_h)}


def get_config(arg=None):
    """`arg`: a hybrid's name; griffin if None."""
    if arg is not None and arg not in HYBRIDS:
        raise ValueError(f"hybrids has no '{arg}'; choose {', '.join(HYBRIDS)}")
    config = base_config()
    model = config.experiment.model
    model.pattern = HYBRIDS[arg or "griffin"](config.experiment.data.train_length)
    model.depth = len(model.pattern) * max(1, 8 // len(model.pattern))
    return config


def sweep(arg=None):
    """Every hybrid, in as many layers as whole periods make 6 to 9."""
    for name in HYBRIDS:
        model = get_config(name).experiment.model
        yield {"experiment.model.pattern": model.pattern, "experiment.model.depth": model.depth,
               "runtime.label": name}
