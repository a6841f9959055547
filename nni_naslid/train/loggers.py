"""The loggers of the user's trainer: which ones a part of a run has, and what this package writes to them."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

__all__ = ['log_scalars', 'loggers_of']


def loggers_of(trainer: pl.Trainer, part: str) -> list[Logger]:
    """The loggers for one part of a run, such as ``'node-0.1'`` or ``'search'``; none if the user wants none.

    Lightning's default logger has a folder for each part, ``lightning_logs/node-0.1``. Else each node would be another
    ``lightning_logs/version_N``. (With the name of the part it still has versions: nothing is overwritten.) Loggers
    that the user has made are used as they are. Where Lightning trains in processes of its own, its copies of them open
    files that those here know nothing of, so each part has copies, too.
    """
    if trainer.trace_kwargs.get('logger') not in (None, True):
        return trainer.loggers if trainer.world_size == 1 else copy.deepcopy(trainer.loggers)
    default = trainer.logger
    return [type(default)(default.save_dir, name=f'{default.name}/{part}')]


def log_scalars(loggers: Sequence[Logger], of: str, scalars: Mapping[str, float], step: int) -> None:
    """Write scalars as ``naslid-<of>/<name>``; what a logger raises is not caught.

    A logger of the user's gets all nodes one after another, with steps that overlap, so a name says whose it is.
    TensorBoard has a section for each ``naslid-<of>``. Names have letters, digits, and ``_-./``; others become ``_``.
    """
    named: dict[str, float] = {}
    for name, value in scalars.items():
        tag = re.sub(r'[^-\w./]', '_', f'naslid-{of}/{name}')
        while tag in named:  # of two choices that differ in other characters only
            tag += '_'
        named[tag] = value
    for logger in loggers:
        logger.log_metrics(named, step)
        logger.save()  # this process may be killed before the logger would
