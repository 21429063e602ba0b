"""A tiny model, data and config for the training tests, with the interfaces of the real ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lcx.sharding import shard
from lcx.weights import free, matrix

VOCAB, WIDTH, LENGTH = 32, 16, 8


class StandIn(nn.Module):
    """One layer of causal averaging by heads; `noise` draws from the position stream."""

    heads: int = 8
    kv_heads: int = 2
    depth: int = 1
    noise: float = 0.0

    @nn.compact
    def score(self, inputs, targets, seq, state=None):
        def param(name, shape, *names, init=None, kind=matrix):
            init = init or nn.initializers.normal(0.3)
            return self.param(name, kind(init, names), shape)

        table = param("embedding", (VOCAB, WIDTH), "vocab", "width", kind=free)
        query = param("query", (WIDTH, self.heads, 4), "width", "heads", "head_dim")
        key = param("key", (WIDTH, self.kv_heads, 4), "width", "kv_heads", "head_dim")
        out = param("out", (self.heads, 4, WIDTH), "heads", "head_dim", "width")
        gain = param("gain", (self.depth, WIDTH), "depth", "width", init=nn.initializers.ones,
                     kind=free)
        slope = param("slope", (self.heads,), "heads", kind=free)
        base = self.variable("numbers", "base", lambda: jnp.asarray(np.arange(1.0, 5.0)))
        x = shard(shard(table, "vocab width")[inputs], "batch length width") * gain.sum(0)
        q = shard(jnp.einsum("btd,dhk->bthk", x, query), "batch length heads head_dim")
        k = jnp.repeat(jnp.einsum("btd,dhk->bthk", x, key), self.heads // self.kv_heads, 2)
        count = (seq.index + 1.0)[..., None, None]
        mixed = jnp.cumsum(k * base.value, 1) / count * jax.nn.sigmoid(q) * (1 + slope)[:, None]
        if self.noise and self.has_rng("position"):
            mixed += self.noise * jax.random.normal(self.make_rng("position"), mixed.shape)
        x = x + jnp.einsum("bthk,hkd->btd", mixed, out)
        logits = jnp.einsum("btd,vd->btv", shard(x, "batch length _"), table)
        log_p = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0], state

    def __call__(self, inputs, seq, state=None):
        return self.score(inputs, inputs, seq, state)


class Batches:
    """Random but learnable rows; its whole state is one integer."""

    def __init__(self, config):
        data = config.experiment.data
        self.shape = (data.batch_size, data.train_length)
        self.seed, self.repeat, self.count = config.experiment.seed, data.repeat, 0

    def __next__(self):
        draw = np.random.default_rng([self.seed, 0 if self.repeat else self.count])
        start = draw.integers(0, VOCAB, self.shape[0])[:, None]
        tokens = (start + 3 * np.arange(self.shape[1] + 1)) % VOCAB
        weights = draw.integers(0, 3, self.shape).astype(np.float32)
        document = np.broadcast_to(self.count * 100 + np.arange(self.shape[0])[:, None],
                                   self.shape).astype(np.int32)
        self.count += 1
        return {"inputs": tokens[:, :-1].astype(np.int32), "weights": weights,
                "targets": tokens[:, 1:].astype(np.int32), "document": document}

    def get_state(self):
        return {"count": self.count}

    def set_state(self, state):
        self.count = state["count"]


def config(*, seed=0, steps=20, optimizer=None, schedule=None, clip=1.0, accumulate=1, rows=8,
           repeat=False, mesh=(1, 1, 1), log_every=1, checkpoint_every=1000):
    train = dict(steps=steps, clip=clip, accumulate=accumulate, optimizer=optimizer or
                 dict(name="adamw", learning_rate=0.02),
                 schedule=schedule or dict(name="warmup_cosine"))
    return ConfigDict(dict(
        experiment=dict(seed=seed, model=dict(vocab_size=VOCAB), train=train,
                        data=dict(batch_size=rows, train_length=LENGTH, repeat=repeat)),
        runtime=dict(mesh=dict(zip(("data", "fsdp", "tensor"), mesh)), log_every=log_every,
                     checkpoint_every=checkpoint_every)))
