"""A module that is called many times in one pass, like a recurrent cell: profiles, costs, calibration and export."""

import copy

from nni_naslid import SubSpace, lid_score
from nni_naslid.lid import lid_mle
from nni_naslid.search.batchnorm import recalibrate
from nni_naslid.search.export import frozen_network
from nni_naslid.train.data import Inputs
from nni_naslid.train.path import set_path
from nni_naslid.traits.flops import flops_of_a_sample
from nni_naslid.traits.live import live_parameters
from nni_naslid.traits.places import find_places
from nni_naslid.traits.prefix import BasePath
from nni_naslid.traits.profile import path_profile, untouched

import numpy as np
import pytest
import torch
from nni.nas.strategy import RandomOneShot
from recurrent_space import Recurrent, texts
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

INNER = ['embedding', 'cell.activations.0', 'cell.activations.2', 'cell', 'decoder']
FORMULAS = {'tanh': torch.tanh, 'relu': torch.relu, 'sigmoid': torch.sigmoid, 'identity': lambda x: x}


@pytest.fixture
def supernet():
    return RandomOneShot().mutate_model(Recurrent(width=8, n_nodes=3)).eval()


@pytest.fixture
def characters():
    return texts().tensors[0][:30]


def samples_of(supernet, n):
    space, random_state = SubSpace.of(supernet), np.random.RandomState(0)
    return [space.sample(random_state) for _ in range(n)]


def by_formula(supernet, sample, characters):
    """The output, and what the activations of each node and the cell return in each step of time."""
    seen: dict[str, list[torch.Tensor]] = {}
    x, cell = supernet.embedding.weight[characters], supernet.cell
    hidden = torch.zeros(len(x), 8)
    for t in range(x.shape[1]):
        c, h = (torch.cat([x[:, t], hidden], 1) @ cell.first.weight.T).split(8, 1)
        states = [hidden + torch.sigmoid(c) * (torch.tanh(h) - hidden)]
        for i, linear in enumerate(cell.weights):
            (source,) = sample[f'input{i}']
            c, h = (states[source] @ linear.weight.T).split(8, 1)
            new = FORMULAS[sample[f'activation{i}']](h)
            seen.setdefault(f'cell.activations.{i}', []).append(new)
            states.append(states[source] + torch.sigmoid(c) * (new - states[source]))
        hidden = sum(states[1:]) / len(cell.weights)
        seen.setdefault('cell', []).append(hidden)
    logits = torch.stack(seen['cell'], 1) @ supernet.decoder.weight.T + supernet.decoder.bias
    return logits.transpose(1, 2), {**seen, 'embedding': [x], 'decoder': [logits]}


def test_a_path_is_the_network_of_the_paper_and_is_exported_as_it(supernet, characters):
    for sample in samples_of(supernet, 5):
        set_path(supernet, sample)
        network, why = frozen_network(supernet, sample, Inputs((characters,), {}))
        assert network is not None, why
        with torch.no_grad():
            assert torch.equal(network(characters), supernet(characters))
            assert torch.allclose(network(characters), by_formula(supernet, sample, characters)[0], atol=1e-5)


def test_a_profile_has_what_a_layer_returns_last(supernet, characters):
    inputs, labels = Inputs((characters,), {}), SubSpace.of(supernet).splittable
    for sample in samples_of(supernet, 2):
        set_path(supernet, sample)
        with untouched(supernet):
            _, places, reasons = find_places(supernet, INNER, inputs, (Inputs((characters[:-1],), {}), 30))
            assert not reasons
            found = path_profile(supernet, inputs, places, 5)
            seen = by_formula(supernet, sample, characters)[1]
            expected = [lid_mle(seen[name][-1].flatten(1), 5).mean().item() for name in places if name]
            assert found.tolist() == pytest.approx(expected, rel=1e-3)
            path = BasePath(supernet, sample, inputs, places, 5)
            assert torch.equal(path.profile, found)
            for label, profiles in path.profiles(labels).items():
                for choice, profile in zip(labels[label], profiles, strict=True):
                    set_path(supernet, {**sample, label: choice})
                    assert torch.equal(profile, path_profile(supernet, inputs, places, 5))
            assert path.shares
    first, second = lid_score(supernet, samples_of(supernet, 2), characters, n_neighbors=5, layers=INNER)
    assert first != second


@pytest.mark.slow
def test_costs_count_every_step(supernet, characters):
    inputs, space = Inputs((characters,), {}), SubSpace.of(supernet)
    n_flops, live = flops_of_a_sample(supernet, space, inputs), live_parameters(supernet, inputs)
    for sample in samples_of(supernet, 3):
        network = supernet.freeze(sample)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(characters)
        assert n_flops(sample) * 30 == counter.get_total_flops()
        assert live(sample) == live_parameters(network, inputs)({})


@pytest.mark.parametrize('norms', [1, 3])
def test_recalibrated_statistics_are_the_mean_of_all_calls(norms):
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.once = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x):
            self.once(x)
            for t in range(norms):
                self.norm(x * (t + 1) + t)

    batches = [torch.randn(9, 4) * i + i for i in range(1, 5)]
    network = Again()
    expected = copy.deepcopy(network)
    recalibrate(network, [Inputs((x,), {}) for x in batches])
    seen = [x * (t + 1) + t for x in batches for t in range(norms)]
    for norm, given in ((network.norm, seen), (network.once, batches)):
        assert torch.allclose(norm.running_mean, torch.stack([x.mean(0) for x in given]).mean(0), atol=1e-5)
        assert torch.allclose(norm.running_var, torch.stack([x.var(0) for x in given]).mean(0), rtol=1e-5)
        assert not norm.training and norm.momentum == expected.norm.momentum and not norm._forward_pre_hooks
