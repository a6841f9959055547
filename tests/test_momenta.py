"""A momentum of each band of networks: against plain loops in which each band has an optimizer of its own."""

import copy
import logging
from typing import ClassVar

from nni_naslid import NASLID, SubSpace
from nni_naslid.analysis.compare import summary
from nni_naslid.run.record import read_record
from nni_naslid.run.settings import PLAIN
from nni_naslid.train.momenta import Momenta
from nni_naslid.train.path import set_path
from nni_naslid.train.supernet import make_supernet

import nni
import pytest
import pytorch_lightning as pl
import torch
from nni.nas.hub.pytorch import NasBench101
from nni.nas.nn.pytorch import LayerChoice
from small import Convs, Dies, Plain, make_evaluator, same_weights
from torch import nn

PREFIX = 'training_module._model.'
FALL = 0.9  # of the rate, in a step


class Tailed(Convs):
    """One to three convolutions."""

    def __init__(self):
        super().__init__()
        self.tail = LayerChoice([nn.Conv2d(8, 8, 3, padding=1), nn.Identity()], label='tail')

    def forward(self, x):
        return self.head(self.pool(self.tail(self.body(self.stem(x)))).flatten(1))


def n_convs(sample: dict) -> int:
    return 1 + (sample['body'] != 2) + (sample['tail'] == 0)


OPTIMIZERS = {
    'sgd': lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-3),
    'adamw': lambda groups: torch.optim.AdamW(groups, lr=0.01),
    # It has a state before its first step.
    'adagrad': lambda groups: torch.optim.Adagrad(groups, lr=0.05, initial_accumulator_value=0.1),
}


def made_for(name: str, module: nn.Module) -> torch.optim.Optimizer:
    """Two groups, the stem at half the rate."""
    stem = [weight for name, weight in module.named_parameters() if 'stem' in name]
    others = [weight for name, weight in module.named_parameters() if 'stem' not in name]
    optimizer = OPTIMIZERS[name]([{'params': others}, {'params': stem}])
    optimizer.param_groups[1]['lr'] /= 2
    return optimizer


class Noting(Plain):
    """Notes what each step trains on, and which path."""

    optimizer = 'sgd'
    steps: ClassVar[list] = []

    def training_step(self, batch, batch_idx):
        module = self.trainer.lightning_module
        self.steps.append((module.paths(batch_idx)[0], [each.clone() for each in batch]))
        return self.loss(batch)

    def configure_optimizers(self):
        optimizer = made_for(self.optimizer, self)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, FALL)
        return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': schedule, 'interval': 'step'}}


def noting(optimizer: str = 'sgd', **trainer):
    module = Noting()
    module.optimizer = optimizer
    Noting.steps.clear()
    return make_evaluator(module, epochs=4, **trainer)


def trained_alone(net: nn.Module, optimizers: list, steps: list, before: int = 0, accumulate: int = 1) -> None:
    """The plain loop; the mean number of convolutions of the paths of a step says which optimizer takes it."""
    for i in range(len(steps) // accumulate):
        net.zero_grad()
        paths = steps[i * accumulate : (i + 1) * accumulate]
        for path, (x, y) in paths:
            set_path(net, path)
            (nn.functional.cross_entropy(net(x), y) / accumulate).backward()
        mean = sum(n_convs(path) for path, _ in paths) / accumulate
        optimizer = optimizers[next(band for band in range(3) if mean <= band + 1)]
        for group, part in zip(optimizer.param_groups, (1, 0.5), strict=True):
            group['lr'] = optimizer.defaults['lr'] * part
            for _ in range(before + i):  # as the schedule does, to the bit
                group['lr'] *= FALL
        optimizer.step()


def weights_in(checkpoint) -> dict:
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    return {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}


def begun(strategy) -> nn.Module:
    """The supernet before training."""
    net = make_supernet(Tailed()).train()
    net.load_state_dict(weights_in(strategy.workdir / 'init.ckpt'))
    return net


def run(small, made, **kwargs):
    return small(
        made,
        Tailed,
        **{'split_epochs': (), 'criterion': 'random', 'search_budget': 1, **PLAIN, 'momentum_bands': 3, **kwargs},
    )


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_each_band_has_an_optimizer_of_its_own(small, optimizer):
    """Also in the two children, which go on from the three momenta of the root."""
    strategy = run(small, noting(optimizer), split_epochs=(2,))
    root, *children = strategy.tree
    assert len(Noting.steps) == 8 + 8 + 8 and len(children) == 2
    assert {n_convs(path) for path, _ in Noting.steps[:8]} == {1, 2, 3}
    net = begun(strategy)
    made = [made_for(optimizer, net) for _ in range(3)]
    trained_alone(net, made, Noting.steps[:8])
    assert same_weights(net.state_dict(), weights_in(root.checkpoint))
    for i, child in enumerate(children):
        own = copy.deepcopy(net)
        theirs = [made_for(optimizer, own) for _ in range(3)]
        for its, of_the_root in zip(theirs, made, strict=True):
            its.load_state_dict(copy.deepcopy(of_the_root.state_dict()))
        trained_alone(own, theirs, Noting.steps[8 + 8 * i : 16 + 8 * i], before=8)
        assert same_weights(own.state_dict(), weights_in(child.checkpoint))


@pytest.mark.parametrize('asked', [2, 3, 100])
def test_bands_are_as_equal_as_they_can_be(asked):
    """Of 18 networks 3, 9 and 6 have one, two and three convolutions."""
    supernet = make_supernet(Tailed())
    momenta = Momenta(supernet, SubSpace.of(supernet), asked)
    assert momenta.bands == ([(1, 2), (3, 3)] if asked == 2 else [(1, 1), (2, 2), (3, 3)])


def test_of_several_batches_in_a_step_the_mean_number_counts(small):
    strategy = run(small, noting(accumulate_grad_batches=2))
    assert len(Noting.steps) == 16
    net = begun(strategy)
    trained_alone(net, [made_for('sgd', net) for _ in range(3)], Noting.steps, accumulate=2)
    assert same_weights(net.state_dict(), weights_in(strategy.tree.checkpoint))


def test_runs_say_how_many_momenta_they_have(small, tmp_path):
    def weights(name: str, **settings):
        settings = {'sampling': 'auto', 'lr_by_size': 'auto', **settings}
        return run(small, noting(), workdir=tmp_path / name, **settings).tree.weights

    one, other, three = weights('1', momentum_bands=1), weights('auto', momentum_bands='auto'), weights('3')
    assert one != other == three
    told = [summary(read_record(tmp_path / name))['settings'] for name in ('1', 'auto', '3')]
    assert told == [
        "lr_by_size=True, sampling='balanced'",
        *[f"lr_by_size=True, momentum_bands={n}, sampling='balanced'" for n in ("'auto'", 3)],
    ]


class Around(torch.optim.Optimizer):
    """An optimizer that has the work done by one inside, as those do that keep weights (SAM, Lookahead)."""

    def __init__(self, inner: torch.optim.Optimizer):
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self, closure=None):
        return self.inner.step(closure)


class Derived(torch.optim.AdamW):
    """Who knows what it keeps."""


def test_optimizers_that_are_traced_or_made_anew(small):
    """Lightning's way to another optimizer in the middle of training: its momenta begin anew."""

    class Anew(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                pl_module.training_module.optimizer = 'adamw'
                trainer.strategy.setup_optimizers(trainer)

    class Traced(Noting):
        def configure_optimizers(self):
            if self.optimizer == 'adamw':
                return made_for('adamw', self)
            return nni.trace(torch.optim.SGD)(self.parameters(), lr=0.05, momentum=0.9)

    assert run(small, make_evaluator(Traced(), epochs=4, callbacks=[Anew()])).tree.metric < 2


def test_without_momentum_there_is_nothing_to_keep_apart(small):
    class Module(Plain):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(ValueError, match='momentum_bands needs momentum, but that of SGD is 0'):
        run(small, make_evaluator(Module()))


@pytest.mark.parametrize(
    'made, name',
    [
        (lambda weights: Around(torch.optim.SGD(weights, 0.1)), 'Around'),
        (lambda weights: torch.optim.LBFGS(weights), 'LBFGS'),
        (lambda weights: torch.optim.ASGD(weights), 'ASGD'),
        (lambda weights: Derived(weights), 'Derived'),
    ],
)
def test_an_optimizer_that_may_keep_weights_is_refused(small, made, name):
    class Module(Plain):
        def configure_optimizers(self):
            return made(self.parameters())

    match = f'momentum_bands goes with these optimizers of torch: SGD, Adam, .* but this one is {name}'
    with pytest.raises(ValueError, match=match):
        run(small, make_evaluator(Module()))


def test_a_start_from_a_checkpoint_of_another_run(small, tmp_path):
    """With the momenta of the same bands; of other bands, each begins with what Lightning has restored."""
    given = run(small, noting('adamw'), workdir=tmp_path / 'given', split_epochs=(2,)).tree.checkpoint
    before = list(Noting.steps[:8])
    start = tmp_path / 'given'
    found = {}
    for n in (3, 2):
        made = noting('adamw', fit_kwargs={'ckpt_path': given})
        strategy = run(small, made, workdir=tmp_path / str(n), momentum_bands=n)
        assert len(Noting.steps) == 8
        found[n] = weights_in(strategy.tree.checkpoint)
        if n == 3:
            net = make_supernet(Tailed()).train()
            net.load_state_dict(weights_in(start / 'init.ckpt'))
            optimizers = [made_for('adamw', net) for _ in range(3)]
            trained_alone(net, optimizers, before)
            trained_alone(net, optimizers, Noting.steps, before=8)
            assert same_weights(net.state_dict(), found[3])
    assert not same_weights(found[2], found[3])


@pytest.mark.parametrize('most, bands', [(3, [(1, 1), (2, 2), (3, 3)]), (2, [(1, 1), (2, 2)])])
def test_bands_are_of_what_the_filter_lets_pass(most, bands):
    supernet = make_supernet(Tailed())
    space = SubSpace(SubSpace.of(supernet).mutables, lambda sample: n_convs(sample) <= most)
    assert Momenta(supernet, space, 3).bands == bands


def test_bands_are_told(small, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    with caplog.at_level(logging.INFO):
        run(small, noting(), momentum_bands=2)
    assert 'Training has 2 momenta, of networks with 1 to 2 | 3 convolutions.' in caplog.text


def test_a_filter_that_leaves_one_number():
    supernet = make_supernet(Tailed())
    space = SubSpace(SubSpace.of(supernet).mutables, lambda sample: n_convs(sample) == 3)
    with pytest.raises(ValueError, match='all that filter and constraints let pass have 3'):
        Momenta(supernet, space, 3)


@pytest.mark.parametrize('optimizer', ['adamw', 'adagrad'])
def test_a_killed_run_goes_on_with_all_momenta(small, tmp_path, optimizer):
    def start(name: str):
        return run(small, noting(optimizer, callbacks=[Dies()]), workdir=tmp_path / name)

    whole = start('whole')
    Dies.armed = True
    start('killed')
    assert not Dies.armed and not (tmp_path / 'killed' / 'node-0.ckpt').exists()
    assert start('killed').tree.weights == whole.tree.weights
    with pytest.raises(ValueError, match='holds a run with momentum_bands=3, but this one has no momentum_bands'):
        run(small, noting(optimizer, callbacks=[Dies()]), workdir=tmp_path / 'whole', momentum_bands=1)


class Alike(Convs):
    """All networks have two convolutions."""

    def __init__(self):
        super().__init__()
        self.body = LayerChoice([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)], label='body')


@pytest.mark.parametrize(
    'space, match',
    [
        (Alike, 'momentum_bands=3 needs networks with different numbers of convolutions, but all have 2. Take 1'),
        (
            lambda: NasBench101(stem_out_channels=8, num_stacks=1, num_modules_per_stack=1),
            'momentum_bands=3 needs networks with different numbers of convolutions, .* cannot be counted .* Take 1',
        ),
    ],
)
def test_refused_before_training(small, space, match):
    with pytest.raises(ValueError, match=match):
        small(make_evaluator(), space, split_epochs=(), momentum_bands=3, criterion='random')


@pytest.mark.parametrize('wrong', [0, -1, 2.5, True, '4', None])
def test_settings_that_are_refused(wrong):
    with pytest.raises(ValueError, match='momentum_bands must be'):
        NASLID(momentum_bands=wrong)


def test_several_paths_in_a_step_are_refused():
    with pytest.raises(ValueError, match="momentum_bands=4 needs steps of one path, but sampling='sandwich' trains 4"):
        NASLID(momentum_bands=4, sampling='sandwich')
