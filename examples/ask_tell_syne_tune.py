"""A search of one's own, asked and told: loss against FLOPs by an evolution of Syne Tune's.

    pip install --no-deps syne-tune && pip install dill       # all that it names is 500 MB, which this does not use
    OMP_NUM_THREADS=1 python examples/ask_tell_syne_tune.py

It trains a supernet on digits, or takes one that is there, and lets Syne Tune ask for architectures of it, one at a
time.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser

from nni_naslid import NASLID
from nni_naslid.run.pareto import pareto_ranks

import pytorch_lightning as pl
from nni.nas.hub.pytorch import NasBench201
from recipe import integer, load_data, make_evaluator
from syne_tune.config_space import choice
from syne_tune.optimizer.schedulers.ask_tell_scheduler import AskTellScheduler
from syne_tune.optimizer.schedulers.multiobjective.multi_objective_regularized_evolution import (
    MultiObjectiveRegularizedEvolution,
)
from syne_tune.optimizer.schedulers.single_fidelity_scheduler import SingleFidelityScheduler


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument('--epochs', type=integer(1), default=20, help='of the supernet')
    parser.add_argument('--evaluations', type=integer(2), default=60, help='of the search')
    parser.add_argument('--workdir', default='runs/ask-tell', help='to go on after a kill')
    args = parser.parse_args()
    pl.seed_everything(0)
    evaluator = make_evaluator(
        load_data('digits', 8), epochs=args.epochs, accelerator='cpu', devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    strategy = NASLID(search_budget=1, workdir=args.workdir)
    strategy.fit(NasBench201(8, 1, 10), evaluator)

    space = {label: choice(choices) for label, choices in strategy.tree.subspace.splittable.items()}
    evolution = MultiObjectiveRegularizedEvolution(space, population_size=20, random_seed=0)
    scheduler = AskTellScheduler(SingleFidelityScheduler(space, ['val_loss', 'flops'], searcher=evolution))
    told = []
    for _ in range(args.evaluations):
        trial = scheduler.ask()
        (metrics,), (costs,) = strategy.evaluate([trial.config]), strategy.costs([trial.config], ['flops'])
        scheduler.tell(trial, {**metrics, **costs})
        told.append((costs['flops'] / 1e6, metrics['val_loss'], ' '.join(trial.config.values())))
    front = {each for each, rank in zip(told, pareto_ranks([each[:2] for each in told]), strict=True) if rank == 0}
    print(f'\n{len(front)} architectures that no other one beats in both\nval_loss  MFLOPs  architecture')
    for flops, loss, name in sorted(front):
        print(f'{loss:8.3f}  {flops:6.2f}  {name}')


if __name__ == '__main__':
    main()
