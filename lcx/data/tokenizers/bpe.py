"""Byte-level BPE through the `tokenizers` extra: loaded from JSON, or trained on the corpus."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from lcx.data import store
from lcx.domains import Count, whole
from lcx.errors import ConfigError, DataError

FILE = "tokenizer.json"


@dataclass
class Bpe:
    """Byte-pair encoding over UTF-8 bytes (arXiv:1508.07909), without any special token.

    path: a tokenizer.json of Hugging Face `tokenizers` with a byte-level alphabet; None trains on
    the training split with vocab_size and min_frequency, and keeps the JSON beside the corpus.
    Never a pickle. content: the sha256 of the file at `path`, filled in when a config is read; a
    run is known by it and not by the path. Raises ConfigError without the extra, DataError on a
    file that is no byte-level tokenizer; text whose bytes the tokens do not cover exactly is
    refused when it is tokenized.
    """

    path: str | None = None
    vocab_size: Annotated[int, whole(256)] = 4096
    min_frequency: Count = 2
    content: str = ""
    _json: str = field(default="", init=False, repr=False)
    _tokenizer: Any = field(default=None, init=False, repr=False)

    def __post_init__(self):
        _library()
        if self.vocab_size < 256:
            raise ConfigError(f"bpe vocab_size={self.vocab_size} cannot hold the 256 bytes")

    def ready(self, texts: Callable[[], Iterable[bytes]], folder: Path) -> None:
        """Load the JSON, or train it once and keep it under `folder`, unless it is open already."""
        if self._tokenizer is None:
            self._load(Path(self.path).expanduser() if self.path else self._trained(texts, folder))

    def read_content(self) -> str:
        """The sha256 of the file at `path` as it is now; "" where there is none to be read."""
        if not self.path:
            return ""
        self._load(Path(self.path).expanduser())
        return _sha256(self._json)

    def keep(self, folder: Path) -> None:
        """The JSON, in a run's folder."""
        aside = folder / f".{FILE}"
        aside.write_text(self._json, encoding="utf-8")
        aside.replace(folder / FILE)  # whole or absent

    def reopen(self, folder: Path) -> bool:
        """Load what `keep` wrote; False where it did not."""
        if found := (folder / FILE).is_file():
            self._load(folder / FILE)
        return found

    def _load(self, path: Path) -> None:
        try:
            self._json = path.read_text(encoding="utf-8")
            self._tokenizer = _library().Tokenizer.from_str(self._json)
        except OSError as error:
            raise DataError(f"cannot read the tokenizer '{path}': {error.strerror}; give the path "
                            "of a tokenizer.json, or path=None to train one") from error
        except Exception as error:  # the library raises a bare Exception on any bad JSON
            why = str(error).splitlines()[0] if str(error) else "not JSON"
            raise DataError(f"'{path}' is not a tokenizer.json ({why}); save one with "
                            "tokenizers.Tokenizer.save, or path=None to train one") from error
        if self.content and _sha256(self._json) != self.content:
            raise DataError(f"'{path}' is not the tokenizer that this run is known by (content "
                            f"{self.content[:12]}, here {_sha256(self._json)[:12]}): restore it, "
                            "or name it anew without content=..., which is another experiment")
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1

    def encode(self, text: bytes) -> np.ndarray:
        """UTF-8 bytes -> int32 [n]; no special token is added."""
        encoded = self._tokenizer.encode(text.decode("utf-8"), add_special_tokens=False)
        return np.array(encoded.ids, np.int32)

    def decode(self, ids: Iterable[int]) -> bytes:
        """Ids -> bytes, exactly (a token may hold part of a character)."""
        alphabet = _alphabet()
        tokens = (self._tokenizer.id_to_token(int(i)) for i in ids)
        return bytes(alphabet[letter] for token in tokens for letter in token)

    def token_bytes(self) -> np.ndarray:
        """int32 [vocab_size]: each letter of a byte-level token is one byte; specials count 0."""
        alphabet, sizes = _alphabet(), np.zeros(self.vocab_size, np.int32)
        for token, i in self._tokenizer.get_vocab().items():
            if all(letter in alphabet for letter in token):
                sizes[i] = len(token)
        return sizes

    def identity(self) -> dict[str, Any]:
        """The hash of the JSON: another vocabulary, other token files."""
        return {"name": "bpe", "vocab_size": self.vocab_size,
                "sha256": _sha256(self._json)}

    def _trained(self, texts: Callable[[], Iterable[bytes]], folder: Path) -> Path:
        version = _library().__version__
        options = json.dumps([self.vocab_size, self.min_frequency, version])
        home = folder / f"bpe-{hashlib.sha256(options.encode()).hexdigest()[:16]}"

        def write(aside: Path) -> dict[str, Any]:
            (aside / "tokenizer.json").write_text(self._train(texts()), encoding="utf-8")
            return {"vocab_size": self.vocab_size, "min_frequency": self.min_frequency,
                    "tokenizers": version}

        store.ensure(home, write)
        return home / "tokenizer.json"

    def _train(self, texts: Iterable[bytes]) -> str:
        library = _library()
        level = library.pre_tokenizers.ByteLevel
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = level(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=self.vocab_size, min_frequency=self.min_frequency, show_progress=False,
            initial_alphabet=sorted(level.alphabet()), special_tokens=[])
        tokenizer.train_from_iterator((t.decode("utf-8") for t in texts), trainer)
        return tokenizer.to_str()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _library():
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError("tokenizer 'bpe' needs the extra: pip install lcx[tokenizers]; "
                          "'bytes' needs nothing") from error
    return tokenizers


def _alphabet() -> dict[str, int]:
    """The printable letter that stands for each byte, as GPT-2 defined it -> the byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}
