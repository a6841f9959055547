"""Nearest neighbours among thousands of points, without their Gram matrix, which would not fit the cache."""

from __future__ import annotations

from collections.abc import Iterator

from nni_naslid.neighbors_torch import exact_products, squared_norms

import numpy as np
import torch
from torch import Tensor

__all__ = ['search_many']

MOST = 2**16  # points: two indices and a distance fit one integer
PARTS = 4  # of the points; the first part is the sample
HEIGHT = 256  # points in a piece of work, beside those of a part
CROWDED = 16  # pairs for each neighbour wanted, above which the search is given up


def search_many(points: Tensor, n_neighbors: int, centre: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Squared distances to the nearest neighbours and their indices, ``[N, k]``, and squared norms ``[N]``.

    The distances to a sample, every fourth point, bound the distance from each point to its k-th neighbour. Each pair
    is looked at once, while its product is in the cache, and kept if it is no further apart than the bound of either
    point allows: some four pairs for each neighbour, which are sorted.

    Parameters
    ----------
    points
        ``[N, D]``, float32, on the CPU.
    n_neighbors
        :math:`k`.
    centre
        Whether to move the origin to the first point.

    Returns
    -------
    tuple
        Squared distances, ascending, float64 of float32's precision; indices; norms, float64. None for more than 65536
        points, where the sample is too small for ``k``, where norms are not finite, or where the bounds help little, as
        with many equal points.
    """
    n_points = len(points)
    n_groups = max(64, 4 * n_neighbors)
    if not PARTS * n_groups <= n_points <= MOST:
        return None
    norms = squared_norms(points.unsqueeze(0), torch.float32, centre)[0].numpy()
    if not norms.max() < np.finfo(np.float32).max / 4:  # also where one is NaN
        return None
    parts = [points[i::PARTS] - points[:1] if centre else points[i::PARTS] for i in range(PARTS)]
    indices = [np.arange(i, n_points, PARTS) for i in range(PARTS)]
    # Ranks are (|x - y|^2 - least) / 2, smaller numbers than |x - y|^2 / 2, with more digits where all norms are alike.
    least = norms.min()
    halves = ((norms - least) / 2).astype(np.float32)
    bounds = np.empty(n_points, np.float32)
    buffer = torch.empty(HEIGHT * len(parts[0]))
    later = np.triu(np.full((HEIGHT, HEIGHT), np.inf, np.float32))
    itself = np.diag(later.diagonal())
    index_bits = (n_points - 1).bit_length()
    point_bits = index_bits + 31  # a float that is not negative has 31
    kept, n_kept = [], 0
    with exact_products(points.device):
        for a, b, piece in _pieces(parts):
            rows, columns = indices[b][piece], indices[a]
            if 0 < a == b:  # a triangle is enough; but bounds need the whole sample
                columns = columns[: piece.stop]
            shape = len(rows), len(columns)
            ranks = buffer[: shape[0] * shape[1]].view(shape)
            ranks = torch.mm(parts[b][piece], parts[a][: shape[1]].T, out=ranks).numpy()
            np.subtract(halves[columns], ranks, out=ranks)
            ranks += halves[rows, None]
            if a == b:  # nobody is its own neighbour
                ranks[:, piece] += (later if a else itself)[: shape[0], : shape[0]]
            if a == 0:
                bounds[rows] = _bounds(ranks, n_neighbors, n_groups)
            near = ranks <= bounds[rows, None]
            if b > 0:
                near |= ranks <= bounds[columns]
            near = np.flatnonzero(near)
            n_kept += len(near)
            if n_kept > CROWDED * n_neighbors * n_points:
                return None
            i, j = np.divmod(near, shape[1])
            rank, row, column = ranks.ravel()[near], rows[i], columns[j]
            # The bits of floats that are not negative have the order of the floats.
            squared = np.maximum(2 * (rank + least), 0).astype(np.float32).view(np.int32).astype(np.int64)
            squared <<= index_bits
            kept.append((row << point_bits | squared | column)[rank <= bounds[row]])
            if b > 0:
                kept.append((column << point_bits | squared | row)[rank <= bounds[column]])
    keys = np.concatenate(kept)
    keys.sort()
    first = np.searchsorted(keys, np.arange(n_points) << point_bits)
    keys = keys[first[:, None] + np.arange(n_neighbors)]
    squared = (keys >> index_bits & 0x7FFFFFFF).astype(np.int32).view(np.float32)
    return squared.astype(np.float64), keys & (1 << index_bits) - 1, norms


def _pieces(parts: list[Tensor]) -> Iterator[tuple[int, int, slice]]:
    """Each pair of parts, the sample's first, and pieces of the second; smaller ones where they make up a triangle."""
    for a in range(len(parts)):
        for b in range(a, len(parts)):
            height = HEIGHT // 4 if 0 < a == b else HEIGHT
            for start in range(0, len(parts[b]), height):
                yield a, b, slice(start, min(start + height, len(parts[b])))


def _bounds(ranks: np.ndarray, n_neighbors: int, n_groups: int) -> np.ndarray:
    """Numbers that are no less than the k-th smallest of each row: the k-th smallest of the minima of groups."""
    size = ranks.shape[1] // n_groups
    minima = ranks[:, : size * n_groups].reshape(len(ranks), size, n_groups).min(1)
    minima.partition(n_neighbors - 1, axis=1)
    return minima[:, n_neighbors - 1]
