"""A search of one's own over a trained supernet: loss against FLOPs by Optuna's NSGA-II (`pip install optuna`).

    OMP_NUM_THREADS=1 python examples/pareto.py

It trains a supernet on digits without an experiment of NNI's, lets Optuna ask for architectures, and prints those that
no other one beats in both, with a picture. Random search has as many evaluations.
"""

from __future__ import annotations

import warnings
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser

from nni_naslid import NASLID

import matplotlib.pyplot as plt
import optuna
import pytorch_lightning as pl
from nni.nas.hub.pytorch import NasBench201
from recipe import integer, load_data, make_evaluator


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument('--epochs', type=integer(1), default=20, help='of the supernet')
    parser.add_argument('--evaluations', type=integer(2), default=150, help='of each search')
    parser.add_argument('--workdir', default='runs/pareto', help='to go on after a kill')
    args = parser.parse_args()
    pl.seed_everything(0)
    evaluator = make_evaluator(
        load_data('digits', 8), epochs=args.epochs, accelerator='cpu', devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    strategy = NASLID(lr_by_size=True, search_budget=1, workdir=args.workdir)
    strategy.fit(NasBench201(8, 1, 10), evaluator)
    space = strategy.tree.subspace

    def objectives(trial: optuna.Trial) -> tuple[float, float]:
        sample = {label: trial.suggest_categorical(label, choices) for label, choices in space.splittable.items()}
        (metrics,), (costs,) = strategy.evaluate([sample]), strategy.costs([sample], ['flops'])
        return metrics['val_loss'], costs['flops'] / 1e6

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings('ignore', category=optuna.exceptions.ExperimentalWarning)
    samplers = {
        'NSGA-II': optuna.samplers.NSGAIISampler(population_size=20, seed=0),
        'random': optuna.samplers.RandomSampler(seed=0),
    }
    for name, sampler in samplers.items():
        study = optuna.create_study(directions=['minimize', 'minimize'], sampler=sampler)
        study.set_metric_names(['val_loss', 'MFLOPs'])
        study.optimize(objectives, n_trials=args.evaluations)
        print(f'\n{name}: {len(study.best_trials)} architectures that no other one beats in both')
        print('val_loss  MFLOPs  architecture')
        for trial in sorted(study.best_trials, key=lambda trial: trial.values[1]):
            print(f'{trial.values[0]:8.3f}  {trial.values[1]:6.2f}  {" ".join(map(str, trial.params.values()))}')
        optuna.visualization.matplotlib.plot_pareto_front(study)
        plt.savefig(f'{args.workdir}/{name}.png', dpi=120, bbox_inches='tight')


if __name__ == '__main__':
    main()
