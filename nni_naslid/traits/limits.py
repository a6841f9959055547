"""The part of a space whose networks cost no more, or no less, than a user allows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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
from numpy.random import RandomState
from torch import nn

__all__ = ['limited_space']

_logger = logging.getLogger(__name__)

LEVELS = 5000  # different values of a cost that is counted
LEVELS_WITH_BANDS = 2000  # that are counted together with those of another score
FINE = 10**12  # steps that are as good as exact
LEVELS_TOGETHER = 1000, 300  # of a cost that is counted together with another one; fewer would be too coarse
LEAST_LEVELS = 20
RARE, N_TRIED = 0.02, 500  # the part of random architectures within another limit, below which that is counted, too

Tables = Mapping[tuple[str, ...], np.ndarray]
Limit = tuple[Tables, float | None, float | None]  # what a cost adds up from, and its bounds


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
    be within the bounds is drawn. If few of those architectures keep to another one, and there are not too many
    combinations, it is counted together with that. The exact costs, and those that functions tell, are looked at when a
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
    tables, counted, exact = {}, {}, {}
    inputs = _Inputs(module, evaluator, space)
    for name in names:
        low, high, *source = constraints[name]
        tables[name] = _tables(name, source, space, inputs)
        levels = LEVELS_WITH_BANDS if with_bands else LEVELS
        counted[name], is_exact = _counted(name, tables[name], space, low, high, levels)
        exact[name] = counted[name] if is_exact else _exact(name, tables[name], space, low, high)

    def allowed(asked: Sequence[Range]) -> SubSpace:
        return SubSpace(space.mutables, Within(filter, by_function, asked) if asked or by_function else filter)

    if not names:
        return allowed([])
    drawn = min(names, key=lambda name: _size(counted[name]))
    asked = [exact[name] for name in names if name != drawn or exact[name] is not counted[name]]
    limited = Band(allowed(asked), counted[drawn].score, counted[drawn].low, counted[drawn].high)
    shares = {name: _share(limited, [exact[name]]) for name in names if name != drawn}
    rarest = min(shares, key=shares.get, default=None)
    if rarest is not None and shares[rarest] < RARE:
        limits = {name: (tables[name], *constraints[name][:2]) for name in (drawn, rarest)}
        every = [*exact.values()]
        # A third score, of bands, could be counted in a few steps only.
        both = None if with_bands else _together(allowed(every), space, limits)
        if both is None:
            _check_possible(space, limits)
        elif _share(both, every) > _share(limited, every):
            limited = both
    if limited.size < 2:
        raise ValueError(f'constraints leave {limited.size} architecture, and nothing to search: {limited}.')
    is_exact = len(limited.ranges) == 1 and exact[drawn] is counted[drawn]
    told = ' and '.join(described(each.cost, *constraints[each.cost][:2]) for each in limited.ranges)
    at_most, sizes = '' if is_exact else 'at most ', (format_size(limited.size), format_size(space.size))
    _logger.info('Constraints: %s%s of %s architectures have %s.', at_most, *sizes, told)
    return limited


def _share(space: Band, limits: Sequence[Range]) -> float:
    """Which part of a space keeps to limits, about."""
    random_state, plain, keeps = RandomState(0), space.unfiltered(), Within(None, {}, limits)
    return sum(keeps(plain.sample(random_state)) for _ in range(N_TRIED)) / N_TRIED


def _together(allowed: SubSpace, space: SubSpace, limits: Mapping[str, Limit]) -> Band | None:
    """The architectures that may keep to the bounds of two costs; ``None`` if there is none, or too much to count."""
    for levels in LEVELS_TOGETHER:
        part = allowed
        with suppress(ValueError):
            for name, each in limits.items():
                limit, _ = _in_steps(name, *each, space, _reach(*each) / levels)
                part = Band(part, limit.score, limit.low, limit.high)
            return part
    return None


def _check_possible(space: SubSpace, limits: Mapping[str, Limit]) -> None:
    """Raise if no architecture keeps to the bounds of two costs, as far as they can be counted together."""
    one, other = limits
    for levels in LEVELS_TOGETHER:
        first, first_error = _in_steps(one, *limits[one], space, _reach(*limits[one]) / levels)
        limit, error = _in_steps(other, *limits[other], space, _reach(limits[other][0]) / levels)
        try:
            part = Band(SubSpace(space.mutables), first.score, first.low, first.high)
            costs = [*Band(part, limit.score, *EVERY).histogram(limit.score.name)]
        except ValueError:  # there are too many combinations
            continue
        if any(limit.low <= cost <= limit.high for cost in costs):
            return
        about = 'about ' if first_error or error else ''
        least, most = (f'{cost * limit.score.unit:,.6g}' for cost in (costs[0], costs[-1]))
        first_told, told = (described(name, *limits[name][1:]) for name in limits)
        raise ValueError(
            f'constraints: no architecture with {first_told} has {told}; possible are {about}{least} to {most} there.'
        )


def _in_steps(
    name: str, tables: Tables, low: float | None, high: float | None, space: SubSpace, step: float
) -> tuple[Range, float]:
    """The architectures that may keep to the bounds of a cost, counted in steps, and how far a step may be off."""
    score, error = _score(name, tables, space, max(step, _reach(tables) / FINE))
    return _range(score, low, high, error and error + score.unit * 1e-6), error  # of the division


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
    while True:
        found, error = _in_steps(name, tables, low, high, space, _reach(tables, low, high) / levels)
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
    is_coarse = error > found.score.unit / 1000  # not only by the rounding of decimal fractions
    steps = f', counted in steps of {found.score.unit:,.6g}' if is_coarse else ''
    _logger.info('Constraints: %s is %s to %s in this space%s.', name, f'{least:,.6g}', f'{most:,.6g}', steps)
    return found, not error


def _reach(tables: Tables, low: float | None = None, high: float | None = None) -> float:
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
    score, error = _score(name, tables, space, _reach(tables) / FINE)
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
