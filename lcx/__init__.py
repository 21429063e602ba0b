"""lcx: train short, test long, for any positional scheme and any sequence mixer.

In a notebook: `lcx.load(run)`, `lcx.score(run, documents, lengths)`, `lcx.rows(folder)`; see
`lcx.study.notebook`.
"""

from typing import Any

_NOTEBOOK = ("load", "rows", "score")


def __getattr__(name: str) -> Any:
    """The notebook's functions, on first use: `import lcx` alone imports nothing heavy."""
    if name not in _NOTEBOOK:
        raise AttributeError(f"module 'lcx' has no attribute '{name}'; it has "
                             f"{', '.join(_NOTEBOOK)}")
    from lcx.study import notebook

    return getattr(notebook, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NOTEBOOK])
