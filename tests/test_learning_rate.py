"""The learning rate by the size of the path: what each step had, against the schedule and the formula by hand."""

from itertools import product
from typing import ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from small import Convs, Dies, Plain, make_evaluator

SAMPLES = [{'stem': stem, 'body': body} for stem, body in product(range(3), range(3))]
SIZES = [sum(weight.numel() for weight in Convs().freeze(sample).parameters()) for sample in SAMPLES]


def exponent(sample: dict) -> float:
    """By hand: two to the power of one minus twice the share of the smaller networks, with half of the equal ones."""
    size = SIZES[SAMPLES.index(sample)]
    q = np.mean([(other < size) + (other == size) / 2 for other in SIZES])
    return 2 ** (1 - 2 * q)


def scheduled(step: int) -> float:
    return (step + 1) / 5 if step < 4 else 1 / (step - 3)


class Noting(torch.optim.SGD):
    """Notes the rates of the steps that it takes."""

    rates: ClassVar[list] = []

    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        self.rates.append([group['lr'] for group in self.param_groups])
        super().step()
        return loss


class Scheduled(Plain):
    """Two groups of weights; a rate that rises for four steps, and then falls."""

    def configure_optimizers(self):
        weights = list(self.parameters())
        optimizer = Noting([{'params': weights[:2]}, {'params': weights[2:], 'lr': 0.02}], lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scheduled)
        return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': schedule, 'interval': 'step'}}

    def optimizer_step(self, *args, **kwargs):
        self.seen.append(self.trainer.global_step)
        super().optimizer_step(*args, **kwargs)


class Paths(pl.Callback):
    paths: ClassVar[list] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        state = np.random.SeedSequence([*pl_module.seed, False, trainer.current_epoch, batch_idx]).generate_state(4)
        self.paths.append(pl_module.subspace.sample(np.random.RandomState(state)))


def run(small, workdir, **kwargs):
    Noting.rates.clear()
    Paths.paths.clear()
    trainer = {'callbacks': [Paths()], 'accumulate_grad_batches': kwargs.pop('accumulate', 1)}
    evaluator = make_evaluator(Scheduled(), epochs=4, **trainer)
    return small(evaluator, criterion='random', workdir=workdir, **{'split_epochs': (2,), 'lr_by_size': True, **kwargs})


def test_large_networks_keep_a_higher_rate(small, tmp_path):
    """Here a root of two epochs of four steps, and then two children that go on from it."""
    run(small, tmp_path / 'a')
    assert len(Noting.rates) == len(Paths.paths) == 8 + 8 + 8
    steps = [*range(8), *range(8, 16), *range(8, 16)]
    for rates, sample, step in zip(Noting.rates, Paths.paths, steps, strict=True):
        factor = scheduled(step) if step < 4 else scheduled(step) ** exponent(sample)  # the peak is 1, at step 4
        assert rates == pytest.approx([0.1 * factor, 0.02 * factor])
    assert Scheduled.seen  # the user's own step was taken
    assert len({exponent(sample) for sample in Paths.paths}) > 4


def test_without_it_the_schedule_is_as_it_was(small, tmp_path):
    run(small, tmp_path / 'a', lr_by_size=False)
    for rates, step in zip(Noting.rates[:16], range(16), strict=True):
        assert rates == pytest.approx([0.1 * scheduled(step), 0.02 * scheduled(step)])


def test_it_is_the_default(small, tmp_path):
    weights = [run(small, tmp_path / str(each), lr_by_size=each).tree.weights for each in ('auto', True, False)]
    assert weights[0] == weights[1] != weights[2]


class Own(torch.optim.Optimizer):
    """Steps of its own size, whose groups have no rate."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure()
        for weight in self.param_groups[0]['params']:
            if weight.grad is not None:
                weight -= 0.01 * weight.grad.sign()
        return loss


class Signs(Plain):
    def configure_optimizers(self):
        return Own(self.parameters())


def test_an_optimizer_without_a_rate_is_left_alone(small, tmp_path):
    weights = [
        small(make_evaluator(Signs()), criterion='random', lr_by_size=each, workdir=tmp_path / str(each)).tree.weights
        for each in ('auto', False)
    ]
    assert weights[0] == weights[1]


def test_of_several_batches_in_a_step_the_mean_exponent_counts(small, tmp_path):
    run(small, tmp_path / 'a', accumulate=2, split_epochs=(), sampling='uniform')
    assert len(Noting.rates) == 8
    for step, rates in enumerate(Noting.rates):
        mean = np.mean([exponent(sample) for sample in Paths.paths[2 * step : 2 * step + 2]])
        factor = scheduled(step) if step < 4 else scheduled(step) ** mean
        assert rates[0] == pytest.approx(0.1 * factor)


def test_a_killed_run_goes_on_with_the_same_rates(small, tmp_path):
    def start(name: str):
        evaluator = make_evaluator(Scheduled(), epochs=5, callbacks=[Dies()])
        return small(evaluator, criterion='random', split_epochs=(4,), lr_by_size=True, workdir=tmp_path / name)

    whole = start('whole')
    Dies.armed = True
    start('killed')
    assert not Dies.armed and not (tmp_path / 'killed' / 'node-0.ckpt').exists()
    for node, other in zip(start('killed').tree, whole.tree, strict=True):
        assert node.weights == other.weights


def test_another_setting_is_another_run(small, tmp_path):
    run(small, tmp_path / 'a')
    with pytest.raises(ValueError, match='holds a run with lr_by_size=True, but this one has no lr_by_size'):
        run(small, tmp_path / 'a', lr_by_size=False)
    run(small, tmp_path / 'a', lr_by_size='auto')  # which comes to the same here
    with pytest.raises(ValueError, match="lr_by_size must be True, False or 'auto', but got 'yes'"):
        run(small, tmp_path / 'b', lr_by_size='yes')


class OwnWarmUp(Plain):
    """As in Lightning's documentation: the rate is set by hand after a step."""

    def configure_optimizers(self):
        return Noting(self.parameters(), lr=0.05)

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group['lr'] = (1 + self.trainer.global_step) / 1000


def test_a_rate_that_a_hook_sets_stays(small, tmp_path):
    """It is .05 in the first step, and then .001, .002, ..., so it never is the highest again."""
    Noting.rates.clear()
    Paths.paths.clear()
    evaluator = make_evaluator(OwnWarmUp(), epochs=2, callbacks=[Paths()])
    small(evaluator, split_epochs=(), criterion='random', lr_by_size=True, sampling='uniform')
    expected = [0.05, *(0.05 * (step / 50) ** exponent(Paths.paths[step]) for step in range(1, 8))]
    assert [rate for (rate,) in Noting.rates] == pytest.approx(expected)
