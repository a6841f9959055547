"""Which candidates of a label are alike: the best partition into groups by the similarity of their profiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nni_naslid.criteria.evidence import Partition
from nni_naslid.criteria.groupings import MAX_ENUMERATED, PARTITIONS, all_groupings, proposed_groupings
from nni_naslid.criteria.similarity import check_profiles, similarity_of
from nni_naslid.run.checks import one_of

import torch
from numpy.random import RandomState
from scipy.stats import t as student_t
from torch import Tensor

__all__ = ['best_partition', 'best_partition_of_similarities', 'contrast']


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
    profiles: Tensor,
    max_groups: int = 2,
    n_permutations: int = 1000,
    random_state: RandomState | None = None,
    *,
    similarity: str = 'log_euclidean',
    partition: str = 'enumeration',
) -> Partition:
    """The grouping with the highest contrast, and whether it is more than chance.

    All set partitions are tried for up to 10 candidates; above, those of average-linkage clustering. Or those that
    another method proposes, one for each number of groups. The partition of three or more candidates into single ones
    is not a grouping and is left out.

    The best of many groupings has a positive contrast also where candidates do not differ. So candidates are permuted
    in each repeat on its own, and the best grouping is searched again in the same way, ``n_permutations`` times: an
    exact test of whether the candidates are exchangeable, whatever the number of groupings and the distribution of LID.
    (Where all set partitions can be tried, another method need only be asked again for permutations of which the best
    of all is as good.)

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
    similarity
        See :func:`~nni_naslid.criteria.similarity.similarity_matrix`.
    partition
        ``'enumeration'``; ``'spectral'`` clustering of the similarities (scikit-learn); ``'stoer_wagner'``, the
        lightest cut of the graph of similarities, then of its parts (networkx; small parts are the lightest to cut off,
        so three groups are seldom what one would draw); ``'gaussian_mixture'`` of the mean profiles as they are
        compared, by default of their logarithms (scikit-learn). The contrast chooses the number of components, as it
        does that of groups of the other methods: a criterion of information, such as BIC, needs many more points than
        there are candidates.

    Raises
    ------
    ValueError
        If ``profiles`` has another shape, ``max_groups`` is below 2, or ``similarity`` or ``partition`` is unknown.
    """
    shape = tuple(profiles.shape)
    if len(shape) != 3 or shape[0] < 3 or shape[1] < 2:
        raise ValueError(f'profiles must have shape [R, C, L] with R >= 3 and C >= 2, but got {shape}.')
    check_profiles(profiles)
    prepared, similar = similarity_of(similarity)
    kind = _Kind(
        similar,
        lambda known, order: known[torch.arange(len(known))[:, None], order],
        (lambda similarity: similarity.log().neg()) if similarity == 'log_euclidean' else _less_than_one,
    )
    return _best(kind, prepared(profiles.double()), max_groups, n_permutations, random_state, partition)


def best_partition_of_similarities(
    similarities: Tensor,
    max_groups: int = 2,
    n_permutations: int = 1000,
    random_state: RandomState | None = None,
    *,
    partition: str = 'enumeration',
) -> Partition:
    """The same where candidates are compared in each repeat, and the similarity of two is the mean of the repeats.

    Parameters
    ----------
    similarities
        Of every two candidates in each repeat, of shape ``[R, C, C]`` with ``R >= 3`` and ``C >= 2``, symmetric, at
        most 1, which is what a candidate has with itself.
    max_groups, n_permutations, random_state
        As in :func:`best_partition`.
    partition
        As in :func:`best_partition`, but for ``'gaussian_mixture'``, which needs profiles.

    Raises
    ------
    ValueError
        If ``similarities`` have another shape, ``max_groups`` is below 2, or ``partition`` is unknown.
    """
    shape = tuple(similarities.shape)
    if len(shape) != 3 or shape[0] < 3 or shape[1] < 2 or shape[1] != shape[2]:
        raise ValueError(f'similarities must have shape [R, C, C] with R >= 3 and C >= 2, but got {shape}.')
    one_of('partition', partition, [name for name in PARTITIONS if name != 'gaussian_mixture'])
    return _best(_SIMILARITIES, similarities.double(), max_groups, n_permutations, random_state, partition)


class _Kind(NamedTuple):
    """What is known of the candidates in each repeat, and what can be made of it."""

    similarity: Callable[[Tensor], Tensor]  # of [..., R, C, ?], as [..., C, C]
    permuted: Callable[[Tensor, Tensor], Tensor]  # [P, R, C, ?] of [R, C, ?], by orders [P, R, C]
    distance: Callable[[Tensor], Tensor]  # of similarities

    def groupings(self, partition: str, known: Tensor, similarity: Tensor, max_groups: int) -> Tensor:
        """Group numbers ``[P, C]`` of the groupings to try."""
        n_candidates = len(similarity)
        if partition == 'gaussian_mixture':
            return proposed_groupings(partition, known.mean(0), max_groups)
        if partition != 'enumeration':
            return proposed_groupings(partition, similarity, max_groups)
        if n_candidates <= MAX_ENUMERATED:
            return all_groupings(n_candidates, max_groups)
        distance = self.distance(similarity).clamp_min(0).fill_diagonal_(0)
        return proposed_groupings(partition, distance, max_groups)


def _less_than_one(similarity: Tensor) -> Tensor:
    return 1 - similarity


_SIMILARITIES = _Kind(
    lambda similarities: similarities.mean(-3),
    lambda similarities, order: similarities[
        torch.arange(len(similarities))[:, None, None], order.unsqueeze(-1), order.unsqueeze(-2)
    ],
    _less_than_one,
)


def _best(
    kind: _Kind,
    known: Tensor,
    max_groups: int,
    n_permutations: int,
    random_state: RandomState | None,
    partition: str,
) -> Partition:
    """The best partition by what is known of the candidates, ``[R, C, ?]``."""
    one_of('partition', partition, PARTITIONS)
    if max_groups < 2:
        raise ValueError(f'max_groups must be at least 2, but got {max_groups}.')
    random_state = random_state or RandomState(0)
    similarity = kind.similarity(known)
    groups = kind.groupings(partition, known, similarity, max_groups)
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
    every = all_groupings(n_candidates, max_groups) if n_permutations and n_candidates <= MAX_ENUMERATED else None
    chunk = max(1, 2**20 // max(known.numel(), len(groups if every is None else every)))  # bounded memory
    for start in range(0, n_permutations, chunk):
        size = (min(chunk, n_permutations - start), n_repeats, n_candidates)
        order = torch.tensor(random_state.random_sample(size).argsort(-1))
        permuted = kind.permuted(known, order)
        chance = kind.similarity(permuted)  # [chunk, C, C]
        is_as_good = torch.ones(len(chance), dtype=torch.bool)
        if every is not None:
            is_as_good = _not_below(contrast(chance, every).amax(1), score)
        if every is None or partition != 'enumeration':
            for i in is_as_good.nonzero().flatten().tolist():
                tried = kind.groupings(partition, permuted[i], chance[i], max_groups)
                is_as_good[i] = _not_below(contrast(chance[i][None], tried).max(), score)
        as_good += int(is_as_good.sum())
    return Partition(
        groups=[(best == group).nonzero().flatten().tolist() for group in best.unique()],
        score=score,
        error=error,
        p_value=(1 + as_good) / (1 + n_permutations),
        similarity=similarity.tolist(),
        lower=score - margin,
        upper=score + margin,
    )


def _not_below(found: Tensor, score: float) -> Tensor:
    """Where chance is as good; where either is NaN, nothing is better than chance."""
    return ~(found < score - 1e-9)
