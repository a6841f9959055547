"""The paths of a step by the sandwich rule: the largest network, some random ones, and the smallest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from heapq import nlargest

from nni_naslid.run.settings import N_BETWEEN
from nni_naslid.space.additive import AdditiveScore, choices_of
from nni_naslid.space.band import EVERY, Band, countable
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.path import stream
from nni_naslid.train.structure import structural_score

from nni.mutable import Sample
from numpy.random import RandomState
from torch import nn

__all__ = ['sandwich', 'smallest_and_largest']

SIZE = 'parameters'
N_DRAWN, N_STARTS = 1000, 5  # random networks, and the best of them, that a search for an end begins with


def sandwich(subspace: SubSpace, supernet: nn.Module) -> partial:
    """What draws the paths of a step, the largest network first: it is the teacher of the others.

    `Universally Slimmable Networks (ICCV 2019) <https://arxiv.org/abs/1903.05134>`__ and `BigNAS (ECCV 2020)
    <https://arxiv.org/abs/2003.11142>`__ train so: the ends bound what all networks between them do.
    """
    smallest, largest = smallest_and_largest(supernet, subspace)
    return partial(_draw, subspace, largest, smallest)


def _draw(
    subspace: SubSpace, largest: Sample, smallest: Sample, seed: Sequence[int], epoch: int, batch: int
) -> list[Sample]:
    random_state = stream(*seed, epoch, batch)
    return [largest, *(subspace.sample(random_state) for _ in range(N_BETWEEN)), smallest]


def smallest_and_largest(supernet: nn.Module, subspace: SubSpace) -> tuple[Sample, Sample]:
    """The networks of a sub-space with the fewest and with the most parameters, the same ones each time.

    Of several that have as many, one by chance. Where no filter is asked, networks are counted by their parameters, and
    the search begins with the outermost. Else it begins with the best of a thousand random ones, and what it finds may
    be a little off the end. From there one choice after another is changed, as long as that makes the network smaller,
    or larger.

    Parameters
    ----------
    supernet
        The supernet, whose modules tell the number of parameters.
    subspace
        The sub-space: filters, limits and bands are kept to.

    Raises
    ------
    ValueError
        If the parameters of networks cannot be told.
    """
    score = structural_score(supernet, subspace, SIZE, exact=True)
    smallest, largest = (_end(score, subspace, supernet, sign) for sign in (-1, 1))
    return smallest, largest


def _end(score: AdditiveScore, subspace: SubSpace, supernet: nn.Module, sign: int) -> Sample:
    def size(sample: Sample) -> int:
        return sign * score.of(sample)

    starts = nlargest(N_STARTS, _first(subspace, supernet, sign), key=size)
    return max((_climbed(start, size, subspace) for start in starts), key=size)


def _first(subspace: SubSpace, supernet: nn.Module, sign: int) -> list[Sample]:
    """Networks to begin with: of the outermost that are counted, or any."""
    random_state = RandomState(0)
    if subspace.filter is None:
        try:
            band = subspace
            if band.range_of(SIZE) is None:
                band = Band(subspace, countable(structural_score(supernet, subspace, SIZE), subspace), *EVERY)
            values = list(band.histogram(SIZE))
            end = values[-1 if sign > 0 else 0]
            return [band.balanced(random_state, SIZE, [end]) for _ in range(N_DRAWN // 10)]
        except ValueError:  # too many choices depend on each other, or have weights
            pass
    return [subspace.sample(random_state) for _ in range(N_DRAWN)]


def _climbed(sample: Sample, size: Callable[[Sample], int], subspace: SubSpace) -> Sample:
    """The network that is reached by changes of one choice, each of which raises the size the most."""
    while True:
        others = [
            {**sample, label: choice}
            for label in subspace.mutables
            for choice in choices_of(subspace, label)
            if choice != sample[label]
        ]
        better = [(size(other), i) for i, other in enumerate(others)]
        better = sorted((each for each in better if each[0] > size(sample)), reverse=True)
        found = next((others[i] for _, i in better if others[i] in subspace), None)
        if found is None:
            return sample
        sample = found
