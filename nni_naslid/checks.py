"""Everything that can be found wrong before training starts."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from nni_naslid.criteria import CRITERIA
from nni_naslid.evaluator import validation_trainer
from nni_naslid.features import lid_profile, profile_layers, untouched
from nni_naslid.sampling import PathModule, set_path
from nni_naslid.subspace import SubSpace
from nni_naslid.training import loaders, quiet, take_inputs

from nni.nas.evaluator.pytorch import Lightning
from nni.nas.execution import ExecutionEngine, SequentialExecutionEngine
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.strategy import is_supernet
from nni.nas.space import RawFormatModelSpace
from nni.nas.strategy.base import Strategy
from numpy.random import RandomState

if TYPE_CHECKING:
    from nni_naslid.strategy import NASLID

__all__ = ['check_settings', 'check_space', 'try_out']

_logger = logging.getLogger(__name__)


def check_settings(strategy: NASLID) -> None:
    """Raise ValueError or TypeError, naming the value, for arguments of NASLID that cannot work with anything."""
    epochs = strategy.split_epochs
    if any(type(e) is not int or e < 1 for e in epochs) or any(b <= a for a, b in pairwise(epochs)):
        raise ValueError(f'split_epochs must be positive, increasing integers, but got {epochs}.')
    if strategy.criterion not in CRITERIA:
        raise ValueError(f'criterion must be one of {", ".join(CRITERIA)}, but got {strategy.criterion!r}.')
    if strategy.mode not in ('max', 'min'):
        raise ValueError(f"mode must be 'max' or 'min', but got {strategy.mode!r}.")
    if strategy.search is not None and (
        not isinstance(strategy.search, Strategy) or hasattr(strategy.search, 'mutate_model')
    ):
        raise TypeError(f'search must be a multi-trial strategy of NNI, but got {strategy.search!r}.')
    least = {
        'n_neighbors': 3, 'repeats': 4, 'max_groups': 2, 'search_budget': 1, 'calibration_batches': 0, 'seed': 0,
    }  # fmt: skip
    for name, bound in least.items():
        if type(value := getattr(strategy, name)) is not int or value < bound:
            raise ValueError(f'{name} must be an integer of at least {bound}, but got {value!r}.')


def check_space(strategy: NASLID, model_space: RawFormatModelSpace, engine: ExecutionEngine) -> Iterable:
    """Raise for a space, evaluator, engine, data or work folder that cannot work; return the training loader."""
    if not isinstance(model_space, RawFormatModelSpace) or not isinstance(engine, SequentialExecutionEngine):
        raise TypeError(
            "NASLID runs on NNI's sequential engine with the raw model format (the default of NasExperiment), but got "
            f'{type(engine).__name__} and {type(model_space).__name__}.'
        )
    space, evaluator = model_space.model_space, model_space.evaluator
    if not isinstance(space, ModelSpace) or is_supernet(space):
        raise TypeError(f'NASLID needs a ModelSpace that is not a supernet yet, but got {type(space).__name__}.')
    if not isinstance(evaluator, Lightning):
        raise TypeError(f'NASLID needs a Lightning evaluator, but got {type(evaluator).__name__}.')
    if evaluator.simplify():
        raise ValueError(f'The evaluator has choices of its own, which NASLID cannot search: {evaluator.simplify()}.')
    subspace = SubSpace.of(space)
    if subspace.size < 2 or (strategy.split_epochs and not subspace.splittable):
        raise ValueError(f'{type(space).__name__} has nothing to split: no label has two choices to choose from.')
    _check_epochs(strategy, evaluator)
    train, _ = loaders(evaluator)
    batch = take_inputs(train, 1)[0]
    if strategy.split_epochs and strategy.criterion == 'lid' and strategy.n_neighbors >= len(batch):
        raise ValueError(
            f'n_neighbors must be less than the training batch size, but got n_neighbors={strategy.n_neighbors} and '
            f'batches of {len(batch)}; lower one or raise the other (LID needs at least 4 points).'
        )
    profile_layers(space, strategy.layers)
    _check_workdir(strategy)
    return train


def _check_epochs(strategy: NASLID, evaluator: Lightning) -> None:
    max_epochs, min_epochs = evaluator.trainer.max_epochs, evaluator.trainer.min_epochs
    if max_epochs is None or max_epochs < 1:
        raise ValueError(f"The evaluator's trainer needs max_epochs of at least 1, but has {max_epochs}.")
    if strategy.split_epochs and strategy.split_epochs[-1] >= max_epochs:
        raise ValueError(
            f"split_epochs must be below the evaluator's max_epochs={max_epochs}, but got {strategy.split_epochs}."
        )
    if strategy.split_epochs and min_epochs is not None and min_epochs > strategy.split_epochs[0]:
        raise ValueError(
            f'min_epochs={min_epochs} of the trainer keeps it from stopping to split at {strategy.split_epochs}.'
        )


def _check_workdir(strategy: NASLID) -> None:
    probe = strategy.workdir / 'tree.tmp'
    try:
        strategy.workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f'workdir cannot be written to: {strategy.workdir.absolute()} ({error}).') from error
    if (strategy.workdir / 'tree.json').exists():
        _logger.warning('The earlier run in %s will be overwritten.', strategy.workdir)


def try_out(strategy: NASLID, supernet: ModelSpace, subspace: SubSpace) -> None:
    """Profile and validate one random path on one batch: what would fail after hours of training fails now.

    Raises
    ------
    ValueError
        If the user's module does not log the metric to rank by.
    """
    evaluator = strategy._evaluator
    module = PathModule(copy.deepcopy(evaluator.module))
    module.set_model(supernet)
    trainer = validation_trainer(evaluator, limit_val_batches=1)
    train, validation = loaders(evaluator)
    with untouched(supernet), quiet():
        set_path(supernet, subspace.sample(RandomState(strategy.seed)))
        if strategy.split_epochs and strategy.criterion == 'lid':
            x = take_inputs(train, 1)[0].to(trainer.strategy.root_device)
            supernet.to(x.device)
            lid_profile(supernet, x, profile_layers(supernet, strategy.layers), strategy.n_neighbors)
        trainer.validate(module, validation, verbose=False)
        supernet.cpu()
    if strategy.monitor not in trainer.callback_metrics:
        raise ValueError(
            f'monitor={strategy.monitor!r} is not logged by the validation_step of the evaluator, '
            f'which logs {sorted(trainer.callback_metrics)}.'
        )
