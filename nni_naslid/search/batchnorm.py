"""Batch-norm statistics of one sub-network of a supernet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack

from nni_naslid.train.data import Inputs, call

import torch
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from torch import nn

__all__ = ['recalibrate']


def recalibrate(model: nn.Module, batches: Sequence[Inputs]) -> None:
    """Replace the running statistics of all batch norms by the mean statistics of these batches.

    The running statistics of a supernet are a mixture of all its paths and fit none of them. Those of a norm that is
    called several times with each batch, as in a recurrent cell, are the mean of all calls. The model is left in
    evaluation mode.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    # Where a batch norm reads its momentum: of mutable width it reads its construction arguments. As dicts: setting an
    # attribute of a module takes a hundred times as long, and this is done for each batch of each sub-network.
    read_by = {
        norm: [vars(norm), *([norm.init_arguments] if isinstance(norm, MixedOperation) else [])] for norm in norms
    }
    read = [each for some in read_by.values() for each in some]
    momenta = [each['momentum'] for each in read]
    calls: Counter[nn.Module] = Counter()

    def before(norm: nn.Module, _: tuple) -> None:
        calls[norm] += 1
        for each in read_by[norm]:
            each['momentum'] = 1 / calls[norm]

    model.eval()
    for norm in norms:
        norm.training = True
    with torch.no_grad(), ExitStack() as counting:
        for norm in norms:
            counting.callback(norm.register_forward_pre_hook(before).remove)
        for i, inputs in enumerate(batches):
            if i == 1 and max(calls.values(), default=1) == 1:
                counting.close()  # as usual, once in a batch
            for each in read:
                each['momentum'] = 1 / (i + 1)  # the plain mean; the first batch replaces what was there
            call(model, inputs)
    for each, momentum in zip(read, momenta, strict=True):
        each['momentum'] = momentum
    for norm in norms:
        norm.training = False
