"""Which paths a step of training takes: one, drawn uniformly, balanced or fairly, or several by the sandwich rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from nni_naslid.space.band import EVERY, Band, countable
from nni_naslid.space.rules import Rules
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.path import stream, uniformly
from nni_naslid.train.sandwich import sandwich
from nni_naslid.train.structure import COUNTED, structural_score

from nni.mutable import Sample
from numpy.random import RandomState
from torch import nn

__all__ = ['Draw', 'draw_from']

Draw = Callable[[Sequence[int], int, int], list[Sample]]
"""Samples from the entropy of a random stream, an epoch, and the number of a batch in it; it can be pickled (DDP)."""


def draw_from(sampling: str, subspace: SubSpace, supernet: nn.Module) -> Draw:
    """What draws the paths that a node is trained on.

    A path depends on the seed, the epoch and the batch only, so a resumed run draws what the undisturbed one would have
    drawn.

    Parameters
    ----------
    sampling
        - ``'uniform'``: each architecture with the same probability, unless choices have weights of their own.
        - ``'balanced'``: each number of convolutions with the same probability, and then each architecture that has as
          many. In a uniform draw most have a middling number, and the largest networks are hardly trained.
        - ``'fair'``: the candidates of each label take turns in random order, so that after each round all have been
          trained equally often: `FairNAS (ICCV 2021) <https://arxiv.org/abs/1907.01845>`__, but with one path in a
          step. With as many ``accumulate_grad_batches`` as there are candidates a step has all paths of a round, as
          there. A round ends with its epoch.
        - ``'sandwich'``: each batch trains four paths, the largest network of the sub-space, two that are drawn
          uniformly, and the smallest: see :mod:`nni_naslid.train.sandwich` and :mod:`nni_naslid.train.several`. An
          epoch costs four times as much.
    subspace
        The sub-space of the node.
    supernet
        The supernet, whose modules tell the number of convolutions, or of parameters.

    Raises
    ------
    ValueError
        If the convolutions, or parameters, of networks cannot be counted, or if such a draw would leave the sub-space.
    """
    if sampling == 'balanced':
        return _balanced(subspace, supernet)
    if sampling == 'fair':
        return _fair(subspace)
    if sampling == 'sandwich':
        return sandwich(subspace, supernet)
    return partial(_draw_uniformly, subspace)


def _draw_uniformly(subspace: SubSpace, seed: Sequence[int], epoch: int, batch: int) -> list[Sample]:
    return [uniformly(subspace, seed, epoch, batch)]


def _balanced(subspace: SubSpace, supernet: nn.Module) -> Draw:
    band = subspace
    if band.range_of(COUNTED) is None:
        band = Band(subspace, countable(structural_score(supernet, subspace, COUNTED), subspace), *EVERY)
    values = []
    for value in band.histogram(COUNTED):
        with suppress(RuntimeError):  # the filter lets nothing pass
            band.balanced(RandomState(0), COUNTED, [value])
            values.append(value)
    return partial(_draw_balanced, band, values)


def _draw_balanced(band: Band, values: Sequence[int], seed: Sequence[int], epoch: int, batch: int) -> list[Sample]:
    return [band.balanced(stream(*seed, epoch, batch), COUNTED, values)]


def _fair(subspace: SubSpace) -> Draw:
    if isinstance(subspace, Band):
        reason = 'in bands, and under constraints, the choices of labels depend on each other'
    elif subspace.filter is not None:
        what = 'the filter' if Rules.of(subspace.filter) is None else 'a constraint between choices'
        reason = f'{what} would not let all paths pass'
    elif subspace.unsplittable:
        reason = f'several may be chosen of {", ".join(subspace.unsplittable)}'
    else:
        reason = None
    if reason is not None:
        raise ValueError(f"sampling='fair' needs labels whose candidates can take turns, but {reason}.")
    return partial(_draw_fair, subspace)


def _draw_fair(subspace: SubSpace, seed: Sequence[int], epoch: int, batch: int) -> list[Sample]:
    sample = subspace.sample(RandomState(0))  # labels with a single choice
    for i, (label, choices) in enumerate(subspace.splittable.items()):
        turn, place = divmod(batch, len(choices))
        sample[label] = choices[stream(*seed, epoch, turn, i).permutation(len(choices))[place]]
    return [sample]
