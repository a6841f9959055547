"""An additive score that predicts what networks cost, or how their features are, from some of them."""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.notes import kept_repeats
from nni_naslid.run.files import append_line
from nni_naslid.space.additive import AdditiveScore, Term, choices_of
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.reads import conditions_of_labels
from nni_naslid.train.reports import quiet
from nni_naslid.traits.costs import cost_of

import numpy as np
from nni.mutable import Sample
from scipy.stats import rankdata
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from torch import nn
from tqdm.auto import tqdm

__all__ = ['UNITS', 'predicted_score', 'ranks_of_paths', 'scopes_of', 'when_read']

_logger = logging.getLogger(__name__)

PENALTIES = np.logspace(-1, 4, 12)
MOST_WITH_PAIRS = 50_000  # architectures: that of NAS-Bench-201 has 15,625
GAIN = 0.01  # of R2 that pairs of labels must bring
UNITS = 1000  # of a whole rank

ReadIf = Mapping[str, Sequence[Mapping[str, Sequence[Any]]]]


def ranks_of_paths(context: Context, weights: Mapping[str, float], n_paths: int) -> tuple[list[Sample], np.ndarray]:
    """Random paths of a node, and what is to be predicted of each: the weighted mean of its ranks by the costs.

    Ranks go from 0 to 1. All paths see the same batch: with one of its own for each, LID says nothing of the path.
    What the notes of the same node and weights have is not computed again.

    Parameters
    ----------
    context
        The node.
    weights
        The costs, with their weights; below 0, networks that cost less have the higher rank.
    n_paths
        How many.

    Raises
    ------
    ValueError
        If a cost cannot be had.
    """
    drawn = [context.subspace.sample(context.random_state) for _ in range(n_paths)]
    samples = list({repr(sample): sample for sample in drawn}.values())
    if 'latency' in weights:  # that of another machine is another one
        context = replace(context, about={**context.about, 'machine': platform.node()})
    known = kept_repeats(context, 'costs')
    if missing := [i for i in range(len(samples)) if i not in known]:
        _logger.info('Node %s: measuring %s of %d random paths.', context.name, ' and '.join(weights), len(missing))
        try:
            with quiet():
                costs = {name: cost_of(name, context.module, context.evaluator, setting='score') for name in weights}
            for i in tqdm(missing, desc=f'Paths of node {context.name}', unit='path', leave=False, disable=None):
                known[i] = {name: cost(samples[i]) for name, cost in costs.items()}
                append_line(context.notes, {**context.about, 'repeat': i, 'costs': known[i]})
        finally:
            context.supernet.cpu()
    total = sum(abs(weight) for weight in weights.values())
    ranks = sum(-min(weight, 0) for weight in weights.values()) / total
    for name, weight in weights.items():
        values = np.array([known[i][name] for i in range(len(samples))], float)
        worst = -math.copysign(math.inf, weight)  # what is not finite, such as LID of features that have diverged
        ranks = ranks + weight / total * (rankdata(np.where(np.isfinite(values), values, worst)) - 0.5) / len(samples)
    return samples, ranks


def predicted_score(
    space: SubSpace,
    samples: Sequence[Sample],
    values: np.ndarray,
    name: str,
    read_if: ReadIf | None = None,
) -> tuple[AdditiveScore, float]:
    """A sum of terms of single labels, and of pairs of them where that pays, fitted by ridge regression.

    Parameters
    ----------
    space
        The sub-space, with a label that has two candidates.
    samples
        Some of its architectures, all different.
    values
        What is to be predicted, from 0 to 1, of shape ``[S]``.
    name
        Of the score.
    read_if
        Of each label that is not always read, the conditions of which one must hold for that, each by label the choices
        that it takes: see :func:`when_read`. What is not read adds nothing, so samples of one network have one score.

    Returns
    -------
    The score, in thousandths, and the share of the variance of values that it explains (R2): of architectures that it
    was not fitted to, ten-fold; where the samples are all that there are, of these. Pairs are of labels that are always
    read. They are taken if R2 is larger by .01 with them, in spaces of up to 50,000 architectures: in larger ones a sum
    of all pairs takes long to count.
    """
    read_if = read_if or {}
    single = scopes_of(space, read_if)
    always = [label for label in space.splittable if label not in read_if]
    score, explained = _fitted(space, samples, values, name, single, read_if)
    if math.prod(map(len, space.splittable.values())) <= MOST_WITH_PAIRS:
        pairs = _fitted(space, samples, values, name, [*single, *combinations(always, 2)], read_if)
        if pairs[1] > explained + GAIN:
            return pairs
    return score, explained


def scopes_of(space: SubSpace, read_if: ReadIf) -> list[tuple[str, ...]]:
    """The labels that terms of single labels read: each, after those that tell whether it is read."""
    labels = list(space.splittable)
    gated = [label for label in labels if label in read_if]
    return [(label,) for label in labels if label not in read_if] + [
        (*dict.fromkeys(gate for condition in read_if[label] for gate in condition), label) for label in gated
    ]


def _fitted(
    space: SubSpace,
    samples: Sequence[Sample],
    values: np.ndarray,
    name: str,
    scopes: Sequence[tuple[str, ...]],
    read_if: ReadIf,
) -> tuple[AdditiveScore, float]:
    choices = {label: choices_of(space, label) for label in {label for scope in scopes for label in scope}}
    places = {label: [each.index(sample[label]) for sample in samples] for label, each in choices.items()}
    columns, masks = [], []
    for scope in scopes:
        shape = tuple(len(choices[label]) for label in scope)
        masks.append(_is_read(scope, choices, read_if))
        columns.append(
            np.eye(masks[-1].size)[np.ravel_multi_index([places[label] for label in scope], shape)] * masks[-1].ravel()
        )
    features = np.concatenate(columns, 1)
    model = RidgeCV(PENALTIES).fit(features, values)
    explained = 0.0
    if np.ptp(values):
        predicted = model.predict(features)
        if len(samples) < space.size:
            folds = KFold(min(10, len(samples)), shuffle=True, random_state=0)
            predicted = cross_val_predict(RidgeCV(PENALTIES), features, values, cv=folds)
        explained = float(1 - np.mean((values - predicted) ** 2) / np.var(values))
    ends = np.cumsum([mask.size for mask in masks])[:-1]
    tables = [part.reshape(mask.shape) * mask for part, mask in zip(np.split(model.coef_, ends), masks, strict=True)]
    terms = [Term.rounded(scope, table, 1 / UNITS) for scope, table in zip(scopes, tables, strict=True)]
    return AdditiveScore(space, [Term.rounded((), model.intercept_, 1 / UNITS), *terms], name), explained


def _is_read(scope: tuple[str, ...], choices: Mapping[str, Sequence[Any]], read_if: ReadIf) -> np.ndarray:
    """Of each combination of choices of some labels, whether the last of them is read."""
    mask = np.zeros([len(choices[label]) for label in scope], bool)
    for condition in read_if.get(scope[-1], [{}]):
        kept = [
            [i for i, choice in enumerate(choices[label]) if label not in condition or choice in condition[label]]
            for label in scope
        ]
        mask[np.ix_(*kept)] = True
    return mask


def when_read(supernet: nn.Module) -> ReadIf:
    """Of each label that is not always read, the conditions of which one must hold: by label, the choices it takes."""
    space = SubSpace.of(supernet)
    return {
        label: [
            {gate: [choices_of(space, gate)[place] for place in places] for gate, places in condition.items()}
            for condition in conditions
        ]
        for label, conditions in conditions_of_labels(supernet, space).items()
    }
