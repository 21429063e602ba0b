"""A dense float64 oracle of every core, built from the lane values alone; one file per core.

Plain NumPy loops over pairs and tokens: a transport is a product of per-token matrices (never a
rotation of q and k by absolute phase), a bias a sum over the tokens between. It shares no code
with `lcx.ops`. A mixer captures what its core is given (`sow("intermediates", "inner", {...})`)
and what it returns ("outer"), once per core that it runs.
"""

import importlib

import numpy as np

from lcx import lanes as L


def core(family: str, inner: dict, lanes: L.Lanes, seq: L.Sequence) -> np.ndarray:
    """A core's output [B,T,H,V] for its captured inputs under the lanes.

    The oracle is the one of the mixer's family, unless the capture is {"core": {name: inputs}};
    the lanes are the layer's, unless the inputs hold those that this core was given ("lanes").
    """
    if "core" in inner:
        (family, inner), = inner["core"].items()
    lanes = inner.get("lanes", lanes)
    inner = {key: _float(value) for key, value in inner.items() if key != "lanes"}
    if isinstance(lanes.transport, L.Diagonal) and lanes.transport.basis is not None:
        inner, lanes = _in_basis(inner, lanes)
    return importlib.import_module(f"{__name__}.{family}").core(inner, lanes, _numpy(seq))


def _in_basis(inner: dict, lanes: L.Lanes) -> tuple[dict, L.Lanes]:
    """Vectors of tokens in the coordinates that a diagonal transport fades, beside the raw ones
    that pairwise biases read."""
    transport = lanes.transport
    width = transport.increment.shape[-1]
    matrix = np.asarray(transport.basis(np.eye(width)), np.float64)  # its rows: images of the axes
    seen = lambda x: np.concatenate([x[..., :width] @ matrix, x[..., width:]], -1)
    vectors = ("query", "key", "erase", "write", "far_query", "far_key")
    raw = {f"raw_{name}": inner[name] for name in ("query", "key") if name in inner}
    inner = {name: seen(x) if name in vectors and x is not None else x
             for name, x in inner.items()}
    return inner | raw, lanes.replace(transport=transport.replace(basis=None))


class _Seq:
    pass


def _float(value):
    if value is None or isinstance(value, str):
        return value
    return np.asarray(value, np.float64)


def _numpy(seq: L.Sequence) -> _Seq:
    out = _Seq()
    out.ids, out.order = np.asarray(seq.ids, np.float64), np.asarray(seq.order)
    out.segment = np.ones_like(out.order) if seq.segment is None else np.asarray(seq.segment)
    return out
