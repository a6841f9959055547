"""Leaves that will surely not become the best one are stopped, and only these."""

import json
import logging
import shutil
import sys
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import ClassVar

from nni_naslid import NASLID
from nni_naslid.analysis.report import report_page
from nni_naslid.cli import main
from nni_naslid.criteria.evidence import AtRandom
from nni_naslid.run.files import append_line
from nni_naslid.run.folder import RunFolder
from nni_naslid.run.record import read_record
from nni_naslid.space.split import Split
from nni_naslid.train.hopeless import LEAST_FINISHED, N_FINAL, forecast, is_hopeless

import nni
import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from scipy.stats import linregress, t
from small import Plain, make_evaluator
from torch import nn


def curves_of(rng: np.random.RandomState, n: int, noise: float) -> list[dict[int, float]]:
    """Leaves of some level whose curves rise, twelve epochs."""
    levels = rng.normal(0, 1, n)
    return [{e: level * 2 + e / 10 + noise * rng.normal() for e in range(9, 21)} for level in levels]


def first(curve: dict[int, float], n: int) -> dict[int, float]:
    return dict(list(curve.items())[:n])


def test_the_forecast_is_that_of_a_line_with_its_prediction_interval():
    *finished, own = curves_of(np.random.RandomState(0), 7, 0.5)
    found = forecast(finished, first(own, 6))
    x = np.array([np.mean([curve[e] for e in range(9, 15)]) for curve in finished])
    y = np.array([np.mean([curve[e] for e in range(16, 21)]) for curve in finished])
    new = np.mean([own[e] for e in range(9, 15)])
    line = linregress(x, y)
    spread = ((x - x.mean()) ** 2).sum()
    error = line.stderr * sqrt(spread)  # of a single leaf around the line
    std = error * sqrt(1 + 1 / 6 + (new - x.mean()) ** 2 / spread)
    assert found.predicted == pytest.approx(line.slope * new + line.intercept)
    assert found.std == pytest.approx(std)
    assert (found.best, found.leaves) == (pytest.approx(y.max()), 6)
    assert found.probability == pytest.approx(t(4).cdf((y.max() - found.predicted) / std))


@pytest.mark.parametrize('n_finished', [4, 7])
def test_nine_of_ten_final_values_are_inside_their_interval(n_finished):
    rng, n, inside = np.random.RandomState(1), 400, 0
    bound = t(n_finished - 2).ppf(0.95)
    for _ in range(n):
        *finished, own = curves_of(rng, n_finished + 1, 0.5)
        found = forecast(finished, first(own, 8))
        inside += abs(np.mean(list(own.values())[-N_FINAL:]) - found.predicted) < bound * found.std
    assert inside / n == pytest.approx(0.9, abs=4 * sqrt(0.9 * 0.1 / n))  # four standard errors


values = st.floats(-100, 100).map(lambda value: round(value, 3))
leaves = st.lists(st.lists(values, min_size=9, max_size=9), min_size=LEAST_FINISHED + 1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(leaves, st.integers(N_FINAL, 8), st.floats(0.501, 0.999))
def test_the_leaf_that_leads_is_never_stopped(rows, n, threshold):
    curves = sorted((dict(enumerate(row)) for row in rows), key=lambda curve: sum(first(curve, n).values()))
    *finished, leader = curves
    assert is_hopeless(finished, first(leader, n), threshold) is None


@pytest.mark.parametrize('scale, shift', [(1, 100), (0.01, 0), (250, -3)])
def test_the_unit_of_the_metric_and_the_order_of_leaves_make_no_difference(scale, shift):
    """Accuracies in percent or parts of one, a loss with a constant: the same leaves are stopped, as surely."""
    rng, n, n_stopped = np.random.RandomState(2), 60, 0
    for _ in range(n):
        *finished, own = curves_of(rng, 7, 0.5)
        *others, other = (
            {epoch: scale * value + shift for epoch, value in curve.items()} for curve in (*finished[::-1], own)
        )
        found, same = is_hopeless(finished, first(own, 6), 0.9), is_hopeless(others, first(other, 6), 0.9)
        assert (found is None) == (same is None)
        if found is not None:
            n_stopped += 1
            assert same.probability == pytest.approx(found.probability)
            assert (same.predicted, same.best) == pytest.approx(
                [scale * x + shift for x in (found.predicted, found.best)]
            )
            assert same.std == pytest.approx(scale * found.std)
    assert n / 6 < n_stopped < n * 5 / 6  # both happen often


def test_leaves_of_other_depths_are_compared_over_the_epochs_that_they_share():
    *finished, own = curves_of(np.random.RandomState(0), 7, 0.5)
    deep = [{epoch: value for epoch, value in curve.items() if epoch >= 11} for curve in finished]
    last = {epoch: value for epoch, value in first(own, 9).items() if epoch >= 11}
    assert forecast(deep, first(own, 9)) == forecast(finished, last) != forecast(finished, first(own, 9))
    assert forecast(deep, first(own, 9)).leaves == 6


def test_too_little_to_tell():
    finished = [{e: level + e / 10 for e in range(10)} for level in (1, 2, 3, 4)]
    bad = {e: e / 10 for e in range(10)}
    assert is_hopeless(finished, first(bad, N_FINAL), 0.99).leaves == 4
    assert forecast(finished, first(bad, N_FINAL - 1)) is None
    assert forecast(finished[1:], first(bad, N_FINAL)) is None
    assert forecast([*finished[1:], {**finished[0], 9: np.nan}], first(bad, N_FINAL)) is None
    assert forecast([*finished[1:], first(finished[0], 3)], first(bad, N_FINAL)) is None  # of other epochs
    assert forecast(finished, {**first(bad, N_FINAL), 2: np.inf}) is None


# A tree of nine leaves, one for each network, whose curves are parallel: what is right can be told by looking.
LOSSES = [5, 6, 7, 4, 8, 3, 9, 10, 2]
STOPPED = {'0.1.1': 8, '0.2.0': 9, '0.2.1': 10}  # the fifth, the seventh, the eighth; then the ninth is the best
EPOCHS, STOP = 9, 2 + N_FINAL


class Add(nn.Module):
    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def forward(self, x):
        return x + self.number


class Numbered(ModelSpace):
    """A network says its number."""

    def __init__(self):
        super().__init__()
        self.stem = LayerChoice([Add(0), Add(3), Add(6)], label='stem')
        self.body = LayerChoice([Add(0), Add(1), Add(2)], label='body')
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.body(self.stem(0 * self.weight))


@nni.trace
class Listed(Plain):
    """The loss is one of the list, and falls with the epochs; the accuracy is its opposite."""

    def training_step(self, batch, batch_idx):
        return (self(batch[0]) + self.model.weight - 1).square().sum()

    def validation_step(self, batch, batch_idx):
        loss = LOSSES[int(self(batch[0]))] + 1 / (1 + self.current_epoch)
        self.log('val_loss', loss)
        self.log('val_acc', -loss)

    def on_train_end(self):
        self.seen.append(self.trainer.current_epoch)


@dataclass(frozen=True)
class EachAlone:
    """The stem first, then the body, each candidate in a part of its own."""

    max_groups: int = 3
    uses_metric: ClassVar[bool] = False

    def can_split(self, subspace):
        return bool(subspace.splittable)

    def check(self, context):
        return {}

    def cost(self, space):
        return 0

    def choose(self, context):
        label = next(iter(context.subspace.splittable))
        groups = [[i] for i in range(len(context.subspace.splittable[label]))]
        return Split(context.subspace.split(label, groups), AtRandom())

    def read_evidence(self, content):
        return AtRandom()


def run_listed(workdir: Path, callbacks=(), split_epochs=(1, 2), space=Numbered, devices=1, **kwargs) -> NASLID | None:
    """Run the tree of nine leaves; ``None`` if it was interrupted."""
    made = make_evaluator(
        Listed(), epochs=EPOCHS, limit_train_batches=1, limit_val_batches=1, num_sanity_val_steps=0,
        callbacks=list(callbacks), devices=devices,
    )  # fmt: skip
    pl.seed_everything(0, verbose=False)
    strategy = NASLID(
        split_epochs, search_budget=9, calibration_batches=0, workdir=workdir,
        **{'criterion': EachAlone(), 'stop_hopeless': 0.95, **kwargs},
    )  # fmt: skip
    experiment = NasExperiment(space(), made, strategy)
    try:
        return strategy if experiment.run() else None
    finally:
        experiment.stop()


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """A run that nobody kills, when its leaves ended, and its log."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger('nni_naslid')
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        strategy = run_listed(tmp_path_factory.mktemp('listed'))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    return strategy, list(Listed.seen), lines


def stopped(strategy: NASLID) -> dict[str, int]:
    return {leaf.name: leaf.end_epoch for leaf in strategy.leaves if leaf.stopped is not None}


def test_hopeless_leaves_are_stopped(undisturbed, capsys):
    strategy, seen, lines = undisturbed
    assert stopped(strategy) == dict.fromkeys(STOPPED, STOP)
    assert strategy.tree.cost == 1 + 3 + 9 * (EPOCHS - 2) - 3 * (EPOCHS - STOP)
    assert sorted(seen) == [STOP] * 3 + [EPOCHS] * 6  # the user's hook, at the end of each leaf
    falls = np.mean([1 / epoch for epoch in range(EPOCHS - N_FINAL + 1, EPOCHS + 1)])
    for leaf in strategy.leaves:
        if leaf.stopped is not None:
            assert (leaf.stopped['epoch'], leaf.stopped['metric']) == (STOP, 'val_loss')
            assert leaf.stopped['predicted'] == pytest.approx(STOPPED[leaf.name] + falls)
            assert leaf.stopped['best'] == pytest.approx((4 if leaf.name == '0.1.1' else 3) + falls)
    said = f'stopped after epoch {STOP}: val_loss {8 + falls:.4g} ± '
    assert sum(line.startswith(f'Node 0.1.1 was {said}') for line in lines) == 1
    assert main(['tree', str(strategy.workdir)]) == 0
    assert said in capsys.readouterr().out
    assert f'S{said[1:]}' in report_page(read_record(strategy.workdir))


def test_networks_of_stopped_leaves_stay_in_the_space(undisturbed):
    strategy, _, _ = undisturbed
    found = {(model.sample['stem'], model.sample['body']): -model.metric for model in strategy.list_models(limit=9)}
    assert [round(found[stem, body]) - 1 for stem in range(3) for body in range(3)] == LOSSES
    samples = [{'stem': stem, 'body': body} for stem in range(3) for body in range(3)]
    assert strategy.evaluate(samples, epoch=EPOCHS) == strategy.evaluate(samples)


def test_epochs_are_kept_of_stopped_leaves_too(tmp_path):
    """Here they pass a split epoch at which there is nothing left to split."""
    strategy = run_listed(tmp_path, split_epochs=(1, 2, 5), keep_epochs=[6])
    assert stopped(strategy) == dict.fromkeys(STOPPED, STOP)
    assert strategy.tree.kept_epochs == [1, 2, 6, EPOCHS]
    sample = {'stem': 2, 'body': 0}  # of leaf 0.2.0
    assert [strategy.evaluate([sample], epoch=epoch)[0]['val_loss'] for epoch in (6, EPOCHS)] == pytest.approx([10, 10])


def test_what_is_not_of_the_tree_is_no_leaf(undisturbed, tmp_path):
    """Left by a split that was chosen again: a better leaf than all."""
    shutil.copytree(undisturbed[0].workdir, tmp_path / 'run')
    for path in (tmp_path / 'run').glob('node-0.2.*'):
        path.unlink()
    folder = RunFolder(tmp_path / 'run')
    run = json.loads(folder.tree.read_text())['run']
    result = folder.read_result('0.0.0', run)
    folder.write_result(**{**result, 'node': '0.0.3', 'name': '0.0.3'})
    for epoch in range(1, EPOCHS + 1):
        append_line(folder.curve('0.0.3'), {'run': run, 'node': '0.0.3', 'epoch': epoch, 'metrics': {'val_loss': -9.0}})
    (tmp_path / 'run' / 'search.json').unlink()
    assert stopped(run_listed(tmp_path / 'run')) == dict.fromkeys(STOPPED, STOP)


class DiesTwice(pl.Callback):
    """Interrupts the run when a leaf has been stopped: before its checkpoint is written, and when that is there."""

    died: ClassVar[list] = []

    def die(self, trainer, where):
        if 2 < trainer.current_epoch < EPOCHS and where not in self.died:
            self.died.append(where)
            raise KeyboardInterrupt

    def on_train_end(self, trainer, pl_module):
        self.die(trainer, 'before')

    def on_fit_end(self, trainer, pl_module):
        self.die(trainer, 'after')


def test_a_killed_run_stops_the_same_leaves(undisturbed, tmp_path):
    """Here by an accuracy, which is the loss turned."""
    DiesTwice.died.clear()
    by_accuracy = {'monitor': 'val_acc', 'mode': 'max'}
    for _ in range(2):
        assert run_listed(tmp_path, [DiesTwice()], **by_accuracy) is None
    assert DiesTwice.died == ['before', 'after']
    resumed = run_listed(tmp_path, [DiesTwice()], **by_accuracy)
    for leaf, other in zip(resumed.leaves, undisturbed[0].leaves, strict=True):
        assert (leaf.end_epoch, leaf.weights) == (other.end_epoch, other.weights)
        assert (leaf.stopped is None) == (other.stopped is None)
        for name in ('predicted', 'best') if leaf.stopped else ():
            assert leaf.stopped[name] == pytest.approx(-other.stopped[name])


class Five(ModelSpace):
    """A network says its number; the fifth is worse than the others."""

    def __init__(self):
        super().__init__()
        self.body = LayerChoice([Add(i) for i in range(5)], label='body')
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.body(0 * self.weight)


@pytest.mark.slow
def test_a_leaf_on_two_devices_is_stopped(tmp_path):
    """In both of its processes: else the other one would wait for it for ever."""
    strategy = run_listed(tmp_path, split_epochs=(1,), space=Five, devices=2, criterion=EachAlone(max_groups=5))
    assert stopped(strategy) == {'0.4': 1 + N_FINAL}
    assert strategy.tree.cost == 1 + 5 * (EPOCHS - 1) - (EPOCHS - 1 - N_FINAL)
    assert list(read_record(tmp_path).curves['0.4']) == list(range(2, 2 + N_FINAL))


def test_the_setting_is_part_of_what_a_run_is(undisturbed):
    strategy, _, _ = undisturbed
    for other, said in ((0.9, 'stop_hopeless=0.9'), (0, 'no stop_hopeless')):
        match = f'holds a run with stop_hopeless=0.95, but this one has {said}'
        with pytest.raises(ValueError, match=match):
            run_listed(strategy.workdir, stop_hopeless=other)
    again = run_listed(strategy.workdir)
    assert stopped(again) == stopped(strategy)


@pytest.mark.parametrize('value', [0.5, 1, 95, -0.1, True, 'never', None, float('nan')])
def test_a_probability_that_cannot_work_is_refused(value):
    with pytest.raises(
        ValueError, match=r'stop_hopeless must be 0 \(never\) or a probability above 0\.5 and below 1, but'
    ):
        NASLID([1], stop_hopeless=value)


def test_a_tree_that_is_too_small_is_told(small, caplog):
    with caplog.at_level(logging.WARNING, 'nni_naslid'):
        small(criterion='random', stop_hopeless=0.95)
    assert 'stop_hopeless=0.95 will stop no leaf: that takes more than 4 leaves' in caplog.text


def test_the_benchmark_replays_what_a_run_stops(undisturbed, tmp_path, monkeypatch):
    """On the curves of a run that stops none. Each stopped leaf saves its last two epochs."""
    import bench_hopeless

    never = run_listed(tmp_path / 'never', stop_hopeless=0)
    assert stopped(never) == {}
    records = {False: read_record(never.workdir), True: read_record(undisturbed[0].workdir)}
    monkeypatch.setattr(bench_hopeless, 'EPOCHS', EPOCHS)
    monkeypatch.setattr(bench_hopeless, 'train', lambda workdir, criterion, seed, *stopping: records[bool(stopping)])
    arguments = ['--seeds', '0', '--criteria', 'random', '--output', str(tmp_path / 'rows.csv')]
    monkeypatch.setattr(sys, 'argv', ['bench_hopeless.py', *arguments])
    bench_hopeless.main()
    rows = pd.read_csv(tmp_path / 'rows.csv')
    assert len(rows) == 1 + 2 * 4
    assert (rows['at'] == ' '.join(f'{name}@7' for name in STOPPED)).all()
    assert (rows[['leaves', 'stopped', 'epochs', 'saved']] == [9, 3, 1 + 3 + 9 * 7, 3 * 2]).all(axis=None)
    # Their networks have the losses 8, 9 and 10, the other six have 2 to 7.
    assert (rows[['scored', 'top1_in_stopped', 'top5_in_stopped', 'best_rank_in_stopped']] == [9, 0, 0, 7]).all(
        axis=None
    )
    assert rows['saved_share'].tolist() == [pytest.approx(6 / 67, abs=6e-4)] * 9


@pytest.mark.slow
def test_the_benchmark_of_the_examples(digits, tmp_path, monkeypatch):
    import bench_hopeless

    for name, value in {'EPOCHS': 2, 'SPLIT_EPOCHS': (1,), 'SCORED': 6, 'load_data': lambda *_: digits}.items():
        monkeypatch.setattr(bench_hopeless, name, value)
    arguments = ['--seeds', '0', '--criteria', 'random', '--runs', tmp_path / 'runs', '--output', tmp_path / 'rows.csv']
    monkeypatch.setattr(sys, 'argv', ['bench_hopeless.py', *map(str, arguments)])
    bench_hopeless.main()
    rows = pd.read_csv(tmp_path / 'rows.csv')
    assert rows['kind'].tolist() == ['replay', 'run', *['replay'] * 7]  # two monitors, four thresholds
    assert (rows[['leaves', 'stopped', 'epochs', 'saved', 'scored']] == [2, 0, 3, 0, 6]).all(axis=None)
