"""Nearest neighbours of ordinary points on the CPU, in few calls of numpy, which cost less than torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nni_naslid.lid.plain import CACHEFUL, CANCELLED, exact_products, is_far, measure_pairs, pack, range_of, unpack

import numpy as np
import torch
from torch import Tensor

__all__ = ['find_distances', 'find_neighbors']

MOST = 1024  # points: of more, plain.py is about as fast, and takes half the memory
BLOCK = 4096  # longest sum of squares in float32
CLOSE = 2 * CANCELLED  # twice as careful as plain.py: here the norms, too, are sums in float32
TINY = float(np.finfo(np.float32).tiny)
FLOOR, CEILING = range_of(torch.float32)


class NotOrdinary(Exception):
    """Raised about points that need a closer look, and whether the origin is far away from them."""

    def __init__(self, far: bool = False) -> None:
        super().__init__(far)
        self.far = far


def find_neighbors(points: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor] | None:
    """Squared distances, ascending, and indices ``[N, k]`` of one contiguous set of up to 1024 points of float32.

    None where the points are others or not on the CPU, where a number or a square is out of float32's range, or where
    too many are close by (distances of up to N pairs are measured one by one).
    """

    def nearest(squared: np.ndarray) -> np.ndarray:
        keys = pack(squared.astype(np.float32))
        keys.partition(n_neighbors - 1, axis=1)
        return keys[:, :n_neighbors]

    keys = _find(points, nearest)
    if keys is None:
        return None
    keys.sort(axis=1)
    squared, index = unpack(keys)
    return torch.from_numpy(squared), torch.from_numpy(index)


def find_distances(points: Tensor, n_neighbors: int) -> np.ndarray | None:
    """The squared distances alone, in float64, of which only the largest is in its place, the last."""

    def nearest(squared: np.ndarray) -> np.ndarray:
        squared.partition(n_neighbors - 1, axis=1)
        return squared[:, :n_neighbors]

    return _find(points, nearest)


def _find(points: Tensor, nearest: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    """What is nearest in each row of the squared distances, with the origin moved if that helps; or None."""
    if not points.is_cpu or points.dtype != torch.float32 or points.ndim != 2 or points.shape[0] > MOST:
        return None
    if not points.is_contiguous() or points.is_neg():  # numpy multiplies other layouts slowly
        return None
    points = points.detach()
    with np.errstate(all='ignore'):  # whatever overflows is left to torch
        for centre in (False, True):
            try:
                return np.concatenate([nearest(squared) for squared in _rows(points, centre)])
            except NotOrdinary as reason:
                if not reason.far:
                    break
    return None


def _rows(points: Tensor, centre: bool) -> Iterator[np.ndarray]:
    """Squared distances of all pairs, float64, a cacheful of rows at a time; from a point to itself, infinity."""
    gram, norms = _products(points, centre)
    if not norms.max() < CEILING:  # also where one is NaN
        raise NotOrdinary
    n_points = len(gram)
    height = max(1, CACHEFUL // n_points)
    limits = (2 * FLOOR - (1 - CLOSE) * norms).astype(np.float32)
    n_close = 0
    for start in range(0, n_points, height):
        rows = slice(start, start + height)
        product = gram[rows] * -2
        close = product < limits + limits[rows, None]
        squared = norms + norms[rows, None]
        squared += product
        squared.reshape(-1)[start :: n_points + 1] = np.inf
        if np.count_nonzero(close) > len(close):  # a point is close to itself
            i, j = np.nonzero(close)
            i, j = i[i + start != j], j[i + start != j]
            n_close += len(i)
            if n_close > n_points:  # the products have to be done again: then the origin may as well be nearer
                raise NotOrdinary(is_far(norms.mean(), gram.mean(dtype=np.float64), 4))
            squared[i, j] = measured = measure_pairs(
                points, (torch.from_numpy(i + start),), (torch.from_numpy(j),)
            ).numpy()
            if ((measured > 0) & (measured < TINY)).any():
                raise NotOrdinary
        yield squared


def _products(points: Tensor, centre: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scalar products ``[N, N]`` and, in float64, their diagonal."""
    gram, norms = None, None
    for block in [points] if points.shape[1] <= BLOCK else points.split(BLOCK, 1):
        if centre:
            block = block - block[:1]
        if torch.get_num_threads() == 1:
            rows = block.numpy()
            product = rows @ rows.T  # one triangle is computed, by BLAS's syrk
        else:  # the threads of numpy's BLAS and those of torch, which wait for work in a loop, would delay each other
            with exact_products(block.device):
                product = torch.mm(block, block.mT).numpy()
        squares = product.diagonal().astype(np.float64)
        if gram is None:
            gram, norms = product, squares
        else:
            gram += product
            norms += squares
    return gram, norms
