"""How well estimates rank the truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import kendalltau, spearmanr

__all__ = ['format_table', 'ranking_report']


def ranking_report(estimates: ArrayLike, truth: ArrayLike, top: float = 0.1) -> dict[str, float]:
    """How well estimates rank architectures.

    Parameters
    ----------
    estimates
        What a method says of each architecture, of shape ``[A]``; larger is better.
    truth
        True accuracies in the same order.
    top
        Which part of the architectures, by truth, is the top.

    Returns
    -------
    ``tau`` (Kendall's tau-b), ``spearman``, ``tau_top`` (tau-b among the top; architectures tied with the last one of
    the top belong to it), ``picked`` (true accuracy of the architecture with the best estimate; the mean of those
    that tie), ``best`` (the best true accuracy). Correlations are NaN where either side is constant.

    Raises
    ------
    ValueError
        If the two differ in length, have fewer than two entries, or hold a NaN.
    """
    estimates, truth = np.asarray(estimates, float), np.asarray(truth, float)
    if estimates.ndim != 1 or estimates.shape != truth.shape or len(truth) < 2:
        raise ValueError(
            f'estimates and truth must be two lists of one length, but got {estimates.shape}, {truth.shape}.'
        )
    if np.isnan(estimates).any() or np.isnan(truth).any():
        raise ValueError(f'{np.isnan(estimates).sum()} estimates and {np.isnan(truth).sum()} true values are NaN.')
    n_top = max(2, round(top * len(truth)))
    is_top = truth >= np.sort(truth)[-n_top]
    return {
        'tau': float(kendalltau(estimates, truth).statistic),
        'spearman': float(spearmanr(estimates, truth).statistic),
        'tau_top': float(kendalltau(estimates[is_top], truth[is_top]).statistic),
        'picked': float(truth[estimates == estimates.max()].mean()),
        'best': float(truth.max()),
    }


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A plain-text table, one row per method, from :func:`ranking_report` results with the same keys."""
    keys = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    lines = [' '.join([' ' * width, *(f'{key:>9}' for key in keys)])]
    for name, row in rows.items():
        lines.append(' '.join([f'{name:<{width}}', *(f'{row[key]:9.3f}' for key in keys)]))
    return '\n'.join(lines)
