"""Bands: the samples of a sub-space whose additive scores lie in ranges. Without torch: the tuner uses them too.

A split by label cuts a space by one choice; bands cut it by what a whole network is, such as how many convolutions it
has. A limit on what a network may cost is such a range, too, and a part of a limited space has both. Sizes are exact,
and samples are drawn uniformly without rejection: see :mod:`nni_naslid.space.additive`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from nni_naslid.space.additive import AdditiveScore, Joint
from nni_naslid.space.subspace import TRIES, SubSpace

import numpy as np
from nni.mutable import Categorical, CategoricalMultiple, Sample
from numpy.random import RandomState

__all__ = [
    'EVERY',
    'LIMIT',
    'Band',
    'Range',
    'countable',
    'decode_bands',
    'decode_ranges',
    'encode_ranges',
    'is_weighted',
    'within',
]

LIMIT = ' (limit)'  # ends the name of a score that is limited: criteria may cut by the same cost in other units
EVERY = -(2**62), 2**62  # the ends of a range that any score is in
LEVELS_WITH_LIMITS = 200, 50, 20, 5  # at most so many scores, where they are counted together with limited ones


@dataclass(frozen=True, eq=False)
class Range:
    """The samples whose score is from ``low`` to ``high``, both included."""

    score: AdditiveScore
    low: int
    high: int

    @property
    def ends(self) -> tuple[int | None, int | None]:
        """Of what must be counted: ``None`` where the range has no end."""
        return None if self.low == EVERY[0] else self.low, None if self.high == EVERY[1] else self.high

    @property
    def cost(self) -> str:
        """What is limited, by the name that the user has for it."""
        return self.score.name.removesuffix(LIMIT)

    def __str__(self) -> str:
        low, high = (f'{end * self.score.unit:,.12g}' for end in (self.low, self.high))
        if self.low == EVERY[0]:
            return f'up to {high}'
        if self.high == EVERY[1]:
            return f'{low} or more'
        return low if low == high else f'{low} to {high}'

    def is_in(self, others: Sequence[Range]) -> bool:
        """Whether there is the same range of a score of the same name."""
        return (self.score.name, self.low, self.high) in [(each.score.name, each.low, each.high) for each in others]


def is_weighted(mutable: Categorical | CategoricalMultiple) -> bool:
    """Whether some choices are to be drawn more often than others."""
    weights = mutable.weights
    return len(weights) > 0 and max(weights) - min(weights) > 1e-9


class Band(SubSpace):
    """The samples of a sub-space whose score is in a range, which includes both its ends.

    Candidates that none of them has are left out.

    Parameters
    ----------
    space
        The sub-space. If it is a band, those that are in both ranges are meant.
    score
        The score, of these choices at least.
    low, high
        The range.

    Attributes
    ----------
    ranges
        A :class:`Range` of each score.

    Raises
    ------
    ValueError
        If no sample has such a score; if choices of a label have different weights, which a uniform draw would not
        honour; or if there are too many combinations of scores to be counted.

    Examples
    --------
    >>> from nni.mutable import Categorical
    >>> from nni_naslid.space.additive import Term
    >>> space = SubSpace({name: Categorical(['skip', 'conv', 'pool'], label=name) for name in 'abcd'})
    >>> n_convs = AdditiveScore(space, [Term((name,), [0, 1, 0]) for name in 'abcd'], 'convolutions')
    >>> [Band(space, n_convs, low, high).size for low, high in ((0, 1), (2, 4))]
    [48, 33]
    >>> Band(space, n_convs, 4, 4)
    SubSpace(a: conv, b: conv, c: conv, d: conv; convolutions: 4)
    >>> n_pools = AdditiveScore(space, [Term((name,), [0, 0, 1]) for name in 'abcd'], 'pools')
    >>> Band(Band(space, n_convs, 1, 3), n_pools, 0, 1).size
    42
    """

    def __init__(self, space: SubSpace, score: AdditiveScore, low: int, high: int):
        ranges = {each.score.name: each for each in space.ranges}
        if (known := ranges.get(score.name)) is not None:
            low, high = max(low, known.low), min(high, known.high)
        self._cut(space, [*(ranges | {score.name: Range(score, low, high)}).values()])

    def _cut(self, space: SubSpace, ranges: Sequence[Range]) -> None:
        for label, mutable in space.mutables.items():
            if is_weighted(mutable):
                raise ValueError(
                    f'Bands are drawn from uniformly, but the choices of {label!r} have the weights {mutable.weights}.'
                )
        product = SubSpace(space.mutables, space.filter)
        inside = _Inside(product, ranges)
        if not inside.size:
            asked = ' and '.join(f'{each.score.name} from {each.low} to {each.high}' for each in ranges)
            there = ' and '.join('from {} to {}'.format(*each.score.extent(product)) for each in ranges)
            raise ValueError(f'No sample has {asked}; those of this sub-space go {there}, with gaps.')
        possible = inside.possible
        possible = {label: possible[label] for label in product.splittable}
        super().__init__(product.narrow(possible).mutables, space.filter)
        self.ranges = tuple(ranges)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != '_inside'}  # which can be had again

    @cached_property
    def _inside(self) -> _Inside:
        """Of the candidates that are left: a draw does not depend on how the band was made."""
        return _Inside(SubSpace(self.mutables, self.filter), self.ranges)

    def unfiltered(self) -> Band:
        """The same without the filter."""
        part = Band.__new__(Band)
        part._cut(SubSpace(self.mutables), self.ranges)
        return part

    def sample(self, random_state: RandomState) -> Sample:
        """One sample, drawn uniformly.

        Raises
        ------
        RuntimeError
            If the filter lets none of ten thousand samples pass.
        """
        return self._inside.sample(random_state)

    def balanced(self, random_state: RandomState, name: str, values: Sequence[int]) -> Sample:
        """One sample, drawn uniformly of those with one value of a score, all of which are as likely."""
        return self._inside.sample(random_state, (name, values[random_state.randint(len(values))]))

    def covers(self, sample: Sample) -> bool:
        """Whether its choices are allowed ones and its scores are in the ranges, whatever the filter says."""
        return super().covers(sample) and all(each.low <= each.score.of(sample) <= each.high for each in self.ranges)

    @property
    def size(self) -> int:
        """Number of samples, as :attr:`SubSpace.size` counts them."""
        return self._inside.size

    def histogram(self, name: str) -> dict[int, int]:
        """Score to number of samples, from the lowest score."""
        return self._inside.histogram(name)

    def narrow(self, choices: Mapping[str, Sequence[int]]) -> Band:
        """The samples of this band that have certain choices only: see :meth:`SubSpace.narrow`."""
        part = Band.__new__(Band)
        part._cut(super().narrow(choices), self.ranges)
        return part

    def narrowed(self, whole: SubSpace) -> dict[str, list[Any]]:
        """As :meth:`SubSpace.narrowed`; also the ranges, by the names of the scores, that the whole has not."""
        every, told = whole, {}
        for each in self._ranges_beyond(whole):
            every = Band(every, each.score, each.low, each.high)  # candidates that the range leaves out are not told
            told[each.score.name] = [str(each)]
        return told | self._cause(super().narrowed(every), every)

    def _cause(self, narrowed: dict[str, list[Any]], whole: SubSpace) -> dict[str, list[Any]]:
        """The one label of which it follows, by the ranges, that the others are narrowed; all, if there is none."""
        for label in narrowed if len(narrowed) > 1 else ():
            values = whole.mutables[label].values
            part = whole.narrow({label: [values.index(value) for value in narrowed[label]]})
            if SubSpace.narrowed(part, whole) == narrowed:
                return {label: narrowed[label]}
        return narrowed

    def overlaps(self, other: SubSpace) -> bool:
        """As :meth:`SubSpace.overlaps`; bands of one score do not if their ranges do not."""
        theirs = {each.score.name: each for each in other.ranges}
        apart = any(
            each.low > theirs[each.score.name].high or theirs[each.score.name].low > each.high
            for each in self.ranges
            if each.score.name in theirs
        )
        return not apart and super().overlaps(other)

    def _encode_in(self, whole: SubSpace) -> dict[str, Any]:
        content = super()._encode_in(whole)
        for each in self._ranges_beyond(whole):
            encoded = {'low': each.low, 'high': each.high, 'name': each.score.name}
            if whole.range_of(each.score.name) is None:
                encoded['score'] = each.score.on(whole).to_dict()
            content.setdefault('bands', []).append(encoded)
        return content

    def _ranges_beyond(self, whole: SubSpace) -> list[Range]:
        return [each for each in self.ranges if not each.is_in(whole.ranges)]

    def __repr__(self) -> str:
        ranges = ''.join(f'; {each.score.name}: {each}' for each in self.ranges)
        return f'{super().__repr__()[:-1]}{ranges})'


class _Inside:
    """The samples of a product of choices whose scores are in ranges: how many there are, one by its rank."""

    def __init__(self, space: SubSpace, ranges: Sequence[Range]):
        self._space, self._names = space, [each.score.name for each in ranges]
        if len(ranges) == 1:
            self._counts = ranges[0].score.count(space, *ranges[0].ends)
            numbers = list(self._counts.histogram)
            scores = np.array(numbers, np.int64)[:, None]
        else:
            joint = Joint([each.score for each in ranges], space, [each.ends for each in ranges])
            self._counts = joint.counts
            numbers = list(self._counts.histogram)
            scores = joint.scores_of(numbers)
        low, high = (np.array([getattr(each, end) for each in ranges]) for end in ('low', 'high'))
        is_inside = ((low <= scores) & (scores <= high)).all(1)
        self._scores = scores[is_inside]
        self._numbers = [numbers[i] for i in np.flatnonzero(is_inside)]
        self._sizes = [self._counts.histogram[number] for number in self._numbers]
        self.size = sum(self._sizes)
        self._asked: dict[tuple[str, int] | None, tuple[list[int], list[int]]] = {}  # numbers, and ends of their ranks

    @property
    def possible(self) -> dict[str, list[int]]:
        """Which candidates of each label they have, by their places."""
        return self._counts.possible(self._numbers)

    def histogram(self, name: str) -> dict[int, int]:
        """A score to the number of samples."""
        found: dict[int, int] = {}
        for score, size in zip(self._scores[:, self._names.index(name)].tolist(), self._sizes, strict=True):
            found[score] = found.get(score, 0) + size
        return dict(sorted(found.items()))

    def sample(self, random_state: RandomState, at: tuple[str, int] | None = None) -> Sample:
        """One of them, drawn uniformly; of those with a value of a score, if one is named."""
        if at not in self._asked:
            places = range(len(self._numbers))
            if at is not None:
                places = np.flatnonzero(self._scores[:, self._names.index(at[0])] == at[1])
            numbers, sizes = [self._numbers[i] for i in places], [self._sizes[i] for i in places]
            self._asked[at] = numbers, [0, *accumulate(sizes)]
        numbers, ends = self._asked[at]
        for _ in range(TRIES):
            sample = self._counts.draw(random_state, numbers, ends)
            if self._space.filter is None or self._space.filter(dict(sample)):
                return sample
        raise RuntimeError(f'filter lets none of {TRIES:,} random architectures pass of {self._space}.')


def countable(score: AdditiveScore, space: SubSpace) -> AdditiveScore:
    """A score, in a unit so coarse that it can be counted together with the limits of a space, if that has any.

    Raises
    ------
    ValueError
        If there is none.
    """
    levels = LEVELS_WITH_LIMITS if space.ranges and space.range_of(score.name) is None else ()
    for n in levels:
        coarse = score.coarser(n)
        try:
            Band(space, coarse, *EVERY)
        except ValueError:
            if n == levels[-1]:
                raise
        else:
            return coarse
    return score


def encode_ranges(ranges: Sequence[Range], space: SubSpace) -> list[dict[str, Any]]:
    """Ranges for JSON, beside the choices of a space."""
    choices = SubSpace(space.mutables)
    return [{'low': each.low, 'high': each.high, 'score': each.score.on(choices).to_dict()} for each in ranges]


def decode_ranges(content: Sequence[Mapping[str, Any]], space: SubSpace) -> list[Range]:
    """What :func:`encode_ranges` has put into plain types."""
    choices = SubSpace(space.mutables)
    return [Range(AdditiveScore.from_dict(each['score'], choices), each['low'], each['high']) for each in content]


def within(space: SubSpace, ranges: Sequence[Range]) -> SubSpace:
    """The part of a space that is in ranges; the space itself without any."""
    for each in ranges:
        space = Band(space, each.score, each.low, each.high)
    return space


def decode_bands(content: Sequence[Mapping[str, Any]], part: SubSpace, whole: SubSpace) -> SubSpace:
    """A band from JSON, given the sub-space that it is a band of, and what that is a part of."""
    for each in content:
        # Trees of earlier versions have one score, and do not name it.
        known = whole.range_of(each['name']) if 'name' in each else next(iter(whole.ranges), None)
        score = AdditiveScore.from_dict(each['score'], whole) if 'score' in each else known.score
        part = Band(part, score, each['low'], each['high'])
    return part
