"""Which task a trial has.

NNI's local and remote services hand parameters to trials in the order in which trials ask for them, so two that start
together may get each other's, and after a trial that died before it asked all get those of the one before. NNI's own
records (so the web UI, and what is told of a trial's end) know nothing of that. So whoever drives a run writes down
what NNI has recorded, and trials look there. Without torch: the tuner uses it too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nni_naslid.files import read_json, write_json

import nni

__all__ = ['record_trials', 'recorded_task']

PATIENCE = 120  # seconds


def _path(workdir: Path, experiment: str) -> Path:
    return workdir / f'trials-{experiment}.json'


def record_trials(workdir: Path, experiment: str, jobs: Iterable[dict[str, Any]]) -> None:
    """Write down which task each trial has.

    Parameters
    ----------
    workdir
        The work folder.
    experiment
        Id of the NNI experiment.
    jobs
        Its trials, as NNI's REST interface lists them.
    """
    records = {}
    for job in jobs:
        parameters = json.loads(job['hyperParameters'][0])
        if 'task' in parameters['parameters']:  # else it is a user's own trial
            records[job['trialJobId']] = [parameters['parameter_id'], parameters['parameters']['task']]
    path = _path(workdir, experiment)
    if records and (not path.exists() or read_json(path, ()) != records):
        write_json(path, records)


def recorded_task(workdir: Path, patience: float = PATIENCE) -> str:
    """The task of this trial. Its metrics will go to the parameters that NNI has recorded for it.

    Raises
    ------
    TimeoutError
        If nobody writes it down.
    """
    path, trial = _path(workdir, nni.get_experiment_id()), nni.get_trial_id()
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if path.exists() and trial in (records := read_json(path, ())):
            parameter_id, task = records[trial]
            nni.trial._params['parameter_id'] = parameter_id
            return task
        time.sleep(0.5)
    raise TimeoutError(
        f'{path} does not tell the task of trial {trial}: is the process that drives the run still there?'
    )
