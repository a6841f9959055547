"""Bands of what is predicted: a fit against what it was made of, and bands of a run against all networks by hand."""

import json
import math
import subprocess
import sys
from itertools import product
from pathlib import Path

from nni_naslid import Bands, SubSpace, lid_score
from nni_naslid.cli import main
from nni_naslid.criteria.bands import ByScore
from nni_naslid.criteria.predicted import predicted_score, ranks_of_paths
from nni_naslid.run.spec import identity_of_spec

import numpy as np
import pytest
import torch
from nni.mutable import Categorical
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, Repeat
from nni.nas.strategy import RandomOneShot
from numpy.random import RandomState
from scipy.stats import rankdata, spearmanr
from small import Convs, images, make_context, make_evaluator
from torch import nn

LABELS = 'abcde'
SPACE = SubSpace({label: Categorical([0, 1, 2], label=label) for label in LABELS})
EVERYTHING = [dict(zip(LABELS, choices, strict=True)) for choices in product(range(3), repeat=5)]


def fitted(value, n: int = 150):
    """A score that is fitted to the ranks of some random samples; R2; what it says of all, and what is true of all."""
    samples = [EVERYTHING[i] for i in RandomState(0).permutation(len(EVERYTHING))[:n]]
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
    explained, found, true, score = fitted(lambda sample: (sample['a'] == sample['d']) + 0.1 * sample['b'], 200)
    assert explained > 0.8
    assert spearmanr(found, true).statistic > 0.9
    pairs = {term.labels: np.ptp(term.table) for term in score.terms if len(term.labels) == 2}
    assert max(pairs, key=pairs.get) == ('a', 'd')


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
    name = 'predicted rank by lid and live_parameters and test_predicted.size'
    evidence = strategy.tree.split.evidence
    assert evidence.explained > 0.5
    assert evidence.describe().endswith(f'R2 of other paths {evidence.explained:.2f}')
    assert evidence.scalars()['passes'] == 9 * (3 + 1)  # a gradient counts thrice; there are nine networks
    assert one.subspace.size + other.subspace.size == 9
    assert next(iter(one.subspace.narrowed(strategy.tree.subspace))) == name
    # Against all nine networks by hand.
    samples = [{'stem': stem, 'body': body} for stem, body in product(range(3), repeat=2)]
    supernet = RandomOneShot().mutate_model(Convs())
    weights = torch.load(tmp_path / 'node-0.ckpt', weights_only=True)['state_dict']
    supernet.load_state_dict({key.rpartition('model.')[2]: weight for key, weight in weights.items()}, strict=False)
    lid = lid_score(supernet, samples, images().tensors[0][:24])
    sizes = [sum(weight.numel() for weight in Convs().freeze(sample).parameters()) for sample in samples]
    ranks = rankdata(sizes) + 0.5 * rankdata(lid) - 0.1 * rankdata([size(sample) for sample in samples])
    mean = [ranks[[leaf.subspace.covers(sample) for sample in samples]].mean() for leaf in (one, other)]
    assert mean[0] < mean[1]
    overall = spearmanr(ranks, [one.subspace.ranges[0].score.of(sample) for sample in samples]).statistic
    assert overall > 0.9
    again = json.loads((tmp_path / 'node-0.json').read_text())['split']['evidence']
    assert again['explained'] == evidence.explained


def test_it_is_the_default(run, tmp_path):
    strategy = run((1,), criterion=None, paths=60, epochs=2)
    evidence = strategy.tree.split.evidence
    assert evidence.score == 'predicted rank by lid and live_parameters'
    assert strategy.settings.criterion == Bands({'live_parameters': 1, 'lid': 0.5}, max_groups=4, paths=60)
    assert strategy.settings.criterion.cost(strategy.leaves[0].subspace) == 0  # its parts go by the same sum
    assert len(strategy.leaves) == 4 and sum(leaf.subspace.size for leaf in strategy.leaves) == 15625
    assert evidence.scalars()['passes'] == 60 * (3 + 1)
    assert main(['report', str(tmp_path)]) == 0
    assert '<td>240</td>' in (tmp_path / 'report.html').read_text()


class Elastic(ModelSpace):
    """Up to three blocks, whose kernels are not read beyond the depth; and one of two inputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.body = Repeat(
            lambda i: LayerChoice([nn.Conv2d(8, 8, k, padding=k // 2) for k in (1, 3, 5)], label=f'kernel{i}'),
            (1, 3),
            label='depth',
        )
        self.inputs = InputChoice(2, 1, label='input')
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.inputs([x, self.body(x)]).mean((2, 3)))


def kernels(sample):
    """A cost of what is read, and of which input is taken."""
    read = [(1, 3, 5)[sample[f'kernel{i}']] for i in range(sample['depth'])]
    return sum(read) + 40 * sample['input'][0]


def test_samples_of_one_network_are_in_one_band(tmp_path):
    """Kernels beyond the depth make no difference; one of several inputs is a label like others."""
    split = Bands(kernels, max_groups=4, paths=300).choose(
        make_context(make_evaluator(), RandomOneShot().mutate_model(Elastic()), tmp_path / 'notes.jsonl')
    )
    assert split.evidence.explained > 0.9
    score, scores = split.children[0].ranges[0].score, {}
    for *kernel, depth, taken in product(range(3), range(3), range(3), (1, 2, 3), range(2)):
        sample = {**{f'kernel{i}': kernel[i] for i in range(3)}, 'depth': depth, 'input': [taken]}
        scores.setdefault((taken, *kernel[:depth]), set()).add(score.of(sample))
    assert len(scores) == 2 * (3 + 9 + 27)
    assert all(len(of_network) == 1 for of_network in scores.values())
    of_input = [[min(each) for network, each in scores.items() if network[0] == taken] for taken in range(2)]
    assert np.mean(of_input[0]) + 400 < np.mean(of_input[1])


def steps(sample):
    """A cost that is not always known."""
    return math.inf if (sample['stem'], sample['body']) == (1, 1) else 3 * sample['stem'] + sample['body']


@pytest.mark.parametrize('weight', [2.0, -0.5])
def test_ranks_of_paths(tmp_path, weight):
    """All nine networks by hand; what is not finite is the worst, whatever the sign of its weight."""
    context = make_context(make_evaluator(), RandomOneShot().mutate_model(Convs()), tmp_path / 'notes.jsonl')
    samples, ranks = ranks_of_paths(context, {'test_predicted.steps': weight}, 200)
    assert len(samples) == 9
    worth = [-math.inf if steps(sample) == math.inf else weight * steps(sample) for sample in samples]
    assert ranks[np.argsort(worth)] == pytest.approx((np.arange(9) + 0.5) / 9)


def test_all_networks_of_a_small_space_may_be_known():
    """A sum is found in nine networks; noise is not, known or not."""
    space = SubSpace({label: Categorical([0, 1, 2], label=label) for label in 'ab'})
    samples = [{'a': a, 'b': b} for a, b in product(range(3), repeat=2)]
    values = np.array([4 * sample['a'] + sample['b'] for sample in samples]) / 9
    score, explained = predicted_score(space, samples, values, 'sum')
    assert explained > 0.95
    assert [score.of(sample) for sample in samples] == sorted(score.of(sample) for sample in samples)
    noise = RandomState(0).permutation(9) / 9
    for n in (9, 8, 1):
        assert predicted_score(space, samples[:n], noise[:n], 'noise')[1] < 0.2


class Inputs(ModelSpace):
    """Nothing that could be split: two of three inputs."""

    def __init__(self):
        super().__init__()
        self.inputs = InputChoice(3, 2, label='inputs')
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        x = x.mean((2, 3))
        return self.head(self.inputs([x, 2 * x, 3 * x]))


def test_a_space_without_a_label_that_can_be_split():
    assert not Bands('flops').can_split(SubSpace.of(RandomOneShot().mutate_model(Inputs())))


MEASURED = {}


def measured(sample):
    """A function that keeps what it has measured."""
    return MEASURED.setdefault(str(sample), float(sample['stem'] + sample['body']))


RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from nni_naslid import NASLID, Bands
from nni.nas.experiment import NasExperiment
from nni.nas.strategy import GridSearch
from small import Convs, make_evaluator
from test_predicted import measured

strategy = NASLID(
    [2], criterion=Bands(measured, max_groups=2, paths=50), prior={measured: 100}, search=GridSearch(), search_budget=9,
    workdir=sys.argv[2],
)
experiment = NasExperiment(Convs(), make_evaluator(), strategy)
assert experiment.run()
experiment.stop()
"""


@pytest.mark.slow
def test_a_function_that_keeps_what_it_has_measured_is_the_same_in_the_next_process(tmp_path):
    """The run goes on, and no cost is asked again."""
    kept = []
    for _ in range(2):
        command = [sys.executable, '-W', 'ignore', '-c', RUN, str(Path(__file__).parent), str(tmp_path / 'run')]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        kept.append((tmp_path / 'run' / 'costs.jsonl').read_text())
        (tmp_path / 'run' / 'search.json').unlink()
    assert kept[0] == kept[1]
    assert kept[0].count('\n') == 9


def test_the_order_of_scores_makes_no_difference():
    one, other = Bands({'lid': 1, 'flops': 2}), Bands({'flops': 2, 'lid': 1})
    assert list(one.score.items()) == list(other.score.items())
    with pytest.raises(ValueError, match=r'score names test_predicted\.size twice'):
        Bands({size: 1, 'test_predicted.size': 2})


def test_runs_of_earlier_versions_go_on():
    assert 'paths' not in identity_of_spec(Bands('convolutions'))


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


def test_what_is_not_explained_is_objected_to():
    sizes = [(0, 40), (500, 60)]
    assert ByScore('rank by luck', sizes, [(0, 0), (500, 500)], None, 0.2).objection is None
    assert ByScore('rank by luck', sizes, [(0, 0), (500, 500)], None, 0.19).objection == (
        'a sum of terms explains 0.19 of the variance of the rank by luck (R2), less than 0.2'
    )


def nothing(sample):
    """A cost that does not tell networks apart."""
    return 1


def test_what_cannot_be_predicted_is_not_split(small):
    strategy = small(make_evaluator(), criterion=Bands(nothing, max_groups=2, paths=50))
    assert len(strategy.leaves) == 1
    assert (
        strategy.tree.split.evidence.objection == 'all architectures have 500 predicted rank by test_predicted.nothing'
    )


def test_costs_that_cannot_be_had_are_said_before_training(small):
    with pytest.raises(ValueError, match=r'score: test_predicted\.gone cannot be imported'):
        small(make_evaluator(), criterion=Bands('test_predicted.gone', max_groups=2))
    with pytest.raises(
        ValueError, match=r'score: lid cannot be had: LID takes 20 neighbours, so training batches must'
    ):
        small(make_evaluator(train=DataLoader(images(), 12)), criterion=Bands('lid', max_groups=2))
