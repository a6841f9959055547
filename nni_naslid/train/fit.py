"""Training with the user's Lightning evaluator: a fresh trainer for every node of the tree."""

from __future__ import annotations

import copy
import functools
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
from nni_naslid.train.data import Batches, Inputs, as_validation, copied, same_setup
from nni_naslid.train.devices import heard, one_device, spawning_strategy
from nni_naslid.train.path import PathModule
from nni_naslid.train.rng import Generator, get_states, global_states, own_generators, set_global_states, set_states

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
    """Inside, Ctrl-C raises KeyboardInterrupt, as NNI expects.

    Lightning 2.6 raises SystemExit instead, for which NNI would call the model failed, and leaves SIGINT ignored.
    """
    try:
        yield
    except SystemExit as error:
        if trainer.state.status != TrainerStatus.INTERRUPTED or error.code != 1:  # else SIGTERM has raised it
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None


TAG = 'nni_naslid'


class _Keep(pl.Callback):
    """Keep a checkpoint after each epoch but the last one, and restore random states when training goes on from it.

    It must come before the user's callbacks, so that they see each epoch as in a run without interruption. Names of
    checkpoints begin with ``kept``. ``tag`` is written into each: training between the same two epochs of a node has
    the same tag.
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
            set_states(_own_generators(trainer, pl_module), self._random['own_random'])
            pl_module.reads_anew = True

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        own = get_states(_own_generators(trainer, pl_module))
        checkpoint[TAG] = {**self.tag, 'random': global_states(), 'own_random': own}
        # Lightning would skip an epoch that is "ready" but has not started.
        for progress in checkpoint['loops']['fit_loop']['epoch_progress'].values():
            progress['ready'] = progress['completed']

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        tag = checkpoint.get(TAG, {})  # a checkpoint of the user's has no tag
        if all(tag.get(name) == value for name, value in self.tag.items()):
            self._random = tag


def _own_generators(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    """Random generators of all that takes part in training and is the user's."""
    of_module = {k: v for k, v in vars(pl_module.training_module).items() if isinstance(v, Generator)}
    return own_generators([trainer.train_dataloader, trainer.val_dataloaders, trainer.datamodule, of_module])


class _ValidateLast(pl.Callback):
    """Validate after the last epoch of a node, if the user's trainer does not (``check_val_every_n_epoch``).

    It must come before the user's callbacks, so that they find the metrics of this epoch.
    """

    def __init__(self, epoch: int):
        self.epoch = epoch
        self.validated: int | None = None  # after how many steps

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validated = trainer.global_step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:  # the root starts from a checkpoint of the user's at an epoch to split
            self._validate(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 == self.epoch and self.validated != trainer.global_step:
            self._validate(trainer)

    def _validate(self, trainer: pl.Trainer) -> None:
        """Run validation in the way of Lightning's loop over the training batches."""
        first = trainer._logger_connector._first_loop_iter
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        trainer._logger_connector._first_loop_iter = first


class _StopAfter(pl.Callback):
    """Stop after an epoch, and keep a checkpoint.

    ``max_epochs`` is not changed, because learning rate schedules read it. A stop before ``max_epochs`` is not the end
    of training. So ``on_train_end`` of the user's callbacks and module (which may replace the weights by averaged ones)
    runs only at the end of a leaf. It must come after the user's callbacks.
    """

    def __init__(self, epoch: int, kept: Path):
        self.epoch = epoch
        self.kept = kept

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ends = self.epoch >= trainer.max_epochs
        if not ends:
            for callback in trainer.callbacks:
                if not (isinstance(callback, ProgressBar) or _is_ours(callback)):
                    callback.on_train_end = _nothing
        # Lightning calls that of the module after those of all callbacks.
        pl_module.on_train_end = functools.partial(self._end, trainer, pl_module.on_train_end if ends else _nothing)
        trainer.should_stop = trainer.current_epoch >= self.epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.epoch:
            trainer.should_stop = True

    def _end(self, trainer: pl.Trainer, of_the_user: Callable[[], None]) -> None:
        of_the_user()
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

    A Lightning trainer that has reached ``max_epochs`` does not train again. So each node gets a new trainer, made from
    the arguments of the user's trainer.

    Parameters
    ----------
    evaluator
        The user's evaluator, never run itself.
    module
        The module to train.
    end_epoch
        Training stops after this many epochs, counted from the root.
    begin
        The checkpoint to go on from, with weights, optimizer, learning rate schedule and epoch; ``None`` to start anew.
    kept
        How the names of checkpoints begin: see :func:`save_checkpoint`.
    tag
        ``run``, ``node`` and more, written into checkpoints so that :func:`read_checkpoint` can check them.
    trust_checkpoints
        Whether checkpoints may hold objects that run code when they are read.
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
    """Trainer arguments with copies of the callbacks: callbacks keep state, and Lightning appends to their list."""
    return {k: copy.deepcopy(v) if k == 'callbacks' else v for k, v in trainer_kwargs.items()}


def save_checkpoint(trainer: pl.Trainer, kept: Path) -> Path | None:
    """Write a Lightning checkpoint whose name holds its epoch and the beginning of its SHA-256. Only rank 0 writes.

    Returns
    -------
    The file; ``None`` in other ranks.

    Raises
    ------
    OSError
        If the file cannot be written; the message names it.
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
    """Write the same bytes for the same content: given a path, torch would write the file's name into it."""
    with open(path, 'wb') as file:
        torch.save(checkpoint, file)


def _dump(trainer: pl.Trainer) -> dict[str, Any]:
    """The content of a Lightning checkpoint; all ranks must call this."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def check_plain(checkpoint: dict[str, Any]) -> None:
    """Raise if a checkpoint holds an object that cannot be read again with ``weights_only=True``.

    Raises
    ------
    TypeError
        The message names the type.
    """
    buffer = io.BytesIO()
    # Without the data of the tensors, which may be large.
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
    """Name of the type that torch refuses to read."""
    found = re.search(r'GLOBAL (\S+)|(?:type|class) (\S+)', str(error))
    return next(filter(None, found.groups())) if found else 'a type that needs code'


def read_checkpoint(run: Run, path: Path, node: str, sha256: str, advice: str | None = None) -> dict[str, Any]:
    """Read a checkpoint of a node, after checking that it is undamaged and of this run and node.

    Parameters
    ----------
    run, path, node, sha256
        The run and node that the file must be of, and the SHA-256 that it must have.
    advice
        How messages end if it cannot be used; by default :meth:`~nni_naslid.run.folder.RunFolder.advice`.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is damaged, of another run or node, or holds objects that would run code.
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
        raise ValueError(damaged) from error
    tag = checkpoint.get(TAG, {}) if isinstance(checkpoint, dict) else {}
    if (tag.get('run'), tag.get('node')) != (run.id, node):
        found = f'node {tag["node"]} of run {tag["run"]}' if tag else 'something else'
        raise ValueError(f'Checkpoint {path} is of {found}, not of node {node} of run {run.id}. {advice}')
    if not is_intact:
        raise ValueError(damaged)
    return checkpoint


def fit(evaluator: Lightning, supernet: nn.Module, monitor: str) -> dict[str, Any]:
    """Train, and return the last metrics: see :func:`as_report`. NNI gets no final report: more training may follow."""
    relay = _IntermediatesOnly(get_default_trial_command_channel())
    trainer = evaluator.trainer
    with _reporting_to(relay), interruptible(trainer), heard(trainer), same_setup(evaluator.datamodule):
        evaluator.evaluate(supernet)
    return as_report(_as_numbers(evaluator.trainer.callback_metrics), relay.final, monitor)


def as_report(logged: dict[str, float], reported: Any, monitor: str) -> dict[str, Any]:
    """All logged metrics, with ``'default'``: the metric that NNI and its web UI use.

    It is what the user's module reported to NNI; if it reported nothing, what it logged as ``monitor``.
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
    """The inputs that the user's module gives to the supernet when it validates these batches.

    With them, profiles and batch-norm recalibration see the same inputs as validation: normalised, on the right device,
    from batches of any class. (They run outside of autocast, so mixed precision is full precision there.)

    Raises
    ------
    TypeError
        If the module does not call the supernet.
    """
    inputs: list[Inputs] = []

    def record(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        inputs.append(copied(Inputs(args, kwargs)))  # copies, because the model may change its inputs

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
    """The metrics that the user's module logs in validation, and what it reports to NNI last (which NNI does not get).

    ``data`` comes from :func:`~nni_naslid.train.data.as_validation`.
    """
    unheard = _Unheard()
    with _reporting_to(unheard), quiet(), interruptible(trainer), current_trial():
        trainer.validate(module, verbose=False, **data)
    return _as_numbers(trainer.callback_metrics), unheard.reported


@contextmanager
def _reporting_to(channel: TrialCommandChannel) -> Iterator[None]:
    """Inside, reports to NNI go to another channel."""
    before = get_default_trial_command_channel()
    set_default_trial_command_channel(channel)
    try:
        yield
    finally:
        set_default_trial_command_channel(before)


@contextmanager
def current_trial() -> Iterator[None]:
    """Restore NNI's current trial, and its number of reports, at the end."""
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
    """A trainer for validation only. It uses one of the user's devices and writes no files."""
    same = ('accelerator', 'devices', 'precision', 'limit_val_batches')
    arguments = {name: value for name, value in evaluator.trainer.trace_kwargs.items() if name in same}
    arguments.update(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        inference_mode=False,  # recorded inputs are used outside of the trainer
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
