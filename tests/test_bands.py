"""Bands of whole networks: against brute force; their scores against the modules of NNI's own frozen networks."""

import json
import sys
from collections import Counter
from itertools import combinations, product
from types import SimpleNamespace

from nni_naslid import NASLID, Bands, SubSpace
from nni_naslid.analysis.baselines import nasbench201_costs
from nni_naslid.analysis.compare import estimates
from nni_naslid.analysis.report import report_page
from nni_naslid.analysis.truth import DIGITS_TRUTH, load_truth, nasbench201_sample
from nni_naslid.run.record import read_record
from nni_naslid.space.additive import AdditiveScore, Term
from nni_naslid.space.band import Band
from nni_naslid.train import structure
from nni_naslid.train.path import labels_read
from nni_naslid.train.structure import structural_score

import nni
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nni.mutable import Categorical
from nni.nas.hub.pytorch import DARTS, AutoFormer, MobileNetV3Space, NasBench201, ProxylessNAS
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableConv2d, MutableLinear, Repeat
from nni.nas.strategy import RandomOneShot
from numpy.random import RandomState
from scipy.stats import chisquare, kendalltau, rankdata
from small import Convs, make_evaluator
from torch import nn

LABELS = 'abcd'


@st.composite
def bands(draw):
    """A space, a score with single and paired terms, a range, and the samples that it must hold."""
    values = {label: list('xyz'[: draw(st.integers(1, 3))]) for label in LABELS}
    space = SubSpace({label: Categorical(choices, label=label) for label, choices in values.items()})
    entries = st.integers(-4, 4)
    read = [(label,) for label in LABELS] + [('a', 'c')] * draw(st.booleans())
    tables = []
    for labels in read:
        keys = list(product(*(values[label] for label in labels)))
        tables.append(dict(zip(keys, draw(st.lists(entries, min_size=len(keys), max_size=len(keys))), strict=True)))
    terms = [
        Term(labels, torch.tensor(list(table.values())).view([len(values[label]) for label in labels]).numpy())
        for labels, table in zip(read, tables, strict=True)
    ]
    low = draw(st.integers(-8, 8))
    high = draw(st.integers(low, 12))
    samples = [dict(zip(LABELS, choices, strict=True)) for choices in product(*values.values())]
    scores = [
        sum(table[tuple(sample[label] for label in labels)] for labels, table in zip(read, tables, strict=True))
        for sample in samples
    ]
    inside = [sample for sample, score in zip(samples, scores, strict=True) if low <= score <= high]
    return space, AdditiveScore(space, terms, 'weight'), low, high, inside


def keys(samples) -> set:
    return {tuple(sample[label] for label in LABELS) for sample in samples}


@settings(max_examples=80, deadline=None)
@given(bands())
def test_a_band_holds_the_samples_whose_score_is_in_its_range(case):
    space, score, low, high, inside = case
    if not inside:
        with pytest.raises(ValueError, match=f'No sample has weight from {low} to {high}; those of this sub-space go'):
            Band(space, score, low, high)
        return
    band = Band(space, score, low, high)
    everything = [dict(zip(LABELS, choices, strict=True)) for choices in product(*space.to_dict().values())]
    assert keys(sample for sample in everything if sample in band) == keys(inside)
    assert band.size == len(inside) == sum(band.histogram(score.name).values())
    assert band.to_dict() == {
        label: [choice for choice in choices if any(sample[label] == choice for sample in inside)]
        for label, choices in space.to_dict().items()
    }
    random_state = RandomState(0)
    assert keys(band.sample(random_state) for _ in range(20)) <= keys(inside)


@settings(max_examples=60, deadline=None)
@given(bands(), st.integers(-8, 12), st.integers(0, 30))
def test_bands_of_bands_and_their_halves_are_the_same_when_read_again(case, middle, seed):
    space, score, low, high, inside = case
    assume(inside)
    band = Band(space, score, low, high)
    parts = [band.split(label, [[0], list(range(1, len(choices)))]) for label, choices in band.splittable.items()]
    assert all(keys(inside) == keys(s for s in inside if s in one) | keys(s for s in inside if s in other)
               and one.size + other.size == band.size for one, other in parts)  # fmt: skip
    for whole, part in [(space, band), *((band, half) for pair in parts for half in pair)]:
        again = whole.decode_part(json.loads(json.dumps(whole.encode_part(part))))
        draws = [[each.sample(RandomState(seed + i)) for i in range(3)] for each in (part, again)]
        assert draws[0] == draws[1]
    halves = []
    for ends in ((low, middle), (middle + 1, high)):
        try:
            halves.append(Band(band, score, *ends))
        except ValueError:
            continue
    assert sum(half.size for half in halves) == band.size
    if len(halves) == 2:
        band.check_parts(halves)
        with pytest.raises(ValueError, match='in common'):
            band.check_parts([*halves, band])


def test_draws_are_uniform():
    space = SubSpace({label: Categorical([0, 1, 2], label=label) for label in LABELS})
    score = AdditiveScore(space, [Term((label,), [0, 1, 2]) for label in LABELS], 'sum')
    band, random_state = Band(space, score, 3, 4), RandomState(0)
    assert band.size == 16 + 19  # coefficients of (1 + x + x^2)^4
    counts = Counter(tuple(band.sample(random_state).values()) for _ in range(35 * 100))
    assert len(counts) == 35 and chisquare(list(counts.values())).pvalue > 0.001


def test_what_cannot_be_a_band_is_named():
    weights = SubSpace({'a': Categorical([0, 1], weights=[0.3, 0.7], label='a')})
    score = AdditiveScore(weights, [Term(('a',), [0, 1])])
    with pytest.raises(ValueError, match=r"drawn from uniformly, but the choices of 'a' have the weights \[0.3, 0.7\]"):
        Band(weights, score, 0, 1)
    space = SubSpace({'a': Categorical([0, 1, 2], label='a')})
    one, other = (
        AdditiveScore(space, [Term(('a',), table)], name) for name, table in (('one', [0, 1, 2]), ('two', [0, 1, 3]))
    )
    asked = 'No sample has one from 0 to 1 and two from 3 to 3; .* from 0 to 1 and from 0 to 1, with gaps'
    with pytest.raises(ValueError, match=asked):
        Band(Band(space, one, 0, 1), other, 3, 3)


def test_what_people_are_told_of_a_band():
    space = SubSpace({label: Categorical(['skip', 'conv', 'pool'], label=label) for label in LABELS})
    score = AdditiveScore(space, [Term((label,), [0, 1, 0]) for label in LABELS], 'convolutions')
    assert Band(space, score, 0, 0).narrowed(space) == {'convolutions': ['0']}  # that no label has a conv follows
    band = Band(space, score, 1, 3)
    assert band.narrowed(space) == {'convolutions': ['1 to 3']}
    assert band.narrow({'a': [0]}).narrowed(space) == {'convolutions': ['1 to 3'], 'a': ['skip']}
    assert band.narrow({'a': [0]}).narrowed(band) == {'a': ['skip']}
    pools = AdditiveScore(space, [Term((label,), [0, 0, 1]) for label in LABELS], 'pools')
    assert Band(band, pools, 0, 1).narrowed(band) == {'pools': ['0 to 1']}
    few = Band(space, score, 0, 1)  # if one is a convolution, the others are not
    assert few.narrow({'b': [1]}).narrowed(few) == {'b': ['conv']}
    assert few.narrow({'b': [0], 'c': [2]}).narrowed(few) == {'b': ['skip'], 'c': ['pool']}
    assert Band(band, pools, 0, 1).narrowed(space) == {'convolutions': ['1 to 3'], 'pools': ['0 to 1']}


# Scores of structure.

IS_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.GELU, nn.PReLU, nn.MaxPool2d)
ORACLES = {
    'convolutions': lambda network: sum(isinstance(module, IS_CONVOLUTION) for module in network.modules()),
    'nonlinearities': lambda network: sum(isinstance(module, ACTIVATIONS) for module in network.modules()),
    'parameters': lambda network: sum(weight.numel() for weight in network.parameters()),
}


class Mixed(ModelSpace):
    """Value choices that depend on each other, in a choice in a repeat, and modules with parameters of their own."""

    def __init__(self):
        super().__init__()

        width = nni.choice('width', [2, 4, 6])
        self.stem = MutableConv2d(3, width, nni.choice('kernel', [1, 3]))
        self.blocks = Repeat(
            lambda i: LayerChoice(
                {'conv': MutableConv2d(width, width, 1), 'act': nn.ReLU(), 'scale': nn.PReLU()}, label=f'block{i}'
            ),
            nni.choice('depth', [1, 2, 3]),
        )
        self.head = MutableLinear(width, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


SPACES = {
    'NasBench201': lambda: NasBench201(4, 2, 10),
    'DARTS': lambda: DARTS(width=4, num_cells=3, dataset='cifar'),
    'ProxylessNAS': lambda: ProxylessNAS(num_labels=10),
    'MobileNetV3': lambda: MobileNetV3Space(num_labels=10),
    'AutoFormer': AutoFormer,
    'mixed': Mixed,
}


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=pytest.mark.slow if name in ('MobileNetV3', 'ProxylessNAS') else ()) for name in SPACES],
)
@pytest.mark.filterwarnings('ignore')
def test_scores_are_those_of_the_networks_that_nni_makes(name, monkeypatch):
    supernet = RandomOneShot().mutate_model(SPACES[name]())
    space, random_state = SubSpace.of(supernet), RandomState(0)
    samples = [space.sample(random_state) for _ in range(4)]
    networks = [SPACES[name]().freeze(sample) for sample in samples]
    for what, oracle in ORACLES.items():
        rounded = structural_score(supernet, space, what)
        assert sum(rounded.count().histogram.values()) == space.size
        with monkeypatch.context() as patched:
            patched.setattr(structure, 'MOST', 10**9)
            score = structural_score(supernet, space, what)
        for sample, network in zip(samples, networks, strict=True):
            assert score.of(sample) == oracle(network)
            assert rounded.of(sample) * rounded.unit == pytest.approx(
                oracle(network), abs=rounded.unit * len(rounded.terms) / 2
            )


# The criterion.


def test_bands_of_nas_bench_201():
    """Numbers of convolutions are binomial: two of five candidates are convolutions, at six edges of three cells."""
    supernet = RandomOneShot().mutate_model(NasBench201(4, 1, 10))
    space = SubSpace.of(supernet)
    histogram = structural_score(supernet, space, 'convolutions').count().histogram
    fixed = min(histogram)
    assert {(score - fixed) // 3: n for score, n in histogram.items()} == {
        k: n for k, n in enumerate([729, 2916, 4860, 4320, 2160, 576, 64])
    }


def test_a_tree_of_bands(small, tmp_path, capsys):
    strategy = small(make_evaluator(epochs=4), split_epochs=(1, 2), criterion=Bands('parameters', max_groups=2))
    assert len(strategy.leaves) == 4
    sizes, where = {}, {}
    for stem, body in product(range(3), range(3)):
        sample = {'stem': stem, 'body': body}
        sizes[stem, body] = ORACLES['parameters'](Convs().freeze(sample))
        (where[stem, body],) = [leaf for leaf in strategy.leaves if leaf.subspace.covers(sample)]
    by_size = [where[sample].name for sample in sorted(sizes, key=sizes.get)]
    assert by_size == sorted(by_size) and len(set(by_size)) == 4
    for model in strategy.list_models(limit=9):
        sample = model.sample['stem'], model.sample['body']
        assert strategy.evaluate([model.sample])[0]['val_loss'] == pytest.approx(-model.metric)
        (inside,) = where[sample].subspace.ranges
        assert inside.low <= sizes[sample] <= inside.high
    record = read_record(tmp_path)
    assert [leaf.subspace.size for leaf in record.root.leaves] == [leaf.subspace.size for leaf in strategy.leaves]
    page = report_page(record)
    assert 'Split by parameters (' in page and f'<b>parameters</b>: {min(sizes.values()):,} to' in page


def test_networks_of_one_score_are_refused_before_training(small, tmp_path):
    class Alike(Convs):
        def __init__(self):
            super().__init__()
            self.stem = LayerChoice([nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)], label='stem')
            self.body = nn.Identity()

    with pytest.raises(ValueError, match=r'All networks of this space have 1 convolutions: there are no bands of them'):
        small(make_evaluator(), criterion='bands', score='convolutions', space=Alike)
    assert not (tmp_path / 'tree.json').exists()


def test_a_filter_that_empties_a_band_is_named_before_training(small, tmp_path):
    with pytest.raises(
        ValueError, match=r'the filter leaves no network of 2 convolutions, which would be a band of Bands'
    ):
        small(make_evaluator(), criterion=Bands('convolutions'), filter=lambda sample: sample['body'] == 2)
    assert not (tmp_path / 'tree.json').exists()
    strategy = small(make_evaluator(), criterion=Bands('convolutions'), filter=lambda sample: sample['stem'] != 1)
    assert all(model.sample['stem'] != 1 for model in strategy.list_models(limit=6))
    drawn = {tuple(leaf.subspace.sample(RandomState(i)).values()) for leaf in strategy.leaves for i in range(40)}
    assert len(drawn) == 6


def test_a_filter_that_empties_a_later_band_leaves_the_node_whole(small):
    sizes = {}
    for stem, body in product(range(3), range(3)):
        sizes[stem, body] = ORACLES['parameters'](Convs().freeze({'stem': stem, 'body': body}))
    few = sorted(sizes, key=sizes.get)
    kept = {few[0], few[1], few[5], few[8]}  # nothing of the second band of the first half
    strategy = small(
        make_evaluator(epochs=4), split_epochs=(1, 2), criterion=Bands('parameters', max_groups=2),
        filter=lambda sample: (sample['stem'], sample['body']) in kept,
    )  # fmt: skip
    first = strategy.tree.children[0]
    assert (
        first.split.evidence.objection
        == f'the filter leaves no network of {sizes[few[2]]} to {sizes[few[3]]} parameters'
    )
    assert len(strategy.leaves) == 3


def test_random_bands_do_not_tell_one_network_apart():
    """By what it does not read: then it would be trained in one leaf, and scored by another."""
    supernet = RandomOneShot().mutate_model(Mixed())
    space = SubSpace.of(supernet)
    context = SimpleNamespace(supernet=supernet, subspace=space, seed=(0,), level=0)
    bands = Bands('random', max_groups=3).choose(context).children
    random_state = RandomState(1)
    for _ in range(50):
        sample = space.sample(random_state)
        same = space.canonical(sample, labels_read(supernet, sample))
        assert [sample in band for band in bands] == [same in band for band in bands]


@pytest.mark.parametrize(
    'given, match',
    [
        (
            {'score': 'depth'},
            'score must be of convolutions, nonlinearities, parameters, random, live_parameters, flops',
        ),
        ({'max_groups': 1}, 'max_groups must be an integer of at least 2, but got 1'),
    ],
)
def test_settings_that_cannot_work_are_refused(given, match):
    with pytest.raises(ValueError, match=match):
        Bands(**given)
    assert NASLID(criterion='bands').settings.criterion == Bands()


@pytest.mark.slow
def test_random_bands_are_a_control_of_the_same_sizes(small, tmp_path):
    criterion, trees = Bands('random', max_groups=2), []
    for seed, workdir in ((0, 'a'), (0, 'b'), (1, 'c'), (1, 'd')):
        trees.append(small(make_evaluator(), criterion=criterion, seed=seed, workdir=tmp_path / workdir).tree)
    ways = [[sorted(map(str, leaf.subspace.histogram('random').items())) for leaf in tree.leaves] for tree in trees]
    assert ways[0] == ways[1] != ways[2] == ways[3]
    assert all(sum(leaf.subspace.size for leaf in tree.leaves) == 9 for tree in trees)
    assert all({leaf.subspace.size for leaf in tree.leaves} == {4, 5} for tree in trees)


@pytest.mark.slow
def test_the_benchmark_of_the_examples(digits, tmp_path, monkeypatch, capsys):
    import bench_splits

    monkeypatch.setattr(bench_splits, 'data_of', lambda *_: digits)
    output = tmp_path / 'rows.csv'

    def run(*arguments):
        given = ['--runs', tmp_path / 'runs', '--output', output, '--batch-size', 40, '--ranked', 12, *arguments]
        monkeypatch.setattr(sys, 'argv', ['bench_splits.py', *map(str, given)])
        bench_splits.main()

    with pytest.raises(SystemExit):
        run('--epochs', 30)
    assert '--epochs must be a multiple of 16, so that all methods cost the same, but is 30' in capsys.readouterr().err
    methods = ['one supernet', 'bands of convolutions, lr by size']
    for _ in range(2):  # the second time there is nothing left to do
        run('--epochs', 16, '--seeds', 0, '--methods', *methods)
    rows = pd.read_csv(output).set_index(['method', 'by'])
    with_prior = ('val_loss, live parameters', 'val_loss, live parameters, LID')
    assert rows.index.tolist() == [
        ('parameters', 'count'), ('live parameters', 'count'),
        *((method, by) for method in methods for by in ('val_loss', 'val_acc', *with_prior)),
    ]  # fmt: skip
    steps = 16 * (len(digits.train) // 40)
    assert rows['steps'].tolist() == [0, 0, *[steps] * 8]
    assert rows['leaves'].tolist() == [0, 0, *[1] * 4, *[4] * 4]
    truth = load_truth(DIGITS_TRUTH, 'test_acc')
    ranked = truth.iloc[np.sort(np.random.RandomState(0).permutation(len(truth))[:12])]
    costs = nasbench201_costs([nasbench201_sample(arch) for arch in ranked.index], 8, 1, 10, 8)
    expected = kendalltau(costs['parameters'], ranked).statistic
    assert rows['tau']['parameters', 'count'] == pytest.approx(expected, abs=1e-4)
    losses = estimates(read_record(tmp_path / 'runs' / 'digits-one-supernet-seed0'))[ranked.index]
    assert rows['tau']['one supernet', 'val_loss'] == pytest.approx(kendalltau(losses, ranked).statistic, abs=1e-4)
    both = rankdata(losses) + rankdata(costs['live parameters']) / 2
    assert rows['tau']['one supernet', with_prior[0]] == pytest.approx(kendalltau(both, ranked).statistic, abs=1e-4)


def test_a_ranking_gets_the_order_inside_of_bands_of_another():
    import bench_limits

    bands = np.array([0, 1, 0, 1, 0])
    places, order = np.array([9.0, 7, 8, 1, 2]), np.array([0.1, 0.5, 0.3, 0.9, 0.2])
    assert bench_limits.reordered(places, order, bands).tolist() == [2, 1, 9, 7, 8]
    assert bench_limits.reordered(places, places, bands).tolist() == places.tolist()


@pytest.mark.slow
def test_the_benchmark_of_what_limits_a_ranking(digits, tmp_path, monkeypatch):
    import bench_limits

    monkeypatch.setattr(bench_limits, 'data_of', lambda *_: digits)
    output = tmp_path / 'rows.csv'
    options = ['--epochs', '16', '--batch-size', '40', '--ranked', '60', '--seeds', '0']
    monkeypatch.setattr(sys, 'argv', ['bench_limits.py', *options, '--runs', str(tmp_path), '--output', str(output)])
    bench_limits.main()
    rows = pd.read_csv(output).set_index(['seed', 'ranked_by', 'order'])
    truth = load_truth(DIGITS_TRUTH, 'test_acc')
    ranked = truth.iloc[np.sort(np.random.RandomState(0).permutation(len(truth))[:60])]
    record = read_record(tmp_path / 'digits-bands-of-live-parameters-and-LID-lr-by-size-seed0')
    values, accuracies = estimates(record)[ranked.index].to_numpy(), ranked.to_numpy()
    samples = [nasbench201_sample(arch) for arch in ranked.index]
    leaf = [[sample in each.subspace for each in record.root.leaves].index(True) for sample in samples]
    assert len(record.root.leaves) == 4
    pairs = [(i, j) for i, j in combinations(range(60), 2) if leaf[i] == leaf[j]]
    signs = np.array([np.sign([values[i] - values[j], accuracies[i] - accuracies[j]]) for i, j in pairs])
    within = signs.prod(1).sum() / np.sqrt(abs(signs).sum(0).prod())
    of_bands = rows.loc['0', 'bands']
    assert of_bands['tau']['as it is'] == pytest.approx(kendalltau(values, accuracies).statistic, abs=1e-4)
    assert of_bands['tau_within']['as it is'] == pytest.approx(within, abs=1e-4)
    assert of_bands['tau_within']['true across bands'] == pytest.approx(within, abs=0.02)  # ties of the truth
    assert of_bands['tau_within']['true inside bands'] > 0.99
    assert rows['tau']['mean', 'bands', 'as it is'] == of_bands['tau']['as it is']
