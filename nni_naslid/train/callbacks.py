"""Callbacks that this package adds to a trainer of a node, before and after those of the user."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nni_naslid.run.files import append_line
from nni_naslid.run.folder import RunFolder
from nni_naslid.train.checkpoint import TAG, check_plain, dump_checkpoint, save_checkpoint, set_aside
from nni_naslid.train.devices import of_all_processes
from nni_naslid.train.reports import as_numbers
from nni_naslid.train.rng import Generator, get_states, global_states, own_generators, set_global_states, set_states

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.utilities.seed import isolate_rng

__all__ = ['EpochCheckpoint', 'EpochMetrics', 'FirstEpoch', 'StopAfter', 'StopHopeless', 'ValidateLast']


class EpochCheckpoint(pl.Callback):
    """Keep a checkpoint after each epoch but the last one, and restore random states when training goes on from it.

    It must come before the user's callbacks, so that they see each epoch as in a run without interruption. Names of
    checkpoints begin with ``unfinished``; when there is a newer one, a checkpoint is deleted, but those of
    ``keep_epochs`` are set aside. ``tag`` is written into each: training between the same two epochs of a node has
    the same tag. On several devices a checkpoint holds the random states of all processes, and each restores its own.
    """

    def __init__(self, unfinished: Path, tag: dict[str, Any], trust_checkpoints: bool, keep_epochs: Sequence[int]):
        self.unfinished = unfinished
        self.tag = tag
        self.trust_checkpoints = trust_checkpoints
        self.keep_epochs = keep_epochs
        self._random: list[dict[str, Any]] | None = None  # of each process
        self._is_first = True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        is_first, self._is_first = self._is_first, False
        if not is_first:
            newest = save_checkpoint(trainer, self.unfinished)
            if newest is not None:
                before = [epoch for epoch in self.keep_epochs if epoch < trainer.current_epoch]
                set_aside(self.unfinished, RunFolder(self.unfinished.parent).kept(self.tag['node']), before)
                for older in self.unfinished.parent.glob(f'{self.unfinished.name}.at-*'):
                    if older != newest:
                        older.unlink(missing_ok=True)
            return
        if not self.trust_checkpoints:
            with isolate_rng():
                check_plain(dump_checkpoint(trainer))
        if self._random is not None:
            states = self._random[trainer.global_rank]
            set_global_states(states['global'])
            set_states(_own_generators(trainer, pl_module), states['own'])
            pl_module.reads_anew = True

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        states = {'global': global_states(), 'own': get_states(_own_generators(trainer, pl_module))}
        checkpoint[TAG] = {**self.tag, 'random': of_all_processes(states, trainer)}
        # Lightning would skip an epoch that is "ready" but has not started.
        for progress in checkpoint['loops']['fit_loop']['epoch_progress'].values():
            progress['ready'] = progress['completed']

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        tag = checkpoint.get(TAG, {})  # a checkpoint of the user's has no tag
        if all(tag.get(name) == value for name, value in self.tag.items()):
            self._random = tag['random']
            if len(self._random) != trainer.world_size:
                raise ValueError(
                    f'Training of node {self.tag["node"]} was interrupted on {len(self._random)} devices, so it cannot '
                    f'be resumed on {trainer.world_size}.'
                )


def _own_generators(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    """Random generators of all that takes part in training and is the user's."""
    of_module = {k: v for k, v in vars(pl_module.training_module).items() if isinstance(v, Generator)}
    return own_generators([trainer.train_dataloader, trainer.val_dataloaders, trainer.datamodule, of_module])


class EpochMetrics(pl.Callback):
    """Keep what each validation while training has found, in a line of a file: what curves are drawn from.

    An epoch that is trained again after a kill has another line, with the same numbers.
    """

    def __init__(self, file: Path, of: dict[str, Any], last_epoch: int):
        self.file = file
        self.of = of
        self.last_epoch = last_epoch

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        # Those of this validation only: `callback_metrics` also has older ones, and not the same ones after a kill.
        metrics = as_numbers(trainer._logger_connector.metrics['callback'])
        epoch = min(trainer.current_epoch + 1, self.last_epoch)  # before training, it is the last one already
        append_line(self.file, {**self.of, 'epoch': epoch, 'metrics': metrics})


class ValidateLast(pl.Callback):
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


class StopAfter(pl.Callback):
    """Stop after an epoch, and keep a checkpoint.

    ``max_epochs`` is not changed, because learning rate schedules read it. A stop before ``max_epochs`` is not the end
    of training. So ``on_train_end`` of the user's callbacks and module (which may replace the weights by averaged ones)
    runs only at the end of a leaf (which :class:`StopHopeless` may bring forward). It must come after the user's
    callbacks.
    """

    def __init__(self, epoch: int, unfinished: Path):
        self.epoch = epoch
        self.unfinished = unfinished

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
            save_checkpoint(trainer, self.unfinished)


class StopHopeless(pl.Callback):
    """Let training end after an epoch before its last one, if ``is_hopeless``, which is called with each of them.

    On several devices the first process asks, and all do what it says. It must come between :class:`EpochMetrics` and
    the :class:`StopAfter` that it is given.
    """

    def __init__(self, is_hopeless: Callable[[int], bool], stop: StopAfter):
        self.is_hopeless = is_hopeless
        self.stop = stop

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch < self.stop.epoch and trainer.strategy.broadcast(trainer.is_global_zero and self.is_hopeless(epoch)):
            self.stop.epoch = epoch


class FirstEpoch(pl.Callback):
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
