#!/usr/bin/env bash
# mlx 0.32.4 (CPU build): mask="causal" of scaled_dot_product_attention where queries and keys
# differ in number.
#
# Guess:     is_causal compares row and column numbers from the first one, as jax.nn, torch's SDPA
#            and ONNX's Attention do: one query over four keys sees the first key alone.
# Behaviour: mlx lines up the *last* query with the last key: one query over four keys sees all
#            four, which is what decoding wants. With more queries than keys the first rows then
#            have no key at all; they are neither 0 nor NaN but the mean of all values, future ones
#            included, and so is a row that a boolean mask leaves empty.
# Seen:      1 query, 4 keys    [1.5]
#            6 queries, 4 keys  [1.5, 1.5, 0.0, 0.5, 1.0, 1.5]
#            an empty row       [1.5]
# Exits with 1 if that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check 'mlx[cpu]==0.32.4' 'numpy==2.4.6'
"$work/env/bin/python" - <<'PY'
import mlx.core as mx
import numpy as np

keys = mx.zeros((1, 1, 4, 4))
values = mx.array(np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1).repeat(4, -1))


def read(queries, mask):
    out = mx.fast.scaled_dot_product_attention(mx.ones((1, 1, queries, 4)), keys, values,
                                               scale=1.0, mask=mask)
    return [round(float(v), 3) for v in np.array(out)[0, 0, :, 0]]


one, six = read(1, "causal"), read(6, "causal")
empty = read(1, mx.array(np.zeros((1, 4), bool)))
print(f"1 query, 4 keys    {one}")
print(f"6 queries, 4 keys  {six}")
print(f"an empty row       {empty}")
assert one == [1.5] and six == [1.5, 1.5, 0.0, 0.5, 1.0, 1.5] and empty == [1.5], "it changed"
PY
