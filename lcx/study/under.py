"""A trained run's config under an override, and which keys still matter once it is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ml_collections import ConfigDict

from lcx.config import apply, from_values, resolve, run_id, settled, validate
from lcx.config.layers import Changes, in_effect
from lcx.errors import ConfigError
from lcx.model import build_model, has_position_parameters

# What the model is and where it runs. A key that is not here is one of training: it would change
# the name of a result and nothing of the result.
MODEL = {"experiment.model": (
    "vocab_size", "width", "depth", "position", "mixer", "pattern", "mlp", "tie_embeddings",
    "dtype")}
DATA = {"experiment.data": ("corpus", "tokenizer", "validation", "test", "deduplicate", "task")}
RUNTIME = {"runtime": ("mesh", "label", "backend", "data_cache", "compile_cache")}
LADDER = {"experiment.eval": (
    "split", "documents", "max_factor", "targets", "seed", "resamples", "batch_tokens", "chunk",
    "shuffled_prefix")}
MEASURED = {**MODEL, **DATA, **LADDER, **RUNTIME}  # in what `lcx eval` writes
OPENED = {**MODEL, **DATA, **RUNTIME}  # in what `lcx generate` says
SCORED = {**OPENED, "experiment.eval": ("max_factor",)}  # in a notebook: what `lcx.score` reads
BESIDE = {**MODEL, **LADDER}  # in an evaluation that a config asks for


def under(config: ConfigDict, overrides: Changes,
          matters: Mapping[str, Collection[str]] = MEASURED) -> ConfigDict:
    """A trained run's config under overrides: one of its own, without further ones.

    Where they change nothing of the experiment it keeps its id, and only `runtime` may differ.
    Raises ConfigError on a key that does not matter here, and on what reaches no layer.
    """
    pairs = list(overrides.items() if isinstance(overrides, Mapping) else overrides)
    new = apply(config, pairs)
    for path, _ in pairs:
        _require(path, matters)
    validate(new)
    if any(path.startswith("experiment.data.") for path, _ in pairs):
        settled(new)
    if in_effect(new) == in_effect(config):
        return from_values({"experiment": resolve(config.experiment),
                            "runtime": resolve(new.runtime)})
    if run_id(new) == run_id(config):
        return new  # the same texts at another place
    new = apply(new, {"experiment.eval.overrides": None, "experiment.eval.every": 0})
    if new.experiment.model.share_position:
        model = {**dict(new.experiment.model.items()), "vocab_size": 1}
        if not has_position_parameters(build_model(model, new.experiment.data.train_length)):
            new.experiment.model.share_position = False  # the new scheme has nothing to share
    return new


def variants(config: ConfigDict) -> list[ConfigDict]:
    """The config under each of its test-time overrides, but those that change nothing: their rows
    are its own. Raises ConfigError on one that is none."""
    found = []
    for override in config.experiment.eval.overrides or ():
        if not isinstance(override, Mapping) or not override:
            raise ConfigError("each of experiment.eval.overrides is a dict of overrides, as sweep()"
                              f" yields; got {override!r}")
        found.append(under(config, override, BESIDE))
    return [one for one in found if run_id(one) != run_id(config)]


def _require(path: str, matters: Mapping[str, Collection[str]]) -> None:
    for section, keys in matters.items():
        if path.startswith(f"{section}.") and path[len(section) + 1:].split(".")[0] in keys:
            return
    near = {section: keys for section, keys in matters.items() if path.startswith(f"{section}.")}
    told = "; ".join(f"{section}: {', '.join(keys)}" for section, keys in (near or matters).items())
    raise ConfigError(f"an override cannot set '{path}' of a trained run: here it would change "
                      f"nothing but what rows are called. It can set, of {told}")
