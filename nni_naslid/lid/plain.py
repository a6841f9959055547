"""Nearest neighbours in plain torch, on any device; fast on the CPU, and right where distances cancel."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

__all__ = [
    'exact_products', 'find_neighbors', 'is_far', 'measure_pairs', 'name_points', 'pack', 'range_of', 'unpack',
    'wide_dtype',
]  # fmt: skip

# Squared distances below this part of |x|^2 + |y|^2 have cancelled too much: in products of float32; in products of
# float64 for points of float32, where errors of 1e-6 do not count; and for points of float64.
CANCELLED, CANCELLED_WIDE, CANCELLED_FLOAT64 = 2.0**-5, 2.0**-32, 2.0**-24
RESOLUTION = 512  # rounding errors up to which two distances count as equal
TIED = 2 * RESOLUTION * float(np.finfo(np.float32).eps)  # the same of logarithms of squares, in float32
CACHEFUL = 2**16  # distances at once
CHUNK = 2**18  # elements in a piece of work, where doing all at once would copy the points


def wide_dtype(points: Tensor) -> torch.dtype:
    """The dtype of results."""
    return torch.float64 if points.dtype == torch.float64 else torch.float32


def range_of(dtype: torch.dtype) -> tuple[float, float]:
    """Between which numbers squares have lost no digits, and sums of two of them do not overflow."""
    limits = torch.finfo(dtype)
    return limits.tiny * 2.0**64, limits.max / 4


def is_far(norm: float, product: float, ratio: float = 16) -> bool:
    """Whether the origin is far away: is the mean of |x|^2 above that of |x - mean|^2, times ratio?

    Given the means of squared norms and of scalar products, of which the second is the squared norm of the mean.
    """
    return norm > ratio * (norm - product)


def pack(numbers: np.ndarray) -> np.ndarray:
    """Integers in the order of numbers ``[..., N]`` of float32, with the column in the low half, as in kernels.py.

    numpy's vectorised partition moves both at once, in down to a quarter of the time of topk.
    """
    bits = numbers.view(np.int32)  # in the order of the floats, once those of negative ones are turned round
    keys = (bits ^ (bits >> 31 & 0x7FFFFFFF)).astype(np.int64)
    keys <<= 32
    keys |= np.arange(keys.shape[-1])
    return keys


def unpack(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers, if they are not negative, and the columns."""
    return (keys >> 32).astype(np.int32).view(np.float32), keys & 0xFFFFFFFF


def find_neighbors(points: Tensor, n_neighbors: int, non_finite: str) -> tuple[Tensor, Tensor]:
    """What the op returns, of one set of points ``[..., N, D]``, in plain torch, on any device.

    By scalar products, half of which symmetry gives, and wherever those have lost too many digits by better ones:
    of differences from one of the points, then in float64, then by the differences of all pairs.
    """
    dtype = wide_dtype(points)
    shape = (*points.shape[:-1], n_neighbors)
    if not points.numel():
        return points.new_empty(shape, dtype=dtype), points.new_empty(shape, dtype=torch.long)
    points = points.detach()
    batches = points.unsqueeze(0) if points.ndim == 2 else points.reshape(-1, *points.shape[-2:])  # [B, N, D]
    n_items = max(1, CACHEFUL // points.shape[-2] ** 2)  # many small batches at once, large ones one by one
    found = []
    with exact_products(points.device):
        for i, some in enumerate(batches.split(n_items)):
            norms, missing, products = squared_norms(some, dtype), None, dtype
            floor, ceiling = range_of(dtype)
            in_range = all(floor < largest < ceiling for largest in norms.amax(1).tolist())
            if not in_range and some.any():  # dead features, all zero, are fine as they are
                missing = ~some.isfinite().all(-1)
                if missing.any() and non_finite == 'raise':
                    bad = name_points(missing, i * n_items, shape)
                    raise ValueError(f'features must be finite, but {bad} NaN or infinity.')
                some = _into_range(some.masked_fill(missing.unsqueeze(-1), 0))
                products = torch.float64
                norms = squared_norms(some, products)
            squared, index = _search(some, norms, products, n_neighbors, missing)
            if dtype == torch.float32 and not torch.finfo(dtype).tiny < squared.amin() <= squared.amax() < ceiling:
                squared = _into_float32(squared)
            if missing is not None:
                index.masked_fill_(squared.isinf() | missing.unsqueeze(-1), -1)
                squared.masked_fill_(missing.unsqueeze(-1), torch.nan)
            found.append((squared.to(dtype), index))
    squared, index = found[0] if len(found) == 1 else (torch.cat(parts) for parts in zip(*found, strict=True))
    return squared.view(shape), index.view(shape)


_settings = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)
_lock = threading.Lock()
_users: list[list[str]] = []  # for each call under way, the settings before the first of them


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Matrix products in the dtype of their operands, whatever autocast and the precision settings say.

    The settings are those of the process: the first of several threads changes them, the last one restores them.
    """
    with _lock:
        _users.append(_users[0] if _users else [setting.fp32_precision for setting in _settings])
        inexact = [i for i, value in enumerate(_users[0]) if value not in ('none', 'ieee')]
        for i in inexact:
            _settings[i].fp32_precision = 'ieee'
    try:
        with torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext():
            yield
    finally:
        with _lock:
            before = _users.pop()
            for i in inexact if not _users else []:
                _settings[i].fp32_precision = before[i]


def _into_range(points: Tensor) -> Tensor:
    """Points ``[B, N, D]`` whose squares float64 has: float64 divided by powers of two, others as they are."""
    if points.dtype != torch.float64:
        return points
    exponent = torch.frexp(points.abs().amax((1, 2), keepdim=True)).exponent
    return torch.ldexp(points, -exponent.clamp_min(-1000))


def _into_float32(squared: Tensor) -> Tensor:
    """Numbers ``[..., k]`` of float64, times a power of four for each row where float32 does not have one of them."""
    finite = torch.where(squared.isfinite(), squared, 0)
    largest = finite.amax(-1, keepdim=True)
    limits = torch.finfo(torch.float32)
    fits = (largest < limits.max) & ((finite == 0) | (finite > limits.tiny)).all(-1, keepdim=True)
    exponent = torch.frexp(largest).exponent // 2 * 2 - 100
    return torch.ldexp(squared, torch.where(fits, 0, -exponent))


def name_points(missing: Tensor, first: int, shape: tuple[int, ...]) -> str:
    """Words for the points ``[B, N]`` from batch ``first`` on that are missing in ``shape = [..., N, k]``."""
    flat = (missing.flatten().nonzero() + first * missing.shape[1]).flatten()
    places = torch.stack(torch.unravel_index(flat, shape[:-1]), 1).tolist()  # [..., N]
    names = ', '.join(str(place[0] if len(place) == 1 else tuple(place)) for place in places[:10])
    more = f' and {len(places) - 10} more' if len(places) > 10 else ''
    return f'point {names} holds' if len(places) == 1 else f'points {names}{more} hold'


def _parts(points: Tensor, dtype: torch.dtype, centre: bool) -> Iterator[Tensor]:
    """Points ``[B, N, D]`` as they go into products, in pieces of the last dimension where that needs a copy."""
    if points.dtype == dtype and not centre:
        yield points
        return
    for part in points.split(max(64, CHUNK // points[..., 0].numel()), -1):
        part = part.to(dtype)
        yield part - part[:, :1] if centre else part


def squared_norms(points: Tensor, dtype: torch.dtype, centre: bool = False) -> Tensor:
    """Squared norms ``[B, N]``, float64: sums in float32 would be the largest error in the distances."""
    norms = 0
    for part in _parts(points, dtype, centre):
        whole = part.shape[-1] // 1024 * 1024
        blocks = [part[..., :whole].unflatten(-1, (-1, 1024)), part[..., whole:].unsqueeze(-2)]
        for block in blocks:  # [B, N, blocks, 1024 or less]
            if block.shape[-1] and block.shape[-2]:
                norms = torch.linalg.vector_norm(block, dim=-1).double().square_().sum(-1) + norms
    return norms


def _strips(points: Tensor, dtype: torch.dtype, centre: bool = False) -> list[Tensor]:
    """Scalar products of all points with points i to i + W, from point i on: ``[B, N - i, W]`` for i = 0, W, 2 W ...

    Together they are the lower triangle of the Gram matrix.
    """
    n_points = points.shape[1]
    width = n_points if points.is_cuda else 64 if n_points <= 512 else 128
    strips: list[Tensor] = []
    for part in _parts(points, dtype, centre):
        for s, i in enumerate(range(0, n_points, width)):
            if s < len(strips):
                strips[s].baddbmm_(part[:, i:], part[:, i : i + width].mT)
            else:
                strips.append(torch.bmm(part[:, i:], part[:, i : i + width].mT))
    return strips


def _search(
    points: Tensor, norms: Tensor, dtype: torch.dtype, n_neighbors: int, missing: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Squared distances (float64) and indices of the neighbours of ``[B, N, D]``, searched in products of ``dtype``."""
    strips = _strips(points, dtype)
    means = zip(norms.mean(1).tolist(), strips[0].mean((1, 2)).tolist(), strict=True)
    if any(is_far(*mean) for mean in means):
        strips = _strips(points, dtype, centre=True)
        norms = squared_norms(points, dtype, centre=True)
    index, products = _select(strips, norms.to(dtype), n_neighbors, missing)
    del strips
    scale = norms.unsqueeze(-1) + _at(norms, index)
    wide = CANCELLED_FLOAT64 if points.dtype == torch.float64 else CANCELLED_WIDE
    limit = scale * (CANCELLED if dtype == torch.float32 else wide)
    # Below a floor, squares may have lost their digits; where all points are equal there is nothing to lose.
    floor, _ = range_of(dtype)
    if norms.amin() < floor:
        limit = torch.maximum(limit, (norms.amax(1) > 0).view(-1, 1, 1) * floor)
    squared = scale.sub_(products, alpha=2).clamp_(min=0)  # [B, N, k], in float64
    if missing is not None:
        itself = torch.arange(index.shape[1], device=index.device).unsqueeze(-1)  # taken where too few others are left
        squared.masked_fill_(missing.unsqueeze(-1) | _at(missing, index) | (index == itself), torch.inf)
    close = squared < limit
    squared, order = squared.sort(-1)
    index = index.gather(-1, order)
    if not close.any():
        return squared, index
    close = close.gather(-1, order)
    lost = close[..., -1]  # [B, N]: among so many near points, rounding may have picked the wrong ones
    many = lost.any(1) | (close.sum((1, 2)) > close.shape[1])  # [B]: a few pairs can be measured one by one
    for item in many.nonzero().flatten().tolist():
        one = slice(item, item + 1)
        others = None if missing is None else missing[one]
        if dtype == torch.float32:
            norms = squared_norms(points[one], torch.float64)
            squared[one], index[one] = _search(points[one], norms, torch.float64, n_neighbors, others)
            close[one] = False
        elif lost[item].any():
            _measure_rows(points[item], lost[item].nonzero().flatten(), squared[item], index[item], others)
            close[item, lost[item]] = False
    item, point, rank = close.nonzero(as_tuple=True)
    squared[close] = measure_pairs(points, (item, point), (item, index[item, point, rank]))
    squared, order = squared.sort(-1)
    return squared, index.gather(-1, order)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """``values [B, N]`` of the neighbours ``index [B, N, k]``."""
    return values.gather(1, index.flatten(1)).view_as(index)


def _select(strips: list[Tensor], norms: Tensor, k: int, missing: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where |y|^2 / 2 - xy is smallest for each x, and xy there, ``[B, N, k]``; a cacheful of rows at a time."""
    n_batches, n_points = norms.shape
    width = strips[0].shape[2]
    height = width * max(1, CACHEFUL // (n_batches * n_points * width))
    found = []
    for i in range(0, n_points, height):
        rows = _rows(strips, i, min(i + height, n_points))  # [B, H, N]
        ranks = norms.unsqueeze(1) / 2 - rows
        ranks.diagonal(i, 1, 2).fill_(torch.inf)  # self is excluded by its index
        if missing is not None:
            ranks.masked_fill_(missing.unsqueeze(1), torch.inf)
        index = _smallest(ranks.flatten(0, 1), k).unflatten(0, ranks.shape[:2])
        found.append((index, rows.gather(-1, index)))
    if len(found) == 1:
        return found[0]
    return torch.cat([index for index, _ in found], 1), torch.cat([products for _, products in found], 1)


def _rows(strips: list[Tensor], first: int, last: int) -> Tensor:
    """Some rows of the Gram matrix of which the strips are the lower triangle, ``[B, last - first, N]``."""
    width = strips[0].shape[2]
    rows = []
    for i in range(first, last, width):
        strip = strips[i // width]
        earlier = [other[:, i - j * width :][:, : strip.shape[2]] for j, other in enumerate(strips[: i // width])]
        later = strip.mT
        if len(strip) == 1:  # torch transposes faster in two dimensions
            later = strip.squeeze(0).T.contiguous().unsqueeze(0)
        rows.append(torch.cat([*earlier, later], -1))
    return torch.cat(rows, 1) if len(rows) > 1 else rows[0]


def _smallest(rows: Tensor, k: int) -> Tensor:
    """Where the k smallest of each row ``[R, N]`` are, ``[R, k]``, in no order."""
    n = rows.shape[1]
    if n < max(300, 16 * k):
        return _smallest_directly(rows, k)
    # Put the columns into groups: the k smallest numbers lie in the k groups whose minima are smallest.
    size = math.isqrt(n // k)
    n_groups = n // size
    best = _smallest_directly(rows[:, : size * n_groups].unflatten(1, (size, n_groups)).amin(1), k)
    members = torch.arange(0, size * n_groups, n_groups, device=rows.device).view(1, -1, 1) + best.unsqueeze(1)
    rest = torch.arange(size * n_groups, n, device=rows.device).expand(len(rows), -1)
    candidates = torch.cat([members.flatten(1), rest], 1)
    return candidates.gather(1, _smallest_directly(rows.gather(1, candidates), k))


def _smallest_directly(rows: Tensor, k: int) -> Tensor:
    if rows.device.type != 'cpu' or rows.dtype != torch.float32 or rows.shape[1] < 96:
        return rows.topk(k, largest=False, sorted=False)[1]
    keys = pack(rows.numpy())
    keys.partition(k - 1, axis=1)
    return torch.from_numpy(keys[:, :k] & 0xFFFFFFFF)


def measure_pairs(points: Tensor, first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> Tensor:
    """Squared distances between ``points[first]`` and ``points[second]``, by differences in float64."""
    pairs = torch.stack([*first, *second]).split(max(1, CHUNK // points.shape[-1]), 1)
    some = ((points[tuple(each[: len(first)])].double(), points[tuple(each[len(first) :])].double()) for each in pairs)
    return torch.cat([(x - y).square().sum(-1) for x, y in some])


def _measure_rows(points: Tensor, rows: Tensor, squared: Tensor, index: Tensor, missing: Tensor | None) -> None:
    """Search the neighbours of some points ``[M]`` by differences in float64 from all points ``[N, D]``."""
    n_points = len(points)
    for some in rows.split(max(1, CHUNK // n_points)):
        distances = points.new_zeros((len(some), n_points), dtype=torch.float64)
        for part in points.split(max(1, CHUNK // n_points), -1):
            part = part.double()
            distances += torch.cdist(part[some], part, compute_mode='donot_use_mm_for_euclid_dist').square()
        distances[torch.arange(len(some)), some] = torch.inf
        if missing is not None:
            distances.masked_fill_(missing, torch.inf)
        squared[some], index[some] = distances.topk(squared.shape[-1], largest=False)
