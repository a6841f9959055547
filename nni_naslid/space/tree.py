"""The tree of sub-supernets: what has become of each node, which are due, and the files that keep it.

A node's result is a file that whoever trains it writes: this process, or an NNI trial on another machine. The tree
grows by reading these files, so a run that was killed goes on where it was. Without torch: the tuner, which must start
fast, uses it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nni_naslid.run.files import digest, read_json, write_json
from nni_naslid.space.split import Split
from nni_naslid.space.subspace import SubSpace

__all__ = [
    'Node', 'checkpoint_path', 'format_size', 'grow', 'read_result', 'run_id', 'save_tree', 'to_train_again',
    'write_result',
]  # fmt: skip


@dataclass(eq=False)
class Node:
    """A sub-supernet: a sub-space, the epochs it was trained for, and what became of it.

    Attributes
    ----------
    subspace
        The samples it is trained on.
    start_epoch, end_epoch
        It was trained from one to the other; epochs count from the root. The end is ``None`` before.
    path
        Child numbers from the root, which is ``()``.
    checkpoint, sha256
        Lightning checkpoint at ``end_epoch``, and its SHA-256; ``None`` before.
    metric
        What the evaluator reported after training (the mean over random samples of the sub-space).
    split
        How it was split, or what was found where nothing separates; ``None`` where no split was due.
    children
        Empty for a leaf.
    """

    subspace: SubSpace
    start_epoch: int = 0
    end_epoch: int | None = None
    path: tuple[int, ...] = ()
    checkpoint: Path | None = None
    sha256: str | None = None
    metric: float | None = None
    split: Split | None = None
    children: list[Node] = field(default_factory=list)

    @property
    def name(self) -> str:
        """``'0'`` for the root, ``'0.1'`` for its second child."""
        return '.'.join(map(str, (0, *self.path)))

    @property
    def parent_name(self) -> str | None:
        """Name of the parent; ``None`` for the root."""
        return '.'.join(map(str, (0, *self.path[:-1]))) if self.path else None

    @property
    def earliest_stop(self) -> int:
        """The first epoch at which it may be split: a root may start from a checkpoint that is due, a child trains."""
        return self.start_epoch if self.parent_name is None else self.start_epoch + 1

    @property
    def epochs(self) -> str:
        """For people: ``'epochs 8-16'``."""
        return f'epochs {self.start_epoch}-{"" if self.end_epoch is None else self.end_epoch}'

    def __iter__(self) -> Iterator[Node]:
        """This node and all below, parents first, level by level."""
        level = [self]
        while level:
            yield from level
            level = [child for node in level for child in node.children]

    @property
    def leaves(self) -> list[Node]:
        """The nodes below (or this one) that have no children; their sub-spaces are disjoint and cover this one's."""
        return [node for node in self if not node.children]

    @property
    def due(self) -> list[Node]:
        """The nodes below (or this one) that are to be trained now, level by level."""
        return [node for node in self if node.checkpoint is None]

    @property
    def cost(self) -> int:
        """Epochs trained in this node and all below: the number of epochs of a supernet that cost the same."""
        return sum(node.end_epoch - node.start_epoch for node in self if node.checkpoint)

    def summary(self, stop: int) -> dict[str, Any]:
        """For people, of a node that is about to be trained to ``stop``: what the web UI shows."""
        choices = {label: ' | '.join(map(str, values)) for label, values in self.subspace.to_dict().items()}
        return {
            'node': self.name,
            'parent': self.parent_name or '',
            'depth': len(self.path),
            'epochs': f'{self.start_epoch}-{stop}',
            'samples': format_size(self.subspace.size),
            **choices,
        }

    def __repr__(self) -> str:
        return (
            f'Node({self.name}, {self.epochs}, {format_size(self.subspace.size)} samples, '
            f'{len(self.children)} children)'
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            'name': self.name,
            'start_epoch': self.start_epoch,
            'end_epoch': self.end_epoch,
            'checkpoint': self.checkpoint.name if self.checkpoint else None,
            'metric': self.metric,
            'size': self.subspace.size,
            'subspace': self.subspace.to_dict(),
            'split': self.split.to_dict() if self.split else None,
            'children': [child.name for child in self.children],
        }


def checkpoint_path(workdir: Path, name: str) -> Path:
    """Checkpoint of a node by its name."""
    return workdir / f'node-{name}.ckpt'


RESULT = ('run', 'name', 'end_epoch', 'checkpoint_sha256', 'report', 'split', 'seconds', 'finished')


def to_train_again(name: str) -> str:
    """What to do about a file of a node that cannot be used: all that came from it goes, too."""
    return (
        f'To train node {name} again, with those below it, delete node-{name}.*, node-{name}-to-*, search.json and '
        'scores.jsonl in that folder, and start again.'
    )


def write_result(workdir: Path, name: str, run: str, **result: Any) -> None:
    """Keep what has become of a node, or has so far."""
    write_json(workdir / f'node-{name}.json', {'run': run, 'name': name, **result})


def read_result(workdir: Path, name: str, run: str) -> dict[str, Any] | None:
    """What :func:`write_result` has kept of a node; ``None`` if there is nothing.

    Raises
    ------
    ValueError
        If the file is damaged, or of another run or node.
    """
    path = workdir / f'node-{name}.json'
    if not path.exists():
        return None
    result = read_json(path, RESULT, to_train_again(name))
    if (result['run'], result['name']) != (run, name):
        raise ValueError(
            f'{path} is of node {result["name"]} of run {result["run"]}, not of node {name} of run {run}. '
            f'Put it back where it belongs. {to_train_again(name)}'
        )
    return result


def grow(root: Node, workdir: Path, run: str, above: str | None = None) -> Iterator[tuple[Node, dict[str, Any]]]:
    """Let nodes that have finished since take their results and have their children; yields each with its result.

    With the name of a node, only those above it.
    """
    for node in root:
        if node.checkpoint is not None or not (above is None or above.startswith(f'{node.name}.')):
            continue
        if (result := read_result(workdir, node.name, run)) and result['finished']:
            node.end_epoch, node.metric = result['end_epoch'], result['report']['default']
            node.checkpoint, node.sha256 = checkpoint_path(workdir, node.name), result['checkpoint_sha256']
            if result['split']:
                candidates = node.subspace.splittable[result['split']['label']]
                node.split = Split.from_dict(result['split'], candidates)
                if node.split.separates:
                    subspaces = node.subspace.split(node.split.label, node.split.partition.groups)
                    node.children = [
                        Node(subspace, node.end_epoch, path=(*node.path, i)) for i, subspace in enumerate(subspaces)
                    ]
            yield node, result


def run_id(identity: dict[str, Any]) -> str:
    """A short name for all that determines a tree; files that have another one are of another run."""
    return digest(identity)[:12]


def save_tree(root: Node, path: Path, identity: dict[str, Any], **more: Any) -> None:
    """Write the tree as JSON, with all that determines it."""
    write_json(
        path,
        {'run': run_id(identity), **identity, **more, 'cost': root.cost, 'nodes': [node.to_dict() for node in root]},
    )


def format_size(size: int) -> str:
    """A number of samples for people.

    >>> format_size(15625), format_size(2 ** 64)
    ('15,625', '1.8e+19')
    """
    return f'{size:,}' if size < 10**9 else f'{size:.1e}'
