"""Layers of any kind: which can make a profile, and where they have the samples."""

import logging

from nni_naslid.criteria.evidence import ByLabel
from nni_naslid.lid import lid_profile
from nni_naslid.train.data import Inputs
from nni_naslid.traits.places import INPUT, Place, find_places, n_samples
from nni_naslid.traits.profile import path_profile, untouched

import pytest
import torch
import torch.nn.functional as F
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from small import Convs, Plain, make_evaluator, tokens
from torch import nn

N = 24


class Mixed(nn.Module):
    """A layer of each kind; takes images [N, 3, 8, 8]."""

    class Penalty(nn.Module):
        def forward(self, x):
            return x.square().mean()

    class Regions(nn.Module):
        def forward(self, x):
            return x.repeat_interleave(5, 0)

    class Masked(nn.Module):
        def forward(self, x):
            return x.masked_fill(torch.arange(x.shape[1]) == 0, -torch.inf)

    class Best(nn.Module):
        def forward(self, x):
            return x.argmax(1)

    class Several(nn.Module):
        def forward(self, x):
            return {'features': x, 'count': torch.tensor(len(x))}

    class Attention(nn.Module):
        def forward(self, x):
            return x @ x.T

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.rows = nn.Linear(6, 5)
        self.lstm = nn.LSTM(5, 7, batch_first=True)
        self.penalty, self.regions, self.masked = self.Penalty(), self.Regions(), self.Masked()
        self.best, self.several, self.attention = self.Best(), self.Several(), self.Attention()
        self.unused = nn.Linear(1, 1)

    def forward(self, x):
        x = self.rows(self.conv(x).mean(1))  # [N, 6, 5]
        x = x.transpose(0, 1)  # time first
        x = self.rows_again(x) if hasattr(self, 'rows_again') else x
        self.lstm(x.transpose(0, 1))
        x = x.mean(0)
        self.penalty(x), self.regions(x), self.masked(x), self.best(x), self.several(x), self.attention(x)
        return x


def find(model, x, fewer=True):
    layers = [name for name, _ in model.named_children()]
    less = (Inputs((x[:-1],), {}), len(x)) if fewer else None
    with untouched(model):
        return find_places(model, layers, Inputs((x,), {}), less)


def test_each_kind_of_layer():
    n, places, reasons = find(Mixed(), torch.randn(N, 3, 8, 8))
    assert n == N
    assert places == {
        INPUT: Place(-1, 0),
        'conv': Place(-1, 0),
        'rows': Place(-1, 0),
        'lstm': Place(-1, 1),  # the cell's state [layers, N, H] is the last of three
        'several': Place(-2, 0),
        'attention': Place(-1, 0),
    }
    assert reasons == {
        'penalty': 'penalty (Penalty) returns [], where no dimension counts the 24 samples',
        'regions': 'regions (Regions) returns [120, 5], where no dimension counts the 24 samples',
        'masked': 'masked (Masked) returns [24, 5], with numbers that are not finite',
        'best': 'best (Best) returns [24], not floating-point features',
    }


def test_samples_in_another_dimension_are_told_from_what_has_the_same_size():
    """24 time steps and 24 samples: only samples become fewer."""
    model = nn.Sequential(nn.Linear(2, 5))
    time_first = torch.randn(N, N, 2)
    with untouched(model):
        n, places, _ = find_places(model, ['0'], Inputs((time_first,), {}), (Inputs((time_first[:, :-1],), {}), N))
    assert (n, places) == (N, {INPUT: Place(-1, 1), '0': Place(-1, 1)})


def test_the_supernet_may_get_more_samples_than_the_batch_has():
    """Two views of each."""
    model = nn.Sequential(nn.Linear(2, 5))
    with untouched(model):
        n, places, _ = find_places(
            model, ['0'], Inputs((), {'input': torch.randn(2 * N, 2)}), (Inputs((), {'input': torch.randn(46, 2)}), N)
        )
    assert (n, places) == (48, {INPUT: Place(-1, 0), '0': Place(-1, 0)})
    assert n_samples(Inputs((torch.zeros(7, 2),), {}), places) == 7


def test_a_list_of_images_of_different_sizes():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return self.backbone(torch.stack([F.interpolate(x[None], 8)[0] for x in images]))

    images = [torch.randn(3, 8 + i, 9) for i in range(N)]
    with untouched(model := Detector()):
        n, places, _ = find_places(model, ['backbone'], Inputs((images,), {}), (Inputs((images[:-1],), {}), N))
    assert (n, places) == (N, {'backbone': Place(-1, 0)})
    assert n_samples(Inputs((images,), {}), places) is None


def test_without_two_sizes_samples_come_first():
    n, places, reasons = find(Mixed(), torch.randn(N, 3, 8, 8), fewer=False)
    assert n == N
    assert places.pop('lstm') == Place(-3, 0)  # its output [N, steps, H], not its state
    assert set(places) == {INPUT, 'conv', 'rows', 'several', 'attention'}
    assert set(reasons) == {'penalty', 'regions', 'masked', 'best'}


def test_lid_is_of_the_samples_wherever_they_are():
    model = nn.Sequential(nn.Linear(6, 5))
    x = torch.randn(N, 7, 6)
    with untouched(model):
        expected = path_profile(model, Inputs((x,), {}), {'0': Place(-1, 0)}, 5)
        profile = path_profile(model, Inputs((x.transpose(0, 1),), {}), {'0': Place(-1, 1)}, 5)
        assert torch.allclose(profile, expected, rtol=1e-5)
        assert torch.allclose(profile, lid_profile([model(x)], 5), rtol=1e-5)


def test_profiles_of_what_is_not_finite():
    """NaN where no sample has finite features; the mean of the others where some have."""
    model = nn.Sequential(nn.Identity(), nn.Tanh())
    x = torch.randn(N, 6)
    x[3] = torch.inf
    with untouched(model):
        expected = path_profile(model, Inputs((x[torch.arange(N) != 3],), {}), {'0': Place()}, 5)
        assert torch.allclose(path_profile(model, Inputs((x,), {}), {'0': Place()}, 5), expected, rtol=1e-5)
        assert path_profile(model, Inputs((x * torch.nan,), {}), {'0': Place()}, 5).isnan().all()


class Text(ModelSpace):
    """Time first, as PyTorch's own layers have it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        layers = [nn.TransformerEncoderLayer(8, 2, 16), nn.TransformerEncoderLayer(8, 4, 8)]
        self.a = LayerChoice(layers, label='a')
        self.rnn = nn.GRU(8, 8)
        self.b = LayerChoice([nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())], label='b')
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.b(self.rnn(self.a(self.embed(x.T)))[0]).mean(0))


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    caplog.set_level(logging.INFO)
    return caplog


def texts(length):
    return {
        'train': DataLoader(tokens(96, length), 24, shuffle=True),
        'val': DataLoader(tokens(48, length, seed=1), 24),
    }


@pytest.mark.slow
@pytest.mark.parametrize('length', [5, 12, 24])
def test_time_first_text(small, monkeypatch, length):
    """With fewer, as many and more words than samples LID is of the samples."""
    import nni_naslid.traits.profile as features

    counts = set()
    estimate = features.lid_mle
    monkeypatch.setattr(
        features,
        'lid_mle',
        lambda points, *args, **kwargs: counts.add(len(points)) or estimate(points, *args, **kwargs),
    )
    small(make_evaluator(**texts(length)), space=Text)
    assert counts == {24}


class WithPenalty(Convs):
    def __init__(self):
        super().__init__()
        self.penalty = Mixed.Penalty()

    def forward(self, x):
        x = self.body(self.stem(x))
        self.penalty(x)
        return self.head(self.pool(x).flatten(1))


def test_layers_without_features_are_left_out_and_named_once(small, log):
    small(space=WithPenalty)
    text = 'Left out of the LID profile: penalty (Penalty) returns [], where no dimension counts the 24 samples.'
    assert log.text.count(text) == 1


def test_a_named_layer_without_features_is_an_error(small):
    with pytest.raises(ValueError, match=r'layers: an LID cannot be taken of penalty \(Penalty\) returns \[\], .* 24'):
        small(space=WithPenalty, layers=['stem', 'body', 'penalty'])


class Stacks(Plain):
    """Two views of each image, as in contrastive learning."""

    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self(torch.cat([x, x + torch.randn_like(x)])), y.repeat(2))


def test_neighbours_are_of_what_the_supernet_gets(small):
    """47 of 48 are enough, though a batch has 24."""
    assert isinstance(small(make_evaluator(Stacks()), n_neighbors=47).tree.split.evidence, ByLabel)
    with pytest.raises(ValueError, match='n_neighbors=48 and batches of 48'):
        small(make_evaluator(Stacks()), n_neighbors=48)


class Unstable(Convs):
    """One candidate for the body gives no number after training."""

    class Nan(nn.Module):
        def forward(self, x):
            return x if x.requires_grad or not Unstable.breaks else x * torch.nan

    breaks = False

    def __init__(self):
        super().__init__()
        self.body = LayerChoice([nn.Conv2d(8, 8, 1), nn.Identity(), self.Nan()], label='body')


def test_a_candidate_without_finite_features_is_named(small, log, monkeypatch):
    import nni_naslid.criteria.repeats as node

    profile = node.candidate_profiles

    def broken(*args, **kwargs):
        monkeypatch.setattr(Unstable, 'breaks', True)
        try:
            return profile(*args, **kwargs)
        finally:
            Unstable.breaks = False

    monkeypatch.setattr(node, 'candidate_profiles', broken)
    strategy = small(space=Unstable)
    assert 'Features are not finite with 2 for body in 100 % of the repeats' in log.text
    assert 'for stem in' not in log.text
    assert {'body': [2]} in [child.narrowed(strategy.tree.subspace) for child in strategy.tree.split.children]
