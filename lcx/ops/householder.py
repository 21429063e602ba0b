"""Logits of softmax attention under a path of Householder maps (PaTH, arXiv:2505.16381)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def householder_scores(query, key, erase, beta, *, offset=0):
    """z_ij = k_j^T H_{j+1}..H_i q_i, unscaled: [B,T,H,K], [B,S,H,K] -> [B,H,T,S]."""
    slots = offset + jnp.arange(query.shape[1])

    def step(u, token):
        k, w, b, j = token
        z = jnp.einsum("bthk,bhk->bht", u, k)
        turned = u - b[:, None, :, None] * jnp.einsum("bthk,bhk->bth", u, w)[..., None] * w[:, None]
        return jnp.where((slots >= j)[None, :, None, None], turned, u), z

    tokens = (*(jnp.moveaxis(a, 1, 0) for a in (key, erase, beta)), jnp.arange(key.shape[1]))
    _, z = jax.lax.scan(step, query, tokens, reverse=True)
    return jnp.moveaxis(z, 0, -1)
