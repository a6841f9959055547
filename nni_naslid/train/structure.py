"""Additive scores of whole networks, counted in the modules of a supernet: convolutions, nonlinearities, parameters.

A module is in a network if all that is around it is: the candidate of a choice, the block of a ``Repeat`` within its
depth, the operation of a cell. So what modules add up to is a sum of terms of the few labels around each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any

from nni_naslid.space.additive import AdditiveScore, Term, choices_of
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.nasbench101 import PathSamplingNasBench101Cell
from nni_naslid.train.path import Expression, own_labels
from nni_naslid.train.reads import modules_of_paths

import numpy as np
import torch
from nni.mutable import Sample
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from numpy.random import RandomState
from torch import nn
from torch.nn.modules import activation, conv

__all__ = ['COUNTED', 'SCORES', 'histogram_of', 'parameters_of_mixed', 'structural_score']


NONLINEAR = *(getattr(activation, name) for name in activation.__all__), nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d


def _is_convolution(module: nn.Module) -> int:
    return isinstance(module, conv._ConvNd)


def _is_nonlinear(module: nn.Module) -> int:
    return isinstance(module, NONLINEAR)


def _n_parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters(recurse=False))


COUNTED = 'convolutions'  # the size by which networks are drawn, and have a momentum of their own
MOST = 10_000  # scores; so many are quick to count
SCORES = {'convolutions': _is_convolution, 'nonlinearities': _is_nonlinear, 'parameters': _n_parameters}


def structural_score(supernet: nn.Module, space: SubSpace, name: str, exact: bool = False) -> AdditiveScore:
    """A score of the networks of a sub-space.

    Parameters
    ----------
    supernet
        The supernet, or a part of it. Of supernet modules that are not NNI's own, all that is inside counts.
    space
        The sub-space.
    name
        What is counted, in all modules of a network, whether its output is used or not:

        - ``'convolutions'``: modules that are convolutions, of any kernel.
        - ``'nonlinearities'``: activations of :mod:`torch.nn` (attention and softmax are among them), and max pooling.
        - ``'parameters'``: numbers in the parameters, in units of ten or a hundred ... where there are more
          than :data:`MOST` different ones.

    exact
        Whether units are always 1: to be looked up, not to be counted.

    Notes
    -----
    Terms are rounded to units one by one: on MobileNetV3Space, in units of 10,000, a network is off by 1 % or so. A
    module that several candidates share counts with each that is chosen.

    Raises
    ------
    ValueError
        If ``name`` is none of these, or if terms read more choices than can be counted, as those of cells of
        NAS-Bench-101, where the channels of each vertex depend on the whole graph.
    """
    if name not in SCORES:
        raise ValueError(f'score must be one of {", ".join(SCORES)}, but got {name!r}.')
    weigh = SCORES[name]
    for path, module in supernet.named_modules():
        if isinstance(module, PathSamplingNasBench101Cell):
            raise ValueError(
                f'{name} of {path} (NasBench101Cell) depend on its whole graph, so they cannot be counted as a sum '
                'over choices'
            )
    known: dict[str, int] = {}  # what operations weigh, by their arguments
    expressions: dict[int, Expression] = {}  # many operations compute their arguments from the same ones
    tables: dict[tuple[str, ...], np.ndarray] = {}
    inside: set[nn.Module] = set()  # of mixed operations, which are weighed as a whole
    for module, condition in modules_of_paths(supernet, space):
        if module in inside or not (weight := weigh(module)):
            continue
        labels = tuple(condition)
        if isinstance(module, MixedOperation):
            inside.update(child for child in module.modules() if child is not module)
            labels = tuple(dict.fromkeys([*labels, *sorted(own_labels(module))]))
        choices = [choices_of(space, label) for label in labels]
        places = [condition.get(label, range(len(each))) for label, each in zip(labels, choices, strict=True)]
        table = np.zeros([len(each) for each in choices], np.int64)
        if isinstance(module, MixedOperation):
            arguments = {
                name: expressions.setdefault(id(mutable), Expression(mutable))
                for name, mutable in module.mutable_arguments.items()
            }
            for at in product(*places):
                sample = {label: each[place] for label, each, place in zip(labels, choices, at, strict=True)}
                chosen = {name: argument(sample) for name, argument in arguments.items()}
                table[at] = _weigh_mixed(weigh, module, chosen, known)
        else:
            table[np.ix_(*places)] = weight
        labels, table = _without_idle(labels, table)
        tables[labels] = tables.get(labels, 0) + table
    tables = {labels: table for labels, table in tables.items() if table.any()}
    score = AdditiveScore(space, [Term(*term) for term in tables.items()], name)
    return score if exact else score.coarser(MOST)


def histogram_of(score: AdditiveScore, space: SubSpace) -> dict[int, int]:
    """Score to number of networks, the lowest score first; of a thousand where a filter or a limit leaves some out."""
    if not space.ranges and space.filter is None:
        return score.count().histogram
    random_state = RandomState(0)
    return dict(sorted(Counter(score.of(space.sample(random_state)) for _ in range(1000)).items()))


def parameters_of_mixed(module: MixedOperation) -> Callable[[Sample], int]:
    """How many parameters a mixed operation has in the network that a sample describes."""
    expressions = {name: Expression(mutable) for name, mutable in module.mutable_arguments.items()}
    known: dict[str, int] = {}

    def count(sample: Sample) -> int:
        chosen = {name: expression(sample) for name, expression in expressions.items()}
        return _weigh_mixed(_n_parameters, module, chosen, known)

    return count


def _weigh_mixed(
    weigh: Callable[[nn.Module], int], module: MixedOperation, chosen: dict[str, Any], known: dict[str, int]
) -> int:
    """What the operation weighs that is made of a mixed one with these of its arguments."""
    arguments = module.init_arguments | chosen
    key = f'{module.bound_type} {arguments}'  # many are alike
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
