"""Local intrinsic dimension (LID) of a batch of points."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['lid_mle']


def lid_mle(features: Tensor, n_neighbors: int = 20) -> Tensor:
    r"""Local intrinsic dimension of every point, by the unbiased maximum-likelihood estimator.

    .. math:: \mathrm{LID}(x_i) = (k - 2) \Big/ \sum_{j=1}^{k-1} \log \frac{r_{ik}}{r_{ij}}

    where :math:`r_{ij}` is the Euclidean distance from :math:`x_i` to its :math:`j`-th nearest neighbour in the batch,
    itself excluded. See `Levina & Bickel, 2004, equation 8
    <https://papers.nips.cc/paper/2004/hash/74934548253bcab8490ebd74afed7031-Abstract.html>`__, whose :math:`k - 1`
    becomes :math:`k - 2` for an unbiased estimate: for locally uniform data of dimension :math:`d` the sum is
    Gamma-distributed with shape :math:`k - 1` and rate :math:`d`.

    Parameters
    ----------
    features
        Points, of shape ``[..., N, D]``; leading dimensions are independent batches. Any floating dtype.
    n_neighbors
        :math:`k`, the number of neighbours; ``3 <= n_neighbors < N``.

    Returns
    -------
    LID of each point, of shape ``[..., N]``, float32 (float64 for float64 input), in dimensions (no unit).
    Neighbours that coincide with the point say nothing about its dimension and are left out of ``k`` and of the sum;
    a point with less than three others among its neighbours has LID 0. A point whose neighbours are all at the same
    distance has LID infinity, also where only rounding tells the distances apart (above about 16,000 in float32).

    Notes
    -----
    NAS-LID (`arXiv 2211.12759 <https://arxiv.org/abs/2211.12759>`__) uses ``k`` in the numerator, which overestimates
    by ``k / (k - 2)``.

    Raises
    ------
    TypeError
        If ``features`` is not floating point.
    ValueError
        If ``features`` has less than two dimensions or no feature, holds a non-finite number, or ``n_neighbors`` is
        not in ``[3, N)``.

    Examples
    --------
    >>> plane = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) @ torch.eye(2, 8)
    >>> round(lid_mle(plane).mean().item(), 1)
    1.9
    """
    if not features.is_floating_point():
        raise TypeError(f'features must be floating point, but got {features.dtype}.')
    if features.ndim < 2 or features.shape[-1] == 0:
        raise ValueError(f'features must have shape [..., N, D] with D > 0, but got {tuple(features.shape)}.')
    n_points = features.shape[-2]
    if not 3 <= n_neighbors < n_points:
        raise ValueError(f'n_neighbors must be in [3, N) with N = {n_points} points, but got {n_neighbors}.')
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    nearest = _nearest_squared(features, n_neighbors)  # [..., N, k]
    apart = nearest > 0
    log_ratios = torch.where(apart, torch.log(nearest[..., -1:] / nearest), 0).sum(-1) / 2  # of distances, not squares
    numerator = apart.sum(-1) - 2
    tied = log_ratios <= numerator * _RESOLUTION * torch.finfo(dtype).eps
    return torch.where(numerator > 0, torch.where(tied, torch.inf, numerator / log_ratios), 0).to(dtype)


_RESOLUTION = 512  # rounding errors up to which two numbers count as equal


def _nearest_squared(features: Tensor, n_neighbors: int) -> Tensor:
    """Squared distances to the nearest neighbours, ``[..., N, k]``, ascending, float64, up to a common factor.

    By the Gram matrix in float64, in which features far from the origin or close together do not cancel as they do
    in float32; much faster than differences of all pairs.
    """
    largest = torch.maximum(features.amax((-2, -1), keepdim=True), -features.amin((-2, -1), keepdim=True))
    if not largest.isfinite().all():
        raise ValueError('features must be finite, but hold NaN or infinity.')
    if features.dtype == torch.float64:  # LID has no unit; squares of others neither over- nor underflow in float64
        features = features / largest.clamp_min(torch.finfo(torch.float64).tiny)
    n_points, n_features = features.shape[-2:]
    gram = features.new_zeros((*features.shape[:-1], n_points), dtype=torch.float64)  # [..., N, N]
    with torch.autocast(features.device.type, enabled=False):
        for part in features.split(max(1, 2**21 // features[..., 0].numel()), dim=-1):  # 16 MiB, not a copy of all
            part = part.double()
            gram += part @ part.mT
    norms = gram.diagonal(dim1=-2, dim2=-1)
    scale = norms.unsqueeze(-1) + norms.unsqueeze(-2)
    squared = torch.add(scale, gram, alpha=-2)
    squared.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)  # self is excluded by its index
    nearest, index = squared.topk(n_neighbors, largest=False)
    # Where even float64 has cancelled the points are equal or next to it: the difference tells.
    limit = scale.gather(-1, index) * _RESOLUTION * torch.finfo(torch.float64).eps
    cancelled = (nearest < limit).nonzero()  # [pairs, batch dimensions + 2]
    for part in cancelled.split(max(1, 2**21 // n_features)):
        *batch, point, rank = part.unbind(1)
        neighbor = index[(*batch, point, rank)]
        difference = features[(*batch, point)].double() - features[(*batch, neighbor)].double()
        nearest[(*batch, point, rank)] = difference.square().sum(-1)
    return nearest.sort(-1).values if len(cancelled) else nearest
