"""Splits at random: the control that a criterion has to beat. Without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.evidence import AtRandom
from nni_naslid.run.checks import group_numbers, groups_at
from nni_naslid.space.split import Split
from nni_naslid.space.subspace import SubSpace

if TYPE_CHECKING:
    from numpy.random import RandomState

__all__ = ['RandomSplit', 'random_groups']


@dataclass(frozen=True)
class RandomSplit:
    """A label drawn uniformly, each candidate put into a group at random. It looks at nothing.

    Parameters
    ----------
    max_groups
        The largest number of children of one split; at least 2. A list has one number for each level of the tree, from
        the root on, and its last one is for all further levels.

    Raises
    ------
    ValueError
        Naming the setting, if it cannot work.
    """

    max_groups: int | Sequence[int] = 2

    uses_metric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, 'max_groups', group_numbers('max_groups', self.max_groups))

    def can_split(self, subspace: SubSpace) -> bool:
        """Whether a label has two candidates left."""
        return bool(subspace.splittable)

    def check(self, context: Context) -> dict[str, Any]:
        """Nothing can be wrong."""
        return {}

    def cost(self, space: SubSpace) -> int:
        """No forward pass."""
        return 0

    def choose(self, context: Context) -> Split:
        """A random split."""
        candidates = context.subspace.splittable
        label = list(candidates)[context.random_state.randint(len(candidates))]
        most = groups_at(context.level, self.max_groups)
        groups = random_groups(len(candidates[label]), most, context.random_state)
        return Split(context.subspace.split(label, groups), AtRandom())

    def read_evidence(self, content: Mapping[str, Any]) -> AtRandom:
        """It has none."""
        return AtRandom()


def random_groups(n_candidates: int, max_groups: int, random_state: RandomState) -> list[list[int]]:
    """Each candidate in a group at random, of two or more that are not empty."""
    most = min(max_groups, max(n_candidates - 1, 2))
    numbers = [0]
    while len(set(numbers)) < 2:
        numbers = random_state.randint(most, size=n_candidates).tolist()
    return [[i for i in range(n_candidates) if numbers[i] == group] for group in sorted(set(numbers))]
