"""LID profiles: what the features of one path of a supernet look like, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache, partial
from typing import Any

from nni_naslid import compat as compat  # before nni.nas
from nni_naslid.lid import effective_rank, lid_mle, mean_lid, to_points, two_nn
from nni_naslid.train.data import Inputs, call, tensors_in
from nni_naslid.traits.places import INPUT, Place, watched

import torch
from nni.nas.nn.pytorch import Repeat
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

__all__ = [
    'Lids', 'block_names', 'in_order', 'layer_lid', 'least_samples', 'note_lid', 'path_profile', 'profile_layers',
    'untouched',
]  # fmt: skip

Lids = dict[str, 'float | Callable[[], float]']

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
    blocks = list(block_names('', model))
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


def block_names(prefix: str, module: nn.Module) -> Iterator[str]:
    for name, child in module.named_children():
        path = f'{prefix}{name}'
        if type(child) in (nn.Sequential, nn.ModuleList) or isinstance(child, Repeat):
            yield from block_names(f'{path}.', child)
        else:
            yield path


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Leave no trace: on exit, buffers, modes and the state of all random generators are what they were.

    Inside, the model computes as a deterministic function of its weights and the batch: batch norm normalises by the
    statistics of the batch (the running ones of a supernet are a mixture of all its paths), dropout is off.
    """
    training = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in training
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with isolate_rng(), torch.no_grad():
            model.eval()
            for module in training:
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                if buffer.shape == before.shape:
                    buffer.copy_(before)
                else:  # a cache that grows, say
                    buffer = before
                module._buffers[name] = buffer


def path_profile(
    model: nn.Module, inputs: Inputs, places: Mapping[str, Place], n_neighbors: int = 20, estimator: str = 'mle'
) -> Tensor:
    """Mean LID of a batch's features after each layer, for the path that the supernet is set to.

    Each layer's LID is computed as the layer runs; no features are kept, but of layers that are called several times,
    as in a recurrent cell: they have the LID of what they return last. Call it under :func:`untouched`.

    Parameters
    ----------
    model
        A network, or a supernet whose path is set.
    inputs
        A batch, as the model is called with it.
    places
        For each layer of :func:`profile_layers`, where the samples are in what it returns: see
        :func:`~nni_naslid.traits.places.find_places`.
    n_neighbors, estimator
        See :func:`layer_lid`.

    Returns
    -------
    Profile, of shape ``[L]``, float32. A layer that the path skips (a block beyond the chosen depth) passes its input
    on, so it has the LID of the layer before.
    """
    lids: Lids = {}
    lid_of = partial(layer_lid, n_neighbors=n_neighbors, estimator=estimator)
    layers = [name for name in places if name != INPUT]
    with watched(model, layers, lambda name, output: note_lid(lids, name, output, places[name], lid_of)):
        call(model, inputs)
    return in_order(lids, inputs, places, lid_of)


def note_lid(lids: Lids, name: str, output: Any, place: Place, lid_of: Callable[[Any, Place], float]) -> None:
    """Note the LID of what a layer returns.

    Where the layer has been called before, it may be called again, so its LID is computed in the end, of a copy: that
    of each time step would take longer than the network does.
    """
    if name not in lids:
        lids[name] = lid_of(output, place)
        return
    features = tensors_in(output)[place.tensor].clone()
    lids[name] = cache(lambda: lid_of(features, Place(dim=place.dim)))


def in_order(lids: Lids, inputs: Inputs, places: Mapping[str, Place], lid_of: Callable[[Any, Place], float]) -> Tensor:
    """Profile, of shape ``[L]``, from the LIDs that :func:`note_lid` has noted; ``lid_of`` is :func:`layer_lid`."""
    values: list[float] = []
    for name in places:
        if name == INPUT:
            continue
        if name in lids:
            lid = lids[name]
            values.append(lid() if callable(lid) else lid)
        elif values:
            values.append(values[-1])
        else:
            values.append(lid_of(inputs, places[INPUT]) if INPUT in places else 0.0)
    return torch.tensor(values)


def layer_lid(output: Any, place: Place, n_neighbors: int, estimator: str = 'mle') -> float:
    """LID of what a layer returns for a batch.

    Parameters
    ----------
    output
        What the layer returns.
    place
        Where the samples are in it.
    n_neighbors
        Neighbours of the LID estimate; at least 3, and less than there are samples. The others do not use it.
    estimator
        ``'mle'``: the mean of :func:`~nni_naslid.lid.lid_mle` over the samples for which it is finite. ``'two_nn'``
        and ``'effective_rank'``: one number for all samples.

    Returns
    -------
    0 where there is no such number (all features coincide, say), and for what is not features; NaN where so few
    samples have finite features that nothing can be told: none with ``n_neighbors`` others, or less than 3.
    """
    features = tensors_in(output)[place.tensor]
    if not features.is_floating_point():
        return 0.0
    points = to_points(features.movedim(place.dim, 0))
    if estimator == 'mle':
        lid = lid_mle(points, n_neighbors, non_finite='nan').cpu()  # where few numbers take less time than on a GPU
        return math.nan if lid.isnan().all() else mean_lid(lid).item()
    finite = points[points.isfinite().all(1)]
    if len(finite) < least_samples(n_neighbors, estimator):
        return math.nan
    return mean_lid(two_nn(finite)[None] if estimator == 'two_nn' else effective_rank(finite)[None]).item()


def least_samples(n_neighbors: int, estimator: str) -> int:
    """How many samples an estimate needs."""
    return n_neighbors + 1 if estimator == 'mle' else 3
