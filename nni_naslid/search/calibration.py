"""How many batches the batch norms of a sub-network are recalibrated on, where the user does not say."""

from __future__ import annotations

import math

from nni_naslid.run.run import Run
from nni_naslid.space.tree import Node
from nni_naslid.train.data import loaders, n_steps, own_data
from nni_naslid.train.reports import quiet
from nni_naslid.train.rng import seeded

__all__ = ['LEAST', 'SAMPLES', 'calibration_batches_of']

SAMPLES = 6400  # more than that adds nothing: .687 by 3,200 images, .699 by 6,400 and by 25,600 (tau, full scale)
LEAST = 10  # batches


def calibration_batches_of(run: Run, root: Node) -> int:
    """The setting, or as many batches as have :data:`SAMPLES` samples, where that is affordable.

    It is where the search takes no more than a quarter of the forward and backward passes of training; a step is taken
    for three forward passes. At least :data:`LEAST`, which is also what loaders get that do not tell how long they are.

    Parameters
    ----------
    run, root
        The run and its tree, trained.
    """
    settings, evaluator = run.settings, run.evaluator
    if settings.calibration_batches is not None:
        return settings.calibration_batches
    with seeded(settings.seed, data=own_data(evaluator)), quiet():
        train, _ = loaders(evaluator)
    size = getattr(train, 'batch_size', None) or getattr(getattr(train, 'batch_sampler', None), 'batch_size', None)
    steps = n_steps(train, evaluator.trainer)
    if size is None or steps is None:
        return LEAST
    passes = 3 * root.cost * steps * evaluator.trainer.accumulate_grad_batches
    return max(LEAST, min(math.ceil(SAMPLES / size), passes // (4 * settings.search_budget)))
