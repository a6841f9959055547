"""Networks that are good and cheap: loss against FLOPs by NSGA-II, beside random search (`pip install optuna`).

    OMP_NUM_THREADS=1 python examples/pareto.py

It trains a supernet on digits, and searches it by both, with equally many evaluations and several seeds each. Scores
are kept, so that a network is scored once in all. It prints the front of the last search, and hypervolumes, which can
be appended to a CSV. `python -m nni_naslid report runs/pareto` has the figures of the last search.
"""

from __future__ import annotations

import csv
import math
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from pathlib import Path

from nni_naslid import NASLID, NSGA2
from nni_naslid.run.pareto import hypervolume, pareto_ranks

import numpy as np
import pytorch_lightning as pl
from nni.nas.hub.pytorch import NasBench201
from nni.nas.strategy import Random
from recipe import Data, integer, load_data, make_evaluator
from scipy.stats import t

CHANCE = math.log(10)  # loss of guessing among ten digits: the reference of hypervolumes, with the largest FLOPs
LARGEST = dict.fromkeys([f'cell/{i}_{j}' for j in range(1, 4) for i in range(j)], 'conv_3x3')


def searched(data: Data, epochs: int, budget: int, search: NSGA2 | Random, workdir: str) -> NASLID:
    """A run with this search; only the first one trains."""
    pl.seed_everything(0, verbose=False)
    evaluator = make_evaluator(
        data, epochs=epochs, accelerator='cpu', devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False,
    )  # fmt: skip
    strategy = NASLID(lr_by_size=True, search=search, search_budget=budget, workdir=workdir)
    return strategy.fit(NasBench201(8, 1, 10), evaluator)


def volume_of(strategy: NASLID) -> tuple[float, int]:
    """The hypervolume of what a search has scored, as a part of all below the reference, and the size of its front."""
    samples = [model.sample for model in strategy.list_models(limit=None)]
    flops = [each['flops'] for each in strategy.costs([*samples, LARGEST], ['flops'])]
    losses = [each['val_loss'] for each in strategy.evaluate(samples)]
    points = [(loss, cost) for loss, cost in zip(losses, flops[:-1], strict=True)]
    return hypervolume(points, (CHANCE, flops[-1])) / (CHANCE * flops[-1]), int((pareto_ranks(points) == 0).sum())


def interval(values: np.ndarray) -> str:
    """Mean and 95 % interval of the mean, by Student's t."""
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f'{values.mean():.4f} +- {half:.4f}'


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument('--epochs', type=integer(1), default=20, help='of the supernet')
    parser.add_argument('--evaluations', type=integer(2), default=150, help='of each search')
    parser.add_argument('--population', type=integer(2), default=20, help='of NSGA-II')
    parser.add_argument('--seeds', type=integer(1), default=5, help='of each search')
    parser.add_argument('--workdir', default='runs/pareto', help='to go on after a kill')
    parser.add_argument('--output', type=Path, help='CSV that rows are appended to')
    args = parser.parse_args()
    data, rows = load_data('digits', 8), []
    for seed in range(args.seeds):
        searches = {
            'random': Random(seed=seed),
            'NSGA-II': NSGA2(['flops'], population_size=args.population, seed=seed),
        }
        for name, search in searches.items():
            strategy = searched(data, args.epochs, args.evaluations, search, args.workdir)
            volume, n_front = volume_of(strategy)
            setting = {'epochs': args.epochs, 'evaluations': args.evaluations, 'population': args.population}
            rows.append({**setting, 'seed': seed, 'search': name, 'hypervolume': f'{volume:.5f}', 'front': n_front})
            print(f'{name:>8}, seed {seed}: hypervolume {volume:.4f}, {n_front} networks on the front')
    print('\nThe front of the last search:\nval_loss  MFLOPs  architecture')
    for sample, metrics in strategy.pareto_front():
        print(f'{metrics["val_loss"]:8.3f}  {metrics["flops"] / 1e6:6.2f}  {" ".join(sample.values())}')
    volumes = {
        name: np.array([float(row['hypervolume']) for row in rows if row['search'] == name]) for name in searches
    }
    print(f'\nHypervolume, as a part of all below val_loss {CHANCE:.3f} and the FLOPs of the largest network')
    for name, values in volumes.items():
        print(f'{name:>10}  {interval(values)}')
    print(f'{"difference":>10}  {interval(volumes["NSGA-II"] - volumes["random"])}')
    if args.output is not None:
        is_new = not args.output.exists()
        with args.output.open('a', newline='') as file:
            writer = csv.DictWriter(file, rows[0])
            if is_new:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == '__main__':
    main()
