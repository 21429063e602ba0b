"""Query-key products through a product of Householder maps: PaTH attention (arXiv 2505.16381)."""

from functools import partial

import jax
import jax.numpy as jnp

from lcx.ops.linear.triangular import unit_lower_inverse


def householder_scores(
    query: jax.Array,
    key: jax.Array,
    erase: jax.Array,
    beta: jax.Array,
    *,
    offset: int | jax.Array = 0,
    form: str = "blocked",
    block: int = 64,
) -> jax.Array:
    """z_ij = k_j^T H_{j+1} ... H_i q_i with H_s = I - beta_s w_s w_s^T and w = erase; no scale.

    Args:
      query: [B,T,H,K]; query t sits at key slot i = offset + t.
      key, erase: [B,S,H,K]. Heads are already expanded; an empty slot has erase 0 or beta 0.
      beta: [B,S,H].
      offset: the slot of the first query; it may be traced.
      form: "blocked" (matmuls) or "recurrent" (one key after another, the naive twin).
      block: slots taken at once in the blocked form; never changes the result.

    Returns:
      z [B,H,T,S], at least float32; where j > i it is finite and means nothing: mask it.

    Raises:
      ValueError: an unknown form or a shape that does not fit.
    """
    if form not in ("blocked", "recurrent"):
        raise ValueError(f"form is {form!r}: choose 'blocked' or 'recurrent'")
    slots = key.shape[:3]
    if erase.shape != key.shape or beta.shape != slots:
        raise ValueError(f"erase {erase.shape} and beta {beta.shape} must fit key {key.shape}")
    if query.ndim != 4 or (query.shape[0], *query.shape[2:]) != (key.shape[0], *key.shape[2:]):
        raise ValueError(f"query {query.shape} and key {key.shape} must share B, H and K")
    if block < 1:
        raise ValueError(f"block is {block}: give at least one slot")
    place = offset + jnp.arange(query.shape[1])
    if form == "recurrent":
        return _recurrent(query, key, erase, beta, place)
    return _blocked(query, key, erase, beta, place, block)


def _recurrent(query, key, erase, beta, place):
    dtype = jnp.promote_types(query.dtype, jnp.float32)

    def step(moved, slot):  # moved [B,T,H,K] = H_{j+1} ... H_i q_i
        key, erase, beta, j = slot
        score = jnp.einsum("bthk,bhk->bht", moved, key)
        erased = beta[:, None] * jnp.einsum("bthk,bhk->bth", moved, erase)
        erased = jnp.where((j <= place)[:, None], erased, 0)
        return moved - erased[..., None] * erase[:, None], score

    slots = [jnp.moveaxis(x.astype(dtype), 1, 0) for x in (key, erase, beta)]
    slots.append(jnp.arange(key.shape[1]))
    _, scores = jax.lax.scan(step, query.astype(dtype), tuple(slots), reverse=True)
    return jnp.moveaxis(scores, 0, -1)


def _blocked(query, key, erase, beta, place, block):
    """From the last block of slots to the first, carrying each query through whole blocks.

    Inside a block, c_s = beta_s w_s^T H_{s+1} ... H_i q_i solves a triangular system per query
    (its right side is 0 past the query, which makes H_s the identity there), and then
    z_ij = k_j^T q - sum_{s>j} k_j^T w_s c_s.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    operand = query.dtype
    slots = key.shape[1]
    block = min(block, max(1, slots))
    blocks = -(-slots // block)
    multiply = partial(jnp.einsum, preferred_element_type=dtype)

    def split(x):  # [B,S,H,...] -> [N,B,H,C,...], the padding erases nothing
        x = jnp.pad(x, [(0, 0), (0, blocks * block - slots)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(x.shape[0], blocks, block, *x.shape[2:])
        return jnp.moveaxis(jnp.swapaxes(x, 2, 3), 1, 0)

    key, erase, beta = split(key), split(erase), split(beta)
    strict = jnp.tri(block, k=-1, dtype=bool)
    beta = beta.astype(dtype)[..., None, :]
    overlap = multiply("nbhrk,nbhsk->nbhrs", erase, erase)
    inverse = unit_lower_inverse(jnp.where(strict, overlap * beta, 0))
    solve = (jnp.swapaxes(beta, -1, -2) * inverse).astype(operand)
    lift = jnp.where(strict, multiply("nbhsk,nbhjk->nbhsj", erase, key), 0).astype(operand)

    @jax.checkpoint  # keeps one moved query per block
    def step(moved, slot):
        key, erase, solve, lift, first = slot
        narrow = moved.astype(operand)
        reads = multiply("bhtk,bhsk->bhts", narrow, erase)
        reads = jnp.where(first + jnp.arange(block) <= place[:, None], reads, 0)
        coefficient = multiply("bhts,bhsr->bhtr", reads.astype(operand), solve).astype(operand)
        scores = multiply("bhtk,bhjk->bhtj", narrow, key)
        scores = scores - multiply("bhts,bhsj->bhtj", coefficient, lift)
        return moved - multiply("bhts,bhsk->bhtk", coefficient, erase), scores

    first = block * jnp.arange(blocks)
    moved = jnp.swapaxes(query, 1, 2).astype(dtype)
    _, scores = jax.lax.scan(step, moved, (key, erase, solve, lift, first), reverse=True)
    scores = jnp.moveaxis(scores, 0, 3)
    return scores.reshape(*scores.shape[:3], -1)[..., :slots]
