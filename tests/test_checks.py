"""Everything that is wrong is said before training starts, with the bad value."""

import json
import logging
from dataclasses import dataclass
from typing import Any

from nni_naslid import LID, NASLID, Bands, Fixed, Gradient, Joint, RandomSplit
from nni_naslid.criteria.named import described
from nni_naslid.run.spec import spec_of

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.experiment import NasExperimentConfig
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.strategy import Random, RandomOneShot
from torch import nn


class NothingToChoose(ModelSpace):
    def __init__(self):
        super().__init__()
        self.op = LayerChoice([nn.Flatten()], label='op')

    def forward(self, x):
        return self.op(x)


class NoTraining(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        raise AssertionError('training has started')


@pytest.fixture
def start(experiment, evaluator, nasbench201, naslid):
    """Start an experiment that must not come to training; ``change`` spoils the evaluator."""

    def begin(split_epochs=(1,), *, space=None, change=lambda made: made, config=None, **kwargs):
        made = change(evaluator(2, callbacks=[NoTraining()]))
        experiment(space or nasbench201(), made, naslid(split_epochs, **kwargs), config).run()

    return begin


@pytest.mark.parametrize(
    'kwargs, error, match',
    [
        ({'split_epochs': 16}, ValueError, 'split_epochs must be a list, but got 16'),
        ({'layers': 'cells.*'}, ValueError, r"layers must be a list, but got 'cells\.\*'"),
        ({'split_epochs': [5, 5]}, ValueError, r'positive, increasing integers, but got \[5, 5\]'),
        ({'split_epochs': [0, 5]}, ValueError, r'but got \[0, 5\]'),
        ({'split_epochs': [1.5]}, ValueError, r'but got \[1.5\]'),
        ({'criterion': 'lids'}, ValueError, r"one of lid, .*, joint, bands, random, or .* LID\(\), but got 'lids'"),
        ({'mode': 'best'}, ValueError, "mode must be 'max' or 'min', but got 'best'"),
        ({'search': 'evolution'}, TypeError, "multi-trial strategy of NNI, but got 'evolution'"),
        ({'search': RandomOneShot()}, TypeError, 'multi-trial strategy of NNI, but got RandomOneShot'),
        ({'n_neighbors': 2}, ValueError, 'n_neighbors must be an integer of at least 3, but got 2'),
        ({'repeats': 7}, ValueError, 'repeats must be an integer of at least 8, but got 7'),
        (
            {'estimator': 'mean'},
            ValueError,
            "estimator must be one of mle, two_nn, effective_rank, but got 'mean'",
        ),
        (
            {'similarity': 'per_filter'},
            ValueError,
            "similarity must be one of log_euclidean, euclidean, pearson, cosine, but got 'per_filter'",
        ),
        (
            {'partition': ['spectral']},
            ValueError,
            r"partition must be one of enumeration, spectral, stoer_wagner, gaussian_mixture, but got \['spectral'\]",
        ),
        (
            {'criterion': 'gradient', 'partition': 'gaussian_mixture'},
            ValueError,
            "partition must be one of enumeration, spectral, stoer_wagner, but got 'gaussian_mixture'",
        ),
        ({'criterion': 'gradient', 'similarity': 'pearson'}, ValueError, "cosine, per_filter, l2, but got 'pearson'"),
        ({'max_groups': 1}, ValueError, 'max_groups must be an integer of at least 2, but got 1'),
        ({'max_groups': [4, 1]}, ValueError, 'max_groups must be an integer of at least 2, but got 1'),
        ({'max_groups': []}, ValueError, r'max_groups must be an integer of at least 2, but got \[\]'),
        (
            {'split_epochs': [1, 2], 'max_groups': [4, 3, 2]},
            ValueError,
            r'max_groups must have at most 2 numbers, as split_epochs, but got \[4, 3, 2\]',
        ),
        ({'search_budget': 0}, ValueError, 'search_budget must be an integer of at least 1, but got 0'),
        (
            {'calibration_batches': -1},
            ValueError,
            'calibration_batches must be an integer of at least 0 or None, but got -1',
        ),
        ({'retries': -1}, ValueError, 'retries must be an integer of at least 0, but got -1'),
        ({'seed': -1}, ValueError, 'seed must be an integer of at least 0, but got -1'),
        ({'seed': 2**32}, ValueError, 'seed must be an integer of at most 4294967295, but got 4294967296'),
        ({'seed': True}, ValueError, 'seed must be an integer of at least 0, but got True'),
        ({'split_epochs': None}, ValueError, 'split_epochs must be a list, but got None'),
        ({'split_epochs': np.int64(16)}, ValueError, 'split_epochs must be a list, but got .*16'),
        ({'split_epochs': {4: 8}}, ValueError, r'split_epochs must be a list, but got \{4: 8\}'),
        ({'split_epochs': ['16']}, ValueError, r"positive, increasing integers, but got \['16'\]"),
        ({'split_epochs': [True]}, ValueError, r'positive, increasing integers, but got \[True\]'),
        ({'split_epochs': np.array([8.0, 16.0])}, ValueError, r'integers, but got \[8\.0, 16\.0\]'),
        ({'keep_epochs': 5}, ValueError, 'keep_epochs must be a list, but got 5'),
        ({'keep_epochs': [3, 2]}, ValueError, r'keep_epochs must be positive, increasing integers, but got \[3, 2\]'),
        ({'keep_epochs': [0]}, ValueError, r'keep_epochs must be positive, increasing integers, but got \[0\]'),
        ({'layers': 5}, ValueError, 'layers must be a list, but got 5'),
        ({'layers': []}, ValueError, r'layers must be names of modules .* at least one, .* but got \[\]'),
        ({'layers': [5]}, ValueError, r'layers must be names of modules .* but got \[5\]'),
        ({'layers': ['stem', '']}, ValueError, r"layers must be names of modules .* but got \['stem', ''\]"),
        ({'monitor': ['val_loss']}, ValueError, r"monitor must be the name of one metric.* but got \['val_loss'\]"),
        ({'monitor': None}, ValueError, 'monitor must be the name of one metric.* but got None'),
        ({'criterion': ['lid']}, ValueError, r"an object such as LID\(\), but got \['lid'\]"),
        ({'n_neighbors': '20'}, ValueError, "n_neighbors must be an integer of at least 3, but got '20'"),
        ({'n_neighbors': None}, ValueError, 'n_neighbors must be an integer of at least 3, but got None'),
        ({'n_neighbors': 20.5}, ValueError, 'n_neighbors must be an integer of at least 3, but got 20.5'),
        ({'n_neighbors': torch.tensor([[5], [6]])}, ValueError, r'n_neighbors must be .* but got tensor\(\[\[5\], \[6'),
        ({'workdir': 5}, TypeError, 'workdir must be the path of a folder, but got 5'),
        ({'workdir': b'runs'}, TypeError, "workdir must be the path of a folder, but got b'runs'"),
        ({'workdir': ''}, TypeError, "workdir must be the path of a folder, but got ''"),
        ({'workdir': '~no_such_user/run'}, ValueError, 'workdir: ~no_such_user/run has no home'),
        ({'mutation_hooks': 'x'}, TypeError, "mutation_hooks must be a list of functions, but got 'x'"),
        ({'mutation_hooks': print}, TypeError, 'mutation_hooks must be a list of functions, but got <built-in'),
        ({'mutation_hooks': [print, 5]}, TypeError, 'mutation_hooks must be a list of functions, but got '),
    ],
)
def test_settings(kwargs, error, match):
    with pytest.raises(error, match=match) as caught:
        NASLID(**{'criterion': 'lid', **kwargs})
    assert len(str(caught.value).splitlines()) == 1


def test_settings_of_numpy_and_the_home(monkeypatch, tmp_path):
    """They are those of Python, so that they can be kept in JSON."""
    monkeypatch.setenv('HOME', str(tmp_path))
    whole = {'criterion': 'lid', 'n_neighbors': 5, 'repeats': 8, 'max_groups': 3, 'search_budget': 7, 'seed': 2**32 - 1}
    plain = NASLID([8, 16], layers=['stem'], **whole).settings
    strategy = NASLID(
        np.array([8, 16]), layers=np.array(['stem']),
        **{name: value if name == 'criterion' else np.uint32(value) for name, value in whole.items()},
        workdir='~/run', mutation_hooks=(),
    )  # fmt: skip
    assert strategy.settings == plain
    assert json.loads(json.dumps(strategy.settings.to_dict())) == plain.to_dict()
    assert strategy.workdir == tmp_path / 'run'
    assert NASLID(range(8, 17, 8)).settings.split_epochs == NASLID(np.arange(8, 17, 8)).settings.split_epochs == [8, 16]


@dataclass(frozen=True)
class Half:
    """A criterion that is not finished."""

    max_groups: int = 2

    def choose(self, context):
        raise NotImplementedError


@dataclass(frozen=True)
class Function(RandomSplit):
    """A criterion with a setting that cannot be kept."""

    function: Any = print


@pytest.mark.parametrize(
    'criterion, text',
    [
        (LID(), 'LID'),
        (LID(repeats=8), 'LID(repeats=8)'),
        (Bands({'lid': 0.5, 'live_parameters': 1}), "Bands(score={'lid': 0.5, 'live_parameters': 1.0})"),
        (Joint(LID(min_contrast=0), max_groups=[2, 4]), 'Joint(by=LID(min_contrast=0.0), max_groups=[2, 4])'),
        (Fixed({'stem': [[0], [1, 2]]}), "Fixed(groups={'stem': [[0], [1, 2]]})"),
        (Half(), 'test_checks.Half(max_groups=2)'),  # of a user
    ],
)
def test_a_criterion_is_told_by_what_it_was_made_with(criterion, text):
    kept = json.loads(json.dumps(spec_of(criterion)))  # as in a work folder
    assert described(kept['className'], kept['classArgs']) == text


def test_a_criterion_has_its_own_settings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    lid = LID(n_neighbors=5, layers=['stem'])
    assert NASLID([1], criterion='lid', n_neighbors=5, layers=['stem']).settings == NASLID([1], criterion=lid).settings
    ranks = LID(estimator='effective_rank', similarity='pearson', partition='spectral')
    named = NASLID([1], criterion='lid', estimator='effective_rank', similarity='pearson', partition='spectral')
    assert named.settings == NASLID([1], criterion=ranks).settings
    assert NASLID([1], criterion='gradient', similarity='l2', partition='spectral').settings.criterion == Gradient(
        'l2', partition='spectral'
    )
    with caplog.at_level(logging.INFO):
        assert NASLID([1], criterion='random', n_neighbors=5).settings.criterion == RandomSplit()
    assert "criterion='random' does not use n_neighbors." in caplog.text
    for kwargs, error, match in (
        ({'criterion': lid, 'repeats': 8}, TypeError, r'repeats must be set in the criterion, LID\(repeats=\.\.\.\)'),
        ({'criterion': RandomSplit(), 'repeats': 8}, TypeError, 'repeats is no setting of the criterion, RandomSplit'),
        ({'neighbors': 5}, TypeError, "NASLID has no argument 'neighbors'"),
        ({'n_neighbors': 5}, TypeError, "n_neighbors is no setting of the default .*'bands'; say criterion='lid'."),
        ({'repeats': 8}, TypeError, "'bands'; say criterion='lid' or criterion='gradient' or criterion='zero_cost'."),
        ({'criterion': LID}, ValueError, r"an object such as LID\(\), but got <class 'nni_naslid.*; is LID\(\) meant"),
        (
            {'criterion': Half()},
            ValueError,
            'Half has no can_split, check, cost, read_evidence, uses_metric',
        ),
        ({'criterion': Function()}, ValueError, 'settings of Function.* must be plain values'),
    ):
        with pytest.raises(error, match=match):
            NASLID([1], **kwargs)


def test_split_beyond_the_end(start):
    with pytest.raises(ValueError, match=r"below the evaluator's max_epochs=2, but got \[1, 2\]"):
        start((1, 2))


def test_space_with_nothing_to_split(start):
    with pytest.raises(ValueError, match='NothingToChoose has nothing to split'):
        start(space=NothingToChoose())


def test_supernet_instead_of_a_space(start, nasbench201):
    with pytest.raises(TypeError, match='a ModelSpace that is not a supernet yet, but got NasBench201'):
        start(space=RandomOneShot().mutate_model(nasbench201()))


def test_evaluator_that_is_not_lightning(start):
    with pytest.raises(TypeError, match='needs a Lightning evaluator, but got FunctionalEvaluator'):
        start(change=lambda made: FunctionalEvaluator(print))


def test_other_engine(start, nasbench201, evaluator):
    with pytest.raises(
        TypeError,
        match=r'raw model format .* got SequentialExecutionEngine and SimplifiedModelSpace',
    ):
        start(config=NasExperimentConfig('sequential', 'simplified', 'local'))


@pytest.mark.parametrize('name', ['train_dataloaders', 'val_dataloaders'])
def test_missing_data(start, name):
    def change(made):
        setattr(made, name, None)
        return made

    kind = 'training' if name.startswith('train') else 'validation'
    with pytest.raises(ValueError, match=f'needs {kind} data, but the evaluator has none'):
        start(change=change)


def test_several_validation_loaders(start):
    def change(made):
        made.val_dataloaders = [made.val_dataloaders] * 2
        return made

    with pytest.raises(TypeError, match='needs one validation loader, but the evaluator has a list of them'):
        start(change=change)


def test_more_neighbours_than_images(start):
    with pytest.raises(ValueError, match=r'n_neighbors=40 and batches of 40; .* Set n_neighbors to at most 39'):
        start(criterion='lid', n_neighbors=40)


def test_batches_too_small_for_lid(start, digits):
    def change(made):
        made.train_dataloaders = DataLoader(digits.train, 3)
        return made

    with pytest.raises(ValueError, match=r'batches of 3; LID needs at least 4 points\. Take larger batches\.$'):
        start(criterion='lid', n_neighbors=3, change=change)


def test_loader_that_can_be_gone_through_once_only(start):
    def change(made):
        made.train_dataloaders = iter(made.train_dataloaders)
        return made

    with pytest.raises(TypeError, match='training data can be gone through only once; NASLID needs a loader'):
        start(change=change)


def test_empty_loader(start):
    def change(made):
        made.train_dataloaders = DataLoader([])
        return made

    with pytest.raises(ValueError, match='training loader is empty'):
        start(change=change)


def test_data_module_without_validation(start, digits):
    class Half(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(digits.train, 40)

    def change(made):
        made.train_dataloaders = made.val_dataloaders = None
        made.datamodule = Half()
        return made

    with pytest.raises(ValueError, match='needs validation data, but the evaluator has none'):
        start(change=change)


def test_module_that_does_not_call_its_model(start):
    def change(made):
        made.module.validation_step = lambda batch, batch_idx: None
        return made

    with pytest.raises(TypeError, match='validation_step of Recipe does not call its model'):
        start(change=change)


def test_manual_optimization(start):
    def change(made):
        made.module.automatic_optimization = False
        return made

    with pytest.raises(ValueError, match='needs automatic optimization'):
        start(change=change)


@pytest.mark.parametrize(
    'trainer, match',
    [
        ({'max_steps': 7}, 'counts in epochs, but the trainer of the evaluator has max_steps=7'),
        ({'min_steps': 7}, 'has min_steps=7'),
        ({'limit_val_batches': 0}, 'needs validation, but .* limit_val_batches=0'),
    ],
)
def test_trainers(experiment, evaluator, nasbench201, naslid, trainer, match):
    with pytest.raises(ValueError, match=match):
        experiment(nasbench201(), evaluator(2, **trainer), naslid((1,))).run()


def test_search_that_was_used_before(naslid, run):
    search = Random(seed=0)
    run((), epochs=1, search=search, search_budget=2)
    with pytest.raises(ValueError, match='has not been used yet, but got Random'):
        naslid(search=search)


def test_a_space_can_be_used_again_after_a_mistake(start, nasbench201):
    space = nasbench201()
    for _ in range(2):
        with pytest.raises(ValueError, match="monitor='accuracy' is not logged"):
            start(space=space, monitor='accuracy')


def test_another_run_in_the_work_folder(run, start, proxyless, tmp_path):
    def accumulate(made):
        made.trainer.accumulate_grad_batches = 2
        return made

    run((1,), epochs=2, search_budget=1)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for kwargs, match in (
        ({'split_epochs': ()}, r'split_epochs=\[1\], but this one has split_epochs=\[\]'),
        ({'seed': 1}, 'seed=0, but this one has seed=1'),
        ({'space': proxyless()}, 'holds a run with no .*, but this one has '),
        ({'change': accumulate}, 'accumulate_grad_batches=1, but this one has accumulate_grad_batches=2'),
    ):
        with pytest.raises(ValueError, match=match):
            start(**kwargs)
        assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_profile_of_few_layers_is_warned_of(start, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    with pytest.raises(ValueError, match='is not logged'):
        start(criterion='lid', layers=['stem', 'classifier'], monitor='accuracy')
    assert "The LID profile has 2 layer(s) only, ['stem', 'classifier']" in caplog.text


def test_metric_that_is_not_logged(start):
    with pytest.raises(ValueError, match=r"monitor='accuracy' is not logged .* logs \['val_acc', 'val_loss'\]"):
        start(monitor='accuracy')


def test_layers_that_do_not_exist(start):
    with pytest.raises(ValueError, match="'stages' matches no block"):
        start(criterion='lid', layers=['stages'])


def test_unwritable_work_folder(start, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match=r'workdir cannot be written to: .*file/run'):
        start(workdir=tmp_path / 'file' / 'run')


def test_trainer_that_cannot_stop_to_split(experiment, evaluator, nasbench201, naslid):
    with pytest.raises(ValueError, match=r'min_epochs=2 of the trainer keeps it from stopping to split at \[1\]'):
        experiment(nasbench201(), evaluator(3, min_epochs=2), naslid((1,))).run()
