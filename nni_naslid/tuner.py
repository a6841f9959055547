"""The whole method from a YAML: what NNI's manager starts as its tuner, and whose trials are ``python -m nni_naslid``.

Without torch and ``nni.nas``: the manager waits ten seconds for a tuner to start.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import traceback
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nni_naslid.criteria.named import SETTINGS, criterion_of
from nni_naslid.run.files import digest, write_json
from nni_naslid.run.folder import RunFolder, check_workdir
from nni_naslid.run.manager import TrialRecords
from nni_naslid.run.progress import COLUMNS, Progress, most_tasks
from nni_naslid.run.scheduler import run_tasks
from nni_naslid.run.settings import Settings
from nni_naslid.run.spec import check_spec, make

import nni
import psutil
from nni.runtime.msg_dispatcher_base import MsgDispatcherBase
from nni.runtime.tuner_command_channel import CommandType

__all__ = ['NASLIDTuner']

_logger = logging.getLogger(__name__)


class NASLIDTuner(MsgDispatcherBase):
    """NAS-LID as a tuner, for ``nnictl create`` and its YAML: each node of the tree is a trial, as is the search.

    The trial command is ``python -m nni_naslid``. After the last trial the experiment is done; a trial that fails too
    often, like settings that cannot work, makes its status ERROR, with the reason in the dispatcher's log.

    Parameters
    ----------
    space
        The model space, as ``className`` and ``classArgs``. Arguments may be such objects in their turn.
    evaluator
        The Lightning evaluator (or a function of yours that returns one), likewise.
    workdir
        Absolute path of the work folder, on storage that has the same path on all machines. By default ``naslid`` in
        the folder of the experiment, which trials on this machine can see.
    search
        The strategy of NNI for the search after training, likewise; by default regularized evolution.
    settings
        ``split_epochs`` and all other settings of :class:`~nni_naslid.strategy.NASLID` that are plain values. The
        criterion is a name, with its settings beside it, or an object, as ``className`` and ``classArgs``.

    Notes
    -----
    It is what NNI calls an advisor: it sends trials when they are due, where a tuner has to have some whenever it is
    asked.
    """

    def __init__(
        self,
        space: dict[str, Any] | None = None,
        evaluator: dict[str, Any] | None = None,
        workdir: str | None = None,
        search: dict[str, Any] | None = None,
        **settings: Any,
    ):
        super().__init__()  # connects at once; what is wrong can be told only then
        threading.Thread(target=_die_with_the_manager, daemon=True).start()
        self.recipe = {'space': space, 'evaluator': evaluator, 'search': search}
        self.given = settings
        self.workdir = workdir
        self.progress: Progress | None = None
        self.thread: threading.Thread | None = None

    # What NNI calls. Whatever there is to know is in the work folder and in the manager's records.

    def handle_initialize(self, data: Any) -> None:
        self.send(CommandType.Initialized, '')

    def handle_request_trial_jobs(self, data: int) -> None:
        if self.thread is None:
            self.thread = threading.Thread(target=self._drive, name='NASLID', daemon=True)
            self.thread.start()

    def handle_import_data(self, data: Any) -> None:
        pass

    def handle_add_customized_trial(self, data: Any) -> None:
        pass

    def handle_trial_end(self, data: Any) -> None:
        pass

    def handle_update_search_space(self, data: Any) -> None:
        pass

    def handle_report_metric_data(self, data: Any) -> None:
        pass

    # The steps.

    def _drive(self) -> None:
        from nni_naslid.analysis.plots import plot_run  # matplotlib and scipy take a second or two

        try:
            self._check()
            searched, n_tasks = _written(self.folder.search), []
            for due in (self._begin_due, self._nodes_due, self._search_due):
                n = run_tasks(
                    due, self._submit, self.records.outcomes, folder=self.folder, retries=self.settings.retries,
                    has_ended=lambda: self.stopping,
                )  # fmt: skip
                n_tasks.append(n)
            plot_run(self.progress)
            # A new experiment on a finished run has a trial of the search, too, which only reports what was found.
            self.progress.log_search(is_new=n_tasks[1] > 0 or searched != _written(self.folder.search))
            # The experiment is done when it has submitted all the trials it may.
            self.records.update('MAX_TRIAL_NUM', maxTrialNumber=len(self.records.get('/trial-jobs')))
        except Exception as error:
            if not self.stopping:
                _logger.error('%s', error)
                self.report_error(traceback.format_exc())

    def _check(self) -> None:
        """Look at all that can be told without torch, and keep it where trials will find it.

        Raises
        ------
        ValueError
            Naming the key.
        OSError
            If the work folder cannot be written to.
        """
        known = [*(field.name for field in fields(Settings)), *SETTINGS]
        for name in self.given:
            if name not in known:
                names = ', '.join([*self.recipe, 'workdir', *known])
                raise ValueError(f'tuner.classArgs has {name!r}, but may only have {names}.')
        given = dict(self.given)
        of_criterion = {name: given.pop(name) for name in SETTINGS if name in given}
        criterion = given.pop('criterion', None)
        if isinstance(criterion, dict):
            criterion = make(criterion, 'criterion')
        self.settings = Settings(given.pop('split_epochs', ()), criterion_of(criterion, of_criterion), **given)
        for name, spec in self.recipe.items():
            if name != 'search' or spec is not None:
                check_spec(spec, name)
        experiment = Path(os.environ['NNI_CHECKPOINT_DIRECTORY']).parent  # of the experiment, whose name is its id
        if self.workdir is None:
            self.workdir = experiment / 'naslid'
        elif not isinstance(self.workdir, str) or not Path(self.workdir).expanduser().is_absolute():
            raise ValueError(f'workdir must be an absolute path, but is {self.workdir!r}.')
        self.folder = RunFolder(Path(self.workdir).expanduser())
        check_workdir(self.folder.path)
        content = {'settings': self.settings.to_dict(), **self.recipe}
        self.recipe_file = self.folder.recipe(digest(content))
        write_json(self.recipe_file, content)
        url = urlsplit(os.environ['NNI_TUNER_COMMAND_CHANNEL'])  # ws://localhost:8080/prefix/tuner
        self.records = TrialRecords(self.folder, experiment.name, url.port, url.path.rpartition('/')[0].strip('/'))
        self.limit = self.records.get('/experiment')['params'].get('maxTrialNumber') or math.inf
        most = 1 + most_tasks(self.settings)
        if self.limit < most and not self.records.sent:
            raise ValueError(f'maxTrialNumber must be at least {most} for this tree and search, but is {self.limit}.')

    def _begin_due(self, done: set[str]) -> list[str]:
        """A trial that checks all that needs torch, and begins the run or finds that the folder holds another one."""
        return [] if 'begin' in done and self.folder.tree.exists() else ['begin']

    def _nodes_due(self, done: set[str]) -> list[str]:
        if self.progress is None:
            self.progress = Progress.of(self.folder, self.settings)
        return self.progress.nodes_due(done)

    def _search_due(self, done: set[str]) -> list[str]:
        return [] if 'search' in done and self.progress.has_searched() else ['search']

    def _submit(self, task: str) -> None:
        row = dict.fromkeys(COLUMNS, '') | {'task': task} if self.progress is None else self.progress.row(task)
        if self.records.sent.total() >= self.limit:
            raise RuntimeError(f'maxTrialNumber={self.limit} leaves no trial for {task}, because others have failed.')
        self.records.sent[task] += 1
        self.records.last_id += 1
        # The web UI has a column for each parameter, but looks only into mutation_summary where there is one. The
        # export has the others. (What is beside 'parameters' NNI's manager forgets when it starts a trial again.)
        trial = {
            'parameter_id': self.records.last_id,
            'parameter_source': 'algorithm',
            'parameters': {**row, 'mutation_summary': row, 'recipe': str(self.recipe_file)},
            'parameter_index': 0,
        }
        self.send(CommandType.NewTrialJob, nni.dump(trial))
        if self.progress is not None:
            self.records.show(self.progress.search_space)


def _written(path: Path) -> int | None:
    """When a file was written; ``None`` if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else None


def _die_with_the_manager() -> None:
    """End this process after NNI's manager, which has started it.

    Tuners of NNI outlive a manager that was killed, connect again to the one that goes on on the same port, and so cut
    off its own tuner, for good.
    """
    manager = next((process for process in psutil.Process().parents() if 'node' in process.name()), None)
    if manager is None:
        return  # not started by a manager, as in tests of NNI's
    while manager.is_running() and manager.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.2)
    os._exit(1)
