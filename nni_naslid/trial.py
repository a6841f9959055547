"""A task of a run as what NNI's engines run: in this process, or as a trial."""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nni_naslid.prepare import check_space, limit_space, try_out
from nni_naslid.run.files import digest, read_json
from nni_naslid.run.folder import RunFolder
from nni_naslid.run.manager import recorded_task
from nni_naslid.run.run import Run
from nni_naslid.run.scheduler import leaving_error
from nni_naslid.run.settings import PLAIN, Settings
from nni_naslid.run.spec import make
from nni_naslid.search.check import check_search, try_search
from nni_naslid.search.score import LeafScorer
from nni_naslid.space.subspace import constrain
from nni_naslid.start import check_trial, space_of_run, start_run
from nni_naslid.tasks import perform
from nni_naslid.train.options import settled
from nni_naslid.train.rng import seeded
from nni_naslid.train.supernet import make_supernet

import nni
import pytorch_lightning as pl
from nni.common.serializer import SerializableObject
from nni.mutable import Sample
from nni.nas.oneshot.pytorch.strategy import MutationHook
from nni.nas.space import ExecutableModelSpace, ModelStatus, RawFormatModelSpace
from nni.nas.strategy.base import Strategy

__all__ = ['InProcess', 'Trial', 'perform_by_name']


class InProcess(RawFormatModelSpace):
    """A task that NNI's sequential engine runs in this process, on a supernet that all tasks share.

    Attributes
    ----------
    scorer
        After a search what it has scored with, which holds the validation data; whoever takes it leaves ``None``.
    """

    def __init__(self, task: str, run: Run):
        super().__init__(run.supernet, run.evaluator)
        self.task = task
        self.run = run
        self.scorer: LeafScorer | None = None
        self.status = ModelStatus.Frozen

    def execute(self) -> None:
        self.scorer = perform(self.run, self.task)


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
        folder = RunFolder(self.workdir)
        with leaving_error(folder, self.task):
            if (found := run_in(folder)) != self.run:
                raise ValueError(
                    f'The work folder {self.workdir} holds run {found}, but this trial is of run {self.run}.'
                )
            self.task = recorded_task(folder)
        with leaving_error(folder, self.task):
            space = self.space.trace_copy().get(traceable=False)
            supernet = make_supernet(space, self.mutation_hooks)
            constrain(supernet, space_of_run(supernet, folder, self.settings, self.filter))
            evaluator = nni.load(self.evaluator)
            run = Run(self.settings, folder, self.run, supernet, evaluator, self.search)
            check_trial(self.space, run)
            perform(run, self.task)

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
            settings=Settings.from_dict(content['settings']),
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
    folder = RunFolder(path.parent)
    if not path.exists():
        raise FileNotFoundError(cannot_see(folder))
    with leaving_error(folder, parameters['task']):
        task = recorded_task(folder)
    recipe = read_json(path, ('settings', 'space', 'evaluator', 'search'))
    if path != folder.recipe(digest(recipe)):
        raise ValueError(
            f'{path} is not what the experiment was started with: its name does not fit its content, which can run '
            'any code. Find out who has written it, and start the experiment again.'
        )
    settings = Settings.from_dict(recipe['settings'])
    with leaving_error(folder, task):
        pl.seed_everything(settings.seed, verbose=False)  # the initial weights
        space, evaluator = (make(recipe[key], key) for key in ('space', 'evaluator'))
        search = recipe['search'] and make(recipe['search'], 'search')
        if task == 'begin':
            check_search(search, settings)
            with seeded(settings.seed):
                check_space(space, evaluator, settings)
                tried = make_supernet(copy.deepcopy(space))
                part = limit_space(tried, evaluator, settings, None)
                constrain(tried, part)
                settings = settled(settings, tried, evaluator)
                checked = try_out(tried, evaluator, settings)
                try_search(search, tried, evaluator, settings)
            with seeded(settings.seed):
                supernet = make_supernet(space)
            constrain(supernet, part)
            start_run(supernet, evaluator, settings, folder, checked)
        else:
            supernet, settings = make_supernet(space), as_kept(settings, folder)
            constrain(supernet, space_of_run(supernet, folder, settings, None))
            run = Run(settings, folder, run_in(folder), supernet, evaluator, search)
            check_trial(supernet, run)
            perform(run, task)


def as_kept(settings: Settings, folder: RunFolder) -> Settings:
    """Settings with what ``'auto'`` has come to where the run was begun."""
    kept = read_json(folder.tree, ('settings',))['settings']
    return replace(settings, **{name: kept.get(name, plain) for name, plain in PLAIN.items()})


def run_in(folder: RunFolder) -> str:
    """The :func:`~nni_naslid.run.progress.run_id` of the run in a work folder.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the folder, if it cannot be seen here, or holds no run.
    """
    if not folder.tree.exists():
        raise FileNotFoundError(cannot_see(folder))
    return read_json(folder.tree, ('run',))['run']


def cannot_see(folder: RunFolder) -> str:
    """What to say where the work folder is not there."""
    return (
        f'{socket.gethostname()} cannot see the work folder {folder.path}, or it holds no run: it must be on storage '
        'that has the same path on all machines.'
    )
