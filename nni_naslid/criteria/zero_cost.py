"""Splits by a zero-cost score of the paths through each candidate. Without torch before it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from nni_naslid.criteria.criterion import Context, take_contrast_settings
from nni_naslid.criteria.evidence import ByLabel, Panel
from nni_naslid.criteria.lid import paths_per_repeat
from nni_naslid.run.checks import brief, groups_at
from nni_naslid.run.spec import name_of
from nni_naslid.space.split import Split
from nni_naslid.space.subspace import SubSpace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ['ByZeroCost', 'ZeroCost']

# Forward passes that a score costs: the way back takes about two.
PASSES = {'naswot': 1, 'synflow': 3, 'snip': 3, 'lid': 1}


@dataclass(frozen=True)
class ZeroCost:
    """The label whose candidates fall most clearly into groups by a score that needs no training is split into these.

    See Ly-Manson et al., "Analyzing Few-Shot Neural Architecture Search in a Metric-Driven Framework" (2024): any
    zero-cost score may say how a supernet is split. As in
    :class:`~nni_naslid.criteria.lid.LID`, in each repeat all candidates of all labels see the same batch on the same
    random path, in which only the candidate in question is put in place, and what differs between two candidates in
    single repeats only does not count. The criterion objects to a split where no label separates for certain (p < .05)
    and by enough (``min_contrast``).

    Scores of different kinds have different scales. So differences are counted in standard deviations: those of the
    scores of all these paths, of which SynFlow and SNIP (sums that go over orders of magnitude) enter as ``log(1 + s)``
    and all others as they are. What is beyond the 5 % or the 95 % quantile counts as that, for some scores are far from
    all others, as of a path that nothing flows through. The contrast of a split then does not depend on the scale of a
    score, or on its sign, and all labels have the same unit. A score that is not finite counts as the lowest; the log
    names the candidates.

    Paths are computed on one device. In a band, and in a space with a filter, the path with another candidate in place
    may be outside of it; it is compared all the same, as LID does.

    Parameters
    ----------
    score
        ``'naswot'``, ``'synflow'`` or ``'snip'``: see :mod:`nni_naslid.criteria.zero_cost_scores`. ``'lid'``: the mean
        logarithm of LID over layers, :func:`~nni_naslid.traits.lid_score.lid_score`, one number where
        :class:`~nni_naslid.criteria.lid.LID` compares layer by layer; for batches above 20 samples. Or a function of
        yours at the top of a module, or its full name (``'package.module.function'``), as in a YAML: it gets the
        supernet, set to a path, and a batch (what the supernet is called with, if that is one argument; else an
        object with its ``args`` and ``kwargs``), and returns a number. Dropout is off in it, batch norms use the
        batch, and what it does to weights, buffers, gradients and random generators is undone. A run does not go on
        with other code of it.
    repeats
        The largest number of batches (each with a random path) at each split; at least 8. It ends earlier, after 8, 16,
        32 ... of them, where one label is clearly the best, or none can be worth a split.
    min_contrast
        The smallest effect that is worth a split, at least 0 and below 1: the contrast of a split (similarity inside
        its groups less similarity between them) must be above it even at its lower 95 % bound. With the default of .01,
        scores of different groups differ by at least a tenth of a standard deviation; a contrast of .1 is a third of
        one. With 0 any difference will do that is certain.
    max_groups
        The largest number of children of one split; at least 2. A list has one number for each level of the tree, from
        the root on, and its last one is for all further levels.

    Raises
    ------
    ValueError
        Naming the setting, if it cannot work with anything.

    Examples
    --------
    >>> ZeroCost('snip')
    ZeroCost(score='snip', repeats=32, min_contrast=0.01, max_groups=2)
    """

    score: str | Callable[[Any, Any], float] = 'naswot'
    repeats: int = 32
    min_contrast: float = 0.01
    max_groups: int | Sequence[int] = 2

    uses_metric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, 'score', _name_of(self.score))
        take_contrast_settings(self)

    def can_split(self, subspace: SubSpace) -> bool:
        """Whether a label has two candidates left."""
        return bool(subspace.splittable)

    def check(self, context: Context) -> dict[str, Any]:
        """What the code of a function of the user's is.

        Raises
        ------
        ValueError
            If the smallest or the largest path has no score: for naswot without a ReLU, for snip without a loss, for
            lid with batches that are too small or without a layer of which there is one, for a function of the user's
            if it cannot be imported, raises an error, or returns no number.
        """
        from nni_naslid.criteria.scoring import check_score

        return check_score(context, self.score)

    def cost(self, space: SubSpace) -> int:
        """All repeats; each has a path for every candidate, but one path is of all labels. A gradient counts thrice."""
        return PASSES.get(self.score, 1) * self.repeats * paths_per_repeat(space)

    def choose(self, context: Context, find: Any = None) -> Split:
        """The split with the highest lower bound of its contrast; ``find`` may stand in for ``clearest_label``.

        Raises
        ------
        RuntimeError
            If no path has a finite score.
        """
        from nni_naslid.criteria.clearest import clearest_label
        from nni_naslid.criteria.scoring import Scoring, as_profiles, name_non_finite

        scoring = Scoring(context, self.score, self.repeats)
        labels = context.subspace.splittable
        evidence = (find or clearest_label)(
            lambda n_repeats: as_profiles(scoring.scores(n_repeats), self.score),
            labels,
            repeats=self.repeats,
            paths_per_repeat=PASSES.get(self.score, 1) * paths_per_repeat(context.subspace),
            max_groups=groups_at(context.level, self.max_groups),
            min_contrast=self.min_contrast,
            random_state=context.random_state,
        )
        scores = scoring.scores(evidence.n_repeats)
        name_non_finite(scores, labels, self.score)
        means = [finite.mean().item() if len(finite := each[each.isfinite()]) else None
                 for each in scores[evidence.label].unbind(1)]  # fmt: skip
        known = {each.name: getattr(evidence, each.name) for each in fields(evidence)}
        evidence = ByZeroCost(**known, score=self.score, means=means)
        return Split(context.subspace.split(evidence.label, evidence.partition.groups), evidence)

    def read_evidence(self, content: Mapping[str, Any]) -> ByZeroCost:
        """A contrast."""
        return ByZeroCost.from_dict(content)


def _name_of(score: Any) -> str:
    """The name of a score; of a function that of its module, too."""
    if isinstance(score, str):
        if score in PASSES or ('.' in score and all(part.isidentifier() for part in score.split('.'))):
            return score
    elif callable(score):
        if (name := name_of(score)) is not None:
            return name
        raise ValueError(
            f'score must be a function at the top of a module, so that it can be imported, but got {brief(score)}.'
        )
    raise ValueError(
        f"score must be one of {', '.join(PASSES)}, or a function or its full name, such as 'package.module.function', "
        f'but got {brief(score)}.'
    )


@dataclass(frozen=True)
class ByZeroCost(ByLabel):
    """The evidence for splitting the candidates of one label into groups by a zero-cost score.

    Attributes
    ----------
    score
        Its name.
    means
        Of each candidate of the label, the mean over the repeats where it is finite, as the score is; ``None`` where it
        never is.
    """

    score: str = ''
    means: Sequence[float | None] = field(default_factory=list)

    @property
    def panels(self) -> list[Panel]:
        """As of any label, with the scores of its candidates."""
        first, *others = super().panels
        return [first, (f'{self.score}, mean of the repeats', self._draw_means, 2.4), *others]

    def _draw_means(self, axes: Axes) -> None:
        names = [self.candidates[i] for i in self._order][::-1]
        means = [self.means[i] for i in self._order][::-1]
        group_of = {i: number for number, group in enumerate(self.partition.groups) for i in group}
        colors = [f'C{group_of[i]}' for i in self._order][::-1]
        axes.barh(names, [mean or 0 for mean in means], color=colors)
        axes.locator_params(axis='x', nbins=5)

    def scalars(self) -> dict[str, float]:
        """As of any label, with the mean score of its candidates."""
        means = zip(self.candidates, self.means, strict=True)
        scores = {f'score/{self.label}/{candidate}': mean for candidate, mean in means if mean is not None}
        return {**super().scalars(), **scores}
