"""Which paths are trained: counted in a run, and against equal shares."""

import pickle
from collections import Counter

from nni_naslid import Bands
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.sampling import draw_from

import pytest
from nni.nas.hub.pytorch import NasBench201
from nni.nas.strategy import RandomOneShot
from scipy.stats import chisquare
from small import Convs, make_evaluator


def n_convolutions(sample: dict) -> int:
    return sum('conv' in choice for choice in sample.values())


def test_fair_sampling_gives_each_candidate_its_turn(run, sampled):
    """Five batches an epoch, five candidates: each comes once in an epoch, and twice in a part of two or three."""
    strategy = run((2,), sampling='fair', criterion='random')
    assert len(strategy.leaves) == 2
    for subspace, epoch in {(repr(subspace), epoch) for subspace, epoch, _ in sampled}:
        paths = [sample for of, at, sample in sampled if (repr(of), at) == (subspace, epoch)]
        whole = next(of for of, _, _ in sampled if repr(of) == subspace)
        for label, candidates in whole.splittable.items():
            times = Counter(sample[label] for sample in paths)
            assert set(times) == set(candidates) and max(times.values()) - min(times.values()) <= 1
    orders = {tuple(sample['cell/0_1'] for of, at, sample in sampled if at == epoch) for epoch in (0, 1)}
    assert len(orders) == 2  # random, not the same each time


def test_balanced_sampling_has_each_number_of_convolutions_equally_often():
    supernet = RandomOneShot().mutate_model(NasBench201(4, 1, 10))
    space = SubSpace.of(supernet)
    draw = draw_from('balanced', space, supernet)
    paths = [path for epoch in range(7) for batch in range(200) for path in draw((0, 1), epoch, batch)]
    times = Counter(map(n_convolutions, paths))
    assert sorted(times) == list(range(7))
    assert chisquare(list(times.values())).pvalue > 1e-3
    single = [path for path in paths if n_convolutions(path) == 1]
    ones = Counter(label for path in single for label in path if 'conv' in path[label])
    assert len(ones) == 6 and chisquare(list(ones.values())).pvalue > 1e-3
    assert draw((0, 1), 3, 5) == [paths[605]] != draw((0, 2), 3, 5)  # whatever was drawn before
    few = SubSpace(space.mutables, lambda sample: n_convolutions(sample) in (2, 5))
    draw = draw_from('balanced', few, supernet)
    times = Counter(n_convolutions(*draw((0,), 0, batch)) for batch in range(200))
    assert sorted(times) == [2, 5] and chisquare(list(times.values())).pvalue > 1e-3


@pytest.mark.slow
def test_balanced_in_bands(run, sampled):
    strategy = run((1,), epochs=2, sampling='balanced', criterion=Bands('convolutions', max_groups=3))
    assert [leaf.metric is not None for leaf in strategy.leaves] == [True] * 3
    assert all(sample in subspace for subspace, _, sample in sampled)
    assert len(sampled) == 5 * strategy.tree.cost


@pytest.mark.parametrize('sampling', ['uniform', 'balanced', 'fair', 'sandwich'])
def test_processes_of_several_devices_draw_the_same(sampling):
    """What draws is pickled into them."""
    supernet = RandomOneShot().mutate_model(Convs())
    draw = draw_from(sampling, SubSpace.of(supernet), supernet)
    again = pickle.loads(pickle.dumps(draw))
    assert [draw((0,), 0, i) for i in range(20)] == [again((0,), 0, i) for i in range(20)]


@pytest.mark.parametrize(
    'arguments, match',
    [
        ({'sampling': 'even'}, "sampling must be one of auto, uniform, balanced, fair, sandwich, but got 'even'"),
        ({'sampling': 'fair', 'filter': lambda sample: sample['stem']}, r'fair.* the filter would not let all paths'),
        (
            {'sampling': 'fair', 'criterion': Bands('convolutions')},
            r"'fair' does not go with Bands\(.* Take sampling='uniform' or 'balanced' or 'sandwich', or a criterion",
        ),
        (
            {'sampling': 'balanced', 'criterion': Bands('parameters')},
            r"'balanced' does not go with .* Take sampling='uniform' or 'sandwich', or a criterion",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_training(small, arguments, match):
    with pytest.raises(ValueError, match=match):
        small(make_evaluator(), **arguments)


def test_another_sampling_is_another_run(small, tmp_path):
    small(make_evaluator(), split_epochs=(), workdir=tmp_path)
    with pytest.raises(ValueError, match="sampling='balanced', but this one has sampling='fair'"):
        small(make_evaluator(), split_epochs=(), workdir=tmp_path, sampling='fair')
