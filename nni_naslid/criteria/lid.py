"""Splits by local intrinsic dimension. Without torch before it is asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from nni_naslid.criteria.criterion import Context, take_contrast_settings
from nni_naslid.criteria.evidence import AtChance, ByLabel
from nni_naslid.lid import ESTIMATORS
from nni_naslid.run.checks import brief, groups_at, integer, one_of, sequence
from nni_naslid.run.spec import later
from nni_naslid.space.split import Evidence, Split
from nni_naslid.space.subspace import SubSpace

__all__ = ['LID']

_logger = logging.getLogger(__name__)

SIMILARITIES = ('log_euclidean', 'euclidean', 'pearson', 'cosine')
PARTITIONS = ('enumeration', 'spectral', 'stoer_wagner', 'gaussian_mixture')


@dataclass(frozen=True)
class LID:
    """The label whose candidates' LID profiles fall most clearly into groups is split into these groups.

    See `NAS-LID (AAAI 2023) <https://arxiv.org/abs/2211.12759>`__. It objects to a split where no label separates for
    certain (p < .05) and by enough (``min_contrast``), or where the node is no better than chance on validation data.

    Parameters
    ----------
    n_neighbors
        Neighbours of the LID estimate; at least 3, and less than the training batch size. The other estimators do not
        use it, and need batches of at least 3.
    repeats
        The largest number of batches (each with a random path) on which candidates are profiled at each split; at least
        8. Profiling ends earlier, after 8, 16, 32 ... of them, where one label is clearly the best, or none can be
        worth a split.
    min_contrast
        The smallest effect that is worth a split, at least 0 and below 1: the contrast of a split (similarity inside
        its groups less similarity between them) must be above it even at its lower 95 % bound. With the default of .01,
        LID profiles of different groups differ by a factor of at least 1.1 in a typical layer; a contrast of .1 is a
        factor of about 1.4. With 0 any difference will do that is certain. Of another ``similarity`` the contrast is
        another one: ``'euclidean'`` of profiles that differ by a factor of 1.15 is .01, and ``'cosine'`` and
        ``'pearson'`` do not see a factor at all.
    max_groups
        The largest number of children of one split; at least 2. A list has one number for each level of the tree, from
        the root on, and its last one is for all further levels.
    layers
        Patterns of module names whose outputs make the LID profile, such as ``['cells.*']``. By default the paper's
        for NasBench201 and ProxylessNAS, and all blocks of other spaces.
    estimator
        What the profiles are made of: ``'mle'``, the mean LID of the samples of a batch by maximum likelihood, without
        bias (:func:`~nni_naslid.lid.lid_mle`); ``'two_nn'``, the dimension by the two nearest neighbours of each
        (:func:`~nni_naslid.lid.two_nn`); ``'effective_rank'``, which is no *local* dimension but tells how many
        directions the whole batch takes up (:func:`~nni_naslid.lid.effective_rank`), at five to six times the time.
    similarity
        How two candidates are compared by their profiles: ``'log_euclidean'``, by the factor between them layer by
        layer; ``'euclidean'``, by their difference in relation to their lengths; ``'pearson'``, by the correlation over
        layers; ``'cosine'``, as in NAS-LID, which barely tells profiles apart. All leave out products of the same
        repeat, so that noise does not count: see :func:`~nni_naslid.criteria.similarity.similarity_matrix`.
    partition
        How groups are found: ``'enumeration'``, all there are (of more than 10 candidates, those of average-linkage
        clustering); or for each number of groups only the one that a method proposes: ``'spectral'`` clustering,
        ``'stoer_wagner'`` (minimum cuts), ``'gaussian_mixture'``. Of these groupings too that of the highest contrast
        is taken, and the permutation test searches in the same way. Where all are tried, the contrast is never lower.
        See :func:`~nni_naslid.criteria.partition.best_partition`.

    Raises
    ------
    ValueError
        Naming the setting, if it cannot work with anything.

    Examples
    --------
    >>> LID(n_neighbors=10)  # doctest: +ELLIPSIS
    LID(n_neighbors=10, repeats=32, min_contrast=0.01, max_groups=2, layers=None, estimator='mle', ...)
    """

    n_neighbors: int = 20
    repeats: int = 32
    min_contrast: float = 0.01
    max_groups: int | Sequence[int] = 2
    layers: Sequence[str] | None = None
    estimator: str = later('mle')
    similarity: str = later('log_euclidean')
    partition: str = later('enumeration')

    uses_metric: ClassVar[bool] = True  # it tells whether a node is at chance level

    def __post_init__(self) -> None:
        object.__setattr__(self, 'n_neighbors', integer('n_neighbors', self.n_neighbors, 3))
        take_contrast_settings(self)
        one_of('estimator', self.estimator, ESTIMATORS)
        one_of('similarity', self.similarity, SIMILARITIES)
        one_of('partition', self.partition, PARTITIONS)
        if self.layers is not None:
            layers = sequence('layers', self.layers)
            if not layers or not all(isinstance(layer, str) and layer for layer in layers):
                raise ValueError(
                    "layers must be names of modules or patterns such as 'cells.*', at least one, or None for the "
                    f'default, but got {brief(layers)}.'
                )
            object.__setattr__(self, 'layers', layers)

    def can_split(self, subspace: SubSpace) -> bool:
        """Whether a label has two candidates left."""
        return bool(subspace.splittable)

    def check(self, context: Context) -> dict[str, Any]:
        """The layers whose LID can be computed, and where their outputs have the samples.

        Raises
        ------
        ValueError
            If LID cannot be computed with these layers or batches.
        """
        from nni_naslid.traits.layers import find_layers
        from nni_naslid.traits.places import INPUT

        places = find_layers(
            context.evaluator, context.module, context.subspace, self.layers, self.n_neighbors, self.estimator
        )
        if len(names := [name for name in places if name != INPUT]) < 3:
            _logger.warning('The LID profile has %d layer(s) only, %s; name more with `layers`.', len(names), names)
        return {name: list(place) for name, place in places.items()}

    def cost(self, space: SubSpace) -> int:
        """All repeats; each has a path for every candidate, but one path is of all labels."""
        return self.repeats * paths_per_repeat(space)

    def choose(self, context: Context, find: Any = None) -> Split:
        """The split with the highest lower bound of its contrast; ``find`` may stand in for ``clearest_label``.

        Raises
        ------
        RuntimeError
            If no layer of any path has finite features.
        """
        from nni_naslid.criteria.chance import why_at_chance
        from nni_naslid.criteria.clearest import clearest_label
        from nni_naslid.criteria.partition import best_partition
        from nni_naslid.criteria.repeats import Repeats, finite, name_non_finite
        from nni_naslid.traits.places import INPUT, Place

        places = {name: Place(*place) for name, place in context.checked.items()}
        if (reason := why_at_chance(context, places)) is not None:
            return Split([], AtChance(reason))
        repeats = Repeats(context, places, self.repeats, self.n_neighbors, self.estimator)
        labels = context.subspace.splittable
        try:
            evidence = (find or clearest_label)(
                lambda n_repeats: finite(repeats.profiles(n_repeats)),
                labels,
                repeats=self.repeats,
                paths_per_repeat=paths_per_repeat(context.subspace),
                max_groups=groups_at(context.level, self.max_groups),
                min_contrast=self.min_contrast,
                random_state=context.random_state,
                partition_of=partial(best_partition, similarity=self.similarity, partition=self.partition),
            )
        except ValueError as error:
            raise RuntimeError(f'Node {context.name} cannot be profiled: {error}') from error
        profiles = repeats.profiles(evidence.n_repeats)
        name_non_finite(profiles, labels)
        mean = finite(profiles)[evidence.label].double().mean(0)  # [C, L]
        evidence = replace(evidence, estimator=self.estimator, layers=[name for name in places if name != INPUT],
                           profile=[[round(value, 3) for value in row] for row in mean.tolist()])  # fmt: skip
        return Split(context.subspace.split(evidence.label, evidence.partition.groups), evidence)

    def read_evidence(self, content: Mapping[str, Any]) -> Evidence:
        """A contrast, or a node at chance level."""
        return AtChance(content['at_chance']) if 'at_chance' in content else ByLabel.from_dict(content)


def paths_per_repeat(space: SubSpace) -> int:
    """How many paths a repeat profiles."""
    return 1 + sum(len(candidates) - 1 for candidates in space.splittable.values())
