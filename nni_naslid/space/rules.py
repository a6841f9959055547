"""Constraints between choices, as a space of NNI's may have them. Without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nni.mutable import Constraint, Sample

__all__ = ['Rules']


class Rules:
    """A filter: whether constraints between choices hold, and another filter lets an architecture pass.

    Parameters
    ----------
    constraints
        By label, as :meth:`ModelSpace.simplify` gives them.
    filter
        The other one; ``None`` lets all pass.
    """

    def __init__(self, constraints: Mapping[str, Constraint], filter: Callable[[Sample], bool] | None = None):
        self.constraints = dict(constraints)
        self.filter = filter

    def hold(self, sample: Sample) -> bool:
        """Whether the constraints hold, whatever the filter says."""
        sample = dict(sample)  # some constraints of NNI write into it
        return all(constraint.check_contains(sample) is None for constraint in self.constraints.values())

    def __call__(self, sample: Sample) -> bool:
        return self.hold(sample) and (self.filter is None or self.filter(dict(sample)))

    @property
    def parts(self) -> dict[str, Callable[[Sample], bool]]:
        """By name, what each of its conditions says alone."""
        found = {f'constraint {label!r} of the space': Rules({label: each}) for label, each in self.constraints.items()}
        return found | ({} if self.filter is None else {'filter': self.filter})

    @staticmethod
    def of(filter: Any) -> Rules | None:
        """Those that are part of a filter, if any are."""
        while filter is not None and not isinstance(filter, Rules):
            filter = getattr(filter, 'filter', None)
        return filter
