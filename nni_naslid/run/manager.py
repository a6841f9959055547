"""The trials of an experiment, as NNI's manager has recorded them. Without torch: the tuner uses it too.

NNI's local and remote services hand parameters to trials in the order in which trials ask for them, so two that start
together may get each other's, and after a trial that died before it asked all get those of the one before. NNI's own
records (so the web UI, and what is told of a trial's end) know nothing of that. So whoever drives a run writes down
what NNI has recorded, and trials look there.
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
    'ADD_RESUMED': Outcome.RUNNING,  # going to be started again
    'SUCCEEDED': Outcome.DONE,
}
PATIENCE = 120  # seconds
TASK = re.compile(r'begin|search|node 0(\.\d+)*')


class TrialRecords:
    """The tasks of an experiment, by its manager.

    Parameters
    ----------
    folder
        Where trials find their tasks.
    experiment
        Id of the experiment.
    port, prefix
        Of its manager.

    Attributes
    ----------
    sent
        How often each task has been submitted; to be counted up with each submission.
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
        """An answer of the manager."""
        return rest.get(self.port, api, self.prefix)

    def update(self, what: str, **params: Any) -> None:
        """Change parameters of the experiment, as ``what`` NNI's REST interface calls it."""
        profile = self.get('/experiment')
        profile['params'].update(params)
        rest.put(self.port, f'/experiment?update_type={what}', profile, self.prefix)

    def show(self, search_space: dict[str, Any]) -> None:
        """Give the web UI its axes, if the manager listens."""
        try:
            self.update('SEARCH_SPACE', searchSpace=search_space)
        except requests.RequestException as error:
            _logger.warning('The web UI lacks axes, because the manager does not answer: %s', error)

    def outcomes(self) -> dict[str, Outcome]:
        """Of all tasks; one that was submitted more often than NNI has recorded is on its way.

        Where the manager does not answer, what it has answered last.
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
        """What has become of each try of each task; trials are told their tasks."""
        tries = defaultdict(list)
        records = {}
        for job in jobs:
            parameters = json.loads(job['hyperParameters'][0])
            if task := parameters['parameters'].get('task'):  # else it is a user's own trial
                records[job['trialJobId']] = [parameters['parameter_id'], task]
                tries[task].append(OUTCOMES.get(job['status'], Outcome.FAILED))
        if records != self._records:
            write_json(self.folder.trials(self.experiment), records)
            self._records = records
        return tries


def recorded_task(folder: RunFolder, patience: float = PATIENCE) -> str:
    """The task of this trial. Its metrics will go to the parameters that NNI has recorded for it.

    Raises
    ------
    TimeoutError
        If nobody writes it down.
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
    raise TimeoutError(f'{path} does not tell the task of trial {trial}: is what drives the run still there?')
