"""Measure a truth table: train sampled NAS-Bench-201 architectures stand-alone, with several seeds.

    python examples/measure_truth.py --output truth.csv

A small network is ranked by a truth measured at its own scale, not by the table of a larger one, so the options for
data and size are those of nasbench201.py. The table in the package was measured with the defaults. Interrupt it and run
it again: it goes on where it was.
"""

from __future__ import annotations

import csv
import json
import logging
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from itertools import combinations
from pathlib import Path

from nni_naslid.analysis.truth import nasbench201_architectures, truth_setting

import numpy as np
import torch
from recipe import Data, add_size_arguments, check_devices, data_of, integer, train_alone
from scipy.stats import kendalltau
from torch.multiprocessing import Pool
from tqdm import tqdm


def train(job: tuple[str, int]) -> tuple[str, int, float, float]:
    """Train one architecture with one seed; its accuracy (percent) on validation and test images."""
    torch.set_num_threads(1)
    arch, seed = job
    return arch, seed, *train_alone(arch, seed, ARGS, DATA, ARGS.epochs).values()


def read(path: Path) -> dict[tuple[str, int], float]:
    """Test accuracies in a table by architecture and seed."""
    with path.open() as file:
        lines = (line for line in file if not line.startswith('#'))
        return {(row['arch'], int(row['seed'])): float(row['test_acc']) for row in csv.DictReader(lines)}


def main() -> None:
    setting = {k: v for k, v in vars(ARGS).items() if k not in ('output', 'workers', 'architectures', 'seeds')}
    path = Path(ARGS.output)
    if not path.exists():
        path.write_text(f'# {json.dumps(setting)}\narch,seed,valid_acc,test_acc\n')
    elif truth_setting(path) != setting:
        raise SystemExit(f'{path} holds another setting: {truth_setting(path)}')
    done = read(path)
    order = np.random.RandomState(0).permutation(15625)[: ARGS.architectures]
    everything = nasbench201_architectures()
    archs = [everything[i] for i in order]
    jobs = [(arch, seed) for arch in archs for seed in range(ARGS.seeds) if (arch, seed) not in done]
    with path.open('a') as file, Pool(ARGS.workers) as pool:
        for row in tqdm(pool.imap(train, jobs), total=len(jobs), unit='network'):
            file.write(','.join(map(str, row)) + '\n')
            file.flush()

    rows = read(path)
    accuracy = np.array([[rows[arch, seed] for seed in range(ARGS.seeds)] for arch in archs])
    low, median, high = np.quantile(accuracy.mean(1), [0, 0.5, 1])
    print(f'{len(archs)} architectures x {ARGS.seeds} seeds')
    print(f'Test accuracy: {low:.1f} to {high:.1f}, median {median:.1f}')
    if ARGS.seeds == 1:
        return
    taus = [kendalltau(accuracy[:, a], accuracy[:, b]).statistic for a, b in combinations(range(ARGS.seeds), 2)]
    print(f'Kendall tau of two seeds: {np.mean(taus):.3f} ({", ".join(f"{tau:.3f}" for tau in taus)})')
    if ARGS.seeds % 2 == 0 and (half := ARGS.seeds // 2) > 1:
        means = [(accuracy[:, list(some)].mean(1), np.delete(accuracy, some, axis=1).mean(1))
                 for some in combinations(range(ARGS.seeds), half)]  # fmt: skip
        taus = [kendalltau(one, other).statistic for one, other in means]
        print(f'Of two means of {half} seeds: {np.mean(taus):.3f} ({min(taus):.3f} to {max(taus):.3f})')
    # Each seed in turn is held against the means of the others, which have chosen the top tenth without it.
    n_top = max(1, len(archs) // 10)
    leads = []
    for seed in range(ARGS.seeds):
        by_others = np.delete(accuracy, seed, axis=1).mean(1).argsort()
        leads.append(accuracy[by_others[-n_top:], seed].mean() - np.median(accuracy[:, seed]))
    error = np.sqrt(accuracy.var(1, ddof=1).mean() / ARGS.seeds)
    print(
        f'The top tenth by other seeds is {np.mean(leads):.2f} above the median; standard error of a mean {error:.2f}'
    )


def parse() -> tuple[Namespace, Data]:
    parser = ArgumentParser(description=__doc__.split('\n\n')[0], formatter_class=ArgumentDefaultsHelpFormatter)
    add_size_arguments(parser)
    parser.add_argument('--epochs', type=integer(1), default=1, help='epochs per network')
    parser.add_argument('--architectures', type=integer(1, 15625), default=500, help='how many, drawn from all 15,625')
    parser.add_argument('--seeds', type=integer(1), default=6, help='training runs per architecture')
    parser.add_argument('--accelerator', default='cpu', help='as in Lightning')
    parser.add_argument('--workers', type=integer(1), default=2, help='processes, of one thread each')
    parser.add_argument('--output', default='truth.csv', help='CSV file, continued if it exists')
    args = parser.parse_args()
    if not Path(args.output).parent.is_dir() or Path(args.output).is_dir():
        parser.error(f'--output must be a file in a folder that exists, but is {args.output}.')
    check_devices(parser, args.accelerator)
    return args, data_of(parser, args)


if __name__ in ('__main__', '__mp_main__'):
    logging.getLogger('pytorch_lightning').setLevel(logging.ERROR)
    torch.set_num_threads(1)
    ARGS, DATA = parse()
if __name__ == '__main__':
    main()
