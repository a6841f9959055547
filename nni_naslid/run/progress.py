"""A run as whoever drives it sees it: what has become of it, what is due, what the web UI shows of it.

Without torch: the tuner, which must start fast, uses it too.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from nni_naslid.run.files import read_json
from nni_naslid.run.settings import Settings
from nni_naslid.space.subspace import SubSpace
from nni_naslid.space.tree import Node, format_size, grow, run_id, save_tree

__all__ = ['Progress', 'most_tasks']

_logger = logging.getLogger(__name__)

SHOWN = 3  # architectures that become trials of their own, for the web UI
COLUMNS = ('task', 'node', 'parent', 'depth', 'epochs', 'samples')


class Progress:
    """What there is of a run in its work folder.

    Parameters
    ----------
    workdir
        The work folder of a run that has begun.
    settings
        Of the run.
    identity
        All that the tree depends on, as :func:`~nni_naslid.begin.begin` has kept it in ``tree.json``.
    space
        The search space; by default as far as ``identity`` tells it.
    init
        SHA-256 of the checkpoint that the root starts from, if it is there.

    Attributes
    ----------
    root
        The tree, which grows as nodes finish.
    run
        The :func:`~nni_naslid.space.tree.run_id`.
    """

    def __init__(
        self,
        workdir: Path,
        settings: Settings,
        identity: dict[str, Any],
        space: SubSpace | None = None,
        init: str | None = None,
    ):
        self.workdir = workdir
        self.settings = settings
        self.identity = identity
        self.init = init
        self.run = run_id(identity)
        space = space or SubSpace.from_dict(identity['space'], identity['multiple'])
        self.root = Node(space, start_epoch=identity['training']['start_epoch'])
        self.axes: dict[str, list[Any]] = {}

    @property
    def max_epochs(self) -> int:
        """Length of every path from the root to a leaf."""
        return self.identity['training']['max_epochs']

    def nodes_due(self, done: set[str]) -> list[str]:
        """Take over what nodes have left in the work folder; the tasks to train those that have not."""
        grown = list(grow(self.root, self.workdir, self.run))
        for node, result in grown:
            self._log(node, result['seconds'])
        if grown:
            self.save()
        return [f'node {node.name}' for node in self.root.due]

    def architectures_due(self, done: set[str]) -> list[str]:
        """The tasks that show the best architectures of the search."""
        tasks = [f'architecture {i}' for i in range(1, 1 + min(SHOWN, len(self._found)))]
        return [task for task in tasks if task not in done]

    @property
    def _found(self) -> list[dict[str, Any]]:
        """What the search has found, the best first."""
        return read_json(self.workdir / 'search.json', ('found',))['found']

    def save(self) -> None:
        """Keep the tree."""
        save_tree(self.root, self.workdir / 'tree.json', self.identity, init=self.init)

    def draw(self) -> None:
        """Draw the tree, and the evidence for its splits, where pictures are missing or older than ``tree.json``."""
        from nni_naslid.analysis.plots import plot_split, plot_tree  # matplotlib takes a second

        changed = (self.workdir / 'tree.json').stat().st_mtime_ns
        pictures = {self.workdir / 'tree.png': lambda path: plot_tree(self.root, path)}
        for node in self.root if self.settings.criterion == 'lid' else ():
            if node.split is not None:
                pictures[self.workdir / f'split-{node.name}.png'] = lambda path, node=node: plot_split(
                    node.split, path, title=f'Node {node.name}'
                )
        try:
            for path, draw in pictures.items():
                if not os.path.lexists(path) or path.lstat().st_mtime_ns < changed:
                    draw(path)
        except OSError as error:
            _logger.warning('No picture: %s', error)

    def row(self, task: str) -> dict[str, Any]:
        """What the web UI shows of a task: a value for each of its columns. :attr:`axes` then has them, too."""
        kind, _, name = task.partition(' ')
        row: dict[str, Any] = dict.fromkeys([*COLUMNS, *self.root.subspace.mutables], '') | {'task': task}
        if kind == 'node':
            node = next(node for node in self.root if node.name == name)
            row |= node.summary(self.settings.next_stop(node.earliest_stop, self.max_epochs))
        elif kind == 'architecture':
            row |= {label: str(choice) for label, choice in self._found[int(name) - 1]['choices'].items()}
        for column, value in row.items():
            values = self.axes.setdefault(column, [])
            if value not in values:
                values.append(value)
        return row

    @property
    def search_space(self) -> dict[str, Any]:
        """The search space to tell NNI's manager, so that the web UI has axes for all that rows have had.

        NNI's own idea of the space has single choices, where nodes have sets of them.
        """
        return {column: {'_type': 'choice', '_value': values} for column, values in self.axes.items()}

    def _log(self, node: Node, seconds: float) -> None:
        """Say what has become of a node."""
        _logger.info(
            'Node %s: trained to epoch %d of %d on %s samples in %.0f s%s',
            node.name, node.end_epoch, self.max_epochs, format_size(node.subspace.size), seconds,
            '' if node.metric is None else f', reported {node.metric:.4f}',
        )  # fmt: skip
        if not node.subspace.splittable and node.end_epoch < self.max_epochs:
            _logger.info('Node %s stays a leaf: every label has one choice left.', node.name)
        if node.split is not None:
            partition = node.split.partition
            evidence = f'contrast {partition.score:.3f} +- {partition.error:.3f}'
            _logger.info(
                'Node %s %s: %s into %s (%s)',
                node.name,
                'is split' if node.split.separates else 'stays a leaf, no label separates beyond its noise; the best',
                node.split.label,
                node.split.describe(),
                'at random' if self.settings.criterion == 'random' else evidence,
            )


def most_tasks(settings: Settings) -> int:
    """How many tasks a run may have at most, if none fails."""
    return sum(settings.max_groups**level for level in range(len(settings.split_epochs) + 1)) + 1 + SHOWN
