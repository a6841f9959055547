"""The trials of an experiment, as NNI's manager has recorded them.

NNI's local and remote services give parameters to trials in the order in which trials ask for them. So two trials that
start together may get each other's parameters, and when a trial dies before it has asked, all later trials get those of
the trial before them. NNI's records, and so the web UI, do not show this. Therefore the driver of a run writes the
recorded task of each trial to a file, and trials read it there.

This module does not import torch: the tuner must start fast.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter, defaultdict
from typing import Any

from nni_naslid.run.files import read_json, write_json
from nni_naslid.run.folder import RunFolder
from nni_naslid.run.scheduler import Outcome

import nni
import requests
from nni.experiment import rest

__all__ = ['TrialRecords', 'recorded_task']

_logger = logging.getLogger(__name__)

OUTCOMES = {
    'WAITING': Outcome.RUNNING,
    'RUNNING': Outcome.RUNNING,
    'UNKNOWN': Outcome.RUNNING,
    'ADD_RESUMED': Outcome.RUNNING,  # will be started again
    'SUCCEEDED': Outcome.DONE,
}
PATIENCE = 120  # seconds
TASK = re.compile(r'begin|search|node 0(\.\d+)*')


class TrialRecords:
    """The tasks of an experiment and their outcomes, as its manager reports them.

    Parameters
    ----------
    folder
        The work folder, where trials read their tasks.
    experiment
        Id of the experiment.
    port, prefix
        Of its manager.

    Attributes
    ----------
    sent
        How often each task has been submitted. The driver adds one at each submission.
    last_id
        The largest ``parameter_id``.
    """

    def __init__(self, folder: RunFolder, experiment: str, port: int, prefix: str | None):
        self.folder = folder
        self.experiment = experiment
        self.port = port
        self.prefix = prefix
        self._records: dict[str, list[Any]] = {}
        self._outcomes: dict[str, list[Outcome]] = self._tries(self.get('/trial-jobs'))
        self.sent = Counter({task: len(tries) for task, tries in self._outcomes.items()})
        self.last_id = max((parameter_id or 0 for parameter_id, _ in self._records.values()), default=0)

    def get(self, api: str) -> Any:
        """Send a GET request to the manager and return its answer."""
        return rest.get(self.port, api, self.prefix)

    def update(self, what: str, **params: Any) -> None:
        """Change parameters of the experiment; ``what`` is the ``update_type`` of NNI's REST interface."""
        profile = self.get('/experiment')
        profile['params'].update(params)
        rest.put(self.port, f'/experiment?update_type={what}', profile, self.prefix)

    def show(self, search_space: dict[str, Any]) -> None:
        """Set the axes of the web UI. If the manager does not answer, log a warning."""
        try:
            self.update('SEARCH_SPACE', searchSpace=search_space)
        except requests.RequestException as error:
            _logger.warning('The web UI has no axes for new columns, because the manager does not answer: %s', error)

    def outcomes(self) -> dict[str, Outcome]:
        """The outcome of each task. A task that was submitted more often than NNI has recorded counts as running.

        If the manager does not answer, these are the outcomes of its last answer.
        """
        try:
            self._outcomes = self._tries(self.get('/trial-jobs'))
        except requests.RequestException as error:
            _logger.warning('The manager does not answer: %s', error)
        return {
            task: Outcome.RUNNING if len(tries := self._outcomes.get(task, [])) < sent else max(tries)
            for task, sent in self.sent.items()
        }

    def _tries(self, jobs: list[dict[str, Any]]) -> dict[str, list[Outcome]]:
        """The outcome of each try of each task. If there are new trials, write their tasks to the file."""
        tries = defaultdict(list)
        records = {}
        for job in jobs:
            parameters = json.loads(job['hyperParameters'][0])
            if task := parameters['parameters'].get('task'):  # else the user has added this trial
                records[job['trialJobId']] = [parameters['parameter_id'], task]
                tries[task].append(OUTCOMES.get(job['status'], Outcome.FAILED))
        if records != self._records:
            write_json(self.folder.trials(self.experiment), records)
            self._records = records
        return tries


def recorded_task(folder: RunFolder, patience: float = PATIENCE) -> str:
    """The task of this trial. Its metrics are then reported under the parameters that NNI has recorded for it.

    Raises
    ------
    TimeoutError
        If the driver does not write the task down within ``patience`` seconds.
    """
    path, trial = folder.trials(nni.get_experiment_id()), nni.get_trial_id()
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if path.exists() and trial in (records := read_json(path, ())):
            parameter_id, task = records[trial]
            if not TASK.fullmatch(task):  # it becomes part of file names
                raise ValueError(f'{path} says that trial {trial} is to do {task!r}, which is no task.')
            nni.trial._params['parameter_id'] = parameter_id
            return task
        time.sleep(0.5)
    raise TimeoutError(
        f'{path} has no task for trial {trial} after {patience:g} s. Is the script or tuner still there?'
    )
