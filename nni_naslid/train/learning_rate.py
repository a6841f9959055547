"""The learning rate of a step, by the size of the path that it trains."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.structure import histogram_of, structural_score

from nni.mutable import Sample
from torch import nn

__all__ = ['LearningRateBySize']

PEAK = 'naslid_peak_lr'  # in the groups of an optimizer, whose state checkpoints keep


class LearningRateBySize:
    """Let the learning rate of large networks fall later than that of small ones, whatever the schedule is.

    Small networks are trained soon, large ones late, as in `DYNAS (CVPR 2025) <https://arxiv.org/abs/2503.10740>`__. A
    schedule that has come down to a part ``f`` of its highest rate so far has ``f ** g`` of it in a step that trains a
    path of exponent ``g``. Where the rate is the highest so far, as in warm-up, or constant, it is as it was. The
    schedule does not notice. Optimizers that read the rate before they call the closure, such as LBFGS, do not, either.

    Parameters
    ----------
    supernet
        The supernet.
    space
        The whole space.

    Raises
    ------
    ValueError
        If networks cannot be counted by their parameters.
    """

    def __init__(self, supernet: nn.Module, space: SubSpace):
        self._score = structural_score(supernet, space, 'parameters')
        histogram = histogram_of(self._score, space if space.ranges else space.unfiltered())
        self.sizes, self._ends = list(histogram), [0, *accumulate(histogram.values())]
        self._exponents: list[float] = []  # of the paths since the last step
        self._scaled: list[tuple[dict[str, Any], Any, Any]] = []  # groups, their rates by the schedule, and for a step

    def exponent(self, sample: Sample) -> float:
        """``2 ** (1 - 2 * q)``: 2 for the smallest network, 1 for the median, .5 for the largest.

        ``q`` is the share of the networks of the space that have fewer parameters, and half of those that have as many;
        a filter makes no difference to it.
        """
        size = self._score.of(sample)
        fewer, others = (self._ends[at(self.sizes, size)] for at in (bisect_left, bisect_right))
        return 2 ** (1 - (fewer + others) / self._ends[-1])

    def scale(self, optimizers: Iterable[Any], sample: Sample) -> None:
        """Set the rates for the step to come, which trains a path. Of several paths, their mean exponent counts."""
        self.restore()
        self._exponents.append(self.exponent(sample))
        exponent = sum(self._exponents) / len(self._exponents)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            if (rate := group.get('lr')) is None:  # of an optimizer that sets its own
                continue
            peak = group[PEAK] = max(float(rate), group.get(PEAK, 0.0))
            if peak > 0:
                group['lr'] = peak * (rate / peak) ** exponent
                self._scaled.append((group, rate, group['lr']))

    def stepped(self) -> None:
        """After a step: the schedule goes on from its own rates."""
        self.restore()
        self._exponents.clear()

    def restore(self) -> None:
        """Give the groups the rates of the schedule, but those that the user's hooks have set since."""
        for group, rate, scaled in self._scaled:
            if group['lr'] is scaled:
                group['lr'] = rate
        self._scaled.clear()
