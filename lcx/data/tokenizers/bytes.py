"""Bytes as tokens: a vocabulary of exactly 256, nothing to train, no special tokens."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Bytes:
    """Token id = byte value; no BOS and no EOS, so loss per token in bits is bits per byte."""

    vocab_size = 256  # not an option

    def ready(self, texts: Callable[[], Iterable[builtins.bytes]], folder: Path) -> None:
        """Nothing to train."""

    def keep(self, folder: Path) -> None:
        """Nothing to keep."""

    def reopen(self, folder: Path) -> bool:
        """Always ready."""
        return True

    def encode(self, text: builtins.bytes) -> np.ndarray:
        """UTF-8 bytes -> int32 [n]."""
        return np.frombuffer(text, np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> builtins.bytes:
        """Ids -> bytes. Raises ValueError on an id outside 0..255."""
        return builtins.bytes(int(i) for i in ids)

    def token_bytes(self) -> np.ndarray:
        """int32 [256] of ones."""
        return np.ones(256, np.int32)

    def identity(self) -> dict[str, Any]:
        """What the token files depend on."""
        return {"name": "bytes"}
