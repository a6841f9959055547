"""What there is of a run, for who looks at it: nothing is written, and nothing that the folder names is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nni_naslid.run.files import is_locked, read_json, read_lines
from nni_naslid.run.folder import RunFolder, find_epochs
from nni_naslid.run.progress import grow, space_of
from nni_naslid.run.settings import Settings
from nni_naslid.space.band import Range, decode_ranges
from nni_naslid.space.reads import labels_of_network, network_of
from nni_naslid.space.split import Evidence
from nni_naslid.space.subspace import SubSpace
from nni_naslid.space.tree import Node

from nni.mutable import Sample

__all__ = ['Record', 'Score', 'read_record']

OF_SEARCH = ('search', 'search_budget', 'monitor', 'mode', 'calibration_batches', 'prior', 'costs')


@dataclass(frozen=True)
class Score:
    """A network that was scored: its architecture, the leaf (or node at that time) that has it, and all its metrics.

    ``number`` is its place among those that were scored, in the order of time.
    """

    sample: Sample
    leaf: Node
    metrics: dict[str, float]
    number: int = 0


@dataclass(frozen=True)
class Record:
    """A run, finished or not.

    Attributes
    ----------
    path
        The work folder.
    content
        Of ``tree.json``.
    settings
        Those of the run that are kept. The criterion is ``None``.
    root
        The tree as far as it has grown.
    seconds
        Of each finished node, by name, with those of choosing a split.
    choosing
        Of each finished node, by name: seconds of choosing a split; 0 where none was, or by earlier versions.
    state
        Of each node, for people: ``'done'``, ``'epoch 9 of 16'``, ``'to be split'``, ``'waiting'``, or how it failed.
        It is said of one that was begun if no process of this machine is at it now: it may have been killed.
    curves
        By node, epoch and name: what validation while training has found.
    scores
        Networks scored with the weights that the leaves have, the best first; those without a metric come last.
    instances
        By epoch and number of calibration batches: networks scored with the weights that there were then.
    n_searched
        How many networks the search has scored; ``None`` before it has ended.
    changed
        When something of the run was last written, in seconds since 1970.
    criterion
        Its name; with what it was made with if the reader was told how to say that.
    searched
        What the search has depended on, such as its budget, its prior, and costs that it has minimised; empty before
        its end.
    prior
        What networks are ranked by beside the metric, such as ``'parameters'``, with weights; empty without, or before
        the end of the search.
    found
        With a prior, the networks that the search found, the best first: each with its score, and with its costs by
        their names.
    costs
        The costs that are kept of networks, by their places in the space as text (:meth:`known_costs`).
    limited
        What constraints limit and choices add up to, by its name.
    """

    path: Path
    content: dict[str, Any]
    settings: Settings
    root: Node
    seconds: dict[str, float]
    choosing: dict[str, float]
    state: dict[str, str]
    curves: dict[str, dict[int, dict[str, float]]]
    scores: list[Score]
    instances: dict[tuple[int, int], list[Score]]
    n_searched: int | None
    changed: float
    criterion: str
    searched: Mapping[str, Any] = field(default_factory=dict)
    prior: Mapping[str, float] = field(default_factory=dict)
    found: Sequence[tuple[Score, float, dict[str, float]]] = ()
    costs: Mapping[str, dict[str, float]] = field(default_factory=dict)
    limited: Mapping[str, Range] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the work folder."""
        return self.path.resolve().name

    @property
    def max_epochs(self) -> int:
        """Length of every path from the root to a leaf."""
        return self.content['training']['max_epochs']

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train or search."""
        return not self.root.due and self.n_searched is not None

    @property
    def first(self) -> Score | None:
        """The network that the search puts first; before its end, or without a prior, the best by the metric."""
        return next((score for score, *_ in self.found), None) or next(iter(self.scores), None)

    @property
    def cost(self) -> str:
        """Epochs of all nodes, for people; with how many paths each batch trained, if more than one."""
        paths = self.settings.paths_per_step
        return f'{self.root.cost} x {paths} paths' if paths > 1 else str(self.root.cost)

    def metric(self, metrics: dict[str, float]) -> float | None:
        """The one that ranks; ``None`` if it is not there, or NaN."""
        value = metrics.get(self.settings.monitor)
        return None if value is None or value != value else value

    def estimate(self, score: Score) -> float:
        """The metric that ranks, turned so that larger is better; minus infinity without one."""
        value = self.metric(score.metrics)
        return float('-inf') if value is None else self.settings.turned(value)

    @property
    def labels(self) -> list[str]:
        """Those with several choices."""
        return [label for label, choices in self.root.subspace.to_dict().items() if len(choices) > 1]

    def choices(self, score: Score) -> list[str]:
        """For people, the choice for each of :attr:`labels`; or that it is not read, so makes no difference to it."""
        read = labels_of_network(self.content, self.root.subspace, score.sample)
        return [str(score.sample[label]) if label in read else 'not read' for label in self.labels]

    def costs_of(self, score: Score) -> dict[str, float] | None:
        """All costs of the prior; ``None`` where one is not known, as before the end of the search, or without."""
        known = self.costs.get(self._key(score), {})
        return {name: known[name] for name in self.prior} if self.prior and known.keys() >= self.prior.keys() else None

    def known_costs(self, score: Score) -> dict[str, float]:
        """What is known of what a network costs, by the names of a search, a prior or constraints."""
        limited = {name: each.score.of(score.sample) * each.score.unit for name, each in self.limited.items()}
        return limited | self.costs.get(self._key(score), {})

    def _key(self, score: Score) -> str:
        return str(self.root.subspace.encode(score.sample))


def read_record(
    path: Path,
    evidence: Mapping[str, Callable[[dict[str, Any]], Evidence]] | None = None,
    describe: Callable[[str, dict[str, Any]], str] = lambda name, settings: name.rpartition('.')[2],
) -> Record:
    """Read what there is of a run.

    Parameters
    ----------
    path
        The work folder.
    evidence
        What makes the evidence of a split anew, by the class name of the criterion. That of other criteria is left at
        what it said.
    describe
        What tells a criterion from the full name of its class and its settings; by default the name alone.

    Raises
    ------
    FileNotFoundError
        If there is no run in that folder.
    ValueError
        If a file is damaged, of another run, or of another version.
    """
    folder = RunFolder(path)
    if not folder.tree.is_file():
        what = 'holds no run: it has no tree.json' if path.is_dir() else 'is not a folder'
        raise FileNotFoundError(f'{path} {what}. Give the work folder of a run (workdir).')
    content = read_json(folder.tree, ('run', 'settings', 'criterion', 'space', 'multiple', 'training'))
    searched = _read_search(folder)
    # Another search of the tree may have another metric. That reported to NNI is for trees of earlier versions.
    monitor, mode = (
        (searched or content).get(name, other) for name, other in (('monitor', 'default'), ('mode', 'max'))
    )
    sampling = content['settings'].get('sampling', 'uniform')
    settings = Settings(content['settings']['split_epochs'], None, monitor=monitor, mode=mode, sampling=sampling)
    space = {label: [_hashable(choice) for choice in choices] for label, choices in content['space'].items()}
    root = Node(
        space_of(content, SubSpace.from_dict(space, content['multiple'])),
        content['training']['start_epoch'],
    )
    of_criterion = (evidence or {}).get(content['criterion']['criterion'])
    results = {node.name: result for node, result in grow(root, folder, content['run'], of_criterion)}
    if searched is not None and (searched['weights'] != root.weights_of_leaves or root.due):
        searched = None
    lines = read_lines(folder.scores, ('run', 'calibration_batches', 'sample', 'weights', 'metrics'))
    lines = [line for line in lines if line['run'] == content['run']]
    scores = _read_scores(root, lines, searched)
    record = Record(
        path,
        content,
        settings,
        root,
        {name: result['seconds'] for name, result in results.items()},
        {name: result.get('choosing', 0.0) for name, result in results.items()},
        {node.name: _state(folder, node, settings, content['training']['max_epochs']) for node in root},
        {node.name: folder.read_curve(node.name, content['run']) for node in root},
        scores,
        _read_instances(root, lines),
        None if searched is None else len(searched['found']),
        _last_change(path),
        describe(
            content['criterion']['criterion'], {k: v for k, v in content['criterion'].items() if k != 'criterion'}
        ),
        {name: value for name, value in (searched or {}).items() if name in OF_SEARCH},
        *_read_prior(root, content, scores, searched),
        _read_costs(folder, content['run'], root, searched),
        _read_limits(root.subspace, content.get('limits') or {}),
    )
    record.scores.sort(key=record.estimate, reverse=True)
    return record


def _hashable(choice: Any) -> Any:
    """A choice as NNI may have it: JSON makes lists of tuples."""
    return tuple(map(_hashable, choice)) if isinstance(choice, list) else choice


def _last_change(path: Path) -> float:
    times = []
    for file in path.iterdir():
        with suppress(FileNotFoundError):  # a running process replaces files
            if file.suffix in ('.json', '.jsonl', '.ckpt', '.txt'):
                times.append(file.stat().st_mtime)
    return max(times)


def _state(folder: RunFolder, node: Node, settings: Settings, max_epochs: int) -> str:
    if node.checkpoint is not None:
        return 'done'
    error = folder.error(f'node {node.name}')
    with suppress(FileNotFoundError):
        lines = error.read_text(errors='replace').split('\n')
        return f'failed: {next((line for line in reversed(lines) if line.strip()), "")}'
    ends = {settings.next_stop(node.earliest_stop, max_epochs), max_epochs}
    found = [(epoch, end) for end in ends for epoch, *_ in find_epochs(folder.unfinished(node.name, end))]
    if not found and not folder.result(node.name).exists():
        return 'waiting'
    state = 'epoch {} of {}'.format(*max(found)) if found else 'to be split'
    # Where other machines share the folder, its lock may not tell of them.
    at_it = is_locked(folder.lock(f'node {node.name}'))
    return state if at_it else f'{state}; no process of this machine is at it'


def _read_search(folder: RunFolder) -> dict[str, Any] | None:
    if not folder.search.exists():
        return None
    return read_json(folder.search, ('run', 'monitor', 'mode', 'calibration_batches', 'weights', 'found'))


def _read_prior(
    root: Node, content: Mapping[str, Any], scores: Sequence[Score], searched: dict[str, Any] | None
) -> tuple[dict[str, float], list[tuple[Score, float, dict[str, float]]]]:
    """The prior of a search, and what it found."""
    prior = (searched or {}).get('prior') or {}
    if isinstance(prior, str):  # of an earlier version
        prior = {prior: searched['prior_weight']}
    if not prior:
        return {}, []
    space = root.subspace
    by_sample = {str(space.encode(score.sample)): score for score in scores}
    found = []
    for each in searched['found']:
        same = network_of(content, space, space.decode(each['sample']))
        score = by_sample.get(str(space.encode(same)))
        if score is None:  # its line of the scores is lost
            leaf = next(leaf for leaf in root.leaves if leaf.subspace.covers(same))
            score = Score(same, leaf, {searched['monitor']: each[searched['monitor']]})
        found.append((score, each['score'], {name: each[name] for name in prior}))
    found.sort(key=lambda each: each[1], reverse=True)  # a search with costs has another order
    return prior, found


def _read_costs(
    folder: RunFolder, run: str, root: Node, searched: dict[str, Any] | None
) -> dict[str, dict[str, float]]:
    """What is kept of what networks cost, by the code of functions and weights of now."""
    right = {'lid': root.weights, **(searched or {}).get('functions', {})}
    found: dict[str, dict[str, float]] = {}
    for line in read_lines(folder.costs, ('run', 'sample', 'depend_on', 'costs')):
        if line['run'] == run:
            depend_on = line['depend_on']
            same = {
                name: cost
                for name, cost in line['costs'].items()
                if depend_on.get(name) == right.get(name, depend_on.get(name))
            }
            found.setdefault(str(line['sample']), {}).update(same)
    return found


def _read_limits(space: SubSpace, limits: Mapping[str, Any]) -> dict[str, Range]:
    """By the name of a cost, what tells it; what is drawn from may be counted in steps, what is asked is exact."""
    return {each.cost: each for each in [*space.ranges, *decode_ranges(limits.get('asked', ()), space)]}


def _read_scores(root: Node, lines: list[dict[str, Any]], searched: dict[str, Any] | None) -> list[Score]:
    """Networks scored with the weights of the leaves, and with as many calibration batches as the search, or lately."""
    leaves = {leaf.weights: leaf for leaf in root.leaves if leaf.weights is not None}
    lines = [line for line in lines if line['weights'] in leaves]
    if not lines:
        return []
    batches = (searched or lines[-1])['calibration_batches']
    found = {str(line['sample']): line for line in lines if line['calibration_batches'] == batches}
    return [
        Score(root.subspace.decode(line['sample']), leaves[line['weights']], line['metrics'], number)
        for number, line in enumerate(found.values(), 1)
    ]


def _read_instances(root: Node, lines: list[dict[str, Any]]) -> dict[tuple[int, int], list[Score]]:
    """Networks by the epoch of the weights that they were scored with, and by their number of calibration batches."""
    nodes: dict[str, list[Node]] = {}
    for epoch in root.kept_epochs:
        for node in root.at(epoch):
            nodes.setdefault(node.weights, []).append(node)
    found: dict[tuple[int, int], dict[str, Score]] = {}
    for line in lines:
        sample = root.subspace.decode(line['sample'])
        for node in nodes.get(line['weights'], ()):
            if node.subspace.covers(sample):
                instance = found.setdefault((node.end_epoch, line['calibration_batches']), {})
                instance[str(line['sample'])] = Score(sample, node, line['metrics'])
    return {instance: list(scores.values()) for instance, scores in sorted(found.items())}
