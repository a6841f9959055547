"""Training one sub-supernet: the Lightning module that samples only inside its sub-space."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from nni_naslid import compat as compat  # before nni.nas
from nni_naslid.space.graph import Graph
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.nasbench101 import PathSamplingNasBench101Cell
from nni_naslid.train.several import step_of_several

import pytorch_lightning as pl
from nni.mutable import Constraint, Mutable, Sample
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from nni.nas.oneshot.pytorch.supermodule.sampling import (
    MixedOpPathSamplingPolicy,
    PathSamplingCell,
    PathSamplingInput,
    PathSamplingLayer,
    PathSamplingRepeat,
)
from numpy.random import RandomState, SeedSequence
from pytorch_lightning.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import nn

if TYPE_CHECKING:
    from nni_naslid.train.learning_rate import LearningRateBySize
    from nni_naslid.train.momenta import Momenta
    from nni_naslid.train.sampling import Draw

__all__ = [
    'Expression', 'PathModule', 'SubSupernetModule', 'choices_read', 'forget_paths', 'labels_read', 'set_path',
    'stream', 'uniformly',
]  # fmt: skip


def set_path(supernet: nn.Module, sample: Sample) -> None:
    """Make the supernet compute one sub-network: the path that ``sample`` (label to choice) describes.

    It does what calling ``resample(memo=sample)`` of every supernet module does, whatever path each of them was set to
    before and whoever did that. NNI works out anew in each call which labels a module reads and what they come to;
    here this is done once for each module and combination of choices.
    """
    readers = _readers.get(supernet)
    if readers is None or not readers.are_of_today():
        readers = _readers[supernet] = _Readers(supernet)
    readers.set(sample)


def forget_paths(supernet: nn.Module) -> None:
    """Forget what :func:`set_path` has found out about a module, which else stays in memory."""
    _readers.pop(supernet, None)


class _Readers:
    """The modules of a supernet that read labels, by the labels that they read."""

    def __init__(self, supernet: nn.Module):
        self.parents = [module._modules for module in supernet.modules() if module._modules]
        self.children = [list(parent.values()) for parent in self.parents]
        self.others: list[BaseSuperNetModule] = []  # with a `resample` that is not NNI's own
        groups: dict[tuple[str, ...], list[BaseSuperNetModule]] = {}
        for module in supernet.modules():
            if not isinstance(module, BaseSuperNetModule):
                continue
            if module is supernet or not _is_of_nni(module):
                # The supernet itself is a weak key, so nothing here may hold it.
                self.others.append(weakref.proxy(module) if module is supernet else module)
            else:
                # NNI sets a cell to all choices below, too.
                labels = module.simplify() if isinstance(module, PathSamplingCell) else own_labels(module)
                if labels:
                    groups.setdefault(tuple(labels), []).append(module)
                else:  # NNI wants also those to be sampled that have no choice, but once is enough
                    module.resample(memo={})
        expressions: dict[int, Expression] = {}  # many modules compute their arguments from the same ones
        self.groups = [_Group(labels, modules, expressions) for labels, modules in groups.items()]

    def are_of_today(self) -> bool:
        """Whether no module has been added, removed or replaced since."""
        return list(map(list, map(dict.values, self.parents))) == self.children

    def set(self, sample: Sample) -> None:
        for module in self.others:
            module.resample(memo=sample)
        for group in self.groups:
            try:
                group.set(sample)
            except (KeyError, TypeError):  # a label without a choice, or a choice that cannot be hashed
                for module in (*group.modules, *group.operations):
                    module.resample(memo=sample)


class _Group:
    """Modules that read the same labels.

    What a module is set to is its ``_sampled``, or that of its sampling policy. It follows from the choices for these
    labels, so it is worked out once for each combination.
    """

    def __init__(self, labels: tuple[str, ...], modules: list[BaseSuperNetModule], expressions: dict[int, Expression]):
        def expression(mutable: Mutable) -> Expression:
            return expressions.setdefault(id(mutable), Expression(mutable))

        self.labels = labels
        self.operations = [module for module in modules if isinstance(module, MixedOperation)]
        self.modules = [module for module in modules if not isinstance(module, MixedOperation)]
        self.arguments = [
            {name: expression(mutable) for name, mutable in operation.mutable_arguments.items()}
            for operation in self.operations
        ]
        self.depths = {m: expression(m.depth_choice) for m in self.modules if isinstance(m, PathSamplingRepeat)}
        self.known: dict[tuple, list[dict[str, Any]]] = {}

    def set(self, sample: Sample) -> None:
        choices = [sample[label] for label in self.labels]
        for module in self.modules:
            if module in self.depths:
                vars(module)['_sampled'] = self.depths[module](sample)
            elif isinstance(module, PathSamplingCell):
                if any(isinstance(choice, list) and len(choice) > 1 for choice in choices):
                    module.resample(memo=sample)  # which refuses it
                vars(module)['_sampled'] = dict(zip(self.labels, choices, strict=True))
            else:
                vars(module)['_sampled'] = choices[0]
        if not self.operations:
            return
        key = _key(choices)
        arguments = self.known.get(key)
        if arguments is None:
            arguments = [{name: value(sample) for name, value in each.items()} for each in self.arguments]
            if len(self.known) == 1000:
                self.known.clear()
            self.known[key] = arguments
        for policy, each in zip(map(_policy_of, self.operations), arguments, strict=True):
            policy._sampled = each


class Expression:
    """A mutable such as ``width * ratio``, which remembers what it comes to."""

    def __init__(self, mutable: Mutable):
        self.mutable = mutable
        self.labels = tuple(mutable.simplify())
        self.known: dict[tuple, Any] = {}

    def __call__(self, sample: Sample) -> Any:
        key = _key([sample[label] for label in self.labels])
        if key not in self.known:
            self.known[key] = self.mutable.freeze(sample)
        return self.known[key]


def _key(choices: list[Any]) -> tuple:
    """Choices as a key of a dict, for which 1 is not True."""
    return *choices, *map(type, choices)


_policy_of = attrgetter('sampling_policy')
_readers: weakref.WeakKeyDictionary[nn.Module, _Readers] = weakref.WeakKeyDictionary()


def _is_of_nni(module: BaseSuperNetModule) -> bool:
    """Whether ``resample`` of a module does what NNI's own classes for single paths do, and no more."""
    if isinstance(module, MixedOperation):
        resamples = type(module).resample, type(module.sampling_policy).resample
        return resamples == (MixedOperation.resample, MixedOpPathSamplingPolicy.resample)
    nni_own = (PathSamplingLayer, PathSamplingInput, PathSamplingRepeat, PathSamplingCell)
    return any(isinstance(module, cls) and type(module).resample is cls.resample for cls in nni_own)


def own_labels(module: BaseSuperNetModule) -> frozenset[str]:
    """Labels that a module of a supernet reads itself; those of its children are the children's."""
    if module not in _own_labels:
        if _is_of_nni(module):
            labels = (label for mutable in module.mutables for label in mutable.simplify())
        else:  # it may keep its mutables in its own way
            labels = (label for label, mutable in module.simplify().items() if not isinstance(mutable, Constraint))
        _own_labels[module] = frozenset(labels)
    return _own_labels[module]


_own_labels: weakref.WeakKeyDictionary[nn.Module, frozenset[str]] = weakref.WeakKeyDictionary()


def labels_read(supernet: nn.Module, sample: Sample | None = None) -> set[str]:
    """Labels that make a difference to the path that ``sample`` describes; without one, to any path.

    Nothing below a candidate that is not chosen is read, nor in a block beyond the chosen depth of a ``Repeat``, nor of
    a vertex that is cut off from a cell of NAS-Bench-101, unless a module elsewhere reads the same label.
    """
    labels, cells = _read(supernet, sample)
    return labels.union(*(cell.graph.read(sample or {}) for cell in cells))


def choices_read(supernet: nn.Module, sample: Sample) -> Sample:
    """The choices that make a difference to the path that ``sample`` describes, by label: the same for the same path.

    Of cells of NAS-Bench-101 edges are left out that come from nowhere, and vertices behind those that are used.
    """
    labels, cells = _read(supernet, sample)
    choices = {label: sample[label] for label in labels}
    alone = graphs_of(supernet) if cells else []
    for cell in cells:
        read = cell.graph.read(sample)
        if cell.graph in alone:
            read = cell.graph.shortest(read, cell.constraint.num_nodes.values)
        choices = read | choices
    return choices


def graphs_of(supernet: nn.Module) -> list[Graph]:
    """Cells of NAS-Bench-101, each once, whose labels nothing else reads: what is read of them the graph tells."""
    graphs, others = {}, set()
    for module in supernet.modules():
        if isinstance(module, PathSamplingNasBench101Cell):
            graphs[str(module.graph)] = module.graph
        elif isinstance(module, BaseSuperNetModule) and module is not supernet:
            others |= own_labels(module)
    return [graph for graph in graphs.values() if others.isdisjoint(graph.labels)]


def _read(supernet: nn.Module, sample: Sample | None) -> tuple[set[str], Collection[PathSamplingNasBench101Cell]]:
    """The labels, and cells of NAS-Bench-101, which read what their graph tells."""
    labels: set[str] = set()
    cells: dict[str, PathSamplingNasBench101Cell] = {}  # one of each graph
    seen: set[nn.Module] = set()
    pending = [supernet]
    while pending:
        module = pending.pop()
        if module in seen:
            continue
        seen.add(module)
        children = list(module.children())
        if sample is not None and isinstance(module, PathSamplingNasBench101Cell):
            cells[str(module.graph)] = module
            children = []  # NNI's operations, without choices
        elif isinstance(module, BaseSuperNetModule):
            labels |= own_labels(module)
            if sample is not None and type(module).forward is PathSamplingLayer.forward:
                children = [module[sample[module.label]]]
            elif sample is not None and type(module).forward is PathSamplingRepeat.forward:
                depth = module.depth_choice.freeze(sample)
                children = [*module.blocks[:depth], *(child for child in children if child is not module.blocks)]
            elif sample is not None and type(module).forward is PathSamplingCell.forward:
                children = [child for child in children if child is not module.ops]
                for node, sources in enumerate(module.ops, module.num_predecessors):
                    for k in range(module.num_ops_per_node):
                        (source,) = sample[f'{module.label}/input_{node}_{k}']
                        children.append(sources[source][sample[f'{module.label}/op_{node}_{k}']])
        pending += children
    return labels, cells.values()


MOMENTA = 'nni_naslid_momenta'  # in checkpoints

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


def stream(*entropy: int) -> RandomState:
    """A stream of random numbers of its own for each entropy."""
    return RandomState(SeedSequence(entropy).generate_state(4))


def uniformly(subspace: SubSpace, seed: Sequence[int], epoch: int, batch: int) -> Sample:
    """A sample, drawn with the random stream of a batch of an epoch."""
    return subspace.sample(stream(*seed, epoch, batch))


class SubSupernetModule(PathModule):
    """One-shot training inside a sub-space: every batch trains one sample, or several, drawn from it.

    What is drawn depends on the seed, the epoch and the batch only, so a resumed run draws what the undisturbed
    one would have drawn.

    Parameters
    ----------
    training_module
        The user's Lightning module.
    subspace
        Where samples come from.
    seed
        Entropy for :class:`numpy.random.SeedSequence`, different for every node of a tree.
    learning_rate
        Sets that of each step by the path; ``None`` to leave it to the schedule alone.
    draw
        Draws the samples that are trained; one, uniformly, if ``None``, as those that are validated always are.
    distill
        The weight of soft labels by the first of several samples: see :mod:`nni_naslid.train.several`.
    momenta
        What the optimizer remembers, for each band of networks; ``None`` for all of them together.
    """

    def __init__(
        self,
        training_module: pl.LightningModule,
        subspace: SubSpace,
        seed: list[int],
        learning_rate: LearningRateBySize | None = None,
        draw: Draw | None = None,
        distill: float = 0.0,
        momenta: Momenta | None = None,
    ):
        super().__init__(training_module)
        self.subspace = subspace
        self.seed = seed
        self.learning_rate = learning_rate
        self.draw = draw
        self.distill = distill
        self.momenta = momenta
        self.reads_anew = False  # set where an epoch begins with the random numbers of a checkpoint

    def on_train_epoch_start(self) -> None:
        self.training_module.on_train_epoch_start()
        if self.reads_anew:
            # Lightning has made the iterator of a first epoch before its hooks, but makes that of later ones here.
            iter(self.trainer.fit_loop._data_fetcher)
            self.reads_anew = False

    def paths(self, batch_idx: int, validating: bool = False) -> list[Sample]:
        """The samples of a batch of the current epoch."""
        stream = (*self.seed, validating), self.current_epoch, batch_idx
        return [uniformly(self.subspace, *stream)] if validating or self.draw is None else self.draw(*stream)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        paths = self.paths(batch_idx)
        for path in paths:
            if self.momenta is not None:
                self.momenta.use(self.trainer.optimizers, path)
            if self.learning_rate is not None:
                self.learning_rate.scale(self.trainer.optimizers, path)

        def step(path: Sample, batch: Any) -> Any:
            set_path(self, path)  # the user's module may hold copies of the supernet, such as an average
            return PathModule.training_step(self, batch, batch_idx)

        if len(paths) == 1:
            return step(*paths, batch)
        return step_of_several(step, paths, batch, self.training_module, self.distill)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        try:
            self.training_module.optimizer_step(*args, **kwargs)
        finally:  # also of a step that is left out, because of a loss scale that was too large
            for each in (self.learning_rate, self.momenta):
                if each is not None:
                    each.stepped()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.momenta is not None and checkpoint.get('optimizer_states'):  # which are those of one band
            checkpoint[MOMENTA] = self.momenta.state_dict(self.trainer.optimizers)
        self.training_module.on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.momenta is not None and MOMENTA in checkpoint:  # a checkpoint to start from may have none
            self.momenta.load_state_dict(checkpoint[MOMENTA])
        self.training_module.on_load_checkpoint(checkpoint)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        set_path(self, *self.paths(batch_idx, validating=True))
        return super().validation_step(batch, batch_idx)
