"""Split by what whole networks are, not by one choice: bands of an additive score, such as the number of convolutions.

The architectures of `EFS-NAS <https://arxiv.org/abs/2412.14678>`__ are split by the number of their nonlinear
functions, and rank better than those of one supernet of the same cost. What bands do here, and what counting parameters
does, is in examples/README.md. Without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nni_naslid.criteria.criterion import Context
from nni_naslid.run.checks import group_numbers, groups_at
from nni_naslid.space.additive import AdditiveScore, Term, equal_bands
from nni_naslid.space.band import Band
from nni_naslid.space.split import Split
from nni_naslid.space.subspace import SubSpace

import numpy as np
from numpy.random import RandomState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['Bands', 'ByScore']


@dataclass(frozen=True)
class Bands:
    """Bands of a score of the whole network. It looks at no image and no weight.

    Sizes are as equal as they can be, counting all networks, whatever a filter says.

    Parameters
    ----------
    score
        What is counted in the modules of a network: ``'convolutions'``, ``'nonlinearities'`` or ``'parameters'``; see
        :func:`~nni_naslid.train.structure.structural_score`. Or, as a control, ``'random'``: each candidate of each
        label that all networks read has a random weight. (Where most labels are not read by all, as in spaces of
        elastic depth, it is a coarse control.)
    max_groups
        The number of bands; less where there are fewer scores. At least 2. A list has one number for each level of the
        tree, from the root on, and its last one is for all further levels.

    Raises
    ------
    ValueError
        Naming the setting, if it cannot work.
    """

    score: str = 'convolutions'
    max_groups: int | Sequence[int] = 4

    uses_metric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, 'max_groups', group_numbers('max_groups', self.max_groups))
        if self.score not in (known := ('convolutions', 'nonlinearities', 'parameters', 'random')):
            raise ValueError(f'score must be one of {", ".join(known)}, but got {self.score!r}.')

    def can_split(self, subspace: SubSpace) -> bool:
        """Whether networks may have different scores."""
        if isinstance(subspace, Band):
            return subspace.score.name == self.score and len(subspace.histogram) > 1
        return subspace.size > 1

    def check(self, context: Context) -> dict[str, Any]:
        """The scores of the whole space.

        Raises
        ------
        ValueError
            If all networks have the same score; if choices have different weights; if the scores cannot be counted; if
            the filter leaves no network in a band.
        """
        histogram, bands = self._bands(context)
        if len(histogram) < 2:
            raise ValueError(
                f'All networks of this space have {next(iter(histogram))} {self.score}: there are no bands of them.'
            )
        if (emptied := self._emptied(context, bands)) is not None:
            raise ValueError(f'{emptied}, which would be a band of {self}. Take fewer bands (max_groups).')
        return {'scores': [min(histogram), max(histogram)]}

    def cost(self, space: SubSpace) -> int:
        """No forward pass."""
        return 0

    def choose(self, context: Context) -> Split:
        """The bands; none, with an objection, if all networks have the same score, or if the filter empties a band."""
        histogram, bands = self._bands(context)
        emptied = self._emptied(context, bands) if len(bands) > 1 else None
        unit = bands[0].score.unit
        sizes = [(score * unit, size) for score, size in histogram.items()]
        evidence = ByScore(self.score, sizes, [(band.low * unit, band.high * unit) for band in bands], emptied)
        return Split([] if evidence.objection else bands, evidence)

    def read_evidence(self, content: Mapping[str, Any]) -> ByScore:
        """What it found."""
        pairs = {name: [tuple(pair) for pair in content[name]] for name in ('histogram', 'ranges')}
        return ByScore(**{**content, **pairs})

    def _emptied(self, context: Context, bands: Sequence[Band]) -> str | None:
        """Which band the filter leaves nothing of, for people; ``None`` if there is none."""
        for band in bands if context.subspace.filter is not None else ():
            try:
                band.sample(RandomState(0))
            except RuntimeError:
                (ends,) = band.narrowed(context.subspace)[self.score]
                return f'the filter leaves no network of {ends} {self.score}'
        return None

    def _bands(self, context: Context) -> tuple[dict[int, int], list[Band]]:
        whole = context.subspace
        if not isinstance(whole, Band):
            whole = Band(whole, self._score(context), *_ENDS)
        ranges = equal_bands(whole.histogram, min(groups_at(context.level, self.max_groups), len(whole.histogram)))
        return whole.histogram, [Band(context.subspace, whole.score, *ends) for ends in ranges]

    def _score(self, context: Context) -> AdditiveScore:
        if self.score != 'random':
            from nni_naslid.train.structure import structural_score

            return structural_score(context.supernet, context.subspace, self.score)
        from nni_naslid.train.reads import conditions_of_labels

        # What some networks do not read must not tell in which band they are.
        not_always_read = conditions_of_labels(context.supernet, SubSpace.of(context.supernet))
        candidates = {k: v for k, v in context.subspace.splittable.items() if k not in not_always_read}
        random_state = RandomState(np.random.SeedSequence([*context.seed, RANDOM_WEIGHTS]).generate_state(4))
        weights = [random_state.randint(RANDOM_WEIGHTS, size=len(each)) for each in candidates.values()]
        terms = [Term((label,), weight) for label, weight in zip(candidates, weights, strict=True)]
        return AdditiveScore(context.subspace, terms, self.score)


RANDOM_WEIGHTS = 1000
_ENDS = -(2**62), 2**62  # of any score


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
    """

    score: str
    histogram: Sequence[tuple[int, int]]
    ranges: Sequence[tuple[int, int]]
    emptied: str | None = None

    @property
    def objection(self) -> str | None:
        """That there is one score only, or a band without a network, for people; ``None`` if there are bands."""
        if self.emptied is not None:
            return self.emptied
        if len(self.ranges) > 1:
            return None
        return f'all architectures have {self.histogram[0][0]:,} {self.score}'

    def _share(self, low: int, high: int) -> float:
        inside = sum(size for score, size in self.histogram if low <= score <= high)
        return inside / sum(size for _, size in self.histogram)

    def describe(self) -> str:
        """The shares of the bands."""
        shares = (self._share(*ends) for ends in self.ranges)
        return f'{" | ".join(f"{share:.0%}" for share in shares)} of the architectures'

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
        """The share of the architectures that each band has."""
        return {f'share/{i}': self._share(*ends) for i, ends in enumerate(self.ranges)}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
