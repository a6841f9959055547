"""A prior on what networks cost: the rank of a network by its metric, and with a weight the rank by its size.

On NAS-Bench-201 with CIFAR-10, large networks are better than supernets say. Of eight released full-scale supernets of
EFS-NAS, ranks by accuracy plus .5 times ranks by parameters (of all 15,625 networks) had a mean tau of .73 instead of
.68, and the best 5 % held .39 instead of .30 of the true ones; the first choice was better in six and worse in two.
Where accuracy does not go with size a prior is worse than none, so it is off by default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ['N_REFERENCES', 'Prior']

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
