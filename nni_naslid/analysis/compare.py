"""Estimates of runs against truth, and of runs against each other on the same architectures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import combinations

from nni_naslid.analysis.bootstrap import N_BOOTSTRAP, Interval, intervals, resample
from nni_naslid.analysis.measures import kendall, precision_at_top
from nni_naslid.analysis.stability import constant_instances
from nni_naslid.analysis.truth import arch_name
from nni_naslid.run.constraints import all_described
from nni_naslid.run.record import Record
from nni_naslid.run.settings import PLAIN
from nni_naslid.run.text import rounded
from nni_naslid.space.reads import network_of

import numpy as np
import pandas as pd
from scipy.stats import rankdata

__all__ = ['by_network', 'compare', 'estimates', 'interval', 'matched', 'rankings_with_prior', 'summary']

LEAST = 3  # architectures that a correlation is computed of


def estimates(record: Record) -> pd.Series:
    """What a run says of the networks that it has scored, larger is better, by the name that a truth has for them."""
    names = [arch_name(score.sample) for score in record.scores]
    return pd.Series([record.estimate(score) for score in record.scores], names, dtype=float)


def by_network(record: Record, values: pd.Series) -> pd.Series:
    """Values by architecture, under the names that a run has for their networks.

    Of a network with choices that it does not read, such as those of blocks beyond its depth, a table has any of the
    samples, and a run always the same. Several rows of one network are averaged. Rows of other spaces stay as they are,
    and so do all where a run of an earlier version does not tell what is read.
    """
    if not record.content.get('read_if') and not record.content.get('graphs'):
        return values
    names = []
    for name in values.index:
        is_sample = name.startswith('{')
        same = network_of(record.content, record.root.subspace, json.loads(name)) if is_sample else None
        names.append(name if same is None else arch_name(same))
    return values.set_axis(names).groupby(level=0, sort=False).mean()


def matched(record: Record, truth: pd.Series) -> tuple[pd.Series, pd.Series, pd.Series]:
    """Estimates, truth and leaves of the networks that both know, in the same order.

    Raises
    ------
    ValueError
        If the run has scored networks of which the truth knows none.
    """
    found = estimates(record)
    is_known = found.index.isin(truth.index)
    known = found[is_known]
    if len(found) and not len(known):
        raise ValueError(
            f'The truth knows none of the {len(found):,} networks that {record.path} has scored, such as '
            f'{found.index[0]:.300}; it knows {len(truth):,} others, such as {truth.index[0]:.300}.'
        )
    leaves = pd.Series([score.leaf.name for score in record.scores], found.index)
    return known, truth.reindex(known.index), leaves[is_known]


def rankings_with_prior(record: Record) -> dict[str, pd.Series]:
    """Of the networks whose costs are known: rankings by metric and prior together, and by each alone.

    Ranks are among these networks, not among random ones as in a search.

    Returns
    -------
    By what they rank by, values by architecture, larger is better. Empty without a prior.
    """
    known = [(score, costs) for score in record.scores if (costs := record.costs_of(score)) is not None]
    if not known:
        return {}
    names = [arch_name(score.sample) for score, _ in known]
    metric, costs = record.settings.monitor, list(record.prior)
    metrics = [record.estimate(score) for score, _ in known]
    turned = {name: [math.copysign(1, weight) * of[name] for _, of in known] for name, weight in record.prior.items()}
    turned = {name: np.nan_to_num(values, nan=-np.inf) for name, values in turned.items()}
    prior = np.sum([abs(weight) * rankdata(turned[name]) for name, weight in record.prior.items()], axis=0)
    found = {
        ' and '.join([metric, *costs]): rankdata(metrics) + prior,
        f'{metric} of the same networks': metrics,
        **turned,
    }
    if len(costs) > 1:
        found[' and '.join(costs)] = prior
    return {name: pd.Series(values, names, dtype=float) for name, values in found.items()}


def interval(statistic: Callable[[np.ndarray], float], n: int) -> Interval:
    """A statistic of ``n`` architectures by their numbers, with its 95 % interval.

    Called with the same numbers for two rankings, it compares them in pairs.
    """
    value = np.array([statistic(np.arange(n))])
    return intervals(value, resample(lambda half: [statistic(half)], n, N_BOOTSTRAP, 0))[0]


def tau(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Kendall's tau-b; NaN below :data:`LEAST` architectures."""
    if len(truth) < LEAST:
        return np.nan
    # Ranks, as scipy takes opposite infinities for NaN.
    return kendall(np.unique(estimate, return_inverse=True)[1], truth, exact=True)


def _settings_text(record: Record) -> str:
    """Settings of training and of ranking, beside the criterion, that are not as in SPOS."""
    kept = record.content['settings']
    told = {name: kept[name] for name in (*PLAIN, 'filter', 'distill', 'stop_hopeless') if name in kept}
    if kept.get('constraints'):
        told['constraints'] = all_described(kept['constraints'])
    if record.prior:
        told['prior'] = dict(record.prior)
    return ', '.join(f'{name}={value!r}' for name, value in told.items())


def top_tenth(estimate: np.ndarray, truth: np.ndarray) -> float:
    """P@10 %: which part of the estimated best tenth is in the true one; NaN below :data:`LEAST` architectures."""
    return np.nan if len(truth) < LEAST else precision_at_top(estimate, truth, max(1, round(len(truth) / 10)))


FIGURES = {'tau': tau, 'P@10%': top_tenth}  # that runs are compared by: order, and head


def summary(record: Record) -> dict[str, str]:
    """A run in a few figures, as text by name."""
    monitor = record.settings.monitor
    first = None if record.first is None else record.metric(record.first.metrics)
    return {
        'state': 'finished' if record.finished else 'unfinished',
        'criterion': record.criterion if record.settings.split_epochs else 'none',
        'settings': _settings_text(record),
        'leaves': str(len(record.root.leaves)),
        'epochs': record.cost,
        'minutes': f'{sum(record.seconds.values()) / 60:.1f}',
        'scored': f'{len(record.scores):,}',
        'first': '' if first is None else f'{monitor} {rounded(first, 4)}',
    }


def compare(records: Sequence[Record], truth: pd.Series | None = None) -> tuple[list[dict[str, str]], list[str]]:
    """A row for each run, and a line for each two of them.

    Parameters
    ----------
    records
        The runs.
    truth
        True accuracies by architecture. Without it there is no tau.

    Returns
    -------
    Rows of text by column, a second one for a run with a prior, of its ranking with that; lines with the differences of
    tau and P@10 % on the architectures that both rankings have, with 95 % intervals over these (in pairs, see
    :mod:`nni_naslid.analysis.bootstrap`).
    """
    names = [record.name for record in records]
    if len(set(names)) < len(names):
        names = [str(record.path) for record in records]
    rows = [{'run': name, **summary(record)} for name, record in zip(names, records, strict=True)]
    if not any(row['settings'] for row in rows):
        rows = [{name: text for name, text in row.items() if name != 'settings'} for row in rows]
    if truth is None:
        return rows, []
    blank = dict.fromkeys(rows[0], '')
    ranked, told = [], []
    for record, row in zip(records, rows, strict=True):
        values, name = by_network(record, truth), row['run']
        ranked.append((name, matched(record, values)[:2]))
        told.append(row | _figures(*ranked[-1][1]))
        if rankings := rankings_with_prior(record):
            ranking = next(iter(rankings.values()))
            ranking = ranking[ranking.index.isin(values.index)]
            ranked.append((f'{name} with prior', (ranking, values.loc[ranking.index])))
            told.append(blank | {'run': ranked[-1][0]} | _figures(*ranked[-1][1]))
    return told, [_pair(*pair) for pair in combinations(ranked, 2)]


def _figures(estimate: pd.Series, true: pd.Series) -> dict[str, str]:
    known, (a, b) = {'known': f'{len(true):,}'}, (estimate.to_numpy(), true.to_numpy())
    if len(true) < LEAST:
        return known | dict.fromkeys(FIGURES, '')
    return known | {
        name: str(interval(lambda half, of=of: of(a[half], b[half]), len(true))) for name, of in FIGURES.items()
    }


def _pair(first: tuple[str, tuple[pd.Series, pd.Series]], second: tuple[str, tuple[pd.Series, pd.Series]]) -> str:
    (name, (one, true)), (other_name, (other, _)) = first, second
    common = one.index[one.index.isin(other.index)]
    names = f'{other_name} less {name}'
    if len(common) < LEAST:
        return f'{names}: only {len(common)} architectures are scored by both and known to the truth.'
    a, b, true = (series.loc[common].to_numpy() for series in (one, other, true))
    if constant := constant_instances({name: a, other_name: b}):
        return f'{names}: no tau, as the estimates of {" and ".join(constant)} are all equal.'
    told = []
    for name, of in FIGURES.items():
        found = interval(lambda half, of=of: of(b[half], true[half]) - of(a[half], true[half]), len(common))
        value, low, high = (rounded(each, sign='+') for each in found)
        told.append(f'{name} {value} [{low}, {high}]')
    return f'{names}: {", ".join(told)} on {len(common):,} architectures of both.'
