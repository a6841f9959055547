"""Whether a leaf in training can still become the best one, told from the curves of the leaves that have finished.

After `Accelerating Neural Architecture Search using Performance Prediction (Baker et al. 2017)
<https://arxiv.org/abs/1705.10823>`__: a regression on partial learning curves predicts the final value, and training
stops where that is worse than the best so far with a probability above a threshold. Here only a few leaves have
finished at any time, and the validation of a supernet draws random paths, so a single epoch tells little. What is done
was chosen on curves of three trees that ``examples/bench_hopeless.py`` had split at random (at 5160b25), the leaves in
random orders (4 to 7 finished), by loss and by accuracy:

- Of Bayesian ridge regressions, 56 to 68 % of the final values were inside their 90 % intervals: much too sure.
- Least squares with Student's t had 83 to 89 % inside. The mean of all epochs so far as the only feature had the
  smallest error; with the slope of the last epochs as a second feature it was 40 % larger.
- With a single epoch as the final value, decisions were no better than guessing on one of the trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from nni_naslid.run.folder import RunFolder
from nni_naslid.run.settings import Settings

import numpy as np
from scipy.stats import t

__all__ = ['LEAST_FINISHED', 'N_FINAL', 'Forecast', 'Judge', 'forecast', 'is_hopeless']

Curve = Mapping[int, float]  # epoch to metric, larger is better

N_FINAL = 5  # the final value of a curve is the mean of so many validations: one alone is that of a few random paths
LEAST_FINISHED = 4  # leaves: two to fit a line, and two more to tell how far from it others are


@dataclass(frozen=True)
class Forecast:
    """What is expected of a leaf.

    Attributes
    ----------
    predicted, std
        The final value, and the standard error of this prediction.
    best
        The best final value of a leaf that has finished.
    leaves
        How many have finished.
    probability
        That the final value is worse than the best.
    """

    predicted: float
    std: float
    best: float
    leaves: int
    probability: float


def forecast(finished: Sequence[Curve], partial: Curve) -> Forecast | None:
    """Predict the final value of a curve by least squares on the finished ones.

    The final value of a curve is the mean of its last :data:`N_FINAL` values. It is regressed on the mean over the
    epochs that all curves have, with an intercept: leaves are as old as their last split. The error of a prediction
    follows Student's t distribution with as many degrees of freedom as there are finished curves less two.

    Parameters
    ----------
    finished
        Curves from beginning to end. Those are left out that are not finite.
    partial
        The curve so far.

    Returns
    -------
    The forecast; ``None`` where there is too little to tell: less than :data:`N_FINAL` epochs that all curves have, or
    less than :data:`LEAST_FINISHED` finished curves, or a value so far that is not finite.

    Examples
    --------
    >>> levels = 0.5, 0.6, 0.7, 0.8
    >>> finished = [{epoch: level + 0.01 * epoch for epoch in range(10)} for level in levels]
    >>> found = forecast(finished, {epoch: 0.4 + 0.01 * epoch for epoch in range(5)})
    >>> round(found.predicted, 3), round(found.best, 3), round(found.probability, 3)
    (0.47, 0.87, 1.0)
    """
    return _forecast(*_comparable(finished, partial), partial)


def _forecast(curves: list[Curve], epochs: list[int], partial: Curve) -> Forecast | None:
    """The forecast from finished curves, over the epochs that all have."""
    from sklearn.linear_model import LinearRegression  # takes a second, and most runs do without

    if len(epochs) < N_FINAL or len(curves) < LEAST_FINISHED or not all(map(isfinite, partial.values())):
        return None
    so_far = np.array([[np.mean([curve[epoch] for epoch in epochs])] for curve in curves])  # [leaves, 1]
    final = np.array([np.mean([curve[epoch] for epoch in sorted(curve)[-N_FINAL:]]) for curve in curves])
    own = np.mean([partial[epoch] for epoch in epochs])
    line = LinearRegression().fit(so_far, final)
    residuals = final - line.predict(so_far)
    distances = so_far[:, 0] - so_far.mean()
    leverage = 1 / len(curves)
    if distances.any():
        leverage += (own - so_far.mean()) ** 2 / (distances @ distances)
    std = np.sqrt(residuals @ residuals / (len(curves) - 2) * (1 + leverage))
    predicted, best = line.predict([[own]])[0], final.max()
    probability = t.cdf((best - predicted) / std, len(curves) - 2) if std > 0 else predicted < best
    return Forecast(float(predicted), float(std), float(best), len(curves), float(probability))


def is_hopeless(finished: Sequence[Curve], partial: Curve, threshold: float) -> Forecast | None:
    """The forecast of a leaf that is to be stopped; ``None`` if training is to go on.

    A leaf is stopped where the probability to end worse than the best is ``threshold`` or more; but not one that is
    ahead of all finished ones over the same epochs, whatever a line through few points may say.
    """
    curves, epochs = _comparable(finished, partial)
    found = _forecast(curves, epochs, partial)
    if found is None or found.probability < threshold:
        return None
    own, *others = (sum(curve[epoch] for epoch in epochs) for curve in (partial, *curves))
    return None if own >= max(others) else found


def _comparable(finished: Sequence[Curve], partial: Curve) -> tuple[list[Curve], list[int]]:
    """The finished curves that are finite, and the epochs that they and the partial one have."""
    curves = [curve for curve in finished if all(map(isfinite, curve.values()))]
    return curves, [epoch for epoch in partial if all(epoch in curve for curve in curves)]


@dataclass(frozen=True)
class Judge:
    """Decide after each epoch of a leaf whether it is hopeless, from what other leaves have left in the work folder.

    It is called with the number of the epoch. The decision to stop is written into the result of the leaf at once, so
    that it is the same if the process is killed before training has ended. It can be sent to other processes.

    Attributes
    ----------
    folder, run, node
        Of the leaf.
    settings
        Those of the run; the criterion is not needed.
    end_epoch
        The last epoch of a leaf.
    state
        The result of the leaf as it was before this training. With ``stopped`` in it, the decision has been made.
    """

    folder: RunFolder
    run: str
    node: str
    settings: Settings
    end_epoch: int
    state: dict[str, Any]

    def __call__(self, epoch: int) -> bool:
        if self.state['stopped'] is not None:
            return epoch == self.state['stopped']['epoch']
        partial = {at: value for at, value in self._curve(self.node).items() if at <= epoch}
        if epoch not in partial:  # it was not validated
            return False
        found = is_hopeless(self._finished(), partial, self.settings.stop_hopeless)
        if found is None:
            return False
        turned = {name: self.settings.turned(getattr(found, name)) for name in ('predicted', 'best')}
        stopped = {**asdict(found), **turned, 'epoch': epoch, 'metric': self.settings.monitor}
        self.folder.write_result(**{**self.state, 'stopped': stopped, 'node': self.node, 'run': self.run})
        return True

    def _finished(self) -> list[Curve]:
        """Curves of the leaves that were trained to the end."""
        curves = [self._curve(name) for name in self._leaves('0')]
        return [curve for curve in curves if self.end_epoch in curve]

    def _leaves(self, name: str, weights: str | None = None) -> Iterator[str]:
        """The finished leaves below a node, if it has been trained from these weights of its parent.

        What is left in the folder of splits that were chosen again is not of the tree. A damaged result is for those to
        name who need it.
        """
        with suppress(ValueError):
            result = self.folder.read_result(name, self.run)
            if result is None or not result['finished'] or result['parent_weights'] != weights:
                return
            if result['end_epoch'] >= self.end_epoch:
                yield name
            elif result['split'] is not None:
                for i in range(len(result['split']['children'])):
                    yield from self._leaves(f'{name}.{i}', result['weights'])

    def _curve(self, node: str) -> Curve:
        curve, monitor = self.folder.read_curve(node, self.run), self.settings.monitor
        return {epoch: self.settings.turned(at[monitor]) for epoch, at in curve.items() if monitor in at}
