"""A prior: the rank of a network by its metric, and with weights its ranks by its size or by its features.

On NAS-Bench-201 with CIFAR-10, large networks are better than supernets say. Of eight released full-scale supernets of
EFS-NAS, ranks by accuracy plus .5 times ranks by parameters (of all 15,625 networks) had a mean tau of .73 instead of
.68, and the best 5 % held .39 instead of .30 of the true ones; the first choice was better in six and worse in two.
What LID of the features adds to that is measured by ``examples/bench_lid_score.py``. Where accuracy does not go with
what is counted a prior is worse than none, so it is off by default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ['N_REFERENCES', 'Prior']

N_REFERENCES = 100  # random networks, which ranks are among


class Prior:
    """Scores by ranks among random networks.

    Parameters
    ----------
    metrics
        Of the random networks; larger is better.
    costs
        By name, those of the same networks.
    weights
        By name, what the rank by a cost is multiplied with; negative if less is better. That by
        metric has the weight 1.
    """

    def __init__(self, metrics: Sequence[float], costs: Mapping[str, Sequence[float]], weights: Mapping[str, float]):
        self.metrics = np.sort(np.asarray(metrics, float))
        self.costs = {name: np.sort(np.asarray(values, float)) for name, values in costs.items()}
        self.weights = weights

    def score(self, metric: float, costs: Mapping[str, float]) -> float:
        """The weighted sum of ranks, each about 0 to 1.

        Minus infinity for a metric that is not finite; the worst rank for a cost that is not.
        """
        if not math.isfinite(metric):
            return -math.inf
        ranks = (self._weighted(name, weight, costs[name]) for name, weight in self.weights.items())
        return _rank(metric, self.metrics) + sum(ranks)

    def _weighted(self, name: str, weight: float, cost: float) -> float:
        return weight * _rank(cost, self.costs[name]) if math.isfinite(cost) else min(weight, 0.0)


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
