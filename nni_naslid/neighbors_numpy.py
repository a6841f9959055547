"""Nearest neighbours of few ordinary points on the CPU; by numpy, as the fixed cost of torch's calls would count."""

from __future__ import annotations

from nni_naslid.neighbors_torch import measure_pairs

import numpy as np
import torch
from torch import Tensor

__all__ = ['search_ordinary']

INDEX_BITS = 9  # of the 52 of a float64's fraction, which make room for the index of a point
INDEX = 2**INDEX_BITS - 1
BLOCK = 4096  # longest sum of products in float32
CACHEFUL = 2**16  # distances at once
CANCELLED = 2.0**-4  # part of |x|^2 + |y|^2 below which a squared distance has lost too many digits
LIMITS = np.finfo(np.float32)


def search_ordinary(points: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor] | None:
    """What the op returns, of one set of up to 512 contiguous points ``[N, D]`` of float32 on the CPU.

    None where the points are others, or where more than a few distances cancel, overflow or are not finite.
    """
    n_points = points.shape[0]
    if not points.is_cpu or points.dtype != torch.float32 or points.ndim != 2 or n_points > INDEX + 1:
        return None
    if not points.is_contiguous():
        return None
    points = points.detach()
    return _search(points, n_neighbors) or _search(points, n_neighbors, centre=True)


def _search(points: Tensor, n_neighbors: int, centre: bool = False) -> tuple[Tensor, Tensor] | None:
    gram, norms = _products(points.numpy(), centre)
    if not norms.max() < LIMITS.max / 4:  # also where one is NaN
        return None
    n_points = len(points)
    columns = np.arange(n_points)
    keys = np.empty((n_points, n_neighbors), np.int64)
    height = max(1, CACHEFUL // n_points)
    for i in range(0, n_points, height):
        squared = np.multiply(gram[i : i + height], -2, dtype=np.float64)
        squared += norms
        squared += norms[i : i + height, None]
        np.fill_diagonal(squared[:, i:], np.inf)  # self is excluded by its index
        # The bits of floats that are not negative have the order of the floats; the last ones make way for the column.
        bits = squared.view(np.int64)
        bits &= ~INDEX
        bits |= columns
        bits.partition(n_neighbors - 1, axis=1)
        keys[i : i + height] = bits[:, :n_neighbors]
    keys.sort(axis=1)
    squared, index = keys.view(np.float64), keys & INDEX
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


def _products(points: np.ndarray, centre: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scalar products ``[N, N]``, one triangle of which numpy computes (BLAS's syrk), and in float64 their diagonal."""
    gram, norms = 0, 0
    for i in range(0, points.shape[1], BLOCK):
        block = points[:, i : i + BLOCK]
        product = block - block[0] if centre else block
        product = product @ product.T
        norms = norms + product.diagonal().astype(np.float64)
        gram = np.add(gram, product, out=product)
    return gram, norms
