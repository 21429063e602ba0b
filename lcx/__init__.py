"""lcx: train short, test long, for any positional scheme and any sequence mixer."""
