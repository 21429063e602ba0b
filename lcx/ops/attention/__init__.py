"""Softmax attention: `api.attend` is the one op, one file per backend, `cache` for decoding."""
