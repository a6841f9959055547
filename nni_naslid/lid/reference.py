"""What the fast code has to agree with: definitions written down plainly, for tests and benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['lid_mle_published', 'nearest_neighbors_reference']


def nearest_neighbors_reference(features: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor]:
    """Squared distances to the nearest neighbours and their indices, from the differences of all pairs, in float64.

    Parameters
    ----------
    features
        Points ``[..., N, D]``, of any floating dtype.
    n_neighbors
        Number of neighbours; a point is not its own.

    Returns
    -------
    tuple
        Squared distances, ascending, float64, and indices, both ``[..., N, k]``.
    """
    if features.ndim > 2:
        squared, index = zip(*(nearest_neighbors_reference(x, n_neighbors) for x in features), strict=True)
        return torch.stack(squared), torch.stack(index)
    points = features.detach().double()
    distances = points.new_empty((len(points), len(points)))
    for i, point in enumerate(points):
        distances[i] = (points - point).square_().sum(-1)
    distances.fill_diagonal_(torch.inf)
    squared, index = distances.sort(dim=-1, stable=True)
    return squared[:, :n_neighbors], index[:, :n_neighbors]


def lid_mle_published(features: Tensor, n_neighbors: int = 20) -> Tensor:
    r"""LID of every point as in the published code of NAS-LID, faults included; for comparisons only.

    :math:`-k / \sum_{j=1}^{k} \log (r_{ij} / r_{ik})`, with distances from a Gram matrix, and the first of the sorted
    distances taken for the point itself.

    Parameters
    ----------
    features
        Points ``[N, D]``.
    n_neighbors
        Number of neighbours.

    Returns
    -------
    LID of each point, ``[N]``; 0 or NaN where a neighbour coincides with the point.
    """
    squares = features.square().sum(1, keepdim=True)
    distances = (squares + squares.T - 2 * features @ features.T).clamp_min(0).sqrt()
    nearest = distances.sort(1).values[:, 1 : n_neighbors + 1]
    return torch.stack([-n_neighbors / torch.log(row / row[-1]).sum() for row in nearest])
