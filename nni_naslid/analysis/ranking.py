"""How well estimates rank the truth."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from numbers import Integral, Real
from typing import overload

from nni_naslid.analysis.bootstrap import N_BOOTSTRAP, Interval
from nni_naslid.analysis.checks import checked_leaves, checked_ranks, checked_truth
from nni_naslid.analysis.ranking_report import ALL, ROW, RankingReport, full_report
from nni_naslid.run.text import rounded

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import kendalltau, spearmanr

__all__ = ['compare_rankings', 'format_table', 'ranking_report']


@overload
def ranking_report(estimates: ArrayLike, truth: ArrayLike, top: float = 0.1) -> dict[str, float]: ...


@overload
def ranking_report(
    estimates: ArrayLike,
    truth: ArrayLike,
    *,
    costs: Mapping[str, ArrayLike],
    leaves: Sequence[Hashable] | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> RankingReport: ...


def ranking_report(estimates, truth, top=0.1, *, costs=None, leaves=None, n_bootstrap=N_BOOTSTRAP, seed=0):
    """How well estimates rank architectures: five figures, or with ``costs`` all of them, with intervals.

    The intervals say how far the figures may be off because other architectures might have been ranked, not because
    another training run or another seed might have been (for that, see :mod:`nni_naslid.analysis.stability`): see
    :func:`~nni_naslid.analysis.bootstrap.resample`.

    Parameters
    ----------
    estimates
        What a method says of each architecture, of shape ``[A]``; larger is better. Infinite ones count as the
        largest or the smallest.
    truth
        True accuracies in the same order. Where both are pandas Series it is their index, not their order, that says
        what belongs together.
    top
        Which part of the architectures, by truth, is the top of ``tau_top``; in ``(0, 1]``. At least two are. The
        report with ``costs`` has its own parts.
    costs
        What costs nothing to know of each architecture, by name: parameters, FLOPs (see
        :mod:`nni_naslid.analysis.baselines`), a zero-cost score; each like the estimates. They stand beside the
        estimates as rankings of their own, larger first; ``{}`` for none.
    leaves
        The leaf of each architecture: anything that can be compared, like its name.
    n_bootstrap
        How many resamples the intervals stand on; 0 for no intervals.
    seed
        Where their randomness comes from.

    Returns
    -------
    Without ``costs``: ``tau`` (Kendall's tau-b), ``spearman``, ``tau_top`` (tau-b among the top; architectures tied
    with the last one of the top belong to it), ``picked`` (true accuracy of the architecture with the best estimate;
    the mean of those that tie), ``best`` (the best true accuracy). Correlations are NaN where either side is constant.

    With ``costs``: a :class:`~nni_naslid.analysis.ranking_report.RankingReport`.

    Raises
    ------
    TypeError
        If estimates, truth or a cost does not consist of numbers.
    ValueError
        If they differ in length or index, have fewer than two entries, hold a NaN, or the truth an infinity; if ``top``
        is out of its range, ``leaves`` has another length or comes without costs, or ``n_bootstrap`` is negative.

    Examples
    --------
    >>> report = ranking_report([3, 1, 2, 4], [92.0, 90, 93, 94], costs={'parameters': [1, 2, 3, 4]}, n_bootstrap=0)
    >>> print(f'{report.figures["estimates"]["tau"].value:.2f} {report.differences["parameters"]["tau"].value:.2f}')
    0.67 0.00
    """
    if not isinstance(top, Real) or not 0 < top <= 1:
        raise ValueError(f'top must be a part of the architectures, above 0 and up to 1, but got {top!r}.')
    ranks, accuracies = checked_ranks('estimates', estimates, truth), checked_truth(truth)
    if costs is not None:
        if not isinstance(costs, Mapping):
            raise TypeError(f'costs must be a dict of name to values, but got a {type(costs).__name__}.')
        if reserved := {ROW, ALL} & set(costs):
            raise ValueError(f'A cost must have another name than {reserved.pop()!r}, which the report itself uses.')
        if not isinstance(n_bootstrap, Integral) or n_bootstrap < 0:
            raise ValueError(f'n_bootstrap must be a number of resamples, at least 0, but got {n_bootstrap!r}.')
        costs = {name: checked_ranks(f'costs[{name!r}]', values, truth) for name, values in costs.items()}
        leaves = None if leaves is None else checked_leaves(leaves, truth)
        return full_report(ranks, accuracies, costs, leaves, int(n_bootstrap), seed)
    if leaves is not None:
        raise ValueError('leaves belong to the report with costs; give costs={} if there are none.')
    n_top = max(2, round(top * len(accuracies)))
    is_top = accuracies >= np.sort(accuracies)[-n_top]
    return {
        'tau': float(kendalltau(ranks, accuracies).statistic),
        'spearman': float(spearmanr(ranks, accuracies).statistic),
        'tau_top': float(kendalltau(ranks[is_top], accuracies[is_top]).statistic),
        'picked': float(accuracies[ranks == ranks.max()].mean()),
        'best': float(accuracies.max()),
    }


def compare_rankings(
    estimates: ArrayLike,
    others: ArrayLike,
    truth: ArrayLike,
    *,
    leaves: Sequence[Hashable] | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, Interval]:
    """By how much estimates rank the same architectures better than others do, as with and without calibration or
    fine-tuning, or by two methods: the difference of each figure, its interval from both in the same halves.

    Parameters and errors are those of :func:`ranking_report`, with ``others`` like ``estimates``.

    Returns
    -------
    The figures of a :class:`RankingReport`: of the estimates minus of the others. Positive is better, except for ranks
    and regrets.

    Examples
    --------
    >>> gain = compare_rankings([1, 2, 3, 4], [1, 3, 2, 4], [1, 2, 3, 4], n_bootstrap=0)
    >>> print(f'{gain["tau"].value:.2f}')
    0.33
    """
    costs = {'others': checked_ranks('others', others, truth)}
    report = ranking_report(estimates, truth, costs=costs, leaves=leaves, n_bootstrap=n_bootstrap, seed=seed)
    return report.differences['others']


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A plain-text table, one row per method, from :func:`ranking_report` results with the same keys."""
    keys = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    lines = [' '.join([' ' * width, *(f'{key:>9}' for key in keys)])]
    for name, row in rows.items():
        lines.append(' '.join([f'{name:<{width}}', *(f'{rounded(row[key]):>9}' for key in keys)]))
    return '\n'.join(lines)
