"""LID as a score of networks that nobody has trained: those with richer features come first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

from nni_naslid import compat as compat  # before nni.nas
from nni_naslid.lid import ESTIMATORS
from nni_naslid.run.checks import brief, one_of
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.data import Inputs
from nni_naslid.train.path import set_path
from nni_naslid.train.supernet import make_supernet
from nni_naslid.traits.layers import layers_on_paths
from nni_naslid.traits.places import Place
from nni_naslid.traits.profile import least_samples, path_profile, untouched

import torch
from nni.mutable import Sample
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.strategy import is_supernet
from torch import Tensor

__all__ = ['by_lid', 'lid_score']


def lid_score(
    space: ModelSpace,
    samples: Sequence[Sample],
    batches: Tensor | Sequence[Tensor],
    *,
    layers: Sequence[str] | None = None,
    n_neighbors: int = 20,
    estimator: str = 'mle',
) -> Tensor:
    r"""A score of architectures by the local intrinsic dimension of their features, without training any of them.

    .. math:: \mathrm{score} = \frac{1}{BL} \sum_b \sum_l \log (1 + p_{bl})

    where :math:`p_{bl}` is the mean LID of batch :math:`b` after layer :math:`l` of the profile. All architectures
    share the weights of the space, which may be those it was made with, or trained ones.

    It is meant to be a second opinion beside the number of (live) parameters, with which it is added rank by rank.
    How well that ranks networks on NAS-Bench-201 is measured by ``examples/bench_lid_score.py``; by itself it ranks
    worse than parameters do, and with trained weights it says little without them.

    Parameters
    ----------
    space
        A model space, or a supernet; it is left as it was, but for the path that a supernet is set to.
    samples
        Architectures.
    batches
        Images or other inputs that the space is called with, of more samples than ``n_neighbors``; one tensor or
        several, over which scores are averaged.
    layers
        Patterns of module names, as of :class:`~nni_naslid.criteria.lid.LID`.
    n_neighbors
        Neighbours of the LID estimate; at least 3.
    estimator
        Of LID, as of :class:`~nni_naslid.criteria.lid.LID`.

    Returns
    -------
    Scores, of shape ``[S]``, float64; NaN where the features of an architecture are not finite, and 0 where all
    coincide.

    Raises
    ------
    TypeError
        If ``batches`` are no tensors, or ``samples`` are a single one.
    ValueError
        If no LID can be had of a layer that is named, or of any, or if a sample is not of this space.

    Notes
    -----
    Scores depend on the initial weights, like those of other scores without training: average those of several spaces,
    made with different seeds.

    Examples
    --------
    >>> import torch
    >>> from nni.nas.hub.pytorch import NasBench201
    >>> _ = torch.manual_seed(0)
    >>> space = NasBench201(stem_out_channels=8, num_modules_per_stack=1)
    >>> samples = [dict.fromkeys(space.simplify(), op) for op in ('none', 'skip_connect', 'conv_3x3')]
    >>> lid_score(space, samples, torch.randn(64, 3, 8, 8)).argsort().tolist()
    [0, 1, 2]
    """
    one_of('estimator', estimator, ESTIMATORS)
    batches = [batches] if isinstance(batches, Tensor) else list(batches)
    if not batches or not all(isinstance(batch, Tensor) for batch in batches):
        raise TypeError(f'batches must be a tensor, or tensors, but got {brief(batches)}.')
    if isinstance(samples, Mapping):
        raise TypeError(f'samples must be a list of architectures, but got {brief(samples)}.')
    if least := next((len(batch) for batch in batches if len(batch) < least_samples(n_neighbors, estimator)), None):
        raise ValueError(f'n_neighbors must be less than a batch has samples, but got {n_neighbors} and {least}.')
    supernet = space if is_supernet(space) else make_supernet(copy.deepcopy(space))
    subspace = SubSpace.of(supernet)
    for i, sample in enumerate(samples):
        subspace.check(sample, f'samples[{i}]')
        if sample not in subspace:
            raise ValueError(f'samples[{i}] does not keep to the constraints between choices: {sample}.')
    whole, part = (Inputs((batch,), {}) for batch in (batches[0], batches[0][:-1]))
    places = layers_on_paths(
        supernet, subspace.extremes, lambda sample: (whole, (part, len(batches[0]))), layers, n_neighbors, estimator
    )
    score = by_lid(supernet, places, [Inputs((batch,), {}) for batch in batches], n_neighbors, estimator)
    return torch.tensor([score(sample) for sample in samples], dtype=torch.float64)


def by_lid(
    supernet: ModelSpace,
    places: Mapping[str, Place],
    inputs: Sequence[Inputs],
    n_neighbors: int = 20,
    estimator: str = 'mle',
) -> Callable[[Sample], float]:
    """What scores one sample so; ``places`` and ``inputs`` as of :func:`~nni_naslid.traits.profile.path_profile`."""

    def score(sample: Sample) -> float:
        set_path(supernet, sample)
        with untouched(supernet):
            profiles = [path_profile(supernet, batch, places, n_neighbors, estimator) for batch in inputs]
        return torch.stack(profiles).double().log1p().mean().item()

    return score
