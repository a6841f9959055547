"""Which layers make a profile: found out before training, by profiling the smallest and the largest path once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.data import Inputs, loaders, take_batches, two_sizes
from nni_naslid.train.path import PathModule, set_path
from nni_naslid.train.validation import supernet_inputs
from nni_naslid.traits.places import INPUT, Place, find_places
from nni_naslid.traits.profile import least_samples, path_profile, profile_layers, untouched

from nni.mutable import Sample
from nni.nas.evaluator.pytorch import Lightning
from torch import nn

__all__ = ['TooFewSamplesError', 'find_layers', 'layers_on_paths']

_logger = logging.getLogger(__name__)


class TooFewSamplesError(ValueError):
    """Batches are smaller than an estimate needs."""


def find_layers(
    evaluator: Lightning,
    module: PathModule,
    subspace: SubSpace,
    patterns: Sequence[str] | None,
    n_neighbors: int,
    estimator: str = 'mle',
) -> dict[str, Place]:
    """The layers whose LID can be computed, and which dimension of their output counts the samples.

    Parameters
    ----------
    evaluator
        The user's evaluator.
    module
        The user's module, around a supernet; not of a run that has begun.
    subspace
        Its smallest and largest path are tried.
    patterns
        See :func:`~nni_naslid.traits.profile.profile_layers`.
    n_neighbors, estimator
        See :func:`~nni_naslid.traits.profile.layer_lid`.

    Raises
    ------
    ValueError
        If LID cannot be computed with these layers or batches.
    """
    supernet = module.model
    train, _ = loaders(evaluator)
    sizes = two_sizes(train)
    batches = take_batches(train, 1) if sizes is None else list(sizes[:2])

    def inputs_of(sample: Sample) -> tuple[Inputs, tuple[Inputs, int] | None]:
        set_path(module, sample)
        inputs = supernet_inputs(evaluator, module, batches)
        supernet.to(evaluator.trainer.strategy.root_device)  # Lightning has taken it to the CPU
        return inputs[0], None if sizes is None else (inputs[len(inputs) // 2], sizes[2])

    try:
        places = layers_on_paths(supernet, subspace.extremes, inputs_of, patterns, n_neighbors, estimator)
    finally:
        supernet.cpu()
    return places


def layers_on_paths(
    supernet: nn.Module,
    paths: Iterable[Sample],
    inputs_of: Callable[[Sample], tuple[Inputs, tuple[Inputs, int] | None]],
    patterns: Sequence[str] | None,
    n_neighbors: int,
    estimator: str,
) -> dict[str, Place]:
    """The same where it is known what a supernet gets on a path: a batch, and maybe a smaller one.

    These are what :func:`~nni_naslid.traits.places.find_places` is given.
    """
    layers = profile_layers(supernet, patterns)
    found: dict[str, Place | str] = {}
    for sample in paths:
        inputs, fewer = inputs_of(sample)
        set_path(supernet, sample)
        with untouched(supernet):
            n, places, reasons = find_places(supernet, layers, inputs, fewer)
            _check_samples(n, n_neighbors, estimator)
            found = {**places, **found, **reasons}
            path_profile(supernet, inputs, places, n_neighbors, estimator)
    return _usable(layers, found, named=patterns is not None)


def _check_samples(n_samples: int, n_neighbors: int, estimator: str) -> None:
    if n_samples >= least_samples(n_neighbors, estimator):
        return
    if estimator != 'mle':
        raise TooFewSamplesError(
            f'estimator={estimator!r} needs batches of at least 3 points, but got batches of {n_samples}.'
        )
    advice = f'Set n_neighbors to at most {n_samples - 1}, or take' if n_samples > 3 else 'Take'
    raise TooFewSamplesError(
        'n_neighbors must be less than the training batch size, but got '
        f'n_neighbors={n_neighbors} and batches of {n_samples}; LID needs at least 4 points. '
        f'{advice} larger batches.'
    )


def _usable(layers: list[str], found: dict[str, Place | str], named: bool) -> dict[str, Place]:
    """The layers that can be used, with their places; the log names the others, with the reason."""
    reasons = [place for place in found.values() if isinstance(place, str)]
    if reasons and named:
        raise ValueError(f'layers: an LID cannot be taken of {"; ".join(reasons)}. Name others.')
    if reasons:
        _logger.info('Left out of the LID profile: %s.', '; '.join(reasons))
    # Of a layer that neither path runs, assume that the first dimension of its last tensor counts the samples.
    places = {name: found.get(name, Place()) for name in layers if not isinstance(found.get(name), str)}
    if not places:
        raise ValueError('LID cannot be computed for any layer; name others with `layers`.')
    return {**places, **({INPUT: found[INPUT]} if INPUT in found else {})}
