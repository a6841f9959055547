"""Scoring a sub-network with inherited weights: by the leaf that contains it, with its own batch-norm statistics."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from errno import EACCES, EPERM, EROFS
from typing import Any

from nni_naslid.run.files import append_line, read_lines
from nni_naslid.run.run import Run
from nni_naslid.search.batchnorm import recalibrate
from nni_naslid.search.export import frozen_network
from nni_naslid.space.subspace import SubSpace
from nni_naslid.space.tree import Node
from nni_naslid.train.checkpoint import read_checkpoint
from nni_naslid.train.data import Inputs, as_validation, keep_validation, loaders, on_device, own_data, take_batches
from nni_naslid.train.path import PathModule, labels_read, set_path
from nni_naslid.train.reports import as_report, quiet
from nni_naslid.train.rng import seeded
from nni_naslid.train.validation import supernet_inputs, validate, validation_trainer

import nni
from nni.mutable import Sample
from nni.nas.evaluator import Evaluator
from nni.nas.space import RawFormatModelSpace
from numpy.random import RandomState
from torch import Tensor, nn

__all__ = ['InheritedModel', 'LeafScorer']

_logger = logging.getLogger(__name__)


class LeafScorer(Evaluator):
    """Scores samples with the weights of the leaves, as the user's Lightning module scores them in validation.

    Parameters
    ----------
    run
        The run. Weights of leaves are loaded into its supernet; what samples have scored is kept in its folder, and
        they are not scored again.
    leaves
        Trained leaves. Their weights are kept in memory.

    Attributes
    ----------
    n_outdated
        How many scores of the run are not used, because they are of weights that no leaf has any more.
    n_scored
        How many networks were scored by this object; the scores of others were in the folder.

    Notes
    -----
    Validation batches are read once and kept in memory, up to 2 GiB; above, the loader is gone through each time.
    """

    def __init__(self, run: Run, leaves: Sequence[Node]):
        evaluator, settings = run.evaluator, run.settings
        self.run = run
        self.supernet = run.supernet
        self.leaves = leaves
        self.module = PathModule(copy.deepcopy(evaluator.module))
        self.module.set_model(self.supernet)
        with seeded(settings.seed, data=own_data(evaluator)), quiet():
            train, validation = loaders(evaluator)
            kept = keep_validation(validation, evaluator.trainer)
            self.batches = take_batches(train, max(1, settings.calibration_batches))
        self.trainer = validation_trainer(evaluator, **({} if kept is None else {'limit_val_batches': 1.0}))
        self.validation = as_validation(evaluator, validation if kept is None else kept)
        self._inputs: dict[str, list[Inputs]] = {}  # by leaf: what comes before the supernet may be trained too
        self._inputs_on_device: tuple[str | None, list[Inputs]] = None, []  # of one leaf: all would need its memory
        self._weights: dict[str, dict[str, Tensor]] = {}
        self._space = SubSpace.of(self.supernet)
        self._setting = {'run': run.id, 'calibration_batches': settings.calibration_batches}
        self._known = {
            (str(line['sample']), line['weights']): line
            for line in read_lines(run.folder.scores, (*self._setting, 'weights', 'sample', 'metrics', 'reported'))
            if all(line[key] == value for key, value in self._setting.items())
        }
        weights = {leaf.weights for leaf in leaves}
        self.n_outdated = sum(of not in weights for _, of in self._known)
        self.n_scored = 0
        self._warned = False
        self._loaded: Node | None = None

    def leaf_of(self, sample: Sample, name: str = 'sample') -> Node:
        """The leaf whose sub-space contains a sample; ``name`` is what to call it in a message.

        Samples of one network (see :meth:`canonical`) may be in several leaves; it is the same leaf for all of them.

        Raises
        ------
        TypeError, ValueError
            If the sample is not in the search space (see :meth:`SubSpace.check`), or the filter does not let it pass.
        """
        self._space.check(sample, name)
        if sample not in self._space:
            raise ValueError(f'{name} does not pass the filter: {sample}.')
        same = self.canonical(sample)
        return next(leaf for leaf in self.leaves if leaf.subspace.covers(same))

    def canonical(self, sample: Sample) -> Sample:
        """The sample that stands for all samples of the same network.

        They differ in choices that it does not read only, such as those of blocks beyond its depth.
        """
        return self._space.canonical(sample, labels_read(self.supernet, sample))

    def network(self, sample: Sample) -> str:
        """A key for the network that a sample describes."""
        return str(self._space.encode(self.canonical(sample)))

    def load(self, leaf: Node) -> None:
        """Put a leaf's weights and buffers into the supernet and into the user's module around it."""
        if leaf.name not in self._weights:
            self._weights[leaf.name] = read_checkpoint(self.run, leaf.checkpoint, leaf.name, leaf.sha256)['state_dict']
        self.module.load_state_dict(self._weights[leaf.name])
        self._loaded = leaf

    def reload(self) -> None:
        """Forget which leaf is loaded: the supernet may have been changed from outside."""
        self._loaded = None

    def prepare(self, sample: Sample) -> None:
        """Make the supernet this sample's sub-network: its leaf's weights, its path, its batch-norm statistics."""
        leaf = self.leaf_of(sample)
        if leaf is not self._loaded:
            self.load(leaf)
        set_path(self.module, sample)
        if self.run.settings.calibration_batches:
            device = self.trainer.strategy.root_device
            if self._inputs_on_device[0] != leaf.name:
                self._inputs_on_device = None, []  # before others come
                self._inputs_on_device = leaf.name, on_device(self._calibration(leaf), device)
            self.supernet.to(device)
            recalibrate(self.supernet, self._inputs_on_device[1])

    def _calibration(self, leaf: Node) -> list[Inputs]:
        """What the supernet is called with in calibration, on the CPU."""
        if leaf.name not in self._inputs:
            self._inputs[leaf.name] = supernet_inputs(self.run.evaluator, self.module, self.batches)
        return self._inputs[leaf.name]

    def metrics(self, sample: Sample) -> dict[str, float]:
        """All that the user's module logs in validation of this sample's sub-network."""
        return self._score(sample)['metrics']

    def report(self, sample: Sample) -> dict[str, Any]:
        """What to report of this sample to NNI: see :func:`~nni_naslid.train.reports.as_report`."""
        score = self._score(sample)
        return as_report(score['metrics'], score['reported'], self.run.settings.monitor)

    def _score(self, sample: Sample) -> dict[str, Any]:
        weights = self.leaf_of(sample).weights
        places = self._space.encode(self.canonical(sample))
        if (str(places), weights) not in self._known:
            self.prepare(sample)
            metrics, reported = validate(self.trainer, self.module, self.validation)
            self.n_scored += 1
            score = {'sample': places, 'weights': weights, 'metrics': metrics, 'reported': reported}
            try:
                append_line(self.run.folder.scores, {**self._setting, **score})
            except OSError as error:
                if error.errno not in (EACCES, EPERM, EROFS):
                    raise
                if not self._warned:  # a finished run on storage that can only be read is still of use
                    _logger.warning('New scores are not kept: %s', error)
                self._warned = True
            self._known[str(places), weights] = score
        return self._known[str(places), weights]

    def evaluate(self, sample: Sample) -> float:
        """The score of a sample; larger is better, so a metric to be minimised comes with its sign changed.

        Minus infinity for NaN, from a leaf that diverged: a search must not take it for the best.
        """
        metric = self.metrics(sample)[self.run.settings.monitor]
        return -math.inf if math.isnan(metric) else self.run.settings.turned(metric)

    def instance(self, sample: Sample) -> nn.Module:
        """The sample's sub-network as a model of its own, in evaluation mode on the CPU.

        It is the space frozen to the sample, with the inherited weights, sharing nothing with the supernet: see
        :func:`~nni_naslid.search.export.frozen_network`. Where the frozen space computes something else than the
        supernet, or cannot be had, it is a copy of the supernet set to the sample, and a warning says why.
        """
        self.prepare(sample)
        supernet = self.supernet.cpu().eval()
        inputs = self._calibration(self._loaded)[0]
        network, why = frozen_network(supernet, sample, inputs)
        if network is None:
            _logger.warning('Exporting a copy of the supernet set to the architecture, not a frozen network: %s.', why)
            network = copy.deepcopy(supernet)
        return network


class InheritedModel(RawFormatModelSpace):
    """Sub-networks with inherited weights as models for NNI's engines and strategies; the evaluator is a LeafScorer.

    ``executable_model()`` is the network itself, with its weights.
    """

    def freeze(self, sample: Sample) -> InheritedModel:
        return super().freeze(copy.deepcopy(sample))  # a grid goes on to write the next sample into the same dict

    def random(self, memo: Sample | None = None, random_state: RandomState | None = None) -> InheritedModel:
        space = SubSpace.of(self.model_space)
        if space.filter is None:
            return super().random(memo, random_state)
        sample = {} if memo is None else memo  # which strategies go on to read
        sample.update(space.sample(random_state or RandomState()))
        return self.freeze(sample)

    def execute(self) -> float:
        score = self.evaluator.evaluate(self.sample)
        nni.report_final_result(score)
        return score

    def executable_model(self) -> nn.Module:
        return self.evaluator.instance(self.sample)
