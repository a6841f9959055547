"""How many parameters of a path have a say in what it returns."""

from __future__ import annotations

import copy
from collections.abc import Callable

from nni_naslid import compat as compat  # before nni.nas
from nni_naslid.train.data import Inputs, call, tensors_in
from nni_naslid.train.nasbench101 import PathSamplingNasBench101Cell
from nni_naslid.train.path import set_path
from nni_naslid.train.structure import parameters_of_mixed
from nni_naslid.traits.profile import untouched

import torch
from nni.mutable import Sample
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from torch import Tensor, nn

__all__ = ['live_parameters']


def live_parameters(supernet: nn.Module, inputs: Inputs) -> Callable[[Sample], int]:
    """What counts the live parameters of a path: those that change what the network returns.

    A convolution whose input is always zero, or whose output reaches nothing, has none. A bias that a norm takes out
    again counts. What is live is told by the gradient of the output, on a copy with random weights: the supernet's own
    may be zero (as initial weights of norms often are), or have diverged. A parameter counts as a whole if one of its
    numbers has a gradient that is not zero; of operations with choices of kernels or widths, what the chosen ones have.

    Parameters
    ----------
    supernet
        The supernet; it stays as it is.
    inputs
        A batch of some samples, as the supernet is called with it.

    Returns
    -------
    A function of a sample. It takes about as long as a step of training.
    """
    supernet = copy.deepcopy(supernet)
    _draw(supernet)
    mixed = {module: parameters_of_mixed(module) for module in supernet.modules() if isinstance(module, MixedOperation)}
    inside = {weight: module for module in mixed for weight in module.parameters()}
    weights = [weight for weight in supernet.parameters() if weight.requires_grad]
    cells = [module for module in supernet.modules() if isinstance(module, PathSamplingNasBench101Cell)]

    def count(sample: Sample) -> int:
        set_path(supernet, sample)
        with untouched(supernet), torch.enable_grad():
            torch.manual_seed(0)
            outputs = [output for output in tensors_in(call(supernet, inputs)) if output.requires_grad]
            if not outputs:
                return 0
            total = sum((output * torch.rand_like(output)).sum() for output in outputs)
            gradients = torch.autograd.grad(total, weights, allow_unused=True)
        live = [weight for weight, gradient in zip(weights, gradients, strict=True)
                if gradient is not None and _has_some(gradient)]  # fmt: skip
        sizes = {weight: size for cell in cells for weight, size in cell.sizes(sample).items()}
        whole = sum(sizes.get(weight, weight.numel()) for weight in live if weight not in inside)
        return whole + sum(mixed[module](sample) for module in {inside[weight] for weight in live if weight in inside})

    return count


def _draw(model: nn.Module) -> None:
    """Random weights by which every unit can pass something on."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.is_floating_point() or not weight.numel():
                continue
            weight.requires_grad_()
            if weight.ndim < 2:
                weight.fill_(0.1 if name.endswith('bias') else 1)
            else:
                weight.copy_(torch.randn(weight.shape, generator=generator) * (2 / weight[0].numel()) ** 0.5)


def _has_some(gradient: Tensor) -> bool:
    """Whether a number of it is not zero; that of an embedding may be sparse."""
    return bool((gradient.coalesce().values() if gradient.is_sparse else gradient).count_nonzero())
