"""Several paths in a step: gradients and distillation against plain torch, the ends against all networks of a space."""

import functools
import logging
import random
from itertools import product
from typing import ClassVar
from zlib import crc32

from nni_naslid import Bands, SubSpace, plan_epochs
from nni_naslid.analysis.compare import summary
from nni_naslid.criteria.named import check_travels
from nni_naslid.run.record import read_record
from nni_naslid.run.settings import Settings
from nni_naslid.space.additive import equal_bands
from nni_naslid.space.band import Band
from nni_naslid.train.sampling import draw_from
from nni_naslid.train.sandwich import smallest_and_largest
from nni_naslid.train.structure import structural_score

import nni
import nni.nas.nn.pytorch as nas
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.space import model_context
from nni.nas.strategy import RandomOneShot
from small import Convs, Dies, Plain, images, make_evaluator, same_weights, seed_all
from test_export import SPACES
from torch import nn
from torch.utils.data import TensorDataset

STEP = {'sampling': 'sandwich', 'split_epochs': ()}
ENDS = {'stem': 2, 'body': 1}, {'stem': 0, 'body': 2}  # the largest and the smallest of Convs, which one sees


def logits(space: Convs, path: dict, x: torch.Tensor) -> torch.Tensor:
    return space.head(space.pool(space.body[path['body']](space.stem[path['stem']](x))).flatten(1))


def by_hand(batches: list[list[dict]], distill: float, lr: float) -> dict[str, torch.Tensor]:
    """The weights after one step of plain torch: the mean gradient of passes that are taken one by one."""
    seed_all()
    space = Convs()
    x, y = images().tensors
    for i, paths in enumerate(batches):
        at = slice(24 * i, 24 * (i + 1))
        p = logits(space, paths[0], x[at]).detach().double().softmax(1)
        for k, path in enumerate(paths):
            z = logits(space, path, x[at])
            loss = F.cross_entropy(z, y[at])
            if k and distill:
                divergence = (p * (p.log() - z.double().softmax(1).log())).sum() / len(p)
                loss = (1 - distill) * loss + distill * divergence
            (loss / len(paths) / len(batches)).backward()
    with torch.no_grad():
        for weight in space.parameters():
            weight -= lr * (0 if weight.grad is None else weight.grad)
    return dict(space.named_parameters())


def weights_of(strategy) -> dict[str, torch.Tensor]:
    return dict(strategy._made.supernet.named_parameters())


@pytest.mark.parametrize('distill, accumulate', [(0, 1), (0.25, 1), (1, 2)])
def test_a_step_goes_down_the_mean_gradient_of_its_paths(small, sampled, distill, accumulate):
    loader = DataLoader(TensorDataset(*images()[: 24 * accumulate]), 24)
    evaluator = make_evaluator(train=loader, epochs=1, accumulate_grad_batches=accumulate)
    strategy = small(evaluator, distill=distill, **STEP)
    paths = [sample for _, _, sample in sampled]
    assert len(paths) == 4 * accumulate and (paths[0], paths[3]) == ENDS
    expected = by_hand([paths[i : i + 4] for i in range(0, len(paths), 4)], distill, lr=0.05)
    for name, weight in weights_of(strategy).items():
        assert torch.allclose(weight, expected[name], atol=1e-6), name


class Nested(nas.ModelSpace):
    """Depths, widths, and choices below a choice: 2 x 2 x 3 x 2 x 3 samples."""

    def __init__(self):
        super().__init__()
        width = nni.choice('width', [4, 12])

        def block(i: int) -> nn.Module:
            return nas.MutableConv2d(width, width, nni.choice(f'kernel{i}', [1, 3, 5] if i else [1, 3]), padding='same')

        self.stem = nas.MutableConv2d(3, width, 1)
        self.blocks = nas.Repeat(block, (1, 2), label='depth')
        inner = nas.LayerChoice([nn.Conv2d(3, 16, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 8, 1)], label='inner')
        self.side = nas.LayerChoice([inner, nn.Conv2d(3, 4, 1)], label='side')

    def forward(self, x):
        return torch.cat([self.blocks(self.stem(x)).mean((2, 3)), self.side(x).mean((2, 3))], 1)


@functools.cache
def sizes_of(make) -> list[tuple[dict, int]]:
    """All samples, with the parameters of the network that NNI builds from scratch."""
    mutables = make().simplify()
    found = []
    for choices in product(*(mutable.values for mutable in mutables.values())):
        sample = dict(zip(mutables, choices, strict=True))
        with model_context(sample):
            found.append((sample, sum(weight.numel() for weight in make().parameters())))
    return found


PARTS = {
    'whole': lambda space, score: space,
    'part': lambda space, score: space.split('width', [[0], [1]])[0],
    'filter': lambda space, score: SubSpace(
        space.mutables, lambda sample: crc32(str(sorted(sample.items())).encode()) % 3 == 0
    ),
    'of a middling size': lambda space, score: Band(space, score, *equal_bands(score.count().histogram, 3)[1]),
    'of few convolutions': lambda space, score: Band(space, score.convolutions, 2, 3),
}


@pytest.mark.parametrize('part', PARTS)
def test_the_ends_of_a_sub_space(part):
    supernet = RandomOneShot().mutate_model(Nested())
    whole = SubSpace.of(supernet)
    score = structural_score(supernet, whole, 'parameters')
    score.convolutions = structural_score(supernet, whole, 'convolutions')
    subspace = PARTS[part](whole, score)
    ends = smallest_and_largest(supernet, subspace)
    assert all(end in subspace for end in ends)
    sizes = [size for sample, size in sizes_of(Nested) if sample in subspace]
    found = [next(size for sample, size in sizes_of(Nested) if sample == end) for end in ends]
    assert found == [min(sizes), max(sizes)] and len(sizes) > 1
    draws = [draw_from('sandwich', subspace, supernet)((0,), 0, batch) for batch in range(5)]
    assert all(draw[0] == ends[1] and draw[3] == ends[0] and draw[1] in subspace and len(draw) == 4 for draw in draws)
    assert len({str(draw[1:3]) for draw in draws}) > 1


def test_under_a_limit_on_parameters(small, sampled):
    """Of nine networks; those with more than 2,000 parameters are out, whatever sampling does."""
    sizes = dict((tuple(sorted(sample.items())), size) for sample, size in sizes_of(Convs))
    small(make_evaluator(epochs=1), constraints={'parameters': (None, 2000)}, **STEP)
    found = [sizes[tuple(sorted(sample.items()))] for _, _, sample in sampled]
    allowed = [size for size in sizes.values() if size <= 2000]
    assert len(found) == 16 and max(found) <= 2000
    assert set(found[::4]) == {max(allowed)} and set(found[3::4]) == {min(allowed)}


@pytest.mark.slow
def test_in_bands_each_leaf_has_ends_of_its_own(small, sampled):
    sizes = dict((tuple(sorted(sample.items())), size) for sample, size in sizes_of(Convs))
    strategy = small(
        make_evaluator(epochs=2), sampling='sandwich', distill=1, lr_by_size=True,
        criterion=Bands('parameters', max_groups=3),
    )  # fmt: skip
    assert len(strategy.leaves) == 3
    for leaf in [strategy.tree, *strategy.leaves]:
        of_leaf = [sample for part, _, sample in sampled if repr(part) == repr(leaf.subspace)]
        inside = [size for key, size in sizes.items() if dict(key) in leaf.subspace]
        found = [sizes[tuple(sorted(sample.items()))] for sample in of_leaf]
        assert len(found) == 16
        assert set(found[::4]) == {max(inside)} and set(found[3::4]) == {min(inside)}


class Augments(Plain):
    """Writes to its batch, and draws from all generators there are."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def training_step(self, batch, batch_idx):
        x, y = batch['x'], batch.pop('y')
        x.mul_(0.5)
        x += random.random() + np.random.rand() + torch.randn_like(x) + torch.rand(1, generator=self.generator)
        loss = F.cross_entropy(self(x), y)
        self.seen.append((x.clone(), loss.item()))
        self.log('train_loss', loss, on_epoch=True, on_step=False)
        return {'loss': loss, 'x': x}


class Outputs(pl.Callback):
    returned: ClassVar[list] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.returned.append(outputs['loss'].item())

    def on_train_end(self, trainer, pl_module):
        self.returned.append(trainer.callback_metrics['train_loss'].item())


class Named(torch.utils.data.Dataset):
    def __len__(self):
        return 96

    def __getitem__(self, i):
        x, y = images()[i]
        return {'x': x, 'y': y}


class Validates(Augments):
    def validation_step(self, batch, batch_idx):
        self.log('val_loss', F.cross_entropy(self(batch['x']), batch['y']))


def test_all_paths_see_the_same_and_the_log_has_their_mean(small):
    Outputs.returned.clear()
    train, val = (DataLoader(Named(), 48, shuffle=shuffle) for shuffle in (True, False))
    small(make_evaluator(Validates(), train, val, epochs=1, callbacks=[Outputs()]), distill=0.0, **STEP)
    steps = [Validates.seen[i : i + 4] for i in (0, 4)]
    assert len(Validates.seen) == 8
    for step in steps:
        assert all(torch.equal(x, step[0][0]) for x, _ in step)
        assert len({loss for _, loss in step}) > 1
    assert not torch.equal(steps[0][0][0], steps[1][0][0])
    means = [np.mean([loss for _, loss in step]) for step in steps]
    assert Outputs.returned == pytest.approx([*means, np.mean(means)])


class Scheduled(Plain):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(small, tmp_path):
    def start(name: str):
        evaluator = make_evaluator(Scheduled(), epochs=5, callbacks=[Dies()])
        settings = {'sampling': 'sandwich', 'distill': 0.5, 'lr_by_size': True, 'criterion': 'random'}
        return small(evaluator, split_epochs=(4,), workdir=tmp_path / name, **settings)

    whole = start('whole')
    Dies.armed = True
    start('killed')
    assert not Dies.armed and not (tmp_path / 'killed' / 'node-0.ckpt').exists()
    for node, other in zip(start('killed').tree, whole.tree, strict=True):
        assert node.weights == other.weights


@pytest.mark.parametrize('precision', ['bf16-mixed'])
def test_mixed_precision_is_close_to_full(small, tmp_path, precision):
    weights = []
    for trainer in ({}, {'precision': precision}):
        loader = DataLoader(images(), 24)
        strategy = small(
            make_evaluator(train=loader, epochs=1, **trainer), distill=0.5, workdir=tmp_path / f'{trainer}', **STEP
        )
        weights.append({name: weight.clone() for name, weight in weights_of(strategy).items()})
    assert not same_weights(*weights)
    for name, weight in weights[0].items():
        assert (weights[1][name] - weight).norm() < 0.02 + 0.05 * weight.norm(), name


@pytest.mark.slow
def test_on_two_devices(small, tmp_path):
    """The mean gradient over both processes is that of a process with all images, but for batch norms."""
    weights = []
    for devices in (1, 2):
        loader = DataLoader(images(), 96 // devices)
        evaluator = make_evaluator(train=loader, epochs=1, devices=devices, use_distributed_sampler=True)
        space = functools.partial(Convs, functools.partial(nn.GroupNorm, 1))
        strategy = small(evaluator, space, distill=0.5, workdir=tmp_path / f'{devices}', **STEP)
        weights.append({name: weight.clone() for name, weight in weights_of(strategy).items()})
    for name, weight in weights[0].items():
        assert torch.allclose(weights[1][name], weight, atol=1e-5), name


def same(sizes: list[int]):
    class Same(Convs):
        def __init__(self):
            super().__init__()
            self.stem = nas.LayerChoice([nn.Conv2d(3, 8, 1) for _ in sizes], label='stem')
            self.body = nas.LayerChoice([nn.Identity(), nn.ReLU()], label='body')

    return Same


class Pair(Convs):
    def forward(self, x):
        z = super().forward(x)
        return z, z


class First(Plain):
    def loss(self, batch):
        return F.cross_entropy(self(batch[0])[0], batch[1])


class Twice(Plain):
    """Calls its model again in later steps of training."""

    def training_step(self, batch, batch_idx):
        self.seen.append(1)
        return self.loss(batch) + (self.loss(batch) if len(self.seen) % 4 == 2 else 0)


@pytest.mark.parametrize(
    'space, module, arguments, match',
    [
        (Convs, Plain, {'distill': 1}, r"distill=1 needs sampling='sandwich'.* but sampling is 'auto'\."),
        (Convs, Plain, {'distill': 1.5, **STEP}, r'distill must be a weight from 0 to 1, but got 1\.5\.'),
        (Convs, Plain, {'distill': True, **STEP}, r'distill must be a weight from 0 to 1, but got True\.'),
        (same([1, 2]), Plain, STEP, r"'sandwich' needs networks of different sizes, but all have \d+ parameters\."),
        (Pair, First, {'distill': 0.5, **STEP}, r'distill needs a model that returns logits .* but it returns a tuple'),
    ],
)
def test_what_cannot_work_is_refused_before_training(small, tmp_path, space, module, arguments, match):
    with pytest.raises(ValueError, match=match):
        small(make_evaluator(module()), space, **arguments)
    assert not (tmp_path / 'tree.json').exists()


def test_paths_that_call_the_model_otherwise_are_told(small):
    with pytest.raises(RuntimeError, match=r'calls its model, and alike for each path of a step, but it returned'):
        small(make_evaluator(Twice()), distill=0.5, **STEP)


def test_settings_travel_and_the_cost_is_told(small, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    with caplog.at_level(logging.INFO):
        strategy = small(make_evaluator(epochs=1), distill=0.5, **STEP)
    assert 'training costs 1 epochs of 4 steps of 4 paths (distill=0.5), the search' in caplog.text
    settings = strategy.settings
    assert Settings.from_dict(settings.to_dict()) == settings and settings.paths_per_step == 4
    check_travels(settings.criterion)
    told = summary(read_record(tmp_path))
    assert told['epochs'] == '1 x 4 paths' and "sampling='sandwich', distill=0.5" in told['settings']
    assert plan_epochs(8, 2) == ([2], 5)
    with pytest.raises(ValueError, match=r'distill=0.5, but this one has no distill'):
        small(make_evaluator(epochs=1), **STEP)


@pytest.mark.slow
@pytest.mark.parametrize('name', SPACES)
def test_on_all_spaces(small, sampled, name):
    """Largest and smallest have more and less parameters than any of a hundred random networks, built by NNI."""
    make, size = SPACES[name]
    generator = torch.Generator().manual_seed(0)

    def loader(n: int) -> DataLoader:
        y = torch.randint(4, (n,), generator=generator)
        return DataLoader(TensorDataset(torch.randn(n, 3, size, size, generator=generator), y), 12)

    strategy = small(
        make_evaluator(train=loader(24), val=loader(12), epochs=1), make, distill=1, search_budget=2,
        calibration_batches=1, **STEP,
    )  # fmt: skip
    assert len(sampled) == 8
    random_state = np.random.RandomState(1)
    others = [strategy.tree.subspace.sample(random_state) for _ in range(100)]
    found = []
    for sample in [sampled[0][2], sampled[3][2], *others]:
        with model_context(sample):
            found.append(sum(weight.numel() for weight in make().parameters()))
    assert found[0] >= max(found) and found[1] <= min(found) and found[0] > found[1]
