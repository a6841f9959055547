"""One task of a run (train a node, or search): the same in this process and in NNI trials."""

from __future__ import annotations

import copy
import functools
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from nni_naslid.criteria.criterion import Context, Criterion
from nni_naslid.run.checks import groups_at
from nni_naslid.run.files import locked, moved, read_json, replacing
from nni_naslid.run.folder import RunFolder, find_epochs, of_epoch
from nni_naslid.run.identity import code_of
from nni_naslid.run.progress import grow, levels, read_result
from nni_naslid.run.run import Run
from nni_naslid.search.score import InheritedModel, LeafScorer
from nni_naslid.search.search import read_search, run_search
from nni_naslid.space.split import Split, Told
from nni_naslid.space.subspace import SubSpace
from nni_naslid.space.tree import Node
from nni_naslid.train.checkpoint import TAG, digest_of_weights, find_checkpoints, read_checkpoint, set_aside
from nni_naslid.train.data import own_data
from nni_naslid.train.fit import fit, fresh_evaluator
from nni_naslid.train.hopeless import Judge
from nni_naslid.train.loggers import log_scalars, loggers_of
from nni_naslid.train.options import options_of
from nni_naslid.train.path import PathModule, SubSupernetModule, forget_paths
from nni_naslid.train.reports import hushed
from nni_naslid.train.rng import seeded

import nni
from pytorch_lightning.loggers import Logger

__all__ = ['perform']

_logger = logging.getLogger(__name__)

CHOICE = 1_000_001  # keeps its random stream apart from others of a node; no node has such a number


def perform(run: Run, task: str) -> LeafScorer | None:
    """Carry out one task, leave its result in the work folder, and report its metrics to NNI.

    Parameters
    ----------
    run
        The run; what other tasks have left is in its folder.
    task
        ``'node 0.1'``, or ``'search'``.

    Returns
    -------
    What a search has scored with, for more to be scored; ``None`` of a node.
    """
    scorer = None
    tree = read_json(run.folder.tree, ('training', 'checked', 'init'))
    root = Node(SubSpace.of(run.supernet), tree['training']['start_epoch'])
    kind, _, name = task.partition(' ')
    for _ in grow(root, run.folder, run.id, run.settings.criterion.read_evidence, name if kind == 'node' else None):
        pass
    # NNI starts again what its manager was running when it was killed, though that may still be running.
    with locked(run.folder.lock(task), task):
        if kind == 'node':
            node = next((node for node in root if node.name == name), None)
            if node is None:
                raise FileNotFoundError(f'The result of the parent of node {name} is not in {run.folder.path}.')
            report = run_node(run, node, tree)
        else:
            scorer = LeafScorer(run, root)
            if read_search(run, root) is None:
                run_search(run, root, InheritedModel(run.supernet, scorer))
            report = scorer.report(read_search(run, root)[0][0])
    nni.report_final_result(report)
    return scorer


def run_node(run: Run, node: Node, tree: dict[str, Any]) -> dict[str, Any]:
    """Train a node from its parent's checkpoint to where it is split, or where nothing separates to its end.

    Everything goes into the work folder: a checkpoint after each epoch, one at the end (those of ``keep_epochs`` stay),
    each repeat of the profile, and at last the result that :func:`~nni_naslid.run.progress.grow` reads. Called again
    after having been killed, it goes on from there, with the same random numbers.

    Parameters
    ----------
    run
        The run.
    node
        Which one; what has become of it is not read here but in the folder.
    tree
        What ``tree.json`` says: ``init``, the SHA-256 of the checkpoint that the root starts from, and ``checked``.

    Returns
    -------
    What to report to NNI: see :func:`~nni_naslid.train.reports.as_report`.

    Raises
    ------
    FileNotFoundError
        If the parent's checkpoint is not in the work folder.
    ValueError
        If a file is damaged or of another run.
    OSError
        If a file cannot be written.
    RuntimeError
        If training was stopped by something else, or has diverged.
    """
    settings, folder = run.settings, run.folder
    started = time.perf_counter()
    state = read_result(node, folder, run.id) or {
        'end_epoch': node.start_epoch, 'checkpoint_sha256': None, 'weights': None,
        'parent_weights': node.parent_weights, 'report': None, 'split': None, 'seconds': 0.0,
        'finished': False,
    }  # fmt: skip
    state.setdefault('stopped', None)  # earlier versions stopped none
    state.setdefault('choosing', 0.0)
    if state['finished']:
        return state['report']
    max_epochs = run.evaluator.trainer.max_epochs
    stop = settings.next_stop(node.earliest_stop, max_epochs)
    loggers = loggers_of(run.evaluator.trainer, f'node-{node.name}')

    def keep(**changes: Any) -> None:
        nonlocal started
        state.update(changes, seconds=state['seconds'] + time.perf_counter() - started)
        started = time.perf_counter()
        folder.write_result(**{**state, 'node': node.name, 'run': run.id})

    def train(end_epoch: int) -> None:
        source = _where_to_begin(run, node, state, end_epoch, tree['init'])
        for epoch, _, path in find_epochs(folder.kept(node.name)):
            if epoch > source.epoch:  # trained again from here, maybe to other weights
                path.unlink()
        report = _train(run, node, state, end_epoch, loggers, source)
        reached = _last_epoch(state, end_epoch)
        written = {epoch: sha256 for epoch, sha256, _ in find_checkpoints(folder.unfinished(node.name, end_epoch))}
        if reached not in written:
            raise OSError(
                f'The checkpoint of epoch {reached} of node {node.name} is not in {folder.path} as it was written.'
            )
        keep(end_epoch=reached, report=report, checkpoint_sha256=written[reached])
        _take_over(folder, node.name, state)

    _take_over(folder, node.name, state)
    if state['end_epoch'] < _last_epoch(state, stop) or state['checkpoint_sha256'] is None:
        train(stop)
    if stop in settings.split_epochs:
        if state['split'] is None and settings.criterion.can_split(node.subspace):
            began = time.perf_counter()
            split, step = choose_split(run, node, state['checkpoint_sha256'], tree['checked'])
            choosing = time.perf_counter() - began
            # Before it is kept: a process that is killed in between writes the same again, and nothing is lost.
            log_scalars(loggers, node.name, split.scalars(), step)
            keep(split={**split.to_dict(node.subspace), 'code': code_of(settings.criterion)}, choosing=choosing)
        folder.profile(node.name).unlink(missing_ok=True)
        split = state['split'] and Split.from_dict(state['split'], node.subspace, settings.criterion.read_evidence)
        if not (split and split.separates) and state['end_epoch'] < _last_epoch(state, max_epochs):
            if stop in settings.keep_epochs:
                with replacing(of_epoch(folder.kept(node.name), stop, state['checkpoint_sha256'])) as unfinished:
                    shutil.copyfile(folder.checkpoint(node.name), unfinished)
            train(max_epochs)
    trained = read_checkpoint(run, folder.checkpoint(node.name), node.name, state['checkpoint_sha256'])
    weights = digest_of_weights(trained['state_dict'])
    keep(finished=True, weights=weights, kept=_kept(run, node.name, {stop, max_epochs}))
    for path in folder.path.glob(f'node-{node.name}-to-*'):
        path.unlink()
    return state['report']


def choose_split(run: Run, node: Node, checkpoint_sha256: str, checked: dict[str, Any]) -> tuple[Split, int]:
    """Ask the criterion for the best split of a trained node; with it comes the global step of the node.

    It gets what its check has found. It sees the weights of the node's checkpoint, so that the split is the same for a
    process that was started again.

    Raises
    ------
    ValueError
        If what the criterion returns is no such split.
    """
    settings, folder, evaluator = run.settings, run.folder, run.evaluator
    module = PathModule(copy.deepcopy(evaluator.module))
    module.set_model(run.supernet)
    trained = read_checkpoint(run, folder.checkpoint(node.name), node.name, checkpoint_sha256)
    module.load_state_dict(trained['state_dict'])
    modes = {part: part.training for part in run.supernet.modules()}
    seed = (settings.seed, *node.path)
    try:
        with seeded(*seed, CHOICE, data=own_data(evaluator)) as random_state:
            split = settings.criterion.choose(
                Context(
                    name=node.name,
                    subspace=node.subspace,
                    supernet=run.supernet,
                    module=module,
                    evaluator=evaluator,
                    monitor=settings.monitor,
                    mode=settings.mode,
                    seed=seed,
                    random_state=random_state,
                    checked=checked,
                    notes=folder.profile(node.name),
                    about={
                        'run': run.id,
                        'node': node.name,
                        'checkpoint': checkpoint_sha256,
                        'code': code_of(settings.criterion),
                    },
                )
            )
    finally:
        for part, training in modes.items():  # else what is trained next in this process would be in evaluation mode
            part.training = training
        forget_paths(module)
    return _with_networks(_as_kept(split, node, settings.criterion), node), trained['global_step']


def _with_networks(split: Split, node: Node) -> Split:
    """The split; or an objection to it, if filter and constraints leave a part without a network."""
    for child in split.children if split.separates else ():
        if not child.has_samples:
            kept = ', '.join(
                f'{label}: {"|".join(map(str, some))}' for label, some in child.narrowed(node.subspace).items()
            )
            objection = f'filter and constraints leave no network of a part ({kept})'
            return Split([], Told(objection, split.evidence.describe()))
    return split


def _as_kept(split: Split, node: Node, criterion: Criterion) -> Split:
    """A split as it will be read from the node's result.

    Raises
    ------
    ValueError
        Naming the criterion, if that is another one, or not a split of the node into at most ``max_groups`` parts.
    """
    if not isinstance(split, Split):
        raise TypeError(f'choose of {criterion!r} must return a Split, but returned {split!r:.100}.')
    try:
        content = json.dumps(split.to_dict(node.subspace))
        kept = Split.from_dict(json.loads(content), node.subspace, criterion.read_evidence)
        if json.dumps(kept.to_dict(node.subspace)) != content or kept.separates != split.separates:
            raise ValueError('its evidence is another one after it was written as JSON and read')
        if kept.separates or kept.children:
            node.subspace.check_parts(kept.children)
        if len(kept.children) > groups_at(len(node.path), criterion.max_groups):
            raise ValueError(f'it has {len(kept.children)} parts, but max_groups={criterion.max_groups}')
        kept.scalars()  # which raises if they are not numbers
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{criterion!r} has no usable split of node {node.name}: {str(error).rstrip(".")}.') from error
    return kept


def _kept(run: Run, name: str, stops: set[int]) -> list[tuple[int, str, str]]:
    """The earlier epochs of a trained node that are kept, with the SHA-256 of the checkpoint and of its weights."""
    folder = run.folder
    for stop in stops:
        earlier = [epoch for epoch in run.settings.keep_epochs if epoch < stop]
        set_aside(folder.unfinished(name, stop), folder.kept(name), earlier)
    return [
        (epoch, sha256, digest_of_weights(read_checkpoint(run, path, name, sha256)['state_dict']))
        for epoch, sha256, path in find_checkpoints(folder.kept(name))
    ]


def _take_over(folder: RunFolder, name: str, state: dict[str, Any]) -> None:
    """Give the checkpoint that a node's result is about its name, if that has not been done."""
    for path in folder.path.glob(f'node-{name}-to-*.at-*.{str(state["checkpoint_sha256"])[:16]}.ckpt'):
        moved(path, folder.checkpoint(name))


class _Source(NamedTuple):
    """Where to go on from: an epoch, its checkpoint with node and SHA-256, what to do if that cannot be used."""

    epoch: int
    path: Path
    node: str
    sha256: str
    advice: str | None = None


def _where_to_begin(run: Run, node: Node, state: dict[str, Any], end_epoch: int, init: str) -> _Source:
    """The latest checkpoint on the way to an epoch, else that of an end, else that of the parent, or of the start."""
    folder, start = run.folder, node.start_epoch
    for epoch, sha256, path in find_checkpoints(folder.unfinished(node.name, end_epoch)):
        if epoch < _last_epoch(state, end_epoch):
            return _Source(epoch, path, node.name, sha256, f'Delete {path.name} to go on from before.')
        path.unlink()  # of a process that was killed before it had kept the metrics of this epoch
    if state['end_epoch'] > start:
        return _Source(state['end_epoch'], folder.checkpoint(node.name), node.name, state['checkpoint_sha256'])
    if node.parent_name is None:
        return _Source(start, folder.init, 'init', init)
    result = folder.read_result(node.parent_name, run.id)
    if result is None:
        raise FileNotFoundError(f'The result of node {node.parent_name} is not in the work folder {folder.path}.')
    return _Source(start, folder.checkpoint(node.parent_name), node.parent_name, result['checkpoint_sha256'])


def _last_epoch(state: dict[str, Any], end_epoch: int) -> int:
    """Where training to an epoch ends: before it, if the node is a leaf that was found to be hopeless."""
    return end_epoch if state['stopped'] is None else min(end_epoch, state['stopped']['epoch'])


def _train(
    run: Run, node: Node, state: dict[str, Any], end_epoch: int, loggers: Sequence[Logger], source: _Source
) -> dict[str, Any]:
    """Train to an epoch, from a checkpoint; the report. Why it was stopped before, if it was, goes into ``state``."""
    settings, evaluator, supernet = run.settings, run.evaluator, run.supernet
    seed = [settings.seed, *node.path]
    checkpoint = read_checkpoint(run, source.path, source.node, source.sha256, source.advice)
    if source.node == node.name and checkpoint[TAG]['parent_weights'] != node.parent_weights:
        raise ValueError(
            f'{source.path} is of a node that was trained from other weights than node {node.parent_name} has now. '
            f'{source.advice or run.folder.advice(node.name)}'
        )
    goes_on = 'loops' in checkpoint
    is_first = not node.path and end_epoch == settings.next_stop(node.earliest_stop, evaluator.trainer.max_epochs)
    said_before = logging.WARNING if node.path else logging.NOTSET  # of the root's trainer
    judge = None
    if settings.stop_hopeless and node.path and end_epoch == evaluator.trainer.max_epochs:  # a leaf
        judge = Judge(run.folder, run.id, node.name, replace(settings, criterion=None), end_epoch, state)
    with seeded(*seed, end_epoch, data=own_data(evaluator)), hushed(said_before):
        options = options_of(settings, supernet, node.subspace)
        module = SubSupernetModule(
            copy.deepcopy(evaluator.module), node.subspace, seed, options.learning_rate, options.draw, settings.distill,
            options.momenta,
        )  # fmt: skip
        trained = fresh_evaluator(
            evaluator,
            module,
            end_epoch,
            source.path if goes_on else None,
            loggers=loggers,
            unfinished=run.folder.unfinished(node.name, end_epoch),
            tag={'run': run.id, 'node': node.name, 'to': end_epoch, 'parent_weights': node.parent_weights},
            trust_checkpoints=settings.trust_checkpoints,
            keep_epochs=settings.keep_epochs,
            after_first_epoch=_estimate(run, node) if is_first else None,
            is_hopeless=judge,
        )
        if source.node == 'init':
            module.set_model(supernet)
            module.load_state_dict(checkpoint['state_dict'])
        del checkpoint  # Lightning reads it again
        try:
            report = fit(trained, supernet, settings.monitor)
        finally:
            forget_paths(module)
    if kept := run.folder.read_result(node.name, run.id):  # a process of several devices may have judged
        state['stopped'] = kept.get('stopped')
    if trained.trainer.current_epoch != (last := _last_epoch(state, end_epoch)):
        raise RuntimeError(
            f'Node {node.name} was stopped after epoch {trained.trainer.current_epoch} instead of {last}; '
            'what stops training (EarlyStopping, max_time, ...) does not go with a tree.'
        )
    for name, weights in module.named_parameters():
        if not weights.isfinite().all():
            raise RuntimeError(
                f'Node {node.name} has diverged by epoch {end_epoch}: {name} is not finite. '
                'Lower the learning rate, or clip gradients.'
            )
    return report


def _estimate(run: Run, root: Node) -> Callable[[int, float], None]:
    """What to call after the first epoch: it says how long training is going to take."""
    plan = levels(run.settings, root.start_epoch, run.evaluator.trainer.max_epochs)
    end = root.start_epoch + sum(nodes * epochs for nodes, epochs in plan)
    return functools.partial(
        _log_estimate, end, ', if every node is split, beside choosing splits' if len(plan) > 1 else ''
    )


def _log_estimate(end: int, condition: str, epoch: int, seconds: float) -> None:
    minutes = round(seconds * (end - epoch) / 60)
    amount = 'Less than a minute' if minutes < 1 else f'About {minutes:,} minute{"s" * (minutes > 1)}'
    _logger.info(
        '%s of training to come in one process on this machine%s (one epoch took %.1f s).', amount, condition, seconds
    )
