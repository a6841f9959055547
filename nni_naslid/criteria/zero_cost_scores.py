"""Scores of a network that need no training: NASWOT, SynFlow and SNIP. Each leaves the network as it was."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

from nni_naslid.criteria.matching import gradient, loss_of
from nni_naslid.train.data import Inputs, call, copied, tensors_in
from nni_naslid.traits.profile import untouched

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

__all__ = ['naswot', 'snip', 'synflow']

RELUS = nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU


def naswot(model: nn.Module, inputs: Tensor | Inputs) -> float:
    r"""How well a network tells the samples of a batch apart by which of its ReLUs are active.

    .. math:: \log |K|, \qquad K_{ij} = N_A - d_H(c_i, c_j)

    where :math:`c_i` is the binary code of sample :math:`i` (whether what goes into each of the :math:`N_A` ReLUs is
    above 0) and :math:`d_H` the Hamming distance. See `Mellor et al., ICML 2021 <https://arxiv.org/abs/2006.04647>`__.
    The network is in the mode of :func:`~nni_naslid.traits.profile.untouched`: batch norms use the batch.

    Parameters
    ----------
    model
        A network, or a supernet whose path is set. Modules of ReLU, ReLU6, leaky, parametric and randomized ReLU count
        that run; ``F.relu`` is not seen.
    inputs
        A batch, whose samples are in the first dimension.

    Returns
    -------
    Score, in nats; at least 0. Eigenvalues of :math:`K` that are below 1 count as 1: so the score is finite where
    samples have the same code, 0 where no ReLU has run, and the log-determinant where no eigenvalue is below 1.

    Raises
    ------
    ValueError
        If the network has no ReLU, or one that does not get a row for each sample.
    """
    relus = [module for module in model.modules() if isinstance(module, RELUS)]
    if not relus:
        raise ValueError(f'naswot needs modules of nn.ReLU, but {type(model).__name__} has none.')
    kernel: Tensor | float = 0.0

    def add(module: nn.Module, args: tuple) -> None:
        nonlocal kernel
        codes = (args[0].detach().flatten(1) > 0).float() * 2 - 1
        same = (codes.shape[1] + (codes @ codes.mT).double()) / 2  # products are 1 and -1, so sums are exact
        if isinstance(kernel, Tensor) and kernel.shape != same.shape:
            raise ValueError(
                f'naswot needs ReLUs that get a row for each sample, but those of {type(model).__name__} get '
                f'{len(kernel)} and {len(same)} rows.'
            )
        kernel = kernel + same

    handles = [relu.register_forward_pre_hook(add) for relu in relus]
    try:
        with untouched(model):
            call(model, _as_inputs(inputs))
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(kernel, Tensor):
        return 0.0
    return torch.linalg.eigvalsh(kernel.cpu()).clamp_min(1).log().sum().item()


def synflow(model: nn.Module, inputs: Tensor | Inputs) -> float:
    r"""How much flows through the weights of a network, whatever the data.

    .. math:: \sum_\theta \Big|\theta \, \frac{\partial R}{\partial \theta}\Big|

    where :math:`R` is the sum of all outputs for an input of ones, with the absolute values of all parameters and
    buffers. See `Tanaka et al., NeurIPS 2020 <https://arxiv.org/abs/2006.05467>`__, and as a score of networks
    `Abdelfattah et al., ICLR 2021 <https://arxiv.org/abs/2101.08134>`__. As in the code of the former, batch norms are
    in the mode of evaluation. The sum goes over the weights of two or more dimensions, those of convolutions and linear
    layers; biases and the factors of norms have their part in :math:`R` only. Activations that saturate, such as ReLU6,
    let nothing flow back: what is before them then does not count.

    Parameters
    ----------
    model
        A network, or a supernet whose path is set. It computes with copies: its own weights are not touched.
    inputs
        A batch. Only its form counts: the first sample of each tensor becomes ones.

    Returns
    -------
    Score, at least 0; 0 where nothing flows. It is computed in float64, and infinite or NaN where that overflows, which
    takes some hundred layers without any norm.
    """
    args, kwargs = copied(_as_inputs(inputs), next((weight.device for weight in model.parameters()), None))
    ones = {id(t): _in_double(torch.ones_like(t[:1] if t.ndim else t)) for t in tensors_in((args, kwargs))}
    args, kwargs = copy.deepcopy((args, kwargs), ones)
    with untouched(model), torch.enable_grad():
        model.eval()
        weights = {name: _in_double(_positive(weight.detach())) for name, weight in model.named_parameters()}
        buffers = {name: _in_double(_positive(buffer.detach())) for name, buffer in model.named_buffers()}
        scored = [weight.requires_grad_() for weight in weights.values()
                  if weight.ndim > 1 and weight.is_floating_point()]  # fmt: skip
        output = torch.func.functional_call(model, {**weights, **buffers}, args, kwargs)
        total = sum(tensor.sum() for tensor in tensors_in(output) if tensor.is_floating_point())
        if not isinstance(total, Tensor) or not total.requires_grad:
            return 0.0
        return _saliency(torch.autograd.grad(total, scored, allow_unused=True), scored)


def snip(module: pl.LightningModule, batch: Any, batch_idx: int = 0) -> float:
    r"""How much the loss depends on each weight of a network being there at all.

    .. math:: \sum_\theta \Big|\theta \, \frac{\partial L}{\partial \theta}\Big|

    where :math:`L` is the loss that ``training_step`` returns. See `Lee et al., ICLR 2019
    <https://arxiv.org/abs/1810.02340>`__, and as a score of networks `Abdelfattah et al., ICLR 2021
    <https://arxiv.org/abs/2101.08134>`__. The network is in the mode of training. The sum goes over the weights of two
    or more dimensions, as in :func:`synflow`.

    Parameters
    ----------
    module
        The Lightning module, around a network or a supernet whose path is set.
    batch, batch_idx
        What ``training_step`` is called with.

    Returns
    -------
    Score, at least 0.

    Raises
    ------
    ValueError
        If ``training_step`` returns no loss with a gradient, or cannot be called outside of training.
    """
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    with untouched(module):
        module.train()
        return _saliency(gradient(partial(loss_of, module, batch, batch_idx), weights), weights)


def _saliency(gradients: Sequence[Tensor | None], weights: Sequence[Tensor]) -> float:
    pairs = zip(gradients, weights, strict=True)
    return (
        sum((g.double() * w.detach().double()).abs().sum().item() for g, w in pairs if g is not None and w.ndim > 1)
        + 0.0
    )


def _as_inputs(inputs: Tensor | Inputs) -> Inputs:
    return inputs if isinstance(inputs, Inputs) else Inputs((inputs,), {})


def _in_double(tensor: Tensor) -> Tensor:
    """Floating-point numbers in float64; a copy in any case."""
    return tensor.to(torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True)


def _positive(tensor: Tensor) -> Tensor:
    """Without signs; masks, indices, and what is not finite (masks, too) as they are."""
    return torch.where(tensor.isfinite(), tensor.abs(), tensor) if tensor.is_floating_point() else tensor
