"""What test_resume.py starts and kills: a run on digits, with everything random that training may have."""

import logging
import sys
from argparse import Namespace
from pathlib import Path

from nni_naslid import NASLID

import pytorch_lightning as pl
import torch
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import NasBench201
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples'))

from recipe import Data, load_data, make_evaluator


class Epochs(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        print('Epoch', trainer.current_epoch, float(torch.rand(1)), flush=True)


def main(workdir: str) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(0)
    data = load_data('digits', 8)
    data = Data(*(TensorDataset(*part[:n]) for part, n in zip(data, (200, 100, 100), strict=True)))
    evaluator = make_evaluator(
        Namespace(lr=0.05, batch_size=40, data='augmented digits'), data, 6, accelerator='cpu', devices=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[Epochs()],
    )  # fmt: skip
    strategy = NASLID(
        [3], repeats=16, n_neighbors=5, search_budget=8, calibration_batches=2, workdir=workdir, monitor='val_loss'
    )
    experiment = NasExperiment(NasBench201(4, 1, 10), evaluator, strategy)
    experiment.run()
    logging.shutdown()


if __name__ == '__main__':
    main(sys.argv[1])
