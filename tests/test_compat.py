"""The faults of NNI that compat.py mends."""

import os
import subprocess
import sys

from nni_naslid import SubSpace
from nni_naslid.train.path import set_path

import nni.nas.nn.pytorch as nas
import numpy as np
import pytest
import torch
from nni.nas.strategy import RandomOneShot
from torch import nn


class Shallow(nas.ModelSpace):
    """A block that is repeated up to two times, or left out."""

    def __init__(self):
        super().__init__()
        self.more = nas.Repeat(lambda i: nn.Sequential(nn.Linear(4, 4), nn.Dropout()), (0, 2), label='depth')

    def forward(self, x):
        return self.more(x)


def test_a_repeat_may_leave_out_its_blocks():
    """NNI alone: AssertionError."""
    supernet = RandomOneShot().mutate_model(Shallow())
    x = torch.randn(3, 4)
    state = torch.get_rng_state()
    set_path(supernet, {'depth': 0})
    assert torch.equal(supernet(x), x)
    assert torch.equal(torch.get_rng_state(), state)  # no block has run
    for depth in (0, 1, 2):
        sample = {'depth': depth}
        set_path(supernet.eval(), sample)
        assert torch.equal(supernet(x), supernet.freeze(sample)(x))


def test_a_space_whose_blocks_may_be_left_out_runs_to_its_export(run):
    class Images(Shallow):
        def __init__(self):
            super().__init__()
            self.stem = nas.LayerChoice([nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)], label='stem')
            self.head = nn.Linear(4, 10)

        def forward(self, x):
            return self.head(self.more(self.stem(x).mean((2, 3))))

    strategy = run((1,), space=Images(), epochs=2, criterion='lid', search_budget=6)
    models = list(strategy.list_models(limit=6))
    assert sorted(model.sample['depth'] for model in models) == [0, 0, 1, 1, 2, 2]
    for model in models:
        assert len(model.executable_model().more) == model.sample['depth']


@pytest.mark.slow
@pytest.mark.parametrize('first', ['import nni_naslid', 'from nni.nas.hub.pytorch import NasBench201'])
def test_imports_in_any_order_and_without_warnings_when_first(first):
    code = f'{first}; import nni_naslid; print(hasattr(nni_naslid.NASLID, "mutate_model"))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'True'
    assert ('is found to be not' in done.stderr) == ('NasBench201' in first)


@pytest.mark.slow
def test_threads_do_not_wait_in_a_loop():
    """On cores that others use too that takes many times as long. Of the user's choice nothing is changed."""
    for given, expected in ({}, 'PASSIVE'), ({'OMP_WAIT_POLICY': 'ACTIVE'}, 'ACTIVE'):
        environment = {**os.environ, 'OMP_DISPLAY_ENV': 'true', **given}
        if not given:
            environment.pop('OMP_WAIT_POLICY', None)
        command = [sys.executable, '-c', 'import nni_naslid, torch']
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert f"OMP_WAIT_POLICY = '{expected}'" in done.stderr


def test_a_space_with_operations_without_bias_freezes_with_its_weights(proxyless):
    """NNI alone: Unexpected key(s) in state_dict: "bias"."""
    supernet = RandomOneShot().mutate_model(proxyless()).eval()
    sample = SubSpace.of(supernet).sample(np.random.RandomState(0))
    set_path(supernet, sample)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(supernet.freeze(sample).eval()(x), supernet(x))
