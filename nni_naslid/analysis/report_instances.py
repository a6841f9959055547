"""Sections of the page of a run about one ranking and the next: over training, and by calibration batches."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from nni_naslid.analysis.bootstrap import N_BOOTSTRAP
from nni_naslid.analysis.compare import LEAST
from nni_naslid.analysis.figures import plot_over_training
from nni_naslid.analysis.html import format_bounds, format_number, html_figure, html_table
from nni_naslid.analysis.instances import by_calibration, over_training
from nni_naslid.analysis.ranking import compare_rankings
from nni_naslid.analysis.stability import constant_instances, instance_table, s_tau
from nni_naslid.run.record import Record

import pandas as pd

if TYPE_CHECKING:
    from nni_naslid.analysis.report import Column

__all__ = ['calibration_section', 'over_training_section', 'with_truth']


def with_truth(estimates: pd.DataFrame, truth: Column | None) -> tuple[pd.DataFrame, pd.Series | None]:
    """Estimates of the architectures that the truth knows, with it; all of them without truth if it knows too few."""
    if truth is not None and (is_known := estimates.index.isin(truth.values.index)).sum() >= LEAST:
        return estimates[is_known], truth.values.loc[estimates.index[is_known]]
    return estimates, None


def _instances(first: str, estimates: pd.DataFrame, true: pd.Series | None) -> tuple[pd.DataFrame, str]:
    """The figures of a row for each instance, and the same as a table for people."""
    table = instance_table(dict(estimates.items()), true)
    names = {'tau_previous': 'S-Tau', 'tau': 'tau', 'P@5%': 'P@5 %', 'regret@1': 'regret'}
    columns = [name for name in names if name in table]
    rows = [[str(name), *(format_number(row[column]) for column in columns)] for name, row in table.iterrows()]
    return table, html_table([first, *(names[column] for column in columns)], rows)


def _constant(estimates: pd.DataFrame, of: str) -> str:
    """A sentence that names the instances without any order; empty if there are none."""
    if not (names := constant_instances(dict(estimates.items()))):
        return ''
    return f' All estimates {of.format(" and ".join(map(str, names)))} are equal, so they have no tau with others.'


def over_training_section(record: Record, truth: Column | None) -> str:
    """How the ranking of the same architectures changes from epoch to epoch."""
    if (found := over_training(record)) is None:
        return ''
    batches, (estimates, true) = found[0], with_truth(found[1], truth)
    table, rows = _instances('epoch', estimates, true)
    stability = s_tau(dict(estimates.items()), N_BOOTSTRAP)
    name = None if true is None else truth.name
    figure = plot_over_training(record, table, name)
    meaning = 'S-Tau is tau with the row above.'
    if name is not None:
        meaning += (
            f' Tau with {escape(name)}; P@5 %: which part of the best 5 % by estimate is among the best 5 % in truth; '
            f'regret: how much {escape(name)} the first choice loses.'
        )
    stopped = ''
    if any(leaf.stopped is not None for leaf in record.root.leaves):
        stopped = '; those of leaves that were stopped keep their scores, which makes the ranking look settled'
    return (
        '<h2 id="over-training">Ranking over training</h2>\n'
        f'<p>The same {len(estimates):,} architectures, scored with the weights of {len(table)} epochs '
        f'({batches} calibration batches). <b>S-Tau {format_number(stability.value)}</b> '
        f'(95 % {format_bounds(stability)}): the mean of tau between two of these epochs; '
        f'at 1 the ranking does not change any more.{_constant(estimates, "of epoch {}")}</p>\n'
        f'<div class="figures">{html_figure("", figure, "over-training-figure")}</div>\n{rows}\n'
        f'<p class="note">Each architecture is scored by the node that had it then{stopped}. {meaning}</p>'
    )


def calibration_section(record: Record, truth: Column | None) -> str:
    """What the number of calibration batches does to the ranking of the same architectures by the same weights."""
    if (found := by_calibration(record)) is None:
        return ''
    epoch, (estimates, true) = found[0], with_truth(found[1], truth)
    _, rows = _instances('batches', estimates, true)
    gain = _constant(estimates, 'by {} batches')
    ranked = estimates.columns.difference(constant_instances(dict(estimates.items())))
    if true is not None and len(ranked) > 1:
        least, most = ranked[0], ranked[-1]
        more = compare_rankings(estimates[most], estimates[least], true)['tau']
        gain += (
            f' Tau with {escape(truth.name)} by {most} batches minus that by {least}: '
            f'<b>{format_number(more.value)}</b> (95 % {format_bounds(more)}).'
        )
    return (
        '<h2 id="calibration">Effect of calibration</h2>\n'
        f'<p>The same {len(estimates):,} architectures, scored with the weights of epoch {epoch}, and with batch-norm '
        f'statistics of so many training batches; 0 are those of the supernet.{gain}</p>\n{rows}\n'
        '<p class="note">S-Tau is tau with the row above.</p>'
    )
