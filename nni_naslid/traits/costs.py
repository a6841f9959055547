"""What networks can be ranked by beside the metric: sizes, LID of their features, functions of the user's."""

from __future__ import annotations

import copy
import math
import platform
from collections.abc import Callable, Iterable
from numbers import Integral, Real

from nni_naslid.run.files import read_json
from nni_naslid.run.identity import identity
from nni_naslid.run.run import Run
from nni_naslid.run.spec import imported
from nni_naslid.space.subspace import SubSpace
from nni_naslid.space.tree import Node
from nni_naslid.train.checkpoint import read_checkpoint
from nni_naslid.train.data import loaders, own_data, take_batches
from nni_naslid.train.nasbench101 import PathSamplingNasBench101Cell
from nni_naslid.train.path import PathModule, set_path
from nni_naslid.train.reports import quiet
from nni_naslid.train.rng import seeded
from nni_naslid.train.structure import structural_score
from nni_naslid.train.validation import supernet_inputs
from nni_naslid.traits.flops import flops_of_a_sample
from nni_naslid.traits.layers import TooFewSamplesError, find_layers
from nni_naslid.traits.lid_score import by_lid
from nni_naslid.traits.live import live_parameters
from nni_naslid.traits.passes import latency
from nni_naslid.traits.places import Place

from nni.mutable import Sample
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.nn.pytorch import ModelSpace
from numpy.random import RandomState

__all__ = [
    'N_NEIGHBORS', 'check_costs', 'check_functions_travel', 'codes_of', 'cost_of', 'costs_depend_on', 'costs_of',
    'lid_places',
]  # fmt: skip

N_NEIGHBORS = 20  # of an LID estimate
N_TRIED = 100  # random networks that a function is asked about before training
OF_A_PASS = {'live_parameters': live_parameters, 'latency': latency}


def _function_of(name: str, setting: str = 'prior') -> Callable[[Sample], float] | None:
    """The user's function of this full name; ``None`` for the name of a cost that is ours. ``setting`` names it.

    Raises
    ------
    ValueError
        If there is none.
    """
    if '.' not in name:
        return None
    found = imported(name, setting)
    if not callable(found):
        raise ValueError(f'{setting}: {name} must be a function of an architecture, but is {found!r:.100}.')
    return found


def check_functions_travel(setting: str, names: Iterable[str]) -> None:
    """Raise if trials cannot import a function; ``setting`` is what names it.

    Raises
    ------
    ValueError
        Naming it.
    """
    for name in names:
        if name.startswith('__main__.'):
            raise ValueError(f'{setting}: trials cannot import {name}; put it at the top of a module of its own.')


def check_costs(setting: str, names: Iterable[str], module: PathModule, evaluator: Lightning) -> None:
    """Try each cost on the smallest and the largest path.

    Parameters
    ----------
    setting
        What names them, for messages.
    names
        The costs.
    module
        The user's module, around a supernet that is used for nothing else.
    evaluator
        The user's evaluator.

    Raises
    ------
    ValueError
        Naming the cost that cannot be had.
    """
    codes_of(names, setting)  # before the first call: what functions keep, such as a table of latencies, is part of it
    for name in names:
        try:
            cost = cost_of(name, module, evaluator, setting=setting)
        except ValueError as error:
            if '.' in name:
                raise
            raise ValueError(f'{setting}: {name} cannot be had: {error}') from error
        space = SubSpace.of(module.model)
        random = [space.sample(RandomState(seed)) for seed in range(N_TRIED)] if '.' in name else []
        for sample in [*space.extremes, *random]:
            if not math.isfinite(value := cost(sample)):
                raise ValueError(
                    f'{setting}: {name} must be a finite number, but is {value}, of the architecture {sample}.'
                )


def costs_of(run: Run, root: Node, names: Iterable[str]) -> dict[str, Callable[[Sample], float]]:
    """What gives each of some costs, for a run whose root has been trained; supernets are copies."""
    settings, evaluator = run.settings, run.evaluator
    found, copies = {}, {}
    for name in names:
        if '.' in name or name == 'parameters':  # it needs no weights
            found[name] = cost_of(name, PathModule(evaluator.module), evaluator, run.supernet)
            continue
        weights = 'init' if name == 'initial_lid' else 'root'
        if weights not in copies:
            copies[weights] = _copy(run, root, weights)
        with seeded(settings.seed, data=own_data(evaluator)), quiet():
            found[name] = cost_of(name, copies[weights], evaluator)
    return found


def _copy(run: Run, root: Node, which: str) -> PathModule:
    """A copy of the user's module and of its supernet, with the initial weights, or with those of the root."""
    module = PathModule(copy.deepcopy(run.evaluator.module))
    module.set_model(copy.deepcopy(run.supernet))
    if which == 'init':
        weights = read_checkpoint(run, run.folder.init, 'init', read_json(run.folder.tree, ('init',))['init'])
    else:
        weights = read_checkpoint(run, root.checkpoint, root.name, root.sha256)
    module.load_state_dict(weights['state_dict'])
    return module


def codes_of(names: Iterable[str], setting: str = 'prior') -> dict[str, str]:
    """What the code of each of the user's functions is; ``setting`` names them."""
    return {name: identity(function) for name in names if (function := _function_of(name, setting)) is not None}


def costs_depend_on(names: Iterable[str], root: Node) -> dict[str, str]:
    """By the name of a cost, what its values change with beside the run: the user's code, weights, the machine."""
    found = {'lid': root.weights, 'latency': platform.node()}
    return codes_of(names) | {name: of for name, of in found.items() if name in names}


def cost_of(
    name: str, module: PathModule, evaluator: Lightning, supernet: ModelSpace | None = None, setting: str = 'prior'
) -> Callable[[Sample], float]:
    """What gives one cost of an architecture, with the weights that a supernet has.

    Parameters
    ----------
    name
        One of :data:`~nni_naslid.run.costs.PASSES`, or the full name of a function.
    module, evaluator
        The user's module, around the supernet, and the evaluator, whose first training batch is looked at.
    supernet
        The supernet, where it is not that of the module and needs no weights.
    setting
        What names the cost, for messages.

    Raises
    ------
    ValueError
        If it cannot be had.
    """
    if (function := _function_of(name, setting)) is not None:
        return lambda sample: _number(f'{setting}: {name}', function, sample)
    supernet = module.model if supernet is None else supernet
    space = SubSpace.of(supernet)
    if name == 'parameters':
        if any(isinstance(module, PathSamplingNasBench101Cell) for module in supernet.modules()):  # they are no sum
            return lambda sample: sum(weight.numel() for weight in supernet.freeze(dict(sample)).parameters())
        return structural_score(supernet, space, name, exact=True).of
    of_a_pass = OF_A_PASS.get(name)
    places = {} if of_a_pass or name == 'flops' else lid_places(evaluator, module, space)
    set_path(module, space.extremes[0])  # any path: for what the module gives it
    inputs = supernet_inputs(evaluator, module, take_batches(loaders(evaluator)[0], 1))
    supernet.to(evaluator.trainer.strategy.root_device)
    if name == 'flops':
        return flops_of_a_sample(supernet, space, inputs[0])
    if of_a_pass is not None:
        return of_a_pass(supernet, inputs[0])
    return by_lid(supernet, places, inputs, N_NEIGHBORS)


def lid_places(evaluator: Lightning, module: PathModule, space: SubSpace) -> dict[str, Place]:
    """The layers whose LID :data:`N_NEIGHBORS` neighbours give: :func:`~nni_naslid.traits.layers.find_layers`.

    Raises
    ------
    ValueError
        If there are none, or if batches are too small.
    """
    try:
        return find_layers(evaluator, module, space, None, N_NEIGHBORS)
    except TooFewSamplesError:  # it says how to set n_neighbors, which cannot be set here
        least = f'training batches must have at least {N_NEIGHBORS + 1} samples'
        raise ValueError(f'LID takes {N_NEIGHBORS} neighbours, so {least}.') from None


def _number(name: str, function: Callable[[Sample], float], sample: Sample) -> float:
    """What a function of the user's says of an architecture, as a number of Python."""
    try:
        value = function(copy.deepcopy(sample))
    except Exception as error:
        raised = f'{type(error).__name__}: {error}'
        raise ValueError(f'{name} raised {raised}, of the architecture {sample}.') from error
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f'{name} must be a number, but is {value!r:.100}, of the architecture {sample}.')
    try:
        real = float(value)
    except OverflowError as error:
        raise ValueError(f'{name} must be a number below 1e308, but is {value!r:.100}.') from error
    return int(value) if isinstance(value, Integral) else real
