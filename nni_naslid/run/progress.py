"""A run as whoever drives it sees it: what has become of it, what is due, what the web UI shows of it.

A node's result is a file that whoever trains it writes: this process, or an NNI trial on another machine. The tree
grows by reading these files, so a run that was killed goes on where it was. Without torch: the tuner, which must start
fast, uses it too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from nni_naslid.run.checks import groups_at
from nni_naslid.run.constraints import Within
from nni_naslid.run.files import digest, read_json, write_json
from nni_naslid.run.folder import RunFolder, of_epoch
from nni_naslid.run.settings import Settings
from nni_naslid.run.text import amount, rounded
from nni_naslid.space.band import decode_ranges, encode_ranges, within
from nni_naslid.space.graph import Graph
from nni_naslid.space.reads import Condition, graphs_in
from nni_naslid.space.split import Evidence, Split
from nni_naslid.space.subspace import SubSpace
from nni_naslid.space.tree import Node, format_size

__all__ = ['Progress', 'grow', 'levels', 'most_tasks', 'read_result', 'run_id', 'tenth']

_logger = logging.getLogger(__name__)

# The parts of a run's identity, as they are in tree.json.
IDENTITY = ('settings', 'criterion', 'space', 'multiple', 'training', 'arguments', 'data', 'checked')
COLUMNS = ('task', 'node', 'parent', 'depth', 'epochs', 'architectures')


NO_LIMITS: dict[str, list[Any]] = {'drawn': [], 'asked': []}


def space_of(tree: Mapping[str, Any], space: SubSpace) -> SubSpace:
    """The space of a run, given that of all choices that ``tree.json`` names."""
    return within(space, decode_ranges(tree.get('limits', {}).get('drawn', ()), space))


class Progress:
    """What there is of a run in its work folder.

    Parameters
    ----------
    folder
        Of a run that has begun.
    settings
        Of the run.
    identity
        All that the tree depends on, as :func:`~nni_naslid.start.start_run` has kept it in ``tree.json``.
    space
        The search space; by default as far as ``identity`` tells it.
    init
        SHA-256 of the checkpoint that the root starts from, if it is there.
    read_if, graphs
        When labels are read: see :func:`~nni_naslid.space.reads.same_network`. For who looks at the run.

    Attributes
    ----------
    root
        The tree, which grows as nodes finish.
    run
        The :func:`run_id`.
    """

    def __init__(
        self,
        folder: RunFolder,
        settings: Settings,
        identity: dict[str, Any],
        space: SubSpace | None = None,
        init: str | None = None,
        read_if: Mapping[str, Sequence[Condition]] | None = None,
        graphs: Sequence[Graph] = (),
    ):
        self.folder = folder
        self.settings = settings
        self.identity = identity
        self.init = init
        self.read_if = read_if or {}
        self.graphs = graphs
        self.run = run_id(identity)
        space = space or SubSpace.from_dict(identity['space'], identity['multiple'])
        others = space.filter.ranges if isinstance(space.filter, Within) else ()
        self.limits = {'drawn': encode_ranges(space.ranges, space), 'asked': encode_ranges(others, space)}
        self.root = Node(space, start_epoch=identity['training']['start_epoch'])
        self.axes: dict[str, list[Any]] = {}

    @classmethod
    def of(cls, folder: RunFolder, settings: Settings) -> Progress:
        """That of the run in a work folder."""
        kept = read_json(folder.tree, ('init', *IDENTITY))
        identity = {part: kept[part] for part in IDENTITY}
        space = SubSpace.from_dict(identity['space'], identity['multiple'])
        space, graphs = space_of(kept, space), graphs_in(kept)
        progress = cls(folder, settings, identity, space, kept['init'], kept.get('read_if'), graphs)
        progress.limits = kept.get('limits', progress.limits)
        return progress

    @property
    def max_epochs(self) -> int:
        """Length of every path from the root to a leaf."""
        return self.identity['training']['max_epochs']

    def nodes_due(self, done: set[str]) -> list[str]:
        """Take over what nodes have left in the work folder; the tasks to train those that have not."""
        grown = list(grow(self.root, self.folder, self.run, self.settings.criterion.read_evidence))
        for node, result in grown:
            self._log(node, result)
        if grown:
            self.save()
            if not self.root.due and (lost := sorted({*self.settings.keep_epochs} - {*self.root.kept_epochs})):
                _logger.warning(
                    'keep_epochs: the weights of epochs %s are not there, of nodes that were trained before that was '
                    'asked for, or of damaged files. There are those of epochs %s.', lost, self.root.kept_epochs,
                )  # fmt: skip
        return [f'node {node.name}' for node in self.root.due]

    def has_searched(self) -> bool:
        """Whether there is a search with the weights that the leaves have now."""
        if not self.folder.search.exists():
            return False
        return read_json(self.folder.search, ('weights',))['weights'] == self.root.weights_of_leaves

    def log_search(self, is_new: bool) -> None:
        """Say what the search has found, and whether anything has been done for it."""
        if not is_new:
            _logger.info(
                'The run in %s is finished: nothing to train or search; its results are read.', self.folder.path
            )
        content = read_json(self.folder.search, ('found',))
        found, costs = content['found'], content.get('costs') or ()
        best, monitor = found[0], self.settings.monitor
        names = dict.fromkeys([*(self.settings.prior or ()), *costs])
        told = ''.join(f' and {amount(best[name])} {name}' for name in names)
        front = f', {sum(each["rank"] == 0 for each in found)} of which no other one beats' if costs else ''
        _logger.info(
            'Search: scored %d networks%s; the best has %s %s%s: %s', len(found), front, monitor,
            rounded(best.get(monitor, self.settings.turned(best['score'])), 4), told, best['choices'],
        )  # fmt: skip

    def save(self) -> None:
        """Keep the tree."""
        nodes = [node.to_dict() for node in self.root]
        content = {
            'run': self.run,
            **self.identity,
            'init': self.init,
            'read_if': self.read_if,
            'graphs': [graph._asdict() for graph in self.graphs],
            'limits': self.limits,
            'monitor': self.settings.monitor,
            'mode': self.settings.mode,
            'cost': self.root.cost,
            'nodes': nodes,
        }
        write_json(self.folder.tree, content)

    def row(self, task: str) -> dict[str, Any]:
        """What the web UI shows of a task: a value for each of its columns. :attr:`axes` then has them, too.

        A label has a column as soon as some node has fewer choices for it than the whole space has.
        """
        kind, _, name = task.partition(' ')
        narrowed = {node.name: node.narrowed(self.root.subspace) for node in self.root}
        shown = [label for choices in narrowed.values() for label in choices]
        labels = sorted(dict.fromkeys(shown), key=[*self.root.subspace.mutables, *shown].index)
        row: dict[str, Any] = dict.fromkeys([*COLUMNS, *labels], '')
        if kind == 'node':
            node = next(node for node in self.root if node.name == name)
            row |= narrowed[name] | node.summary(self.settings.next_stop(node.earliest_stop, self.max_epochs))
        row |= {'task': task}  # also where a label has the name of a column
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

    def _log(self, node: Node, result: dict[str, Any]) -> None:
        """Say what has become of a node."""
        monitor, choosing = self.settings.monitor, result.get('choosing', 0.0)  # earlier versions did not time it
        _logger.info(
            'Node %s: trained to epoch %d of %d on %s architectures in %.0f s%s%s',
            node.name, node.end_epoch, self.max_epochs, format_size(node.subspace.size), result['seconds'] - choosing,
            f', choosing a split took {choosing:.0f} s' if choosing else '',
            f', {monitor} {rounded(node.report[monitor], 4)}' if monitor in node.report else '',
        )  # fmt: skip
        if node.split is None and self.settings.is_split_at(node.earliest_stop, self.max_epochs):
            _logger.info('Node %s stays a leaf: nothing is left to split.', node.name)
        if node.stopped is not None:
            _logger.info('Node %s was %s', node.name, node.why_stopped)
        if node.split is not None:
            objection, figures = node.split.evidence.objection, node.split.evidence.describe()
            decision = 'is split' if objection is None else f'is not split: {objection}'
            if node.split.children:
                decision += f'{": " if objection is None else "; the best: "}{node.split.describe(node.subspace)}'
            _logger.info('Node %s %s%s', node.name, decision, f' ({figures})' if figures else '')


def levels(settings: Settings, start_epoch: int, max_epochs: int) -> list[tuple[int, int]]:
    """Of each level of the tree how many nodes there may be, and for how many epochs each is trained."""
    stops = [start_epoch, *(epoch for epoch in settings.split_epochs if epoch >= start_epoch), max_epochs]
    nodes = [1]
    for level in range(len(stops) - 2):
        nodes.append(nodes[-1] * groups_at(level, settings.criterion.max_groups))
    return [(n, stop - start) for n, (start, stop) in zip(nodes, pairwise(stops), strict=True)]


def most_tasks(settings: Settings) -> int:
    """How many tasks a run may have at most, if none fails."""
    return 1 + sum(nodes for nodes, _ in levels(settings, 0, 0))


def tenth(done: int, total: int) -> bool:
    """Whether the last one of those that are done completes a tenth of all, but for the last tenth."""
    return done < total and done * 10 // total > (done - 1) * 10 // total


def grow(
    root: Node,
    folder: RunFolder,
    run: str,
    evidence: Callable[[dict[str, Any]], Evidence] | None,
    above: str | None = None,
) -> Iterator[tuple[Node, dict[str, Any]]]:
    """Let nodes that have finished since take their results and have their children; yields each with its result.

    Parameters
    ----------
    root
        The tree.
    folder, run
        Where the results are, and of which run.
    evidence
        The criterion's, which reads the evidence of a split; ``None`` where it is not at hand.
    above
        The name of a node: only those above it.
    """
    for node in root:
        if node.checkpoint is not None or not (above is None or above.startswith(f'{node.name}.')):
            continue
        if (result := read_result(node, folder, run)) and result['finished']:
            node.end_epoch, node.report = result['end_epoch'], result['report']
            node.checkpoint, node.sha256 = folder.checkpoint(node.name), result['checkpoint_sha256']
            node.weights = result['weights']
            node.kept = {
                epoch: (of_epoch(folder.kept(node.name), epoch, sha256), sha256, weights)
                for epoch, sha256, weights in result.get('kept', [])
            }
            node.kept[node.end_epoch] = node.checkpoint, node.sha256, node.weights
            node.stopped = result.get('stopped')  # earlier versions stopped none
            if result['split']:
                node.split = Split.from_dict(result['split'], node.subspace, evidence)
                if node.split.separates:
                    node.children = [
                        Node(subspace, node.end_epoch, path=(*node.path, i), parent_weights=node.weights)
                        for i, subspace in enumerate(node.split.children)
                    ]
            yield node, result


def read_result(node: Node, folder: RunFolder, run: str) -> dict[str, Any] | None:
    """What has become of a node, or has so far; ``None`` if there is nothing.

    Raises
    ------
    ValueError
        If the file is damaged, of another run or node, or if the parent has been trained again since, to other weights.
    """
    result = folder.read_result(node.name, run)
    if result is not None and result['parent_weights'] != node.parent_weights:
        raise ValueError(
            f'{folder.result(node.name)} is of a node that was trained from other weights than node {node.parent_name} '
            f'has now. {folder.advice(node.name)}'
        )
    return result


def run_id(identity: dict[str, Any]) -> str:
    """A short name for all that determines a tree; files that have another one are of another run."""
    return digest(identity)[:12]
