"""Training with the user's Lightning evaluator: its data, and a fresh trainer for every node of the tree."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nni_naslid.sampling import PathModule

import numpy as np
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.space import RawFormatModelSpace
from nni.runtime.trial_command_channel import (
    TrialCommandChannel,
    get_default_trial_command_channel,
    set_default_trial_command_channel,
)
from pytorch_lightning.trainer.states import TrainerStatus
from pytorch_lightning.utilities.data import extract_batch_size
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn
from torch.utils.data import DataLoader

__all__ = [
    'SubSupernet', 'fresh_evaluator', 'interruptible', 'loaders', 'n_steps', 'quiet', 'save_checkpoint', 'seeded',
    'supernet_inputs', 'take_batches', 'validate', 'validation_trainer',
]  # fmt: skip


class SubSupernet(RawFormatModelSpace):
    """One node of the tree as the model that NNI's engine runs: executing it trains the node."""

    def execute(self) -> Any:
        with interruptible(self.evaluator.trainer):
            return super().execute()


@contextmanager
def interruptible(trainer: pl.Trainer) -> Iterator[None]:
    """Let Ctrl-C in a trainer's loop be a KeyboardInterrupt, as NNI expects it.

    Lightning 2.6 turns it into SystemExit and leaves SIGINT ignored; NNI would call the model failed.
    """
    try:
        yield
    except SystemExit:
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None


class _StopAfter(pl.Callback):
    """Validate and stop at the end of an epoch. ``max_epochs`` stays, because learning rate schedules read it."""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 == self.epoch:
            trainer.check_val_every_n_epoch = 1  # the node's metric, whatever the user's rhythm of epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.epoch:
            trainer.should_stop = True


def fresh_evaluator(
    evaluator: Lightning, wrap: Callable[[pl.LightningModule], pl.LightningModule], end_epoch: int, parent: Path | None
) -> Lightning:
    """A copy of the user's evaluator that trains one node.

    Lightning's trainer is stateful: one that has reached ``max_epochs`` does not train again. So every node gets a
    new trainer, made from the arguments of the user's, and a copy of the user's module.

    Parameters
    ----------
    evaluator
        The user's evaluator, never run itself.
    wrap
        Makes the one-shot module from (a copy of) the user's module.
    end_epoch
        Training stops after this many epochs, counted from the root.
    parent
        The checkpoint to go on from: weights, optimizer, learning rate schedule and epoch.
    """
    fit_kwargs = dict(evaluator.fit_kwargs)
    if parent is not None:  # a checkpoint of our own making, so it may hold any object of the user's
        fit_kwargs.update(ckpt_path=str(parent), weights_only=False)
    data: dict[str, Any] = {'datamodule': evaluator.datamodule}
    if evaluator.datamodule is None:
        data = {'train_dataloaders': evaluator.train_dataloaders, 'val_dataloaders': evaluator.val_dataloaders}
    arguments = evaluator.trainer.trace_copy()
    arguments.trace_kwargs = copy_callbacks(arguments.trace_kwargs)
    trainer = arguments.get()
    trainer.callbacks.append(_StopAfter(end_epoch))
    return Lightning(wrap(copy.deepcopy(evaluator.module)), trainer, fit_kwargs=fit_kwargs, **data)


def copy_callbacks(trainer_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Trainer arguments with callbacks of their own: they keep state, and Lightning appends to a list it is given."""
    return {k: copy.deepcopy(v) if k == 'callbacks' else v for k, v in trainer_kwargs.items()}


def save_checkpoint(trainer: pl.Trainer, path: Path) -> None:
    """Lightning checkpoint of a finished ``fit``, replaced in one step, never half written."""
    unfinished = path.with_suffix('.tmp')
    trainer.save_checkpoint(unfinished)
    os.replace(unfinished, path)


def loaders(evaluator: Lightning) -> tuple[Iterable, Iterable]:
    """Training and validation batches of an evaluator, from its loaders or its data module.

    Raises
    ------
    ValueError
        If one of the two is missing.
    TypeError
        If one of the two is a collection of loaders, or an iterator.
    """
    if evaluator.datamodule is not None:
        evaluator.datamodule.prepare_data()
        evaluator.datamodule.setup('fit')
        found = {
            'training': _unless_missing(evaluator.datamodule.train_dataloader),
            'validation': _unless_missing(evaluator.datamodule.val_dataloader),
        }
    else:
        found = {'training': evaluator.train_dataloaders, 'validation': evaluator.val_dataloaders}
    for name, loader in found.items():
        if isinstance(loader, Iterator):
            raise TypeError(f'The {name} data can be gone through only once; NASLID needs a loader such as DataLoader.')
        if loader is None or loader == []:
            raise ValueError(
                f'NASLID needs {name} data, but the evaluator has none; '
                'set train_dataloaders and val_dataloaders, or a datamodule with both.'
            )
        if isinstance(loader, (list, tuple, dict)):
            raise TypeError(f'NASLID needs one {name} loader, but the evaluator has a {type(loader).__name__} of them.')
    return found['training'], found['validation']


def _unless_missing(dataloader: Callable[[], Iterable]) -> Iterable | None:
    try:
        return dataloader()
    except MisconfigurationException:  # Lightning's answer where the data module does not define it
        return None


def n_steps(train: Iterable, trainer: pl.Trainer) -> int:
    """Optimizer steps in an epoch of a trainer."""
    limit = trainer.limit_train_batches
    batches = min(len(train), limit) if isinstance(limit, int) else int(len(train) * limit)
    return math.ceil(batches / trainer.accumulate_grad_batches)


def take_batches(loader: Iterable, n_batches: int) -> list[Any]:
    """The first batches, going through the loader again where it is shorter; a smaller last one is left out.

    Raises
    ------
    ValueError
        If the loader has no batches.
    """
    batches: list[Any] = []
    while len(batches) < n_batches:
        found = len(batches)
        for batch in loader:
            if batches and extract_batch_size(batch) != extract_batch_size(batches[0]):
                continue
            batches.append(batch)
            if len(batches) == n_batches:
                break
        if len(batches) == found:
            raise ValueError('The training loader is empty.')
    return batches


def supernet_inputs(evaluator: Lightning, module: PathModule, batches: Sequence[Any]) -> list[tuple]:
    """What the user's module gives to the supernet in validation of these batches: arguments of its ``forward``.

    So the supernet gets in profiles and in batch-norm recalibration what it gets from the user: normalised, on the
    right device, from batches of any form. (It then runs outside of autocast: mixed precision is full precision here.)

    Raises
    ------
    TypeError
        If the module does not call the supernet, or gives it keyword-only arguments.
    """
    supernet = module.model
    inputs: list[tuple] = []

    def record(model: nn.Module, args: tuple, kwargs: dict) -> None:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        if bound.kwargs:
            raise TypeError(
                f'The supernet gets keyword-only arguments {list(bound.kwargs)}; NASLID needs positional ones.'
            )
        inputs.append(bound.args)

    handle = supernet.register_forward_pre_hook(record, with_kwargs=True)
    try:
        trainer = validation_trainer(evaluator, limit_val_batches=1.0)
        validate(trainer, module, DataLoader(batches, batch_size=None))
    finally:
        handle.remove()
    if not inputs:
        raise TypeError(f'validation_step of {type(module.training_module).__name__} does not call its model.')
    return inputs


def validate(trainer: pl.Trainer, module: PathModule, batches: Iterable) -> dict[str, float]:
    """What the user's module logs in validation; what it reports to NNI is dropped, for no trial of its own ends."""
    channel = get_default_trial_command_channel()
    set_default_trial_command_channel(_Unheard())
    try:
        with quiet(), interruptible(trainer):
            trainer.validate(module, batches, verbose=False)
    finally:
        set_default_trial_command_channel(channel)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


class _Unheard(TrialCommandChannel):
    def receive_parameter(self) -> None:
        return None

    def send_metric(self, *args: Any, **kwargs: Any) -> None:
        pass


def validation_trainer(evaluator: Lightning, **kwargs: Any) -> pl.Trainer:
    """A trainer for validation only, on the user's kind of device, that writes nothing."""
    same = ('accelerator', 'devices', 'precision', 'limit_val_batches')
    arguments = {name: value for name, value in evaluator.trainer.trace_kwargs.items() if name in same}
    arguments.update(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        inference_mode=False, **kwargs,  # what is recorded is used outside of the trainer
    )  # fmt: skip
    with quiet():
        return pl.Trainer(**arguments)


@contextmanager
def seeded(*entropy: int) -> Iterator[np.random.RandomState]:
    """Run with all random generators seeded, and leave their states as they were. Yields one more generator."""
    seeds = np.random.SeedSequence(entropy).generate_state(4)
    with isolate_rng():
        torch.manual_seed(int(seeds[0]))
        np.random.seed(seeds[1])
        random.seed(int(seeds[2]))
        yield np.random.RandomState(seeds[3])


@contextmanager
def quiet() -> Iterator[None]:
    """Without the messages that trainers made by us (not by the user) print each time."""
    noisy = [logging.getLogger(name) for name in ('pytorch_lightning', 'lightning_fabric', 'nni')]
    levels = [logger.level for logger in noisy]
    try:
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
