"""Cells of NAS-Bench-101 in a supernet, of which NNI has none."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

from nni_naslid import compat as compat  # before nni.nas
from nni_naslid.space.graph import Graph

import numpy as np
import torch
from nni.mutable import ConstraintViolation, Sample
from nni.nas.hub.pytorch.modules.nasbench101 import (
    NasBench101Cell,
    _NasBench101CellFixed,
    compute_vertex_channels,
    prune,
    truncate,
)
from nni.nas.nn.pytorch import MutableModule
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

__all__ = ['PathSamplingNasBench101Cell']

# It tells of each cell that it makes, which is one for each network that is exported or compared.
logging.getLogger('nni.nas.hub.pytorch.modules.nasbench101').setLevel(logging.WARNING)

TRIES = 1000  # to draw choices that the constraint of a cell lets pass


class PathSamplingNasBench101Cell(BaseSuperNetModule):
    """A ``NasBench101Cell`` whose paths share weights: each vertex has one module for each operation, at full width.

    How many channels a vertex has depends on the whole graph. With ``c`` of them it uses the first ``c`` channels of
    the weights of its module, as NNI's ``MixedConv2d`` does, and of its projection of the input. The output has the
    last projection, however many vertices there are. So a path computes what the frozen cell does with these weights.

    Vertices keep their number when those before them are cut off: cells that differ in the numbers of their vertices
    only have different weights here. For choices that the constraint of the cell forbids the output is zero.

    Parameters
    ----------
    cell
        The cell, whose modules become those of the supernet.

    Raises
    ------
    TypeError
        If an operation or a projection has choices of its own, or if it has other parameters, not only smaller ones,
        where it is narrower.
    ValueError
        If the output has too few channels to be divided.
    """

    def __init__(self, cell: NasBench101Cell):
        super().__init__()
        self.in_features, self.out_features = cell.in_features, cell.out_features
        self.constraint = cell.constraint
        self.add_mutable(cell.constraint)
        inputs = self.constraint.inputs
        self.graph = Graph(
            self.constraint.num_nodes.label, [op.label for op in self.constraint.operations], [e.label for e in inputs]
        )
        self.projections = cell.projections
        self.ops = nn.ModuleList([nn.Identity()])
        for choice in cell.ops[1:]:
            self.ops.append(nn.ModuleDict({name: choice[name] for name in choice.names}))
        for name, module in self.named_modules():
            if isinstance(module, MutableModule) and module is not self and module.simplify():
                raise TypeError(f'{name} of NasBench101Cell has choices of its own, {module.simplify()}.')
        parts = range(1, min(len(inputs) - 1, cell.max_num_edges // 2) + 1)  # that the output may be divided into
        if self.out_features < len(parts):
            raise ValueError(
                f'NasBench101Cell divides its output into up to {len(parts)} parts, so out_features must be at least '
                f'{len(parts)}, but is {self.out_features}.'
            )
        widths = {self.out_features // n + extra for n in parts for extra in (0, self.out_features % n > 0)}
        makers = {name: make for name, make in cell.op_candidates.items()} if len(self.ops) > 1 else {}
        self._narrow = {name: _narrowings(name, make, widths, self.out_features) for name, make in makers.items()}
        self._narrow_projection = _narrowings(
            'projection', lambda c: cell.projection(cell.in_features, c), widths, self.out_features
        )

    @property
    def label(self) -> str:
        """What all its labels begin with."""
        return self.graph.num_nodes.rpartition('/')[0]

    def resample(self, memo: Sample) -> Sample:
        """Set the path; choices that are not in ``memo`` are drawn."""
        new = self.export(memo)
        self._sampled: _Path | None = self._path({**memo, **new})
        return new

    def export(self, memo: Sample) -> Sample:
        """Draw the choices that are not in ``memo``.

        Raises
        ------
        RuntimeError
            If the constraint lets none pass.
        """
        missing = [label for label in self.graph.labels if label not in memo]
        for _ in range(TRIES if missing else 0):
            sample = {label: memo[label] for label in self.graph.labels if label in memo}
            try:
                self.constraint.random(sample)
            except ConstraintViolation:
                continue
            return {label: sample[label] for label in missing}
        if missing:
            raise RuntimeError(f'No choices for {", ".join(missing)} of NasBench101Cell go with the others.')
        return {}

    def _path(self, sample: Sample) -> _Path | None:
        """What a sample makes of the cell; ``None`` if that is no cell."""
        num_nodes = sample[self.graph.num_nodes]
        inputs = tuple(tuple(sample[label]) for label in self.graph.inputs[: num_nodes - 1])
        if sum(map(len, inputs)) > self.constraint.max_num_edges:
            return None
        cut = _cut(num_nodes, inputs, self.in_features, self.out_features)
        return cut and cut._replace(ops=tuple(sample[self.graph.ops[vertex - 1]] for vertex in cut.vertices[1:-1]))

    def forward(self, inputs: Tensor) -> Tensor:
        if '_sampled' not in vars(self):
            raise RuntimeError('No path of NasBench101Cell is set: call `resample()`, or set one by `set_path`.')
        if (path := self._sampled) is None:
            return torch.zeros_like(self.projections[-1](inputs))
        # From here it is the forward pass of NNI's fixed cell.
        tensors, last = [inputs], len(path.vertices) - 1
        for t in range(1, last):
            add_in = [truncate(tensors[source], path.channels[t]) for source in range(1, t) if path.matrix[source, t]]
            if path.matrix[0, t]:
                add_in.append(self._run(*self._projection(path, t), inputs))
            tensors.append(self._run(*self._operation(path, t), add_in[0] if len(add_in) == 1 else sum(add_in)))
        sources = np.flatnonzero(path.matrix[:, last])
        if len(sources) == 1:
            return tensors[sources[0]] if sources[0] else self.projections[-1](inputs)
        outputs = torch.cat([tensors[source] for source in sources if source], 1)
        return outputs + self.projections[-1](inputs) if path.matrix[0, last] else outputs

    def _operation(self, path: _Path, t: int) -> tuple[nn.Module, _Narrowing]:
        """That of the ``t``-th vertex which is left of a path, and how much of it there is."""
        name = path.ops[t - 1]
        return self.ops[path.vertices[t]][name], self._narrow[name][path.channels[t]]

    def _projection(self, path: _Path, t: int) -> tuple[nn.Module, _Narrowing]:
        if t == len(path.vertices) - 1:
            return self.projections[-1], _Narrowing([])
        return self.projections[path.vertices[t]], self._narrow_projection[path.channels[t]]

    @staticmethod
    def _run(module: nn.Module, narrowing: _Narrowing, x: Tensor) -> Tensor:
        with narrowing.of(module):
            return module(x)

    def freeze(self, sample: Sample) -> nn.Module:
        """NNI's fixed cell, with copies of the weights of the path.

        Raises
        ------
        ConstraintViolation
            If the constraint forbids the sample.
        """
        self.constraint.validate(dict(sample))
        path = self._path(sample)
        n = len(path.vertices)
        copies = {i: _narrow_copy(*self._operation(path, i)) for i in range(1, n - 1)}
        projections = iter([_narrow_copy(*self._projection(path, i)) for i in range(1, n)])
        of_vertex = {vertex: copies.get(i) for i, vertex in enumerate(path.vertices)}
        num_nodes = sample[self.graph.num_nodes]
        cell = _NasBench101CellFixed(
            [lambda _, vertex=vertex: of_vertex[vertex] for vertex in range(1, num_nodes - 1)],
            [list(sample[label]) for label in self.graph.inputs[: num_nodes - 1]],
            self.in_features,
            self.out_features,
            num_nodes,
            lambda *_: next(projections),
        )
        cell.operations = ['IN', *path.ops, 'OUT']  # where it has kept these functions
        return cell

    def sizes(self, sample: Sample) -> dict[nn.Parameter, int]:
        """How many numbers a path has of each parameter that it has a part of only."""
        if (path := self._path(sample)) is None:
            return {}
        found = {}
        for t in range(1, len(path.vertices) - 1):
            for module, narrowing in (self._operation(path, t), self._projection(path, t)):
                with narrowing.of(module):
                    sizes = [tensor.numel() for part in module.modules() for tensor in part._parameters.values()
                             if tensor is not None]  # fmt: skip
                found |= zip(module.parameters(), sizes, strict=True)
        return found

    @classmethod
    def mutate(cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        """The mutation hook of NNI's strategies."""
        return cls(module) if type(module) is NasBench101Cell else None


class _Path(NamedTuple):
    """What is left of a cell.

    Attributes
    ----------
    vertices
        Those on a way from the input to the output, both included, by their numbers.
    matrix
        Which of them has an edge to which.
    channels
        Of each of them.
    ops
        The operations of those in between.
    """

    vertices: tuple[int, ...]
    matrix: np.ndarray
    channels: tuple[int, ...]
    ops: tuple[str, ...] = ()


@lru_cache(10_000)
def _cut(num_nodes: int, inputs: tuple[tuple[int, ...], ...], in_features: int, out_features: int) -> _Path | None:
    """A path without operations, by NNI's own functions; ``None`` if the input has no way to the output."""
    matrix = _NasBench101CellFixed.build_connection_matrix([list(each) for each in inputs], num_nodes)
    try:
        matrix, vertices = prune(matrix, list(range(num_nodes)))
    except ConstraintViolation:
        return None
    channels = compute_vertex_channels(in_features, out_features, matrix)
    return _Path(tuple(vertices), matrix, tuple(map(int, channels)))


class _Narrowing:
    """What of a module is used where it has fewer channels.

    Parameters
    ----------
    parts
        The name of each of its modules, the attributes that it has then, and which part of its tensors it uses.
    """

    def __init__(self, parts: Sequence[tuple[str, dict[str, Any], dict[str, tuple[slice, ...]]]]):
        self.parts = parts

    @contextmanager
    def of(self, module: nn.Module) -> Iterator[None]:
        """Inside, a module is narrow. What it does to its buffers is done to those it has."""
        before = []
        try:
            for name, attributes, slices in self.parts:
                own = vars(part := module.get_submodule(name))
                before.append((own, {key: own[key] for key in attributes}, whole := {}))
                own.update(attributes)
                for key, some in slices.items():
                    tensors = part._parameters if key in part._parameters else part._buffers
                    whole[key] = tensors, tensors[key], some, (view := tensors[key][some])
                    tensors[key] = view
            yield
        finally:
            for own, attributes, whole in before:
                own.update(attributes)
                for key, (tensors, tensor, some, view) in whole.items():
                    if tensors[key] is not view:  # a buffer that was replaced, not written to
                        tensor[some] = tensors[key]
                    tensors[key] = tensor


def _narrowings(name: str, make: Callable[[int], nn.Module], widths: set[int], full: int) -> dict[int, _Narrowing]:
    """What is used of a module of ``full`` channels at each of some widths, by what ``make`` makes of them."""
    wide = _made(make, full)
    return {c: _Narrowing([] if c == full else list(_parts(name, wide, _made(make, c)))) for c in widths}


def _parts(name: str, wide: nn.Module, narrow: nn.Module) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    shapes = [{key: tensor.shape for key, tensor in each.state_dict().items()} for each in (wide, narrow)]
    fits = shapes[0].keys() == shapes[1].keys() and all(
        len(one) == len(other) and all(b <= a for a, b in zip(one, other, strict=True))
        for one, other in zip(shapes[0].values(), shapes[1].values(), strict=True)
    )
    if not fits or [n for n, _ in wide.named_modules()] != [n for n, _ in narrow.named_modules()]:
        raise TypeError(
            f'{name} of NasBench101Cell has parameters of {_brief(shapes[0])}, but with fewer channels of '
            f'{_brief(shapes[1])}, which are no part of them.'
        )
    plain = (bool, int, float, str, tuple, list, type(None))
    for (path, one), (_, other) in zip(wide.named_modules(), narrow.named_modules(), strict=True):
        attributes = {
            key: value
            for key, value in vars(other).items()
            if key not in OWN and isinstance(value, plain) and vars(one).get(key) != value
        }
        slices = {
            key: tuple(map(slice, tensor.shape))
            for tensors, wider in ((other._parameters, one._parameters), (other._buffers, one._buffers))
            for key, tensor in tensors.items()
            if tensor is not None and tensor.shape != wider[key].shape
        }
        if attributes or slices:
            yield path, attributes, slices


OWN = vars(nn.Module())  # what all modules have


def _brief(shapes: Mapping[str, torch.Size]) -> str:
    return ', '.join(f'{name} {list(shape)}' for name, shape in shapes.items())[:200] or 'no shapes'


def _made(make: Callable[[int], nn.Module], n_features: int) -> nn.Module:
    """Only its shapes count, so without memory and numbers, where that can be."""
    with isolate_rng():
        try:
            with torch.device('meta'):
                return make(n_features)
        except (NotImplementedError, RuntimeError):  # of a module that looks at its initial values
            return make(n_features)


def _narrow_copy(module: nn.Module, narrowing: _Narrowing) -> nn.Module:
    """The narrow module as one of its own."""
    module = copy.deepcopy(module)
    for name, attributes, slices in narrowing.parts:
        part = module.get_submodule(name)
        vars(part).update(attributes)
        for key, some in slices.items():
            if key in part._parameters:
                weight = part._parameters[key]
                part._parameters[key] = nn.Parameter(weight.detach()[some].clone(), weight.requires_grad)
            else:
                part._buffers[key] = part._buffers[key][some].clone()
    return module
