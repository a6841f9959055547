"""A momentum of each band of networks: against plain loops in which each band has an optimizer of its own."""

import copy
from typing import ClassVar

from nni_naslid import NASLID, SubSpace
from nni_naslid.train.momenta import Momenta
from nni_naslid.train.path import set_path
from nni_naslid.train.supernet import make_supernet

import numpy as np
import pytest
import torch
from nni.nas.hub.pytorch import NasBench101
from nni.nas.nn.pytorch import LayerChoice
from small import Convs, Dies, Plain, make_evaluator, same_weights
from torch import nn

PREFIX = 'training_module._model.'


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
    'sgd': lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=1e-3),
    'adamw': lambda weights: torch.optim.AdamW(weights, lr=0.01),
    'adagrad': lambda weights: torch.optim.Adagrad(
        weights, lr=0.05, initial_accumulator_value=0.1
    ),  # has a state at once
}


class Around(torch.optim.Optimizer):
    """An optimizer that has the work done by one inside."""

    def __init__(self, inner: torch.optim.Optimizer):
        super().__init__(inner.param_groups, {})
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self, closure=None):
        return self.inner.step(closure)

    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, state_dict):
        self.inner.load_state_dict(state_dict)
        self.param_groups = self.inner.param_groups


class Noting(Plain):
    """Notes what each step trains on, and which path."""

    optimizer = 'sgd'
    around = False
    steps: ClassVar[list] = []

    def training_step(self, batch, batch_idx):
        module = self.trainer.lightning_module
        self.steps.append((module.seed[1:], module.paths(batch_idx)[0], [each.clone() for each in batch]))
        return self.loss(batch)

    def configure_optimizers(self):
        made = OPTIMIZERS[self.optimizer](self.parameters())
        return Around(made) if self.around else made


def noting(optimizer: str = 'sgd', around: bool = False, **trainer):
    module = Noting()
    module.optimizer, module.around = optimizer, around
    Noting.steps.clear()
    return make_evaluator(module, epochs=4, **trainer)


def trained_alone(start: nn.Module, optimizers: list, steps: list, accumulate: int = 1) -> None:
    """The plain loop; the mean number of convolutions of the paths of a step says which optimizer takes it."""
    for i in range(0, len(steps), accumulate):
        start.zero_grad()
        for _, path, (x, y) in steps[i : i + accumulate]:
            set_path(start, path)
            (nn.functional.cross_entropy(start(x), y) / accumulate).backward()
        mean = sum(n_convs(path) for _, path, _ in steps[i : i + accumulate]) / accumulate
        optimizers[next(band for band in range(3) if mean <= band + 1)].step()


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
        made, Tailed, **{'split_epochs': (), 'criterion': 'random', 'search_budget': 1, 'momentum_bands': 3} | kwargs
    )


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_each_band_has_an_optimizer_of_its_own(small, optimizer):
    """Also in the two children, which go on from the three momenta of the root."""
    strategy = run(small, noting(optimizer), split_epochs=(2,), lr_by_size=False)
    root, *children = strategy.tree
    assert len(Noting.steps) == 8 + 8 + 8 and len(children) == 2
    assert {n_convs(path) for _, path, _ in Noting.steps[:8]} == {1, 2, 3}
    net = begun(strategy)
    made = [OPTIMIZERS[optimizer](net.parameters()) for _ in range(3)]
    trained_alone(net, made, Noting.steps[:8])
    assert same_weights(net.state_dict(), weights_in(root.checkpoint))
    for i, child in enumerate(children):
        own = copy.deepcopy(net)
        theirs = [OPTIMIZERS[optimizer](own.parameters()) for _ in range(3)]
        for its, of_the_root in zip(theirs, made, strict=True):
            its.load_state_dict(copy.deepcopy(of_the_root.state_dict()))
        trained_alone(own, theirs, Noting.steps[8 + 8 * i : 16 + 8 * i])
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
    trained_alone(net, [OPTIMIZERS['sgd'](net.parameters()) for _ in range(3)], Noting.steps, 2)
    assert same_weights(net.state_dict(), weights_in(strategy.tree.checkpoint))


def test_one_momentum_is_the_default_and_other_than_three(small, tmp_path):
    weights = [
        run(small, noting(), workdir=tmp_path / str(i), **of).tree.weights
        for i, of in enumerate([{'momentum_bands': 1}, {}, {'momentum_bands': np.int64(3)}])
    ]
    assert weights[0] != weights[1] == weights[2]
    assert NASLID().settings.momentum_bands == 1


def test_an_optimizer_inside_another_has_them_too(small, tmp_path):
    weights = [
        run(small, noting('adamw', around), workdir=tmp_path / str(around), split_epochs=(2,)).tree.leaves[1].weights
        for around in (False, True)
    ]
    assert weights[0] == weights[1]


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
        (Alike, 'momentum_bands=3 needs networks of different size, but all of this space have 2 convolutions'),
        (lambda: NasBench101(stem_out_channels=8, num_stacks=1, num_modules_per_stack=1), 'cannot be counted'),
    ],
)
def test_refused_before_training(small, space, match):
    with pytest.raises(ValueError, match=match):
        small(make_evaluator(), space, split_epochs=(), momentum_bands=3, criterion='random')


@pytest.mark.parametrize('wrong', [0, -1, 2.5, True, '4', None])
def test_settings_that_are_refused(wrong):
    with pytest.raises(ValueError, match='momentum_bands must be'):
        NASLID(momentum_bands=wrong)
