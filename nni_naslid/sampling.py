"""Training one sub-supernet: the Lightning module that samples only inside its sub-space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nni_naslid import compat as compat  # before nni.nas
from nni_naslid.subspace import SubSpace

import numpy as np
import pytorch_lightning as pl
from nni.mutable import Sample
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from pytorch_lightning.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import nn

__all__ = ['PathModule', 'SubSupernetModule', 'set_path']


def set_path(supernet: nn.Module, sample: Sample) -> None:
    """Make the supernet compute one sub-network: the path that ``sample`` (label to choice) describes."""
    for module in supernet.modules():
        if isinstance(module, BaseSuperNetModule):
            module.resample(memo=sample)


# Hooks of a LightningModule that NNI's one-shot module keeps from the user's; `setup` and `teardown` it passes on, data
# come from the evaluator.
HOOKS = {
    *(name for hooks in (ModelHooks, DataHooks, CheckpointHooks) for name in vars(hooks) if not name.startswith('_')),
    'backward', 'configure_callbacks', 'configure_gradient_clipping', 'lr_scheduler_step', 'optimizer_step',
    'optimizer_zero_grad',
}.difference(
    ['setup', 'teardown', 'prepare_data'],
    ['train_dataloader', 'val_dataloader', 'test_dataloader', 'predict_dataloader'],
)  # fmt: skip


class PathModule(BaseOneShotLightningModule):
    """The user's Lightning module around a supernet whose path somebody else has set.

    Every hook that the user's class overrides is called on the user's module. NNI 3.0 leaves out most: without
    ``on_validation_epoch_end`` no one-shot strategy reports intermediate results, without ``lr_scheduler_step`` foreign
    schedulers fail.
    """

    def __init__(self, training_module: pl.LightningModule):
        super().__init__(training_module)
        for name in HOOKS.difference(vars(type(self))):
            if getattr(type(training_module), name, None) is not getattr(pl.LightningModule, name, None):
                setattr(self, name, getattr(training_module, name))

    @property
    def automatic_optimization(self) -> bool:
        return True

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return _step(self.training_module.training_step, batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return _step(self.training_module.validation_step, batch, batch_idx)


def _step(step: Callable, batch: Any, batch_idx: int) -> Any:
    """Call a step of the user's, which need not take the number of the batch."""
    if is_param_in_hook_signature(step, 'batch_idx', min_args=2):
        return step(batch, batch_idx)
    return step(batch)


class SubSupernetModule(PathModule):
    """Single-path one-shot training inside a sub-space: every step trains one sample, drawn from it uniformly.

    The sample depends on the seed, the epoch and the batch only, so a resumed run draws what the undisturbed one
    would have drawn.

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
        self.reads_anew = False  # set where an epoch begins with the random numbers of a checkpoint

    def on_train_epoch_start(self) -> None:
        self.training_module.on_train_epoch_start()
        if self.reads_anew:
            # Lightning has made the iterator of a first epoch before its hooks, but makes that of later ones here.
            iter(self.trainer.fit_loop._data_fetcher)
            self.reads_anew = False

    def resample(self, batch_idx: int, validating: bool = False) -> Sample:
        """Draw the sample of a batch of the current epoch and make the supernet compute it."""
        state = np.random.SeedSequence([*self.seed, validating, self.current_epoch, batch_idx]).generate_state(4)
        sample = self.subspace.sample(np.random.RandomState(state))
        set_path(self, sample)  # the user's module may hold copies of the supernet, such as an average
        return sample

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.resample(batch_idx)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.resample(batch_idx, validating=True)
        return super().validation_step(batch, batch_idx)
