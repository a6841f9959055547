"""The user's data, as Lightning gives them to the user's module: loaders, and batches that are kept."""

from __future__ import annotations

import copy
import functools
import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

from nni_naslid.run.identity import UNSTABLE
from nni_naslid.train.rng import seeded

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.data import sized_len
from nni.nas.evaluator.pytorch import Lightning
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import CombinedLoader
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

__all__ = [
    'Batches', 'Inputs', 'as_validation', 'call', 'content', 'copied', 'describe_data', 'keep_validation', 'loaders',
    'n_samples', 'n_steps', 'on_device', 'own_data', 'same_setup', 'take_batches', 'tensors_in', 'two_sizes',
]  # fmt: skip

_logger = logging.getLogger(__name__)

SETUP = 1_000_004  # the random stream of data modules' setup
LARGEST = 2**31  # bytes of batches that are kept in memory


def tensors_in(anything: Any) -> list[Tensor]:
    """All tensors in dicts, lists, data classes and attributes of other objects, always in the same order."""
    found: list[Tensor] = []
    seen: set[int] = set()
    left = tree_leaves(anything)[::-1]
    while left:
        leaf = left.pop()
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, '__dict__') and not isinstance(leaf, (type, nn.Module)) and id(leaf) not in seen:
            seen.add(id(leaf))
            left += tree_leaves(vars(leaf))[::-1]
    return found


def n_samples(inputs: Any) -> int:
    """How many samples there are, by the first dimension of the first tensor that has one.

    Raises
    ------
    ValueError
        If there is none.
    """
    for tensor in tensors_in(inputs):
        if tensor.ndim:
            return len(tensor)
    raise ValueError('the supernet is called with no tensor whose first dimension could count samples')


def copied(anything: Any, device: torch.device | None = None) -> Any:
    """A copy whose tensors share no memory with the original's, and have no gradient; on a device, if one is given."""
    with torch.inference_mode(False):  # tensors made in that mode cannot be used outside of it
        copies = {
            id(tensor): tensor.detach().to(tensor.device if device is None else device, copy=True)
            for tensor in tensors_in(anything)
        }
        return copy.deepcopy(anything, copies)


def on_device(anything: Any, device: torch.device) -> Any:
    """The same where all its tensors are on a device, or a copy that is."""
    return anything if all(tensor.device == device for tensor in tensors_in(anything)) else copied(anything, device)


class Inputs(NamedTuple):
    """What a supernet is called with."""

    args: tuple
    kwargs: dict[str, Any]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """What a network returns; it gets copies on its device, for it may write to what it gets."""
    args, kwargs = copied(inputs, next((weight.device for weight in model.parameters()), None))
    return model(*args, **kwargs)


class Batches:
    """Batches that can be gone through many times: each time as copies, for the user's code may write to them."""

    def __init__(self, batches: Sequence[Any]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return map(copied, self.batches)


def own_data(evaluator: Lightning) -> list[Any]:
    """What of an evaluator gives data, and may have random generators of its own."""
    return [evaluator.train_dataloaders, evaluator.val_dataloaders, evaluator.datamodule]


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
        train, validation = _loaders_of_module(evaluator.datamodule, evaluator.trainer)
    else:
        train, validation = evaluator.train_dataloaders, evaluator.val_dataloaders
    train, validation = map(_only, (train, validation))
    for name, loader in {'training': train, 'validation': validation}.items():
        if loader is None or loader == []:
            raise ValueError(
                f'NASLID needs {name} data, but the evaluator has none; '
                'set train_dataloaders and val_dataloaders, or a datamodule with both.'
            )
        if isinstance(loader, (list, tuple, dict, CombinedLoader)):
            raise TypeError(
                f'NASLID gives training batches to validation_step too, so it needs one {name} loader, '
                f'but the evaluator has a {type(loader).__name__} of them.'
            )
        if isinstance(loader, Iterator):
            raise TypeError(f'The {name} data can be gone through only once; NASLID needs a loader such as DataLoader.')
    return train, validation


def _only(loaders: Any) -> Any:
    """The loader in a list of one."""
    return loaders[0] if isinstance(loaders, (list, tuple)) and len(loaders) == 1 else loaders


@contextmanager
def same_setup(datamodule: pl.LightningDataModule | None) -> Iterator[None]:
    """Inside, ``setup`` of a data module draws the same random numbers each time.

    It is called for each node, profile and search: what it splits off at random for validation must stay the same.
    """
    if datamodule is None or 'setup' in vars(datamodule):
        yield
        return
    datamodule.setup = functools.partial(_setup, datamodule)
    try:
        yield
    finally:
        del datamodule.setup


def _setup(datamodule: pl.LightningDataModule, stage: str) -> None:
    with seeded(SETUP, data=datamodule):
        type(datamodule).setup(datamodule, stage)


def _loaders_of_module(datamodule: pl.LightningDataModule, trainer: pl.Trainer) -> tuple[Any, Any]:
    """What a data module gives to a trainer that fits, which it may ask."""
    datamodule.trainer = trainer
    before = trainer.state.fn, trainer.state.stage
    try:
        trainer.state.fn, trainer.training = TrainerFn.FITTING, True
        datamodule.prepare_data()
        with same_setup(datamodule):
            datamodule.setup('fit')
        train = _unless_missing(datamodule.train_dataloader)
        trainer.validating = True
        return train, _unless_missing(datamodule.val_dataloader)
    finally:
        trainer.state.fn, trainer.state.stage = before


def _unless_missing(dataloader: Callable[[], Iterable]) -> Iterable | None:
    try:
        return dataloader()
    except MisconfigurationException:  # Lightning's answer where the data module does not define it
        return None


def as_validation(evaluator: Lightning, batches: Iterable) -> dict[str, Any]:
    """Arguments for a trainer's ``validate``: these batches, with the transfer hooks of the user's data module."""
    if evaluator.datamodule is None:
        return {'dataloaders': batches}
    datamodule = copy.copy(evaluator.datamodule)
    datamodule.val_dataloader = lambda: batches
    datamodule.prepare_data = lambda: None  # has been done
    datamodule.setup = datamodule.teardown = lambda stage: None
    return {'datamodule': datamodule}


def n_steps(train: Iterable, trainer: pl.Trainer) -> int | None:
    """Optimizer steps in an epoch of a trainer; ``None`` if it cannot be known."""
    limit, length = trainer.limit_train_batches, sized_len(train)
    if length is None:
        return math.ceil(limit / trainer.accumulate_grad_batches) if isinstance(limit, int) else None
    available = length / trainer.world_size
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
        before = len(batches)
        iterator = iter(loader)
        batch = next(iterator, None)
        while batch is not None and len(batches) < n_batches:
            following = next(iterator, None)
            if following is not None or not batches or _n_numbers(batch) >= _n_numbers(batches[0]):
                batches.append(batch)
            batch = following
        if len(batches) == before:
            raise ValueError('The training loader is empty.')
    return batches


def _n_numbers(batch: Any) -> int:
    return sum(tensor.numel() for tensor in tensors_in(batch))


def keep_validation(loader: Iterable, trainer: pl.Trainer) -> Batches | None:
    """The validation batches of a trainer, within its limit; ``None`` if they are too large to be kept."""
    limit, length = trainer.limit_val_batches, sized_len(loader)
    if not isinstance(limit, int):
        limit = None if length is None or limit in (1.0, None) else int(length * limit)
    batches, size = [], 0
    for batch in islice(loader, limit):
        size += sum(tensor.nbytes for tensor in tensors_in(batch))
        if size > LARGEST:
            return None
        batches.append(batch)
    return Batches(batches)


def two_sizes(loader: Iterable) -> tuple[Any, Any, int] | None:
    """A batch, the same with one sample less, and its number of samples; ``None`` where this cannot be had.

    Samples are left out before they are put together, so nothing is assumed of the form of a batch.
    """
    if not isinstance(loader, DataLoader) or (loader.batch_size is None and loader.batch_sampler is None):
        return None
    if isinstance(loader.dataset, IterableDataset):
        samples = list(islice(loader.dataset, loader.batch_size))
    else:
        samples = [loader.dataset[index] for index in next(iter(loader.batch_sampler), [])]
    if len(samples) < 2:
        return None
    # Copies: a collate function may take the samples apart.
    return loader.collate_fn(copied(samples)), loader.collate_fn(samples[:-1]), len(samples)


def describe_data(evaluator: Lightning, seed: int) -> dict[str, Any]:
    """What can be told of the data in plain types, to notice when they are not the same.

    The first batches stand for the data, as they come with the random generators seeded. Where they come otherwise
    when they are read again, which is said, only the loaders' settings remain.
    """
    trainer = evaluator.trainer
    description: dict[str, Any] = {
        name: getattr(trainer, name)
        for name in ('limit_train_batches', 'limit_val_batches', 'overfit_batches', 'reload_dataloaders_every_n_epochs')
    }
    first, again = (_fingerprints(evaluator, seed) for _ in range(2))
    with seeded(seed, data=own_data(evaluator)):
        both = loaders(evaluator)
    for name, loader in zip(('training', 'validation'), both, strict=True):
        description[f'{name} batches'] = sized_len(loader)
        description[f'{name} samples'] = sized_len(getattr(loader, 'dataset', None))
        for setting in ('batch_size', 'num_workers', 'drop_last'):
            description[f'{name} {setting}'] = getattr(loader, setting, None)
        for part in ('sampler', 'batch_sampler'):
            description[f'{name} {part}'] = type(getattr(loader, part, None)).__name__
        description[f'first {name} batches'] = first[name] if first[name] == again[name] else UNSTABLE
        if first[name] != again[name]:
            _logger.warning(
                'The first %s batches differ when they are read again with the same random seeds, so a run that is '
                'killed will not go on exactly as it would have. Draw what is random from the global generators of '
                'torch, NumPy or Python, or from one that is an attribute of the loader, sampler or data set.', name,
            )  # fmt: skip
        elif getattr(loader, 'persistent_workers', False):
            _logger.warning(
                'The %s loader has persistent workers, whose random state is lost when a run is killed: it will not '
                'go on exactly as it would have where its data are augmented at random.', name,
            )  # fmt: skip
    return description


def _fingerprints(evaluator: Lightning, seed: int) -> dict[str, str]:
    """SHA-256 of the first two batches of both loaders."""
    with seeded(seed, data=own_data(evaluator)):
        train, validation = loaders(evaluator)
        return {
            name: hashlib.sha256(b''.join(map(content, islice(loader, 2)))).hexdigest()[:16]
            for name, loader in {'training': train, 'validation': validation}.items()
        }


def content(batch: Any) -> bytes:
    """The numbers and texts in a batch (or whatever else) as bytes."""
    numbers = []
    for tensor in tensors_in(batch):
        tensor = tensor.detach().cpu()
        dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
        content = dense.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        numbers.append(str((dense.dtype, *dense.shape)).encode() + content)
    others = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, (str, int, float, bytes, np.ndarray))]
    return b''.join(
        [*numbers, *(leaf.tobytes() if isinstance(leaf, np.ndarray) else repr(leaf).encode() for leaf in others)]
    )
