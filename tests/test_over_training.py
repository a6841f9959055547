"""The page's rankings over training and by calibration: their figures by scipy and by hand."""

import json
import re
from itertools import combinations, pairwise
from pathlib import Path

from nni_naslid.analysis.report import Column, report_figures
from nni_naslid.analysis.truth import nasbench201_architectures, nasbench201_sample
from nni_naslid.cli import main
from nni_naslid.run.files import append_line, read_lines
from nni_naslid.run.folder import RunFolder
from nni_naslid.run.record import read_record

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau
from test_report_page import page_of

ARCHS = nasbench201_architectures()[::391]


def rows_of(page_text: str, start: str) -> list[list[str]]:
    """The cells of the first table after some text."""
    table = re.search(r'<table>(.*?)</table>', page_text[page_text.index(start) :], re.DOTALL)[1]
    return [re.findall(r'<t[dh][^>]*>([^<]*)</t[dh]>', row) for row in re.findall(r'<tr>(.*?)</tr>', table, re.DOTALL)]


def tau(x, y) -> float:
    return kendalltau(x, y).statistic


@pytest.fixture
def looked_back(run, tmp_path) -> tuple[Path, dict]:
    """A run, and what it says of 40 architectures at three epochs, and without calibration; larger is better."""
    strategy = run((1,), epochs=3, keep_epochs=[2], workdir=tmp_path / 'run')
    samples = [nasbench201_sample(arch) for arch in ARCHS]

    def estimates(samples, **kwargs):
        return np.array([metrics['val_acc'] for metrics in strategy.evaluate(samples, **kwargs)])

    found = {epoch: estimates(samples, epoch=epoch) for epoch in (1, 2, 3)}
    found['stored'] = estimates(samples[:30], calibration_batches=0)
    return tmp_path / 'run', found


@pytest.mark.slow
def test_the_figures(looked_back, tmp_path, capsys):
    workdir, estimates = looked_back
    _, text = page_of(workdir)
    header, *rows = rows_of(text, 'id="over-training"')
    assert header == ['epoch', 'S-Tau']  # without truth, and so of one architecture more
    expected = [tau(estimates[1], estimates[2]), tau(estimates[2], estimates[3])]
    assert [float(row[1]) for row in rows[1:]] == pytest.approx(expected, abs=6e-4)
    header, *rows = rows_of(text, 'id="calibration"')
    assert header == ['batches', 'S-Tau']

    accuracies = np.random.RandomState(0).permutation(len(ARCHS)) + 50.0
    known = [i for i in range(len(ARCHS)) if i != 7]  # one is not in the table
    truth = tmp_path / 'truth.csv'
    pd.DataFrame({'arch': ARCHS, 'test_acc': accuracies}).iloc[known].to_csv(truth, index=False)
    page, text = page_of(workdir, '--truth', truth)
    header, *rows = rows_of(text, 'id="over-training"')
    assert header == ['epoch', 'S-Tau', 'tau', 'P@5 %', 'regret']
    assert [row[0] for row in rows] == ['1', '2', '3']
    best = set(np.argsort(accuracies[known])[-2:])  # 5 % of 40
    for epoch, row in zip((1, 2, 3), rows, strict=True):
        mine, true = estimates[epoch][known], accuracies[known]
        assert float(row[2]) == pytest.approx(tau(mine, true), abs=6e-4)
        firsts = true[mine == mine.max()]  # those that tie are chosen by lot
        assert float(row[4]) == pytest.approx(true.max() - firsts.mean(), abs=6e-4)
        if len(np.unique(mine)) == len(mine):
            assert float(row[3]) == len(best & set(np.argsort(mine)[-2:])) / 2
    assert rows[0][1] == '-'
    for (before, after), row in zip(pairwise((1, 2, 3)), rows[1:], strict=True):
        assert float(row[1]) == pytest.approx(tau(estimates[before][known], estimates[after][known]), abs=6e-4)
    s_tau = np.mean([tau(estimates[a][known], estimates[b][known]) for a, b in combinations((1, 2, 3), 2)])
    assert f'The same {len(known)} architectures, scored with the weights of 3 epochs (2 calibration' in page.text
    assert f'S-Tau {s_tau:.3f} (95 % ' in page.text

    header, *rows = rows_of(text, 'id="calibration"')
    both = [i for i in range(30) if i != 7]
    stored, calibrated, true = estimates['stored'][both], estimates[3][both], accuracies[both]
    assert 'The same 29 architectures, scored with the weights of epoch 3' in page.text
    assert [row[0] for row in rows] == ['0', '2']
    assert float(rows[1][1]) == pytest.approx(tau(stored, calibrated), abs=6e-4)
    assert [float(row[2]) for row in rows] == pytest.approx([tau(stored, true), tau(calibrated, true)], abs=6e-4)
    gain = tau(calibrated, true) - tau(stored, true)
    assert f'by 2 batches minus that by 0: {gain:.3f} (95 % ' in page.text
    assert len(page.ids) == len(set(page.ids))

    options = ['--out', str(tmp_path / 'page.html'), '--figures', str(tmp_path / 'figures'), '--truth', str(truth)]
    assert main(['report', str(workdir), *options]) == 0
    for suffix in ('svg', 'png'):
        assert (tmp_path / 'figures' / f'over-training.{suffix}').stat().st_size > 5000
    figure = report_figures(read_record(workdir), Column('test_acc', pd.Series(accuracies, ARCHS)))['over-training']
    line = next(line for line in figure.axes[0].lines if line.get_label() == 'tau with test_acc')
    assert line.get_ydata() == pytest.approx([tau(estimates[epoch], accuracies) for epoch in (1, 2, 3)])


def test_an_epoch_without_any_order_is_named(small, tmp_path):
    """Its estimates are all equal, as are those of a supernet at chance level; the other pairs still have their tau."""
    strategy = small(criterion='random', search_budget=9, keep_epochs=[2], workdir=tmp_path / 'run')
    samples = [{'stem': stem, 'body': body} for stem in range(3) for body in range(3)]
    found = {epoch: [m['val_loss'] for m in strategy.evaluate(samples, epoch=epoch)] for epoch in (1, 2, 3)}
    strategy.evaluate(samples, calibration_batches=0)
    scores = RunFolder(tmp_path / 'run').scores
    lines = read_lines(scores, ())
    equal = {line['weights'] for line in lines if line['metrics']['val_loss'] in found[1]}
    scores.unlink()
    for line in lines:
        if line['weights'] in equal or not line['calibration_batches']:
            line['metrics']['val_loss'] = 1.25
        append_line(scores, line)
    page, text = page_of(tmp_path / 'run')
    assert f'S-Tau {tau(found[2], found[3]):.3f} (95 % ' in page.text
    assert 'All estimates of epoch 1 are equal, so they have no tau with others.' in page.text
    assert 'All estimates by 0 batches are equal' in page.text
    _, *rows = rows_of(text, 'id="over-training"')
    assert [row[1] for row in rows] == ['-', '-', f'{tau(found[2], found[3]):.3f}']


def test_without_scores_of_two_epochs_there_is_no_section(small, tmp_path):
    """Nor for two architectures; and what is scored of earlier epochs is no network of the leaves."""
    strategy = small(criterion='random', search_budget=9, workdir=tmp_path / 'run')
    before, _ = page_of(tmp_path / 'run')
    assert not {'over-training', 'calibration'} & set(before.ids)
    samples = [model.sample for model in strategy.list_models(limit=9)]
    strategy.evaluate(samples[:2], epoch=1)
    strategy.evaluate(samples[:2], calibration_batches=0)
    page, _ = page_of(tmp_path / 'run')
    assert page.text == before.text
    strategy.evaluate(samples[2:3], epoch=1)
    page, _ = page_of(tmp_path / 'run')
    assert 'over-training' in page.ids
    assert 'The same 3 architectures, scored with the weights of 2 epochs' in page.text


def test_an_epoch_of_few_architectures_does_not_hide_the_others(small, tmp_path):
    strategy = small(criterion='random', search_budget=9, keep_epochs=[2], workdir=tmp_path / 'run')
    samples = [model.sample for model in strategy.list_models(limit=9)]
    strategy.evaluate(samples[:1], epoch=1)
    strategy.evaluate(samples[:7], epoch=2)
    page, text = page_of(tmp_path / 'run')
    assert 'The same 7 architectures, scored with the weights of 2 epochs' in page.text
    assert [row[0] for row in rows_of(text, 'id="over-training"')] == ['epoch', '2', '3']


def test_truth_of_a_space_of_the_user_is_known_over_training(small, tmp_path):
    strategy = small(criterion='random', workdir=tmp_path / 'run')
    samples = [{'stem': stem, 'body': body} for stem in range(3) for body in range(3)]
    for epoch in strategy.tree.kept_epochs:
        strategy.evaluate(samples, epoch=epoch)
    truth = tmp_path / 'truth.csv'
    pd.DataFrame({'arch': map(json.dumps, samples), 'test_acc': range(9)}).to_csv(truth, index=False)
    _, text = page_of(tmp_path / 'run', '--truth', truth)
    header, *rows = rows_of(text, 'id="over-training"')
    assert header == ['epoch', 'S-Tau', 'tau', 'P@5 %', 'regret']
    last = [-metrics['val_loss'] for metrics in strategy.evaluate(samples)]
    assert float(rows[-1][2]) == pytest.approx(tau(last, range(9)), abs=6e-4)
