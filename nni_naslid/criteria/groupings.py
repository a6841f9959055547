"""Ways to put the candidates of a label into groups: all of them, or those that a method proposes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

__all__ = ['MAX_ENUMERATED', 'PARTITIONS', 'all_groupings', 'proposed_groupings', 'set_partitions']

MAX_ENUMERATED = 10  # candidates: 115,975 set partitions


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


def all_groupings(n_candidates: int, max_groups: int) -> Tensor:
    """Group numbers ``[P, C]`` of all groupings: three or more candidates, each on its own, are none."""
    return torch.tensor(list(set_partitions(n_candidates, _most(n_candidates, max_groups))))


def proposed_groupings(partition: str, seen: Tensor, max_groups: int) -> Tensor:
    """Group numbers ``[P, C]`` of the groupings that a method proposes, one for each number of groups from two on.

    Parameters
    ----------
    partition
        One of :data:`PARTITIONS`, which explain themselves.
    seen
        What the method looks at: similarities, distances or mean profiles of the candidates, ``[C, ?]``. NaN, which
        separates nothing, counts as 0.
    max_groups
        The largest number of groups.
    """
    n_candidates = len(seen)
    with warnings.catch_warnings():  # of graphs that fall apart, which is what is looked for, and of equal candidates
        warnings.simplefilter('ignore')
        rows = PARTITIONS[partition](seen.nan_to_num(0).numpy(), _most(n_candidates, max_groups))
    if partition != 'enumeration':  # whose numbers are the order of children in the trees of earlier versions
        rows = [[list(dict.fromkeys(row)).index(group) for group in row] for row in map(list, rows)]
    usable = [row for row in map(list, rows) if 1 < len(set(row)) < max(n_candidates, 3)]
    return torch.tensor(usable or [[0] + [1] * (n_candidates - 1)])


def _most(n_candidates: int, max_groups: int) -> int:
    return min(max_groups, max(n_candidates - 1, 2))


def _average_linkage(distances: Any, most: int) -> list:
    merges = linkage(squareform(distances, checks=False), method='average')
    return [fcluster(merges, n, criterion='maxclust') for n in range(2, most + 1)]


def _spectral(similarities: Any, most: int) -> list:
    """Spectral clustering of the graph of similarities; negative ones count as 0."""
    from sklearn.cluster import SpectralClustering

    def clusters(n: int) -> SpectralClustering:
        return SpectralClustering(n, affinity='precomputed', assign_labels='cluster_qr', random_state=0)

    return [clusters(n).fit_predict(similarities.clip(0)) for n in range(2, most + 1)]


def _stoer_wagner(similarities: Any, most: int) -> list:
    """The lightest cut of the graph of similarities, then of all its parts the one with the lightest, and so on.

    Negative similarities count as 0.
    """
    import networkx

    def cut(group: list[int]) -> tuple[float, list[list[int]]]:
        graph = networkx.Graph()
        graph.add_weighted_edges_from((i, j, max(similarities[i, j], 0)) for i in group for j in group if i < j)
        weight, parts = networkx.stoer_wagner(graph)
        return weight, [sorted(part) for part in parts]

    groups, rows = [list(range(len(similarities)))], []
    while len(groups) < most:
        (_, parts), whole = min((cut(group), group) for group in groups if len(group) > 1)
        groups = [group for group in groups if group != whole] + parts
        number = {i: n for n, group in enumerate(groups) for i in group}
        rows.append([number[i] for i in range(len(similarities))])
    return rows


def _gaussian_mixture(profiles: Any, most: int) -> list:
    """A mixture of Gaussians that are alike in all directions: a few candidates do not tell more about their shape."""
    from sklearn.mixture import GaussianMixture

    return [
        GaussianMixture(n, covariance_type='spherical', random_state=0).fit_predict(profiles)
        for n in range(2, most + 1)
    ]


# For enumeration, where there are too many candidates for it.
PARTITIONS = {
    'enumeration': _average_linkage,
    'spectral': _spectral,
    'stoer_wagner': _stoer_wagner,
    'gaussian_mixture': _gaussian_mixture,
}
