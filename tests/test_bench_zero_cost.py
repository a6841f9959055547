"""The benchmark of untrained networks: published networks are NNI's, a small run, and the figures of its section."""

import json
import sys
from functools import partial
from pathlib import Path

from nni_naslid import SubSpace
from nni_naslid.analysis.truth import load_truth, nasbench201_architectures
from nni_naslid.train.data import Inputs
from nni_naslid.train.structure import structural_score
from nni_naslid.traits.passes import flops

import bench_zero_cost
import numpy as np
import pandas as pd
import pytest
import torch
from bench_zero_cost import PROXYLESS, SPACES, darts_sample, proxylessnas_sample, supernet_of
from nni.nas.hub.pytorch import DARTS, NasBench201
from nni.nas.strategy import RandomOneShot
from numpy.random import RandomState
from scipy.stats import kendalltau, rankdata
from test_ranking import published_file

EXAMPLES = Path(__file__).parents[1] / 'examples'
DARTS_OPERATIONS = 'max_pool_3x3', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'dil_conv_5x5'


def random_darts(rng: RandomState) -> dict:
    found = {}
    for cell in ('normal', 'reduce'):
        for node in range(2, 6):
            for number, source in enumerate(rng.permutation(node)[:2].tolist()):
                found[f'{cell}/{node}/{number}/input'] = source
                found[f'{cell}/{node}/{number}/op'] = DARTS_OPERATIONS[rng.randint(len(DARTS_OPERATIONS))]
    return found


def random_proxylessnas(rng: RandomState) -> dict:
    return {
        f'stage{stage}_cell{cell}': int(rng.randint(7 if cell else 6))
        for stage in range(6)
        for cell in range(4 if stage < 5 else 1)
    }


@pytest.fixture
def truth_folder(tmp_path):
    """Tables of five architectures each, with figures drawn at random."""
    rng = RandomState(0)
    archs = np.array(nasbench201_architectures())[rng.permutation(15625)[:5]]
    numbers = {column: rng.rand(5) for column in ('c10_test_200', 'c10_params', 'c10_mflops')}
    np.savez(tmp_path / 'nasbench201.npz', arch=archs, **numbers)
    folder = tmp_path / 'ground_truth'
    folder.mkdir()
    for name, draw in (('darts-cifar10', random_darts), ('proxylessnas', random_proxylessnas)):
        table = pd.DataFrame({'architecture': [json.dumps(draw(rng)) for _ in range(5)]})
        for column in ('accuracy', 'flops', 'params'):
            table[column] = rng.rand(5)
        table.to_csv(folder / f'{name}.csv', index=False)
        if name == 'darts-cifar10':
            table[:4].assign(accuracy=-table['accuracy']).to_csv(folder / f'{name}-seed43.csv', index=False)
    return tmp_path


@pytest.mark.slow
def test_a_small_run(truth_folder, monkeypatch, capsys):
    small = {
        'NAS-Bench-201': partial(NasBench201, 4, 1),
        'DARTS': partial(DARTS, width=4, num_cells=3),
        'ProxylessNAS': partial(PROXYLESS, base_widths=(8,) * 9),
    }
    for name, size in small.items():
        space = SPACES[name]._replace(published=size, scored=size, resolution=8)
        monkeypatch.setitem(bench_zero_cost.SPACES, name, space)
    output = truth_folder / 'rows.csv'
    options = f'--truth-folder {truth_folder} --images 8 --n-neighbors 3 --seeds 3 --n-bootstrap 4 --output {output}'
    monkeypatch.setattr(sys, 'argv', ['bench_zero_cost.py', *options.split()])
    bench_zero_cost.main()
    assert 'live parameters + LID' in capsys.readouterr().out
    rows = pd.read_csv(output)
    assert list(rows['space'].unique()) == list(small)
    for _, of_space in rows.groupby('space'):
        scored = of_space[of_space['score'] != 'another seed']
        assert len(scored) == 13 + 8  # three counts and four scores with their sums; the four, and theirs, of the seed
        taus = scored.pivot(index='score', columns='seed', values='tau').dropna()
        assert taus['3'].tolist() == taus['mean'].tolist()  # the mean of one
        assert (scored['ranked'] == 5).all() and scored['P@10%'].isna().all()
    (other,) = (row for row in rows.itertuples() if row.score == 'another seed')
    assert (other.space, other.ranked, other.tau) == ('DARTS', 4, -1)

    table = np.load(truth_folder / 'nasbench201.npz')
    true = table['c10_test_200']
    space = SPACES['NAS-Bench-201']
    live = bench_zero_cost.live_of(space, [space.sample(arch) for arch in table['arch'].tolist()])
    sum_of_ranks = rankdata(live) + rankdata(table['c10_mflops']) / 2
    found = rows[(rows['space'] == 'NAS-Bench-201') & (rows['seed'] == 'mean')].set_index('score')
    for score, values in (
        ('parameters', table['c10_params']),
        ('live parameters', live),
        ('live parameters + FLOPs', sum_of_ranks),
    ):
        tau = kendalltau(values, true).statistic
        assert found.loc[score, 'tau'] == pytest.approx(tau, abs=1e-4)
        assert found.loc[score, 'tau_minus_live'] == pytest.approx(tau - kendalltau(live, true).statistic, abs=1e-4)
        assert found.loc[score, 'first'] == pytest.approx(true[values == values.max()].mean(), abs=1e-5)


@pytest.mark.parametrize(
    'make, sample_of, draw, pixels',
    [
        (partial(DARTS, width=4, num_cells=3), darts_sample, random_darts, 8),
        (partial(PROXYLESS, base_widths=(8,) * 9), proxylessnas_sample, random_proxylessnas, 32),
    ],
    ids=['darts', 'proxylessnas'],
)
def test_samples_of_published_labels_are_those_of_the_space(make, sample_of, draw, pixels):
    """The supernet takes them, and NNI makes a network of them that has as many parameters."""
    supernet = supernet_of(make)
    space = SubSpace.of(supernet)
    parameters = structural_score(supernet, space, 'parameters', exact=True)
    for seed in range(3):
        sample = sample_of(json.dumps(draw(RandomState(seed))))
        space.check(sample, 'sample')
        network = make.func.frozen_factory(sample)(**make.keywords)
        assert parameters.of(sample) == sum(weight.numel() for weight in network.parameters())
        network.eval()(torch.zeros(1, 3, pixels, pixels))


@pytest.mark.parametrize('name, n', [('DARTS', 377), ('ProxylessNAS', 36)])
def test_published_networks_have_their_published_parameters(name, n):
    """Exactly, all of them: the labels are read as they were meant."""
    space = SPACES[name]
    published = load_truth(published_file(space.table), space.parameters)
    with torch.device('meta'):
        supernet = RandomOneShot().mutate_model(space.published())
    parameters = structural_score(supernet, SubSpace.of(supernet), 'parameters', exact=True)
    assert len(published) == n
    assert [parameters.of(space.sample(arch)) for arch in published.index] == published.tolist()


@pytest.mark.parametrize('name, pixels, tolerance', [('DARTS', 32, 0.1), ('ProxylessNAS', 224, 1e-6)])
def test_published_networks_have_about_their_published_flops(name, pixels, tolerance):
    """An addition and a multiplication counted as one. Of DARTS some operations were counted otherwise."""
    space = SPACES[name]
    published = load_truth(published_file(space.table), space.flops).iloc[:6]
    with torch.device('meta'):
        supernet = RandomOneShot().mutate_model(space.published())
        count = flops(supernet, Inputs((torch.empty(1, 3, pixels, pixels),), {}))
    assert [count(space.sample(arch)) / 2 for arch in published.index] == pytest.approx(published, rel=tolerance)


# The section in examples/README.md.

COUNTED, UNTRAINED = ('live parameters', 'parameters', 'FLOPs'), ('LID', 'effective rank', 'NASWOT', 'SynFlow')
SUMS = tuple(f'live parameters + {score}' for score in ('FLOPs', *UNTRAINED))


def with_interval(row: pd.Series, name: str, sign: str = '') -> str:
    if np.isnan(row[name]):
        return ''
    low, high = (f'{row[f"{name}_{end}"]:.2f}' for end in ('low', 'high'))
    return f'{row[name]:{sign}.2f} [{low}, {high}]'.replace('-0.00', '0.00')


def tables(rows: pd.DataFrame) -> dict[str, list[str]]:
    """Lines of the three tables of the section, in Markdown, from the rows of the mean of the seeds."""
    of_mean = rows[rows['seed'] == 'mean'].set_index(['space', 'score'])
    found = {'tau': [], 'gain': [], 'best': []}
    for score in (*COUNTED, *UNTRAINED, *SUMS):
        of_score = [of_mean.loc[space, score] for space in SPACES]
        found['tau'].append([score, *(with_interval(row, 'tau') for row in of_score)])
        best = []
        for space, row in zip(SPACES, of_score, strict=True):
            precisions = [] if space == 'ProxylessNAS' else [f'{row[f"P@{percent}%"]:.2f}' for percent in (5, 10)]
            best += [*precisions, f'{row["first"] * (1 if space == "NAS-Bench-201" else 100):.1f}']
        found['best'].append([score, *best])
    for score, added in zip(('FLOPs', *UNTRAINED), SUMS, strict=True):
        gains = [with_interval(of_mean.loc[space, added], 'tau_minus_live', '+') for space in SPACES]
        known = [with_interval(of_mean.loc[space, score], 'spearman_given_live') for space in SPACES]
        found['gain'].append([score, *gains, *known])
    return {name: [f'| {" | ".join(line)} |' for line in lines] for name, lines in found.items()}


def test_the_readme_has_the_figures_of_the_rows():
    readme = (EXAMPLES / 'README.md').read_text()
    section = readme.split('## Scores of untrained networks\n')[1].split('\n## ')[0]
    lines = [line for line in section.splitlines() if line.startswith('|')]
    rows = pd.read_csv(EXAMPLES / 'bench_zero_cost.csv')
    figures = tables(rows)
    expected = [line for of_table in figures.values() for line in of_table]
    assert [line for line in lines if line in expected] == expected
    assert len(lines) == len(expected) + 2 * len(figures)  # each has a line of names, and one below it

    text = ' '.join(section.split())
    (two_seeds,) = (row for row in rows.itertuples() if row.score == 'another seed')
    rho = np.sin(np.pi / 2 * two_seeds.tau)  # of two seeds that are normal, with normal noise
    perfect = 2 / np.pi * np.arcsin(np.sqrt(rho))
    assert f'agree at tau {two_seeds.tau:.2f} on the {two_seeds.ranked} architectures' in text
    assert f'a perfect ranking would have about {perfect:.2f}.' in text
    of_seeds = rows[rows['seed'] != 'mean'].set_index(['space', 'score'])['tau']
    lid = of_seeds['ProxylessNAS', 'LID']
    assert f'LID of single seeds has a tau of {lid.min():.2f} to {lid.max():.2f}.' in text
    assert (of_seeds['DARTS'][list(UNTRAINED)] < 0).all()
    assert set(rows['commit']) == {text.split('commit `')[1].split('`')[0]}
    minutes = rows.groupby('space')['seconds'].first().sum() / 60
    assert f'{minutes:.0f} minutes of one thread' in text
    ranked = rows[rows['score'] == 'LID'].groupby('space')['ranked'].first()
    for each in (f'{ranked["NAS-Bench-201"]:,} architectures', f'the {ranked["DARTS"]} of DARTS', '36 of ProxylessNAS'):
        assert each in text
