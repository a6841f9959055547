"""What determines a run. Without torch: the tuner, which must start fast, reads it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

from nni_naslid.run.checks import brief, integer, plain, sequence
from nni_naslid.run.constraints import parse_constraints
from nni_naslid.run.costs import cost_weights
from nni_naslid.run.spec import make, spec_of

__all__ = ['N_BETWEEN', 'PLAIN', 'Settings', 'paths_per_step']

SAMPLINGS = ('auto', 'uniform', 'balanced', 'fair', 'sandwich')
PLAIN = {'lr_by_size': False, 'momentum_bands': 1, 'sampling': 'uniform'}  # SPOS
N_BETWEEN = 2  # random paths of a step by the sandwich rule, between the largest and the smallest network
WEIGHT = 0.5  # of a prior without one
LEAST = {'search_budget': 1, 'momentum_bands': 1, 'calibration_batches': 0, 'retries': 0, 'seed': 0}
OR_ELSE = {'momentum_bands': 'auto', 'calibration_batches': None}  # what these may be, too
MAX_SEED = 2**32 - 1  # of numpy's RandomState, and so of NNI's strategies and of Lightning


def paths_per_step(sampling: str) -> int:
    """How many paths each batch trains."""
    return 2 + N_BETWEEN if sampling == 'sandwich' else 1


@dataclass(frozen=True)
class Settings:
    """Settings of a run in plain types, the same for all ways to run it; :class:`NASLID` explains them.

    ``criterion`` is a :class:`~nni_naslid.criteria.criterion.Criterion`.

    Raises
    ------
    ValueError
        Naming the setting, if it cannot work with anything.
    """

    split_epochs: Sequence[int]
    criterion: Any
    search_budget: int = 500
    monitor: str = 'val_loss'
    mode: str = 'min'
    calibration_batches: int | None = None
    retries: int = 1
    seed: int = 0
    trust_checkpoints: bool = False
    keep_epochs: Sequence[int] = ()
    stop_hopeless: float = 0.0
    lr_by_size: bool | str = 'auto'
    momentum_bands: int | str = 'auto'
    sampling: str = 'auto'
    distill: float = 0.0
    prior: Mapping[str, float] | None = None
    constraints: Mapping[str, Sequence[Any]] | None = None

    def __post_init__(self) -> None:
        for name in ('split_epochs', 'keep_epochs'):
            epochs = [plain(epoch) for epoch in sequence(name, getattr(self, name))]
            if any(type(e) is not int or e < 1 for e in epochs) or any(b <= a for a, b in pairwise(epochs)):
                raise ValueError(f'{name} must be positive, increasing integers, but got {brief(epochs)}.')
            object.__setattr__(self, name, epochs)
        if not isinstance(self.monitor, str) or not self.monitor:
            given = brief(self.monitor)
            raise ValueError(f"monitor must be the name of one metric, such as 'val_loss', but got {given}.")
        if self.mode not in ('max', 'min'):
            raise ValueError(f"mode must be 'max' or 'min', but got {brief(self.mode)}.")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f'sampling must be one of {", ".join(SAMPLINGS)}, but got {brief(self.sampling)}.')
        groups, n = getattr(self.criterion, 'max_groups', 2), len(self.split_epochs)
        if not isinstance(groups, Integral) and len(groups) > n > 0:
            raise ValueError(f'max_groups must have at most {n} numbers, as split_epochs, but got {brief(groups)}.')
        if not isinstance(self.trust_checkpoints, bool):
            raise ValueError(f'trust_checkpoints must be True or False, but got {brief(self.trust_checkpoints)}.')
        if not isinstance(self.lr_by_size, bool) and self.lr_by_size != 'auto':
            raise ValueError(f"lr_by_size must be True, False or 'auto', but got {brief(self.lr_by_size)}.")
        chance = self.stop_hopeless
        if isinstance(chance, bool) or not isinstance(chance, Real) or not (chance == 0 or 0.5 < chance < 1):
            raise ValueError(
                f'stop_hopeless must be 0 (never) or a probability above 0.5 and below 1, but got {brief(chance)}.'
            )
        object.__setattr__(self, 'stop_hopeless', float(chance))
        weight = self.distill
        if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= weight <= 1:
            raise ValueError(f'distill must be a weight from 0 to 1, but got {brief(weight)}.')
        if weight and self.sampling != 'sandwich':
            raise ValueError(
                f"distill={brief(weight)} needs sampling='sandwich', where each step has a largest network to learn "
                f'from, but sampling is {self.sampling!r}.'
            )
        object.__setattr__(self, 'distill', float(weight))
        if self.prior is not None:
            object.__setattr__(self, 'prior', cost_weights('prior', self.prior, WEIGHT))
        if self.constraints is not None:
            object.__setattr__(self, 'constraints', parse_constraints(self.constraints))
        for name, least in LEAST.items():
            other = f' or {OR_ELSE[name]!r}' if name in OR_ELSE else ''
            if not other or getattr(self, name) != OR_ELSE[name]:
                object.__setattr__(self, name, integer(name, getattr(self, name), least, other))
        if self.split_epochs or self.sampling == 'sandwich':  # with which only the rate has paid, in parts
            for name in PLAIN:
                if getattr(self, name) == 'auto' and not (name == 'lr_by_size' and self.split_epochs):
                    object.__setattr__(self, name, PLAIN[name])
        if self.momentum_bands != 1 and self.sampling == 'sandwich':
            raise ValueError(
                f'momentum_bands={self.momentum_bands} needs steps of one path, but sampling={self.sampling!r} trains '
                f'{self.paths_per_step} in each.'
            )
        if self.seed > MAX_SEED:
            raise ValueError(f'seed must be an integer of at most {MAX_SEED}, but got {self.seed}.')

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**content, 'criterion': spec_of(self.criterion)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Settings:
        """From :meth:`to_dict`."""
        return cls(**{**content, 'criterion': make(content['criterion'], 'criterion')})

    @property
    def of_the_tree(self) -> dict[str, Any]:
        """Those that the tree and its weights depend on, beside the criterion; the others are of the search."""
        # Without these, trees of earlier versions are the same.
        added = [name for name, plain in PLAIN.items() if getattr(self, name) != plain]
        added += [name for name in ('stop_hopeless', 'distill') if getattr(self, name)]
        if self.constraints is not None:
            added.append('constraints')
        uses_metric = (self.criterion.uses_metric and self.split_epochs) or self.stop_hopeless
        by_metric = ('monitor', 'mode') if uses_metric else ()
        return {name: getattr(self, name) for name in ('split_epochs', 'seed', *added, *by_metric)}

    @property
    def paths_per_step(self) -> int:
        """How many paths each batch trains, so what an epoch costs beside one of single paths."""
        return paths_per_step(self.sampling)

    def turned(self, metric: float) -> float:
        """A metric turned so that larger is better, or turned back."""
        return metric if self.mode == 'max' else 0.0 - metric  # -metric would make -0.0 of 0

    def is_split_at(self, epoch: int, max_epochs: int) -> bool:
        """Whether the :meth:`next_stop` of a node is to split it."""
        return self.next_stop(epoch, max_epochs) in self.split_epochs

    def next_stop(self, epoch: int, max_epochs: int) -> int:
        """Where a node is due to be split, or at its end, that starts at an epoch, or has been trained up to it."""
        return min(stop for stop in [*self.split_epochs, max_epochs] if stop >= epoch)
