"""NAS-LID in an NNI project: the strategy is the only line that is not NNI's.

python examples/dropin.py
"""

from __future__ import annotations

from argparse import Namespace

from nni_naslid import NASLID

import pytorch_lightning as pl
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import NasBench201
from recipe import load_data, make_evaluator

pl.seed_everything(0)  # the initial weights
space = NasBench201(8, 1, 10)
evaluator = make_evaluator(
    Namespace(data='digits', lr=0.05, batch_size=100), load_data('digits', 16), 32, accelerator='cpu', devices=1,
    logger=False, enable_checkpointing=False, enable_progress_bar=False,
)  # fmt: skip
strategy = NASLID(split_epochs=[16, 24], search_budget=100, workdir='runs/dropin')
experiment = NasExperiment(space, evaluator, strategy)
experiment.run()
for rank, sample in enumerate(experiment.export_top_models(3, formatter='dict'), 1):
    print(rank, sample)
