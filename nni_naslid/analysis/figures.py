"""Figures of a run: curves, scores, estimates against truth, rankings over training, the Pareto front.

(Splits draw themselves.)
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from typing import Any

from nni_naslid.run.record import Record
from nni_naslid.space.tree import Node

import matplotlib
import moocore
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure  # not pyplot: a library leaves the user's backend and figures alone
from matplotlib.ticker import LogFormatter

__all__ = [
    'as_svg', 'colors_of', 'dots', 'drawn', 'front', 'plot_curves', 'plot_over_training', 'plot_pareto', 'plot_scores',
    'plot_truth',
]  # fmt: skip

SIZE = (4.3, 3.2)  # inches: small, so that text of 9 points can be read where the figure is as wide as a phone
MANY = 2000  # points that make a picture inside the SVG smaller than the points themselves


def drawn(draw: Callable[[Axes], None], size: tuple[float, float] = SIZE) -> Figure:
    """A figure of one panel."""
    figure = Figure(figsize=size, layout='constrained')
    with matplotlib.rc_context({'font.size': 9, 'text.parse_math': False}):
        draw(figure.add_subplot())
    return figure


def as_svg(figure: Figure, name: str, title: str) -> str:
    """SVG to be put into a page: text as text, nothing to load, ids that begin with ``name``, the same each time.

    The title is for those who do not see the figure.
    """
    text = io.StringIO()
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': name, 'text.parse_math': False}):
        figure.savefig(text, format='svg', dpi=120, metadata=dict.fromkeys(('Date', 'Creator', 'Format', 'Type')))
    svg = text.getvalue()
    svg = f'<svg role="img" aria-label="{escape(title)}"{svg[svg.index("<svg") + 4 :]}'
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| width="[\d.]+pt" height="[\d.]+pt"', '', svg, count=3)
    svg = svg.replace('xlink:href', 'href')
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf'\g<1>{name}-', svg)
    svg = re.sub(r' (d|x|y)="[^"]*"', lambda match: re.sub(r'(\.\d\d)\d+', r'\1', match[0]), svg)
    return re.sub(r'\n\s*', '\n', svg)


def colors_of(root: Node) -> dict[str, str]:
    """A colour for each leaf, the same in all figures; inner nodes are grey."""
    palette = matplotlib.colormaps['tab10' if len(root.leaves) <= 10 else 'turbo']
    leaves = [leaf.name for leaf in root.leaves]
    places = range(len(leaves)) if len(leaves) <= 10 else np.linspace(0.05, 0.95, len(leaves))
    colors = dict(zip(leaves, (to_hex(palette(place)) for place in places), strict=True))
    return {node.name: colors.get(node.name, '#777777') for node in root}


def plot_curves(record: Record, metric: str) -> Figure:
    """A metric over the epochs, a line for each node that goes on from that of its parent."""

    def draw(axes: Axes) -> None:
        colors, ends = colors_of(record.root), {}
        for node in record.root:
            points = [(epoch, at[metric]) for epoch, at in sorted(record.curves[node.name].items()) if metric in at]
            if not points:
                continue
            ends[node.name] = points[-1]
            before = [ends[node.parent_name]] if node.parent_name in ends else []
            axes.plot(*zip(*before, *points, strict=True), color=colors[node.name], linewidth=1.5,
                      marker='.', markersize=4, label='' if node.children else node.name)  # fmt: skip
        for epoch in record.settings.split_epochs:
            axes.axvline(epoch, color='black', linestyle=':', linewidth=0.8)
        axes.set_xlabel('epoch (dotted: split epochs)')
        axes.set_ylabel(metric)
        axes.set_xlim(record.root.start_epoch, record.max_epochs + 0.5)
        axes.locator_params(axis='x', integer=True)
        _scale(axes.yaxis, [value for at in record.curves.values() for m in at.values()
                                 if (value := m.get(metric)) is not None])  # fmt: skip
        if len(ends) <= 16:
            axes.legend(title='leaf (inner nodes are grey)', fontsize=7.5, title_fontsize=7.5, ncols=1 + len(ends) // 8)

    return drawn(draw)


def plot_scores(record: Record) -> Figure:
    """The metric of each network that was scored, a row for each leaf."""

    def draw(axes: Axes) -> None:
        colors, leaves = colors_of(record.root), [leaf.name for leaf in record.root.leaves]
        values = [(record.metric(score.metrics), score.leaf.name) for score in record.scores]
        values = [(value, leaf) for value, leaf in values if value is not None and np.isfinite(value)]
        x, rows = np.array([value for value, _ in values]), np.array([leaves.index(leaf) for _, leaf in values])
        jitter = np.random.RandomState(0).uniform(-0.3, 0.3, len(values))
        axes.scatter(x, rows + jitter, c=[colors[leaf] for _, leaf in values], **dots(len(x)))
        axes.set_yticks(range(len(leaves)), leaves)
        axes.set_ylim(len(leaves) - 0.5, -0.5)
        axes.set_ylabel('leaf')
        _scale(axes.xaxis, x)
        _label_metric(axes, record)

    return drawn(draw, (SIZE[0], max(2.4, 0.9 + 0.35 * len(record.root.leaves))))


def plot_truth(record: Record, estimate: pd.Series, truth: pd.Series, leaves: pd.Series, truth_name: str) -> Figure:
    """True accuracy of each network against the metric that estimates it, coloured by leaf."""

    def draw(axes: Axes) -> None:
        colors = colors_of(record.root)
        x, y, leaf_of = _finite(record, estimate, truth, leaves)
        axes.scatter(x, y, c=leaf_of.map(colors), **dots(len(x)))
        _scale(axes.xaxis, x)
        _label_metric(axes, record)
        axes.set_ylabel(truth_name)
        if len(record.root.leaves) <= 16:
            for leaf in record.root.leaves:
                axes.scatter([], [], s=14, color=colors[leaf.name], label=leaf.name)
            axes.legend(title='leaf', fontsize=7.5, title_fontsize=7.5)

    return drawn(draw)


def plot_over_training(record: Record, table: pd.DataFrame, truth_name: str | None) -> Figure:
    """How a ranking changes over the epochs, and how well it ranks the truth, if that is known.

    ``table`` is that of :func:`~nni_naslid.analysis.stability.instance_table`, with a row for each epoch.
    """
    panels = [{'tau_previous': ('tau with the epoch before', '#777777', 's')}]
    if 'tau' in table:
        panels[0] |= {'tau': (f'tau with {truth_name}', '#1f77b4', 'o'), 'P@5%': ('P@5 %', '#2ca02c', '^')}
        panels.append({'regret@1': (f'{truth_name} lost by\nthe first choice', '#d62728', 'o')})
    size = (SIZE[0], SIZE[1] + 1.2 * (len(panels) - 1))
    figure = Figure(figsize=size, layout='constrained')
    with matplotlib.rc_context({'font.size': 9, 'text.parse_math': False}):
        heights = [2.4, 1.3][: len(panels)]
        all_axes = np.atleast_1d(figure.subplots(len(panels), sharex=True, height_ratios=heights))
        for axes, lines in zip(all_axes, panels, strict=True):
            for column, (label, color, marker) in lines.items():
                axes.plot(table.index, table[column], color=color, marker=marker, markersize=4, label=label)
            for epoch in record.settings.split_epochs:
                axes.axvline(epoch, color='black', linestyle=':', linewidth=0.8)
            axes.locator_params(axis='x', integer=True)
        all_axes[0].axhline(0, color='black', linewidth=0.5)
        all_axes[0].set_ylabel('1 is perfect')
        all_axes[0].legend(fontsize=7.5)
        if len(panels) > 1:
            all_axes[1].set_ylabel(panels[1]['regret@1'][0], fontsize=8)
            all_axes[1].set_ylim(bottom=0)
        all_axes[-1].set_xlabel('epoch (dotted: split epochs)')
    return figure


def front(costs: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """Numbers of those that nothing beats in both, the cheapest first: lower cost and larger estimate are better.

    >>> front(np.array([3, 1, 2, 2]), np.array([5, 1, 0, 4]))
    array([1, 3, 0])
    """
    best = np.flatnonzero(moocore.is_nondominated(np.column_stack([costs, -estimates])))
    return best[np.argsort(costs[best])]


def plot_pareto(record: Record, estimate: pd.Series, costs: pd.Series, leaves: pd.Series, cost_name: str) -> Figure:
    """The metric of each network against what it costs, with the networks that nothing beats in both."""

    def draw(axes: Axes) -> None:
        y, x, leaf_of = _finite(record, estimate, costs, leaves)
        axes.scatter(x, y, c=leaf_of.map(colors_of(record.root)), **dots(len(x)))
        best = front(x.to_numpy(), y.map(record.settings.turned).to_numpy())
        axes.step(x.iloc[best], y.iloc[best], where='post', color='black', linewidth=1, marker='o', markersize=4,
                  markerfacecolor='none', label=f'{len(best)} that nothing beats in both')  # fmt: skip
        axes.set_xlabel(cost_name)
        axes.set_ylabel(record.settings.monitor)
        _scale(axes.yaxis, y)
        if record.settings.mode == 'min':
            axes.invert_yaxis()
        axes.legend(fontsize=7.5)

    return drawn(draw)


def _finite(record: Record, estimate: pd.Series, *others: pd.Series) -> list[pd.Series]:
    """The metric as it is logged, and other values, of the networks whose metric is finite."""
    metric = estimate.map(record.settings.turned)
    is_finite = np.isfinite(metric)
    return [series[is_finite] for series in (metric, *others)]


def dots(n: int) -> dict[str, Any]:
    """How to draw so many points."""
    return {'s': 12 if n <= MANY else 4, 'alpha': 0.7, 'linewidths': 0, 'rasterized': n > MANY}


def _label_metric(axes: Axes, record: Record) -> None:
    """The metric that ranks on the horizontal axis, the best on the right."""
    if record.settings.mode == 'min':
        axes.invert_xaxis()
    axes.set_xlabel(f'{record.settings.monitor} (the best on the right)')


def _scale(axis: Axis, values: np.ndarray | pd.Series | list[float]) -> None:
    """A logarithmic axis where a few values would leave no room for the others."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 10 * np.median(values):
        axis.axes.set(**{f'{axis.axis_name}scale': 'log'})
        axis.set_major_formatter('{x:g}')
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
