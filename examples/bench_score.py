"""Time how long it takes to score a sub-network, beside the forward passes that this needs.

    python examples/bench_score.py

One thread, CPU time. A score is ``NASLID.evaluate`` (five in a call): set the path, recalibrate batch norms
on ten batches, validate by Lightning, keep the result. The rival is a bare loop in torch over the same calibration and
validation batches. Rows go to bench_score.csv beside this script (appended, never edited).
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1')  # read when libraries load

import logging
import platform
import tempfile
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from datetime import datetime, timezone
from pathlib import Path

from nni_naslid import NASLID
from nni_naslid.train.path import set_path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from bench_path import SPACES
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.experiment import NasExperiment
from rows import append, commit, processor
from torch.utils.data import TensorDataset

BATCH, IMAGE, CALIBRATION, VALIDATION = 64, 32, 10, 8  # the last two in batches
SAMPLES = 5  # a round


class Module(LightningModule):
    def forward(self, x):
        outputs = self.model(x)
        return outputs[0] if isinstance(outputs, tuple) else outputs  # of DARTS, whose second head is for training

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log('val_loss', F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader(batches: int) -> DataLoader:
    images, labels = torch.randn(batches * BATCH, 3, IMAGE, IMAGE), torch.randint(10, (batches * BATCH,))
    return DataLoader(TensorDataset(images, labels), BATCH)


def bare(supernet: torch.nn.Module, sample: dict, train: list, validation: list) -> None:
    """What a score needs, with nothing around it."""
    set_path(supernet, sample)
    with torch.no_grad():
        supernet.train()
        for images, _ in train:
            supernet(images)
        supernet.eval()
        for images, labels in validation:
            outputs = supernet(images)
            F.cross_entropy(outputs[0] if isinstance(outputs, tuple) else outputs, labels)


def measure(name: str, rounds: int) -> dict:
    train, validation = loader(CALIBRATION), loader(VALIDATION)
    trainer = Trainer(
        max_epochs=1, limit_train_batches=1, accelerator='cpu', devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    evaluator = Lightning(Module(), trainer, train_dataloaders=train, val_dataloaders=validation)
    with tempfile.TemporaryDirectory() as workdir:
        strategy = NASLID(calibration_batches=CALIBRATION, search_budget=1, workdir=workdir)
        experiment = NasExperiment(SPACES[name](), evaluator, strategy)
        experiment.run()
        random_state = np.random.RandomState(0)
        batches = list(train), list(validation)
        times = {'score': [], 'forward': []}
        for _ in range(1 + rounds):  # the first is not measured
            samples = [strategy.tree.subspace.sample(random_state) for _ in range(SAMPLES)]
            start = time.process_time()
            for sample in samples:
                bare(strategy.supernet, sample, *batches)
            middle = time.process_time()
            strategy.evaluate(samples)
            times['forward'].append((middle - start) * 1000 / SAMPLES)
            times['score'].append((time.process_time() - middle) * 1000 / SAMPLES)
        experiment.stop()
    ratios = np.divide(times['score'][1:], times['forward'][1:])
    return {
        'space': name, 'batch': BATCH, 'image': IMAGE, 'calibration': CALIBRATION, 'validation': VALIDATION,
        'score_p50_ms': np.median(times['score'][1:]).round(1),
        'forward_p50_ms': np.median(times['forward'][1:]).round(1),
        'ratio_p20': np.percentile(ratios, 20).round(3), 'ratio_p50': np.median(ratios).round(3),
        'ratio_p80': np.percentile(ratios, 80).round(3),
    }  # fmt: skip


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument('--rounds', default=7, type=int, help='measured rounds of each space')
    parser.add_argument('--spaces', default=list(SPACES), nargs='+', choices=list(SPACES), metavar='SPACE')
    parser.add_argument('--output', default=Path(__file__).with_suffix('.csv'), type=Path, help='the CSV')
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger('pytorch_lightning').setLevel(logging.ERROR)
    common = {
        'device': processor(), 'threads': 1, 'torch': torch.__version__, 'python': platform.python_version(),
        'commit': commit(),
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
    }  # fmt: skip
    rows = pd.DataFrame([{**measure(name, args.rounds), **common} for name in args.spaces])
    append(rows, args.output)
    print(
        rows[['space', 'score_p50_ms', 'forward_p50_ms', 'ratio_p20', 'ratio_p50', 'ratio_p80']].to_string(index=False)
    )


if __name__ == '__main__':
    main()
