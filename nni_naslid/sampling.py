"""Training one sub-supernet: the Lightning module that samples only inside its sub-space."""

from __future__ import annotations

from typing import Any

from nni_naslid.subspace import SubSpace

import numpy as np
import pytorch_lightning as pl
from nni.mutable import Sample
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import nn

__all__ = ['PathModule', 'SubSupernetModule', 'set_path']


def set_path(supernet: nn.Module, sample: Sample) -> None:
    """Make the supernet compute one sub-network: the path that ``sample`` (label to choice) describes."""
    for module in supernet.modules():
        if isinstance(module, BaseSuperNetModule):
            module.resample(memo=sample)


class PathModule(BaseOneShotLightningModule):
    """The user's Lightning module around a supernet whose path somebody else has set.

    Forwards the hooks of the user's module that NNI 3.0 does not: without ``on_validation_epoch_end`` no one-shot
    strategy reports intermediate results, without ``lr_scheduler_step`` foreign schedulers fail.
    """

    @property
    def automatic_optimization(self) -> bool:
        return True

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.training_module.training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.training_module.validation_step(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        self.training_module.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        self.training_module.on_validation_epoch_end()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.training_module.on_before_optimizer_step(optimizer)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        self.training_module.lr_scheduler_step(scheduler, metric)


class SubSupernetModule(PathModule):
    """Single-path one-shot training inside a sub-space: every step trains one sample, drawn from it uniformly.

    The sample depends on the seed, the epoch and the batch only, so a resumed run draws what the undisturbed one
    would have drawn, and all processes of a distributed run draw the same.

    Parameters
    ----------
    training_module
        The user's Lightning module.
    subspace
        Where samples come from.
    seed
        Entropy for :class:`numpy.random.SeedSequence`, different for every node of a tree.
    """

    def __init__(self, training_module: pl.LightningModule, subspace: SubSpace, seed: list[int]):
        super().__init__(training_module)
        self.subspace = subspace
        self.seed = seed

    def resample(self, batch_idx: int, validating: bool = False) -> Sample:
        """Draw the sample of a batch of the current epoch and make the supernet compute it."""
        state = np.random.SeedSequence([*self.seed, validating, self.current_epoch, batch_idx]).generate_state(4)
        sample = self.subspace.sample(np.random.RandomState(state))
        set_path(self.model, sample)
        return sample

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.resample(batch_idx)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.resample(batch_idx, validating=True)
        return super().validation_step(batch, batch_idx)
