"""Nearest neighbours of few ordinary points on the CPU; by numpy, as the fixed cost of torch's calls would count."""

from __future__ import annotations

from nni_naslid.neighbors_torch import CANCELLED, FAR, measure_pairs

import numpy as np
import torch
from torch import Tensor

__all__ = ['search_ordinary']

INDEX_BITS = 8  # of the 52 of a float64's fraction, which make room for the index of a point
BLOCK = 2048  # longest sum of products in float32, and at most a cacheful
LIMITS = np.finfo(np.float32)


def search_ordinary(points: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor] | None:
    """What the op returns, of one set of up to 256 contiguous points ``[N, D]`` of float32 on the CPU.

    None where the points are others, or where more than a few distances cancel, overflow or are not finite.
    """
    n_points = points.shape[0]
    if not points.is_cpu or points.dtype != torch.float32 or points.ndim != 2 or n_points > 2**INDEX_BITS:
        return None
    if not points.is_contiguous():
        return None
    gram = _gram(points.detach().numpy())
    norms = gram.diagonal().copy()
    if not norms.max() < LIMITS.max / 4:  # also where one is NaN
        return None
    mean = norms.mean()
    if mean > FAR * (mean - gram.mean()):
        gram = _gram(points.detach().numpy(), centre=True)
        norms = gram.diagonal().copy()
    squared = gram
    squared *= -2
    squared += norms
    squared += norms[:, None]
    np.fill_diagonal(squared, np.inf)  # self is excluded by its index
    # The bits of floats that are not negative are in the order of the floats; the last ones give way to the column.
    keys = squared.view(np.int64)
    keys >>= INDEX_BITS
    keys <<= INDEX_BITS
    keys |= np.arange(n_points)
    keys.partition(n_neighbors - 1, axis=1)
    keys = np.sort(keys[:, :n_neighbors], axis=1)
    squared, index = keys.view(np.float64), keys & (2**INDEX_BITS - 1)
    close = squared < np.maximum(CANCELLED * (norms[:, None] + norms[index]), LIMITS.tiny * 2.0**64)
    if close.any():
        if close[:, -1].any() or close.sum() > n_points:
            return None
        measure_pairs(points.unsqueeze(0), *(torch.from_numpy(each).unsqueeze(0) for each in (squared, index, close)))
        order = squared.argsort(1)
        squared, index = (np.take_along_axis(each, order, 1) for each in (squared, index))
        if squared[:, 0].min() < LIMITS.tiny:
            return None
    return torch.from_numpy(squared.astype(np.float32)), torch.from_numpy(index)


def _gram(points: np.ndarray, centre: bool = False) -> np.ndarray:
    """Scalar products ``[N, N]`` in float64; numpy computes one triangle of them (BLAS's syrk) and copies the other."""
    gram = np.zeros((len(points), len(points)))
    for i in range(0, points.shape[1], BLOCK):
        block = points[:, i : i + BLOCK]
        if centre:
            block = block - block[0]
        gram += block @ block.T
    return gram
