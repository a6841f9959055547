"""The part of a space whose networks cost no more, or no less, than a user allows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nni_naslid.run.constraints import Within, described, functions_of, table_of
from nni_naslid.space.additive import AdditiveScore, Term, choices_of
from nni_naslid.space.band import EVERY, Band, Range
from nni_naslid.space.subspace import SubSpace
from nni_naslid.space.tree import format_size
from nni_naslid.train.data import loaders, take_batches, tensors_in
from nni_naslid.train.path import PathModule, set_path
from nni_naslid.train.reads import conditions_of_labels
from nni_naslid.train.reports import quiet
from nni_naslid.train.structure import structural_score
from nni_naslid.train.validation import supernet_inputs
from nni_naslid.traits.flops import flops_tables

import numpy as np
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import Lightning
from torch import nn

__all__ = ['limited_space']

_logger = logging.getLogger(__name__)

LEVELS = 2000  # different values of a cost that is counted
FINE = 10**12  # steps that are as good as exact

Tables = Mapping[tuple[str, ...], np.ndarray]


def limited_space(
    constraints: Mapping[str, Sequence[Any]],
    space: SubSpace,
    filter: Callable[[Sample], bool] | None,
    module: PathModule,
    evaluator: Lightning,
) -> SubSpace:
    """The architectures of a space that keep to constraints.

    Of the costs that add up from choices, the one that leaves the fewest architectures is counted, so that paths are
    drawn that keep to it. Where it has more different values than can be counted, it is counted in steps, and an
    architecture is left out where that cannot be told by them: none is beyond a bound, and some within it are missed,
    by at most what the log says. The other costs, and those that functions tell, are looked at when a path is drawn,
    and another one is drawn where they are out of bounds.

    Parameters
    ----------
    constraints
        From :func:`~nni_naslid.run.constraints.parse_constraints`.
    space
        The whole space.
    filter
        The user's filter.
    module, evaluator
        The user's module, around a supernet that is used for nothing else, and the evaluator, whose first training
        batch is looked at.

    Raises
    ------
    ValueError
        Naming the cost, if it cannot be had, or if no two architectures keep to its bounds: the message has the range
        of what is possible.
    """
    by_function = functions_of(constraints)
    counted, exact = {}, {}
    for name, (low, high, *source) in constraints.items():
        if name not in by_function:
            tables = _tables(name, source, space, module, evaluator)
            counted[name] = _counted(name, tables, space, low, high)
            exact[name] = _exact(name, tables, space, low, high)
    ranges = sorted(counted.values(), key=lambda each: each.score.count().size(each.low, each.high))
    others = [exact[name] for name, each in counted.items() if each is not ranges[0]]
    if others or by_function:
        filter = Within(filter, by_function, others)
    limited = SubSpace(space.mutables, filter)
    if not ranges:
        return limited
    limited = Band(limited, ranges[0].score, ranges[0].low, ranges[0].high)
    if limited.size < 2:
        raise ValueError(f'constraints leave {limited.size} architecture, and nothing to search: {limited}.')
    (name,) = (name for name, each in counted.items() if each is ranges[0])
    _logger.info(
        'Constraints: %s of %s architectures have %s.', format_size(limited.size), format_size(space.size),
        described(name, *constraints[name][:2]),
    )  # fmt: skip
    return limited


def _counted(name: str, tables: Tables, space: SubSpace, low: float | None, high: float | None) -> Range:
    """The architectures of which it is sure that they keep to the bounds of a cost, by a score that can be counted."""
    score, error = _score(name, tables, space, LEVELS)
    histogram = score.count().histogram
    least, most = (end * score.unit for end in (min(histogram), max(histogram)))
    about = 'about ' if error else ''
    first = EVERY[0] if low is None else math.ceil((low + error) / score.unit)
    last = EVERY[1] if high is None else math.floor((high - error) / score.unit)
    if not score.count().size(first, last):
        raise ValueError(
            f'constraints: no architecture has {described(name, low, high)}; possible are {about}{least:,.6g} to '
            f'{most:,.6g}.'
        )
    _logger.info(
        'Constraints: %s is %s%s to %s in this space%s.', name, about, f'{least:,.6g}', f'{most:,.6g}',
        f', counted in steps of {score.unit:,.6g}; what is within {2 * error:,.6g} of a bound may be left out'
        if error else '',
    )  # fmt: skip
    return Range(score, first, last)


def _exact(name: str, tables: Tables, space: SubSpace, low: float | None, high: float | None) -> Range:
    """The architectures that keep to the bounds of a cost, to be asked one by one."""
    score, error = _score(name, tables, space, FINE)
    return Range(
        score,
        EVERY[0] if low is None else math.ceil((low - error) / score.unit),
        EVERY[1] if high is None else math.floor((high + error) / score.unit),
    )


def _tables(name: str, source: Sequence[Any], space: SubSpace, module: PathModule, evaluator: Lightning) -> Tables:
    supernet = module.model
    if name == 'parameters':
        score = structural_score(supernet, space, name, exact=True)
        return {term.labels: term.table for term in score.terms}
    if source:
        choices = {label: choices_of(space, label) for label in space.mutables}
        return _read_only(table_of(name, source[0], choices), supernet, space)
    set_path(module, space.extremes[0])  # any path: for what the module gives it
    with quiet():
        (inputs,) = supernet_inputs(evaluator, module, take_batches(loaders(evaluator)[0], 1))
    batch = len(tensors_in(inputs)[0])
    try:
        tables = flops_tables(supernet, space, inputs)
    except ValueError as error:
        raise ValueError(f'constraints: {name} cannot be counted: {error}.') from error
    return {labels: table / batch / (2 if name == 'macs' else 1) for labels, table in tables.items()}


def _read_only(costs: Mapping[str, Sequence[float]], supernet: nn.Module, space: SubSpace) -> Tables:
    """Costs of choices, which a network has whose label is read: not those of blocks beyond its depth."""
    conditions = conditions_of_labels(supernet, space)
    tables: dict[tuple[str, ...], np.ndarray] = {}
    for label, values in costs.items():
        gates = [gate for condition in conditions.get(label, ()) for gate in condition if gate != label]
        labels = (*dict.fromkeys(gates), label)
        table = np.zeros([len(choices_of(space, each)) for each in labels])
        for condition in conditions.get(label, [{}]):
            places = [condition.get(each, range(length)) for each, length in zip(labels, table.shape, strict=True)]
            table[np.ix_(*places)] = np.asarray(values, float)[places[-1]]
        tables[labels] = table
    return tables


def _score(name: str, tables: Tables, space: SubSpace, levels: int) -> tuple[AdditiveScore, float]:
    """A score of at most about so many values, and how far the cost of an architecture may be from it."""
    name = f'{name} (limit)'  # criteria may cut by the same cost in other units
    span = sum(float(np.ptp(table)) for table in tables.values())
    if all((table == np.rint(table)).all() for table in tables.values()):
        exact = AdditiveScore(
            space, [Term(labels, np.rint(table).astype(np.int64)) for labels, table in tables.items()], name
        )
        step = math.gcd(*(int(np.gcd.reduce((term.table - term.table.min()).ravel())) for term in exact.terms)) or 1
        if span / step <= levels:
            return exact, 0.0
    unit = _round_up(span / levels) if span else 1.0
    score = AdditiveScore(space, [Term.rounded(labels, table, unit) for labels, table in tables.items()], name, unit)
    errors = (abs(term.table * unit - table).max() for term, table in zip(score.terms, tables.values(), strict=True))
    return score, float(sum(errors))


def _round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    unit = next(each * power for each in (1, 2, 5, 10) if each * power >= value)
    return int(unit) if unit >= 1 else unit
