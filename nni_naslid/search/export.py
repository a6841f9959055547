"""A path of a supernet as a network of its own: the space frozen to a sample, with the weights of the path."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nni_naslid import compat as compat  # before nni.nas
from nni_naslid.search.fixed import path_network, settle
from nni_naslid.train.data import Inputs, call, tensors_in

import torch
from nni.mutable import Sample
from nni.nas.nn.pytorch import ModelSpace, Repeat
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from nni.nas.oneshot.pytorch.supermodule.sampling import PathSamplingCell, PathSamplingLayer
from nni.nas.space import model_context
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn

__all__ = ['by_freeze', 'by_model_context', 'difference', 'frozen_network']

# What may be between two ways to compute the same, relative to the largest output.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}


def frozen_network(supernet: ModelSpace, sample: Sample, inputs: Inputs) -> tuple[nn.Module | None, str]:
    """The space frozen to a sample, which computes what the supernet does, and shares nothing with it.

    NNI's ``freeze`` keeps the weights of most spaces. Those of cells it makes anew, so there they are copied: each
    module of the frozen network has a counterpart on the path. Where NNI's network computes something else, the path
    is taken out of the supernet: see :func:`~nni_naslid.search.fixed.path_network`.

    Parameters
    ----------
    supernet
        In evaluation mode, set to the path of the sample.
    sample
        Label to choice.
    inputs
        What the two are called with, to be compared.

    Returns
    -------
    The network in evaluation mode, or ``None`` and why it cannot be had, such as a module of the user's that takes its
    path in a way of its own.
    """

    reasons = []
    with torch.no_grad(), isolate_rng(), _default_dtype_of(supernet):
        expected = call(supernet, inputs)
        for make in (by_freeze, by_model_context, path_network):
            try:
                network = copy.deepcopy(make(supernet, sample)).eval()
                settle(network, sample)
                if difference(call(network, inputs), expected) is None:
                    return network, ''
                pairs = list(_pairs('', supernet, network, sample))
                for name, source, target in pairs:
                    _copy(name, source, target)
                if (differs := difference(call(network, inputs), expected)) is None:
                    return network, ''
                reasons.append(f'its output differs by {differs}')
            except Exception as error:  # whatever a freeze of the user's, or one of NNI's, cannot do
                text = str(error).partition('\n')[0]
                reasons.append(text if isinstance(error, _Unlike) else f'{type(error).__name__}: {text}')
    return None, '; '.join(dict.fromkeys(reasons))


def by_freeze(space: ModelSpace, sample: Sample) -> nn.Module:
    """What NNI freezes a space or a supernet to."""
    return space.freeze(dict(sample))  # some constraints of NNI write into it


def by_model_context(space: ModelSpace, sample: Sample) -> nn.Module:
    """The space of this class and these arguments, made anew by NNI with the choices of a sample."""
    with model_context(dict(sample)):
        return space.trace_copy().get(traceable=False)


class _Unlike(Exception):
    """The frozen network has something else than the path has."""


@contextmanager
def _default_dtype_of(supernet: nn.Module) -> Iterator[None]:
    """Inside, modules are made in the floating dtype of the supernet."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(next((p.dtype for p in supernet.parameters() if p.is_floating_point()), before))
        yield
    finally:
        torch.set_default_dtype(before)


def difference(output: Any, expected: Any) -> str | None:
    """How two outputs differ; ``None`` if they do not, beyond rounding."""
    pair = tensors_in(output), tensors_in(expected)
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in pair]
    if not shapes[1]:
        return f'what cannot be told, as a {type(expected).__name__} has no tensors'
    if shapes[0] != shapes[1]:
        return f'its shapes, {shapes[0]} instead of {shapes[1]}'
    for found, right in zip(*pair, strict=True):
        if not right.is_floating_point():
            if not torch.equal(found, right):
                return f'{type(expected).__name__} of {right.dtype}'
            continue
        finite = right[right.isfinite()].abs()
        largest = finite.max().item() if len(finite) else 1.0
        tolerance = TOLERANCE.get(right.dtype, 1e-4) * largest
        if not torch.allclose(found.to(right.dtype), right, rtol=0, atol=tolerance, equal_nan=True):
            return f'{(found - right).abs().max().item():.2g}, where the largest value is {largest:.2g}'
    return None


def _pairs(name: str, wide: nn.Module, narrow: nn.Module, sample: Sample) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Each module with weights of a frozen network: its name, its counterpart on the path, and itself."""
    if isinstance(wide, PathSamplingLayer):
        yield from _pairs(name, wide[sample[wide.label]], narrow, sample)
        return
    if isinstance(wide, MixedOperation):
        wide = wide.freeze(sample)  # a part of its weights
    yield name, wide, narrow
    counterpart = _counterparts(name, wide, narrow, sample)
    for path, child in narrow.named_children():
        if child.state_dict():
            yield from _pairs(f'{name}.{path}' if name else path, counterpart(path), child, sample)


def _counterparts(name: str, wide: nn.Module, narrow: nn.Module, sample: Sample) -> Callable[[str], nn.Module]:
    """Where the children of a module of the frozen network are on the path."""
    if isinstance(wide, PathSamplingCell):
        if narrow.output_node_indices != wide.output_node_indices:
            raise _Unlike(
                f'{name or "the cell"} joins its loose ends {narrow.output_node_indices} only, '
                f'where the supernet joins all nodes {wide.output_node_indices}'
            )
        return lambda path: _chosen_operations(wide, sample) if path == 'ops' else getattr(wide, path)
    if isinstance(wide, Repeat) and not isinstance(narrow, Repeat):
        wide = wide.blocks

    def child(path: str) -> nn.Module:
        if path not in wide._modules:
            raise _Unlike(f'{name}.{path} is not in the supernet'.strip('.'))
        return wide._modules[path]

    return child


def _chosen_operations(cell: PathSamplingCell, sample: Sample) -> nn.ModuleList:
    """Operations of the path, ordered as in a frozen cell: by node, then by place in the node."""
    nodes = []
    for i, by_input in enumerate(cell.ops, cell.num_predecessors):
        labels = [(f'{cell.label}/input_{i}_{k}', f'{cell.label}/op_{i}_{k}') for k in range(cell.num_ops_per_node)]
        nodes.append(nn.ModuleList(by_input[sample[source][0]][sample[operation]] for source, operation in labels))
    return nn.ModuleList(nodes)


def _copy(name: str, source: nn.Module, target: nn.Module) -> None:
    """Copy the parameters and buffers of a module itself."""
    for kind in ('_parameters', '_buffers'):
        for key, tensor in getattr(target, kind).items():
            if tensor is None:
                continue
            found = getattr(source, kind).get(key)
            where = f'{name}.{key}'.strip('.')
            if found is None:
                raise _Unlike(f'{where} is not in the supernet')
            if found.shape != tensor.shape:
                raise _Unlike(f'{where} has the shape {list(tensor.shape)}, in the supernet {list(found.shape)}')
            tensor.copy_(found)
