"""Batch-norm statistics of one sub-network of a supernet."""

from __future__ import annotations

from collections.abc import Sequence

from nni_naslid.train.data import Inputs, call

import torch
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from torch import nn

__all__ = ['recalibrate']


def recalibrate(model: nn.Module, batches: Sequence[Inputs]) -> None:
    """Replace the running statistics of all batch norms by the mean statistics of these batches.

    The running statistics of a supernet are a mixture of all its paths and fit none of them. The model is left in
    evaluation mode.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        for i, inputs in enumerate(batches):
            for norm in norms:
                _set_momentum(norm, 1 / (i + 1))  # the plain mean; the first batch replaces what was there
            call(model, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        _set_momentum(norm, momentum)
    model.eval()


def _set_momentum(norm: nn.modules.batchnorm._BatchNorm, momentum: float | None) -> None:
    norm.momentum = momentum
    if isinstance(norm, MixedOperation):  # NNI's batch norm of mutable width reads its construction arguments
        norm.init_arguments['momentum'] = momentum
