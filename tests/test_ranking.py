"""The figures of a report against their definitions, scipy, and published values; their intervals by simulation."""

import os
import subprocess
import sys
from itertools import combinations, permutations
from pathlib import Path

from nni_naslid import ranking_report
from nni_naslid.analysis.baselines import live_edges, nasbench201_costs
from nni_naslid.analysis.bootstrap import Interval
from nni_naslid.analysis.html import format_bounds, format_number
from nni_naslid.analysis.measures import (
    all_figures,
    correlations,
    partial_correlation,
    precision_at_top,
    top_n_rank,
    top_regret,
)
from nni_naslid.analysis.ranking import compare_rankings, format_table
from nni_naslid.analysis.stability import instance_table, s_tau
from nni_naslid.analysis.truth import load_truth, nasbench201_architectures, nasbench201_sample
from nni_naslid.criteria.chance import Chance
from nni_naslid.criteria.evidence import ByLabel, Partition
from nni_naslid.run.settings import Settings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.nas.hub.pytorch import NasBench201
from scipy.stats import kendalltau, rankdata, spearmanr, weightedtau
from torch.utils.flop_counter import FlopCounterMode

SHARES = ('1%', '5%', '10%')


def figures_of(estimates, truth, **kwargs) -> dict[str, float]:
    """The values of the report, by name."""
    report = ranking_report(estimates, truth, costs={}, n_bootstrap=0, **kwargs)
    return {name: interval.value for name, interval in report.figures['estimates'].items()}


def tau_b(x, y, pairs=None) -> float:
    pairs = combinations(range(len(x)), 2) if pairs is None else pairs
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    agree = sum(a * b for a, b in signs)
    possible = np.sqrt(sum(a != 0 for a, _ in signs)) * np.sqrt(sum(b != 0 for _, b in signs))
    return agree / possible if possible else np.nan


def draw(rng, n: int, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """Estimates and truth of a normal distribution with this tau."""
    rho = np.sin(np.pi * tau / 2)
    truth = rng.standard_normal(n)
    return rho * truth + np.sqrt(1 - rho**2) * rng.standard_normal(n), truth


few = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6)
many = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=2, max_size=40)


@settings(deadline=None, max_examples=60)
@given(few, st.integers(1, 6))
def test_heads_are_means_over_all_orders_of_ties(pairs, n):
    estimates, truth = np.array(pairs).T
    n = min(n, len(truth))
    tops = [sorted(order, key=lambda i: -estimates[i])[:n] for order in permutations(range(len(truth)))]
    true_top = [i for i in range(len(truth)) if truth[i] >= sorted(truth)[-n]]
    ranks = [1 + sum(truth > each) for each in truth]
    assert precision_at_top(estimates, truth, n) == pytest.approx(
        np.mean([len(set(top) & set(true_top)) / n for top in tops])
    )
    assert top_n_rank(estimates, truth, n) == pytest.approx(np.mean([min(ranks[i] for i in top) for top in tops]))
    assert top_regret(estimates, truth, n) == pytest.approx(
        np.mean([max(truth) - max(truth[i] for i in top) for top in tops])
    )


@settings(deadline=None, max_examples=60)
@given(many)
def test_correlations_are_those_of_scipy(pairs):
    estimates, truth = np.array(pairs, float).T
    report = figures_of(estimates, truth)
    for name, function in (('tau', kendalltau), ('spearman', spearmanr), ('weighted_tau', weightedtau)):
        assert report[name] == pytest.approx(function(estimates, truth).statistic, nan_ok=True)
    fast = correlations(*(np.unique(each, return_inverse=True)[1] for each in (estimates, truth)), exact=False)
    assert {name: report[name] for name in fast} == pytest.approx(fast, abs=1e-12, nan_ok=True)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 300), st.integers(0, 2**31))
def test_report_against_definitions(n, seed):
    rng = np.random.RandomState(seed)
    estimates, truth = rng.randint(0, n, n), rng.randint(0, n, n)
    report = figures_of(estimates, truth)
    for share, name in zip((0.01, 0.05, 0.1), SHARES, strict=True):
        is_top = truth >= np.sort(truth)[-max(2, round(share * n))]
        expected = kendalltau(estimates[is_top], truth[is_top]).statistic
        assert report[f'tau_top{name}'] == pytest.approx(expected, nan_ok=True)
        n_top = max(1, round(share * n))
        assert report[f'P@{name}'] == precision_at_top(estimates, truth, n_top)
        assert report[f'N@{name}'] == pytest.approx(top_n_rank(estimates, truth, n_top))
    assert report['T1R'] == pytest.approx(top_n_rank(estimates, truth, 1))
    assert report['T10R'] == pytest.approx(top_n_rank(estimates, truth, min(n, 10)))
    assert report['regret@10'] == top_regret(estimates, truth, min(n, 10))
    quick = ranking_report(estimates, truth)
    assert quick['tau_top'] == pytest.approx(report['tau_top10%'], nan_ok=True)
    assert quick['picked'] == pytest.approx(report['picked'])
    assert quick['best'] == report['best'] == pytest.approx(report['picked'] + report['regret@1'])


@settings(deadline=None, max_examples=30)
@given(many, st.integers(0, 2**31))
def test_neither_units_nor_order_matter(pairs, seed):
    estimates, truth = np.array(pairs, float).T
    leaves = np.random.RandomState(seed).randint(0, 3, len(truth))
    report = figures_of(estimates, truth, leaves=leaves)
    assert figures_of(np.exp(estimates) - 7, truth, leaves=leaves) == pytest.approx(report, nan_ok=True)
    order = np.random.RandomState(seed).permutation(len(truth))
    assert figures_of(estimates[order], truth[order], leaves=leaves[order]) == pytest.approx(report, nan_ok=True)


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(25)))
def test_the_perfect_ranking(truth):
    truth = np.array(truth, float)
    report = ranking_report(truth**3, truth, costs={}, n_bootstrap=20, leaves=np.arange(len(truth)) % 2)
    for name, interval in report.figures['estimates'].items():
        if name not in ('best', 'picked'):
            assert list(interval) == pytest.approx([0 if 'regret' in name else 1] * 3)
    assert report.figures['estimates']['picked'].value == truth.max()


def test_constant_estimates_get_what_chance_gets():
    truth = np.arange(100.0)
    report = figures_of(np.zeros(100), truth)
    assert np.isnan([report['tau'], report['weighted_tau'], report['tau_top5%']]).all()
    assert report['P@5%'] == pytest.approx(0.05)
    assert report['T1R'] == pytest.approx(50.5)
    assert report['N@10%'] == pytest.approx(101 / 11)  # the expected smallest of 10 out of 1 .. 100
    assert report['regret@1'] == pytest.approx(49.5)


@settings(deadline=None, max_examples=30)
@given(many, st.integers(0, 2**31))
def test_pairs_within_leaves_and_across(pairs, seed):
    estimates, truth = np.array(pairs).T
    leaves = np.random.RandomState(seed).choice(['a', 'b', 'c'], len(truth))
    report = figures_of(estimates, truth, leaves=leaves)
    all_pairs = list(combinations(range(len(truth)), 2))
    within = [(i, j) for i, j in all_pairs if leaves[i] == leaves[j]]
    assert report['tau_within'] == pytest.approx(tau_b(estimates, truth, within), nan_ok=True)
    across = [pair for pair in all_pairs if pair not in within]
    assert report['tau_across'] == pytest.approx(tau_b(estimates, truth, across), nan_ok=True)


def test_one_leaf_is_all():
    report = figures_of([3, 1, 2, 4], [1, 2, 3, 4], leaves=['root'] * 4)
    assert report['tau_within'] == pytest.approx(report['tau'])
    assert np.isnan(report['tau_across'])


def test_partial_correlation_by_its_recursion():
    rng = np.random.default_rng(0)
    truth, size, depth = rng.standard_normal((3, 500))
    estimates = truth + size + rng.standard_normal(500)
    truth = truth + size + depth
    report = ranking_report(estimates, truth, costs={'size': size, 'depth': depth, 'twice': 2 * size}, n_bootstrap=50)

    def rho(x, y, *given):
        if not given:
            return spearmanr(x, y).statistic
        *rest, z = given
        xy, xz, yz = (rho(*each, *rest) for each in ((x, y), (x, z), (y, z)))
        return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))

    assert report.partial['size'].value == pytest.approx(rho(estimates, truth, size))
    assert report.partial['depth'].value == pytest.approx(rho(estimates, truth, depth))
    assert report.partial['all costs'].value == pytest.approx(rho(estimates, truth, size, depth))
    for interval in report.partial.values():
        assert interval.low < interval.value < interval.high
        assert interval.high - interval.low < 0.2
    known = ranking_report(2 * size, truth, costs={'size': size}, n_bootstrap=5)
    assert np.isnan(known.partial['size']).all()


def test_partial_correlation_of_numbers_without_a_common_cause():
    """Two noisy copies of one number correlate at 1/2, and not at all given that number."""
    rng = np.random.default_rng(0)
    cause = rng.standard_normal(20000)
    rows = np.stack([cause + rng.standard_normal(20000), cause + rng.standard_normal(20000), cause])
    rows -= rows.mean(1, keepdims=True)
    assert np.corrcoef(rows)[0, 1] == pytest.approx(0.5, abs=0.02)
    assert partial_correlation(rows, [2]) == pytest.approx(0, abs=0.02)


def test_costs_stand_beside_and_are_compared_in_pairs():
    rng = np.random.default_rng(0)
    estimates, truth = draw(rng, 200, 0.5)
    better = estimates + 0.1 * truth
    report = ranking_report(better, truth, costs={'before': estimates, 'noise': rng.random(200)}, n_bootstrap=200)
    assert list(report.figures) == ['estimates', 'before', 'noise']
    assert report.figures['before']['tau'].value == pytest.approx(kendalltau(estimates, truth).statistic)
    for name, gain in report.differences['before'].items():
        values = [report.figures[row][name].value for row in ('estimates', 'before')]
        assert gain.value == pytest.approx(values[0] - values[1])
    gain = report.differences['before']['tau']
    assert 0 < gain.low < gain.value < gain.high
    alone = report.figures['estimates']['tau']
    assert gain.high - gain.low < (alone.high - alone.low) / 3  # what is hard for one is hard for the other
    assert compare_rankings(better, estimates, truth, n_bootstrap=200)['tau'] == gain
    same = compare_rankings(estimates, estimates, truth, n_bootstrap=20)
    assert all(
        each.low == each.value == each.high == 0 for name, each in same.items() if name not in ('best', 'picked')
    )


def test_intervals_depend_on_the_seed_alone():
    estimates, truth = draw(np.random.default_rng(0), 50, 0.5)
    report, again, other, none = (
        ranking_report(estimates, truth, costs={}, n_bootstrap=n, seed=seed)
        for n, seed in ((30, 1), (30, 1), (30, 2), (0, 1))
    )
    assert str(report) == str(again)
    assert report.figures['estimates']['tau'] != other.figures['estimates']['tau']
    assert np.isnan(none.figures['estimates']['tau'][1:]).all()
    assert none.figures['estimates']['tau'].value == report.figures['estimates']['tau'].value


@pytest.mark.parametrize('n', [2, 3, 4])
def test_few_architectures_have_wide_intervals_or_none(n):
    values = np.arange(n)
    report = ranking_report(values, values, costs={'size': -values}, leaves=values % 2, n_bootstrap=20)
    assert report.figures['estimates']['tau'].value == 1
    assert report.figures['size']['weighted_tau'].value == pytest.approx(-1)
    assert np.isnan(report.figures['estimates']['tau'].low) == (n == 2)  # a half is one architecture


def test_interval_is_as_wide_as_the_spread_over_draws():
    rng = np.random.default_rng(0)
    taus = [kendalltau(*draw(rng, 200, 0.5)).statistic for _ in range(400)]
    widths = []
    for _ in range(5):
        interval = ranking_report(*draw(rng, 200, 0.5), costs={}, n_bootstrap=100).figures['estimates']['tau']
        widths.append(interval.high - interval.low)
    assert np.mean(widths) == pytest.approx(np.subtract(*np.percentile(taus, [97.5, 2.5])), rel=0.2)


@pytest.mark.slow
def test_intervals_cover():
    """Of 300 draws of 200 architectures; the standard error of a coverage of 95 % is 1.3 %."""
    rng = np.random.default_rng(0)
    draws = [draw(rng, 200, 0.5) for _ in range(3000)]
    expected = pd.DataFrame([all_figures(*(rankdata(x).astype(int) for x in each), None, 200) for each in draws]).mean()
    covered = {name: 0 for name in ('tau', 'spearman', 'weighted_tau', 'P@5%', 'P@10%', 'T1R', 'tau_top10%')}
    for estimates, truth in draws[:300]:
        report = ranking_report(estimates, truth, costs={}, n_bootstrap=200).figures['estimates']
        for name in covered:
            covered[name] += report[name].low <= expected[name] <= report[name].high
    assert min(covered.values()) > 0.9 * 300, covered


def test_table_of_a_report():
    report = ranking_report([3, 1, 2, 4], [92.0, 90, 93, 94], costs={'parameters': [1, 2, 3, 4]}, n_bootstrap=10)
    lines = str(report).splitlines()
    assert lines[0] == '4 architectures, with 95 % intervals from 10 random halves of them'
    assert lines[1].split(maxsplit=2) == ['estimates', 'parameters', 'minus parameters']
    assert lines[2].startswith('tau')
    assert '0.667 [' in lines[2]
    assert lines[-1].startswith('spearman given parameters')


@pytest.mark.parametrize(
    'arguments, match',
    [
        ({'costs': {'estimates': [1, 2, 3]}}, "another name than 'estimates'"),
        ({'costs': {'FLOPs': [1, 2]}}, r"costs\['FLOPs'\] and truth must be two lists of one length, .*\(2,\), \(3,\)"),
        ({'costs': {'FLOPs': [1, np.nan, 2]}}, r"1 costs\['FLOPs'\] and 0 true values are NaN"),
        ({'costs': {}, 'n_bootstrap': -1}, 'n_bootstrap must be a number of resamples, at least 0, but got -1'),
        ({'costs': {}, 'n_bootstrap': 1.5}, 'n_bootstrap must be .* but got 1.5'),
        ({'costs': {}, 'leaves': ['a', 'b']}, 'leaves must be one for each of 3 architectures, but got 2'),
        ({'leaves': ['a', 'b', 'c']}, 'leaves belong to the report with costs; give costs={}'),
    ],
)
def test_bad_options(arguments, match):
    with pytest.raises(ValueError, match=match):
        ranking_report([1, 2, 3], [1, 2, 3], **arguments)


def test_bad_rankings_to_compare():
    with pytest.raises(ValueError, match=r'^others and truth must be two lists of one length, but got \(2,\), \(3,\)'):
        compare_rankings([1, 2, 3], [1, 2], [1, 2, 3])


def test_costs_and_leaves_belong_together_by_their_index():
    truth = pd.Series([90.0, 70, 80, 60], index=list('abcd'))
    costs = {'size': pd.Series([1, 2, 3, 4], index=list('dbca'))}
    leaves = pd.Series(['x', 'y', 'x', 'y'], index=list('acbd'))  # a, b in x; c, d in y
    report = ranking_report([4, 1, 2, 3], truth, costs=costs, leaves=leaves, n_bootstrap=0)
    assert report.figures['size']['tau'].value == 1
    assert report.figures['estimates']['tau_within'].value == pytest.approx((1 - 1) / 2)
    with pytest.raises(ValueError, match=r"costs\['size'\] and truth must have the same index, .* such as 'd'"):
        ranking_report(truth, truth, costs={'size': costs['size'].drop('d')})


def test_stability_of_instances():
    rng = np.random.default_rng(0)
    truth = rng.random(60)
    epochs = {epoch: truth + rng.random(60) / epoch for epoch in (1, 2, 3)}
    expected = np.mean([kendalltau(epochs[a], epochs[b]).statistic for a, b in ((1, 2), (1, 3), (2, 3))])
    interval = s_tau(epochs, n_bootstrap=50)
    assert interval.value == pytest.approx(expected)
    assert interval.low < expected < interval.high
    table = instance_table(epochs, truth)
    assert list(table.index) == [1, 2, 3]
    assert list(table['tau']) == pytest.approx([kendalltau(each, truth).statistic for each in epochs.values()])
    assert np.isnan(table['tau_previous'][1])
    assert table['tau_previous'][3] == pytest.approx(kendalltau(epochs[2], epochs[3]).statistic)
    assert table['T10R'][2] == top_n_rank(epochs[2], truth, 10)


def test_a_constant_instance_is_left_out_and_named(caplog):
    """Such as that of a supernet at chance level, which says the same of all."""
    rng = np.random.default_rng(0)
    one, other, third = (rng.permutation(30).tolist() for _ in range(3))
    taus = [kendalltau(*pair).statistic for pair in combinations((one, other, third), 2)]
    found = s_tau({1: one, 2: [0.25] * 30, 3: other, 4: third}, n_bootstrap=50)
    assert found.value == pytest.approx(np.mean(taus))
    assert (found.low, found.high) == s_tau({1: one, 3: other, 4: third}, n_bootstrap=50)[1:]
    assert 'all estimates are equal in [2]' in caplog.text
    assert np.isnan(s_tau({1: one, 2: [0.25] * 30}, n_bootstrap=5)).all()
    table = instance_table({1: one, 2: [0.25] * 30, 3: other, 4: third}, one)
    assert list(np.isnan(table['tau'])) == [False, True, False, False]
    assert table['tau_previous'][4] == pytest.approx(taus[2])


def test_bad_instances():
    with pytest.raises(ValueError, match='instances must be at least two rankings, but there are 1'):
        s_tau({'a': [1, 2]})
    with pytest.raises(ValueError, match=r"instances\['b'\] and instances\['a'\] must be two lists of one length"):
        s_tau({'a': [1, 2], 'b': [1, 2, 3]})


ARCHS = nasbench201_architectures()[::391]


@pytest.mark.parametrize('channels, cells, classes, size', [(16, 5, 10, 32), (4, 1, 7, 16)])
def test_parameters_and_flops_are_those_of_the_network(channels, cells, classes, size):
    costs = nasbench201_costs(ARCHS, channels, cells, classes, size)
    for i in (0, 1, 13, 39):
        network = NasBench201.frozen_factory(nasbench201_sample(ARCHS[i]))(channels, cells, classes)
        assert costs['parameters'][i] == sum(p.numel() for p in network.parameters())
        with FlopCounterMode(display=False) as counter:  # NNI's own profiler fails on ``none`` with today's torch
            network(torch.zeros(1, 3, size, size))
        assert costs['FLOPs'][i] == counter.get_total_flops() / 2  # it counts multiplications and additions


def test_live_edges_lie_on_a_path():
    paths = [['0_3'], ['0_1', '1_3'], ['0_2', '2_3'], ['0_1', '1_2', '2_3']]
    conv = {'conv_1x1': 16**2 + 32, 'conv_3x3': 9 * 16**2 + 32}
    archs = nasbench201_architectures()[::97]
    costs = nasbench201_costs(map(nasbench201_sample, archs), channels=16, cells=1)
    fixed = nasbench201_costs(['|none~0|+|none~0|none~1|+|none~0|none~1|none~2|'], channels=16, cells=1)
    for i, arch in enumerate(archs):
        sample = nasbench201_sample(arch)
        live = {edge for path in paths if all(sample[f'cell/{e}'] != 'none' for e in path) for edge in path}
        assert live_edges(sample) == sorted(f'cell/{edge}' for edge in live)
        operations = [sample[f'cell/{edge}'] for edge in live]
        expected = sum(
            width * (16 * factor * 16 * factor * {'conv_1x1': 1, 'conv_3x3': 9}[op] + 2 * 16 * factor)
            for op in operations
            if op in conv
            for width, factor in ((1, 1), (1, 2), (1, 4))
        )
        assert costs['live parameters'][i] - fixed['parameters'][0] == expected


@pytest.mark.parametrize(
    'arch', ['|none~0|', {'cell/0_1': 'none'}, dict.fromkeys(nasbench201_sample(ARCHS[0]), 'pool')]
)
def test_costs_of_what_is_no_architecture(arch):
    with pytest.raises(ValueError, match=r'Not a (NAS-Bench-201 architecture|sample of NAS-Bench-201)'):
        nasbench201_costs([arch])


def test_reports_need_no_torch():
    modules = [f'nni_naslid.analysis.{name}' for name in ('ranking', 'report', 'stability', 'baselines')]
    code = f'import sys, {", ".join(modules)}; print(*sys.modules)'
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert not {'torch', 'pytorch_lightning', 'nni.nas'} & set(loaded)


def published_file(name: str) -> Path:
    """A file of published figures, which are not ours to give."""
    path = Path(os.environ.get('NASLID_DATA', 'no NASLID_DATA')) / name
    if not path.is_file():
        pytest.skip(f'{name} is not there; the environment variable NASLID_DATA names the folder that has it')
    return path


def published(name: str) -> np.lib.npyio.NpzFile:
    return np.load(published_file(name))


@pytest.mark.parametrize(
    'file, key, tau, rho, digits',
    [
        ('nasbench201_published_supernets.npz', 'one_shot', 0.4841, 0.6764, 5e-5),
        ('nasbench201_published_supernets.npz', 'few_shot', 0.5504, 0.7409, 5e-5),
        ('nasbench201_efs_supernets.npz', 'baseline-16-128-1000-s0', 0.6932, None, 2e-4),
        ('nasbench201_efs_supernets.npz', 'decom5-5-15-20-128-1000-balanced-s118', 0.7650, None, 2e-4),
    ],
)
def test_published_supernets(file, key, tau, rho, digits):
    """The last two are known to 2e-4 only: scipy itself says .6933 and .7651 of these files."""
    truth, estimates = published('nasbench201.npz')['c10_test_200'], published(file)[key]
    report = ranking_report(estimates, truth)
    assert report['tau'] == pytest.approx(tau, abs=digits)
    assert rho is None or report['spearman'] == pytest.approx(rho, abs=digits)


def test_published_costs():
    """All 15,625 parameter counts of the benchmark, and its FLOPs, which are rounded to 10."""
    data = published('nasbench201.npz')
    costs = nasbench201_costs(data['arch'].tolist())
    assert (costs['parameters'] == data['c10_params']).all()
    assert np.abs(costs['FLOPs'] / 1e6 - data['c10_mflops']).max() < 2e-5
    assert ranking_report(costs['live parameters'], data['c10_test_200'])['tau'] == pytest.approx(0.654, abs=5e-4)


@pytest.mark.parametrize(
    'name, column, sign, n, n_both, tau',
    [('darts-cifar10', 'accuracy', 1, 377, 101, 0.584), ('ptb', 'valid_ppl', -1, 137, 93, 0.715)],
)
def test_published_truth_of_two_seeds(name, column, sign, n, n_both, tau):
    """Stand-alone training by How Does Supernet Help in Neural Architecture Search?; perplexities are turned."""
    one, other = (
        sign * load_truth(published_file(f'ground_truth/{file}.csv'), column) for file in (name, f'{name}-seed43')
    )
    both = one.index[one.index.isin(other.index)]
    assert (len(one), len(both)) == (n, n_both)
    agreement = s_tau({'seed 42': one[both], 'seed 43': other[both]}, n_bootstrap=100)
    assert agreement.value == pytest.approx(tau, abs=5e-4)
    assert agreement.low < tau < agreement.high


@pytest.mark.parametrize('name, n, rho', [('darts-cifar10', 377, 0.58), ('proxylessnas', 36, 0.56)])
def test_published_truth_beside_its_costs(name, n, rho):
    """FLOPs alone are as good a ranking of these spaces as many a supernet; given them they say nothing more."""
    path = published_file(f'ground_truth/{name}.csv')
    truth, flops, params = (load_truth(path, column) for column in ('accuracy', 'flops', 'params'))
    report = ranking_report(flops, truth, costs={'FLOPs': flops, 'parameters': params}, n_bootstrap=20)
    assert report.n_architectures == n
    assert report.figures['FLOPs']['spearman'].value == pytest.approx(rho, abs=5e-3)
    assert report.figures['FLOPs']['spearman'].value == pytest.approx(spearmanr(flops, truth).statistic)
    assert np.isnan(report.partial['FLOPs'].value)


def test_no_minus_before_zeros():
    assert str(Interval(-1e-15, -0.0, -0.0004)) == '0.000 [0.000, 0.000]'
    assert str(Interval(-0.25, np.nan, np.nan)) == '-0.250'
    assert format_table({'nothing': {'tau': -0.0004}}).split()[-1] == '0.000'
    tiny = Partition([[0], [1]], 1e-9, 1e-4, 0.01, [[1, 1], [1, 1]], -0.0004, 0.0004)
    assert ByLabel('stem', ['a', 'b'], tiny, {}).describe().startswith('contrast 0.000, 95 % 0.000 to 0.000, p ')
    assert (format_number(-0.0004), format_bounds(Interval(0, -0.0002, 0.25))) == ('0.000', '0.000 to 0.250')
    assert Chance(-1e-9, 3).describe('val_acc').startswith('at chance level (val_acc 0.0000;')
    assert f'{Settings([1], None).turned(0.0):.4g}' == '0'
