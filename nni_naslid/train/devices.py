"""One node on several devices: by Lightning's processes for training, and processes of our own for profiling.

Lightning's default for several devices starts the user's script again for each of them; with a tree of many trainings,
and NNI around it, that cannot work. So processes are spawned for each training, and gone after it.
"""

from __future__ import annotations

import atexit
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import nni
import pytorch_lightning as pl
import torch
from nni.runtime.trial_command_channel import TrialCommandChannel, set_default_trial_command_channel
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.states import TrainerStatus
from threadpoolctl import threadpool_limits
from torch import multiprocessing

__all__ = ['check_devices', 'of_all_processes', 'one_device', 'relay_reports', 'share_out', 'spawning_strategy']


def check_devices(trainer: pl.Trainer) -> None:
    """Raise for a trainer that uses several devices in a way that does not go with a tree of supernets.

    Raises
    ------
    ValueError
        Naming what the trainer has.
    """
    if trainer.num_nodes > 1:
        raise ValueError(f'NASLID trains a node of its tree on one machine, but the trainer has {trainer.num_nodes}.')
    if trainer.world_size == 1:
        return
    if type(trainer.strategy) is not DDPStrategy:
        raise ValueError(
            "NASLID trains on several devices by strategy='ddp' only, but the trainer has "
            f'{type(trainer.strategy).__name__}.'
        )
    if trainer.strategy._start_method == 'fork':
        raise ValueError(
            "strategy='ddp_fork' (or 'ddp_notebook') hangs, because this process has computed before it is forked; "
            "NASLID needs 'ddp', in a script with `if __name__ == '__main__':`."
        )


def spawning_strategy(trainer: pl.Trainer) -> dict[str, Any]:
    """Arguments for a trainer like one of the user's, where it has several devices.

    A step trains one path, so most parameters have no gradient: DDP has to look for them.
    """
    if trainer.world_size == 1:  # of one process DDP would only complain about parameters without a gradient
        return {'strategy': 'auto'} if isinstance(trainer.strategy, DDPStrategy) else {}
    given = trainer.strategy
    strategy = DDPStrategy(
        process_group_backend=given._process_group_backend,
        timeout=given._timeout,
        start_method='spawn',
        **{**given._ddp_kwargs, 'find_unused_parameters': True},
    )
    return {'strategy': strategy}


def one_device(trainer: pl.Trainer) -> dict[str, Any]:
    """Arguments for a trainer on the first of the user's devices."""
    if trainer.world_size == 1:
        return {}
    return {'devices': 1 if isinstance(trainer.accelerator, CPUAccelerator) else trainer.device_ids[:1]}


def of_all_processes(values: Any, trainer: pl.Trainer) -> list[Any]:
    """What each process of a training has, in the order of their ranks; all of them must call this."""
    if trainer.world_size == 1:
        return [values]
    gathered = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, values)
    return gathered


@contextmanager
def relay_reports(trainer: pl.Trainer) -> Iterator[None]:
    """Inside, what the first process of a training tells NNI is told by this process."""
    if trainer.world_size == 1:
        yield
        return
    queue = multiprocessing.get_context('spawn').SimpleQueue()

    def listen() -> None:
        while (message := queue.get()) is not None:
            kind, value = message
            if kind == 'epoch':  # of what Lightning does not bring back
                trainer.fit_loop.epoch_progress.current.completed = value
            elif kind == 'FINAL':
                nni.report_final_result(value)
            else:
                nni.report_intermediate_result(value)

    listener = threading.Thread(target=listen, name='reports', daemon=True)
    listener.start()
    trainer.callbacks.insert(0, ReportRelay(queue))
    # Else each tensor of the supernet goes to the processes by a file descriptor, and a process may have 1,024.
    sharing = multiprocessing.get_sharing_strategy()
    multiprocessing.set_sharing_strategy('file_system')
    try:
        yield
    finally:
        multiprocessing.set_sharing_strategy(sharing)
        trainer.callbacks.pop(0)
        queue.put(None)
        listener.join()


class ReportRelay(pl.Callback, TrialCommandChannel):
    """Brings to the main process what one of Lightning's reports to NNI, which knows nothing of that process."""

    def __init__(self, queue: Any):
        self.queue = queue
        self.parameters = nni.trial._params
        self.is_first = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.is_first = trainer.is_global_zero
        nni.trial._params = self.parameters
        set_default_trial_command_channel(self)
        atexit.register(leave_group, trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.is_first:
            self.queue.put(('epoch', trainer.current_epoch))

    def receive_parameter(self) -> None:
        return None

    def send_metric(self, type: str, parameter_id: Any, trial_job_id: str, sequence: int, value: Any) -> None:
        if self.is_first:
            self.queue.put((type, value))


def leave_group(trainer: pl.Trainer) -> None:
    """End the threads by which this process talked to the others, once training is finished.

    A thread of gloo that still lets go of a tensor while Python ends aborts the process, and so the training:
    https://github.com/pytorch/pytorch/pull/179291, which was not merged. (Of NCCL's group Lightning takes care itself,
    in the same way.) After an error the group stays: a thread of it may wait for a process that is gone.
    """
    if trainer.state.status == TrainerStatus.FINISHED and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def share_out(
    function: Callable[..., dict[str, torch.Tensor]], shared: Sequence[Sequence[Any]], trainer: pl.Trainer
) -> dict[str, torch.Tensor]:
    """What a function makes of lists, each device taking every n-th entry of all of them.

    Parameters
    ----------
    function
        Called with a device and shorter lists; it and its results, tensors whose first dimension is that of the lists,
        are sent between processes.
    shared
        Lists of equal length.
    trainer
        The user's, with its devices.

    Returns
    -------
    The same as if it had been called once, with the lists as they are.
    """
    n = min(trainer.world_size, len(shared[0]))
    if n == 1:
        return function(trainer.strategy.root_device, *shared)
    devices = [torch.device(device) for device in trainer.strategy.parallel_devices[:n]]
    # As bytes: torch would share the memory of tensors, buffers of the supernet among them, between the processes.
    shares = [pickle.dumps((function, device, [each[i::n] for each in shared])) for i, device in enumerate(devices)]
    with ProcessPoolExecutor(n, mp_context=multiprocessing.get_context('spawn')) as pool:
        parts = list(pool.map(_one_share, shares, [max(1, torch.get_num_threads() // n)] * n))
    whole = {}
    for name in parts[0]:
        rows = torch.empty(len(shared[0]), *parts[0][name].shape[1:], dtype=torch.from_numpy(parts[0][name]).dtype)
        for i, part in enumerate(parts):
            rows[i::n] = torch.from_numpy(part[name])
        whole[name] = rows
    return whole


def _one_share(share: bytes, n_threads: int) -> dict[str, Any]:
    torch.set_num_threads(n_threads)
    threadpool_limits(n_threads, user_api='blas')  # numpy's threads
    function, device, lists = pickle.loads(share)
    return {name: tensor.cpu().numpy() for name, tensor in function(device, *lists).items()}
