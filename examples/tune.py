"""The trial of tune.yml: one run of NAS-LID on digits with the settings that NNI's tuner proposes.

A run whose nodes are all split costs 40 epochs of a supernet: where splits are many or early, leaves are trained less.
(A node that does not separate stays one supernet, and the run costs less; `cost` tells.) The metric is Kendall's
tau with the true *validation* accuracies of the package's table, so that its test accuracies stay untouched.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

from nni_naslid import LID, NASLID, RandomSplit, ranking_report
from nni_naslid.analysis.truth import DIGITS_TRUTH, load_truth, nasbench201_sample
from nni_naslid.train.reports import current_trial

import nni
import pytorch_lightning as pl
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import NasBench201
from recipe import load_data, make_evaluator

COST = 40


def length(split_epochs: list[int]) -> int:
    """Epochs from the root to a leaf of a tree that costs about COST epochs, if each node is split in two."""
    cost = sum(2**level * (stop - start) for level, (start, stop) in enumerate(pairwise([0, *split_epochs])))
    return split_epochs[-1] + round((COST - cost) / 2 ** len(split_epochs))


def main() -> None:
    proposed = nni.get_next_parameter()
    if not proposed:
        raise SystemExit('tune.py is a trial; start it by  nnictl create --config examples/tune.yml')
    split_epochs = [proposed['first_split']]
    if proposed['second_split']:
        split_epochs.append(split_epochs[0] + proposed['second_split'])
    pl.seed_everything(0)
    evaluator = make_evaluator(
        load_data('digits', 8), epochs=length(split_epochs), accelerator='cpu', devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    criterion = LID(repeats=proposed['repeats']) if proposed['criterion'] == 'lid' else RandomSplit()
    strategy = NASLID(
        split_epochs, criterion=criterion, search_budget=1,
        workdir=Path(os.environ['NNI_OUTPUT_DIR']) / 'naslid',
    )  # fmt: skip
    with current_trial():
        NasExperiment(NasBench201(8, 1, 10), evaluator, strategy).run()
    truth = load_truth(DIGITS_TRUTH, 'valid_acc')
    losses = [metrics['val_loss'] for metrics in strategy.evaluate(map(nasbench201_sample, truth.index))]
    report = ranking_report([-loss for loss in losses], truth)
    nni.report_final_result({'default': report['tau'], 'cost': strategy.tree.cost, **report})


if __name__ == '__main__':
    main()
