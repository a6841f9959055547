"""Which candidates of a label are alike: similarity of their LID profiles, and the best partition into groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from nni_naslid.criteria.evidence import Partition

import torch
from numpy.random import RandomState
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import t as student_t
from torch import Tensor

__all__ = ['best_partition', 'best_partition_of_similarities', 'contrast', 'set_partitions', 'similarity_matrix']

MAX_ENUMERATED = 10  # candidates: 115,975 set partitions; above, hierarchical clustering proposes them


def similarity_matrix(profiles: Tensor) -> Tensor:
    r"""Similarity of every two candidates, from the log-Euclidean distance of their LID profiles.

    .. math:: s_{ab} = \exp\Big(-\frac{1}{R(R-1)L} \sum_{r \ne r'} \sum_l \delta_{rl} \, \delta_{r'l}\Big),
              \qquad \delta_{rl} = \log(1 + p_{ral}) - \log(1 + p_{rbl})

    The exponent is the mean square over the layers of the log-ratio of two profiles, estimated without bias: products
    of the same repeat are left out, so what differs between two candidates in single repeats only counts as 0 in
    expectation. (It is the cross-validated distance of neuroimaging: `Walther et al., 2016
    <https://doi.org/10.1016/j.neuroimage.2015.12.012>`__.) A similarity of .9 means that profiles differ by a factor
    of about 1.4 in a typical layer. Absolute similarities can therefore be compared between labels.

    Parameters
    ----------
    profiles
        LID profiles, of shape ``[..., R, C, L]`` with ``L >= 1``, non-negative: in each of ``R >= 2`` repeats all
        candidates have seen the same batch and path.

    Returns
    -------
    Similarities, of shape ``[..., C, C]``, float64, 1 on the diagonal; in ``(0, 1]`` but for the noise of the repeats.

    Notes
    -----
    NAS-LID uses the cosine, which barely separates profiles: they all point along the same positive diagonal.
    One is added before the logarithm because the LID of constant features (a path of ``none``) is 0.

    Raises
    ------
    ValueError
        If ``profiles`` has another shape, or is not finite and non-negative.
    """
    _check_profiles(profiles)
    return _similarity(profiles.double().log1p())


def _check_profiles(profiles: Tensor) -> None:
    if profiles.ndim < 3 or profiles.shape[-3] < 2:
        raise ValueError(f'profiles must have shape [..., R, C, L] with R >= 2, but got {tuple(profiles.shape)}.')
    if profiles.shape[-1] < 1:
        raise ValueError(f'profiles must have at least one layer, but got shape {tuple(profiles.shape)}.')
    if not (profiles.isfinite().all() and (profiles >= 0).all()):
        raise ValueError('profiles must be finite and non-negative.')


def _similarity(logs: Tensor) -> Tensor:
    n_repeats, _, n_layers = logs.shape[-3:]
    # Over pairs of different repeats: the square of the sum, less the sum of the squares.
    squares = _squared_distances(logs.sum(-3)) - _squared_distances(logs).sum(-3)  # [..., C, C]
    return squares.div(n_repeats * (n_repeats - 1) * n_layers).neg().exp()


def _squared_distances(x: Tensor) -> Tensor:
    gram = x @ x.mT
    norms = gram.diagonal(dim1=-2, dim2=-1)
    return norms.unsqueeze(-1) + norms.unsqueeze(-2) - 2 * gram


def set_partitions(n_candidates: int, max_groups: int) -> Iterator[list[int]]:
    """All ways to put candidates into 2 to ``max_groups`` groups, each as a list of group numbers ``[C]``.

    Every partition comes once (restricted growth strings: a group is numbered when it is first used).

    >>> list(set_partitions(3, max_groups=2))
    [[0, 0, 1], [0, 1, 0], [0, 1, 1]]
    """

    def extend(groups: list[int], n_groups: int) -> Iterator[list[int]]:
        if len(groups) == n_candidates:
            if n_groups > 1:
                yield groups
            return
        for group in range(min(n_groups + 1, max_groups)):
            yield from extend([*groups, group], max(n_groups, group + 1))

    return extend([], 0)


def contrast(similarity: Tensor, groups: Tensor) -> Tensor:
    """How well groups separate candidates: mean similarity inside groups minus mean similarity between groups.

    Only pairs of different candidates count. Where no group has two members, the inside is 1, what a candidate has
    with itself.

    Parameters
    ----------
    similarity
        Similarities, of shape ``[R, C, C]``, symmetric.
    groups
        Group numbers, of shape ``[P, C]``, each row with at least two groups.

    Returns
    -------
    Contrast, of shape ``[R, P]``, in ``[-1, 1]`` if similarities are in ``[0, 1]``; 0 where the groups do not separate
    anything.
    """
    same = groups.unsqueeze(-1) == groups.unsqueeze(-2)  # [P, C, C]
    inside = (same & ~torch.eye(groups.shape[-1], dtype=torch.bool)).to(similarity)
    between = (~same).to(similarity)
    mean_between = torch.einsum('rij,pij->rp', similarity, between) / between.sum((-2, -1))
    n_inside = inside.sum((-2, -1))
    mean_inside = torch.einsum('rij,pij->rp', similarity, inside) / n_inside.clamp_min(1)
    return torch.where(n_inside > 0, mean_inside, 1) - mean_between


def best_partition(
    profiles: Tensor, max_groups: int = 2, n_permutations: int = 1000, random_state: RandomState | None = None
) -> Partition:
    """The grouping with the highest contrast, and whether it is more than chance.

    All set partitions are tried for up to 10 candidates; above, those of average-linkage clustering. The partition
    of three or more candidates into single ones is not a grouping and is left out.

    The best of many groupings has a positive contrast also where candidates do not differ. So candidates are permuted
    in each repeat on its own, and the best grouping is searched again, ``n_permutations`` times: an exact test of
    whether the candidates are exchangeable, whatever the number of groupings and the distribution of LID.

    Parameters
    ----------
    profiles
        LID profiles, of shape ``[R, C, L]`` with ``R >= 3``, ``C >= 2`` and ``L >= 1``.
    max_groups
        The largest number of groups; 2 in NAS-LID.
    n_permutations
        The smallest possible ``p_value`` is ``1 / (1 + n_permutations)``, and 1 without any. It is 1 where the contrast
        is NaN, which is where a similarity leaves the range of float64.
    random_state
        Source of the permutations; by default seeded with 0.

    Raises
    ------
    ValueError
        If ``profiles`` has another shape, or ``max_groups`` is below 2.
    """
    shape = tuple(profiles.shape)
    if len(shape) != 3 or shape[0] < 3 or shape[1] < 2:
        raise ValueError(f'profiles must have shape [R, C, L] with R >= 3 and C >= 2, but got {shape}.')
    if max_groups < 2:
        raise ValueError(f'max_groups must be at least 2, but got {max_groups}.')
    _check_profiles(profiles)
    return _best(_PROFILES, profiles.double().log1p(), max_groups, n_permutations, random_state)


def best_partition_of_similarities(
    similarities: Tensor, max_groups: int = 2, n_permutations: int = 1000, random_state: RandomState | None = None
) -> Partition:
    """The same where candidates are compared in each repeat, and the similarity of two is the mean of the repeats.

    Parameters
    ----------
    similarities
        Of every two candidates in each repeat, of shape ``[R, C, C]`` with ``R >= 3`` and ``C >= 2``, symmetric, at
        most 1, which is what a candidate has with itself.
    max_groups, n_permutations, random_state
        As in :func:`best_partition`.

    Raises
    ------
    ValueError
        If ``similarities`` have another shape, or ``max_groups`` is below 2.
    """
    shape = tuple(similarities.shape)
    if len(shape) != 3 or shape[0] < 3 or shape[1] < 2 or shape[1] != shape[2]:
        raise ValueError(f'similarities must have shape [R, C, C] with R >= 3 and C >= 2, but got {shape}.')
    if max_groups < 2:
        raise ValueError(f'max_groups must be at least 2, but got {max_groups}.')
    return _best(_SIMILARITIES, similarities.double(), max_groups, n_permutations, random_state)


class _Kind(NamedTuple):
    """What is known of the candidates in each repeat, and what can be made of it."""

    similarity: Callable[[Tensor], Tensor]  # of [..., R, C, ?], as [..., C, C]
    permuted: Callable[[Tensor, Tensor], Tensor]  # [P, R, C, ?] of [R, C, ?], by orders [P, R, C]
    distance: Callable[[Tensor], Tensor]  # of similarities


_PROFILES = _Kind(
    _similarity,
    lambda logs, order: logs[torch.arange(len(logs))[:, None], order],
    lambda similarity: similarity.log().neg(),
)
_SIMILARITIES = _Kind(
    lambda similarities: similarities.mean(-3),
    lambda similarities, order: similarities[
        torch.arange(len(similarities))[:, None, None], order.unsqueeze(-1), order.unsqueeze(-2)
    ],
    lambda similarity: 1 - similarity,
)


def _best(
    kind: _Kind, known: Tensor, max_groups: int, n_permutations: int, random_state: RandomState | None
) -> Partition:
    """The best partition by what is known of the candidates, ``[R, C, ?]``."""
    random_state = random_state or RandomState(0)
    similarity = kind.similarity(known)
    groups = _groupings(kind, similarity, max_groups)
    contrasts = contrast(similarity[None], groups)[0]  # [P]
    best = groups[contrasts.argmax()]
    score = contrasts.max().item()

    n_repeats, n_candidates, _ = known.shape
    repeat = torch.arange(n_repeats)
    others = known[torch.stack([repeat[repeat != r] for r in repeat])]  # [R, R-1, C, ?]
    left_out = contrast(kind.similarity(others), best[None])
    error = ((n_repeats - 1) * left_out.var(0, correction=0)).sqrt().item()
    margin = float(student_t.ppf(0.975, n_repeats - 1)) * error

    as_good = 0
    chunk = max(1, 2**20 // max(known.numel(), len(groups)))  # bounded memory
    for start in range(0, n_permutations, chunk):
        size = (min(chunk, n_permutations - start), n_repeats, n_candidates)
        order = torch.tensor(random_state.random_sample(size).argsort(-1))
        chance = kind.similarity(kind.permuted(known, order))  # [chunk, C, C]
        if n_candidates <= MAX_ENUMERATED:
            found = contrast(chance, groups).amax(1)
        else:
            found = torch.stack([contrast(s[None], _groupings(kind, s, max_groups)).max() for s in chance])
        as_good += int((~(found < score - 1e-9)).sum())  # where either is NaN, nothing is better than chance
    return Partition(
        groups=[(best == group).nonzero().flatten().tolist() for group in best.unique()],
        score=score,
        error=error,
        p_value=(1 + as_good) / (1 + n_permutations),
        similarity=similarity.tolist(),
        lower=score - margin,
        upper=score + margin,
    )


def _groupings(kind: _Kind, similarity: Tensor, max_groups: int) -> Tensor:
    """Group numbers ``[P, C]`` of the groupings to try."""
    n_candidates = len(similarity)
    if n_candidates <= MAX_ENUMERATED:
        return torch.tensor(list(set_partitions(n_candidates, min(max_groups, max(n_candidates - 1, 2)))))
    distance = kind.distance(similarity).clamp_min(0).fill_diagonal_(0)
    merges = linkage(squareform(distance.numpy(), checks=False), method='average')
    rows = [fcluster(merges, n, criterion='maxclust') for n in range(2, max_groups + 1)]
    rows = [row for row in rows if len(set(row)) > 1] or [[0] + [1] * (n_candidates - 1)]
    return torch.tensor([list(row) for row in rows])
