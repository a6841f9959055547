"""A project of your own: data, model space, training, NASLID, and the best network trained from scratch.

    OMP_NUM_THREADS=1 python examples/own_project.py

The data are noisy waves of 64 points; a network has to tell four shapes apart. It takes half a minute to a minute.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser

from nni_naslid import NASLID, plan_epochs

import nni
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, Repeat
from torch import Tensor, nn
from torch.utils.data import TensorDataset

parser = ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('--waves', type=int, default=2000, help='training data (default %(default)s)')
parser.add_argument('--epochs', type=int, default=32, help='of all parts together, at least 5 (default 32)')
parser.add_argument('--search-budget', type=int, default=50, help='networks that the search scores (default 50)')
parser.add_argument('--workdir', default='runs/own_project', help='started again, it goes on there')
args = parser.parse_args()
if args.epochs < 5:
    parser.error(f'--epochs must be at least 5, but is {args.epochs}')


# 1. Data: any Dataset and DataLoader.
def waves(n: int, seed: int) -> TensorDataset:
    """Sines, squares, triangles and sawteeth of random frequency and phase, with noise."""
    generator = torch.Generator().manual_seed(seed)
    frequency, phase = (torch.rand(n, 1, generator=generator) for _ in range(2))
    turns = (2 + 4 * frequency) * torch.linspace(0, 1, 64) + phase  # [n, 64]
    sine, saw = (2 * math.pi * turns).sin(), 2 * turns.remainder(1) - 1
    shapes = torch.stack([sine, sine.sign(), 2 * saw.abs() - 1, saw])  # [4, n, 64]
    y = torch.randint(4, (n,), generator=generator)
    x = shapes[y, torch.arange(n)] + 0.5 * torch.randn(n, 64, generator=generator)
    return TensorDataset(x[:, None], y)


# 2. The space: what can be chosen has a label.
def conv(channels: int, width: int, size: int, dilation: int = 1) -> nn.Module:
    padding = dilation * (size // 2)
    layer = nn.Conv1d(channels, width, size, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(layer, nn.BatchNorm1d(width), nn.ReLU())


class WaveNet(ModelSpace):
    """A stem and one to three blocks: 2 x 3 x 4^3 architectures, which are 2 x (4 + 4^2 + 4^3) networks."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem = LayerChoice({'conv3': conv(1, width, 3), 'conv9': conv(1, width, 9)}, label='stem')
        self.blocks = Repeat(lambda i: self.block(width, i), (1, 3), label='depth')
        self.head = nn.Linear(width, 4)

    @staticmethod
    def block(width: int, i: int) -> nn.Module:
        candidates = {
            'conv3': conv(width, width, 3), 'conv9': conv(width, width, 9), 'dilated': conv(width, width, 3, 4),
            'pool': nn.AvgPool1d(3, 1, 1),
        }  # fmt: skip
        return LayerChoice(candidates, label=f'block{i}')

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean(-1))


# 3. Training: a LightningModule of NNI, which has the network as self.model. It logs what networks are ranked by.
@nni.trace
class Classify(LightningModule):
    def __init__(self, lr: float = 0.005):
        super().__init__()
        self.lr = lr

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self.model(x)
        self.log('val_loss', F.cross_entropy(logits, y))
        self.log('val_acc', (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return {'optimizer': optimizer, 'lr_scheduler': scheduler}


def make_evaluator(epochs: int) -> Lightning:
    off = ('logger', 'enable_checkpointing', 'enable_progress_bar', 'enable_model_summary')
    return Lightning(
        Classify(),
        Trainer(max_epochs=epochs, accelerator='cpu', devices=1, **dict.fromkeys(off, False)),
        train_dataloaders=DataLoader(waves(args.waves, seed=0), 100, shuffle=True, drop_last=True),
        val_dataloaders=DataLoader(waves(1000, seed=1), 500),
    )


# 4. The search.
pl.seed_everything(0)  # the initial weights
split_epochs, max_epochs = plan_epochs(args.epochs)  # a root, and four parts of whole networks
strategy = NASLID(split_epochs, search_budget=args.search_budget, workdir=args.workdir)
experiment = NasExperiment(WaveNet(), make_evaluator(max_epochs), strategy)
experiment.run()

# 5. The best network: with the weights of the supernet, and as a new network that is trained from scratch.
(best,) = experiment.export_top_models(1, formatter='dict')
(inherited,) = experiment.export_top_models(1, formatter='instance')
(metrics,) = strategy.evaluate([best])
network = WaveNet.frozen_factory(best)()
alone = make_evaluator(max_epochs)
alone.evaluate(network)
print(f'\nThe best of {len(list(strategy.list_models(limit=None)))} networks: {best}')
print(f'{sum(p.numel() for p in inherited.parameters()):,} parameters')
print(f'With the weights of the supernet: val_acc {metrics["val_acc"]:.3f}')
print(f'Trained from scratch for {max_epochs} epochs: val_acc {alone.trainer.callback_metrics["val_acc"]:.3f}')
torch.save(network.state_dict(), f'{args.workdir}/best.pt')
