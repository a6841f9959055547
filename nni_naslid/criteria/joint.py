"""Splits of all labels into one node of a cell together. Without torch before it is asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.evidence import AtRandom, ByLabel, draw_contrasts, draw_panels
from nni_naslid.criteria.gradient import Gradient
from nni_naslid.criteria.lid import LID
from nni_naslid.criteria.random import RandomSplit, random_groups
from nni_naslid.criteria.zero_cost import ZeroCost
from nni_naslid.run.checks import brief, group_numbers, groups_at, sequence
from nni_naslid.run.text import rounded
from nni_naslid.space.split import Evidence, Split
from nni_naslid.space.subspace import SubSpace

from numpy.random import RandomState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['ByNode', 'Joint']

_logger = logging.getLogger(__name__)

BASES = {'lid': LID, 'gradient': Gradient, 'zero_cost': ZeroCost, 'random': RandomSplit}
Parts = Sequence[tuple[str, Sequence[Sequence[int]]]]  # labels, each with the groups of its candidates


@dataclass(frozen=True)
class Joint:
    """The labels of one node of a cell are split together: each into two groups, with a child for each combination.

    Edges that end in the same node decide together what it computes: see `HEP-NAS (AAAI 2025)
    <https://arxiv.org/abs/2412.10723>`__, which splits each of them fully and goes on with the best child; here
    candidates that are alike stay together, and all children are trained. ``E`` labels make ``2^E`` children.

    Another criterion says how the candidates of each label fall into groups. A label has a part in the split if it
    passes the tests that it would have to pass alone: its groups are certain (p < .05, corrected for the number of
    labels) and worth it (``min_contrast``). The node whose labels have the largest sum of lower bounds of their
    contrasts is split; the criterion objects where no label passes.

    Parameters
    ----------
    by
        What says how candidates are grouped: ``'lid'``, ``'gradient'``, ``'zero_cost'`` or ``'random'``, or an object
        of :class:`~nni_naslid.criteria.lid.LID`, :class:`~nni_naslid.criteria.gradient.Gradient`,
        :class:`~nni_naslid.criteria.zero_cost.ZeroCost` or :class:`~nni_naslid.criteria.random.RandomSplit` with
        settings of its own. At random a node is drawn, and groups, as a control.
    labels
        Which labels belong together: a list of lists of labels, such as ``[['first', 'second'], ['third']]``. Others
        are not split. By default those of each node of the cells of NNI: of the edges that end there, and of where
        these come from (NAS-Bench-201, DARTS and other spaces of :class:`nni.nas.nn.pytorch.Cell`).
    max_groups
        The largest number of children of one split; at least 2. So many labels of a node are split as have at most that
        many combinations, the clearest: two with 4, three with 8, one with less than 4. A list has one number for each
        level of the tree, from the root on, and its last one is for all further levels.

    Raises
    ------
    ValueError
        Naming the setting, if it cannot work with anything.

    Examples
    --------
    >>> Joint(LID(n_neighbors=10), max_groups=8).by.n_neighbors
    10
    """

    by: str | LID | Gradient | ZeroCost | RandomSplit = 'lid'
    labels: Sequence[Sequence[str]] | None = None
    max_groups: int | Sequence[int] = 4

    def __post_init__(self) -> None:
        by = BASES[self.by]() if isinstance(self.by, str) and self.by in BASES else self.by
        if type(by) not in BASES.values():
            raise ValueError(f'by must be one of {", ".join(BASES)}, or an object such as LID(), but got {brief(by)}.')
        if by.max_groups != 2:
            raise ValueError(f'by must have max_groups=2, as each label is cut into two groups, but got {brief(by)}.')
        object.__setattr__(self, 'by', by)
        object.__setattr__(self, 'max_groups', group_numbers('max_groups', self.max_groups))
        if self.labels is not None:
            object.__setattr__(self, 'labels', _checked(self.labels))

    @property
    def uses_metric(self) -> bool:
        """As what groups the candidates."""
        return self.by.uses_metric

    def can_split(self, subspace: SubSpace) -> bool:
        """Whether a label has two candidates left; of those given, if they are of the space, which ``check`` says."""
        given = {label for node in self.labels or () for label in node} & subspace.mutables.keys()
        return any(label in subspace.splittable for label in given) if given else bool(subspace.splittable)

    def check(self, context: Context) -> dict[str, Any]:
        """The labels of each node, and what ``by`` has found.

        Raises
        ------
        ValueError
            If no labels belong together, or if ``by`` cannot work.
        """
        from nni_naslid.criteria.together import nodes_of

        splittable = context.subspace.splittable
        for label in (label for node in self.labels or () for label in node):
            if label not in splittable:
                raise ValueError(f'Joint: {label!r} must be one of {", ".join(splittable)}, which can be split.')
        nodes = _left(nodes_of(context.supernet) if self.labels is None else self.labels, splittable)
        if not any(len(node) > 1 for node in nodes):
            raise ValueError(
                f'Joint: {type(context.supernet).__name__} has no cell of NNI with two labels into one node. Say which '
                f'belong together, labels=[[...], ...]; there are {", ".join(splittable)}.'
            )
        return {'nodes': nodes, 'by': self.by.check(context)}

    def cost(self, space: SubSpace) -> int:
        """As of what groups the candidates, which looks at all labels."""
        return self.by.cost(space)

    def choose(self, context: Context) -> Split:
        """The split of the node whose labels have the largest sum of lower bounds."""
        nodes = _left(context.checked['nodes'], context.subspace.splittable)
        if not nodes:
            return Split([], ByNode())
        if isinstance(self.by, RandomSplit):
            return Split(_children(context, self._at_random(context, nodes))[0], AtRandom())
        from nni_naslid.criteria.together import clearest_node

        evidence: list[ByLabel] = []

        def find(*args: Any, **settings: Any) -> ByLabel:
            evidence.extend(clearest_node(*args, nodes=nodes, most=self._most(context), **settings))
            return evidence[0]

        split = self.by.choose(replace(context, checked=context.checked['by']), find)
        if not evidence:  # it has not looked
            return split
        children, n = _children(context, [(each.label, each.partition.groups) for each in evidence])
        return Split(children, ByNode(evidence[:n]))

    def _most(self, context: Context) -> int:
        """How many labels have at most ``max_groups`` combinations of two groups each."""
        return groups_at(context.level, self.max_groups).bit_length() - 1

    def _at_random(self, context: Context, nodes: Sequence[Sequence[str]]) -> Parts:
        candidates, random_state = context.subspace.splittable, context.random_state
        node = nodes[random_state.randint(len(nodes))]
        labels = [node[i] for i in random_state.permutation(len(node))[: self._most(context)]]
        return [(label, random_groups(len(candidates[label]), 2, random_state)) for label in labels]

    def read_evidence(self, content: Mapping[str, Any]) -> Evidence:
        """What was found of a node, or that it is at chance level, or nothing of a random split."""
        if 'parts' in content:
            return ByNode([ByLabel.from_dict(part) for part in content['parts']])
        return self.by.read_evidence(content)


def _checked(labels: Any) -> list[list[str]]:
    nodes = [sequence('labels', node) for node in sequence('labels', labels)]
    given = [label for node in nodes for label in node]
    if not all(isinstance(label, str) for label in given) or len(set(given)) < len(given):
        raise ValueError(f'labels must be lists of different labels, but got {brief(labels)}.')
    if not any(len(node) > 1 for node in nodes):
        raise ValueError(f'labels must have two that belong together, but got {brief(labels)}.')
    return nodes


def _left(nodes: Sequence[Sequence[str]], splittable: Mapping[str, Any]) -> list[list[str]]:
    """The labels of each node that have two candidates left."""
    left = ([label for label in node if label in splittable] for node in nodes)
    return [node for node in left if node]


def _children(context: Context, parts: Parts) -> tuple[list[SubSpace], int]:
    """A child for each combination of groups, and of how many labels: less, where one would have no network."""
    for n in range(len(parts), 0, -1):
        labels, groups = zip(*parts[:n], strict=True)
        try:
            children = [context.subspace.narrow(dict(zip(labels, each, strict=True))) for each in product(*groups)]
            for child in children if context.subspace.filter is not None and n > 1 else ():
                child.sample(RandomState(0))
            return children, n
        except (RuntimeError, ValueError) as error:  # of a filter, and of a band
            if n == 1:
                raise
            _logger.info('Node %s is not split by %s, too: %s', context.name, labels[-1], error)
    raise AssertionError('there is a label')


@dataclass(frozen=True)
class ByNode:
    """The evidence for splitting labels of one node together.

    Attributes
    ----------
    parts
        The evidence for each label, the clearest first. Where it objects, the clearest label only; none, where no node
        has a label with two candidates left.
    """

    parts: Sequence[ByLabel] = field(default_factory=list)

    @property
    def objection(self) -> str | None:
        """What speaks against the split, for people; ``None`` if nothing does."""
        return self.parts[0].objection if self.parts else 'no node has a label with two candidates left'

    def describe(self) -> str:
        """Contrast, bounds and p of each label, repeats and passes."""
        if not self.parts:
            return ''
        first = self.parts[0]
        return f'{"; ".join(self._figures)}; {first.n_repeats} repeats, {first.n_passes:,} passes'

    @property
    def _figures(self) -> list[str]:
        return [
            f'{part.label}: contrast {rounded(part.partition.score)}, 95 % {rounded(part.partition.lower)} to '
            f'{rounded(part.partition.upper)}, p {part.p_value:.2g}'
            for part in self.parts
        ]

    def figure(self, title: str) -> Figure | None:
        """Similarities of the candidates of each label, and the contrasts of all labels."""
        if not self.parts:
            return None
        first = self.parts[0]
        decision = 'is split' if self.objection is None else f'is not split: {self.objection}'
        draw = partial(
            draw_contrasts, contrasts=first.contrasts, chosen=[part.label for part in self.parts],
            min_contrast=first.min_contrast,
        )  # fmt: skip
        name, _, height = first.panels[-1]
        panels = [*(part.panels[0] for part in self.parts), (name, draw, height)]
        return draw_panels('\n'.join([f'{title} {decision}', *self._figures]), panels)

    def scalars(self) -> dict[str, float]:
        """The contrast of each label, bounds and p of those that are split, and how much was looked at."""
        if not self.parts:
            return {}
        first = self.parts[0]
        return {
            'repeats': first.n_repeats,
            'passes': first.n_passes,
            **{f'contrasts/{label}': contrast.score for label, contrast in first.contrasts.items()},
            **{f'contrast_lower/{part.label}': part.partition.lower for part in self.parts},
            **{f'contrast_upper/{part.label}': part.partition.upper for part in self.parts},
            **{f'p/{part.label}': part.p_value for part in self.parts},
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {'parts': [part.to_dict() for part in self.parts]}
