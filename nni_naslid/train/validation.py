"""Validation of a supernet set to a path, and what the user's module gives to the supernet in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nni_naslid.train.data import Batches, Inputs, as_validation, copied
from nni_naslid.train.devices import one_device
from nni_naslid.train.fit import interruptible
from nni_naslid.train.path import PathModule
from nni_naslid.train.reports import CapturedReport, as_numbers, current_trial, quiet, reporting_to

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Lightning
from torch import nn

__all__ = ['supernet_inputs', 'validate', 'validation_trainer']


def supernet_inputs(evaluator: Lightning, module: PathModule, batches: Sequence[Any]) -> list[Inputs]:
    """The inputs that the user's module gives to the supernet when it validates these batches, on the CPU.

    With them, profiles and batch-norm recalibration see the same inputs as validation: normalised, on the right device,
    from batches of any class. (They run outside of autocast, so mixed precision is full precision there.)

    Raises
    ------
    TypeError
        If the module does not call the supernet.
    """
    inputs: list[Inputs] = []

    def record(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        inputs.append(copied(Inputs(args, kwargs), torch.device('cpu')))  # because the model may change its inputs

    handle = module.model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        trainer = validation_trainer(evaluator, limit_val_batches=1.0)
        validate(trainer, module, as_validation(evaluator, Batches(batches)))
    finally:
        handle.remove()
    if not inputs:
        raise TypeError(f'validation_step of {type(module.training_module).__name__} does not call its model.')
    return inputs


def validate(trainer: pl.Trainer, module: PathModule, data: dict[str, Any]) -> tuple[dict[str, float], Any]:
    """The metrics that the user's module logs in validation, and what it reports to NNI last (which NNI does not get).

    ``data`` comes from :func:`~nni_naslid.train.data.as_validation`.
    """
    captured = CapturedReport()
    with reporting_to(captured), quiet(), interruptible(trainer), current_trial():
        trainer.validate(module, verbose=False, **data)
    return as_numbers(trainer.callback_metrics), captured.reported


def validation_trainer(evaluator: Lightning, **kwargs: Any) -> pl.Trainer:
    """A trainer for validation only. It uses one of the user's devices and writes no files."""
    same = ('accelerator', 'devices', 'precision', 'limit_val_batches')
    arguments = {name: value for name, value in evaluator.trainer.trace_kwargs.items() if name in same}
    arguments.update(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        inference_mode=False,  # recorded inputs are used outside of the trainer
        **one_device(evaluator.trainer), **kwargs,
    )  # fmt: skip
    with quiet():
        return pl.Trainer(**arguments)
