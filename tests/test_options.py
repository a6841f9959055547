"""What NASLID() does with small and large networks by default: the same as with the settings that it should come to."""

import logging
import re

from nni_naslid import NASLID, SubSpace
from nni_naslid.analysis.compare import summary
from nni_naslid.run.folder import RunFolder
from nni_naslid.run.record import read_record
from nni_naslid.run.settings import PLAIN, Settings
from nni_naslid.space.subspace import constrain
from nni_naslid.train.options import settled
from nni_naslid.train.supernet import make_supernet
from nni_naslid.trial import as_kept

import pytest
import torch
from nni.mutable import Categorical
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


class Same(Alike):
    """And as many parameters."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        convs = [nn.Conv2d(8, 8, 3, padding=dilation, dilation=dilation) for dilation in (1, 2)]
        self.body = LayerChoice(convs, label='body')


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


class AskingTheTrainer(Falling):
    def optimizer(self):
        assert self.trainer.max_epochs
        return super().optimizer()


class AskingForSteps(Falling):
    """Which is not known before the trainer has data."""

    def optimizer(self):
        assert self.trainer.estimated_stepping_batches == 4 * self.trainer.max_epochs
        return super().optimizer()


class AskingForAveraged(AskingForSteps, Averaged):
    pass


class AskingWithMyOwn(AskingForSteps):
    def optimizer(self):
        super().optimizer()
        return Own(self.parameters(), lr=self.lr, momentum=0.9)


class AskingWithoutMomentum(AskingForSteps, WithoutMomentum):
    pass


class Own(torch.optim.SGD):
    """Who knows what it keeps."""


class Fickle(Falling):
    """Its optimizer in training is another one than before it."""

    def setup(self, stage):
        self.is_set_up = True

    def optimizer(self):
        made = Own if hasattr(self, 'is_set_up') else torch.optim.SGD
        return made(self.parameters(), lr=self.lr, momentum=0.9)


class Untrained(Plain):
    def configure_optimizers(self):
        return None


class Silent(Plain):
    def validation_step(self, batch, batch_idx):
        self.log('other', self.loss(batch))


def few(sample: dict) -> bool:
    return sample['stem'] != 1


def all_of_them(sample: dict) -> bool:
    return True


@pytest.fixture
def weights(small, tmp_path, caplog, monkeypatch):
    """The weights that training ends with, by settings, and what the log says."""
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)

    def train(name: str, module=Falling, space=Deep, accumulate=1, **settings):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            settings = {'split_epochs': (), 'criterion': 'random', 'search_budget': 1, **settings}
            made = make_evaluator(module(), epochs=2, accumulate_grad_batches=accumulate)
            strategy = small(made, space, workdir=tmp_path / name, **settings)
        return [node.weights for node in strategy.tree], caplog.text

    return train


PLAINLY = {**PLAIN, 'lr_by_size': True}
ONE_MOMENTUM = {**ALL, 'momentum_bands': 1}


@pytest.mark.parametrize(
    'case, comes_to, said',
    [
        ({}, ALL, 'that of large networks falls later.\n.*Training has 4 momenta, .* 1 to 2 | 3 | 4 | 5 convol'),
        ({'split_epochs': (1,)}, PLAINLY, 'Node 0.1: trained'),
        (
            {'filter': few},
            PLAINLY,
            "not balanced: with a filter or constraints, .*; sampling='balanced' asks",
        ),
        ({'accumulate': 2}, ONE_MOMENTUM, 'All networks have one momentum: steps train several paths'),
        (
            {'constraints': {'parameters': (None, 3000)}},
            PLAINLY,
            'All networks have one momentum: with a filter or constraints, .*; momentum_bands=4 asks for it',
        ),
        ({'space': Alike}, PLAINLY, 'Drawing is not balanced: all have 2 convolutions.'),
        (
            {'module': WithoutMomentum},
            ONE_MOMENTUM,
            'one momentum: momentum_bands needs momentum, but that of SGD',
        ),
        ({'module': Averaged}, ONE_MOMENTUM, 'have one momentum: momentum_bands goes with'),
        ({'module': AskingTheTrainer}, ALL, r'Training has 4 momenta, .* convolutions, if the optimizers allow it\.'),
        ({'module': AskingForSteps}, ALL, r'Training has 4 momenta, .* convolutions, if the optimizers allow it\.'),
        (
            {'module': Fickle},
            ONE_MOMENTUM,
            'All networks have one momentum: momentum_bands goes with .* this one is Own',
        ),
        ({'module': AskingForAveraged}, ONE_MOMENTUM, 'have one momentum: momentum_bands goes with'),
        ({'module': Untrained}, ONE_MOMENTUM, 'All networks have one momentum: the module of the evaluator has no opt'),
        ({'sampling': 'sandwich'}, {**PLAIN, 'sampling': 'sandwich'}, 'each step trains 4 paths'),
        ({'momentum_bands': 2}, {**ALL, 'momentum_bands': 2}, 'Each number of convolutions is drawn equally often'),
    ],
)
def test_by_default_networks_are_trained_as_the_space_allows(weights, case, comes_to, said):
    found, log = weights('default', **case)
    assert re.search(said.replace('|', r'\|'), log)
    assert found == weights('asked', **{**case, **comes_to})[0]
    if not case:
        for name, plain in PLAIN.items():
            assert found != weights(name, **{name: plain})[0]


def test_where_all_are_as_large_nothing_goes_by_the_size(weights):
    found, log = weights('default', space=Same)
    for what in (
        'The learning rate does not depend on the size of the path: all have 940 parameters.',
        'All networks have one momentum: all have 2 convolutions.',
        'Drawing is not balanced: all have 2 convolutions.',
    ):
        assert what in log
    assert 'WARNING' not in log
    assert found == weights('plain', space=Same, **PLAIN)[0]
    _, log = weights('asked', space=Same, lr_by_size=True, sampling='balanced')
    assert 'All networks have as many parameters: to go by them (lr_by_size) makes no difference.' in log
    assert 'All networks have as many convolutions: to go by them (sampling) makes no difference.' in log


def test_choices_with_weights_of_their_own_are_drawn_by_these():
    supernet = make_supernet(Deep())
    mutables = SubSpace.of(supernet).mutables
    weighted = Categorical(mutables['stem'].values, weights=[0.5, 0.3, 0.2], label='stem')
    constrain(supernet, SubSpace({**mutables, 'stem': weighted}))
    found = settled(Settings((), None), supernet, make_evaluator())
    assert {name: getattr(found, name) for name in PLAIN} == {**ALL, 'momentum_bands': 'auto', 'sampling': 'uniform'}


def test_where_nothing_can_be_counted_nothing_is(weights):
    def space() -> ModelSpace:
        return NasBench101(stem_out_channels=8, num_stacks=1, num_modules_per_stack=1, num_labels=4)

    found, log = weights('default', space=space)
    assert 'The learning rate does not depend on the size of the path: parameters of features.0' in log
    assert found == weights('plain', space=space, **PLAIN)[0]


@pytest.mark.parametrize('module', [Falling, AskingForSteps, AskingWithMyOwn])
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
    given = small(make_evaluator(Falling(), epochs=2), Deep, (), workdir=tmp_path / 'given').tree.checkpoint

    def start(name: str, **settings):
        made = make_evaluator(AskingWithMyOwn(), epochs=4, fit_kwargs={'ckpt_path': given})
        return small(made, Deep, (), workdir=tmp_path / name, **settings).tree.weights

    assert start('default') == start('one', momentum_bands=1)


@pytest.mark.parametrize('module, before', [(Averaged, True), (AskingForAveraged, False)])
def test_optimizers_that_do_not_go_are_refused_before_training(small, tmp_path, module, before):
    """But where they cannot be made without a trainer, in the first step."""
    with pytest.raises(ValueError, match=r'momentum_bands goes with these optimizers of torch: .* this one is ASGD'):
        small(make_evaluator(module()), Deep, (), workdir=tmp_path / 'run', momentum_bands=2)
    assert (tmp_path / 'run' / 'tree.json').exists() is not before


def test_momenta_of_an_optimizer_without_momentum_are_warned_of(weights):
    """Where it cannot be made before training; else they are refused."""
    found, log = weights('four', module=AskingWithoutMomentum, momentum_bands=4)
    assert 'momentum_bands makes no difference, as the momentum of SGD is 0.' in log
    assert found == weights('one', module=AskingWithoutMomentum, momentum_bands=1)[0]


def test_what_it_comes_to_is_kept_and_told(small, tmp_path):
    """With a filter that lets all pass it is another training."""
    small(make_evaluator(), Deep, (), workdir=tmp_path / 'all')
    small(make_evaluator(), Deep, (), workdir=tmp_path / 'filter', filter=all_of_them)
    found = [summary(read_record(tmp_path / name))['settings'] for name in ('all', 'filter')]
    assert found[0] == "lr_by_size=True, momentum_bands='auto', sampling='balanced'"
    assert found[1].startswith('lr_by_size=True, filter=')
    asked = Settings((), None)
    for name, comes_to in {'all': {**ALL, 'momentum_bands': 'auto'}, 'filter': PLAINLY}.items():
        kept = as_kept(asked, RunFolder(tmp_path / name))
        assert {key: getattr(kept, key) for key in PLAIN} == comes_to


def test_a_strategy_that_was_refused_can_be_used_again(tmp_path):
    strategy = NASLID(search_budget=1, calibration_batches=1, monitor='val_loss', workdir=tmp_path)
    with pytest.raises(ValueError, match="monitor='val_loss' is not logged"):
        strategy.fit(Alike(), make_evaluator(Silent()))
    strategy.fit(Deep(), make_evaluator(epochs=1))
    assert (strategy.settings.momentum_bands, strategy.settings.sampling) == ('auto', 'balanced')
