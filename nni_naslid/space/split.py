"""How a sub-space is split, and the evidence for it. Without torch: the tuner, which must start fast, reads it too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ['Partition', 'Split', 'is_certain']


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
    """

    groups: list[list[int]]
    score: float
    error: float
    p_value: float
    similarity: list[list[float]]


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
        The groups, as indices of ``candidates``, with score and standard error.
    scores
        Score and standard error of every label that could have been split.
    """

    label: str
    candidates: list[Any]
    partition: Partition
    scores: dict[str, tuple[float, float]]

    @property
    def separates(self) -> bool:
        """Whether the candidates differ reproducibly: p < .05, corrected for the number of labels that were tried."""
        return is_certain(self.partition, len(self.scores))

    @property
    def groups(self) -> list[list[Any]]:
        """The groups, as candidates."""
        return [[self.candidates[i] for i in group] for group in self.partition.groups]

    def describe(self) -> str:
        """The groups in one line."""
        return ' | '.join(', '.join(map(str, group)) for group in self.groups)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any], candidates: Sequence[Any]) -> Split:
        """From :meth:`to_dict` by way of JSON, which does not keep every candidate as it was."""
        scores = {label: tuple(score) for label, score in content['scores'].items()}
        return cls(content['label'], list(candidates), Partition(**content['partition']), scores)


def is_certain(partition: Partition, n_labels: int) -> bool:
    """Whether candidates differ by more than chance, where the best of ``n_labels`` labels is taken: p < .05.

    A score that is not finite, or whose error is not, is no evidence of anything.
    """
    return math.isfinite(partition.score - partition.error) and partition.p_value * n_labels < 0.05
