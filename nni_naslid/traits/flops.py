"""Floating-point operations as a sum over choices, so that networks can be counted and drawn by them.

The operations of a module follow from the choices that it reads, and from those that put it on the path: those of few
labels. So a few passes, which have all these combinations between them, tell the operations of every network. Passes
are of meta tensors, which have shapes and no values.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from typing import Any

from nni_naslid.space.additive import AdditiveScore, Term, choices_of
from nni_naslid.space.reads import Condition
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.data import Inputs, call, n_samples
from nni_naslid.train.path import own_labels, set_path
from nni_naslid.train.reads import modules_of_paths
from nni_naslid.traits.passes import counted, flops
from nni_naslid.traits.profile import untouched

import numpy as np
from nni.mutable import Sample
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.sampling import (
    PathSamplingCell,
    PathSamplingInput,
    PathSamplingLayer,
    PathSamplingRepeat,
)
from numpy.random import RandomState
from torch import nn

__all__ = ['flops_of_a_sample', 'flops_tables']

_logger = logging.getLogger(__name__)

MOST = 5_000  # combinations of choices that the operations of a module may depend on
N_CHECKED = 30  # more random paths, whose operations must be as those of others say

Places = tuple[int, ...]


@dataclass
class _Part:
    """Modules that are on the same paths, and read the same labels: their operations by the choices of these.

    Those of a module are its own, without those of the modules in it.

    Attributes
    ----------
    modules
        The modules, with their names.
    conditions
        One of which must hold for them to be on a path.
    labels
        Whose choices tell the operations where they are on the path.
    more
        Labels that they may depend on, too, each added to those where operations are found to differ.
    found
        Operations of one call by the places of the choices of ``labels``.
    """

    modules: dict[nn.Module, str]
    conditions: list[Condition]
    labels: tuple[str, ...]
    more: list[tuple[str, ...]]
    found: dict[Places, Fraction] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For people."""
        names = [name or 'the supernet itself' for name in self.modules.values()]
        return f'{names[0]} and others' if len(names) > 1 else names[0]

    def take(self, path: Mapping[str, int], operations: int) -> bool:
        """Note the operations on a path; false if they are others than on a path with the same choices.

        Two edges of a cell may call one module, with the same input.
        """
        n_calls = sum(all(path[label] in places for label, places in each.items()) for each in self.conditions)
        if not n_calls:
            return not operations
        once = Fraction(operations, n_calls)
        return self.found.setdefault(tuple(path[label] for label in self.labels), once) == once

    def missing(self, lengths: Mapping[str, int]) -> Iterator[Condition]:
        """What each path is to be like that tells something that is not known, by label the places of choices.

        Raises
        ------
        ValueError
            If there are too many.
        """
        if (n := math.prod(lengths[label] for label in self.labels)) > MOST:
            raise ValueError(
                f'the operations of {self.name} depend on {n:,} combinations of the choices for '
                f'{", ".join(self.labels):.200}, more than {MOST:,}'
            )
        for places in product(*(range(lengths[label]) for label in self.labels)):
            if places in self.found:
                continue
            own = dict(zip(self.labels, places, strict=True))
            for condition in self.conditions:
                if all(own.get(label, some[0]) in some for label, some in condition.items()):
                    yield {**condition, **{label: [place] for label, place in own.items()}}
                    break

    def tables(self, lengths: Mapping[str, int]) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
        """The operations by the choices that they depend on and those that put the modules on the path."""
        for condition in self.conditions:
            labels = tuple(dict.fromkeys([*condition, *self.labels]))
            table = np.zeros([lengths[label] for label in labels], np.int64)
            for places in product(*(condition.get(label, range(lengths[label])) for label in labels)):
                path = dict(zip(labels, places, strict=True))
                table[places] = self.found[tuple(path[label] for label in self.labels)]
            yield labels, table


def flops_of_a_sample(supernet: nn.Module, space: SubSpace, inputs: Inputs) -> Callable[[Sample], float]:
    """What gives the operations of a path for one sample of a batch.

    Parameters
    ----------
    supernet, space, inputs
        As in :func:`flops_tables`. The first dimension of the first tensor counts the samples.

    Returns
    -------
    A function of an architecture. It looks a sum up, or takes a forward pass where operations are no sum over choices,
    or where that cannot be found out, as with a filter that keeps out paths which do not work.
    """
    n = n_samples(inputs)
    try:
        count = AdditiveScore(space, [Term(*each) for each in flops_tables(supernet, space, inputs).items()]).of
    except Exception as error:  # of the user's network, too, on a path that a filter keeps out
        _logger.info('FLOPs are counted by a forward pass of each network: %s', ' '.join(str(error).split()))
        count = flops(supernet, inputs)
    return lambda sample: count(sample) / n


def flops_tables(supernet: nn.Module, space: SubSpace, inputs: Inputs) -> dict[tuple[str, ...], np.ndarray]:
    """What the operations of a forward pass add up from, counted as by :func:`~nni_naslid.traits.passes.flops`.

    Parameters
    ----------
    supernet
        The supernet; it stays as it is, but for its path.
    space
        All of its space.
    inputs
        A batch, as the supernet is called with it.

    Returns
    -------
    Tables, as of a :class:`~nni_naslid.space.additive.Term`, by the labels that they read.

    Raises
    ------
    ValueError
        Naming a module whose operations do not follow from the choices that it reads, such as one whose input has
        another size after other choices; or if there are too many combinations of choices to try.
    """
    try:
        without_values = copy.deepcopy(supernet).to('meta')
        flops(without_values, inputs)(space.extremes[0])
        supernet = without_values
    except Exception:  # a network that looks at values, say
        pass
    choices = {label: choices_of(space, label) for label in space.mutables}
    lengths = {label: len(each) for label, each in choices.items()}
    parts = _parts(supernet, space)
    missing = [each for part in parts for each in part.missing(lengths)]
    random_state, n_checked = RandomState(0), 0
    counted: set[nn.Module] = set()
    with _counting(supernet, inputs) as count:
        while n_checked < N_CHECKED:
            n_checked = 0 if missing else n_checked + 1
            path = {label: random_state.randint(n) for label, n in lengths.items()} | _with_most(missing)
            operations = count({label: each[path[label]] for label, each in choices.items()})
            counted.update(module for module, n in operations.items() if n)
            missing = [each for each in missing if any(path[label] not in places for label, places in each.items())]
            for part in parts:
                found = sum(operations.get(module, 0) for module in part.modules)
                if not part.take(path, found):
                    while not part.take(path, found):
                        _read_more(part)
                    missing += part.missing(lengths)
    _tell_uncounted(supernet, counted)
    tables: dict[tuple[str, ...], np.ndarray] = {}
    for part in parts:
        for labels, table in part.tables(lengths) if any(part.found.values()) else ():
            tables[labels] = tables.get(labels, 0) + table
    return tables


def _tell_uncounted(supernet: nn.Module, counted: set[nn.Module]) -> None:
    """Log which modules of the user's do nothing that is counted: there may be more to them than activations."""
    names = {
        type(module).__name__: None
        for module in supernet.modules()
        if type(module).__module__.partition('.')[0] not in ('torch', 'nni', 'nni_naslid')
        and counted.isdisjoint(module.modules())
    }
    if names:
        _logger.info(
            'FLOPs are of matrix products, convolutions and attention: nothing is counted of %s.',
            ', '.join(names),
        )


def _parts(supernet: nn.Module, space: SubSpace) -> list[_Part]:
    names = {module: name for name, module in supernet.named_modules()}
    conditions: dict[nn.Module, list[Condition]] = {}
    for module, condition in modules_of_paths(supernet, space):
        conditions.setdefault(module, []).append(condition)
    parts: dict[str, _Part] = {}
    for module, each in conditions.items():
        labels, below = _reads(module), sorted({label for child in module.modules() for label in _reads(child)})
        gates = [label for condition in each for label in condition]
        part = parts.setdefault(f'{each} {labels} {below}', _Part({}, each, labels, [tuple(below), tuple(gates)]))
        part.modules[module] = names.get(module, '')
    return list(parts.values())


def _reads(module: nn.Module) -> tuple[str, ...]:
    """Labels of which the arguments of an operation are made. (NNI's choices of modules do nothing themselves.)"""
    is_route = isinstance(module, (PathSamplingLayer, PathSamplingInput, PathSamplingRepeat, PathSamplingCell))
    return tuple(sorted(own_labels(module))) if isinstance(module, BaseSuperNetModule) and not is_route else ()


def _read_more(part: _Part) -> None:
    while part.more:
        labels = tuple(dict.fromkeys([*part.labels, *part.more.pop(0)]))
        if len(labels) > len(part.labels):
            part.labels, part.found = labels, {}
            return
    raise ValueError(
        f'the operations of {part.name} depend on choices that they do not read: they are not the same on all paths '
        f'with the same choices for {", ".join(part.labels) or "their place"}'
    )


def _with_most(missing: Iterable[Condition]) -> dict[str, int]:
    """A path, in part, that has many of the missing: each one that goes with those before it."""
    taken: dict[str, list[int]] = {}
    for each in missing:
        both = {
            label: [place for place in taken.get(label, places) if place in places] for label, places in each.items()
        }
        if all(both.values()):
            taken |= both
    return {label: places[0] for label, places in taken.items()}


@contextmanager
def _counting(supernet: nn.Module, inputs: Inputs) -> Iterator[Callable[[Sample], dict[nn.Module, int]]]:
    """Gives what counts the operations of each module that is called on a path."""
    stack: list[list[int]] = []  # of modules that are being called: operations before, and those of modules in it
    own: dict[nn.Module, int] = {}
    counter: Any = None

    def before(module: nn.Module, *_: Any) -> None:
        stack.append([counter.get_total_flops(), 0])

    def after(module: nn.Module, *_: Any) -> None:
        start, inside = stack.pop()
        total = counter.get_total_flops() - start
        own[module] = own.get(module, 0) + total - inside
        if stack:
            stack[-1][1] += total

    def count(sample: Sample) -> dict[nn.Module, int]:
        nonlocal counter
        set_path(supernet, sample)
        own.clear()
        with counted() as counter:
            call(supernet, inputs)
        return own

    with ExitStack() as exits:
        exits.enter_context(untouched(supernet))
        for module in supernet.modules():
            exits.callback(module.register_forward_pre_hook(before).remove)
            exits.callback(module.register_forward_hook(after).remove)
        yield count
