"""A finished run, opened again to take networks from it: by what the user names, not by what the work folder says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from nni_naslid.run.files import read_json
from nni_naslid.run.folder import RunFolder
from nni_naslid.run.progress import grow
from nni_naslid.run.run import Run
from nni_naslid.run.settings import Settings
from nni_naslid.run.spec import imported, make
from nni_naslid.search.score import LeafScorer
from nni_naslid.space.subspace import SubSpace, constrain
from nni_naslid.space.tree import Node
from nni_naslid.start import made_differently, space_of_run
from nni_naslid.train.supernet import make_supernet

import yaml
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.nn.pytorch import ModelSpace

__all__ = ['open_search', 'project_by_name', 'project_of_yaml']


def project_by_name(space: str, evaluator: str) -> tuple[ModelSpace, Lightning]:
    """What the user's functions (or classes) of these full names return when they are called.

    Raises
    ------
    ValueError
        Naming the one that cannot be imported or called, or returns something else.
    """
    found = []
    for option, name in (('--space', space), ('--evaluator', evaluator)):
        if '.' not in name:
            raise ValueError(f"{option} must be a full name such as 'module.function', but is {name!r}.")
        try:
            function = imported(name, option)
        except SystemExit as error:  # a script that reads the command line, which is not its own
            raise ValueError(f'{option}: {name} is in a script. Put it into a module that only defines.') from error
        try:
            found.append(function())
        except Exception as error:  # whatever it raises
            raise ValueError(f'{option}: {name} raised {type(error).__name__}: {error}') from error
    return _checked(*found, '--space', '--evaluator')


def project_of_yaml(path: Path) -> tuple[ModelSpace, Lightning]:
    """The space and the evaluator that the YAML of an experiment names, with its ``trialCodeDirectory`` to import from.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    ValueError
        Naming the key of what cannot be made.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f'{path} is not a YAML: {error}') from error
    try:
        arguments = content['tuner']['classArgs']
        specs = [arguments[name] for name in ('space', 'evaluator')]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'{path} must be the YAML of an experiment of NASLID, whose tuner has classArgs with space and evaluator.'
        ) from error
    sys.path.insert(0, str((path.parent / content.get('trialCodeDirectory', '.')).resolve()))
    found = [make(spec, name) for spec, name in zip(specs, ('space', 'evaluator'), strict=True)]
    return _checked(*found, f'space of {path}', f'evaluator of {path}')


def _checked(space: Any, evaluator: Any, space_name: str, evaluator_name: str) -> tuple[ModelSpace, Lightning]:
    if not isinstance(space, ModelSpace):
        raise ValueError(f'{space_name} must make a ModelSpace, but made a {type(space).__name__}.')
    if not isinstance(evaluator, Lightning):
        raise ValueError(f'{evaluator_name} must make a Lightning evaluator, but made a {type(evaluator).__name__}.')
    return space, evaluator


def open_search(path: Path, space: ModelSpace, evaluator: Lightning) -> tuple[LeafScorer, list[tuple[Sample, float]]]:
    """What scores and makes networks of a finished run, and the networks that its search found with their scores.

    Nothing is trained, scored or written.

    Parameters
    ----------
    path
        The work folder.
    space, evaluator
        As those of the run; the space becomes its supernet.

    Raises
    ------
    ValueError
        If they are not those of the run, naming what differs; if the run has not finished.
    """
    folder = RunFolder(path)
    tree = read_json(folder.tree, ('run', 'settings', 'training'))
    searched = read_json(folder.search, ('run', 'monitor', 'mode', 'calibration_batches', 'weights', 'found'))
    settings = Settings(
        tree['settings']['split_epochs'],
        None,
        monitor=searched['monitor'],
        mode=searched['mode'],
        seed=tree['settings']['seed'],
        calibration_batches=searched['calibration_batches'],
    )
    supernet = make_supernet(space)
    # Constraints have names of functions: what they let pass is known by now.
    constrain(supernet, space_of_run(supernet, folder, settings, None))
    run = Run(settings, folder, tree['run'], supernet, evaluator)
    if differs := made_differently(supernet, run, 'what is named here', training=False):
        raise ValueError(f'{path} holds a run with {differs}. Name the space and the evaluator of that run.')
    root = Node(SubSpace.of(supernet), tree['training']['start_epoch'])
    for _ in grow(root, folder, run.id, None):
        pass
    if root.due or searched['run'] != run.id or searched['weights'] != root.weights_of_leaves:
        raise ValueError(f'{path} holds a search of other weights than its leaves have: start the run again.')
    found = [(SubSpace.of(supernet).decode(each['sample']), each['score']) for each in searched['found']]
    return LeafScorer(run, root), found
