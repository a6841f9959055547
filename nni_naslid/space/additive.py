"""Scores that are sums of terms of a few labels each: count the samples of each score, and draw among them.

The number of convolutions is such a score, and so are parameters, FLOPs, a latency table or a fitted prediction; the
depth of a stage and the choices of one of its blocks make one term. They serve bands of a space, limits on cost,
balanced sampling and first populations of a search: sizes are exact, draws are exactly uniform, and none is rejected.

Counting takes time and memory in proportion to the number of scores (in steps of their common divisor) and to the
combinations of choices that depend on each other: about those of one block, its depth and its width. A draw reads a few
counts for each label. How it is done: :mod:`nni_naslid.space.elimination`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from operator import index
from typing import Any

from nni_naslid.space.elimination import Sums, Table, least_sum
from nni_naslid.space.subspace import SubSpace

import numpy as np
from nni.mutable import Categorical, CategoricalMultiple, Sample
from numpy.random import RandomState

__all__ = ['AdditiveScore', 'Counts', 'Joint', 'Term', 'choices_of', 'equal_bands', 'extent_of', 'tabulate']

MAX_CHOICES = 10_000  # of a label of which several values may be chosen


@dataclass(frozen=True, eq=False)
class Term:
    """What the choices of a few labels add to a score.

    Parameters
    ----------
    labels
        The labels that it reads; none for a constant.
    table
        Integers, one for each combination of choices, by their places in the whole space: one dimension for each label,
        in the order of ``mutables[label].values``, or of its :meth:`grid` where several values may be chosen. See
        :func:`tabulate`.

    Raises
    ------
    TypeError
        If the table does not hold integers.
    ValueError
        If a label comes twice, or an entry is as large as ``2**60``.
    """

    labels: tuple[str, ...]
    table: np.ndarray

    def __post_init__(self) -> None:
        labels, table = tuple(self.labels), np.asarray(self.table)
        if len(set(labels)) < len(labels):
            raise ValueError(f'labels must differ, but got {labels}.')
        if table.dtype.kind not in 'biu':
            raise TypeError(f'table of {labels} must hold integers (see Term.rounded), but its dtype is {table.dtype}.')
        if any(abs(int(end)) >= 2**60 for end in (table.min(), table.max())):
            raise ValueError(f'table of {labels} must be below 2**60, but goes from {table.min()} to {table.max()}.')
        object.__setattr__(self, 'labels', labels)
        object.__setattr__(self, 'table', table.astype(np.int64))

    @classmethod
    def rounded(cls, labels: Sequence[str], table: Any, unit: float) -> Term:
        """A term of real numbers, as whole units: a score of ``n`` of them is off by at most ``n / 2`` units.

        Raises
        ------
        ValueError
            If ``unit`` is not positive, or an entry is not finite or has ``2**60`` units.
        """
        if not 0 < unit < math.inf:
            raise ValueError(f'unit must be positive and finite, but got {unit}.')
        units = np.rint(np.asarray(table, float) / unit)
        if not (abs(units) < 2**60).all():
            raise ValueError(f'table of {tuple(labels)} must be finite and below 2**60 units of {unit}.')
        return cls(tuple(labels), units.astype(np.int64))


def tabulate(space: SubSpace, labels: Sequence[str], value: Callable[..., float]) -> np.ndarray:
    """The table of a term: what ``value`` gives for each combination of choices of these labels.

    Examples
    --------
    >>> space = SubSpace({name: Categorical([1, 2, 3], label=name) for name in ('depth', 'width')})
    >>> tabulate(space, ['depth', 'width'], lambda depth, width: 10 * width if depth > 2 else 0)
    array([[ 0,  0,  0],
           [ 0,  0,  0],
           [10, 20, 30]])
    """
    choices = [choices_of(space, label) for label in labels]
    return np.array([value(*each) for each in product(*choices)]).reshape([len(each) for each in choices])


class AdditiveScore:
    """A score of the samples of a space: the sum of its terms.

    Parameters
    ----------
    space
        The whole space, for whose choices the terms are written.
    terms
        What is added up. Labels that none of them reads do not matter.
    name
        What the score counts, for people. In a run, scores of one name are the same score.
    unit
        How many of these one of the score stands for; an integer, where they are.

    Raises
    ------
    ValueError
        If a term reads a label that the space has not, or its table has not one entry for each combination.

    Examples
    --------
    >>> space = SubSpace({name: Categorical(['skip', 'conv', 'pool'], label=name) for name in 'abcd'})
    >>> n_convs = AdditiveScore(space, [Term((name,), [0, 1, 0]) for name in 'abcd'])
    >>> counts = n_convs.count(space)
    >>> counts.histogram
    {0: 16, 1: 32, 2: 24, 3: 8, 4: 1}
    >>> equal_bands(counts.histogram, 2)
    [(0, 1), (2, 4)]
    >>> n_convs.of(counts.at(7, 2, 4))
    2
    """

    def __init__(self, space: SubSpace, terms: Iterable[Term], name: str = 'score', unit: float = 1):
        self.space = space
        self.name, self.unit = name, unit
        self._counted: tuple[tuple, Counts] | None = None  # the latest
        self.terms = list(terms)
        self._choices = {label: choices_of(space, label) for term in self.terms for label in term.labels}
        for term in self.terms:
            shape = tuple(len(self._choices[label]) for label in term.labels)
            if term.table.shape != shape:
                raise ValueError(
                    f'table of {term.labels} must have one entry for each combination of choices, that is the shape '
                    f'{shape}, but has {term.table.shape}.'
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), '_counted': None}  # which is large, and can be had again

    def of(self, sample: Sample) -> int:
        """The score of a sample.

        Raises
        ------
        ValueError
            If it has no choice for a label that a term reads, or one that the space has not.
        """
        if missing := [label for label in self._choices if label not in sample]:
            raise ValueError(f'The sample has no choice for {missing[0]!r}, which a term reads.')
        places = {label: self._place(label, sample[label]) for label in self._choices}
        return sum(int(term.table[tuple(places[label] for label in term.labels)]) for term in self.terms)

    def on(self, subspace: SubSpace) -> AdditiveScore:
        """The same score, for the choices of a sub-space only.

        Raises
        ------
        ValueError
            If the sub-space lacks a label that a term reads, or has other choices than the space.
        """
        places = {
            label: [self._place(label, choice) for choice in choices_of(subspace, label)] for label in self._choices
        }
        terms = [
            Term(term.labels, term.table[np.ix_(*(places[label] for label in term.labels))]) for term in self.terms
        ]
        return AdditiveScore(subspace, terms, self.name, self.unit)

    def count(self, subspace: SubSpace | None = None, low: int | None = None, high: int | None = None) -> Counts:
        """Count the samples of a sub-space, or of the whole, by their score: see :class:`Counts`.

        Raises
        ------
        ValueError
            As :meth:`on`; if the terms make too many labels depend on each other; if there are too many scores.
        """
        score = self if subspace is None else self.on(subspace)
        choices = {label: choices_of(score.space, label) for label in score.space.mutables}
        asked = choices, low, high
        if self._counted is None or self._counted[0] != asked:
            tables = [(term.labels, term.table) for term in score.terms]
            self._counted = asked, Counts(score.space, tables, low, high)
        return self._counted[1]

    def extent(self, subspace: SubSpace | None = None) -> tuple[int, int]:
        """The lowest and the highest score in a sub-space, or in the whole, without counting.

        Raises
        ------
        ValueError
            As :meth:`on`; if the terms make too many labels depend on each other.
        """
        score = self if subspace is None else self.on(subspace)
        return extent_of([(term.labels, term.table) for term in score.terms])

    @property
    def step(self) -> int:
        """What scores differ by: all differences are multiples of it."""
        return _common_step(term.table - term.table.min() for term in self.terms)

    def coarser(self, n_scores: int) -> AdditiveScore:
        """The same score in units of ten, or of a hundred, ..., of its own, if it may have more scores than that."""
        span = sum(int(np.ptp(term.table)) for term in self.terms)
        step, factor = self.step, 1
        while span > n_scores * (step if factor == 1 else factor):
            factor *= 10
        if factor == 1:
            return self
        terms = [Term.rounded(term.labels, term.table, factor) for term in self.terms]
        return AdditiveScore(self.space, terms, self.name, self.unit * factor)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        terms = [[term.labels, term.table.tolist()] for term in self.terms]
        return {'name': self.name, 'unit': self.unit, 'terms': terms}

    @classmethod
    def from_dict(cls, content: dict[str, Any], space: SubSpace) -> AdditiveScore:
        """From :meth:`to_dict`, and the space that it was of."""
        terms = [Term(tuple(labels), table) for labels, table in content['terms']]
        return cls(space, terms, content['name'], content['unit'])

    def _place(self, label: str, choice: Any) -> int:
        """Where a choice is among those of the whole space."""
        mutable = self.space.mutables[label]
        try:
            if isinstance(mutable, CategoricalMultiple):
                choice = sorted(choice, key=mutable.values.index)  # a sample may have them in any order
            return self._choices[label].index(choice)
        except ValueError:
            raise ValueError(f'{choice!r} is no choice of {label!r} in the space; it has {mutable.values}.') from None


class Counts:
    """How many samples of a sub-space have which score; draws them. :meth:`AdditiveScore.count` makes it.

    Every sample counts once, so weights of a ``Categorical`` are not read. As in :attr:`SubSpace.size`, samples that
    differ only in what a shallower network does not read count separately, and the filter is not asked. A range of
    scores includes both its ends; ``None`` is no end.

    Parameters
    ----------
    subspace
        Whose samples are counted.
    tables
        Whose sum is the score.
    low, high
        Samples with other scores are left out: counting takes time and memory in proportion to the scores from the
        lowest possible one to ``high``, or from the highest to ``low``, whichever are fewer.

    Attributes
    ----------
    subspace
        Whose samples are counted.
    histogram
        Score to number of samples, from the lowest score.
    """

    def __init__(self, subspace: SubSpace, tables: list[Table], low: int | None = None, high: int | None = None):
        self.subspace = subspace
        self._side = _Side.nearer(tables, low, high)
        tables = [(labels, table // self._side.step) for labels, table in self._side.beyond(tables)]
        read = {label for labels, _ in tables for label in labels}
        self._choices = {label: choices_of(subspace, label) for label in subspace.mutables}
        self._free = {label: len(choices) for label, choices in self._choices.items() if label not in read}
        lengths = {label: len(choices) for label, choices in self._choices.items() if label in read}
        self._sums = Sums(lengths, tables, self._side.n_counted - 1)
        n_free = math.prod(self._free.values())
        sizes = {self._side.score(i): n * n_free for i, n in enumerate(self._sums.sizes) if n}
        self.histogram = {score: sizes[score] for score in sorted(sizes) if _is_inside(score, low, high)}
        self._scores = list(self.histogram)
        self._ends = [0, *accumulate(self.histogram.values())]

    def size(self, low: float | None = None, high: float | None = None) -> int:
        """Number of samples whose score is in a range."""
        first, last = self._span(low, high)
        return self._ends[last] - self._ends[first]

    def possible(self, scores: Sequence[int]) -> dict[str, list[int]]:
        """Which choices have a sample with one of these scores: label to their places, of any label; empty if none."""
        found = {label: list(range(n)) if scores else [] for label, n in self._free.items()}
        return found | self._sums.possible(list(map(self._side.place, scores)))

    def at(self, rank: int, low: float | None = None, high: float | None = None) -> Sample:
        """One of the samples whose score is in a range, by rank: each rank is another one, in order of the scores.

        Raises
        ------
        IndexError
            If ``rank`` is not from 0 to the size of the range less one.
        """
        first, last = self._span(low, high)
        rank, size = index(rank), self._ends[last] - self._ends[first]
        if not 0 <= rank < size:
            raise IndexError(f'rank must be at least 0 and below {size}, the size of the range, but got {rank}.')
        rank += self._ends[first]
        i = bisect_right(self._ends, rank) - 1
        rank -= self._ends[i]
        places = {}
        for label, n in self._free.items():
            rank, places[label] = divmod(rank, n)
        places.update(self._sums.places(self._side.place(self._scores[i]), rank))
        sample = {}
        for label, mutable in self.subspace.mutables.items():
            choice = self._choices[label][places[label]]
            sample[label] = choice if isinstance(mutable, Categorical) else list(choice)
        return sample

    def draw(self, random_state: RandomState, scores: Sequence[int], ends: Sequence[int]) -> Sample:
        """Draw one of the samples with one of these scores, uniformly, whatever the filter says.

        Parameters
        ----------
        random_state
            The source of randomness.
        scores
            Ascending, of :attr:`histogram`.
        ends
            0, and the number of samples up to each of them.
        """
        rank = _below(ends[-1], random_state)
        i = bisect_right(ends, rank) - 1
        return self.at(rank - ends[i], scores[i], scores[i])

    def _span(self, low: float | None, high: float | None) -> tuple[int, int]:
        """Of the scores of a range: the place of the first, and that after the last."""
        first = 0 if low is None else bisect_left(self._scores, low)
        return first, max(first, len(self._scores) if high is None else bisect_right(self._scores, high))


@dataclass(frozen=True)
class _Side:
    """The end of all scores from which they are counted: the lowest one upwards, or the highest one downwards.

    ``step`` is what scores differ by, ``n_scores`` are possible, ``n_counted`` of them asked for: at least one.
    """

    start: int
    sign: int
    step: int
    n_scores: int
    n_counted: int

    @classmethod
    def nearer(cls, tables: list[Table], low: int | None, high: int | None) -> _Side:
        """That from which the fewest must be counted to have all from ``low`` to ``high``."""
        lowest, highest = (sum(int(end(table)) for _, table in tables) for end in (np.min, np.max))
        step = _common_step(table - table.min() for _, table in tables)
        n_scores = (highest - lowest) // step + 1
        up = n_scores if high is None else (high - lowest) // step + 1
        down = n_scores if low is None else (highest - low) // step + 1
        n_counted = min(n_scores, max(1, min(up, down)))
        return cls(lowest, 1, step, n_scores, n_counted) if up <= down else cls(highest, -1, step, n_scores, n_counted)

    def beyond(self, tables: list[Table]) -> list[Table]:
        """What each entry adds to the distance from the start."""
        return [(labels, table - table.min() if self.sign > 0 else table.max() - table) for labels, table in tables]

    def score(self, place: int) -> int:
        return self.start + self.sign * place * self.step

    def place(self, score: int) -> int:
        return self.sign * (score - self.start) // self.step


class Joint:
    """Several scores of the samples of a sub-space at once, counted as one.

    Each combination of scores has a number: the places of the first score count as units, those of the second one as
    many times more as there are of the first, and so on. The score of which a range has the smallest share comes last,
    so that numbers of larger ones need not be counted.

    Parameters
    ----------
    scores
        Of the whole space, or of more.
    subspace
        Whose samples are counted.
    ends
        The lowest and the highest of each score that is asked for, by default all; others may be counted, too.

    Attributes
    ----------
    counts
        Of these numbers. Time and memory are in proportion to the product of the numbers of scores.

    Raises
    ------
    ValueError
        As :meth:`AdditiveScore.count`.

    Examples
    --------
    >>> space = SubSpace({name: Categorical([1, 2], label=name) for name in 'ab'})
    >>> scores = [AdditiveScore(space, [Term(('a',), [0, 5])]), AdditiveScore(space, [Term(('b',), [7, 9])])]
    >>> joint = Joint(scores, space)
    >>> joint.scores_of(list(joint.counts.histogram)).tolist()
    [[0, 7], [5, 7], [0, 9], [5, 9]]
    """

    def __init__(
        self,
        scores: Sequence[AdditiveScore],
        subspace: SubSpace,
        ends: Sequence[tuple[int | None, int | None]] | None = None,
    ):
        ends = [(None, None)] * len(scores) if ends is None else ends
        tables = [[(term.labels, term.table) for term in score.on(subspace).terms] for score in scores]
        self._sides = [_Side.nearer(each, *range_) for each, range_ in zip(tables, ends, strict=True)]
        self._units: dict[int, int] = {}  # what a place of each score counts as, the largest last
        joined: list[Table] = []
        unit, counted = 1, 1
        for i in sorted(range(len(scores)), key=lambda i: self._sides[i].n_scores / self._sides[i].n_counted):
            side = self._sides[i]
            if unit * side.n_scores >= 2**60:
                raise ValueError(f'Too many combinations of the scores {", ".join(score.name for score in scores)}.')
            joined += [(labels, table // side.step * unit) for labels, table in side.beyond(tables[i])]
            self._units[i] = unit
            unit, counted = unit * side.n_scores, unit * side.n_counted
        self.counts = Counts(subspace, joined, high=counted - 1)

    def scores_of(self, numbers: Sequence[int]) -> np.ndarray:
        """The scores of each number, of shape ``[N, S]``."""
        numbers = np.array(numbers, np.int64)
        columns = [side.score(numbers // self._units[i] % side.n_scores) for i, side in enumerate(self._sides)]
        return np.stack(columns, 1)


def extent_of(tables: list[Table]) -> tuple[float, float]:
    """The lowest and the highest sum of the entries of tables of real numbers, whose labels may be shared.

    Raises
    ------
    ValueError
        If the tables make too many labels depend on each other.
    """
    lengths = {label: n for labels, table in tables for label, n in zip(labels, table.shape, strict=True)}
    return least_sum(lengths, tables), -least_sum(lengths, [(labels, -table) for labels, table in tables])


def _is_inside(score: int, low: int | None, high: int | None) -> bool:
    return (low is None or low <= score) and (high is None or score <= high)


def _common_step(tables: Iterable[np.ndarray]) -> int:
    """The greatest common divisor of all entries; 1 if all are zero."""
    return math.gcd(*(int(np.gcd.reduce(table.ravel())) for table in tables)) or 1


def equal_bands(histogram: dict[int, int], n_bands: int) -> list[tuple[int, int]]:
    """Cut scores into consecutive bands of sizes as equal as possible: with the smallest sum of squared sizes.

    Parameters
    ----------
    histogram
        Score to number of samples.
    n_bands
        Into how many. A score is never cut apart.

    Returns
    -------
    Lowest and highest score of each band, in ascending order.

    Raises
    ------
    ValueError
        If there are fewer scores than bands.
    """
    scores = sorted(score for score, size in histogram.items() if size)
    if not 1 <= n_bands <= len(scores):
        raise ValueError(f'n_bands must be from 1 to {len(scores)}, the number of different scores, but got {n_bands}.')
    ends = [0, *accumulate(histogram[score] for score in scores)]
    squares = [end**2 for end in ends]  # the least sum for the first scores
    begins = []  # where the last band of that sum begins
    for n in range(2, n_bands + 1):
        squares, begin = _one_more_band(ends, squares, n)
        begins.append(begin)
    edges = [len(scores)]
    for begin in reversed(begins):
        edges.append(begin[edges[-1]])
    return [(scores[i], scores[j - 1]) for i, j in pairwise([0, *reversed(edges)])]


def _one_more_band(ends: list[int], squares: list[int], n: int) -> tuple[list[int], list[int]]:
    """Least sums with ``n`` bands, from those with one less; by halves: more scores begin the last band no earlier."""
    least, begin = list(squares), [0] * len(ends)
    todo = [(n, len(ends) - 1, n - 1, len(ends) - 2)]
    while todo:
        low, high, first, last = todo.pop()
        if low <= high:
            j = (low + high) // 2
            least[j], begin[j] = min(
                (squares[i] + (ends[j] - ends[i]) ** 2, i) for i in range(first, min(last, j - 1) + 1)
            )
            todo += [(low, j - 1, first, begin[j]), (j + 1, high, begin[j], last)]
    return least, begin


def choices_of(space: SubSpace, label: str) -> list[Any]:
    """All choices of a label, as they are in samples."""
    if label not in space.mutables:
        raise ValueError(f'A term reads {label!r}, but the space has only the labels {list(space.mutables)}.')
    mutable = space.mutables[label]
    if isinstance(mutable, Categorical):
        return mutable.values
    n = SubSpace({label: mutable}).size
    if n > MAX_CHOICES:
        raise ValueError(f'Label {label!r} has {n:,} choices of several values, but at most {MAX_CHOICES:,} work.')
    return list(mutable.grid({}))


def _below(n: int, random_state: RandomState) -> int:
    """An integer from 0 to ``n - 1``, uniformly, however large."""
    bits = (n - 1).bit_length()
    while True:
        drawn = int.from_bytes(random_state.bytes((bits + 7) // 8), 'little') >> (-bits % 8)
        if drawn < n:
            return drawn
