"""Nearest neighbours of ordinary points on the CPU, in few calls of numpy, which cost less than torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from nni_naslid.lid.many import CANCELLED, FLOOR, LARGEST, NotOrdinary, is_far, measure, search_many
from nni_naslid.lid.plain import exact_products

import numpy as np
import torch
from torch import Tensor

__all__ = ['distances_ordinary', 'search_ordinary']

INDEX_BITS = 10  # of the 52 of a float64's fraction, which make room for the index of a point
INDEX = 2**INDEX_BITS - 1
BLOCK = 4096  # longest sum of squares in float32
CACHEFUL = 2**16  # distances at once


def search_ordinary(points: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor] | None:
    """Squared distances (float64), ascending, and indices ``[N, k]`` of one contiguous set of points of float32.

    None where the points are others or not on the CPU, where a number or a square is out of float32's range, where too
    many are close by (distances of up to N pairs are measured one by one), or where :func:`search_many` gives up.
    """
    found = _search_ordinary(_neighbors, points, n_neighbors)
    return None if found is None else (torch.from_numpy(found[0]), torch.from_numpy(found[1]))


def distances_ordinary(points: Tensor, n_neighbors: int) -> np.ndarray | None:
    """The squared distances alone, of which only the largest is in its place, the last."""
    return _search_ordinary(_distances, points, n_neighbors)


def _search_ordinary(search: Callable[..., Any], points: Tensor, n_neighbors: int) -> Any:
    """What a search finds, with the origin moved if that helps; or None."""
    if not points.is_cpu or points.dtype != torch.float32 or points.ndim != 2:
        return None
    if not points.is_contiguous() or points.is_neg():  # numpy multiplies other layouts slowly
        return None
    points = points.detach()
    with np.errstate(all='ignore'):  # whatever overflows is searched by torch
        try:
            return search(points, n_neighbors, centre=False)
        except NotOrdinary as reason:
            if not reason.far:
                return None
        try:
            return search(points, n_neighbors, centre=True)
        except NotOrdinary:
            return None


def _neighbors(points: Tensor, n_neighbors: int, centre: bool) -> tuple[np.ndarray, np.ndarray]:
    if points.shape[0] > INDEX + 1:
        return search_many(points, n_neighbors, centre)
    columns = np.arange(points.shape[0])
    keys = []
    for squared in _rows(points, centre):
        # The bits of floats that are not negative have the order of the floats; the last ones make way for the column.
        bits = squared.view(np.int64)
        bits &= ~INDEX
        bits |= columns
        bits.partition(n_neighbors - 1, axis=1)
        keys.append(bits[:, :n_neighbors])
    keys = np.concatenate(keys)
    keys.sort(axis=1)
    return (keys & ~INDEX).view(np.float64), keys & INDEX


def _distances(points: Tensor, n_neighbors: int, centre: bool) -> np.ndarray:
    if points.shape[0] > INDEX + 1:
        return search_many(points, n_neighbors, centre)[0]
    nearest = []
    for squared in _rows(points, centre):
        squared.partition(n_neighbors - 1, axis=1)
        nearest.append(squared[:, :n_neighbors])
    return nearest[0] if len(nearest) == 1 else np.concatenate(nearest)


def _rows(points: Tensor, centre: bool) -> Iterator[np.ndarray]:
    """Squared distances of all pairs, float64, a cacheful of rows at a time; from a point to itself, infinity."""
    gram, norms = _products(points, centre)
    if not norms.max() < LARGEST:  # also where one is NaN
        raise NotOrdinary
    n_points = len(gram)
    height = max(1, CACHEFUL // n_points)
    limits = (2 * FLOOR - (1 - CANCELLED) * norms).astype(np.float32)
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
            if n_close > n_points:
                raise NotOrdinary(is_far(norms, gram.mean(dtype=np.float64)))
            squared[i, j] = measure(points, i + start, j)
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
