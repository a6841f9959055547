"""Pictures: the tree, estimates against truth. (The evidence for a split draws itself.)"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap

from nni_naslid.analysis.ranking import ranking_report
from nni_naslid.run.files import replacing
from nni_naslid.run.progress import Progress
from nni_naslid.run.text import rounded
from nni_naslid.space.tree import Node, format_size

import numpy as np
from matplotlib.figure import Figure  # not pyplot: a library leaves the user's backend and figures alone
from scipy.stats import rankdata

__all__ = ['plot_ranking', 'plot_run', 'plot_tree']

MOST_IN_A_ROW = 4  # panels
LINE = 32  # characters of 7 points, between one leaf and the next

_logger = logging.getLogger(__name__)


def _save(figure: Figure, path: Path) -> None:
    """Write a picture in the format of the path's suffix; a symbolic link there is replaced, not followed."""
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix[1:], dpi=120)


def plot_run(progress: Progress) -> None:
    """Draw the tree, and the evidence for its splits, where pictures are missing or older than ``tree.json``."""
    root, folder = progress.root, progress.folder
    changed = folder.tree.stat().st_mtime_ns
    pictures = {folder.picture('tree'): functools.partial(plot_tree, root, progress.settings.monitor)}
    for node in root:
        if node.split is not None:
            title = f'Node {node.name}'
            pictures[folder.picture(f'split-{node.name}')] = functools.partial(node.split.evidence.figure, title)
    for path, draw in pictures.items():
        try:
            if (not os.path.lexists(path) or path.lstat().st_mtime_ns < changed) and (figure := draw()) is not None:
                _save(figure, path)
        except Exception as error:  # a run is not lost for a picture
            _logger.warning('No picture %s: %s: %s', path.name, type(error).__name__, error)


def plot_tree(root: Node, monitor: str) -> Figure:
    """The tree: each sub-supernet with its epochs, size and metric, each edge with the choices that it keeps."""
    place = dict(zip(map(id, root.leaves), range(len(root.leaves)), strict=True))
    for node in reversed(list(root)):  # children come after their parents
        if node.children:
            place[id(node)] = float(np.mean([place[id(child)] for child in node.children]))
    depth = max(len(node.path) for node in root)
    texts = {id(child): _kept(child, node) for node in root for child in node.children}
    level = max(1.8, 1.1 + 0.13 * max((text.count('\n') + 1 for text in texts.values()), default=0))  # inches
    figure = Figure(figsize=(min(2 + 2.4 * len(root.leaves), 200), level * (depth + 0.8)), layout='constrained')
    axes = figure.add_subplot()
    for node in root:
        x, y = place[id(node)], -len(node.path)
        text = f'{node.name}\n{node.epochs}\n{format_size(node.subspace.size)} architectures'
        if monitor in node.report:
            text += f'\n{monitor} {rounded(node.report[monitor])}'
        box = {'boxstyle': 'round,pad=0.4', 'facecolor': '#dbe9f6' if node.children else '#d9f0d3'}
        axes.text(x, y, text, ha='center', va='center', bbox=box, fontsize=8)
        for child in node.children:
            axes.plot([x, place[id(child)]], [y, y - 1], color='grey', zorder=0)
            axes.text(place[id(child)], y - 0.5, texts[id(child)], ha='center', va='center',
                      fontsize=7, backgroundcolor='white')  # fmt: skip
    axes.set_xlim(-0.6, len(root.leaves) - 0.4)
    axes.set_ylim(-depth - 0.4, 0.4)
    axes.axis('off')
    return figure


def _kept(child: Node, node: Node) -> str:
    """What a child keeps of its parent, line by line."""
    narrowed = child.subspace.narrowed(node.subspace)
    texts = [text for label, choices in narrowed.items() for text in (label, *map(str, choices))]
    return '\n'.join(line for text in texts for line in wrap(text, LINE))


def plot_ranking(estimates: Mapping[str, np.ndarray], truth: np.ndarray, path: Path, truth_name: str) -> None:
    """Draw true accuracies against the ranks that each method gives, one panel per method: the best on the right."""
    rows, columns = -(-len(estimates) // MOST_IN_A_ROW), min(len(estimates), MOST_IN_A_ROW)
    figure = Figure(figsize=(4.2 * columns, 4 * rows), layout='constrained')
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in panels.flat[len(estimates) :]:
        axes.remove()
    for axes, (name, estimate) in zip(panels.flat, estimates.items(), strict=False):
        axes.scatter(rankdata(estimate), truth, s=8, alpha=0.6)
        axes.set_title(f"{name}: Kendall's tau {rounded(ranking_report(estimate, truth)['tau'])}")
        axes.set_xlabel(f'rank of {len(truth):,} by {name}')
    for axes in panels[:, 0]:
        axes.set_ylabel(truth_name)
    _save(figure, path)
