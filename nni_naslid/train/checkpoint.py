"""Checkpoints of nodes: written so that they can be checked, and read only as far as they can be trusted."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nni_naslid.run.files import moved, replacing, sha256_of
from nni_naslid.run.folder import find_epochs, of_epoch
from nni_naslid.run.run import Run
from nni_naslid.train.data import content

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

__all__ = [
    'TAG', 'check_plain', 'digest_of_weights', 'dump_checkpoint', 'find_checkpoints', 'read_checkpoint',
    'save_checkpoint', 'set_aside', 'write_checkpoint',
]  # fmt: skip

_logger = logging.getLogger(__name__)

TAG = 'nni_naslid'


def save_checkpoint(trainer: pl.Trainer, begin: Path) -> Path | None:
    """Write a Lightning checkpoint, named as :func:`~nni_naslid.run.folder.of_epoch` says. Only rank 0 writes.

    Returns
    -------
    The file; ``None`` in other ranks.

    Raises
    ------
    OSError
        If the file cannot be written; the message names it.
    """
    checkpoint = dump_checkpoint(trainer)
    path = None
    if trainer.is_global_zero:
        unnamed = begin.with_name(f'{begin.name}.at-{trainer.current_epoch}.ckpt')
        with replacing(unnamed) as unfinished:
            write_checkpoint(unfinished, checkpoint)
        path = of_epoch(begin, trainer.current_epoch, sha256_of(unnamed))
        moved(unnamed, path)
    trainer.strategy.barrier()
    return path


def find_checkpoints(begin: Path, epochs: Collection[int] | None = None) -> list[tuple[int, str, Path]]:
    """Checkpoints whose names begin so, of these epochs or of all, the latest first: epoch, SHA-256, file.

    Damaged ones are named in the log and left out.
    """
    found = []
    for epoch, expected, path in find_epochs(begin, epochs):
        if (sha256 := sha256_of(path)).startswith(expected):
            found.append((epoch, sha256, path))
        else:
            _logger.warning('%s is damaged (its SHA-256 is not that of its name) and left out.', path)
    return found


def set_aside(begin: Path, kept: Path, epochs: Collection[int]) -> None:
    """Give checkpoints of some epochs other names, which begin with ``kept``, so that they stay."""
    for epoch, sha256, path in find_checkpoints(begin, epochs) if epochs else ():
        moved(path, of_epoch(kept, epoch, sha256))


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write the same bytes for the same content: given a path, torch would write the file's name into it."""
    with open(path, 'wb') as file:
        torch.save(checkpoint, file)


def dump_checkpoint(trainer: pl.Trainer) -> dict[str, Any]:
    """The content of a Lightning checkpoint; all ranks must call this."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def digest_of_weights(state_dict: dict[str, Any]) -> str:
    """SHA-256 of parameters and buffers: of their names, dtypes, shapes and numbers, in their order.

    Files of the same weights may differ: a checkpoint also holds what a run that was killed does not have in common
    with one that was not.
    """
    sha = hashlib.sha256()
    for name, value in state_dict.items():
        sha.update(name.encode())
        sha.update(content(value))
    return sha.hexdigest()


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
