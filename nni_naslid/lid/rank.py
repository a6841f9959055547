"""How many directions a batch of points takes up: a relative of its intrinsic dimension that looks at all at once."""

from __future__ import annotations

from nni_naslid.lid.estimators import check_tensor
from nni_naslid.lid.op import check_points
from nni_naslid.lid.plain import name_points, wide_dtype

import torch
from torch import Tensor

__all__ = ['effective_rank']


def effective_rank(features: Tensor, *, non_finite: str = 'raise') -> Tensor:
    r"""Effective rank of the centred Gram matrix of a batch of points: the exponential of the entropy of its spectrum.

    .. math:: \exp\Big(-\sum_i p_i \log p_i\Big), \qquad p_i = \lambda_i \Big/ \sum_j \lambda_j

    where :math:`\lambda_i` are the eigenvalues of the Gram matrix of the points less their mean, so that :math:`p_i` is
    the share of the variance along principal axis :math:`i`. See `Roy & Vetterli, 2007
    <https://ieeexplore.ieee.org/document/7098875>`__, who define it of any matrix.
    Points that vary alike in :math:`m` orthogonal directions, and in no other, have :math:`m`. It is no local
    dimension: a curve that bends through many directions has many.

    Parameters
    ----------
    features
        Points, of shape ``[..., N, D]``; leading dimensions are independent batches. Any floating dtype.
    non_finite
        What a point with NaN or infinity does: ``'raise'`` an error, or ``'nan'``: it is left out, as by
        :func:`~nni_naslid.lid.estimators.two_nn`.

    Returns
    -------
    Effective rank of each batch, of shape ``[...]``, between 1 and ``min(N - 1, D)``, float32 (float64 for float64
    input), without a gradient; computed in float64. It is 0 where all points coincide, or none is left. Neither scale,
    rotation nor translation matters.

    Raises
    ------
    TypeError, ValueError
        As :func:`~nni_naslid.lid.estimators.lid_mle`.

    Examples
    --------
    >>> plane = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) @ torch.eye(2, 8)
    >>> round(effective_rank(plane).item(), 1)
    2.0
    """
    check_tensor(features)
    check_points([features], 1, 'highest', non_finite)
    features = features.detach()
    known = features.isfinite().all(-1, keepdim=True)  # [..., N, 1]
    points = features.to(torch.float64, copy=True)
    if non_finite == 'nan':
        points.masked_fill_(~known, 0)
    elif not known.all():
        bad = name_points(~known.reshape(-1, known.shape[-2]), 0, features.shape)
        raise ValueError(f'features must be finite, but {bad} NaN or infinity.')
    wide = features.dtype == torch.float64  # squares of other dtypes are in its range
    if wide:
        points.div_(2)  # so that no difference overflows
    # Differences from one of them are exactly 0 where all coincide.
    points.sub_(points.take_along_dim(known.int().argmax(-2, keepdim=True), -2)).mul_(known)
    if wide:
        largest = torch.linalg.vector_norm(points, torch.inf, (-2, -1), keepdim=True)
        points.div_(largest.clamp_min(torch.finfo(torch.float64).tiny))
    points.sub_(points.sum(-2, keepdim=True) / known.sum(-2, keepdim=True).clamp_min(1)).mul_(known)
    if points.shape[-1] < points.shape[-2]:
        points = points.mT  # the smaller of the two matrices has the same eigenvalues, but for zeros
    spectrum = torch.linalg.eigvalsh(points @ points.mT).clamp_min(0)
    total = spectrum.sum(-1, keepdim=True)
    entropy = torch.special.entr(spectrum / torch.where(total > 0, total, 1)).sum(-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), 0).to(wide_dtype(features))
