"""Measure what pays at equal cost: splits of a supernet, and learning rates that know the size of a path.

    python examples/bench_splits.py                                                       # digits, no download
    python examples/bench_splits.py --data cifar10.npz --resolution 16 --batch-size 100 --truth nasbench201.npz \\
        --truth-column c10_test_200 --output splits.csv

Each method trains the same number of steps: one supernet, or a root for a quarter of the epochs and four leaves that
share the others. (A criterion that objects to the split, or makes another number of parts, trains less: see the columns
of steps and leaves. Forward passes that choosing a split took are in a column of their own; a gradient counts thrice.)
Then the same architectures, drawn at random from the table, are ranked with inherited weights: by loss, by accuracy,
and by loss with a prior. One thread. Rows go to bench_splits.csv beside this script (appended, never edited). Started
again after a kill, it goes on; seconds are then those since the last start. Other settings need other --runs.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1')  # read when libraries load

import logging
import time
import warnings
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from zlib import crc32

from nni_naslid import (
    LID,
    NASLID,
    Bands,
    Fixed,
    Gradient,
    Joint,
    RandomSplit,
    ZeroCost,
    lid_score,
    plan_epochs,
    ranking_report,
)
from nni_naslid.analysis.baselines import nasbench201_costs
from nni_naslid.analysis.truth import DIGITS_TRUTH, load_truth, nasbench201_sample
from nni_naslid.criteria.criterion import Criterion
from nni_naslid.run.settings import PLAIN

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import NasBench201
from nni.nas.strategy import Random
from recipe import Data, add_size_arguments, check_devices, data_of, integer, make_evaluator
from rows import append, commit, processor
from scipy.stats import rankdata


def chance(sample: dict[str, str]) -> int:
    """A sum of random weights of the choices: the control for LID as a part of a score."""
    return sum(crc32(f'{label} {choice}'.encode()) for label, choice in sample.items())


def by_size(criterion: Criterion) -> dict[str, Any]:
    """Settings of a split, with learning rates that know the size of a path."""
    return {'criterion': criterion, 'lr_by_size': True}


METHODS = {  # settings of NASLID; by default as SPOS
    'one supernet': {},
    'one supernet, lr by size': {'lr_by_size': True},
    'one supernet, lr by size, balanced': {'lr_by_size': True, 'sampling': 'balanced'},
    'one supernet, lr by size, fair': {'lr_by_size': True, 'sampling': 'fair'},
    'one supernet, lr by size, a momentum of each of four bands': {'lr_by_size': True, 'momentum_bands': 4},
    'one supernet, lr by size, balanced, a momentum of each of four bands': {
        'lr_by_size': True,
        'sampling': 'balanced',
        'momentum_bands': 4,
    },
    'bands of convolutions': {'criterion': Bands('convolutions', max_groups=4)},
    'bands of convolutions, lr by size': by_size(Bands('convolutions', max_groups=4)),
    'bands of live parameters, lr by size': by_size(Bands('live_parameters', max_groups=4)),
    'bands of convolutions and live parameters, lr by size': by_size(
        Bands({'convolutions': 1, 'live_parameters': 1}, max_groups=4)
    ),
    'bands of live parameters and LID, lr by size': by_size(Bands({'live_parameters': 1, 'lid': 0.5}, max_groups=4)),
    'bands of live parameters and LID, lr by size, a momentum of each of four bands': {
        **by_size(Bands({'live_parameters': 1, 'lid': 0.5}, max_groups=4)),
        'momentum_bands': 4,
    },
    'bands of live parameters and chance, lr by size': by_size(
        Bands({'live_parameters': 1, chance: 0.5}, max_groups=4)
    ),
    'bands of LID, lr by size': by_size(Bands('lid', max_groups=4)),
    'random bands, lr by size': by_size(Bands('random', max_groups=4)),
    'random split of an edge, lr by size': by_size(RandomSplit(max_groups=4)),
    'LID split of an edge, lr by size': by_size(LID(max_groups=4, min_contrast=0)),
    'zero-cost split of an edge, lr by size': by_size(ZeroCost('naswot', max_groups=4, min_contrast=0)),
    'SynFlow split of an edge, lr by size': by_size(ZeroCost('synflow', max_groups=4, min_contrast=0)),
    'SNIP split of an edge, lr by size': by_size(ZeroCost('snip', max_groups=4, min_contrast=0)),
    'TwoNN split of an edge, lr by size': by_size(LID(estimator='two_nn', max_groups=4, min_contrast=0)),
    'effective rank split of an edge, lr by size': by_size(
        LID(estimator='effective_rank', max_groups=4, min_contrast=0)
    ),
    'gradient split of an edge, lr by size': by_size(Gradient(max_groups=4, min_contrast=0)),
    'gradient split of an edge by filters, lr by size': by_size(Gradient('per_filter', max_groups=4, min_contrast=0)),
    'gradient split of an edge by length, lr by size': by_size(Gradient('l2', max_groups=4, min_contrast=0)),
    'each operation of an edge, lr by size': by_size(Fixed({'cell/0_3': [[0], [1], [2], [3], [4]]})),
    'joint split of a node, lr by size': by_size(Joint(LID(min_contrast=0), max_groups=4)),
}
LID_IMAGES = 128
FIGURES = ('tau', 'P@1%', 'P@5%', 'P@10%', 'regret@1', 'regret@10')
PRIORS = {  # weights of ranks; LID is of the root
    'val_loss, live parameters': {'val_loss': 1, 'live parameters': 0.5},
    'val_loss, live parameters, LID': {'val_loss': 1, 'live parameters': 8, 'LID': 4},
}


def named(method: str, args: Namespace) -> str:
    """A method as rows and folders have it: in another precision it is another one."""
    return method if args.precision == '32-true' else f'{method}, {args.precision}'


def trained(args: Namespace, data: Data, method: str, seed: int) -> NASLID:
    """A finished run, or one of an earlier start, of a method and seed with the sizes that the options name."""
    settings = METHODS[method]
    split, end = None, args.epochs
    if 'criterion' in settings:
        (split,), end = plan_epochs(args.epochs, [settings['criterion'].max_groups])
    pl.seed_everything(seed, verbose=False)  # the initial weights
    evaluator = make_evaluator(
        data, epochs=end, lr=args.lr, batch_size=args.batch_size, augment=args.data != 'digits',
        accelerator=args.accelerator, devices=1, precision=args.precision, logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, check_val_every_n_epoch=end,
    )  # fmt: skip
    name = named(method, args).replace(' ', '-').replace(',', '')
    workdir = args.runs / f'{Path(args.data).stem}-{name}-seed{seed}'
    strategy = NASLID(
        [] if split is None else [split], **{'criterion': 'random', **PLAIN, **settings}, search=Random(seed=seed),
        search_budget=1, calibration_batches=args.calibration_batches, seed=seed, workdir=workdir,
    )  # fmt: skip
    experiment = NasExperiment(NasBench201(args.channels, args.cells, 10), evaluator, strategy)
    if not experiment.run():
        raise SystemExit('Interrupted.')
    experiment.stop()
    return strategy


def hush() -> None:
    """One thread, and no lines of Lightning and NNI."""
    torch.set_num_threads(1)
    for chatty in ('pytorch_lightning', 'nni.experiment', 'nni.nas.experiment'):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', category=UserWarning, module='pytorch_lightning')


def add_data_arguments(parser: ArgumentParser) -> None:
    """Sizes, truth and seeds."""
    add_size_arguments(parser)
    parser.add_argument('--truth', default=str(DIGITS_TRUTH), help='a table, as for nasbench201.py')
    parser.add_argument('--truth-column', default='test_acc', help='its column')
    parser.add_argument('--ranked', default=500, type=integer(2), help='how many architectures of the table are ranked')
    parser.add_argument('--epochs', default=32, type=integer(8), help='in all, of each method')
    parser.add_argument('--calibration-batches', default=10, type=integer(0), help='for the batch norms of a network')
    parser.add_argument('--seeds', default=[0, 1, 2], type=int, nargs='+')


def add_arguments(parser: ArgumentParser, runs: str) -> None:
    """These, what runs are trained on, and where they are kept."""
    add_data_arguments(parser)
    parser.add_argument('--accelerator', default='cpu', help='as in Lightning')
    parser.add_argument('--precision', default='32-true', help='bf16-mixed on a GPU, ... as in Lightning')
    parser.add_argument('--runs', default=Path(runs), type=Path, help='folder of the work folders')


def ranked_of(args: Namespace, skip: int = 0) -> pd.Series:
    """True accuracies of the architectures that are ranked: those that come after ``skip`` others."""
    truth = load_truth(args.truth, args.truth_column)
    drawn = np.random.RandomState(0).permutation(len(truth))
    return truth.iloc[np.sort(drawn[skip : skip + args.ranked])]


def add_skip(parser: ArgumentParser) -> None:
    """Architectures that are not ranked, because methods were chosen on them."""
    parser.add_argument('--skip', default=0, type=integer(0), help='how many others are left out: those of a choice')


def ranked_at_equal_cost(parser: ArgumentParser, args: Namespace) -> tuple[pd.Series, dict[str, Any]]:
    """What is ranked, and the setting that rows have; a usage error if costs would differ, or too few are left."""
    if args.epochs % 16:  # a quarter for the root, and a quarter of the others for each leaf
        parser.error(f'--epochs must be a multiple of 16, so that all methods cost the same, but is {args.epochs}.')
    ranked = ranked_of(args, args.skip)
    if len(ranked) < 2:
        parser.error(f'--skip {args.skip} leaves {len(ranked)} architectures of the table; at least 2 are ranked.')
    return ranked, {
        'data': Path(args.data).name, 'resolution': args.resolution, 'channels': args.channels, 'cells': args.cells,
        'batch_size': args.batch_size, 'lr': args.lr, 'truth_column': args.truth_column,
        'calibration_batches': args.calibration_batches, 'ranked': len(ranked), 'skip': args.skip,
    }  # fmt: skip


def images_of(data: Data, seed: int, n: int) -> torch.Tensor:
    """Training images that LID is taken of."""
    return data.train.tensors[0][np.random.RandomState(seed).permutation(len(data.train))[:n]]


def combined(ranks: dict[str, np.ndarray], weights: dict[str, float]) -> np.ndarray:
    return sum(weight * ranks[name] for name, weight in weights.items())


def of_the_best(order: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """True accuracies of the first choice, and of the best 5 %; ``order`` has the best first."""
    return {
        'first': round(float(truth[order[0]]), 2),
        'mean_of_best_5%': round(float(truth[order[: max(1, len(order) // 20)]].mean()), 3),
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    add_arguments(parser, 'runs/splits')
    add_skip(parser)
    parser.add_argument('--methods', default=list(METHODS), nargs='+', choices=list(METHODS), metavar='NAME')
    parser.add_argument('--output', default=Path(__file__).with_suffix('.csv'), type=Path, help='the CSV')
    args = parser.parse_args()
    check_devices(parser, args.accelerator, precision=args.precision)
    hush()
    ranked, setting = ranked_at_equal_cost(parser, args)
    data = data_of(parser, args)
    samples = [nasbench201_sample(arch) for arch in ranked.index]
    costs = nasbench201_costs(samples, args.channels, args.cells, 10, args.resolution)
    if args.output.exists() and (missing := {*setting, 'passes'} - {*pd.read_csv(args.output, nrows=0)}):
        parser.error(f'--output: {args.output} has no column {", ".join(sorted(missing))}; name another file.')
    device = torch.cuda.get_device_name() if args.accelerator != 'cpu' and torch.cuda.is_available() else processor()
    common = {**setting, 'device': device, 'torch': torch.__version__, 'commit': commit()}
    same = ' and '.join(f'{name} == {value!r}' for name, value in setting.items()) + f' and epochs == {args.epochs}'

    def is_done(method: str, seed: int) -> bool:
        if not args.output.exists():
            return False
        return bool(len(pd.read_csv(args.output).query(f'{same} and method == {method!r} and seed == {seed}')))

    def add(method: str, seed: int, estimates: dict[str, np.ndarray], **more: object) -> None:
        rows = []
        for by, values in estimates.items():
            figures = ranking_report(values, ranked.to_numpy(), costs={}, n_bootstrap=0).figures['estimates']
            rows.append({
                'method': method, 'seed': seed, 'by': by, 'epochs': args.epochs,
                **{name: round(figures[name].value, 4) for name in FIGURES},
                **of_the_best(np.argsort(values)[::-1], ranked.to_numpy()),
                **more, **common, 'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
            })  # fmt: skip
        append(pd.DataFrame(rows), args.output)

    for name in ('parameters', 'live parameters'):
        if not is_done(name, -1):
            add(name, -1, {'count': np.asarray(costs[name], float)}, steps=0, leaves=0, passes=0, seconds=0)
    for seed in args.seeds:
        for method in args.methods:
            name = named(method, args)
            if is_done(name, seed):
                continue
            started = time.perf_counter()
            strategy = trained(args, data, method, seed)
            seconds = round(time.perf_counter() - started)
            metrics = pd.DataFrame(strategy.evaluate(samples))
            splits = [node.split for node in strategy.tree if node.split is not None]
            passes = int(sum(split.scalars().get('passes', 0) for split in splits))
            steps = strategy.tree.cost * (len(data.train) // args.batch_size)
            estimates = {'val_loss': -metrics['val_loss'].to_numpy(), 'val_acc': metrics['val_acc'].to_numpy()}
            strategy.load(strategy.tree)
            lid = lid_score(strategy.supernet, samples, images_of(data, seed, LID_IMAGES))
            of = {'val_loss': estimates['val_loss'], 'live parameters': costs['live parameters'], 'LID': lid}
            ranks = {name: rankdata(values) for name, values in of.items()}
            estimates |= {name: combined(ranks, weights) for name, weights in PRIORS.items()}
            add(name, seed, estimates, steps=steps, leaves=len(strategy.leaves), passes=passes, seconds=seconds)
            print(f'{name}, seed {seed}: {seconds} s', flush=True)
    rows = pd.read_csv(args.output)
    rows = rows.query(same)
    shown = [*FIGURES, 'first', 'mean_of_best_5%', 'steps', 'passes', 'seconds']
    print(rows.groupby(['method', 'by'])[shown].mean().round(3).to_string())


if __name__ == '__main__':
    main()
