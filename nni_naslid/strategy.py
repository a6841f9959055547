"""The strategy: train, profile, split, descend, search."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from nni_naslid.checks import check_settings, check_space, clear_workdir, try_out
from nni_naslid.criteria import Split, candidate_profiles, split_by_lid, split_randomly
from nni_naslid.evaluator import InheritedModel, LeafEvaluator
from nni_naslid.features import profile_layers
from nni_naslid.plots import plot_split, plot_tree
from nni_naslid.sampling import SubSupernetModule
from nni_naslid.subspace import SubSpace
from nni_naslid.training import (
    SubSupernet,
    fresh_evaluator,
    loaders,
    n_steps,
    quiet,
    save_checkpoint,
    seeded,
    supernet_inputs,
    take_batches,
)
from nni_naslid.tree import Node, format_size, save_tree

from nni.mutable import Sample
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.execution import ExecutionEngine, SequentialExecutionEngine
from nni.nas.execution.event import ModelEventType
from nni.nas.oneshot.pytorch.strategy import MutationHook
from nni.nas.space import ModelStatus, RawFormatModelSpace
from nni.nas.strategy import RandomOneShot, RegularizedEvolution
from nni.nas.strategy.base import Strategy
from numpy.random import RandomState
from pytorch_lightning import LightningModule
from torch import Tensor
from tqdm.auto import tqdm

__all__ = ['NASLID']

_logger = logging.getLogger(__name__)

PROFILE, SEARCH, CALIBRATE = 1_000_001, 1_000_002, 1_000_003  # keep random streams apart; no node has such a path


class NASLID(RandomOneShot):
    """Few-shot NAS that splits a supernet where local intrinsic dimension tells the candidates apart.

    See `NAS-LID: Efficient Neural Architecture Search with Local Intrinsic Dimension (AAAI 2023)
    <https://arxiv.org/abs/2211.12759>`__. The supernet is trained by uniform single-path sampling. At every epoch of
    ``split_epochs`` each (sub-)supernet is profiled: the label whose candidates' LID profiles fall most clearly into
    groups is split, and each group becomes a child that goes on from its parent's checkpoint (weights, optimizer,
    learning rate schedule, epoch) in the narrower sub-space. ``max_epochs`` of the evaluator's trainer is the length
    of every path from the root to a leaf. Then a strategy of NNI searches the union of the leaves, each sample scored
    with the weights of the leaf that contains it, after recalibrating its batch norms.

    Parameters
    ----------
    split_epochs
        When to split, in epochs of the evaluator: increasing, below its ``max_epochs``. Without any it is plain
        single-path one-shot training (SPOS). Each split doubles the cost of the epochs after it.
    criterion
        How a split is chosen: ``'lid'``, or ``'random'`` as a control.
    n_neighbors
        Neighbours of the LID estimate; less than the training batch size.
    repeats
        Batches (each with a random path) on which candidates are profiled at each split.
    max_groups
        The largest number of children of one split.
    layers
        Patterns of module names whose outputs make the LID profile, such as ``['cells.*']``. By default the paper's
        for NasBench201 and ProxylessNAS, and all blocks of other spaces.
    search
        Any multi-trial strategy of NNI for the search after training. By default :class:`RegularizedEvolution` with a
        population of 50.
    search_budget
        How many sub-networks the search may score.
    monitor, mode
        The metric that the user's module logs in validation, by which sub-networks are ranked, and whether the best
        is the ``'max'`` or the ``'min'``; as in Lightning's callbacks. The loss ranked better than the accuracy in
        what we measured (see the README); where networks overfit it can be the other way round.
    calibration_batches
        Training batches on which each sub-network's batch-norm statistics are recomputed before it is scored; 0 keeps
        the supernet's.
    workdir
        Folder for ``tree.json``, checkpoints and pictures; those of an earlier run there are deleted. By default a new
        ``naslid-DATE-TIME`` in the current folder.
    seed
        Source of everything random in training, profiling and search. (The initial weights are the user's.)
    mutation_hooks
        For modules of your own that NNI cannot turn into supernet modules by itself, as in :class:`RandomOneShot`.

    Notes
    -----
    Each node is trained by a trainer of its own, made from the arguments of yours, on copies of your module and
    callbacks: what callbacks of yours collect in themselves stays in the copies. A data module is set up for each node
    too; if it splits data at random it must do so in the same way each time.

    Attributes
    ----------
    tree
        The root :class:`~nni_naslid.tree.Node`.

    Raises
    ------
    ValueError, TypeError
        Before any training, for settings, spaces, evaluators or data that cannot work; see :mod:`nni_naslid.checks`.

    Examples
    --------
    >>> strategy = NASLID(split_epochs=[50, 75, 90])
    >>> strategy
    NASLID(split_epochs=[50, 75, 90], criterion='lid')
    """

    def __init__(
        self,
        split_epochs: Sequence[int] = (),
        *,
        criterion: str = 'lid',
        n_neighbors: int = 20,
        repeats: int = 32,
        max_groups: int = 2,
        layers: Sequence[str] | None = None,
        search: Strategy | None = None,
        search_budget: int = 500,
        monitor: str = 'val_loss',
        mode: str = 'min',
        calibration_batches: int = 10,
        workdir: str | os.PathLike | None = None,
        seed: int = 0,
        mutation_hooks: list[MutationHook] | None = None,
    ):
        super().__init__(mutation_hooks=mutation_hooks)
        self.split_epochs = list(split_epochs)
        self.criterion = criterion
        self.n_neighbors = n_neighbors
        self.repeats = repeats
        self.max_groups = max_groups
        self.layers = layers
        self.search = search
        self.search_budget = search_budget
        self.monitor = monitor
        self.mode = mode
        self.calibration_batches = calibration_batches
        self.workdir = None if workdir is None else Path(workdir)
        self.seed = seed
        check_settings(self)
        self.tree: Node | None = None
        self._evaluator: Lightning | None = None
        self._subnets: InheritedModel | None = None
        self._search_engine: SequentialExecutionEngine | None = None

    def extra_repr(self) -> str:
        return f'split_epochs={self.split_epochs}, criterion={self.criterion!r}'

    # What the user can go on from.

    @property
    def leaves(self) -> list[Node]:
        """The trained leaves: disjoint sub-spaces that cover the space, each with its checkpoint."""
        if self.tree is None:
            raise RuntimeError('NASLID has no leaves before it has run.')
        return self.tree.leaves

    def load(self, leaf: Node) -> None:
        """Put the weights of one of :attr:`leaves` into :attr:`supernet`."""
        self._scorer().load(leaf)

    def evaluate(self, samples: Iterable[Sample]) -> list[dict[str, float]]:
        """All that the user's module logs in validation, for any samples of the space, with inherited weights."""
        samples = list(samples)
        scorer = self._scorer()
        order = sorted(range(len(samples)), key=lambda i: scorer.leaf_of(samples[i]).path)  # each leaf is loaded once
        metrics = {i: scorer.metrics(samples[i]) for i in tqdm(order, desc='Scoring', unit='subnet', leave=False)}
        return [metrics[i] for i in range(len(samples))]

    def list_models(self, sort: bool = True, limit: int | None = 1) -> Iterator[InheritedModel]:
        """The sub-networks that the search scored, the best first; ``executable_model()`` has inherited weights.

        Asked for more than the search has scored, it scores random others until there are ``limit``.
        """
        self._scorer()
        engine = self._search_engine
        models = [model for model in engine.list_models() if model.metric is not None]
        known = {repr(sorted(model.sample.items())) for model in models}
        with seeded(self.seed, SEARCH, 1) as random_state:
            for _ in range(100 * (limit or 0)):  # more than enough, but for spaces that have not so many
                if len(models) >= limit:
                    break
                sample = self.tree.subspace.sample(random_state)
                if repr(sorted(sample.items())) not in known:
                    known.add(repr(sorted(sample.items())))
                    models.append(self._subnets.freeze(sample))
                    engine.submit_models(models[-1])
        if sort:
            models.sort(key=lambda model: model.metric, reverse=True)
        yield from models[:limit]

    # What NNI calls.

    def configure_oneshot_module(self, training_module: LightningModule) -> SubSupernetModule:
        """The one-shot module of the root: it samples from the whole space."""
        return SubSupernetModule(training_module, SubSpace.of(self.model_space.model_space), [self.seed])

    def _initialize(self, model_space: RawFormatModelSpace, engine: ExecutionEngine) -> RawFormatModelSpace:
        self._evaluator = model_space.evaluator
        with seeded(self.seed):
            train = check_space(self, model_space, engine)
            subspace = SubSpace.of(model_space.model_space)
            # On a copy: the user may mend what is wrong and come again with the same space.
            try_out(self, self.mutate_model(copy.deepcopy(model_space.model_space)), subspace)
            supernet = self.mutate_model(model_space.model_space)
        clear_workdir(self.workdir)
        self._mutated_model_space = RawFormatModelSpace(supernet, self._evaluator)
        self._mutated_model_space.status = ModelStatus.Frozen
        self.tree = Node(subspace, 0, self._next_stop(0))
        self._log_plan(train)
        return self._mutated_model_space

    def _run(self) -> None:
        queue = deque([self.tree])
        while queue:
            node = queue.popleft()
            self._train(node)
            if node.end_epoch in self.split_epochs:
                node.split = self._choose_split(node)
                if node.split is not None and node.split.separates:
                    self._branch(node)
                    queue.extend(node.children)
                else:
                    node.end_epoch = self.max_epochs
                    self._train(node)
                self._save()
        self._find_best()

    def state_dict(self) -> dict:
        """Where the run is kept, in plain types."""
        return {'workdir': str(self.workdir)}

    def load_state_dict(self, state_dict: dict) -> None:
        raise RuntimeError('NASLID cannot be resumed in this version; start a new experiment.')

    # The steps.

    @property
    def max_epochs(self) -> int:
        """Length of every path from the root to a leaf, in epochs."""
        return self._evaluator.trainer.max_epochs

    def _next_stop(self, epoch: int) -> int:
        return min(stop for stop in [*self.split_epochs, self.max_epochs] if stop > epoch)

    def _log_plan(self, train: Iterable) -> None:
        stops = [0, *self.split_epochs, self.max_epochs]
        levels = [(self.max_groups**i, b - a) for i, (a, b) in enumerate(pairwise(stops))]
        terms = ' + '.join(f'{nodes} x {epochs}' if nodes > 1 else str(epochs) for nodes, epochs in levels)
        leaves = f'up to {levels[-1][0]} leaves' if self.split_epochs else 'one supernet'
        limit = f'at most {terms} = ' if self.split_epochs else ''
        steps = f' of {n_steps(train, self._evaluator.trainer):,} steps' if hasattr(train, '__len__') else ''
        paths = 1 + sum(len(candidates) - 1 for candidates in self.tree.subspace.splittable.values())
        profiled = sum(nodes for nodes, _ in levels[:-1]) * self.repeats * paths if self.criterion == 'lid' else 0
        _logger.info(
            'Plan: %s of %s samples; training costs %s%d epochs%s, profiling up to %s forward passes, '
            'the search scores %d samples. Work folder: %s',
            leaves, format_size(self.tree.subspace.size), limit, sum(nodes * epochs for nodes, epochs in levels), steps,
            f'{profiled:,}', self.search_budget, self.workdir,
        )  # fmt: skip

    def _train(self, node: Node) -> None:
        """Train a node to its ``end_epoch``, from where it or its parent stopped."""
        seed = [self.seed, *node.path]
        parent = node.checkpoint or self._parent_checkpoint(node)
        started = time.perf_counter()
        with seeded(*seed, node.end_epoch):
            evaluator = fresh_evaluator(
                self._evaluator,
                lambda module: SubSupernetModule(module, node.subspace, seed),
                node.end_epoch,
                parent,
            )
            model = SubSupernet(self.supernet, evaluator)
            model.status = ModelStatus.Frozen
            self.engine.submit_models(model)
        if model.status != ModelStatus.Trained:
            raise RuntimeError(f'Training of node {node.name} failed; see the error above.')
        self._mutated_model_space.evaluator = evaluator
        if evaluator.trainer.current_epoch != node.end_epoch:
            raise RuntimeError(
                f'Node {node.name} was stopped after epoch {evaluator.trainer.current_epoch} instead of '
                f'{node.end_epoch}; what stops training (EarlyStopping, max_time, ...) does not go with a tree.'
            )
        checkpoint = self.workdir / f'node-{node.name}.ckpt'
        save_checkpoint(evaluator.trainer, checkpoint)
        node.checkpoint, node.metric = checkpoint, model.metric
        _logger.info(
            'Node %s: trained to epoch %d of %d on %s samples in %.0f s%s',
            node.name, node.end_epoch, self.max_epochs, format_size(node.subspace.size), time.perf_counter() - started,
            '' if node.metric is None else f', reported {node.metric:.4f}',
        )  # fmt: skip
        self._save()

    def _parent_checkpoint(self, node: Node) -> Path | None:
        return next((parent.checkpoint for parent in self.tree if node in parent.children), None)

    def _choose_split(self, node: Node) -> Split | None:
        """The best split of a node, or ``None`` where every label has a single choice left."""
        if not node.subspace.splittable:
            _logger.info('Node %s stays a leaf: every label has one choice left.', node.name)
            return None
        with seeded(self.seed, *node.path, PROFILE) as random_state:
            if self.criterion == 'random':
                split = split_randomly(node.subspace, random_state, self.max_groups)
                evidence = 'at random'
            else:
                profiles = self._profile(node, random_state)
                split = split_by_lid(profiles, node.subspace, self.max_groups, random_state)
                evidence = f'contrast {split.partition.score:.3f} +- {split.partition.error:.3f}'
                plot_split(split, self.workdir / f'split-{node.name}.png', title=f'Node {node.name}')
        _logger.info(
            'Node %s %s: %s into %s (%s)',
            node.name,
            'is split' if split.separates else 'stays a leaf, no label separates beyond its noise; the best',
            split.label, split.describe(), evidence,
        )  # fmt: skip
        return split

    def _profile(self, node: Node, random_state: RandomState) -> dict[str, Tensor]:
        """LID profiles ``[R, C, L]`` of the labels of a node, on training batches as its module gives them."""
        module = self._mutated_model_space.evaluator.module
        batches = take_batches(loaders(self._evaluator)[0], self.repeats)
        inputs = supernet_inputs(self._evaluator, module, batches)
        self.supernet.to(inputs[0][0].device)
        try:
            return candidate_profiles(
                self.supernet,
                node.subspace,
                inputs[: self.repeats],
                profile_layers(self.supernet, self.layers),
                n_neighbors=self.n_neighbors,
                random_state=random_state,
                description=f'Profiling node {node.name}',
            )
        except ValueError as error:
            raise RuntimeError(f'Node {node.name} cannot be profiled; did training diverge? {error}') from error
        finally:
            self.supernet.cpu()

    def _branch(self, node: Node) -> None:
        """Give a node its children, one per group of its split."""
        subspaces = node.subspace.split(node.split.label, node.split.partition.groups)
        end_epoch = self._next_stop(node.end_epoch)
        node.children = [
            Node(subspace, node.end_epoch, end_epoch, (*node.path, i)) for i, subspace in enumerate(subspaces)
        ]

    def _save(self) -> None:
        settings = {
            'split_epochs': self.split_epochs, 'max_epochs': self.max_epochs, 'criterion': self.criterion,
            'n_neighbors': self.n_neighbors, 'repeats': self.repeats, 'seed': self.seed,
        }  # fmt: skip
        save_tree(self.tree, self.workdir / 'tree.json', **settings)
        plot_tree(self.tree, self.workdir / 'tree.png')

    def _scorer(self) -> LeafEvaluator:
        if self._subnets is None:
            raise RuntimeError('NASLID has no trained leaves before it has run.')
        self._subnets.evaluator.reload()
        return self._subnets.evaluator

    def _find_best(self) -> None:
        """Search the union of the leaves, that is the whole space, by the strategy that the user has chosen."""
        scorer = LeafEvaluator(
            self.supernet,
            self._evaluator,
            self.leaves,
            monitor=self.monitor,
            mode=self.mode,
            calibration_batches=self.calibration_batches,
            seed=self.seed,
        )
        self._subnets = InheritedModel(self.supernet, scorer)
        self._search_engine = SequentialExecutionEngine(max_model_count=self.search_budget)
        search = self.search
        if search is None:
            labels = len(self.tree.subspace.splittable)
            search = RegularizedEvolution(
                population_size=50, sample_size=10, mutation_prob=max(0.05, 1 / labels), seed=self.seed
            )
        with tqdm(total=self.search_budget, desc='Searching', unit='subnet', leave=False) as bar:
            self._search_engine.register_model_event_callback(ModelEventType.TrainingEnd, lambda event: bar.update())
            with seeded(self.seed, SEARCH), quiet():
                search(self._subnets, self._search_engine)
        self._search_engine.max_model_count = None  # the budget was the search's
        best = next(self.list_models())
        score = best.metric if self.mode == 'max' else -best.metric
        _logger.info('Search: scored %d samples; the best has %s %.4f: %s',
                     len(list(self._search_engine.list_models())), self.monitor, score, best.sample)  # fmt: skip
