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

from nni_naslid.benchmarks import nasbench201_architectures, nasbench201_sample

import numpy as np
import pytorch_lightning as pl
import torch
from nni.nas.hub.pytorch import NasBench201
from recipe import Data, add_size_arguments, load_data, make_evaluator
from scipy.stats import kendalltau
from torch.multiprocessing import Pool
from torch.utils.data import DataLoader
from tqdm import tqdm


def train(job: tuple[str, int]) -> tuple[str, int, float, float]:
    """Train one architecture with one seed; its accuracy (percent) on validation and test images."""
    torch.set_num_threads(1)
    arch, seed = job
    pl.seed_everything(seed, verbose=False)
    network = NasBench201.frozen_factory(nasbench201_sample(arch))(ARGS.channels, ARGS.cells, 10)
    evaluator = make_evaluator(
        ARGS, DATA, ARGS.epochs, accelerator=ARGS.accelerator, devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    evaluator.module.on_fit_end = lambda: None  # nothing is reported to NNI
    evaluator.evaluate(network)
    network.eval()
    return arch, seed, _accuracy(network, DATA.valid), _accuracy(network, DATA.test)


@torch.no_grad()
def _accuracy(network: torch.nn.Module, images: torch.utils.data.Dataset) -> float:
    right = sum((network(x).argmax(1) == y).sum().item() for x, y in DataLoader(images, 500))
    return round(100 * right / len(images), 3)


def main() -> None:
    setting = {k: v for k, v in vars(ARGS).items() if k not in ('output', 'workers', 'architectures', 'seeds')}
    header = f'# {json.dumps(setting)}\n'
    path = Path(ARGS.output)
    done = set()
    if path.exists():
        with path.open() as file:
            if (found := file.readline()) != header:
                raise SystemExit(f'{path} holds another setting: {found.strip()}')
            done = {(row['arch'], int(row['seed'])) for row in csv.DictReader(file)}
    else:
        path.write_text(f'{header}arch,seed,valid_acc,test_acc\n')
    order = np.random.RandomState(0).permutation(15625)[: ARGS.architectures]
    everything = nasbench201_architectures()
    archs = [everything[i] for i in order]
    jobs = [(arch, seed) for arch in archs for seed in range(ARGS.seeds) if (arch, seed) not in done]
    with path.open('a') as file, Pool(ARGS.workers) as pool:
        for row in tqdm(pool.imap(train, jobs), total=len(jobs), unit='network'):
            file.write(','.join(map(str, row)) + '\n')
            file.flush()

    with path.open() as file:
        file.readline()
        rows = {(row['arch'], int(row['seed'])): float(row['test_acc']) for row in csv.DictReader(file)}
    accuracy = np.array([[rows[arch, seed] for seed in range(ARGS.seeds)] for arch in archs])
    taus = [kendalltau(accuracy[:, a], accuracy[:, b]).statistic for a, b in combinations(range(ARGS.seeds), 2)]
    low, median, high = np.quantile(accuracy.mean(1), [0, 0.5, 1])
    print(f'{len(archs)} architectures x {ARGS.seeds} seeds')
    print(f'Test accuracy: {low:.1f} to {high:.1f}, median {median:.1f}')
    print(f'Kendall tau of two seeds: {np.mean(taus):.3f} ({", ".join(f"{tau:.3f}" for tau in taus)})')


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__.split('\n\n')[0], formatter_class=ArgumentDefaultsHelpFormatter)
    add_size_arguments(parser)
    parser.add_argument('--epochs', type=int, default=6, help='epochs per network')
    parser.add_argument('--architectures', type=int, default=320, help='how many, drawn from all 15,625')
    parser.add_argument('--seeds', type=int, default=3, help='training runs per architecture')
    parser.add_argument('--accelerator', default='cpu', help='as in Lightning')
    parser.add_argument('--workers', type=int, default=2, help='processes, of one thread each')
    parser.add_argument('--output', default='truth.csv', help='CSV file, continued if it exists')
    return parser.parse_args()


if __name__ in ('__main__', '__mp_main__'):
    logging.getLogger('pytorch_lightning').setLevel(logging.ERROR)
    torch.set_num_threads(1)
    ARGS = parse()
    DATA: Data = load_data(ARGS.data, ARGS.resolution)
if __name__ == '__main__':
    main()
