"""A search of one's own, asked and told: loss against FLOPs by Optuna's TPE (`pip install optuna`).

    OMP_NUM_THREADS=1 python examples/ask_tell_optuna.py

It trains a supernet on digits, or takes one that is there, and lets Optuna ask for architectures of it, one at a time.
Any optimizer that is asked and told can stand in its place. (For NSGA-II, `NASLID(search=NSGA2(['flops']))` does it.)
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser

from nni_naslid import NASLID

import optuna
import pytorch_lightning as pl
from nni.nas.hub.pytorch import NasBench201
from recipe import integer, load_data, make_evaluator


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

    choices = strategy.tree.subspace.splittable  # of each label
    space = {label: optuna.distributions.CategoricalDistribution(some) for label, some in choices.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=['minimize', 'minimize'], sampler=optuna.samplers.TPESampler(seed=0))
    for _ in range(args.evaluations):
        trial = study.ask(space)
        (metrics,), (costs,) = strategy.evaluate([trial.params]), strategy.costs([trial.params], ['flops'])
        study.tell(trial, [metrics['val_loss'], costs['flops']])
    # Each once, though it may have been asked for again.
    front = {(trial.values[1] / 1e6, trial.values[0], ' '.join(trial.params.values())) for trial in study.best_trials}
    print(f'\n{len(front)} architectures that no other one beats in both\nval_loss  MFLOPs  architecture')
    for flops, loss, name in sorted(front):
        print(f'{loss:8.3f}  {flops:6.2f}  {name}')


if __name__ == '__main__':
    main()
