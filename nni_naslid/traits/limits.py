"""The part of a space whose networks cost no more, or no less, than a user allows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from nni_naslid.run.constraints import Within, described, functions_of, table_of
from nni_naslid.space.additive import AdditiveScore, Term, choices_of, extent_of
from nni_naslid.space.band import EVERY, LIMIT, Band, Range, is_weighted
from nni_naslid.space.subspace import SubSpace
from nni_naslid.space.tree import format_size
from nni_naslid.train.data import loaders, n_samples, take_batches
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

LEVELS = 5000  # different values of a cost that is counted
LEVELS_WITH_BANDS = 2000  # that are counted together with those of another score
FINE = 10**12  # steps that are as good as exact
LEAST_LEVELS = 20

Tables = Mapping[tuple[str, ...], np.ndarray]


def limited_space(
    constraints: Mapping[str, Sequence[Any]],
    space: SubSpace,
    filter: Callable[[Sample], bool] | None,
    module: PathModule,
    evaluator: Lightning,
    with_bands: bool = False,
) -> SubSpace:
    """The architectures of a space that keep to constraints.

    Of the costs that add up from choices, the one that leaves the fewest architectures is counted, so that paths are
    drawn that keep to it. Where it has more different values than can be counted, it is counted in steps, and what may
    be within the bounds is drawn. The exact cost, the other costs, and those that functions tell, are looked at when a
    path is drawn, and another one is drawn where they are out of bounds.

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
    with_bands
        Whether another score is going to be counted together with this cost.

    Raises
    ------
    ValueError
        Naming the cost, if it cannot be had, or if no two architectures keep to its bounds: the message has the range
        of what is possible.
    """
    by_function = functions_of(constraints)
    names = [name for name in constraints if name not in by_function]
    if names and (label := next((k for k, each in space.mutables.items() if is_weighted(each)), None)):
        raise ValueError(
            f'constraints are drawn from uniformly, but the choices of {label!r} have different weights. A function of '
            'an architecture (low, high, function) honours them.'
        )
    counted, asked = {}, {}
    inputs = _Inputs(module, evaluator, space)
    for name in names:
        low, high, *source = constraints[name]
        tables = _tables(name, source, space, inputs)
        counted[name], is_exact = _counted(name, tables, space, low, high, LEVELS_WITH_BANDS if with_bands else LEVELS)
        asked[name] = None if is_exact else _exact(name, tables, space, low, high)
    drawn = min(counted, key=lambda name: _size(counted[name]), default=None)
    others = [asked[name] or each for name, each in counted.items() if name != drawn or asked[name]]
    if others or by_function:
        filter = Within(filter, by_function, others)
    limited = SubSpace(space.mutables, filter)
    if drawn is None:
        return limited
    limited = Band(limited, counted[drawn].score, counted[drawn].low, counted[drawn].high)
    if limited.size < 2:
        raise ValueError(f'constraints leave {limited.size} architecture, and nothing to search: {limited}.')
    _logger.info(
        'Constraints: %s%s of %s architectures have %s.', 'at most ' if asked[drawn] else '',
        format_size(limited.size), format_size(space.size), described(drawn, *constraints[drawn][:2]),
    )  # fmt: skip
    return limited


def _size(each: Range) -> int:
    return each.score.count(None, *each.ends).size()


def _counted(
    name: str, tables: Tables, space: SubSpace, low: float | None, high: float | None, levels: int
) -> tuple[Range, bool]:
    """The architectures that may keep to the bounds of a cost, by a score that can be counted; whether all do."""
    try:
        least, most = extent_of([*tables.items()])
    except ValueError as failure:
        raise ValueError(f'constraints: {name} cannot be counted: {failure}') from failure
    reach, finest = _reach(tables, low, high), _reach(tables, None, None) / FINE
    while True:
        score, error = _score(name, tables, space, max(reach / levels, finest))
        tolerance = error and error + score.unit * 1e-6  # of the division
        found = _range(score, low, high, tolerance)
        try:
            size = _size(found)
            break
        except ValueError as failure:
            if levels < LEAST_LEVELS:
                raise ValueError(f'constraints: {name} cannot be counted: {failure}') from failure
            levels //= 2
    if not size:
        raise ValueError(
            f'constraints: no architecture has {described(name, low, high)}; possible are {least:,.6g} to {most:,.6g}.'
        )
    is_coarse = error > score.unit / 1000  # not only by the rounding of decimal fractions
    steps = f', counted in steps of {score.unit:,.6g}' if is_coarse else ''
    _logger.info('Constraints: %s is %s to %s in this space%s.', name, f'{least:,.6g}', f'{most:,.6g}', steps)
    return found, not error


def _reach(tables: Tables, low: float | None, high: float | None) -> float:
    """From the end of all costs to the bound: what is counted, so what steps must be fine for."""
    lowest, highest = (sum(float(end(table)) for table in tables.values()) for end in (np.min, np.max))
    if lowest == highest:
        return 0.0  # and not what a bound differs from it by rounding
    reaches = [highest - lowest]
    reaches += [] if high is None else [high - lowest]
    reaches += [] if low is None else [highest - low]
    return min((reach for reach in reaches if reach > 0), default=0.0)


def _exact(name: str, tables: Tables, space: SubSpace, low: float | None, high: float | None) -> Range:
    """The architectures that keep to the bounds of a cost, to be asked one by one; one that is at a bound does."""
    score, error = _score(name, tables, space, _reach(tables, None, None) / FINE)
    return _range(score, low, high, error and error + score.unit)


def _range(score: AdditiveScore, low: float | None, high: float | None, tolerance: float) -> Range:
    return Range(
        score,
        EVERY[0] if low is None else math.ceil((low - tolerance) / score.unit),
        EVERY[1] if high is None else math.floor((high + tolerance) / score.unit),
    )


class _Inputs:
    """What the supernet is called with for a batch, and what its operations add up from: found once."""

    def __init__(self, module: PathModule, evaluator: Lightning, space: SubSpace):
        self.module, self.evaluator, self.space = module, evaluator, space

    @cached_property
    def operations(self) -> Tables:
        """Of one sample."""
        _logger.info('Constraints: counting FLOPs. This takes seconds, or a minute in a large space.')
        set_path(self.module, self.space.extremes[0])  # any path: for what the module gives it
        with quiet():
            inputs, *_ = supernet_inputs(self.evaluator, self.module, take_batches(loaders(self.evaluator)[0], 1))
        n = n_samples(inputs)
        return {labels: table / n for labels, table in flops_tables(self.module.model, self.space, inputs).items()}


def _tables(name: str, source: Sequence[Any], space: SubSpace, inputs: _Inputs) -> Tables:
    supernet = inputs.module.model
    if name == 'parameters':
        score = structural_score(supernet, space, name, exact=True)
        return {term.labels: term.table for term in score.terms}
    if source:
        choices = {label: choices_of(space, label) for label in space.mutables}
        return _read_only(table_of(name, source[0], choices), supernet, space)
    try:
        operations = inputs.operations
    except Exception as error:  # of the user's network, too, on a path that a filter keeps out
        reason = ' '.join(str(error).split()).rstrip('.')
        kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
        raise ValueError(f'constraints: {name} cannot be counted: {kind}{reason}.') from error
    return {labels: table / (2 if name == 'macs' else 1) for labels, table in operations.items()}


def _read_only(costs: Tables, supernet: nn.Module, space: SubSpace) -> Tables:
    """Costs of choices, which a network has whose label is read: not those of blocks beyond its depth.

    Those of several labels together are taken as they are.
    """
    conditions = conditions_of_labels(supernet, space)
    tables = {labels: table for labels, table in costs.items() if len(labels) > 1}
    for (label,), values in ((labels, table) for labels, table in costs.items() if len(labels) == 1):
        gates = [gate for condition in conditions.get(label, ()) for gate in condition if gate != label]
        labels = (*dict.fromkeys(gates), label)
        table = np.zeros([len(choices_of(space, each)) for each in labels])
        for condition in conditions.get(label, [{}]):
            places = [condition.get(each, range(length)) for each, length in zip(labels, table.shape, strict=True)]
            table[np.ix_(*places)] = values[places[-1]]
        tables[labels] = tables[labels] + table if labels in tables else table
    return tables


def _score(name: str, tables: Tables, space: SubSpace, step: float) -> tuple[AdditiveScore, float]:
    """A score in steps of about that or more, and how far the cost of an architecture may be from it."""
    name += LIMIT
    if all((table == np.rint(table)).all() and abs(table).max() < 2**53 for table in tables.values()):
        terms = [Term(labels, np.rint(table).astype(np.int64)) for labels, table in tables.items()]
        exact = AdditiveScore(space, terms, name)
        if exact.step >= step:
            return exact, 0.0
    unit = _round_up(step) if step else max(abs(table).max() for table in tables.values()) / 2 or 1.0
    if not all(abs(table).max() / unit < 2**60 for table in tables.values()):
        raise ValueError(f'constraints: costs of {name} must not be so much larger than their differences.')
    score = AdditiveScore(space, [Term.rounded(labels, table, unit) for labels, table in tables.items()], name, unit)
    errors = (abs(term.table * unit - table).max() for term, table in zip(score.terms, tables.values(), strict=True))
    return score, float(sum(errors)) or unit * 1e-6


def _round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    unit = next(each * power for each in (1, 2, 5, 10) if each * power >= value)
    return int(unit) if unit >= 1 else unit
