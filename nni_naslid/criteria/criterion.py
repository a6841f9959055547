"""What a criterion is: how a trained sub-supernet is split. Without torch: the tuner, which must start fast, needs it.

A new criterion is a frozen dataclass of plain settings with the methods of :class:`Criterion`, in a file of its own.
What it needs of torch it imports when it is asked. ``NASLID(criterion=Mine(...))`` uses it; criteria with a name are in
:mod:`nni_naslid.criteria.named`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from nni_naslid.run.checks import group_numbers, integer, real
from nni_naslid.space.split import Evidence, Split
from nni_naslid.space.subspace import SubSpace

if TYPE_CHECKING:
    from nni_naslid.train.path import PathModule

    from nni.nas.evaluator.pytorch import Lightning
    from nni.nas.nn.pytorch import ModelSpace
    from numpy.random import RandomState

__all__ = ['Context', 'Criterion', 'take_contrast_settings']


@dataclass(frozen=True)
class Context:
    """A sub-supernet, and all that a criterion may look at.

    Attributes
    ----------
    name
        Of the node, for messages.
    subspace
        What is to be split.
    supernet
        The supernet, with the weights of the node. It is left as it was, but for its path and training mode.
    module
        The user's module, around the supernet: see :func:`~nni_naslid.train.path.set_path` and
        :func:`~nni_naslid.train.validation.validate`.
    evaluator
        The user's evaluator, with its data and its trainer's settings; never run itself.
    monitor, mode
        The metric that the module logs, and whether ``'max'`` or ``'min'`` is good.
    seed
        Of this node: what random streams are made of (:func:`~nni_naslid.train.rng.seeded`).
    random_state
        One such stream.
    checked
        What :meth:`Criterion.check` found before training.
    notes
        A file of lines, in which a criterion may keep what it has finished, as it may be killed. ``None`` in ``check``.
    about
        What the notes are about: run, node, weights, and code of the criterion. Lines with other values are about
        something else.
    """

    name: str
    subspace: SubSpace
    supernet: ModelSpace
    module: PathModule
    evaluator: Lightning
    monitor: str
    mode: str
    seed: tuple[int, ...]
    random_state: RandomState
    checked: Mapping[str, Any]
    notes: Path | None = None
    about: Mapping[str, str] | None = None

    @property
    def level(self) -> int:
        """How many splits led to the node; that of the root is 0."""
        return len(self.seed) - 1


class Criterion(Protocol):
    """How sub-supernets are split: a frozen dataclass of plain settings.

    Attributes
    ----------
    max_groups
        The largest number of children of one split, at least 2; or a list of them, one for each level of the tree,
        whose last one is for all further levels (:func:`~nni_naslid.run.checks.groups_at` takes that of a level).
    uses_metric
        Whether a split depends on ``monitor`` and ``mode``: a run with others is another run then.
    """

    max_groups: int | Sequence[int]
    uses_metric: ClassVar[bool]

    def can_split(self, subspace: SubSpace) -> bool:
        """Whether there is anything in a sub-space that it could split."""

    def check(self, context: Context) -> dict[str, Any]:
        """Raise if it cannot work, before training; else what was found that ``choose`` needs, in types that JSON has.

        That is part of the identity of a run, so it must be the same whenever the run is started again. The supernet is
        a copy that is used for nothing else.
        """

    def cost(self, space: SubSpace) -> int:
        """How many forward passes of a batch one choice takes at most."""

    def choose(self, context: Context) -> Split:
        """The best split of a trained sub-supernet, which its evidence may object to.

        Called again after a kill, with the same random numbers.
        """

    def read_evidence(self, content: Mapping[str, Any]) -> Evidence:
        """The evidence of a split, from what its ``to_dict`` gave, by way of JSON."""


def take_contrast_settings(criterion: Any) -> None:
    """Take settings that criteria which look for a contrast share: ``repeats``, ``min_contrast`` and ``max_groups``."""
    object.__setattr__(criterion, 'repeats', integer('repeats', criterion.repeats, 8))
    object.__setattr__(criterion, 'min_contrast', real('min_contrast', criterion.min_contrast, 0, 1))
    object.__setattr__(criterion, 'max_groups', group_numbers('max_groups', criterion.max_groups))
