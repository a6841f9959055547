"""Nearest neighbours and LID of up to 256 points on CUDA, in two launches for many sets: kernels and who calls them.

One set would keep a few multiprocessors busy, so the scalar products are split along the features (split-K), and all
sets share the two launches, of which the second goes on to the LID. Partial sums are added in a fixed order, without
atomics, so results are equal from run to run. Of few points, most of the time is the host's: hence few calls here.

Features are taken relative to the mean of the first 16 points, so that a common offset does not cancel; points so near
to others that their distances have cancelled all the same are searched again by differences.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from nni_naslid.lid import plain

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ['lid_triton', 'nearest_neighbors_triton', 'unsupported']

MOST = 256  # points: of more, products alone take long enough, and partial sums become larger than the points
WORKSPACE = 2**26  # numbers in the partial sums of one launch: 256 MiB
PRECISION = {'highest': 'tf32x3', 'high': 'tf32', 'medium': 'bf16'}
CHUNK_D = 512  # features of a partial sum
PRODUCTS = {'BLOCK_N': 64, 'BLOCK_D': 32, 'CHUNK_D': CHUNK_D, 'num_stages': 3}
FINISH = {'BLOCK_D': 16, 'CHUNK_D': CHUNK_D, 'num_warps': 8, 'num_stages': 2}

ANCHORS = tl.constexpr(16)
CANCELLED = tl.constexpr(plain.CANCELLED)
TINY, HUGE = map(tl.constexpr, plain.range_of(torch.float32))
TIED = tl.constexpr(plain.TIED)
NOBODY = tl.constexpr(2**63 - 1)


def unsupported(points: Tensor) -> str | None:
    """Why the kernels cannot take these points, or None."""
    if points.dtype == torch.float64:
        return 'float64 has no kernel'
    if points.shape[-2] > MOST:
        return f'{points.shape[-2]} points are more than {MOST}'
    if torch.version.hip:
        return 'the kernels have not been tried on ROCm'
    if points.is_cuda and _capability(points.device) < (8, 0):
        return 'the GPU is older than compute capability 8.0'
    return None


_capability = functools.cache(torch.cuda.get_device_capability)


def nearest_neighbors_triton(
    features: Sequence[Tensor], n_neighbors: int, precision: str = 'highest'
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances and neighbours ``[L, ..., N, k]``, and ``[L, ..., N]`` what is not 0 in an irregular set.

    That holds non-finite numbers, or such whose squares leave the range of float32, and needs the careful search.
    """
    sets, shape = _sets(features)
    found = [_search(some, n_neighbors, precision) for some in _pieces(sets)]
    squared, index, status = found[0] if len(found) == 1 else map(torch.cat, zip(*found, strict=True))
    return squared.view(*shape, n_neighbors), index.view(*shape, n_neighbors), status.view(shape)


def lid_triton(
    features: Sequence[Tensor], n_neighbors: int, correction: int, precision: str = 'highest'
) -> tuple[Tensor, Tensor]:
    """LIDs ``[L, ..., N]``, and ``[L, ..., N]`` what is not 0 in an irregular set."""
    sets, shape = _sets(features)
    found = [_search(some, n_neighbors, precision, correction) for some in _pieces(sets)]
    lid, status = found[0] if len(found) == 1 else map(torch.cat, zip(*found, strict=True))
    return lid.view(shape), status.view(shape)


def _sets(features: Sequence[Tensor]) -> tuple[list[Tensor], tuple[int, ...]]:
    """Sets of points ``[N, D]``, each batch one of its own, and their shape ``[L, ..., N]``.

    Float32 with adjacent features: a copy for others.
    """
    maps = [points if points.dtype == torch.float32 else points.float() for points in features]
    maps = [points if points.stride(-1) == 1 else points.contiguous() for points in maps]
    shape = (len(maps), *maps[0].shape[:-1])
    if maps[0].ndim == 2:
        return maps, shape
    return [each for points in maps for each in points.reshape(-1, *points.shape[-2:])], shape


def _pieces(sets: list[Tensor]) -> list[list[Tensor]]:
    """Sets whose partial sums fit into the work space together."""
    n_points = sets[0].shape[0]
    most = max(each.shape[1] for each in sets) // CHUNK_D + 1
    size = max(1, WORKSPACE // (most * n_points**2))
    return [sets[i : i + size] for i in range(0, len(sets), size)]


@functools.lru_cache(maxsize=256)
def _tables(rows: tuple[tuple[int, int, int], ...], device: torch.device, stream: int) -> tuple[Tensor, Tensor]:
    """Offset, stride, features and first chunk of each set ``[G, 4]``; set and first feature of each chunk ``[C, 2]``.

    Kept, as copying them takes longer than the search of a small set; for each stream, on which they are in order.
    """
    table, chunks = [], []
    for g, row in enumerate(rows):
        table += [*row, len(chunks) // 2]
        for first in range(0, row[2], CHUNK_D):
            chunks += [g, first]
    both = torch.tensor(table + chunks).to(device)
    return both[: len(table)].view(-1, 4), both[len(table) :].view(-1, 2)


def products_sizes(aligned: bool) -> dict[str, Any]:
    """Sizes of the first kernel. Four warps let it use the units of Hopper; where loads are not aligned they spill."""
    return {'ALIGNED': aligned, 'num_warps': 4 if aligned else 8, **PRODUCTS}


def finish_sizes(n_points: int) -> dict[str, int]:
    """Sizes of the second kernel: a program has a row of all points, and some of their partial sums."""
    block = max(64, 1 << (n_points - 1).bit_length())
    return {'BLOCK_N': block, 'BLOCK_C': 2048 // block}


def _search(sets: list[Tensor], n_neighbors: int, precision: str, correction: int | None = None) -> tuple[Tensor, ...]:
    """Squared distances, indices and status of some sets in two launches; with a correction, LIDs and status."""
    first = sets[0]
    n_points, device, start = first.shape[0], first.device, first.data_ptr()
    rows = tuple(((each.data_ptr() - start) // 4, each.stride(0), each.shape[1]) for each in sets)
    aligned = start % 16 == 0 and all(number % 4 == 0 for row in rows for number in row)
    tiles = -(-n_points // PRODUCTS['BLOCK_N'])
    shape = (len(sets), n_points)
    with torch.cuda.device_of(first):
        stream = torch.cuda.current_stream(device).cuda_stream if first.is_cuda else 0
        table, chunks = _tables(rows, device, stream)
        partial = torch.empty((len(chunks), n_points, n_points), dtype=torch.float32, device=device)
        status = torch.empty(shape, dtype=torch.int32, device=device)
        if correction is None:
            found = torch.empty((*shape, n_neighbors), dtype=torch.float32, device=device)
            index = torch.empty((*shape, n_neighbors), dtype=torch.int64, device=device)
        else:
            found = torch.empty(shape, dtype=torch.float32, device=device)
            index = chunks  # not used, nor written to
        _products_kernel[(len(chunks), tiles, tiles)](
            first, table, chunks, partial, n_points, PRECISION=PRECISION[precision], **products_sizes(aligned)
        )
        _finish_kernel[(len(sets) * n_points,)](
            first, table, partial, found, index, status, n_points, n_neighbors, correction or 0,
            LID=correction is not None, **finish_sizes(n_points), **FINISH,
        )  # fmt: skip
    return (found, index, status) if correction is None else (found, status)


@triton.jit
def _set(x_ptr, table_ptr, g, ALIGNED: tl.constexpr):
    """Pointer, stride and number of features of a set of points."""
    offset, stride, n_features = (
        tl.load(table_ptr + 4 * g),
        tl.load(table_ptr + 4 * g + 1),
        tl.load(table_ptr + 4 * g + 2),
    )
    if ALIGNED:  # changes nothing, but now the compiler knows as well
        offset, stride, n_features = offset // 4 * 4, stride // 4 * 4, n_features // 4 * 4
    return x_ptr + offset, stride, n_features


@triton.jit
def _origin(x_ptr, stride, n_points, n_features, columns):
    """Mean of the first points, of some features ``[BLOCK_D]``."""
    rows = tl.arange(0, ANCHORS)
    inside = (rows < n_points)[:, None] & (columns < n_features)[None, :]
    x = tl.load(x_ptr + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)
    return tl.sum(x, 0) / tl.minimum(n_points, ANCHORS)


@triton.jit
def _load(x_ptr, stride, n_points, n_features, rows, columns, origin, PRECISION: tl.constexpr):
    """A tile of features relative to the origin, rounded as they go into products, ``[len(rows), len(columns)]``."""
    inside = (rows < n_points)[:, None] & (columns < n_features)[None, :]
    x = tl.load(x_ptr + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)
    x = tl.where(inside, x - origin[None, :], 0.0)
    if PRECISION == 'bf16':
        x = x.to(tl.bfloat16)
    if PRECISION == 'tf32':  # norms and products must see the same numbers, so rounding is not left to the hardware
        x = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return x


@triton.jit
def _dot(a, b, total, PRECISION: tl.constexpr):
    if PRECISION == 'bf16':
        total = tl.dot(a, tl.trans(b), total)
    else:
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total


@triton.jit
def _keys(distances, columns):
    """Integers in the order of distances that are not negative, with the column in the low half."""
    return (distances.to(tl.int32, bitcast=True).to(tl.int64) << 32) | columns.to(tl.int64)


@triton.jit
def _distance(keys):
    return (keys >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _differences(x_ptr, stride, n_features, i, columns, inside, BLOCK_D: tl.constexpr):
    """Keys of point i and some others by their differences; whether a square has underflowed or overflowed."""
    total = tl.zeros(columns.shape, tl.float32)
    largest = tl.zeros(columns.shape, tl.float32)
    for d in range(0, n_features, BLOCK_D):
        features = d + tl.arange(0, BLOCK_D)
        valid = features < n_features
        point = tl.load(x_ptr + i * stride + features, mask=valid, other=0.0)
        others = tl.load(
            x_ptr + columns[:, None] * stride + features[None, :], mask=inside[:, None] & valid[None, :], other=0.0
        )
        difference = tl.where(inside[:, None], others - point[None, :], 0.0)
        total += tl.sum(difference * difference, 1)
        largest = tl.maximum(largest, tl.max(tl.abs(difference), 1))
    lost = ((largest > 0) & (total < TINY)) | ~(total < HUGE)
    keys = tl.where(inside & (columns != i), _keys(total, columns), NOBODY)
    return keys, tl.max(lost.to(tl.int32), 0)


@triton.jit
def _store(keys, squared_ptr, index_ptr, row, k, K: tl.constexpr):
    """Write the first k of ascending keys ``[K]`` as those of a row."""
    rank = tl.arange(0, K)
    tl.store(squared_ptr + row * k + rank, _distance(keys), mask=rank < k)
    tl.store(index_ptr + row * k + rank, keys & 0xFFFFFFFF, mask=rank < k)


@triton.jit(do_not_specialize=['n_points'])
def _products_kernel(
    x_ptr, table_ptr, chunks_ptr, partial_ptr, n_points,
    PRECISION: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Scalar products over one chunk of features, of a tile of pairs: ``partial[chunk, i, j]``."""
    chunk = tl.program_id(0).to(tl.int64)
    x_ptr, stride, n_features = _set(x_ptr, table_ptr, tl.load(chunks_ptr + 2 * chunk), ALIGNED)
    start = tl.load(chunks_ptr + 2 * chunk + 1) // CHUNK_D * CHUNK_D
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    others = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
    for d in range(0, CHUNK_D, BLOCK_D):
        columns = start + d + tl.arange(0, BLOCK_D)
        origin = _origin(x_ptr, stride, n_points, n_features, columns)
        a = _load(x_ptr, stride, n_points, n_features, rows, columns, origin, PRECISION)
        b = _load(x_ptr, stride, n_points, n_features, others, columns, origin, PRECISION)
        total = _dot(a, b, total, PRECISION)
    inside = (rows < n_points)[:, None] & (others < n_points)[None, :]
    tl.store(partial_ptr + (chunk * n_points + rows[:, None]) * n_points + others[None, :], total, mask=inside)


@triton.jit
def _lid(keys, k, correction, K: tl.constexpr):
    """LID from the first k of ascending keys ``[K]``, as :mod:`estimators` has it, in float64."""
    rank = tl.arange(0, K)
    squared = _distance(keys)
    last = tl.sum(tl.where(rank == k - 1, squared, 0.0), 0)
    apart = (rank < k) & (squared > 0)
    n_apart = tl.sum(apart.to(tl.int32), 0)
    ratios = tl.where(apart, last, 1.0).to(tl.float64) / tl.where(apart, squared, 1.0).to(tl.float64)
    logs = tl.sum(tl.log(ratios), 0)
    lid = 2 * (n_apart - correction).to(tl.float64) / logs
    lid = tl.where(logs <= n_apart * TIED, float('inf'), lid)
    return tl.where(n_apart < tl.maximum(correction, 1) + 1, 0.0, lid).to(tl.float32)


@triton.jit(do_not_specialize=['n_points', 'k', 'correction'])
def _finish_kernel(
    x_ptr, table_ptr, partial_ptr, found_ptr, index_ptr, status_ptr, n_points, k, correction,
    LID: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK_D: tl.constexpr,
):  # fmt: skip
    """The neighbours of one point, or its LID, from partial sums; by differences if those have cancelled."""
    row = tl.program_id(0).to(tl.int64)
    g, i = row // n_points, row % n_points
    x_ptr, stride, n_features = _set(x_ptr, table_ptr, g, False)
    first = tl.load(table_ptr + 4 * g + 3)
    last = first + tl.cdiv(n_features, CHUNK_D)
    columns = tl.arange(0, BLOCK_N)
    inside = columns < n_points
    products = tl.zeros([BLOCK_N], tl.float32)
    norms = tl.zeros([BLOCK_N], tl.float32)
    for c in range(first, last, BLOCK_C):
        chunk = c + tl.arange(0, BLOCK_C)
        valid = (chunk < last)[:, None] & inside[None, :]
        base = partial_ptr + chunk[:, None] * n_points * n_points
        products += tl.sum(tl.load(base + i * n_points + columns[None, :], mask=valid, other=0.0), 0)
        norms += tl.sum(tl.load(base + columns[None, :] * (n_points + 1), mask=valid, other=0.0), 0)
    scale = norms + tl.sum(tl.where(columns == i, norms, 0.0), 0)
    distances = tl.maximum(scale - 2 * products, 0.0)
    keys = tl.where(inside & (columns != i), _keys(distances, columns), NOBODY)
    close = inside & (columns != i) & ((distances < scale * CANCELLED) | (distances < TINY))
    status = tl.max((inside & ~(scale < HUGE)).to(tl.int32), 0)
    if tl.max(close.to(tl.int32), 0) > 0:
        keys, lost = _differences(x_ptr, stride, n_features, i, columns, inside, BLOCK_D)
        status = tl.maximum(status, lost)
    keys = tl.sort(keys)
    if LID:
        tl.store(found_ptr + row, _lid(keys, k, correction, BLOCK_N))
    else:
        _store(keys, found_ptr, index_ptr, row, k, BLOCK_N)
    tl.store(status_ptr + row, status)
