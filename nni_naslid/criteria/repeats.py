"""LID profiles of all candidates of a node, repeat by repeat; what is finished survives a kill."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.notes import kept_repeats
from nni_naslid.run.files import append_line
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.data import Inputs, loaders, on_device, take_batches
from nni_naslid.train.devices import share_out
from nni_naslid.train.path import set_path
from nni_naslid.train.validation import supernet_inputs
from nni_naslid.traits.places import Place, n_samples
from nni_naslid.traits.prefix import BasePath
from nni_naslid.traits.profile import least_samples, untouched

import torch
from nni.mutable import Sample
from nni.nas.nn.pytorch import ModelSpace
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from tqdm.auto import tqdm

__all__ = ['Repeats', 'candidate_profiles', 'finite', 'name_non_finite']

_logger = logging.getLogger(__name__)


class Repeats:
    """The repeats of a node's profile, computed when they are asked for.

    All batches (of training, as the node's module gives them to the supernet) and paths are drawn beforehand, so a
    repeat is the same however many there will be. What the notes of the same node and weights have is not computed
    again.

    Parameters
    ----------
    context
        The node.
    places
        The layers of the profile, and where they have the samples.
    limit
        The largest number of repeats.
    n_neighbors, estimator
        See :func:`~nni_naslid.traits.profile.layer_lid`.

    Raises
    ------
    ValueError
        If no batch has as many samples as the estimate needs.
    """

    def __init__(
        self, context: Context, places: dict[str, Place], limit: int, n_neighbors: int, estimator: str = 'mle'
    ):
        self.context = context
        self._known = kept_repeats(context, 'profiles')
        batches = take_batches(loaders(context.evaluator)[0], limit)
        set_path(context.module, context.subspace.extremes[0])  # any path: for what the module gives it
        inputs = supernet_inputs(context.evaluator, context.module, batches)
        least = least_samples(n_neighbors, estimator)
        enough = [each for each in inputs if (n_samples(each, places) or least) >= least]
        if not enough:
            needed = f'more samples than n_neighbors={n_neighbors}' if estimator == 'mle' else f'{least} samples'
            raise ValueError(f'Node {context.name}: no batch has {needed}.')
        self._inputs = [enough[i % len(enough)] for i in range(limit)]
        self._paths = [context.subspace.sample_to_compare(context.random_state) for _ in self._inputs]
        self._profile = functools.partial(
            _profile_repeats,
            context.supernet,
            context.subspace,
            places,
            n_neighbors,
            estimator,
            f'Profiling node {context.name}',
            context.notes,
            context.about,
        )

    def profiles(self, n_repeats: int) -> dict[str, Tensor]:
        """Profiles ``[R, C, L]`` of the candidates of each label in the first ``R`` repeats."""
        missing = [i for i in range(n_repeats) if i not in self._known]
        try:
            if missing:
                shared = [missing, [self._inputs[i] for i in missing], [self._paths[i] for i in missing]]
                computed = share_out(self._profile, shared, self.context.evaluator.trainer)
                for row, i in enumerate(missing):
                    self._known[i] = {label: rows[row] for label, rows in computed.items()}
            return {
                label: torch.stack([torch.as_tensor(self._known[i][label]) for i in range(n_repeats)])
                for label in self.context.subspace.splittable
            }
        finally:
            self.context.supernet.cpu()


def _profile_repeats(
    supernet: ModelSpace,
    subspace: SubSpace,
    places: dict[str, Place],
    n_neighbors: int,
    estimator: str,
    description: str,
    notes: Path,
    about: Mapping[str, Any],
    device: torch.device,
    numbers: Sequence[int],
    inputs: Sequence[Inputs],
    paths: Sequence[Sample],
) -> dict[str, Tensor]:
    """The profiles of some repeats, on one device; each is kept as soon as it is there."""

    def keep(i: int, profiles: dict[str, Tensor]) -> None:
        values = {label: found.tolist() for label, found in profiles.items()}  # as exact as they are
        append_line(notes, {**about, 'repeat': numbers[i], 'profiles': values})

    return candidate_profiles(
        supernet.to(device),
        subspace,
        inputs,
        places,
        paths=paths,
        n_neighbors=n_neighbors,
        estimator=estimator,
        description=description,
        keep=keep,
    )


def candidate_profiles(
    supernet: ModelSpace,
    subspace: SubSpace,
    batches: Sequence[Inputs],
    places: Mapping[str, Place],
    *,
    paths: Sequence[Sample],
    n_neighbors: int,
    estimator: str = 'mle',
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
        One batch per repeat, as the supernet is called with it; moved to its device when it is used.
    places
        Layers of the profile, and where they have the samples.
    paths
        One path per repeat, drawn at random.
    n_neighbors, estimator
        See :func:`~nni_naslid.traits.profile.layer_lid`.
    keep
        Called after each repeat, with its number and the profiles ``[C, L]`` of each label.

    Returns
    -------
    For each label, profiles of shape ``[R, C, L]``; NaN where features are not finite.
    """
    labels = subspace.splittable
    profiles: dict[str, list[Tensor]] = {label: [] for label in labels}
    device = next((weight.device for weight in supernet.parameters()), torch.device('cpu'))
    with untouched(supernet):
        repeats = zip(batches, paths, strict=True)
        bar = tqdm(repeats, desc=description, total=len(batches), unit='repeat', leave=False, disable=None)
        for i, (inputs, sample) in enumerate(bar):
            with isolate_rng():  # a repeat does not depend on how many there were before
                path = BasePath(supernet, sample, on_device(inputs, device), places, n_neighbors, estimator)
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
