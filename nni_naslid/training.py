"""Training with the user's Lightning evaluator: its data, and a fresh trainer for every node of the tree."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import random
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from nni_naslid.devices import heard, one_device, spawning_strategy
from nni_naslid.files import replacing
from nni_naslid.sampling import PathModule

import nni
import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.seed import _collect_rng_states, _set_rng_states
from nni.nas.evaluator.pytorch import Lightning
from nni.runtime.trial_command_channel import (
    TrialCommandChannel,
    get_default_trial_command_channel,
    set_default_trial_command_channel,
)
from pytorch_lightning.trainer.states import TrainerStatus
from pytorch_lightning.utilities.data import extract_batch_size
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader

__all__ = [
    'TAG', 'as_report', 'current_trial', 'fit', 'fresh_evaluator', 'loaders', 'n_steps', 'quiet',
    'read_checkpoint', 'seeded', 'supernet_inputs', 'take_batches', 'validate', 'validation_trainer',
]  # fmt: skip


@contextmanager
def interruptible(trainer: pl.Trainer) -> Iterator[None]:
    """Let Ctrl-C in a trainer's loop be a KeyboardInterrupt, as NNI expects it.

    Lightning 2.6 turns it into SystemExit and leaves SIGINT ignored; NNI would call the model failed.
    """
    try:
        yield
    except SystemExit:
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None


TAG = 'nni_naslid'


class _Keep(pl.Callback):
    """Keep a checkpoint of every epoch but the last one, and go on from one as if nothing had happened.

    To be called before the user's callbacks, which find each epoch as they would have found it. ``tag`` is written into
    all checkpoints; one with the same tag is of the same piece of training.
    """

    def __init__(self, path: Path, tag: dict[str, Any]):
        self.path = path
        self.tag = tag
        self._random: dict[str, Any] | None = None
        self._is_first = True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        is_first, self._is_first = self._is_first, False
        if not is_first:
            save_checkpoint(trainer, self.path)
        elif self._random is not None:
            _set_rng_states(self._random)
            pl_module.reads_anew = True

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        checkpoint[TAG] = {**self.tag, 'random': _collect_rng_states()}
        # Of an epoch that is "ready" but not started Lightning would go on at the end, and so skip it.
        for progress in checkpoint['loops']['fit_loop']['epoch_progress'].values():
            progress['ready'] = progress['completed']

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        if all(checkpoint[TAG][name] == value for name, value in self.tag.items()):
            self._random = checkpoint[TAG]['random']


class _StopAfter(pl.Callback):
    """Validate, stop and keep a checkpoint at the end of an epoch.

    ``max_epochs`` stays, because learning rate schedules read it. To be called after the user's callbacks.
    """

    def __init__(self, epoch: int, path: Path):
        self.epoch = epoch
        self.path = path

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 == self.epoch:
            trainer.check_val_every_n_epoch = 1  # the node's metric, whatever the user's rhythm of epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.epoch:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            save_checkpoint(trainer, self.path)


def fresh_evaluator(
    evaluator: Lightning,
    module: pl.LightningModule,
    end_epoch: int,
    begin: Path | None,
    *,
    unfinished: Path,
    end: Path,
    tag: dict[str, Any],
) -> Lightning:
    """A copy of the user's evaluator that trains one node.

    Lightning's trainer is stateful: one that has reached ``max_epochs`` does not train again. So every node gets a
    new trainer, made from the arguments of the user's.

    Parameters
    ----------
    evaluator
        The user's evaluator, never run itself.
    module
        What is trained.
    end_epoch
        Training stops after this many epochs, counted from the root.
    begin
        The checkpoint to go on from: weights, optimizer, learning rate schedule and epoch.
    unfinished, end
        Where to keep a checkpoint of every epoch, and of the last one.
    tag
        What to write into these, so that :func:`read_checkpoint` knows them: ``run``, ``node`` and more.
    """
    fit_kwargs = dict(evaluator.fit_kwargs)
    if begin is not None:  # a checkpoint of our own making, so it may hold any object of the user's
        fit_kwargs.update(ckpt_path=str(begin), weights_only=False)
    data: dict[str, Any] = {'datamodule': evaluator.datamodule}
    if evaluator.datamodule is None:
        data = {'train_dataloaders': evaluator.train_dataloaders, 'val_dataloaders': evaluator.val_dataloaders}
    arguments = evaluator.trainer.trace_copy()
    arguments.trace_kwargs = {**copy_callbacks(arguments.trace_kwargs), **spawning_strategy(evaluator.trainer)}
    trainer = arguments.get()
    trainer.callbacks.insert(0, _Keep(unfinished, tag))
    trainer.callbacks.append(_StopAfter(end_epoch, end))
    return Lightning(module, trainer, fit_kwargs=fit_kwargs, **data)


def copy_callbacks(trainer_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Trainer arguments with callbacks of their own: they keep state, and Lightning appends to a list it is given."""
    return {k: copy.deepcopy(v) if k == 'callbacks' else v for k, v in trainer_kwargs.items()}


def save_checkpoint(trainer: pl.Trainer, path: Path) -> None:
    """Lightning checkpoint, replaced in one step, never half written."""
    with replacing(path) if trainer.is_global_zero else nullcontext(path) as unfinished:
        trainer.save_checkpoint(unfinished, weights_only=False)  # by all ranks together; the first one writes


def read_checkpoint(path: Path, run: str, node: str) -> dict[str, Any]:
    """A checkpoint of a node.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    ValueError
        If it is damaged, or of another run or node.
    """
    if not path.exists():
        raise FileNotFoundError(
            f'{path.absolute()} is not there. Is the work folder {path.parent} on storage that all machines share?'
        )
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=False)
    except Exception as error:
        raise ValueError(f'Checkpoint {path} is damaged: {error}') from error
    tag = checkpoint.get(TAG, {}) if isinstance(checkpoint, dict) else {}
    if (tag.get('run'), tag.get('node')) != (run, node):
        found = f'node {tag["node"]} of run {tag["run"]}' if tag else 'something else'
        raise ValueError(f'Checkpoint {path} is of {found}, not of node {node} of run {run}.')
    return checkpoint


def fit(evaluator: Lightning, supernet: nn.Module, monitor: str) -> dict[str, Any]:
    """Train; :func:`as_report` of the end. Nothing final is reported to NNI, for there may be more training to come."""
    relay = _IntermediatesOnly(get_default_trial_command_channel())
    with _reporting_to(relay), interruptible(evaluator.trainer), heard(evaluator.trainer):
        evaluator.evaluate(supernet)
    return as_report(_as_numbers(evaluator.trainer.callback_metrics), relay.final, monitor)


def as_report(logged: dict[str, float], reported: Any, monitor: str) -> dict[str, Any]:
    """A metric as NNI and its web UI know it: what counts is ``'default'``, here what the user's module reported.

    If it reported nothing, what it logged as ``monitor``.
    """
    if isinstance(reported, dict) and 'default' in reported:
        return {**logged, **reported}
    return {'default': logged.get(monitor) if reported is None else reported, **logged}


def _as_numbers(metrics: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in metrics.items()}


class _IntermediatesOnly(TrialCommandChannel):
    def __init__(self, channel: TrialCommandChannel):
        self.channel = channel
        self.final: Any = None

    def receive_parameter(self) -> Any:
        return self.channel.receive_parameter()

    def send_metric(self, type: str, parameter_id: Any, trial_job_id: str, sequence: int, value: Any) -> None:
        if type == 'FINAL':
            self.final = value
        else:
            self.channel.send_metric(type, parameter_id, trial_job_id, sequence, value)


def loaders(evaluator: Lightning) -> tuple[Iterable, Iterable]:
    """Training and validation batches of an evaluator, from its loaders or its data module.

    Raises
    ------
    ValueError
        If one of the two is missing.
    TypeError
        If one of the two is a collection of loaders, or an iterator.
    """
    if evaluator.datamodule is not None:
        evaluator.datamodule.prepare_data()
        evaluator.datamodule.setup('fit')
        found = {
            'training': _unless_missing(evaluator.datamodule.train_dataloader),
            'validation': _unless_missing(evaluator.datamodule.val_dataloader),
        }
    else:
        found = {'training': evaluator.train_dataloaders, 'validation': evaluator.val_dataloaders}
    for name, loader in found.items():
        if isinstance(loader, Iterator):
            raise TypeError(f'The {name} data can be gone through only once; NASLID needs a loader such as DataLoader.')
        if loader is None or loader == []:
            raise ValueError(
                f'NASLID needs {name} data, but the evaluator has none; '
                'set train_dataloaders and val_dataloaders, or a datamodule with both.'
            )
        if isinstance(loader, (list, tuple, dict)):
            raise TypeError(f'NASLID needs one {name} loader, but the evaluator has a {type(loader).__name__} of them.')
    return found['training'], found['validation']


def _unless_missing(dataloader: Callable[[], Iterable]) -> Iterable | None:
    try:
        return dataloader()
    except MisconfigurationException:  # Lightning's answer where the data module does not define it
        return None


def n_steps(train: Iterable, trainer: pl.Trainer) -> int:
    """Optimizer steps in an epoch of a trainer."""
    limit, available = trainer.limit_train_batches, len(train) / trainer.world_size
    available = math.floor(available) if getattr(train, 'drop_last', False) else math.ceil(available)
    batches = min(available, limit) if isinstance(limit, int) else int(available * limit)
    return math.ceil(batches / trainer.accumulate_grad_batches)


def take_batches(loader: Iterable, n_batches: int) -> list[Any]:
    """The first batches, going through the loader again where it is shorter; a smaller last one is left out.

    Raises
    ------
    ValueError
        If the loader has no batches.
    """
    batches: list[Any] = []
    while len(batches) < n_batches:
        found = len(batches)
        for batch in loader:
            if batches and extract_batch_size(batch) != extract_batch_size(batches[0]):
                continue
            batches.append(batch)
            if len(batches) == n_batches:
                break
        if len(batches) == found:
            raise ValueError('The training loader is empty.')
    return batches


def supernet_inputs(evaluator: Lightning, module: PathModule, batches: Sequence[Any]) -> list[tuple]:
    """What the user's module gives to the supernet in validation of these batches: arguments of its ``forward``.

    So the supernet gets in profiles and in batch-norm recalibration what it gets from the user: normalised, on the
    right device, from batches of any form. (It then runs outside of autocast: mixed precision is full precision here.)

    Raises
    ------
    TypeError
        If the module does not call the supernet, or gives it keyword-only arguments.
    """
    supernet = module.model
    inputs: list[tuple] = []

    def record(model: nn.Module, args: tuple, kwargs: dict) -> None:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        if bound.kwargs:
            raise TypeError(
                f'The supernet gets keyword-only arguments {list(bound.kwargs)}; NASLID needs positional ones.'
            )
        inputs.append(bound.args)

    handle = supernet.register_forward_pre_hook(record, with_kwargs=True)
    try:
        trainer = validation_trainer(evaluator, limit_val_batches=1.0)
        validate(trainer, module, DataLoader(batches, batch_size=None))
    finally:
        handle.remove()
    if not inputs:
        raise TypeError(f'validation_step of {type(module.training_module).__name__} does not call its model.')
    return inputs


def validate(trainer: pl.Trainer, module: PathModule, batches: Iterable) -> tuple[dict[str, float], Any]:
    """What the user's module logs in validation, and what it reports to NNI last; NNI does not hear it."""
    unheard = _Unheard()
    with _reporting_to(unheard), quiet(), interruptible(trainer), current_trial():
        trainer.validate(module, batches, verbose=False)
    return _as_numbers(trainer.callback_metrics), unheard.reported


@contextmanager
def _reporting_to(channel: TrialCommandChannel) -> Iterator[None]:
    """Let another channel have what is reported to NNI."""
    before = get_default_trial_command_channel()
    set_default_trial_command_channel(channel)
    try:
        yield
    finally:
        set_default_trial_command_channel(before)


@contextmanager
def current_trial() -> Iterator[None]:
    """Leave NNI's notion of the trial that runs, and how often it has reported, as they were."""
    before = nni.trial._params, nni.trial._intermediate_seq
    try:
        yield
    finally:
        nni.trial._params, nni.trial._intermediate_seq = before


class _Unheard(TrialCommandChannel):
    def __init__(self) -> None:
        self.reported: Any = None

    def receive_parameter(self) -> None:
        return None

    def send_metric(self, type: str, parameter_id: Any, trial_job_id: str, sequence: int, value: Any) -> None:
        self.reported = value


def validation_trainer(evaluator: Lightning, **kwargs: Any) -> pl.Trainer:
    """A trainer for validation only, on one device of the user's, that writes nothing."""
    same = ('accelerator', 'devices', 'precision', 'limit_val_batches')
    arguments = {name: value for name, value in evaluator.trainer.trace_kwargs.items() if name in same}
    arguments.update(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        inference_mode=False,  # what is recorded is used outside of the trainer
        **one_device(evaluator.trainer), **kwargs,
    )  # fmt: skip
    with quiet():
        return pl.Trainer(**arguments)


@contextmanager
def seeded(*entropy: int) -> Iterator[np.random.RandomState]:
    """Run with all random generators seeded, and leave their states as they were. Yields one more generator."""
    seeds = np.random.SeedSequence(entropy).generate_state(4)
    with isolate_rng():
        torch.manual_seed(int(seeds[0]))
        np.random.seed(seeds[1])
        random.seed(int(seeds[2]))
        yield np.random.RandomState(seeds[3])


@contextmanager
def quiet() -> Iterator[None]:
    """Without the messages that trainers made by us (not by the user) print each time."""
    noisy = [logging.getLogger(name) for name in ('pytorch_lightning', 'lightning_fabric', 'nni')]
    levels = [logger.level for logger in noisy]
    try:
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
