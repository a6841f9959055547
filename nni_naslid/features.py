"""LID profiles: what the features of one path of a supernet look like, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

from nni_naslid import compat as compat  # before nni.nas
from nni_naslid.lid import lid_mle, mean_lid, to_points

import torch
from nni.nas.nn.pytorch import Repeat
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

__all__ = ['path_profile', 'profile_layers', 'untouched']

# Which layers make the profile of a space (the choice of the NAS-LID paper); all blocks of spaces not named here.
LAYERS_OF_SPACE = {
    'NasBench201': ['cells.*'],
    'ProxylessNAS': ['blocks.*', 'feature_mix_layer', 'classifier'],
}


def profile_layers(model: nn.Module, patterns: Sequence[str] | None = None) -> list[str]:
    """Names of the modules whose outputs make a LID profile, in the order of the network.

    A block is a child of the model; containers (``Sequential``, ``ModuleList``, ``Repeat``) stand for their blocks.

    Parameters
    ----------
    model
        A model space or a supernet.
    patterns
        Shell-style patterns of blocks, such as ``['cells.*', 'head']``, or names of any modules. By default those
        that the paper uses for NasBench201 and ProxylessNAS, and all blocks for other spaces.

    Raises
    ------
    ValueError
        If a pattern matches nothing.
    """
    blocks = list(_blocks('', model))
    if patterns is None:
        known = [LAYERS_OF_SPACE[cls.__name__] for cls in type(model).__mro__ if cls.__name__ in LAYERS_OF_SPACE]
        patterns = known[0] if known else ['*']
    modules = [name for name, _ in model.named_modules()]
    for pattern in patterns:
        if pattern not in modules and not any(fnmatch(name, pattern) for name in blocks):
            raise ValueError(f'layers: {pattern!r} matches no block and names no module; the blocks are {blocks}.')
    return [
        name
        for name in modules
        if name in patterns or (name in blocks and any(fnmatch(name, pattern) for pattern in patterns))
    ]


def _blocks(prefix: str, module: nn.Module) -> Iterator[str]:
    for name, child in module.named_children():
        path = f'{prefix}{name}'
        if type(child) in (nn.Sequential, nn.ModuleList) or isinstance(child, Repeat):
            yield from _blocks(f'{path}.', child)
        else:
            yield path


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Leave no trace: on exit, buffers, modes and the state of all random generators are what they were.

    Inside, the model computes as a deterministic function of its weights and the batch: batch norm normalises by the
    statistics of the batch (the running ones of a supernet are a mixture of all its paths), dropout is off.
    """
    training = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with isolate_rng(), torch.no_grad():
            model.eval()
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


@contextmanager
def watched(model: nn.Module, layers: Sequence[str], watcher: Callable[[str, Any], None]) -> Iterator[None]:
    """Inside, ``watcher(name, output)`` is called whenever one of the layers has run."""
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: watcher(name, output))
        for name in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def path_profile(model: nn.Module, inputs: tuple, layers: Sequence[str], n_neighbors: int = 20) -> Tensor:
    """Mean LID of a batch's features after each layer, for the path that the supernet is set to.

    Each layer's LID is computed as the layer runs; no features are kept. Call it under :func:`untouched`.

    Parameters
    ----------
    model
        A network, or a supernet whose path is set.
    inputs
        A batch: arguments of the model's ``forward``, the first of shape ``[N, ...]``.
    layers
        Names of modules, from :func:`profile_layers`. Where a module returns several tensors the last one counts.
    n_neighbors
        Neighbours of the LID estimate, ``3 <= n_neighbors < N``.

    Returns
    -------
    Profile, of shape ``[L]``, float32: the mean over the points whose LID is finite, 0 where there are none. A layer
    that the path skips (a block beyond the chosen depth) passes its input on, so it has the LID of the layer before.
    """
    lids: dict[str, float] = {}
    with watched(model, layers, lambda name, output: lids.update({name: _mean_lid(output, n_neighbors)})):
        model(*inputs)
    return in_order(lids, inputs, layers, n_neighbors)


def in_order(lids: dict[str, float], inputs: tuple, layers: Sequence[str], n_neighbors: int) -> Tensor:
    """Profile, of shape ``[L]``, from the LIDs of the layers that ran."""
    values: list[float] = []
    for name in layers:
        if name in lids:
            values.append(lids[name])
        else:
            values.append(values[-1] if values else _mean_lid(inputs[0], n_neighbors))
    return torch.tensor(values)


def _mean_lid(output: Tensor | tuple, n_neighbors: int) -> float:
    features = output[-1] if isinstance(output, (tuple, list)) else output
    return mean_lid(lid_mle(to_points(features), n_neighbors)).item()
