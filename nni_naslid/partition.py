"""Which candidates of a label are alike: similarity of their LID profiles, and the best partition into groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import t as student_t
from torch import Tensor

__all__ = ['Partition', 'best_partition', 'contrast', 'set_partitions', 'similarity_matrix']

MAX_ENUMERATED = 10  # candidates: 115,975 set partitions; above, hierarchical clustering proposes them


def similarity_matrix(profiles: Tensor) -> Tensor:
    r"""Similarity of every two candidates, from the log-Euclidean distance of their LID profiles.

    .. math:: s_{ab} = \exp\Big(-\sqrt{\tfrac1L \sum_l \big(\log(1 + p_{al}) - \log(1 + p_{bl})\big)^2}\Big)

    The exponent is the root mean square log-ratio of the two profiles: a similarity of .9 means that they differ by
    a factor of about 1.1 in a typical layer. Absolute similarities can therefore be compared between labels.

    Parameters
    ----------
    profiles
        LID profiles, of shape ``[..., C, L]``, non-negative.

    Returns
    -------
    Similarities in ``(0, 1]``, of shape ``[..., C, C]``, 1 on the diagonal.

    Notes
    -----
    NAS-LID uses the cosine, which barely separates profiles: they all point along the same positive diagonal.
    One is added before the logarithm because the LID of constant features (a path of ``none``) is 0.

    Raises
    ------
    ValueError
        If ``profiles`` is not at least two-dimensional, or not finite and non-negative.
    """
    if profiles.ndim < 2:
        raise ValueError(f'profiles must have shape [..., C, L], but got {tuple(profiles.shape)}.')
    if not (profiles.isfinite().all() and (profiles >= 0).all()):
        raise ValueError('profiles must be finite and non-negative.')
    logs = profiles.double().log1p()
    squares = (logs.unsqueeze(-2) - logs.unsqueeze(-3)).square().mean(-1)  # [..., C, C]
    return squares.sqrt().neg().exp()


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
    Contrast in ``[-1, 1]``, of shape ``[R, P]``; 0 where the groups do not separate anything.
    """
    same = groups.unsqueeze(-1) == groups.unsqueeze(-2)  # [P, C, C]
    inside = (same & ~torch.eye(groups.shape[-1], dtype=torch.bool)).to(similarity)
    between = (~same).to(similarity)
    mean_between = torch.einsum('rij,pij->rp', similarity, between) / between.sum((-2, -1))
    n_inside = inside.sum((-2, -1))
    mean_inside = torch.einsum('rij,pij->rp', similarity, inside) / n_inside.clamp_min(1)
    return torch.where(n_inside > 0, mean_inside, 1) - mean_between


@dataclass(frozen=True)
class Partition:
    """The best grouping of one label's candidates.

    Attributes
    ----------
    groups
        Indices of the candidates in each group.
    score
        Contrast of the groupings that one half of the repeats chooses, measured on the other half (both ways): 0 in
        expectation where repeats are pure noise, however many partitions were tried.
    error
        Standard error of ``score`` over the repeats.
    p_value
        Probability of such a score where nothing separates (one-sided t-test).
    similarity
        Mean similarity over the repeats, ``[C][C]``.
    """

    groups: list[list[int]]
    score: float
    error: float
    p_value: float
    similarity: list[list[float]]


def best_partition(similarity: Tensor, max_groups: int = 2) -> Partition:
    """The grouping with the highest contrast, scored without the bias of having been chosen.

    All set partitions are tried for up to 10 candidates; above, those of average-linkage clustering. The partition
    of three or more candidates into single ones is not a grouping and is left out.

    Parameters
    ----------
    similarity
        One similarity matrix per repeat, of shape ``[R, C, C]``, with ``R >= 4`` and ``C >= 2``.
    max_groups
        The largest number of groups; 2 in NAS-LID.

    Raises
    ------
    ValueError
        If ``similarity`` has another shape, or ``max_groups`` is below 2.
    """
    shape = tuple(similarity.shape)
    if len(shape) != 3 or shape[1] != shape[2] or shape[0] < 4 or shape[1] < 2:
        raise ValueError(f'similarity must have shape [R, C, C] with R >= 4 and C >= 2, but got {shape}.')
    if max_groups < 2:
        raise ValueError(f'max_groups must be at least 2, but got {max_groups}.')
    n_repeats, n_candidates, _ = shape
    mean = similarity.mean(0)
    if n_candidates <= MAX_ENUMERATED:
        rows = list(set_partitions(n_candidates, min(max_groups, max(n_candidates - 1, 2))))
    else:
        merges = linkage(squareform((1 - mean).fill_diagonal_(0).numpy(), checks=False), method='average')
        rows = [fcluster(merges, n, criterion='maxclust') for n in range(2, max_groups + 1)]
        rows = [row for row in rows if len(set(row)) > 1] or [[0] + [1] * (n_candidates - 1)]
    groups = torch.tensor([list(row) for row in rows])  # [P, C]
    contrasts = contrast(similarity, groups)  # [R, P]
    chosen = groups[contrasts.mean(0).argmax()]
    halves = contrasts[::2], contrasts[1::2]
    held_out = [test[:, choose.mean(0).argmax()] for choose, test in (halves, halves[::-1])]
    score = sum(half.sum() for half in held_out).item() / n_repeats
    error = sum(half.var() * len(half) for half in held_out).sqrt().item() / n_repeats
    return Partition(
        groups=[(chosen == group).nonzero().flatten().tolist() for group in chosen.unique()],
        score=score,
        error=error,
        p_value=float(student_t.sf(score / error, n_repeats - 2)) if error > 0 else float(score <= 0),
        similarity=mean.tolist(),
    )
