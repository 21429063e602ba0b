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
    return importlib.import_module(f"{__name__}.{family}").core(inner, lanes, _numpy(seq))


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
