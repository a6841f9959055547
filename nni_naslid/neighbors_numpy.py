"""Nearest neighbours of up to 512 ordinary points on the CPU, in few calls of numpy, which cost less than torch's."""

from __future__ import annotations

from nni_naslid.neighbors_torch import exact_products, measure_pairs

import numpy as np
import torch
from torch import Tensor

__all__ = ['search_ordinary']

INDEX_BITS = 9  # of the 52 of a float64's fraction, which make room for the index of a point
INDEX = 2**INDEX_BITS - 1
BLOCK = 4096  # longest sum of squares in float32
CACHEFUL = 2**16  # distances at once
CANCELLED = 2.0**-4  # part of |x|^2 + |y|^2 below which a squared distance has lost too many digits
FAR = 4  # mean |x|^2 in units of mean |x - mean|^2, above which it helps to move the origin
LIMITS = np.finfo(np.float32)


def search_ordinary(points: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor] | None:
    """What the op returns, of one contiguous set of points ``[N, D]`` of float32 on the CPU.

    None where the points are others or too many, where a number or a square is out of float32's range, or where points
    have too many neighbours close by: distances of up to N pairs are measured one by one.
    """
    n_points = points.shape[0]
    if not points.is_cpu or points.dtype != torch.float32 or points.ndim != 2 or n_points > INDEX + 1:
        return None
    if not points.is_contiguous() or points.is_neg():  # numpy multiplies other layouts slowly
        return None
    with np.errstate(all='ignore'):  # whatever overflows is searched by torch
        return _search(points.detach(), n_neighbors)


def _search(points: Tensor, n_neighbors: int, centre: bool = False) -> tuple[Tensor, Tensor] | None:
    gram, norms = _products(points, centre)
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
        if close[:, -1].any() or close.sum() > n_points:  # with that many, rounding may have picked the wrong ones
            mean = norms.mean()
            far = not centre and mean > FAR * (mean - gram.mean(dtype=np.float64))
            return _search(points, n_neighbors, centre=True) if far else None
        measure_pairs(points.unsqueeze(0), *(torch.from_numpy(each).unsqueeze(0) for each in (squared, index, close)))
        if ((squared > 0) & (squared < LIMITS.tiny)).any():
            return None
        order = squared.argsort(1)
        squared, index = (np.take_along_axis(each, order, 1) for each in (squared, index))
    return torch.from_numpy(squared.astype(np.float32)), torch.from_numpy(index)


def _products(points: Tensor, centre: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scalar products ``[N, N]`` and, in float64, their diagonal."""
    gram = np.zeros((len(points), len(points)), np.float32)
    norms = np.zeros(len(points))
    for block in points.split(BLOCK, 1):
        if centre:
            block = block - block[:1]
        if torch.get_num_threads() == 1:
            rows = block.numpy()
            product = rows @ rows.T  # one triangle is computed, by BLAS's syrk
        else:  # the threads of numpy's BLAS and those of torch, which wait for work in a loop, would delay each other
            with exact_products(block.device):
                product = torch.mm(block, block.mT).numpy()
        gram += product
        norms += product.diagonal()
    return gram, norms
