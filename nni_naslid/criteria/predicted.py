"""An additive score that predicts what networks cost, or how their features are, from some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.notes import kept_repeats
from nni_naslid.run.files import append_line
from nni_naslid.space.additive import AdditiveScore, Term, choices_of
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.reports import quiet
from nni_naslid.traits.costs import cost_of

import numpy as np
from nni.mutable import Categorical, Sample
from scipy.stats import rankdata
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from tqdm.auto import tqdm

__all__ = ['predicted_score', 'ranks_of_paths']

PENALTIES = np.logspace(-1, 4, 12)
GAIN = 0.01  # of R2 that pairs of labels must bring
UNITS = 1000  # of a whole rank


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
    samples = [context.subspace.sample(context.random_state) for _ in range(n_paths)]
    known = kept_repeats(context, 'costs')
    missing = [i for i in range(n_paths) if i not in known]
    if missing:
        with quiet():
            costs = {name: cost_of(name, context.module, context.evaluator, setting='score') for name in weights}
        for i in tqdm(missing, desc=f'Paths of node {context.name}', unit='path', leave=False, disable=None):
            known[i] = {name: cost(samples[i]) for name, cost in costs.items()}
            append_line(context.notes, {**context.about, 'repeat': i, 'costs': known[i]})
    total = sum(abs(weight) for weight in weights.values())
    ranks = 0.0
    for name, weight in weights.items():
        values = np.array([known[i][name] for i in range(n_paths)], float)
        values = np.where(np.isfinite(values), values, -np.inf)  # such as LID of features that have diverged
        ranks = ranks + weight / total * (rankdata(values) - 0.5) / n_paths
    return samples, ranks + sum(-weight for weight in weights.values() if weight < 0) / total


def predicted_score(
    space: SubSpace, samples: Sequence[Sample], values: np.ndarray, name: str
) -> tuple[AdditiveScore, float]:
    """A sum of terms of single labels, and of pairs of them where that pays, fitted by ridge regression.

    Parameters
    ----------
    space
        The sub-space.
    samples
        Some of its architectures.
    values
        What is to be predicted, from 0 to 1, of shape ``[S]``.
    name
        Of the score.

    Returns
    -------
    The score, in thousandths, and the share of the variance of values that it explains for architectures which it was
    not fitted to (R2, ten-fold). Pairs are taken if this is larger by .01 with them, and networks can still be counted.
    """
    labels = [label for label in space.splittable if isinstance(space.mutables[label], Categorical)]
    single = [(label,) for label in labels]
    score, explained = _fitted(space, samples, values, name, single)
    try:
        with_pairs, more = _fitted(space, samples, values, name, [*single, *combinations(labels, 2)])
        if more > explained + GAIN:
            with_pairs.count()
            score, explained = with_pairs, more
    except ValueError:  # too many labels depend on each other
        pass
    return score, explained


def _fitted(
    space: SubSpace, samples: Sequence[Sample], values: np.ndarray, name: str, scopes: Sequence[tuple[str, ...]]
) -> tuple[AdditiveScore, float]:
    choices = {label: choices_of(space, label) for scope in scopes for label in scope}
    shapes = [tuple(len(choices[label]) for label in scope) for scope in scopes]
    columns = []
    for scope, shape in zip(scopes, shapes, strict=True):
        places = [[choices[label].index(sample[label]) for sample in samples] for label in scope]
        columns.append(np.eye(int(np.prod(shape)))[np.ravel_multi_index(places, shape)])
    features = np.concatenate(columns, 1)
    model = RidgeCV(PENALTIES)
    predicted = cross_val_predict(model, features, values, cv=KFold(10, shuffle=True, random_state=0))
    explained = 1 - np.mean((values - predicted) ** 2) / np.var(values) if np.ptp(values) else 0.0
    model.fit(features, values)
    ends = np.cumsum([column.shape[1] for column in columns])[:-1]
    tables = [part.reshape(shape) for part, shape in zip(np.split(model.coef_, ends), shapes, strict=True)]
    terms = [Term.rounded(scope, table, 1 / UNITS) for scope, table in zip(scopes, tables, strict=True)]
    return AdditiveScore(space, [Term.rounded((), model.intercept_, 1 / UNITS), *terms], name), float(explained)
