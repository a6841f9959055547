"""All figures of a ranking, beside those of what costs nothing to know, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nni_naslid.analysis.bootstrap import Interval, intervals, resample
from nni_naslid.analysis.concordance import mid_ranks
from nni_naslid.analysis.measures import all_figures, partial_correlation

import numpy as np

__all__ = ['RankingReport', 'full_report']

ROW, ALL = 'estimates', 'all costs'  # no cost may have these names


@dataclass(frozen=True)
class RankingReport:
    """All figures of a ranking, beside those of the costs. Printed it is a table.

    Parameters
    ----------
    figures
        ``figures[row][figure]``, with a row ``'estimates'`` and one for each cost. The figures are

        ``tau``, ``spearman``
            Kendall's tau-b and Spearman's correlation.
        ``weighted_tau``
            Kendall's tau with additive hyperbolic weights: the exchange of two architectures counts the more, the
            better they are ranked. The mean of the weights by either ranking; see ``scipy.stats.weightedtau``.
        ``tau_top1%``, ``tau_top5%``, ``tau_top10%``
            Kendall's tau-b inside the top by truth, of at least two.
        ``P@1%``, ``P@5%``, ``P@10%``
            Which part of the top by estimates belongs to the top by truth:
            :func:`~nni_naslid.analysis.measures.precision_at_top`.
        ``N@1%``, ``N@5%``, ``N@10%``, ``T1R``, ``T10R``
            The best true rank in the top by estimates, of a part or a number of the architectures:
            :func:`~nni_naslid.analysis.measures.top_n_rank`.
        ``regret@1``, ``regret@10``
            How far the best of the 1 or 10 architectures with the best estimates is from the best of all, in the unit
            of the truth: :func:`~nni_naslid.analysis.measures.top_regret`.
        ``best``, ``picked``
            The best true accuracy, and that of the architecture with the best estimate. Without an interval: that of a
            maximum would be wrong.
        ``tau_within``, ``tau_across``
            Where leaves are given, tau-b over the pairs within a leaf, and over those of different leaves.

        They are NaN where they are undefined: a correlation where either side is constant.
    differences
        ``differences[cost][figure]``, the figure of the estimates minus that of the cost, compared half by half.
    partial
        ``partial[cost]``, Spearman's correlation of estimates and truth given a cost, or given all of them, by the name
        ``'all costs'``, where there are several: what the estimates know beyond. See
        :func:`~nni_naslid.analysis.measures.partial_correlation`.
    n_architectures, n_bootstrap
        How many were ranked, and on how many resamples the intervals stand; without any their ends are NaN.
    """

    figures: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Interval]]
    partial: dict[str, Interval]
    n_architectures: int
    n_bootstrap: int

    def __str__(self) -> str:
        columns = {**self.figures, **{f'minus {cost}': row for cost, row in self.differences.items()}}
        lines = [['', *columns]]
        lines += [[name, *(str(row[name]) for row in columns.values())] for name in self.figures['estimates']]
        lines += [[f'spearman given {cost}', str(value)] for cost, value in self.partial.items()]
        widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(1 + len(columns))]
        table = ['  '.join(map(str.ljust, line, widths)).rstrip() for line in lines]
        note = f', with 95 % intervals from {self.n_bootstrap} random halves of them' if self.n_bootstrap else ''
        return '\n'.join([f'{self.n_architectures:,} architectures{note}', *table])


def full_report(
    estimates: np.ndarray,
    truth: np.ndarray,
    costs: Mapping[str, np.ndarray],
    leaves: np.ndarray | None,
    n_bootstrap: int,
    seed: int,
) -> RankingReport:
    """The report of checked arguments: see :func:`~nni_naslid.analysis.ranking.ranking_report`.

    Parameters
    ----------
    estimates, costs
        Ranks from 0, integers of shape ``[A]``.
    truth
        True accuracies, of shape ``[A]``.
    leaves
        Integers from 0, of shape ``[A]``, or none.
    n_bootstrap, seed
        See :func:`~nni_naslid.analysis.bootstrap.resample`.
    """
    n = len(truth)
    rankings = {ROW: estimates, **costs}
    true_ranks = np.unique(truth, return_inverse=True)[1]
    givens = {name: [2 + i] for i, name in enumerate(costs)}
    if len(costs) > 1:
        givens[ALL] = [2 + i for i in range(len(costs))]

    def measure(chosen: np.ndarray) -> dict[tuple[str | None, str], float]:
        measured = {}
        for row, ranks in rankings.items():
            own_leaves = None if leaves is None else leaves[chosen]
            row_figures = all_figures(ranks[chosen], truth[chosen], own_leaves, n)
            measured.update({(row, name): value for name, value in row_figures.items()})
        if costs:
            centred = np.stack([mid_ranks(each[chosen]) for each in (estimates, true_ranks, *costs.values())])
            measured.update({(None, name): partial_correlation(centred, given) for name, given in givens.items()})
        return measured

    measured = measure(np.arange(n))
    names, values = list(measured), np.array(list(measured.values()))
    resampled = resample(lambda half: list(measure(half).values()), n, n_bootstrap, seed).reshape(-1, len(names))
    place = {name: i for i, name in enumerate(names)}
    for (_, figure), i in place.items():
        if figure in ('best', 'picked'):
            resampled[:, i] = np.nan
        if figure == 'weighted_tau':  # it changes with the number of architectures, so only the spread is taken
            defined = resampled[~np.isnan(resampled[:, i]), i]
            resampled[:, i] += values[i] - np.sum(defined) / max(1, len(defined))
    figures = {row: {} for row in rankings}
    partial = {}
    for (row, name), found in zip(names, intervals(values, resampled), strict=True):
        (partial if row is None else figures[row])[name] = found
    differences = {}
    for cost in costs:
        mine, other = ([place[row, name] for name in figures[ROW]] for row in (ROW, cost))
        found = intervals(values[mine] - values[other], resampled[:, mine] - resampled[:, other])
        differences[cost] = dict(zip(figures[ROW], found, strict=True))
    return RankingReport(figures, differences, partial, n, n_bootstrap)
