"""The strategy: grows the tree by having NNI's engine carry out what is due, then has it searched."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nni_naslid.analysis.plots import plot_run
from nni_naslid.criteria.criterion import Criterion
from nni_naslid.criteria.named import SETTINGS, check_travels, criterion_of
from nni_naslid.prepare import check_space, limit_space, try_out
from nni_naslid.run.checks import brief, integer, plain
from nni_naslid.run.constraints import functions_of
from nni_naslid.run.costs import cost_names
from nni_naslid.run.folder import RunFolder, check_workdir
from nni_naslid.run.identity import check_identifiable
from nni_naslid.run.manager import TrialRecords
from nni_naslid.run.pareto import pareto_ranks
from nni_naslid.run.progress import Progress, most_tasks, tenth
from nni_naslid.run.run import Run
from nni_naslid.run.scheduler import KEPT, Outcome, run_tasks, terminating
from nni_naslid.run.settings import Settings
from nni_naslid.search.check import check_search, try_search
from nni_naslid.search.export_files import check_top, export_networks
from nni_naslid.search.nsga2 import costs_of_search
from nni_naslid.search.score import InheritedModel, LeafScorer
from nni_naslid.search.search import SEARCH, filter_of, read_search
from nni_naslid.space.subspace import constrain
from nni_naslid.space.tree import Node
from nni_naslid.start import start_run
from nni_naslid.train.options import settled
from nni_naslid.train.path import SubSupernetModule
from nni_naslid.train.rng import seeded
from nni_naslid.train.supernet import MUTATION_HOOKS
from nni_naslid.traits.costs import check_functions_travel
from nni_naslid.trial import InProcess, Trial

import nni
from nni.common.serializer import PayloadTooLarge
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.execution import ExecutionEngine, SequentialExecutionEngine, TrainingServiceExecutionEngine
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.profiler import ProfilerFilter
from nni.nas.oneshot.pytorch.strategy import MutationHook
from nni.nas.space import ExecutableModelSpace, ModelStatus, RawFormatModelSpace, SimplifiedModelSpace
from nni.nas.strategy import RandomOneShot
from nni.nas.strategy.base import Strategy
from pytorch_lightning import LightningModule
from tqdm.auto import tqdm

__all__ = ['NASLID']

_logger = logging.getLogger(__name__)

MANY = 100  # architectures whose scoring takes so long that the log says how far it is
OUTCOMES = {ModelStatus.Failed: Outcome.FAILED, ModelStatus.Trained: Outcome.DONE}


class NASLID(RandomOneShot):
    """Few-shot NAS: a supernet is trained and split into parts, which are trained apart and searched together.

    After `NAS-LID: Efficient Neural Architecture Search with Local Intrinsic Dimension (AAAI 2023)
    <https://arxiv.org/abs/2211.12759>`__. The supernet is trained by single-path sampling. At every epoch of
    ``split_epochs`` the criterion looks at each (sub-)supernet, and makes children of it, or objects: see
    :class:`~nni_naslid.criteria.bands.Bands` and :class:`~nni_naslid.criteria.lid.LID`. A child goes on from its
    parent's checkpoint (weights, optimizer, learning rate schedule, epoch) in a part of its sub-space; where the
    criterion objects, the node is trained to its end. ``max_epochs`` of the evaluator's trainer is the length of every
    path from the root to a leaf. Then a strategy of NNI searches the union of the leaves, each network scored with the
    weights of the leaf that contains it, after recalibrating its batch norms.

    Parameters
    ----------
    split_epochs
        When to split, in epochs of the evaluator: increasing, below its ``max_epochs``. Without any one supernet is
        trained; as by plain single-path one-shot training (SPOS) with ``lr_by_size=False``, ``momentum_bands=1``
        and ``sampling='uniform'``. Each split multiplies the cost of the epochs after it by the number of its parts;
        :func:`~nni_naslid.run.plan.plan_epochs` says when to split at equal cost.
    criterion
        How a split is chosen: :class:`~nni_naslid.criteria.bands.Bands` with its settings, or ``'bands'``, the default,
        by what whole networks are: four parts by their live parameters and LID (which paid on NAS-Bench-201, see
        ``examples/README.md``), or by their convolutions, FLOPs, a function of yours;
        :class:`~nni_naslid.criteria.lid.LID`, or ``'lid'``, one choice at a time by LID, as in the paper;
        :class:`~nni_naslid.criteria.gradient.Gradient`, or ``'gradient'``, by how candidates want shared weights
        changed; :class:`~nni_naslid.criteria.zero_cost.ZeroCost`, or ``'zero_cost'``, by NASWOT, SynFlow, SNIP or a
        score of yours; :class:`~nni_naslid.criteria.joint.Joint`, or ``'joint'``, all labels into one node of a cell
        together; :class:`~nni_naslid.criteria.fixed.Fixed`, with groups of yours;
        :class:`~nni_naslid.criteria.random.RandomSplit`, or ``'random'``, as a control; or a
        :class:`~nni_naslid.criteria.criterion.Criterion` of yours.
    filter
        Which architectures there are: a function of a sample (label to choice) that is true for these, or an NNI
        ``ProfilerFilter`` (or a dict of the arguments of ``RangeProfilerFilter``, as in :class:`RandomOneShot`). Paths
        in training, profiles and search are drawn until one passes, so about one in a hundred must; in a profile,
        candidates are then put in place of one another, whatever the filter says. What does not pass is neither scored
        nor exported. Constraints between choices that the space has are kept to in the same way, but in a profile
        paths are drawn in which they hold with each candidate, where there are such.
    search
        Any multi-trial strategy of NNI for the search after training. By default :class:`RegularizedEvolution` with a
        population of 50. :class:`~nni_naslid.search.nsga2.NSGA2` looks for networks that are good and cheap.
    search_budget
        How many sub-networks the search may score. Architectures that are the same network count once.
    monitor, mode
        The metric that the user's module logs in validation, by which sub-networks are ranked, and whether the best
        is the ``'max'`` or the ``'min'``; as in Lightning's callbacks. The loss ranked better than the accuracy in
        what we measured (see the README); where networks overfit it can be the other way round.
    calibration_batches
        Training batches on which each sub-network's batch-norm statistics are recomputed before it is scored; 0 keeps
        the supernet's. By default as many as have 6,400 samples, but no more than an epoch has, and no more than
        with which 500 networks take a quarter of what training took; at least 10.
    retries
        How often a trial that failed is submitted again, where NNI runs trials.
    workdir
        Folder for ``tree.json``, checkpoints, results and pictures. A run that was killed goes on from there when it is
        started again with the same settings. Where NNI runs trials on other machines, it must be on storage that all
        of them share, under the same path. ``~`` is your home. By default a new ``naslid-DATE-TIME`` in the current
        folder.
    seed
        Source of everything random in training, profiling and search, up to 2^32 - 1. (The initial weights are the
        user's.)
    trust_checkpoints
        Whether checkpoints in the work folder may hold objects that run code when they are read, which callbacks of
        yours may need to go on. By default they are refused, when they would be written and when they are read.
    keep_epochs
        Epochs of which the weights of each node are kept, to be looked at after training by :meth:`evaluate`: a
        checkpoint for each node and such epoch stays in the work folder. Training is the same with and without. (There
        are always the weights that a node has at its end, so those of a split epoch if all nodes are split at it.)
    stop_hopeless
        The probability to end worse than the best finished leaf at which a leaf is stopped, such as .95; 0 stops none.
        It is told after each validation by a line through the curves of the finished leaves (see
        :mod:`nni_naslid.train.hopeless`): that takes more than 4 leaves, and more than 5 validations of each. The
        networks of a stopped leaf stay in the space, scored with the weights that it has. Off by default: a curve is of
        random paths, so a leaf whose mean is worse may have some of the best networks. In eight replays on trees of 5
        to 8 leaves .95 saved 0 to 34 % of the epochs, 10 % in the mean; the best network was in a stopped leaf once,
        with four of the best five. In trials that run in parallel the decision depends on
        which leaves have finished by then. What was decided is kept.
    lr_by_size
        Whether the learning rate of a step depends on the size of the path that it trains: that of large networks falls
        later, that of small ones sooner, about the schedule of yours, which is that of the median network. A rate that
        never falls stays as it is. ``'auto'``, the default, is ``True`` where networks can be counted by their
        parameters (not in ``NasBench101``), but not with ``sampling='sandwich'`` in a supernet that is not split. See
        :class:`~nni_naslid.train.learning_rate.LearningRateBySize`.
    momentum_bands
        How many bands of networks, by their number of convolutions, have a momentum of their own (all that the
        optimizer keeps for each weight), less where there are fewer different numbers; 1 for one momentum, as usual.
        Bands are cut once for the whole space, and are the same in parts of a split. It goes with the optimizers of
        torch that keep no weights: SGD with momentum, Adam, AdamW, NAdam, RAdam, Adamax, Adagrad, Adadelta, RMSprop and
        Rprop. Their state takes as many times the memory, also in checkpoints. Not with ``sampling='sandwich'``; with
        ``accumulate_grad_batches`` the mean of the paths of a step counts, so most steps are those of middling bands.
        ``'auto'``, the default, is 4 in a supernet that is not split (in parts it ordered digits better, CIFAR-10 not),
        where all of this holds and networks have different numbers of convolutions. It is 1 with a ``filter``,
        ``constraints``, or a constraint of the space, where drawing may take long, and with
        ``accumulate_grad_batches``. See :class:`~nni_naslid.train.momenta.Momenta`.
    sampling
        Which paths are trained: ``'uniform'``, ``'balanced'`` over the number of convolutions, ``'fair'``, in which
        candidates take turns, or ``'sandwich'``, four in each step, the largest and the smallest network of the
        sub-space among them, at four times the cost: see :func:`~nni_naslid.train.sampling.draw_from`. ``'auto'``, the
        default, is ``'balanced'`` in a supernet that is not split, under the conditions on the space of
        ``momentum_bands='auto'``, if choices have no sampling weights, and else ``'uniform'``. What is validated is
        always drawn uniformly.
    distill
        With ``sampling='sandwich'``, how far the smaller networks of a step learn from the largest one instead of the
        labels: in-place distillation. 0, the default, is not at all; 1 is all, as in BigNAS; between, the two losses
        are weighted. The model must return logits: see :func:`~nni_naslid.train.several.soft_loss`.
    prior
        What networks are ranked by beside the metric, such as ``'parameters'`` (with the weight .5) or
        ``{'live_parameters': 1, 'lid': 0.5}``; none by default. The search, and the order of what it found, then go by
        the rank by the metric plus these weights times the ranks by the costs, each among a hundred random networks,
        which are scored for that; this sum is the metric of the models that NNI gets. :meth:`evaluate` gives the
        metrics, the costs and the sum. It is your knowledge of the space (large networks are better), not the
        supernet's: see :mod:`nni_naslid.search.prior`.

        - ``'parameters'``: of the network; ``'live_parameters'``: of those, the ones that make a difference to its
          output (:func:`~nni_naslid.traits.live.live_parameters`);
        - ``'flops'``: of a forward pass of one sample, as PyTorch counts it; ``'latency'``: of one of a training batch,
          timed (:mod:`nni_naslid.traits.passes`); with a weight below 0, as less is better, unless size is a sign of
          quality;
        - ``'lid'``, ``'initial_lid'``: LID of the features (:func:`~nni_naslid.traits.lid_score.lid_score`) with the
          weights of the root at its end, or with the initial weights, of a batch of more than 20 samples;
        - a function of an architecture, at the top of a module, or its full name ``'module.function'``: of its latency
          on your device, say.
    constraints
        What networks may cost: by the name of a cost the lowest and the highest that is allowed, such as
        ``{'flops': (None, 3e8), 'parameters': (None, 5e6)}``. Others are not in the space: they are not trained,
        scored or exported.

        - ``'parameters'``: of the network; ``'flops'``: of a forward pass of one sample, multiplications and additions
          counted apart; ``'macs'``: half of that.
        - Any other, such as a latency, with what gives it: ``'latency': (None, 20, table)``, where the table has the
          cost of each choice of each label, ``{'cell/0_1': {'conv_3x3': 3.5, ...}, ...}``, or is the path of such a
          ``.json``; a network costs what its choices cost together, without those that it does not read, such as of
          blocks beyond its depth. Labels whose choices depend on each other are one entry,
          ``'width & kernel': {'16 & 3': 2.5, ...}``, which counts whether they are read or not. All labels of several
          choices must be there; one of several inputs is ``'0'`` or ``'[0]'``.
          :func:`~nni_naslid.traits.latency.measure_latency` makes such a table. Or a function of an architecture, at
          the top of a module, or its full name.

        The cost that leaves the fewest networks, of those that add up (all but functions), is counted, and paths within
        its bounds are drawn at once (:mod:`nni_naslid.traits.limits`); within the bounds of others paths are drawn
        until one passes, so one in a hundred must. Choices must not have weights, but for functions. As for a
        ``filter``, profiles put candidates in place of one another, also where a path is then out of bounds. Samples
        are counted by the first dimension of the first tensor that the supernet is called with.
    mutation_hooks
        For modules of your own that NNI cannot turn into supernet modules by itself: a list of functions, as in
        :class:`RandomOneShot`.
    of_criterion
        Settings of a criterion that is given by its name, such as ``n_neighbors`` or ``estimator``, as in earlier
        versions.

    Notes
    -----
    With ``NasExperimentConfig('ts', 'simplified', ...)`` each node is an NNI trial, nodes that do not depend on each
    other run in parallel, and the web UI shows them. Space, evaluator and data are then made anew in each trial, so
    their classes must be traced (``nni.trace``); the tree, its weights and the search are the same.

    Each node is trained by a trainer of its own, made from the arguments of yours, on copies of your module and
    callbacks: what callbacks of yours collect in themselves stays in the copies. A data module is set up for each node
    too, with the same random numbers each time. Lightning's default logger has a folder of each node, such as
    ``lightning_logs/node-0.1``, and one of the search; a logger that you have made gets all nodes, one after another
    (in trials, and on several devices, each node has a copy of it).

    The loggers also get what is found of splits, at the global step of the node: ``naslid-0.1/separates`` (1 or 0),
    ``contrast`` with ``contrast_lower`` and ``contrast_upper``, ``p``, ``repeats`` and ``passes``; the contrast of
    every label, ``contrasts/<label>``; and the LID of each candidate, ``lid/<label>/<candidate>``, the mean over layers
    (the page has them layer by layer), or with another estimator of :class:`~nni_naslid.criteria.lid.LID`, say,
    ``effective_rank/<label>/<candidate>``, or its zero-cost score, ``score/<label>/<candidate>``. Of the search they
    get ``naslid-search/best_<monitor>`` at the number of scored networks. What a logger raises ends the run; start it
    again to go on.

    Run in this process, your space becomes the supernet. After the run it holds the weights of whichever leaf was
    loaded last, set to some path: :meth:`load` puts those of a leaf of your choice there, :meth:`evaluate` those of the
    right leaf for each network. Another strategy of NNI on the same space would score all networks with the weights of
    one leaf; give it a copy of your own, or use :meth:`evaluate`.

    Attributes
    ----------
    tree
        The root :class:`~nni_naslid.space.tree.Node`.

    Raises
    ------
    ValueError, TypeError
        Before any training, for settings, spaces, evaluators or data that cannot work (see :mod:`nni_naslid.prepare`),
        and for a work folder that holds a run with other settings, or damaged files.
    RuntimeError
        If a trial fails more than ``retries`` times. Everything that has finished is kept.

    Examples
    --------
    >>> NASLID(split_epochs=[50, 75, 90], criterion='random')
    NASLID(split_epochs=[50, 75, 90], criterion=RandomSplit(max_groups=2))
    """

    def __init__(
        self,
        split_epochs: Sequence[int] = (),
        *,
        criterion: Criterion | str | None = None,
        filter: ProfilerFilter | dict[str, Any] | Callable[[Sample], bool] | None = None,
        search: Strategy | None = None,
        search_budget: int = 500,
        monitor: str = 'val_loss',
        mode: str = 'min',
        calibration_batches: int | None = None,
        retries: int = 1,
        workdir: str | os.PathLike | None = None,
        seed: int = 0,
        trust_checkpoints: bool = False,
        keep_epochs: Sequence[int] = (),
        stop_hopeless: float = 0.0,
        lr_by_size: bool | str = 'auto',
        momentum_bands: int | str = 'auto',
        sampling: str = 'auto',
        distill: float = 0.0,
        prior: str | Callable[[Sample], float] | Mapping[Any, float] | None = None,
        constraints: Mapping[str, Sequence[Any]] | None = None,
        mutation_hooks: list[MutationHook] | None = None,
        **of_criterion: Any,
    ):
        for name in of_criterion:
            if name not in SETTINGS:
                raise TypeError(f'NASLID has no argument {name!r}.')
        self._hooks = _hooks(mutation_hooks)
        super().__init__(filter=filter, mutation_hooks=[*self._hooks, *MUTATION_HOOKS])
        self._asked = self.settings = Settings(
            split_epochs=split_epochs, criterion=criterion_of(criterion, of_criterion), search_budget=search_budget,
            monitor=monitor, mode=mode, calibration_batches=calibration_batches, retries=retries, seed=seed,
            trust_checkpoints=trust_checkpoints, keep_epochs=keep_epochs, stop_hopeless=stop_hopeless,
            lr_by_size=lr_by_size, momentum_bands=momentum_bands, sampling=sampling, distill=distill, prior=prior,
            constraints=constraints,
        )  # fmt: skip
        check_search(search, self.settings)
        if self.filter is not None and not callable(self.filter):
            raise TypeError(f'filter must be a function of an architecture, or a ProfilerFilter, but got {filter!r}.')
        self.search = search
        self.workdir = None if workdir is None else _folder(workdir)
        self.tree: Node | None = None
        self._named = workdir is not None
        self._evaluator: Lightning | None = None
        self._scorer: LeafScorer | None = None
        self._found: list[InheritedModel] | None = None
        self._progress: Progress | None = None
        self._records: TrialRecords | None = None
        self._checked: dict[str, Any] = {}
        self._made: Run | None = None

    def extra_repr(self) -> str:
        return f'split_epochs={self.settings.split_epochs}, criterion={self.settings.criterion}'

    def fit(self, space: ModelSpace, evaluator: Lightning) -> NASLID:
        """Train, split and search in this process, as ``NasExperiment(space, evaluator, self).run()`` does.

        Without an experiment of NNI's, so without its folder and its log file: all that there is to keep is in
        ``workdir``. Then :meth:`list_models`, :meth:`evaluate` and :meth:`costs` are there, for searches of yours, too.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            As the class says.
        """
        self(RawFormatModelSpace.from_model(space, evaluator), SequentialExecutionEngine())
        return self

    # What the user can go on from.

    @property
    def leaves(self) -> list[Node]:
        """The trained leaves: disjoint sub-spaces that cover the space, each with its checkpoint."""
        if self.tree is None:
            raise RuntimeError('NASLID has no leaves before it has run.')
        return self.tree.leaves

    def load(self, leaf: Node) -> None:
        """Put the weights of one of :attr:`leaves` into :attr:`supernet`."""
        self._ready().load(leaf)

    def evaluate(
        self, samples: Iterable[Sample], *, epoch: int | None = None, calibration_batches: int | None = None
    ) -> list[dict[str, float]]:
        """All that the user's module logs in validation, for any architectures of the space, with inherited weights.

        With a ``prior``, and for the leaves at their end, also the costs by their names, and as ``'with_prior'`` the
        score by which the search ranks.

        How a ranking changes over training, and what calibration does to it, can be seen by scoring the same
        architectures again with another ``epoch`` or number of ``calibration_batches``, by
        :func:`~nni_naslid.ranking_report` and on the page of ``python -m nni_naslid report``.

        Parameters
        ----------
        samples
            What NNI calls architectures: a list of dicts of label to choice.
        epoch
            Score each architecture by the node that contained it at this epoch of training, with its weights then: an
            epoch at which all nodes end, or one of ``keep_epochs``. By default by the leaves, at their end.
        calibration_batches
            Instead of the setting; 0: with the batch-norm statistics of the supernet. They are kept in memory; where
            there are less, they come again.

        Raises
        ------
        TypeError, ValueError
            Before anything is scored, if a sample is not one of the space: it names the sample, the label and what the
            choice must be; or if the filter does not let it pass; or if the weights of that epoch are not there: it
            names the epochs that are.
        """
        if calibration_batches is not None:
            calibration_batches = integer('calibration_batches', calibration_batches, 0)
        samples = _listed(samples)
        with_prior = self.settings.prior is not None and epoch is None and calibration_batches is None
        scorer = self._ready()
        trained = self._nodes_at(epoch)
        nodes = [scorer.leaf_of(sample, f'samples[{i}]', trained) for i, sample in enumerate(samples)]
        order = sorted(range(len(samples)), key=lambda i: nodes[i].path)  # each node is loaded once
        metrics = {}
        with tqdm(order, desc='Scoring', unit='subnet', leave=False, disable=None) as bar:
            for i in bar:
                metrics[i] = scorer.metrics(samples[i], nodes[i], calibration_batches)
                if with_prior:
                    metrics[i] = {**scorer.costs(samples[i]), 'with_prior': scorer.evaluate(samples[i]), **metrics[i]}
                if bar.disable and len(samples) >= MANY and tenth(len(metrics), len(samples)):
                    _logger.info('Scoring: %d of %d architectures', len(metrics), len(samples))
        return [metrics[i] for i in range(len(samples))]

    def costs(
        self, samples: Iterable[Sample], names: Sequence[str | Callable[[Sample], float]]
    ) -> list[dict[str, float]]:
        """What architectures of the space cost, whether they were scored or not.

        Parameters
        ----------
        samples
            A list of dicts of label to choice.
        names
            Which costs, as of a ``prior``: ``['flops', 'lid']``, or functions.

        Raises
        ------
        TypeError, ValueError
            Before anything is computed, if a sample is not one of the space, or a cost is not known.
        """
        names = cost_names('names', names)
        samples, scorer = _listed(samples), self._ready()
        for i, sample in enumerate(samples):
            scorer.leaf_of(sample, f'samples[{i}]')
        return [scorer.costs(sample, names) for sample in samples]

    def list_models(self, sort: bool = True, limit: int | None = 1) -> Iterator[InheritedModel]:
        """The sub-networks that the search scored, the best first; ``executable_model()`` has inherited weights.

        Architectures that differ only in what their network does not read (choices in blocks beyond its depth) are one
        sub-network, scored once and listed once.

        After :class:`~nni_naslid.search.nsga2.NSGA2`, a search with costs, those come first that no other one beats in
        metric and costs, then those that only these beat, and so on; among those, such as are far from others, so that
        a few of a front are spread over it.

        Asked for more than the search has scored, it scores random others until there are ``limit``, of those that
        the filter lets pass, and filters of the search; not after a search of your own, which may have had reasons to
        leave others out. The log says so. (NNI's ``export_top_models(n)`` asks for ``n``.)
        """
        scorer = self._ready()
        more = (limit or 0) - len(self._found)
        if more > 0 and (passes := filter_of(self.search)) is None:
            _logger.info('%s may leave out networks: listing the %d that it scored, not %d.',
                         type(self.search).__name__, len(self._found), limit)  # fmt: skip
            more = 0
        if more > 0:
            _logger.info('%d networks are asked for, and %d are scored: scoring %d others, drawn at random.',
                         limit, len(self._found), more)  # fmt: skip
        known = {scorer.network(model.sample) for model in self._found}
        with seeded(self.settings.seed, SEARCH, 1) as random_state:
            for _ in range(100 * max(more, 0)):  # more than enough, but for spaces that have not so many
                if len(self._found) >= limit:
                    break
                sample = self.tree.subspace.sample(random_state)
                if (network := scorer.network(sample)) not in known and passes(self._model(sample)):
                    known.add(network)
                    self._found.append(self._scored(sample, scorer.evaluate(sample)))
        if more > 0 and len(self._found) < limit:
            _logger.info('No other network was found: listing %d.', len(self._found))
        by_metric = sort and not costs_of_search(self.search)  # which has an order of its own
        models = sorted(self._found, key=lambda model: model.metric, reverse=True) if by_metric else self._found
        yield from models[:limit]

    def pareto_front(self) -> list[tuple[Sample, dict[str, float]]]:
        """The networks that no other one beats in metric and costs, as :class:`~nni_naslid.search.nsga2.NSGA2` found.

        Returns
        -------
        The architecture of each, with its metric and costs by their names (and with a ``prior`` the score that counts
        instead of the metric, ``'with_prior'``); those of the lowest first cost come first.

        Raises
        ------
        RuntimeError
            Before the run, or after a search without costs.
        """
        scorer, costs = self._ready(), costs_of_search(self.search)
        if not costs:
            raise RuntimeError("A front takes a search with costs, such as NASLID(search=NSGA2(['flops'])).")
        found = [
            (model.sample, scorer.parts(model.sample) | ({'with_prior': model.metric} if self.settings.prior else {}))
            for model in self._found
        ]
        points = [[-model.metric, *(parts[name] for name in costs)]
                  for model, (_, parts) in zip(self._found, found, strict=True)]  # fmt: skip
        front = [each for each, rank in zip(found, pareto_ranks(points), strict=True) if rank == 0]
        return sorted(front, key=lambda each: [each[1][name] for name in costs])

    def export(self, folder: str | os.PathLike | None = None, *, top: int = 1, onnx: bool = False) -> list[Path]:
        """Write the best networks of the search as files that can be read without this package.

        Each gets a folder, ``1`` for the best: ``weights.pt``, the ``state_dict`` of the network with the weights of
        its leaf and recalibrated batch norms, by which it was ranked; ``architecture.json``, its choices, metrics and
        costs; with ``onnx``, ``model.onnx`` for any number of samples, compared with PyTorch by ``onnxruntime``. Files
        of the same network are replaced. :func:`~nni_naslid.search.export_files.load_network`
        makes a network of them. What is in them is told in ``nni_naslid/run/README.md``.

        Parameters
        ----------
        folder
            Where to put them; by default ``export`` in the work folder.
        top
            How many, in the order of :meth:`list_models`.
        onnx
            Whether to write ONNX files, which takes ``pip install onnx onnxscript onnxruntime``.

        Returns
        -------
        The folders, the best network first.

        Raises
        ------
        RuntimeError
            Before the run has ended.
        ValueError
            If ``top`` is more than there are; if a network cannot be had as ONNX, after all other files are written.
        FileExistsError, ModuleNotFoundError
            If another network is in that folder, or a package is missing; before anything is written.
        OSError
            If a file cannot be written.
        """
        scorer = self._ready()
        top = check_top(top, len(self._found))
        models = self.list_models(limit=top)
        folder = RunFolder(self.workdir).export if folder is None else _folder(folder, 'folder').resolve()
        return export_networks(scorer, [(model.sample, model.metric) for model in models], folder, onnx)

    # What NNI calls.

    def configure_oneshot_module(self, training_module: LightningModule) -> SubSupernetModule:
        """The one-shot module of the root: it samples from the whole space."""
        return SubSupernetModule(training_module, self.tree.subspace, [self.settings.seed])

    def _initialize(self, model_space: ExecutableModelSpace, engine: ExecutionEngine) -> ExecutableModelSpace:
        with terminating():  # Lightning takes SIGTERM for itself while data are read
            return self._prepare(model_space, engine)

    def _prepare(self, model_space: ExecutableModelSpace, engine: ExecutionEngine) -> ExecutableModelSpace:
        space = self._space_of(model_space, engine)
        self._evaluator, self.settings = model_space.evaluator, self._asked
        with seeded(self.settings.seed):
            check_space(space, self._evaluator, self.settings)
            # On a copy: the user may mend what is wrong and come again with the same space.
            tried = self.mutate_model(copy.deepcopy(space))
            part = limit_space(tried, self._evaluator, self.settings, self.filter)
            constrain(tried, part)
            self.settings = settled(self.settings, tried, self._evaluator)
            self._checked = try_out(tried, self._evaluator, self.settings)
            try_search(self.search, tried, self._evaluator, self.settings)
            if self._named:
                check_identifiable(self.search, 'search')
                check_identifiable(self.filter, 'filter')
                check_workdir(self.workdir)
            if not self._in_process:
                check_travels(self.settings.criterion)
                check_functions_travel('prior', self.settings.prior or {})
                check_functions_travel('costs', costs_of_search(self.search))
                functions = functions_of(self.settings.constraints).values()
                check_functions_travel('constraints', [name for *_, name in functions])
                self._recipe = space.trace_copy(), _dump('evaluator', self._evaluator)
                _dump('search', self.search)
                _dump('filter', self.filter)
        with seeded(self.settings.seed):  # anew: weights that NNI makes now must not depend on what was tried out
            # NNI sends the space of an experiment with trials to its manager after this.
            supernet = self.mutate_model(space if self._in_process else copy.deepcopy(space))
            constrain(supernet, part)
            self.tree = Node(part)
        self._mutated_model_space = RawFormatModelSpace(supernet, self._evaluator)
        self._mutated_model_space.status = ModelStatus.Frozen
        if not self._named:
            self.workdir = _new_workdir()
        return self._mutated_model_space if self._in_process else model_space

    def _run(self) -> None:
        try:
            with terminating():
                self._explore()
        except KeyboardInterrupt:
            _logger.warning('Interrupted. %s', KEPT)
            raise

    def _explore(self) -> None:
        folder = RunFolder(self.workdir)
        self._progress = start_run(self.supernet, self._evaluator, self.settings, folder, self._checked)
        self._made = Run(self.settings, folder, self._progress.run, self.supernet, self._evaluator, self.search)
        self.tree = self._progress.root
        if not self._in_process:
            manager = self.engine.nodejs_binding
            self._records = TrialRecords(folder, manager.id, manager.port, manager.url_prefix)
        n_tasks = 0
        for due in (self._progress.nodes_due, self._search_due):
            n_tasks += run_tasks(
                due, self._submit, self._outcomes, folder=folder, retries=self.settings.retries,
                has_ended=self._has_ended,
            )  # fmt: skip
        plot_run(self._progress)
        self._progress.log_search(is_new=n_tasks > 0)

    def state_dict(self) -> dict:
        """Where the run is kept, in plain types; all else is in the files there."""
        return {'workdir': str(self.workdir)}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on in the work folder of an earlier run, unless the user has named one."""
        if not self._named:
            self.workdir = Path(state_dict['workdir'])

    # The steps.

    @property
    def _in_process(self) -> bool:
        return isinstance(self.engine, SequentialExecutionEngine)

    def _space_of(self, model_space: ExecutableModelSpace, engine: ExecutionEngine) -> Any:
        """The user's space: in this process, or as the experiment has it that runs trials."""
        if isinstance(model_space, RawFormatModelSpace) and isinstance(engine, SequentialExecutionEngine):
            return model_space.model_space
        if isinstance(model_space, SimplifiedModelSpace) and isinstance(engine, TrainingServiceExecutionEngine):
            limit, most = engine.nodejs_binding.config.max_trial_number, most_tasks(self.settings)
            if limit is not None and limit < most:
                raise ValueError(f'max_trial_number must be at least {most} for this tree and search, but is {limit}.')
            return engine.nodejs_binding.model_space
        raise TypeError(
            "NASLID runs on NNI's sequential engine with the raw model format (the default of NasExperiment), or on "
            f'its training-service engine with the simplified one, but got {type(engine).__name__} and '
            f'{type(model_space).__name__}.'
        )

    def _search_due(self, done: set[str]) -> list[str]:
        """Take over what the search has left."""
        found = read_search(self._made, self.tree)
        if found is None:
            return ['search']
        self._scorer = self._left_by_the_search() or LeafScorer(self._made, self.tree)
        self._found = [self._scored(sample, score) for sample, score in found]
        return []

    def _left_by_the_search(self) -> LeafScorer | None:
        """The scorer of a search in this process, so that the validation data are not read again."""
        for model in self.engine.list_models():
            if isinstance(model, InProcess) and model.scorer is not None:
                scorer, model.scorer = model.scorer, None
                scorer.root = self.tree  # the same one, as the user has it
                return scorer
        return None

    def _submit(self, task: str) -> None:
        if self._records is None:
            self.engine.submit_models(InProcess(task, self._made))
            return
        row = self._progress.row(task)
        self._records.show(self._progress.search_space)
        self._records.sent[task] += 1
        trial = Trial(
            task, *self._recipe, settings=self.settings, workdir=self.workdir, run=self._made.id, search=self.search,
            filter=self.filter, mutation_hooks=self._hooks, summary=row,
        )  # fmt: skip
        self.engine.submit_models(trial)

    def _outcomes(self) -> dict[str, Outcome]:
        """Of the tasks that the engine knows."""
        if self._records is not None:
            return self._records.outcomes()
        return {
            model.task: OUTCOMES.get(model.status, Outcome.RUNNING)
            for model in self.engine.list_models()
            if isinstance(model, InProcess)
        }

    def _has_ended(self) -> bool:
        """Whether NNI runs nothing any more. (Where it takes no more trials, some may still run.)"""
        return self._records is not None and self.engine.nodejs_binding.get_status() in ('DONE', 'STOPPED', 'ERROR')

    def _nodes_at(self, epoch: int | None) -> list[Node]:
        """The nodes of the tree at an epoch, as they were then; by default the leaves at their end."""
        if epoch is None:
            return self.tree.leaves
        epochs = self.tree.kept_epochs
        if type(epoch := plain(epoch)) is not int or epoch not in epochs:
            raise ValueError(
                f'epoch must be one whose weights are there, {", ".join(map(str, epochs))}, but got {brief(epoch)}. '
                'keep_epochs=[...], given before training, keeps those of others.'
            )
        return self.tree.at(epoch)

    def _ready(self) -> LeafScorer:
        if self._scorer is None:
            begun = '' if self._made is None else f' to its end; start it again with workdir={str(self.workdir)!r}'
            raise RuntimeError(f'NASLID has no trained leaves before it has run{begun}.')
        self._scorer.reload()
        return self._scorer

    def _model(self, sample: Sample) -> InheritedModel:
        return InheritedModel(self.supernet, self._scorer).freeze(sample)

    def _scored(self, sample: Sample, score: float) -> InheritedModel:
        model = self._model(sample)
        model.metrics.final = score
        model.status = ModelStatus.Trained
        return model


def _listed(samples: Iterable[Sample]) -> list[Sample]:
    if isinstance(samples, Mapping):
        raise TypeError(f'samples must be a list of dicts of label to choice, but got one dict, {samples}.')
    return list(samples)


def _hooks(given: Any) -> list[MutationHook]:
    """A list of functions."""
    if given is None:
        return []
    if not isinstance(given, (list, tuple)) or not all(map(callable, given)):
        raise TypeError(f'mutation_hooks must be a list of functions, but got {given!r:.100}.')
    return list(given)


def _folder(given: Any, name: str = 'workdir') -> Path:
    """An absolute path, with ``~`` expanded."""
    if not isinstance(given, (str, os.PathLike)) or not isinstance(path := os.fspath(given), str) or not path:
        raise TypeError(f'{name} must be the path of a folder, but got {given!r:.100}.')
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:  # of a user who is not known
        raise ValueError(f'{name}: {path} has no home to start from ({error}).') from error


def _dump(what: str, given: Any) -> str:
    """The evaluator or the search as text, for trials.

    Raises
    ------
    ValueError
        If it holds something that NNI cannot make anew.
    """
    limit = int(os.getenv('PICKLE_SIZE_LIMIT', 64 * 1024))  # as NNI has it for its own trials
    try:
        return nni.dump(given, pickle_size_limit=limit)
    except (PayloadTooLarge, TypeError, ValueError) as error:
        raise ValueError(
            f'The {what} cannot be sent to trials. Wrap the classes of data sets and modules with nni.trace, so that '
            'what makes them is sent instead of large objects, and put classes of your script into a module of their '
            f'own. NNI says: {error}'
        ) from error


def _new_workdir() -> Path:
    now = time.strftime('naslid-%Y%m%d-%H%M%S')
    names = (Path(f'{now}{suffix}').absolute() for suffix in ('', *(f'-{i}' for i in range(2, 1000))))
    return next(name for name in names if not name.exists())
