"""Start a run in a work folder, or go on with the run that is there; this comes before any training."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import socket
from pathlib import Path
from typing import Any

from nni_naslid.criteria.advice import doubt_about_splits
from nni_naslid.criteria.bands import Bands
from nni_naslid.run.checks import brief
from nni_naslid.run.constraints import Within, functions_of
from nni_naslid.run.files import locked, read_json, replacing, sha256_of
from nni_naslid.run.folder import RunFolder, check_workdir
from nni_naslid.run.identity import UNSTABLE, code_of, difference, digest_of_arguments
from nni_naslid.run.identity import identity as identity_of
from nni_naslid.run.progress import IDENTITY, NO_LIMITS, Progress, levels, space_of
from nni_naslid.run.run import Run
from nni_naslid.run.settings import Settings
from nni_naslid.run.spec import identity_of_spec, spec_of
from nni_naslid.search.prior import N_REFERENCES
from nni_naslid.space.band import decode_ranges
from nni_naslid.space.rules import Rules
from nni_naslid.space.subspace import SubSpace
from nni_naslid.space.tree import format_size
from nni_naslid.train.checkpoint import TAG, check_plain, write_checkpoint
from nni_naslid.train.data import describe_data, loaders, n_steps
from nni_naslid.train.hopeless import LEAST_FINISHED, N_FINAL
from nni_naslid.train.path import PathModule, graphs_of
from nni_naslid.train.reads import conditions_of_labels
from nni_naslid.traits.costs import codes_of

import torch
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.nn.pytorch import ModelSpace

__all__ = ['check_trial', 'made_differently', 'space_of_run', 'start_run']

_logger = logging.getLogger(__name__)

MANY_LEAVES = 16  # of which each is trained apart, so that the log says what makes fewer


def start_run(
    supernet: ModelSpace, evaluator: Lightning, settings: Settings, folder: RunFolder, checked: dict[str, Any]
) -> Progress:
    """Start a run in a work folder, or go on with the one that is there.

    Parameters
    ----------
    supernet
        The supernet. The root starts from its weights, also where a trial trains it.
    evaluator
        The user's evaluator.
    settings
        Of the run.
    folder
        The work folder. It is created if it does not exist.
    checked
        What the criterion found, from :func:`~nni_naslid.prepare.try_out`.

    Raises
    ------
    OSError
        If the folder cannot be written to and does not hold a run.
    ValueError
        If the folder holds another run (the message names what differs) or a damaged file.
    """
    check_workdir(folder.path)
    space = SubSpace.of(supernet)
    identity = {
        'settings': settings.of_the_tree | _of_filter(space, settings),
        'criterion': {'criterion': spec_of(settings.criterion)['className'], **identity_of_spec(settings.criterion)},
        'space': space.to_dict(),
        'multiple': space.multiple,
        'training': _describe(evaluator),
        'arguments': _digests(evaluator, supernet),
        'data': describe_data(evaluator, settings.seed),
        'checked': checked,
    }
    assert tuple(identity) == IDENTITY
    identity = json.loads(json.dumps(identity, default=str))  # as it will be read
    _check_kept(settings, identity['training']['start_epoch'])
    progress = Progress(
        folder, settings, identity, space, read_if=conditions_of_labels(supernet, space), graphs=graphs_of(supernet)
    )
    is_new = not folder.tree.exists()
    if is_new:
        with locked(folder.lock('start'), 'start'):
            if not folder.tree.exists():  # else another process has started it meanwhile
                progress.init = _keep_start(supernet, evaluator, settings, folder, progress.run)
                progress.save()
    kept = read_json(folder.tree, ('run', 'init', *identity))
    told_first = {'criterion': identity['criterion'], **identity}  # some settings are kept for its sake only
    if found := difference(kept, told_first, 'this one'):
        raise ValueError(
            f'{folder.path} holds a run with {found}. Take that again, name another workdir, or delete that one.'
        )
    if kept.get('limits', NO_LIMITS) != json.loads(json.dumps(progress.limits)):
        raise ValueError(
            f'{folder.path} holds a run with other limits, though by the same constraints: its networks had other '
            'costs, by other code or another version. Name another workdir, or delete that one.'
        )
    progress.init = kept['init']
    _check_splits(folder, progress.run, settings.criterion)
    if not is_new:
        _logger.info('Going on with the run in %s', folder.path)
    _log_plan(evaluator, settings, progress)
    return progress


def _of_filter(space: SubSpace, settings: Settings) -> dict[str, str]:
    functions = codes_of([name for *_, name in functions_of(settings.constraints).values()], 'constraints')
    filter = space.filter.filter if isinstance(space.filter, Within) else space.filter
    filter = filter.filter if isinstance(filter, Rules) else filter  # which the arguments of the space tell
    return ({'filter': identity_of(filter)} if filter else {}) | {
        f'code of {name}': code for name, code in functions.items()
    }


def _check_kept(settings: Settings, start_epoch: int) -> None:
    """Raise if weights are to be kept of an epoch before those that are trained."""
    least = start_epoch if start_epoch in settings.split_epochs else start_epoch + 1
    if settings.keep_epochs and settings.keep_epochs[0] < least:
        raise ValueError(
            f'keep_epochs must be at least {least}, because training starts from a checkpoint of epoch {start_epoch}, '
            f'but got {settings.keep_epochs}.'
        )


def _check_splits(folder: RunFolder, run: str, criterion: Any) -> None:
    """Raise if a node was split by other code of a criterion of the same name. (What was trained before is as good.)"""
    code = code_of(criterion)
    if not code:  # one of ours, which its name tells
        return
    for path in sorted(folder.path.glob('node-*.json')):
        name = path.stem.removeprefix('node-')
        result = folder.read_result(name, run)
        if result and result['split'] and result['split']['code'] != code:
            raise ValueError(
                f'{folder.path} holds a split of node {name} by {result["split"]["code"]}, but the criterion is {code} '
                f'now. Name another workdir. {folder.advice(name)}'
            )


def space_of_run(supernet: ModelSpace, folder: RunFolder, settings: Settings, filter: Any) -> SubSpace:
    """The space of the run in a work folder, for a supernet that a trial has made; ``filter`` is the user's."""
    content, by_function = read_json(folder.tree, ('space',)), functions_of(settings.constraints)
    limits, whole = content.get('limits', NO_LIMITS), SubSpace(supernet.simplify(), filter)
    filter = whole.filter
    if limits == NO_LIMITS:
        return SubSpace(whole.mutables, Within(filter, by_function) if by_function else filter)
    kept = {}
    for label in whole.splittable:
        known = [json.dumps(choice) for choice in content['space'].get(label, ())]
        values = [json.dumps(value, default=str) for value in whole.mutables[label].values]
        kept[label] = [i for i, value in enumerate(values) if value in known]
        if len(kept[label]) != len(known) or not known:
            return whole  # of other code than the run: check_trial says so
    whole = whole.narrow(kept)
    asked = decode_ranges(limits['asked'], whole)
    if asked or by_function:
        filter = Within(filter, by_function, asked)
    return space_of(content, SubSpace(whole.mutables, filter))


def check_trial(space: Any, run: Run) -> None:
    """Raise if a trial has made other things than its run was started with: from other code, data or devices.

    Where the root starts from is in the work folder, so the user's checkpoint need not be on the trial's machine.

    Parameters
    ----------
    space
        What has the arguments that the space was made with.
    run
        The run, with the supernet and the evaluator of the trial.

    Raises
    ------
    ValueError
        Naming this machine, and what differs.
    """
    if differs := made_differently(space, run, f'this trial on {socket.gethostname()}'):
        raise ValueError(
            f'{run.folder.path} holds a run with {differs}. Code, data and devices must be the same for all trials.'
        )


def made_differently(space: Any, run: Run, whose: str, training: bool = True) -> str | None:
    """How space, evaluator and data that were made anew differ from those of the run in a folder; ``None`` if not.

    Parameters
    ----------
    space
        What has the arguments that the space was made with.
    run
        The run, with the supernet and the evaluator that were made anew.
    whose
        What has them, for people.
    training
        Whether to compare how long, and on what, is trained, too.
    """
    subspace = SubSpace.of(run.supernet)
    found = {
        'space': subspace.to_dict(),
        'multiple': subspace.multiple,
        'training': {'module': _name_of_module(run.evaluator)} | (_describe_trainer(run.evaluator) if training else {}),
        'arguments': _digests(run.evaluator, space),
        'data': describe_data(run.evaluator, run.settings.seed),
    }
    found = json.loads(json.dumps(found, default=str))
    kept = read_json(run.folder.tree, tuple(found))
    kept['training'] = {name: kept['training'].get(name) for name in found['training']}
    for name, value in kept['data'].items():
        if value == UNSTABLE:  # start_run has said so
            found['data'][name] = UNSTABLE
    return difference(kept, found, whose)


def _digests(evaluator: Lightning, space: Any) -> dict[str, str]:
    """Digests of what the module and the space were made with."""
    return {'module': digest_of_arguments(evaluator.module), 'space': digest_of_arguments(space)}


def _describe(evaluator: Lightning) -> dict[str, Any]:
    """Describe the training in plain types, so that a run with another training is noticed."""
    arguments = getattr(evaluator.module, 'trace_kwargs', {})
    plain = {k: v for k, v in arguments.items() if isinstance(v, (bool, int, float, str))}
    return {'module': _name_of_module(evaluator), **plain, **_describe_trainer(evaluator), **_warm_start(evaluator)}


def _name_of_module(evaluator: Lightning) -> str:
    return type(evaluator.module).__name__


def _describe_trainer(evaluator: Lightning) -> dict[str, Any]:
    trainer = evaluator.trainer
    return {
        'max_epochs': trainer.max_epochs,
        'precision': trainer.precision,
        'devices': trainer.world_size,
        'accumulate_grad_batches': trainer.accumulate_grad_batches,
        'gradient_clip_val': trainer.gradient_clip_val,
        'check_val_every_n_epoch': trainer.check_val_every_n_epoch,
        'val_check_interval': trainer.val_check_interval,
    }


def _warm_start(evaluator: Lightning) -> dict[str, Any]:
    """SHA-256 of the checkpoint that the user wants to start from, and how many epochs it was trained for.

    Raises
    ------
    ValueError
        If it is not a file, or has been trained for ``max_epochs`` or more.
    """
    if (given := evaluator.fit_kwargs.get('ckpt_path')) is None:
        return {'start_epoch': 0}
    if not Path(given).is_file():
        raise ValueError(f'fit_kwargs: ckpt_path must be a checkpoint, but {given!r} is not a file.')
    epochs = _read_given(evaluator)['loops']['fit_loop']['epoch_progress']['current']['processed']
    if epochs >= evaluator.trainer.max_epochs:
        raise ValueError(
            f'fit_kwargs: {given} has been trained for {epochs} epochs, so max_epochs of the trainer must be more, '
            f'but is {evaluator.trainer.max_epochs}.'
        )
    return {'start_epoch': epochs, 'ckpt_path': sha256_of(Path(given))}


def _read_given(evaluator: Lightning) -> dict[str, Any]:
    """Read the user's checkpoint with the ``weights_only`` that the user gave to Lightning."""
    kwargs = evaluator.fit_kwargs
    try:
        return torch.load(kwargs['ckpt_path'], map_location='cpu', weights_only=kwargs.get('weights_only', True))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f'fit_kwargs: {kwargs["ckpt_path"]} holds objects that could run code when they are read; '
            'add weights_only=False if you trust it.'
        ) from error


def _keep_start(supernet: ModelSpace, evaluator: Lightning, settings: Settings, folder: RunFolder, run: str) -> str:
    """Write the checkpoint that the root starts from (the supernet's weights, or the user's); return its SHA-256."""
    module = PathModule(copy.deepcopy(evaluator.module))
    module.set_model(supernet)
    checkpoint = {'state_dict': module.state_dict()}
    if 'ckpt_path' in evaluator.fit_kwargs:
        given = _read_given(evaluator)
        try:
            module.load_state_dict(given['state_dict'])
        except RuntimeError as error:
            raise ValueError(
                f'fit_kwargs: {evaluator.fit_kwargs["ckpt_path"]} is not of this space. {error}'
            ) from error
        checkpoint = {name: value for name, value in given.items() if 'hyper_parameters' not in name}  # of no use here
        if not settings.trust_checkpoints:
            check_plain(checkpoint)
    with replacing(folder.init) as unfinished:
        write_checkpoint(unfinished, {**checkpoint, TAG: {'run': run, 'node': 'init'}})
    return sha256_of(folder.init)


def _log_plan(evaluator: Lightning, settings: Settings, progress: Progress) -> None:
    train, _ = loaders(evaluator)
    plan = levels(settings, progress.root.start_epoch, progress.max_epochs)
    epochs_in_all = sum(nodes * epochs for nodes, epochs in plan)
    terms = ' + '.join(f'{nodes} x {epochs}' if nodes > 1 else str(epochs) for nodes, epochs in plan)
    leaves = f'up to {plan[-1][0]} leaves' if settings.split_epochs else 'one supernet'
    limit = f'at most {terms} = ' if settings.split_epochs else ''
    n = n_steps(train, evaluator.trainer)
    steps = ' of an unknown number of steps' if n is None else f' of {n:,} steps'
    steps += f' of {settings.paths_per_step} paths' if settings.paths_per_step > 1 else ''
    steps += f' (distill={settings.distill:g})' if settings.distill else ''
    space = progress.root.subspace
    n_asked = 1 if isinstance(settings.criterion, Bands) else sum(nodes for nodes, _ in plan[:-1])  # its parts go on
    passes = n_asked * settings.criterion.cost(space) if settings.split_epochs else 0
    choosing = f'choosing splits up to {passes:,} forward passes, ' if passes else ''
    at_most = '' if space.filter is None else 'at most '
    _logger.info(
        'Plan: %s of %s%s architectures; training costs %s%d epochs%s, %sthe search scores %d networks%s.',
        leaves, at_most, format_size(space.size), limit, epochs_in_all, steps, choosing,
        settings.search_budget, f', and {N_REFERENCES} to rank them among' if settings.prior else '',
    )  # fmt: skip
    if settings.split_epochs and n is not None and (doubt := doubt_about_splits(settings.criterion, n * epochs_in_all)):
        _logger.info('Consider not splitting yet: where we measured it, %s.', doubt)
    n_leaves, epochs = plan[-1]
    if n_leaves > MANY_LEAVES:
        _logger.warning(
            'Up to %d leaves of %s architectures, as each of %d splits may make %s parts. Fewer split_epochs, or a '
            'smaller max_groups, make fewer.', n_leaves, format_size(max(1, space.size // n_leaves)),
            len(settings.split_epochs), brief(settings.criterion.max_groups),
        )  # fmt: skip
    n_validations = epochs // (evaluator.trainer.check_val_every_n_epoch or 1)
    if settings.stop_hopeless and (n_leaves <= LEAST_FINISHED or n_validations <= N_FINAL):
        _logger.warning(
            'stop_hopeless=%g will stop no leaf: that takes more than %d leaves and more than %d validations of each, '
            'but here are up to %d and %d.',
            settings.stop_hopeless, LEAST_FINISHED, N_FINAL, n_leaves, n_validations,
        )  # fmt: skip
    _logger.info('Work folder: %s', progress.folder.path)
