"""The loggers of the user's trainer: whose metrics are where, and what of ours they get of splits and of the search."""

import json
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from nni_naslid import LID
from nni_naslid.run.files import read_lines
from nni_naslid.train.loggers import log_scalars

import pandas as pd
import pytest
from nni.nas.evaluator.pytorch import DataLoader
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from small import brightened, images, make_evaluator
from test_conformance import TwoLabels

LABEL_SPLIT = LID(n_neighbors=5, repeats=8, min_contrast=0)


def scalars_in(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What a logger has written there, read back: by name (step, value)."""
    found = defaultdict(list)
    if (folder / 'metrics.csv').exists():
        table = pd.read_csv(folder / 'metrics.csv')
        for name in table.columns.drop('step'):
            rows = table[['step', name]].dropna()
            found[name] += zip(rows['step'].astype(int), rows[name], strict=True)
        return found
    accumulators = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulators.EventAccumulator(str(folder), {'scalars': 0})  # all of them
    events.Reload()
    for name in events.Tags()['scalars']:
        found[name] += [(event.step, event.value) for event in events.Scalars(name)]
    return found


def ours_in(folder: Path) -> dict[str, list[tuple[int, float]]]:
    return {name: points for name, points in scalars_in(folder).items() if name.startswith('naslid-')}


def made_with(**trainer):
    """What is above chance after an epoch of four steps."""
    train, val = (brightened(images(*part)) for part in ((96, 0), (48, 1)))
    trainer = {'log_every_n_steps': 1, 'epochs': 2, **trainer}
    return make_evaluator(train=DataLoader(train, 24, shuffle=True), val=DataLoader(val, 24), **trainer)


def expected(workdir: Path) -> dict[str, float]:
    """By name, what tree.json says of the splits."""
    found = {}
    for node in json.loads((workdir / 'tree.json').read_text())['nodes']:
        if node['split'] is None:
            continue
        of, evidence = f'naslid-{node["name"]}', node['split']['evidence']
        found[f'{of}/separates'] = float(node['split']['objection'] is None)
        if 'partition' not in evidence:
            continue
        best = evidence['partition']
        found |= {
            f'{of}/contrast': best['score'], f'{of}/contrast_lower': best['lower'],
            f'{of}/contrast_upper': best['upper'], f'{of}/p': evidence['p_value'],
            f'{of}/repeats': evidence['n_repeats'], f'{of}/passes': evidence['n_passes'],
        }  # fmt: skip
        for label, contrast in evidence['contrasts'].items():
            found[f'{of}/contrasts/{label}'] = contrast[0]
        for candidate, row in zip(evidence['candidates'], evidence['profile'], strict=True):
            found[f'{of}/lid/{evidence["label"]}/{candidate}'] = fmean(row)
    return found


def best_so_far(workdir: Path) -> list[tuple[int, float]]:
    """By networks scored: the lowest loss, in the order in which the search has scored."""
    losses = pd.Series([line['metrics']['val_loss'] for line in read_lines(workdir / 'scores.jsonl', ())])
    return list(enumerate(losses.cummin(), 1))


def check_ours(folder: Path, workdir: Path, step: int) -> None:
    """That all of ours are there, once, with the right numbers at the right place of the axis."""
    ours, splits = ours_in(folder), expected(workdir)
    found = ours.pop('naslid-search/best_val_loss')
    assert [n for n, _ in found] == [n for n, _ in best_so_far(workdir)]
    assert [value for _, value in found] == pytest.approx([value for _, value in best_so_far(workdir)])
    assert ours.keys() == splits.keys()
    for name, value in splits.items():
        assert ours[name] == [(step, pytest.approx(value, rel=1e-6))], name


LOGGERS = {'csv': CSVLogger, 'tensorboard': TensorBoardLogger}


@pytest.mark.slow
@pytest.mark.parametrize('kind', LOGGERS)
def test_a_logger_of_the_user_gets_all_nodes_and_what_is_ours(small, tmp_path, kind):
    """Each number is that of tree.json, at the global step of the node. A finished run writes nothing more."""
    if kind == 'tensorboard':
        pytest.importorskip('tensorboard')
    logs, workdir = tmp_path / 'logs', tmp_path / 'run'
    logger = LOGGERS[kind](logs, name='mine')
    settings = {'criterion': LABEL_SPLIT, 'search_budget': 6, 'workdir': workdir}
    strategy = small(made_with(logger=logger, epochs=4), None, (3,), **settings)
    assert len(strategy.tree.children) == 2
    (folder,) = logs.glob('mine/*')
    theirs = scalars_in(folder)['val_loss']
    assert [step for step, _ in theirs] == [3, 7, 11, 15, 15]  # four steps in an epoch
    assert [value for _, value in theirs][2:] == pytest.approx([node.metric for node in strategy.tree])
    check_ours(folder, workdir, step=12)
    assert len(best_so_far(workdir)) == 6
    names = expected(workdir)
    of_candidates = f'naslid-0/lid/{strategy.tree.split.evidence.label}'
    assert {name for name in names if '/lid/' in name} == {f'{of_candidates}/{i}' for i in range(3)}  # not by layer
    assert {'naslid-0/contrasts/stem', 'naslid-0/contrasts/body', 'naslid-0/p'} <= names.keys()

    again = made_with(logger=LOGGERS[kind](logs, name='again'), epochs=4)
    small(again, None, (3,), **settings)
    assert not list(logs.glob('again/*'))


def test_the_default_logger_has_a_folder_of_each_node_and_of_the_search(small, tmp_path, monkeypatch):
    """Profiles, calibration and scores log nothing of the module. What another process trains is another version."""
    monkeypatch.chdir(tmp_path)
    made = make_evaluator(logger=None, log_every_n_steps=1)
    strategy = small(made, criterion='random', workdir=tmp_path / 'a')
    losses = {f'node-{node.name}': node.metric for node in strategy.tree}
    assert len(losses) == 3
    assert {path.name for path in (tmp_path / 'lightning_logs').iterdir()} == {*losses, 'search'}
    for name, val_loss in losses.items():
        (version,) = (tmp_path / 'lightning_logs' / name).iterdir()
        assert version.name == 'version_0'
        assert scalars_in(version)['val_loss'][-1][1] == pytest.approx(val_loss)
        assert ours_in(version) == ({'naslid-0/separates': [(4, 1.0)]} if name == 'node-0' else {})
    assert ours_in(tmp_path / 'lightning_logs' / 'search' / 'version_0').keys() == {'naslid-search/best_val_loss'}
    small(made, criterion='random', workdir=tmp_path / 'b', seed=1)
    assert {path.name for path in (tmp_path / 'lightning_logs' / 'node-0').iterdir()} == {'version_0', 'version_1'}


def test_a_node_that_is_not_split_goes_on_in_the_same_version(small, tmp_path, monkeypatch):
    """It says so, with what was looked at: its curve has both parts of its training."""
    monkeypatch.chdir(tmp_path)
    criterion = LID(n_neighbors=5, repeats=8, min_contrast=0.9)
    strategy = small(made_with(logger=True), criterion=criterion, workdir=tmp_path / 'run')
    assert len(strategy.leaves) == 1
    (version,) = (tmp_path / 'lightning_logs' / 'node-0').iterdir()
    assert [step for step, _ in scalars_in(version)['val_loss']] == [3, 7]
    ours = ours_in(version)
    assert ours['naslid-0/separates'] == [(4, 0.0)]
    assert ours == {name: [(4, pytest.approx(value, rel=1e-6))] for name, value in expected(tmp_path / 'run').items()}


def test_several_loggers_and_none(small, tmp_path):
    loggers = [CSVLogger(tmp_path / 'logs', name=name) for name in ('one', 'two')]
    small(made_with(logger=loggers), criterion='random', workdir=tmp_path / 'a')
    one, two = (ours_in(tmp_path / 'logs' / name / 'version_0') for name in ('one', 'two'))
    assert one == two and one['naslid-0/separates'] == [(4, 1.0)]
    small(made_with(logger=False), criterion='random', workdir=tmp_path / 'b')
    assert {path.name for path in tmp_path.iterdir()} == {'a', 'b', 'logs'}


@pytest.mark.slow
def test_on_two_devices_each_part_has_a_version(small, tmp_path):
    """The processes that train open files of their own. A leaf goes on where what was looked at is."""
    criterion = LID(n_neighbors=5, repeats=8, min_contrast=0.9)
    made = made_with(logger=CSVLogger(tmp_path / 'logs', name='mine'), devices=2)
    strategy = small(made, criterion=criterion, search_budget=6, workdir=tmp_path / 'run')
    assert len(strategy.leaves) == 1
    first, then, search = (scalars_in(tmp_path / 'logs' / 'mine' / f'version_{i}') for i in range(3))
    assert [step for step, _ in first['val_loss'] + then['val_loss']] == [1, 3]
    for name, value in expected(tmp_path / 'run').items():
        assert name not in first and then[name] == [(2, pytest.approx(value, rel=1e-6))]
    assert [n for n, _ in search['naslid-search/best_val_loss']] == [1, 2, 3, 4, 5, 6]


class Killed(BaseException):
    """As if the process were gone."""


class KilledAt(CSVLogger):
    """Is killed when it gets the number of a metric."""

    def __init__(self, folder: Path, name: str, metric: str, n: int):
        super().__init__(folder, name=name)
        self.metric, self.n = metric, n

    def log_metrics(self, metrics, step=None):
        super().log_metrics(metrics, step)
        self.n -= self.metric in metrics
        if not self.n:
            self.save()
            raise Killed


@pytest.mark.slow
@pytest.mark.parametrize('metric, n', [('val_loss', 2), ('naslid-search/best_val_loss', 3)])
def test_nothing_is_written_twice_when_a_killed_run_goes_on(small, tmp_path, metric, n):
    """Killed in the second validation, after the split was looked at, or in the search."""
    logs, workdir = tmp_path / 'logs', tmp_path / 'run'
    settings = {'criterion': LABEL_SPLIT, 'search_budget': 6, 'workdir': workdir}
    with pytest.raises(Killed):
        small(made_with(logger=KilledAt(logs, 'first', metric, n)), **settings)
    small(made_with(logger=CSVLogger(logs, name='then')), **settings)
    first, then = (ours_in(logs / name / 'version_0') for name in ('first', 'then'))
    curve = [points for of in (first, then) for points in of.pop('naslid-search/best_val_loss', [])]
    assert curve == [(n, pytest.approx(value)) for n, value in best_so_far(workdir)]
    assert not first.keys() & then.keys()
    splits = expected(workdir)
    assert first.keys() == splits.keys() and not then


class Broken(CSVLogger):
    def log_metrics(self, metrics, step=None):
        if any(name.startswith('naslid-') for name in metrics):
            raise ConnectionError('the tracking server is gone')
        super().log_metrics(metrics, step)


def test_what_a_logger_raises_ends_the_run(small, tmp_path):
    """What was trained is kept, and what the logger did not take is written when the run goes on."""
    with pytest.raises(ConnectionError, match='the tracking server is gone'):
        small(made_with(logger=Broken(tmp_path / 'logs')), criterion='random', workdir=tmp_path / 'run')
    trained = (tmp_path / 'run' / 'node-0.ckpt').read_bytes()
    made = made_with(logger=CSVLogger(tmp_path / 'logs', name='then'))
    assert len(small(made, criterion='random', workdir=tmp_path / 'run').leaves) == 2
    assert (tmp_path / 'run' / 'node-0.ckpt').read_bytes() == trained
    assert ours_in(tmp_path / 'logs' / 'then' / 'version_0')['naslid-0/separates'] == [(4, 1.0)]


class OneFigure:
    """Evidence of a user's."""

    objection = None

    def __init__(self, found):
        self.found = found

    def describe(self):
        return 'one figure'

    def figure(self, title):
        return None

    def scalars(self):
        return self.found

    def to_dict(self):
        return {'found': self.found}


@dataclass(frozen=True)
class Own(TwoLabels):
    """A criterion of a user's, whose evidence has other figures than ours, or what are none."""

    found: Any = None

    def choose(self, context):
        return replace(super().choose(context), evidence=OneFigure(self.found))

    def read_evidence(self, content):
        return OneFigure(**content)


def test_figures_of_a_criterion_of_the_user(small, tmp_path):
    """Evidence that has none, as of criteria from before there were any, is as good; what are no numbers is named."""
    for name, criterion in (('own', Own(found={'largest/weight': 0.25})), ('none', TwoLabels())):
        small(made_with(logger=CSVLogger(tmp_path / 'logs', name=name)), criterion=criterion, workdir=tmp_path / name)
    ours = {name: ours_in(tmp_path / 'logs' / name / 'version_0') for name in ('own', 'none')}
    assert ours['own'].pop('naslid-0/largest/weight') == [(4, 0.25)]
    assert ours['own'].keys() == ours['none'].keys() == {'naslid-0/separates', 'naslid-search/best_val_loss'}
    with pytest.raises(ValueError, match=r'scalars of its evidence must return a dict of numbers .* returned \[0.25\]'):
        small(made_with(), criterion=Own(found=[0.25]), workdir=tmp_path / 'wrong')


def test_names_that_not_all_loggers_take(tmp_path):
    """Choices are whatever the user has: tuples, texts with signs. Those that get the same name are told apart."""
    logger = CSVLogger(tmp_path, name='', version='')
    log_scalars([logger], '0.1', {'lid/a/(3, 1)': 1.0, 'lid/a/[3, 1]': 2.0, 'lid/a/3x3': 3.0, 'Größe/-0.5': 4.0}, 7)
    assert scalars_in(tmp_path) == {
        'naslid-0.1/lid/a/_3__1_': [(7, 1.0)], 'naslid-0.1/lid/a/_3__1__': [(7, 2.0)],
        'naslid-0.1/lid/a/3x3': [(7, 3.0)], 'naslid-0.1/Größe/-0.5': [(7, 4.0)],
    }  # fmt: skip
