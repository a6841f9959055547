"""Which label's candidates fall most clearly into groups, by as many repeats as it takes to tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nni_naslid.criteria.evidence import ByLabel, Contrast, Partition
from nni_naslid.criteria.partition import best_partition

from numpy.random import RandomState
from torch import Tensor

__all__ = ['bound', 'clearest_label', 'looks']

FIRST_LOOK = 8  # repeats: fewer leave bounds so wide that nothing is decided


def looks(limit: int) -> list[int]:
    """After how many repeats to look whether a split is decided: 8, twice as many each time, and at the limit.

    >>> looks(32), looks(150), looks(9)
    ([8, 16, 32], [8, 16, 32, 64, 150], [9])
    """
    powers = (FIRST_LOOK * 2**i for i in range(limit.bit_length()))
    return [*(power for power in powers if 2 * power <= limit), limit]


def clearest_label(
    profiles: Callable[[int], dict[str, Tensor]],
    labels: Mapping[str, Sequence[Any]],
    *,
    repeats: int,
    paths_per_repeat: int,
    max_groups: int,
    min_contrast: float,
    random_state: RandomState,
    partition_of: Callable[..., Partition] = best_partition,
) -> ByLabel:
    """The label whose candidates fall most clearly into groups of similar profiles, with its best groups.

    Labels are compared by the lower bound of their contrast, so that a label which is high by luck does not win.
    Repeats are added where they decide: after 8, 16, 32, ... it ends if one label separates whose lower bound is above
    the upper bounds of all others, or if no label can be worth a split any more.

    Parameters
    ----------
    profiles
        Gives the profiles ``[R, C, L]`` of each label in the first ``R`` repeats: see
        :class:`~nni_naslid.criteria.repeats.Repeats`. Or what else ``partition_of`` takes.
    labels
        Their candidates.
    repeats
        The largest number of repeats; at least 3.
    paths_per_repeat
        How many paths a repeat profiles; only for the record.
    max_groups
        The largest number of groups.
    min_contrast
        The smallest contrast that is worth a split.
    random_state
        Source of the permutations that tell a difference from chance.
    partition_of
        What finds the best partition of the candidates of one label, called as :func:`best_partition` is.

    Returns
    -------
    The evidence for the label with the highest lower bound, of the labels that separate if there are any. It may still
    object: see :attr:`ByLabel.objection`.
    """
    numbers = looks(repeats)
    n_permutations = max(1000, 100 * len(labels) * len(numbers))  # for p values that can pass their correction
    seed = random_state.randint(2**31)  # permutations do not depend on how many looks or labels there were before
    for n_repeats in numbers:
        found = profiles(n_repeats)
        partitions = {label: partition_of(found[label], max_groups, 0) for label in labels}
        contrasts = {label: Contrast(p.score, p.lower, p.upper) for label, p in partitions.items()}
        ranking = sorted(labels, key=lambda label: bound(contrasts[label].lower), reverse=True)
        is_last = n_repeats == repeats
        is_hopeless = all(bound(contrast.upper) < min_contrast for contrast in contrasts.values())
        others = max((bound(contrasts[label].upper) for label in ranking[1:]), default=-math.inf)
        is_clear = bound(contrasts[ranking[0]].lower) > max(min_contrast, others)
        if not (is_last or is_hopeless or is_clear):
            continue
        worth_it = [label for label in ranking if bound(contrasts[label].lower) > min_contrast]
        best = None
        for label in worth_it[: None if is_last else 1] or ranking[:1]:
            partition = partition_of(found[label], max_groups, n_permutations, RandomState(seed))
            contrasts[label] = contrasts[label]._replace(p_value=partition.p_value)
            evidence = ByLabel(
                label, list(map(str, labels[label])), partition, contrasts, n_repeats,
                n_repeats * paths_per_repeat, len(numbers), min_contrast,
            )  # fmt: skip
            if evidence.objection is None:
                return evidence
            best = best or evidence
        if is_last or is_hopeless:
            break
    return best


def bound(value: float) -> float:
    """A bound to compare by; one that is not finite is no evidence of anything."""
    return value if math.isfinite(value) else -math.inf
