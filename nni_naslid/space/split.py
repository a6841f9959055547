"""How a sub-space is split, and the evidence for it. Without torch: the tuner, which must start fast, reads it too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

__all__ = ['Evidence', 'Partition', 'Split', 'is_certain']


@dataclass(frozen=True)
class Partition:
    """The best grouping of one label's candidates.

    Attributes
    ----------
    groups
        Indices of the candidates in each group.
    score
        Contrast of the groups.
    error
        Standard error of ``score`` over the repeats (jackknife).
    p_value
        How often chance finds a grouping of at least this contrast, if candidates do not differ: see
        :func:`~nni_naslid.criteria.partition.best_partition`.
    similarity
        :func:`~nni_naslid.criteria.partition.similarity_matrix` as lists, ``[C][C]``.
    lower, upper
        Where ``score`` lies with 95 % confidence, by ``error`` and Student's t: the bounds of these groups, chosen
        beforehand. That they are the best of many is what ``p_value`` allows for.
    """

    groups: list[list[int]]
    score: float
    error: float
    p_value: float
    similarity: list[list[float]]
    lower: float
    upper: float


class Evidence(NamedTuple):
    """What is kept of each label that could have been split: contrast, its bounds, and p where it was asked for."""

    score: float
    lower: float
    upper: float
    p_value: float | None = None


@dataclass(frozen=True)
class Split:
    """The label to split, and how; with the evidence for it.

    Attributes
    ----------
    label
        The label whose candidates are split.
    candidates
        Its candidates.
    partition
        The groups, as indices of ``candidates``, with score and bounds.
    scores
        The evidence for every label that could have been split.
    n_repeats, n_passes
        How many repeats this is about, and the forward passes that they stand for.
    n_looks
        How often it may have been looked at, with more repeats each time, before it was decided.
    min_contrast
        The smallest contrast that is worth a split.
    """

    label: str
    candidates: list[Any]
    partition: Partition
    scores: dict[str, Evidence]
    n_repeats: int = 0
    n_passes: int = 0
    n_looks: int = 1
    min_contrast: float = 0.0

    @property
    def separates(self) -> bool:
        """Whether candidates differ by more than chance, and by enough: see :attr:`objection`."""
        return self.objection is None

    @property
    def objection(self) -> str | None:
        """What speaks against the split, for people; ``None`` if nothing does.

        It must be certain (p < .05, corrected for the number of labels and of looks) and worth it (the lower bound of
        the contrast is above the smallest effect).
        """
        if not is_certain(self.partition, self._n_tests):
            return 'no label separates beyond its noise'
        if not self.partition.lower > self.min_contrast:
            return f'no contrast is surely above {self.min_contrast:g}'
        return None

    @property
    def p_value(self) -> float:
        """p of the label, corrected for the number of labels and of looks (Bonferroni)."""
        return min(1.0, self.partition.p_value * self._n_tests)

    @property
    def _n_tests(self) -> int:
        return len(self.scores) * self.n_looks

    @property
    def groups(self) -> list[list[Any]]:
        """The groups, as candidates."""
        return [[self.candidates[i] for i in group] for group in self.partition.groups]

    def describe(self) -> str:
        """The groups in one line."""
        return ' | '.join(', '.join(map(str, group)) for group in self.groups)

    def figures(self) -> str:
        """The evidence in one line."""
        best = self.partition
        return (
            f'contrast {best.score:.3f}, 95 % {best.lower:.3f} to {best.upper:.3f}, p {self.p_value:.2g}, '
            f'{self.n_repeats} repeats, {self.n_passes:,} passes'
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any], candidates: Sequence[Any]) -> Split:
        """From :meth:`to_dict` by way of JSON, which does not keep every candidate as it was."""
        content = {
            **content,
            'candidates': list(candidates),
            'partition': Partition(**content['partition']),
            'scores': {label: Evidence(*evidence) for label, evidence in content['scores'].items()},
        }
        return cls(**content)


def is_certain(partition: Partition, n_tests: int) -> bool:
    """Whether candidates differ by more than chance, where the best of ``n_tests`` tests is taken: p < .05.

    A score that is not finite, or whose error is not, is no evidence of anything.
    """
    return math.isfinite(partition.score - partition.error) and partition.p_value * n_tests < 0.05
