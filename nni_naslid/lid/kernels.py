"""Nearest neighbours and LID on CUDA, in few launches for many small sets of points: the kernels and who calls them.

Up to 1024 points (``_products_kernel``, ``_finish_kernel``): one set would keep a few multiprocessors busy, so the
scalar products are split along the features (split-K), and all sets share two launches, of which the second goes on to
the LID. Partial sums are added in a fixed order, without atomics, so results are equal from run to run. More points
(``_norms_kernel``, ``_search_kernel``, ``_refine_kernel``): each program compares a block of points with all others and
keeps the nearest so far.

Features are taken relative to the mean of the first 16 points, so that a common offset does not cancel; points so near
to others that their distances have cancelled all the same are searched again by differences.
"""

from __future__ import annotations

import functools

from nni_naslid.lid import plain

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ['lid_triton', 'nearest_neighbors_triton', 'unsupported']

SMALL = 1024  # points up to which two launches do
LARGE_K = 32  # the most neighbours of more points than that
WORKSPACE = 2**26  # numbers in the partial sums of one launch: 256 MiB
PRECISION = {'highest': 'tf32x3', 'high': 'tf32', 'medium': 'bf16'}
# Sizes of the kernels; where they have eight warps, four would spill registers. CHUNK_D: features of a partial sum.
CHUNK_D = 1024
PRODUCTS = {'BLOCK_N': 64, 'BLOCK_D': 32, 'CHUNK_D': CHUNK_D, 'num_warps': 8, 'num_stages': 2}
FINISH = {'CHUNK_D': CHUNK_D, 'num_warps': 8, 'num_stages': 2}
NORMS = {'BLOCK_D': 256, 'num_warps': 4, 'num_stages': 2}
SEARCH = {'K': LARGE_K, 'BLOCK_M': 32, 'BLOCK_N': 64, 'BLOCK_D': 16, 'num_warps': 8, 'num_stages': 2}
REFINE = {'K': LARGE_K, 'BLOCK_N': 64, 'BLOCK_D': 16, 'num_warps': 4, 'num_stages': 2}

ANCHORS = tl.constexpr(16)
CANCELLED = tl.constexpr(plain.CANCELLED)
TINY, HUGE = map(tl.constexpr, plain.range_of(torch.float32))
TIED = tl.constexpr(plain.TIED)
NOBODY = tl.constexpr(2**63 - 1)


def unsupported(points: Tensor, n_neighbors: int) -> str | None:
    """Why the kernels cannot take these points, or None."""
    if points.dtype == torch.float64:
        return 'float64 has no kernel'
    if points.shape[-2] > SMALL and n_neighbors > LARGE_K:
        return f'n_neighbors={n_neighbors} is more than {LARGE_K}, of more than {SMALL} points'
    if torch.version.hip:
        return 'the kernels have not been tried on ROCm'
    if points.is_cuda and torch.cuda.get_device_capability(points.device) < (8, 0):
        return 'the GPU is older than compute capability 8.0'
    return None


def nearest_neighbors_triton(
    features: list[Tensor], n_neighbors: int, precision: str = 'highest'
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances and neighbours ``[L, ..., N, k]``, and ``[L, ...]`` whether a set needs the careful search.

    A set needs it if it holds non-finite numbers, or such whose squares leave the range of float32.
    """
    sets, shape = _sets(features)
    n_points = shape[-1]
    squared = torch.empty((len(sets), n_points, n_neighbors), device=sets[0].device)
    index = torch.empty_like(squared, dtype=torch.long)
    status = torch.empty((len(sets), n_points), dtype=torch.int32, device=sets[0].device)
    if n_points <= SMALL:
        _launch_small(sets, n_neighbors, precision, squared, index, status)
    else:
        _launch_large(sets, n_neighbors, precision, squared, index, status)
    return squared.view(*shape, n_neighbors), index.view(*shape, n_neighbors), status.amax(1).bool().view(shape[:-1])


def lid_triton(
    features: list[Tensor], n_neighbors: int, correction: int, precision: str = 'highest'
) -> tuple[Tensor, Tensor]:
    """LIDs ``[L, ..., N]`` of up to ``SMALL`` points each, and ``[L, ..., N]`` what is not 0 in a set as above."""
    sets, shape = _sets(features)
    lid = torch.empty(shape, device=sets[0].device)
    status = torch.empty(shape, dtype=torch.int32, device=sets[0].device)
    _launch_small(sets, n_neighbors, precision, lid, None, status, correction)
    return lid, status


def _sets(features: list[Tensor]) -> tuple[list[Tensor], tuple[int, ...]]:
    """Sets of points ``[N, D]``, each batch one of its own, and their shape ``[L, ..., N]``.

    Float32 with adjacent features: a copy for others.
    """
    maps = [points.detach().float() for points in features]
    maps = [points if points.stride(-1) == 1 else points.contiguous() for points in maps]
    shape = (len(maps), *maps[0].shape[:-1])
    if maps[0].ndim == 2:
        return maps, shape
    return [each for points in maps for each in points.reshape(-1, *points.shape[-2:])], shape


def _tables(sets: list[Tensor], chunk: int) -> tuple[Tensor, Tensor, bool]:
    """Where the sets are, relative to the first, and their chunks: see :func:`_tables_of`; can loads be of 16 bytes?"""
    start, device = sets[0].data_ptr(), sets[0].device
    rows = tuple(((each.data_ptr() - start) // 4, each.stride(0), each.shape[1]) for each in sets)
    aligned = start % 16 == 0 and all(number % 4 == 0 for row in rows for number in row)
    stream = torch.cuda.current_stream(device).cuda_stream if sets[0].is_cuda else 0  # on which they are in order
    return *_tables_of(rows, chunk, device, stream), aligned


@functools.lru_cache(maxsize=256)
def _tables_of(
    rows: tuple[tuple[int, int, int], ...], chunk: int, device: torch.device, stream: int
) -> tuple[Tensor, Tensor]:
    """Offset, stride, features and first chunk of each set ``[G, 4]``; set and first feature of each chunk ``[C, 2]``.

    Kept, as copying them takes longer than the search of a small set.
    """
    table, chunks = [], []
    for g, row in enumerate(rows):
        table.append([*row, len(chunks)])
        chunks += [[g, first] for first in range(0, row[2], chunk)]
    return torch.tensor(table).to(device), torch.tensor(chunks).to(device)


def finish_sizes(n_points: int) -> dict[str, int]:
    """Sizes of the second kernel: a program has a row of all points, some of their partial sums, or some features."""
    block = max(64, triton.next_power_of_2(n_points))
    return {'BLOCK_N': block, 'BLOCK_C': 2048 // block, 'BLOCK_D': min(16, 4096 // block)}


def _launch_small(
    sets: list[Tensor], n_neighbors: int, precision: str, found: Tensor, index: Tensor | None, status: Tensor,
    correction: int = 0,
) -> None:  # fmt: skip
    """Squared distances and indices, or without the latter LIDs."""
    n_points = sets[0].shape[0]
    found, status = found.view(len(sets), n_points, -1), status.view(len(sets), n_points)
    most = max(triton.cdiv(each.shape[1], CHUNK_D) for each in sets)
    per_launch = max(1, WORKSPACE // (most * n_points**2))
    tiles = triton.cdiv(n_points, PRODUCTS['BLOCK_N'])
    with torch.cuda.device_of(sets[0]):
        for i in range(0, len(sets), per_launch):
            some = sets[i : i + per_launch]
            table, chunks, aligned = _tables(some, CHUNK_D)
            partial = torch.empty((len(chunks), n_points, n_points), device=table.device)
            _products_kernel[(len(chunks), tiles, tiles)](
                some[0], table, chunks, partial, n_points, PRECISION=PRECISION[precision], ALIGNED=aligned, **PRODUCTS
            )
            _finish_kernel[(len(some) * n_points,)](
                some[0], table, partial, found[i:], status[i:] if index is None else index[i:], status[i:], n_points,
                n_neighbors, correction, LID=index is None, **finish_sizes(n_points), **FINISH,
            )  # fmt: skip


def _launch_large(
    sets: list[Tensor], n_neighbors: int, precision: str, squared: Tensor, index: Tensor, status: Tensor
) -> None:
    n_points = sets[0].shape[0]
    with torch.cuda.device_of(sets[0]):
        table, _, aligned = _tables(sets, CHUNK_D)
        norms = torch.empty((len(sets), n_points), device=squared.device)
        _norms_kernel[(len(sets) * n_points,)](sets[0], table, norms, n_points, PRECISION=PRECISION[precision], **NORMS)
        _search_kernel[(len(sets), triton.cdiv(n_points, SEARCH['BLOCK_M']))](
            sets[0], table, norms, squared, index, status, n_points, n_neighbors,
            PRECISION=PRECISION[precision], ALIGNED=aligned, **SEARCH,
        )  # fmt: skip
        _refine_kernel[(len(sets) * n_points,)](sets[0], table, squared, index, status, n_points, n_neighbors, **REFINE)


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
def _smallest(keys, K: tl.constexpr):
    """The K smallest keys, ascending. Before 3.7, Triton finds the largest ones only."""
    return ~tl.topk(~keys, K)


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


@triton.jit(do_not_specialize=['n_points'])
def _norms_kernel(x_ptr, table_ptr, norms_ptr, n_points, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr):
    """Squared norm of one point relative to the origin."""
    row = tl.program_id(0).to(tl.int64)
    g, i = row // n_points, row % n_points
    x_ptr, stride, n_features = _set(x_ptr, table_ptr, g, False)
    total = tl.zeros([BLOCK_D], tl.float32)
    rows = i + tl.arange(0, 1)
    for d in range(0, n_features, BLOCK_D):
        columns = d + tl.arange(0, BLOCK_D)
        origin = _origin(x_ptr, stride, n_points, n_features, columns)
        x = _load(x_ptr, stride, n_points, n_features, rows, columns, origin, PRECISION).to(tl.float32)
        total += tl.sum(x * x, 0)
    tl.store(norms_ptr + row, tl.sum(total, 0))


@triton.jit(do_not_specialize=['n_points', 'k'])
def _search_kernel(
    x_ptr, table_ptr, norms_ptr, squared_ptr, index_ptr, status_ptr, n_points, k, PRECISION: tl.constexpr,
    ALIGNED: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The neighbours of a block of points, one block of others after another; status 2 if distances have cancelled."""
    g = tl.program_id(0).to(tl.int64)
    x_ptr, stride, n_features = _set(x_ptr, table_ptr, g, ALIGNED)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    own = tl.load(norms_ptr + g * n_points + rows, mask=rows < n_points, other=0.0)
    best = tl.full([BLOCK_M, K], NOBODY, tl.int64)
    for j in range(0, n_points, BLOCK_N):
        others = j + tl.arange(0, BLOCK_N)
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for d in range(0, n_features, BLOCK_D):
            columns = d + tl.arange(0, BLOCK_D)
            origin = _origin(x_ptr, stride, n_points, n_features, columns)
            a = _load(x_ptr, stride, n_points, n_features, rows, columns, origin, PRECISION)
            b = _load(x_ptr, stride, n_points, n_features, others, columns, origin, PRECISION)
            total = _dot(a, b, total, PRECISION)
        norms = tl.load(norms_ptr + g * n_points + others, mask=others < n_points, other=0.0)
        distances = tl.maximum(own[:, None] + norms[None, :] - 2 * total, 0.0)
        valid = (others < n_points)[None, :] & (rows[:, None] != others[None, :])
        near = _smallest(tl.where(valid, _keys(distances, others[None, :]), NOBODY), K)
        best = _smallest(tl.reshape(tl.join(best, near), [BLOCK_M, 2 * K]), K)
    rank = tl.arange(0, K)
    neighbor = best & 0xFFFFFFFF
    wanted = (rows < n_points)[:, None] & (rank < k)[None, :]
    distances = _distance(best)
    scale = own[:, None] + tl.load(norms_ptr + g * n_points + neighbor, mask=wanted, other=0.0)
    close = wanted & ((distances < scale * CANCELLED) | (distances < TINY) | ~(scale < HUGE))
    row = g * n_points + rows
    tl.store(squared_ptr + row[:, None] * k + rank[None, :], distances, mask=wanted)
    tl.store(index_ptr + row[:, None] * k + rank[None, :], neighbor, mask=wanted)
    status = tl.where(own < HUGE, 2 * tl.max(close.to(tl.int32), 1), 1)
    tl.store(status_ptr + row, status, mask=rows < n_points)


@triton.jit(do_not_specialize=['n_points', 'k'])
def _refine_kernel(
    x_ptr, table_ptr, squared_ptr, index_ptr, status_ptr, n_points, k,
    K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Search the neighbours of one point again, by differences, where the status says so."""
    row = tl.program_id(0).to(tl.int64)
    g, i = row // n_points, row % n_points
    if tl.load(status_ptr + row) == 2:
        x_ptr, stride, n_features = _set(x_ptr, table_ptr, g, False)
        best = tl.full([K], NOBODY, tl.int64)
        status = 0
        for j in range(0, n_points, BLOCK_N):
            columns = j + tl.arange(0, BLOCK_N)
            keys, lost = _differences(x_ptr, stride, n_features, i, columns, columns < n_points, BLOCK_D)
            status = tl.maximum(status, lost)
            near = _smallest(keys, K)
            best = _smallest(tl.reshape(tl.join(best, near), [2 * K]), K)
        _store(best, squared_ptr, index_ptr, row, k, K)
        tl.store(status_ptr + row, status)
