"""Networks that are good and cheap: loss against FLOPs by NSGA-II, beside random search (`pip install optuna`).

    OMP_NUM_THREADS=1 python examples/pareto.py

It trains a supernet on digits, and searches it by both, with equally many evaluations and several seeds each. Scores
are kept, so that a network is scored once in all. It prints the front of the last search, and hypervolumes, which can
be appended to a CSV. `python -m nni_naslid report runs/pareto` has the figures of the last search.

The reference of all hypervolumes is a tenth of the range of the front of all networks beyond its worst; they are given
as a part of what lies between the best of everything and that.
"""

from __future__ import annotations

import csv
import math
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from pathlib import Path

from nni_naslid import NASLID, NSGA2
from nni_naslid.analysis.pareto import hypervolumes
from nni_naslid.run.pareto import hypervolume, pareto_ranks
from nni_naslid.run.settings import PLAIN

import numpy as np
import pytorch_lightning as pl
from nni.nas.hub.pytorch import NasBench201
from nni.nas.strategy import Random
from recipe import Data, integer, load_data, make_evaluator
from scipy.stats import t


def searched(data: Data, epochs: int, budget: int, search: NSGA2 | Random, workdir: str) -> NASLID:
    """A run with this search; only the first one trains."""
    pl.seed_everything(0, verbose=False)
    evaluator = make_evaluator(
        data, epochs=epochs, accelerator='cpu', devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False,
    )  # fmt: skip
    strategy = NASLID(search=search, search_budget=budget, workdir=workdir, **PLAIN)
    return strategy.fit(NasBench201(8, 1, 10), evaluator)


def points_of(strategy: NASLID) -> np.ndarray:
    """Losses and FLOPs of what a search has scored, [N, 2]."""
    samples = [model.sample for model in strategy.list_models(limit=None)]
    metrics, costs = strategy.evaluate(samples), strategy.costs(samples, ['flops'])
    return np.array([(of['val_loss'], cost['flops']) for of, cost in zip(metrics, costs, strict=True)])


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
    data, found = load_data('digits', 8), {}
    for seed in range(args.seeds):
        searches = {
            'random': Random(seed=seed),
            'NSGA-II': NSGA2(['flops'], population_size=args.population, seed=seed),
        }
        for name, search in searches.items():
            strategy = searched(data, args.epochs, args.evaluations, search, args.workdir)
            found[name, seed] = points_of(strategy)
    print('\nThe front of the last search:\nval_loss  MFLOPs  architecture')
    for sample, metrics in strategy.pareto_front():
        print(f'{metrics["val_loss"]:8.3f}  {metrics["flops"] / 1e6:6.2f}  {" ".join(sample.values())}')

    together = np.concatenate([*found.values()])
    front = pareto_ranks(together) == 0
    if (found_volumes := hypervolumes(together, front)) is None:
        raise SystemExit('All networks of the front cost the same, or have the same loss: try more --evaluations.')
    _, reference = found_volumes
    box = np.prod(reference - together[front].min(axis=0))
    volumes = {key: hypervolume(points, reference) / box for key, points in found.items()}
    print(f'\nHypervolume below val_loss {reference[0]:.3f} and {reference[1] / 1e6:.2f} MFLOPs')
    by_name = {name: np.array([volumes[name, seed] for seed in range(args.seeds)]) for name in searches}
    by_name['difference'] = by_name['NSGA-II'] - by_name['random']
    for name, values in by_name.items():
        print(f'{name:>10}  {interval(values)}')
    setting = {'epochs': args.epochs, 'evaluations': args.evaluations, 'population': args.population}
    rows = [
        {
            **setting, 'seed': seed, 'search': name, 'hypervolume': f'{volume:.5f}',
            'front': int((pareto_ranks(found[name, seed]) == 0).sum()), 'reference_loss': f'{reference[0]:.4f}',
            'reference_flops': round(reference[1]),
        }
        for (name, seed), volume in volumes.items()
    ]  # fmt: skip
    if args.output is not None:
        is_new = not args.output.exists()
        with args.output.open('a', newline='') as file:
            writer = csv.DictWriter(file, rows[0])
            if is_new:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == '__main__':
    main()
