"""FLOPs as sums over choices, against PyTorch's counter on the paths, and against NNI's profiler."""

import logging

from nni_naslid import SubSpace
from nni_naslid.space.additive import AdditiveScore, Term
from nni_naslid.train.data import Inputs
from nni_naslid.traits.flops import flops_of_a_sample, flops_tables
from nni_naslid.traits.passes import flops

import numpy as np
import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.profiler.pytorch.flops import FlopsParamsProfiler
from nni.nas.strategy import RandomOneShot
from small import same_weights
from test_export import SPACES
from torch import nn

SLOW = 'autoformer', 'darts', 'mobilenetv3', 'proxylessnas', 'shufflenet'


def score_of(supernet, inputs) -> AdditiveScore:
    space = SubSpace.of(supernet)
    return AdditiveScore(space, [Term(*each) for each in flops_tables(supernet, space, inputs).items()])


@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SPACES])
def test_they_are_those_of_each_path(name):
    make, size = SPACES[name]
    supernet = RandomOneShot().mutate_model(make())
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    inputs = Inputs((torch.randn(2, 3, size, size),), {})
    score = score_of(supernet, inputs)
    assert same_weights(before, supernet.state_dict())
    count, random_state = flops(supernet, inputs), np.random.RandomState(0)
    samples = [*score.space.extremes, *(score.space.sample(random_state) for _ in range(6))]
    assert [score.of(sample) for sample in samples] == [count(sample) for sample in samples]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['proxylessnas', 'shufflenet'])
def test_they_are_those_of_the_profiler_of_nni(name):
    """Which counts a multiplication with its addition as one, for one image. (It knows no Zero, as in NasBench201.)"""
    make, size = SPACES[name]
    kinds = dict.fromkeys(('count_bias', 'count_normalization', 'count_activation'), False)
    profiler = FlopsParamsProfiler(make().eval(), torch.randn(1, 3, size, size), **kinds)
    score = score_of(RandomOneShot().mutate_model(make()), Inputs((torch.randn(2, 3, size, size),), {}))
    for seed in range(5):
        sample = score.space.sample(np.random.RandomState(seed))
        assert score.of(sample) == 2 * 2 * profiler.profile(sample).flops


class Strided(ModelSpace):
    """What the second layer costs depends on the stride of the first, which it does not read."""

    def __init__(self):
        super().__init__()
        self.stem = LayerChoice([nn.Conv2d(3, 4, 3, stride) for stride in (1, 2)], label='stem')
        self.body = LayerChoice([nn.Conv2d(4, 4, kernel, padding=1) for kernel in (1, 3)], label='body')

    def forward(self, x):
        return self.body(self.stem(x)).mean((1, 2, 3))


class Looks(Strided):
    """It takes another way for other values, which meta tensors have not."""

    def __init__(self):
        super().__init__()
        self.stem = LayerChoice([nn.Conv2d(3, 4, kernel) for kernel in (3, 5)], label='stem')
        self.body = nn.Linear(4, 4)

    def forward(self, x):
        x = self.stem(x).mean((2, 3))
        return self.body(x) if x.sum() < 1e9 else x


def test_what_is_no_sum_is_refused():
    images = Inputs((torch.randn(2, 3, 9, 9),), {})
    with pytest.raises(ValueError, match=r'the operations of body\.\d depend on choices that they do not read'):
        score_of(RandomOneShot().mutate_model(Strided()), images)


def test_a_network_that_looks_at_values():
    images = Inputs((torch.randn(2, 3, 9, 9),), {})
    score = score_of(RandomOneShot().mutate_model(Looks()), images)
    linear = 2 * 2 * 4 * 4
    assert score.of({'stem': 0}) == 2 * 2 * 49 * 9 * 3 * 4 + linear
    assert score.of({'stem': 1}) == 2 * 2 * 25 * 25 * 3 * 4 + linear


class Fitting(ModelSpace):
    """Only the first layer of both, or the second, go together; a filter knows."""

    def __init__(self):
        super().__init__()
        self.first = LayerChoice([nn.Linear(6, 8), nn.Linear(6, 4)], label='first')
        self.second = LayerChoice([nn.Linear(8, 5), nn.Linear(4, 5)], label='second')

    def forward(self, x):
        return self.second(self.first(x))


def test_paths_that_a_filter_keeps_out_need_not_work():
    supernet = RandomOneShot().mutate_model(Fitting())
    space = SubSpace(SubSpace.of(supernet).mutables, lambda sample: sample['first'] == sample['second'])
    count = flops_of_a_sample(supernet, space, Inputs((torch.randn(3, 6),), {}))
    assert [count({'first': i, 'second': i}) for i in (0, 1)] == [2 * (6 * 8 + 8 * 5), 2 * (6 * 4 + 4 * 5)]


class Spectrum(nn.Module):
    """A layer whose operations PyTorch does not count."""

    def forward(self, x):
        return torch.fft.fft(x).real


def test_modules_of_which_nothing_is_counted_are_told(caplog):
    class Mixed(ModelSpace):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Linear(6, 6), Spectrum())
            self.body = LayerChoice([nn.Linear(6, 6), nn.ReLU()], label='body')

        def forward(self, x):
            return self.body(self.stem(x))

    supernet = RandomOneShot().mutate_model(Mixed())
    with caplog.at_level(logging.INFO, 'nni_naslid'):
        score = score_of(supernet, Inputs((torch.randn(2, 6),), {}))
    assert [score.of({'body': i}) for i in range(2)] == [2 * 2 * 2 * 6 * 6, 2 * 2 * 6 * 6]
    assert caplog.messages == [
        'FLOPs are of matrix products, convolutions and attention: nothing is counted of Spectrum.'
    ]
