"""What a run says of networks that are good and cheap: the front, as figures and as a table, and its hypervolume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from nni_naslid.analysis.figures import colors_of, dots, drawn
from nni_naslid.analysis.html import Html, format_number, html_figure, html_table
from nni_naslid.run.pareto import hypervolume, order_by_rank, pareto_ranks
from nni_naslid.run.record import Record, Score
from nni_naslid.run.text import amount

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ['Networks', 'front_figures', 'front_section', 'hypervolumes', 'networks_of']

NO_COSTS = ('lid', 'initial_lid')  # of a prior: neither is better
LEAST = 3  # networks that make a figure
N_SHOWN = 20  # of a front, in the table
MARGIN = 0.1  # of the range of a front, by which its reference is beyond
IN_VIEW = 0.75  # of networks, at least: a few that are bad would leave no room for the others


@dataclass(frozen=True)
class Networks:
    """Networks whose costs are known, in the order in which they were scored.

    Attributes
    ----------
    costs
        What counts beside the metric, by name.
    ranked_by
        What counts first: the name of the metric, or ``'score'`` of a search that has minimised costs with a prior.
    scores
        The networks, ``N`` of them.
    points
        Of shape ``[N, 1 + M]``: what counts first, turned so that less is better, and the costs. All finite.
    shown
        Of shape ``[N]``: what counts first, as people know it.
    front
        Of shape ``[N]``: whether no other one beats it.
    """

    costs: list[str]
    ranked_by: str
    scores: list[Score]
    points: np.ndarray
    shown: np.ndarray
    front: np.ndarray


def networks_of(record: Record) -> Networks | None:
    """What there is of a run; ``None`` if costs are known of fewer than three networks.

    The costs that count are those that the search has minimised, or else all that are known: of a prior, of
    constraints, and such as ``costs(samples, names)`` was asked about.
    """
    scores = sorted(record.scores, key=lambda score: score.number)
    known = [record.known_costs(score) for score in scores]
    costs = list(record.searched.get('costs') or ())
    # Of a prior alone, the metric is held against what else it ranks by.
    with_prior = {id(score): value for score, value, _ in record.found} if costs else {}
    if not costs:
        costs = [name for name in dict.fromkeys(name for each in known for name in each) if name not in NO_COSTS]
    kept, points = [], []
    for score, each in zip(scores, known, strict=True):
        quality = with_prior.get(id(score)) if with_prior else record.estimate(score)
        if quality is not None and all(name in each for name in costs):
            point = [-quality, *(float(each[name]) for name in costs)]
            if np.isfinite(point).all():
                kept.append(score)
                points.append(point)
    if not costs or len(kept) < LEAST:
        return None
    ranked_by = 'score' if with_prior else record.settings.monitor
    return Networks(
        costs, ranked_by, kept, np.array(points), np.array([_shown(record, ranked_by, point[0]) for point in points]),
        pareto_ranks(points) == 0,
    )  # fmt: skip


def _shown(record: Record, ranked_by: str, less_is_better: float) -> float:
    """The metric as it was logged, or the score."""
    quality = 0.0 - less_is_better
    return record.settings.turned(quality) if ranked_by == record.settings.monitor else quality


def hypervolumes(points: np.ndarray, front: np.ndarray) -> tuple[list[float], np.ndarray] | None:
    """The hypervolume after each network that was scored, and its reference.

    The reference is a tenth of the range of the front beyond what is worst there. The volume is a part of what lies
    between the best of everything and the reference: 1 is a network that is the best in everything.

    Parameters
    ----------
    points, front
        Of :class:`Networks`.

    Returns
    -------
    Numbers from 0 to 1, and the reference, of shape ``[1 + M]``. ``None`` if all of the front are equal in something.
    """
    best, worst = points[front].min(axis=0), points[front].max(axis=0)
    if not (worst > best).all():
        return None
    reference = worst + MARGIN * (worst - best)
    box = float(np.prod(reference - best))
    volumes, volume, kept = [], 0.0, points[:0]
    for point in points:
        if not (kept <= point).all(axis=1).any():  # else it adds nothing
            kept = np.vstack([kept[~(point <= kept).all(axis=1)], point])
            volume = hypervolume(kept, reference) / box
        volumes.append(volume)
    return volumes, reference


def plot_front(record: Record, networks: Networks, cost: str) -> Figure:
    """What counts first against one cost; the front is that by all costs."""

    def draw(axes: Axes) -> None:
        colors, x, y = colors_of(record.root), networks.points[:, 1 + networks.costs.index(cost)], networks.shown
        axes.scatter(x, y, c=[colors[score.leaf.name] for score in networks.scores], **dots(len(y)))
        front = np.flatnonzero(networks.front)
        front = front[np.argsort(x[front], kind='stable')]
        is_line = len(networks.costs) == 1
        axes.plot(x[front], y[front], drawstyle='steps-post', linestyle='-' if is_line else 'none', color='black',
                  linewidth=1, marker='o', markersize=5, markerfacecolor='none',
                  label=f'the front ({len(front)}){"" if is_line else " by all costs together"}')  # fmt: skip
        axes.set_xlabel(cost)
        axes.locator_params(axis='x', nbins=5)  # numbers may be long
        axes.set_ylabel(networks.ranked_by)
        bad = networks.points[:, 0]
        end = max(bad[networks.front].max(), np.quantile(bad, IN_VIEW))
        margin = 0.05 * (end - bad.min()) or 1.0
        # The best on top.
        axes.set_ylim(*(_shown(record, networks.ranked_by, at) for at in (end + margin, bad.min() - margin)))
        beyond = int((bad > end + margin).sum())
        axes.legend(
            fontsize=7.5, title=f'{beyond:,} are worse than what is shown' if beyond else None, title_fontsize=7.5
        )

    return drawn(draw)


def plot_hypervolume(volumes: Sequence[float]) -> Figure:
    """A hypervolume after each network that was scored."""

    def draw(axes: Axes) -> None:
        axes.plot(range(1, len(volumes) + 1), volumes, drawstyle='steps-post', color='black', linewidth=1.2)
        axes.set_xlabel('networks scored')
        axes.set_ylabel('hypervolume')
        axes.set_ylim(0, 1)
        axes.locator_params(axis='x', integer=True)

    return drawn(draw)


def front_figures(record: Record) -> dict[str, Figure]:
    """By name, the figures of a run of which costs are known; else none."""
    if (networks := networks_of(record)) is None:
        return {}
    figures = {f'front-{cost}': plot_front(record, networks, cost) for cost in networks.costs}
    if (found := hypervolumes(networks.points, networks.front)) is not None:
        figures['hypervolume'] = plot_hypervolume(found[0])
    return figures


def front_section(record: Record) -> str:
    """The front on the page; empty where no costs are known."""
    if (networks := networks_of(record)) is None:
        return ''
    names = [networks.ranked_by, *networks.costs]
    captions = [*(f'Against {cost}' for cost in networks.costs), 'Hypervolume']
    figures = ''.join(
        html_figure(caption, figure, f'front{i}')
        for i, (caption, figure) in enumerate(zip(captions, front_figures(record).values(), strict=False))
    )
    n = int(networks.front.sum())
    said = ''
    if (found := hypervolumes(networks.points, networks.front)) is not None:
        volumes, reference = found
        at = [_shown(record, networks.ranked_by, reference[0]), *reference[1:]]
        told = ', '.join(f'{name} {_brief(value)}' for name, value in zip(names, at, strict=True))
        said = (
            '<p class="note">Hypervolume: which part of what lies between the best of everything and a reference is '
            f'beaten by some network; {volumes[-1]:.3f} in the end. The reference is a tenth of the range of the front '
            f'beyond its worst: {escape(told)}.</p>'
        )
    return (
        f'<h2 id="front">The front by {escape(" and ".join(names))}</h2>\n'
        f'<p>Of {len(networks.scores):,} networks whose costs are known, no other one beats {n:,}: none is better '
        'in something without being worse in something else.</p>\n'
        f'<div class="figures">{figures}</div>\n{said}\n{_table(record, networks)}'
    )


def _brief(value: float) -> str:
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def _table(record: Record, networks: Networks) -> str:
    """The front, the cheapest first; of many, some that are spread over it."""
    front = np.flatnonzero(networks.front)
    shown = front[order_by_rank(networks.points[front])[:N_SHOWN]]
    colors, monitor = colors_of(record.root), record.settings.monitor
    with_score = networks.ranked_by != monitor
    rows = []
    for i in sorted(shown, key=lambda i: networks.points[i, 1:].tolist()):
        score, known = networks.scores[i], record.known_costs(networks.scores[i])
        rows.append([
            Html(f'<span class="swatch" style="background:{colors[score.leaf.name]}"></span>{score.leaf.name}'),
            format_number(score.metrics[monitor]),
            *([format_number(networks.shown[i])] if with_score else []),
            *(amount(int(known[name]) if float(known[name]).is_integer() else known[name]) for name in networks.costs),
            *record.choices(score),
        ])  # fmt: skip
    title = f'{len(rows)} of the {len(front):,} networks of the front' if len(rows) < len(front) else 'The front'
    header = ['leaf', monitor, *(['score'] if with_score else []), *networks.costs, *record.labels]
    return f'<h3>{title}, the cheapest first</h3>\n{html_table(header, rows)}'
