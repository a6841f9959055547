"""How alike candidates are by their profiles of several repeats."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nni_naslid.run.checks import one_of

import torch
from torch import Tensor

__all__ = ['SIMILARITIES', 'Similarity', 'check_profiles', 'similarity_matrix', 'similarity_of']

FLAT = 1e-12  # differences of a profile's layers that are less than this part of it are rounding errors


def similarity_matrix(profiles: Tensor, similarity: str = 'log_euclidean') -> Tensor:
    r"""Similarity of every two candidates by their LID profiles.

    .. math:: s_{ab} = \exp\Big(-\frac{1}{R(R-1)L} \sum_{r \ne r'} \sum_l \delta_{rl} \, \delta_{r'l}\Big),
              \qquad \delta_{rl} = \log(1 + p_{ral}) - \log(1 + p_{rbl})

    is ``'log_euclidean'``. The exponent is the mean square over the layers of the log-ratio of two profiles, estimated
    without bias: products of the same repeat are left out, so what differs between two candidates in single repeats
    only counts as 0 in expectation. (It is the cross-validated distance of neuroimaging: `Walther et al., 2016
    <https://doi.org/10.1016/j.neuroimage.2015.12.012>`__.) A similarity of .9 means that profiles differ by a factor
    of about 1.4 in a typical layer. Absolute similarities can therefore be compared between labels.

    The others are ratios of such products, which are left out in the same way, so they are nearly without bias:

    .. math:: \langle a, b \rangle = \sum_{r \ne r'} \sum_l p_{ral} \, p_{r'bl}, \qquad
              \mathrm{euclidean} = \frac{2 \langle a, b \rangle}{\langle a, a \rangle + \langle b, b \rangle}, \qquad
              \mathrm{cosine} = \frac{\langle a, b \rangle}{\sqrt{\langle a, a \rangle \langle b, b \rangle}}

    ``'euclidean'`` is one less the squared distance of two mean profiles, divided by the sum of their squared lengths:
    layers of high LID count most, and a factor between all profiles does not count. ``'pearson'`` is the cosine of
    profiles less their mean over the layers, cut to ``[-1, 1]``, as profiles may be flat but for noise. (Two that are
    opposed stay so where they change places in some repeats: permutations then tell little of them.)

    Parameters
    ----------
    profiles
        LID profiles, of shape ``[..., R, C, L]`` with ``L >= 1``, non-negative: in each of ``R >= 2`` repeats all
        candidates have seen the same batch and path.
    similarity
        ``'log_euclidean'``, ``'euclidean'``, ``'pearson'`` or ``'cosine'``.

    Returns
    -------
    Similarities, of shape ``[..., C, C]``, float64, 1 on the diagonal; in ``(0, 1]`` (``'pearson'``: ``[-1, 1]``) but
    for the noise of the repeats. Of the ratios, 1 where the profiles of both candidates are zero (``'pearson'``: flat),
    and 0 where that of one is.

    Notes
    -----
    NAS-LID uses the cosine, which barely separates profiles: they all point along the same positive diagonal. A
    candidate that doubles all LIDs is the same to it, and to Pearson's correlation. The published code takes the mean
    of what each repeat gives by itself, where noise makes candidates less alike; with the same profile in all repeats
    ours is the same (but for the 1e-6 that it adds to the product of the lengths, and its distance, which is
    ``1 / (1 + |a - b|)`` there). The published estimate of LID is ours times ``k / (k - 2)``, which a cosine does not
    see.

    One is added before the logarithm because the LID of constant features (a path of ``none``) is 0.

    Raises
    ------
    ValueError
        If ``profiles`` has another shape, or is not finite and non-negative, or ``similarity`` is unknown.
    """
    check_profiles(profiles)
    prepared, similar = similarity_of(similarity)
    return similar(prepared(profiles.double()))


def check_profiles(profiles: Tensor) -> None:
    """Raise what :func:`similarity_matrix` says it raises about profiles."""
    if profiles.ndim < 3 or profiles.shape[-3] < 2:
        raise ValueError(f'profiles must have shape [..., R, C, L] with R >= 2, but got {tuple(profiles.shape)}.')
    if profiles.shape[-1] < 1:
        raise ValueError(f'profiles must have at least one layer, but got shape {tuple(profiles.shape)}.')
    if not (profiles.isfinite().all() and (profiles >= 0).all()):
        raise ValueError('profiles must be finite and non-negative.')


class Similarity(NamedTuple):
    """What is made of profiles once, and of that, or of some repeats of it in any order, similarities."""

    prepared: Callable[[Tensor], Tensor]  # of [..., R, C, L], in its shape
    similar: Callable[[Tensor], Tensor]  # of [..., R, C, L], as [..., C, C]


def similarity_of(name: str) -> Similarity:
    """One of :data:`SIMILARITIES`; a ValueError where there is none of this name."""
    return SIMILARITIES[one_of('similarity', name, SIMILARITIES)]


def _log_euclidean(logs: Tensor) -> Tensor:
    n_repeats, _, n_layers = logs.shape[-3:]
    # Over pairs of different repeats: the square of the sum, less the sum of the squares.
    squares = _squared_distances(logs.sum(-3)) - _squared_distances(logs).sum(-3)  # [..., C, C]
    return squares.div(n_repeats * (n_repeats - 1) * n_layers).neg().exp()


def _squared_distances(x: Tensor) -> Tensor:
    gram = x @ x.mT
    norms = gram.diagonal(dim1=-2, dim2=-1)
    return norms.unsqueeze(-1) + norms.unsqueeze(-2) - 2 * gram


def _euclidean(profiles: Tensor) -> Tensor:
    return _ratio(profiles, lambda a, b: (a + b) / 2)


def _cosine(profiles: Tensor) -> Tensor:
    return _ratio(profiles, lambda a, b: a.sqrt() * b.sqrt())


def _pearson(centred: Tensor) -> Tensor:
    return _cosine(centred).clamp(-1, 1)


def _ratio(x: Tensor, mean: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Products of every two candidates, over pairs of different repeats, in units of a mean of their own products."""
    total = x.sum(-3)
    products = total @ total.mT - (x @ x.mT).sum(-3)  # [..., C, C]
    own = products.diagonal(dim1=-2, dim2=-1).clamp_min(0)
    one, other = own.unsqueeze(-1), own.unsqueeze(-2)
    scale = mean(one, other)
    return torch.where(one + other == 0, 1, torch.where(scale == 0, 0, products / scale))


def _centred(profiles: Tensor) -> Tensor:
    centred = profiles - profiles.mean(-1, keepdim=True)
    return centred.masked_fill(centred.abs() <= FLAT * profiles.amax(-1, keepdim=True), 0)


SIMILARITIES = {
    'log_euclidean': Similarity(torch.log1p, _log_euclidean),
    'euclidean': Similarity(torch.clone, _euclidean),
    'pearson': Similarity(_centred, _pearson),
    'cosine': Similarity(torch.clone, _cosine),
}
