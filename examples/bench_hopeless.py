"""Measure what stopping hopeless leaves saves, and whether the picks of the search stay the same.

    python examples/bench_hopeless.py

One thread. Trees of up to eight leaves are trained on digits, split at random and by LID, with three seeds each, and
random networks are scored; no leaf is stopped. Then the decisions of `stop_hopeless` are replayed on the recorded
curves, by loss and by accuracy, for several thresholds: how many epochs are saved, and how good are the networks of
leaves that are stopped? One tree is trained again with `stop_hopeless` set: replay and run must agree. Rows go to
bench_hopeless.csv beside this script (appended, never edited). Started again after a kill, it goes on.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1')  # read when libraries load

import logging
import warnings
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from datetime import datetime, timezone
from pathlib import Path

from nni_naslid import LID, NASLID, RandomSplit
from nni_naslid.run.record import Record, read_record
from nni_naslid.run.settings import PLAIN
from nni_naslid.train.hopeless import is_hopeless

import pandas as pd
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import NasBench201
from nni.nas.strategy import Random
from recipe import load_data, make_evaluator
from rows import append, commit, processor
from torch.utils.data import TensorDataset

RESOLUTION, CHANNELS, BATCH = 8, 8, 50
IMAGES = 2000, 586  # to train on and to validate on: with all digits of the examples it would take hours
EPOCHS, SPLIT_EPOCHS = 40, (8, 12, 16)
SCORED = 200  # networks
CRITERIA = {'random': RandomSplit(), 'lid': LID(min_contrast=0)}
SIGNS = {'val_loss': -1, 'val_acc': 1}
THRESHOLDS = (0.8, 0.9, 0.95, 0.99)
RUN = 'random', 0, 'val_loss', 0.8  # trained again with stopping


def train(workdir: Path, criterion: str, seed: int, monitor: str = 'val_loss', stop_hopeless: float = 0.0) -> Record:
    """A finished run; what is there already is not done again."""
    data = load_data('digits', RESOLUTION)
    train, valid = (TensorDataset(*part[:n]) for part, n in zip(data, IMAGES, strict=False))
    pl.seed_everything(seed, verbose=False)  # the initial weights
    space = NasBench201(CHANNELS, 1, 10)
    evaluator = make_evaluator(
        data._replace(train=train), epochs=EPOCHS, batch_size=BATCH, accelerator='cpu', devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    evaluator.val_dataloaders = DataLoader(valid, BATCH)  # a path for each batch: those of 500 are few
    strategy = NASLID(
        SPLIT_EPOCHS, criterion=CRITERIA[criterion], search=Random(seed=seed), search_budget=SCORED,
        calibration_batches=5, monitor=monitor, mode='max' if SIGNS[monitor] > 0 else 'min',
        stop_hopeless=stop_hopeless, workdir=workdir, seed=seed, **PLAIN,
    )  # fmt: skip
    experiment = NasExperiment(space, evaluator, strategy)
    if not experiment.run():
        raise SystemExit('Interrupted.')
    experiment.stop()
    return read_record(workdir)


def replay(record: Record, monitor: str, threshold: float) -> dict[str, int]:
    """After which epoch each hopeless leaf would have been stopped, as leaves were trained one after another."""
    finished, stopped = [], {}
    for leaf in record.root.leaves:
        curve = {epoch: SIGNS[monitor] * metrics[monitor] for epoch, metrics in record.curves[leaf.name].items()}
        due = record.settings.next_stop(leaf.earliest_stop, EPOCHS)  # up to a split epoch it was not a leaf
        for epoch in sorted(curve)[:-1]:
            if (epoch > due or due == EPOCHS) and is_hopeless(
                finished, {at: value for at, value in curve.items() if at <= epoch}, threshold
            ):
                stopped[leaf.name] = epoch
                break
        else:
            finished.append(curve)
    return stopped


def describe(record: Record, monitor: str, stopped: dict[str, int]) -> dict[str, object]:
    """What stopping saves, and where the best networks of a run without it are."""
    ranked = sorted(record.scores, key=lambda score: SIGNS[monitor] * score.metrics[monitor], reverse=True)
    in_stopped = [score.leaf.name in stopped for score in ranked]
    saved = sum(EPOCHS - epoch for epoch in stopped.values())
    epochs = sum((leaf.end_epoch if leaf.stopped is None else EPOCHS) - leaf.start_epoch for leaf in record.root)
    return {
        'leaves': len(record.root.leaves), 'stopped': len(stopped), 'epochs': epochs, 'saved': saved,
        'saved_share': round(saved / epochs, 3), 'scored': len(ranked), 'top1_in_stopped': int(in_stopped[0]),
        'top5_in_stopped': sum(in_stopped[:5]), 'share_in_stopped': round(sum(in_stopped) / len(ranked), 3),
        'best_rank_in_stopped': in_stopped.index(True) + 1 if any(in_stopped) else '',
        'at': ' '.join(f'{name}@{epoch}' for name, epoch in stopped.items()),
    }  # fmt: skip


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument('--seeds', default=[0, 1, 2], type=int, nargs='+', help='of the trees')
    parser.add_argument('--criteria', default=list(CRITERIA), nargs='+', choices=list(CRITERIA), metavar='NAME')
    parser.add_argument('--runs', default=Path('runs/hopeless'), type=Path, help='folder of the work folders')
    parser.add_argument('--output', default=Path(__file__).with_suffix('.csv'), type=Path, help='the CSV')
    args = parser.parse_args()
    torch.set_num_threads(1)
    for chatty in ('pytorch_lightning', 'nni.experiment', 'nni.nas.experiment'):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', category=UserWarning, module='pytorch_lightning')
    common = {
        'device': processor(), 'torch': torch.__version__,
        'commit': commit(),
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
    }  # fmt: skip
    rows = []
    for criterion in args.criteria:
        for seed in args.seeds:
            record = train(args.runs / f'{criterion}-seed{seed}', criterion, seed)
            for monitor in SIGNS:
                for threshold in THRESHOLDS:
                    tree = {'criterion': criterion, 'seed': seed, 'monitor': monitor, 'threshold': threshold}
                    stopped = replay(record, monitor, threshold)
                    rows.append({'kind': 'replay', **tree, **describe(record, monitor, stopped), **common})
                    if tuple(tree.values()) == RUN:
                        again = train(args.runs / f'{criterion}-seed{seed}-stopped', criterion, seed, *RUN[2:])
                        found = {leaf.name: leaf.end_epoch for leaf in again.root.leaves if leaf.stopped}
                        rows.append({'kind': 'run', **tree, **describe(again, monitor, found), **common})
                        if found != stopped:
                            raise SystemExit(f'The run stopped {found}, but the replay {stopped}.')
    table = pd.DataFrame(rows)
    append(table, args.output)
    print(table.drop(columns=['at', *common]).to_string(index=False))


if __name__ == '__main__':
    main()
