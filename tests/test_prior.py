"""A prior: ranks against brute force, what a search finds with it, and which costs it takes."""

import functools
import json
import logging
import math
import re
from itertools import pairwise

from nni_naslid import NASLID, lid_score
from nni_naslid.analysis.compare import compare
from nni_naslid.analysis.report import Column, report_page
from nni_naslid.analysis.truth import arch_name
from nni_naslid.run.record import read_record
from nni_naslid.search.prior import Prior
from nni_naslid.train import structure

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.strategy import GridSearch, RandomOneShot
from scipy.stats import kendalltau, percentileofscore, rankdata
from small import Convs, images, make_evaluator

finite = st.floats(-1e6, 1e6).map(lambda value: round(value, 2))


@given(st.lists(finite, min_size=2, max_size=30), st.lists(finite, min_size=1, max_size=5), st.floats(0, 3))
def test_a_score_is_the_sum_of_ranks(references, values, weight):
    prior = Prior(references, {'a': references[::-1], 'b': references}, {'a': weight, 'b': -1})
    for value in references:
        rank, other = (percentileofscore(references, each, 'mean') / 100 for each in (value, references[0]))
        assert prior.score(value, {'a': references[0], 'b': value}) == pytest.approx(weight * other)  # rank - rank
        assert prior.score(value, {'a': value, 'b': references[0]}) == pytest.approx((1 + weight) * rank - other)
    scores = [prior.score(value, {'a': 0, 'b': 0}) for value in sorted({*values, *references})]
    assert all(one <= other + 1e-12 for one, other in pairwise(scores))
    slack = (2 + weight) / len(references)
    assert all(-1 - slack <= score <= 1 + weight + slack for score in scores)


def test_networks_beyond_all_references_are_told_apart():
    prior = Prior([1, 2, 3, 4], {'size': [10, 20, 30, 40]}, {'size': 0.5})
    scores = [prior.score(metric, {'size': size}) for metric, size in ((4, 0), (4.1, 0), (9, 0), (9, 45))]
    assert scores == sorted({*scores})
    assert prior.score(2, {'size': 20}) == pytest.approx(0.375 + 0.5 * 0.375)
    assert Prior([math.nan, 1, 2], {'size': [1, 1, 1]}, {'size': 1}).score(1.5, {'size': 1}) == pytest.approx(1)


def test_what_is_not_finite_is_the_worst():
    """Of a network that diverged, or whose features did."""
    for weight in (0.5, -0.5):
        prior = Prior([1, 2, 3, 4], {'lid': [10, 20, 30, 40]}, {'lid': weight})
        assert prior.score(math.nan, {'lid': 40}) == prior.score(-math.inf, {'lid': 40}) == -math.inf
        assert prior.score(2, {'lid': math.nan}) <= min(prior.score(2, {'lid': value}) for value in (10, 40))


def test_a_search_goes_by_both(small, tmp_path, caplog, monkeypatch):
    """All nine networks, so that the order is told by hand from the metrics and sizes of the references."""
    prior = 'parameters'
    monkeypatch.setattr(structure, 'MOST', 10)  # as in a large space, whose sizes are counted in round units
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    with caplog.at_level(logging.INFO):
        strategy = small(make_evaluator(), criterion='random', search=GridSearch(), search_budget=9, prior={prior: 2})
    models = list(strategy.list_models(limit=9))
    samples = [model.sample for model in models]
    metrics = np.array([-each['val_loss'] for each in strategy.evaluate(samples)])
    sizes = [sum(weight.numel() for weight in Convs().freeze(sample).parameters()) for sample in samples]
    assert [model.metric for model in models] == sorted([model.metric for model in models], reverse=True)
    found = json.loads((tmp_path / 'search.json').read_text())['found']
    assert [each['val_loss'] for each in found] == pytest.approx((-metrics).tolist())
    assert [each[prior] for each in found] == sizes
    # With the weight of two, a network that is larger and has a better metric comes first.
    for i in range(9):
        for j in range(i):
            assert not (metrics[i] > metrics[j] and sizes[i] > sizes[j])
    assert 'the search scores 9 networks, and 100 to rank them among.' in caplog.text
    assert 'Search: 1 of 9 scored; the first so far has val_loss ' in caplog.text
    assert (
        'Prior: scoring 100 random networks. Others are ranked among them by val_loss +2 x parameters; ' in caplog.text
    )
    assert f'the best has val_loss {-metrics[0]:.4f} and {sizes[0]:,} {prior}: ' in caplog.text
    names = [arch_name(sample) for sample in samples]
    truth = Column('truth', pd.Series(sizes, names, dtype=float))  # as if the largest were the best
    page = report_page(read_record(tmp_path), truth)
    assert f'(smaller is better) and, as a prior, by {prior} (weight 2).' in page
    settings = dict(re.findall('<tr><td class=text>(search: [^<]*)</td><td class=text>([^<]*)</td>', page))
    assert settings['search: prior'] == '{&#x27;parameters&#x27;: 2.0}' and settings['search: search_budget'] == '9'
    both = rankdata(metrics) + 2 * rankdata(sizes)
    tau = f'{kendalltau(both, sizes).statistic:.3f}'
    rows = dict(re.findall('<tr><td class=text>([^<]*)</td><td>9</td><td>([^<]*)</td>', page))
    assert rows == {
        'all leaves': f'{kendalltau(metrics, sizes).statistic:.3f}',
        f'val_loss and {prior}': tau,
        'val_loss of the same networks': f'{kendalltau(metrics, sizes).statistic:.3f}',
        prior: '1.000',
    }
    record = read_record(tmp_path)
    (alone, with_prior), (pair,) = compare([record], truth.values)
    assert with_prior['run'] == f'{alone["run"]} with prior' and with_prior['tau'].startswith(f'{tau} [')
    assert pair.startswith(f'{with_prior["run"]} less {alone["run"]}: tau +')
    for sample, each, size in zip(samples, strategy.evaluate(samples), sizes, strict=True):
        assert each['parameters'] == size and each['with_prior'] == models[samples.index(sample)].metric
    assert 'with_prior' not in strategy.evaluate(samples, calibration_batches=3)[0]
    assert f'<h2 id="front">The front by val_loss and {prior}</h2>' in page
    # The page lists them in that order, too.
    table = re.search(r'<h3>The first 9 by val_loss and parameters \(weight 2\)</h3>(.*?)</table>', page, re.S)[1]
    cells = [re.findall('<td[^>]*>(.*?)</td>', row) for row in table.split('<tr>')[2:]]
    assert [row[2] for row in cells] == [f'{model.metric:.4g}' for model in models]
    assert [row[3] for row in cells] == [f'{size:,}' for size in sizes]
    assert f'<b>{-metrics[0]:.4g}</b><span>val_loss of the first network</span>' in page
    assert compare([record])[0][0]['settings'] == "lr_by_size=True, prior={'parameters': 2.0}"
    again = small(make_evaluator(), criterion='random', search=GridSearch(), search_budget=9, prior={prior: 2})
    assert [model.metric for model in again.list_models(limit=9)] == [model.metric for model in models]


def latency(sample):
    """A cost of the user's."""
    return 2 * sample['stem'] + (sample['body'] == 2) / 2


def test_other_priors_search_the_same_tree_again(small, caplog, monkeypatch):
    heads = []
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    for prior in (None, {'parameters': 100}, {'parameters': 1e-9}, {'parameters': 99, 'flops': 1e-9}, {latency: -100}):
        caplog.clear()
        caplog.set_level(logging.INFO)
        strategy = small(make_evaluator(), criterion='random', search=GridSearch(), search_budget=9, prior=prior)
        heads.append([model.sample for model in strategy.list_models(limit=9)])
    sizes = [sum(weight.numel() for weight in Convs().freeze(sample).parameters()) for sample in heads[1]]
    assert sizes == sorted(sizes, reverse=True)
    assert heads[0] == heads[2] != heads[1] == heads[3]
    costs = [latency(sample) for sample in heads[4]]
    assert costs == sorted(costs)
    assert 'search.json is of a search that differs in prior and functions: the search is done anew.' in caplog.text


@pytest.mark.slow
def test_features_and_live_parameters_as_priors(small, tmp_path):
    """What the search has kept of each network is what the functions say, with the weights that they are about."""
    costs = {'live_parameters': 1, 'lid': 0.5, 'initial_lid': 0.25, 'flops': 0.1, 'latency': -0.1}
    made = make_evaluator(train=DataLoader(images(), 24))
    strategy = small(made, criterion='random', search=GridSearch(), search_budget=9, prior=costs)
    found = json.loads((tmp_path / 'search.json').read_text())
    assert found['prior'] == costs
    batch = images().tensors[0][:24]
    for name, node in (('initial_lid', 'init'), ('lid', 'node-0')):
        supernet = RandomOneShot().mutate_model(Convs())
        weights = torch.load(tmp_path / f'{node}.ckpt', weights_only=True)['state_dict']
        supernet.load_state_dict({key.rpartition('model.')[2]: weight for key, weight in weights.items()}, strict=False)
        scores = lid_score(supernet, [each['choices'] for each in found['found']], batch)
        assert [each[name] for each in found['found']] == pytest.approx(scores.tolist(), rel=1e-5)
    for each in found['found']:
        assert each['live_parameters'] == sum(w.numel() for w in Convs().freeze(each['choices']).parameters())
        network = Convs().freeze(each['choices'])  # convolutions of 8 x 8 positions, and a linear layer
        products = {True: 64, False: 1}
        weights = [(w.numel(), products[w.ndim == 4]) for w in network.parameters() if w.ndim > 1]
        assert each['flops'] == 2 * sum(n * positions for n, positions in weights)  # of one image
        assert each['latency'] > 0
    names = [arch_name(each['choices']) for each in found['found']]
    truth = Column('truth', pd.Series(range(9), names, dtype=float))
    page = report_page(read_record(tmp_path), truth)
    rows = dict(re.findall('<td class=text>([^<]*)</td><td>9</td><td>([^<]*)</td>', page))
    names = [' and '.join(['val_loss', *costs]), 'val_loss of the same networks', *costs, ' and '.join(costs)]
    assert [*rows][-len(names) :] == names
    alone = sum(weight * rankdata([each[name] for each in found['found']]) for name, weight in costs.items())
    assert rows[' and '.join(costs)] == f'{kendalltau(alone, range(9)).statistic:.3f}'
    assert len(strategy.leaves) == 2


@pytest.mark.parametrize(
    'prior, match',
    [
        (
            'size',
            'prior must be of parameters, live_parameters, flops, latency, lid, initial_lid, or a function .* got',
        ),
        ({}, 'prior must name a cost, but got {}'),
        ({'lid': 0}, 'prior: the weight of lid must be a number, and not 0, but is 0'),
        ({'lid': math.inf}, 'the weight of lid must be a number, and not 0, but is inf'),
        (lambda sample: 1, 'prior: a function must be at the top of a module, but got <function <lambda>'),
        (3, 'prior must be a cost, or a dict of costs and weights, but got 3'),
        (['lid'], r"prior must be a cost, or a dict of costs and weights, but got \['lid'\]"),
        (NASLID.evaluate, 'prior: a function must be at the top of a module, but got <function NASLID.evaluate'),
        (functools.wraps(latency)(lambda sample: 2), 'prior: a function must be at the top of a module'),
    ],
)
def test_priors_that_cannot_work_are_refused(prior, match):
    with pytest.raises(ValueError, match=match):
        NASLID(prior=prior)


calls = []


def measured(sample):
    """Another number each time, of NumPy."""
    calls.append(sample)
    return np.float32(len(calls))


def test_each_network_is_measured_once(small, tmp_path):
    """So the order, and what is kept of it, are of the same numbers; they are numbers of Python."""
    calls.clear()
    small(make_evaluator(), criterion='random', search=GridSearch(), search_budget=9, prior={measured: 100})
    tried = len(calls) - 9
    assert [calls[tried:].count(sample) for sample in calls[tried:]] == [1] * 9
    found = json.loads((tmp_path / 'search.json').read_text())['found']
    costs = [each['test_prior.measured'] for each in found]
    assert costs == sorted(costs, reverse=True) and set(costs) == set(range(tried + 1, tried + 10))
    (tmp_path / 'search.json').unlink()  # as if killed just before it was written
    calls.clear()
    small(make_evaluator(), criterion='random', search=GridSearch(), search_budget=9, prior={measured: 100})
    assert len(calls) == tried  # those of the check before training
    assert json.loads((tmp_path / 'search.json').read_text())['found'] == found


def text(sample):
    return 'large'


def fails(sample):
    return sample['head']


@pytest.mark.parametrize(
    'prior, match',
    [
        ('nowhere.size', r"prior: nowhere.size cannot be imported \(No module named 'nowhere'\)"),
        ('math.pi', 'prior: math.pi must be a function of an architecture, but is 3.14'),
        ('math.size', r"prior: math.size cannot be imported \(module 'math' has no attribute 'size'\)"),
        (text, "prior: test_prior.text must be a number, but is 'large', of the architecture {'stem': 0"),
        (fails, "prior: test_prior.fails raised KeyError: 'head', of the architecture {'stem': 0"),
    ],
)
def test_costs_that_cannot_be_had_are_said_before_training(small, prior, match):
    with pytest.raises(ValueError, match=match):
        small(make_evaluator(), prior=prior)


def test_lid_needs_batches(small):
    made = make_evaluator(train=DataLoader(images(), 8))
    with pytest.raises(
        ValueError,
        match=r'prior: lid cannot be had: LID takes 20 neighbours, so training batches must have at least 21 samples',
    ):
        small(made, criterion='random', prior='lid')
