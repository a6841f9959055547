"""Bands of what is predicted: a fit against what it was made of, and bands of a run against all networks by hand."""

import json
from itertools import product

from nni_naslid import Bands, SubSpace, lid_score
from nni_naslid.criteria.predicted import predicted_score

import pytest
import torch
from nni.mutable import Categorical
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.strategy import RandomOneShot
from numpy.random import RandomState
from scipy.stats import rankdata, spearmanr
from small import Convs, images, make_evaluator

LABELS = 'abcde'
SPACE = SubSpace({label: Categorical([0, 1, 2], label=label) for label in LABELS})
EVERYTHING = [dict(zip(LABELS, choices, strict=True)) for choices in product(range(3), repeat=5)]


def fitted(value, n: int = 150):
    """A score that is fitted to the ranks of some random samples; R2; what it says of all, and what is true of all."""
    random_state = RandomState(0)
    samples = [SPACE.sample(random_state) for _ in range(n)]
    score, explained = predicted_score(SPACE, samples, rankdata([value(each) for each in samples]) / n, 'value')
    return explained, [score.of(sample) for sample in EVERYTHING], [value(sample) for sample in EVERYTHING], score


def test_a_sum_is_found():
    weights = RandomState(1).randn(5, 3)
    explained, found, true, score = fitted(
        lambda sample: sum(weights[i][sample[label]] for i, label in enumerate(LABELS))
    )
    assert explained > 0.9
    assert spearmanr(found, true).statistic > 0.98
    assert all(len(term.labels) < 2 for term in score.terms)  # pairs bring nothing
    assert score.count().size() == 3**5


def test_pairs_of_labels_are_taken_where_they_pay():
    explained, found, true, score = fitted(lambda sample: (sample['a'] == sample['d']) + 0.1 * sample['b'], 400)
    assert explained > 0.8
    assert spearmanr(found, true).statistic > 0.9
    assert {term.labels for term in score.terms if len(term.labels) == 2} >= {('a', 'd')}


def test_chance_is_not_explained():
    noise = dict(zip(map(str, EVERYTHING), RandomState(2).rand(len(EVERYTHING)), strict=True))
    explained, *_ = fitted(lambda sample: noise[str(sample)])
    assert explained < 0.1
    assert fitted(lambda sample: 1)[0] == 0


def test_where_pairs_cannot_be_counted_single_labels_are_taken():
    """Thirty labels that all depend on each other."""
    labels = [f'l{i:02}' for i in range(30)]
    space = SubSpace({label: Categorical([0, 1, 2], label=label) for label in labels})
    random_state = RandomState(0)
    samples = [space.sample(random_state) for _ in range(300)]
    values = [sum(each.values()) + 5 * (each['l00'] == each['l29']) for each in samples]
    score, explained = predicted_score(space, samples, rankdata(values) / 300, 'value')
    assert explained > 0.5
    assert score.count().size() == 3**30


def size(sample):
    """A cost of the user's."""
    return 3 * sample['stem'] + (sample['body'] == 2)


def test_a_run_in_bands_of_features_and_size(small, tmp_path):
    """Each leaf has the networks whose predicted rank is in its range; the page and the log name it."""
    made = make_evaluator(train=DataLoader(images(), 24))
    strategy = small(made, criterion=Bands({'live_parameters': 1, 'lid': 0.5, size: -0.1}, max_groups=2, paths=60))
    one, other = strategy.leaves
    name = 'predicted rank by live_parameters and lid and test_predicted.size'
    evidence = strategy.tree.split.evidence
    assert evidence.explained > 0.5
    assert evidence.describe().endswith(f'R2 of other paths {evidence.explained:.2f}')
    assert one.subspace.size + other.subspace.size == 9
    assert next(iter(one.subspace.narrowed(strategy.tree.subspace))) == name
    # Against all nine networks by hand.
    samples = [{'stem': stem, 'body': body} for stem, body in product(range(3), repeat=2)]
    supernet = RandomOneShot().mutate_model(Convs())
    weights = torch.load(tmp_path / 'node-0.ckpt', weights_only=True)['state_dict']
    supernet.load_state_dict({key.rpartition('model.')[2]: weight for key, weight in weights.items()}, strict=False)
    lid = lid_score(supernet, samples, images().tensors[0].split(24))
    sizes = [sum(weight.numel() for weight in Convs().freeze(sample).parameters()) for sample in samples]
    ranks = rankdata(sizes) + 0.5 * rankdata(lid) - 0.1 * rankdata([size(sample) for sample in samples])
    mean = [ranks[[leaf.subspace.covers(sample) for sample in samples]].mean() for leaf in (one, other)]
    assert mean[0] < mean[1]
    overall = spearmanr(ranks, [one.subspace.score.of(sample) for sample in samples]).statistic
    assert overall > 0.9
    again = json.loads((tmp_path / 'node-0.json').read_text())['split']['evidence']
    assert again['explained'] == evidence.explained


@pytest.mark.parametrize(
    'score, match',
    [
        (
            'depth',
            'score must be of convolutions, nonlinearities, parameters, random, live_parameters, flops, latency, lid',
        ),
        ({'random': 1}, 'score must be of convolutions'),
        ({'lid': 0}, 'score: the weight of lid must be a number, and not 0'),
        (lambda sample: 1, 'score: a function must be at the top of a module'),
        ({}, 'score must name a cost'),
    ],
)
def test_scores_that_there_are_not(score, match):
    with pytest.raises(ValueError, match=match):
        Bands(score)


def nothing(sample):
    """A cost that does not tell networks apart."""
    return 1


def test_what_cannot_be_predicted_is_not_split(small):
    strategy = small(make_evaluator(), criterion=Bands(nothing, max_groups=2, paths=50))
    assert len(strategy.leaves) == 1
    assert 'explains 0.00 of the variance of the predicted rank by test_predicted.nothing (R2), less than 0.2' in (
        strategy.tree.split.evidence.objection
    )


def test_costs_that_cannot_be_had_are_said_before_training(small):
    with pytest.raises(ValueError, match=r'score: test_predicted\.gone cannot be imported'):
        small(make_evaluator(), criterion=Bands('test_predicted.gone', max_groups=2))
    with pytest.raises(ValueError, match=r'score: there is no lid: .* takes 20 neighbours'):
        small(make_evaluator(train=DataLoader(images(), 12)), criterion=Bands('lid', max_groups=2))
