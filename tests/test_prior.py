"""A prior: ranks against brute force, and what a search finds with it."""

import json
import logging
import math
import re
from itertools import pairwise

from nni_naslid import NASLID
from nni_naslid.analysis.report import Column, report_page
from nni_naslid.analysis.truth import arch_name
from nni_naslid.run.record import read_record
from nni_naslid.search.prior import Prior
from nni_naslid.train import structure

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nni.nas.strategy import GridSearch
from scipy.stats import kendalltau, percentileofscore
from small import Convs, make_evaluator

finite = st.floats(-1e6, 1e6).map(lambda value: round(value, 2))


@given(st.lists(finite, min_size=2, max_size=30), st.lists(finite, min_size=1, max_size=5), st.floats(0, 3))
def test_a_score_is_the_sum_of_two_ranks(references, values, weight):
    prior = Prior(references, references[::-1], weight)
    for value in references:
        rank, other = (percentileofscore(references, each, 'mean') / 100 for each in (value, references[0]))
        assert prior.score(value, references[0]) == pytest.approx(rank + weight * other)
    scores = [prior.score(value, 0) for value in sorted({*values, *references})]
    assert all(one <= other + 1e-12 for one, other in pairwise(scores))
    slack = (1 + weight) / len(references)
    assert all(-slack <= score <= 1 + weight + slack for score in scores)


def test_networks_beyond_all_references_are_told_apart():
    prior = Prior([1, 2, 3, 4], [10, 20, 30, 40], 0.5)
    assert prior.score(4, 0) < prior.score(4.1, 0) < prior.score(9, 0) < prior.score(9, 45)
    assert prior.score(2, 20) == pytest.approx(0.375 + 0.5 * 0.375)
    assert prior.score(math.nan, 40) == prior.score(-math.inf, 40) == -math.inf
    assert Prior([math.nan, 1, 2], [1, 1, 1], 1).score(1.5, 1) == pytest.approx(0.5 + 0.5)


def test_a_search_goes_by_both(small, tmp_path, caplog, monkeypatch):
    """All nine networks, so that the order is told by hand from the metrics and sizes of the references."""
    prior = 'parameters'
    monkeypatch.setattr(structure, 'MOST', 10)  # as in a large space, whose sizes are counted in round units
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    with caplog.at_level(logging.INFO):
        strategy = small(
            make_evaluator(), criterion='random', search=GridSearch(), search_budget=9, prior=prior, prior_weight=2
        )
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
    assert f'Prior: scoring 100 random networks, to rank others among them by val_loss and by {prior}.' in caplog.text
    assert f'the best has val_loss {-metrics[0]:.4f} and {sizes[0]:,} {prior}: ' in caplog.text
    names = [arch_name(sample) for sample in samples]
    truth = Column('truth', pd.Series(sizes, names, dtype=float))  # as if the largest were the best
    page = report_page(read_record(tmp_path), truth)
    assert f'(smaller is better) and, as a prior, by {prior}.' in page
    rows = dict(re.findall('<tr><td class=text>([^<]*), of the search</td><td>9</td><td>([^<]*)</td>', page))
    combined = kendalltau([model.metric for model in models], sizes).statistic
    assert rows == {
        f'val_loss and {prior}': f'{combined:.3f}',
        'val_loss': f'{kendalltau(metrics, sizes).statistic:.3f}',
        prior: '1.000',
    }
    again = small(
        make_evaluator(), criterion='random', search=GridSearch(), search_budget=9, prior=prior, prior_weight=2
    )
    assert [model.metric for model in again.list_models(limit=9)] == [model.metric for model in models]


def test_other_priors_search_the_same_tree_again(small, tmp_path):
    heads = []
    for arguments in ({}, {'prior': 'parameters', 'prior_weight': 100}, {'prior': 'parameters', 'prior_weight': 0}):
        strategy = small(make_evaluator(), criterion='random', search=GridSearch(), search_budget=9, **arguments)
        heads.append([model.sample for model in strategy.list_models(limit=9)])
    sizes = [sum(weight.numel() for weight in Convs().freeze(sample).parameters()) for sample in heads[1]]
    assert sizes == sorted(sizes, reverse=True)
    assert heads[0] == heads[2] != heads[1]


@pytest.mark.parametrize(
    'given, match',
    [
        ({'prior': 'flops'}, "prior must be None, or one of parameters, but got 'flops'"),
        ({'prior_weight': -1}, 'prior_weight must be a number of at least 0 and below inf, but got -1'),
    ],
)
def test_priors_that_cannot_work_are_refused(given, match):
    with pytest.raises(ValueError, match=match):
        NASLID(**given)
