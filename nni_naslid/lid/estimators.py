"""Intrinsic dimension of a batch of points, by the distances to nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from operator import index
from types import ModuleType
from typing import Any

from nni_naslid.lid import cpu, plain
from nni_naslid.lid.op import check_points, irregular, is_eager, kernels_for, nearest_neighbors
from nni_naslid.lid.plain import RESOLUTION, TIED

import numpy as np
import torch
from torch import Tensor

__all__ = ['check_tensor', 'lid_mle', 'lid_profile', 'mean_lid', 'to_points', 'two_nn']

MEANS = ('arithmetic', 'harmonic')


def lid_mle(
    features: Tensor,
    n_neighbors: int = 20,
    *,
    correction: int = 2,
    precision: str = 'highest',
    non_finite: str = 'raise',
) -> Tensor:
    r"""Local intrinsic dimension of every point, by the maximum-likelihood estimator, unbiased by default.

    .. math:: \mathrm{LID}(x_i) = (k - c) \Big/ \sum_{j=1}^{k-1} \log \frac{r_{ik}}{r_{ij}}

    where :math:`r_{ij}` is the Euclidean distance from :math:`x_i` to its :math:`j`-th nearest neighbour in the batch,
    itself excluded. For locally uniform data of dimension :math:`d` the sum is Gamma-distributed with shape
    :math:`k - 1` and rate :math:`d`, so that :math:`c = 2` is unbiased.

    Parameters
    ----------
    features
        Points, of shape ``[..., N, D]``; leading dimensions are independent batches. Any floating dtype.
    n_neighbors
        :math:`k`, the number of neighbours; more than ``correction`` and than 1, less than ``N``.
    correction
        :math:`c`: 2 for the unbiased estimate; 1 for `Levina & Bickel, 2004, equation 8
        <https://papers.nips.cc/paper/2004/hash/74934548253bcab8490ebd74afed7031-Abstract.html>`__; 0 for the estimate
        of `Ma et al., 2018, equation 4 <https://arxiv.org/abs/1801.02613>`__, which NAS-LID uses.
    precision
        Of float32 matrix products on CUDA: ``'highest'``, ``'high'`` or ``'medium'``, as in
        :func:`torch.set_float32_matmul_precision`, whose setting has no influence here.
    non_finite
        What a point with NaN or infinity does: ``'raise'`` an error, or ``'nan'``: its LID is NaN, and it is nobody's
        neighbour.

    Returns
    -------
    LID of each point, of shape ``[..., N]``, float32 (float64 for float64 input), in dimensions (no unit), without a
    gradient. Neighbours that coincide with the point say nothing about its dimension and are left out of ``k`` and of
    the sum; a point without ``max(c, 1) + 1`` others among its neighbours has LID 0. A point whose neighbours are all
    at one distance has LID infinity, also where only rounding tells the distances apart (above about 16,000 in
    float32). With ``non_finite='nan'``, NaN also where less than ``k`` finite neighbours are left.

    Raises
    ------
    TypeError
        If ``features`` are no dense tensor of floating dtype, or ``n_neighbors`` is no integer.
    ValueError
        If ``features`` have less than two dimensions, no feature or less than 3 points, or hold a non-finite number;
        if ``n_neighbors`` is out of its range, or an option is unknown.

    Examples
    --------
    >>> plane = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) @ torch.eye(2, 8)
    >>> round(lid_mle(plane).mean().item(), 1)
    1.9
    """
    return _mle([features], n_neighbors, correction, precision, non_finite)[0]


def lid_profile(
    features: Iterable[Tensor],
    n_neighbors: int = 20,
    *,
    correction: int = 2,
    mean: str = 'arithmetic',
    precision: str = 'highest',
) -> Tensor:
    """Mean LID of each of several feature maps of one batch, in a single call of the op.

    Parameters
    ----------
    features
        ``L`` feature maps of the same ``N`` inputs, each of shape ``[N, ...]``; ``[N]`` is one feature of each.
    n_neighbors, correction, precision
        As in :func:`lid_mle`.
    mean
        As in :func:`mean_lid`.

    Returns
    -------
    Profile, of shape ``[L]``, float32 (float64 for float64 input).

    Raises
    ------
    TypeError, ValueError
        As :func:`lid_mle` and :func:`mean_lid`; also if the maps differ in ``N`` or in dtype, if there are none, or if
        ``features`` are one tensor (which may be one map, or several that are stacked) or a dict.

    Examples
    --------
    >>> maps = [torch.rand(500, 3, 4, 4), torch.rand(500, 1)]
    >>> lid_profile(maps).shape
    torch.Size([2])
    """
    if isinstance(features, (Tensor, Mapping)) or not isinstance(features, Iterable):
        raise TypeError(f'features must be a list of feature maps, but got {_brief(features)}.')
    maps = [to_points(each) for each in features]
    lid = _mle(maps, n_neighbors, correction, precision, 'raise')
    return mean_lid(torch.stack(lid) if isinstance(lid, list) else lid, mean)


def mean_lid(lid: Tensor, mean: str = 'arithmetic') -> Tensor:
    """Mean of LIDs over points ``[..., N] -> [...]``; of those that are finite, 0 where there are none.

    Parameters
    ----------
    lid
        From :func:`lid_mle`.
    mean
        ``'arithmetic'``, or ``'harmonic'``, the mean of `MacKay & Ghahramani, 2005
        <http://www.inference.org.uk/mackay/dimension/>`__ (meant for ``correction=1``); it leaves out points of LID 0.

    Raises
    ------
    TypeError
        If ``lid`` is no dense tensor of real numbers.
    ValueError
        If ``mean`` is unknown.
    """
    check_tensor(lid, 'lid')
    if lid.is_complex():
        raise TypeError(f'lid must be real, but got {_brief(lid)}.')
    if mean not in MEANS:
        raise ValueError(f'mean must be one of {MEANS}, but got {mean!r}.')
    harmonic = mean == 'harmonic'
    counts = lid.isfinite() & (lid > 0) if harmonic else lid.isfinite()
    values = torch.where(counts, 1 / lid if harmonic else lid, 0)
    average = values.sum(-1) / counts.sum(-1).clamp_min(1)
    return torch.where(average > 0, 1 / average, 0) if harmonic else average


def two_nn(
    features: Tensor,
    *,
    method: str = 'linear',
    discard_fraction: float = 0.1,
    precision: str = 'highest',
    non_finite: str = 'raise',
) -> Tensor:
    r"""Intrinsic dimension of a batch of points, by the ratios of the distances to their two nearest neighbours.

    :math:`\log \mu_i = \log (r_{i2} / r_{i1})` is exponentially distributed with the dimension as its rate. See
    `Facco et al., 2017 <https://www.nature.com/articles/s41598-017-11873-y>`__.

    Parameters
    ----------
    features
        Points, of shape ``[..., N, D]``; leading dimensions are independent batches. Any floating dtype.
    method
        ``'linear'``: the slope of :math:`-\log (1 - F(\mu))` over :math:`\log \mu`, through the origin, where
        :math:`F` is the empirical distribution. ``'mle'``: the unbiased maximum-likelihood estimate
        :math:`(n - 1) / (\sum_{i \le n} \log \mu_{(i)} + (N - n) \log \mu_{(n)})` of the :math:`n` smallest ratios.
    discard_fraction
        Part of the ratios, the largest, that is discarded (``'mle'``: censored); in ``[0, 1)``. The linear fit always
        discards the largest one, where :math:`F = 1`.
    precision, non_finite
        As in :func:`lid_mle`; points with non-finite numbers are left out.

    Returns
    -------
    Dimension of each batch, of shape ``[...]``, float32 (float64 for float64 input), without a gradient. Points that
    coincide with another are left out; where less than two ratios are kept the dimension is 0. It is infinity where all
    ratios are 1, also where only rounding tells them from it.

    Raises
    ------
    TypeError, ValueError
        As :func:`lid_mle`; also if ``method`` is unknown or ``discard_fraction`` out of range.

    Examples
    --------
    >>> plane = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) @ torch.eye(2, 8)
    >>> round(two_nn(plane).item(), 1)
    2.1
    """
    if method not in ('linear', 'mle'):
        raise ValueError(f"method must be 'linear' or 'mle', but got {method!r}.")
    if not isinstance(discard_fraction, Real):
        raise TypeError(f'discard_fraction must be a number, but got {_brief(discard_fraction)}.')
    if not 0 <= discard_fraction < 1:
        raise ValueError(f'discard_fraction must be in [0, 1), but got {discard_fraction}.')
    check_tensor(features)
    squared = nearest_neighbors([features.detach()], 2, precision, non_finite)[0][0]
    first, second = squared.unbind(-1)
    counts = (first > 0) & second.isfinite()
    logs = (second.double().log() - first.double().log()) / 2
    ratios = torch.where(counts, logs, torch.inf).sort(-1).values  # [..., N]
    n_points = counts.sum(-1, keepdim=True)
    n_kept = (n_points.double() * (1 - discard_fraction)).long()
    rank = torch.arange(1, ratios.shape[-1] + 1, device=ratios.device)
    if method == 'linear':
        n_kept = torch.minimum(n_kept, n_points - 1)
    kept = rank <= n_kept
    x = torch.where(kept, ratios, 0)
    if method == 'linear':
        y = -torch.log1p(-torch.where(kept, rank.to(x.dtype) / n_points, 0))
        numerator, denominator = (x * y).sum(-1), x.square().sum(-1)
    else:
        last = ratios.gather(-1, (n_kept - 1).clamp_min(0))
        numerator = (n_kept - 1).squeeze(-1)
        denominator = x.sum(-1) + ((n_points - n_kept) * torch.where(n_kept > 0, last, 0)).squeeze(-1)
    tied = x.amax(-1) <= RESOLUTION * torch.finfo(squared.dtype).eps
    dimension = torch.where(tied, torch.inf, numerator / denominator)
    return torch.where(n_kept.squeeze(-1) < 2, 0, dimension).to(squared.dtype)


def to_points(features: Tensor) -> Tensor:
    """Feature maps ``[N, ...]`` as points ``[N, D]``; a view also for ``channels_last``, as any order will do.

    Raises
    ------
    TypeError
        If ``features`` are no dense tensor.
    ValueError
        If they have no dimension.
    """
    check_tensor(features)
    if features.ndim < 2:
        if not features.ndim:
            raise ValueError('features must have shape [N, ...], but got a single number.')
        return features.unsqueeze(1)
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    if features.ndim in layouts and features.is_contiguous(memory_format=layouts[features.ndim]):
        features = features.movedim(1, -1)
    return features.flatten(1)


def check_tensor(value: Any, name: str = 'features') -> None:
    """Raise for what is no dense tensor; of features, :func:`check_points` looks at the rest."""
    if not isinstance(value, Tensor):
        raise TypeError(f'{name} must be tensors, but got {_brief(value)}; torch.as_tensor makes one.')
    if value.layout is not torch.strided or value.is_nested:
        raise TypeError(f'{name} must be dense tensors, but got {_brief(value)}.')


def _integer(n_neighbors: Any) -> int:
    """An integer of another type, such as numpy's, as Python's."""
    try:
        return index(n_neighbors)
    except TypeError:
        raise TypeError(f'n_neighbors must be an integer, but got {_brief(n_neighbors)}.') from None


def _brief(value: Any) -> str:
    """What an error says of a value of the wrong type: in one line, however large it is."""
    if isinstance(value, Tensor):
        if value.is_nested:
            return 'a nested tensor'
        layout = '' if value.layout is torch.strided else f'{value.layout} '.removeprefix('torch.')
        return f'a {layout}tensor of {value.dtype} and shape {tuple(value.shape)}'
    if value is None or isinstance(value, (int, float, str)):
        return f'{value!r:.100}'
    return type(value).__name__


def _mle(
    features: list[Tensor], n_neighbors: int, correction: int, precision: str, non_finite: str
) -> list[Tensor] | Tensor:
    """LIDs ``[..., N]`` of each of several sets of points ``[..., N, D]``."""
    for points in features:
        check_tensor(points)
    if correction not in (0, 1, 2):
        raise ValueError(f'correction must be 0, 1 or 2, but got {correction!r}.')
    enough = max(correction, 1) + 1
    if type(n_neighbors) is not int:
        n_neighbors = _integer(n_neighbors)
    if n_neighbors < enough:
        raise ValueError(f'n_neighbors must be at least {enough} with correction={correction}, but got {n_neighbors}.')
    if all(map(is_eager, features)):  # without the op's dispatcher
        check_points(features, n_neighbors, precision, non_finite)
        if features[0].is_cpu:
            return [_mle_on_cpu(points, n_neighbors, correction, non_finite) for points in features]
        if features[0].is_cuda and (kernels := kernels_for(features[0])) is not None:
            return _mle_on_cuda(kernels, features, n_neighbors, correction, precision, non_finite)
    features = [points.detach() for points in features]
    return _from_squares(nearest_neighbors(features, n_neighbors, precision, non_finite)[0], correction)


def _mle_on_cpu(points: Tensor, n_neighbors: int, correction: int, non_finite: str) -> Tensor:
    """LIDs ``[..., N]``. Of few points, the number of calls is most of the time: of ordinary ones there are few."""
    squared = cpu.find_distances(points, n_neighbors)
    if squared is None:
        return _from_squares(plain.find_neighbors(points, n_neighbors, non_finite)[0], correction)
    with np.errstate(all='ignore'):
        product = (squared / squared[:, -1:]).prod(1)  # one logarithm for each point
        logs = -np.log(product)
    if product.min() > 1e-300 and logs.min() > n_neighbors * TIED:  # nothing coincides, underflows, or is tied
        return torch.from_numpy((2 * (n_neighbors - correction) / logs).astype(np.float32))
    return _from_squares(torch.from_numpy(squared).float(), correction)


def _mle_on_cuda(
    kernels: ModuleType, features: list[Tensor], n_neighbors: int, correction: int, precision: str, non_finite: str
) -> Tensor:
    """LIDs ``[L, ..., N]`` by the fused kernels; of sets that these cannot take by plain torch."""
    lid, status = kernels.lid_triton(features, n_neighbors, correction, precision)
    for i in irregular(status):
        lid[i] = _from_squares(plain.find_neighbors(features[i], n_neighbors, non_finite)[0], correction)
    return lid


def _from_squares(squared: Tensor, correction: int) -> Tensor:
    """LIDs of squared distances ``[..., k]``, the largest last."""
    apart = squared != 0
    n_apart = apart.sum(-1)
    logs = squared.double().log()  # of squares: twice the logarithms of distances
    logs = (logs[..., -1:] - logs).masked_fill_(~apart, 0).sum(-1)
    lid = 2 * (n_apart - correction) / logs  # NaN where the furthest distance is NaN or infinite
    tied = logs <= n_apart * (2 * RESOLUTION * torch.finfo(squared.dtype).eps)
    return lid.masked_fill_(tied, torch.inf).masked_fill_(n_apart < max(correction, 1) + 1, 0).to(squared.dtype)
