"""What a run says while it goes on: bars on a terminal, else a line per node, split and tenth of what takes long."""

import io
import json
import logging
import re
import sys
from itertools import combinations

from nni_naslid import SubSpace
from nni_naslid.analysis.plots import plot_tree
from nni_naslid.space.additive import AdditiveScore, Term
from nni_naslid.space.band import Band
from nni_naslid.space.tree import Node

import numpy as np
import pytest
import pytorch_lightning as pl
from nni.mutable import Categorical
from nni.nas.evaluator.pytorch import DataLoader
from small import Convs, images, make_evaluator


@pytest.fixture
def said(caplog, monkeypatch):
    """The lines of the log of a run."""
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_where_there_is_no_terminal_each_tenth_has_a_line(small, said, capfd):
    strategy = small(search_budget=5, criterion='random')
    assert strategy.experiment.export_top_models(1, formatter='dict')
    lines = [line for line in said() if re.match(r'Search: \d of 5 scored; the best val_loss so far \d+\.\d{4}$', line)]
    assert [line[8] for line in lines] == ['1', '2', '3', '4']
    best = min(metrics['val_loss'] for metrics in strategy.evaluate(m.sample for m in strategy.list_models(limit=5)))
    assert f'Search: scored 5 networks; the best has val_loss {best:.4f}: ' in '\n'.join(said())
    samples = [strategy.tree.subspace.extremes[i % 2] for i in range(200)]
    strategy.evaluate(samples[:99])  # few enough to say nothing
    assert not [line for line in said() if line.startswith('Scoring')]
    strategy.evaluate(samples)
    assert [line for line in said() if line.startswith('Scoring')] == [
        f'Scoring: {n} of 200 architectures' for n in range(20, 200, 20)
    ]
    assert '\r' not in ''.join(capfd.readouterr())


def test_on_a_terminal_there_are_bars_instead(small, said, monkeypatch):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    strategy = small()
    strategy.evaluate([strategy.tree.subspace.extremes[0]] * 100)
    shown = sys.stderr.getvalue()
    assert {what for what in ('Profiling node 0', 'Searching', 'Scoring') if f'\r{what}:' in shown} == {
        'Profiling node 0', 'Searching', 'Scoring'
    }  # fmt: skip
    assert not [line for line in said() if re.match(r'(Search: \d+ of|Scoring)', line)]


def test_what_nni_says_of_a_trainer_is_said_once(small, said):
    class Images(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(images(), 24, shuffle=True)

        def val_dataloader(self):
            return DataLoader(images(48, seed=1), 24)

    strategy = small(make_evaluator(data=Images()), criterion='random')
    assert len(list(strategy.tree)) == 3
    assert len([line for line in said() if line.startswith('Fit with datamodule')]) == 1


class StopsEarly(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            raise RuntimeError('Stopped.')


@pytest.mark.parametrize('split_epochs, epochs', [((), 100_000), ((50_000, 70_000), 50_000 + 2 * 20_000 + 4 * 30_000)])
def test_after_the_first_epoch_it_says_how_long_training_may_take(small, said, split_epochs, epochs):
    made = make_evaluator(epochs=100_000, callbacks=[StopsEarly()])
    with pytest.raises(RuntimeError, match=r'Stopped\.'):
        small(made, split_epochs=split_epochs)
    (line,) = (line for line in said() if 'to come' in line)
    if_split = ', if every node is split, beside choosing splits' if split_epochs else ''
    minutes, seconds = re.fullmatch(
        r'About ([\d,]+) minutes? of training to come in one process on this machine'
        rf'{if_split} \(one epoch took (\d+\.\d) s\)\.', line
    ).groups()  # fmt: skip
    assert abs(int(minutes.replace(',', '')) * 60 / (epochs - 1) - float(seconds)) < 0.051


def test_a_short_run_takes_less_than_a_minute(small, said):
    small(space=Convs, split_epochs=(), search_budget=1)
    (line,) = (line for line in said() if 'to come' in line)
    assert line.startswith('Less than a minute of training to come in one process on this machine (one epoch took ')


def test_the_picture_of_the_tree_has_the_metric_that_ranks(run, tmp_path):
    """By its name, as it is logged: a loss is not turned, and what the module reports to NNI is another metric here."""
    strategy = run((1,), epochs=2, search_budget=1, monitor='val_loss', mode='min')
    files = {node.name: tmp_path / f'node-{node.name}.json' for node in strategy.tree}
    reports = {name: json.loads(path.read_text())['report'] for name, path in files.items()}
    assert all(report['default'] == report['val_acc'] != report['val_loss'] > 0 for report in reports.values())
    texts = [text.get_text() for text in plot_tree(strategy.tree, 'val_loss').axes[0].texts]
    for name, report in reports.items():
        (box,) = [text for text in texts if text.startswith(f'{name}\n')]
        assert box.endswith(f'\nval_loss {report["val_loss"]:.3f}')
    assert sum('15,625 architectures' in text for text in texts) == 1
    assert (tmp_path / 'tree.png').read_bytes().startswith(b'\x89PNG')


def test_texts_of_the_picture_of_the_tree_do_not_overlap():
    """Of four bands of a score with a long name, and of a joint split of three labels."""
    space = SubSpace({label: Categorical([*range(4)], label=label) for label in 'ab'})
    name = 'predicted rank by package.module.of_mine and live_parameters'
    score = AdditiveScore(space, [Term((label,), np.arange(4)) for label in 'ab'], name)
    bands = [Band(space, score, *of) for of in ((0, 1), (2, 2), (3, 3), (4, 6))]
    names = ['none', 'skip_connect', 'conv_1x1', 'conv_3x3', 'avg_pool_3x3']
    edges = SubSpace({f'edge{i}': Categorical(names, label=f'edge{i}') for i in range(3)})
    parts = [edges]
    for label in edges.to_dict():
        parts = [half for part in parts for half in part.split(label, [[0], [1, 2, 3, 4]])]
    for whole, into in ((space, bands), (edges, parts)):
        root = Node(whole, 0, end_epoch=1)
        root.children = [Node(part, 1, path=(i,)) for i, part in enumerate(into)]
        figure = plot_tree(root, 'val_loss')
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        assert len(boxes) == 1 + 2 * len(into)
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_seconds_of_training_and_of_choosing_a_split_are_told_apart(small, said):
    strategy = small(criterion='random')
    lines = [line for line in said() if ': trained to epoch' in line]
    assert [' s, choosing a split took ' in line for line in lines] == [bool(node.split) for node in strategy.tree]
