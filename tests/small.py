"""A project of seconds, as plain as can be: for tests of what users bring along."""

from pathlib import Path
from typing import ClassVar

from nni_naslid import SubSpace
from nni_naslid.criteria.clearest import clearest_label
from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.evidence import ByLabel
from nni_naslid.criteria.repeats import Repeats, finite
from nni_naslid.train.path import PathModule
from nni_naslid.traits.layers import find_layers

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from numpy.random import RandomState
from torch import nn
from torch.utils.data import TensorDataset

QUIET = {
    'accelerator': 'cpu', 'devices': 1, 'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False,
    'enable_model_summary': False,
}  # fmt: skip


def images(n: int = 96, seed: int = 0) -> TensorDataset:
    """Noise whose mean tells one of four classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n,), generator=generator)
    return TensorDataset(torch.randn(n, 3, 8, 8, generator=generator) + y.view(-1, 1, 1, 1) / 2, y)


def brightened(part: TensorDataset) -> TensorDataset:
    """Images of classes whose brightness tells them, too: an epoch of five steps is enough to be above chance."""
    x, y = part.tensors
    return TensorDataset(x + y.view(-1, 1, 1, 1) / 2, y)


def tokens(n: int = 96, length: int = 7, seed: int = 0) -> TensorDataset:
    """Texts whose first word tells one of four classes."""
    x = torch.randint(50, (n, length), generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x[:, 0] % 4)


class Plain(LightningModule):
    """Logs the loss; ``seen`` has what a subclass notes."""

    seen: ClassVar[list] = []

    def __init__(self, lr: float = 0.05):
        super().__init__()
        self.lr = lr

    def forward(self, x):
        return self.model(x)

    def loss(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log('val_loss', self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def n_edges(sample: dict) -> int:
    """Of a cell of NAS-Bench-101, with those that are cut off."""
    return sum(len(sample[f'cell/input{i}']) for i in range(1, sample['cell/num_nodes']))


class Dies(pl.Callback):
    """Interrupts a run in the third epoch, once, where it is armed."""

    armed: ClassVar[bool] = False

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 2 and Dies.armed:
            Dies.armed = False
            raise KeyboardInterrupt


class Convs(ModelSpace):
    """Two choices of three; nine networks."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()

        def conv(size: int, channels: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(channels, 8, size, padding=size // 2), norm(8), nn.ReLU())

        self.stem = LayerChoice([conv(1, 3), conv(3, 3), conv(5, 3)], label='stem')
        self.body = LayerChoice([conv(1, 8), conv(3, 8), nn.Identity()], label='body')
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.pool(self.body(self.stem(x))).flatten(1))


def make_evaluator(module=None, train=None, val=None, data=None, epochs: int = 3, fit_kwargs=None, **trainer):
    """24 images in a batch, four batches in an epoch."""
    module = module or Plain()
    type(module).seen.clear()
    loaders = {'datamodule': data}
    if data is None:
        train = DataLoader(images(), 24, shuffle=True) if train is None else train
        loaders = {
            'train_dataloaders': train,
            'val_dataloaders': DataLoader(images(48, seed=1), 24) if val is None else val,
        }
    return Lightning(module, Trainer(max_epochs=epochs, **{**QUIET, **trainer}), fit_kwargs=fit_kwargs, **loaders)


def make_context(evaluator: Lightning, supernet: ModelSpace, notes: Path) -> Context:
    """All of a supernet, as the root of a run."""
    module = PathModule(evaluator.module)
    module.set_model(supernet)
    return Context(
        '0', SubSpace.of(supernet), supernet, module, evaluator, 'val_loss', 'min', (0,), RandomState(0), {}, notes,
        {'run': 'r'},
    )  # fmt: skip


def profiled(evaluator, supernet, notes, limit: int = 8, n_neighbors: int = 5) -> ByLabel:
    """What LID profiles say of a whole supernet, also if it is at chance level."""
    context = make_context(evaluator, supernet, notes)
    space = context.subspace
    places = find_layers(evaluator, context.module, space, None, n_neighbors)
    repeats = Repeats(context, places, limit, n_neighbors)
    return clearest_label(
        lambda n: finite(repeats.profiles(n)), space.splittable, repeats=limit, paths_per_repeat=1, max_groups=2,
        min_contrast=0.01, random_state=RandomState(0),
    )  # fmt: skip


def same_weights(one: dict, other: dict) -> bool:
    """Whether two state dicts are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def seed_all() -> None:
    pl.seed_everything(0, verbose=False)


def n_convs(sample: dict) -> int:
    """A cost of the user's, of NAS-Bench-201."""
    return [*sample.values()].count('conv_3x3')
