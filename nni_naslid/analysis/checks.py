"""The arguments of reports: numbers or a leaf for each architecture, in one order."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

__all__ = ['checked_leaves', 'checked_ranks', 'checked_truth']


def checked_truth(truth: ArrayLike) -> np.ndarray:
    """True accuracies, of shape ``[A]``."""
    numbers = _numbers('truth', truth)
    if numbers.ndim == 1 and np.isinf(numbers).any():
        raise ValueError(f'{np.isinf(numbers).sum()} true values are infinite.')
    return numbers


def checked_ranks(name: str, values: ArrayLike, truth: ArrayLike, truth_name: str = 'truth') -> np.ndarray:
    """Ranks from 0 of the values, tied ones equal, of shape ``[A]``, in the order of the truth.

    Ranks, because scipy takes opposite infinities for NaN.
    """
    if isinstance(values, pd.Series) and isinstance(truth, pd.Series):
        values = _in_order_of(truth, truth_name, values, name)
    numbers, others = _numbers(name, values), _numbers(truth_name, truth)
    if numbers.ndim != 1 or numbers.shape != others.shape or len(numbers) < 2:
        raise ValueError(
            f'{name} and {truth_name} must be two lists of one length, but got {numbers.shape}, {others.shape}.'
        )
    if np.isnan(numbers).any() or np.isnan(others).any():
        others_name = 'true values' if truth_name == 'truth' else truth_name
        raise ValueError(f'{np.isnan(numbers).sum()} {name} and {np.isnan(others).sum()} {others_name} are NaN.')
    return np.unique(numbers, return_inverse=True)[1]


def checked_leaves(leaves: Sequence[Hashable], truth: ArrayLike) -> np.ndarray:
    """The leaf of each architecture as an integer from 0, of shape ``[A]``, in the order of the truth."""
    if isinstance(leaves, pd.Series) and isinstance(truth, pd.Series):
        leaves = _in_order_of(truth, 'truth', leaves, 'leaves')
    if len(leaves) != len(truth):
        raise ValueError(f'leaves must be one for each of {len(truth)} architectures, but got {len(leaves)}.')
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(leaf, len(numbers)) for leaf in leaves])


def _in_order_of(truth: pd.Series, truth_name: str, estimates: pd.Series, estimates_name: str) -> pd.Series:
    """Estimates in the order of the truth."""
    if estimates.index.equals(truth.index):
        return estimates
    for name, index in ((estimates_name, estimates.index), (truth_name, truth.index)):
        if index.has_duplicates:
            raise ValueError(f'The index of {name} has {index[index.duplicated()][0]!r} more than once.')
    other = estimates.index.symmetric_difference(truth.index, sort=False)
    if len(other):
        raise ValueError(
            f'{estimates_name} and {truth_name} must have the same index, but {len(other)} entries are in one of them '
            f'only, such as {other[0]!r}; {truth_name}[{estimates_name}.index] has those of {estimates_name}.'
        )
    return estimates.reindex(truth.index)


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    try:
        if np.iscomplexobj(values):
            raise TypeError('complex')
        return np.asarray(values, float)
    except (TypeError, ValueError, RuntimeError) as error:  # the last one from tensors with a gradient
        raise TypeError(f'{name} must be a list of numbers, but got a {type(values).__name__} ({error}).') from error
