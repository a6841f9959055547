"""Bands: the samples of a sub-space whose additive score lies in a range. Without torch: the tuner uses them too.

A split by label cuts a space by one choice; bands cut it by what a whole network is, such as how many convolutions it
has. Sizes are exact, and samples are drawn uniformly without rejection: see :mod:`nni_naslid.space.additive`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from nni_naslid.space.additive import AdditiveScore, Counts
from nni_naslid.space.subspace import SubSpace

from nni.mutable import Sample
from numpy.random import RandomState

__all__ = ['Band', 'decode_band']


class Band(SubSpace):
    """The samples of a sub-space whose score is in a range, which includes both its ends.

    Candidates that none of them has are left out.

    Parameters
    ----------
    space
        The sub-space. If it is a band of this score, those that are in both ranges are meant.
    score
        The score, of these choices at least.
    low, high
        The range.

    Raises
    ------
    ValueError
        If no sample has such a score; if choices of a label have different weights, which a uniform draw would not
        honour; or if the sub-space is a band of another score.

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
    """

    def __init__(self, space: SubSpace, score: AdditiveScore, low: int, high: int):
        if isinstance(space, Band):
            if space.score.name != score.name:
                raise ValueError(f'A band of {space.score.name} cannot be cut by another score, {score.name}.')
            low, high = max(low, space.low), min(high, space.high)
        for label, mutable in space.mutables.items():
            if len(mutable.weights) and max(mutable.weights) - min(mutable.weights) > 1e-9:
                raise ValueError(
                    f'Bands are drawn from uniformly, but the choices of {label!r} have the weights {mutable.weights}.'
                )
        product = SubSpace(space.mutables, space.filter)
        counts = score.count(product)
        if not counts.size(low, high):
            least, most = min(counts.histogram), max(counts.histogram)
            raise ValueError(
                f'No sample has {score.name} from {low} to {high}; those of this sub-space go from {least} to {most}, '
                'with gaps.'
            )
        possible = counts.possible(low, high)
        possible = {label: possible[label] for label, candidates in product.splittable.items()}
        super().__init__(product.narrow(possible).mutables, space.filter)
        self.score, self.low, self.high = score, low, high

    @cached_property
    def _counts(self) -> Counts:
        """Of the candidates that are left: a draw does not depend on how the band was made."""
        return self.score.count(SubSpace(self.mutables, self.filter))

    def sample(self, random_state: RandomState) -> Sample:
        """One sample, drawn uniformly.

        Raises
        ------
        RuntimeError
            If the filter lets none of ten thousand samples pass.
        """
        return self._counts.sample(random_state, self.low, self.high)

    def covers(self, sample: Sample) -> bool:
        """Whether its choices are allowed ones and its score is in the range, whatever the filter says."""
        return super().covers(sample) and self.low <= self.score.of(sample) <= self.high

    @property
    def size(self) -> int:
        """Number of samples, as :attr:`SubSpace.size` counts them."""
        return self._counts.size(self.low, self.high)

    @property
    def histogram(self) -> dict[int, int]:
        """Score to number of samples, from the lowest score."""
        return {score: n for score, n in self._counts.histogram.items() if self.low <= score <= self.high}

    def narrow(self, choices: Mapping[str, Sequence[int]]) -> Band:
        """The samples of this band that have certain choices only: see :meth:`SubSpace.narrow`."""
        return Band(super().narrow(choices), self.score, self.low, self.high)

    def narrowed(self, whole: SubSpace) -> dict[str, list[Any]]:
        """As :meth:`SubSpace.narrowed`; the range, by the name of the score, if that of the whole is another."""
        if self._has_range_of(whole):
            return super().narrowed(whole)
        every = Band(whole, self.score, self.low, self.high)  # candidates that the range leaves out are not told
        return {self.score.name: [self._range], **super().narrowed(every)}

    def overlaps(self, other: SubSpace) -> bool:
        """As :meth:`SubSpace.overlaps`; bands of one score do not if their ranges do not."""
        if isinstance(other, Band) and self.score.name == other.score.name:
            return self.low <= other.high and other.low <= self.high and super().overlaps(other)
        return super().overlaps(other)

    def _encode_in(self, whole: SubSpace) -> dict[str, Any]:
        content = super()._encode_in(whole)
        if not self._has_range_of(whole):
            content['band'] = {'low': self.low, 'high': self.high}
            if not isinstance(whole, Band):
                content['band']['score'] = self.score.on(whole).to_dict()
        return content

    def _has_range_of(self, whole: SubSpace) -> bool:
        return isinstance(whole, Band) and (whole.low, whole.high) == (self.low, self.high)

    @property
    def _range(self) -> str:
        low, high = (f'{end * self.score.unit:,}' for end in (self.low, self.high))
        return low if low == high else f'{low} to {high}'

    def __repr__(self) -> str:
        return f'{super().__repr__()[:-1]}; {self.score.name}: {self._range})'


def decode_band(content: Mapping[str, Any], part: SubSpace, whole: SubSpace) -> Band:
    """A band from JSON, given the sub-space that it is a band of, and what that is a part of."""
    score = whole.score if isinstance(whole, Band) else AdditiveScore.from_dict(content['score'], whole)
    return Band(part, score, content['low'], content['high'])
