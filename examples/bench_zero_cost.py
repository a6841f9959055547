"""Measure how scores of untrained networks rank published true accuracies, and what LID adds to what is counted.

    python examples/bench_zero_cost.py --truth-folder published --data cifar10.npz

The folder holds `nasbench201.npz` (columns arch, c10_test_200, c10_params, c10_mflops) and, in `ground_truth/`,
`darts-cifar10.csv`, `darts-cifar10-seed43.csv` and `proxylessnas.csv` (architecture, accuracy, flops, params), which
come with "How Does Supernet Help in Neural Architecture Search?". Parameters and FLOPs are the published ones, live
parameters are counted at the published size. What needs weights is scored on a smaller network, with the initial
weights of a supernet and images that each seed draws anew; the seed `mean` has the mean of the ranks of all seeds.
Live parameters are added to half of the rank by each other score: that weight is the one of bench_lid_score.py, and
is not chosen here. One thread. Rows go to bench_zero_cost.csv beside this script (appended, never edited).
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1')  # read when libraries load

import json
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import NamedTuple

from nni_naslid import lid_score, ranking_report
from nni_naslid.analysis.truth import load_truth, nasbench201_sample
from nni_naslid.criteria.zero_cost_scores import naswot, synflow
from nni_naslid.train.data import Inputs
from nni_naslid.train.path import set_path
from nni_naslid.traits.live import live_parameters

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from bench_splits import hush
from nni.mutable import Sample
from nni.nas.hub.pytorch import DARTS, NasBench201, ProxylessNAS
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.strategy import RandomOneShot
from recipe import existing, integer, load_data
from rows import append, commit, processor
from scipy.stats import rankdata
from torch import Tensor

FIGURES = ('tau', 'P@5%', 'P@10%')
WEIGHT = 0.5  # of a score that is added to live parameters
LEAST = 10  # architectures in a top that a precision is of


def darts_sample(published: str) -> Sample:
    """NNI's sample of a published architecture: normal/2/0/op is normal/op_2_0, and one input is a list of one."""
    sample = {}
    for label, choice in json.loads(published).items():
        cell, node, number, what = label.split('/')
        sample[f'{cell}/{what}_{node}_{number}'] = [choice] if what == 'input' else choice
    return sample


def proxylessnas_sample(published: str) -> Sample:
    """The same for ProxylessNAS: 0 to 5 are candidates, and 6 is a block that is left out."""
    candidates = [f'k{kernel}e{ratio}' for kernel in (3, 5, 7) for ratio in (3, 6)]
    cells, sample = json.loads(published), {}
    for stage in range(6):
        chosen = (cells.get(f'stage{stage}_cell{cell}', 6) for cell in range(4))
        blocks = [candidates[choice] for choice in chosen if choice != 6]
        if stage < 5:
            sample[f's{stage + 2}_depth'] = len(blocks)
        for i in range(4 if stage < 5 else 1):  # a block beyond the depth needs some choice, too
            sample[f's{stage + 2}_i{i}'] = blocks[min(i, len(blocks) - 1)]
    return sample


class Space(NamedTuple):
    """A table of true accuracies, and the model space it is of."""

    table: str  # in the folder of truths
    accuracy: str  # its columns
    parameters: str
    flops: str
    sample: Callable[[str], Sample]
    published: Callable[[], ModelSpace]  # of the size that the table is of, or of one that orders networks alike
    scored: partial[ModelSpace]
    resolution: int  # of images that are scored
    other_seed: str | None = None  # the same table of another seed of training


PROXYLESS = partial(ProxylessNAS, base_widths=(40, 24, 32, 56, 112, 128, 256, 432, 1728))
SPACES = {
    'NAS-Bench-201': Space(
        'nasbench201.npz', 'c10_test_200', 'c10_params', 'c10_mflops', nasbench201_sample,
        partial(NasBench201, 16, 1), partial(NasBench201, 16, 1), 16,
    ),
    'DARTS': Space(
        'ground_truth/darts-cifar10.csv', 'accuracy', 'params', 'flops', darts_sample,
        partial(DARTS, width=36, num_cells=20), partial(DARTS, width=8, num_cells=4), 16,
        'ground_truth/darts-cifar10-seed43.csv',
    ),
    'ProxylessNAS': Space(
        'ground_truth/proxylessnas.csv', 'accuracy', 'params', 'flops', proxylessnas_sample,
        PROXYLESS, partial(PROXYLESS, width_mult=0.5), 64,
    ),
}  # fmt: skip


def supernet_of(make: Callable[[], ModelSpace]) -> ModelSpace:
    return RandomOneShot().mutate_model(make())


def live_of(space: Space, samples: list[Sample]) -> np.ndarray:
    images = torch.randn(2, 3, space.resolution, space.resolution)
    count = live_parameters(supernet_of(space.published), Inputs((images,), {}))
    return np.array([count(sample) for sample in samples], float)


def scores_of(supernet: ModelSpace, samples: list[Sample], images: Tensor, n_neighbors: int) -> dict[str, np.ndarray]:
    """What the weights of a supernet say of each sample."""
    found = {
        'LID': lid_score(supernet, samples, images, n_neighbors=n_neighbors).tolist(),
        'effective rank': lid_score(supernet, samples, images, estimator='effective_rank').tolist(),
        'NASWOT': [],
        'SynFlow': [],
    }
    for sample in samples:
        set_path(supernet, sample)
        found['NASWOT'].append(naswot(supernet, images))
        found['SynFlow'].append(synflow(supernet, images))
    return {name: np.array(values) for name, values in found.items()}


def ranks(values: np.ndarray) -> np.ndarray:
    return rankdata(values) / len(values)


def figures_of(values: np.ndarray, true: np.ndarray, live: np.ndarray, flops: np.ndarray, n_bootstrap: int) -> dict:
    """Columns of a row; of what has intervals, their ends, too."""
    report = ranking_report(values, true, costs={'live': live, 'FLOPs': flops}, n_bootstrap=n_bootstrap)
    found = {name: report.figures['estimates'][name] for name in FIGURES}
    found['tau_minus_live'] = report.differences['live']['tau']
    found |= {f'spearman_given_{cost}': report.partial[cost] for cost in ('live', 'FLOPs')}
    too_few = {f'P@{percent}%' for percent in (5, 10) if len(true) * percent < 100 * LEAST}
    row = {'first': round(float(true[values == values.max()].mean()), 5)}
    for name, (value, low, high) in found.items():
        kept = [np.nan] * 3 if name in too_few else [round(float(each), 4) for each in (value, low, high)]
        row |= dict(zip((name, f'{name}_low', f'{name}_high'), kept, strict=True))
    return row


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument('--truth-folder', required=True, type=Path, help='where the tables are')
    parser.add_argument('--spaces', default=list(SPACES), nargs='+', choices=list(SPACES), metavar='NAME')
    parser.add_argument('--ranked', default=1000, type=integer(4), help='architectures of a table, at most')
    parser.add_argument('--data', default='digits', type=existing, metavar='PATH', help='images, as of nasbench201.py')
    parser.add_argument('--images', default=64, type=integer(4), help='in the batch that is scored')
    parser.add_argument('--n-neighbors', default=20, type=integer(3), help='of the LID estimate')
    parser.add_argument('--seeds', default=[0, 1, 2], type=int, nargs='+')
    parser.add_argument('--n-bootstrap', default=200, type=integer(0), help='of the intervals of the mean')
    parser.add_argument('--output', default=Path(__file__).with_suffix('.csv'), type=Path, help='the CSV')
    args = parser.parse_args()
    hush()
    of_now = commit()
    for name in args.spaces:
        started = time.perf_counter()
        rows = pd.DataFrame(rows_of(name, args))
        size = SPACES[name].scored
        rows = rows.assign(
            size=' '.join(map(str, [*size.args, *(f'{key}={each}' for key, each in size.keywords.items())])),
            resolution=SPACES[name].resolution, data=Path(args.data).name, images=args.images,
            n_neighbors=args.n_neighbors, seconds=round(time.perf_counter() - started), device=processor(),
            torch=torch.__version__, commit=of_now, date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        )  # fmt: skip
        append(rows, args.output)
        shown = ['score', 'ranked', *FIGURES, 'first', 'tau_minus_live', 'spearman_given_live', 'spearman_given_FLOPs']
        print(f'{name}:\n{rows[rows["seed"] == "mean"][shown].round(3).to_string(index=False)}', flush=True)


def rows_of(name: str, args: Namespace) -> list[dict]:
    """All rows of a space."""
    space = SPACES[name]
    tables = [load_truth(args.truth_folder / space.table, column) for column in space[1:4]]
    chosen = np.sort(np.random.RandomState(0).permutation(len(tables[0]))[: args.ranked])
    truth, parameters, flops = (table.iloc[chosen] for table in tables)
    samples, true = [space.sample(arch) for arch in truth.index], truth.to_numpy()
    counted = {
        'parameters': parameters.to_numpy(), 'live parameters': live_of(space, samples), 'FLOPs': flops.to_numpy(),
    }  # fmt: skip
    live = counted['live parameters']
    by_seed = []
    for seed in args.seeds:
        pl.seed_everything(seed, verbose=False)
        data = load_data(args.data, space.resolution).train.tensors[0]
        images = data[np.random.RandomState(seed).permutation(len(data))[: args.images]]
        found = scores_of(supernet_of(space.scored), samples, images, args.n_neighbors)
        by_seed.append({each: ranks(values) for each, values in found.items()})
    mean = {each: ranks(np.mean([of_seed[each] for of_seed in by_seed], axis=0)) for each in by_seed[0]}
    rows = []

    def add(score: str, seed: int | str, values: np.ndarray) -> None:
        for sums, ranked in (('', values), (f'live parameters + {score}', ranks(live) + WEIGHT * ranks(values))):
            if score == 'live parameters' and sums:
                continue
            found = figures_of(ranked, true, live, counted['FLOPs'], args.n_bootstrap if seed == 'mean' else 0)
            rows.append({'space': name, 'score': sums or score, 'seed': seed, 'ranked': len(true), **found})

    for score, values in (*counted.items(), *mean.items()):
        add(score, 'mean', values)
    for seed, of_seed in zip(args.seeds, by_seed, strict=True):
        for score, values in of_seed.items():
            add(score, seed, values)
    if space.other_seed:
        other = load_truth(args.truth_folder / space.other_seed, space.accuracy)
        both = tables[0].index.intersection(other.index)
        report = ranking_report(other[both], tables[0][both], costs={}, n_bootstrap=args.n_bootstrap)
        tau = dict(zip(('tau', 'tau_low', 'tau_high'), np.round(report.figures['estimates']['tau'], 4), strict=True))
        rows.append({'space': name, 'score': 'another seed', 'seed': 'mean', 'ranked': len(both), **tau})
    return rows


if __name__ == '__main__':
    main()
