"""One tokenizer per file: `bytes.py` holds `Bytes`, a config says `dict(name="bytes")`.

A tokenizer has `vocab_size`, `encode(text) -> int32 [n]`, `decode(ids) -> bytes`, `token_bytes() ->
int32 [vocab_size]` (the UTF-8 bytes that each token stands for, which bits per byte divides by),
`identity() -> dict` (hashed: other identity, other token files) and `ready(texts, folder)`, called
once before use with the documents of the training split. `keep(folder)` writes into a run's folder
what `reopen(folder)` needs to serve that run without its corpus. No tokenizer adds BOS, EOS or any
other special token: a token that the text does not hold is never fed and never scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Tokenizer(Protocol):
    """Text bytes to token ids and back; every byte of a text belongs to exactly one token."""

    vocab_size: int

    def ready(self, texts: Callable[[], Iterable[bytes]], folder: Path) -> None: ...

    def keep(self, folder: Path) -> None: ...

    def reopen(self, folder: Path) -> bool: ...

    def encode(self, text: bytes) -> np.ndarray: ...

    def decode(self, ids: Iterable[int]) -> bytes: ...

    def token_bytes(self) -> np.ndarray: ...

    def identity(self) -> dict[str, Any]: ...
