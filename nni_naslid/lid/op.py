"""The op ``torch.ops.nni_naslid.nearest_neighbors``: exact nearest neighbours inside a batch of points."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from types import ModuleType

from nni_naslid.lid import cpu, plain

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ['check_points', 'irregular', 'is_eager', 'kernels_for', 'nearest_neighbors']

_logger = logging.getLogger(__name__)

PRECISIONS = ('highest', 'high', 'medium')


@torch.library.custom_op('nni_naslid::nearest_neighbors', mutates_args=())
def nearest_neighbors(
    features: Sequence[Tensor], n_neighbors: int, precision: str = 'highest', non_finite: str = 'raise'
) -> tuple[Tensor, Tensor]:
    """Squared Euclidean distances to the nearest neighbours of each point, itself excluded, and who they are.

    A custom op, so that it can be used under ``torch.compile`` and has a CUDA kernel; it has no gradient.

    Parameters
    ----------
    features
        ``L`` sets of points, each of shape ``[..., N, D]``, where only ``D`` may differ between sets. Leading
        dimensions are independent batches. Any floating dtype and strides; float16 and bfloat16 count as float32.
    n_neighbors
        :math:`k`, the number of neighbours; ``1 <= n_neighbors < N``.
    precision
        Of float32 matrix products on CUDA, as in :func:`torch.set_float32_matmul_precision` (whose setting has no
        influence here): ``'highest'`` is float32, ``'high'`` TF32, ``'medium'`` bfloat16. On the CPU all are float32.
    non_finite
        What a point with NaN or infinity does: ``'raise'`` an error, or ``'nan'``: it is nobody's neighbour and its
        distances are NaN. Where less than ``n_neighbors`` finite others are left, the missing distances are infinity.

    Returns
    -------
    tuple
        Squared distances, ascending, and indices of the neighbours in ``[0, N)`` (-1 where there is none), both of
        shape ``[L, ..., N, k]``; float32 (float64 for float64 input) and int64. Squares that would leave the range of
        the dtype are multiplied by a power of four, the same for all neighbours of a point.

    Raises
    ------
    TypeError
        If ``features`` are not tensors of one floating dtype.
    ValueError
        If they are empty, differ in more than ``D`` or in their devices, have less than two dimensions or no feature,
        or hold a non-finite number; if ``n_neighbors`` is not in ``[1, N)``, or an option is unknown.
    """
    check_points(features, n_neighbors, precision, non_finite)
    return _find_all(features, n_neighbors, non_finite)


@nearest_neighbors.register_fake
def _(
    features: Sequence[Tensor], n_neighbors: int, precision: str = 'highest', non_finite: str = 'raise'
) -> tuple[Tensor, Tensor]:
    check_points(features, n_neighbors, precision, non_finite)
    first = features[0]
    shape = (len(features), *first.shape[:-1], n_neighbors)
    return first.new_empty(shape, dtype=plain.wide_dtype(first)), first.new_empty(shape, dtype=torch.long)


@nearest_neighbors.register_kernel('cuda')
def _nearest_neighbors_cuda(
    features: Sequence[Tensor], n_neighbors: int, precision: str = 'highest', non_finite: str = 'raise'
) -> tuple[Tensor, Tensor]:
    check_points(features, n_neighbors, precision, non_finite)
    kernels = kernels_for(features[0])
    if kernels is None:
        return _find_all(features, n_neighbors, non_finite)
    squared, index, status = kernels.nearest_neighbors_triton(features, n_neighbors, precision)
    for i in irregular(status):
        squared[i], index[i] = plain.find_neighbors(features[i], n_neighbors, non_finite)
    return squared, index


def irregular(status: Tensor) -> list[int]:
    """Which features have a set ``[L, ..., N]`` that the kernels could not take."""
    status = status.cpu()  # one wait for the GPU, and no launch
    return status.flatten(1).any(1).nonzero().flatten().tolist() if status.any() else []


def kernels_for(points: Tensor) -> ModuleType | None:
    """The module of the fused kernels, if they can take points on CUDA; if not, the log says why."""
    try:
        from nni_naslid.lid import kernels  # here, as triton may be missing, and only CUDA needs it
    except ImportError as error:
        reason = f'triton cannot be imported ({error})'
    else:
        reason = kernels.unsupported(points)
    if reason:
        _say(reason)
    return None if reason or not points.numel() else kernels


@functools.cache
def _say(reason: str) -> None:
    """Log once why there is no fused kernel."""
    _logger.warning('Nearest neighbours on CUDA are searched by plain torch: %s.', reason)


def is_eager(tensor: Tensor) -> bool:
    """Whether its memory may be read as it is: it is of no subclass, and nobody records or transforms the call."""
    return (
        type(tensor) is Tensor
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_in_torch_dispatch_mode()
        and peek_interpreter_stack() is None  # of torch.func
    )


def _find_all(features: Sequence[Tensor], n_neighbors: int, non_finite: str) -> tuple[Tensor, Tensor]:
    """What the op returns, set by set, without a kernel: by numpy, or whatever it refuses by torch."""
    found = [
        cpu.find_neighbors(points, n_neighbors) or plain.find_neighbors(points, n_neighbors, non_finite)
        for points in features
    ]
    return tuple(torch.stack(each) for each in zip(*found, strict=True))


def check_points(features: Sequence[Tensor], n_neighbors: int, precision: str, non_finite: str) -> None:
    """Raise what :func:`nearest_neighbors` says it raises, but for non-finite numbers."""
    if not len(features):
        raise ValueError('features must hold at least one set of points, but are empty.')
    first = features[0]
    for points in features:
        if not points.is_floating_point():
            raise TypeError(f'features must be floating point, but got {points.dtype}.')
        if points.ndim < 2 or points.shape[-1] == 0:
            raise ValueError(f'features must have shape [..., N, D] with D > 0, but got {tuple(points.shape)}.')
    for points in features[1:]:
        if points.device != first.device:
            raise ValueError(f'All features must be on one device, but are on {first.device} and {points.device}.')
        if points.dtype != first.dtype:
            raise TypeError(f'All features must have one dtype, but got {first.dtype} and {points.dtype}.')
        if points.shape[:-1] != first.shape[:-1]:
            raise ValueError(
                'All features must have the same shape [..., N, D] but for D, but got '
                f'{tuple(first.shape)} and {tuple(points.shape)}.'
            )
    n_points = first.shape[-2]
    if n_points < 3:
        raise ValueError(f'features must hold at least 3 points, but got N = {n_points}.')
    if not 1 <= n_neighbors < n_points:
        raise ValueError(f'n_neighbors must be in [1, N) with N = {n_points} points, but got {n_neighbors}.')
    if precision not in PRECISIONS:
        raise ValueError(f'precision must be one of {PRECISIONS}, but got {precision!r}.')
    if non_finite not in ('raise', 'nan'):
        raise ValueError(f"non_finite must be 'raise' or 'nan', but got {non_finite!r}.")
