"""A part of a search space: which samples it holds, how to draw one of them, how to split it.

Without torch: the tuner, which must start fast, uses it too.
"""

from __future__ import annotations

import math
import weakref
from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from nni_naslid.space.rules import Rules

from nni.mutable import Categorical, CategoricalMultiple, Constraint, LabeledMutable, Sample
from nni.mutable.utils import label as nni_label
from numpy.random import RandomState

if TYPE_CHECKING:
    from nni_naslid.space.band import Range

    from nni.nas.nn.pytorch import ModelSpace

__all__ = ['SubSpace', 'constrain']

TRIES = 10_000  # to draw a sample that a filter lets pass

_limited: weakref.WeakKeyDictionary[ModelSpace, SubSpace] = weakref.WeakKeyDictionary()


class SubSpace:
    """The samples whose choice for each label is one of the allowed ones.

    Parameters
    ----------
    mutables
        Label to mutable, as :meth:`ModelSpace.simplify` gives them. Where one is chosen they can be split; choices of
        several (or of any number, as an ``InputChoice`` may have) are sampled whole. Constraints between choices
        become part of the filter.
    filter
        Which of these samples there are: a function of a sample. All, if ``None``.

    Raises
    ------
    TypeError
        If something in ``mutables`` is neither a labeled choice nor a constraint, for example a number of a range.
    """

    ranges: tuple[Range, ...] = ()  # of scores, which bands have

    def __init__(self, mutables: dict[str, LabeledMutable], filter: Callable[[Sample], bool] | None = None):
        constraints = {label: each for label, each in mutables.items() if isinstance(each, Constraint)}
        if constraints:
            mutables = {label: each for label, each in mutables.items() if label not in constraints}
            filter = Rules(constraints, filter)
        for label, mutable in mutables.items():
            if not isinstance(mutable, (Categorical, CategoricalMultiple)):
                raise TypeError(
                    f'Label {label!r} is a {type(mutable).__name__}; NASLID needs a space of Categorical or '
                    'CategoricalMultiple choices.'
                )
        self.mutables = mutables
        self.filter = filter

    @classmethod
    def of(cls, space: ModelSpace) -> SubSpace:
        """The whole of a model space (before or after it has become a supernet): see also :func:`constrain`."""
        return _limited.get(space) or cls(space.simplify())

    def unfiltered(self) -> SubSpace:
        """The same without the filter."""
        return SubSpace(self.mutables)

    def range_of(self, name: str) -> Range | None:
        """The range of the score of a name: of bands only."""
        return next((each for each in self.ranges if each.score.name == name), None)

    def sample(self, random_state: RandomState) -> Sample:
        """One sample (label to choice), drawn uniformly, or by the weights of a ``Categorical`` that has them.

        Raises
        ------
        RuntimeError
            If the filter lets none of ten thousand samples pass.
        """
        for _ in range(TRIES):
            sample = {
                label: _draw(mutable, random_state)
                if _is_single(mutable)
                else mutable.random(random_state=random_state)
                for label, mutable in self.mutables.items()
            }
            if self.filter is None or self.filter(dict(sample)):
                return sample
        raise RuntimeError(f'filter lets none of {TRIES:,} random architectures pass of {self}.')

    @property
    def has_samples(self) -> bool:
        """Whether the filter lets one of ten thousand samples pass."""
        if self.filter is None:
            return True
        try:
            self.sample(RandomState(0))
        except RuntimeError:
            return False
        return True

    def sample_to_compare(self, random_state: RandomState) -> Sample:
        """One sample in which candidates are put in place of the choices, label by label.

        Constraints between choices then hold for these, too, where that is so of one of a hundred samples that are
        drawn. A filter may keep them out.
        """
        sample = self.sample(random_state)
        if (rules := Rules.of(self.filter)) is None:
            return sample
        drawn = sample
        for _ in range(100):
            if all(rules.hold({**drawn, label: each}) for label, some in self.splittable.items() for each in some):
                return drawn
            drawn = self.sample(random_state)
        return sample

    def covers(self, sample: Sample) -> bool:
        """Whether all choices of a sample are allowed ones, whatever the filter says."""
        return all(mutable.check_contains(sample) is None for mutable in self.mutables.values())

    def check(self, sample: Sample, name: str = 'sample') -> None:
        """Raise if a sample of the user's has not one of the allowed choices for each label, or has other labels.

        Parameters
        ----------
        sample
            Label to choice.
        name
            What to call it in the message.

        Raises
        ------
        TypeError
            If it is not a dict.
        ValueError
            Naming the label, the choice, and what would be right.
        """
        if not isinstance(sample, Mapping):
            raise TypeError(f'{name} must be a dict of label to choice, but got {sample!r:.100}.')
        rules = Rules.of(self.filter)
        for label, choice in sample.items():
            if label not in self.mutables and not (rules and label in rules.constraints):  # which NNI's samples have
                raise ValueError(
                    f'{name} has {choice!r:.100} for {label!r}, which is no label of the space; '
                    f'its labels are {_listed(self.mutables)}.'
                )
        for label, mutable in self.mutables.items():
            if label not in sample:
                raise ValueError(f'{name} has no choice for {label!r}, which must be {_allowed(mutable)}.')
            if not _is_choice(mutable, sample):
                limits = ' (constraints leave out others)' if self.ranges else ''
                raise ValueError(
                    f'{name} has {sample[label]!r:.100} for {label!r}, which must be {_allowed(mutable)}{limits}.'
                )

    @property
    def extremes(self) -> list[Sample]:
        """The samples of all first and all last choices; of numbers, such as depths, the smallest and the largest.

        Where they are not in the sub-space (of a filter, a band), those of a hundred random samples that have most of
        these choices.
        """
        ends: list[Sample] = [{}, {}]
        for label, mutable in self.mutables.items():
            values = list(mutable.values)
            if all(isinstance(value, (int, float)) for value in values):
                values.sort()
            n = 1 if isinstance(mutable, Categorical) else mutable.n_chosen or 1
            for sample, chosen in zip(ends, (values[:n], values[-n:]), strict=True):
                sample[label] = chosen[0] if isinstance(mutable, Categorical) else chosen
        if all(end in self for end in ends):
            return ends
        random_state = RandomState(0)
        others = [self.sample(random_state) for _ in range(100)]
        return [
            end if end in self else max(others, key=lambda other, end=end: sum(other[k] == end[k] for k in end))
            for end in ends
        ]

    def __contains__(self, sample: Sample) -> bool:
        return self.covers(sample) and (self.filter is None or bool(self.filter(dict(sample))))

    @property
    def size(self) -> int:
        """Number of samples, whatever the filter says.

        Those that differ only in choices a shallower network does not read count separately.
        """
        return math.prod(_n_choices(mutable) for mutable in self.mutables.values())

    @property
    def splittable(self) -> dict[str, list[Any]]:
        """Labels with two or more candidates that can be split, and their candidates, as they are in samples.

        One chosen of several inputs is ``[0]`` there, where the choice of a ``Categorical`` is itself.
        """
        return {
            label: mutable.values if isinstance(mutable, Categorical) else [[value] for value in mutable.values]
            for label, mutable in self.mutables.items()
            if _is_single(mutable) and len(mutable.values) > 1
        }

    @property
    def unsplittable(self) -> list[str]:
        """Labels with two or more choices that cannot be split, because more than one value may be chosen."""
        return [
            label for label, mutable in self.mutables.items() if not _is_single(mutable) and _n_choices(mutable) > 1
        ]

    def split(self, label: str, groups: Sequence[Sequence[int]]) -> list[SubSpace]:
        """One sub-space per group, disjoint, together this one.

        Parameters
        ----------
        label
            One of :attr:`splittable`.
        groups
            Indices of candidates; each candidate in exactly one group.

        Raises
        ------
        ValueError
            If ``label`` cannot be split, or ``groups`` are not a partition of its candidates.
        """
        if label not in self.splittable:
            raise ValueError(f'Label must be one of {list(self.splittable)}, but got {label!r}.')
        n = len(self.mutables[label].values)
        groups = [list(map(int, group)) for group in groups]
        if len(groups) < 2 or not all(groups) or sorted(i for g in groups for i in g) != list(range(n)):
            raise ValueError(f'Groups must be a partition of the {n} candidates, but got {groups}.')
        return [self.narrow({label: group}) for group in groups]

    def narrow(self, choices: Mapping[str, Sequence[int]]) -> SubSpace:
        """The samples of this sub-space that have certain choices only.

        Parameters
        ----------
        choices
            For some labels of :attr:`splittable`, which of their candidates are kept, by their indices.

        Raises
        ------
        ValueError
            Naming the label, if it cannot be split, or the indices, if they are not different ones of candidates.
        """
        narrowed = {}
        for label, kept in choices.items():
            if label not in self.splittable:
                raise ValueError(f'Label must be one of {list(self.splittable)}, but got {label!r}.')
            values, indices = self.mutables[label].values, list(map(int, kept))
            if not indices or len(set(indices)) < len(indices) or not set(indices) <= set(range(len(values))):
                raise ValueError(f'Choices of {label} must be different numbers below {len(values)}, but got {kept}.')
            narrowed[label] = _narrow(self.mutables[label], [values[i] for i in indices])
        return SubSpace({**self.mutables, **narrowed}, self.filter)

    def narrowed(self, whole: SubSpace) -> dict[str, list[Any]]:
        """In what it is less than the whole: the labels that have fewer choices there, and the choices they have."""
        return {
            label: list(mutable.values)
            for label, mutable in self.mutables.items()
            if len(mutable.values) < len(whole.mutables[label].values)
        }

    def encode_part(self, part: SubSpace) -> dict[str, Any]:
        """A part of this sub-space, for JSON."""
        return part._encode_in(self)

    def decode_part(self, content: dict[str, Any]) -> SubSpace:
        """The part that :meth:`encode_part` has put into plain types."""
        part = self.narrow(content['choices'])
        bands = content.get('bands') or ([content['band']] if 'band' in content else [])  # of an earlier version
        if not bands:
            return part
        from nni_naslid.space.band import decode_bands  # which are some of these

        return decode_bands(bands, part, self)

    def _encode_in(self, whole: SubSpace) -> dict[str, Any]:
        narrowed = SubSpace.narrowed(self, whole).items()
        return {'choices': {label: [whole.mutables[label].values.index(c) for c in kept] for label, kept in narrowed}}

    def overlaps(self, other: SubSpace) -> bool:
        """Whether there are samples that are in both, whatever the filter says."""
        return all(
            any(choice in other.mutables[label].values for choice in mutable.values)
            for label, mutable in self.mutables.items()
        )

    def check_parts(self, parts: Sequence[SubSpace]) -> None:
        """Raise if sub-spaces are not two or more parts of this one, disjoint and together the whole.

        Raises
        ------
        ValueError
            Naming what is wrong.
        """
        if len(parts) < 2:
            raise ValueError(f'a split has at least two parts, but this one has {len(parts)}')
        for i, part in enumerate(parts):
            if other := next((other for other in parts[:i] if part.overlaps(other)), None):
                raise ValueError(f'two parts have architectures in common, {other} and {part}')
        if (together := sum(part.size for part in parts)) != self.size:
            raise ValueError(f'the parts have {together:,} architectures together, but the whole has {self.size:,}')

    def canonical(self, sample: Sample, labels: Collection[str]) -> Sample:
        """The sample with the first choice for each label but these: one of all samples that differ in others only.

        The first choice of any number of values is none of them.
        """
        first = {
            label: mutable.values[0] if isinstance(mutable, Categorical) else mutable.values[: mutable.n_chosen or 0]
            for label, mutable in self.mutables.items()
        }
        return {label: sample[label] if label in labels else first[label] for label in self.mutables}

    def encode(self, sample: Sample) -> dict[str, int | list[int]]:
        """A sample for JSON, which does not keep every choice as it is: the places of choices among the allowed."""
        return {
            label: mutable.values.index(sample[label])
            if isinstance(mutable, Categorical)
            else [mutable.values.index(choice) for choice in sample[label]]
            for label, mutable in self.mutables.items()
        }

    def decode(self, places: dict[str, int | list[int]]) -> Sample:
        """The sample that :meth:`encode` has put into places."""
        return {
            label: mutable.values[places[label]]
            if isinstance(mutable, Categorical)
            else [mutable.values[place] for place in places[label]]
            for label, mutable in self.mutables.items()
        }

    def to_dict(self) -> dict[str, list[Any]]:
        """Label to allowed choices, for JSON."""
        return {label: list(mutable.values) for label, mutable in self.mutables.items()}

    @property
    def multiple(self) -> dict[str, int | None]:
        """Label to how many are chosen (``None`` for any number), of choices that are lists in samples."""
        return {
            label: mutable.n_chosen
            for label, mutable in self.mutables.items()
            if isinstance(mutable, CategoricalMultiple)
        }

    @classmethod
    def from_dict(cls, choices: dict[str, list[Any]], multiple: dict[str, int | None]) -> SubSpace:
        """From :meth:`to_dict` and :attr:`multiple`; without weights and filter, so not for sampling."""
        mutables: dict[str, LabeledMutable] = {}
        for name, values in choices.items():
            label = nni_label(name.split('/'))  # of a plain string NNI refuses its own separator
            mutables[name] = (
                CategoricalMultiple(values, n_chosen=multiple[name], label=label)
                if name in multiple
                else Categorical(values, label=label)
            )
        return cls(mutables)

    def __repr__(self) -> str:
        choices = ', '.join(f'{label}: {"|".join(map(str, values))}' for label, values in self.to_dict().items())
        return f'SubSpace({choices})'


def constrain(space: ModelSpace, part: SubSpace) -> None:
    """Let :meth:`SubSpace.of` a model space be a part of it: what a filter lets pass, or what keeps to limits."""
    _limited[space] = part


def _is_single(mutable: Categorical | CategoricalMultiple) -> bool:
    """Whether exactly one value is chosen."""
    return isinstance(mutable, Categorical) or mutable.n_chosen == 1


def _is_choice(mutable: Categorical | CategoricalMultiple, sample: Sample) -> bool:
    """Whether what a sample has for the label of a mutable is one of its choices."""
    try:
        return mutable.check_contains(sample) is None
    except (TypeError, ValueError):  # of an array, say, which is neither equal to a choice nor not
        return False


def _allowed(mutable: Categorical | CategoricalMultiple) -> str:
    """What may be chosen, for people."""
    if isinstance(mutable, Categorical):
        return f'one of {_listed(mutable.values)}'
    if mutable.n_chosen == 1:
        return f'one of {_listed([value] for value in mutable.values)}'
    number = 'any number' if mutable.n_chosen is None else mutable.n_chosen
    return f'a list of {number} of {_listed(mutable.values)}'


def _listed(things: Iterable[Any]) -> str:
    """In one line of an error."""
    text = ', '.join(map(repr, things))
    return text if len(text) <= 300 else f'{text[:299]}…'


def _draw(mutable: Categorical | CategoricalMultiple, random_state: RandomState) -> Any:
    """What ``mutable.random`` gives where one value is chosen, in a tenth of its time: more than it takes to set it."""
    bounds = list(accumulate(mutable.weights))
    value = mutable.values[bisect([bound / bounds[-1] for bound in bounds], random_state.random_sample())]
    return value if isinstance(mutable, Categorical) else [value]


def _n_choices(mutable: Categorical | CategoricalMultiple) -> int:
    if isinstance(mutable, Categorical):
        return len(mutable)
    if mutable.n_chosen is None:
        return 2 ** len(mutable.values)
    return math.comb(len(mutable.values), mutable.n_chosen)


def _narrow(mutable: Categorical | CategoricalMultiple, values: list[Any]) -> Categorical | CategoricalMultiple:
    weights = [mutable.weights[mutable.values.index(value)] for value in values]
    if not sum(weights):  # choices that the user never wants sampled are equal among themselves
        weights = [1.0] * len(weights)
    weights = [weight / sum(weights) for weight in weights]
    if isinstance(mutable, Categorical):
        return Categorical(values, weights=weights, label=mutable.label)
    return CategoricalMultiple(values, n_chosen=1, weights=weights, label=mutable.label)
