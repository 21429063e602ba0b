#!/usr/bin/env bash
# rotary-embedding-torch 0.9.1 beside torch 2.13.0: one module, called in two dtypes.
#
# Guess:     angles are float32 whatever the dtype of the queries, and a call does not depend on
#            the calls before it.
# Behaviour: token numbers are made in the dtype of the queries, and the angles of the first call
#            are kept for later ones. In bfloat16 the numbers 256, 257 become 256, 256 and the
#            angles are wrong; a module whose first call was bfloat16 goes on being wrong in
#            float32, and one whose first call was float32 is right in bfloat16. A warm-up or an
#            evaluation in another dtype decides what the positions are.
# Seen:      float32 first       2.1e-04
#            bfloat16 first      6.4
#            float32 after that  6.4
#            bfloat16 after float32  1.6e-02 (its own rounding)
# Exits with 1 if that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check 'torch==2.13.0' \
  'rotary-embedding-torch==0.9.1' 'numpy==2.4.6'
"$work/env/bin/python" - <<'PY'
import torch
from rotary_embedding_torch import RotaryEmbedding

torch.manual_seed(0)
length, dim = 2048, 64
x = torch.randn(1, 1, length, dim)
angle = torch.arange(length, dtype=torch.float64)[:, None] * 10000.0 ** (
    -torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def error(module, x):
    a, b = x[..., 0::2].double(), x[..., 1::2].double()
    twin = torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)
    return (module.rotate_queries_or_keys(x).double() - twin.flatten(-2)).abs().max().item()


one, two = RotaryEmbedding(dim), RotaryEmbedding(dim)
right = error(two, x)
wrong, poisoned = error(one, x.bfloat16()), error(one, x)
rounded = error(two, x.bfloat16())
print(f"float32 first       {right:.1e}")
print(f"bfloat16 first      {wrong:.1f}")
print(f"float32 after that  {poisoned:.1f}")
print(f"bfloat16 after float32  {rounded:.1e} (its own rounding)")
assert right < 1e-3 and rounded < 0.05 and wrong > 1 and poisoned > 1, "it changed"
PY
