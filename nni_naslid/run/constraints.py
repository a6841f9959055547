"""Limits on what a network may cost, as a user gives them. Without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import product
from numbers import Real
from pathlib import Path
from typing import Any

from nni_naslid.run.checks import brief
from nni_naslid.run.spec import imported, name_of
from nni_naslid.space.band import Range
from nni_naslid.space.rules import Rules

import numpy as np
from nni.mutable import Sample

__all__ = ['AND', 'COUNTED', 'Within', 'all_described', 'described', 'functions_of', 'parse_constraints', 'table_of']

COUNTED = ('parameters', 'flops', 'macs')  # what is told without a table or a function
AND = ' & '  # between labels, and between their choices, of an entry of a table for several labels together

Parsed = dict[str, list[Any]]


def parse_constraints(given: Any) -> Parsed:
    """Constraints in plain types: by the name of a cost its bounds, and what gives it, if it is not one of ours.

    Parameters
    ----------
    given
        By the name of a cost: ``(low, high)`` of one of :data:`COUNTED`; ``(low, high, source)`` of any other, where
        the source is a table (:func:`table_of`), the path of one as ``.json``, a function at the top of a module, or
        its full name. ``None`` is no bound.

    Raises
    ------
    ValueError
        Naming the cost, if it is none of these, or if a table cannot be read.
    """
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f'constraints must be a dict of costs and their bounds, but got {brief(given)}.')
    return {name: _parsed(name, value) for name, value in given.items()}


def _parsed(name: Any, value: Any) -> list[Any]:
    if not isinstance(name, str) or not name:
        raise ValueError(f'constraints must be by the name of a cost, but got {brief(name)}.')
    n = 2 if name in COUNTED else 3
    if not isinstance(value, (list, tuple)) or len(value) != n:
        right = '(low, high)' if n == 2 else '(low, high, what gives it: a table or a function)'
        known = '' if n == 2 else f', as it is none of {", ".join(COUNTED)}'
        if near := get_close_matches(name, COUNTED, 1, 0.5) if n == 3 else []:
            known += f'; is {near[0]} meant?'
        raise ValueError(f'constraints: {name} must have {right}{known}, but has {brief(value)}.')
    bounds = [_bound(name, end) for end in value[:2]]
    low, high = (-math.inf if bounds[0] is None else bounds[0], math.inf if bounds[1] is None else bounds[1])
    if bounds == [None, None] or low > high:
        raise ValueError(
            f'constraints: {name} must have a bound, and the first one not above the second, but has {brief(bounds)}.'
        )
    return [*bounds, *(_source(name, source) for source in value[2:])]


def _bound(name: str, end: Any) -> float | None:
    if end is None:
        return None
    if isinstance(end, bool) or not isinstance(end, Real) or end != end or end in (math.inf, -math.inf):
        hint = ' (in a YAML, 3e8 is a text, and 3.0e+8 is a number)' if isinstance(end, str) else ''
        raise ValueError(f'constraints: bounds of {name} must be numbers or None, but one is {brief(end)}{hint}.')
    try:
        float(end)
    except OverflowError:
        raise ValueError(f'constraints: bounds of {name} must be below 1e308, but one is {brief(end)}.') from None
    end = end.item() if hasattr(end, 'item') else end
    return int(end) if float(end).is_integer() and abs(end) < 2**53 else end  # 4e3 and 4000 are one bound


def _source(name: str, source: Any) -> str | dict[str, dict[str, float]]:
    if isinstance(source, Path) or (isinstance(source, str) and source.endswith('.json')):
        try:
            source = json.loads(Path(source).expanduser().read_text())
        except OSError as error:
            raise ValueError(f'constraints: the table {source} of {name} cannot be read ({error.strerror}).') from error
        except ValueError as error:
            raise ValueError(f'constraints: {source} of {name} is no JSON ({error}).') from None
    if isinstance(source, Mapping):
        return _plain_table(name, source)
    if callable(source):
        if (full := name_of(source)) is None:
            raise ValueError(
                f'constraints: the function of {name} must be at the top of a module, but is {brief(source)}.'
            )
        return full
    if isinstance(source, str) and '.' in source and '/' not in source and not Path(source).exists():
        return source
    raise ValueError(
        f'constraints: {name} must have a table (a dict, or the path of a .json) or a function, but has '
        f'{brief(source)}.'
    )


def _plain_table(name: str, table: Mapping[Any, Any]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for label, costs in table.items():
        if not isinstance(costs, Mapping):
            raise ValueError(
                f'constraints: the table of {name} must have a dict of choices and costs for each label, but has '
                f'{brief(costs)} for {label!r}.'
            )
        for choice, cost in costs.items():
            if isinstance(cost, bool) or not isinstance(cost, Real) or not math.isfinite(cost):
                raise ValueError(
                    f'constraints: the table of {name} must have finite numbers, but has {brief(cost)} for {choice!r} '
                    f'of {label!r}.'
                )
            of_label = found.setdefault(str(label), {})
            if str(choice) in of_label:
                raise ValueError(f'constraints: the table of {name} has two costs for {choice!r} of {label!r}.')
            of_label[str(choice)] = float(cost)
    return found


def table_of(
    name: str, table: Mapping[str, Mapping[str, float]], choices: Mapping[str, list[Any]]
) -> dict[tuple[str, ...], np.ndarray]:
    """The costs of choices of labels of a space, and of combinations of choices of several labels.

    Parameters
    ----------
    name
        Of the cost, for messages.
    table
        By label and choice, a cost. Choices are texts there, as in JSON: ``'3'`` for 3, ``'[0]'`` or ``'0'`` for the
        first of several inputs. By labels together, ``'a & b'``, the cost of each combination, ``'3 & 0'``.
    choices
        Of each label of the space, as they are in samples.

    Returns
    -------
    By labels, costs in the order of choices, with a dimension for each label.

    Raises
    ------
    ValueError
        Naming what the table has not, or what the space has not. A label with one choice may be missing.
    """
    found, named = {}, set()
    for key, costs in table.items():
        labels = tuple(key.split(AND)) if key not in choices else (key,)
        if unknown := [label for label in labels if label not in choices]:
            known = ', '.join(choices)
            raise ValueError(f'constraints: the table of {name} has {unknown[0]!r}, but the labels are {known:.200}.')
        found[labels] = _costs_of(name, key, costs, [choices[label] for label in labels])
        named.update(labels)
    if missing := [label for label, values in choices.items() if len(values) > 1 and label not in named]:
        raise ValueError(f'constraints: the table of {name} has nothing for {missing[0]!r}.')
    return found


def _costs_of(name: str, key: str, costs: Mapping[str, float], values: Sequence[list[Any]]) -> np.ndarray:
    """The cost of each combination of choices of the labels of a key."""
    found, known = [], {}
    for combination in product(*values):
        own = {AND.join(each) for each in product(*map(_texts, combination))} & costs.keys()
        if not own:
            raise ValueError(f'constraints: the table of {name} has nothing for {_shown(combination)} of {key!r}.')
        if len(own) > 1:
            raise ValueError(
                f'constraints: the table of {name} has {" and ".join(map(repr, sorted(own)))} for {key!r}, which are '
                'one choice.'
            )
        text = own.pop()
        if text in known:
            raise ValueError(
                f'constraints: {text!r} of {key!r} in the table of {name} may be {known[text]!r} or {combination!r}.'
            )
        known[text] = combination
        found.append(costs[text])
    if unknown := [text for text in costs if text not in known]:
        allowed = ' and '.join(', '.join(map(str, each)) for each in values)
        raise ValueError(
            f'constraints: the table of {name} has {unknown[0]!r} for {key!r}, whose choices are {allowed:.200}.'
        )
    return np.array(found).reshape([len(each) for each in values])


def _texts(value: Any) -> list[str]:
    """What a choice may be called in a table."""
    texts = [str(value), json.dumps(value, default=str)]
    return [*texts, str(value[0])] if isinstance(value, list) and len(value) == 1 else texts


def _shown(combination: Sequence[Any]) -> str:
    return repr(combination[0]) if len(combination) == 1 else repr(AND.join(map(str, combination)))


def functions_of(constraints: Mapping[str, list[Any]] | None) -> dict[str, list[Any]]:
    """The constraints whose costs are given by a function."""
    return {name: each for name, each in (constraints or {}).items() if len(each) > 2 and isinstance(each[2], str)}


def described(name: str, low: float | None, high: float | None) -> str:
    """A constraint for people.

    >>> described('flops', None, 3e8), described('latency', 1, 2.5)
    ('flops up to 300,000,000', 'latency from 1 to 2.5')
    """
    low, high = (None if end is None else f'{end:,.12g}' for end in (low, high))
    if low is None:
        return f'{name} up to {high}'
    return f'{name} of at least {low}' if high is None else f'{name} from {low} to {high}'


def all_described(constraints: Mapping[str, list[Any]] | None) -> str:
    """All constraints for people; empty without any."""
    return ' and '.join(described(name, *each[:2]) for name, each in (constraints or {}).items())


class Within:
    """A filter: whether an architecture passes another filter, and costs of it are within bounds.

    Parameters
    ----------
    filter
        The other one; ``None`` lets all pass.
    constraints
        Those of :func:`functions_of`.
    ranges
        Of scores that are not counted.

    Raises
    ------
    ValueError
        Naming a function that cannot be imported, or, when it is called, one that returns no number.
    """

    def __init__(
        self,
        filter: Callable[[Sample], bool] | None,
        constraints: Mapping[str, list[Any]],
        ranges: Sequence[Range] = (),
    ):
        self.filter = filter
        self.ranges = tuple(ranges)
        self.constraints = dict(constraints)
        self._functions: dict[str, Callable[[Sample], float]] = {}

    def __call__(self, sample: Sample) -> bool:
        if self.filter is not None and not self.filter(dict(sample)):
            return False
        if not all(each.low <= each.score.of(sample) <= each.high for each in self.ranges):
            return False
        for name, (low, high, _) in self.constraints.items():
            cost = self.cost(name, sample)
            if (low is not None and cost < low) or (high is not None and cost > high):
                return False
        return True

    def cost(self, name: str, sample: Sample) -> float:
        """What a function tells."""
        full_name = self.constraints[name][2]
        if name not in self._functions:
            self._functions[name] = imported(full_name, 'constraints')
        try:
            cost = self._functions[name](dict(sample))
        except Exception as error:
            raised = f'{type(error).__name__}: {error}'
            raise ValueError(f'constraints: {full_name} raised {raised}, of the architecture {sample}.') from error
        if isinstance(cost, bool) or not isinstance(cost, Real) or math.isnan(cost):
            raise ValueError(f'constraints: {full_name} must return a number, but returned {brief(cost)} for {sample}.')
        return cost

    @property
    def parts(self) -> dict[str, Callable[[Sample], bool]]:
        """By name, what each of its conditions says alone."""
        found = self.filter.parts if isinstance(self.filter, Rules) else {'filter': self.filter} if self.filter else {}
        found |= {each.cost: Within(None, {}, [each]) for each in self.ranges}
        return found | {name: Within(None, {name: each}) for name, each in self.constraints.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), '_functions': {}}
