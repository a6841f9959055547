"""Limits on what networks may cost: in training, search and export, and what is said of limits that cannot be kept."""

import json
import logging
import math
import sys
from functools import partial
from itertools import product
from types import SimpleNamespace

from nni_naslid import NASLID, Bands, Fixed, SubSpace
from nni_naslid.analysis.compare import compare
from nni_naslid.analysis.report import report_page
from nni_naslid.run.constraints import parse_constraints, table_of
from nni_naslid.run.files import write_json
from nni_naslid.run.folder import RunFolder
from nni_naslid.run.identity import difference
from nni_naslid.run.record import read_record
from nni_naslid.train.structure import structural_score
from nni_naslid.train.supernet import make_supernet
from nni_naslid.traits.limits import limited_space
from nni_naslid.trial import Trial

import nni
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from nni.mutable import Categorical
from nni.nas.hub.pytorch import MobileNetV3Space, NasBench201
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, Repeat
from nni.nas.strategy import TPE, GridSearch, RegularizedEvolution
from small import Convs, Plain, images, make_evaluator
from test_trials import in_a_file
from torch import nn

EVERY = [{'stem': stem, 'body': body} for stem, body in product(range(3), range(3))]
TABLE = {'stem': {'0': 1.5, '1': 0.25, '2': 4}, 'body': {'0': 1, '1': 0.5, '2': 2}}


def size(sample) -> int:
    return sum(weight.numel() for weight in Convs().freeze(sample).parameters())


def millis(sample) -> float:
    """What TABLE says, as a function."""
    return sum(TABLE[label][str(choice)] for label, choice in sample.items())


def operations(sample) -> int:
    """Of one image of 8 x 8 pixels: twice the weights of convolutions at each, and of the linear layer once."""
    weights = [weight for weight in Convs().freeze(sample).parameters() if weight.ndim > 1]
    return 2 * sum(weight.numel() * (64 if weight.ndim == 4 else 1) for weight in weights)


class Paths(pl.Callback):
    """Notes the paths that are trained."""

    def __init__(self):
        self.seen = []

    def __deepcopy__(self, memo):
        return self  # each node has a copy

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append({choice.label: choice._sampled for choice in (module.model.stem, module.model.body)})


@pytest.mark.parametrize(
    'constraints, allowed',
    [
        ({'parameters': (None, 800)}, lambda sample: size(sample) <= 800),
        ({'flops': (20_000, 9e4)}, lambda sample: 20_000 <= operations(sample) <= 90_000),
        ({'macs': (None, 45_000)}, lambda sample: operations(sample) <= 90_000),
        ({'latency': (1.25, 3, TABLE)}, lambda sample: 1.25 <= millis(sample) <= 3),
        ({'latency': (None, 3, millis)}, lambda sample: millis(sample) <= 3),
        ({'parameters': (None, 800), 'latency': (2, None, TABLE)}, lambda s: size(s) <= 800 and millis(s) >= 2),
        ({'macs': (None, 45_000), 'ms': (1, 3.5, millis)}, lambda s: operations(s) <= 90_000 and 1 <= millis(s) <= 3.5),
    ],
    ids=['parameters', 'flops', 'macs', 'table', 'function', 'two', 'with a function'],
)
def test_only_what_is_allowed_is_trained_scored_and_exported(small, tmp_path, constraints, allowed):
    inside = [sample for sample in EVERY if allowed(sample)]
    assert 2 <= len(inside) < 9
    paths = Paths()
    search = RegularizedEvolution(population_size=4, sample_size=2, seed=0)
    strategy = small(
        make_evaluator(epochs=8, callbacks=[paths]), split_epochs=(2,), criterion='random', constraints=constraints,
        search=search, search_budget=9,
    )  # fmt: skip
    drawn = [sample for sample in EVERY if sample in paths.seen]
    assert drawn == inside
    found = [model.sample for model in strategy.list_models(limit=20)]
    assert sorted(map(str, found)) == sorted(map(str, inside))
    assert sum(leaf.subspace.size for leaf in strategy.leaves) == strategy.tree.subspace.size
    outside = next(sample for sample in EVERY if sample not in inside)
    with pytest.raises(ValueError, match=r'does not keep to the filter or the constraints|must be one of'):
        strategy.evaluate([outside])
    record = read_record(tmp_path)
    assert record.root.subspace.size == strategy.tree.subspace.size
    assert [leaf.subspace.size for leaf in record.root.leaves] == [leaf.subspace.size for leaf in strategy.leaves]
    assert {str(score.sample) for score in record.scores} == set(map(str, inside))


def test_sizes_are_exact_and_others_are_another_run(small, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    with caplog.at_level(logging.INFO):
        strategy = small(criterion='random', constraints={'parameters': [None, np.int64(800)]})
    sizes = sorted(map(size, EVERY))
    n = sum(each <= 800 for each in sizes)
    assert strategy.tree.subspace.size == n
    assert f'Constraints: parameters is {sizes[0]} to {sizes[-1]:,} in this space.' in caplog.text
    assert f'Constraints: {n} of 9 architectures have parameters up to 800.' in caplog.text
    assert f'of {n} architectures; training costs' in caplog.text
    first = [model.sample for model in strategy.list_models(limit=3)]
    again = small(criterion='random', constraints={'parameters': (None, 800)})
    assert [model.sample for model in again.list_models(limit=3)] == first
    with pytest.raises(ValueError, match=r"holds a run with constraints\['parameters'\]=\[None, 800\], but this one"):
        small(criterion='random', constraints={'parameters': (None, 900)})
    with pytest.raises(ValueError, match='holds a run with constraints='):
        small(criterion='random')


def test_a_function_of_other_code_is_another_run(small, monkeypatch):
    small(criterion='random', constraints={'latency': (None, 4, millis)})

    def other(sample) -> float:
        return 1.0 + sample['stem']

    other.__qualname__ = 'millis'
    monkeypatch.setattr(sys.modules[__name__], 'millis', other)
    with pytest.raises(ValueError, match=r'holds a run with code of test_constraints\.millis='):
        small(criterion='random', constraints={'latency': (None, 4, millis)})


def test_bands_of_a_limited_space(small, tmp_path):
    """Each band keeps to the limit; learning rates go by the sizes that are allowed; the run is read again."""
    criterion = Bands({'live_parameters': 1, 'lid': 0.5}, max_groups=2)
    strategy = small(
        make_evaluator(epochs=4), criterion=criterion, lr_by_size=True, prior='parameters', search_budget=9,
        constraints={'flops': (None, 1e5)}, sampling='uniform',
    )  # fmt: skip
    inside = [sample for sample in EVERY if operations(sample) <= 1e5]
    one, other = strategy.leaves
    assert one.subspace.size + other.subspace.size == len(inside) == strategy.tree.subspace.size
    assert all((sample in one.subspace) + (sample in other.subspace) == 1 for sample in inside)
    assert not any(sample in leaf.subspace for sample in EVERY if sample not in inside for leaf in strategy.leaves)
    assert sorted(map(str, (model.sample for model in strategy.list_models(limit=9)))) == sorted(map(str, inside))
    record = read_record(tmp_path)
    assert [leaf.subspace.size for leaf in record.root.leaves] == [one.subspace.size, other.subspace.size]


def test_balanced_draws_of_a_limited_space(small):
    small(make_evaluator(epochs=2), criterion='random', sampling='balanced', constraints={'parameters': (None, 800)})
    with pytest.raises(ValueError, match=r"sampling='fair' needs .* under constraints, the choices of labels depend"):
        small(criterion='random', sampling='fair', constraints={'parameters': (None, 800)})


@pytest.mark.parametrize(
    'constraints',
    [
        {'parameters': (None, 800)},
        {'flops': (None, 9e4), 'latency': (1.25, None, TABLE), 'ms': (None, 5.5, millis)},
    ],
    ids=['one', 'three'],
)
def test_a_trial_has_the_same_space(small, tmp_path, monkeypatch, constraints):
    """Made anew in another process, from what the work folder has."""
    torch.save(images().tensors, tmp_path / 'images.pt')
    folder, evaluator = RunFolder(tmp_path / 'run'), in_a_file(tmp_path / 'images.pt')
    sent = nni.dump(evaluator)
    strategy = small(evaluator, split_epochs=(), constraints=constraints, workdir=folder.path)
    write_json(folder.trials('E'), {'T': [1, 'node 0']})
    monkeypatch.setattr('nni.get_experiment_id', lambda: 'E')
    monkeypatch.setattr('nni.get_trial_id', lambda: 'T')
    monkeypatch.setattr('nni.trial._params', {})
    found = []
    monkeypatch.setattr('nni_naslid.trial.perform', lambda run, task: found.append(run))
    trial = Trial(
        'node 0', Convs().trace_copy(), sent, settings=strategy.settings, workdir=folder.path,
        run=json.loads(folder.tree.read_text())['run'], search=None, mutation_hooks=[], summary={},
    )  # fmt: skip
    nni.load(nni.dump(trial)).execute()
    (run,) = found
    theirs, ours = SubSpace.of(run.supernet), strategy.tree.subspace
    assert [sample in theirs for sample in EVERY] == [sample in ours for sample in EVERY]
    draws = [[space.sample(np.random.RandomState(seed)) for seed in range(20)] for space in (theirs, ours)]
    assert draws[0] == draws[1]


class Deep(ModelSpace):
    """Up to three blocks; kernels beyond the depth are not read."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.body = Repeat(
            lambda i: LayerChoice({f'k{k}': nn.Conv2d(8, 8, k, padding=k // 2) for k in (1, 3)}, label=f'kernel{i}'),
            (1, 3),
            label='depth',
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def test_a_block_beyond_the_depth_costs_nothing(small):
    kernels = {'k1': 1, 'k3': 10}
    table = {**{f'kernel{i}': kernels for i in range(3)}, 'depth': {'1': 0, '2': 0, '3': 0}}
    strategy = small(space=Deep, split_epochs=(), constraints={'latency': (3, 12, table)}, search_budget=30)
    inside = set()
    for depth in (1, 2, 3):
        for read in product(kernels, repeat=depth):
            if 3 <= sum(kernels[kernel] for kernel in read) <= 12:
                inside.add((depth, *read))
    found = {(m.sample['depth'], *(m.sample[f'kernel{i}'] for i in range(m.sample['depth'])))
             for m in strategy.list_models(limit=30)}  # fmt: skip
    assert found == inside


@pytest.mark.parametrize('levels', [5, 20])
def test_costs_of_many_values_are_counted_in_steps_and_bounds_are_exact(small, monkeypatch, caplog, levels):
    monkeypatch.setattr('nni_naslid.traits.limits.LEVELS', levels)
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    with caplog.at_level(logging.INFO):
        strategy = small(split_epochs=(), constraints={'parameters': (268, 844)}, search_budget=9)
    found = sorted(size(model.sample) for model in strategy.list_models(limit=9))
    assert found == sorted(cost for cost in map(size, EVERY) if 268 <= cost <= 844) and {268, 844} < set(found)
    assert 'in this space, counted in steps of ' in caplog.text and 'Constraints: at most ' in caplog.text


@pytest.mark.parametrize('bound', [0.4, 0.5, 0.8, 1.0])
def test_a_bound_that_is_a_cost_is_within(small, bound):
    """Decimal fractions, which are none of a computer's."""
    table = {'stem': {'0': 0.1, '1': 0.2, '2': 0.3}, 'body': {'0': 0.1, '1': 0.2, '2': 0.7}}
    costs = [round(10 * (table['stem'][str(each['stem'])] + table['body'][str(each['body'])])) for each in EVERY]
    strategy = small(split_epochs=(), constraints={'ms': (None, bound, table)}, search_budget=9)
    found = sorted(map(str, (model.sample for model in strategy.list_models(limit=9))))
    assert found == sorted(str(each) for each, cost in zip(EVERY, costs, strict=True) if cost <= 10 * bound)


def test_tables_of_any_choice():
    table = parse_constraints({'ms': (None, 1, {'a': {3: 1, '(1, 2)': 2}, 'b': {'0': 5, '[1]': 6}})})['ms'][2]
    costs = table_of('ms', table, {'a': [3, (1, 2)], 'b': [[0], [1]], 'c': ['only']})
    assert {labels: each.tolist() for labels, each in costs.items()} == {('a',): [1, 2], ('b',): [5, 6]}


@pytest.mark.parametrize(
    ('table', 'choices', 'match'),
    [
        ({'a': {'0': 1, '[0]': 2, '1': 3}}, {'a': [[0], [1]]}, "has '0' and '.0.' for 'a', which are one choice"),
        ({'a': {'1': 1}}, {'a': [1, '1']}, "'1' of 'a' in the table of ms may be .1,. or .'1',."),
        (
            {'a & b': {'x & y & z': 1, 'x & z': 2, 'x & y & y & z': 3}},
            {'a': ['x', 'x & y'], 'b': ['z', 'y & z']},
            "'x & y & z' of 'a & b' in the table of ms may be",
        ),
    ],
)
def test_tables_that_can_be_read_in_two_ways(table, choices, match):
    with pytest.raises(ValueError, match=match):
        table_of('ms', parse_constraints({'ms': (None, 1, table)})['ms'][2], choices)


def test_what_differs_in_a_table_is_one_entry():
    """However large the tables are."""
    entries = {f'{i} & {j}': float(i) for i in range(50) for j in range(50)}
    kept = {'settings': {'constraints': {'ms': [None, 3, {'a & b': entries}]}}}
    for other, said in (({**entries, '0 & 0': 7.0}, ('0.0', '7.0')), ({**entries, '0 & 50': 1.0}, ('None', '1.0'))):
        at = "constraints['ms'][2]['a & b'][{!r}]".format('0 & 0' if said[0] == '0.0' else '0 & 50')
        before = f'no {at}' if said[0] == 'None' else f'{at}={said[0]}'
        found = {'settings': {'constraints': {'ms': [None, 3, {'a & b': other}]}}}
        assert difference(kept, found, 'this one') == f'{before}, but this one has {at}={said[1]}'


@pytest.mark.parametrize('bound', [(None, 0.9), (0.9, 0.9), (0.9, None)])
def test_costs_that_are_the_same_for_all(small, bound):
    """0.3 three times is a little less than 0.9 for a computer."""
    table = {'stem': dict.fromkeys('012', 0.3), 'body': dict.fromkeys('012', 0.3)}
    together = {f'{stem} & {body}': 0.3 for stem, body in product(range(3), range(3))}
    limits = {'ms': (*bound, {**table, 'stem & body': together})}
    assert small(split_epochs=(), constraints=limits, search_budget=2).tree.subspace.size == 9


def test_costs_of_labels_together(small):
    """What a stem costs depends on the body; a body costs something by itself, too."""
    together = {f'{stem} & {body}': float(10 * stem + body) for stem, body in product(range(3), range(3))}
    table = {'stem & body': together, 'body': {'0': 0.5, '1': 0, '2': 0.25}}
    strategy = small(split_epochs=(), constraints={'ms': (None, 12.2, table)}, search_budget=9)
    found = sorted(str(model.sample) for model in strategy.list_models(limit=9))
    costs = {
        str(each): together[f'{each["stem"]} & {each["body"]}'] + table['body'][str(each['body'])] for each in EVERY
    }
    assert found == sorted(each for each, cost in costs.items() if cost <= 12.2) and len(found) == 5


def test_a_table_in_a_file(tmp_path, small, monkeypatch):
    (tmp_path / 'ms.json').write_text(json.dumps(TABLE))
    assert parse_constraints({'ms': (None, 3, str(tmp_path / 'ms.json'))}) == parse_constraints(
        {'ms': [None, 3, TABLE]}
    )
    (tmp_path / 'bad.json').write_text('{')
    with pytest.raises(ValueError, match=r'bad\.json of ms is no JSON \(Expecting'):
        parse_constraints({'ms': (None, 3, tmp_path / 'bad.json')})
    with pytest.raises(ValueError, match=r'constraints: the table none\.json of ms cannot be read \(No such file'):
        parse_constraints({'ms': (None, 3, 'none.json')})
    (tmp_path / 'ms.csv').write_text('stem,0,1.5')
    monkeypatch.chdir(tmp_path)
    for other in ('ms.csv', 'tables/ms.csv'):
        with pytest.raises(ValueError, match=r'ms must have a table \(a dict, or the path of a \.json\) .*ms\.csv'):
            parse_constraints({'ms': (None, 3, other)})


@pytest.mark.parametrize(
    'constraints, match',
    [
        ({}, 'constraints must be a dict of costs and their bounds, but got {}'),
        ([('flops', 1)], 'constraints must be a dict'),
        (
            {'flop': (None, 1)},
            r'flop must have \(low, high, what gives it: .*parameters, flops, macs; is flops meant\?',
        ),
        ({'flops': 3e8}, r'flops must have \(low, high\), but has 300000000.0'),
        ({'flops': (None, 3e8, TABLE)}, r'flops must have \(low, high\), but has'),
        ({'flops': (None, None)}, r'flops must have a bound, .* but has \[None, None\]'),
        ({'flops': (5, 3)}, r'flops must have a bound, and the first one not above the second, but has \[5, 3\]'),
        ({'flops': (None, '3e8')}, r"bounds of flops must be numbers or None, but one is '3e8' \(in a YAML, 3e8 is"),
        ({'flops': (math.nan, 3)}, 'bounds of flops must be numbers or None, but one is nan'),
        ({'flops': (True, 3)}, 'bounds of flops must be numbers or None, but one is True'),
        ({3: (None, 1)}, 'constraints must be by the name of a cost, but got 3'),
        ({'ms': (None, 1, lambda sample: 1)}, 'the function of ms must be at the top of a module'),
        ({'ms': (None, 1, 'fast')}, r"ms must have a table \(a dict, or the path of a .json\) or a function, .*'fast'"),
        ({'ms': (None, 1, {'stem': 3})}, "table of ms must have a dict of choices and costs for each label, .* 'stem'"),
        ({'ms': (None, 1, {'stem': {'0': 1, 0: 2}})}, "table of ms has two costs for 0 of 'stem'"),
        ({'ms': (None, 10**400, {'stem': {'0': 1}})}, 'bounds of ms must be below 1e308'),
        ({'ms': (None, 1, {'stem': {'0': math.nan}})}, "table of ms must have finite numbers, but has nan for '0' of"),
    ],
)
def test_what_is_no_constraint(constraints, match):
    with pytest.raises(ValueError, match=match):
        NASLID(constraints=constraints)


def nothing(sample):
    return None


def fails(sample):
    return 1 / 0


def rarely_fails(sample):
    return {0: 0, 1: 0}[sample['stem'] if sample['body'] == 1 else 0]


def only_one(sample):
    return sample['stem'] + sample['body'] + 1


@pytest.mark.parametrize(
    'constraints, match',
    [
        ({'parameters': (None, 100)}, r'no architecture has parameters up to 100; possible are 180 to 1,356\.'),
        ({'latency': (9, None, TABLE)}, r'no architecture has latency of at least 9; possible are 0\.75 to 6\.'),
        ({'parameters': (180, 180)}, 'constraints leave 1 architecture, and nothing to search'),
        ({'ms': (None, 1, {'stem': TABLE['stem']})}, "the table of ms has nothing for 'body'"),
        ({'ms': (None, 1, {**TABLE, 'body': {'0': 1, '1': 1}})}, "the table of ms has nothing for 2 of 'body'"),
        ({'ms': (None, 1, {**TABLE, 'tail': {'0': 1}})}, "the table of ms has 'tail', but the labels are stem, body"),
        (
            {'ms': (None, 0.1, millis)},
            r'lets 0 of 1,000 random architectures pass; at least 10 must \(ms of 1,000 others is 0\.75 to 6\)\.',
        ),
        (
            {'parameters': (900, None), 's': (None, 5, millis), 'ms': (None, 0.1, millis)},
            r'with parameters 900 or more pass; .*must \(s of 1,000 others is 0\.75 to 4\.5; ms of .* to 4\.5\)\.',
        ),
        (
            {'parameters': (900, None), 'ms': (5, None, TABLE)},
            r'no architecture with .* has .*; possible are .* there\.$',
        ),
        ({'ms': (None, 1, nothing)}, 'constraints: test_constraints.nothing must return a number, but returned None'),
        ({'ms': (None, 1, fails)}, r'^constraints: test_constraints\.fails raised ZeroDivisionError: division by zero'),
        ({'ms': (None, 1, rarely_fails)}, r'test_constraints\.rarely_fails raised KeyError: 2, of the architecture'),
        (
            {'ms': (None, 1, {**TABLE, 'body': {**TABLE['body'], '7': 1}})},
            "has '7' for 'body', whose choices are 0, 1, 2",
        ),
        ({'ms': (None, 1, only_one)}, 'constraints lets one architecture pass only, .*: there is nothing to search'),
        ({'parameters': (None, 300)}, r'leave nothing to split for Fixed.*stem: 0, body: 0\|2; parameters'),
        ({'ms': (None, 1, 'no.such')}, r'constraints: no\.such cannot be imported'),
    ],
)
def test_constraints_that_cannot_be_kept_are_said_before_training(small, tmp_path, constraints, match):
    with pytest.raises(ValueError, match=match):
        small(criterion=Fixed({'stem': [[0], [1, 2]]}), constraints=constraints)
    assert not list(tmp_path.glob('*.ckpt'))


def test_with_a_filter_both_hold(small):
    strategy = small(
        split_epochs=(),
        constraints={'parameters': (None, 800)},
        filter=lambda sample: sample['stem'] != 1,
        search_budget=9,
    )
    found = [model.sample for model in strategy.list_models(limit=9)]
    assert sorted(map(str, found)) == sorted(str(each) for each in EVERY if size(each) <= 800 and each['stem'] != 1)


def test_settings_go_through_json():
    settings = NASLID(constraints={'flops': (None, 3e8), 'ms': (1, 2, millis)}).settings
    assert settings.constraints == {'flops': [None, 3e8], 'ms': [1, 2, 'test_constraints.millis']}
    assert NASLID(constraints={'flops': (None, 4e3)}).settings == NASLID(constraints={'flops': [None, 4000]}).settings
    assert type(settings).from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


class Wide(ModelSpace):
    """Twelve layers of three sizes each: half a million networks."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            LayerChoice(
                [nn.Sequential(nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)) for width in (1, 2, 4)], label=f'l{i}'
            )
            for i in range(12)
        )
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.slow
def test_a_limit_that_one_in_ten_thousand_keeps_to(small, tmp_path):
    """All layers are the smallest, but for one or two that are the next: 1 + 12 + 66 networks of 531,441."""
    unit = 3 + 1 + 3  # what the next width adds; the largest adds three times as much
    smallest = 12 * (unit + 3) + 16
    paths: list[tuple[int, ...]] = []

    class Notes(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            paths.append(tuple(layer._sampled for layer in module.model.layers))

    strategy = small(
        make_evaluator(epochs=8, callbacks=[Notes()]), space=Wide, criterion='random', search_budget=60,
        constraints={'parameters': (None, smallest + 2 * unit)},
    )  # fmt: skip
    assert strategy.tree.subspace.size == 1 + 12 + 66
    assert all(path.count(2) == 0 and path.count(1) <= 2 for path in paths)
    found = {tuple(model.sample.values()) for model in strategy.list_models(limit=100)}
    assert len(found) == 79 and set(paths) <= found


@pytest.mark.parametrize('most, n', [(9_000, 7), (7_000, 6), (6_000, 0)])
def test_two_limits_of_which_one_is_cheap_where_the_other_is_dear(most, n):
    """Few of those that keep to one keep to the other; against all 15,625 architectures."""
    supernet = make_supernet(NasBench201(4, 1, 10))
    space = SubSpace.of(supernet)
    operations = dict(zip(space.mutables['cell/0_1'].values, (4, 5, 2, 1, 6), strict=True))
    costs = dict.fromkeys(space.mutables, operations)
    count = structural_score(supernet, space, 'parameters', exact=True).of
    sizes = {tuple(each): count(dict(zip(costs, each, strict=True))) for each in product(operations, repeat=6)}
    inside = {each for each, size in sizes.items() if size <= most and sum(map(operations.get, each)) <= 14}
    assert len(inside) == n
    constraints = {'parameters': [None, most], 'latency': [None, 14, costs]}
    limit = partial(limited_space, constraints, space, None, SimpleNamespace(model=supernet), None)
    if not n:
        least = min(size for each, size in sizes.items() if sum(map(operations.get, each)) <= 14)
        with pytest.raises(ValueError, match=f'latency up to 14 has parameters up to 6,000; possible are {least:,} to'):
            limit()
        return
    limited, random_state = limit(), np.random.RandomState(0)
    drawn = {tuple(limited.unfiltered().sample(random_state).values()) for _ in range(20 * n)}
    assert limited.size == n and drawn == inside


@pytest.mark.slow
@pytest.mark.parametrize('share', [1e-2, 1e-4])
def test_paths_within_a_tight_limit_of_a_large_space_are_drawn_at_once(share):
    """Of 10^39 architectures; the exact limit, which is asked of each drawn path, turns nearly none of them down."""
    supernet = NASLID().mutate_model(MobileNetV3Space(num_labels=10))
    space = SubSpace.of(supernet)
    count = structural_score(supernet, space, 'parameters', exact=True).of
    random_state = np.random.RandomState(0)
    bound = int(np.quantile([count(space.sample(random_state)) for _ in range(10_000)], share))
    asked = []
    module = SimpleNamespace(model=supernet)
    limited = limited_space({'parameters': [None, bound]}, space, lambda each: not asked.append(each), module, None)
    assert limited.size / space.size == pytest.approx(share, rel=1)
    assert all(count(limited.sample(random_state)) <= bound for _ in range(200))
    assert len(asked) < 220


def odd(sample) -> int:
    """Whether the stem is 1 without the body that goes with it."""
    return int(sample['stem'] == 1 and sample['body'] != 1)


def test_a_split_that_would_leave_a_part_without_networks_is_not_made(small):
    constraints = {
        'parameters': (None, 800),
        'odd': (None, 0, odd),
    }  # of stem 1 only body 1 is left, which is too large
    criterion = Fixed({'stem': [[0, 2], [1]]})
    for _ in range(2):  # the second time it is read
        strategy = small(make_evaluator(epochs=3), criterion=criterion, constraints=constraints)
        assert len(strategy.leaves) == 1 and strategy.tree.end_epoch == 3
        assert strategy.tree.split.evidence.objection == 'filter and constraints leave no network of a part (stem: 1)'


@pytest.mark.parametrize(
    'search', [GridSearch(shuffle=False), pytest.param(TPE(), marks=pytest.mark.slow)], ids=['grid', 'tpe']
)
def test_a_search_that_does_not_find_the_limit_is_refused_before_training(small, tmp_path, search, monkeypatch):
    monkeypatch.setattr('nni_naslid.search.check._FirstOnly.patience', 50)
    monkeypatch.setattr('nni_naslid.search.check._FirstOnly.seconds', 2.0)  # TPE takes one for each
    largest = 12 * (4 * 7 + 3) + 16
    with pytest.raises(ValueError, match=r'does not look at constraints and filter: none of its first \d+ arch'):
        small(space=Wide, split_epochs=(), search=search, constraints={'parameters': (largest - 20, None)})
    assert not list(tmp_path.glob('*.ckpt'))


def test_choices_of_other_weights():
    mutables = {'a': Categorical([1, 2], weights=[0.9, 0.1], label='a'), 'b': Categorical([1, 2], label='b')}
    constraints = parse_constraints({'ms': (None, 3, {label: {'1': 1, '2': 2} for label in 'ab'})})
    with pytest.raises(ValueError, match="constraints are drawn from uniformly, but the choices of 'a' have different"):
        limited_space(constraints, SubSpace(mutables), None, None, None)


class Twice(Plain):
    def forward(self, x):
        return self.model(x) + self.model(x.flip(-1))


def test_flops_of_a_module_that_calls_the_supernet_twice(small):
    """They are those of one call."""
    evaluator = make_evaluator(Twice())
    strategy = small(evaluator, split_epochs=(), constraints={'flops': (None, 9e4)}, search_budget=9)
    found = sorted(operations(model.sample) for model in strategy.list_models(limit=9))
    assert found == sorted(cost for cost in map(operations, EVERY) if cost <= 9e4)


def test_other_limits_by_the_same_constraints_are_another_run(small, monkeypatch):
    small(split_epochs=(), constraints={'parameters': (None, 800)})
    monkeypatch.setattr('nni_naslid.traits.limits.LEVELS', 5)  # as in another version
    with pytest.raises(ValueError, match='holds a run with other limits, though by the same constraints'):
        small(split_epochs=(), constraints={'parameters': (None, 800)})


def test_runs_are_compared_with_their_constraints(small, tmp_path):
    small(split_epochs=(), constraints={'parameters': (None, 800), 'latency': (1, 3.5, TABLE)})
    record = read_record(tmp_path)
    told = 'parameters up to 800 and latency from 1 to 3.5'
    assert compare([record])[0][0]['settings'] == f"lr_by_size=True, constraints='{told}'"
    assert f'architectures with {told}, ranked by' in report_page(record)
