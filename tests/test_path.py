"""Setting a supernet to a path: what NNI's ``resample`` of every module does, at a fraction of its time."""

import copy
import sys
import time

from nni_naslid import SubSpace
from nni_naslid.train.path import set_path

import nni.nas.nn.pytorch as nas
import numpy as np
import pandas as pd
import pytest
import torch
from nni.mutable import Categorical, frozen_context
from nni.nas.hub.pytorch import DARTS, MobileNetV3Space, NasBench201, ProxylessNAS
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.sampling import PathSamplingLayer
from nni.nas.strategy import RandomOneShot
from torch import nn


def small_mobilenet() -> MobileNetV3Space:
    return MobileNetV3Space(num_labels=10, base_widths=(8,) * 9, width_multipliers=(0.5, 1.0), expand_ratios=(1.0, 2.0))


class Inputs(nas.ModelSpace):
    """Two inputs chosen of three, a nested choice, a shared label."""

    def __init__(self):
        super().__init__()
        self.inner = nas.LayerChoice([nn.Linear(4, 4), nas.LayerChoice([nn.Tanh(), nn.ReLU()], label='b')], label='a')
        self.again = nas.LayerChoice([nn.Linear(4, 4), nn.Identity()], label='a')
        self.chosen = nas.InputChoice(3, 2, label='in')

    def forward(self, x):
        x = x.flatten(1)[:, :4]
        return self.chosen([x, self.inner(x), self.again(2 * x)])


SPACES = {
    'nasbench201': lambda: NasBench201(4, 1, 10),
    'proxylessnas': lambda: ProxylessNAS(10, base_widths=(8,) * 9),
    'mobilenetv3': small_mobilenet,
    'darts': lambda: DARTS(width=4, num_cells=3, dataset='cifar'),
    'inputs': Inputs,
}


def resample_all(supernet, sample):
    for module in supernet.modules():
        if isinstance(module, BaseSuperNetModule):
            module.resample(memo=sample)


def output(supernet):
    with torch.no_grad():
        output = supernet(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return output[0] if isinstance(output, tuple) else output


def samples_of(supernet, n):
    subspace, random_state = SubSpace.of(supernet), np.random.RandomState(0)
    return [subspace.sample(random_state) for _ in range(n)]


@pytest.mark.parametrize('name', SPACES)
def test_it_is_the_path_that_resampling_every_module_sets(name):
    supernet = RandomOneShot().mutate_model(SPACES[name]()).eval()
    rival = copy.deepcopy(supernet)
    first, *others = samples_of(supernet, 5)
    label = next(iter(first))
    neighbour = {**first, label: next(sample[label] for sample in others if sample[label] != first[label])}
    for sample in (first, neighbour, first, *others):
        set_path(supernet, sample)
        resample_all(rival, sample)
        assert torch.equal(output(supernet), output(rival))


@pytest.mark.parametrize('name', ['nasbench201', 'mobilenetv3', 'darts', 'inputs'])
def test_it_does_not_matter_who_has_set_another_path_in_between(name):
    supernet = RandomOneShot().mutate_model(SPACES[name]()).eval()
    first, *others = samples_of(supernet, 5)
    set_path(supernet, first)
    expected = output(supernet)
    for other in others:
        for module in list(supernet.modules())[::3]:  # only some of them
            if isinstance(module, BaseSuperNetModule):
                module.resample(memo=other)
        set_path(supernet, first)
        assert torch.equal(output(supernet), expected)


def test_copies_are_set_by_themselves():
    supernet = RandomOneShot().mutate_model(small_mobilenet()).eval()
    first, second, third, *_ = samples_of(supernet, 3)
    set_path(supernet, first)
    expected = output(supernet)
    copied = copy.deepcopy(supernet)
    assert torch.equal(output(copied), expected)
    set_path(copied, second)
    assert torch.equal(output(supernet), expected)
    set_path(supernet, third)
    copied.load_state_dict(supernet.state_dict())
    set_path(copied, first)
    assert torch.equal(output(copied), expected)


def test_modules_that_were_replaced_since_are_found():
    supernet = RandomOneShot().mutate_model(Inputs())
    sample = {'a': 0, 'b': 1, 'in': [0, 2]}
    set_path(supernet, sample)
    supernet.again = copy.deepcopy(supernet.again)
    supernet.more = nn.Sequential(copy.deepcopy(supernet.again))
    set_path(supernet, {**sample, 'a': 1})
    x = torch.randn(2, 4)
    assert torch.equal(supernet(x), x + 2 * x)
    assert torch.equal(supernet.more(x), x)
    set_path(supernet.more, sample)
    assert not torch.equal(supernet.more(x), x)


def test_modules_of_the_user_are_resampled_by_their_own_method():
    class Counted(PathSamplingLayer):
        calls = 0

        def resample(self, memo):
            self.calls += 1
            return super().resample({'a': 1 - memo['a']})

    with frozen_context():
        layer = Counted([nn.Identity(), nn.Tanh()], label='a')
    x = torch.randn(2, 4)
    for supernet in (nn.Sequential(layer), layer):  # in a supernet, and the supernet itself
        calls = layer.calls
        set_path(supernet, {'a': 1})
        set_path(supernet, {'a': 1})
        assert layer.calls == calls + 2
        assert torch.equal(supernet(x), x)


def test_choices_are_told_apart_by_their_type():
    class Biased(nas.ModelSpace):
        def __init__(self):
            super().__init__()
            self.linear = nas.MutableLinear(4, Categorical([1, 2], label='width'))

        def forward(self, x):
            return self.linear(x)

    supernet = RandomOneShot().mutate_model(Biased())
    for width in (True, 1, 2):  # True is a key of a dict that equals 1
        set_path(supernet, {'width': width})
        assert type(supernet.linear.forward_argument('out_features')) is type(width)


def test_labels_without_a_choice_are_drawn_as_by_nni():
    supernet = RandomOneShot().mutate_model(Inputs())
    drawn = set()
    for _ in range(30):
        set_path(supernet, {'b': 0, 'in': [0, 1]})
        drawn.add(torch.equal(supernet.again(torch.ones(4)), torch.ones(4)))
    assert drawn == {True, False}


def test_it_takes_a_fraction_of_the_time():
    """More than twenty times faster on a machine with nothing else to do."""
    supernet = RandomOneShot().mutate_model(small_mobilenet())
    samples = samples_of(supernet, 30)
    times = {}
    for set_one in (resample_all, set_path):
        for sample in samples[:20]:
            set_one(supernet, sample)
        started = time.process_time()
        for sample in samples[20:]:
            set_one(supernet, sample)
        times[set_one] = time.process_time() - started
    assert times[set_path] < times[resample_all] / 5


def test_the_benchmark_of_paths(tmp_path, monkeypatch):
    import bench_path

    arguments = ['--paths', '3', '--warm-up', '3', '--output', str(tmp_path / 'rows.csv')]
    monkeypatch.setattr(sys, 'argv', ['bench_path.py', *arguments, '--spaces', 'NasBench201(4, 1, 10)'])
    for runs in (1, 2):  # rows are appended
        bench_path.main()
        rows = pd.read_csv(tmp_path / 'rows.csv')
        assert list(rows['provider']) == ['nni_naslid', 'resample of every module'] * runs
    assert (rows['of_step'] < rows['of_forward']).all()
    assert (rows['set_p50_ms'] > 0).all()
