"""What do the weights of a supernet say, and when? The questions of two papers, on five spaces of NNI's hub and digits.

    python examples/study.py               # measures; writes study.csv, study/*.svg and the tables of study.md
    python examples/study.py --report      # the last two only, from the rows that are there

The papers: `Deeper Insights into Weight Sharing in Neural Architecture Search <https://arxiv.org/abs/2001.01431>`__ and
`How Does Supernet Help in Neural Architecture Search? <https://arxiv.org/abs/2010.08219>`__. One thread. Every finished
piece is a file in ``--workdir``, so a study that was killed goes on when it is started again. What is asked of the rows
is in study_report.py.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1')  # read when libraries load

import json
import logging
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nni_naslid import LID, NASLID, RandomSplit, Split, SubSpace
from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.evidence import AtRandom
from nni_naslid.run.files import replacing
from nni_naslid.run.settings import PLAIN
from nni_naslid.search.batchnorm import recalibrate
from nni_naslid.train.data import Inputs
from nni_naslid.train.path import set_path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import DARTS, MobileNetV3Space, NasBench201
from nni.nas.hub.pytorch.proxylessnas import inverted_residual_choice_builder
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.space import model_context
from recipe import Data, integer, load_data, make_evaluator
from torch import Tensor, nn
from torch.utils.data import TensorDataset

BATCH, LR = 60, 0.1  # the highest learning rate
VALID, TEST = 586, 4032  # images; all there are would take longer
TUNED = (0, 1, 5, 20)  # batches of fine-tuning
TUNING_LR = 0.01
LAST = 8  # mini-batches in a row, after each of which a supernet is looked at
SPLIT = (0.25, 0.375, 0.5)  # of the epochs: two splits and the end, so that all nodes together cost as one supernet
QUIET = {
    'accelerator': 'cpu', 'devices': 1, 'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False,
    'enable_model_summary': False, 'num_sanity_val_steps': 0,
}  # fmt: skip


def mobilenet() -> ModelSpace:
    """Four stages shorter than the original: that many layers are not trained in the time that there is."""
    return MobileNetV3Space(
        num_labels=10, base_widths=(8, 8, 16, 16, 32, 64), width_multipliers=(1.0, 2.0), expand_ratios=(1.0, 2.0, 4.0),
        squeeze_excite=('none', 'optional', 'optional'), depth_range=(1, 2), stride=(1, 1, 2, 2, 1, 1),
        activation=('hswish', 'relu', 'relu', 'hswish', 'hswish', 'hswish'), dropout_rate=0.0,
    )  # fmt: skip


class Proxyless(ModelSpace):
    """The choices of :class:`nni.nas.hub.pytorch.ProxylessNAS`, in six layers instead of twenty-one."""

    def __init__(self, widths: tuple[int, ...] = (8, 8, 16, 24)):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.stages = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            choice = inverted_residual_choice_builder([3, 6], [3, 5, 7], i > 0, inputs, outputs, f's{i}')
            self.stages.append(nn.Sequential(choice(0), choice(1)))
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


class Chain(ModelSpace):
    """A space of our own: six layers in a row, of six kinds."""

    def __init__(self, width: int = 12):
        super().__init__()

        def conv(size: int, groups: int = 1) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(width, width, size, padding=size // 2, groups=groups, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )

        def layer(i: int) -> LayerChoice:
            kinds = {'conv1': conv(1), 'conv3': conv(3), 'conv5': conv(5), 'depthconv3': conv(3, width)}
            return LayerChoice({**kinds, 'pool': nn.AvgPool2d(3, 1, 1), 'skip': nn.Identity()}, label=f'layer{i}')

        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.layers = nn.ModuleList(map(layer, range(6)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in (1, 3):
                x = F.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


SPACES: dict[str, tuple[Callable[[], ModelSpace], int]] = {  # and for how many epochs a network is trained alone
    'NasBench201': (lambda: NasBench201(8, 1, 10), 3),
    'Chain': (Chain, 3),
    'MobileNetV3': (mobilenet, 2),
    'DARTS': (lambda: DARTS(width=4, num_cells=3, dataset='cifar'), 2),
    'ProxylessNAS': (Proxyless, 2),
}


def kinds(choices: list[Any]) -> list[list[int]] | None:
    """Candidates that are alike, by their places: convolutions and the rest, kernels of 3 and larger ones, or small and
    large numbers; ``None`` of a label that does not tell."""
    if all(isinstance(choice, (int, float)) for choice in choices):
        first = choices[: len(choices) // 2]
    elif all(isinstance(choice, str) for choice in choices):
        first = [choice for choice in choices if 'conv' in choice or choice.startswith('k3')]
    else:
        return None
    groups = [[i for i, choice in enumerate(choices) if (choice in first) == is_first] for is_first in (True, False)]
    return groups if all(groups) else None


@dataclass(frozen=True)
class ByKind(RandomSplit):
    """A label drawn at random, as :class:`RandomSplit` does, in groups of :func:`kinds`."""

    def choose(self, context: Context) -> Split:
        candidates = context.subspace.splittable
        told = [label for label, choices in candidates.items() if kinds(choices)]
        label = told[context.random_state.randint(len(told))]
        return Split(context.subspace.split(label, kinds(candidates[label])), AtRandom())


GROUPINGS = {'random': RandomSplit(), 'LID': LID(min_contrast=0), 'kind': ByKind()}


class Snapshots(pl.Callback):
    """Keeps the weights of a supernet after some steps."""

    def __init__(self, folder: Path, steps: set[int]):
        self.folder = folder
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step in self.steps:
            with replacing(snapshot(self.folder, trainer.global_step)) as file:
                torch.save(module.model.state_dict(), file)


def snapshot(folder: Path, step: int) -> Path:
    return folder / f'step{step}.pt'


class Study:
    """One space: its supernets, its truth, and what one says of the other."""

    def __init__(self, space: str, args: Namespace):
        self.space, self.args = space, args
        self.make, truth_epochs = SPACES[space]
        self.truth_epochs = args.truth_epochs or truth_epochs
        self.folder = args.workdir.resolve() / space
        self.folder.mkdir(parents=True, exist_ok=True)
        train, valid, test = load_data('digits', 8)
        self.data = Data(train, TensorDataset(*valid[:VALID]), TensorDataset(*test[:TEST]))
        pl.seed_everything(0, verbose=False)
        self.supernet = NASLID().mutate_model(self.make())  # into which weights are loaded to be looked at
        self.samples = self._draw(args.architectures)
        x, y = self.data.train.tensors
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        batches = [(x[part], y[part]) for part in order.split(BATCH)]
        self.batches = [batches[i % len(batches)] for i in range(max(TUNED))]
        self.calibration = [Inputs((x[order[:500]],), {})]

    def _draw(self, n: int) -> list[Sample]:
        subspace, random_state, drawn = SubSpace.of(self.supernet), np.random.RandomState(0), {}
        while len(drawn) < n:
            sample = subspace.sample(random_state)
            drawn[json.dumps(sample, sort_keys=True)] = sample
        return list(drawn.values())

    def piece(self, name: str, make: Callable[[], list[dict]]) -> list[dict]:
        """What is in the file of a piece; it is made first if there is none."""
        path = self.folder / f'{name}.json'
        if not path.exists():
            rows = make()
            with replacing(path) as file:
                file.write_text(json.dumps(rows))
            logging.getLogger('study').warning('%s: %s', self.space, name)
        return json.loads(path.read_text())

    # Truth.

    def truth(self, i: int, seed: int) -> list[dict]:
        """An architecture trained alone."""
        pl.seed_everything(seed, verbose=False)
        with model_context(self.samples[i]):
            network = self.make()
        evaluator = self._evaluator(self.truth_epochs, limit_val_batches=0)
        evaluator.module.on_fit_end = lambda: None  # nothing is reported to NNI
        evaluator.evaluate(network)
        loss, accuracy = validate(network, self.data.test)
        return [{'loss': loss, 'accuracy': accuracy, 'parameters': sum(each.numel() for each in network.parameters())}]

    def _evaluator(self, epochs: int, **trainer: Any) -> Lightning:
        return make_evaluator(
            self.data, epochs=epochs, lr=LR, batch_size=BATCH,
            limit_train_batches=self.args.batches, **QUIET, **trainer,
        )  # fmt: skip

    # Supernets.

    def train(self, name: str, seed: int, epochs: int, steps: set[int] = frozenset(), **settings: Any) -> NASLID:
        """A finished run; one that was killed goes on."""
        pl.seed_everything(seed, verbose=False)  # the initial weights
        folder = self.folder / f'{name}-{seed}'
        evaluator = self._evaluator(epochs, callbacks=[Snapshots(folder, steps)] if steps else [])
        strategy = NASLID(
            seed=seed, search_budget=1, calibration_batches=500 // BATCH, workdir=folder, **PLAIN, **settings
        )
        experiment = NasExperiment(self.make(), evaluator, strategy)
        experiment.run()
        experiment.stop()
        return strategy

    def supernet_rows(self, seed: int) -> list[dict]:
        """One supernet at all the times at which it is looked at."""
        per_epoch, epochs = min(self.args.batches, len(self.data.train) // BATCH), self.args.epochs
        ends = {per_epoch * epochs * part // 4 for part in (1, 2, 3, 4)}
        windows = {end - i for end in (per_epoch * (epochs // 2), per_epoch * epochs) for i in range(LAST)}
        steps = ends | (windows if seed == 0 else set())
        self.train('supernet', seed, epochs, steps)
        rows = []
        for step in sorted(steps):
            state = torch.load(snapshot(self.folder / f'supernet-{seed}', step))
            scores = [
                self.score(state, sample, TUNED if step == per_epoch * epochs else (0,)) for sample in self.samples
            ]
            for tuned, calibrated in scores[0]:
                values = zip(*(score[tuned, calibrated] for score in scores), strict=True)
                at = {'seed': seed, 'step': step, 'tuned': tuned, 'calibrated': calibrated}
                rows += self.rows('supernet', values, **at)
        return rows

    def score(self, state: dict[str, Tensor], sample: Sample, tuned: tuple[int, ...]) -> dict[tuple[int, int], Any]:
        """Loss and accuracy of a path, after fine-tuning on so many batches, with batch norms as they are or anew."""
        self.supernet.load_state_dict(state)
        set_path(self.supernet, sample)
        optimizer = torch.optim.SGD(self.supernet.parameters(), TUNING_LR)
        found = {}
        for n in range(max(tuned) + 1):
            if n:
                images, labels = self.batches[n - 1]
                self.supernet.train()
                optimizer.zero_grad()
                F.cross_entropy(self.supernet(images), labels).backward()
                optimizer.step()
            if n in tuned:
                found[n, 0] = validate(self.supernet, self.data.valid)
                if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.supernet.modules()):
                    stored = {name: each.clone() for name, each in self.supernet.named_buffers()}
                    recalibrate(self.supernet, self.calibration)
                    found[n, 1] = validate(self.supernet, self.data.valid)
                    self.supernet.load_state_dict(stored, strict=False)
        return found

    def grouping_rows(self, name: str, seed: int) -> list[dict]:
        """Sub-supernets at the cost of one supernet."""
        *split_epochs, epochs = (int(part * self.args.epochs) for part in SPLIT)
        strategy = self.train(name, seed, epochs, criterion=GROUPINGS[name], split_epochs=split_epochs)
        scores = strategy.evaluate(self.samples)
        values = zip(*((score['val_loss'], score['val_acc']) for score in scores), strict=True)
        return self.rows(name, values, seed=seed, leaves=len(strategy.leaves), cost=strategy.tree.cost, calibrated=1)

    # Rows.

    def rows(self, what: str, values: Any, **at: Any) -> list[dict]:
        """Of loss and accuracy of all architectures."""
        common = {'space': self.space, 'what': what, **at}
        return [
            {**common, 'metric': metric, 'values': ' '.join(f'{value:.4g}' for value in each)}
            for metric, each in zip(('loss', 'accuracy'), values, strict=True)
        ]

    def all_rows(self) -> list[dict]:
        rows, alone = [], {}
        for seed in range(self.args.seeds):
            rows += self.piece(f'supernet-{seed}-rows', lambda seed=seed: self.supernet_rows(seed))
        for i in range(len(self.samples)):
            for seed in range(2):
                (alone[i, seed],) = self.piece(f'truth-{i}-{seed}', lambda i=i, seed=seed: self.truth(i, seed))
        numbers = range(len(self.samples))
        for seed in range(2):
            values = ([alone[i, seed][metric] for i in numbers] for metric in ('loss', 'accuracy'))
            rows += self.rows('truth', values, seed=seed)
        counts = ' '.join(str(alone[i, 0]['parameters']) for i in numbers)
        rows.append({'space': self.space, 'what': 'parameters', 'metric': 'parameters', 'values': counts})
        for name in GROUPINGS:
            for seed in range(self.args.seeds):
                rows += self.piece(f'{name}-{seed}-rows', lambda name=name, seed=seed: self.grouping_rows(name, seed))
        return rows


@torch.no_grad()
def validate(network: nn.Module, images: TensorDataset) -> tuple[float, float]:
    """Loss and accuracy."""
    network.eval()
    logits = torch.cat([network(x) for x in images.tensors[0].split(1200)])
    y = images.tensors[1]
    return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).double().mean().item()


def main() -> None:
    args = parse()
    if not args.report:
        check_setting(args)
        rows = [row for space in args.spaces for row in Study(space, args).all_rows()]
        pd.DataFrame(rows).convert_dtypes().to_csv(args.output, index=False)
    from study_report import report

    report(args.output)


def check_setting(args: Namespace) -> None:
    """End if the finished pieces are of another setting."""
    setting = {name: getattr(args, name) for name in ('architectures', 'epochs', 'batches', 'truth_epochs')}
    path = args.workdir / 'setting.json'
    if path.exists() and (other := json.loads(path.read_text())) != setting:
        raise SystemExit(f'{args.workdir} holds pieces of another setting: {other}')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(setting))


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument('--spaces', nargs='+', choices=SPACES, default=list(SPACES), metavar='SPACE')
    parser.add_argument('--architectures', type=integer(5), default=20, help='that are ranked, and trained alone')
    parser.add_argument('--seeds', type=integer(2), default=3, help='supernets of each kind')
    parser.add_argument('--epochs', type=integer(8), default=8, help='of a supernet, a multiple of 8')
    parser.add_argument('--batches', type=integer(2), default=75, help='of an epoch, in which no image comes twice')
    parser.add_argument(
        '--truth-epochs', type=integer(1), help='of all networks alone, instead of what suits each space'
    )
    parser.add_argument('--report', action='store_true', help='measure nothing: tables and figures of the rows')
    parser.add_argument('--workdir', type=Path, default=Path('runs/study'), help='for finished pieces')
    parser.add_argument('--output', type=Path, default=Path(__file__).with_suffix('.csv'), help='the rows')
    return parser.parse_args()


if __name__ == '__main__':
    torch.set_num_threads(1)
    for name in ('pytorch_lightning', 'nni', 'nni_naslid'):
        logging.getLogger(name).setLevel(logging.ERROR)
    main()
