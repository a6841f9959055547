"""A network as an ONNX file for any number of samples at once, compared with PyTorch's own outputs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from nni_naslid.train.data import Inputs, call, n_samples, tensors_in

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

__all__ = ['check_onnx', 'write_onnx']

PACKAGES = 'onnx', 'onnxscript', 'onnxruntime'
SIZES = 2, 1, 5  # numbers of samples that the file is checked with; the first one is what it is made with
TOLERANCE = 1e-3  # of the largest output


def check_onnx() -> None:
    """Raise if a package that this takes is missing.

    Raises
    ------
    ModuleNotFoundError
        Saying what to install.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ModuleNotFoundError(
            f"ONNX files take {', '.join(PACKAGES)}: pip install {' '.join(missing)} (or pip install -e '.[onnx]')."
        )


def write_onnx(network: nn.Module, inputs: Inputs, path: Path) -> tuple[float, float]:
    """Write a network as ONNX, with its weights in the file, and run it by ``onnxruntime``.

    Parameters
    ----------
    network
        In evaluation mode, on the CPU.
    inputs
        A batch, as the network is called with it. Tensors with as many rows as there are samples may have any number in
        the file; their numbers are drawn anew where they are floating-point ones.
    path
        The file. It is not there afterwards if anything fails.

    Returns
    -------
    The largest difference from what the network returns in PyTorch, for :data:`SIZES` samples, and the largest output.

    Raises
    ------
    ValueError
        Saying in one line why the network cannot be had as ONNX: an operator that is not there, an output that differs.
    """
    leaves, form = tree_flatten((inputs.args, inputs.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    n = n_samples(inputs)
    batched = [leaves[i].ndim > 0 and len(leaves[i]) == n for i in places]

    def tensors_of(size: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(size)
        return [_resized(leaves[i], size if each else None, generator) for i, each in zip(places, batched, strict=True)]

    def inputs_of(tensors: Sequence[Tensor]) -> Inputs:
        filled = list(leaves)
        for i, tensor in zip(places, tensors, strict=True):
            filled[i] = tensor
        return Inputs(*tree_unflatten(filled, form))

    names = ['input'] if len(places) == 1 else [f'input_{i}' for i in range(len(places))]
    try:
        with torch.no_grad():
            example = tensors_of(SIZES[0])
            n_outputs = len(tensors_in(call(network, inputs_of(example))))
            outputs = ['output'] if n_outputs == 1 else [f'output_{i}' for i in range(n_outputs)]
            _export(_ByPosition(network, inputs_of), example, batched, names, outputs, path)
            found = [_difference(network, inputs_of(each), each, names, path) for each in map(tensors_of, SIZES)]
    except Exception as error:  # whatever torch.onnx or onnxruntime cannot do
        with suppress(FileNotFoundError):
            path.unlink()
        text = ' '.join(str(error).split()) or 'no reason given'
        raise ValueError(f'{type(error).__name__}: {text[:300]}') from error
    difference, largest = (max(each) for each in zip(*found, strict=True))
    if not difference <= TOLERANCE * largest:
        path.unlink()
        raise ValueError(f'onnxruntime differs by {difference:.2g}, where the largest output is {largest:.2g}')
    return difference, largest


class _ByPosition(nn.Module):
    """A network that gets the tensors in its inputs one by one."""

    def __init__(self, network: nn.Module, inputs_of: Any):
        super().__init__()
        self.network = network
        self.inputs_of = inputs_of

    def forward(self, *tensors: Tensor) -> Any:
        args, kwargs = self.inputs_of(tensors)
        return self.network(*args, **kwargs)

    def __repr__(self) -> str:
        return type(self.network).__name__  # torch asks for it, and some modules of NNI's AutoFormer have none


def _resized(tensor: Tensor, size: int | None, generator: torch.Generator) -> Tensor:
    """A tensor with other numbers, if they are floating-point ones, and of another number of samples."""
    if size is not None:
        tensor = tensor[torch.arange(size) % len(tensor)]
    if not tensor.is_floating_point():
        return tensor.clone()
    return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def _export(
    network: nn.Module, example: list[Tensor], batched: list[bool], names: list[str], outputs: list[str], path: Path
) -> None:
    """Have torch write the file; what it prints on the way is of no use to who exports."""
    batch = torch.export.Dim.DYNAMIC
    shapes = tuple({0: batch} if each else None for each in batched)
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter('ignore')
            torch.onnx.export(
                network, tuple(example), path, input_names=names, output_names=outputs, dynamo=True,
                dynamic_shapes=(shapes,), external_data=False, verbose=False,
            )  # fmt: skip
    finally:
        logging.disable(level)


def _difference(
    network: nn.Module, inputs: Inputs, tensors: list[Tensor], names: list[str], path: Path
) -> tuple[float, float]:
    """By how much the file differs from a network, and the largest output of that."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    given = {each.name for each in session.get_inputs()}  # an input that makes no difference is left out
    found = session.run(None, {name: t.numpy() for name, t in zip(names, tensors, strict=True) if name in given})
    pairs = list(zip(map(torch.as_tensor, found), tensors_in(call(network, inputs)), strict=True))
    for output, right in pairs:
        if output.shape != right.shape:
            raise ValueError(f'an output has the shape {list(output.shape)}, in PyTorch {list(right.shape)}')
    differences = [(output.double() - right.double()).abs().max().item() for output, right in pairs]
    return max(differences), max(right.double().abs().max().item() for _, right in pairs)
