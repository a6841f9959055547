"""A path taken out of a supernet: what is not on it is left out, and nothing is chosen any more."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from nni_naslid import compat as compat  # before nni.nas

import torch
from nni.mutable import Mutable, Sample
from nni.nas.hub.pytorch.nasnet import NDSStagePathSampling
from nni.nas.nn.pytorch.choice import ChosenInputs
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from nni.nas.oneshot.pytorch.supermodule.sampling import (
    PathSamplingCell,
    PathSamplingInput,
    PathSamplingLayer,
    PathSamplingRepeat,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ['Aligned', 'FixedCell', 'path_network', 'settle']


def path_network(supernet: nn.Module, sample: Sample) -> nn.Module:
    """A copy of a supernet with the modules of one path in place of its choices; it shares nothing with the supernet.

    It serves spaces that NNI does not freeze to what their supernets compute: NNI's frozen NASNet joins the loose ends
    of a cell, where the supernet joins all nodes.

    Parameters
    ----------
    supernet
        The supernet, on the CPU.
    sample
        Label to choice.

    Returns
    -------
    The network. It computes what the supernet does on this path, and has the parameters of the path only.

    Raises
    ------
    TypeError
        If a module takes its path in a way of its own, such as one by a mutation hook of the user's.
    """
    return _without_choices('', copy.deepcopy(supernet), sample, {})


def settle(network: nn.Module, sample: Sample) -> None:
    """Put what was chosen in place of choices that modules of a frozen network still have as attributes.

    The widths of NNI's MobileNetV3 are such; with them it cannot be pickled.
    """

    def is_choice(value: Any) -> bool:
        return (
            isinstance(value, Mutable) and not isinstance(value, nn.Module) and value.simplify().keys() <= sample.keys()
        )

    def chosen(value: Any) -> Any:
        return value.freeze(sample) if is_choice(value) else value

    for module in network.modules():
        for name, value in vars(module).items():
            if name == '_mutables':
                vars(module)[name] = []
            elif name not in ('_parameters', '_buffers', '_modules') and any(map(is_choice, tree_leaves(value))):
                vars(module)[name] = tree_map(chosen, value)


class FixedCell(nn.Module):
    """A cell whose operations and their inputs are chosen, and whose output joins all nodes, as in a supernet.

    Parameters
    ----------
    ops
        The operations of each node, whose outputs are added.
    inputs
        The state that each operation reads: an input of the cell, or a node before.
    num_predecessors
        How many inputs the cell has.
    preprocessor, postprocessor, concat_dim
        As in NNI's ``Cell``.
    """

    def __init__(
        self,
        ops: Sequence[Sequence[nn.Module]],
        inputs: Sequence[Sequence[int]],
        num_predecessors: int,
        preprocessor: Callable[[list[Tensor]], list[Tensor]],
        postprocessor: Callable[[Tensor, list[Tensor]], Any],
        concat_dim: int,
    ):
        super().__init__()
        self.preprocessor = preprocessor
        self.ops = nn.ModuleList(map(nn.ModuleList, ops))
        self.postprocessor = postprocessor
        self.inputs = inputs
        self.num_predecessors = num_predecessors
        self.concat_dim = concat_dim

    def forward(self, *inputs: Any) -> Any:
        given = list(inputs[0] if len(inputs) == 1 and isinstance(inputs[0], list) else inputs)
        states = list(self.preprocessor(given))
        for ops, sources in zip(self.ops, self.inputs, strict=True):
            states.append(sum(op(states[source]) for op, source in zip(ops, sources, strict=True)))
        return self.postprocessor(torch.cat(states[self.num_predecessors :], self.concat_dim), given)


class Aligned(nn.Module):
    """The end of a stage of one cell, which gives the output of the cell before the shape of its own."""

    def __init__(self, transformation: nn.Module):
        super().__init__()
        self.transformation = transformation

    def forward(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        before, own = outputs
        return [self.transformation(before), own]


def _without_choices(name: str, module: nn.Module, sample: Sample, known: dict[nn.Module, nn.Module]) -> nn.Module:
    """The module itself or what is chosen in its place, and so for all modules in it.

    ``known`` has what is in place of each: a module that is used twice is one afterwards, too.
    """
    if module not in known:
        chosen = _chosen(name, module, sample)
        if isinstance(chosen, BaseSuperNetModule):  # a choice among the candidates of a choice
            chosen = _without_choices(name, chosen, sample, known)
        known[module] = known[chosen] = chosen
        for key, child in chosen._modules.items():
            if child is not None:
                chosen._modules[key] = _without_choices(f'{name}.{key}' if name else key, child, sample, known)
    return known[module]


def _chosen(name: str, module: nn.Module, sample: Sample) -> nn.Module:
    """What is in place of a module on the path."""
    if not isinstance(module, BaseSuperNetModule):
        return module
    if isinstance(module, MixedOperation):
        return module.freeze(sample)
    for base, fixed in FIXED.items():
        if type(module).forward is base.forward and isinstance(module, base):
            made = fixed(module, sample)
            if made is not None:
                return made
    raise TypeError(f'{name or "the supernet"} is a {type(module).__name__}, which takes its path in a way of its own')


def _layer(layer: PathSamplingLayer, sample: Sample) -> nn.Module | None:
    return layer[sample[layer.label]] if type(layer)._reduction is PathSamplingLayer._reduction else None


def _input(choice: PathSamplingInput, sample: Sample) -> nn.Module | None:
    if type(choice)._reduction is not PathSamplingInput._reduction:
        return None
    return ChosenInputs(sample[choice.label], choice.reduction)


def _repeat(repeat: PathSamplingRepeat, sample: Sample) -> nn.Module | None:
    depth = repeat.depth_choice.freeze(sample)
    blocks = list(repeat.blocks[:depth])
    if type(repeat)._reduction is NDSStagePathSampling._reduction:
        if depth == 1 and repeat.first_cell_transformation is not None:
            blocks.append(Aligned(repeat.first_cell_transformation))
    elif type(repeat)._reduction is not PathSamplingRepeat._reduction:
        return None
    return nn.Sequential(*blocks)


def _cell(cell: PathSamplingCell, sample: Sample) -> nn.Module:
    inputs, nodes = [], []
    for node, by_input in enumerate(cell.ops, cell.num_predecessors):
        inputs.append([sample[f'{cell.label}/input_{node}_{k}'][0] for k in range(cell.num_ops_per_node)])
        nodes.append([])
        for k, source in enumerate(inputs[-1]):
            operation = by_input[source][sample[f'{cell.label}/op_{node}_{k}']]
            # Chosen twice for a node, it is two operations, as in NNI's frozen cell, and as parameters are counted.
            nodes[-1].append(copy.deepcopy(operation) if operation in nodes[-1] else operation)
    return FixedCell(nodes, inputs, cell.num_predecessors, cell.preprocessor, cell.postprocessor, cell.concat_dim)


FIXED = {
    PathSamplingLayer: _layer,
    PathSamplingInput: _input,
    PathSamplingRepeat: _repeat,
    PathSamplingCell: _cell,
}
