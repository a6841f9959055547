"""The project of the finished run, as the command line names it: digits and a narrow NAS-Bench-201."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples'))

from nni.nas.evaluator.pytorch import Lightning
from nni.nas.hub.pytorch import NasBench201
from recipe import Data, Recipe, load_data, make_evaluator
from small import brightened
from torch.utils.data import TensorDataset

QUIET = {
    'accelerator': 'cpu', 'devices': 1, 'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False,
    'enable_model_summary': False, 'num_sanity_val_steps': 0,
}  # fmt: skip


def some_digits(first: int = 0) -> Data:
    """200 training and 100 validation digits."""
    data = load_data('digits', 8)
    return Data(*(TensorDataset(*part[first : first + n]) for part, n in zip(data, (200, 100, 100), strict=True)))


def space() -> NasBench201:
    return NasBench201(4, 1, 10)


def evaluator(first: int = 0) -> Lightning:
    data = Data(*map(brightened, some_digits(first)))
    return make_evaluator(data, epochs=3, batch_size=40, **QUIET)


# What is not of that run.


def wide_space() -> NasBench201:
    return NasBench201(8, 1, 10)


def other_data() -> Lightning:
    return evaluator(first=1)


def broken() -> None:
    raise KeyError('no such disk')


class OtherRecipe(Recipe):
    """Made with the same arguments."""


def other_module() -> Lightning:
    made = evaluator()
    made.module = OtherRecipe(0.2, False)
    return made


def stops() -> None:
    raise SystemExit(3)
