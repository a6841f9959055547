"""The paths of a step by the sandwich rule: the largest network, some random ones, and the smallest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from heapq import nlargest
from itertools import combinations, product

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
    <https://arxiv.org/abs/2003.11142>`__ train so: the ends bound what all networks between them do. They train for
    long. In ``examples/ofa.py``, with three seeds of 5,120 paths, a quarter of the steps cost accuracy: 51.5 % with
    half of the soft labels, where single paths gave 59.1 %.
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

    Of several that have as many, one by chance. The search for an end begins with the outermost networks by a count of
    parameters, and with the best of a thousand random ones. One choice after another is changed, as long as that makes
    the network smaller, or larger; where not all combinations are in the sub-space, also two at once. There what is
    found may be a little off the end.

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

    random_state = RandomState(0)
    found = [subspace.sample(random_state) for _ in range(N_DRAWN)]
    if subspace.filter is None:
        found += _outermost(subspace, supernet, sign, random_state)
    starts = nlargest(N_STARTS, found, key=size)
    end = max((_climbed(start, size, subspace, 1) for start in starts), key=size)
    return _climbed(end, size, subspace, 2) if subspace.ranges or subspace.filter else end


def _outermost(subspace: SubSpace, supernet: nn.Module, sign: int, random_state: RandomState) -> list[Sample]:
    """Networks with the fewest or most parameters, as far as these can be counted."""
    try:
        band = subspace
        if band.range_of(SIZE) is None:
            band = Band(subspace, countable(structural_score(supernet, subspace, SIZE), subspace), *EVERY)
    except ValueError:  # too many choices depend on each other, or have weights
        return []
    values = list(band.histogram(SIZE))
    return [band.balanced(random_state, SIZE, [values[-1 if sign > 0 else 0]]) for _ in range(N_DRAWN // 10)]


def _climbed(sample: Sample, size: Callable[[Sample], int], subspace: SubSpace, n_changes: int) -> Sample:
    """The largest network that is reached by changes, each of so many choices at most, and each to a larger one."""
    labels = [*subspace.splittable, *subspace.unsplittable]
    choices = {label: choices_of(subspace, label) for label in labels}
    reached = None
    while reached != sample:
        reached, least = sample, size(sample)
        for changed in combinations(labels, n_changes):
            for chosen in product(*(choices[label] for label in changed)):
                other = {**sample, **dict(zip(changed, chosen, strict=True))}
                if (found := size(other)) > least and other in subspace:
                    sample, least = other, found
    return sample
