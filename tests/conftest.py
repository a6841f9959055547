"""A small, quick NNI project: digits, a narrow NAS-Bench-201, and the recipe of the examples."""

import logging
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # before NumPy: tests run in as many processes as there are cores

from nni_naslid import LID, NASLID, RandomSplit
from nni_naslid.train.path import SubSupernetModule

import nni
import pytest
import pytorch_lightning as pl
import torch
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import NasBench201, ProxylessNAS
from nni.tools.nnictl.config_utils import Experiments
from numpy.random import RandomState

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples'))

import finished_project
from finished_project import QUIET
from recipe import Data, make_evaluator
from small import Convs
from small import make_evaluator as make_small


@pytest.fixture(autouse=True)
def _one_seed_and_thread(monkeypatch):
    monkeypatch.setattr(nni.trial, '_params', None)  # no trial is left of an earlier test
    logging.getLogger('pytorch_lightning').setLevel(logging.ERROR)
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)


@pytest.fixture(autouse=True)
def _own_levels():
    """Examples that are run inside a test set what is logged for good."""
    loggers = [logging.getLogger(name) for name in ('nni', 'nni.experiment', 'nni.nas.experiment', 'nni_naslid')]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True, scope='module')
def _own_list_of_experiments(tmp_path_factory):
    """NNI writes its list of all experiments anew with each: of hundreds that takes a second. Yours stays as it is."""
    before = Experiments.__init__.__defaults__
    Experiments.__init__.__defaults__ = (str(tmp_path_factory.mktemp('experiments')),)
    yield
    Experiments.__init__.__defaults__ = before


@pytest.fixture(scope='session')
def digits() -> Data:
    """200 training and 100 validation digits."""
    return finished_project.some_digits()


@pytest.fixture
def evaluator(digits):
    """Make an evaluator of some epochs; five training batches of 40."""

    def make(epochs: int = 4, **kwargs):
        return make_evaluator(digits, epochs=epochs, batch_size=40, **{**QUIET, **kwargs})

    return make


@pytest.fixture
def nasbench201():
    """Make a NAS-Bench-201 of 4 channels and one cell per stage, with the same weights each time."""

    def make() -> NasBench201:
        pl.seed_everything(0, verbose=False)
        return NasBench201(4, 1, 10)

    return make


@pytest.fixture
def proxyless():
    """Make a ProxylessNAS of width 8."""

    def make() -> ProxylessNAS:
        pl.seed_everything(0, verbose=False)
        return ProxylessNAS(10, base_widths=(8,) * 9)

    return make


@pytest.fixture
def naslid(tmp_path):
    """Make a strategy that takes seconds. It splits at random, so surely, where a test is not about the criterion."""

    def make(split_epochs=(1, 2), **kwargs) -> NASLID:
        settings = {
            'criterion': 'random', 'search_budget': 12, 'calibration_batches': 2, 'monitor': 'val_acc', 'mode': 'max',
            'workdir': tmp_path,
        }  # fmt: skip
        if kwargs.get('criterion') == 'lid':
            settings |= {'repeats': 8, 'n_neighbors': 5}
        return NASLID(split_epochs, **{**settings, **kwargs})

    return make


@pytest.fixture
def experiment():
    """Make experiments, which are stopped after the test; left alone they would stop, and log, at exit."""
    made = []

    def make(*args) -> NasExperiment:
        made.append(NasExperiment(*args))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture
def run(experiment, evaluator, nasbench201, naslid):
    """Run an experiment and return its strategy."""

    def start(split_epochs=(1, 2), space=None, epochs: int = 4, **kwargs) -> NASLID:
        strategy = naslid(split_epochs, **kwargs)
        strategy.experiment = experiment(space or nasbench201(), evaluator(epochs), strategy)
        strategy.experiment.run()
        if isinstance(strategy.settings.criterion, RandomSplit):
            assert len(strategy.leaves) == 2 ** len(strategy.settings.split_epochs)
        return strategy

    return start


@pytest.fixture
def small(experiment, tmp_path):
    """Run an evaluator of ``small.py`` on a space: one split by LID, and a search of two."""

    def start(made=None, space=None, split_epochs=(1,), **kwargs) -> NASLID:
        settings = {'criterion': 'lid', 'search_budget': 2, 'calibration_batches': 2, 'workdir': tmp_path}
        if kwargs.get('criterion', 'lid') == 'lid':
            settings |= {'repeats': 8, 'n_neighbors': 5}
        made = make_small() if made is None else made
        pl.seed_everything(0, verbose=False)
        strategy = NASLID(split_epochs, **{**settings, **kwargs})
        strategy.experiment = experiment(Convs() if space is None else space(), made, strategy)
        strategy.experiment.run()
        return strategy

    return start


@pytest.fixture(scope='session')
def finished_run(tmp_path_factory) -> Path:
    """The work folder of a finished run: NAS-Bench-201 split by LID, about 30 networks scored. Only to be read."""
    workdir = tmp_path_factory.mktemp('finished') / 'run'
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    strategy = NASLID(
        [1],
        criterion=LID(n_neighbors=5, repeats=32, min_contrast=0),
        search_budget=12,
        calibration_batches=2,
        workdir=workdir,
    )
    run = NasExperiment(finished_project.space(), finished_project.evaluator(), strategy)
    run.run()
    strategy.evaluate([strategy.tree.subspace.sample(RandomState(i)) for i in range(20)])
    run.stop()
    assert len(strategy.leaves) == 2
    return workdir


@pytest.fixture
def unfinished_run(finished_run, tmp_path) -> Path:
    """The same run as if it were still going on: one child has done two of three epochs."""
    workdir = tmp_path / 'unfinished'
    shutil.copytree(finished_run, workdir)
    for name in ('node-0.1.json', 'node-0.1.ckpt', 'search.json', 'scores.jsonl'):
        (workdir / name).unlink()
    (workdir / f'node-0.1-to-3.at-2.{16 * "0"}.ckpt').touch()
    return workdir


@pytest.fixture
def sampled(monkeypatch):
    """Record what is trained: (leaf's sub-space, epoch, sample) of every path of a training step."""
    steps = []
    paths = SubSupernetModule.paths

    def record(self, batch_idx, validating=False):
        samples = paths(self, batch_idx, validating)
        if not validating:
            steps.extend((self.subspace, self.current_epoch, sample) for sample in samples)
        return samples

    monkeypatch.setattr(SubSupernetModule, 'paths', record)
    return steps
