"""What test_resume.py and test_trials.py start and kill: a run on digits, with all the randomness training may have.

    python killed_run.py WORKDIR [--accelerator gpu]
    python killed_run.py WORKDIR --port PORT [--resume EXPERIMENT] [--machine JSON]

With a port its tasks are trials of an NNI experiment there, on this machine or on one of NNI's remote service.
"""

import json
import logging
import sys
from argparse import ArgumentParser
from pathlib import Path

from nni_naslid import NASLID

import nni
import pytorch_lightning as pl
import torch
from nni.experiment.config.training_services import RemoteMachineConfig
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.hub.pytorch import NasBench201
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples'))

from recipe import Data, load_data, make_evaluator

torch.set_num_threads(1)  # also where a trial imports this: threads change rounding


@nni.trace
class Few(TensorDataset):
    """The first images of one of the three parts of digits, made easy by their brightness."""

    def __init__(self, part: int, n: int):
        x, y = load_data('digits', 8)[part][:n]
        super().__init__(x + y.view(-1, 1, 1, 1) / 2, y)


@nni.trace
class Epochs(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        print('Epoch', trainer.current_epoch, float(torch.rand(1)), flush=True)


def make_run(workdir: str, accelerator: str = 'cpu') -> tuple:
    """Space, evaluator and strategy."""
    pl.seed_everything(0, verbose=False)
    data = Data(Few(0, 200), Few(1, 100), Few(2, 100))
    evaluator = make_evaluator(
        data, epochs=6, lr=0.05, batch_size=40, augment=True, accelerator=accelerator, devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, callbacks=[Epochs()],
    )  # fmt: skip
    strategy = NASLID(
        [3], criterion='lid', repeats=32, min_contrast=0, n_neighbors=5, search_budget=8, calibration_batches=2,
        workdir=workdir, monitor='val_loss', keep_epochs=[2, 4],
    )  # fmt: skip
    return NasBench201(4, 1, 10), evaluator, strategy


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument('workdir')
    parser.add_argument('--port', type=int)
    parser.add_argument('--resume')
    parser.add_argument('--machine', type=json.loads)
    parser.add_argument('--accelerator', default='cpu')
    args = parser.parse_args()
    if args.port is None:
        NasExperiment(*make_run(args.workdir, args.accelerator)).run()
    else:
        config = NasExperimentConfig('ts', 'simplified', 'remote' if args.machine else 'local')
        config.trial_concurrency = 2
        config.max_trial_number = 5  # 4 tasks, and one more try
        if args.machine:
            config.training_service.machine_list = [RemoteMachineConfig(**args.machine)]
        experiment = NasExperiment(*make_run(args.workdir), config, id=args.resume)
        print('Experiment', experiment.id, flush=True)
        (experiment.resume if args.resume else experiment.run)(args.port)
        print('Best', experiment.export_top_models(3, formatter='dict'), flush=True)
        experiment.stop()
    logging.shutdown()


if __name__ == '__main__':
    # Not as __main__, where trials would not find the classes.
    from killed_run import main

    main()
