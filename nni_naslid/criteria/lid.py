"""What the candidates of a label have in common, and so how a sub-space is split."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nni_naslid.criteria.partition import best_partition
from nni_naslid.criteria.places import Place
from nni_naslid.criteria.prefix import BasePath
from nni_naslid.criteria.profile import untouched
from nni_naslid.space.split import Evidence, Partition, Split
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.data import Inputs

import torch
from nni.mutable import Sample
from nni.nas.nn.pytorch import ModelSpace
from numpy.random import RandomState
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from tqdm.auto import tqdm

__all__ = ['candidate_profiles', 'finite', 'looks', 'name_non_finite', 'split_by_lid', 'split_randomly']

_logger = logging.getLogger(__name__)

FIRST_LOOK = 8  # repeats: fewer leave bounds so wide that nothing is decided


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
        bar = tqdm(repeats, desc=description, total=len(batches), unit='repeat', leave=False, disable=None)
        for i, (inputs, sample) in enumerate(bar):
            with isolate_rng():  # a repeat does not depend on how many there were before
                path = BasePath(supernet, sample, inputs, places, n_neighbors)
                found = path.profiles(labels)
            for label, profile in found.items():
                profiles[label].append(profile)
            if keep is not None:
                keep(i, found)
    return {label: torch.stack(found) for label, found in profiles.items()}


def finite(profiles: dict[str, Tensor]) -> dict[str, Tensor]:
    """Profiles ``[R, C, L]`` with 0, as of constant features, for features that are not finite.

    Raises
    ------
    ValueError
        If no path has finite features in any layer.
    """
    if profiles and all(found.isnan().all() for found in profiles.values()):
        raise ValueError('no layer of any path has finite features.')
    return {label: found.nan_to_num(0) for label, found in profiles.items()}


def name_non_finite(profiles: dict[str, Tensor], labels: dict[str, list[Any]]) -> None:
    """Log the candidates that lead to features that are not finite more often than the others of their label."""
    for label, found in profiles.items():
        share = found.isnan().any(-1).float().mean(0)  # [C]
        for candidate, value in zip(labels[label], share.tolist(), strict=True):
            if value > share.min():
                _logger.warning(
                    'Features are not finite with %s for %s in %.0f %% of the repeats; they count as constant.',
                    candidate, label, 100 * value,
                )  # fmt: skip


def looks(limit: int) -> list[int]:
    """After how many repeats to look whether a split is decided: 8, twice as many each time, and at the limit.

    >>> looks(32), looks(150), looks(9)
    ([8, 16, 32], [8, 16, 32, 64, 150], [9])
    """
    powers = (FIRST_LOOK * 2**i for i in range(limit.bit_length()))
    return [*(power for power in powers if 2 * power <= limit), limit]


def split_by_lid(
    profiles: Callable[[int], dict[str, Tensor]],
    subspace: SubSpace,
    *,
    repeats: int,
    max_groups: int,
    min_contrast: float,
    random_state: RandomState,
) -> Split:
    """The label whose candidates fall most clearly into groups of similar LID profiles, with its best groups.

    Labels are compared by the lower bound of their contrast, so that a label which is high by luck does not win.
    Repeats are added where they decide: after 8, 16, 32, ... it ends if one label separates whose lower bound is above
    the upper bounds of all others, or if no label can be worth a split any more.

    Parameters
    ----------
    profiles
        Gives the profiles ``[R, C, L]`` of each label in the first ``R`` repeats: see :func:`candidate_profiles`.
    subspace
        The sub-space they describe.
    repeats
        The largest number of repeats; at least 3.
    max_groups
        The largest number of groups.
    min_contrast
        The smallest contrast that is worth a split.
    random_state
        Source of the permutations that tell a difference from chance.

    Returns
    -------
    The split with the highest lower bound, of the labels that separate if there are any. It may still not separate
    anything: see :attr:`Split.objection`.
    """
    labels = subspace.splittable
    numbers = looks(repeats)
    n_paths = 1 + sum(len(candidates) - 1 for candidates in labels.values())  # a repeat; one of them is of all labels
    n_permutations = max(1000, 100 * len(labels) * len(numbers))  # for p values that can pass their correction
    seed = random_state.randint(2**31)  # permutations do not depend on how many looks or labels there were before
    for n_repeats in numbers:
        found = profiles(n_repeats)
        partitions = {label: best_partition(found[label], max_groups, 0) for label in labels}
        scores = {label: Evidence(p.score, p.lower, p.upper) for label, p in partitions.items()}
        ranking = sorted(labels, key=lambda label: _bound(scores[label].lower), reverse=True)
        is_last = n_repeats == repeats
        is_hopeless = all(_bound(evidence.upper) < min_contrast for evidence in scores.values())
        others = max((_bound(scores[label].upper) for label in ranking[1:]), default=-math.inf)
        is_clear = _bound(scores[ranking[0]].lower) > max(min_contrast, others)
        if not (is_last or is_hopeless or is_clear):
            continue
        worth_it = [label for label in ranking if _bound(scores[label].lower) > min_contrast]
        best = None
        for label in worth_it[: None if is_last else 1] or ranking[:1]:
            partition = best_partition(found[label], max_groups, n_permutations, RandomState(seed))
            scores[label] = scores[label]._replace(p_value=partition.p_value)
            split = Split(
                label, labels[label], partition, scores, n_repeats, n_repeats * n_paths, len(numbers), min_contrast
            )
            if split.separates:
                return split
            best = best or split
        if is_last or is_hopeless:
            break
    return best


def _bound(value: float) -> float:
    """A bound to compare by; one that is not finite is no evidence of anything."""
    return value if math.isfinite(value) else -math.inf


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
    partition = Partition(groups, 1.0, 0.0, 0.0, similarity, 1.0, 1.0)
    return Split(label, candidates, partition, {label: Evidence(1.0, 1.0, 1.0, 0.0)})
