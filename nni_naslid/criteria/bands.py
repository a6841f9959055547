"""Split by what whole networks are, not by one choice: bands of an additive score, such as the number of convolutions.

The architectures of `EFS-NAS <https://arxiv.org/abs/2412.14678>`__ are split by the number of their nonlinear
functions, and rank better than those of one supernet of the same cost. What bands do here, and what counting parameters
does, is in examples/README.md. Without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from nni_naslid.criteria.criterion import Context
from nni_naslid.run.checks import group_numbers, groups_at, integer
from nni_naslid.run.costs import PASSES, cost_weights
from nni_naslid.run.spec import later
from nni_naslid.space.additive import AdditiveScore, Term, choices_of, equal_bands
from nni_naslid.space.band import EVERY, Band, countable
from nni_naslid.space.split import Split
from nni_naslid.space.subspace import SubSpace

import numpy as np
from nni.mutable import Sample
from numpy.random import RandomState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['Bands', 'ByScore']


COUNTED = ('convolutions', 'nonlinearities', 'parameters')
PREDICTED = tuple(name for name in PASSES if name not in (*COUNTED, 'initial_lid'))


@dataclass(frozen=True)
class Bands:
    """Bands of a score of the whole network, which is counted, or predicted.

    Sizes are as equal as they can be, counting all networks, whatever a filter says.

    Parameters
    ----------
    score
        What is predicted, as for a ``prior`` of :class:`~nni_naslid.strategy.NASLID`: ``'live_parameters'``,
        ``'flops'``, ``'latency'``, ``'lid'``, a function of an architecture or its full name, or a dict of these and of
        what is counted (below), with weights. Random paths of the node are ranked by each; a sum of terms of single
        labels (and of pairs of them, where that pays) is fitted to the weighted mean of these ranks, in thousandths,
        and bands are those of the sum, which may go beyond 0 and 1,000. Parts of a band go by the same sum. The
        criterion objects where it explains less than 20 % of the variance over other paths (R2). By default, live
        parameters and half of LID: the bands that paid most evenly in examples/README.md, on NAS-Bench-201.

        Or what is counted in the modules of a network, without an image or a weight: ``'convolutions'``,
        ``'nonlinearities'`` or ``'parameters'``; see :func:`~nni_naslid.train.structure.structural_score`. Or, as a
        control, ``'random'``: each candidate of each label that all networks read has a random weight. (Where most
        labels are not read by all, as in spaces of elastic depth, it is a coarse control.)
    max_groups
        The number of bands; less where there are fewer scores. At least 2. A list has one number for each level of the
        tree, from the root on, and its last one is for all further levels.
    paths
        How many random paths a score is predicted from; at least 50.

    Raises
    ------
    ValueError
        Naming the setting, if it cannot work.
    """

    score: str | Callable[[Sample], float] | Mapping[str | Callable[[Sample], float], float] = field(
        default_factory=lambda: {'lid': 0.5, 'live_parameters': 1.0}
    )
    max_groups: int | Sequence[int] = 4
    paths: int = later(400)

    uses_metric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, 'max_groups', group_numbers('max_groups', self.max_groups))
        object.__setattr__(self, 'paths', integer('paths', self.paths, 50))
        if not isinstance(self.score, str) or self.score not in (*COUNTED, 'random'):
            alone = ('random',) if isinstance(self.score, str) else ()
            weights = cost_weights('score', self.score, 1.0, (*COUNTED, *alone, *PREDICTED))
            object.__setattr__(self, 'score', dict(sorted(weights.items())))  # in whatever order they were given

    @property
    def name(self) -> str:
        """Of the score."""
        return self.score if isinstance(self.score, str) else f'predicted rank by {" and ".join(self.score)}'

    def can_split(self, subspace: SubSpace) -> bool:
        """Whether networks may have different scores."""
        if subspace.range_of(self.name) is not None:
            return len(subspace.histogram(self.name)) > 1
        return subspace.size > 1 if isinstance(self.score, str) else bool(subspace.splittable)

    def check(self, context: Context) -> dict[str, Any]:
        """The scores of the whole space, if they are counted; else the code of the user's functions.

        Raises
        ------
        ValueError
            If all networks have the same score; if choices have different weights; if the scores cannot be counted, or
            a cost cannot be had; if the filter leaves no network in a band.
        """
        if not isinstance(self.score, str):
            from nni_naslid.traits.costs import check_costs, codes_of

            codes = codes_of(self.score, 'score')
            try:
                check_costs('score', self.score, context.module, context.evaluator)
            except ValueError as error:
                if 'lid' not in self.score:
                    raise
                raise ValueError(f"{error} Without LID, Bands('live_parameters') splits by size alone.") from error
            stand_in = self._stand_in(context)
            try:
                Band(context.subspace, countable(stand_in, context.subspace), *EVERY)  # raises for weights
            except ValueError as error:
                raise ValueError(f'{error} Take a criterion that splits one choice, such as LID().') from error
            return {'code': codes}
        histogram, bands = self._bands(context, self._score(context)[0])
        if len(histogram) < 2:
            raise ValueError(
                f'All networks of this space have {next(iter(histogram))} {self.score}: there are no bands of them.'
            )
        if (emptied := self._emptied(context, bands)) is not None:
            raise ValueError(f'{emptied}, which would be a band of {self}. Take fewer bands (max_groups).')
        return {'scores': [min(histogram), max(histogram)]}

    def cost(self, space: SubSpace) -> int:
        """That of the paths which a score is predicted from, a gradient thrice. Parts of bands take none."""
        return 0 if space.range_of(self.name) is not None else self._passes(min(self.paths, space.size))

    def _passes(self, n_paths: int) -> int:
        return 0 if isinstance(self.score, str) else n_paths * sum(PASSES.get(name, 0) for name in self.score)

    def choose(self, context: Context) -> Split:
        """The bands; none, with an objection, if all networks have the same score, or if the filter empties a band."""
        score, explained, n_asked = self._score(context)
        histogram, bands = self._bands(context, score)
        emptied = self._emptied(context, bands) if len(bands) > 1 else None
        unit, own = score.unit, [band.range_of(self.name) for band in bands]
        sizes = [(value * unit, size) for value, size in histogram.items()]
        ranges = [(each.low * unit, each.high * unit) for each in own]
        evidence = ByScore(self.name, sizes, ranges, emptied, explained, self._passes(n_asked))
        return Split([] if evidence.objection else bands, evidence)

    def read_evidence(self, content: Mapping[str, Any]) -> ByScore:
        """What it found."""
        pairs = {name: [tuple(pair) for pair in content[name]] for name in ('histogram', 'ranges')}
        return ByScore(**{**content, **pairs})

    def _emptied(self, context: Context, bands: Sequence[Band]) -> str | None:
        """Which band the filter leaves nothing of, for people; ``None`` if there is none."""
        for band in bands:
            if not band.has_samples:
                return f'the filter leaves no network of {band.range_of(self.name)} {self.name}'
        return None

    def _bands(self, context: Context, score: AdditiveScore) -> tuple[dict[int, int], list[Band]]:
        whole = context.subspace
        if whole.range_of(self.name) is None:
            whole = Band(whole, score, *EVERY)
        histogram = whole.histogram(self.name)
        ranges = equal_bands(histogram, min(groups_at(context.level, self.max_groups), len(histogram)))
        return histogram, [Band(context.subspace, score, *ends) for ends in ranges]

    def _score(self, context: Context) -> tuple[AdditiveScore, float | None, int]:
        """The score; if it is predicted, R2, and how many paths were asked."""
        if (known := context.subspace.range_of(self.name)) is not None:
            return known.score, None, 0
        score, explained, n_asked = self._new_score(context)
        return countable(score, context.subspace), explained, n_asked

    def _new_score(self, context: Context) -> tuple[AdditiveScore, float | None, int]:
        if self.score == 'random':
            return self._random(context), None, 0
        if isinstance(self.score, str):
            from nni_naslid.train.structure import structural_score

            return structural_score(context.supernet, context.subspace, self.score), None, 0
        from nni_naslid.criteria.predicted import predicted_score, ranks_of_paths, when_read

        samples, ranks = ranks_of_paths(context, self.score, self.paths)
        read = when_read(context.supernet)
        return *predicted_score(context.subspace, samples, ranks, self.name, read), len(samples)

    def _stand_in(self, context: Context) -> AdditiveScore:
        """A score of as many values as one that will be predicted, and of the labels that it will read."""
        from nni_naslid.criteria.predicted import UNITS, scopes_of, when_read

        scopes = scopes_of(context.subspace, when_read(context.supernet))
        tables = [np.zeros([len(choices_of(context.subspace, label)) for label in scope], np.int64) for scope in scopes]
        for table in tables:
            table.flat[-1] = -(-UNITS // len(tables))
        return AdditiveScore(context.subspace, map(Term, scopes, tables), self.name)

    def _random(self, context: Context) -> AdditiveScore:
        from nni_naslid.train.reads import conditions_of_labels

        # What some networks do not read must not tell in which band they are.
        not_always_read = conditions_of_labels(context.supernet, SubSpace.of(context.supernet))
        candidates = {k: v for k, v in context.subspace.splittable.items() if k not in not_always_read}
        random_state = RandomState(np.random.SeedSequence([*context.seed, RANDOM_WEIGHTS]).generate_state(4))
        weights = [random_state.randint(RANDOM_WEIGHTS, size=len(each)) for each in candidates.values()]
        terms = [Term((label,), weight) for label, weight in zip(candidates, weights, strict=True)]
        return AdditiveScore(context.subspace, terms, self.score)


RANDOM_WEIGHTS = 1000
LEAST_R2 = 0.2


@dataclass(frozen=True)
class ByScore:
    """The evidence for bands: how many architectures have which score.

    Attributes
    ----------
    score
        What is counted.
    histogram
        Each score with the number of its architectures, from the lowest score.
    ranges
        Lowest and highest score of each band.
    emptied
        Which of the bands the filter leaves nothing of, for people; ``None`` if each has networks.
    explained
        Of a predicted score, the share of the variance of other paths that it explains (R2), at most 1; else ``None``.
    n_passes
        Forward passes that the prediction took.
    """

    score: str
    histogram: Sequence[tuple[int, int]]
    ranges: Sequence[tuple[int, int]]
    emptied: str | None = None
    explained: float | None = None
    n_passes: int = 0

    @property
    def objection(self) -> str | None:
        """That there is one score only, or a band without a network, for people; ``None`` if there are bands."""
        if self.emptied is not None:
            return self.emptied
        if len(self.ranges) < 2:
            return f'all architectures have {self.histogram[0][0]:,} {self.score}'
        if self.explained is not None and not self.explained >= LEAST_R2:
            return (
                f'a sum of terms explains {self.explained:.2f} of the variance of the {self.score} (R2), less than '
                f'{LEAST_R2}'
            )
        return None

    def _share(self, low: int, high: int) -> float:
        inside = sum(size for score, size in self.histogram if low <= score <= high)
        return inside / sum(size for _, size in self.histogram)

    def describe(self) -> str:
        """The shares of the bands, and how well a score is predicted."""
        shares = (self._share(*ends) for ends in self.ranges)
        told = f'{" | ".join(f"{share:.0%}" for share in shares)} of the architectures'
        return told if self.explained is None else f'{told}; R2 of other paths {self.explained:.2f}'

    def figure(self, title: str) -> Figure:
        """How many architectures have which score, a colour for each band."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure  # not pyplot: a library leaves the user's backend and figures alone

        with rc_context({'font.size': 9, 'text.parse_math': False}):
            figure = Figure(figsize=(4.6, 3.2), layout='constrained')
            axes = figure.subplots()
            scores, sizes = np.array(self.histogram, float).T
            width = max(np.diff(scores).min(initial=np.inf), np.ptp(scores) / 60) if len(scores) > 1 else 1
            edges = np.arange(scores[0] - width / 2, scores[-1] + width, width)
            for number, (low, high) in enumerate(self.ranges):
                inside = (low <= scores) & (scores <= high)
                axes.hist(scores[inside], edges, weights=sizes[inside] / sizes.sum(), color=f'C{number}', rwidth=0.9)
            decision = f'is split into {len(self.ranges)} bands' if self.objection is None else 'is not split'
            axes.set_title(f'{title} {decision}', fontsize=9)
            axes.set_xlabel(self.score)
            axes.set_ylabel('share of the architectures')
        return figure

    def scalars(self) -> dict[str, float]:
        """The share of the architectures that each band has, and R2 and passes of a prediction."""
        found = {f'share/{i}': self._share(*ends) for i, ends in enumerate(self.ranges)}
        return found if self.explained is None else {**found, 'R2': self.explained, 'passes': self.n_passes}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
