"""Runs whose tasks are trials of a real NNI experiment: the same outcome as in one process, whatever is killed."""

import enum
import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from nni_naslid import RandomSplit
from nni_naslid.run.files import write_json
from nni_naslid.run.folder import RunFolder
from nni_naslid.run.identity import digest_of_arguments
from nni_naslid.run.settings import Settings
from nni_naslid.trial import Trial, perform_by_name

import nni
import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import requests
import torch
import yaml
from killed_run import Few, make_run
from nni.nas.evaluator.pytorch import DataLoader, Lightning
from nni.nas.experiment import NasExperimentConfig
from nni.nas.hub.pytorch import NasBench101
from small import Convs, Plain, images, n_edges
from small import make_evaluator as make_small
from test_resume import assert_same, epochs, outcome, repeats
from torch.utils.data import TensorDataset

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': f'{HERE.parent}:{HERE.parent / "examples"}'}
ENVIRONMENT['NNI_CONFIG_DIR'] = tempfile.mkdtemp()  # where `nnictl algo register` keeps names
SPLIT_AT, EPOCHS, BUDGET = 2, 4, 4
FINISHED = 'The run in {} is finished: nothing to train or search; its results are read.'


class Manager:
    """NNI's manager on a port of its own, as the web UI sees it."""

    def __init__(self):
        with socket.socket() as probe:
            probe.bind(('localhost', 0))
            self.port = probe.getsockname()[1]

    def get(self, what: str):
        return requests.get(f'http://localhost:{self.port}/api/v1/nni/{what}', timeout=20).json()

    def trials(self) -> list[dict]:
        """Trials, the oldest first, with their task and what the web UI shows as parameters."""
        # By our numbers: NNI's begin at 1 again when it is resumed at a moment without a running trial.
        trials = sorted(self.get('trial-jobs'), key=lambda t: json.loads(t['hyperParameters'][0])['parameter_id'])
        for trial in trials:
            parameters = json.loads(trial['hyperParameters'][0])['parameters']
            trial.update(task=parameters['task'], shown=parameters['mutation_summary'])
        return trials

    def trial(self, task: str, status: str) -> dict | None:
        return next((t for t in self.trials() if (t['task'], t['status']) == (task, status)), None)

    def alive(self, task: str) -> dict | None:
        """A running trial whose process is there: the manager takes a while to notice that one was killed."""
        trial = self.trial(task, 'RUNNING')
        return trial if trial and processes(f'NNI_TRIAL_JOB_ID={trial["trialJobId"]}') else None


def wait_for(reached, seconds: float = 240):
    """What ``reached`` returns as soon as it is something, and the manager answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(requests.ConnectionError, FileNotFoundError):
            if found := reached():
                return found
        time.sleep(0.05)
    raise AssertionError('It took too long.')


def processes(*words: str) -> list[int]:
    """Ids of the processes in whose command or environment all the words are."""
    found = []
    for path in Path('/proc').glob('[0-9]*'):
        with suppress(OSError):
            text = (path / 'cmdline').read_bytes() + (path / 'environ').read_bytes()
            if all(word.encode() in text for word in words) and int(path.name) != os.getpid():
                found.append(int(path.name))
    return found


def kill(*words: str) -> None:
    found = processes(*words)
    assert found, words
    for process in found:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.fixture
def manager():
    """A manager, none of whose processes is left."""
    manager = Manager()
    yield manager
    with suppress(AssertionError):
        kill('nni_node/main.js', f'--port\0{manager.port}')
    with suppress(AssertionError):
        kill(f'ws://localhost:{manager.port}/')


def nnictl(*arguments: str, check: bool = True) -> str:
    command = [str(Path(sys.executable).with_name('nnictl')), *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def create(manager: Manager, config: Path) -> str:
    """Start the experiment of a YAML; its id."""
    said = nnictl('create', '--config', config, '--port', manager.port)
    return re.search(r'Experiment ID: \S*?(\w{8})\b', said)[1]


def make_yaml(folder: Path, **changes) -> Path:
    """A YAML of a small run, and a work folder beside it."""
    loader = {
        'className': 'nni.nas.evaluator.pytorch.DataLoader',
        'classArgs': {'dataset': {'className': 'killed_run.Few', 'classArgs': {'part': 0, 'n': 200}}},
    }
    train, valid = json.loads(json.dumps([loader, loader]))
    train['classArgs'].update(batch_size=40, shuffle=True, drop_last=True)
    valid['classArgs'].update(batch_size=50)
    valid['classArgs']['dataset']['classArgs'].update(part=1, n=100)
    trainer = {
        'max_epochs': EPOCHS, 'accelerator': 'cpu', 'devices': 1, 'logger': False, 'enable_checkpointing': False,
        'enable_progress_bar': False,
    }  # fmt: skip
    arguments = {
        'workdir': str(folder / 'run'),
        'split_epochs': [SPLIT_AT],
        'criterion': 'random',
        'search_budget': BUDGET,
        'calibration_batches': 2,
        'space': {
            'className': 'nni.nas.hub.pytorch.NasBench201',
            'classArgs': {'stem_out_channels': 4, 'num_modules_per_stack': 1},
        },
        'evaluator': {
            'className': 'nni.nas.evaluator.pytorch.Lightning',
            'classArgs': {
                'lightning_module': {'className': 'recipe.Recipe', 'classArgs': {'lr': 0.05, 'augment': True}},
                'trainer': {'className': 'nni.nas.evaluator.pytorch.Trainer', 'classArgs': trainer},
                'train_dataloaders': train,
                'val_dataloaders': valid,
            },
        },
        **changes,
    }
    config = {
        'experimentWorkingDirectory': str(folder / 'nni'),
        'trialCommand': f'{sys.executable} -m nni_naslid',
        'trialCodeDirectory': str(HERE),
        'trialConcurrency': 2,
        'searchSpace': {},
        'tuner': {
            'className': 'nni_naslid.tuner.NASLIDTuner', 'codeDirectory': str(HERE), 'classArgs': arguments
        },
        'trainingService': {'platform': 'local'},
    }  # fmt: skip
    path = folder / 'naslid.yml'
    path.write_text(yaml.safe_dump(config))
    return path


def in_process(folder: Path) -> dict:
    """The outcome of the run of a YAML without NNI's manager."""
    code = f"""
import sys, yaml
sys.path[:0] = [{str(HERE)!r}]
import pytorch_lightning as pl, torch
from nni_naslid import NASLID
from nni_naslid.run.spec import make
from nni.nas.experiment import NasExperiment
arguments = yaml.safe_load(open({str(folder / 'naslid.yml')!r}))['tuner']['classArgs']
pl.seed_everything(0)
space, evaluator = (make(arguments.pop(key), key) for key in ('space', 'evaluator'))
for key in ('search', 'criterion'):
    if isinstance(arguments.get(key), dict):
        arguments[key] = make(arguments[key], key)
NasExperiment(space, evaluator, NASLID(**{{**arguments, 'workdir': {str(folder / 'alone')!r}}})).run()
"""
    done = subprocess.run([sys.executable, '-c', code], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return outcome(folder / 'alone')


@pytest.mark.slow
def test_nnictl_with_killed_trial_killed_manager_and_stop(tmp_path, manager):
    workdir = tmp_path / 'run'
    search = {'className': 'nni.nas.strategy.Random', 'classArgs': {'seed': 3}}
    criterion = {'className': 'nni_naslid.LID', 'classArgs': {'n_neighbors': 5, 'repeats': 64}}
    config = make_yaml(tmp_path, criterion=criterion, retries=2, search=search)
    experiment = create(manager, config)
    # A trial that is killed before it has asked for its parameters: NNI hands them to the next one, and so on.
    kill(f'NNI_TRIAL_JOB_ID={wait_for(lambda: manager.trial("begin", "RUNNING"))["trialJobId"]}')
    expected = in_process(tmp_path)

    for reached in (lambda: epochs(workdir, 'node-0-to-2'), lambda: len(repeats(workdir)) >= 2):
        trial = wait_for(lambda: reached() and manager.alive('node 0'))  # noqa: B023
        kill(f'NNI_TRIAL_JOB_ID={trial["trialJobId"]}')
    wait_for(lambda: epochs(workdir, 'node-0.1-to-4'))
    kill('nni_node/main.js', experiment)
    nnictl('resume', experiment, '--port', manager.port, '--experiment_dir', tmp_path / 'nni')
    wait_for(lambda: (workdir / 'scores.jsonl').exists())
    nnictl('stop', experiment)
    nnictl('resume', experiment, '--port', manager.port, '--experiment_dir', tmp_path / 'nni')
    wait_for(lambda: manager.get('check-status')['status'] == 'DONE')
    assert_same(outcome(workdir), expected)
    assert sorted(path.name for path in workdir.glob('*.png')) == ['split-0.png', 'tree.png']

    trials = manager.trials()
    tasks = ['node 0', 'node 0.0', 'node 0.1', 'search']
    assert [t['task'] for t in trials if t['status'] == 'SUCCEEDED'] == ['begin', *tasks]
    assert [t['task'] for t in trials if t['status'] != 'SUCCEEDED'] == ['begin', 'node 0', 'node 0']  # the killed ones
    shown = {trial['task']: trial['shown'] for trial in trials}
    root, *children = expected['tree']['nodes']
    label = root['split']['evidence']['label']
    for node in expected['tree']['nodes']:
        row = shown[f'node {node["name"]}']
        assert (row['node'], row['depth'], row['architectures']) == (
            node['name'],
            node['name'].count('.'),
            f'{node["size"]:,}',
        )
    columns = ['task', 'node', 'parent', 'depth', 'epochs', 'architectures']
    assert list(shown['begin']) == list(shown['node 0']) == columns
    assert list(shown['search']) == [*columns, label]
    # As many characters as fit an axis.
    assert [shown[f'node {node["name"]}'][label][:39] for node in children] == [
        '|'.join(node['subspace'][label])[:39] for node in children
    ]
    assert str(tmp_path) not in json.dumps(list(shown.values()))
    found = expected['search']['found']
    curves = manager.get('metric-data')
    ids = {trial['trialJobId']: trial['task'] for trial in trials if trial['status'] == 'SUCCEEDED'}
    tried = {trial['trialJobId']: trial['task'] for trial in trials}
    intermediates = {tried[metric['trialJobId']] for metric in curves if metric['type'] == 'PERIODICAL'}
    assert intermediates >= {'node 0', 'node 0.0', 'node 0.1', 'search'}
    final = {ids[m['trialJobId']]: json.loads(json.loads(m['data'])) for m in curves if m['type'] == 'FINAL'}
    assert {f'node {node["name"]}': node['metric'] for node in expected['tree']['nodes']} == {
        task: metrics['default'] for task, metrics in final.items() if task.startswith('node')
    }
    assert -final['search']['val_loss'] == pytest.approx(found[0]['score'])
    log = (tmp_path / 'nni' / experiment / 'log' / 'dispatcher.log').read_text()
    assert f'the best has val_loss {-found[0]["score"]:.4f}: {found[0]["choices"]}' in log

    export = tmp_path / 'trials.csv'
    nnictl('experiment', 'export', experiment, '--filename', export, '--type', 'csv')
    table = pd.read_csv(export)
    assert set(table['task']) == set(tasks)
    assert {'node', 'parent', 'depth', 'epochs', 'architectures', label, 'default', 'val_loss'} <= set(table.columns)
    nnictl('stop', experiment)
    nnictl('resume', experiment, '--port', manager.port, '--experiment_dir', tmp_path / 'nni')
    wait_for(lambda: manager.get('check-status')['status'] == 'DONE')
    assert len(manager.trials()) == len(trials)  # nothing was left to do
    nnictl('stop', experiment)
    nnictl('view', experiment, '--port', manager.port, '--experiment_dir', tmp_path / 'nni')
    assert wait_for(manager.trials)
    nnictl('stop', experiment)


@pytest.mark.slow
def test_a_new_experiment_on_a_finished_run_trains_and_searches_nothing(tmp_path, manager):
    config = make_yaml(tmp_path, workdir=str(tmp_path / 'alone'))
    expected = in_process(tmp_path)
    experiment = create(manager, config)
    wait_for(lambda: manager.get('check-status')['status'] == 'DONE')
    assert [trial['task'] for trial in manager.trials()] == ['begin', 'search']  # to check, and to report
    log = (tmp_path / 'nni' / experiment / 'log' / 'dispatcher.log').read_text()
    assert FINISHED.format(tmp_path / 'alone') in log
    assert_same(outcome(tmp_path / 'alone'), expected)


@pytest.mark.slow
def test_nnictl_within_constraints(tmp_path, manager):
    """One that is drawn exactly, one that is asked, and bands: all in processes that make the space anew."""
    costs = {'none': 0, 'skip_connect': 0, 'conv_1x1': 2, 'conv_3x3': 3, 'avg_pool_3x3': 1}
    table = {f'cell/{i}_{j}': costs for j in range(1, 4) for i in range(j)}
    constraints = {'macs': [None, 150_000], 'latency': [3, 12, table]}
    criterion = {'className': 'nni_naslid.Bands', 'classArgs': {'score': 'convolutions', 'max_groups': 2}}
    create(manager, make_yaml(tmp_path, criterion=criterion, constraints=constraints))
    expected = in_process(tmp_path)
    wait_for(lambda: manager.get('check-status')['status'] == 'DONE')
    assert_same(outcome(tmp_path / 'run'), expected)
    root, *bands = expected['tree']['nodes']
    assert len(bands) == 2 and sum(band['size'] for band in bands) == root['size'] < 15_625
    latencies = [sum(costs[op] for op in each['choices'].values()) for each in expected['search']['found']]
    assert len(latencies) == BUDGET and 3 <= min(latencies) <= max(latencies) <= 12
    rows = {trial['task']: trial['shown'] for trial in manager.trials()}
    assert rows['node 0']['architectures'] == f'{root["size"]:,}'
    assert re.fullmatch(r'\d+ to \d+', rows['node 0.1']['convolutions'])


@pytest.mark.slow
def test_nnictl_with_a_search_for_cheap_networks(tmp_path, manager):
    costs = ['flops', 'small.n_convs']
    search = {'className': 'nni_naslid.NSGA2', 'classArgs': {'costs': costs, 'population_size': 2}}
    create(manager, make_yaml(tmp_path, search=search))
    expected = in_process(tmp_path)
    wait_for(lambda: manager.get('check-status')['status'] == 'DONE')
    assert_same(outcome(tmp_path / 'run'), expected)
    found = expected['search']['found']
    assert len(found) == BUDGET and [each['rank'] for each in found] == sorted(each['rank'] for each in found)
    assert all(each['small.n_convs'] == [*each['choices'].values()].count('conv_3x3') for each in found)


@pytest.mark.slow
def test_nnictl_where_choices_constrain_each_other(tmp_path, manager):
    """The processes make the constraint of the cell anew, under a limit by a function."""
    arguments = {'stem_out_channels': 4, 'num_stacks': 2, 'num_modules_per_stack': 1, 'max_num_vertices': 5}
    space = {'className': 'nni.nas.hub.pytorch.NasBench101', 'classArgs': arguments}
    create(manager, make_yaml(tmp_path, space=space, constraints={'edges': [None, 5, 'small.n_edges']}))
    expected = in_process(tmp_path)
    wait_for(lambda: manager.get('check-status')['status'] == 'DONE')
    assert_same(outcome(tmp_path / 'run'), expected)
    assert len(expected['tree']['graphs']) == 1 and len(expected['tree']['nodes']) == 3
    choices = [each['choices'] for each in expected['search']['found']]
    assert len(choices) == BUDGET and max(map(n_edges, choices)) <= 5
    assert all('cell/final' not in each and NasBench101(**arguments).contains(dict(each)) for each in choices)


@pytest.mark.slow
def test_what_is_wrong_with_a_yaml_is_told_with_its_key(tmp_path, manager):
    experiment = create(manager, make_yaml(tmp_path, split_epoch=[2]))
    wait_for(lambda: manager.get('check-status')['status'] == 'ERROR')
    log = (tmp_path / 'nni' / experiment / 'log' / 'dispatcher.log').read_text()
    assert "tuner.classArgs has 'split_epoch', but may only have space, evaluator, search, workdir, split_epochs" in log
    assert not manager.trials()
    nnictl('stop', experiment)


@pytest.mark.slow
def test_a_trial_that_fails_is_retried_and_then_stops_the_experiment_with_its_error(tmp_path, manager):
    space = {'className': 'nni.nas.hub.pytorch.NasBench201', 'classArgs': {'channels': 4}}
    config = yaml.safe_load(make_yaml(tmp_path, space=space).read_text())
    nnictl('algo', 'register', '--meta', HERE.parent / 'examples' / 'tuner.yml')
    config['tuner'] = {'name': 'NASLID', 'classArgs': config['tuner']['classArgs']}
    (tmp_path / 'naslid.yml').write_text(yaml.safe_dump(config))
    experiment = create(manager, tmp_path / 'naslid.yml')
    wait_for(lambda: manager.get('check-status')['status'] == 'ERROR')
    log = (tmp_path / 'nni' / experiment / 'log' / 'dispatcher.log').read_text()
    assert 'The trial of begin failed and is tried again: ValueError: space.classArgs' in log
    assert 'The trial of begin failed 2 times. What has finished is kept. Traceback' in log
    assert 'nni.nas.hub.pytorch.NasBench201 raised TypeError: NasBench201.__init__() got an unexpected keyword' in log
    assert [(t['task'], t['status']) for t in manager.trials()] == [('begin', 'FAILED')] * 2
    nnictl('stop', experiment)


SSHD = shutil.which('sshd') or shutil.which('/usr/sbin/sshd')


@pytest.fixture
def sshd(tmp_path):
    """An SSH server for this user on this machine, as a machine of NNI's remote service."""
    folder = tmp_path / 'ssh'
    folder.mkdir(mode=0o700)
    for key in ('host', 'user'):
        subprocess.run(['ssh-keygen', '-q', '-t', 'rsa', '-m', 'PEM', '-N', '', '-f', folder / key], check=True)
    shutil.copy(folder / 'user.pub', folder / 'authorized_keys')
    port = Manager().port
    options = {
        'Port': port, 'ListenAddress': '127.0.0.1', 'HostKey': folder / 'host', 'PidFile': 'none', 'StrictModes': 'no',
        'AuthorizedKeysFile': folder / 'authorized_keys', 'Subsystem': 'sftp internal-sftp', 'UsePAM': 'no',
    }  # fmt: skip
    (folder / 'config').write_text(''.join(f'{name} {value}\n' for name, value in options.items()))
    if os.geteuid() == 0:
        Path('/run/sshd').mkdir(exist_ok=True)  # where a server of root keeps its children
    server = subprocess.Popen([SSHD, '-D', '-f', folder / 'config', '-E', folder / 'log'])
    yield {
        'host': '127.0.0.1', 'port': port, 'user': getpass.getuser(), 'sshKeyFile': str(folder / 'user'),
        'pythonPath': str(Path(sys.executable).parent),
    }  # fmt: skip
    server.kill()
    server.wait()


def start_run(workdir: Path, *arguments: object, cwd: Path = HERE) -> subprocess.Popen:
    command = [sys.executable, str(cwd / 'killed_run.py'), str(workdir), *map(str, arguments)]
    with open(workdir.with_suffix('.log'), 'a') as log:
        return subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdout=log, stderr=log)


@pytest.mark.slow
def test_the_training_service_engine_with_killed_trial_killed_driver_and_resume(tmp_path, manager):
    expected = tmp_path / 'alone'
    assert start_run(expected).wait() == 0, expected.with_suffix('.log').read_text()

    workdir = tmp_path / 'run'
    driver = start_run(workdir, '--port', manager.port)
    trial = wait_for(lambda: len(repeats(workdir)) >= 2 and manager.trial('node 0', 'RUNNING'))
    kill(f'NNI_TRIAL_JOB_ID={trial["trialJobId"]}')
    wait_for(lambda: epochs(workdir, 'node-0.1-to-6'))
    driver.kill()
    driver.wait()
    kill('nni_node/main.js', f'--port\0{manager.port}')
    experiment = re.search(r'Experiment (\w{8})\n', workdir.with_suffix('.log').read_text())[1]
    assert start_run(workdir, '--port', manager.port, '--resume', experiment).wait() == 0, workdir.with_suffix(
        '.log'
    ).read_text()
    assert_same(outcome(workdir), outcome(expected))
    log = workdir.with_suffix('.log').read_text()
    assert log.count('The trial of node 0 failed and is tried again') == 1
    best = [each['choices'] for each in json.loads((expected / 'search.json').read_text())['found'][:3]]
    assert f'Best {best}' in log
    assert FINISHED.format(workdir) not in log
    assert start_run(workdir, '--port', manager.port).wait() == 0  # a new experiment, whose trials are none
    log = workdir.with_suffix('.log').read_text()
    assert FINISHED.format(workdir) in log
    assert f'Best {best}' in log


@pytest.mark.parametrize(
    'max_trial_number, part, match',
    [
        (3, Few, 'max_trial_number must be at least 4 for this tree and search, but is 3'),
        (
            None,
            TensorDataset,
            'The evaluator cannot be sent to trials. Wrap the classes of data sets',
        ),
    ],
)
def test_what_cannot_be_run_as_trials(tmp_path, manager, experiment, max_trial_number, part, match):
    space, evaluator, strategy = make_run(str(tmp_path))
    if part is TensorDataset:
        loader = DataLoader(TensorDataset(*Few(0, 200).tensors), 40)
        evaluator = Lightning(evaluator.module, evaluator.trainer, loader, evaluator.val_dataloaders)
    config = NasExperimentConfig('ts', 'simplified', 'local')
    config.trial_concurrency, config.max_trial_number = 1, max_trial_number
    with pytest.raises(ValueError, match=match):
        experiment(space, evaluator, strategy, config).run(manager.port)
    assert not (tmp_path / 'tree.json').exists()


def test_a_work_folder_that_is_not_there_or_holds_another_run(tmp_path):
    space, evaluator, _ = make_run(str(tmp_path))
    nowhere = tmp_path / 'nowhere'
    with pytest.raises(FileNotFoundError, match=f'{socket.gethostname()} cannot see the work folder {nowhere}'):
        perform_by_name({'task': 'node 0', 'recipe': str(nowhere / 'recipe.json')})

    def trial(run: str) -> Trial:
        return Trial(
            'node 0', space.trace_copy(), nni.dump(evaluator), settings=Settings([1], RandomSplit()), workdir=tmp_path,
            run=run, search=None, mutation_hooks=[], summary={},
        )  # fmt: skip

    with pytest.raises(FileNotFoundError, match='or it holds no run: it must be on storage that has the same path on'):
        trial('a').execute()
    write_json(tmp_path / 'tree.json', {'run': 'b'})
    with pytest.raises(ValueError, match='holds run b, but this trial is of run a'):
        trial('a').execute()
    assert nni.load(nni.dump(trial('b'))).task == 'node 0'


@nni.trace
class InAFile(TensorDataset):
    """Images and labels in a file, of which each machine may have another one."""

    def __init__(self, path: str, noise: bool = False):
        super().__init__(*torch.load(path))
        self.noise = noise

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + (os.urandom(1)[0] / 256 if self.noise else 0), label


@nni.trace
class Traced(Plain):
    """With arguments of which JSON makes others."""

    def __init__(self, lr: float = 0.05, widths=(8, 8)):
        super().__init__(lr)


@pytest.fixture
def as_trial(tmp_path, naslid, experiment, monkeypatch):
    """Run an evaluator in this process; then the task of a node, finished already, can be a trial with another one."""

    def start(evaluator):
        pl.seed_everything(0, verbose=False)
        space, workdir = Convs(), tmp_path / 'run'
        strategy = naslid((), monitor='val_loss', mode='min', search_budget=1, workdir=workdir)
        sent = space.trace_copy()
        experiment(space, evaluator, strategy).run()
        write_json(RunFolder(workdir).trials('E'), {'T': [1, 'node 0']})
        monkeypatch.setattr('nni.get_experiment_id', lambda: 'E')
        monkeypatch.setattr('nni.get_trial_id', lambda: 'T')
        run = json.loads((workdir / 'tree.json').read_text())['run']

        def execute(evaluator):
            monkeypatch.setattr('nni.trial._params', {})
            trial = Trial(
                'node 0', sent, nni.dump(evaluator), settings=strategy.settings, workdir=workdir, run=run, search=None,
                mutation_hooks=[], summary={},
            )  # fmt: skip
            nni.load(nni.dump(trial)).execute()  # as it comes to another machine: tuples are lists

        return execute

    return start


def in_a_file(path: Path, batch_size: int = 24, noise: bool = False, **trainer) -> Lightning:
    train, val = (DataLoader(InAFile(str(path), noise), size, shuffle=True) for size in (batch_size, 24))
    return make_small(Traced(widths=(4, 4)), train, val, epochs=1, **trainer)


class Level(enum.IntEnum):
    LOW = 1


class Kind(str, enum.Enum):
    PLAIN = 'plain'


@nni.trace
class Takes:
    def __init__(self, argument):
        self.argument = argument


@pytest.mark.parametrize(
    'argument',
    [
        (1, 2), {1: 'a', None: 'b'}, np.float32(0.5), np.array(3), np.arange(3), Level.LOW, Kind.PLAIN,
        pd.DataFrame({'a': [1, 2]}), pd.Series([0.5, 1.5]), {'one': [Level.LOW, (np.int64(2),)]},
    ],
    ids=repr,
)  # fmt: skip
def test_arguments_are_the_same_after_nni_has_sent_them(argument):
    made = Takes(argument)
    assert digest_of_arguments(nni.load(nni.dump(made))) == digest_of_arguments(made)
    assert digest_of_arguments(made) != digest_of_arguments(Takes('another'))


def test_a_trial_that_has_other_things_than_its_run_is_refused(tmp_path, as_trial, monkeypatch):
    path = tmp_path / 'images.pt'
    torch.save(images().tensors, path)
    execute = as_trial(in_a_file(path))
    execute(in_a_file(path))
    here = f'but this trial on {socket.gethostname()} has'
    for other, match in (
        ({'batch_size': 12}, rf'training batches=4, {here} training batches=8'),
        ({'devices': 2}, rf'devices=1, {here} devices=2\. Code, data and devices must be the same for all trials\.'),
    ):
        with pytest.raises(ValueError, match=rf'^{tmp_path / "run"} holds a run with {match}'):
            execute(in_a_file(path, **other))
    torch.save(images(seed=5).tensors, path)
    with pytest.raises(ValueError, match=rf"first training batches='\w+', {here} first training batches='\w+'\."):
        execute(in_a_file(path))
    torch.save(images().tensors, path)
    execute(in_a_file(path))
    code = in_a_file(path).module.trace_symbol
    monkeypatch.setattr(code.__init__, '__defaults__', (0.01, (8, 8)))
    with pytest.raises(ValueError, match=f'arguments of the module=.*{here} arguments of the module='):
        execute(in_a_file(path))


def test_a_trial_whose_data_are_never_the_same(tmp_path, as_trial):
    """They cannot be compared, but how many there are can."""
    path = tmp_path / 'images.pt'
    torch.save(images().tensors, path)
    execute = as_trial(in_a_file(path, noise=True))
    execute(in_a_file(path, noise=True))
    torch.save(images(48).tensors, path)
    with pytest.raises(ValueError, match=r'training batches=4, but this trial .* training batches=2'):
        execute(in_a_file(path, noise=True))


@pytest.fixture
def code(tmp_path):
    """A folder with all the modules of a run, for NNI to copy."""
    (tmp_path / 'code').mkdir()
    for module in (HERE / 'killed_run.py', HERE.parent / 'examples' / 'recipe.py'):
        shutil.copy(module, tmp_path / 'code')
    return tmp_path / 'code'


@pytest.mark.slow
@pytest.mark.skipif(SSHD is None, reason='no sshd on this machine')
def test_nnictl_over_ssh(tmp_path, manager, sshd, code):
    """The remote service copies the code, and trials find each other's results in the work folder."""
    config = yaml.safe_load(make_yaml(tmp_path).read_text())
    config['trialCodeDirectory'] = str(code)
    config['trialCommand'] = f'OMP_NUM_THREADS=1 {config["trialCommand"]}'
    config['trainingService'] = {'platform': 'remote', 'machineList': [sshd]}
    (tmp_path / 'naslid.yml').write_text(yaml.safe_dump(config))
    experiment = create(manager, tmp_path / 'naslid.yml')
    expected = in_process(tmp_path)
    wait_for(lambda: manager.get('check-status')['status'] == 'DONE')
    assert_same(outcome(tmp_path / 'run'), expected)
    nnictl('stop', experiment)


@pytest.mark.slow
@pytest.mark.skipif(SSHD is None, reason='no sshd on this machine')
def test_the_training_service_engine_over_ssh(tmp_path, manager, sshd, code):
    expected, workdir = tmp_path / 'alone', tmp_path / 'run'
    assert start_run(expected).wait() == 0, expected.with_suffix('.log').read_text()
    machine = {re.sub('[A-Z]', lambda c: f'_{c[0].lower()}', name): value for name, value in sshd.items()}
    driver = start_run(workdir, '--port', manager.port, '--machine', json.dumps(machine), cwd=code)
    assert driver.wait() == 0, workdir.with_suffix('.log').read_text()
    assert_same(outcome(workdir), outcome(expected))
