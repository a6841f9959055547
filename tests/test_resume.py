"""A run that is killed at any time, by SIGKILL, goes on where it was, and ends as one that was not."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.strategy import TPE
from nni.nas.strategy.base import StrategyStatus

SCRIPT = Path(__file__).parent / 'killed_run.py'


def start(workdir: Path, *arguments: str) -> subprocess.Popen:
    with open(workdir.with_suffix('.log'), 'a') as log:
        return subprocess.Popen([sys.executable, SCRIPT, workdir, *arguments], stdout=log, stderr=log)


def kill_when(process: subprocess.Popen, reached, number=signal.SIGKILL, after: float = 0) -> None:
    """End a process by a signal as soon as something is so, or some seconds later."""
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, 'the run has ended before'
        assert time.monotonic() < deadline
        time.sleep(0.002)
    with suppress(subprocess.TimeoutExpired):
        process.wait(after)
    process.send_signal(number)
    process.wait()


def finish(workdir: Path, *arguments: str) -> dict:
    assert start(workdir, *arguments).wait() == 0, workdir.with_suffix('.log').read_text()
    return outcome(workdir)


def outcome(workdir: Path) -> dict:
    """All that counts: the tree, the weights of the leaves, the ranking."""
    tree = json.loads((workdir / 'tree.json').read_text())
    weights = {
        node['name']: torch.load(workdir / node['checkpoint'], weights_only=True)['state_dict']
        for node in tree['nodes']
    }
    return {'tree': tree, 'weights': weights, 'search': json.loads((workdir / 'search.json').read_text())}


def assert_same(one: dict, other: dict) -> None:
    assert one['tree'] == other['tree']
    assert one['search'] == other['search']
    for name, weights in one['weights'].items():
        for key, value in weights.items():
            assert torch.equal(value, other['weights'][name][key]), f'{key} of node {name}'


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """The outcome of a run that nobody kills."""
    return finish(tmp_path_factory.mktemp('undisturbed') / 'run')


def lines(path: Path) -> list[dict]:
    """The whole lines of a file."""
    text = path.read_text() if path.exists() else ''
    return [json.loads(line) for line in text[: text.rfind('\n') + 1].splitlines()]


def repeats(workdir: Path) -> list[int]:
    """Which repeats of the root's profile are finished."""
    return [line['repeat'] for line in lines(workdir / 'node-0.profile.jsonl')]


def test_killed_in_training_and_in_profiling(tmp_path, undisturbed):
    workdir = tmp_path / 'run'
    kill_when(start(workdir), lambda: list(workdir.glob('node-0-to-3.at-1.*')))
    terminated = start(workdir)
    kill_when(terminated, lambda: len(repeats(workdir)) >= 3, signal.SIGTERM)
    assert terminated.returncode == 128 + signal.SIGTERM
    assert 'Terminated by SIGTERM. What is finished is kept: start again' in workdir.with_suffix('.log').read_text()
    finished = repeats(workdir)
    kill_when(start(workdir), lambda: len(repeats(workdir)) >= len(finished) + 3)
    assert repeats(workdir)[: len(finished)] == finished
    assert sorted(repeats(workdir)) == list(range(len(repeats(workdir))))  # none was done twice
    assert_same(finish(workdir), undisturbed)
    assert not list(workdir.glob('*.profile.jsonl'))


# What is there when the run is killed: in an epoch (not the first) of a node, in profiling, in the search.
MOMENTS = {
    'training of the root': lambda workdir: list(workdir.glob('node-0-to-3.at-*')),
    **{f'repeat {n}': lambda workdir, n=n: len(repeats(workdir)) >= n for n in (1, 3, 4, 9, 14)},
    'training of a child': lambda workdir: list(workdir.glob('node-0.1-to-6.at-*')),
    'search': lambda workdir: (workdir / 'scores.jsonl').exists(),
}


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1])
def test_killed_at_random_moments_of_every_phase(tmp_path, undisturbed, seed):
    """One run, killed again and again."""
    workdir = tmp_path / 'run'
    random = Random(seed)
    for name, reached in MOMENTS.items():
        kill_when(start(workdir), lambda: reached(workdir), after=random.uniform(0, 0.1))  # noqa: B023
        assert not (workdir / 'search.json').exists(), name
    n_scored = len(lines(workdir / 'scores.jsonl'))
    assert_same(finish(workdir), undisturbed)
    assert 0 < n_scored <= len(lines(workdir / 'scores.jsonl')) == 8  # no sample was scored twice
    log = workdir.with_suffix('.log').read_text()
    assert log.count('Going on with the run in') == len(MOMENTS)
    assert log.count('\nEpoch 0 ') == 1  # the root went on from where it was
    assert not list(workdir.glob('node-*-to-*')) and not list(workdir.glob('*.profile.jsonl'))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    'damage, match',
    [
        (lambda d: truncate(d / 'tree.json'), r'tree\.json is damaged'),
        (lambda d: (d / 'tree.json').write_text('{"nodes": []}'), r'tree\.json is not from nni_naslid'),
        (lambda d: truncate(d / 'node-0.json'), r'node-0\.json is damaged .* Delete it'),
        (lambda d: (d / 'node-0.1.json').write_bytes((d / 'node-0.0.json').read_bytes()), r'is of node 0\.0 of run'),
        (lambda d: truncate(d / 'node-0.1.ckpt'), r'node-0\.1\.ckpt is damaged'),
        (
            lambda d: shutil.copy(d / 'node-0.0.ckpt', d / 'node-0.1.ckpt'),
            r'is of node 0\.0 of run \w+, not of node 0\.1',
        ),
        (lambda d: torch.save({}, d / 'node-0.1.ckpt'), r'is of something else, not of node 0\.1'),
        (lambda d: (d / 'node-0.1.ckpt').unlink(), r'node-0\.1\.ckpt is not there'),
        (lambda d: truncate(d / 'search.json'), r'search\.json is damaged'),
        (lambda d: truncate(d / 'scores.jsonl'), r'Line \d+ of .*scores\.jsonl is damaged'),
    ],
)
def test_damaged_and_foreign_files_are_named_and_refused(run, tmp_path, damage, match):
    run((1,), epochs=2, search_budget=6)
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        strategy = run((1,), epochs=2, search_budget=6)
        strategy.load(strategy.leaves[1])


def test_run_again_nothing_is_done_again(run, sampled):
    first = run((1,), epochs=2)
    best = list(first.list_models(limit=3))
    sampled.clear()
    again = run((1,), epochs=2)
    assert not sampled
    assert [model.sample for model in again.list_models(limit=3)] == [model.sample for model in best]
    assert [model.metric for model in again.list_models(limit=3)] == [model.metric for model in best]
    assert [node.to_dict() for node in again.tree] == [node.to_dict() for node in first.tree]


def test_another_search_of_the_same_tree(run, sampled):
    run((1,), epochs=2, search_budget=6)
    sampled.clear()
    strategy = run((1,), epochs=2, search_budget=9, monitor='val_loss', mode='min')
    assert not sampled
    assert len(list(strategy.list_models(limit=None))) == 9


def test_a_search_by_a_tuner_is_known_again(run):
    """Its repr has the address of the tuner."""
    first = run((1,), epochs=2, search=TPE(), search_budget=6)
    scores = first.workdir / 'search.json'
    before = scores.stat().st_mtime_ns
    again = run((1,), epochs=2, search=TPE(), search_budget=6)
    assert scores.stat().st_mtime_ns == before
    assert next(again.list_models()).sample == next(first.list_models()).sample


def test_a_node_is_trained_by_one_process_at_a_time(run, tmp_path, caplog, monkeypatch):
    """NNI may start a trial again that still runs."""
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    holder = subprocess.Popen(
        [sys.executable, '-c', LOCKS, tmp_path / 'node-0.lock'], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert holder.stdout.readline() == b'locked\n'
    other = threading.Timer(2, holder.kill)
    other.start()
    run((), epochs=1, search_budget=1)
    assert holder.wait() == -signal.SIGKILL
    assert 'Another process is at the node 0; waiting for it.' in caplog.text


LOCKS = """
import sys, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print('locked', flush=True)
input()
"""


def test_interrupted_and_resumed_by_nni(experiment, evaluator, nasbench201, naslid, sampled, monkeypatch, tmp_path):
    """Ctrl-C, then ``NasExperiment.resume`` with the same id goes on in the same work folder."""
    monkeypatch.chdir(tmp_path)

    class Interrupt(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 3:
                raise KeyboardInterrupt

    first = naslid((1,), workdir=None)
    started = experiment(nasbench201(), evaluator(4, callbacks=[Interrupt()]), first)
    started.run()
    assert first._status == StrategyStatus.INTERRUPTED
    started.stop()
    sampled.clear()
    resumed = naslid((1,), workdir=None)
    experiment(nasbench201(), evaluator(4), resumed, None, started.id).resume()
    assert resumed.workdir == first.workdir
    assert {epoch for _, epoch, _ in sampled} == {1, 2, 3}
    assert sum(epoch < 3 for _, epoch, _ in sampled) == 10  # those of the second child
    assert len(resumed.leaves) == 2
