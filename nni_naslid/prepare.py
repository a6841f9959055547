"""Report invalid set-ups before training starts."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nni_naslid.criteria.bands import Bands
from nni_naslid.criteria.criterion import Context
from nni_naslid.run.constraints import Within
from nni_naslid.run.settings import Settings
from nni_naslid.search.batchnorm import recalibrate
from nni_naslid.search.export import frozen_network
from nni_naslid.space.additive import AdditiveScore
from nni_naslid.space.rules import Rules
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.data import Inputs, as_validation, call, loaders, take_batches
from nni_naslid.train.devices import check_devices
from nni_naslid.train.options import Options, options_of
from nni_naslid.train.path import PathModule, labels_read, set_path
from nni_naslid.train.sampling import Draw
from nni_naslid.train.several import check_logits
from nni_naslid.train.structure import COUNTED, structural_score
from nni_naslid.train.validation import supernet_inputs, validate, validation_trainer
from nni_naslid.traits.costs import check_costs
from nni_naslid.traits.limits import limited_space

import torch
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.strategy import is_supernet
from numpy.random import RandomState
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EarlyStopping, Timer

__all__ = ['check_space', 'limit_space', 'try_out']

_logger = logging.getLogger(__name__)

N_ASKED = 100  # architectures, at least, that a filter is asked about before training
ALIKE = 'All networks have as many %s: to go by them (%s) makes no difference.'
GOOD_IF_HIGH = re.compile('acc|auc|f1|precision|recall|iou|psnr', re.IGNORECASE)


def check_filter(subspace: SubSpace, settings: Settings) -> None:
    """Raise if a filter or constraints fail, or accept so few samples that drawing them would take too long."""
    if subspace.filter is None:
        return
    filter, given = subspace.filter, []
    if isinstance(filter, Within):
        filter, given = filter.filter, ['constraints']
    given = [*(filter.parts if isinstance(filter, Rules) else ['filter'] if filter is not None else []), *given]
    what = ' and '.join(given)
    random_state, passed, different = RandomState(settings.seed), 0, set()
    unfiltered = subspace.unfiltered()
    for n in range(1000):
        sample = unfiltered.sample(random_state)
        try:
            answer = subspace.filter(dict(sample))
            passed += bool(answer)
            different |= {repr(sample)} if answer else set()
        except Exception as error:
            if str(error).startswith('constraints: '):
                raise
            raise ValueError(f'{what} raised {type(error).__name__}: {error}, of the architecture {sample}.') from error
        if passed >= 10 and n >= N_ASKED - 1 and len(different) > 1:
            _logger.info('%s: %d of the first %d random architectures passed.', what, passed, n + 1)
            return
    if passed >= 10:
        raise ValueError(f'{what} lets one architecture pass only, {sample}: there is nothing to search.')
    hint = ' It returned None: is its return missing?' if answer is None else ''
    inside = ' and '.join(f'{each.cost} {each}' for each in subspace.ranges)
    raise ValueError(
        f'{what} lets {passed} of 1,000 random architectures{f" with {inside}" if inside else ""} pass; at least 10 '
        f'must{_alone(subspace.filter, unfiltered, settings)}.{hint}'
    )


def _alone(filter: Callable, space: SubSpace, settings: Settings) -> str:
    """How many pass each of several conditions, and of what range the costs are that functions tell, for people."""
    random_state = RandomState(settings.seed)
    samples = [space.sample(random_state) for _ in range(1000)]
    functions = filter.constraints if isinstance(filter, Within) else {}
    parts = filter.parts if isinstance(filter, (Rules, Within)) else {}
    passed = {
        name: sum(bool(part(dict(sample))) for sample in samples)
        for name, part in parts.items()
        if name not in functions
    }
    alone = ', '.join(f'{name} {n}' for name, n in passed.items())
    told = [f'each alone: {alone}'] if len(parts) > 1 and alone else []
    if functions:  # which need not know what the user's filter keeps out
        others = Within(filter.filter, {}, filter.ranges)
        samples = [sample for sample in samples if others(sample)]
    for name in functions if samples else ():
        costs = [filter.cost(name, sample) for sample in samples]
        told.append(f'{name} of {len(costs):,} others is {min(costs):,.6g} to {max(costs):,.6g}')
    return f' ({"; ".join(told)})' if told else ''


def limit_space(supernet: ModelSpace, evaluator: Lightning, settings: Settings, filter: Callable | None) -> SubSpace:
    """The part of the space of a supernet that keeps to filter and constraints, after both are checked.

    Parameters
    ----------
    supernet
        A supernet that is used for nothing else.
    evaluator, settings
        Of the run.
    filter
        The user's filter.

    Raises
    ------
    ValueError
        If a constraint cannot be kept to, or if too little is left.
    """
    space = SubSpace(supernet.simplify(), filter)
    if settings.constraints:
        module = PathModule(copy.deepcopy(evaluator.module))
        module.set_model(supernet)
        with_bands = isinstance(settings.criterion, Bands) or settings.sampling == 'balanced'
        whole = SubSpace(space.mutables)
        space = limited_space(settings.constraints, whole, space.filter, module, evaluator, with_bands)
    check_filter(space, settings)
    if settings.split_epochs and not settings.criterion.can_split(space):
        raise ValueError(
            f'The constraints leave nothing to split for {settings.criterion!r}: {space}. Without split_epochs it is '
            'trained and searched as one supernet.'
        )
    return space


def check_space(space: ModelSpace, evaluator: Lightning, settings: Settings) -> None:
    """Raise if the space, the evaluator or its data cannot be used."""
    if not isinstance(space, ModelSpace) or is_supernet(space):
        raise TypeError(f'NASLID needs a ModelSpace that is not a supernet yet, but got {type(space).__name__}.')
    if not isinstance(evaluator, Lightning):
        raise TypeError(f'NASLID needs a Lightning evaluator, but got {type(evaluator).__name__}.')
    if evaluator.simplify():
        raise ValueError(f'The evaluator has choices of its own, which NASLID cannot search: {evaluator.simplify()}.')
    subspace = SubSpace.of(space)
    if subspace.size < 2:
        raise ValueError(f'{type(space).__name__} has nothing to split: no label has two choices to choose from.')
    if settings.split_epochs and not settings.criterion.can_split(subspace):
        raise ValueError(
            f'{type(space).__name__} has nothing to split for {settings.criterion!r}: more than one may be chosen of '
            f'{subspace.unsplittable}. Without split_epochs it is trained and searched as one supernet.'
        )
    if settings.split_epochs and subspace.unsplittable:
        _logger.info('More than one may be chosen of %s: searched, but never split.', subspace.unsplittable)
    if not evaluator.module.automatic_optimization:
        raise ValueError('NASLID needs automatic optimization, but the module of the evaluator has its own.')
    for name in ('training_step', 'validation_step'):
        if 'dataloader_iter' in inspect.signature(getattr(evaluator.module, name)).parameters:
            raise ValueError(f'NASLID gives batches to {name}, but that of the evaluator takes a dataloader_iter.')
    _check_trainer(settings, evaluator)
    if GOOD_IF_HIGH.search(settings.monitor) and settings.mode == 'min':
        _logger.warning(
            "The lowest %s is taken for the best, as mode='min' says. Is mode='max' meant?", settings.monitor
        )
    loaders(evaluator)


def _check_trainer(settings: Settings, evaluator: Lightning) -> None:
    trainer: Trainer = evaluator.trainer
    if trainer.fast_dev_run:
        raise ValueError(
            f'NASLID trains to the end, but the trainer of the evaluator has fast_dev_run={trainer.fast_dev_run}.'
        )
    max_epochs, min_epochs = trainer.max_epochs, trainer.min_epochs
    if max_epochs is None or max_epochs < 1:
        raise ValueError(f"The evaluator's trainer needs max_epochs of at least 1, but has {max_epochs}.")
    for name, neutral in {'max_steps': -1, 'min_steps': None}.items():
        if (value := getattr(trainer, name)) != neutral:
            raise ValueError(f'NASLID counts in epochs, but the trainer of the evaluator has {name}={value}.')
    for name, what in {'limit_train_batches': 'training', 'limit_val_batches': 'validation'}.items():
        if getattr(trainer, name) == 0:
            raise ValueError(f'NASLID needs {what}, but the trainer of the evaluator has {name}=0.')
    if trainer.barebones:
        raise ValueError('NASLID ranks by what is logged, but the trainer of the evaluator has barebones=True.')
    callbacks = [*trainer.callbacks, *_as_list(copy.deepcopy(evaluator.module).configure_callbacks())]
    for callback in callbacks:
        if isinstance(callback, (EarlyStopping, Timer)):
            raise ValueError(
                'NASLID trains for max_epochs from the root to each leaf, but the trainer of the evaluator has '
                f'{type(callback).__name__}, which stops before. Remove it'
                f'{" (max_time is one)" if isinstance(callback, Timer) else ""}.'
            )
    check_devices(trainer)
    for name in ('split_epochs', 'keep_epochs'):
        epochs = getattr(settings, name)
        if epochs and epochs[-1] >= max_epochs:
            raise ValueError(f"{name} must be below the evaluator's max_epochs={max_epochs}, but got {epochs}.")
    if settings.split_epochs and min_epochs is not None and min_epochs > settings.split_epochs[0]:
        raise ValueError(
            f'min_epochs={min_epochs} of the trainer keeps it from stopping to split at {settings.split_epochs}.'
        )


def _as_list(callbacks: Any) -> list[Any]:
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]


def _check_labels(supernet: ModelSpace) -> None:
    """Raise if no module of the supernet reads a label: all its choices would be the same network."""
    if unread := sorted(set(SubSpace.of(supernet).mutables) - labels_read(supernet)):
        raise ValueError(
            f'No module of the supernet of {type(supernet).__name__} reads the label {unread[0]!r}, so its choices '
            'make no difference there. Give the choice to a module that NNI turns into a supernet module (LayerChoice, '
            'Repeat, MutableConv2d, ...), or name one of your own in mutation_hooks.'
        )


def _check_prior(supernet: ModelSpace) -> None:
    """Say so if all networks have as many parameters; raise if these cannot be counted."""
    if len(structural_score(supernet, SubSpace.of(supernet), 'parameters').count().histogram) < 2:
        _logger.warning(ALIKE, 'parameters', 'prior')


def _check_sampling(draw: Draw, supernet: ModelSpace, settings: Settings) -> None:
    """Raise if paths should not be drawn so."""
    space = SubSpace.of(supernet)
    if settings.sampling == 'sandwich':
        _check_sandwich(draw((settings.seed,), 0, 0), structural_score(supernet, space, 'parameters', exact=True))
    if settings.sampling == 'balanced' and len(structural_score(supernet, space, COUNTED).count().histogram) < 2:
        _logger.warning(ALIKE, COUNTED, 'sampling')
    criterion = settings.criterion
    allowed = ['uniform', *['balanced'] * (getattr(criterion, 'score', None) == 'convolutions'), 'sandwich']
    if settings.split_epochs and isinstance(criterion, Bands) and settings.sampling not in allowed:
        others = ' or '.join(map(repr, allowed))
        raise ValueError(
            f'sampling={settings.sampling!r} does not go with {criterion!r}, in whose parts choices depend on each '
            f'other. Take sampling={others}, or a criterion that splits one choice, such as LID().'
        )


def _check_sandwich(paths: list[Sample], parameters: AdditiveScore) -> None:
    """Raise if no network is larger than others; say which is the largest, and which the smallest."""
    ends = paths[0], paths[-1]
    largest, smallest = map(parameters.of, ends)
    if largest == smallest:
        raise ValueError(f"sampling='sandwich' needs networks of different sizes, but all have {largest:,} parameters.")
    _logger.info(
        'sampling: each step trains %d paths, among them the largest and the smallest network of a sub-space. Of the '
        'whole space, the largest has %s parameters (%s), the smallest %s (%s).',
        len(paths), f'{largest:,}', ends[0], f'{smallest:,}', ends[1],
    )  # fmt: skip


def try_out(supernet: ModelSpace, evaluator: Lightning, settings: Settings) -> dict[str, Any]:
    """Have the criterion check; recalibrate, export and validate once, for the smallest and the largest path.

    So mistakes are found now, and not after hours of training.

    Parameters
    ----------
    supernet
        A supernet that is used for nothing else.
    evaluator, settings
        Of the run.

    Returns
    -------
    What the criterion found: see :meth:`~nni_naslid.criteria.criterion.Criterion.check`. Empty if nothing is split.

    Raises
    ------
    ValueError
        If the user's module does not log the metric to rank by, if the supernet does not read a label, or for what the
        criterion finds.
    """
    _check_labels(supernet)
    module = PathModule(copy.deepcopy(evaluator.module))
    module.set_model(supernet)
    checked = _check_criterion(supernet, evaluator, module, settings) if settings.split_epochs else {}
    options = options_of(settings, supernet, SubSpace.of(supernet))
    if options.learning_rate is not None and len(options.learning_rate.sizes) < 2:
        _logger.warning(ALIKE, 'parameters', 'lr_by_size')
    if 'parameters' in (settings.prior or ()):
        with suppress(ValueError):  # a prior asks networks one by one
            _check_prior(supernet)
    _check_sampling(options.draw, supernet, settings)
    check_costs('prior', settings.prior or (), module, evaluator)
    if (settings.prior or {}).get('latency', -1) > 0:
        _logger.warning(
            'prior: latency has the weight %g, above 0, so slow networks come first.', settings.prior['latency']
        )
    train, validation = loaders(evaluator)
    batches = take_batches(train, 1)
    copies: set[str] = set()
    for sample in SubSpace.of(supernet).extremes:
        set_path(module, sample)
        inputs = supernet_inputs(evaluator, module, batches)
        if settings.distill:
            _check_logits(supernet, inputs[0])
        supernet.to(evaluator.trainer.strategy.root_device)  # Lightning has taken it to the CPU
        if settings.calibration_batches != 0:
            recalibrate(supernet, inputs[:1])
        network, why = frozen_network(supernet.cpu().eval(), sample, inputs[0])
        if network is None:
            copies.add(why)
        trainer = validation_trainer(evaluator, limit_val_batches=1)
        logged, _ = validate(trainer, module, as_validation(evaluator, validation))
    if copies:
        _logger.info(
            'Networks will be exported as copies of the supernet set to a path, not frozen: %s.', '; '.join(copies)
        )
    if settings.monitor not in logged:
        raise ValueError(
            f'monitor={settings.monitor!r} is not logged by the validation_step of the evaluator, '
            f'which logs {sorted(logged)}.'
        )
    _tell(options, settings)
    return checked


def _tell(options: Options, settings: Settings) -> None:
    """Say how networks of different sizes are trained, where that is not as in SPOS."""
    if options.learning_rate is not None:
        _logger.info('Where the learning rate falls, that of large networks falls later.')
    if options.momenta is not None:
        if_possible = ', if the optimizers allow it' if settings.momentum_bands == 'auto' else ''
        _logger.info('Training has %s%s.', options.momenta, if_possible)
    if settings.sampling == 'balanced':
        _logger.info('Each number of convolutions is drawn equally often.')


def _check_logits(supernet: ModelSpace, inputs: Inputs) -> None:
    """Raise if the model returns what nothing can be distilled from."""
    with torch.no_grad():
        output = call(supernet, inputs)
    try:
        check_logits(output)
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def _check_criterion(
    supernet: ModelSpace, evaluator: Lightning, module: PathModule, settings: Settings
) -> dict[str, Any]:
    criterion = settings.criterion
    checked = criterion.check(
        Context(
            name='0',
            subspace=SubSpace.of(supernet),
            supernet=supernet,
            module=module,
            evaluator=evaluator,
            monitor=settings.monitor,
            mode=settings.mode,
            seed=(settings.seed,),
            random_state=RandomState(settings.seed),
            checked={},
        )
    )
    try:
        is_plain = isinstance(checked, dict) and json.loads(json.dumps(checked)) == checked
    except TypeError:
        is_plain = False
    if not is_plain:
        raise ValueError(
            f'check of {criterion!r} must return a dict of what JSON has (texts, plain numbers, lists, dicts by texts; '
            f'{{}} for nothing), but returned {checked!r:.200}.'
        )
    return checked
