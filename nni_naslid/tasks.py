"""One task of a run (train a node, or search): the same in this process and in NNI trials."""

from __future__ import annotations

import copy
import functools
import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from nni_naslid.criteria.chance import chance_level
from nni_naslid.criteria.lid import candidate_profiles, finite, name_non_finite, split_by_lid, split_randomly
from nni_naslid.criteria.places import Place, n_samples
from nni_naslid.run.files import append_line, locked, moved, read_json, read_lines, sha256_of
from nni_naslid.run.folder import RunFolder
from nni_naslid.run.progress import grow, levels, read_result
from nni_naslid.run.run import Run
from nni_naslid.run.settings import Settings
from nni_naslid.search.score import InheritedModel, LeafScorer
from nni_naslid.search.search import read_search, run_search
from nni_naslid.space.split import Split
from nni_naslid.space.subspace import SubSpace
from nni_naslid.space.tree import Node
from nni_naslid.train.checkpoint import digest_of_weights, read_checkpoint
from nni_naslid.train.data import Batches, Inputs, as_validation, loaders, own_data, take_batches
from nni_naslid.train.devices import share_out
from nni_naslid.train.fit import fit, fresh_evaluator
from nni_naslid.train.path import PathModule, SubSupernetModule, forget_paths, set_path
from nni_naslid.train.reports import hushed
from nni_naslid.train.rng import seeded
from nni_naslid.train.validation import supernet_inputs, validate, validation_trainer

import nni
import torch
from lightning_fabric.utilities import move_data_to_device
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.nn.pytorch import ModelSpace
from numpy.random import RandomState
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

__all__ = ['perform']

_logger = logging.getLogger(__name__)

PROFILE, CHANCE = 1_000_001, 1_000_003  # beside SEARCH and SETUP: keep random streams apart; no node has such a path
CHANCE_PATHS = 8  # with a batch of validation each, to tell a node from chance


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
    start_epoch = read_json(run.folder.tree, ('training',))['training']['start_epoch']
    root = Node(SubSpace.of(run.supernet), start_epoch)
    kind, _, name = task.partition(' ')
    for _ in grow(root, run.folder, run.id, name if kind == 'node' else None):
        pass
    # NNI starts again what its manager was running when it was killed, though that may still be running.
    with locked(run.folder.lock(task), task):
        if kind == 'node':
            node = next((node for node in root if node.name == name), None)
            if node is None:
                raise FileNotFoundError(f'The result of the parent of node {name} is not in {run.folder.path}.')
            report = run_node(run, node)
        else:
            scorer = LeafScorer(run, root.leaves)
            if read_search(run, root) is None:
                run_search(run, root, InheritedModel(run.supernet, scorer))
            report = scorer.report(read_search(run, root)[0][0])
    nni.report_final_result(report)
    return scorer


def run_node(run: Run, node: Node) -> dict[str, Any]:
    """Train a node from its parent's checkpoint to where it is split, or where nothing separates to its end.

    Everything goes into the work folder: a checkpoint after each epoch, one at the end, each repeat of the profile, and
    at last the result that :func:`~nni_naslid.run.progress.grow` reads. Called again after having been killed, it goes
    on from there, with the same random numbers.

    Parameters
    ----------
    run
        The run.
    node
        Which one; what has become of it is not read here but in the folder.

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
    settings, folder, supernet, evaluator = run.settings, run.folder, run.supernet, run.evaluator
    started = time.perf_counter()
    state = read_result(node, folder, run.id) or {
        'end_epoch': node.start_epoch, 'checkpoint_sha256': None, 'weights': None,
        'parent_weights': node.parent_weights, 'report': None, 'split': None, 'not_split': None, 'seconds': 0.0,
        'finished': False,
    }  # fmt: skip
    if state['finished']:
        return state['report']
    max_epochs = evaluator.trainer.max_epochs
    stop = settings.next_stop(node.earliest_stop, max_epochs)
    repeats = folder.profile(node.name)

    def keep(**news: Any) -> None:
        nonlocal started
        state.update(news, seconds=state['seconds'] + time.perf_counter() - started)
        started = time.perf_counter()
        folder.write_result(**{**state, 'node': node.name, 'run': run.id})

    def train(end_epoch: int) -> None:
        report = _train(run, node, end_epoch, *_where_to_begin(run, node, state, end_epoch))
        written = {epoch: sha256 for epoch, sha256, _ in _checkpoints(folder, node.name, end_epoch)}
        if end_epoch not in written:
            raise OSError(
                f'The checkpoint of epoch {end_epoch} of node {node.name} is not in {folder.path} as it was written.'
            )
        keep(end_epoch=end_epoch, report=report, checkpoint_sha256=written[end_epoch])
        _take_over(folder, node.name, state)

    _take_over(folder, node.name, state)
    if state['end_epoch'] < stop or state['checkpoint_sha256'] is None:
        train(stop)
    if stop in settings.split_epochs:
        if state['split'] is None and state['not_split'] is None and node.subspace.splittable:
            # From what is kept, so that it is the same for a process that was started again.
            module = PathModule(copy.deepcopy(evaluator.module))
            module.set_model(supernet)
            sha256 = state['checkpoint_sha256']
            trained = read_checkpoint(run, folder.checkpoint(node.name), node.name, sha256)
            module.load_state_dict(trained['state_dict'])
            of = {'run': run.id, 'node': node.name, 'checkpoint': sha256}
            not_split = why_not_split(supernet, evaluator, module, node, settings, folder.path)
            if not_split is None:
                split = choose_split(supernet, evaluator, module, node, settings, repeats, of)
                keep(split=split.to_dict())
            else:
                keep(not_split=not_split)
            forget_paths(module)
        repeats.unlink(missing_ok=True)
        split = state['split'] and Split.from_dict(state['split'], node.subspace.splittable[state['split']['label']])
        if not (split and split.separates) and state['end_epoch'] < max_epochs:
            train(max_epochs)
    trained = read_checkpoint(run, folder.checkpoint(node.name), node.name, state['checkpoint_sha256'])
    keep(finished=True, weights=digest_of_weights(trained['state_dict']))
    for path in folder.path.glob(f'node-{node.name}-to-*'):
        path.unlink()
    return state['report']


def _checkpoints(folder: RunFolder, name: str, end_epoch: int) -> list[tuple[int, str, Path]]:
    """Checkpoints of a node on its way to an epoch, the latest first: epoch, SHA-256, file. Damaged ones are named."""
    found = []
    for path in folder.path.glob(f'{folder.unfinished(name, end_epoch).name}.at-*.ckpt'):
        if match := re.search(r'\.at-(\d+)\.([0-9a-f]{16})\.ckpt$', path.name):
            if (sha256 := sha256_of(path)).startswith(match[2]):
                found.append((int(match[1]), sha256, path))
            else:
                _logger.warning('%s is damaged (its SHA-256 is not that of its name) and left out.', path)
    return sorted(found, reverse=True)


def _take_over(folder: RunFolder, name: str, state: dict[str, Any]) -> None:
    """Give the checkpoint that a node's result is about its name, if that has not been done."""
    for path in folder.path.glob(f'node-{name}-to-*.at-*.{str(state["checkpoint_sha256"])[:16]}.ckpt'):
        moved(path, folder.checkpoint(name))


def _where_to_begin(run: Run, node: Node, state: dict[str, Any], end_epoch: int) -> tuple[Path, str, str, str | None]:
    """The checkpoint to go on from, of which node it is, its SHA-256, and what to do if it cannot be used."""
    folder = run.folder
    for epoch, sha256, path in _checkpoints(folder, node.name, end_epoch):
        if epoch < end_epoch:
            return path, node.name, sha256, f'Delete {path.name} to go on from before.'
        path.unlink()  # of a process that was killed before it had kept the metrics of this epoch
    if state['end_epoch'] > node.start_epoch:
        return folder.checkpoint(node.name), node.name, state['checkpoint_sha256'], None
    if node.parent_name is None:
        return folder.init, 'init', read_json(folder.tree, ('init',))['init'], None
    result = folder.read_result(node.parent_name, run.id)
    if result is None:
        raise FileNotFoundError(f'The result of node {node.parent_name} is not in the work folder {folder.path}.')
    return folder.checkpoint(node.parent_name), node.parent_name, result['checkpoint_sha256'], None


def _train(
    run: Run, node: Node, end_epoch: int, path: Path, of_node: str, sha256: str, advice: str | None
) -> dict[str, Any]:
    """Train to an epoch, from a checkpoint; the report."""
    settings, evaluator, supernet = run.settings, run.evaluator, run.supernet
    seed = [settings.seed, *node.path]
    checkpoint = read_checkpoint(run, path, of_node, sha256, advice)
    is_first = not node.path and end_epoch == settings.next_stop(node.earliest_stop, evaluator.trainer.max_epochs)
    said_before = logging.WARNING if node.path else logging.NOTSET  # of the root's trainer
    with seeded(*seed, end_epoch, data=own_data(evaluator)), hushed(said_before):
        module = SubSupernetModule(copy.deepcopy(evaluator.module), node.subspace, seed)
        trained = fresh_evaluator(
            evaluator,
            module,
            end_epoch,
            path if 'loops' in checkpoint else None,
            kept=run.folder.unfinished(node.name, end_epoch),
            tag={'run': run.id, 'node': node.name, 'to': end_epoch},
            trust_checkpoints=settings.trust_checkpoints,
            after_first_epoch=_estimate(run, node) if is_first else None,
        )
        if of_node == 'init':
            module.set_model(supernet)
            module.load_state_dict(checkpoint['state_dict'])
        try:
            report = fit(trained, supernet, settings.monitor)
        finally:
            forget_paths(module)
    if trained.trainer.current_epoch != end_epoch:
        raise RuntimeError(
            f'Node {node.name} was stopped after epoch {trained.trainer.current_epoch} instead of {end_epoch}; '
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
    return functools.partial(_log_estimate, end, ', if every node is split' if len(plan) > 1 else '')


def _log_estimate(end: int, condition: str, epoch: int, seconds: float) -> None:
    minutes = round(seconds * (end - epoch) / 60)
    amount = 'Less than a minute' if minutes < 1 else f'About {minutes:,} minute{"s" * (minutes > 1)}'
    _logger.info(
        '%s of training to come in one process on this machine%s (one epoch took %.1f s).', amount, condition, seconds
    )


def why_not_split(
    supernet: ModelSpace, evaluator: Lightning, module: PathModule, node: Node, settings: Settings, workdir: Path
) -> str | None:
    """Why no split of a trained node is looked for, for people: it is at chance level. ``None`` if it is not.

    The criterion that looks at nothing is not asked to.
    """
    if settings.criterion == 'random':
        return None
    seed = [settings.seed, *node.path]
    with seeded(*seed, CHANCE, data=own_data(evaluator)) as random_state:
        limit = evaluator.trainer.limit_val_batches
        n_batches = min(limit, CHANCE_PATHS) if isinstance(limit, int) else CHANCE_PATHS
        batches = list(islice(loaders(evaluator)[1], n_batches))
        n_rounds = math.ceil(CHANCE_PATHS / max(len(batches), 1))
        data = as_validation(evaluator, Batches(batches * n_rounds))
        sampling = SubSupernetModule(module.training_module, node.subspace, seed)  # each batch has a random path

        def measure() -> float:
            with isolate_rng():
                trainer = validation_trainer(evaluator, limit_val_batches=1.0)
                return validate(trainer, sampling, data)[0][settings.monitor]

        chance = chance_level(supernet, measure, read_places(workdir), settings.mode, random_state, n_rounds)
        forget_paths(sampling)
    return chance.describe(settings.monitor) if chance is not None and chance.is_at_chance else None


def choose_split(
    supernet: ModelSpace,
    evaluator: Lightning,
    module: PathModule,
    node: Node,
    settings: Settings,
    repeats: Path,
    of: dict[str, Any],
) -> Split:
    """The best split of a trained node, by LID or at random; finished repeats of its profile are kept in a file."""
    with seeded(settings.seed, *node.path, PROFILE, data=own_data(evaluator)) as random_state:
        if settings.criterion == 'random':
            return split_randomly(node.subspace, random_state, settings.max_groups)
        places = read_places(repeats.parent)
        profiles = _profiles(supernet, evaluator, module, node, settings, random_state, places, repeats, of)
        try:
            split = split_by_lid(
                lambda n_repeats: finite(profiles(n_repeats)),
                node.subspace,
                repeats=settings.repeats,
                max_groups=settings.max_groups,
                min_contrast=settings.min_contrast,
                random_state=random_state,
            )
        except ValueError as error:
            raise RuntimeError(f'Node {node.name} cannot be profiled: {error}') from error
        name_non_finite(profiles(split.n_repeats), node.subspace.splittable)
        return split


def read_places(workdir: Path) -> dict[str, Place]:
    """The layers of profiles, and where they have the samples, as the run has begun with."""
    places = read_json(RunFolder(workdir).tree, ('layers',))['layers']
    return {name: Place(*place) for name, place in places.items()}


def _profiles(
    supernet: ModelSpace,
    evaluator: Lightning,
    module: PathModule,
    node: Node,
    settings: Settings,
    random_state: RandomState,
    places: dict[str, Place],
    repeats: Path,
    of: dict[str, Any],
) -> Callable[[int], dict[str, Tensor]]:
    """Gives LID profiles ``[R, C, L]`` of the labels of a node in the first ``R`` repeats, computed when asked for.

    All batches (of training, as the node's module gives them) and paths are drawn beforehand, so a repeat is the same
    however many there will be. What is in the file ``repeats`` of the same node and weights (``of``) is not computed
    again.
    """
    lines = read_lines(repeats, (*of, 'repeat', 'profiles'))
    known = {line['repeat']: line['profiles'] for line in lines if all(line[key] == of[key] for key in of)}
    batches = take_batches(loaders(evaluator)[0], settings.repeats)
    set_path(module, node.subspace.extremes[0])  # any path: for what the module gives it
    inputs = supernet_inputs(evaluator, module, batches)
    enough = [each for each in inputs if (n_samples(each, places) or settings.n_neighbors + 1) > settings.n_neighbors]
    if not enough:
        raise ValueError(f'Node {node.name}: no batch has more samples than n_neighbors={settings.n_neighbors}.')
    inputs = [enough[i % len(enough)] for i in range(settings.repeats)]
    paths = [node.subspace.sample(random_state) for _ in inputs]
    profile = functools.partial(
        _profile_repeats,
        supernet,
        node.subspace,
        places,
        settings.n_neighbors,
        f'Profiling node {node.name}',
        repeats,
        of,
    )

    def profiles(n_repeats: int) -> dict[str, Tensor]:
        missing = [i for i in range(n_repeats) if i not in known]
        try:
            if missing:
                shared = [missing, [inputs[i] for i in missing], [paths[i] for i in missing]]
                computed = share_out(profile, shared, evaluator.trainer)
                for row, i in enumerate(missing):
                    known[i] = {label: rows[row] for label, rows in computed.items()}
            return {
                label: torch.stack([torch.as_tensor(known[i][label]) for i in range(n_repeats)])
                for label in node.subspace.splittable
            }
        finally:
            supernet.cpu()

    return profiles


def _profile_repeats(
    supernet: ModelSpace,
    subspace: SubSpace,
    places: dict[str, Place],
    n_neighbors: int,
    description: str,
    repeats: Path,
    of: dict[str, Any],
    device: torch.device,
    numbers: Sequence[int],
    inputs: Sequence[Inputs],
    paths: Sequence[Sample],
) -> dict[str, Tensor]:
    """The profiles of some repeats, on one device; each is kept as soon as it is there."""

    def keep(i: int, profiles: dict[str, Tensor]) -> None:
        values = {label: found.tolist() for label, found in profiles.items()}  # as exact as they are
        append_line(repeats, {**of, 'repeat': numbers[i], 'profiles': values})

    return candidate_profiles(
        supernet.to(device),
        subspace,
        move_data_to_device(inputs, device),
        places,
        paths=paths,
        n_neighbors=n_neighbors,
        description=description,
        keep=keep,
    )
