"""Training one node of the tree, and choosing how it is split: the same in this process and in NNI trials."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nni_naslid.criteria import candidate_profiles, split_by_lid, split_randomly
from nni_naslid.data import loaders, own_data, take_batches
from nni_naslid.devices import share_out
from nni_naslid.files import read_json
from nni_naslid.places import Inputs, Place, n_samples
from nni_naslid.plots import plot_split
from nni_naslid.rng import seeded
from nni_naslid.sampling import PathModule, SubSupernetModule
from nni_naslid.settings import Settings
from nni_naslid.split import Split
from nni_naslid.subspace import SubSpace
from nni_naslid.training import fit, fresh_evaluator, read_checkpoint, supernet_inputs
from nni_naslid.tree import Node, checkpoint_path, read_result, write_result

import torch
from lightning_fabric.utilities import move_data_to_device
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.nn.pytorch import ModelSpace
from numpy.random import RandomState
from torch import Tensor

__all__ = ['run_node']

PROFILE = 1_000_001  # keeps random streams apart; no node has such a path


def run_node(
    supernet: ModelSpace, evaluator: Lightning, node: Node, settings: Settings, workdir: Path, run: str
) -> dict[str, Any]:
    """Train a node from its parent's checkpoint to where it is split, or where nothing separates to its end.

    Everything goes into the work folder: a checkpoint after each epoch, one at the end, and at last the result that
    :func:`~nni_naslid.tree.grow` reads. Called again after having been killed, it goes on from there, with the same
    random numbers.

    Parameters
    ----------
    supernet
        The supernet; its weights are replaced.
    evaluator
        The user's evaluator, never run itself.
    node
        Only its ``name``, ``path``, ``subspace`` and ``start_epoch`` are read.
    settings
        Of the run.
    workdir
        Where the parent's checkpoint is.
    run
        The :func:`~nni_naslid.tree.run_id`: files of another run are refused.

    Returns
    -------
    What to report to NNI: see :func:`~nni_naslid.training.as_report`.

    Raises
    ------
    FileNotFoundError
        If the parent's checkpoint is not in the work folder.
    ValueError
        If a file is damaged or of another run.
    RuntimeError
        If training was stopped by something else, or has diverged.
    """
    started = time.perf_counter()
    state = read_result(workdir, node.name, run) or {
        'end_epoch': node.start_epoch, 'report': None, 'split': None, 'seconds': 0.0, 'finished': False,
    }  # fmt: skip
    if state['finished']:
        return state['report']
    max_epochs = evaluator.trainer.max_epochs
    stop = settings.next_stop(node.start_epoch, max_epochs)

    def keep(**news: Any) -> None:
        nonlocal started
        state.update(news, seconds=state['seconds'] + time.perf_counter() - started)
        started = time.perf_counter()
        write_result(workdir, **{**state, 'name': node.name, 'run': run})

    def train(end_epoch: int) -> PathModule:
        begin = _where_to_begin(workdir, node, state['end_epoch'], end_epoch)
        module, report = _train(supernet, evaluator, node, settings, workdir, run, begin, end_epoch)
        keep(end_epoch=end_epoch, report=report)
        return module

    module = train(stop) if state['end_epoch'] < stop else None
    if stop in settings.split_epochs:
        if state['split'] is None and node.subspace.splittable:
            if module is None:
                module = PathModule(evaluator.module)
                module.set_model(supernet)
                trained = read_checkpoint(checkpoint_path(workdir, node.name), run, node.name)
                module.load_state_dict(trained['state_dict'])
            keep(split=choose_split(supernet, evaluator, module, node, settings, workdir).to_dict())
        split = state['split'] and Split.from_dict(state['split'], node.subspace.splittable[state['split']['label']])
        if not (split and split.separates) and state['end_epoch'] < max_epochs:
            train(max_epochs)
    keep(finished=True)
    for path in workdir.glob(f'node-{node.name}-to-*.ckpt'):
        path.unlink()
    return state['report']


def _unfinished(workdir: Path, name: str, end_epoch: int) -> Path:
    """Checkpoint of the last epoch of a node that is on its way to ``end_epoch``."""
    return workdir / f'node-{name}-to-{end_epoch}.ckpt'


def _where_to_begin(workdir: Path, node: Node, epoch: int, end_epoch: int) -> tuple[Path, str]:
    """The checkpoint to go on from, and of which node it is; the node itself has been trained to ``epoch``."""
    if (unfinished := _unfinished(workdir, node.name, end_epoch)).exists():
        return unfinished, node.name
    if epoch > node.start_epoch:
        return checkpoint_path(workdir, node.name), node.name
    if node.parent_name is None:
        return workdir / 'init.ckpt', 'init'
    return checkpoint_path(workdir, node.parent_name), node.parent_name


def _train(
    supernet: ModelSpace,
    evaluator: Lightning,
    node: Node,
    settings: Settings,
    workdir: Path,
    run: str,
    begin: tuple[Path, str],
    end_epoch: int,
) -> tuple[PathModule, dict[str, Any]]:
    """Train to an epoch; the module, with its weights, and its report."""
    seed = [settings.seed, *node.path]
    checkpoint = read_checkpoint(begin[0], run, begin[1])
    with seeded(*seed, end_epoch, data=own_data(evaluator)):
        module = SubSupernetModule(copy.deepcopy(evaluator.module), node.subspace, seed)
        trained = fresh_evaluator(
            evaluator,
            module,
            end_epoch,
            None if begin[1] == 'init' else begin[0],
            unfinished=_unfinished(workdir, node.name, end_epoch),
            end=checkpoint_path(workdir, node.name),
            tag={'run': run, 'node': node.name, 'to': end_epoch},
        )
        if begin[1] == 'init':
            module.set_model(supernet)
            module.load_state_dict(checkpoint['state_dict'])
        report = fit(trained, supernet, settings.monitor)
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
    return module, report


def choose_split(
    supernet: ModelSpace, evaluator: Lightning, module: PathModule, node: Node, settings: Settings, workdir: Path
) -> Split:
    """The best split of a trained node, by LID or at random; LID leaves a picture of the evidence."""
    with seeded(settings.seed, *node.path, PROFILE, data=own_data(evaluator)) as random_state:
        if settings.criterion == 'random':
            return split_randomly(node.subspace, random_state, settings.max_groups)
        profiles = _profile(supernet, evaluator, module, node, settings, random_state, read_places(workdir))
        split = split_by_lid(profiles, node.subspace, settings.max_groups, random_state)
        plot_split(split, workdir / f'split-{node.name}.png', title=f'Node {node.name}')
        return split


def read_places(workdir: Path) -> dict[str, Place]:
    """The layers of profiles, and where they have the samples, as the run has begun with."""
    places = read_json(workdir / 'tree.json', ('layers',))['layers']
    return {name: Place(*place) for name, place in places.items()}


def _profile(
    supernet: ModelSpace,
    evaluator: Lightning,
    module: PathModule,
    node: Node,
    settings: Settings,
    random_state: RandomState,
    places: dict[str, Place],
) -> dict[str, Tensor]:
    """LID profiles ``[R, C, L]`` of the labels of a node, on training batches as its module gives them."""
    batches = take_batches(loaders(evaluator)[0], settings.repeats)
    inputs = supernet_inputs(evaluator, module, batches)
    enough = [each for each in inputs if (n_samples(each, places) or settings.n_neighbors + 1) > settings.n_neighbors]
    if not enough:
        raise ValueError(f'Node {node.name}: no batch has more samples than n_neighbors={settings.n_neighbors}.')
    inputs = [enough[i % len(enough)] for i in range(settings.repeats)]
    profile = functools.partial(
        _profile_repeats,
        supernet,
        node.subspace,
        places,
        settings.n_neighbors,
        f'Profiling node {node.name}',
    )
    paths = [node.subspace.sample(random_state) for _ in inputs]
    try:
        return share_out(profile, [inputs, paths], evaluator.trainer)
    except ValueError as error:
        raise RuntimeError(f'Node {node.name} cannot be profiled; did training diverge? {error}') from error
    finally:
        supernet.cpu()


def _profile_repeats(
    supernet: ModelSpace,
    subspace: SubSpace,
    places: dict[str, Place],
    n_neighbors: int,
    description: str,
    device: torch.device,
    inputs: Sequence[Inputs],
    paths: Sequence[Sample],
) -> dict[str, Tensor]:
    """The profiles of some repeats, on one device."""
    return candidate_profiles(
        supernet.to(device),
        subspace,
        move_data_to_device(inputs, device),
        places,
        paths=paths,
        n_neighbors=n_neighbors,
        description=description,
    )
