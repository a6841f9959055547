"""Nearest neighbours among thousands of points, without their Gram matrix, which would not fit the cache."""

from __future__ import annotations

from collections.abc import Iterator

from nni_naslid.lid.plain import exact_products, measure_pairs, squared_norms

import numpy as np
import torch
from torch import Tensor

__all__ = ['CANCELLED', 'FLOOR', 'LARGEST', 'NotOrdinary', 'is_far', 'measure', 'search_many']

TINY = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float32).max) / 4  # squared norm
FLOOR = TINY * 2.0**64  # squared distances below it, and
CANCELLED = 2.0**-4  # below this part of |x|^2 + |y|^2, have lost too many digits
MOST = 2**16  # points: two indices and a distance fit one integer
PARTS = 4  # of the points; the first part is the sample
HEIGHT = 256  # points in a piece of work, beside those of a part
CROWDED = 16  # pairs for each neighbour wanted, above which the search is given up
FAR = 4  # mean |x|^2 in units of mean |x - mean|^2, above which it helps to move the origin


class NotOrdinary(Exception):
    """Raised about points that need a closer look, and whether the origin is far away from them."""

    def __init__(self, far: bool = False) -> None:
        super().__init__(far)
        self.far = far


def is_far(norms: np.ndarray, norm_of_mean: float) -> bool:
    """Whether the origin is far away, given squared norms of points and of their mean."""
    return norms.mean() > FAR * (norms.mean() - norm_of_mean)


def search_many(points: Tensor, n_neighbors: int, centre: bool) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances to the nearest neighbours, ascending, and their indices, ``[N, k]``.

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
        Squared distances, float64 of float32's precision, and indices.

    Raises
    ------
    NotOrdinary
        Above 65536 points, where the sample is too small for ``k``, where norms are not finite, where many points are
        close by, or where the bounds help little.
    """
    n_points = points.shape[0]
    n_groups = max(64, 4 * n_neighbors)
    if not PARTS * n_groups <= n_points <= MOST:
        raise NotOrdinary
    norms = squared_norms(points.unsqueeze(0), torch.float32, centre)[0].numpy()
    if not norms.max() < LARGEST:  # also where one is NaN
        raise NotOrdinary
    indices = [np.arange(i, n_points, PARTS) for i in range(PARTS)]
    # Ranks are |x - y|^2 / 2 - least: smaller numbers, with more digits where all norms are alike.
    least = norms.min()
    halves = ((norms - least) / 2).astype(np.float32)
    bounds = np.empty(n_points, np.float32)
    buffer = points.new_empty(HEIGHT * len(indices[0]))
    later = np.triu(np.full((HEIGHT, HEIGHT), np.inf, np.float32))
    itself = np.diag(later.diagonal())
    index_bits = (n_points - 1).bit_length()
    point_bits = index_bits + 31  # a float that is not negative has 31
    kept, n_kept, n_close = [], 0, 0
    apart = 2 * CANCELLED * norms.max() + FLOOR
    most = min(CROWDED * n_neighbors * n_points, n_points**2 // 6)  # 32 bytes each: no more than 1.4 Gram matrices

    def part(i: int, piece: slice = slice(None)) -> Tensor:
        return points[i::PARTS][piece] - points[:1] if centre else points[i::PARTS][piece]

    def crowded() -> NotOrdinary:
        return NotOrdinary(is_far(norms, points.mean(0).square().sum().item()))

    with exact_products(points.device):
        for a, b, piece in _pieces(indices):
            if a == b and piece.start == 0:  # the first piece of this a
                others = part(a)
            rows, columns = indices[b][piece], indices[a]
            if 0 < a == b:  # a triangle is enough; but bounds need the whole sample
                columns = columns[: piece.stop]
            shape = len(rows), len(columns)
            ranks = buffer[: shape[0] * shape[1]].view(shape)
            ranks = torch.mm(part(b, piece), others[: shape[1]].T, out=ranks).numpy()
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
            if n_kept > most:
                raise crowded()
            i, j = np.divmod(near, shape[1])
            rank, row, column = ranks.ravel()[near], rows[i], columns[j]
            squared = 2 * (rank + least)
            if not squared.min(initial=np.inf) > apart:  # a quick look
                close = np.flatnonzero(squared < CANCELLED * (norms[row] + norms[column]) + FLOOR)
                n_close += len(close)
                if n_close > n_points:
                    raise crowded()
                squared[close] = measure(points, row[close], column[close])
            # The bits of floats that are not negative have the order of the floats.
            squared = squared.astype(np.float32).view(np.int32).astype(np.int64)
            squared <<= index_bits
            kept.append((row << point_bits | squared | column)[rank <= bounds[row]])
            if b > 0:
                kept.append((column << point_bits | squared | row)[rank <= bounds[column]])
    keys = np.concatenate(kept)
    keys.sort()
    first = np.searchsorted(keys, np.arange(n_points) << point_bits)
    keys = keys[first[:, None] + np.arange(n_neighbors)]
    squared = (keys >> index_bits & 0x7FFFFFFF).astype(np.int32).view(np.float32).astype(np.float64)
    index = keys & (1 << index_bits) - 1
    if (squared[:, -1] < CANCELLED * (norms + norms[index[:, -1]]) + FLOOR).any():  # the bounds had lost digits
        raise crowded()
    return squared, index


def measure(points: Tensor, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared distances of pairs of points by differences, if float32 has them."""
    squared = measure_pairs(points, (torch.from_numpy(first),), (torch.from_numpy(second),)).numpy()
    if ((squared > 0) & (squared < TINY)).any():
        raise NotOrdinary
    return squared


def _pieces(parts: list[np.ndarray]) -> Iterator[tuple[int, int, slice]]:
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
