"""Splits by gradient matching: candidates stay together that want the weights they share changed alike.

Without torch before it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from nni_naslid.criteria.criterion import Context, take_contrast_settings
from nni_naslid.criteria.evidence import ByLabel
from nni_naslid.criteria.lid import paths_per_repeat
from nni_naslid.run.checks import groups_at, one_of
from nni_naslid.run.spec import later
from nni_naslid.space.split import Split
from nni_naslid.space.subspace import SubSpace

__all__ = ['Gradient']

SIMILARITIES = ('cosine', 'per_filter', 'l2')
PARTITIONS = ('enumeration', 'spectral', 'stoer_wagner')
PASSES = 3  # forward passes that a gradient costs: the way back takes about two


@dataclass(frozen=True)
class Gradient:
    """The label whose candidates' gradients fall most clearly into groups is split into these groups.

    See `GM-NAS (ICLR 2022) <https://openreview.net/forum?id=_jMtny3sMKU>`__. In each repeat, all candidates of all
    labels see the same batch on the same random path, in which only the candidate in question is put in place. Two
    candidates are compared by the gradients of the loss, which is what ``training_step`` returns, with respect to all
    weights that get one from both. The network is in training mode: batch norms use the statistics of the batch, and
    dropout draws the same random numbers for all candidates.

    The similarity of two candidates is the mean of the repeats, each with a path and batch of its own. So it says how
    well two gradients of the *same batch* agree on an average path, and needs no correction for noise: what a batch
    does to the gradients of both candidates is a part of it. (The mean gradients of many batches, which are not
    compared here, would agree more.) The error bars come from the spread of the repeats. The criterion objects to a
    split where no label separates for certain (p < .05) and by enough (``min_contrast``).

    One gradient for each candidate of one label is in memory, and one for the path, besides what a training step takes.
    They are computed on one device. In a band, and in a space with a filter, the path with another candidate in place
    may be outside of it; it is compared all the same, as :class:`~nni_naslid.criteria.lid.LID` does.

    Parameters
    ----------
    similarity
        How two gradients are compared; 1 where they are the same, 0 where one is zero or not finite:

        - ``'cosine'``: the cosine of all shared weights as one vector.
        - ``'per_filter'``: the cosine of each output filter (first dimension of a weight of two or more), averaged over
          all filters to which one of the two gives a gradient.
        - ``'l2'``: one less the squared Euclidean distance, divided by the sum of both squared lengths. Lengths count
          too, and their scale does not.

        The code of GM-NAS has all three, the last as a distance that is not divided by anything. A weight of which
        candidates use different parts, such as a kernel of several sizes, counts as a whole.
    repeats
        The largest number of batches (each with a random path) at each split; at least 8. It ends earlier, after 8, 16,
        32 ... of them, where one label is clearly the best, or none can be worth a split.
    min_contrast
        The smallest effect that is worth a split, at least 0 and below 1: the contrast of a split (similarity inside
        its groups less similarity between them) must be above it even at its lower 95 % bound. With 0 any difference
        will do that is certain.
    max_groups
        The largest number of children of one split; at least 2. A list has one number for each level of the tree, from
        the root on, and its last one is for all further levels.
    partition
        How groups are found: ``'enumeration'``, ``'spectral'`` or ``'stoer_wagner'``, as in
        :class:`~nni_naslid.criteria.lid.LID`.

    Raises
    ------
    ValueError
        Naming the setting, if it cannot work with anything.

    Examples
    --------
    >>> Gradient('per_filter')
    Gradient(similarity='per_filter', repeats=32, min_contrast=0.01, max_groups=2, partition='enumeration')
    """

    similarity: str = 'cosine'
    repeats: int = 32
    min_contrast: float = 0.01
    max_groups: int | Sequence[int] = 2
    partition: str = later('enumeration')

    uses_metric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        one_of('similarity', self.similarity, SIMILARITIES)
        one_of('partition', self.partition, PARTITIONS)
        take_contrast_settings(self)

    def can_split(self, subspace: SubSpace) -> bool:
        """Whether a label has two candidates left."""
        return bool(subspace.splittable)

    def check(self, context: Context) -> dict[str, Any]:
        """Raise if ``training_step`` gives no loss with a gradient.

        Raises
        ------
        ValueError
            Naming the user's module, and what it returns or raises.
        """
        from nni_naslid.criteria.matching import check_loss

        check_loss(context)
        return {}

    def cost(self, space: SubSpace) -> int:
        """All repeats; each has a path for every candidate, but one path is of all labels. A gradient counts thrice."""
        return PASSES * self.repeats * paths_per_repeat(space)

    def choose(self, context: Context, find: Any = None) -> Split:
        """The split with the highest lower bound of its contrast; ``find`` may stand in for ``clearest_label``."""
        from nni_naslid.criteria.clearest import clearest_label
        from nni_naslid.criteria.matching import Matching
        from nni_naslid.criteria.partition import best_partition_of_similarities

        evidence = (find or clearest_label)(
            Matching(context, self.repeats, self.similarity).similarities,
            context.subspace.splittable,
            repeats=self.repeats,
            paths_per_repeat=PASSES * paths_per_repeat(context.subspace),
            max_groups=groups_at(context.level, self.max_groups),
            min_contrast=self.min_contrast,
            random_state=context.random_state,
            partition_of=partial(best_partition_of_similarities, partition=self.partition),
        )
        return Split(context.subspace.split(evidence.label, evidence.partition.groups), evidence)

    def read_evidence(self, content: Mapping[str, Any]) -> ByLabel:
        """A contrast."""
        return ByLabel.from_dict(content)
