"""What networks can be compared by beside the metric, as a user names it. Without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from nni_naslid.run.checks import brief, sequence
from nni_naslid.run.spec import name_of

__all__ = ['PASSES', 'cost_names', 'cost_weights']

PASSES = {'parameters': 0, 'live_parameters': 3, 'flops': 1, 'latency': 6, 'lid': 1, 'initial_lid': 1}
"""By the name of a cost, how many forward passes of a path it takes; a gradient counts thrice."""


def cost_weights(setting: str, given: Any, weight: float, known: Sequence[str] = (*PASSES,)) -> dict[str, float]:
    """Costs by their names, or by the full names of functions, each with its weight.

    Parameters
    ----------
    setting
        Its name, for messages.
    given
        A cost, or a dict of costs and weights.
    weight
        That of a cost without one.
    known
        The names that are ours.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    if not isinstance(given, str | Mapping) and not callable(given):
        raise ValueError(f'{setting} must be a cost, or a dict of costs and weights, but got {brief(given)}.')
    weights = given if isinstance(given, Mapping) else {given: weight}
    if not weights:
        raise ValueError(f'{setting} must name a cost, but got {{}}.')
    found = {}
    for cost, weight in weights.items():
        name = _name(setting, cost, known)
        if name in found:
            raise ValueError(f'{setting} names {name} twice.')
        if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight) or not weight:
            raise ValueError(f'{setting}: the weight of {name} must be a number, and not 0, but is {brief(weight)}.')
        found[name] = float(weight)
    return found


def cost_names(setting: str, given: Any, known: Sequence[str] = (*PASSES,)) -> list[str]:
    """A list of costs, each once, by their names or by the full names of functions.

    Raises
    ------
    ValueError
        If one is none of these, if there is none, or if a function is there under two names.
    """
    found: dict[str, Any] = {}
    for cost in sequence(setting, given):
        name = _name(setting, cost, known)
        if found.setdefault(name, cost) != cost:
            raise ValueError(f'{setting} names {name} twice.')
    if not found:
        raise ValueError(f'{setting} must name a cost, but got [].')
    return [*found]


def _name(setting: str, cost: str | Callable, known: Sequence[str]) -> str:
    if callable(cost):
        if (name := name_of(cost)) is None:  # a method, an inner function, or a stand-in
            raise ValueError(f'{setting}: a function must be at the top of a module, but got {brief(cost)}.')
        return name
    if isinstance(cost, str) and (cost in known or '.' in cost):
        return cost
    raise ValueError(
        f'{setting} must be of {", ".join(known)}, or a function of an architecture, but got {brief(cost)}.'
    )
