"""Measure what the package does not have, at the cost of what it has: prototypes in plain torch.

    python examples/bench_left_out.py                                                     # digits, no download
    python examples/bench_left_out.py --data cifar10.npz --resolution 16 --batch-size 100 --epochs 96 --ranked 400 \\
        --truth nasbench201.npz --truth-column c10_test_200 --output left_out.csv

All architectures of NAS-Bench-201 are put into four groups. A root trains a quarter of the epochs on all of them, then
copies of it share the others, a group each; or what is shared, kept or told apart is another thing: see METHODS. All
learning rates know the size of a path; copies begin without momentum. Networks are ranked by loss with inherited
weights, as by bench_splits.py; those of groups that are not trained on, by the root as it was. One thread. Rows go to
bench_left_out.csv beside this script (appended, never edited); what has a row is not measured again.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1')  # read when libraries load

import copy
import time
import warnings
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from itertools import product
from pathlib import Path

from nni_naslid import SubSpace, ranking_report
from nni_naslid.analysis.baselines import nasbench201_costs
from nni_naslid.analysis.truth import nasbench201_sample
from nni_naslid.search.batchnorm import recalibrate
from nni_naslid.space.additive import equal_bands
from nni_naslid.train.data import Inputs
from nni_naslid.train.learning_rate import PEAK, LearningRateBySize
from nni_naslid.train.path import set_path
from nni_naslid.train.structure import structural_score
from nni_naslid.train.supernet import make_supernet
from nni_naslid.traits.places import Place
from nni_naslid.traits.profile import path_profile, profile_layers, untouched

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from bench_splits import (
    FIGURES,
    LID_IMAGES,
    add_data_arguments,
    add_skip,
    hush,
    images_of,
    of_the_best,
    ranked_at_equal_cost,
)
from nni.nas.hub.pytorch import NasBench201
from recipe import Data, Recipe, data_of, make_optimizer
from rows import append, commit, processor
from scipy.stats import rankdata
from sklearn.cluster import KMeans
from sklearn.linear_model import Ridge
from torch import Tensor, nn

N_GROUPS = 4
PROFILED = 400  # random paths whose LID profiles are those of all architectures predicted from
COMPARED = 40  # networks of each group that say which group is the best

Groups = list[np.ndarray]  # numbers of the architectures of each


class Prototype:
    """A supernet, all its architectures, and one seed."""

    def __init__(self, args: Namespace, data: Data, seed: int):
        pl.seed_everything(seed, verbose=False)
        self.args, self.data, self.seed = args, data, seed
        self.root = make_supernet(NasBench201(args.channels, args.cells, 10))
        self.space = SubSpace.of(self.root)
        labels = self.space.splittable
        self.samples = [dict(zip(labels, choices, strict=True)) for choices in product(*labels.values())]
        self.rate = LearningRateBySize(self.root, self.space)
        self.random = np.random.RandomState(seed)
        x, _ = data.train.tensors
        drawn = self.random.permutation(len(x))[: args.calibration_batches * args.batch_size]
        self.calibration = [Inputs((batch,), {}) for batch in x[drawn].split(args.batch_size)]
        self.steps = 0  # so far

    def split_into(self, groups: Groups) -> Groups:
        self.group_of = np.empty(len(self.samples), int)
        for i, group in enumerate(groups):
            self.group_of[group] = i
        return groups

    def train(
        self, nets: Sequence[nn.Module], groups: Groups, first: int, epochs: int, total: int, apart: bool = False
    ) -> None:
        """Train networks in turn, each on paths of its group, which may share weights, from an epoch of a schedule on.

        With ``apart``, all groups are of the first network, and the momentum of each is its own.
        """
        args, (x, y) = self.args, self.data.train.tensors
        recipe = Recipe(args.lr, augment=args.data != 'digits').train()
        per_epoch = len(x) // args.batch_size
        owners = [nets[0]] * len(groups) if apart else [nn.ModuleList(nets)]  # shared weights count once
        made = [make_optimizer(owner, args.lr, total * per_epoch) for owner in owners]
        for optimizer, scheduler in made:  # the schedule of a training that has come so far
            optimizer.zero_grad()  # weights that are shared with a root have its last gradient
            optimizer.param_groups[0][PEAK] = args.lr if first else 0.0
            for _ in range(first * per_epoch):
                optimizer.step()  # without a gradient it does nothing
                scheduler.step()
        for _ in range(epochs):
            for batch in torch.randperm(len(x))[: per_epoch * args.batch_size].view(per_epoch, -1):
                turn = self.steps % len(groups)
                if apart:  # as in one supernet: groups as often as they are large
                    turn = self.group_of[self.random.randint(len(self.samples))]
                path = self.samples[self.random.choice(groups[turn])]
                net, optimizer = nets[0 if apart else turn], made[turn if apart else 0][0]
                set_path(net.train(), path)
                recipe.set_model(net)
                self.rate.scale([optimizer], path)
                optimizer.zero_grad()
                recipe.training_step((x[batch], y[batch]), 0).backward()
                optimizer.step()
                self.rate.stepped()
                with warnings.catch_warnings():  # that of another band has not stepped yet
                    warnings.simplefilter('ignore')
                    for _, scheduler in made:
                        scheduler.step()
                self.steps += 1

    @torch.no_grad()
    def loss(self, net: nn.Module, sample: dict) -> float:
        """On the validation images, with batch norms of this network."""
        set_path(net, sample)
        recalibrate(net, self.calibration)
        batches = zip(*(tensor.split(500) for tensor in self.data.valid.tensors), strict=True)
        total = sum(F.cross_entropy(net(x), y, reduction='sum').item() for x, y in batches)
        return total / len(self.data.valid)

    def profiles(self) -> np.ndarray:
        """LID profiles that the root would have with each architecture, of logarithms, in deviations."""
        x = Inputs((images_of(self.data, self.seed, LID_IMAGES),), {})
        places = {name: Place() for name in profile_layers(self.root)}
        drawn = self.random.choice(len(self.samples), PROFILED, replace=False)
        found: list[Tensor] = []
        for i in drawn:
            set_path(self.root, self.samples[i])
            with untouched(self.root):
                found.append(path_profile(self.root, x, places).log1p())
        edges = pd.get_dummies(pd.DataFrame(self.samples)).to_numpy(float)
        one, other = np.triu_indices(edges.shape[1])
        pairs = edges[:, one] * edges[:, other]
        measured = torch.stack(found).numpy()
        predicted = Ridge(10.0).fit(pairs[drawn], measured).predict(pairs)
        return (predicted - predicted.mean(0)) / measured.std(0).clip(1e-6)

    def by_convolutions(self) -> Groups:
        score = structural_score(self.root, self.space, 'convolutions')
        values = np.array([score.of(sample) for sample in self.samples])
        histogram = dict(zip(*np.unique(values, return_counts=True), strict=True))
        histogram = {int(value): int(count) for value, count in histogram.items()}
        return [np.flatnonzero((values >= low) & (values <= high)) for low, high in equal_bands(histogram, N_GROUPS)]

    def by_operation(self) -> Groups:
        """Of one edge, which all networks have."""
        operations = np.array([str(sample['cell/0_3']) for sample in self.samples])
        return [np.flatnonzero(operations == each) for each in np.unique(operations)]

    def by_chance(self) -> Groups:
        """Of equal size: whether it is bands that matter, or more momenta."""
        return np.array_split(self.random.permutation(len(self.samples)), N_GROUPS)

    def by_lid_given_size(self) -> Groups:
        size = rankdata(nasbench201_costs(self.samples, self.args.channels, self.args.cells, 10)['live parameters'])
        lid = rankdata(self.profiles().mean(1))
        beyond = lid - np.polyval(np.polyfit(size, lid, 3), size)
        return np.array_split(np.argsort(beyond, kind='stable'), N_GROUPS)

    def by_profiles(self) -> Groups:
        cluster = KMeans(N_GROUPS, n_init=4, random_state=self.seed).fit_predict(self.profiles())
        return [np.flatnonzero(cluster == i) for i in range(N_GROUPS)]


def in_leaves(proto: Prototype, groups_of: Callable[[], Groups]) -> list[nn.Module]:
    """A quarter of the epochs for the root, and a quarter of the others for each leaf, as ``plan_epochs`` has it."""
    everything = np.arange(len(proto.samples))
    root = proto.args.epochs // 4
    leaf = (proto.args.epochs - root) // N_GROUPS
    proto.train([proto.root], [everything], 0, root, root + leaf)
    leaves = []
    for group in proto.split_into(groups_of()):
        leaves.append(copy.deepcopy(proto.root))
        proto.train(leaves[-1:], [group], root, leaf, root + leaf)
    return leaves


def one_loop(proto: Prototype) -> list[nn.Module]:
    """All leaves in one training, in turn; before the last stage they share all weights."""
    root, total = proto.args.epochs // 4, proto.args.epochs
    proto.train([proto.root], [np.arange(len(proto.samples))], 0, root, total)
    groups = proto.split_into(proto.by_convolutions())
    leaves = [copy.deepcopy(proto.root) for _ in groups]
    last = len(proto.root.cells) - proto.args.cells
    for leaf in leaves:
        leaf.stem = proto.root.stem
        for i in range(last):
            leaf.cells[i] = proto.root.cells[i]
    proto.train(leaves, groups, root, total - root, total)
    return leaves


def in_one_supernet(proto: Prototype, groups: Groups) -> list[nn.Module]:
    """One supernet, which has a momentum for each group."""
    proto.train([proto.root], proto.split_into(groups), 0, proto.args.epochs, proto.args.epochs, apart=True)
    return [proto.root] * len(groups)


def keep_the_best(proto: Prototype) -> list[nn.Module]:
    """Go on with the bands whose mean loss is the lowest, or cannot be told from it (two standard errors).

    The root has come to the highest rate of the schedule, so the networks of the other bands have higher losses than
    they would have at its end: of the ranking, its head counts.
    """
    root, total = proto.args.epochs // 4, proto.args.epochs
    proto.train([proto.root], [np.arange(len(proto.samples))], 0, root, total)
    groups = proto.split_into(proto.by_convolutions())
    losses = [
        [proto.loss(proto.root, proto.samples[i]) for i in proto.random.choice(group, COMPARED)] for group in groups
    ]
    means, errors = np.mean(losses, 1), np.std(losses, 1, ddof=1) / COMPARED**0.5
    best = means.argmin()
    kept = means - means[best] <= 2 * np.hypot(errors, errors[best])
    print(f'Mean losses of the bands {means.round(3)} +- {errors.round(3)}: keeps {np.flatnonzero(kept)}')
    branch = copy.deepcopy(proto.root)
    together = np.concatenate([group for group, keep in zip(groups, kept, strict=True) if keep])
    proto.train([branch], [together], root, total - root, total)
    return [branch if keep else proto.root for keep in kept]


METHODS: dict[str, Callable[[Prototype], list[nn.Module]]] = {
    'keep the best band': keep_the_best,
    'one loop, a last stage of each band': one_loop,
    'a momentum of each band': lambda proto: in_one_supernet(proto, proto.by_convolutions()),
    'a momentum of each operation of an edge': lambda proto: in_one_supernet(proto, proto.by_operation()),
    'a momentum of each random group': lambda proto: in_one_supernet(proto, proto.by_chance()),
    'one supernet': lambda proto: in_one_supernet(proto, [np.arange(len(proto.samples))]),  # control
    'bands of LID given live parameters': lambda proto: in_leaves(proto, proto.by_lid_given_size),
    'groups of whole LID profiles': lambda proto: in_leaves(proto, proto.by_profiles),
    'bands of convolutions': lambda proto: in_leaves(proto, proto.by_convolutions),  # control
}


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    add_data_arguments(parser)
    add_skip(parser)
    parser.add_argument('--methods', default=list(METHODS), nargs='+', choices=list(METHODS), metavar='NAME')
    parser.add_argument('--output', default=Path(__file__).with_suffix('.csv'), type=Path, help='the CSV')
    args = parser.parse_args()
    hush()
    ranked, setting = ranked_at_equal_cost(parser, args)
    data, samples = data_of(parser, args), [nasbench201_sample(arch) for arch in ranked.index]
    for seed, method in product(args.seeds, args.methods):
        this = {'method': method, 'seed': seed, 'epochs': args.epochs, **setting}
        if args.output.exists() and (pd.read_csv(args.output)[list(this)] == pd.Series(this)).all(axis=1).any():
            continue
        started = time.perf_counter()
        proto = Prototype(args, data, seed)
        nets = METHODS[method](proto)
        seconds = round(time.perf_counter() - started)
        at = {repr(sorted(sample.items())): i for i, sample in enumerate(proto.samples)}
        groups = [proto.group_of[at[repr(sorted(sample.items()))]] for sample in samples]
        values = np.array([-proto.loss(nets[group], sample) for group, sample in zip(groups, samples, strict=True)])
        figures = ranking_report(values, ranked.to_numpy(), costs={}, n_bootstrap=0).figures['estimates']
        row = {
            **this, 'by': 'val_loss', **{name: round(figures[name].value, 4) for name in FIGURES},
            **of_the_best(np.argsort(values)[::-1], ranked.to_numpy()), 'steps': proto.steps, 'seconds': seconds,
            'device': processor(), 'torch': torch.__version__, 'commit': commit(),
            'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        }  # fmt: skip
        append(pd.DataFrame([row]), args.output)
        print(f'{method}, seed {seed}: tau {row["tau"]}, {seconds} s', flush=True)
    rows = pd.read_csv(args.output)
    print(rows.groupby('method')[[*FIGURES, 'first', 'mean_of_best_5%', 'steps']].mean().round(3).to_string())


if __name__ == '__main__':
    main()
