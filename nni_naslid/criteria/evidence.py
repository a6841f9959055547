"""What speaks for a split, and what against it: for one by label, for a node at chance level, for a random split.

Without torch: the tuner, which must start fast, reads it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from nni_naslid.run.text import rounded
from nni_naslid.space.split import WithoutFigures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    'AsGiven', 'AtChance', 'AtRandom', 'ByLabel', 'Contrast', 'Panel', 'Partition', 'draw_contrasts', 'draw_panels',
    'is_certain',
]  # fmt: skip

NAMES = {'mle': 'LID', 'two_nn': 'Dimension by TwoNN', 'effective_rank': 'Effective rank'}  # of the estimators
Panel = tuple[str, 'Callable[[Axes], None]', float]  # of a picture: its title, what draws it, and its height
GROUP_LINES, MARKERS = ('-', '--', ':', '-.'), 'osv^Dx+*'  # of the groups, and of the candidates in one


@dataclass(frozen=True)
class Partition:
    """The best grouping of one label's candidates.

    Attributes
    ----------
    groups
        Indices of the candidates in each group.
    score
        Contrast of the groups.
    error
        Standard error of ``score`` over the repeats (jackknife).
    p_value
        How often chance finds a grouping of at least this contrast, if candidates do not differ: see
        :func:`~nni_naslid.criteria.partition.best_partition`.
    similarity
        :func:`~nni_naslid.criteria.similarity.similarity_matrix` as lists, ``[C][C]``.
    lower, upper
        Where ``score`` lies with 95 % confidence, by ``error`` and Student's t: the bounds of these groups, chosen
        beforehand. That they are the best of many is what ``p_value`` allows for.
    """

    groups: list[list[int]]
    score: float
    error: float
    p_value: float
    similarity: list[list[float]]
    lower: float
    upper: float


class Contrast(NamedTuple):
    """What is kept of each label that could have been split: contrast, its bounds, and p where it was asked for."""

    score: float
    lower: float
    upper: float
    p_value: float | None = None


@dataclass(frozen=True)
class ByLabel:
    """The evidence for splitting the candidates of one label into groups.

    Attributes
    ----------
    label
        The label.
    candidates
        Its candidates, for people.
    partition
        The groups, as indices of ``candidates``, with score and bounds.
    contrasts
        Those of every label that could have been split.
    n_repeats, n_passes
        How many repeats this is about, and the forward passes that they stand for.
    n_looks
        How often it may have been looked at, with more repeats each time, before it was decided.
    min_contrast
        The smallest contrast that is worth a split.
    layers
        Names of the layers of the profiles.
    profile
        Mean profile of each candidate, ``[C][L]``, rounded; of this label only, as a space may have many.
    estimator
        How the profiles were estimated.
    """

    label: str
    candidates: list[str]
    partition: Partition
    contrasts: Mapping[str, Contrast]
    n_repeats: int = 0
    n_passes: int = 0
    n_looks: int = 1
    min_contrast: float = 0.0
    layers: Sequence[str] = field(default_factory=list)  # as JSON gives them back
    profile: Sequence[Sequence[float]] = field(default_factory=list)
    estimator: str = 'mle'

    @property
    def objection(self) -> str | None:
        """What speaks against the split, for people; ``None`` if nothing does.

        It must be certain (p < .05, corrected for the number of labels and of looks) and worth it (the lower bound of
        the contrast is above the smallest effect).
        """
        if not is_certain(self.partition, self._n_tests):
            return 'no label separates beyond its noise'
        if not self.partition.lower > self.min_contrast:
            return f'no contrast is surely above {self.min_contrast:g}'
        return None

    @property
    def p_value(self) -> float:
        """p of the label, corrected for the number of labels and of looks (Bonferroni)."""
        return min(1.0, self.partition.p_value * self._n_tests)

    @property
    def _n_tests(self) -> int:
        return len(self.contrasts) * self.n_looks

    def describe(self) -> str:
        """Contrast, bounds, p, repeats and passes."""
        best = self.partition
        return (
            f'contrast {rounded(best.score)}, 95 % {rounded(best.lower)} to {rounded(best.upper)}, '
            f'p {self.p_value:.2g}, {self.n_repeats} repeats, {self.n_passes:,} passes'
        )

    def figure(self, title: str) -> Figure:
        """Similarities of the label's candidates, their profiles, and the contrasts of all labels."""
        decision = 'is split' if self.objection is None else f'is not split: {self.objection}'
        return draw_panels(f'{title} {decision}\n{self.describe()}', self.panels)

    @property
    def panels(self) -> list[Panel]:
        """What the picture shows, the similarities first, the contrasts last."""
        height = max(3.4, 0.18 * len(self.contrasts))
        panels = [
            (f'Similarity of the candidates of {self.label}', self._draw_similarity, 3.4),
            (f'{NAMES[self.estimator]} of their layers, mean of the repeats', self._draw_profile, 3.4),
            ('Contrast of each label, with its 95 % bounds', self._draw_contrasts, height),
        ]
        return panels if self.profile else [panels[0], panels[2]]

    @property
    def _order(self) -> list[int]:
        """The candidates, group by group."""
        return [i for group in self.partition.groups for i in group]

    def _draw_similarity(self, axes: Axes) -> None:
        import numpy as np

        order = self._order
        similarity = np.array(self.partition.similarity)[np.ix_(order, order)]
        image = axes.imshow(similarity, vmax=1, cmap='viridis')
        names = [self.candidates[i] for i in order]
        axes.set_xticks(range(len(order)), names, rotation=45, ha='right')
        axes.set_yticks(range(len(order)), names)
        middle = (similarity.min() + 1) / 2
        for (i, j), value in np.ndenumerate(similarity):
            axes.text(j, i, rounded(value), ha='center', va='center', fontsize=min(8, 44 / len(order)),
                      color='black' if value > middle else 'white')  # fmt: skip
        for end in np.cumsum([len(group) for group in self.partition.groups])[:-1]:
            axes.axhline(end - 0.5, color='red', linewidth=2)
            axes.axvline(end - 0.5, color='red', linewidth=2)
        axes.figure.colorbar(image, ax=axes)

    def _draw_profile(self, axes: Axes) -> None:
        for number, group in enumerate(self.partition.groups):
            for place, i in enumerate(group):
                axes.plot(self.profile[i], GROUP_LINES[number % len(GROUP_LINES)], color=f'C{number}',
                          alpha=1 - 0.7 * place / len(group), marker=MARKERS[place % len(MARKERS)], markersize=4,
                          label=self.candidates[i])  # fmt: skip
        step = 1 + len(self.layers) // 16
        axes.set_xticks(range(0, len(self.layers), step), self.layers[::step], rotation=45, ha='right', fontsize=7.5)
        axes.set_ylabel(NAMES[self.estimator])
        axes.legend(fontsize=7.5)

    def _draw_contrasts(self, axes: Axes) -> None:
        draw_contrasts(axes, self.contrasts, [self.label], self.min_contrast)

    def scalars(self) -> dict[str, float]:
        """The best contrast with its bounds and corrected p, how much was looked at, the contrast of each label, and
        the LID of each candidate of the best label, the mean of its profile: layers would be hundreds of columns. What
        was not estimated by maximum likelihood has the name of its estimator.
        """
        best = self.partition
        measured = 'lid' if self.estimator == 'mle' else self.estimator
        return {
            'contrast': best.score,
            'contrast_lower': best.lower,
            'contrast_upper': best.upper,
            'p': self.p_value,
            'repeats': self.n_repeats,
            'passes': self.n_passes,
            **{f'contrasts/{label}': contrast.score for label, contrast in self.contrasts.items()},
            **{  # none where the profile is not kept, as in earlier versions
                f'{measured}/{self.label}/{candidate}': sum(row) / len(row)
                for candidate, row in zip(self.candidates, self.profile, strict=False)
            },
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON; with the corrected p, for who reads ``tree.json``."""
        return {**asdict(self), 'p_value': self.p_value}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ByLabel:
        """From :meth:`to_dict`."""
        content = {name: value for name, value in content.items() if name != 'p_value'}
        content['partition'] = Partition(**content['partition'])
        content['contrasts'] = {label: Contrast(*values) for label, values in content['contrasts'].items()}
        return cls(**content)


@dataclass(frozen=True)
class AtChance(WithoutFigures):
    """A node is not split, because it knows nothing yet: ``objection`` says by which figures."""

    objection: str

    def describe(self) -> str:
        """Empty: the objection has the figures."""
        return ''

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {'at_chance': self.objection}


@dataclass(frozen=True)
class AtRandom(WithoutFigures):
    """A random split has no evidence."""

    objection: None = None

    def describe(self) -> str:
        """For the log."""
        return 'at random'

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {}


@dataclass(frozen=True)
class AsGiven(WithoutFigures):
    """A split that the user has given has no evidence; ``objection`` says why a node is not split."""

    objection: str | None = None

    def describe(self) -> str:
        """For the log."""
        return 'as given'

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {'objection': self.objection}


def draw_panels(heading: str, panels: Sequence[Panel]) -> Figure:
    """A picture of panels below each other, so that text of 9 points can be read where it is as wide as a phone."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot: a library leaves the user's backend and figures alone

    heights = [height for _, _, height in panels]
    with rc_context({'font.size': 9, 'text.parse_math': False}):
        figure = Figure(figsize=(4.6, 0.5 + sum(heights)), layout='constrained')
        figure.suptitle(heading, fontsize=8)
        grid = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
        for axes, (name, draw, _) in zip(grid, panels, strict=True):
            draw(axes)
            axes.set_title(name, fontsize=9)
    return figure


def draw_contrasts(axes: Axes, contrasts: Mapping[str, Contrast], chosen: Sequence[str], min_contrast: float) -> None:
    """The contrast of each label with its bounds, those of the chosen ones in red."""
    import numpy as np

    labels = sorted(contrasts, key=lambda label: contrasts[label].lower)
    scores, lower, upper, _ = np.array([contrasts[label] for label in labels], dtype=float).T
    colors = ['tab:red' if label in chosen else 'tab:grey' for label in labels]
    axes.barh(labels, scores, xerr=[scores - lower, upper - scores], color=colors, capsize=2)
    axes.axvline(0, color='black', linewidth=0.8)
    axes.axvline(min_contrast, color='black', linestyle='--', label=f'smallest effect {min_contrast:g}')
    axes.legend(loc='lower right')
    axes.locator_params(axis='x', nbins=5)
    axes.set_xlabel('contrast')


def is_certain(partition: Partition, n_tests: int) -> bool:
    """Whether candidates differ by more than chance, where the best of ``n_tests`` tests is taken: p < .05.

    A score that is not finite, or whose error is not, is no evidence of anything.
    """
    return math.isfinite(partition.score - partition.error) and partition.p_value * n_tests < 0.05
