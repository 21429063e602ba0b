#!/usr/bin/env bash
# jax 0.10.2, the splash attention that ships with it (Pallas, TPU), in interpret mode on a CPU.
#
# Guess:     it computes softmax(q k / sqrt(head_dim)) v, as jax.nn.dot_product_attention does; a
#            query whose segment matches no key gives 0, NaN, or at worst the mean over all keys.
# Behaviour: nothing is scaled: the caller divides. A query without a key gives the mean of the
#            values of those *blocks of keys* that the kernel visited for its block of queries, so
#            the number depends on block_kv: 128 and 256 give two different ones, both finite.
# Seen:      error with scale 1: 1.2e-06, with head_dim^-0.5: 3.9
#            query without a key, block 128: mean of keys 0-127; block 256: mean of keys 0-255
# Exits with 1 if that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check 'jax==0.10.2' 'jaxlib==0.10.2' 'numpy==2.4.6'
JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

length, dim = 256, 128
rng = np.random.default_rng(0)
q, k, v = (jnp.asarray(rng.normal(size=(1, length, dim)), jnp.float32) for _ in range(3))


def splash(block, segments=None):
    sizes = dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), 128) | dict.fromkeys(
        ("block_kv", "block_kv_compute", "block_kv_dkv", "block_kv_dkv_compute", "block_kv_dq"),
        block)
    run = kernel.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.CausalMask((length, length))]),
        block_sizes=kernel.BlockSizes(**sizes), interpret=True)
    return np.asarray(run(q, k, v, segment_ids=segments))


def plain(scale):
    logits = jnp.where(np.tril(np.ones((length, length), bool)), q @ k.swapaxes(1, 2) * scale,
                       -jnp.inf)
    return np.asarray(jax.nn.softmax(logits, -1) @ v)


whole = splash(128)
unscaled, scaled = (float(np.abs(whole - plain(s)).max()) for s in (1.0, dim ** -0.5))
print(f"error with scale 1: {unscaled:.1e}, with head_dim^-0.5: {scaled:.1f}")
alone = kernel.SegmentIds(q=jnp.asarray(np.where(np.arange(length) < 10, 2, 1), jnp.int32),
                          kv=jnp.ones(length, jnp.int32))
means = {n: np.asarray(v[0, :n].mean(0)) for n in (128, 256)}
for block in means:
    off = {n: float(np.abs(splash(block, alone)[0, 0] - mean).max()) for n, mean in means.items()}
    print(f"query without a key, block {block}: off the mean of keys 0-127 by {off[128]:.1e}, "
          f"of keys 0-255 by {off[256]:.1e}")
    assert off[block] < 1e-5, "a query without a key gives something else now"
    assert off[384 - block] > 1e-2
assert unscaled < 1e-5 and scaled > 1, "it scales now"
PY
