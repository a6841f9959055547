"""What determines a run. Without torch: the tuner, which must start fast, reads it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

__all__ = ['CRITERIA', 'Settings']

CRITERIA = ('lid', 'random')
OF_THE_TREE = ('split_epochs', 'criterion', 'n_neighbors', 'repeats', 'max_groups', 'layers', 'seed')


@dataclass(frozen=True)
class Settings:
    """Settings of a run in plain types, the same for all ways to run it; :class:`NASLID` explains them.

    Raises
    ------
    ValueError
        Naming the setting, if it cannot work with anything.
    """

    split_epochs: Sequence[int] = ()
    criterion: str = 'lid'
    n_neighbors: int = 20
    repeats: int = 32
    max_groups: int = 2
    layers: Sequence[str] | None = None
    search_budget: int = 500
    monitor: str = 'val_loss'
    mode: str = 'min'
    calibration_batches: int = 10
    retries: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ('split_epochs', 'layers'):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence if name == 'split_epochs' else Sequence | None):
                raise ValueError(f'{name} must be a list, but got {value!r}.')
        object.__setattr__(self, 'split_epochs', list(self.split_epochs))
        object.__setattr__(self, 'layers', None if self.layers is None else list(self.layers))
        epochs = self.split_epochs
        if any(type(e) is not int or e < 1 for e in epochs) or any(b <= a for a, b in pairwise(epochs)):
            raise ValueError(f'split_epochs must be positive, increasing integers, but got {epochs}.')
        if self.criterion not in CRITERIA:
            raise ValueError(f'criterion must be one of {", ".join(CRITERIA)}, but got {self.criterion!r}.')
        if self.mode not in ('max', 'min'):
            raise ValueError(f"mode must be 'max' or 'min', but got {self.mode!r}.")
        least = {
            'n_neighbors': 3, 'repeats': 8, 'max_groups': 2, 'search_budget': 1, 'calibration_batches': 0, 'retries': 0,
            'seed': 0,
        }  # fmt: skip
        for name, bound in least.items():
            if type(value := getattr(self, name)) is not int or value < bound:
                raise ValueError(f'{name} must be an integer of at least {bound}, but got {value!r}.')

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def of_the_tree(self) -> dict[str, Any]:
        """Those that the tree and its weights depend on; the others are of the search."""
        return {name: getattr(self, name) for name in OF_THE_TREE}

    def next_stop(self, epoch: int, max_epochs: int) -> int:
        """Where a node that starts at an epoch is due to be split, or at its end."""
        return min(stop for stop in [*self.split_epochs, max_epochs] if stop > epoch)
