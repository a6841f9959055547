"""Training with the user's Lightning evaluator: a fresh trainer for every node of the tree."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nni_naslid.run.folder import RunFolder
from nni_naslid.train.callbacks import EpochCheckpoint, EpochMetrics, FirstEpoch, StopAfter, StopHopeless, ValidateLast
from nni_naslid.train.data import same_setup
from nni_naslid.train.devices import relay_reports, spawning_strategy
from nni_naslid.train.reports import IntermediateReports, as_numbers, as_report, reporting_to

import pytorch_lightning as pl
from nni.nas.evaluator.pytorch import Lightning
from nni.runtime.trial_command_channel import (
    get_default_trial_command_channel,
)
from pytorch_lightning.loggers import Logger
from pytorch_lightning.trainer.states import TrainerStatus
from torch import nn

__all__ = ['fit', 'fresh_evaluator', 'interruptible']


@contextmanager
def interruptible(trainer: pl.Trainer) -> Iterator[None]:
    """Inside, Ctrl-C raises KeyboardInterrupt, as NNI expects.

    Lightning 2.6 raises SystemExit instead, for which NNI would call the model failed, and leaves SIGINT ignored.
    """
    try:
        yield
    except SystemExit as error:
        if trainer.state.status != TrainerStatus.INTERRUPTED or error.code != 1:  # else SIGTERM has raised it
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None


def fresh_evaluator(
    evaluator: Lightning,
    module: pl.LightningModule,
    end_epoch: int,
    begin: Path | None,
    *,
    loggers: Sequence[Logger],
    unfinished: Path,
    tag: dict[str, Any],
    trust_checkpoints: bool,
    keep_epochs: Sequence[int] = (),
    after_first_epoch: Callable[[int, float], None] | None = None,
    is_hopeless: Callable[[int], bool] | None = None,
) -> Lightning:
    """A copy of the user's evaluator that trains one node.

    A Lightning trainer that has reached ``max_epochs`` does not train again. So each node gets a new trainer, made from
    the arguments of the user's trainer.

    Parameters
    ----------
    evaluator
        The user's evaluator, never run itself.
    module
        The module to train.
    end_epoch
        Training stops after this many epochs, counted from the root.
    begin
        The checkpoint to go on from, with weights, optimizer, learning rate schedule and epoch; ``None`` to start anew.
    loggers
        Those of this node: see :func:`~nni_naslid.train.loggers.loggers_of`.
    unfinished
        How the names of checkpoints begin: see :func:`save_checkpoint`.
    tag
        ``run``, ``node`` and more, written into checkpoints so that :func:`read_checkpoint` can check them.
    trust_checkpoints
        Whether checkpoints may hold objects that run code when they are read.
    keep_epochs
        Epochs whose checkpoints stay.
    after_first_epoch
        Called once, with how many epochs are done and the seconds that the last one took.
    is_hopeless
        Called after each epoch before the last one, with how many are done; training ends there if it returns true.
    """
    fit_kwargs = dict(evaluator.fit_kwargs)
    if begin is not None:
        fit_kwargs.update(ckpt_path=str(begin), weights_only=not trust_checkpoints)
    data: dict[str, Any] = {'datamodule': evaluator.datamodule}
    if evaluator.datamodule is None:
        data = {'train_dataloaders': evaluator.train_dataloaders, 'val_dataloaders': evaluator.val_dataloaders}
    arguments = evaluator.trainer.trace_copy()
    arguments.trace_kwargs = {
        **copy_callbacks(arguments.trace_kwargs),
        **spawning_strategy(evaluator.trainer),
        'logger': loggers,
    }
    trainer = arguments.get()
    trainer.callbacks[:0] = [
        EpochCheckpoint(unfinished, tag, trust_checkpoints, keep_epochs),
        ValidateLast(end_epoch),
    ]
    metrics = RunFolder(unfinished.parent).curve(tag['node'])
    trainer.callbacks.append(EpochMetrics(metrics, {name: tag[name] for name in ('run', 'node')}, end_epoch))
    stop = StopAfter(end_epoch, unfinished)
    trainer.callbacks += [stop] if is_hopeless is None else [StopHopeless(is_hopeless, stop), stop]
    if after_first_epoch is not None:
        trainer.callbacks.append(FirstEpoch(after_first_epoch))
    return Lightning(module, trainer, fit_kwargs=fit_kwargs, **data)


def copy_callbacks(trainer_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Trainer arguments with copies of the callbacks: callbacks keep state, and Lightning appends to their list."""
    return {k: copy.deepcopy(v) if k == 'callbacks' else v for k, v in trainer_kwargs.items()}


def fit(evaluator: Lightning, supernet: nn.Module, monitor: str) -> dict[str, Any]:
    """Train, and return the last metrics: see :func:`as_report`. NNI gets no final report: more training may follow."""
    relay = IntermediateReports(get_default_trial_command_channel())
    trainer = evaluator.trainer
    with reporting_to(relay), interruptible(trainer), relay_reports(trainer), same_setup(evaluator.datamodule):
        evaluator.evaluate(supernet)
    return as_report(as_numbers(evaluator.trainer.callback_metrics), relay.final, monitor)
