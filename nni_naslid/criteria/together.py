"""Which labels belong together, and of which of these the candidates fall most clearly into groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from nni_naslid import compat as compat  # before nni.nas
from nni_naslid.criteria.clearest import bound, looks
from nni_naslid.criteria.evidence import ByLabel, Contrast, Partition
from nni_naslid.criteria.partition import best_partition

from nni.nas.hub.pytorch.modules import NasBench201Cell
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.supermodule.sampling import PathSamplingCell
from numpy.random import RandomState
from torch import Tensor

__all__ = ['clearest_node', 'nodes_of']


def nodes_of(supernet: ModelSpace) -> list[list[str]]:
    """The labels of each node of the cells of NNI: of the edges that end there, and of what they come from.

    Known are the cells of NAS-Bench-201 and :class:`nni.nas.nn.pytorch.Cell`, as in DARTS and the NDS spaces. Cells
    that share their labels are one.
    """
    nodes: dict[tuple[str, ...], None] = {}  # in order, each once
    for module in supernet.modules():
        if isinstance(module, NasBench201Cell):
            nodes.update((tuple(edge.label for edge in edges), None) for edges in module.layers)
        elif isinstance(module, PathSamplingCell):
            first, n_ops = module.num_predecessors, range(module.num_ops_per_node)
            for node in range(first, first + module.num_nodes):
                kinds = [f'{module.label}/{kind}_{node}_{k}' for k in n_ops for kind in ('op', 'input')]
                nodes[tuple(kinds)] = None
    return [list(node) for node in nodes]


def clearest_node(
    profiles: Callable[[int], dict[str, Tensor]],
    labels: Mapping[str, Sequence[Any]],
    *,
    nodes: Sequence[Sequence[str]],
    most: int,
    repeats: int,
    paths_per_repeat: int,
    max_groups: int,
    min_contrast: float,
    random_state: RandomState,
    partition_of: Callable[..., Partition] = best_partition,
) -> list[ByLabel]:
    """The labels of the node whose candidates fall most clearly into groups, each with its best groups.

    Each label must pass the test that it would have to pass alone, see :attr:`ByLabel.objection`, where the number of
    tests is that of the labels of all nodes. Nodes are compared by the sum of the lower bounds of the contrasts of
    their labels that are worth a split, of the ``most`` clearest. It ends early, after 8, 16, 32, ... repeats, if this
    sum is above the sum of the upper bounds of any other node and the labels of the node are decided, or if no label
    can be worth a split any more.

    Parameters
    ----------
    nodes
        The labels of each node: some of ``labels``, each in one node.
    most
        The largest number of labels that are split.
    profiles, labels, repeats, paths_per_repeat, max_groups, min_contrast, random_state, partition_of
        As in :func:`~nni_naslid.criteria.clearest.clearest_label`.

    Returns
    -------
    The evidence for each label of the node that is worth a split, the clearest first. Where there is none, that of the
    clearest label of all, which objects.
    """
    numbers = looks(repeats)
    of_nodes = [label for node in nodes for label in node]
    n_permutations = max(1000, 100 * len(of_nodes) * len(numbers))  # for p values that can pass their correction
    seed = random_state.randint(2**31)

    def tested(label: str, profile: Tensor, contrasts: dict[str, Contrast], n_repeats: int) -> ByLabel:
        partition = partition_of(profile, max_groups, n_permutations, RandomState(seed))
        contrasts[label] = contrasts[label]._replace(p_value=partition.p_value)
        return ByLabel(
            label, list(map(str, labels[label])), partition, contrasts, n_repeats, n_repeats * paths_per_repeat,
            len(numbers), min_contrast,
        )  # fmt: skip

    for n_repeats in numbers:
        found = profiles(n_repeats)
        partitions = {label: partition_of(found[label], max_groups, 0) for label in of_nodes}
        contrasts = {label: Contrast(p.score, p.lower, p.upper) for label, p in partitions.items()}
        lower = {label: bound(contrast.lower) for label, contrast in contrasts.items()}
        upper = {label: bound(contrast.upper) for label, contrast in contrasts.items()}
        worth_it = [
            sorted((label for label in node if lower[label] > min_contrast), key=lower.get, reverse=True)
            for node in nodes
        ]
        ranking = sorted(range(len(nodes)), key=lambda i: _sum(lower, worth_it[i], most), reverse=True)
        is_decided = n_repeats == repeats or all(bound < min_contrast for bound in upper.values())
        if not is_decided:
            first, *others = ranking
            left = [each for each in nodes[first] if upper[each] >= min_contrast and each not in worth_it[first]]
            highest = max((_sum(upper, nodes[i], most) for i in others), default=0)
            if _sum(lower, worth_it[first], most) <= highest or (left and len(worth_it[first]) < most):
                continue
        best: list[ByLabel] = []
        for i in ranking if is_decided else [first]:
            if _sum(lower, worth_it[i], most) > _total(best):  # else it cannot be better
                evidence = (tested(label, found[label], contrasts, n_repeats) for label in worth_it[i])
                sure = list(islice((each for each in evidence if each.objection is None), most))
                best = max(best, sure, key=_total)
        if is_decided or len(best) == min(most, len(worth_it[first])):
            break
    if not best:
        label = max(of_nodes, key=lower.get)
        return [tested(label, found[label], contrasts, n_repeats)]
    return best


def _sum(bounds: Mapping[str, float], node: Sequence[str], most: int) -> float:
    """Of the highest bounds, as far as they are above 0."""
    return sum(sorted((max(bounds[label], 0.0) for label in node), reverse=True)[:most])


def _total(node: Sequence[ByLabel]) -> float:
    return sum(each.partition.lower for each in node)
