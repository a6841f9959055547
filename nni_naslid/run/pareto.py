"""Which of several networks are best where more than one thing counts. Without torch.

Sorting and hypervolumes are those of `moocore <https://multi-objective.github.io/moocore/python/>`__.
"""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np

__all__ = ['hypervolume', 'order_by_rank', 'pareto_ranks']


def pareto_ranks(points: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """In which front each point is: 0 if no other one beats it, 1 if only those of rank 0 do, and so on.

    A point beats another one that is not better in anything, and worse in something.

    Parameters
    ----------
    points
        Of shape ``[N, M]``: of each network all that counts, less is better.

    Returns
    -------
    Integers of shape ``[N]``. Points with a number that is not finite are a front of their own, the last one.

    Examples
    --------
    >>> pareto_ranks([[1, 3], [2, 2], [2, 3], [3, 3], [2, float('nan')]]).tolist()
    [0, 0, 1, 2, 3]
    """
    points = np.asarray(points, float)
    finite = np.isfinite(points).all(axis=1)
    ranks = np.zeros(len(points), int)
    if finite.any():
        ranks[finite] = moocore.pareto_rank(points[finite])
        ranks[~finite] = ranks.max() + 1
    return ranks


def order_by_rank(points: Sequence[Sequence[float]] | np.ndarray) -> list[int]:
    """Points, the best first, as NSGA-II prefers them: by rank, and in a front by how far they are from others.

    So few of a front are spread over it. The first is the best one in what comes first.

    Parameters
    ----------
    points
        As in :func:`pareto_ranks`.

    Returns
    -------
    Their numbers.

    Examples
    --------
    >>> order_by_rank([[3, 3], [0, 4], [0.1, 3.9], [2, 2], [4, 0]])
    [1, 4, 3, 2, 0]
    """
    points = np.asarray(points, float)
    ranks, distances = pareto_ranks(points), np.zeros(len(points))
    for rank in np.unique(ranks):
        front = ranks == rank
        if np.isfinite(points[front]).all():
            distances[front] = _crowding_distances(points[front])
    return np.lexsort((points[:, 0], -distances, ranks)).tolist()


def _crowding_distances(front: np.ndarray) -> np.ndarray:
    """How far the neighbours of each point are from each other (Deb et al. 2002, section III-B); infinite at ends."""
    distances = np.zeros(len(front))
    for values in front.T:
        order = np.argsort(values, kind='stable')
        if spread := values[order[-1]] - values[order[0]]:
            distances[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / spread
        distances[order[[0, -1]]] = np.inf
    return distances


def hypervolume(points: Sequence[Sequence[float]] | np.ndarray, reference: Sequence[float]) -> float:
    """How much of the space below a reference is beaten by some point: an area, if two things count.

    Parameters
    ----------
    points
        As in :func:`pareto_ranks`. Those that are not below the reference in everything add nothing.
    reference
        Of shape ``[M]``.

    Examples
    --------
    >>> hypervolume([[1, 2], [2, 1], [2, 2], [0, 5]], reference=[3, 3])
    3.0
    """
    points, reference = np.asarray(points, float), np.asarray(reference, float)
    inside = points[np.isfinite(points).all(axis=1) & (points < reference).all(axis=1)] if len(points) else points
    return float(moocore.hypervolume(inside, ref=reference)) if len(inside) else 0.0
