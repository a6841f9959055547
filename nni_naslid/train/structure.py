"""Additive scores of whole networks, counted in the modules of a supernet: convolutions, nonlinearities, parameters.

A module is in a network if all that is around it is: the candidate of a choice, the block of a ``Repeat`` within its
depth, the operation of a cell. So what modules add up to is a sum of terms of the few labels around each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from nni_naslid.space.additive import AdditiveScore, Term, tabulate
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.path import own_labels

import numpy as np
import torch
from nni.mutable import Sample
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from nni.nas.oneshot.pytorch.supermodule.sampling import PathSamplingCell, PathSamplingLayer, PathSamplingRepeat
from torch import nn
from torch.nn.modules import activation, conv

__all__ = ['SCORES', 'structural_score']


NONLINEAR = *(getattr(activation, name) for name in activation.__all__), nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d


def _is_convolution(module: nn.Module) -> int:
    return isinstance(module, conv._ConvNd)


def _is_nonlinear(module: nn.Module) -> int:
    return isinstance(module, NONLINEAR)


def _n_parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters(recurse=False))


MOST = 2_000  # scores; so many are quick to count
SCORES = {'convolutions': _is_convolution, 'nonlinearities': _is_nonlinear, 'parameters': _n_parameters}


def structural_score(supernet: nn.Module, space: SubSpace, name: str) -> AdditiveScore:
    """A score of the networks of a sub-space.

    Parameters
    ----------
    supernet
        The supernet, or a part of it.
    space
        The sub-space.
    name
        What is counted, in all modules of a network, whether its output is used or not:

        - ``'convolutions'``: modules that are convolutions, of any kernel.
        - ``'nonlinearities'``: modules of :mod:`torch.nn` that are activations, and max pooling.
        - ``'parameters'``: numbers in the parameters, in units of ten or a hundred ... where there are more
          than :data:`MOST` different ones.

    Raises
    ------
    ValueError
        If ``name`` is none of these, or if terms read more choices than can be counted.
    """
    if name not in SCORES:
        raise ValueError(f'score must be one of {", ".join(SCORES)}, but got {name!r}.')
    weigh = SCORES[name]
    known: dict[tuple, int] = {}
    fixed: dict[tuple[_Gate, ...], int] = {}
    tables: dict[tuple[str, ...], np.ndarray] = {}

    def add(labels: tuple[str, ...], value: Callable[[Sample], int]) -> None:
        table = tabulate(space, labels, lambda *choices: value(dict(zip(labels, choices, strict=True))))
        labels, table = _without_idle(labels, table)
        tables[labels] = tables.get(labels, 0) + table

    for module, gates in _modules(supernet, ()):
        if isinstance(module, MixedOperation) and weigh(module):
            labels = dict.fromkeys([label for gate in gates for label in gate.labels] + sorted(own_labels(module)))
            add(tuple(labels), partial(_weigh_mixed, weigh, module, gates, known))
        elif weight := weigh(module):
            fixed[gates] = fixed.get(gates, 0) + weight
    for gates, weight in fixed.items():
        labels = dict.fromkeys(label for gate in gates for label in gate.labels)
        add(
            tuple(labels), lambda sample, gates=gates, weight=weight: weight * all(gate.opens(sample) for gate in gates)
        )
    return _in_units(space, {labels: table for labels, table in tables.items() if table.any()}, name)


def _in_units(space: SubSpace, tables: dict[tuple[str, ...], np.ndarray], name: str) -> AdditiveScore:
    """The score; in units of ten, or of a hundred, ..., where there are more than :data:`MOST`."""
    span = sum(int(np.ptp(table)) for table in tables.values())
    step = math.gcd(*(int(np.gcd.reduce((table - table.min()).ravel())) for table in tables.values())) or 1
    unit = 1
    while span > MOST * (step if unit == 1 else unit):
        unit *= 10
    make = Term if unit == 1 else partial(Term.rounded, unit=unit)
    return AdditiveScore(space, [make(*term) for term in tables.items()], name, unit)


@dataclass(frozen=True)
class _Gate:
    """What must be chosen for a module to be in a network; told from others by its key."""

    key: tuple
    labels: tuple[str, ...] = field(compare=False)
    opens: Callable[[Sample], bool] = field(compare=False)


def _modules(module: nn.Module, gates: tuple[_Gate, ...]) -> Iterator[tuple[nn.Module, tuple[_Gate, ...]]]:
    """All modules with their gates; one that is in a network twice comes twice."""
    yield module, gates
    if isinstance(module, MixedOperation):  # weighed as a whole
        return
    inside: dict[nn.Module, list[_Gate]] = {}
    if type(module).forward is PathSamplingLayer.forward:
        for choice in module.names:
            inside[module[choice]] = [_chosen((module.label, choice))]
    elif type(module).forward is PathSamplingRepeat.forward:
        yield module.blocks, gates
        for i, block in enumerate(module.blocks):
            inside[block] = [_deeper(module, i)]
    elif type(module).forward is PathSamplingCell.forward:
        yield module.ops, gates
        for node, sources in enumerate(module.ops, module.num_predecessors):
            yield sources, gates
            for source, operations in enumerate(sources):
                yield operations, gates
                for name, operation in operations.items():
                    inside[operation] = [
                        _chosen((f'{module.label}/input_{node}_{k}', [source]), (f'{module.label}/op_{node}_{k}', name))
                        for k in range(module.num_ops_per_node)
                    ]
    containers = {getattr(module, name, None) for name in ('blocks', 'ops')} if inside else set()
    for child in module.children():
        if child not in inside and child not in containers:
            yield from _modules(child, gates)
    for child, ways in inside.items():
        for gate in ways:
            yield from _modules(child, (*gates, gate))


def _chosen(*choices: tuple[str, object]) -> _Gate:
    return _Gate(
        ('chosen', repr(choices)),
        tuple(label for label, _ in choices),
        lambda sample: all(sample[label] == choice for label, choice in choices),
    )


def _deeper(repeat: PathSamplingRepeat, i: int) -> _Gate:
    depth = repeat.depth_choice
    return _Gate(('deeper', id(depth), i), tuple(depth.simplify()), lambda sample: depth.freeze(sample) > i)


def _weigh_fixed(weight: int, gates: tuple[_Gate, ...], sample: Sample) -> int:
    """What modules behind the same gates weigh; nothing if one is closed."""
    return weight * all(gate.opens(sample) for gate in gates)


def _weigh_mixed(
    weigh: Callable[[nn.Module], int],
    module: MixedOperation,
    gates: tuple[_Gate, ...],
    known: dict[tuple, int],
    sample: Sample,
) -> int:
    """What the operation weighs that a sample makes of a mixed one; nothing if a gate is closed."""
    if not all(gate.opens(sample) for gate in gates):
        return 0
    arguments = module.init_arguments | {name: each.freeze(sample) for name, each in module.mutable_arguments.items()}
    key = module.bound_type, repr(arguments)  # many are alike
    if key not in known:
        with torch.device('meta'):  # no memory, and nothing to initialize
            known[key] = sum(map(weigh, module.bound_type(**arguments).modules()))
    return known[key]


def _without_idle(labels: tuple[str, ...], table: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """A table without the labels that make no difference to it."""
    idle = [i for i in range(table.ndim) if (table == table.take([0], axis=i)).all()]
    for i in reversed(idle):
        table = table.take(0, axis=i)
    return tuple(label for i, label in enumerate(labels) if i not in idle), table
