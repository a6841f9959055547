"""What is submitted, tried again and raised, with tasks that end as a test says."""

from nni_naslid.run.folder import RunFolder
from nni_naslid.run.scheduler import Outcome, leaving_error, run_tasks

import pytest

DONE, FAILED, RUNNING = Outcome.DONE, Outcome.FAILED, Outcome.RUNNING


class Tasks:
    """Tasks that are due until they have left a result, and whose tries end as told: the first, the second ..."""

    def __init__(self, tmp_path, ends, known=(), leaves_result=True, ended=False):
        self.folder = RunFolder(tmp_path)
        self.ends = {task: list(outcomes) for task, outcomes in ends.items()}
        self.known = dict(known)
        self.leaves_result = leaves_result
        self.ended = ended
        self.results = set()
        self.submitted = []

    def due(self, done):
        return [task for task in self.ends if task not in self.results]

    def submit(self, task):
        self.submitted.append(task)
        self.known[task] = RUNNING

    def outcomes(self):
        """What is known now; what runs ends after that."""
        known = dict(self.known)
        for task, outcome in known.items():
            if outcome is RUNNING and task in self.ends:
                self.known[task] = self.ends[task].pop(0) if self.ends[task] else RUNNING
                if self.known[task] is DONE and self.leaves_result:
                    self.results.add(task)
        return known

    def run_tasks(self, retries=1):
        run_tasks(
            self.due,
            self.submit,
            self.outcomes,
            folder=self.folder,
            retries=retries,
            has_ended=lambda: self.ended,
        )


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr('nni_naslid.run.scheduler.POLL', 0)


def test_each_task_is_submitted_once(tmp_path):
    tasks = Tasks(tmp_path, {'a': [DONE], 'b': [DONE]})
    tasks.run_tasks()
    assert tasks.submitted == ['a', 'b']


def test_what_runs_already_is_not_submitted_and_what_was_lost_is(tmp_path):
    """Of an experiment that was resumed."""
    tasks = Tasks(tmp_path, {'a': [DONE], 'b': [DONE]}, known={'a': RUNNING, 'b': DONE})
    tasks.run_tasks()
    assert tasks.submitted == ['b']


def test_a_failure_is_tried_again(tmp_path, caplog):
    tasks = Tasks(tmp_path, {'a': [FAILED, FAILED, DONE]})
    (tmp_path / 'failed-a.txt').write_text('Traceback\nValueError: bad')
    tasks.run_tasks(retries=2)
    assert tasks.submitted == ['a'] * 3
    assert caplog.text.count('The trial of a failed and is tried again: ValueError: bad') == 2


def test_after_too_many_failures_what_runs_is_waited_for_and_nothing_is_begun(tmp_path):
    tasks = Tasks(tmp_path, {'a': [FAILED, FAILED], 'b': [RUNNING] * 5 + [DONE]})
    (tmp_path / 'failed-a.txt').write_text('Traceback\nValueError: bad')
    with pytest.raises(
        RuntimeError, match=r'The trial of a failed 2 times\. What has finished is kept\. Traceback\nV.*bad'
    ):
        tasks.run_tasks()
    assert tasks.submitted == ['a', 'b', 'a']
    assert tasks.results == {'b'}


def test_a_failure_that_left_no_error_or_an_empty_one(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r'failed once.* It left no error; was it killed'):
            Tasks(tmp_path, {'a': [FAILED]}).run_tasks(retries=0)
        (tmp_path / 'failed-a.txt').touch()


def test_a_failure_after_the_result_does_not_count(tmp_path):
    tasks = Tasks(tmp_path, {'a': [FAILED], 'b': [DONE]})
    due = tasks.due
    tasks.due = lambda done: [task for task in due(done) if task != 'a' or tasks.known.get('a') is not FAILED]
    tasks.run_tasks(retries=0)
    assert tasks.submitted == ['a', 'b']


def test_a_result_that_is_not_there(tmp_path):
    with pytest.raises(RuntimeError, match=f'The trial of a ended well, but its result is not in {tmp_path}'):
        Tasks(tmp_path, {'a': [DONE]}, leaves_result=False).run_tasks()


def test_the_end_of_the_experiment(tmp_path):
    with pytest.raises(RuntimeError, match='The experiment has ended before the tree was finished'):
        Tasks(tmp_path, {'a': []}, ended=True).run_tasks()


def test_what_ends_as_the_last_of_the_experiment(tmp_path):
    tasks = Tasks(tmp_path, {'a': [DONE]})
    outcomes = tasks.outcomes

    def then_it_ends():
        tasks.ended = bool(tasks.submitted)
        return outcomes()

    tasks.outcomes = then_it_ends
    tasks.run_tasks()
    assert tasks.results == {'a'}


def test_errors_are_left_for_whoever_drives(tmp_path):
    with pytest.raises(ValueError, match='bad'), leaving_error(RunFolder(tmp_path), 'node 0.1'):
        raise ValueError('bad')
    assert (tmp_path / 'failed-node-0.1.txt').read_text().endswith('ValueError: bad\n')
    with leaving_error(RunFolder(tmp_path), 'node 0.1'):
        pass
    assert not (tmp_path / 'failed-node-0.1.txt').exists()
    with pytest.raises(ValueError, match='bad'), leaving_error(RunFolder(tmp_path / 'nowhere'), 'node 0.1'):
        raise ValueError('bad')
    assert not (tmp_path / 'nowhere').exists()
