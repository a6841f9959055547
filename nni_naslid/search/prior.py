"""A prior on what networks cost: the rank of a network by its metric, and with a weight the rank by its size.

On NAS-Bench-201 with CIFAR-10 large networks are better than supernets say. Of eight released full-scale supernets of
EFS-NAS, the first choice of the sum of ranks (weight .5, live parameters, all 15,625 networks) was better than that of
the metric in seven, and the same in one; mean tau was .78 instead of .68. But the largest network alone was better than
this choice in four. Where accuracy does not go with size a prior is worse than none, so it is off by default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nni_naslid.train.data import Inputs, call

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ['N_REFERENCES', 'Prior', 'live_parameters']

N_REFERENCES = 100  # random networks, which ranks are among


class Prior:
    """Scores by two ranks among random networks.

    Parameters
    ----------
    metrics, costs
        Of the same random networks; of both, larger is better.
    weight
        Of the rank by cost; that by metric has the weight 1.
    """

    def __init__(self, metrics: Sequence[float], costs: Sequence[float], weight: float):
        self.metrics, self.costs = (np.sort(np.asarray(values, float)) for values in (metrics, costs))
        self.weight = weight

    def score(self, metric: float, cost: float) -> float:
        """The sum of ranks, about 0 to ``1 + weight``; minus infinity for a metric that is not finite."""
        if not math.isfinite(metric):
            return -math.inf
        return _rank(metric, self.metrics) + self.weight * _rank(cost, self.costs)


def _rank(value: float, references: np.ndarray) -> float:
    """Which part of the references is less, those that are equal by half; increasing between them and beyond."""
    references = references[np.isfinite(references)]
    n = len(references)
    if not n:
        return 0.5
    distinct, counts = np.unique(references, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2) / n
    beyond = value - np.clip(value, distinct[0], distinct[-1])
    spread = float(np.ptp(distinct)) or max(abs(float(distinct[0])), 1.0)
    return float(np.interp(value, distinct, ranks) + math.tanh(beyond / spread) * 0.5 / n)


def live_parameters(network: nn.Module, inputs: Inputs) -> int:
    """Numbers in the parameters that the output depends on, of a supernet that is set to a path.

    A parameter on an edge that leads nowhere, as before ``none``, has no gradient. Where a path takes a slice of a
    parameter, all of it counts.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    training = network.training
    network.eval()
    with torch.enable_grad():
        outputs = [
            each for each in tree_leaves(call(network, inputs)) if isinstance(each, Tensor) and each.requires_grad
        ]
        gradients = torch.autograd.grad([each.square().sum() for each in outputs], weights, allow_unused=True)
    network.train(training)
    is_live = (gradient is not None and bool((gradient != 0).any()) for gradient in gradients)
    return sum(weight.numel() for weight, live in zip(weights, is_live, strict=True) if live)
