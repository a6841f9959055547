"""Train a once-for-all network: one set of weights for MobileNetV3 networks of any depth, kernel and width.

    python examples/ofa.py                                                   # digits, no download
    python examples/ofa.py --data cifar10.npz --resolution 32 --stem-stride 2 --augment --output ofa.csv

What is compared, at equal cost (paths trained, each on a batch): one path in a step (SPOS); the sandwich rule, which
trains the largest, the smallest and two random networks in each; with distillation from the largest; with a learning
rate by size, and with balanced drawing and a momentum of each of four bands of sizes beside it; in bands of the space;
and where LID splits it by the depth of a stage. Equal cost in paths is not equal cost in time: the largest network
takes five times as long as a random one. Random networks are then validated with the weights that they inherit: their
accuracies tell how good the weights are for use without further training.
Some of them, from small to large, are also trained alone, for --alone epochs, with each seed: tau is that of the
inherited losses against the mean accuracies that they reach alone.

--data takes what the other examples take: 'digits', a torchvision root of CIFAR-10, or an .npz with images.

One thread. Rows go to --output (appended); what has a row of the same settings there is not run again,
and a run that was killed goes on.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1')  # read when libraries load

import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any

from nni_naslid import LID, NASLID, Bands, Joint, plan_epochs
from nni_naslid.run.settings import PLAIN, paths_per_step

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from bench_splits import hush
from nni.mutable import Sample
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import MobileNetV3Space
from nni.nas.space import model_context
from nni.nas.strategy import Random
from recipe import Data, Recipe, data_of, existing, integer, make_evaluator, make_optimizer, positive
from rows import append, commit, processor
from scipy.stats import kendalltau

SANDWICH = {'sampling': 'sandwich'}
DISTILLED = {**SANDWICH, 'distill': 1.0}
BY_DEPTH = Joint(LID(repeats=16, min_contrast=0), [[f's{stage}_depth' for stage in (1, 2, 3)]], 2)
BANDS = {'criterion': Bands('live_parameters', max_groups=2)}
# A step of four paths is one step for four: so there are a quarter of the steps, and a rate that is four times as high
# is tried, too, which is what adding the gradients up would be.
METHODS = {  # settings of NASLID, and the learning rate in those of --lr
    'one path': {},
    'sandwich': SANDWICH,
    'sandwich, rate x 4': {**SANDWICH, 'rate': 4},
    'sandwich, distilled, rate x 4': {**DISTILLED, 'rate': 4},
    'sandwich, half distilled, rate x 4': {**SANDWICH, 'distill': 0.5, 'rate': 4},
    'one path, lr by size': {'lr_by_size': True},
    'one path, balanced': {'sampling': 'balanced'},
    'one path, lr by size, balanced, a momentum of each of four bands': {
        'lr_by_size': True,
        'sampling': 'balanced',
        'momentum_bands': 4,
    },
    'sandwich, distilled, lr by size, rate x 4': {**DISTILLED, 'lr_by_size': True, 'rate': 4},
    'LID split of a depth': {'criterion': BY_DEPTH},
    'bands, lr by size': {**BANDS, 'lr_by_size': True},
    'bands, sandwich, distilled, rate x 4': {**BANDS, **DISTILLED, 'rate': 4},
    'LID split of a depth, lr by size': {'criterion': BY_DEPTH, 'lr_by_size': True},
}
ALONE = 'trained alone'
SETTINGS = (
    'data', 'resolution', 'stem_stride', 'augment', 'batch_size', 'lr', 'epochs', 'alone', 'networks',
    'calibration_batches',
)  # fmt: skip
STAGES = 3  # of elastic depth


def make_space(stem_stride: int = 1) -> MobileNetV3Space:
    """Three stages of one to three blocks; kernels of 3, 5, 7, expansions of 1, 2, 4, and optional SE: 9e11 samples."""
    return MobileNetV3Space(
        10, base_widths=(8, 8, 16, 24, 32, 64, 64), width_multipliers=1.0, expand_ratios=(1.0, 2.0, 4.0),
        stride=(stem_stride, 1, 2, 2, 1, 1, 1), squeeze_excite=('none', 'none', 'optional', 'optional'),
        depth_range=(1, 3),
        activation=('hswish', 'relu', 'relu', 'hswish', 'hswish', 'hswish', 'hswish'), dropout_rate=0.0,
    )  # fmt: skip


def held_out(n: int, n_alone: int) -> tuple[list[Sample], list[int]]:
    """Random architectures from small to large, and which are trained alone: at equal distances."""
    space = make_space()
    mutables = space.simplify()
    random_state = np.random.RandomState(0)
    samples = []
    for i in range(n):  # each depth as often as the others, in each stage
        sample = {label: mutable.random(random_state=random_state) for label, mutable in mutables.items()}
        samples.append(sample | {f's{stage}_depth': 1 + i // 3 ** (stage - 1) % 3 for stage in range(1, STAGES + 1)})
    samples.sort(key=n_parameters)
    return samples, np.linspace(0, n - 1, n_alone).round().astype(int).tolist()


def n_parameters(sample: Sample) -> int:
    return sum(weight.numel() for weight in network_of(sample).parameters())


def network_of(sample: Sample, stem_stride: int = 1) -> MobileNetV3Space:
    with model_context(sample):
        return make_space(stem_stride)


def trained(args: Namespace, data: Data, method: str, seed: int) -> tuple[NASLID, float]:
    """A finished run, or one of an earlier start, and the seconds that training took since then."""
    settings = dict(METHODS[method])
    rate = args.lr * settings.pop('rate', 1)
    epochs = args.epochs // paths_per_step(settings.get('sampling', 'uniform'))
    split, end = [], epochs
    if 'criterion' in settings:
        split, end = plan_epochs(epochs, [settings['criterion'].max_groups])
    pl.seed_everything(seed, verbose=False)  # the initial weights
    evaluator = make_evaluator(
        data, epochs=end, lr=rate, batch_size=args.batch_size, augment=args.augment, accelerator='cpu', devices=1,
        logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        check_val_every_n_epoch=end,
    )  # fmt: skip
    strategy = NASLID(
        split, **{'criterion': 'random', **PLAIN, **settings}, search=Random(seed=seed), search_budget=1,
        calibration_batches=args.calibration_batches, seed=seed,
        workdir=args.runs / '-'.join(map(str, settings_of(args).values())) / f'{method}-seed{seed}'.replace(' ', '-'),
    )  # fmt: skip
    begun = time.perf_counter()
    experiment = NasExperiment(make_space(args.stem_stride), evaluator, strategy)
    if not experiment.run():
        raise SystemExit('Interrupted.')
    experiment.stop()
    return strategy, time.perf_counter() - begun


def train_alone(args: Namespace, data: Data, sample: Sample, seed: int) -> dict[str, float]:
    """Loss and accuracy, in percent, of a network that is trained alone by the same recipe."""
    pl.seed_everything(seed, verbose=False)
    network = network_of(sample, args.stem_stride)
    recipe = Recipe(args.lr, args.augment)
    recipe.set_model(network)
    recipe.train()
    images, labels = data.train.tensors
    steps = len(images) // args.batch_size
    optimizer, scheduler = make_optimizer(recipe, args.lr, args.alone * steps)
    for _ in range(args.alone):
        for batch in torch.randperm(len(images))[: steps * args.batch_size].view(steps, -1):
            optimizer.zero_grad()
            recipe.training_step((images[batch], labels[batch]), 0).backward()
            optimizer.step()
            scheduler.step()
    network.eval()
    x, y = data.valid.tensors
    with torch.no_grad():
        logits = torch.cat([network(part) for part in x.split(500)])
    loss = torch.nn.functional.cross_entropy(logits, y).item()
    return {'loss': loss, 'acc': 100 * (logits.argmax(1) == y).float().mean().item()}


def settings_of(args: Namespace) -> dict[str, Any]:
    """What rows that are held against each other have in common."""
    return {name: getattr(args, name) for name in SETTINGS} | {'data': Path(args.data).stem}


class Rows:
    """A table on disk, of a network in each row, to which rows are appended; those of the same settings are read."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.settings = path, settings

    def read(self) -> pd.DataFrame:
        if not self.path.exists():
            return pd.DataFrame(columns=['method', 'seed', 'network'])
        rows = pd.read_csv(self.path)
        if missing := self.settings.keys() - set(rows.columns):
            raise SystemExit(
                f'{self.path} does not say {", ".join(sorted(missing))} of its rows: name another --output.'
            )
        return rows[(rows[list(self.settings)] == pd.Series(self.settings)).all(axis=1)]

    def has(self, method: str, seed: int, network: int) -> bool:
        rows = self.read()
        return bool(((rows.method == method) & (rows.seed == seed) & (rows.network == network)).any())

    def add(self, rows: list[dict[str, Any]], seconds: float) -> None:
        """Rows of one training, all at once."""
        of_run = {
            'seconds': round(seconds), **self.settings, 'torch': torch.__version__, 'processor': processor(),
            'commit': commit(), 'date': f'{datetime.now(timezone.utc):%Y-%m-%d}',
        }  # fmt: skip
        append(pd.DataFrame([row | of_run for row in rows]).round(4), self.path)


def inherited(args: Namespace, data: Data, method: str, seed: int, samples: list[Sample]) -> tuple[list[dict], float]:
    """A row for each network, with the weights of a method, and the seconds that training took."""
    strategy, seconds = trained(args, data, method, seed)
    steps = strategy.tree.cost * (len(data.train) // args.batch_size)
    of_run = {'method': method, 'seed': seed, 'paths': steps * strategy.settings.paths_per_step}
    sizes, metrics = map(n_parameters, samples), strategy.evaluate(samples)
    found = [
        {'network': i, 'parameters': size, 'loss': each['val_loss'], 'acc': 100 * each['val_acc']}
        for i, (size, each) in enumerate(zip(sizes, metrics, strict=True))
    ]
    return [of_run | row for row in found], seconds


def figures(rows: pd.DataFrame) -> pd.DataFrame:
    """What each method gives, by seed; tau is against the mean accuracy of networks that were trained alone.

    The tau of one seed of these is against the mean of their other seeds: about what could be reached.
    """
    alone = rows[rows.method == ALONE]
    found = []
    for (method, seed), part in rows.groupby(['method', 'seed'], sort=False):
        part = part.sort_values('network')
        small, middle, large = np.array_split(part.acc.to_numpy(), 3)
        row = {
            'method': method, 'paths': part.paths.mean(), 'accuracy': part.acc.mean(), 'small': small.mean(),
            'middle': middle.mean(), 'large': large.mean(), 'loss': part.loss.mean(),
        }  # fmt: skip
        others = alone[alone.seed != seed] if method == ALONE else alone
        row['tau'] = _tau(-part.set_index('network').loss, others)
        found.append(row)
    sizes = alone.drop_duplicates('network').set_index('network').parameters
    return pd.DataFrame([*found, {'method': 'number of parameters', 'tau': _tau(sizes, alone)}])


def _tau(scores: pd.Series, alone: pd.DataFrame) -> float:
    truth = alone.groupby('network').acc.mean()
    both = truth.index.intersection(scores.index)
    return kendalltau(scores[both], truth[both]).statistic if len(both) > 2 else float('nan')


def table(found: pd.DataFrame) -> str:
    """For people: the mean over seeds, and the standard deviation."""
    digits = {'accuracy': 1, 'small': 1, 'middle': 1, 'large': 1, 'loss': 3, 'tau': 2}
    lines = ['| | seeds | paths | ' + ' | '.join(digits) + ' |', '|---' * (len(digits) + 3) + '|']
    for method, part in found.groupby('method', sort=False):
        cells = [method, f'{len(part)}', '' if part.paths.isna().all() else f'{part.paths.mean():,.0f}']
        for name, n in digits.items():
            values = part.get(name, pd.Series(dtype=float)).dropna()
            spread = f' ± {values.std():.{n}f}' if len(values) > 1 else ''
            cells.append(f'{values.mean():.{n}f}{spread}' if len(values) else '')
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def parse() -> tuple[Namespace, Data]:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument('--data', default='digits', type=existing, help='images: see above')
    parser.add_argument('--resolution', default=8, type=integer(8), help='image side in pixels')
    parser.add_argument('--stem-stride', default=1, type=integer(1), help='2 makes large images cheaper')
    parser.add_argument('--augment', action='store_true', help='flip and shift images, as is right for photographs')
    parser.add_argument('--batch-size', default=100, type=integer(1), help='images in a batch')
    parser.add_argument('--lr', default=0.1, type=positive, help='highest learning rate')
    parser.add_argument('--epochs', default=32, type=integer(32), help='of single paths, of each method')
    parser.add_argument('--alone', default=8, type=integer(1), help='epochs of each network that is trained alone')
    parser.add_argument('--networks', default=27, type=integer(6), help='how many random networks are validated')
    parser.add_argument('--trained-alone', default=12, type=integer(0), help='how many of them are trained alone')
    parser.add_argument('--calibration-batches', default=10, type=integer(0), help='for batch norms of a network')
    parser.add_argument('--methods', default=list(METHODS), nargs='+', choices=METHODS, metavar='METHOD')
    parser.add_argument('--seeds', default=[0, 1, 2], type=int, nargs='+')
    parser.add_argument('--runs', default=Path('runs/ofa'), type=Path, help='folder of the work folders')
    parser.add_argument('--output', default=Path(__file__).with_suffix('.csv'), type=Path, help='where rows go')
    args = parser.parse_args()
    return args, data_of(parser, args)


def main() -> None:
    args, data = parse()
    hush()
    rows = Rows(args.output, settings_of(args))
    samples, alone = held_out(args.networks, args.trained_alone)
    for seed in args.seeds:
        for method in args.methods:
            if not rows.has(method, seed, args.networks - 1):
                rows.add(*inherited(args, data, method, seed, samples))
                print(table(figures(rows.read())), flush=True)
    for seed, i in product(args.seeds, alone):
        if not rows.has(ALONE, seed, i):
            begun = time.perf_counter()
            found = train_alone(args, data, samples[i], seed)
            paths = args.alone * (len(data.train) // args.batch_size)
            row = {'method': ALONE, 'seed': seed, 'paths': paths, 'network': i, 'parameters': n_parameters(samples[i])}
            rows.add([row | found], time.perf_counter() - begun)
    print(table(figures(rows.read())))


if __name__ == '__main__':
    main()
