"""Scoring a sub-network with inherited weights: by the node that contains it, with its own batch-norm statistics."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from errno import EACCES, EPERM, EROFS
from functools import cached_property
from pathlib import Path
from typing import Any

from nni_naslid.run.files import append_line, read_lines
from nni_naslid.run.progress import tenth
from nni_naslid.run.run import Run
from nni_naslid.search.batchnorm import recalibrate
from nni_naslid.search.calibration import calibration_batches_of
from nni_naslid.search.export import frozen_network
from nni_naslid.search.nsga2 import costs_of_search
from nni_naslid.search.prior import N_REFERENCES, Prior
from nni_naslid.space.subspace import SubSpace
from nni_naslid.space.tree import Node
from nni_naslid.train.checkpoint import read_checkpoint
from nni_naslid.train.data import (
    LARGEST,
    Batches,
    Inputs,
    as_validation,
    keep_validation,
    loaders,
    on_device,
    own_data,
    take_batches,
    tensors_in,
)
from nni_naslid.train.path import PathModule, choices_read, set_path
from nni_naslid.train.reports import as_report, quiet
from nni_naslid.train.rng import seeded
from nni_naslid.train.validation import supernet_inputs, validate, validation_trainer
from nni_naslid.traits.costs import costs_depend_on, costs_of

import nni
from nni.mutable import Sample
from nni.nas.evaluator import Evaluator
from nni.nas.space import RawFormatModelSpace
from numpy.random import RandomState
from torch import Tensor, nn
from tqdm.auto import tqdm

__all__ = ['InheritedModel', 'LeafScorer']

_logger = logging.getLogger(__name__)

REFERENCES = 1_000_003  # keeps random streams apart; no node has such a path


class LeafScorer(Evaluator):
    """Scores samples with the weights of the leaves, as the user's Lightning module scores them in validation.

    Parameters
    ----------
    run
        The run. Weights of leaves are loaded into its supernet; what samples have scored is kept in its folder, and
        they are not scored again.
    root
        The tree. Samples are scored by its leaves, whose weights are kept in memory, or by other nodes that they are
        scored by on request, one of which is in memory at a time.

    Attributes
    ----------
    n_outdated
        How many scores of the run are not used, because they are of weights that no node has any more.
    n_scored
        How many networks were scored by this object; the scores of others were in the folder.

    Notes
    -----
    Validation batches are read once and kept in memory, up to 2 GiB; above, the loader is gone through each time.
    Calibration batches are kept in memory, with what the supernet gets of them: of all leaves up to 2 GiB, and above
    of one leaf.
    """

    def __init__(self, run: Run, root: Node):
        evaluator = run.evaluator
        self.run = run
        self.supernet = run.supernet
        self.root = root
        self.module = PathModule(copy.deepcopy(evaluator.module))
        self.module.set_model(self.supernet)
        self._n_batches = calibration_batches_of(run, root)
        self.batches, validation, kept = self._read(self._n_batches)
        self.trainer = validation_trainer(evaluator, **({} if kept is None else {'limit_val_batches': 1.0}))
        self.validation = as_validation(evaluator, validation if kept is None else kept)
        # By weights and number of batches: what comes before the supernet may be trained too.
        self._inputs: dict[tuple[str, int], list[Inputs]] = {}
        self._inputs_on_device: tuple[tuple[str, int] | None, list[Inputs]] = None, []  # of one: all would need memory
        self._weights: dict[str, dict[str, Tensor]] = {}
        self._space = SubSpace.of(self.supernet)
        needed = ('run', 'calibration_batches', 'weights', 'sample', 'metrics', 'reported')
        self._known = {
            (str(line['sample']), line['weights'], line['calibration_batches']): line
            for line in read_lines(run.folder.scores, needed)
            if line['run'] == run.id
        }
        weights = {weights for node in root for _, _, weights in node.kept.values()}
        self.n_outdated = sum(
            of not in weights and n == self._n_batches for _, of, n in self._known
        )  # fmt: skip
        self._costs: dict[str, Callable[[Sample], float]] = {}
        self._depend_on: dict[str, str] = {}
        self.n_scored = 0
        self._warned = False
        self._loaded: str | None = None
        self._recalibrated = False

    def _read(self, n_batches: int) -> tuple[list[Any], Iterable, Batches | None]:
        """The first training batches, at least one; the validation loader; its batches, if they can be kept.

        They are the same each time, but for the number of training batches.
        """
        evaluator = self.run.evaluator
        with seeded(self.run.settings.seed, data=own_data(evaluator)), quiet():
            train, validation = loaders(evaluator)
            kept = keep_validation(validation, evaluator.trainer)
            return take_batches(train, max(1, n_batches)), validation, kept

    @cached_property
    def _known_costs(self) -> dict[tuple[str, str, str | None], float]:
        """By network, cost, and what that depends on beside the run: what was found so far."""
        return {
            (str(line['sample']), name, line['depend_on'].get(name)): cost
            for line in read_lines(self.run.folder.costs, ('run', 'sample', 'depend_on', 'costs'))
            if line['run'] == self.run.id
            for name, cost in line['costs'].items()
        }

    def leaf_of(self, sample: Sample, name: str = 'sample', nodes: Sequence[Node] | None = None) -> Node:
        """The leaf whose sub-space contains a sample; ``name`` is what to call it in a message.

        Samples of one network (see :meth:`canonical`) may be in several leaves; it is the same leaf for all of them.
        Given other ``nodes``, whose sub-spaces are disjoint and cover the space, it is one of them.

        Raises
        ------
        TypeError, ValueError
            If the sample is not in the search space (see :meth:`SubSpace.check`), or is kept out by filter or limits.
        """
        self._space.check(sample, name)
        if sample not in self._space:
            raise ValueError(f'{name} does not keep to the filter or the constraints: {sample}.')
        same = self.canonical(sample)
        return next(node for node in nodes or self.root.leaves if node.subspace.covers(same))

    def canonical(self, sample: Sample) -> Sample:
        """The sample that stands for all samples of the same network.

        They differ in choices that it does not read only, such as those of blocks beyond its depth.
        """
        read = choices_read(self.supernet, sample)
        return self._space.canonical({**sample, **read}, read)

    def network(self, sample: Sample) -> str:
        """A key for the network that a sample describes."""
        return str(self._space.encode(self.canonical(sample)))

    def load(self, node: Node) -> None:
        """Put a node's weights and buffers into the supernet and into the user's module around it."""
        weights = self._weights.get(node.weights)
        if weights is None:
            weights = read_checkpoint(self.run, node.checkpoint, node.name, node.sha256)['state_dict']
            if self._is_of_leaf(node.weights):
                self._weights[node.weights] = weights
        self.module.load_state_dict(weights)
        self._loaded, self._recalibrated = node.weights, False

    def _is_of_leaf(self, weights: str) -> bool:
        """A search goes from leaf to leaf, so what belongs to them stays in memory. Others come one after another."""
        return weights in self.root.weights_of_leaves.values()

    def reload(self) -> None:
        """Forget whose weights are loaded: the supernet may have been changed from outside."""
        self._loaded = None

    def prepare(self, sample: Sample, node: Node | None = None, calibration_batches: int | None = None) -> None:
        """Make the supernet this sample's sub-network: its weights, its path, its batch-norm statistics.

        By default the weights of its leaf, and as many calibration batches as the settings say.
        """
        node = self.leaf_of(sample) if node is None else node
        n_batches = self._number(calibration_batches)
        if node.weights != self._loaded or (self._recalibrated and not n_batches):
            self.load(node)
        set_path(self.module, sample)
        if n_batches:
            device, of = self.trainer.strategy.root_device, (node.weights, n_batches)
            if self._inputs_on_device[0] != of:
                self._inputs_on_device = None, []  # before others come
                self._inputs_on_device = of, on_device(self._calibration(n_batches), device)
            self.supernet.to(device)
            recalibrate(self.supernet, self._inputs_on_device[1])
            self._recalibrated = True

    def _number(self, calibration_batches: int | None) -> int:
        return self._n_batches if calibration_batches is None else calibration_batches

    def _calibration(self, n_batches: int) -> list[Inputs]:
        """What the supernet is called with in calibration of the weights that are loaded, on the CPU."""
        of = self._loaded, n_batches
        if of not in self._inputs:
            usual = self._number(None)
            self._inputs = {key: each for key, each in self._inputs.items()
                            if key[1] == usual and self._is_of_leaf(key[0])}  # fmt: skip
            if len(self.batches) < n_batches:
                self.batches, *_ = self._read(n_batches)
            batches = self.batches[: max(1, n_batches)]
            inputs = supernet_inputs(self.run.evaluator, self.module, batches)
            if sum(tensor.nbytes for tensor in tensors_in([*self._inputs.values(), inputs])) > LARGEST:
                self._inputs = {}  # those of other leaves come again
            self._inputs[of] = inputs
        return self._inputs[of]

    def metrics(
        self, sample: Sample, node: Node | None = None, calibration_batches: int | None = None
    ) -> dict[str, float]:
        """All that the user's module logs in validation of this sample's sub-network: see :meth:`prepare`."""
        return self._score(sample, node, calibration_batches)['metrics']

    def report(self, sample: Sample) -> dict[str, Any]:
        """What to report of this sample to NNI: see :func:`~nni_naslid.train.reports.as_report`."""
        score = self._score(sample)
        return as_report(score['metrics'], score['reported'], self.run.settings.monitor)

    def _score(
        self, sample: Sample, node: Node | None = None, calibration_batches: int | None = None
    ) -> dict[str, Any]:
        node = self.leaf_of(sample) if node is None else node
        n_batches = self._number(calibration_batches)
        places = self._space.encode(self.canonical(sample))
        key = str(places), node.weights, n_batches
        if key not in self._known:
            self.prepare(sample, node, n_batches)
            metrics, reported = validate(self.trainer, self.module, self.validation)
            self.n_scored += 1
            of = {'calibration_batches': n_batches, 'sample': places, 'weights': node.weights}
            score = {**of, 'metrics': metrics, 'reported': reported}
            self._keep(self.run.folder.scores, score)
            self._known[key] = score
        return self._known[key]

    def _keep(self, path: Path, line: dict[str, Any]) -> None:
        try:
            append_line(path, {'run': self.run.id, **line})
        except OSError as error:
            if error.errno not in (EACCES, EPERM, EROFS):
                raise
            if not self._warned:  # a finished run on storage that can only be read is still of use
                _logger.warning('New scores are not kept: %s', error)
            self._warned = True

    def evaluate(self, sample: Sample) -> float:
        """The score of a sample; larger is better, so a metric to be minimised comes with its sign changed.

        With a prior it is a sum of ranks: see :class:`~nni_naslid.search.prior.Prior`. Minus infinity for NaN, from a
        leaf that diverged: a search must not take it for the best.
        """
        metric = self._metric(sample)
        return metric if self.run.settings.prior is None else self._ranks.score(metric, self.costs(sample))

    def parts(self, sample: Sample) -> dict[str, float]:
        """What counts in a search with a prior or costs: the metric, and the costs by their names; else nothing."""
        settings = self.run.settings
        names = [*dict.fromkeys([*(settings.prior or ()), *costs_of_search(self.run.search)])]
        if not names:
            return {}
        return {settings.monitor: self.metrics(sample)[settings.monitor], **self.costs(sample, names)}

    def _metric(self, sample: Sample) -> float:
        metric = self.metrics(sample)[self.run.settings.monitor]
        return -math.inf if math.isnan(metric) else self.run.settings.turned(metric)

    @cached_property
    def _ranks(self) -> Prior:
        """Ranks among random networks, which are scored for that."""
        settings = self.run.settings
        with seeded(settings.seed, REFERENCES) as random_state:
            samples = [self._space.sample(random_state) for _ in range(N_REFERENCES)]
        samples.sort(key=lambda sample: self.leaf_of(sample).path)  # each leaf is loaded once
        terms = ' '.join(f'{weight:+g} x {name}' for name, weight in settings.prior.items())
        _logger.info('Prior: scoring %d random networks. Others are ranked among them by %s %s; with a minus, less is '
                     'better.', N_REFERENCES, settings.monitor, terms)  # fmt: skip
        metrics, costs = [], []
        with tqdm(samples, desc='Prior', unit='subnet', leave=False, disable=None) as bar:
            for n, sample in enumerate(bar, 1):
                before = self.n_scored
                metrics.append(self._metric(sample))
                costs.append(self.costs(sample))
                if bar.disable and tenth(n, N_REFERENCES) and self.n_scored > before:
                    _logger.info('Prior: %d of %d scored.', n, N_REFERENCES)
        return Prior(metrics, {name: [each[name] for each in costs] for name in settings.prior}, settings.prior)

    def costs(self, sample: Sample, names: Sequence[str] | None = None) -> dict[str, float]:
        """Some costs of a network by name, by default those of the prior.

        Each is asked once of each network: one that is measured has another value the next time.
        """
        names = list(self.run.settings.prior if names is None else names)
        if missing := [name for name in names if name not in self._costs]:
            self._depend_on |= costs_depend_on(missing, self.root)
            self._costs |= costs_of(self.run, self.root, missing)
        same = self.canonical(sample)
        places = self._space.encode(same)
        keys = {name: (str(places), name, self._depend_on.get(name)) for name in names}
        if missing := [name for name in names if keys[name] not in self._known_costs]:
            asked = same if same in self._space else sample  # a filter may keep out what stands for the network
            found = {name: self._costs[name](asked) for name in missing}
            depend_on = {name: self._depend_on[name] for name in missing if name in self._depend_on}
            self._keep(self.run.folder.costs, {'sample': places, 'depend_on': depend_on, 'costs': found})
            self._known_costs.update({keys[name]: cost for name, cost in found.items()})
        return {name: self._known_costs[keys[name]] for name in names}

    @property
    def calibration_batches(self) -> int:
        """How many training batches the batch norms of a network are recalibrated on; 0: on none."""
        return self._n_batches

    def example(self) -> Inputs:
        """What the supernet gets of the first calibration batch, with the weights that are loaded; on the CPU."""
        return self._calibration(self._number(None))[0]

    def instance(self, sample: Sample) -> nn.Module:
        """The sample's sub-network as a model of its own, in evaluation mode on the CPU.

        It is the space frozen to the sample, with the inherited weights, sharing nothing with the supernet: see
        :func:`~nni_naslid.search.export.frozen_network`. Where a module of the user's takes its path in a way of its
        own, it is a copy of the supernet set to the sample, and a warning says why.
        """
        self.prepare(sample)
        supernet = self.supernet.cpu().eval()
        network, why = frozen_network(supernet, sample, self.example())
        if network is None:
            _logger.warning('Exporting a copy of the supernet set to the architecture, not a frozen network: %s.', why)
            network = copy.deepcopy(supernet)
        return network


class InheritedModel(RawFormatModelSpace):
    """Sub-networks with inherited weights as models for NNI's engines and strategies; the evaluator is a LeafScorer.

    ``executable_model()`` is the network itself, with its weights.
    """

    def freeze(self, sample: Sample) -> InheritedModel:
        model = super().freeze(copy.deepcopy(sample))  # a grid goes on to write the next sample into the same dict
        labels = SubSpace.of(self.model_space).mutables  # some constraints write into it, too
        model.sample = {label: choice for label, choice in model.sample.items() if label in labels}
        return model

    def random(self, memo: Sample | None = None, random_state: RandomState | None = None) -> InheritedModel:
        space = SubSpace.of(self.model_space)
        if space.filter is None and not space.ranges:
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
