"""Nearest neighbours of ordinary points on the CPU, in few calls of numpy, which cost less than torch's."""

from __future__ import annotations

from nni_naslid.neighbors_many import search_many
from nni_naslid.neighbors_torch import exact_products, measure_pairs

import numpy as np
import torch
from torch import Tensor

__all__ = ['search_ordinary']

INDEX_BITS = 10  # of the 52 of a float64's fraction, which make room for the index of a point
INDEX = 2**INDEX_BITS - 1
BLOCK = 4096  # longest sum of squares in float32
CACHEFUL = 2**16  # distances at once
CANCELLED = 2.0**-4  # part of |x|^2 + |y|^2 below which a squared distance has lost too many digits
FAR = 4  # mean |x|^2 in units of mean |x - mean|^2, above which it helps to move the origin
LIMITS = np.finfo(np.float32)


def search_ordinary(points: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor] | None:
    """What the op returns, of one contiguous set of points ``[N, D]`` of float32 on the CPU.

    None where the points are others, where a number or a square is out of float32's range, or where points have too
    many neighbours close by: distances of up to N pairs are measured one by one.
    """
    if not points.is_cpu or points.dtype != torch.float32 or points.ndim != 2:
        return None
    if not points.is_contiguous() or points.is_neg():  # numpy multiplies other layouts slowly
        return None
    with np.errstate(all='ignore'):  # whatever overflows is searched by torch
        return _search(points.detach(), n_neighbors)


def _search(points: Tensor, n_neighbors: int, centre: bool = False) -> tuple[Tensor, Tensor] | None:
    n_points = len(points)
    found = (_search_few if n_points <= INDEX + 1 else search_many)(points, n_neighbors, centre)
    if found is None:
        return None
    squared, index, norms = found
    floor = LIMITS.tiny * 2.0**64
    if not squared[:, 0].min() >= max(2 * CANCELLED * norms.max(), floor):  # a quick look: most often all are apart
        close = squared < np.maximum(CANCELLED * (norms[:, None] + norms[index]), floor)
        if close[:, -1].any() or close.sum() > n_points:  # with that many, rounding may have picked the wrong ones
            mean = norms.mean()
            far = not centre and mean > FAR * (mean - np.square(points.mean(0).numpy(), dtype=np.float64).sum())
            return _search(points, n_neighbors, centre=True) if far else None
        if close.any():
            exact = torch.from_numpy(squared).unsqueeze(0), torch.from_numpy(index).unsqueeze(0)
            measure_pairs(points.unsqueeze(0), *exact, torch.from_numpy(close).unsqueeze(0))
            if ((squared > 0) & (squared < LIMITS.tiny)).any():
                return None
            order = squared.argsort(1)
            squared, index = (np.take_along_axis(each, order, 1) for each in (squared, index))
    return torch.from_numpy(squared.astype(np.float32)), torch.from_numpy(index)


def _search_few(points: Tensor, n_neighbors: int, centre: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """What :func:`search_many` returns, of up to 1024 points, from their Gram matrix."""
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
    return keys.view(np.float64), keys & INDEX, norms


def _products(points: Tensor, centre: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scalar products ``[N, N]`` and, in float64, their diagonal."""
    gram, norms = None, 0
    for block in points.split(BLOCK, 1):
        if centre:
            block = block - block[:1]
        if torch.get_num_threads() == 1:
            rows = block.numpy()
            product = rows @ rows.T  # one triangle is computed, by BLAS's syrk
        else:  # the threads of numpy's BLAS and those of torch, which wait for work in a loop, would delay each other
            with exact_products(block.device):
                product = torch.mm(block, block.mT).numpy()
        norms = product.diagonal().astype(np.float64) + norms
        gram = product if gram is None else np.add(gram, product, out=gram)
    return gram, norms
