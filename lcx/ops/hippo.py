"""HiPPO-LegS: the matrices with which a state holds the Legendre coefficients of all its past.

Host-side float64 NumPy: what state-space mixers start from, and what docs/hippo.md draws.
"""

from __future__ import annotations

import numpy as np


def legs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A [N,N] and B [N] of HiPPO-LegS (arXiv:2008.07669): c'(t) = (A c + B u) / t.

    c_n(t) = sqrt(2n+1)/t times the integral of u(s) P_n(2s/t - 1) over the past 0..t, P_n the
    Legendre polynomials: u is nearly sum_n c_n sqrt(2n+1) P_n. Without the factor 1/t (S4) the
    past fades exponentially instead of being rescaled. A constant input of 1 gives (1, 0, 0, ...).
    """
    order = np.arange(size)
    root = np.sqrt(2.0 * order + 1.0)
    matrix = -np.tril(root[:, None] * root, -1) - np.diag(order + 1.0)
    return matrix, root


def normal_plus_low_rank(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poles, P and B [N/2], complex, of LegS in the basis where A = diag(poles) - P P^*.

    A + p p^T with p_n = sqrt(n + 1/2) is -I/2 plus a skew matrix, which a unitary V makes diagonal;
    P = V^* p, B = V^* B. Of each pair of conjugates the one with the positive imaginary part is
    kept, in rising order; the phases of the eigenvectors are those of `numpy.linalg.eigh`.
    """
    matrix, column = legs(size)
    low = np.sqrt(np.arange(size) + 0.5)
    skew = matrix + np.outer(low, low)
    imaginary, vectors = np.linalg.eigh(skew * -1j)
    kept = slice(size - size // 2, size)
    turned = vectors[:, kept].conj().T
    return np.diag(skew).mean() + 1j * imaginary[kept], turned @ low, turned @ column


def project(signal: np.ndarray, size: int) -> np.ndarray:
    """States [T,N] of LegS along a sampled signal [T], by the bilinear rule with t = 1, 2, ..."""
    matrix, column = legs(size)
    state, states, one = np.zeros(size), [], np.eye(size)
    for step, value in enumerate(signal, start=1):
        left, right = one - matrix / (2 * step), one + matrix / (2 * step)
        state = np.linalg.solve(left, right @ state + column * value / step)
        states.append(state)
    return np.array(states)


def reconstruct(state: np.ndarray, points: int) -> np.ndarray:
    """The past that a state [N] remembers, at `points` even places from its first to its last."""
    order = np.arange(len(state))
    place = (np.arange(points) + 0.5) / points * 2 - 1
    return np.polynomial.legendre.legval(place, state * np.sqrt(2.0 * order + 1.0))
