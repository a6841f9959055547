"""How many batches the batch norms of a sub-network are recalibrated on, where the user does not say."""

from __future__ import annotations

import math

from nni_naslid.run.files import read_json
from nni_naslid.run.run import Run
from nni_naslid.space.tree import Node

__all__ = ['calibration_batches_of']

SAMPLES = 6400  # of released supernets of EFS-NAS tau is .687 by 3,200 images, .699 by 6,400 and by 25,600
LEAST = 10  # batches
NETWORKS = 500  # as a search scores by default; not the budget of this one, so that other searches use the same scores


def calibration_batches_of(run: Run, root: Node) -> int:
    """The setting, or that of the search that is there, or as many batches as have :data:`SAMPLES` samples.

    No more than an epoch has, and no more than are affordable: calibration of :data:`NETWORKS` networks takes at most a
    quarter of the passes of training, whose steps are taken for three forward passes each. At least :data:`LEAST`,
    which is also the number where the training loader does not tell its length or the size of a batch.

    Parameters
    ----------
    run, root
        The run and its tree, trained.
    """
    if run.settings.calibration_batches is not None:
        return run.settings.calibration_batches
    if run.folder.search.exists():
        kept = read_json(run.folder.search, ('run', 'calibration_batches'))
        if kept['run'] == run.id:
            return kept['calibration_batches']
    data = read_json(run.folder.tree, ('data',))['data']
    names = ('training batches', 'training batch_size', 'limit_train_batches')
    batches, size, limit = (data.get(name) for name in names)
    if not isinstance(batches, int) or not isinstance(size, int):
        return LEAST
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    affordable = 3 * root.cost * run.settings.paths_per_step * batches // (4 * NETWORKS)
    return max(LEAST, min(math.ceil(SAMPLES / size), batches, affordable))
