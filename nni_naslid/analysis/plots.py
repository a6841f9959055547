"""Pictures: the tree, the evidence for a split, estimates against truth."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from nni_naslid.analysis.ranking import ranking_report
from nni_naslid.run.files import replacing
from nni_naslid.run.progress import Progress
from nni_naslid.space.split import Split
from nni_naslid.space.tree import Node, format_size

import numpy as np
from matplotlib.figure import Figure  # not pyplot: a library leaves the user's backend and figures alone
from scipy.stats import rankdata

__all__ = ['plot_ranking', 'plot_run', 'plot_split', 'plot_tree']

_logger = logging.getLogger(__name__)


def _save(figure: Figure, path: Path) -> None:
    """Write a picture in the format of the path's suffix; a symbolic link there is replaced, not followed."""
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix[1:], dpi=120)


def plot_run(progress: Progress) -> None:
    """Draw the tree, and the evidence for its splits, where pictures are missing or older than ``tree.json``."""
    root, folder = progress.root, progress.folder
    changed = folder.tree.stat().st_mtime_ns
    pictures = {folder.picture('tree'): functools.partial(plot_tree, root)}
    for node in root if progress.settings.criterion == 'lid' else ():
        if node.split is not None:
            title = f'Node {node.name}'
            pictures[folder.picture(f'split-{node.name}')] = functools.partial(plot_split, node.split, title=title)
    try:
        for path, draw in pictures.items():
            if not os.path.lexists(path) or path.lstat().st_mtime_ns < changed:
                draw(path=path)
    except OSError as error:
        _logger.warning('No picture: %s', error)


def plot_tree(root: Node, path: Path) -> None:
    """Draw the tree: each sub-supernet with its epochs and size, each edge with the choices that it keeps."""
    place = dict(zip(map(id, root.leaves), range(len(root.leaves)), strict=True))
    for node in reversed(list(root)):  # children come after their parents
        if node.children:
            place[id(node)] = float(np.mean([place[id(child)] for child in node.children]))
    depth = max(len(node.path) for node in root)
    figure = Figure(figsize=(min(2 + 2.4 * len(root.leaves), 200), 1.6 + 1.8 * depth), layout='constrained')
    axes = figure.add_subplot()
    for node in root:
        x, y = place[id(node)], -len(node.path)
        text = f'{node.name}\n{node.epochs}\n{format_size(node.subspace.size)} samples'
        if node.metric is not None:
            text += f'\nmetric {node.metric:.3f}'
        box = {'boxstyle': 'round,pad=0.4', 'facecolor': '#dbe9f6' if node.children else '#d9f0d3'}
        axes.text(x, y, text, ha='center', va='center', bbox=box, fontsize=8)
        for child, group in zip(node.children, node.split.groups if node.children else [], strict=True):
            axes.plot([x, place[id(child)]], [y, y - 1], color='grey', zorder=0)
            choices = '\n'.join(map(str, group))
            axes.text((x + place[id(child)]) / 2, y - 0.5, f'{node.split.label}\n{choices}', ha='center', va='center',
                      fontsize=7, backgroundcolor='white')  # fmt: skip
    axes.set_xlim(-0.6, len(root.leaves) - 0.4)
    axes.set_ylim(-depth - 0.4, 0.4)
    axes.axis('off')
    _save(figure, path)


def plot_split(split: Split, path: Path, title: str) -> None:
    """Draw why a label is split, or why not: similarities of its candidates, and the contrasts of all labels."""
    figure = Figure(figsize=(10, max(4, 0.25 * len(split.scores))), layout='constrained')
    left, right = figure.subplots(1, 2)
    order = [i for group in split.partition.groups for i in group]
    similarity = np.array(split.partition.similarity)[np.ix_(order, order)]
    image = left.imshow(similarity, vmax=1, cmap='viridis')
    names = [str(split.candidates[i]) for i in order]
    left.set_xticks(range(len(order)), names, rotation=45, ha='right')
    left.set_yticks(range(len(order)), names)
    middle = (similarity.min() + 1) / 2
    for (i, j), value in np.ndenumerate(similarity):
        left.text(j, i, f'{value:.3f}', ha='center', va='center', color='black' if value > middle else 'white')
    for end in np.cumsum([len(group) for group in split.partition.groups])[:-1]:
        left.axhline(end - 0.5, color='red', linewidth=2)
        left.axvline(end - 0.5, color='red', linewidth=2)
    decision = 'is split' if split.objection is None else f'is not split: {split.objection}'
    figure.suptitle(f'{title} {decision}\n{split.figures()}', fontsize=11)
    left.set_title(f'Similarity of the candidates of {split.label}')
    figure.colorbar(image, ax=left)
    labels = sorted(split.scores, key=lambda label: split.scores[label].lower)
    scores, lower, upper, _ = np.array([split.scores[label] for label in labels], dtype=float).T
    colors = ['tab:red' if label == split.label else 'tab:grey' for label in labels]
    right.barh(labels, scores, xerr=[scores - lower, upper - scores], color=colors, capsize=2)
    right.axvline(0, color='black', linewidth=0.8)
    right.axvline(split.min_contrast, color='black', linestyle='--', label=f'smallest effect {split.min_contrast:g}')
    right.legend(loc='lower right')
    right.locator_params(axis='x', nbins=5)
    right.set_xlabel('contrast, with its 95 % bounds')
    right.set_title('Labels, the highest lower bound at the top')
    _save(figure, path)


def plot_ranking(estimates: Mapping[str, np.ndarray], truth: np.ndarray, path: Path, truth_name: str) -> None:
    """Draw true accuracies against the ranks that each method gives, one panel per method: the best on the right."""
    figure = Figure(figsize=(4.2 * len(estimates), 4), layout='constrained')
    panels = np.atleast_1d(figure.subplots(1, len(estimates), sharey=True))
    for axes, (name, estimate) in zip(panels, estimates.items(), strict=True):
        axes.scatter(rankdata(estimate), truth, s=8, alpha=0.6)
        axes.set_title(f"{name}: Kendall's tau {ranking_report(estimate, truth)['tau']:.3f}")
        axes.set_xlabel(f'rank of {len(truth):,} by {name}')
    panels[0].set_ylabel(truth_name)
    _save(figure, path)
