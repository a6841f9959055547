"""How many batches the batch norms of a sub-network are recalibrated on, where the user does not say."""

from __future__ import annotations

import math

from nni_naslid.run.run import Run
from nni_naslid.space.tree import Node
from nni_naslid.train.data import loaders, n_steps, own_data
from nni_naslid.train.reports import quiet
from nni_naslid.train.rng import seeded

__all__ = ['calibration_batches_of']

SAMPLES = 6400  # of released supernets of EFS-NAS tau is .687 by 3,200 images, .699 by 6,400 and by 25,600
LEAST = 10  # batches
NETWORKS = 500  # as a search scores by default; not the budget of this one, so that other searches use the same scores


def calibration_batches_of(run: Run, root: Node) -> int:
    """The setting, or as many batches as have :data:`SAMPLES` samples, where that is affordable.

    It is where calibration of :data:`NETWORKS` networks takes no more than a quarter of the passes of training, whose
    steps are taken for three forward passes each. At least :data:`LEAST`, which is also what loaders get that do not
    tell how long they are.

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
    return max(LEAST, min(math.ceil(SAMPLES / size), passes // (4 * NETWORKS)))
