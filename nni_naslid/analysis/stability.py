"""How stable rankings are: over supernets with other seeds, over the epochs of one, over its last batches.

An instance is a ranking of the same architectures by one supernet at one time. The intervals of a report say nothing of
what changes from one instance to the next; this does. After `Zhang et al. <https://arxiv.org/abs/2001.01431>`__.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from itertools import combinations

from nni_naslid.analysis.bootstrap import Interval, intervals, resample
from nni_naslid.analysis.checks import checked_ranks, checked_truth
from nni_naslid.analysis.measures import all_figures, kendall

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

__all__ = ['constant_instances', 'instance_table', 's_tau']

_logger = logging.getLogger(__name__)


def constant_instances(instances: Mapping[Hashable, ArrayLike]) -> list[Hashable]:
    """Names of the instances whose estimates are all equal, which have no tau with any other.

    Examples
    --------
    >>> constant_instances({'epoch 1': [0.1, 0.1, 0.1], 'epoch 2': [0.2, 0.1, 0.3]})
    ['epoch 1']
    """
    return [name for name, each in instances.items() if (np.asarray(each) == np.asarray(each)[0]).all()]


def s_tau(instances: Mapping[Hashable, ArrayLike], n_bootstrap: int = 0, seed: int = 0) -> Interval:
    r"""S-Tau, the mean of Kendall's tau-b over the pairs of instances.

    .. math:: \frac{2}{N (N - 1)} \sum_{1 \le i < j \le N} \tau(R_i, R_j)

    See `Zhang et al. <https://arxiv.org/abs/2001.01431>`__, equation 2. Pairs with an instance that is constant have no
    tau and are left out, which a warning says; NaN if there are no others.

    Parameters
    ----------
    instances
        Estimates of the same architectures, each of shape ``[A]``, by name: of a seed, an epoch, a batch.
    n_bootstrap, seed
        For its interval, over architectures: see :func:`~nni_naslid.analysis.ranking.ranking_report`.

    Raises
    ------
    TypeError
        If an instance does not consist of numbers.
    ValueError
        If there are less than two instances, or they differ in length or index, or hold a NaN.

    Examples
    --------
    >>> print(s_tau({'seed 0': [1, 2, 3], 'seed 1': [2, 1, 3], 'seed 2': [1, 2, 3]}))
    0.556
    """
    if len(instances) < 2:
        raise ValueError(f'instances must be at least two rankings, but there are {len(instances)}.')
    first_name, first = next(iter(instances.items()))
    where = f'instances[{first_name!r}]'
    rankings = [checked_ranks(f'instances[{name!r}]', each, first, where) for name, each in instances.items()]
    if constant := constant_instances(instances):
        _logger.warning('S-Tau is of the other instances: all estimates are equal in %s.', constant)

    def measure(chosen: np.ndarray) -> list[float]:
        exact = len(chosen) == len(rankings[0])
        taus = np.array([kendall(x[chosen], y[chosen], exact) for x, y in combinations(rankings, 2)])
        defined = taus[~np.isnan(taus)]
        return [defined.mean() if len(defined) else np.nan]

    n = len(rankings[0])
    return intervals(np.array(measure(np.arange(n))), resample(measure, n, n_bootstrap, seed))[0]


def instance_table(instances: Mapping[Hashable, ArrayLike], truth: ArrayLike | None = None) -> pd.DataFrame:
    """How well each instance ranks the truth, and how much it agrees with the one before.

    Over the epochs of a training it says whether the ranking still gets better, and whether it has settled. The mean
    and the standard deviation of its last ``k`` rows are GT-Tau-Mean-k and GT-Tau-Std-k of the source.

    Parameters
    ----------
    instances
        As for :func:`s_tau`, in the order of the training.
    truth
        True accuracies, of shape ``[A]``. Without them there is ``tau_previous`` only.

    Returns
    -------
    One row for each instance. Columns: ``tau`` (GT-Tau, Kendall's tau-b with the truth), ``tau_previous`` (tau-b with
    the instance before; NaN in the first row), ``P@5%``, ``T1R``, ``T10R`` and ``regret@1`` (see
    :class:`~nni_naslid.analysis.ranking_report.RankingReport`). An instance that is constant has no tau: it is NaN in
    its row, and ``tau_previous`` in the next one, too.

    Raises
    ------
    TypeError, ValueError
        As :func:`~nni_naslid.analysis.ranking.ranking_report`.

    Examples
    --------
    >>> table = instance_table({'epoch 1': [2, 1, 3], 'epoch 2': [1, 2, 3]}, truth=[90.0, 91, 93])
    >>> print(table[['tau', 'tau_previous']].round(3))
               tau  tau_previous
    epoch 1  0.333           NaN
    epoch 2  1.000         0.333
    """
    if not instances:
        raise ValueError('instances must be at least one ranking, but there is none.')
    accuracies = None if truth is None else checked_truth(truth)
    first_name, first = next(iter(instances.items()))
    other, where = (first, f'instances[{first_name!r}]') if truth is None else (truth, 'truth')
    rankings = {name: checked_ranks(f'instances[{name!r}]', each, other, where) for name, each in instances.items()}
    rows, previous = {}, None
    for name, ranks in rankings.items():
        rows[name] = {'tau_previous': np.nan if previous is None else kendall(ranks, previous, exact=True)}
        if truth is not None:
            figures = all_figures(ranks, accuracies, None, len(accuracies))
            rows[name] = {'tau': figures['tau'], **rows[name]}
            rows[name].update({figure: figures[figure] for figure in ('P@5%', 'T1R', 'T10R', 'regret@1')})
        previous = ranks
    return pd.DataFrame.from_dict(rows, orient='index')
