"""What determines a run. Without torch: the tuner, which must start fast, reads it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

__all__ = ['CRITERIA', 'Settings']

CRITERIA = ('lid', 'random')
MAX_SEED = 2**32 - 1  # of numpy's RandomState, and so of NNI's strategies and of Lightning
OF_THE_TREE = ('split_epochs', 'criterion', 'n_neighbors', 'repeats', 'min_contrast', 'max_groups', 'layers', 'seed')


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
    min_contrast: float = 0.01
    max_groups: int = 2
    layers: Sequence[str] | None = None
    search_budget: int = 500
    monitor: str = 'val_loss'
    mode: str = 'min'
    calibration_batches: int = 10
    retries: int = 1
    seed: int = 0
    trust_checkpoints: bool = False

    def __post_init__(self) -> None:
        epochs = [_plain(epoch) for epoch in _list('split_epochs', self.split_epochs)]
        if any(type(e) is not int or e < 1 for e in epochs) or any(b <= a for a, b in pairwise(epochs)):
            raise ValueError(f'split_epochs must be positive, increasing integers, but got {_brief(epochs)}.')
        object.__setattr__(self, 'split_epochs', epochs)
        if self.layers is not None:
            layers = _list('layers', self.layers)
            if not layers or not all(isinstance(layer, str) and layer for layer in layers):
                raise ValueError(
                    "layers must be names of modules or patterns such as 'cells.*', at least one, or None for the "
                    f'default, but got {_brief(layers)}.'
                )
            object.__setattr__(self, 'layers', layers)
        if self.criterion not in CRITERIA:
            raise ValueError(f'criterion must be one of {", ".join(CRITERIA)}, but got {_brief(self.criterion)}.')
        if not isinstance(self.monitor, str) or not self.monitor:
            given = _brief(self.monitor)
            raise ValueError(f"monitor must be the name of one metric, such as 'val_loss', but got {given}.")
        if self.mode not in ('max', 'min'):
            raise ValueError(f"mode must be 'max' or 'min', but got {_brief(self.mode)}.")
        if not isinstance(self.trust_checkpoints, bool):
            raise ValueError(f'trust_checkpoints must be True or False, but got {_brief(self.trust_checkpoints)}.')
        least = {
            'n_neighbors': 3, 'repeats': 8, 'max_groups': 2, 'search_budget': 1, 'calibration_batches': 0, 'retries': 0,
            'seed': 0,
        }  # fmt: skip
        for name, bound in least.items():
            value = _plain(getattr(self, name))
            if type(value) is not int or value < bound:
                raise ValueError(f'{name} must be an integer of at least {bound}, but got {_brief(value)}.')
            object.__setattr__(self, name, value)
        least_contrast = self.min_contrast
        if isinstance(least_contrast, bool) or not isinstance(least_contrast, Real) or not 0 <= least_contrast < 1:
            raise ValueError(
                f'min_contrast must be a number of at least 0 and below 1, but got {_brief(least_contrast)}.'
            )
        object.__setattr__(self, 'min_contrast', float(least_contrast))
        if self.seed > MAX_SEED:
            raise ValueError(f'seed must be an integer of at most {MAX_SEED}, but got {self.seed}.')

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def of_the_tree(self) -> dict[str, Any]:
        """Those that the tree and its weights depend on; the others are of the search."""
        # Whether a node is at chance level is told by the metric.
        by_metric = ('monitor', 'mode') if self.criterion == 'lid' and self.split_epochs else ()
        return {name: getattr(self, name) for name in (*OF_THE_TREE, *by_metric)}

    def turned(self, metric: float) -> float:
        """A metric turned so that larger is better, or turned back."""
        return metric if self.mode == 'max' else -metric

    def next_stop(self, epoch: int, max_epochs: int) -> int:
        """Where a node is due to be split, or at its end, that starts at an epoch, or has been trained up to it."""
        return min(stop for stop in [*self.split_epochs, max_epochs] if stop >= epoch)


def _list(name: str, value: Any) -> list:
    """A list of what is one, or an array."""
    items = value.tolist() if hasattr(value, 'tolist') else value
    if isinstance(items, (str, bytes)) or not isinstance(items, Sequence):
        raise ValueError(f'{name} must be a list, but got {_brief(value)}.')
    return list(items)


def _plain(value: Any) -> Any:
    """Integers of numpy as those of Python, for JSON; anything else, also True and False, as it is."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _brief(value: Any) -> str:
    """A value in one line of an error."""
    return f'{" ".join(repr(value).split()):.100}'
