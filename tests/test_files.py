"""A work folder that others may write to, that is full, or that can only be read."""

import ctypes
import json
import logging
import pickle
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

from nni_naslid.run.files import append_line, locked, read_json, read_lines, sha256_of, write_json
from nni_naslid.run.folder import RunFolder
from nni_naslid.run.run import Run
from nni_naslid.tasks import perform
from nni_naslid.trial import perform_by_name

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.strategy import RandomOneShot
from test_resume import assert_same, outcome


class Opens:
    """An object that makes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), 'w')


def craft(path: Path, marker: Path) -> None:
    """Put a checkpoint there that has all ours have, and such an object."""
    content = torch.load(path, weights_only=True)
    torch.save({**content, 'more': Opens(marker)}, path)


def forge(path: Path, **changes) -> None:
    """Change what one of our files says, as somebody who knows how it is made."""
    write_json(path, {**read_json(path, ()), **changes})


def unfinish(workdir: Path, *more: str) -> None:
    """As if the run had been killed before these files, and what the search leaves, were there."""
    for pattern in (*more, 'search.json', 'scores.jsonl'):
        for path in workdir.glob(pattern):
            path.unlink()


@pytest.mark.parametrize('part', ['init', 'parent', 'leaf', 'epoch'])
def test_a_crafted_checkpoint_runs_nothing(run, tmp_path, part):
    run((1,), epochs=3, search_budget=2)
    marker = tmp_path / 'marker'
    if part == 'init':
        unfinish(tmp_path, 'node-*')
        craft(tmp_path / 'init.ckpt', marker)
        forge(tmp_path / 'tree.json', init=sha256_of(tmp_path / 'init.ckpt'))
    elif part == 'epoch':
        unfinish(tmp_path, 'node-0.1*')
        path = tmp_path / 'node-0.1-to-3.ckpt'
        shutil.copy(tmp_path / 'node-0.0.ckpt', path)
        craft(path, marker)
        path.rename(path.with_suffix(f'.at-2.{sha256_of(path)[:16]}.ckpt'))
    else:
        name = {'parent': 'node-0', 'leaf': 'node-0.1'}[part]
        unfinish(tmp_path, *(['node-0.*.*'] if part == 'parent' else []))
        craft(tmp_path / f'{name}.ckpt', marker)
        forge(tmp_path / f'{name}.json', checkpoint_sha256=sha256_of(tmp_path / f'{name}.ckpt'))
    with pytest.raises(ValueError, match=r'object of _?io\.open, which could run code\. .*trust_checkpoints=True'):
        strategy = run((1,), epochs=3, search_budget=2)
        strategy.load(strategy.leaves[1])
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['tree.json', 'node-0.json', 'scores.jsonl', 'search.json'])
def test_other_files_are_not_unpickled(run, tmp_path, name):
    run((), epochs=1, search_budget=2)
    marker = tmp_path / 'marker'
    (tmp_path / name).write_bytes(pickle.dumps(Opens(marker)))
    if name == 'scores.jsonl':
        run((), epochs=1, search_budget=3)
    else:
        with pytest.raises(ValueError, match=f'{name} is damaged'):
            run((), epochs=1, search_budget=2)
    assert not marker.exists()


def test_a_recipe_that_somebody_has_changed(tmp_path, monkeypatch):
    recipe = tmp_path / f'recipe-{"0" * 32}.json'
    marker = tmp_path / 'marker'
    makes = {'className': 'builtins.open', 'classArgs': {'file': str(marker), 'mode': 'w'}}
    write_json(recipe, {'settings': {}, 'space': makes, 'evaluator': makes, 'search': None})
    write_json(tmp_path / 'trials-E.json', {'T': [1, 'begin']})
    monkeypatch.setattr('nni.get_experiment_id', lambda: 'E')
    monkeypatch.setattr('nni.get_trial_id', lambda: 'T')
    monkeypatch.setattr('nni.trial._params', {})
    with pytest.raises(ValueError, match='its name does not fit its content'):
        perform_by_name({'task': 'begin', 'recipe': str(recipe)})
    assert not marker.exists()
    write_json(tmp_path / 'trials-E.json', {'T': [1, 'node ../../0']})
    with pytest.raises(ValueError, match=r"trials-E\.json says that trial T is to do 'node \.\./\.\./0'"):
        perform_by_name({'task': 'begin', 'recipe': str(recipe)})


class Counter:
    """What a user may keep in a callback."""

    def __init__(self):
        self.n = 0


class Counts(pl.Callback):
    def __init__(self):
        self.counter = Counter()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.counter.n += 1

    def state_dict(self):
        return {'counter': self.counter}

    def load_state_dict(self, state_dict):
        self.counter = state_dict['counter']


def test_objects_in_the_state_of_a_callback(experiment, evaluator, nasbench201, naslid, sampled, tmp_path):
    with pytest.raises(TypeError, match=r'an object of test_files\.Counter .*, or say trust_checkpoints=True'):
        experiment(nasbench201(), evaluator(3, callbacks=[Counts()]), naslid((1,), search_budget=2)).run()
    assert not sampled
    trusting = naslid((1,), search_budget=2, trust_checkpoints=True)
    experiment(nasbench201(), evaluator(3, callbacks=[Counts()]), trusting).run()
    kept = torch.load(trusting.leaves[1].checkpoint, weights_only=False)
    assert [state['counter'].n for state in kept['callbacks'].values() if 'counter' in state] == [15]
    trusting.load(trusting.leaves[0])
    with pytest.raises(ValueError, match='trust_checkpoints must be True or False, but got 1'):
        naslid(trust_checkpoints=1)


@pytest.mark.parametrize('name', ['node-0.lock', 'scores.jsonl', 'search.lock'])
def test_a_symbolic_link_is_refused(run, tmp_path, name):
    workdir = tmp_path / 'run'
    workdir.mkdir()
    (tmp_path / 'precious').write_text('precious')
    (workdir / name).symlink_to(tmp_path / 'precious')
    with pytest.raises(OSError, match=rf'{name} is a symbolic link, which is not followed\. Delete it'):
        run((), epochs=1, search_budget=2, workdir=workdir)
    assert (tmp_path / 'precious').read_text() == 'precious'


def test_a_symbolic_link_where_a_picture_or_result_goes_is_replaced(run, tmp_path):
    workdir = tmp_path / 'run'
    workdir.mkdir()
    (tmp_path / 'precious').write_text('precious')
    names = ['tree.png', 'init.ckpt', 'node-0.ckpt']
    for name in names:
        (workdir / name).symlink_to(tmp_path / 'precious')
    run((), epochs=1, search_budget=2, workdir=workdir)
    assert (tmp_path / 'precious').read_text() == 'precious'
    assert not any((workdir / name).is_symlink() for name in names)


@contextmanager
def no_file_larger_than(size: int):
    """As on a full disk, or with a quota: what is written beyond is cut off."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_in_training(run, tmp_path):
    with (
        no_file_larger_than(300_000),  # more than the initial weights, less than weights and momentum
        pytest.raises(OSError, match=r'node-0-to-1\.at-1\.ckpt cannot be written .*Is the disk full, a quota reached'),
    ):
        run((), epochs=1, search_budget=2, workdir=tmp_path / 'run')
    assert not list((tmp_path / 'run').glob('*.tmp'))
    run((), epochs=1, search_budget=2, workdir=tmp_path / 'run')
    run((), epochs=1, search_budget=2, workdir=tmp_path / 'undisturbed')
    assert_same(outcome(tmp_path / 'run'), outcome(tmp_path / 'undisturbed'))


def test_a_full_disk_when_a_line_is_added(tmp_path):
    path = tmp_path / 'scores.jsonl'
    append_line(path, {'n': 1})
    before = path.read_bytes()
    with (
        no_file_larger_than(len(before) + 20),
        pytest.raises(OSError, match=r'scores\.jsonl cannot be written'),
    ):
        append_line(path, {'n': 2})
    assert path.read_bytes() == before
    append_line(path, {'n': 2})
    assert read_lines(path, ('n',)) == [{'n': 1}, {'n': 2}]


@contextmanager
def read_only(folder: Path):
    """Take away the right to write to a folder, from root too."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capget(header, data)
    before = data[0]
    paths = [folder, *folder.iterdir()]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    data[0] = before & ~2  # CAP_DAC_OVERRIDE
    ctypes.CDLL(None).capset(header, data)
    try:
        yield
    finally:
        data[0] = before
        ctypes.CDLL(None).capset(header, data)
        folder.chmod(0o755)


def test_a_finished_run_that_can_only_be_read(run, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    workdir = tmp_path / 'run'
    first = run((1,), epochs=2, search_budget=4, workdir=workdir)
    found = [(model.sample, model.metric) for model in first.list_models(limit=4)]
    before = {path.name: path.stat().st_mtime_ns for path in workdir.iterdir()}
    with read_only(workdir):
        again = run((1,), epochs=2, search_budget=4, workdir=workdir)
        assert [(model.sample, model.metric) for model in again.list_models(limit=4)] == found
        again.load(again.leaves[0])
        known = [sample for sample, _ in found]
        new = next(model.sample for model in again.list_models(sort=False, limit=8) if model.sample not in known)
        assert set(again.evaluate([new])[0]) >= {'val_acc', 'val_loss'}
    assert caplog.text.count('New scores are not kept') == 1
    assert {path.name: path.stat().st_mtime_ns for path in workdir.iterdir()} == before  # pictures neither


def test_an_unfinished_run_that_can_only_be_read(run, tmp_path):
    workdir = tmp_path / 'run'
    run((1,), epochs=2, search_budget=4, workdir=workdir)
    unfinish(workdir, 'node-0.1.*')
    with read_only(workdir), pytest.raises(OSError, match=r'cannot be written \(Permission denied\)'):
        run((1,), epochs=2, search_budget=4, workdir=workdir)


def test_a_task_reads_the_results_above_its_node_only(run, evaluator, nasbench201, tmp_path):
    strategy = run((1,), epochs=2, search_budget=2)
    expected = outcome(tmp_path)['weights']
    unfinish(tmp_path, 'node-0.1.*')
    (tmp_path / 'node-0.0.json').write_text('damaged')
    supernet = RandomOneShot().mutate_model(nasbench201())
    run_id = json.loads((tmp_path / 'tree.json').read_text())['run']
    perform(Run(strategy.settings, RunFolder(tmp_path), run_id, supernet, evaluator(2)), 'node 0.1')
    found = torch.load(tmp_path / 'node-0.1.ckpt', weights_only=True)['state_dict']
    assert all(torch.equal(found[name], value) for name, value in expected['0.1'].items())


def test_half_a_line_is_not_glued_to_the_next(tmp_path):
    path = tmp_path / 'lines.jsonl'
    for n in (1, 2):
        append_line(path, {'n': n})
    path.write_bytes(path.read_bytes()[:-20])
    append_line(path, {'n': 3})
    assert read_lines(path, ('n',)) == [{'n': 1}, {'n': 3}]


def test_a_lock_does_not_empty_the_file(tmp_path):
    (tmp_path / 'lock').write_text('text')
    with locked(tmp_path / 'lock', 'test'):
        pass
    assert (tmp_path / 'lock').read_text() == 'text'
