"""NAS-LID on NAS-Bench-201, against one supernet of the same cost and against counting parameters.

    python examples/nasbench201.py                                            # digits, no download
    python examples/nasbench201.py --data cifar10.npz --truth nasbench201.npz --truth-column c10_test_200

Trains a supernet, splits it into bands by live parameters and LID (or by another criterion), searches it; trains one
supernet without a split for the same number of steps, with the defaults of NASLID and as SPOS does; and says how well
each ranks the true accuracies of a table. Some of its architectures are ranked at the split epochs, too: see `python -m
nni_naslid report`. The default table comes with the package: networks of the default size trained stand-alone on the
same digits, by measure_truth.py.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from argparse import ArgumentParser, BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from itertools import pairwise
from pathlib import Path
from typing import Any

from nni_naslid import LID, NASLID, Bands, Joint, RandomSplit, ZeroCost, plan_epochs, ranking_report
from nni_naslid.analysis.baselines import nasbench201_costs
from nni_naslid.analysis.bootstrap import Interval
from nni_naslid.analysis.plots import plot_ranking
from nni_naslid.analysis.truth import DIGITS_TRUTH, load_truth, nasbench201_arch, nasbench201_sample, truth_setting
from nni_naslid.criteria.criterion import Criterion
from nni_naslid.run.settings import MAX_SEED, PLAIN
from nni_naslid.run.text import rounded

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import NasBench201
from recipe import Data, add_size_arguments, check_devices, data_of, integer, make_evaluator, train_alone

HEAD = {'tau': 2, 'P@5%': 2, 'P@10%': 2, 'regret@1': 1, 'regret@10': 1}  # figures of the table, and their digits
FEW = 50  # about so many architectures are ranked at the split epochs: scoring takes time


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add_size_arguments(parser)
    group = parser.add_argument_group('training and splitting')
    group.add_argument('--epochs', type=integer(1), help='from root to leaf (default: digits 14 or 20, else 42 or 48)')
    group.add_argument(
        '--split-epochs',
        type=integer(1),
        nargs='*',
        help='when to split (default: for digits 8, else 24; of one choice at a time 10 15 or 24 36)',
    )
    group.add_argument(
        '--criterion',
        default='bands',
        choices=('bands', 'lid', 'zero_cost', 'joint', 'random'),
        help='bands of live parameters and lid, lid, zero_cost (naswot), joint (edges into one node, by lid), or '
        'random as a control (default %(default)s)',
    )
    group.add_argument(
        '--lr-by-size',
        action=BooleanOptionalAction,
        default=True,
        help='in the splits, let the learning rate of large networks fall later (default: yes)',
    )
    group.add_argument(
        '--min-contrast', type=float, default=LID().min_contrast, help='the smallest effect (default %(default)s)'
    )
    group.add_argument(
        '--repeats',
        type=integer(8),
        default=32,
        help='batches per profile, if single choices are split (default %(default)s)',
    )
    group.add_argument(
        '--monitor',
        default='val_loss',
        choices=('val_loss', 'val_acc'),
        help='what the search goes by (default %(default)s)',
    )
    group.add_argument('--search-budget', type=integer(1), default=100, help='networks the search scores (default 100)')
    group.add_argument(
        '--calibration-batches',
        type=integer(0),
        default=5,
        help='for batch norms of each scored network (default %(default)s)',
    )
    group.add_argument(
        '--seed', type=integer(0, MAX_SEED), default=0, help='source of everything random (default %(default)s)'
    )
    group.add_argument('--accelerator', default='cpu', help='cpu, gpu, ... as in Lightning (default %(default)s)')
    group.add_argument('--devices', type=integer(1), default=1, help='number of them (default %(default)s)')
    group.add_argument('--precision', default='32-true', help='bf16-mixed, ... as in Lightning (default %(default)s)')
    group = parser.add_argument_group('truth and output')
    group.add_argument(
        '--truth',
        default=str(DIGITS_TRUTH),
        metavar='PATH',
        help='.csv or .npz with columns arch and --truth-column (default: the table of the package)',
    )
    group.add_argument('--truth-column', default='test_acc', help='e.g. c10_test_200 (default %(default)s)')
    group.add_argument(
        '--ranked',
        type=integer(2),
        default=320,
        help='rank this many architectures of the table, drawn at random (default %(default)s)',
    )
    group.add_argument('--output', default='runs', help='folder of results (default %(default)s)')
    return parser


def parse() -> tuple[Namespace, pd.Series, Data]:
    """The options, and the truth and the images that they name; what cannot work is a usage error."""
    parser = make_parser()
    args = parser.parse_args()
    if args.criterion == 'bands':  # at the cost of one supernet of so many epochs
        split_epochs, epochs = plan_epochs(32 if args.data == 'digits' else 96)
    else:
        split_epochs, epochs = ([10, 15], 20) if args.data == 'digits' else ([24, 36], 48)
    args.epochs = epochs if args.epochs is None else args.epochs
    args.split_epochs = split_epochs if args.split_epochs is None else args.split_epochs
    stops = [*args.split_epochs, args.epochs]
    if any(b <= a for a, b in pairwise(stops)):
        parser.error(f'--split-epochs must increase, and be below --epochs={args.epochs}, but are {args.split_epochs}.')
    try:
        criterion(args)
    except ValueError as error:
        parser.error(f'--{str(error).replace("_", "-", 1)}')
    n_neighbors = LID().n_neighbors
    if args.criterion in ('bands', 'lid', 'joint') and args.split_epochs and args.batch_size <= n_neighbors:
        parser.error(f'--batch-size must be above {n_neighbors}, the neighbours of LID, but is {args.batch_size}.')
    if Path(args.output).exists() and not Path(args.output).is_dir():
        parser.error(f'--output must be a folder, but {args.output} is a file.')
    check_devices(parser, args.accelerator, args.devices, args.precision)
    try:
        truth = load_truth(args.truth, args.truth_column)
        truth_setting(args.truth)
    except (ImportError, OSError, ValueError) as error:
        parser.error(f'--truth: {error}')
    if len(truth) < 2:
        parser.error(f'--truth must hold at least 2 architectures, but {args.truth} holds {len(truth)}.')
    return args, truth, data_of(parser, args)


def criterion(args: Namespace) -> Criterion:
    """How a split is chosen."""
    if args.criterion == 'lid':
        return LID(repeats=args.repeats, min_contrast=args.min_contrast)
    if args.criterion == 'joint':
        return Joint(LID(repeats=args.repeats, min_contrast=args.min_contrast))
    if args.criterion == 'zero_cost':
        return ZeroCost(repeats=args.repeats, min_contrast=args.min_contrast)
    return Bands() if args.criterion == 'bands' else RandomSplit()


def run(args: Namespace, data: Data, epochs: int, workdir: Path, **settings: Any) -> NASLID:
    """One NNI experiment, with settings of NASLID."""
    pl.seed_everything(args.seed, verbose=False)  # the initial weights
    space = NasBench201(args.channels, args.cells, 10)
    evaluator = make_evaluator(
        data, epochs=epochs, lr=args.lr, batch_size=args.batch_size, augment=args.data != 'digits',
        accelerator=args.accelerator, devices=args.devices, precision=args.precision, logger=False,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=sys.stdout.isatty(),
        check_val_every_n_epoch=max(1, epochs // 10),
    )  # fmt: skip
    strategy = NASLID(
        search_budget=args.search_budget, calibration_batches=args.calibration_batches, monitor=args.monitor,
        mode='min' if args.monitor == 'val_loss' else 'max', workdir=workdir, seed=args.seed, **settings,
    )  # fmt: skip
    experiment = NasExperiment(space, evaluator, strategy)
    if not experiment.run():
        raise SystemExit('Interrupted.')
    experiment.stop()
    return strategy


def main() -> None:
    started = time.perf_counter()
    for chatty in ('pytorch_lightning', 'nni.experiment', 'nni.nas.experiment'):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    warnings.filterwarnings('ignore', category=UserWarning, module='pytorch_lightning')
    args, truth, data = parse()
    output = Path(args.output) / f'{Path(args.data).stem}-{args.criterion}-seed{args.seed}'
    ranked = truth.iloc[np.sort(np.random.RandomState(args.seed).permutation(len(truth))[: args.ranked])]
    samples = [nasbench201_sample(arch) for arch in ranked.index]
    print(
        f'{len(data.train):,} training and {len(data.valid):,} validation images; '
        f'ranking {len(ranked):,} of {len(truth):,} architectures of {args.truth}'
    )
    if difference := unlike(truth_setting(args.truth), args):
        print(f'Beware: this truth was measured with {difference}. It does not rank networks of another size or data.')

    naslid = run(
        args, data, args.epochs, output / 'naslid', split_epochs=args.split_epochs, criterion=criterion(args),
        keep_epochs=args.split_epochs, lr_by_size=args.lr_by_size,
    )  # fmt: skip
    cost = naslid.tree.cost  # nodes that were not split cost less than planned; the others get the same
    strategies = {
        'a tree': naslid,
        'one supernet': run(args, data, cost, output / 'one-supernet'),
        'SPOS': run(args, data, cost, output / 'spos', **PLAIN),
    }
    estimates = {}
    for name, strategy in strategies.items():
        estimates.update(estimate(name, strategy, samples))
    costs = nasbench201_costs(samples, args.channels, args.cells, 10, args.resolution)
    estimates.update({name: costs[name] for name in ('parameters', 'live parameters')})
    for epoch in naslid.tree.kept_epochs[:-1]:
        naslid.evaluate(samples[:: max(1, len(samples) // FEW)], epoch=epoch)

    first = f'a tree by {args.monitor}'
    others = {name: values for name, values in estimates.items() if name != first}
    report = ranking_report(estimates[first], ranked, costs=others)
    rows = {name: report.figures['estimates' if name == first else name] for name in estimates}
    steps = cost * (len(data.train) // args.batch_size)
    leaves = '1 leaf' if len(naslid.leaves) == 1 else f'{len(naslid.leaves)} leaves'
    print(f'\nSeed {args.seed}: {leaves}; each method trained {steps:,} steps. Truth: {args.truth_column}.\n')
    print(table(rows))
    for name in (*(f'{other} by {args.monitor}' for other in ('one supernet', 'SPOS')), 'live parameters'):
        print(f'{first} minus {name}: tau {brief(report.differences[name]["tau"], 2)}')
    print(f'In brackets: 95 % intervals over the {len(ranked):,} architectures, not over seeds.\n')
    found = {}
    for name, strategy in strategies.items():
        arch = nasbench201_arch(next(strategy.list_models()).sample)
        found[name] = {'arch': arch, **true_accuracy(arch, truth, args, data)}
        known = ', '.join(f'{key} {value:.2f}' for key, value in found[name].items() if key != 'arch')
        print(f'The search on {name} found {arch} ({known or "not in the table"})')
    minutes = (time.perf_counter() - started) / 60
    print(f'\n{minutes:.1f} minutes. Results, tree.json and pictures: {output}')
    print(f'All about the run on one page: python -m nni_naslid report {output / "naslid"} --truth {args.truth}')
    plot_ranking(estimates, ranked.to_numpy(), output / 'ranking.png', f'true accuracy ({args.truth_column})')
    result = {
        'arguments': vars(args),
        'cost': cost,
        'minutes': minutes,
        'report': rows,
        'partial': report.partial,
        'found': found,
        'estimates': {name: values.tolist() for name, values in estimates.items()},
        'truth': ranked.to_dict(),
    }
    (output / 'result.json').write_text(json.dumps(result, indent=1))


def table(rows: dict[str, dict[str, Interval]]) -> str:
    """The head of a report, a line for each ranking."""
    lines = [['', *HEAD]]
    lines += [[name, *(brief(row[figure], digits) for figure, digits in HEAD.items())] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join('  '.join(map(str.ljust, line, widths)).rstrip() for line in lines)


def brief(figure: Interval, digits: int) -> str:
    """A figure with its interval."""
    value, low, high = (rounded(each, digits) for each in figure)
    return f'{value} [{low}, {high}]'


def estimate(name: str, strategy: NASLID, samples: list[dict]) -> dict[str, np.ndarray]:
    """What a strategy says of architectures, by accuracy and by loss; larger is better."""
    metrics = pd.DataFrame(strategy.evaluate(samples))
    return {f'{name} by val_acc': metrics['val_acc'].to_numpy(), f'{name} by val_loss': -metrics['val_loss'].to_numpy()}


def true_accuracy(arch: str, truth: pd.Series, args: Namespace, data: Data) -> dict[str, float]:
    """What the table says of an architecture; else, where it is known how the table was measured, measure it."""
    if arch in truth:
        return {'true accuracy': float(truth[arch])}
    setting = truth_setting(args.truth)
    if 'epochs' not in setting or unlike(setting, args) or args.truth_column not in ('valid_acc', 'test_acc'):
        return {}
    runs = [train_alone(arch, seed, args, data, setting['epochs'])[args.truth_column] for seed in range(3)]
    return {'true accuracy, measured now by 3 runs': float(np.mean(runs))}


def unlike(setting: dict, args: Namespace) -> str:
    """In what the networks of a truth table differ from those of this run."""
    keys = (key for key in setting if key not in ('epochs', 'accelerator') and setting[key] != vars(args).get(key))
    return ', '.join(f'{key} {setting[key]} instead of {vars(args).get(key)}' for key in keys)


if __name__ == '__main__':
    main()
