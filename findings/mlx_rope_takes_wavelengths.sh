#!/usr/bin/env bash
# mlx 0.32.4 (CPU build): the argument `freqs` of mlx.core.fast.rope.
#
# Guess:     it takes what `base` stands for, the frequencies base^(-2i/d) in radians a token, as
#            every other library's inv_freq.
# Behaviour: it takes their reciprocals. Frequencies given as they are turn each pair by 1/theta;
#            given as 1/theta they equal `base`. No shape or range differs, so nothing complains:
#            a long-context table (YaRN, LongRoPE) carried over from another library is upside down.
# Seen:      base against float64        1.5e-07
#            freqs = theta               2.83
#            freqs = 1/theta             1.5e-07
# Exits with 1 if that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check 'mlx[cpu]==0.32.4' 'numpy==2.4.6'
"$work/env/bin/python" - <<'PY'
import mlx.core as mx
import numpy as np

d, length = 8, 5
theta = 10000.0 ** (-np.arange(0, d, 2) / d)
x = np.random.default_rng(0).normal(size=(1, 1, length, d)).astype(np.float32)
angle = np.arange(length)[:, None] * theta
a, b = x[..., :d // 2], x[..., d // 2:]
twin = np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                       a * np.sin(angle) + b * np.cos(angle)], -1)


def error(**options):
    turned = mx.fast.rope(mx.array(x), d, traditional=False, scale=1.0, offset=0, **options)
    return float(np.abs(np.array(turned) - twin).max())


as_base = error(base=10000.0)
as_theta = error(base=None, freqs=mx.array(theta.astype(np.float32)))
as_inverse = error(base=None, freqs=mx.array((1 / theta).astype(np.float32)))
print(f"base against float64        {as_base:.1e}")
print(f"freqs = theta               {as_theta:.2f}")
print(f"freqs = 1/theta             {as_inverse:.1e}")
assert as_base < 1e-6 and as_inverse < 1e-6 and as_theta > 1, "freqs means something else now"
PY
