"""NAS-LID in an NNI project: the strategy is the only line that is not NNI's.

    python examples/dropin.py                                     # in this process
    cd examples && OMP_NUM_THREADS=1 python dropin.py --trials    # as NNI trials, two at a time, with the web UI

NNI sends the current folder to its trials, which have to find recipe.py in it.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from nni_naslid import NASLID, plan_epochs

import pytorch_lightning as pl
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.hub.pytorch import NasBench201
from recipe import load_data, make_evaluator

parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
parser.add_argument('--trials', action='store_true', help='train each node as an NNI trial')
trials = parser.parse_args().trials

pl.seed_everything(0)  # the initial weights
split_epochs, max_epochs = plan_epochs(32, 4)  # together they cost what one supernet of 32 epochs would
space = NasBench201(8, 1, 10)
evaluator = make_evaluator(
    load_data('digits', 8), epochs=max_epochs, accelerator='cpu', devices=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False,
)  # fmt: skip
strategy = NASLID(split_epochs, search_budget=100, workdir='runs/dropin')
config = None  # NNI's default for a one-shot strategy: this process
if trials:
    config = NasExperimentConfig('ts', 'simplified', 'local')
    config.trial_concurrency = 2
experiment = NasExperiment(space, evaluator, strategy, config)
experiment.run(port=8080)
for rank, sample in enumerate(experiment.export_top_models(3, formatter='dict'), 1):
    print(rank, sample)
if trials and sys.stdin.isatty():
    input('The web UI is at http://localhost:8080 until you press Enter.')
