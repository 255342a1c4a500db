"""A lower bound of ε from guesses of who took part (Steinke, Nasr and Jagielski, arXiv 2305.08846).

Each of m canaries takes part in one run with probability 1/2, independently. The result of the run
leads to guesses, for r of them, whether they took part. If the run has (ε, δ)-DP, v right guesses
or more have a probability of at most (theorem 5.2 and appendix D there)

    P[X ≥ v] + 2 m δ max_i P[v - i ≤ X < v] / i    X ~ Binomial(r, e^ε / (1 + e^ε))

The bound is the largest ε that the guesses refute.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betainc, expit, gammaln, xlog1py, xlogy

LARGEST = 50.0
SHARES = (0.05, 0.1, 0.2)
"""Shares of the canaries that are guessed to have taken part, and as many that they have not."""


def epsilon_lower_bound(
    scores: NDArray[np.float64], took_part: NDArray[np.bool_], delta: float, confidence: float
) -> float:
    """The largest ε that is refuted at the confidence, 0 if none is.

    The canaries of the highest scores are guessed to have taken part, those of the lowest not to.
    Several numbers of guesses are tried, each at a part of the error probability.

    Args:
        scores: One a canary, (m,).
        took_part: Whether it did, (m,).
        delta: δ.
        confidence: Probability that the bound holds, below 1.
    """
    order, m = np.argsort(scores, kind="stable"), len(scores)
    error = (1 - confidence) / len(SHARES)
    bounds = [0.0]
    for share in SHARES:
        guessed = max(1, round(share * m))
        right = int(took_part[order[-guessed:]].sum() + (~took_part[order[:guessed]]).sum())
        bounds.append(_refuted(m, 2 * guessed, right, delta, error))
    return max(bounds)


def largest_lower_bound(canaries: int, delta: float, confidence: float) -> float:
    """The bound where all guesses are right: an audit of so many canaries refutes no larger ε."""
    error = (1 - confidence) / len(SHARES)
    guesses = [2 * max(1, round(share * canaries)) for share in SHARES]
    return max(_refuted(canaries, number, number, delta, error) for number in guesses)


def probability_of_guesses(epsilon: float, m: int, guesses: int, right: int, delta: float) -> float:
    """The largest probability of so many right guesses under (ε, δ)-DP, at most 1.

    Args:
        epsilon: ε.
        m: Canaries.
        guesses: r.
        right: v.
        delta: δ.
    """
    rate = float(expit(epsilon))
    tail = 1.0 if right <= 0 else float(betainc(right, guesses - right + 1, rate))
    if right <= 0 or not delta:
        return tail
    below = np.arange(right - 1, -1, -1)  # v - 1, v - 2, …, 0
    masses = np.exp(
        gammaln(guesses + 1)
        - gammaln(below + 1)
        - gammaln(guesses - below + 1)
        + xlogy(below, rate)
        + xlog1py(guesses - below, -rate)
    )
    largest = float((masses.cumsum() / np.arange(1, right + 1)).max())
    return min(1.0, tail + 2 * m * delta * largest)


def _refuted(m: int, guesses: int, right: int, delta: float, error: float) -> float:
    def excess(epsilon: float) -> float:
        return probability_of_guesses(epsilon, m, guesses, right, delta) - error

    if excess(0.0) >= 0:
        return 0.0
    return LARGEST if excess(LARGEST) < 0 else float(brentq(excess, 0.0, LARGEST, xtol=1e-6))
