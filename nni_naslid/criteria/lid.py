"""What the candidates of a label have in common, and so how a sub-space is split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nni_naslid.criteria.partition import best_partition
from nni_naslid.criteria.places import Place
from nni_naslid.criteria.prefix import BasePath
from nni_naslid.criteria.profile import untouched
from nni_naslid.space.split import Partition, Split, is_certain
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.data import Inputs

import torch
from nni.mutable import Sample
from nni.nas.nn.pytorch import ModelSpace
from numpy.random import RandomState
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from tqdm.auto import tqdm

__all__ = ['candidate_profiles', 'finite', 'split_by_lid', 'split_randomly']

_logger = logging.getLogger(__name__)


def candidate_profiles(
    supernet: ModelSpace,
    subspace: SubSpace,
    batches: Sequence[Inputs],
    places: Mapping[str, Place],
    *,
    paths: Sequence[Sample],
    n_neighbors: int,
    description: str = 'Profiling',
    keep: Callable[[int, dict[str, Tensor]], None] | None = None,
) -> dict[str, Tensor]:
    """LID profiles of every candidate of every label of a sub-space that can be split.

    In repeat ``r`` all candidates of all labels see the same batch and the same random path, in which only the
    candidate in question is put in place (common random numbers): what differs is the candidate.

    Parameters
    ----------
    supernet
        The trained (sub-)supernet; it is left as it was.
    subspace
        Which candidates there are.
    batches
        One batch per repeat, as the supernet is called with it, on its device.
    places
        Layers of the profile, and where they have the samples.
    paths
        One path per repeat, drawn at random.
    n_neighbors
        Neighbours of the LID estimate.
    keep
        Called after each repeat, with its number and the profiles ``[C, L]`` of each label.

    Returns
    -------
    For each label, profiles of shape ``[R, C, L]``; NaN where features are not finite.
    """
    labels = subspace.splittable
    profiles: dict[str, list[Tensor]] = {label: [] for label in labels}
    with untouched(supernet):
        repeats = zip(batches, paths, strict=True)
        bar = tqdm(repeats, desc=description, total=len(batches), unit='repeat', leave=False)
        for i, (inputs, sample) in enumerate(bar):
            with isolate_rng():  # a repeat does not depend on how many there were before
                path = BasePath(supernet, sample, inputs, places, n_neighbors)
                found = path.profiles(labels)
            for label, profile in found.items():
                profiles[label].append(profile)
            if keep is not None:
                keep(i, found)
    return {label: torch.stack(found) for label, found in profiles.items()}


def finite(profiles: dict[str, Tensor], labels: dict[str, list[Any]]) -> dict[str, Tensor]:
    """Profiles ``[R, C, L]`` with 0, as of constant features, for features that are not finite.

    The log names the candidates that lead to these more often than the others of their label.

    Raises
    ------
    ValueError
        If no path has finite features in any layer.
    """
    if profiles and all(found.isnan().all() for found in profiles.values()):
        raise ValueError('no layer of any path has finite features.')
    for label, found in profiles.items():
        share = found.isnan().any(-1).float().mean(0)  # [C]
        for candidate, value in zip(labels[label], share.tolist(), strict=True):
            if value > share.min():
                _logger.warning(
                    'Features are not finite with %s for %s in %.0f %% of the repeats; they count as constant.',
                    candidate, label, 100 * value,
                )  # fmt: skip
    return {label: found.nan_to_num(0) for label, found in profiles.items()}


def split_by_lid(profiles: dict[str, Tensor], subspace: SubSpace, max_groups: int, random_state: RandomState) -> Split:
    """The label whose candidates fall most clearly into groups of similar LID profiles, with its best groups.

    Parameters
    ----------
    profiles
        Profiles ``[R, C, L]`` of each label, from :func:`candidate_profiles`.
    subspace
        The sub-space they describe.
    max_groups
        The largest number of groups.
    random_state
        Source of the permutations that tell a difference from chance.

    Returns
    -------
    The split with the highest score less its standard error, of the labels that separate if there are any. It may
    still not separate anything: see :attr:`Split.separates`.
    """
    enough = max(1000, 100 * len(profiles))  # permutations, for p values that _is_certain can tell
    partitions = {label: best_partition(p, max_groups, enough, random_state) for label, p in profiles.items()}
    certain = [name for name in partitions if is_certain(partitions[name], len(partitions))]
    label = max(certain or partitions, key=lambda name: partitions[name].score - partitions[name].error)
    scores = {name: (partition.score, partition.error) for name, partition in partitions.items()}
    return Split(label, subspace.splittable[label], partitions[label], scores)


def split_randomly(subspace: SubSpace, random_state: RandomState, max_groups: int = 2) -> Split:
    """A label drawn uniformly, each candidate put into a group at random: the control that a criterion has to beat."""
    labels = list(subspace.splittable)
    label = labels[random_state.randint(len(labels))]
    candidates = subspace.splittable[label]
    most = min(max_groups, max(len(candidates) - 1, 2))
    row = torch.zeros(len(candidates))
    while len(row.unique()) < 2:
        row = torch.tensor(random_state.randint(most, size=len(candidates)))
    groups = [(row == group).nonzero().flatten().tolist() for group in row.unique()]
    similarity = (row[:, None] == row[None, :]).double().tolist()
    return Split(label, candidates, Partition(groups, 1.0, 0.0, 0.0, similarity), {label: (1.0, 0.0)})
