"""Scoring a sub-network with inherited weights: by the leaf that contains it, with its own batch-norm statistics."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

from nni_naslid.sampling import PathModule, set_path
from nni_naslid.training import loaders, quiet, seeded, take_inputs
from nni_naslid.tree import Node

import nni
import pytorch_lightning as pl
import torch
from nni.mutable import Sample
from nni.nas.evaluator import Evaluator
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from nni.nas.space import RawFormatModelSpace
from torch import Tensor, nn
from torch.utils.data import DataLoader

__all__ = ['InheritedModel', 'LeafEvaluator', 'recalibrate']

_logger = logging.getLogger(__name__)


def recalibrate(model: nn.Module, batches: Sequence[Tensor]) -> None:
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
        for i, x in enumerate(batches):
            for norm in norms:
                _set_momentum(norm, 1 / (i + 1))  # the plain mean; the first batch replaces what was there
            model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        _set_momentum(norm, momentum)
    model.eval()


def _set_momentum(norm: nn.modules.batchnorm._BatchNorm, momentum: float | None) -> None:
    norm.momentum = momentum
    if isinstance(norm, MixedOperation):  # NNI's batch norm of mutable width reads its construction arguments
        norm.init_arguments['momentum'] = momentum


class LeafEvaluator(Evaluator):
    """Scores samples with the weights of the leaves, as the user's Lightning module scores them in validation.

    Parameters
    ----------
    supernet
        The supernet; weights of leaves are loaded into it.
    evaluator
        The user's evaluator: its module, its data, and the accelerator and precision of its trainer.
    leaves
        Trained leaves. Their weights are kept in memory.
    monitor, mode
        The logged metric that is the score, and whether the best one is the ``'max'`` or the ``'min'``.
    calibration_batches
        Training batches for the batch-norm statistics of each sub-network; 0 keeps the supernet's.
    seed
        Which training batches those are.

    Notes
    -----
    Validation batches are read once and kept in memory.
    """

    def __init__(
        self,
        supernet: ModelSpace,
        evaluator: Lightning,
        leaves: Sequence[Node],
        *,
        monitor: str,
        mode: str,
        calibration_batches: int,
        seed: int,
    ):
        self.supernet = supernet
        self.leaves = leaves
        self.monitor = monitor
        self.mode = mode
        self.module = PathModule(copy.deepcopy(evaluator.module))
        self.module.set_model(supernet)
        self.trainer = validation_trainer(evaluator)
        device = self.trainer.strategy.root_device
        train, validation = loaders(evaluator)
        with seeded(seed), quiet():
            self.validation = DataLoader(list(validation), batch_size=None)
            self.calibration = [x.to(device) for x in take_inputs(train, calibration_batches)]
        self._weights: dict[str, dict[str, Tensor]] = {}
        self._loaded: Node | None = None

    def leaf_of(self, sample: Sample) -> Node:
        """The leaf whose sub-space contains a sample.

        Raises
        ------
        ValueError
            If the sample is not in the search space.
        """
        for leaf in self.leaves:
            if sample in leaf.subspace:
                return leaf
        raise ValueError(f'The sample is in no leaf, so not in the search space: {sample}.')

    def load(self, leaf: Node) -> None:
        """Put a leaf's weights and buffers into the supernet."""
        if leaf.name not in self._weights:
            prefix = 'training_module._model.'
            checkpoint = torch.load(leaf.checkpoint, map_location='cpu', weights_only=False)
            self._weights[leaf.name] = {
                name.removeprefix(prefix): weight
                for name, weight in checkpoint['state_dict'].items()
                if name.startswith(prefix)
            }
        self.supernet.load_state_dict(self._weights[leaf.name])
        self._loaded = leaf

    def prepare(self, sample: Sample) -> None:
        """Make the supernet this sample's sub-network: its leaf's weights, its path, its batch-norm statistics."""
        leaf = self.leaf_of(sample)
        if leaf is not self._loaded:
            self.load(leaf)
        set_path(self.supernet, sample)
        if self.calibration:
            self.supernet.to(self.calibration[0].device)
            recalibrate(self.supernet, self.calibration)

    def evaluate(self, sample: Sample) -> float:
        """The score of a sample; larger is better, so a metric to be minimised comes with its sign changed."""
        self.prepare(sample)
        with quiet():
            self.trainer.validate(self.module, self.validation, verbose=False)
        metric = self.trainer.callback_metrics[self.monitor].item()
        return metric if self.mode == 'max' else -metric

    def instance(self, sample: Sample) -> nn.Module:
        """The sample's sub-network as a model of its own, in evaluation mode on the CPU.

        It is the space frozen to the sample, which shares nothing with the supernet, where NNI's ``freeze`` keeps
        the inherited weights; where it does not (the cells of the DARTS family get random ones), it is a copy of the
        supernet set to the sample.
        """
        self.prepare(sample)
        supernet = self.supernet.cpu().eval()
        x = (self.calibration or take_inputs(self.validation, 1))[0][:8].cpu()
        with torch.no_grad():
            expected = supernet(x)
            try:
                frozen = copy.deepcopy(supernet.freeze(sample)).eval()
                if torch.allclose(_tensor(frozen(x)), _tensor(expected), rtol=1e-4, atol=1e-5):
                    return frozen
            except NotImplementedError:
                pass
        _logger.warning('Freezing loses the weights of this space; exporting a copy of the supernet set to the sample.')
        return copy.deepcopy(supernet)


def _tensor(output: Tensor | tuple) -> Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output


def validation_trainer(evaluator: Lightning, **kwargs: Any) -> pl.Trainer:
    """A trainer for validation only, on the user's kind of device, that writes nothing."""
    same = ('accelerator', 'precision', 'limit_val_batches')
    arguments = {name: value for name, value in evaluator.trainer.trace_kwargs.items() if name in same}
    arguments.update(devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, **kwargs)
    with quiet():
        return pl.Trainer(**arguments, enable_model_summary=False)


class InheritedModel(RawFormatModelSpace):
    """Sub-networks with inherited weights as models for NNI's engines and strategies; the evaluator is a LeafEvaluator.

    ``executable_model()`` is the network itself, with its weights.
    """

    def execute(self) -> float:
        score = self.evaluator.evaluate(self.sample)
        nni.report_final_result(score)
        return score

    def executable_model(self) -> nn.Module:
        return self.evaluator.instance(self.sample)
