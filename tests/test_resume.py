"""A run that is killed at any time, by SIGKILL, goes on where it was, and ends as one that was not."""

import hashlib
import json
import logging
import pickle
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random

from nni_naslid.run.files import read_json, write_json
from nni_naslid.run.record import read_record

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.strategy import TPE
from nni.nas.strategy.base import StrategyStatus
from small import Plain, brightened

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
    """All that counts: the tree, the weights of the leaves, the ranking, the metrics of each epoch."""
    tree = json.loads((workdir / 'tree.json').read_text())
    weights = {
        node['name']: torch.load(workdir / node['checkpoint'], weights_only=True)['state_dict']
        for node in tree['nodes']
    }
    results = [read_json(workdir / f'node-{node["name"]}.json', ()) for node in tree['nodes']]
    return {
        'tree': tree,
        'kept': [[(epoch, weights) for epoch, _, weights in result['kept']] for result in results],
        'weights': weights,
        'search': json.loads((workdir / 'search.json').read_text()),
        'curves': read_record(workdir).curves,
    }


def assert_same(one: dict, other: dict) -> None:
    assert one['tree'] == other['tree']
    assert one['kept'] == other['kept']
    assert one['search'] == other['search']
    assert one['curves'] == other['curves']
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


def epochs(workdir: Path, piece: str) -> list[Path]:
    """The checkpoint of the latest epoch of a piece of training."""
    return list(workdir.glob(f'{piece}.at-?.{"[0-9a-f]" * 16}.ckpt'))


@pytest.mark.slow
def test_killed_in_training_and_in_profiling(tmp_path, undisturbed):
    assert [[epoch for epoch, _ in kept] for kept in undisturbed['kept']] == [[2], [4], [4]]
    workdir = tmp_path / 'run'
    kill_when(start(workdir), lambda: epochs(workdir, 'node-0-to-3'))
    terminated = start(workdir)
    kill_when(terminated, lambda: len(repeats(workdir)) >= 3, signal.SIGTERM)
    assert terminated.returncode == 128 + signal.SIGTERM
    assert 'Terminated by SIGTERM. What is finished is kept: start again' in workdir.with_suffix('.log').read_text()
    finished = repeats(workdir)
    kill_when(start(workdir), lambda: len(repeats(workdir)) >= 18)  # in the third round: 8 and 16 did not decide it
    assert repeats(workdir)[: len(finished)] == finished
    assert sorted(repeats(workdir)) == list(range(len(repeats(workdir))))  # none was done twice
    assert_same(finish(workdir), undisturbed)
    assert not list(workdir.glob('*.profile.jsonl'))


# What is there, or there anew, when the run is killed: an epoch of the root, repeats of its profile, and so on.
MOMENTS = {
    'training of the root': lambda workdir, before: epochs(workdir, 'node-0-to-3'),
    **{f'{n} repeats': lambda workdir, before, n=n: len(repeats(workdir)) >= before + n for n in (1, 2, 3, 4)},
    'training of a child': lambda workdir, before: epochs(workdir, 'node-0.1-to-6'),
    'search': lambda workdir, before: (workdir / 'scores.jsonl').exists(),
}


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1])
def test_killed_at_random_moments_of_every_phase(tmp_path, undisturbed, seed):
    """One run, killed again and again."""
    workdir = tmp_path / 'run'
    random = Random(seed)
    for name, reached in MOMENTS.items():
        before = len(repeats(workdir))
        kill_when(start(workdir), lambda: reached(workdir, before), after=random.uniform(0, 0.1))  # noqa: B023
        assert not (workdir / 'search.json').exists(), name
    n_scored = len(lines(workdir / 'scores.jsonl'))
    assert_same(finish(workdir), undisturbed)
    assert 0 < n_scored <= len(lines(workdir / 'scores.jsonl')) == 8  # no sample was scored twice
    log = workdir.with_suffix('.log').read_text()
    assert log.count('Going on with the run in') == len(MOMENTS)
    assert log.count('\nEpoch 0 ') == 1  # the root went on from where it was
    assert not list(workdir.glob('node-*-to-*')) and not list(workdir.glob('*.profile.jsonl'))


@pytest.fixture
def finished(run, tmp_path, tmp_path_factory):
    """A finished run in the work folder."""
    kept = tmp_path_factory.getbasetemp() / 'finished'
    if not (kept / 'search.json').exists():
        run((1,), epochs=2, search_budget=6, workdir=kept)
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b'')


def invalid(path: Path) -> None:
    """A byte that is no UTF-8."""
    path.write_bytes(path.read_bytes().replace(b'cell', b'c\xffll', 1))


@pytest.mark.parametrize(
    'damage, match',
    [
        (lambda d: truncate(d / 'tree.json'), r'tree\.json is damaged .* Delete it: what it stood for is done again'),
        (lambda d: (d / 'tree.json').write_text('{"nodes": []}'), r'tree\.json is not from nni_naslid'),
        (lambda d: invalid(d / 'tree.json'), r"tree\.json is damaged \('utf-8' codec"),
        (
            lambda d: truncate(d / 'node-0.json'),
            r'node-0\.json is damaged .* delete node-0\.\* and node-0-to-\* in',
        ),
        (
            lambda d: flip(d / 'node-0.1.json'),
            r'node-0\.1\.json is damaged .* delete node-0\.1\.\* and node',
        ),
        (lambda d: empty(d / 'node-0.json'), r'node-0\.json is empty\. To train node 0 again'),
        (lambda d: empty_with_zeros(d / 'node-0.json'), r'node-0\.json is full of zeros\. To train node 0 again'),
        (lambda d: (d / 'node-0.1.json').write_bytes((d / 'node-0.0.json').read_bytes()), r'is of node 0\.0 of run'),
        (lambda d: truncate(d / 'node-0.1.ckpt'), r'node-0\.1\.ckpt is damaged.* delete node-0\.1\.\*'),
        (lambda d: flip(d / 'node-0.1.ckpt'), r'node-0\.1\.ckpt is damaged: its SHA-256'),
        (lambda d: empty(d / 'node-0.1.ckpt'), r'node-0\.1\.ckpt is damaged: its SHA-256'),
        (
            lambda d: shutil.copy(d / 'node-0.0.ckpt', d / 'node-0.1.ckpt'),
            r'is of node 0\.0 of run \w+, not of node 0\.1',
        ),
        (lambda d: torch.save({}, d / 'node-0.1.ckpt'), r'is of something else, not of node 0\.1'),
        (lambda d: (d / 'node-0.1.ckpt').unlink(), r'node-0\.1\.ckpt is not there'),
        (lambda d: truncate(d / 'search.json'), r'search\.json is damaged .* Delete it'),
        (lambda d: flip(d / 'search.json'), r'search\.json is damaged .* Delete it'),
    ],
)
def test_damaged_and_foreign_files_are_named_and_refused(run, finished, tmp_path, damage, match):
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        strategy = run((1,), epochs=2, search_budget=6)
        strategy.load(strategy.leaves[1])


def begin_again(workdir: Path) -> None:
    """As if the run had been killed before anything was trained."""
    for path in [*workdir.glob('node-*'), *workdir.glob('s*.json*')]:
        path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    'part, damaged, to_delete, again',
    [
        ('all', 'init.ckpt', ['init.ckpt', 'tree.json'], 25),
        ('children', 'node-0.ckpt', ['node-0.*', 'node-0-to-*'], 25),
        ('leaf', 'node-0.1.ckpt', ['node-0.1.*', 'node-0.1-to-*'], 10),
    ],
)
def test_what_is_said_to_do_about_a_damaged_checkpoint_helps(run, sampled, tmp_path, part, damaged, to_delete, again):
    run((1,), epochs=3, search_budget=4)
    undamaged = outcome(tmp_path)
    if part == 'all':
        begin_again(tmp_path)
    elif part == 'children':
        for path in [*tmp_path.glob('node-0.1*'), *tmp_path.glob('s*.json*')]:
            path.unlink()
    flip(tmp_path / damaged)
    with pytest.raises(ValueError, match='damaged') as error:
        strategy = run((1,), epochs=3, search_budget=4)
        strategy.load(strategy.leaves[1])
    for pattern in to_delete:
        assert pattern in str(error.value)
        for path in tmp_path.glob(pattern):
            path.unlink()
    sampled.clear()
    run((1,), epochs=3, search_budget=4)
    assert len(sampled) == again
    assert_same(outcome(tmp_path), undamaged)


def test_scores_of_a_node_that_was_trained_again_are_not_used(small, tmp_path, monkeypatch, caplog):
    """With other code, so that it has other weights; those of the other leaf stay, and so do their scores."""
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    caplog.set_level(logging.INFO)
    workdir, afresh = tmp_path / 'run', tmp_path / 'afresh'

    def search(workdir):
        return small(criterion='random', search_budget=8, workdir=workdir)

    def scores(strategy):
        return {str(model.sample): model.metric for model in strategy.list_models(limit=None)}

    before = search(workdir)
    old = scores(before)
    monkeypatch.setattr(Plain, 'training_step', lambda self, batch, batch_idx: 3 * self.loss(batch))
    for path in workdir.glob('node-0.1*'):
        path.unlink()
    shutil.copytree(workdir, afresh, ignore=shutil.ignore_patterns('s*.json*'))
    new = scores(search(workdir))
    assert new == scores(search(afresh)) != old
    kept = {str(m.sample) for m in before.list_models(limit=None) if before.leaves[0].subspace.covers(m.sample)}
    n_outdated = len(old.keys() - kept)
    said = f'Leaves have been trained again: {n_outdated} scores of their old weights are not used, those networks are'
    assert caplog.text.count(said) == 1
    assert len(lines(workdir / 'scores.jsonl')) == len(old) + len(new.keys() - kept)
    search(workdir)
    assert caplog.text.count('Leaves have been trained again') == 1


def test_children_of_a_node_that_was_trained_again(small, tmp_path, monkeypatch):
    """To the same weights, they stay; to others, they are none of its."""

    def train_the_root_again():
        for name in ('node-0.json', 'node-0.ckpt'):
            (tmp_path / name).unlink()
        return small(criterion='random')

    before = [node.weights for node in small(criterion='random').tree]
    assert [node.weights for node in train_the_root_again().tree] == before
    monkeypatch.setattr(Plain, 'training_step', lambda self, batch, batch_idx: 3 * self.loss(batch))
    other = r'node-0\.0\.json is of a node that was trained from other weights than node 0 has now\. To train node 0\.0'
    with pytest.raises(ValueError, match=other):
        train_the_root_again()
    for name in ('node-0.0.json', 'node-0.1.json'):
        (tmp_path / name).unlink()
    sha256 = hashlib.sha256((tmp_path / 'node-0.0.ckpt').read_bytes()).hexdigest()
    half = tmp_path / f'node-0.0-to-3.at-2.{sha256[:16]}.ckpt'  # as of a child that was killed on its way
    (tmp_path / 'node-0.0.ckpt').rename(half)
    with pytest.raises(ValueError, match=rf'other weights than node 0 has now\. Delete {half.name} to go on from'):
        small(criterion='random')
    for path in tmp_path.glob('node-0.*.*'):
        path.unlink()
    weights = [node.weights for node in small(criterion='random').tree]
    assert len(weights) == len(before) == len({*weights, *before}) / 2


def test_a_damaged_line_is_scored_again_and_only_that(run, tmp_path, caplog, monkeypatch):
    """One that was altered, and a half one at the end."""
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    run((), epochs=1, search_budget=6)
    found = json.loads((tmp_path / 'search.json').read_text())
    scores = tmp_path / 'scores.jsonl'
    whole = scores.read_text().splitlines(keepends=True)
    damaged = whole[2].replace('"val_acc": 0', '"val_acc": 1')
    scores.write_text(''.join([*whole[:2], damaged, *whole[3:5], whole[5][:40]]))
    (tmp_path / 'search.json').unlink()
    run((), epochs=1, search_budget=6)
    assert json.loads((tmp_path / 'search.json').read_text()) == found
    assert scores.read_text().splitlines() == [
        *map(str.strip, [*whole[:2], damaged, *whole[3:5]]), whole[5][:40], whole[2].strip(), whole[5].strip()
    ]  # fmt: skip
    assert f'{scores}: 2 damaged line(s) left out, what they stood for is done again: line 3 is damaged' in caplog.text


class Interrupt(pl.Callback):
    """Ctrl-C at the beginning of an epoch; checkpoints of the epoch before are copied."""

    def __init__(self, epoch: int, workdir: Path | None = None, copies: Path | None = None):
        self.epoch = epoch
        self.workdir = workdir
        self.copies = copies

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch - 1 and self.workdir is not None:
            shutil.copytree(self.workdir, self.copies)
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize('damaged, epochs', [((), {3}), ((3,), {2, 3}), ((2, 3), {0, 1, 2, 3})])
def test_a_damaged_unfinished_checkpoint(
    run, experiment, evaluator, nasbench201, naslid, sampled, tmp_path, caplog, monkeypatch, damaged, epochs
):
    """The last good one counts, or where the node began."""
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    workdir = tmp_path / 'run'
    interrupt = Interrupt(3, workdir, tmp_path / 'copies')
    experiment(nasbench201(), evaluator(4, callbacks=[interrupt]), naslid((), search_budget=2, workdir=workdir)).run()
    (before,) = (tmp_path / 'copies').glob('node-0-to-4.at-2.*.ckpt')
    shutil.copy(before, workdir)
    for epoch in damaged:
        (path,) = workdir.glob(f'node-0-to-4.at-{epoch}.*.ckpt')
        flip(path)
    sampled.clear()
    run((), epochs=4, search_budget=2, workdir=workdir)
    assert {epoch for _, epoch, _ in sampled} == epochs
    assert caplog.text.count('is damaged (its SHA-256 is not that of its name) and left out') == len(damaged)
    run((), epochs=4, search_budget=2, workdir=tmp_path / 'undisturbed')
    assert_same(outcome(workdir), outcome(tmp_path / 'undisturbed'))


class Averages(pl.Callback):
    """Keeps other weights than those that were trained, as weight averaging does; copies a run when it is split."""

    def __init__(self, workdir: Path):
        self.workdir = workdir

    def on_train_start(self, trainer, pl_module):
        if trainer.current_epoch == 1 and not self.workdir.with_name('killed').exists():
            shutil.copytree(self.workdir, self.workdir.with_name('killed'))

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        weights = checkpoint['state_dict']
        checkpoint['state_dict'] = {
            name: value / 2 if value.is_floating_point() else value for name, value in weights.items()
        }


@pytest.mark.slow
def test_the_profile_is_that_of_the_weights_that_are_kept(experiment, evaluator, nasbench201, naslid, tmp_path):
    """So it is the same for a run that was killed after its root was trained, whose profile is damaged."""
    for workdir in (tmp_path / 'undisturbed', tmp_path / 'killed'):
        made = evaluator(2, callbacks=[Averages(workdir)])
        made.train_dataloaders = DataLoader(brightened(made.train_dataloaders.dataset), 40, shuffle=True)
        made.val_dataloaders = DataLoader(brightened(made.val_dataloaders.dataset), 50)
        settings = {'criterion': 'lid', 'monitor': 'val_loss', 'mode': 'min', 'search_budget': 2, 'workdir': workdir}
        experiment(nasbench201(), made, naslid((1,), **settings)).run()
        if workdir.name == 'undisturbed':
            root = read_json(tmp_path / 'killed' / 'node-0.json', ())
            assert root['split']['children'] and root['end_epoch'] == 1
            write_json(tmp_path / 'killed' / 'node-0.json', {**root, 'split': None, 'finished': False})
            (tmp_path / 'killed' / 'node-0.profile.jsonl').write_bytes(pickle.dumps('something else') + b'\n')
    assert_same(outcome(tmp_path / 'killed'), outcome(tmp_path / 'undisturbed'))
    assert sorted(path.name for path in workdir.glob('*.png')) == ['split-0.png', 'tree.png']


def test_run_again_nothing_is_done_again(run, sampled, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    caplog.set_level(logging.INFO)
    said = f'The run in {tmp_path} is finished: nothing to train or search; its results are read.'
    first = run((1,), epochs=2)
    best = list(first.list_models(limit=3))
    assert said not in caplog.text
    sampled.clear()
    again = run((1,), epochs=2)
    assert not sampled
    assert caplog.text.count(said) == 1
    assert [model.sample for model in again.list_models(limit=3)] == [model.sample for model in best]
    assert [model.metric for model in again.list_models(limit=3)] == [model.metric for model in best]
    assert [node.to_dict() for node in again.tree] == [node.to_dict() for node in first.tree]


def test_another_search_of_the_same_tree(run, sampled, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    caplog.set_level(logging.INFO)
    run((1,), epochs=2, search_budget=6)
    sampled.clear()
    strategy = run((1,), epochs=2, search_budget=9, monitor='val_loss', mode='min')
    assert not sampled
    assert 'nothing to train or search' not in caplog.text
    assert len(list(strategy.list_models(limit=None))) == 9


@pytest.mark.slow
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
    let_go = logging.Handler()  # when it waits, however long a busy machine takes to get there
    monkeypatch.setattr(let_go, 'emit', lambda record: 'is locked by' in record.getMessage() and holder.kill())
    logging.getLogger('nni_naslid').addHandler(let_go)
    try:
        run((), epochs=1, search_budget=1)
    finally:
        logging.getLogger('nni_naslid').removeHandler(let_go)
        holder.kill()
    assert holder.wait() == -signal.SIGKILL
    assert 'The task node 0 is locked by another process; waiting for it.' in caplog.text


LOCKS = """
import sys, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print('locked', flush=True)
input()
"""


@pytest.mark.slow
def test_interrupted_and_resumed_by_nni(experiment, evaluator, nasbench201, naslid, sampled, monkeypatch, tmp_path):
    """Ctrl-C, then ``NasExperiment.resume`` with the same id goes on in the same work folder."""
    monkeypatch.chdir(tmp_path)

    first = naslid((1,), workdir=None)
    started = experiment(nasbench201(), evaluator(4, callbacks=[Interrupt(3)]), first)
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


@pytest.mark.slow
def test_sigterm_while_a_run_is_prepared(tmp_path):
    """While data are read, before there is anything to go on from."""
    code = f"""
import os, signal, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]}
from nni_naslid import NASLID
from nni.nas.experiment import NasExperiment
from nni.nas.evaluator.pytorch import DataLoader
from small import Convs, images, make_evaluator

class Ends(type(images())):
    def __getitem__(self, i):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(i)

evaluator = make_evaluator(val=DataLoader(Ends(*images().tensors), 24))
NasExperiment(Convs(), evaluator, NASLID(workdir={str(tmp_path / 'run')!r})).run()
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert 'Terminated by SIGTERM. ' in done.stderr + done.stdout
