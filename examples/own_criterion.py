"""A criterion of your own: which (sub-)supernets are split, into which parts, and why.

    OMP_NUM_THREADS=1 python examples/own_criterion.py

It splits the label whose candidates differ most in training loss. It takes about ten seconds.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from nni_naslid import NASLID, Split, SubSpace
from nni_naslid.criteria.criterion import Context
from nni_naslid.train.path import set_path

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import NasBench201
from recipe import load_data, make_evaluator


# 1. What speaks for a split: plain values, which are kept as JSON. The log, pictures, the page about a run
#    and the loggers of your trainer ask it.
@dataclass(frozen=True)
class Losses:
    """Mean training loss of paths through each candidate of each label."""

    label: str
    losses: dict[str, dict[str, float]]
    least: float

    @property
    def objection(self) -> str | None:
        """Why the node is not split, or ``None``."""
        return None if self.spread(self.label) > self.least else f'no losses differ by more than {self.least:g}'

    def spread(self, label: str) -> float:
        losses = self.losses[label].values()
        return max(losses) - min(losses)

    def describe(self) -> str:
        return f'losses differ by {self.spread(self.label):.3f}'

    def figure(self, title: str) -> Figure:
        figure = Figure(figsize=(4.3, 3.2), layout='constrained')
        axes = figure.add_subplot(title=title, xlabel=f'loss with each candidate of {self.label}')
        axes.barh(list(self.losses[self.label]), list(self.losses[self.label].values()))
        return figure

    def scalars(self) -> dict[str, float]:
        return {f'spread/{label}': self.spread(label) for label in self.losses}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# 2. How it is chosen: a frozen dataclass of plain settings.
@dataclass(frozen=True)
class ByLoss:
    """Splits the label whose candidates differ most in loss: the better half, and the worse one."""

    n_paths: int = 8
    least: float = 0.0
    max_groups: int = 2  # children of one split

    uses_metric: ClassVar[bool] = False  # whether a split depends on the monitor of the run

    def can_split(self, subspace: SubSpace) -> bool:
        return bool(subspace.splittable)

    def check(self, context: Context) -> dict[str, Any]:
        """Raise here what cannot work, before training. What is returned is ``context.checked`` in ``choose``."""
        if self.n_paths < 1:
            raise ValueError(f'n_paths must be at least 1, but is {self.n_paths}.')
        return {}

    def cost(self, space: SubSpace) -> int:
        """Forward passes of a batch, for the plan in the log."""
        return self.n_paths * sum(map(len, space.splittable.values()))

    @torch.no_grad()
    def choose(self, context: Context) -> Split:
        batch = next(iter(context.evaluator.train_dataloaders))
        paths = [context.subspace.sample(context.random_state) for _ in range(self.n_paths)]
        context.module.eval()  # its batch norms must not learn from this

        def loss(sample: dict[str, Any]) -> float:
            set_path(context.module, sample)
            return float(context.module.training_step(batch, 0))

        losses = {  # in the same paths, only the candidate in question is another
            label: {str(each): sum(loss({**path, label: each}) for path in paths) / self.n_paths for each in candidates}
            for label, candidates in context.subspace.splittable.items()
        }
        label = max(losses, key=lambda label: max(losses[label].values()) - min(losses[label].values()))
        order = torch.tensor(list(losses[label].values())).argsort().tolist()
        half = len(order) // 2
        groups = [sorted(order[:half]), sorted(order[half:])]
        return Split(context.subspace.split(label, groups), Losses(label, losses, self.least))

    def read_evidence(self, content: Mapping[str, Any]) -> Losses:
        return Losses(**content)


# 3. The run. With NNI trials the two classes above must be in a module that trials can import.
if __name__ == '__main__':
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--least', type=float, default=0.0, help='the difference of losses that is worth a split')
    parser.add_argument('--workdir', default='runs/own_criterion', help='started again, it goes on there')
    args = parser.parse_args()
    pl.seed_everything(0)  # the initial weights
    evaluator = make_evaluator(
        load_data('digits', 8), epochs=4, accelerator='cpu', devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    strategy = NASLID([2], criterion=ByLoss(least=args.least), search_budget=10, workdir=args.workdir)
    NasExperiment(NasBench201(4, 1, 10), evaluator, strategy).run()
    print(f'{strategy.tree.split.evidence.describe()}; see {args.workdir}/split-0.png')
