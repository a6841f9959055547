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
    # Where a batch norm reads its momentum: of mutable width it reads its construction arguments. As dicts: setting an
    # attribute of a module takes a hundred times as long, and this is done for each batch of each sub-network.
    read = [vars(norm) for norm in norms] + [n.init_arguments for n in norms if isinstance(n, MixedOperation)]
    momenta = [each['momentum'] for each in read]
    model.eval()
    for norm in norms:
        norm.training = True
    with torch.no_grad():
        for i, inputs in enumerate(batches):
            for each in read:
                each['momentum'] = 1 / (i + 1)  # the plain mean; the first batch replaces what was there
            call(model, inputs)
    for each, momentum in zip(read, momenta, strict=True):
        each['momentum'] = momentum
    for norm in norms:
        norm.training = False
