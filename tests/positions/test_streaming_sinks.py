"""Streaming slots with sinks: a cache simulated token by token is the reference."""

import numpy as np
import pytest

from lcx import lanes as L
from lcx.errors import ConfigError
from tests.test_positions import logits, speak, theta, turned, vectors


@pytest.mark.parametrize("sinks, recent", [(2, 5), (0, 3), (3, 99)])
def test_against_a_simulated_cache(sinks, recent, x64):
    length, cache = 24, []
    q, k, _ = vectors(length, kv_heads=2)
    wanted = np.full((4, length, length), -np.inf)
    for t in range(length):
        cache.append(t)
        if len(cache) > sinks + recent:
            cache = cache[:sinks] + cache[-recent:] if recent < len(cache) else cache
        slots = np.arange(len(cache))  # ids are places in the cache, assigned anew at each step
        away = (slots[-1] - slots)[None, :, None] * theta(8)
        wanted[:, t, cache] = turned(q[:, t:t + 1], k[:, cache], away)[:, 0] / np.sqrt(8)
    got, _ = logits(dict(name="streaming_sinks", sinks=sinks, recent=recent), q, k,
                    L.sequence(1, length))
    seen = np.isfinite(wanted)
    np.testing.assert_allclose(got[seen], wanted[seen], rtol=0, atol=1e-9)
    assert (got[~seen] < -1e29).all()
    assert max(seen.sum(-1).ravel()) <= sinks + recent


def test_a_cache_that_holds_everything_is_rope(x64):
    q, k, _ = vectors(16)
    wanted, _ = logits("rope", q, k, L.sequence(1, 16))
    got, _ = logits("streaming_sinks", q, k, L.sequence(1, 16))  # 4 + (16 - 4)
    np.testing.assert_allclose(got[np.isfinite(wanted)], wanted[np.isfinite(wanted)], atol=1e-12)


def test_bad_options_raise():
    with pytest.raises(ConfigError, match="streaming_sinks.recent' must be int, 1 or more"):
        speak(dict(name="streaming_sinks", recent=0), L.sequence(1, 1))
    with pytest.raises(ConfigError, match="causal mixer"):
        speak("streaming_sinks", L.sequence(1, 1), causal=False)
