"""Everything that can be found wrong before training starts."""

from __future__ import annotations

import copy
import logging

from nni_naslid.devices import check_devices
from nni_naslid.features import path_profile, profile_layers, untouched
from nni_naslid.sampling import PathModule, set_path
from nni_naslid.settings import Settings
from nni_naslid.subspace import SubSpace
from nni_naslid.training import loaders, supernet_inputs, take_batches, validate, validation_trainer

from nni.nas.evaluator.pytorch import Lightning
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.strategy import is_supernet
from nni.nas.strategy.base import Strategy, StrategyStatus
from numpy.random import RandomState
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.data import extract_batch_size

__all__ = ['check_search', 'check_space', 'try_out']

_logger = logging.getLogger(__name__)


def check_search(search: Strategy | None) -> None:
    """Raise for a search that is no multi-trial strategy, or has been used."""
    if search is not None and (not isinstance(search, Strategy) or hasattr(search, 'mutate_model')):
        raise TypeError(f'search must be a multi-trial strategy of NNI, but got {search!r}.')
    if search is not None and search._status != StrategyStatus.EMPTY:
        raise ValueError(f'search must be a strategy that has not been used yet, but got {search!r}.')


def check_space(space: ModelSpace, evaluator: Lightning, settings: Settings) -> None:
    """Raise for a space, evaluator or data that cannot work."""
    if not isinstance(space, ModelSpace) or is_supernet(space):
        raise TypeError(f'NASLID needs a ModelSpace that is not a supernet yet, but got {type(space).__name__}.')
    if not isinstance(evaluator, Lightning):
        raise TypeError(f'NASLID needs a Lightning evaluator, but got {type(evaluator).__name__}.')
    if evaluator.simplify():
        raise ValueError(f'The evaluator has choices of its own, which NASLID cannot search: {evaluator.simplify()}.')
    subspace = SubSpace.of(space)
    if subspace.size < 2 or (settings.split_epochs and not subspace.splittable):
        raise ValueError(f'{type(space).__name__} has nothing to split: no label has two choices to choose from.')
    if not evaluator.module.automatic_optimization:
        raise ValueError('NASLID needs automatic optimization, but the module of the evaluator has its own.')
    _check_trainer(settings, evaluator.trainer)
    n_points = extract_batch_size(take_batches(loaders(evaluator)[0], 1)[0])
    layers = profile_layers(space, settings.layers)
    if settings.split_epochs and settings.criterion == 'lid':
        if settings.n_neighbors >= n_points:
            raise ValueError(
                'n_neighbors must be less than the training batch size, but got '
                f'n_neighbors={settings.n_neighbors} and batches of {n_points}; LID needs at least 4 points.'
            )
        if len(layers) < 3:
            _logger.warning('The LID profile has %d layer(s) only, %s; name more with `layers`.', len(layers), layers)


def _check_trainer(settings: Settings, trainer: Trainer) -> None:
    max_epochs, min_epochs = trainer.max_epochs, trainer.min_epochs
    if max_epochs is None or max_epochs < 1:
        raise ValueError(f"The evaluator's trainer needs max_epochs of at least 1, but has {max_epochs}.")
    for name, neutral in {'max_steps': -1, 'min_steps': None}.items():
        if (value := getattr(trainer, name)) != neutral:
            raise ValueError(f'NASLID counts in epochs, but the trainer of the evaluator has {name}={value}.')
    if trainer.limit_val_batches == 0:
        raise ValueError('NASLID needs validation, but the trainer of the evaluator has limit_val_batches=0.')
    check_devices(trainer)
    if settings.split_epochs and settings.split_epochs[-1] >= max_epochs:
        raise ValueError(
            f"split_epochs must be below the evaluator's max_epochs={max_epochs}, but got {settings.split_epochs}."
        )
    if settings.split_epochs and min_epochs is not None and min_epochs > settings.split_epochs[0]:
        raise ValueError(
            f'min_epochs={min_epochs} of the trainer keeps it from stopping to split at {settings.split_epochs}.'
        )


def try_out(supernet: ModelSpace, evaluator: Lightning, settings: Settings) -> None:
    """Profile and validate one random path on one batch: what would fail after hours of training fails now.

    Raises
    ------
    ValueError
        If the user's module does not log the metric to rank by.
    """
    module = PathModule(copy.deepcopy(evaluator.module))
    module.set_model(supernet)
    train, validation = loaders(evaluator)
    set_path(supernet, SubSpace.of(supernet).sample(RandomState(settings.seed)))
    inputs = supernet_inputs(evaluator, module, take_batches(train, 1))[0]
    if settings.split_epochs and settings.criterion == 'lid':
        supernet.to(inputs[0].device)
        with untouched(supernet):
            path_profile(supernet, inputs, profile_layers(supernet, settings.layers), settings.n_neighbors)
    logged, _ = validate(validation_trainer(evaluator, limit_val_batches=1), module, validation)
    if settings.monitor not in logged:
        raise ValueError(
            f'monitor={settings.monitor!r} is not logged by the validation_step of the evaluator, '
            f'which logs {sorted(logged)}.'
        )
