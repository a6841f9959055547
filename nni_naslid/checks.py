"""Everything that can be found wrong before training starts."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from nni_naslid.criteria import CRITERIA
from nni_naslid.features import path_profile, profile_layers, untouched
from nni_naslid.sampling import PathModule, set_path
from nni_naslid.subspace import SubSpace
from nni_naslid.training import loaders, supernet_inputs, take_batches, validate, validation_trainer

from nni.nas.evaluator.pytorch import Lightning
from nni.nas.execution import ExecutionEngine, SequentialExecutionEngine
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.strategy import is_supernet
from nni.nas.space import RawFormatModelSpace
from nni.nas.strategy.base import Strategy, StrategyStatus
from numpy.random import RandomState
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.data import extract_batch_size

if TYPE_CHECKING:
    from nni_naslid.strategy import NASLID

__all__ = ['check_settings', 'check_space', 'clear_workdir', 'try_out']

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
    if strategy.search is not None and strategy.search._status != StrategyStatus.EMPTY:
        raise ValueError(f'search must be a strategy that has not been used yet, but got {strategy.search!r}.')
    least = {
        'n_neighbors': 3, 'repeats': 8, 'max_groups': 2, 'search_budget': 1, 'calibration_batches': 0, 'seed': 0,
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
    if not evaluator.module.automatic_optimization:
        raise ValueError('NASLID needs automatic optimization, but the module of the evaluator has its own.')
    _check_trainer(strategy, evaluator.trainer)
    train, _ = loaders(evaluator)
    n_points = extract_batch_size(take_batches(train, 1)[0])
    layers = profile_layers(space, strategy.layers)
    if strategy.split_epochs and strategy.criterion == 'lid':
        if strategy.n_neighbors >= n_points:
            raise ValueError(
                'n_neighbors must be less than the training batch size, but got '
                f'n_neighbors={strategy.n_neighbors} and batches of {n_points}; LID needs at least 4 points.'
            )
        if len(layers) < 3:
            _logger.warning('The LID profile has %d layer(s) only, %s; name more with `layers`.', len(layers), layers)
    _check_workdir(strategy)
    return train


def _check_trainer(strategy: NASLID, trainer: Trainer) -> None:
    max_epochs, min_epochs = trainer.max_epochs, trainer.min_epochs
    if max_epochs is None or max_epochs < 1:
        raise ValueError(f"The evaluator's trainer needs max_epochs of at least 1, but has {max_epochs}.")
    for name, neutral in {'max_steps': -1, 'min_steps': None}.items():
        if (value := getattr(trainer, name)) != neutral:
            raise ValueError(f'NASLID counts in epochs, but the trainer of the evaluator has {name}={value}.')
    if trainer.limit_val_batches == 0:
        raise ValueError('NASLID needs validation, but the trainer of the evaluator has limit_val_batches=0.')
    if trainer.world_size > 1:
        raise ValueError(f'NASLID trains on one device in this version, but the trainer has {trainer.world_size}.')
    if strategy.split_epochs and strategy.split_epochs[-1] >= max_epochs:
        raise ValueError(
            f"split_epochs must be below the evaluator's max_epochs={max_epochs}, but got {strategy.split_epochs}."
        )
    if strategy.split_epochs and min_epochs is not None and min_epochs > strategy.split_epochs[0]:
        raise ValueError(
            f'min_epochs={min_epochs} of the trainer keeps it from stopping to split at {strategy.split_epochs}.'
        )


def _check_workdir(strategy: NASLID) -> None:
    if strategy.workdir is None:
        now = time.strftime('naslid-%Y%m%d-%H%M%S')
        names = (Path(f'{now}{suffix}') for suffix in ('', *(f'-{i}' for i in range(2, 1000))))
        strategy.workdir = next(name for name in names if not name.exists())
    probe = strategy.workdir / 'tree.tmp'
    try:
        strategy.workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f'workdir cannot be written to: {strategy.workdir.absolute()} ({error}).') from error


def clear_workdir(workdir: Path) -> None:
    """Delete the files of an earlier run; to be called when nothing can be found wrong any more."""
    if (workdir / 'tree.json').exists():
        _logger.warning('The earlier run in %s is deleted.', workdir)
        for pattern in ('tree.json', 'tree.png', 'node-*.ckpt', 'split-*.png'):
            for path in workdir.glob(pattern):
                path.unlink()


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
    train, validation = loaders(evaluator)
    set_path(supernet, subspace.sample(RandomState(strategy.seed)))
    inputs = supernet_inputs(evaluator, module, take_batches(train, 1))[0]
    if strategy.split_epochs and strategy.criterion == 'lid':
        supernet.to(inputs[0].device)
        with untouched(supernet):
            path_profile(supernet, inputs, profile_layers(supernet, strategy.layers), strategy.n_neighbors)
    logged = validate(validation_trainer(evaluator, limit_val_batches=1), module, validation)
    if strategy.monitor not in logged:
        raise ValueError(
            f'monitor={strategy.monitor!r} is not logged by the validation_step of the evaluator, '
            f'which logs {sorted(logged)}.'
        )
