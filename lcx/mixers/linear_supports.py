"""Which forms of linear attention honour which lane, and why the others do not."""

from lcx import lanes as L
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Support, refuses

_ALL = Support((QUADRATIC, CHUNKED, STEP))
_RING = "unimplemented: ring buffer of near keys beside a delayed state"
_BUCKETS = "unimplemented: a sum of keys per bucket of distances, in a ring buffer"
_RANK = "R2 the kernel has no finite-rank state"
_PAIRS = Support((QUADRATIC,), {CHUNKED: "R2 a pair's weight does not factor", STEP: _RANK})
SUPPORTS = {
    L.Rotation: _ALL,
    L.ContentRotation: _ALL,
    L.Diagonal: _ALL,
    L.FeatureMap: _ALL,
    L.Householder: _ALL,
    L.Piecewise: Support((QUADRATIC,), {CHUNKED: _RING, STEP: _RING}),
    L.Separable: _ALL,
    L.EventuallyConstant: Support((QUADRATIC,), {CHUNKED: _RING, STEP: _RING}),
    L.Toeplitz: Support((QUADRATIC,), {CHUNKED: "unimplemented: FFT form", STEP: _RANK}),
    L.Rowwise: _PAIRS,
    L.Pairwise: _PAIRS,
    L.ValueRotation: _ALL,
    L.ValueTable: Support((QUADRATIC,), {CHUNKED: _BUCKETS, STEP: _BUCKETS}),
    L.LogitMap: refuses("R11", "an operator on the logits of a row needs a softmax over them"),
    L.Temperature: Support((QUADRATIC, CHUNKED, STEP), code="R4", reason=(
        "a factor of a whole row cancels in the normaliser or the scale-free output norm")),
}
ENDLESS = "R2 there is no distance from which all pairs are turned alike"
APART = ("unimplemented: beside a transport that does not factor into a map of the query and one "
          "of the key")
FAR_SUPPORTS = {  # of what tells near from far by a static distance
    L.Piecewise: _ALL,
    L.EventuallyConstant: _ALL,
    L.Toeplitz: Support((QUADRATIC, CHUNKED), {STEP: _RANK}),
}
