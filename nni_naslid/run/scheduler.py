"""Run tasks in parallel and retry failures. This module does not import torch: the tuner must start fast."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any

from nni_naslid.run.files import replacing
from nni_naslid.run.folder import RunFolder

__all__ = ['KEPT', 'Outcome', 'leaving_error', 'run_tasks', 'terminating']

_logger = logging.getLogger(__name__)

KEPT = 'What is finished is kept: start again with the same workdir to go on from there.'

POLL = 0.5  # seconds


class Outcome(IntEnum):
    """The state of a task. If a task was tried more than once, its greatest outcome counts."""

    FAILED = 0
    DONE = 1
    RUNNING = 2


def run_tasks(
    due: Callable[[set[str]], list[str]],
    submit: Callable[[str], None],
    outcomes: Callable[[], dict[str, Outcome]],
    *,
    folder: RunFolder,
    retries: int,
    has_ended: Callable[[], bool],
) -> int:
    """Run all tasks that are due, until none is.

    Parameters
    ----------
    due
        Returns the tasks to run now, given those that have succeeded. It is called again when tasks may have ended.
    submit
        Submits a task; it may start later.
    outcomes
        Returns the outcomes of all submitted tasks, also of an earlier process: when an experiment is resumed, NNI
        restarts the tasks that were running.
    folder
        Where tasks write their results and errors.
    retries
        How often a failed task is submitted again.
    has_ended
        Tells whether the experiment has ended, so that no task will run any more.

    Returns
    -------
    How many tasks were submitted, or running already: 0 if there was nothing to do.

    Raises
    ------
    RuntimeError
        With the error of a task that has failed too often, after all running tasks have ended.
    """
    failures: Counter[str] = Counter()
    known = outcomes()
    before = {task for task, outcome in known.items() if outcome is Outcome.DONE}
    running = {task for task, outcome in known.items() if outcome is Outcome.RUNNING}
    tried, ended = set(running), set()
    fatal = None
    while tasks := due(before | ended):
        for task in tasks if fatal is None else ():
            if task in ended:
                raise RuntimeError(
                    f'The trial of {task} ended well, but its result is not in {folder.path}. '
                    'Is that on storage that all machines share?'
                )
            if task not in running:
                running.add(task)
                tried.add(task)
                submit(task)
        is_over = has_ended()  # asked before the outcomes: a task that has ended by then has one
        for task, outcome in outcomes().items():
            if task in running and outcome is not Outcome.RUNNING:
                running.remove(task)
                if outcome is Outcome.DONE:
                    ended.add(task)
                elif task in due(before | ended):  # else it failed after it had written its result
                    failures[task] += 1
                    fatal = fatal or _after_failure(folder, task, failures[task], retries)
        if fatal is not None and not running:
            raise RuntimeError(fatal)
        if running:
            if is_over:
                raise RuntimeError('The experiment has ended before the tree was finished; what is there is kept.')
            time.sleep(POLL)
    return len(tried)


def _after_failure(folder: RunFolder, task: str, times: int, retries: int) -> str | None:
    """The message to raise after a failure; ``None`` if the task is tried again."""
    path = folder.error(task)
    error = path.read_text(errors='replace').strip() if path.exists() else ''
    error = error or 'It left no error; was it killed? Its log is in the web UI.'
    if times > retries:
        often = 'once' if times == 1 else f'{times} times'
        return f'The trial of {task} failed {often}. What has finished is kept. {error}'
    _logger.warning('The trial of %s failed and is tried again: %s', task, error.splitlines()[-1])
    return None


@contextmanager
def leaving_error(folder: RunFolder, task: str) -> Iterator[None]:
    """Write an exception that is raised inside to the work folder, if the folder exists, and raise it."""
    path = folder.error(task)
    path.unlink(missing_ok=True)
    try:
        yield
    except Exception:
        with suppress(OSError):  # a full disk must not hide the exception
            if folder.path.is_dir():
                with replacing(path) as unfinished:
                    unfinished.write_text(traceback.format_exc())
        raise


@contextmanager
def terminating() -> Iterator[None]:
    """Inside, SIGTERM ends the process with a message and exit status 143 (128 + SIGTERM).

    Python alone would end without a message. Lightning and NNI would raise KeyboardInterrupt, and end with status 0.
    This does nothing outside of the main thread, or where another handler of SIGTERM is set.
    """
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    process = os.getpid()

    def end(*_: Any) -> None:
        if os.getpid() != process:  # a worker of a data loader
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        _logger.warning('Terminated by SIGTERM. %s', KEPT)
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
