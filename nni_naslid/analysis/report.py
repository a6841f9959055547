"""The report of a run: one page that can be opened, sent and read on a phone, with nothing to load."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from nni_naslid.analysis.baselines import nasbench201_costs
from nni_naslid.analysis.compare import LEAST, by_network, matched, rankings_with_prior, tau
from nni_naslid.analysis.figures import (
    as_svg,
    colors_of,
    plot_curves,
    plot_over_training,
    plot_pareto,
    plot_scores,
    plot_truth,
)
from nni_naslid.analysis.html import Html, format_bounds, format_duration, format_number, html_figure, html_table
from nni_naslid.analysis.instances import over_training
from nni_naslid.analysis.pareto import front_figures, front_section
from nni_naslid.analysis.plots import plot_tree
from nni_naslid.analysis.ranking import ranking_report
from nni_naslid.analysis.ranking_report import RankingReport
from nni_naslid.analysis.report_instances import calibration_section, over_training_section, with_truth
from nni_naslid.analysis.stability import instance_table
from nni_naslid.run.constraints import all_described
from nni_naslid.run.record import Record
from nni_naslid.run.text import amount
from nni_naslid.space.tree import Node, format_size

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

__all__ = ['Column', 'report_figures', 'report_page']

N_BEST = 10  # networks in the table
LEAST_TOP = 40  # networks of which a tenth has an order worth telling
# Nothing is loaded and no script runs, whatever a label of the space is called.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


Known = tuple[pd.Series, pd.Series, pd.Series]  # what matched returns


@dataclass(frozen=True)
class Column:
    """A column of a table about architectures: its name, and its values by architecture string."""

    name: str
    values: pd.Series


def report_figures(record: Record, truth: Column | None = None, costs: Sequence[Column] = ()) -> dict[str, Figure]:
    """All figures of a run by name; those are absent of which there is nothing to see yet."""
    truth, costs = _by_network(record, truth), [_by_network(record, cost) for cost in costs]
    figures = {'tree': plot_tree(record.root, record.settings.monitor)}
    for metric in _metrics(record):
        figures[f'curve-{metric}'] = plot_curves(record, metric)
    for node in record.root:
        if node.split is not None and (figure := node.split.evidence.figure(f'Node {node.name}')) is not None:
            figures[f'split-{node.name}'] = figure
    if record.scores:
        figures['scores'] = plot_scores(record)
        figures |= front_figures(record)
    if (found := over_training(record)) is not None:
        estimates, true = with_truth(found[1], truth)
        table, name = instance_table(dict(estimates.items()), true), None if true is None else truth.name
        figures['over-training'] = plot_over_training(record, table, name)
    if record.scores:
        if truth is not None:
            figures['truth'] = plot_truth(record, *matched(record, truth.values), truth.name)
        for i, cost in enumerate(costs):
            figures[f'pareto-{cost.name}' if i else 'pareto'] = plot_pareto(
                record, *matched(record, cost.values), cost.name
            )
    return figures


def report_page(record: Record, truth: Column | None = None, costs: Sequence[Column] = ()) -> str:
    """The page, as HTML.

    Parameters
    ----------
    record
        The run, finished or not. What is not there yet is named.
    truth
        True accuracies.
    costs
        What a network costs, such as its parameters, or other scores of it that need no supernet.

    Raises
    ------
    ValueError
        If truth or a cost know none of the networks.
    """
    truth, costs = _by_network(record, truth), [_by_network(record, cost) for cost in costs]
    style = files('nni_naslid.analysis').joinpath('report.css').read_text()
    title = escape(f'{record.name}: {"finished" if record.finished else "unfinished"} run of {record.criterion}')
    known = None if truth is None or not record.scores else matched(record, truth.values)
    parts = [
        _head(record, truth, known),
        _missing(record, truth),
        _tree(record),
        _truth(record, truth, known, costs),
        over_training_section(record, truth),
        calibration_section(record, truth),
        front_section(record),
        _pareto(record, costs),
        _networks(record),
        _curves(record),
        _splits(record),
        _costs(record),
        _settings(record),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n'
        + '\n'.join(part for part in parts if part)
        + '\n</body>\n</html>\n'
    )


def _by_network(record: Record, column: Column | None) -> Column | None:
    return None if column is None else Column(column.name, by_network(record, column.values))


def _metrics(record: Record) -> list[str]:
    """Names of what validation while training has found, the one that ranks first."""
    names = dict.fromkeys(name for curve in record.curves.values() for at in curve.values() for name in at)
    return sorted(names, key=lambda name: name != record.settings.monitor)


def _head(record: Record, truth: Column | None, known: Known | None) -> str:
    root = record.root
    spent = sum(record.seconds.values())
    changed = time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(record.changed))
    n_splits = sum(bool(node.children) for node in root)
    tiles = {
        'leaf' if len(root.leaves) == 1 else 'leaves': f'{len(root.leaves)}',
        'split' if n_splits == 1 else 'splits': f'{n_splits}',
        f'epochs trained; a path from root to leaf has {record.max_epochs - root.start_epoch}': record.cost,
        'of training and choosing splits': format_duration(spent),
        'networks scored': f'{len(record.scores):,}',
    }
    if record.first is not None and (value := record.metric(record.first.metrics)) is not None:
        what = '{} of the first network' if record.found else 'best {} of a network'
        tiles[what.format(record.settings.monitor)] = f'{value:.4g}'
    if known is not None:
        estimate, true, _ = known
        tiles[f"Kendall's tau with {truth.name}"] = format_number(tau(estimate.to_numpy(), true.to_numpy()))
    boxes = ''.join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for k, v in tiles.items())
    split_by = f'split by {escape(record.criterion)} and ' if record.settings.split_epochs else ''
    return (
        f'<h1>{escape(record.name)}</h1>\n'
        f'<p>A supernet of {format_size(root.subspace.size)} architectures{escape(_limits(record))}, '
        f'{split_by}ranked by <code>{escape(record.settings.monitor)}</code> '
        f'({"larger" if record.settings.mode == "max" else "smaller"} is better)'
        f'{escape(f" and, as a prior, by {_described(record.prior)}") if record.prior else ""}. '
        f'{"The run is finished" if record.finished else "The run is not finished"}; last change {changed}.</p>\n'
        f'<div class="tiles">{boxes}</div>'
    )


def _limits(record: Record) -> str:
    told = all_described(record.content['settings'].get('constraints'))
    return f' with {told}' if told else ''


def _missing(record: Record, truth: Column | None) -> str:
    """What a run does not have yet."""
    missing = [f'Node {node.name}: {record.state[node.name]}.' for node in record.root.due]
    if record.n_searched is None:
        missing.append(
            f'The search has not ended; {len(record.scores):,} networks are scored so far.'
            if record.scores
            else 'The search has not begun.'
        )
    if truth is not None and not record.scores:
        missing.append(f'No network is scored yet that could be held against {truth.name}.')
    if not missing:
        return ''
    items = ''.join(f'<li>{escape(line)}</li>' for line in missing)
    return f'<div class="missing" id="missing"><b>Not there yet</b><ul>{items}</ul></div>'


def _tree(record: Record) -> str:
    picture = as_svg(plot_tree(record.root, record.settings.monitor), 'tree', 'The tree')
    return (
        '<h2 id="tree">The tree</h2>\n'
        '<p class="note">Each box is a sub-supernet. Leaves have colours, the same in all figures. Its metric is that '
        'of random paths through the sub-supernet.</p>\n'
        f'<ul class="tree">{_branch(record, record.root, colors_of(record.root), None)}</ul>\n'
        f'<details><summary>The tree as a picture</summary><div class="scroll wide">{picture}</div></details>'
    )


def _branch(record: Record, node: Node, colors: Mapping[str, str], parent: Node | None) -> str:
    """A node and all below as a list item."""
    figures = [node.epochs, f'{format_size(node.subspace.size)} architectures']
    if (value := record.metric(node.report)) is not None:
        figures.append(f'{record.settings.monitor} {value:.4g}')
    if record.state[node.name] != 'done':
        figures.append(record.state[node.name])
    lines = []
    if parent is not None:
        for label, choices in node.subspace.narrowed(parent.subspace).items():
            names = ', '.join(map(str, choices))
            lines.append(f'<div class="choices"><b>{escape(label)}</b>: {escape(names)}</div>')
    if node.split is not None:
        evidence = node.split.evidence
        labels = dict.fromkeys(label for part in node.children for label in part.subspace.narrowed(node.subspace))
        said = f'Split by {" and ".join(labels)}' if labels else f'Not split: {evidence.objection}'
        told = evidence.describe()
        lines.append(f'<div class="why">{escape(said + (f" ({told})" if told else ""))}</div>')
    elif node.checkpoint is not None and record.settings.is_split_at(node.earliest_stop, record.max_epochs):
        lines.append('<div class="why">Nothing is left to split.</div>')
    if node.stopped is not None:
        lines.append(f'<div class="why">{escape(f"S{node.why_stopped[1:]}")}</div>')
    below = ''.join(_branch(record, child, colors, node) for child in node.children)
    return (
        f'<li><div class="node" style="border-left-color:{colors[node.name]}"><b>{node.name}</b> '
        f'{escape(" · ".join(figures))}{"".join(lines)}</div>{f"<ul>{below}</ul>" if below else ""}</li>\n'
    )


def _truth(record: Record, truth: Column | None, known: Known | None, costs: Sequence[Column]) -> str:
    if known is None:
        return ''
    estimate, true, leaves = known
    title = f'<h2 id="truth">Estimate against {escape(truth.name)}</h2>'
    if len(true) < LEAST:
        return f'{title}\n<p>The truth knows only {len(true)} of the scored networks: too few for a correlation.</p>'
    report = _report_of(estimate, true, leaves, costs)
    of_all = report.figures['estimates']['tau']
    rows = {'all leaves': (estimate, true)}
    for leaf in record.root.leaves:
        rows[f'leaf {leaf.name}'] = (estimate[leaves == leaf.name], true[leaves == leaf.name])
    for cost in costs:
        with_cost = true.index[true.index.isin(cost.values.index)]
        rows[cost.name] = (cost.values.loc[with_cost], true.loc[with_cost])
    for name, ranking in rankings_with_prior(record).items():
        ranking = ranking[ranking.index.isin(truth.values.index)]
        rows[name] = (ranking, truth.values.loc[ranking.index])
    header = ['ranking', 'networks', 'tau', 'Spearman', 'tau of the top 10 %', 'picked', 'best']
    body = []
    for name, (of_row, true_of_row) in rows.items():
        if len(true_of_row) >= LEAST:
            found = ranking_report(of_row.to_numpy(), true_of_row.to_numpy())
            if len(true_of_row) < LEAST_TOP:
                found['tau_top'] = np.nan  # of two or three
            numbers = [format_number(found[key]) for key in ('tau', 'spearman', 'tau_top', 'picked', 'best')]
            body.append([name, f'{len(true_of_row):,}', *numbers])
    verdict = (
        f'<p><b>Kendall&#39;s tau {format_number(of_all.value)}</b> (95 % {format_bounds(of_all)}) '
        f'between {escape(record.settings.monitor)} with inherited weights and {escape(truth.name)}, on the '
        f'{len(true):,} of {len(record.scores):,} scored networks that the truth knows. '
        '1 is the same order, 0 is chance.</p>'
    )
    figure = plot_truth(record, estimate, true, leaves, truth.name)
    caption = f'{record.settings.monitor} and {truth.name}'
    return (
        f'{title}\n{verdict}\n'
        f'<div class="figures">{html_figure(caption, figure, "truth")}</div>\n'
        f'{html_table(header, body)}\n'
        '<details><summary>All figures, beside what networks cost, with 95 % intervals</summary>'
        f'{_all_figures(report)}</details>'
        '<p class="note">Picked: what the best estimate has in truth. Best: the best of these networks in truth. '
        'A search does not score networks at random, so this is not the tau of the whole space.</p>'
    )


def _described(prior: Mapping[str, float]) -> str:
    return ' and '.join(f'{name} (weight {weight:g})' for name, weight in prior.items())


def _report_of(estimate: pd.Series, true: pd.Series, leaves: pd.Series, costs: Sequence[Column]) -> RankingReport:
    """All figures of the estimates, of parameters where they can be counted by the name of an architecture, and of the
    costs that were given and are known of all networks."""
    rankings = {}
    if estimate.index.str.startswith('|').all():  # of NAS-Bench-201
        known = nasbench201_costs(estimate.index)
        rankings = {name: pd.Series(known[name], estimate.index) for name in ('parameters', 'live parameters')}
    for cost in costs:
        if estimate.index.isin(cost.values.index).all():
            rankings[cost.name] = cost.values.loc[estimate.index]
    return ranking_report(estimate, true, costs=rankings, leaves=leaves if leaves.nunique() > 1 else None)


def _all_figures(report: RankingReport) -> str:
    columns = {**report.figures, **{f'minus {cost}': row for cost, row in report.differences.items()}}
    rows = [[name, *(str(row[name]) for row in columns.values())] for name in report.figures['estimates']]
    rows += [[f'Spearman given {cost}', str(value)] for cost, value in report.partial.items()]
    return html_table(['', *columns], [row + [''] * (len(columns) + 1 - len(row)) for row in rows])


def _pareto(record: Record, costs: Sequence[Column]) -> str:
    if not costs or not record.scores:
        return ''
    figures = [
        html_figure(f'Against {cost.name}', plot_pareto(record, *matched(record, cost.values), cost.name), f'pareto{i}')
        for i, cost in enumerate(costs)
    ]
    names = ', '.join(cost.name for cost in costs)
    return (
        f'<h2 id="pareto">{escape(record.settings.monitor)} of all leaves against {escape(names)}</h2>\n'
        f'<div class="figures">{"".join(figures)}</div>'
    )


def _networks(record: Record) -> str:
    if not record.scores:
        return ''
    settings, colors = record.settings, colors_of(record.root)
    # With a prior, the order is that of the search.
    best = [(network, {'score': score, **costs}) for network, score, costs in record.found[:N_BEST]]
    best = best or [(network, {}) for network in record.scores[:N_BEST]]
    metrics = dict.fromkeys([settings.monitor, *(name for network, _ in best for name in network.metrics)])
    rows = [
        [
            str(rank),
            Html(f'<span class="swatch" style="background:{colors[network.leaf.name]}"></span>{network.leaf.name}'),
            *map(amount, more.values()),
            *(format_number(network.metrics[name]) if name in network.metrics else '' for name in metrics),
            *record.choices(network),
        ]
        for rank, (network, more) in enumerate(best, 1)
    ]
    order = (
        f'The first {len(rows)} by {settings.monitor} and {_described(record.prior)}'
        if record.found
        else f'The {len(rows)} best by {settings.monitor}'
    )
    by_leaf = [[leaf.name, str(sum(score.leaf is leaf for score in record.scores))] for leaf in record.root.leaves]
    of_leaves = ', '.join(f'{count} in leaf {leaf}' for leaf, count in by_leaf)
    return (
        '<h2 id="networks">Networks</h2>\n'
        f'<p>{len(record.scores):,} networks are scored with inherited weights: {of_leaves}.</p>\n'
        f'<div class="figures">{html_figure("By leaf", plot_scores(record), "scores")}</div>\n'
        f'<h3>{escape(order)}</h3>\n'
        f'{html_table(["rank", "leaf", *best[0][1], *metrics, *record.labels], rows)}'
    )


def _curves(record: Record) -> str:
    metrics = _metrics(record)
    if not metrics:
        return ''
    figures = [html_figure(name, plot_curves(record, name), f'curve{i}') for i, name in enumerate(metrics)]
    shown, more = figures[:2], figures[2:]
    others = f'<details><summary>{len(more)} more</summary><div class="figures">{"".join(more)}</div></details>'
    return (
        '<h2 id="curves">Validation while training</h2>\n'
        '<p class="note">Of random paths through each sub-supernet. A node goes on from its parent.</p>\n'
        f'<div class="figures">{"".join(shown)}</div>\n{others if more else ""}'
    )


def _splits(record: Record) -> str:
    parts = []
    for node in record.root:
        if node.split is None:
            continue
        evidence, name = node.split.evidence, f'split-{node.name.replace(".", "-")}'
        if (figure := evidence.figure(f'Node {node.name}')) is None:
            continue
        said = 'is split' if node.children else f'is not split: {evidence.objection}'
        parts.append(
            f'<details{"" if parts else " open"}><summary>Node {node.name} {escape(said)}</summary>\n'
            f'<p>{escape(evidence.describe())}</p>{html_figure("", figure, name)}</details>'
        )
    return '<h2 id="splits">Evidence for the splits</h2>\n' + '\n'.join(parts) if parts else ''


def _costs(record: Record) -> str:
    rows, total = [], sum(record.seconds.values())
    for node in record.root:
        if node.checkpoint is None:
            continue
        seconds = record.seconds[node.name]
        passes = 0 if node.split is None else node.split.scalars().get('passes', 0)
        share = f'{seconds / total:.0%}' if total else ''
        epochs = node.end_epoch - node.start_epoch
        choosing = record.choosing[node.name]
        rows.append([
            node.name, str(epochs), format_duration(seconds), share, format_duration(choosing) if choosing else '',
            f'{passes:,.0f}' if passes else '',
        ])  # fmt: skip
    if not rows:
        return ''
    paths = record.settings.paths_per_step
    each = f'Each batch trained {paths} paths, so an epoch cost as much as {paths} of one path. ' if paths > 1 else ''
    choosing = sum(record.choosing.values())
    rows.append(['all', record.cost, format_duration(total), '', format_duration(choosing) if choosing else '', ''])
    return (
        '<h2 id="cost">Cost</h2>\n'
        + html_table(['node', 'epochs', 'time', 'share', 'of it, to choose a split', 'passes to choose it'], rows)
        + f'\n<p class="note">One supernet of {record.root.cost} epochs would cost as much, or '
        f'{record.root.cost / max(1, record.max_epochs):.1f} supernets as long as a path from root to leaf. '
        f'{each}The search is not in this table.</p>'
    )


def _settings(record: Record) -> str:
    content = record.content
    groups = {**{name: content[name] for name in ('settings', 'criterion', 'training')}, 'search': record.searched}
    rows = [[f'{group}: {name}', str(value)] for group, values in groups.items() for name, value in values.items()]
    rows += [['run', content['run']], ['folder', str(record.path)]]
    return f'<details><summary>Settings</summary>{html_table(["setting", "value"], rows, n_text=2)}</details>'
