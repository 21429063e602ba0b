"""Which tokens a ladder scores: one set of target blocks for every context length."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from lcx.errors import ConfigError, DataError
from lcx.eval.windows import Document, Prefix, Windows

DIGEST = "content:"  # tells digests of content from earlier ones, of documents' names


@dataclasses.dataclass(frozen=True)
class Targets:
    """Blocks of `block` tokens that begin at token start[n] of document[n], [N] each.

    Every block has `reach` tokens of its own document before it. `digest` names the set by its
    content, whatever the documents are called: rows may be paired only where it agrees.
    """

    document: np.ndarray
    start: np.ndarray
    block: int
    reach: int
    digest: str

    def windows(self, context: int, *, at_least: int = 0) -> Windows:
        """Windows that show each block with `context` tokens before it.

        Every prediction up to the end of the block is scored; those of the block itself are the
        ones with at least `context` tokens before them. Inputs are context + block tokens: the
        last one is the last target, which keeps the shape round and predicts nothing scored.
        Shorter windows than `at_least` are filled up behind the block, so that they share one
        program; a causal model does not see that, and a length-dependent scheme is not told.
        """
        held = context + self.block
        count = len(self.document)
        return Windows(self.document, self.start - context, np.zeros(count, np.int64),
                       np.full(count, held - 1), max(held, at_least), np.full(count, held))


def choose(documents: Sequence[Document], *, block: int, reach: int, count: int,
           seed: int) -> Targets:
    """`count` blocks at random places that have `reach` tokens before them in their document.

    Blocks are spread evenly over the documents that are long enough and never overlap; where the
    documents hold fewer than `count`, there are fewer. Raises DataError where no document is long
    enough.
    """
    if count < 1 or block < 1 or reach < 1:
        raise ConfigError(f"targets={count}, block={block}, context={reach}: all must be positive")
    sizes = np.array([len(d.tokens) for d in documents], np.int64)
    room = np.maximum(sizes - reach, 0) // block  # blocks that fit behind the longest context
    if not room.any():
        raise DataError(_too_short(documents, sizes, reach + block, block))
    draw = np.random.default_rng([seed, block, reach])
    share = _spread(room, count, draw)
    document = np.repeat(np.arange(len(sizes)), share)
    start = np.concatenate([_places(sizes[d] - reach, block, n, draw) + reach
                            for d, n in enumerate(share) if n])
    return Targets(document, start, block, reach, _digest(documents, document, start, block))


def foreign_prefixes(documents: Sequence[Document], targets: Targets, context: int, keep: int,
                     *, seed: int) -> Windows:
    """Windows as of `Targets.windows`, in which only the last `keep` tokens of context are true.

    The text before them comes from another document, at random: what a model gains from it is not
    the use of context. Raises DataError where no other document is long enough.
    """
    windows = targets.windows(context)
    length = context - keep
    sizes = np.array([len(d.tokens) for d in documents], np.int64)
    long_enough = np.flatnonzero(sizes >= length)
    draw = np.random.default_rng([seed, context, keep])
    other = np.empty(len(windows), np.int64)
    for n, own in enumerate(windows.document):
        choices = long_enough[long_enough != own]
        if not len(choices):
            raise DataError(f"the shuffled-prefix control needs a second document of {length} "
                            "tokens; take another corpus or a lower max_factor, or turn it off")
        other[n] = draw.choice(choices)
    start = draw.integers(0, sizes[other] - length + 1)
    block = np.full(len(windows), context - 1)  # only the block: the rest is not one text
    return dataclasses.replace(windows, first=block, prefix=Prefix(other, start, length))


def _spread(room: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """How many blocks each document gives [D]: as even as `room` allows, the rest at random."""
    share = np.zeros_like(room)
    while count > 0 and (open_ := np.flatnonzero(share < room)).size:
        each = count // open_.size
        if each:
            added = np.minimum(room[open_] - share[open_], each)
            share[open_] += added
            count -= int(added.sum())
        else:
            share[draw.choice(open_, size=count, replace=False)] += 1
            count = 0
    return share


def _places(space: int, block: int, count: int, draw: np.random.Generator) -> np.ndarray:
    """`count` starts of blocks in `space` tokens, uniform among those that do not overlap."""
    free = space - count * block
    return np.sort(draw.integers(0, free + 1, size=count)) + np.arange(count) * block


def _digest(documents, document, start, block) -> str:
    facts = hashlib.sha256(str(block).encode())
    texts = {d: hashlib.sha256(np.ascontiguousarray(documents[d].tokens, "<i4").tobytes()).digest()
             for d in set(document.tolist())}
    for d, at in zip(document.tolist(), start.tolist()):
        facts.update(texts[d] + f"{at}\0".encode())
    return DIGEST + facts.hexdigest()[:16]


def _too_short(documents, sizes, needed: int, block: int) -> str:
    if not len(sizes):
        return "there are no documents to evaluate on; check the corpus and its evaluation split"
    n = int(sizes.argmax())
    return (f"no document has {needed} tokens (the longest context and a block of {block} targets);"
            f" the longest is '{documents[n].name}' with {sizes[n]}: lower max_factor"
            " or use another corpus")
