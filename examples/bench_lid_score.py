"""Measure what LID of the features says of a network, beside live parameters and a supernet's validation loss.

    python examples/bench_lid_score.py                                                    # digits, no download
    python examples/bench_lid_score.py --data cifar10.npz --resolution 16 --batch-size 100 --truth nasbench201.npz \\
        --truth-column c10_test_200 --epochs 96 --ranked 1000 --output lid_score.csv

Of each seed one supernet is trained (learning rate by size, as in bench_splits.py), and LID is scored with its initial
and with its trained weights. Scores are combined rank by rank. What is chosen, the weights of a combination and the
layers of "LID of chosen layers", is chosen on one half of the architectures, by tau plus P@10 %, and all figures are of
the other half. With --whole-table live parameters and half of LID, as was chosen on that half, also rank the whole
table, with that half in it. One thread. Rows go to bench_lid_score.csv beside this script (appended, never edited).
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1')  # read when libraries load

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import chain, combinations, product
from pathlib import Path

from nni_naslid import lid_score, ranking_report
from nni_naslid.analysis.baselines import nasbench201_costs
from nni_naslid.analysis.truth import load_truth, nasbench201_sample

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from bench_splits import add_arguments, combined, hush, images_of, of_the_best, ranked_of, trained
from nni.nas.hub.pytorch import NasBench201
from recipe import data_of, integer
from rows import append, commit, processor
from scipy.stats import rankdata

METHOD = 'one supernet, lr by size'
FIGURES = ('tau', 'P@1%', 'P@5%', 'P@10%', 'regret@1', 'regret@10')
WEIGHTS = (0.25, 0.5, 1, 2)
FIXED = {'live parameters': 1, 'LID': 0.5}  # what --whole-table ranks by
COMBINATIONS = (
    ('live parameters',),
    ('supernet',),
    ('initial LID',),
    ('LID',),
    ('live parameters', 'initial LID'),
    ('live parameters', 'LID'),
    ('live parameters', 'initial LID', 'LID'),
    ('supernet', 'live parameters'),
    ('supernet', 'initial LID'),
    ('supernet', 'LID'),
    ('supernet', 'live parameters', 'initial LID'),
    ('supernet', 'live parameters', 'LID'),
)


def choices(names: tuple[str, ...]) -> Iterator[dict[str, float]]:
    """Weights of a combination; the first score has the weight 1."""
    for weights in product(WEIGHTS, repeat=len(names) - 1):
        yield dict(zip(names, (1, *weights), strict=True))


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    add_arguments(parser, 'runs/lid-score')
    parser.add_argument('--images', default=128, type=integer(4), help='in the batch whose LID is taken')
    parser.add_argument('--n-neighbors', default=20, type=integer(3), help='of the LID estimate')
    parser.add_argument('--whole-table', action='store_true', help='rank all of the table, too')
    parser.add_argument('--output', default=Path(__file__).with_suffix('.csv'), type=Path, help='the CSV')
    args = parser.parse_args()
    hush()
    data, truth = data_of(parser, args), ranked_of(args)
    samples, true = [nasbench201_sample(arch) for arch in truth.index], truth.to_numpy()
    sizes = nasbench201_costs(samples, args.channels, args.cells, 10, args.resolution)
    common = {
        'data': Path(args.data).name, 'resolution': args.resolution, 'channels': args.channels, 'cells': args.cells,
        'epochs': args.epochs, 'batch_size': args.batch_size, 'lr': args.lr, 'ranked': len(truth),
        'images': args.images, 'n_neighbors': args.n_neighbors, 'device': processor(), 'torch': torch.__version__,
        'commit': commit(),
    }  # fmt: skip
    chosen_on = np.random.RandomState(0).permutation(len(truth)) % 2 == 0
    rows = []

    def add(seed: int, name: str, values: np.ndarray, of: np.ndarray, live: np.ndarray, weights: str = '') -> None:
        report = ranking_report(values, of, costs={'live': live}, n_bootstrap=0)
        figures = report.figures['estimates']
        rows.append({
            'scores': name, 'seed': seed, 'weights': weights, 'on': len(of),
            **{figure: round(figures[figure].value, 4) for figure in FIGURES},
            **of_the_best(np.argsort(values, kind='stable')[::-1], of),
            'spearman_given_live': round(report.partial['live'].value, 3),
            **common, 'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        })  # fmt: skip

    for seed in args.seeds:
        pl.seed_everything(seed, verbose=False)  # the initial weights of the supernet that is trained
        initial = NasBench201(args.channels, args.cells, 10)
        strategy = trained(args, data, METHOD, seed)
        losses = pd.DataFrame(strategy.evaluate(samples))['val_loss'].to_numpy()
        strategy.load(strategy.tree)
        images = images_of(data, seed, args.images)
        scores = {'supernet': -losses, 'live parameters': sizes['live parameters'].astype(float)}
        by_layer = {}
        for name, weights in (('initial LID', initial), ('LID', strategy.supernet)):
            by_layer[name] = {
                layer: lid_score(weights, samples, images, layers=[layer], n_neighbors=args.n_neighbors).numpy()
                for layer in [f'cells.{i}' for i in range(len(initial.cells))]
            }
            scores[name] = np.mean([*by_layer[name].values()], 0)  # which is the score by all of them
            scores[f'{name} of the first cell'] = by_layer[name]['cells.0']
        ranks = {name: rankdata(values) / len(values) for name, values in scores.items()}
        other = true[~chosen_on], sizes['live parameters'][~chosen_on]
        for name in ('initial LID of the first cell', 'LID of the first cell'):
            add(seed, name, ranks[name][~chosen_on], *other)
        for name, live in product(by_layer, (False, True)):
            best, values = of_chosen_layers(by_layer[name], ranks['live parameters'] if live else None, chosen_on, true)
            add(seed, f'{"live parameters + " * live}{name} of chosen layers', values[~chosen_on], *other, best)
        for names in COMBINATIONS:
            best = max(choices(names), key=lambda of: goodness(combined(ranks, of)[chosen_on], true[chosen_on]))
            weights = ' '.join(f'{weight:g}' for weight in best.values())
            add(seed, ' + '.join(names), combined(ranks, best)[~chosen_on], *other, weights)
        if args.whole_table:
            whole = load_truth(args.truth, args.truth_column)
            every = [nasbench201_sample(arch) for arch in whole.index]
            live = nasbench201_costs(every, args.channels, args.cells, 10, args.resolution)['live parameters']
            scores = {
                'live parameters': live,
                'LID': lid_score(strategy.supernet, every, images, n_neighbors=args.n_neighbors),
            }
            ranks = {name: rankdata(values) / len(whole) for name, values in scores.items()}
            for name, values in (*ranks.items(), (' + '.join(FIXED), combined(ranks, FIXED))):
                add(seed, name, values, whole.to_numpy(), live, '1 0.5' if '+' in name else '1')
    append(pd.DataFrame(rows), args.output)
    shown = [*FIGURES, 'first', 'mean_of_best_5%', 'spearman_given_live']
    print(pd.DataFrame(rows).groupby(['on', 'scores'], sort=False)[shown].mean().round(3).to_string())


def of_chosen_layers(
    by_layer: dict[str, np.ndarray], live: np.ndarray | None, chosen_on: np.ndarray, true: np.ndarray
) -> tuple[str, np.ndarray]:
    """The best mean of layers, and weight beside ranks by live parameters, if there are; and the ranking by these."""
    found = []
    sets = chain.from_iterable(combinations(by_layer, n) for n in range(1, len(by_layer) + 1))
    for layers, weight in product(sets, WEIGHTS if live is not None else (1,)):
        values = rankdata(np.mean([by_layer[layer] for layer in layers], 0)) / len(true)
        values = values if live is None else live + weight * values
        name = f'{"" if live is None else "1 "}{weight:g} of {" ".join(layers)}'
        found.append((goodness(values[chosen_on], true[chosen_on]), name, values))
    return max(found, key=lambda each: -np.inf if np.isnan(each[0]) else each[0])[1:]


def goodness(values: np.ndarray, true: np.ndarray) -> float:
    figures = ranking_report(values, true, costs={}, n_bootstrap=0).figures['estimates']
    return figures['tau'].value + figures['P@10%'].value


if __name__ == '__main__':
    main()
