"""The same run as dropin.py, with the nodes of the tree as NNI trials, two at a time; http://localhost:8080 shows them.

    cd examples && OMP_NUM_THREADS=1 python parallel.py

NNI sends the current folder to its trials, which have to find recipe.py in it.
"""

from __future__ import annotations

from argparse import Namespace

from nni_naslid import NASLID

import pytorch_lightning as pl
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.hub.pytorch import NasBench201
from recipe import load_data, make_evaluator

pl.seed_everything(0)  # the initial weights
space = NasBench201(8, 1, 10)
evaluator = make_evaluator(
    Namespace(data='digits', lr=0.05, batch_size=100), load_data('digits', 16), 32, accelerator='cpu', devices=1,
    logger=False, enable_checkpointing=False, enable_progress_bar=False,
)  # fmt: skip
strategy = NASLID(split_epochs=[16, 24], search_budget=100, workdir='runs/parallel')
config = NasExperimentConfig('ts', 'simplified', 'local')
config.trial_concurrency = 2
experiment = NasExperiment(space, evaluator, strategy, config)
experiment.run(port=8080)
for rank, sample in enumerate(experiment.export_top_models(3, formatter='dict'), 1):
    print(rank, sample)
input('The web UI is at http://localhost:8080 until you press Enter.')
