"""Profiles: right layers, right values, no trace."""

import random

from nni_naslid import SubSpace, lid_mle, two_nn
from nni_naslid.criteria.repeats import candidate_profiles
from nni_naslid.lid import effective_rank
from nni_naslid.train.data import Inputs
from nni_naslid.train.path import set_path
from nni_naslid.traits.places import Place
from nni_naslid.traits.profile import layer_lid, path_profile, profile_layers, untouched

import numpy as np
import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.strategy import RandomOneShot
from torch import nn

# Relative tolerance of a profile: float32 distances and their logarithms, as in test_lid.py. What another order of
# summing changes in the features themselves (some 1e-6) is less than that.
FLOAT32 = 1e-4


def first(layers):
    """Samples in the first dimension of what these layers return."""
    return dict.fromkeys(layers, Place())


class Toy(ModelSpace):
    """A space that the package has never heard of: dropout, batch norm, a tuple output."""

    class Pair(nn.Module):
        def forward(self, x):
            return x, 2 * x

    class Second(nn.Module):
        def forward(self, pair):
            return pair[1]

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.body = nn.Sequential(
            LayerChoice([nn.Linear(8, 8), nn.Identity()], label='op'),
            nn.BatchNorm1d(8),
            nn.Sequential(nn.Dropout(0.5), self.Pair()),
            self.Second(),
        )

    def forward(self, x):
        return self.body(self.stem(x))


@pytest.fixture
def supernet(nasbench201):
    return RandomOneShot().mutate_model(nasbench201())


def test_layers_of_known_spaces_are_those_of_the_paper(nasbench201, proxyless):
    assert profile_layers(nasbench201()) == [f'cells.{i}' for i in range(5)]
    layers = profile_layers(proxyless())
    assert len(layers) == 1 + 5 * 4 + 1 + 2  # the fixed block, five stages of up to four, the last, mix and logits
    assert layers[:2] == ['blocks.0', 'blocks.1.blocks.0']
    assert layers[-2:] == ['feature_mix_layer', 'classifier']
    assert profile_layers(RandomOneShot().mutate_model(proxyless())) == layers


def test_layers_of_any_space():
    assert profile_layers(Toy()) == ['stem', 'body.0', 'body.1', 'body.2.0', 'body.2.1', 'body.3']
    assert profile_layers(Toy(), ['stem', 'body.2*']) == ['stem', 'body.2.0', 'body.2.1']
    assert profile_layers(Toy(), ['body']) == ['body']
    with pytest.raises(ValueError, match=r"'head.\*' matches no block and names no module; the blocks are \['stem'"):
        profile_layers(Toy(), ['head.*'])


def test_profile_is_the_mean_lid_after_each_layer(supernet):
    """Against running the cells one by one."""
    set_path(supernet, SubSpace.of(supernet).sample(np.random.RandomState(3)))
    x = torch.randn(40, 3, 16, 16)
    with untouched(supernet):
        profile = path_profile(supernet, Inputs((x,), {}), first(profile_layers(supernet)), n_neighbors=10)
        features = supernet.stem(x)
        expected = []
        for cell in supernet.cells:
            features = cell(features)
            expected.append(lid_mle(features.flatten(1), 10).mean())
    torch.testing.assert_close(profile, torch.stack(expected), rtol=FLOAT32, atol=0)


@pytest.mark.parametrize('estimator', ['two_nn', 'effective_rank'])
def test_profile_by_another_estimator_is_what_it_gives_after_each_layer(supernet, estimator):
    """Against running the cells one by one; batches may have fewer samples than ``n_neighbors``."""
    set_path(supernet, SubSpace.of(supernet).sample(np.random.RandomState(3)))
    x = torch.randn(12, 3, 16, 16)
    with untouched(supernet):
        profile = path_profile(supernet, Inputs((x,), {}), first(profile_layers(supernet)), 20, estimator)
        features = supernet.stem(x)
        expected = []
        for cell in supernet.cells:
            features = cell(features)
            expected.append({'two_nn': two_nn, 'effective_rank': effective_rank}[estimator](features.flatten(1)))
    torch.testing.assert_close(profile, torch.stack(expected), rtol=FLOAT32, atol=0)


@pytest.mark.parametrize('estimator', ['mle', 'two_nn', 'effective_rank'])
def test_profile_of_features_that_tell_nothing(estimator):
    """Samples that are not finite are left out; where next to all are it is NaN, where all are the same it is 0."""
    x = torch.randn(30, 6)
    found = layer_lid(x, Place(), 5, estimator)
    assert found > 1
    holed = torch.cat([x[:10], torch.full((2, 6), torch.nan), x[10:]])
    assert layer_lid(holed, Place(), 5, estimator) == pytest.approx(found, rel=FLOAT32)
    assert np.isnan(layer_lid(torch.where(torch.arange(30)[:, None] < 2, x, torch.inf), Place(), 5, estimator))
    assert layer_lid(torch.ones(30, 6), Place(), 5, estimator) == 0
    assert layer_lid(torch.ones(30, 6, dtype=torch.long), Place(), 5, estimator) == 0
    assert layer_lid(torch.eye(30), Place(), 5, estimator) == pytest.approx(29 if estimator == 'effective_rank' else 0)
    assert layer_lid(x.T, Place(dim=1), 5, estimator) == pytest.approx(found, rel=FLOAT32)


def test_profile_of_a_tuple_is_that_of_its_last_tensor():
    space = RandomOneShot().mutate_model(Toy())
    set_path(space, {'op': 0})
    with untouched(space):
        profile = path_profile(space, Inputs((torch.randn(30, 6),), {}), first(profile_layers(space)), 10)
    assert profile[4] == pytest.approx(profile[5].item())


def test_profile_does_not_depend_on_the_memory_format(supernet):
    set_path(supernet, SubSpace.of(supernet).sample(np.random.RandomState(3)))
    x = torch.randn(40, 3, 16, 16)
    layers = profile_layers(supernet)
    with untouched(supernet):
        expected = path_profile(supernet, Inputs((x,), {}), first(layers), 10)
        supernet.to(memory_format=torch.channels_last)
        profile = path_profile(supernet, Inputs((x.to(memory_format=torch.channels_last),), {}), first(layers), 10)
    torch.testing.assert_close(profile, expected, rtol=FLOAT32, atol=0)


def test_a_skipped_block_has_the_lid_of_the_layer_before(proxyless):
    supernet = RandomOneShot().mutate_model(proxyless())
    sample = {**SubSpace.of(supernet).sample(np.random.RandomState(0)), 's2_depth': 2}
    set_path(supernet, sample)
    layers = profile_layers(supernet)
    with untouched(supernet):
        inputs = Inputs((torch.randn(40, 3, 32, 32),), {})
        profile = dict(zip(layers, path_profile(supernet, inputs, first(layers), 10), strict=True))
    assert profile['blocks.1.blocks.2'] == profile['blocks.1.blocks.3'] == profile['blocks.1.blocks.1']
    assert profile['blocks.1.blocks.1'] != profile['blocks.1.blocks.0']


def test_constant_features_have_lid_zero(supernet):
    set_path(supernet, {label: 'none' for label in SubSpace.of(supernet).mutables})
    with untouched(supernet):
        profile = path_profile(supernet, Inputs((torch.randn(40, 3, 16, 16),), {}), first(profile_layers(supernet)), 10)
    assert (profile == 0).all()


def test_profiling_leaves_no_trace():
    supernet = RandomOneShot().mutate_model(Toy())
    supernet.train()
    supernet.body[1].eval()
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    modes = [module.training for module in supernet.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    batches = [Inputs((torch.randn(30, 6, generator=torch.Generator().manual_seed(0)),), {}) for _ in range(4)]
    space, random_state = SubSpace.of(supernet), np.random.RandomState(0)
    paths = [space.sample(random_state) for _ in batches]
    candidate_profiles(supernet, space, batches, first(profile_layers(supernet)), paths=paths, n_neighbors=10)
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
    assert modes == [module.training for module in supernet.modules()]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert all(parameter.grad is None for parameter in supernet.parameters())


def test_untouched_restores_after_an_error(supernet):
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    with pytest.raises(RuntimeError, match='stop'), untouched(supernet):
        set_path(supernet, {label: 'conv_3x3' for label in SubSpace.of(supernet).mutables})
        supernet(torch.randn(8, 3, 16, 16))
        raise RuntimeError('stop')
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
    assert supernet.training


def test_all_candidates_see_the_same_batch_and_path(supernet):
    """The base path comes up once under every label, and has the same profile each time."""
    space = SubSpace.of(supernet)
    batches = [Inputs((torch.randn(40, 3, 16, 16),), {}) for _ in range(4)]
    random_state = np.random.RandomState(5)
    paths = [space.sample(random_state) for _ in batches]
    profiles = candidate_profiles(
        supernet, space, batches, first(profile_layers(supernet)), paths=paths, n_neighbors=10
    )
    assert {label: p.shape for label, p in profiles.items()} == {label: (4, 5, 5) for label in space.splittable}
    for r, base in enumerate(paths):
        own = [profiles[label][r, values.index(base[label])] for label, values in space.splittable.items()]
        assert all(torch.equal(p, own[0]) for p in own)  # bit for bit: one computation on one machine
        assert len({tuple(p[r].flatten().tolist()) for p in profiles.values()}) > 1
