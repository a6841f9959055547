"""The search over the leaves: what it scores is what it lists, whatever strategy of NNI makes the samples."""

import logging
import threading

from nni_naslid import LID, SubSpace
from nni_naslid.analysis.report import report_page
from nni_naslid.run.record import read_record
from nni_naslid.run.settings import Settings
from nni_naslid.train.path import labels_read
from nni_naslid.trial import Trial

import nni
import nni.nas.nn.pytorch as nas
import numpy as np
import pytest
from nni.nas.hub.pytorch import DARTS, MobileNetV3Space, ProxylessNAS
from nni.nas.nn.pytorch import recursive_freeze
from nni.nas.oneshot.pytorch.profiler import RangeProfilerFilter
from nni.nas.profiler import Profiler
from nni.nas.strategy import TPE, GridSearch, Random, RandomOneShot, RegularizedEvolution
from nni.nas.strategy.middleware import Chain, Filter
from small import profiled
from torch import nn


def small_mobilenet() -> MobileNetV3Space:
    return MobileNetV3Space(num_labels=10, base_widths=(8,) * 9, width_multipliers=(0.5, 1.0), expand_ratios=(1.0, 2.0))


class Images(nas.ModelSpace):
    """A stem, a body and a head, for images of 8 x 8."""

    def __init__(self, stem: nn.Module, body: nn.Module, channels: int = 4):
        super().__init__()
        self.stem, self.body = stem, body
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 10))

    def forward(self, x):
        return self.head(self.body(self.stem(x)))


def op(channels: int, kernel: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, kernel, padding=kernel // 2), nn.BatchNorm2d(4), nn.ReLU())


class Digits(Images):
    """A stem and a body of three candidates each."""

    def __init__(self):
        stem = nas.LayerChoice([op(3, 1), op(3, 3), op(3, 5)], label='stem')
        super().__init__(stem, nas.LayerChoice([op(4, 1), op(4, 3), nn.Identity()], label='body'))


def keys(models) -> set[str]:
    return {repr(sorted(model.sample.items())) for model in models}


@pytest.mark.parametrize('shuffle', [False, True])
@pytest.mark.parametrize('budget, n', [(5, 5), (20, 9)])
def test_a_grid_search_lists_the_samples_that_it_scored(run, shuffle, budget, n, caplog, monkeypatch):
    """NNI's grid writes one sample after another into one dict."""
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    caplog.set_level(logging.INFO)
    search = GridSearch(shuffle=shuffle, seed=0)
    strategy = run((), space=Digits(), epochs=1, search=search, search_budget=budget, monitor='val_loss', mode='min')
    models = list(strategy.list_models(limit=None))
    assert len(models) == len(keys(models)) == n
    losses = [metrics['val_loss'] for metrics in strategy.evaluate([model.sample for model in models])]
    assert losses == [-model.metric for model in models]
    assert ('The search has ended by itself after 9 networks of 20.' in caplog.text) == (budget == 20)


class Deep(Images):
    """The body is repeated one to three times, each with a choice of its own: 3 + 9 + 27 bodies in 81 samples."""

    def __init__(self):
        stem = nas.LayerChoice([op(3, 1), op(3, 3), op(3, 5)], label='stem')
        super().__init__(stem, nas.Repeat(self.block, (1, 3), label='depth'))

    @staticmethod
    def block(i: int) -> nn.Module:
        return nas.LayerChoice([op(4, 1), op(4, 3), nn.Identity()], label=f'block{i}')


def network_of(sample: dict) -> tuple:
    return (sample['stem'], *(sample[f'block{i}'] for i in range(sample['depth'])))


EVOLUTION, EVOLUTION_2 = (
    RegularizedEvolution(population_size=5, sample_size=2, mutation_prob=0.3, seed=0) for _ in range(2)
)


@pytest.mark.parametrize('search', [Random(seed=0), GridSearch(shuffle=False), EVOLUTION])
def test_networks_count_and_are_listed_once(run, search):
    strategy = run((1,), space=Deep(), epochs=2, search=search, search_budget=30)
    models = list(strategy.list_models(limit=None))
    assert len({network_of(model.sample) for model in models}) == len(models) == 30
    assert len({network_of(model.sample) for model in strategy.list_models(limit=45)}) == 45
    assert [metrics['val_acc'] for metrics in strategy.evaluate([m.sample for m in models])] == [
        m.metric for m in models
    ]


def test_samples_of_one_network_have_one_score(run):
    strategy = run((1,), space=Deep(), epochs=2, search_budget=1, seed=1)
    same = [{'stem': 0, 'depth': 1, 'block0': 1, 'block1': i, 'block2': j} for i in range(3) for j in range(3)]
    assert len({tuple(metrics.items()) for metrics in strategy.evaluate(same)}) == 1
    other = [{**sample, 'depth': 3} for sample in same]
    assert len({tuple(metrics.items()) for metrics in strategy.evaluate(other)}) > 1
    with pytest.raises(ValueError, match=r"samples\[0\] has 9 for 'block2', which must be one of 0, 1, 2\."):
        strategy.evaluate([{**same[0], 'block2': 9}])


def test_the_page_shows_the_choices_that_make_a_difference(run):
    strategy = run((1,), space=Deep(), epochs=2, search_budget=1, seed=1)
    strategy.evaluate([{'stem': 0, 'depth': 1, 'block0': 2, 'block1': 1, 'block2': 1}])
    page = report_page(read_record(strategy.workdir))
    assert '<td>0</td><td>1</td><td>2</td><td>not read</td><td>not read</td></tr>' in page


def test_labels_that_blocks_share_are_read_where_one_of_these_is():
    class Shared(Images):
        def __init__(self):
            act = nas.LayerChoice([nn.ReLU(), nn.Identity()], label='act')
            super().__init__(op(3, 3), nas.Repeat(act, (1, 3), label='depth'))

    supernet = RandomOneShot().mutate_model(Shared())
    assert labels_read(supernet, {'depth': 1, 'act': 0}) == {'depth', 'act'}
    supernet = RandomOneShot().mutate_model(Deep())
    sample = {'stem': 0, 'depth': 2, 'block0': 0, 'block1': 0, 'block2': 0}
    assert labels_read(supernet, sample) == {'stem', 'depth', 'block0', 'block1'}
    assert labels_read(supernet) == set(sample)


@pytest.mark.parametrize(
    'make',
    [lambda: ProxylessNAS(10, base_widths=(8,) * 9), pytest.param(small_mobilenet, marks=pytest.mark.slow)],
)
def test_what_is_not_read_makes_no_difference_and_what_is_read_makes_one(make):
    supernet = RandomOneShot().mutate_model(make()).eval()
    subspace, random_state = SubSpace.of(supernet), np.random.RandomState(0)
    sample, other = subspace.sample(random_state), subspace.sample(random_state)
    read = labels_read(supernet, sample)
    assert read < set(sample)
    network = repr(supernet.freeze(sample))
    assert repr(supernet.freeze({label: (sample if label in read else other)[label] for label in sample})) == network
    for label in random_state.permutation(sorted(read))[:5]:
        changed = next(choice for choice in subspace.mutables[label].values if choice != sample[label])
        assert repr(supernet.freeze({**sample, label: changed})) != network


def test_a_search_ends_where_there_are_no_more_networks(run):
    class Small(Images):
        def __init__(self):
            super().__init__(op(3, 3), nas.Repeat(Deep.block, (1, 2), label='depth'))

    strategy = run((), space=Small(), epochs=1, search=Random(seed=0, dedup=False), search_budget=50)
    assert len(list(strategy.list_models(limit=None))) == 3 + 9


def test_a_label_that_no_module_of_the_supernet_reads_is_refused(run, sampled):
    class Scaled(Digits):
        def __init__(self):
            super().__init__()
            self.scale = self.add_mutable(nni.choice('scale', [1, 2]))

        def freeze(self, sample):
            return nn.Sequential(recursive_freeze(self, sample, include_root=False)[0])

    with pytest.raises(ValueError, match=r"No module of the supernet of Scaled reads the label 'scale'"):
        run((1,), space=Scaled(), epochs=2)
    assert not sampled


class Cells(Images):
    """A cell like those of DARTS, made by factories: two nodes, of one input of those before and one operation each."""

    def __init__(self):
        operations = {'one': lambda *_: op(4, 1), 'three': lambda *_: op(4, 3)}
        super().__init__(op(3, 3), nas.Cell(operations, 2, label='cell'), channels=8)


@pytest.mark.parametrize(
    'make', [Cells, pytest.param(lambda: DARTS(width=4, num_cells=3, dataset='cifar'), marks=pytest.mark.slow)]
)
def test_cells_are_profiled_by_their_inputs_too(run, evaluator, tmp_path, make):
    strategy = run((1,), space=make(), epochs=2, criterion='lid', search_budget=4)
    labels = set(profiled(evaluator(2), strategy.supernet, tmp_path / 'profile.jsonl').contrasts)
    assert labels == set(strategy.tree.subspace.splittable)
    assert any('/input_' in label for label in labels)
    models = list(strategy.list_models(limit=4))
    assert len(models) == 4
    accuracies = [metrics['val_acc'] for metrics in strategy.evaluate([model.sample for model in models])]
    assert accuracies == [model.metric for model in models]


def test_a_tree_is_split_by_an_input_and_trained_inside_of_it(run, sampled):
    """With this seed the control draws the input of the second node."""
    strategy = run((1,), space=Cells(), epochs=2, search_budget=8, seed=0)
    kept = [child.narrowed(strategy.tree.subspace) for child in strategy.tree.split.children]
    assert sorted(each['cell/input_2_0'] for each in kept) == [[0], [1]]
    assert all(len(each) == 1 for each in kept)
    trained = {repr(subspace): set() for subspace, _, _ in sampled}
    for subspace, _, sample in sampled:
        trained[repr(subspace)].add(repr(sample['cell/input_2_0']))
    assert sorted(map(sorted, trained.values())) == [['[0]'], ['[0]', '[1]'], ['[1]']]
    assert all(sample in subspace for subspace, _, sample in sampled)
    assert len(list(strategy.list_models(limit=None))) == 8


class Inputs(Images):
    """Any two of three inputs are chosen."""

    def __init__(self, body: nn.Module | None = None):
        super().__init__(op(3, 1), body or op(3, 3))
        self.other = op(3, 5)
        self.choose = nas.InputChoice(3, 2, label='in')

    def forward(self, x):
        return self.head(self.choose([self.stem(x), self.body(x), self.other(x)]))


def test_several_inputs_of_many_are_searched_but_not_split(run, caplog, monkeypatch, tmp_path):
    class Both(Inputs):
        def __init__(self):
            super().__init__(nas.LayerChoice([op(3, 1), op(3, 3)], label='body'))

    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    with pytest.raises(ValueError, match=r"nothing to split for .*: more than one may be chosen .* \['in'\]"):
        run((1,), space=Inputs(), epochs=2)
    strategy = run((), space=Inputs(), epochs=1, search_budget=5)
    assert sorted(model.sample['in'] for model in strategy.list_models(limit=None)) == [[0, 1], [0, 2], [1, 2]]
    with caplog.at_level(logging.INFO):
        run((1,), space=Both(), epochs=2, search_budget=1, workdir=tmp_path / 'both')
    assert caplog.text.count("More than one may be chosen of ['in']: searched, but never split.") == 1


def shallow(sample: dict) -> bool:
    return sample['depth'] < 3


def passing(limit: int):
    return lambda model: model.sample['stem'] < limit


class Drawing(Random):
    """A search of the user's own."""


@pytest.mark.parametrize('search', [None, Random(seed=0), GridSearch(seed=0), EVOLUTION_2], ids=str)
def test_a_filter_holds_in_training_search_and_export(run, sampled, search):
    strategy = run((1,), space=Deep(), epochs=2, search=search, filter=shallow, search_budget=15)
    assert len(sampled) == 5 * strategy.tree.cost
    assert all(shallow(sample) for _, _, sample in sampled)
    assert {sample['depth'] for _, _, sample in sampled} == {1, 2}
    models = list(strategy.list_models(limit=30))
    assert len({network_of(model.sample) for model in models}) == 30
    assert all(shallow(model.sample) for model in models)
    forbidden = {**models[0].sample, 'depth': 3}
    with pytest.raises(ValueError, match=r'samples\[0\] does not keep to the filter or the constraints: .*3'):
        strategy.evaluate([forbidden])


def test_a_filter_of_nni_and_its_arguments(run, sampled, tmp_path):
    class Depth(Profiler):
        def profile(self, sample):
            return sample['depth']

    for i, given in enumerate((RangeProfilerFilter(Depth(None), max=1), {'profiler': Depth(None), 'max': 1})):
        strategy = run((), space=Deep(), epochs=1, filter=given, search_budget=5, workdir=tmp_path / str(i))
        assert {sample['depth'] for _, _, sample in sampled} == {1}
        assert {model.sample['depth'] for model in strategy.list_models(limit=9)} == {1}


@pytest.mark.parametrize(
    'given, error, match',
    [
        ('small', TypeError, "filter must be a function of an architecture, or a ProfilerFilter, but got 'small'"),
        (lambda sample: sample['width'] < 3, ValueError, "filter raised KeyError: 'width', of the architecture {'st"),
        (lambda sample: False, ValueError, r'filter lets 0 of 1,000 random architectures pass; at least 10 must\.$'),
        (lambda sample: None, ValueError, r'at least 10 must\. It returned None: is its return missing\?$'),
    ],
)
def test_filters_that_cannot_work_are_refused_before_training(run, sampled, given, error, match):
    with pytest.raises(error, match=match):
        run((1,), space=Deep(), epochs=2, filter=given)
    assert not sampled


def test_another_filter_is_another_run(run):
    run((1,), space=Deep(), epochs=2, filter=lambda sample: sample['depth'] < 3, search_budget=2)
    with pytest.raises(ValueError, match=r'holds a run with filter=.*, but this one has filter='):
        run((1,), space=Deep(), epochs=2, filter=lambda sample: sample['depth'] < 2, search_budget=2)
    with pytest.raises(ValueError, match=r'holds a run with filter=.*, but this one has no filter'):
        run((1,), space=Deep(), epochs=2, search_budget=2)


def test_another_filter_of_the_search_is_another_search(run):
    """Both have one repr but for addresses; the tree is the same, and trained once."""
    for limit in (1, 2, 1):
        search = Chain(Random(seed=0), Filter(passing(limit)))
        strategy = run((1,), space=Deep(), epochs=2, search=search, search_budget=5)
        assert {model.sample['stem'] for model in strategy.list_models(limit=None)} == set(range(limit))
    again = run((1,), space=Deep(), epochs=2, search=Chain(Random(seed=0), Filter(passing(1))), search_budget=5)
    assert [m.sample for m in again.list_models(limit=None)] == [m.sample for m in strategy.list_models(limit=None)]


def test_models_beyond_those_of_the_search_pass_its_filters_too(run, caplog, monkeypatch):
    search = Chain(Random(seed=0), Filter(passing(1)))
    strategy = run((1,), space=Deep(), epochs=2, search=search, search_budget=5)
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    caplog.set_level(logging.INFO)
    said = '{} networks are asked for, and {} are scored: scoring {} others, drawn at random.'
    assert len(list(strategy.list_models(limit=5))) == 5
    assert 'asked for' not in caplog.text
    assert len(strategy.experiment.export_top_models(12, formatter='dict')) == 12
    models = list(strategy.list_models(limit=12))  # they are known now
    assert len(models) == 12
    assert {model.sample['stem'] for model in models} == {0}
    assert [record.message for record in caplog.records if 'asked for' in record.message] == [said.format(12, 5, 7)]
    assert len(list(strategy.list_models(limit=50))) == 3 + 9 + 27  # there are no more
    assert said.format(50, 12, 38) in caplog.text
    assert 'No other network was found: listing 39.' in caplog.text
    with caplog.at_level(logging.INFO):
        strategy = run((1,), space=Deep(), epochs=2, search=Drawing(seed=0), search_budget=5)
        assert len(list(strategy.list_models(limit=12))) == 5
    assert 'Drawing may leave out networks: listing the 5 that it scored, not 12.' in caplog.text


def test_what_cannot_be_told_apart_is_refused_in_a_named_folder(run, sampled, tmp_path, monkeypatch):
    lock = threading.Lock()

    def locked(_) -> bool:
        with lock:
            return True

    for kwargs in ({'search': Chain(Random(seed=0), Filter(locked))}, {'filter': locked}):
        name = next(iter(kwargs))
        with pytest.raises(ValueError, match=f'{name} cannot be told from another one by its content, .* a _thread'):
            run((1,), space=Deep(), epochs=2, search_budget=2, **kwargs)
    assert not sampled
    monkeypatch.chdir(tmp_path)
    strategy = run((), space=Deep(), epochs=1, search_budget=2, filter=locked, workdir=None)
    assert len(list(strategy.list_models(limit=None))) == 2


class Stuck(Random):
    """A search that finds nothing."""

    def _run(self):
        pass


@pytest.mark.parametrize(
    'search, match',
    [
        (TPE(seed=0), r'search=TPE\(.*\) cannot run on Inputs: NotImplementedError: .*CategoricalMultiple'),
        (Chain(TPE(seed=0), Filter(shallow)), r'search=TPE\(.*\) cannot run on Inputs: NotImplementedError'),
        (Stuck(seed=0), r'search=Stuck\(dedup=True\) submits no architecture of Inputs'),
    ],
    ids=['tpe', 'chain', 'stuck'],
)
def test_a_search_that_cannot_run_is_refused_before_training(run, sampled, search, match):
    with pytest.raises(ValueError, match=match):
        run((), space=Inputs(), epochs=1, search=search, search_budget=2)
    assert not sampled


class Pondering(Random):
    """A search that does not begin before somebody has said that it takes long."""

    told = threading.Event()

    def _run(self):
        assert self.told.wait(60)
        super()._run()


def test_a_search_that_takes_long_to_begin_is_told(run, monkeypatch, caplog):
    class Listener(logging.Handler):
        def emit(self, record):
            Pondering.told.set()

    monkeypatch.setattr('nni_naslid.search.check._FirstOnly.seconds', 0.01)
    listener = Listener(logging.WARNING)
    logging.getLogger('nni_naslid.search.check').addHandler(listener)
    try:
        run((), epochs=1, search=Pondering(seed=0), search_budget=2)
    finally:
        logging.getLogger('nni_naslid.search.check').removeHandler(listener)
    assert 'search=Pondering(dedup=True) has not come to a first architecture of NasBench201 in 0.01 s' in caplog.text


@pytest.mark.slow
def test_a_tuner_looks_for_the_best_whatever_its_default(run):
    """What it keeps are losses: the larger score is the smaller one."""
    search = TPE(seed=0)
    strategy = run((), epochs=1, search=search, search_budget=6)
    scores = sorted(model.metric for model in strategy.list_models(limit=6))
    losses = next(iter(search.tuner._history.values()))
    assert sorted({-record.loss for record in losses}) == sorted(set(scores))


def test_a_search_that_was_tried_is_still_unused(run):
    """It goes through the same samples as one that nobody has tried."""
    strategy = run((), space=Digits(), epochs=1, search=GridSearch(shuffle=False), search_budget=4)
    samples = [model.sample for model in strategy.list_models(sort=False, limit=None)]
    expected = [{'stem': 0, 'body': 0}, {'stem': 0, 'body': 1}, {'stem': 0, 'body': 2}, {'stem': 1, 'body': 0}]
    assert sorted(map(repr, samples)) == sorted(map(repr, expected))


def test_a_filter_travels_to_trials(tmp_path):
    space = DARTS(width=4, num_cells=3, dataset='cifar')
    trial = Trial(
        'search', space.trace_copy(), 'evaluator', settings=Settings([], LID()), workdir=tmp_path, run='run',
        search=None, mutation_hooks=[], summary={}, filter=shallow,
    )  # fmt: skip
    there = nni.load(nni.dump(trial))
    assert [there.filter({'depth': depth}) for depth in (2, 3)] == [True, False]
