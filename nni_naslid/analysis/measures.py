"""What is said of one ranking: the definitions of the figures of a report.

Estimates and truth are arrays of shape ``[A]``, one entry for each architecture; larger is better. Ties in the
estimates are broken at random, and a figure is the mean over all ways to do that: it does not depend on the order of
the architectures, and constant estimates get what a random choice gets. Ties in the truth count as equally good: all
architectures that tie with the last one of the true top belong to it, and all of them have the best of their ranks.
"""

from __future__ import annotations

from nni_naslid.analysis.concordance import Concordance, mid_ranks, ratio

import numpy as np
from scipy.stats import kendalltau, spearmanr, weightedtau

__all__ = [
    'COUNTS',
    'SHARES',
    'all_figures',
    'best_of_top',
    'in_true_top',
    'partial_correlation',
    'precision_at_top',
    'tau_by_leaf',
    'top_n_rank',
    'top_regret',
    'true_ranks',
]

SHARES = (0.01, 0.05, 0.1)
"""The parts of the architectures that a report calls the top."""

COUNTS = (1, 10)
"""The numbers of architectures that a search may train alone to keep the best of them."""


def in_true_top(truth: np.ndarray, n: int) -> np.ndarray:
    """Which architectures are at least as good as the one of true rank ``n``, of shape ``[A]``."""
    return truth >= np.partition(truth, -n)[-n]


def true_ranks(truth: np.ndarray) -> np.ndarray:
    """One more than how many are better, of shape ``[A]``: the best has rank 1."""
    _, place, counts = np.unique(truth, return_inverse=True, return_counts=True)
    return len(truth) + 1 - np.cumsum(counts)[place]


def precision_at_top(estimates: np.ndarray, truth: np.ndarray, n: int) -> float:
    r"""Precision at ``n``: which part of the estimated top belongs to the true top.

    .. math:: \mathrm{P@}n = |\mathrm{top}_n(\mathrm{estimates}) \cap \mathrm{top}_n(\mathrm{truth})| \,/\, n

    Of ``n`` = k % of the architectures it is P@k %; see `Ning et al. <https://arxiv.org/abs/2008.03064>`__ (P@top K).
    """
    is_top = in_true_top(truth, n)
    sure, tied = _top(estimates, n)
    return float((is_top[sure].sum() + (n - len(sure)) * is_top[tied].mean()) / n)


def top_n_rank(estimates: np.ndarray, truth: np.ndarray, n: int) -> float:
    r"""Top-n rank: the best true rank among the ``n`` architectures with the best estimates; 1 is the best.

    .. math:: \mathrm{TnR} = \min_{a \in \mathrm{top}_n(\mathrm{estimates})} \mathrm{rank}_\mathrm{truth}(a)

    See `Zhang et al. <https://arxiv.org/abs/2001.01431>`__, section 3.2. Of ``n`` = k % of the architectures it is
    N@k %, see `Ning et al. <https://arxiv.org/abs/2004.01899>`__; divided by their number it is BR@K of
    `Ning et al. <https://arxiv.org/abs/2008.03064>`__.
    """
    return -best_of_top(estimates, -true_ranks(truth), n)


def top_regret(estimates: np.ndarray, truth: np.ndarray, n: int) -> float:
    r"""How much truth is lost if the ``n`` architectures with the best estimates are trained and the best one is kept.

    .. math:: \max_a \mathrm{truth}(a) - \max_{a \in \mathrm{top}_n(\mathrm{estimates})} \mathrm{truth}(a)
    """
    return float(truth.max()) - best_of_top(estimates, truth, n)


def best_of_top(estimates: np.ndarray, values: np.ndarray, n: int) -> float:
    """The largest of the values that the ``n`` architectures with the best estimates have."""
    sure, tied = _top(estimates, n)
    best = values[sure].max() if len(sure) else -np.inf
    tied_values = np.sort(values[tied])[::-1]
    n_drawn, n_tied = n - len(sure), len(tied)
    if n_drawn == n_tied:
        return float(max(best, tied_values[0]))
    # The best of those drawn is the one at place j if it is drawn and none of those before it.
    place = np.arange(n_tied - n_drawn + 1)
    passed = np.cumprod(1 - n_drawn / (n_tied - place))  # none of the places up to j is drawn
    chance = np.concatenate([[1], passed[:-1]]) * n_drawn / (n_tied - place)
    return float(chance @ np.maximum(best, tied_values[: len(chance)]))


def _top(estimates: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Which architectures are in the estimated top for sure, and which ones tie for the places that are left."""
    last = np.partition(estimates, -n)[-n]
    return np.flatnonzero(estimates > last), np.flatnonzero(estimates == last)


def partial_correlation(centred: np.ndarray, given: list[int]) -> float:
    r"""Correlation of the first two rows given others: of what is left of them once the others are taken out by linear
    regression. Of ranks it is Spearman's partial correlation; given a single ranking :math:`z` that is

    .. math:: (\rho_{xy} - \rho_{xz}\rho_{yz}) \,/\, \sqrt{(1 - \rho_{xz}^2)(1 - \rho_{yz}^2)}

    Parameters
    ----------
    centred
        Rows of mean zero, of shape ``[2 + C, A]``.
    given
        Which rows are taken out. They may say the same.

    Returns
    -------
    NaN where they determine one of the two: where less than ``1e-9`` of its variance is left.
    """
    products = centred @ centred.T
    both, other = products[:2, :2], products[:2][:, given]
    left = both - other @ np.linalg.pinv(products[np.ix_(given, given)], rcond=1e-10, hermitian=True) @ other.T
    if not (np.diag(left) > 1e-9 * np.diag(both)).all():
        return float('nan')
    return float(left[0, 1] / np.sqrt(left[0, 0]) / np.sqrt(left[1, 1]))


def tau_by_leaf(estimates: np.ndarray, truth: np.ndarray, leaves: np.ndarray) -> tuple[float, float]:
    r"""Kendall's tau-b over the pairs within a leaf, and over the pairs of different leaves.

    .. math:: \tau = \sum_{(i, j)} \mathrm{sign}(x_i - x_j)\,\mathrm{sign}(y_i - y_j)
        \Big/ \sqrt{|\{(i, j): x_i \ne x_j\}|\, |\{(i, j): y_i \ne y_j\}|}

    with sums over those pairs only; over all pairs it is tau-b.

    Parameters
    ----------
    estimates, truth
        Ranks from 0, integers of shape ``[A]``.
    leaves
        The leaf of each architecture, an integer from 0, of shape ``[A]``.
    """
    order = np.argsort(leaves, kind='stable')
    members = np.split(order, np.flatnonzero(np.diff(leaves[order])) + 1)
    within = sum(Concordance(estimates[each], truth[each]).sums() for each in members)
    return ratio(*within), ratio(*(Concordance(estimates, truth).sums() - within))


def all_figures(estimates: np.ndarray, truth: np.ndarray, leaves: np.ndarray | None, n_all: int) -> dict[str, float]:
    """All figures of one ranking, by name.

    Parameters
    ----------
    estimates
        Ranks from 0, integers of shape ``[A]``.
    truth
        True accuracies, of shape ``[A]``.
    leaves
        The leaf of each architecture, an integer from 0, of shape ``[A]``, if the rest shall contain ``tau_within`` and
        ``tau_across`` (see :func:`tau_by_leaf`).
    n_all
        The number of architectures that these were drawn from. Where it is larger than their number, ranks and numbers
        of architectures are taken for those of all: of half of them, the best 5 stand for the best 10 of all.
    """
    n = len(truth)
    ranks = np.unique(truth, return_inverse=True)[1]
    better = -true_ranks(truth)
    row = correlations(estimates, ranks, exact=n == n_all)
    for share in SHARES:
        is_top = in_true_top(ranks, min(n, max(2, round(share * n))))
        row[f'tau_top{share:.0%}'] = kendall(estimates[is_top], ranks[is_top], exact=n == n_all)
    for share in SHARES:
        n_top = max(1, round(share * n))
        row[f'P@{share:.0%}'] = precision_at_top(estimates, ranks, n_top)
        row[f'N@{share:.0%}'] = 1 - (1 + best_of_top(estimates, better, n_top)) * n_all / n
    for count in COUNTS:
        n_top = max(1, round(min(count, n_all) * n / n_all))
        row[f'T{count}R'] = 1 - (1 + best_of_top(estimates, better, n_top)) * n_all / n
        row[f'regret@{count}'] = top_regret(estimates, truth, n_top)
    row['best'] = float(truth.max())
    row['picked'] = row['best'] - row['regret@1']
    if leaves is not None:
        row['tau_within'], row['tau_across'] = tau_by_leaf(estimates, ranks, leaves)
    return row


def correlations(x: np.ndarray, y: np.ndarray, exact: bool) -> dict[str, float]:
    """Three rank correlations of integer ranks: by scipy, or by our own faster way."""
    if exact:
        tau, spearman, weighted = (float(each(x, y).statistic) for each in (kendalltau, spearmanr, weightedtau))
    else:
        pairs = Concordance(x, y)
        x, y = mid_ranks(x), mid_ranks(y)
        tau, spearman, weighted = pairs.tau(), ratio(x @ y, x @ x, y @ y), pairs.weighted_tau()
    return {'tau': tau, 'spearman': spearman, 'weighted_tau': weighted}


def kendall(x: np.ndarray, y: np.ndarray, exact: bool) -> float:
    """Kendall's tau-b of integer ranks: by scipy, or by our own faster way."""
    return float(kendalltau(x, y).statistic) if exact else Concordance(x, y).tau()
