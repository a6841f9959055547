"""Which layers make a profile: found out before training, by profiling the smallest and the largest path once."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.places import INPUT, Place, find_places
from nni_naslid.criteria.profile import least_samples, path_profile, profile_layers, untouched
from nni_naslid.train.data import loaders, take_batches, two_sizes
from nni_naslid.train.path import set_path
from nni_naslid.train.validation import supernet_inputs

__all__ = ['find_layers']

_logger = logging.getLogger(__name__)


def find_layers(
    context: Context, patterns: Sequence[str] | None, n_neighbors: int, estimator: str = 'mle'
) -> dict[str, Place]:
    """The layers whose LID can be computed, and which dimension of their output counts the samples.

    Parameters
    ----------
    context
        Of a run that has not begun.
    patterns
        See :func:`~nni_naslid.criteria.profile.profile_layers`.
    n_neighbors, estimator
        See :func:`~nni_naslid.criteria.profile.layer_lid`.

    Raises
    ------
    ValueError
        If LID cannot be computed with these layers or batches.
    """
    evaluator, supernet = context.evaluator, context.supernet
    layers = profile_layers(supernet, patterns)
    train, _ = loaders(evaluator)
    sizes = two_sizes(train)
    batches = take_batches(train, 1) if sizes is None else list(sizes[:2])
    found: dict[str, Place | str] = {}
    for sample in context.subspace.extremes:
        set_path(context.module, sample)
        inputs = supernet_inputs(evaluator, context.module, batches)
        supernet.to(evaluator.trainer.strategy.root_device)  # Lightning has taken it to the CPU
        fewer = None if sizes is None else (inputs[len(inputs) // 2], sizes[2])
        with untouched(supernet):
            n, places, reasons = find_places(supernet, layers, inputs[0], fewer)
            _check_samples(n, n_neighbors, estimator)
            found = {**places, **found, **reasons}
            path_profile(supernet, inputs[0], places, n_neighbors, estimator)
        supernet.cpu()
    return _usable(layers, found, named=patterns is not None)


def _check_samples(n_samples: int, n_neighbors: int, estimator: str) -> None:
    if n_samples >= least_samples(n_neighbors, estimator):
        return
    if estimator != 'mle':
        raise ValueError(f'estimator={estimator!r} needs batches of at least 3 points, but got batches of {n_samples}.')
    advice = f'Set n_neighbors to at most {n_samples - 1}, or take' if n_samples > 3 else 'Take'
    raise ValueError(
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
    if len(places) < 3:
        _logger.warning('The LID profile has %d layer(s) only, %s; name more with `layers`.', len(places), [*places])
    return {**places, **({INPUT: found[INPUT]} if INPUT in found else {})}
