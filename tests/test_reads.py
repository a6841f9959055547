"""What a network does not read makes no difference to a truth: any sample of the network is found."""

import json
import re
from itertools import product

from nni_naslid import SubSpace
from nni_naslid.cli import main
from nni_naslid.space.reads import same_network
from nni_naslid.train.path import labels_read
from nni_naslid.train.reads import conditions_of_labels

import nni.nas.nn.pytorch as nas
import numpy as np
import pytest
from nni.mutable import Categorical
from nni.nas.strategy import RandomOneShot
from scipy.stats import kendalltau
from test_path import SPACES
from test_search import Deep, network_of
from torch import nn


class Nested(nas.ModelSpace):
    """The depth is a sum of two choices, a choice is inside another one in a block, and a label is read twice."""

    def __init__(self):
        super().__init__()

        def block(i: int) -> nn.Module:
            inner = nas.LayerChoice([nn.Tanh(), nn.ReLU()], label='shared' if i == 2 else f'inner{i}')
            return nas.LayerChoice({'plain': nn.Linear(4, 4), 'more': nn.Sequential(nn.Linear(4, 4), inner)},
                                   label=f'block{i}')  # fmt: skip

        self.blocks = nas.Repeat(block, Categorical([0, 1], label='few') + Categorical([1, 2], label='some'))
        again = nas.LayerChoice([nn.Tanh(), nn.ReLU()], label='shared')
        self.again = nas.LayerChoice([nn.Identity(), again], label='end')

    def forward(self, x):
        return self.again(self.blocks(x))


@pytest.mark.parametrize('name', ['nested', 'deep', *SPACES])
def test_it_is_what_the_modules_read(name):
    """The model says it of one path; what is kept of a run says it of all, also of a sample from JSON."""
    supernet = RandomOneShot().mutate_model({**SPACES, 'nested': Nested, 'deep': Deep}[name]())
    space, random_state = SubSpace.of(supernet), np.random.RandomState(0)
    read_if = json.loads(json.dumps(conditions_of_labels(supernet, space)))
    assert bool(read_if) == (name not in ('nasbench201', 'darts'))
    for _ in range(40):
        sample = space.sample(random_state)
        read = labels_read(supernet, sample)
        expected = space.canonical(sample, read)
        assert same_network(space, read_if, json.loads(json.dumps(sample))) == json.loads(json.dumps(expected))
        assert same_network(space, read_if, {label: sample[label] for label in read}) == expected
        lacks = min(read)
        assert same_network(space, read_if, {k: v for k, v in sample.items() if k != lacks}) is None
    assert same_network(space, read_if, {**sample, 'other': 1}) is None


def test_a_truth_may_have_any_sample_of_a_network(small, tmp_path, capsys):
    """Here the last choice, or none, for blocks that are not there, where the run has the first one."""
    strategy = small(space=Deep, criterion='random', split_epochs=(), search_budget=8, workdir=tmp_path / 'run')
    networks = [network for n in (1, 2, 3) for network in product(range(3), repeat=1 + n)]
    accuracies = dict(zip(networks, np.random.RandomState(0).permutation(len(networks)), strict=True))
    rows = ['arch,test_acc,params']
    for i, ((stem, *blocks), accuracy) in enumerate(accuracies.items()):
        sample = {'depth': len(blocks), 'stem': stem, **{f'block{j}': choice for j, choice in enumerate(blocks)}}
        if i % 2:
            sample |= {f'block{j}': 2 for j in range(len(blocks), 3)}
        rows.append('"{}",{},{}'.format(json.dumps(sample).replace('"', '""'), accuracy, 100 + i))
    truth = tmp_path / 'truth.csv'
    truth.write_text('\n'.join(rows))
    models = list(strategy.list_models(limit=None))
    true = [accuracies[network_of(model.sample)] for model in models]
    tau = kendalltau([model.metric for model in models], true).statistic
    assert main(['report', str(tmp_path / 'run'), '--truth', str(truth), '--out', str(tmp_path / 'page.html')]) == 0
    page = (tmp_path / 'page.html').read_text()
    assert f'tau {tau:.3f}</b>' in page and 'on the 8 of 8 scored networks that the truth knows' in page
    assert 'id="pareto"' in page
    capsys.readouterr()
    assert main(['compare', str(tmp_path / 'run'), '--truth', str(truth)]) == 0
    assert re.search(rf' 8 +{tau:.3f} \[', capsys.readouterr().out)
