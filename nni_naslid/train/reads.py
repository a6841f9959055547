"""When a module of a supernet is part of a path, and a label is read by it: told once for all samples."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from nni_naslid.space.reads import Condition
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.path import own_labels

from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.sampling import PathSamplingCell, PathSamplingLayer, PathSamplingRepeat
from torch import nn

__all__ = ['conditions_of_labels', 'modules_of_paths']


def conditions_of_labels(supernet: nn.Module, space: SubSpace) -> dict[str, list[Condition]]:
    """When labels are read: what :func:`~nni_naslid.train.path.labels_read` finds for each sample, without the model.

    Parameters
    ----------
    supernet
        The supernet.
    space
        All of its space.

    Returns
    -------
    By label, the conditions of which one at least must hold. Labels that are always read are left out.
    """
    found: dict[str, list[Condition]] = {}
    for module, condition in modules_of_paths(supernet, space):
        if isinstance(module, BaseSuperNetModule):
            for label in sorted(own_labels(module)):  # in the same order in each process
                if condition not in (known := found.setdefault(label, [])):
                    known.append(condition)
    return {label: conditions for label, conditions in found.items() if {} not in conditions}


def modules_of_paths(supernet: nn.Module, space: SubSpace) -> Iterator[tuple[nn.Module, Condition]]:
    """All modules, each with the conditions on which it is part of a path.

    A condition is label to places of choices: it holds if the sample has one of these for each label. A module that is
    used in several places comes with the condition of each; several of them may hold.
    """
    pending: list[tuple[nn.Module, Condition]] = [(supernet, {})]
    seen: set[tuple[nn.Module, str]] = set()
    while pending:
        module, condition = pending.pop()
        if (module, str(condition)) in seen:
            continue
        seen.add((module, str(condition)))
        yield module, condition
        for child, own in _children(module, space):
            both = {label: [place for place in places if place in condition.get(label, places)]
                    for label, places in own.items()}  # fmt: skip
            if all(both.values()):
                pending.append((child, {**condition, **both}))


def _children(module: nn.Module, space: SubSpace) -> Iterator[tuple[nn.Module, Condition]]:
    """The modules right below one, with the condition on which each is part of the path."""
    forward = type(module).forward if isinstance(module, BaseSuperNetModule) else None
    gated: nn.Module | None = None
    if forward is PathSamplingLayer.forward:
        for place, choice in enumerate(space.mutables[module.label].values):
            yield module[choice], {module.label: [place]}
        return
    if forward is PathSamplingRepeat.forward:
        gated = module.blocks
        yield from _blocks(module, space)
    elif forward is PathSamplingCell.forward:
        gated = module.ops
        yield from _operations(module, space)
    yield from ((child, {}) for child in module.children() if child is not gated)


def _blocks(repeat: PathSamplingRepeat, space: SubSpace) -> Iterator[tuple[nn.Module, Condition]]:
    labels = list(repeat.depth_choice.simplify())
    values = [list(enumerate(space.mutables[label].values)) for label in labels]
    depths = {
        tuple(place for place, _ in combination): repeat.depth_choice.freeze(
            {label: choice for label, (_, choice) in zip(labels, combination, strict=True)}
        )
        for combination in product(*values)
    }
    for number, block in enumerate(repeat.blocks):
        deep = [places for places, depth in depths.items() if depth > number]
        if len(deep) == len(depths):
            yield block, {}
        elif len(labels) == 1:
            yield block, {labels[0]: [place for (place,) in deep]}
        else:
            yield from ((block, {label: [place] for label, place in zip(labels, each, strict=True)}) for each in deep)


def _operations(cell: PathSamplingCell, space: SubSpace) -> Iterator[tuple[nn.Module, Condition]]:
    for node, sources in enumerate(cell.ops, cell.num_predecessors):
        for k in range(cell.num_ops_per_node):
            source_label, name_label = f'{cell.label}/input_{node}_{k}', f'{cell.label}/op_{node}_{k}'
            for i, source in enumerate(space.mutables[source_label].values):
                for j, name in enumerate(space.mutables[name_label].values):
                    yield sources[source][name], {source_label: [i], name_label: [j]}
