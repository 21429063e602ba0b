"""For notebooks: open a run, look inside, score one's own texts, take rows as a frame.

    import lcx

    run = lcx.load("runs/quickstart/0a1b2c3d4e")
    run.capture("def main():")[0]["attention"]       # [1,H,T,S], of the first layer
    lcx.score(run, Path("my.txt"), lengths=[128, 1024])
    lcx.rows("runs/quickstart")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lcx import config as configs
from lcx.config.stored import config_in
from lcx.errors import ConfigError, DataError
from lcx.eval import scorer
from lcx.study import capture as inside
from lcx.study import describe, export, records
from lcx.study.distinct import distinguish
from lcx.study.generation import generate
from lcx.study.here import stored_config
from lcx.study.names import alone
from lcx.study.own_texts import score
from lcx.study.preflight import check
from lcx.study.restore import Run, open_run
from lcx.study.under import SCORED

__all__ = ["TrainedRun", "load", "rows", "score"]


class TrainedRun(Run):
    """A trained run: config, model and variables, with what a notebook asks of them.

    tokenizer: encode(bytes) -> ids, decode(ids) -> bytes, token_bytes(), vocab_size. data: the
    corpus, looked for when it is first asked for; nothing else needs it.
    """

    @property
    def train_length(self) -> int:
        """Tokens per training window."""
        return self.config.experiment.data.train_length

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))

    def encode(self, text: str) -> np.ndarray:
        """A text's token ids, int32 [n]."""
        return np.asarray(self.tokenizer.encode(text.encode("utf-8")), np.int32)

    def decode(self, ids: Any) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(np.asarray(ids).tolist()).decode("utf-8", errors="replace")

    def capture(self, inputs: str | np.ndarray,
                what: Collection[str] = inside.KINDS) -> list[dict[str, Any]]:
        """What each layer computes on a text or on ids [T] or [B,T]; see `lcx.study.capture`."""
        ids = self.encode(inputs) if isinstance(inputs, str) else inputs
        return inside.capture(self.model, self.variables, ids, what)

    def losses(self, text: str) -> np.ndarray:
        """Loss in nats [n-1] of each token of a text but the first, given all before it."""
        if len(ids := self.encode(text)) < 2:
            raise DataError("a text of two tokens or more is needed: the first has no context")
        return scorer.score(self.model, self.variables, ids[None, :-1], ids[None, 1:])[0]

    def generate(self, prompt: str, tokens: int = 100, *, temperature: float = 0.0,
                 top_p: float = 1.0, seed: int = 0) -> str:
        """A text's continuation by so many tokens; see `lcx generate --help`."""
        return "".join(text for _, text in generate(self, prompt, tokens, top_p=top_p, seed=seed,
                                                    temperature=temperature))

    def rows(self) -> Any:
        """What was measured of this run, as a pandas frame."""
        return rows(self.folder)

    def __repr__(self) -> str:
        arm = alone(describe.position(self.config), describe.mixer(self.config))
        return (f"run {self.folder.name}: {arm.label()}, trained at {self.train_length} for "
                f"{self.step} steps, {self.parameters:,} parameters")


def load(folder: str | Path,
         overrides: str | Sequence[str] | Mapping[str, Any] | None = None) -> TrainedRun:
    """Open a run at its last checkpoint, verified.

    overrides: what to open it under (the same weights under another scheme), as after `--override`
    or `--config.` of a command ("position=yarn,factor=8", or a list of such), or as a dict of
    config keys ({"experiment.model.position": dict(name="yarn", factor=8)}). Raises ConfigError
    where the folder is no run, a key is unknown or an override reaches no layer, CheckpointError on
    damage.
    """
    folder, overrides = Path(folder).expanduser(), configs.read_overrides(overrides)
    if not (folder / "config.json").is_file() and (found := _runs(folder)):
        raise ConfigError(f"{folder} holds several runs; name one: {'; '.join(found)}")
    config = stored_config(folder, overrides, SCORED)
    if overrides:
        check(config, training=False)
    run = open_run(folder, config)
    return TrainedRun(**{field.name: getattr(run, field.name) for field in dataclasses.fields(run)})


def rows(folder: str | Path) -> Any:
    """All rows under a folder as a pandas frame, `arm` first: named as in the report.

    Raises DataError where nothing was measured yet, ConfigError without pandas.
    """
    return export.frame(distinguish(records.read(folder)))


def _runs(folder: Path) -> list[str]:
    """The runs in a study's folder, described."""
    found = []
    for path in sorted(folder.glob("*/config.json")):
        config = config_in(path.parent)
        arm = alone(describe.position(config), describe.mixer(config), config.runtime.label)
        found.append(f"{path.parent.name} ({arm.label()}, seed {config.experiment.seed})")
    return found
