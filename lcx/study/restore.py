"""A trained run, opened again: its model with verified parameters, and what its rows must say."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lcx import data as data_library
from lcx import lookup, sharding
from lcx.config import code_version, resolve, run_id
from lcx.config.stored import config_in
from lcx.eval.lengths import contexts
from lcx.lanes import sequence
from lcx.ops.attention import api as attention
from lcx.study import describe, flops
from lcx.study.here import stored_config
from lcx.study.preflight import model_of, use_compile_cache, with_data, with_vocabulary
from lcx.study.programs import same_program
from lcx.train import checkpoint, metrics
from lcx.train.overlay import load_onto

log = logging.getLogger("lcx.study")


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with all that evaluation needs."""

    folder: Path
    config: ConfigDict
    load_data: Callable[[], Any]
    tokenizer: Any
    model: nn.Module
    variables: Any
    step: int
    trained_with: tuple[str, ...] = ()  # versions of the code behind the checkpoint
    dropped: tuple[str, ...] = ()  # leaves of the checkpoint that an override has no place for
    initialised: tuple[str, ...] = ()  # leaves that an override adds, as untrained as they began

    @functools.cached_property
    def data(self) -> Any:
        """The corpus or task of the run. Raises DataError where it is not, or has changed."""
        return self.load_data()

    def program(self) -> Run:
        """The run without its parameters: what `open_run(like=...)` needs of it."""
        return dataclasses.replace(self, variables=jax.eval_shape(lambda v: v, self.variables))


def open_run(folder: str | Path, config: ConfigDict | None = None,
             like: Sequence[Run] = (), *, with_corpus: bool = False) -> Run:
    """Restore a run's parameters from its last checkpoint, under its own config or another.

    The corpus is not looked at, unless asked for `with_corpus` or where the tokenizer can only come
    from it (a run whose folder does not keep one). Leaves that only one of the two configs has are
    dropped or initialised; the log names them. Of the runs `like` one with the same program lends
    its model, so that nothing compiles again.
    Raises CheckpointError on damage, CheckpointMismatch listing leaves of another shape.
    """
    folder = Path(folder)
    own, config = config_in(folder), config or stored_config(folder)
    use_compile_cache(config)
    alike = resolve(config.experiment.data.tokenizer) == resolve(own.experiment.data.tokenizer)
    tokenizer = data_library.tokenizer_of(config.experiment.data, folder) if alike else None
    load_data = functools.cache(lambda: with_data(config, tokenizer)[1])
    if with_corpus:
        load_data()  # what is wrong with it is said before anything is built
    full = with_vocabulary(config, tokenizer or load_data().tokenizer)
    model = model_of(full)
    mesh = sharding.make_mesh(**full.runtime.mesh)
    inputs = jnp.zeros((1, full.experiment.data.train_length), jnp.int32)
    seq = sequence(1, inputs.shape[1])
    key = jax.random.key(full.experiment.seed)
    boxed = dict(jax.eval_shape(model.init, key, inputs, seq))
    abstract = jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
        nn.unbox(boxed["params"]), sharding.shardings(boxed["params"], mesh))
    saved = checkpoint.saved(folder / "checkpoints")
    initial = jax.jit(lambda: nn.unbox(model.init(key, inputs, seq)))
    if run_id(config) == run_id(own):
        params = checkpoint.load_params(folder / "checkpoints", abstract, saved.step)
        dropped, new = [], []
    else:
        placed = jax.tree.map(lambda s: s.sharding, abstract)
        params, dropped, new = load_onto(folder / "checkpoints", abstract, saved.step,
                                         lambda: jax.device_put(initial()["params"], placed))
        for leaves, what in ((dropped, "drops leaves of the checkpoint"),
                             (new, "adds leaves that no training has touched")):
            if leaves:
                log.warning("this override %s: %s", what, ", ".join(leaves))

    def constants() -> dict[str, Any]:
        found = nn.unbox(model.init(key, inputs, seq))
        return {name: value for name, value in found.items() if name != "params"}
    beside = jax.device_put(jax.jit(constants)(), sharding.replicated(mesh))
    variables = {"params": params, **beside}
    if like and config.experiment.eval.chunk is None:
        length = inputs.shape[1]
        windows = {max(context + length // 4, length)
                   for context in contexts(length, config.experiment.eval.max_factor)}
        with attention.backend(full.runtime.backend):
            model = next((other.model for other in like if same_program(
                (other.model, model), (other.variables, variables), windows)), model)
    return Run(folder, config, load_data, tokenizer or load_data().tokenizer, model, variables,
               saved.step, saved.code, tuple(dropped), tuple(new))


def fairness(run: Run) -> dict[str, Any]:
    """What every row of a run says beside its value."""
    length, experiment = run.config.experiment.data.train_length, run.config.experiment
    version, dirty = code_version()
    logged = metrics.read(run.folder / "metrics.jsonl")
    optimizer = lookup.build("lcx.train.optimizers", experiment.train.optimizer)
    state = jax.eval_shape(lambda: run.model.init_state(1, length))
    return dict(
        run=run_id(config_in(run.folder)), config_hash=run_id(run.config),
        position=describe.position(run.config), mixer=describe.mixer(run.config),
        seed=experiment.seed, checkpoint_step=run.step,
        parameters=sum(x.size for x in jax.tree.leaves(run.variables["params"])),
        flops_per_token=_forward_flops(run.model, run.variables, length) // length,
        state_size=sum(math.prod(x.shape) for x in jax.tree.leaves(state)
                       if jnp.issubdtype(x.dtype, jnp.floating)),
        train_tokens=logged[-1]["train_tokens"] if logged else "unknown",
        learning_rate=optimizer.learning_rate,
        learning_rate_tuned=experiment.train.learning_rate_tuned,
        code_version=version, dirty=dirty)


def _forward_flops(model: nn.Module, variables: Any, length: int) -> int:
    """Of scoring one row of the train length; the plain attention, since kernels are opaque."""
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    with attention.backend("reference"):
        return flops.count(
            lambda v, i, t: model.apply(v, i, t, sequence(1, length), method="score")[0],
            variables, tokens, tokens)
