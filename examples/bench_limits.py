"""Measure what limits the ranking of bands: their order, or the order inside of each.

    python examples/bench_limits.py                                                       # digits, no download
    python examples/bench_limits.py --data cifar10.npz --resolution 16 --batch-size 100 --epochs 96 --ranked 1000 \\
        --skip 1000 --truth nasbench201.npz --truth-column c10_test_200 --output limits.csv

Bands and one supernet are trained as in bench_splits.py (with its --runs, nothing is trained again). Each ranking of
the same architectures is measured as it is, then with the true order inside of each band, then with the true places of
each band. (These are places of single networks: the order inside picks which gets the highest.) The bands are those of
the seed for all rankings. The mean of the ranks of all seeds shows what is noise of training: what all seeds have in
common is not. One thread. Rows go to bench_limits.csv beside this script (appended, never edited).
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1')  # read when libraries load

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from datetime import datetime, timezone
from pathlib import Path

from nni_naslid import lid_score, ranking_report
from nni_naslid.analysis.baselines import nasbench201_costs
from nni_naslid.analysis.truth import nasbench201_sample

import numpy as np
import pandas as pd
from bench_splits import LID_IMAGES, add_arguments, add_skip, combined, hush, images_of, of_the_best, ranked_of, trained
from recipe import data_of
from rows import append, commit
from scipy.stats import rankdata

BANDS, ONE = 'bands of live parameters and LID, lr by size', 'one supernet, lr by size'
FIGURES = ('tau', 'tau_within', 'tau_across', 'P@1%', 'P@5%', 'P@10%')
COUNTED = {'live parameters': 2, 'LID': 1}  # weights of the ranks of a sum


def reordered(places: np.ndarray, order: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """The values that each band has in ``places``, given to its architectures in the order of ``order``."""
    found = np.empty(len(places))
    for band in np.unique(bands):
        inside = bands == band
        found[inside] = np.sort(places[inside])[rankdata(order[inside], method='ordinal') - 1]
    return found


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    add_arguments(parser, 'runs/splits')
    add_skip(parser)
    parser.add_argument('--output', default=Path(__file__).with_suffix('.csv'), type=Path, help='the CSV')
    args = parser.parse_args()
    hush()
    data, ranked = data_of(parser, args), ranked_of(args, args.skip)
    samples, truth = [nasbench201_sample(arch) for arch in ranked.index], ranked.to_numpy()
    live = nasbench201_costs(samples, args.channels, args.cells, 10, args.resolution)['live parameters']
    common = {
        'epochs': args.epochs, 'data': Path(args.data).name, 'resolution': args.resolution, 'channels': args.channels,
        'cells': args.cells, 'batch_size': args.batch_size, 'lr': args.lr, 'ranked': len(ranked), 'skip': args.skip,
        'truth_column': args.truth_column, 'calibration_batches': args.calibration_batches,
        'commit': commit(),
    }  # fmt: skip
    rows, seeds = [], {}

    def add(seed: int | str, name: str, order: str, values: np.ndarray, bands: np.ndarray | None) -> None:
        report = ranking_report(values, truth, costs={}, leaves=bands, n_bootstrap=0).figures['estimates']
        rows.append({
            'ranked_by': name, 'order': order, 'seed': seed,
            **{figure: round(report[figure].value, 4) if figure in report else None for figure in FIGURES},
            **of_the_best(np.argsort(values, kind='stable')[::-1], truth),
            **common, 'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        })  # fmt: skip

    for seed in args.seeds:
        strategy = trained(args, data, BANDS, seed)
        bands = np.array([[sample in leaf.subspace for leaf in strategy.leaves].index(True) for sample in samples])
        losses = {'bands': pd.DataFrame(strategy.evaluate(samples))['val_loss']}
        strategy = trained(args, data, ONE, seed)
        losses['one supernet'] = pd.DataFrame(strategy.evaluate(samples))['val_loss']
        strategy.load(strategy.tree)
        lid = lid_score(strategy.supernet, samples, images_of(data, seed, LID_IMAGES))
        counted = {'live parameters': rankdata(live), 'LID': rankdata(lid)}
        rankings = {name: rankdata(-values.to_numpy()) for name, values in losses.items()} | counted
        rankings['live parameters and LID'] = combined(counted, COUNTED)
        for name, ranks in rankings.items():
            add(seed, name, 'as it is', ranks, bands)
            add(seed, name, 'true inside bands', reordered(ranks, truth, bands), bands)
            add(seed, name, 'true across bands', reordered(rankdata(truth), ranks, bands), bands)
            seeds.setdefault(name, []).append(ranks)
    for name in ('bands', 'one supernet'):
        add('mean', name, 'as it is', np.mean(seeds[name], 0), None)
    append(pd.DataFrame(rows), args.output)
    shown = [*FIGURES, 'first', 'mean_of_best_5%']
    of_seeds = pd.DataFrame(rows).assign(seed=lambda of: of['seed'].where(of['seed'] == 'mean', 'each'))
    print(of_seeds.groupby(['seed', 'ranked_by', 'order'], sort=False)[shown].mean().round(3).to_string())


if __name__ == '__main__':
    main()
