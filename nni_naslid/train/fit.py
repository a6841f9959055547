"""Training with the user's Lightning evaluator: a fresh trainer for every node of the tree."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nni_naslid.run.files import moved, replacing, sha256_of
from nni_naslid.run.run import Run
from nni_naslid.train.data import Batches, Inputs, as_validation, copied
from nni_naslid.train.devices import heard, one_device, spawning_strategy
from nni_naslid.train.path import PathModule
from nni_naslid.train.rng import get_states, global_states, own_generators, set_global_states, set_states

import nni
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Lightning
from nni.runtime.trial_command_channel import (
    TrialCommandChannel,
    get_default_trial_command_channel,
    set_default_trial_command_channel,
)
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.trainer.states import TrainerStatus
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = [
    'TAG', 'as_report', 'check_plain', 'current_trial', 'fit', 'fresh_evaluator', 'hushed', 'quiet', 'read_checkpoint',
    'supernet_inputs', 'validate', 'validation_trainer', 'write_checkpoint',
]  # fmt: skip


@contextmanager
def interruptible(trainer: pl.Trainer) -> Iterator[None]:
    """Let Ctrl-C in a trainer's loop be a KeyboardInterrupt, as NNI expects it.

    Lightning 2.6 turns it into SystemExit and leaves SIGINT ignored; NNI would call the model failed.
    """
    try:
        yield
    except SystemExit as error:
        if trainer.state.status != TrainerStatus.INTERRUPTED or error.code != 1:  # else it is of SIGTERM
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None


TAG = 'nni_naslid'


class _Keep(pl.Callback):
    """Keep a checkpoint of every epoch but the last one, and go on from one as if nothing had happened.

    To be called before the user's callbacks, which find each epoch as they would have found it. ``kept`` is how the
    names of checkpoints begin; ``tag`` is written into all; one with the same tag is of the same piece of training.
    """

    def __init__(self, kept: Path, tag: dict[str, Any], trust_checkpoints: bool):
        self.kept = kept
        self.tag = tag
        self.trust_checkpoints = trust_checkpoints
        self._random: dict[str, Any] | None = None
        self._is_first = True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        is_first, self._is_first = self._is_first, False
        if not is_first:
            newest = save_checkpoint(trainer, self.kept)
            if newest is not None:
                for older in self.kept.parent.glob(f'{self.kept.name}.at-*'):
                    if older != newest:
                        older.unlink(missing_ok=True)
            return
        if not self.trust_checkpoints:
            with isolate_rng():
                check_plain(_dump(trainer))
        if self._random is not None:
            set_global_states(self._random['random'])
            set_states(own_generators(trainer.train_dataloader), self._random['own_random'])
            pl_module.reads_anew = True

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        own = get_states(own_generators(trainer.train_dataloader))
        checkpoint[TAG] = {**self.tag, 'random': global_states(), 'own_random': own}
        # Of an epoch that is "ready" but not started Lightning would go on at the end, and so skip it.
        for progress in checkpoint['loops']['fit_loop']['epoch_progress'].values():
            progress['ready'] = progress['completed']

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        tag = checkpoint.get(TAG, {})  # none in a checkpoint that the user starts from
        if all(tag.get(name) == value for name, value in self.tag.items()):
            self._random = tag


class _ValidateLast(pl.Callback):
    """Validate in the last epoch of a node, where the user's rhythm of validation does not.

    To be called before the user's callbacks, which then find the metrics of this epoch.
    """

    def __init__(self, epoch: int):
        self.epoch = epoch
        self.validated: int | None = None  # after how many steps

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validated = trainer.global_step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:  # of a checkpoint of the user's that is due to be split
            self._validate(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 == self.epoch and self.validated != trainer.global_step:
            self._validate(trainer)

    def _validate(self, trainer: pl.Trainer) -> None:
        """As Lightning's loop over the batches does it."""
        first = trainer._logger_connector._first_loop_iter
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        trainer._logger_connector._first_loop_iter = first


class _StopAfter(pl.Callback):
    """Stop at the end of an epoch, and keep a checkpoint.

    ``max_epochs`` stays, because learning rate schedules read it. A stop before it is not the end of training: what the
    user's callbacks and module do there (averaged weights take the place of the trained ones, say) is done at the end
    of a leaf only. To be called after the user's callbacks.
    """

    def __init__(self, epoch: int, kept: Path):
        self.epoch = epoch
        self.kept = kept

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.epoch < trainer.max_epochs:
            theirs = [c for c in trainer.callbacks if not (isinstance(c, ProgressBar) or _is_ours(c))]
            for each in [*theirs, pl_module]:
                each.on_train_end = _nothing
        trainer.should_stop = trainer.current_epoch >= self.epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.epoch:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            save_checkpoint(trainer, self.kept)


class _FirstEpoch(pl.Callback):
    """After one epoch, tell how many have been done and the seconds that it took. To be called after all others."""

    def __init__(self, tell: Callable[[int, float], None]):
        self.tell: Callable[[int, float], None] | None = tell
        self.started = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.tell is not None and trainer.is_global_zero:
            self.tell(trainer.current_epoch + 1, time.perf_counter() - self.started)
        self.tell = None


def _is_ours(callback: pl.Callback) -> bool:
    return type(callback).__module__.startswith('nni_naslid.')


def _nothing(*args: Any) -> None:
    pass


def fresh_evaluator(
    evaluator: Lightning,
    module: pl.LightningModule,
    end_epoch: int,
    begin: Path | None,
    *,
    kept: Path,
    tag: dict[str, Any],
    trust_checkpoints: bool,
    after_first_epoch: Callable[[int, float], None] | None = None,
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
    kept
        Where to keep a checkpoint of the latest epoch, and of the last one: see :func:`save_checkpoint`.
    tag
        What to write into these, so that :func:`read_checkpoint` knows them: ``run``, ``node`` and more.
    trust_checkpoints
        Whether they may hold objects that run code when they are read.
    after_first_epoch
        Called once, with how many epochs are done and the seconds that the last one took.
    """
    fit_kwargs = dict(evaluator.fit_kwargs)
    if begin is not None:
        fit_kwargs.update(ckpt_path=str(begin), weights_only=not trust_checkpoints)
    data: dict[str, Any] = {'datamodule': evaluator.datamodule}
    if evaluator.datamodule is None:
        data = {'train_dataloaders': evaluator.train_dataloaders, 'val_dataloaders': evaluator.val_dataloaders}
    arguments = evaluator.trainer.trace_copy()
    arguments.trace_kwargs = {**copy_callbacks(arguments.trace_kwargs), **spawning_strategy(evaluator.trainer)}
    trainer = arguments.get()
    trainer.callbacks[:0] = [_Keep(kept, tag, trust_checkpoints), _ValidateLast(end_epoch)]
    trainer.callbacks.append(_StopAfter(end_epoch, kept))
    if after_first_epoch is not None:
        trainer.callbacks.append(_FirstEpoch(after_first_epoch))
    return Lightning(module, trainer, fit_kwargs=fit_kwargs, **data)


def copy_callbacks(trainer_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Trainer arguments with callbacks of their own: they keep state, and Lightning appends to a list it is given."""
    return {k: copy.deepcopy(v) if k == 'callbacks' else v for k, v in trainer_kwargs.items()}


def save_checkpoint(trainer: pl.Trainer, kept: Path) -> Path | None:
    """Lightning checkpoint whose name has its epoch and the beginning of its SHA-256; of all ranks the first writes it.

    Returns
    -------
    The file; ``None`` in the other ranks.

    Raises
    ------
    OSError
        Naming the file, if it cannot be written.
    """
    checkpoint = _dump(trainer)
    path = None
    if trainer.is_global_zero:
        unnamed = kept.with_name(f'{kept.name}.at-{trainer.current_epoch}.ckpt')
        with replacing(unnamed) as unfinished:
            write_checkpoint(unfinished, checkpoint)
        path = unnamed.with_suffix(f'.{sha256_of(unnamed)[:16]}.ckpt')
        moved(unnamed, path)
    trainer.strategy.barrier()
    return path


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a file that is the same for the same content: torch would write its name into it."""
    with open(path, 'wb') as file:
        torch.save(checkpoint, file)


def _dump(trainer: pl.Trainer) -> dict[str, Any]:
    """What Lightning keeps of a training; all ranks must take part."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def check_plain(checkpoint: dict[str, Any]) -> None:
    """Raise if a checkpoint holds what cannot be read again without running code.

    Raises
    ------
    TypeError
        Naming the type.
    """
    buffer = io.BytesIO()
    # Not the tensors' data, which may be large.
    torch.save(tree_map(lambda leaf: torch.empty(0) if type(leaf) is Tensor else leaf, checkpoint), buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, weights_only=True)
    except pickle.UnpicklingError as error:
        raise TypeError(
            f'Checkpoints of this training would hold an object of {_refused(error)} (in the state of a callback, '
            'scheduler or module). Keep plain values and tensors there, or say trust_checkpoints=True: then whoever '
            'can write to the work folder can run code here.'
        ) from error


def _refused(error: pickle.UnpicklingError) -> str:
    """The type that torch does not read."""
    found = re.search(r'GLOBAL (\S+)|(?:type|class) (\S+)', str(error))
    return next(filter(None, found.groups())) if found else 'a type that needs code'


def read_checkpoint(run: Run, path: Path, node: str, sha256: str, advice: str | None = None) -> dict[str, Any]:
    """A checkpoint of a node.

    Parameters
    ----------
    run, path, node, sha256
        Of which run and node the file is, and its SHA-256.
    advice
        What to do if it cannot be used; by default :meth:`~nni_naslid.run.folder.RunFolder.advice`.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    ValueError
        If it is damaged, or of another run or node, or holds objects that are not trusted.
    """
    advice = advice or run.folder.advice(node)
    if not path.exists():
        raise FileNotFoundError(
            f'{path.absolute()} is not there. Is the work folder {path.parent} on storage that all machines share? '
            f'If it is lost: {advice}'
        )
    damaged = f'Checkpoint {path} is damaged: its SHA-256 is not that of what was written. {advice}'
    is_intact = sha256_of(path) == sha256
    is_trusted = run.settings.trust_checkpoints and is_intact
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=not is_trusted)
    except Exception as error:
        if is_intact and isinstance(error, pickle.UnpicklingError):
            raise ValueError(
                f'Checkpoint {path} holds an object of {_refused(error)}, which could run code. If all who can write '
                'to this folder are trusted, say trust_checkpoints=True.'
            ) from error
        raise ValueError(
            f'Checkpoint {path} is damaged: its SHA-256 is not that of what was written. {advice}'
        ) from error
    tag = checkpoint.get(TAG, {}) if isinstance(checkpoint, dict) else {}
    if (tag.get('run'), tag.get('node')) != (run.id, node):
        found = f'node {tag["node"]} of run {tag["run"]}' if tag else 'something else'
        raise ValueError(f'Checkpoint {path} is of {found}, not of node {node} of run {run.id}. {advice}')
    if not is_intact:
        raise ValueError(damaged)
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


def supernet_inputs(evaluator: Lightning, module: PathModule, batches: Sequence[Any]) -> list[Inputs]:
    """What the user's module gives to the supernet in validation of these batches.

    So the supernet gets in profiles and in batch-norm recalibration what it gets from the user: normalised, on the
    right device, from batches of any form. (It then runs outside of autocast: mixed precision is full precision here.)

    Raises
    ------
    TypeError
        If the module does not call the supernet.
    """
    inputs: list[Inputs] = []

    def record(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        inputs.append(copied(Inputs(args, kwargs)))  # copies, for the model may write to what it gets

    handle = module.model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        trainer = validation_trainer(evaluator, limit_val_batches=1.0)
        validate(trainer, module, as_validation(evaluator, Batches(batches)))
    finally:
        handle.remove()
    if not inputs:
        raise TypeError(f'validation_step of {type(module.training_module).__name__} does not call its model.')
    return inputs


def validate(trainer: pl.Trainer, module: PathModule, data: dict[str, Any]) -> tuple[dict[str, float], Any]:
    """What the user's module logs in validation, and what it reports to NNI last; NNI does not hear it.

    The data come from :func:`~nni_naslid.train.data.as_validation`.
    """
    unheard = _Unheard()
    with _reporting_to(unheard), quiet(), interruptible(trainer), current_trial():
        trainer.validate(module, verbose=False, **data)
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
def quiet() -> Iterator[None]:
    """Without the messages and warnings that trainers made by us (not by the user) print each time."""
    with hushed(logging.ERROR), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@contextmanager
def hushed(level: int) -> Iterator[None]:
    """Without what Lightning and NNI log below a level; what this package logs is still heard."""
    ours, *noisy = (logging.getLogger(name) for name in ('nni_naslid', 'nni', 'pytorch_lightning', 'lightning_fabric'))
    levels = {logger: logger.level for logger in (ours, *noisy)}
    try:
        ours.setLevel(ours.getEffectiveLevel())
        for logger in noisy:
            logger.setLevel(max(level, logger.getEffectiveLevel()))
        yield
    finally:
        for logger, before in levels.items():
            logger.setLevel(before)
