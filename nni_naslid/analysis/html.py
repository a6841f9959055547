"""HTML of a page: tables, figures, and numbers for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from nni_naslid.analysis.bootstrap import Interval
from nni_naslid.analysis.figures import as_svg
from nni_naslid.run.text import rounded

import numpy as np
from matplotlib.figure import Figure

__all__ = ['Html', 'format_bounds', 'format_duration', 'format_number', 'html_figure', 'html_table']


class Html(str):
    """Text that is HTML already."""


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], n_text: int = 1) -> str:
    """A table that scrolls inside its own box; the first columns are text, the others numbers."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return ''.join(
            f'<{tag}{" class=text" if i < n_text else ""}>{cell if isinstance(cell, Html) else escape(cell)}</{tag}>'
            for i, cell in enumerate(row)
        )

    body = '\n'.join(f'<tr>{cells("td", row)}</tr>' for row in rows)
    return f'<div class="scroll"><table>\n<tr>{cells("th", header)}</tr>\n{body}\n</table></div>'


def html_figure(title: str, figure: Figure, name: str) -> str:
    """A figure with a caption, if it has a title; ``name`` makes its ids."""
    caption = f'<figcaption>{escape(title)}</figcaption>' if title else ''
    return f'<figure>{caption}{as_svg(figure, name, title or name)}</figure>\n'


def format_number(value: float) -> str:
    """Three digits after the point, but of large numbers four in all; ``-`` for what is not finite."""
    return '-' if not np.isfinite(value) else rounded(value) if abs(value) < 1000 else f'{value:.4g}'


def format_bounds(interval: Interval) -> str:
    """The ends of an interval."""
    return f'{format_number(interval.low)} to {format_number(interval.high)}'


def format_duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'
