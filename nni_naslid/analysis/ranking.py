"""How well estimates rank the truth."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import kendalltau, spearmanr

__all__ = ['format_table', 'ranking_report']


def ranking_report(estimates: ArrayLike, truth: ArrayLike, top: float = 0.1) -> dict[str, float]:
    """How well estimates rank architectures.

    Parameters
    ----------
    estimates
        What a method says of each architecture, of shape ``[A]``; larger is better. Infinite ones count as the
        largest or the smallest.
    truth
        True accuracies in the same order. Where both are pandas Series it is their index, not their order, that says
        what belongs together.
    top
        Which part of the architectures, by truth, is the top; in ``(0, 1]``. At least two are.

    Returns
    -------
    ``tau`` (Kendall's tau-b), ``spearman``, ``tau_top`` (tau-b among the top; architectures tied with the last one of
    the top belong to it), ``picked`` (true accuracy of the architecture with the best estimate; the mean of those
    that tie), ``best`` (the best true accuracy). Correlations are NaN where either side is constant.

    Raises
    ------
    TypeError
        If either does not consist of numbers.
    ValueError
        If the two differ in length or index, have fewer than two entries, hold a NaN, or the truth an infinity; or if
        ``top`` is out of its range.
    """
    if not isinstance(top, Real) or not 0 < top <= 1:
        raise ValueError(f'top must be a part of the architectures, above 0 and up to 1, but got {top!r}.')
    if isinstance(estimates, pd.Series) and isinstance(truth, pd.Series):
        estimates = _in_order_of(truth, estimates)
    estimates, truth = _numbers('estimates', estimates), _numbers('truth', truth)
    if estimates.ndim != 1 or estimates.shape != truth.shape or len(truth) < 2:
        raise ValueError(
            f'estimates and truth must be two lists of one length, but got {estimates.shape}, {truth.shape}.'
        )
    if np.isnan(estimates).any() or np.isnan(truth).any():
        raise ValueError(f'{np.isnan(estimates).sum()} estimates and {np.isnan(truth).sum()} true values are NaN.')
    if np.isinf(truth).any():
        raise ValueError(f'{np.isinf(truth).sum()} true values are infinite.')
    estimates = np.unique(estimates, return_inverse=True)[1]  # ranks, as scipy takes opposite infinities for NaN
    n_top = max(2, round(top * len(truth)))
    is_top = truth >= np.sort(truth)[-n_top]
    return {
        'tau': float(kendalltau(estimates, truth).statistic),
        'spearman': float(spearmanr(estimates, truth).statistic),
        'tau_top': float(kendalltau(estimates[is_top], truth[is_top]).statistic),
        'picked': float(truth[estimates == estimates.max()].mean()),
        'best': float(truth.max()),
    }


def _in_order_of(truth: pd.Series, estimates: pd.Series) -> pd.Series:
    """Estimates in the order of the truth."""
    if estimates.index.equals(truth.index):
        return estimates
    for name, index in (('estimates', estimates.index), ('truth', truth.index)):
        if index.has_duplicates:
            raise ValueError(f'The index of {name} has {index[index.duplicated()][0]!r} more than once.')
    other = estimates.index.symmetric_difference(truth.index, sort=False)
    if len(other):
        raise ValueError(
            f'estimates and truth must have the same index, but {len(other)} entries are in one of them only, such as '
            f'{other[0]!r}.'
        )
    return estimates.reindex(truth.index)


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    try:
        if np.iscomplexobj(values):
            raise TypeError('complex')
        return np.asarray(values, float)
    except (TypeError, ValueError, RuntimeError) as error:  # the last one from tensors with a gradient
        raise TypeError(f'{name} must be a list of numbers, but got a {type(values).__name__} ({error}).') from error


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A plain-text table, one row per method, from :func:`ranking_report` results with the same keys."""
    keys = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    lines = [' '.join([' ' * width, *(f'{key:>9}' for key in keys)])]
    for name, row in rows.items():
        lines.append(' '.join([f'{name:<{width}}', *(f'{row[key]:9.3f}' for key in keys)]))
    return '\n'.join(lines)
