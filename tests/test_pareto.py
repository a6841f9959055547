"""Several things that count: fronts against brute force, and what a search by NSGA-II finds, keeps and exports."""

import itertools
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from nni_naslid import NASLID, NSGA2, SubSpace
from nni_naslid.analysis.pareto import front_figures, networks_of
from nni_naslid.analysis.report import report_page
from nni_naslid.run.identity import identity
from nni_naslid.run.pareto import hypervolume, order_by_rank, pareto_ranks
from nni_naslid.run.record import read_record
from nni_naslid.search.nsga2 import decode, encode, genes_of
from nni_naslid.search.score import InheritedModel
from nni_naslid.space.subspace import constrain

import nni
import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nni.mutable import Categorical, CategoricalMultiple
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.hub.pytorch import NasBench201
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.space import RawFormatModelSpace
from nni.nas.strategy import Random
from nni.nas.strategy.middleware import Chain, Deduplication, Filter
from numpy.random import RandomState
from small import Convs, Plain, make_evaluator, n_convs, seed_all
from test_resume import assert_same, outcome
from test_search import Inputs

HERE = Path(__file__).parent


def beats(one, other) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def peeled(points: list) -> list[int]:
    """Ranks by taking away what nothing left beats, again and again."""
    ranks, rank = {}, 0
    while len(ranks) < len(points):
        left = [i for i in range(len(points)) if i not in ranks]
        ranks |= {i: rank for i in left if not any(beats(points[j], points[i]) for j in left)}
        rank += 1
    return [ranks[i] for i in range(len(points))]


def clouds(least: int = 1):
    """Points of two to four numbers, few enough to have ties."""
    return st.integers(2, 4).flatmap(
        lambda m: st.lists(st.tuples(*[st.integers(0, 5).map(float)] * m), min_size=least, max_size=12)
    )


@given(clouds())
def test_ranks(points):
    assert pareto_ranks(points).tolist() == peeled(points)
    bad = [math.nan, *points[0][1:]], [math.inf, *points[0][1:]], [*points[0][:-1], -math.inf]
    assert pareto_ranks([*points, *bad]).tolist() == [*peeled(points), *[max(peeled(points)) + 1] * 3]


@given(clouds())
def test_the_order_is_by_rank_and_spreads_a_front(points):
    order = order_by_rank(points)
    ranks = [peeled(points)[i] for i in order]
    assert sorted(order) == list(range(len(points))) and ranks == sorted(ranks)
    assert points[order[0]][0] == min(point[0] for point in points)
    m, front = len(points[0]), [points[i] for i in order if peeled(points)[i] == 0]
    for k in range(m):  # the ends come before what is between them
        assert min(point[k] for point in front[: 2 * m]) == min(point[k] for point in front)


def test_of_a_front_the_loneliest_come_first():
    """By hand: the distances are 2, 1.5 + .5 ... of the sides of the box; ends are infinitely far."""
    front = [[0, 10], [1, 9], [2, 8], [6, 4], [10, 0]]
    assert order_by_rank(front) == [0, 4, 3, 2, 1]  # 16/10, 10/10, 4/10
    assert order_by_rank([[3, math.nan], [2, math.nan], [5, 1]]) == [2, 1, 0]


@given(clouds(0), st.integers(0, 6))
def test_hypervolume(points, end):
    """Unit cubes, counted."""
    m = len(points[0]) if points else 2
    cubes = itertools.product(range(end), repeat=m)
    beaten = sum(any(all(x <= at for x, at in zip(point, cube, strict=True)) for point in points) for cube in cubes)
    assert hypervolume([*points, [math.nan] * m], [end] * m) == pytest.approx(beaten)


def of_boxes(points, reference) -> float:
    """A hypervolume by inclusion and exclusion of the boxes that points span with the reference."""
    sides = [np.array(reference) - point for point in points]
    return sum(
        (-1) ** (n + 1) * np.prod(np.clip(np.min(some, axis=0), 0, None))
        for n in range(1, len(sides) + 1)
        for some in itertools.combinations(sides, n)
    )


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6))
def test_hypervolume_of_any_numbers(points):
    assert hypervolume(points, [0.9, 0.9, 0.8]) == pytest.approx(of_boxes(points, [0.9, 0.9, 0.8]), abs=1e-9)


# Samples as choices of Optuna's.


@st.composite
def spaces(draw):
    mutables = {}
    for label in 'abc'[: draw(st.integers(1, 3))]:
        n = draw(st.integers(1, 4))
        values = [('tuple', i) for i in range(n)] if draw(st.booleans()) else list(range(n))[::-1]
        kind = draw(st.sampled_from(['one', 'any', 'some']))
        if kind == 'one':
            mutables[label] = Categorical(values, label=label)
        else:
            n_chosen = None if kind == 'any' else draw(st.integers(1, n))
            mutables[label] = CategoricalMultiple(values, n_chosen=n_chosen, label=label)
    return SubSpace(mutables)


@given(spaces(), st.integers(0, 99))
def test_a_sample_is_what_optuna_is_told(space, seed):
    sample = space.sample(RandomState(seed))
    numbers = encode(space, sample)
    assert numbers.keys() == genes_of(space).keys()
    assert all(0 <= number < genes_of(space)[gene] for gene, number in numbers.items())
    assert decode(space, numbers) == sample


@given(spaces())
def test_whatever_optuna_chooses_is_a_sample_and_all_are_as_frequent(space):
    genes = genes_of(space)
    every = itertools.islice(itertools.product(*map(range, genes.values())), 2_000)
    samples = [decode(space, dict(zip(genes, numbers, strict=True))) for numbers in every]
    assert all(space.covers(sample) for sample in samples)
    counts: dict[str, int] = {}
    for sample in samples:
        counts[repr(sample)] = counts.get(repr(sample), 0) + 1
    if len(samples) < 2_000:
        assert len(counts) == space.size and len({*counts.values()}) == 1


# The search itself, on networks whose worth is known.


class Labels(ModelSpace):
    """Ten choices of four."""

    def __init__(self):
        super().__init__()
        for i in range(10):
            self.add_mutable(nni.choice(f'label{i}', [0, 1, 2, 3]))


class Known:
    """Scores what it is told: worth and cost add up from choices."""

    def __init__(self):
        self.worth, self.prices = RandomState(0).rand(2, 10, 4)
        self.seen: dict[str, tuple[float, float]] = {}

    def network(self, sample):
        return repr(sample)

    def costs(self, sample, names):
        return {name: sum(self.prices[i, choice] for i, choice in enumerate(sample.values())) for name in names}

    def evaluate(self, sample):
        worth = sum(self.worth[i, choice] for i, choice in enumerate(sample.values()))
        self.seen[repr(sample)] = -worth, *self.costs(sample, ['flops']).values()
        return worth


class Limited(SequentialExecutionEngine):
    """So many different networks."""

    def __init__(self, scorer: Known, budget: int):
        super().__init__()
        self.scorer, self.budget = scorer, budget

    def budget_available(self):
        return len(self.scorer.seen) < self.budget


def searched(search, budget: int = 200, filter=None) -> Known:
    scorer, space = Known(), Labels()
    constrain(space, SubSpace(space.simplify(), filter))
    search(InheritedModel(space, scorer), Limited(scorer, budget))
    return scorer


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_it_beats_random_search_at_equal_evaluations(seed):
    own, random = searched(NSGA2(['flops'], population_size=20, seed=seed)), searched(Random(seed=seed))
    assert len(own.seen) == len(random.seen) == 200
    volumes = [hypervolume([*each.seen.values()], [-5, 5]) for each in (own, random)]
    assert volumes[0] > 1.2 * volumes[1]


def test_the_seed_is_all_that_is_random():
    first, again, other = (searched(NSGA2(['flops'], population_size=10, seed=s), 60).seen for s in (1, 1, 2))
    assert [*first] == [*again] != [*other]
    assert len({*first} & {*other}) < 10


def test_optuna_is_left_as_it_was():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    searched(NSGA2(['flops'], population_size=2), 5)
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    optuna.logging.set_verbosity(optuna.logging.INFO)


def test_a_search_that_brings_nothing_ends():
    """Nothing passes the filter of the search, so that the engine does not hear of any model."""
    assert not searched(Chain(NSGA2(['flops'], population_size=5), Filter(lambda model: False))).seen
    assert len(searched(Chain(NSGA2(['flops'], population_size=5), Deduplication('invalid')), 30).seen) == 30


# A run.


def cheap(sample) -> float:
    """A cost of the user's."""
    return 2.5 * sample['stem'] + sample['body'] % 2


def odd(sample) -> float:
    """Finite where it is tried before training, as if something broke later."""
    return math.nan if broken and sample['stem'] == 1 else 1.0 + sample['body']


broken = []


@pytest.fixture
def nine(small):
    """A search of all nine networks of Convs."""

    def start(costs, population_size=4, **kwargs) -> NASLID:
        search = NSGA2(costs, population_size=population_size)
        return small(make_evaluator(), criterion='random', search=search, search_budget=9, **kwargs)

    return start


def test_the_front_of_a_run_is_that_of_brute_force(nine, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    caplog.set_level(logging.INFO)
    strategy = nine(['parameters', cheap])
    names = ['parameters', 'test_pareto.cheap']
    samples = [{'stem': stem, 'body': body} for stem in range(3) for body in range(3)]
    losses = [metrics['val_loss'] for metrics in strategy.evaluate(samples)]
    sizes = [sum(weight.numel() for weight in Convs().freeze(sample).parameters()) for sample in samples]
    points = [(loss, size, cheap(sample)) for loss, size, sample in zip(losses, sizes, samples, strict=True)]
    expected = [i for i in range(9) if not any(beats(other, points[i]) for other in points)]
    assert strategy.pareto_front() == sorted(
        (
            (samples[i], dict(zip(['val_loss', *names], points[i], strict=True))) for i in expected
        ),
        key=lambda each: (each[1]['parameters'], each[1]['test_pareto.cheap']),
    )  # fmt: skip
    models = list(strategy.list_models(limit=None))
    ranks = [peeled(points)[samples.index(model.sample)] for model in models]
    assert len(models) == 9 and ranks == sorted(ranks) and ranks.count(0) == len(expected) < 9
    assert [model.metric for model in models] == [-losses[samples.index(model.sample)] for model in models]
    exported = strategy.experiment.export_top_models(9, formatter='dict')
    assert exported == [model.sample for model in models]
    assert exported[0] == samples[int(np.argmin(losses))]
    assert {repr(sample) for sample in exported[: len(expected)]} == {repr(samples[i]) for i in expected}
    content = json.loads((tmp_path / 'search.json').read_text())
    assert content['costs'] == names and [each['rank'] for each in content['found']] == ranks
    assert set(content['functions']) == {'test_pareto.cheap'}
    for each in content['found']:
        assert (each['val_loss'], *(each[name] for name in names)) == points[samples.index(each['choices'])]
    said = f'Search: scored 9 networks, {len(expected)} of which no other one beats; the best has val_loss '
    assert said in caplog.text
    size = sizes[samples.index(exported[0])]
    assert f'{min(losses):.4f} and {size:,} parameters and ' in caplog.text
    assert 'draws its first 4 networks at random' not in caplog.text
    # The page has that front, and its hypervolume.
    record = read_record(tmp_path)
    assert [*front_figures(record)] == ['front-parameters', 'front-test_pareto.cheap', 'hypervolume']
    page = report_page(record)
    assert f'Of 9 networks whose costs are known, no other one beats {len(expected)}:' in page
    table = re.search(r'<h3>The front, the cheapest first</h3>(.*?)</table>', page, re.S)[1]
    cells = [re.findall('<td[^>]*>(.*?)</td>', row)[1:] for row in table.split('<tr>')[2:]]
    assert cells == [
        [f'{each["val_loss"]:.3f}', f'{each["parameters"]:,}', f'{each["test_pareto.cheap"]:g}',
         *(str(sample[label]) for label in strategy.tree.subspace.mutables)]
        for sample, each in strategy.pareto_front()
    ]  # fmt: skip
    best, worst = np.min([points[i] for i in expected], axis=0), np.max([points[i] for i in expected], axis=0)
    reference = 1.1 * worst - 0.1 * best
    volume = of_boxes(points, reference) / np.prod(reference - best)
    assert f'{volume:.3f} in the end.' in page
    size = f'{reference[1]:,.0f}' if reference[1] >= 1000 else f'{reference[1]:.4g}'
    assert f'beyond its worst: val_loss {reference[0]:.4g}, parameters {size}, ' in page
    # Read again, and searched for other costs.
    again = nine(['parameters', cheap])
    assert again.pareto_front() == strategy.pareto_front()
    caplog.clear()
    other = nine([cheap], population_size=9)
    assert 'search.json is of a search that differs in search and costs: the search is done anew.' in caplog.text
    assert 'draws its first 9 networks at random, so search_budget=9 should be several times that.' in caplog.text
    assert {tuple(metrics) for _, metrics in other.pareto_front()} == {('val_loss', 'test_pareto.cheap')}
    assert len(list(other.list_models(limit=20))) == 9


def test_without_costs_there_is_no_front(small):
    strategy = small(make_evaluator(), criterion='random', search_budget=2)
    with pytest.raises(RuntimeError, match=r"A front takes a search with costs, such as NASLID\(search=NSGA2\(\['fl"):
        strategy.pareto_front()
    with pytest.raises(RuntimeError, match='no trained leaves before it has run'):
        NASLID(search=NSGA2(['flops'])).pareto_front()


@pytest.mark.slow
def test_with_a_prior_its_score_counts(nine, tmp_path):
    strategy = nine(['flops'], prior={'parameters': 5})
    found = json.loads((tmp_path / 'search.json').read_text())['found']
    points = [(-each['score'], each['flops']) for each in found]
    assert [each['rank'] for each in found] == peeled(points)
    front = strategy.pareto_front()
    assert [metrics['flops'] for _, metrics in front] == sorted(cost for score, cost in points if not any(
        beats(other, (score, cost)) for other in points))  # fmt: skip
    page = report_page(read_record(tmp_path))
    assert 'The front by score and flops' in page and f'no other one beats {len(front)}:' in page
    assert 'The first 9 by val_loss and parameters (weight 5)' in page
    order = [each['score'] for each in sorted(found, key=lambda each: -each['score'])]
    table = re.search(r'<h3>The first 9 by .*?</table>', page, re.S)[0]
    assert [f'{score:.4g}' for score in order] == re.findall(r'</span>0\.\d</td><td>([^<]*)</td>', table)
    by_sample = {repr(each['choices']): each for each in found}
    for sample, metrics in front:
        each = by_sample[repr(sample)]
        assert metrics == {
            **{name: each[name] for name in ('val_loss', 'parameters', 'flops')},
            'with_prior': each['score'],
        }


class Breaking(Plain):
    def training_step(self, batch, batch_idx):
        broken.append(batch_idx)
        return super().training_step(batch, batch_idx)


def test_what_is_not_finite_comes_last(small, tmp_path):
    broken.clear()
    search = NSGA2([odd], population_size=3)
    strategy = small(make_evaluator(Breaking()), criterion='random', search=search, search_budget=9)
    models = list(strategy.list_models(limit=None))
    assert [model.sample['stem'] == 1 for model in models] == [False] * 6 + [True] * 3
    lost = [model.metric for model in models[6:]]
    assert lost == sorted(lost, reverse=True)
    assert all(math.isfinite(metrics['test_pareto.odd']) for _, metrics in strategy.pareto_front())


def lost(sample) -> float:
    """As above, of all networks."""
    return math.nan if broken else 1.0


def test_if_nothing_is_finite_there_is_no_best(small):
    broken.clear()
    search = NSGA2([lost], population_size=3)
    with pytest.raises(
        RuntimeError, match=r'None of the 4 .* has a finite val_loss and test_pareto\.lost\. Has training'
    ):
        small(make_evaluator(Breaking()), criterion='random', search=search, search_budget=4)


def small_run(workdir: Path, **kwargs) -> NASLID:
    """24 networks of NAS-Bench-201."""
    search = NSGA2(['parameters', n_convs], population_size=8, seed=1)
    strategy = NASLID(search=search, search_budget=24, calibration_batches=2, workdir=workdir, **kwargs)
    seed_all()
    return strategy.fit(NasBench201(4, 1, 4), make_evaluator(epochs=1))


@pytest.mark.slow
def test_killed_in_the_search_it_goes_through_the_same_networks(tmp_path):
    """As a kill leaves it: some lines of what was scored, the last cost not yet known."""
    undisturbed = small_run(tmp_path / 'a')
    found = json.loads((tmp_path / 'a' / 'search.json').read_text())
    lines = (tmp_path / 'a' / 'scores.jsonl').read_text().splitlines(keepends=True)
    assert len(lines) == len(found['found']) == 24
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    (tmp_path / 'b' / 'search.json').unlink()
    costs = (tmp_path / 'a' / 'costs.jsonl').read_text().splitlines(keepends=True)
    for n, name, all_lines in ((15, 'scores', lines), (14, 'costs', costs)):
        (tmp_path / 'b' / f'{name}.jsonl').write_text(''.join(all_lines[:n]))
    again = small_run(tmp_path / 'b')
    assert json.loads((tmp_path / 'b' / 'search.json').read_text()) == found
    assert again.pareto_front() == undisturbed.pareto_front()
    assert (tmp_path / 'b' / 'scores.jsonl').read_text().splitlines(keepends=True) == lines


@pytest.mark.slow
def test_killed_by_the_system(tmp_path):
    code = f"""
import sys
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent / 'examples')!r}]
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_pareto import small_run
small_run(Path(sys.argv[1]))
"""

    def start(workdir: Path) -> subprocess.Popen:
        with workdir.with_suffix('.log').open('w') as log:
            return subprocess.Popen([sys.executable, '-c', code, str(workdir)], stdout=log, stderr=log)

    assert start(tmp_path / 'a').wait() == 0
    process, scores = start(tmp_path / 'b'), tmp_path / 'b' / 'scores.jsonl'
    while process.poll() is None and not (scores.exists() and scores.read_bytes().count(b'\n') >= 12):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    n = scores.read_bytes().count(b'\n')
    assert 12 <= n < 24 and not (tmp_path / 'b' / 'search.json').exists()
    assert start(tmp_path / 'b').wait() == 0
    assert_same(outcome(tmp_path / 'b'), outcome(tmp_path / 'a'))
    assert scores.read_text() == (tmp_path / 'a' / 'scores.jsonl').read_text()


@pytest.mark.slow
def test_within_constraints(tmp_path):
    """A tenth of the space, so that crossing two networks often leads out of it."""
    strategy = small_run(tmp_path / 'run', constraints={'flops': (90_000, 110_000)}, filter=few_nones)
    models = list(strategy.list_models(limit=None))
    assert len(models) == len({repr(model.sample) for model in models}) == 24
    costs = strategy.costs([model.sample for model in models], ['flops'])
    assert all(90_000 <= cost['flops'] <= 110_000 for cost in costs)
    assert all(few_nones(model.sample) for model in models)
    networks = networks_of(read_record(tmp_path / 'run'))
    assert networks.costs == ['parameters', 'small.n_convs']  # what the search has minimised


@pytest.mark.slow
def test_what_constraints_limit_is_on_the_page_of_any_search(tmp_path):
    strategy = NASLID(search_budget=24, constraints={'flops': (None, 110_000)}, workdir=tmp_path)
    strategy.fit(NasBench201(4, 1, 4), make_evaluator(epochs=1))
    networks = networks_of(read_record(tmp_path))
    costs = strategy.costs([score.sample for score in networks.scores], ['flops'])
    assert networks.costs == ['flops'] and len(networks.scores) == 24
    assert networks.points[:, 1].tolist() == [cost['flops'] for cost in costs]
    assert networks.front.tolist() == [rank == 0 for rank in peeled(networks.points.tolist())]
    assert 'The front by val_loss and flops' in report_page(read_record(tmp_path))


def few_nones(sample) -> bool:
    return [*sample.values()].count('none') < 2


def test_choices_of_several_inputs(run, tmp_path):
    strategy = run((), space=Inputs(), epochs=1, search=NSGA2(['parameters'], population_size=2), search_budget=5)
    models = list(strategy.list_models(limit=None))
    assert sorted(model.sample['in'] for model in models) == [[0, 1], [0, 2], [1, 2]]
    costs = [cost['parameters'] for cost in strategy.costs([model.sample for model in models], ['parameters'])]
    points = [(-model.metric, cost) for model, cost in zip(models, costs, strict=True)]
    assert len(strategy.pareto_front()) == peeled(points).count(0)
    record = read_record(tmp_path)  # ranked by an accuracy: the best on top
    bottom, top = front_figures(record)['front-parameters'].axes[0].get_ylim()
    accuracies = sorted(model.metric for model in models)
    assert bottom <= accuracies[1] and accuracies[-1] <= top
    assert 'The front by val_acc and parameters' in report_page(record)


# How it travels, and what cannot work.


def test_it_travels_to_trials(tmp_path):
    search = NSGA2(['flops', cheap], population_size=7, seed=3)
    there = nni.load(nni.dump(search))
    assert repr(there) == repr(search) == "NSGA2(costs=['flops', 'test_pareto.cheap'], population_size=7, seed=3)"
    assert identity(there) == identity(search) != identity(NSGA2(['flops', cheap], population_size=7, seed=4))


@pytest.mark.parametrize(
    'make, error, match',
    [
        (lambda: NSGA2(['flop']), ValueError, "costs must be of parameters, .*, or a function of .*, but got 'flop'"),
        (lambda: NSGA2('flops'), ValueError, "costs must be a list, but got 'flops'"),
        (lambda: NSGA2([]), ValueError, 'costs must name a cost'),
        (
            lambda: NSGA2([{'a': {'1': 2}}]),
            ValueError,
            "costs must be of parameters, .*, or a function of .*, but got {'a'",
        ),
        (
            lambda: NASLID(search=NSGA2(['latency']), constraints={'latency': (None, 1, {'stem': {'0': 1}})}),
            ValueError,
            'latency is by a table or function in constraints, and another one in prior or search: .* my_latency',
        ),
        (
            lambda: NASLID(prior='latency', constraints={'latency': (None, 1, {'stem': {'0': 1}})}),
            ValueError,
            'latency is by a table or function in constraints',
        ),
        (lambda: NSGA2([cheap, 'test_pareto.cheap']), ValueError, 'costs names test_pareto.cheap twice'),
        (lambda: NSGA2([lambda sample: 1]), ValueError, 'costs: a function must be at the top of a module'),
        (lambda: NSGA2(['flops'], population_size=1), ValueError, 'population_size must be an integer of at least 2'),
        (lambda: NSGA2(['flops'], seed=-1), ValueError, 'seed must be an integer of at least 0, but got -1'),
    ],
)
def test_arguments_that_cannot_work_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_without_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(ImportError, match=r"^NSGA2 needs Optuna: pip install 'nni-naslid\[pareto\]', or optuna\.$"):
        NSGA2(['flops'])


@pytest.mark.parametrize(
    'cost, match',
    [
        ('nowhere.size', r"costs: nowhere.size cannot be imported \(No module named 'nowhere'\)"),
        ('math.isnan', 'costs: math.isnan raised TypeError: .*, of the architecture'),
        ('test_pareto.never', 'costs: test_pareto.never must be a finite number, but is nan, of the architecture'),
    ],
)
def test_costs_that_cannot_be_had_are_said_before_training(small, sampled, cost, match):
    with pytest.raises(ValueError, match=match):
        small(make_evaluator(), criterion='random', search=Chain(NSGA2([cost]), Filter(bool)))
    assert not sampled


def never(sample) -> float:
    return math.nan


def test_it_takes_a_trained_supernet():
    model_space = RawFormatModelSpace.from_model(Convs(), FunctionalEvaluator(len))
    with pytest.raises(TypeError, match=r'NSGA2 searches a trained supernet: give it to NASLID\(search=NSGA2'):
        NSGA2(['flops'])(model_space, SequentialExecutionEngine())
