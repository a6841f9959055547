"""What NASLID() does with small and large networks by default: the same as with the settings that it should come to."""

import logging

import pytest
import torch
from nni.nas.hub.pytorch import NasBench101
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from small import Convs, Dies, Plain, make_evaluator
from torch import nn

ALL = {'lr_by_size': True, 'momentum_bands': 4, 'sampling': 'balanced'}


class Deep(Convs):
    """One to five convolutions, and so more than four numbers of them."""

    def __init__(self):
        super().__init__()
        for i in range(3):
            setattr(self, f'tail{i}', LayerChoice([nn.Conv2d(8, 8, 3, padding=1), nn.Identity()], label=f'tail{i}'))

    def forward(self, x):
        x = self.body(self.stem(x))
        for i in range(3):
            x = getattr(self, f'tail{i}')(x)
        return self.head(self.pool(x).flatten(1))


class Alike(Deep):
    """All networks have two convolutions."""

    def __init__(self):
        super().__init__()
        self.body = LayerChoice([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)], label='body')
        for i in range(3):
            setattr(self, f'tail{i}', nn.Identity())


class Falling(Plain):
    """A rate that falls, so that it makes a difference by how much."""

    def optimizer(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def configure_optimizers(self):
        optimizer = self.optimizer()
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': schedule, 'interval': 'step'}}


class WithoutMomentum(Falling):
    def optimizer(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Averaged(Falling):
    def optimizer(self):
        return torch.optim.ASGD(self.parameters(), lr=self.lr)


class AskingTheTrainer(WithoutMomentum):
    def optimizer(self):
        assert self.trainer.max_epochs
        return super().optimizer()


def few(sample: dict) -> bool:
    return sample['stem'] != 1


@pytest.fixture
def weights(small, tmp_path, caplog, monkeypatch):
    """The weights that training ends with, by settings, and what the log says."""
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)

    def train(name: str, module=Falling, space=Deep, **settings):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            settings = {'split_epochs': (), 'criterion': 'random', 'search_budget': 1, **settings}
            strategy = small(make_evaluator(module(), epochs=2), space, workdir=tmp_path / name, **settings)
        return [node.weights for node in strategy.tree], caplog.text

    return train


@pytest.mark.parametrize(
    'case, comes_to, said',
    [
        ({}, ALL, 'Training has 4 momenta, of networks with 1 to 2 | 3 | 4 | 5 conv'),
        ({'split_epochs': (1,)}, {'lr_by_size': True, 'momentum_bands': 1, 'sampling': 'uniform'}, 'Node 0.1: trained'),
        (
            {'filter': few},
            {'lr_by_size': True, 'momentum_bands': 1, 'sampling': 'uniform'},
            'Paths are drawn uniformly: with a filter',
        ),
        (
            {'constraints': {'parameters': (None, 3000)}},
            {'lr_by_size': True, 'momentum_bands': 1, 'sampling': 'uniform'},
            'All networks have one momentum: with a filter, a constraint of the space or constraints each draw may',
        ),
        (
            {'space': Alike},
            {'lr_by_size': True, 'momentum_bands': 1, 'sampling': 'uniform'},
            'Paths are drawn uniformly: all have 2 convolutions',
        ),
        ({'module': WithoutMomentum}, {**ALL, 'momentum_bands': 1}, 'one momentum: momentum_bands needs momentum, but'),
        (
            {'module': Averaged},
            {**ALL, 'momentum_bands': 1},
            'have one momentum: momentum_bands goes with',
        ),
        ({'sampling': 'sandwich'}, {**ALL, 'momentum_bands': 1, 'sampling': 'sandwich'}, 'each step trains 4 paths'),
        ({'momentum_bands': 2}, {**ALL, 'momentum_bands': 2}, 'Each number of convolutions is drawn equally often'),
    ],
)
def test_by_default_networks_are_trained_as_the_space_allows(weights, case, comes_to, said):
    found, log = weights('default', **case)
    assert said in log
    assert found == weights('asked', **{**case, **comes_to})[0]
    if not case:
        for name, other in {'lr_by_size': False, 'momentum_bands': 1, 'sampling': 'uniform'}.items():
            assert found != weights(name, **{name: other})[0]


def test_where_nothing_can_be_counted_nothing_is(weights):
    def space() -> ModelSpace:
        return NasBench101(stem_out_channels=8, num_stacks=1, num_modules_per_stack=1, num_labels=4)

    plain = {'lr_by_size': False, 'momentum_bands': 1, 'sampling': 'uniform'}
    found, log = weights('default', space=space)
    assert 'The learning rate does not depend on the size of the path: parameters of features.0' in log
    assert found == weights('plain', space=space, **plain)[0]


@pytest.mark.parametrize('module', [Falling, WithoutMomentum])
def test_a_killed_run_goes_on_as_if_undisturbed(small, tmp_path, module):
    def start(name: str):
        made = make_evaluator(module(), epochs=4, callbacks=[Dies()])
        return small(made, Deep, (), workdir=tmp_path / name, search_budget=1)

    whole = start('whole')
    Dies.armed = True
    start('killed')
    assert not Dies.armed and not (tmp_path / 'killed' / 'node-0.ckpt').exists()
    assert start('killed').tree.weights == whole.tree.weights


def test_a_start_from_weights_that_were_trained_with_momenta(small, tmp_path):
    """The checkpoint has four, this optimizer goes on from the last one."""

    class Own(torch.optim.SGD):
        pass

    class WithMyOwn(Falling):
        def optimizer(self):
            return Own(self.parameters(), lr=self.lr, momentum=0.9)

    given = small(make_evaluator(Falling(), epochs=2), Deep, (), workdir=tmp_path / 'given').tree.checkpoint

    def start(name: str, **settings):
        made = make_evaluator(WithMyOwn(), epochs=4, fit_kwargs={'ckpt_path': given})
        return small(made, Deep, (), workdir=tmp_path / name, **settings).tree.weights

    assert start('default') == start('one', momentum_bands=1)


@pytest.mark.parametrize('module, before', [(WithoutMomentum, True), (AskingTheTrainer, False)])
def test_optimizers_that_do_not_go_are_refused_before_training(small, tmp_path, module, before):
    """But where they cannot be made without a trainer, in the first step."""
    with pytest.raises(ValueError, match='momentum_bands needs momentum, but that of SGD is 0'):
        small(make_evaluator(module()), Deep, (), workdir=tmp_path / 'run', momentum_bands=2)
    assert (tmp_path / 'run' / 'tree.json').exists() is not before
