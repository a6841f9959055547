"""A task of the tree (train a node, search, score an architecture) as what NNI's engines run: here, or as a trial."""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nni_naslid.begin import begin
from nni_naslid.prepare import check_search, check_space, try_out, try_search
from nni_naslid.run.files import digest, locked, read_json
from nni_naslid.run.manager import recorded_task
from nni_naslid.run.scheduler import leaving_error
from nni_naslid.run.settings import Settings
from nni_naslid.run.spec import make
from nni_naslid.search.score import InheritedModel, LeafEvaluator
from nni_naslid.search.search import read_search, run_search
from nni_naslid.space.subspace import SubSpace, constrain
from nni_naslid.space.tree import Node, grow
from nni_naslid.tasks import run_node
from nni_naslid.train.rng import seeded

import nni
import pytorch_lightning as pl
from nni.common.serializer import SerializableObject
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.strategy import MutationHook
from nni.nas.space import ExecutableModelSpace, ModelStatus, RawFormatModelSpace
from nni.nas.strategy import RandomOneShot
from nni.nas.strategy.base import Strategy

__all__ = ['InProcess', 'Trial', 'perform', 'perform_by_name']


def perform(
    task: str,
    supernet: ModelSpace,
    evaluator: Lightning,
    settings: Settings,
    workdir: Path,
    run: str,
    search: Strategy | None = None,
) -> None:
    """Carry out one task, leave its result in the work folder, and report its metrics to NNI.

    Parameters
    ----------
    task
        ``'node 0.1'``, ``'search'``, or ``'architecture 1'``, the best one that the search has found.
    supernet
        The supernet; its weights are replaced.
    evaluator
        The user's evaluator, never run itself.
    settings, search
        Of the run.
    workdir
        What other tasks have left.
    run
        The :func:`~nni_naslid.space.tree.run_id`.
    """
    subspace = SubSpace.of(supernet)
    root = Node(subspace, read_json(workdir / 'tree.json', ('training',))['training']['start_epoch'])
    kind, _, name = task.partition(' ')
    for _ in grow(root, workdir, run, name if kind == 'node' else None):
        pass
    # NNI starts again what its manager was running when it was killed, though that may still be running.
    with locked(workdir / f'{task.replace(" ", "-")}.lock', task):
        if kind == 'node':
            node = next((node for node in root if node.name == name), None)
            if node is None:
                raise FileNotFoundError(f'The result of the parent of node {name} is not in the work folder {workdir}.')
            report = run_node(supernet, evaluator, node, settings, workdir, run)
        else:
            scorer = make_scorer(supernet, evaluator, root, settings, workdir, run)
            if kind == 'search' and read_search(subspace, settings, search, workdir, run) is None:
                run_search(InheritedModel(supernet, scorer), subspace, settings, search, workdir, run)
            rank = 0 if kind == 'search' else int(name) - 1
            report = scorer.report(read_search(subspace, settings, search, workdir, run)[rank][0])
    nni.report_final_result(report)


def make_scorer(
    supernet: ModelSpace, evaluator: Lightning, tree: Node, settings: Settings, workdir: Path, run: str
) -> LeafEvaluator:
    """What scores samples by the leaves of a tree."""
    return LeafEvaluator(
        supernet,
        evaluator,
        tree.leaves,
        monitor=settings.monitor,
        mode=settings.mode,
        calibration_batches=settings.calibration_batches,
        seed=settings.seed,
        scores=workdir / 'scores.jsonl',
        run=run,
        trust_checkpoints=settings.trust_checkpoints,
    )


class InProcess(RawFormatModelSpace):
    """A task that NNI's sequential engine runs in this process, on a supernet that all tasks share."""

    def __init__(self, task: str, supernet: ModelSpace, evaluator: Lightning, **arguments: Any):
        super().__init__(supernet, evaluator)
        self.task = task
        self.arguments = arguments
        self.status = ModelStatus.Frozen

    def execute(self) -> None:
        perform(self.task, self.model_space, self.evaluator, **self.arguments)


class Trial(ExecutableModelSpace):
    """A task that a training service runs in a process of its own, maybe on another machine.

    It takes what makes the space and the evaluator, and makes them anew; weights travel through the work folder.
    The evaluator comes as :func:`nni.dump` writes it: NNI loads trials again to tell their status, not to run them.
    """

    def __init__(
        self,
        task: str,
        space: SerializableObject,
        evaluator: str,
        *,
        settings: Settings,
        workdir: Path,
        run: str,
        search: Strategy | None,
        mutation_hooks: Sequence[MutationHook],
        summary: dict[str, Any],
        filter: Callable[[Sample], bool] | None = None,
    ):
        super().__init__(ModelStatus.Frozen)
        self.task = task
        self.space = space
        self.evaluator = evaluator
        self.sample = None
        self.settings = settings
        self.workdir = workdir
        self.run = run
        self.search = search
        self.filter = filter
        self.mutation_hooks = list(mutation_hooks)
        self.summary = summary

    def execute(self) -> None:
        with leaving_error(self.workdir, self.task):
            if (found := run_in(self.workdir)) != self.run:
                raise ValueError(
                    f'The work folder {self.workdir} holds run {found}, but this trial is of run {self.run}.'
                )
            self.task = recorded_task(self.workdir)
        with leaving_error(self.workdir, self.task):
            space = self.space.trace_copy().get(traceable=False)
            supernet = RandomOneShot(mutation_hooks=self.mutation_hooks).mutate_model(space)
            constrain(supernet, self.filter)
            perform(self.task, supernet, nni.load(self.evaluator), self.settings, self.workdir, self.run, self.search)

    def extra_repr(self) -> str:
        return f'{self.task!r}, status={self.status!r}'

    def _dump(self) -> dict[str, Any]:
        return {
            'mutation_summary': self.summary,  # what the web UI shows
            'task': self.task,
            'model_symbol': self.space.trace_symbol,
            'model_args': self.space.trace_args,
            'model_kwargs': self.space.trace_kwargs,
            'evaluator': self.evaluator,
            'settings': self.settings.to_dict(),
            'workdir': str(self.workdir),
            'run': self.run,
            'search': self.search,
            'filter': self.filter,
            'mutation_hooks': self.mutation_hooks,
        }

    @classmethod
    def _load(cls, **content: Any) -> Trial:
        return cls(
            content['task'],
            SerializableObject(content['model_symbol'], content['model_args'], content['model_kwargs']),
            content['evaluator'],
            settings=Settings(**content['settings']),
            workdir=Path(content['workdir']),
            run=content['run'],
            search=content['search'],
            filter=content['filter'],
            mutation_hooks=content['mutation_hooks'],
            summary=content['mutation_summary'],
        )


def perform_by_name(parameters: dict[str, Any]) -> None:
    """Carry out a task of a run from a YAML, as :class:`~nni_naslid.tuner.NASLIDTuner` sends it.

    Parameters
    ----------
    parameters
        ``task`` (which one it really is tells :mod:`nni_naslid.run.manager`; ``'begin'`` checks everything and begins
        the run), and ``recipe``: a file in the work folder with ``settings``, and with ``space``, ``evaluator`` and
        ``search`` by name (see :mod:`nni_naslid.run.spec`).

    Raises
    ------
    FileNotFoundError, ValueError
        If the work folder cannot be seen here, or naming the key of what cannot be made.
    """
    path = Path(parameters['recipe'])
    workdir = path.parent
    if not path.exists():
        raise FileNotFoundError(cannot_see(workdir))
    with leaving_error(workdir, parameters['task']):
        task = recorded_task(workdir)
    recipe = read_json(path, ('settings', 'space', 'evaluator', 'search'))
    if path.stem != f'recipe-{digest(recipe)[:32]}':
        raise ValueError(
            f'{path} is not what the experiment was started with: its name does not fit its content, which can run '
            'any code. Find out who has written it, and start the experiment again.'
        )
    settings = Settings(**recipe['settings'])
    with leaving_error(workdir, task):
        run = None if task == 'begin' else run_in(workdir)
        pl.seed_everything(settings.seed, verbose=False)  # the initial weights
        space, evaluator = (make(recipe[key], key) for key in ('space', 'evaluator'))
        search = recipe['search'] and make(recipe['search'], 'search')
        if run is None:
            check_search(search)
            with seeded(settings.seed):
                check_space(space, evaluator, settings)
                tried = RandomOneShot().mutate_model(copy.deepcopy(space))
                places = try_out(tried, evaluator, settings)
                try_search(search, tried, settings)
            with seeded(settings.seed):
                supernet = RandomOneShot().mutate_model(space)
            begin(supernet, evaluator, settings, workdir, places)
        else:
            perform(task, RandomOneShot().mutate_model(space), evaluator, settings, workdir, run, search)


def run_in(workdir: Path) -> str:
    """The :func:`~nni_naslid.space.tree.run_id` of the run in a work folder.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the folder, if it cannot be seen here, or holds no run.
    """
    if not (workdir / 'tree.json').exists():
        raise FileNotFoundError(cannot_see(workdir))
    return read_json(workdir / 'tree.json', ('run',))['run']


def cannot_see(workdir: Path) -> str:
    """What to say where the work folder is not there."""
    return (
        f'{socket.gethostname()} cannot see the work folder {workdir}, or it holds no run: it must be on storage that '
        'has the same path on all machines.'
    )
