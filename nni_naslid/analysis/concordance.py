"""Rank correlations of many resamples, fast: how often each architecture agrees with the others, by counting bits.

The values of a report are those of scipy. Its intervals need hundreds of resamples, and for 15,625 architectures
``scipy.stats.weightedtau`` alone takes ten times as long as all that is here.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ['Concordance', 'mid_ranks', 'ratio']


class Concordance:
    r"""Two rankings of the same architectures, pair by pair.

    The concordance of an architecture is :math:`c_i = \sum_j \mathrm{sign}(x_i - x_j)\,\mathrm{sign}(y_i - y_j)`: with
    how many others the rankings agree about it, less with how many they do not. All the correlations below are sums of
    it, divided by what it would be if the rankings agreed about each pair that they do not tie.

    Parameters
    ----------
    x, y
        Ranks from 0, integers of shape ``[A]``; larger is better. Tied ones are equal; ranks may be missing.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray):
        n = len(x)
        keys = x.astype(np.int64) * (y.max() + 1) + y
        order = np.argsort(keys)
        keys = keys[order]
        self.x, self.y = x[order], y[order]  # the first sorted; where it ties, by the second
        place = np.arange(n)
        by_y = np.argsort(self.y.astype(np.int64) * n + place)
        self.place_y = np.empty(n, np.int64)  # [A], where each would be if sorted by the second; ties by the first
        self.place_y[by_y] = place
        # [A], how many tie with each, itself included
        self.ties_x, self.ties_y = np.bincount(self.x)[self.x], np.bincount(self.y)[self.y]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        lengths = np.diff(starts, append=n)
        ties = np.repeat(lengths, lengths)  # [A], how many tie with each in both
        both_below = _smaller_before(self.place_y)
        # Without ties: of the others, both_below are below in both, place - both_below only in x, place_y - both_below
        # only in y, and the rest are above in both. A tie in x only, in y only, or in both adds what it took away.
        self.counts = 4 * both_below - 2 * place - 2 * self.place_y + n + ties - self.ties_x - self.ties_y

    def sums(self, weights: np.ndarray | float = 1.0) -> np.ndarray:
        """The weighted sum of the concordances, and what it would be without ties of the first, and of the second."""
        n = len(self.x)
        return np.array([np.sum(weights * each) for each in (self.counts, n - self.ties_x, n - self.ties_y)])

    def tau(self) -> float:
        """Kendall's tau-b, as ``scipy.stats.kendalltau``."""
        return ratio(*self.sums())

    def weighted_tau(self) -> float:
        """Weighted tau with additive hyperbolic weights, as ``scipy.stats.weightedtau``."""
        weights = 1 / np.arange(len(self.x), 0, -1)  # the best has weight 1, the next 1/2, ...
        return (ratio(*self.sums(weights)) + ratio(*self.sums(weights[self.place_y]))) / 2


def mid_ranks(x: np.ndarray) -> np.ndarray:
    """Ranks about their mean, tied ones with the middle of their ranks, of integer ranks: of shape ``[A]``."""
    counts = np.bincount(x)
    return (np.cumsum(counts) - counts / 2)[x] - len(x) / 2


def ratio(product: float, one: float, other: float) -> float:
    """The product over the geometric mean of the others; NaN where either is zero."""
    return float(product / math.sqrt(one) / math.sqrt(other)) if one > 0 and other > 0 else math.nan


def _smaller_before(permutation: np.ndarray) -> np.ndarray:
    """How many smaller ones stand before each entry of a permutation of ``range(A)``.

    From the highest bit to the lowest: entries that agree in all higher bits form a group, in their original order. An
    entry with the bit set has before it the entries of its group without it. Then those without it go to the front of
    the group. The groups are full but for the last, so that it is known where each begins and how many it has.
    """
    n = len(permutation)
    place = np.arange(n)
    counts = np.zeros(n, np.int64)  # by value
    values = permutation
    for bit in reversed(range((n - 1).bit_length())):
        group = values >> (bit + 1)
        is_set = (values >> bit) & 1
        unset_before = place - (np.cumsum(is_set) - is_set) - (group << bit)  # in the group
        counts[values] += is_set * unset_before
        start = group << (bit + 1)
        moved = np.where(is_set, place + (1 << bit) - unset_before, start + unset_before)
        values, previous = np.empty_like(values), values
        values[moved] = previous
    return counts[permutation]
