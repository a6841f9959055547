"""Splits that the user gives: by which labels, into which groups. Without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.evidence import AsGiven
from nni_naslid.run.checks import brief, plain
from nni_naslid.space.split import Split
from nni_naslid.space.subspace import SubSpace

__all__ = ['Fixed']


@dataclass(frozen=True)
class Fixed:
    """Labels and groups of the user's: each node is split by the first label that has candidates of two groups left.

    A group for each candidate of a label is `Few-Shot NAS (ICML 2021) <https://arxiv.org/abs/2006.06863>`__.

    Parameters
    ----------
    groups
        By label the groups of its candidates, by their places in the space, such as ``{'op1': [[0, 2], [1]]}``; each
        candidate in one group.

    Raises
    ------
    ValueError
        Naming the label, if that are not two or more groups of different candidates.
    """

    groups: Mapping[str, Sequence[Sequence[int]]]

    uses_metric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.groups, Mapping) or not self.groups:
            raise ValueError(f'groups must be a dict of label to groups of candidates, but got {brief(self.groups)}.')
        groups = {}
        for label, of in self.groups.items():
            try:
                groups[label] = [[plain(i) for i in group] for group in of]
            except TypeError:
                groups[label] = []
            of = groups[label]
            places = sorted(repr(i) for group in of for i in group)
            if len(of) < 2 or not all(of) or places != sorted(map(repr, range(len(places)))):
                raise ValueError(
                    f'groups of {label!r} must be two or more, with each place of a candidate in one, such as '
                    f'[[0, 2], [1]], but got {brief(self.groups[label])}.'
                )
        object.__setattr__(self, 'groups', groups)

    @property
    def max_groups(self) -> int:
        """The most groups of a label."""
        return max(map(len, self.groups.values()))

    def can_split(self, subspace: SubSpace) -> bool:
        """Whether one of the labels has two candidates left, or none is one of the space, which ``check`` names."""
        labels = self.groups.keys() & subspace.mutables.keys()
        return not labels or any(label in subspace.splittable for label in labels)

    def check(self, context: Context) -> dict[str, Any]:
        """Raise if the space has not these labels and candidates."""
        candidates = context.subspace.splittable
        for label, groups in self.groups.items():
            if label not in candidates:
                left = ', '.join(candidates)
                raise ValueError(f'Fixed: {label!r} must be one of {left}, which can be split{_limited(context)}.')
            if (n := sum(map(len, groups))) != len(candidates[label]):
                raise ValueError(
                    f'Fixed: groups of {label!r} must hold its {len(candidates[label])} candidates, '
                    f'{", ".join(map(str, candidates[label]))}, but hold {n}{_limited(context)}.'
                )
        return {}

    def cost(self, space: SubSpace) -> int:
        """No forward pass."""
        return 0

    def choose(self, context: Context) -> Split:
        """The split by the first label; none, with an objection, if all candidates left are of one group each."""
        whole, left = SubSpace.of(context.supernet), context.subspace.splittable
        for label, groups in self.groups.items():
            places = [whole.splittable[label].index(candidate) for candidate in left.get(label, [])]
            parts = [[i for i, place in enumerate(places) if place in group] for group in groups]
            if len(parts := [part for part in parts if part]) > 1:
                return Split(context.subspace.split(label, parts), AsGiven())
        return Split([], AsGiven('no label has candidates of two groups left'))

    def read_evidence(self, content: Mapping[str, Any]) -> AsGiven:
        """What it was."""
        return AsGiven(**content)


def _limited(context: Context) -> str:
    return ' (the constraints leave out others)' if context.subspace.ranges else ''
