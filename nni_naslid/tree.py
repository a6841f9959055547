"""The tree of sub-supernets, and the file that keeps it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nni_naslid.criteria import Split
from nni_naslid.subspace import SubSpace

__all__ = ['Node', 'format_size', 'save_tree']


@dataclass(eq=False)
class Node:
    """A sub-supernet: a sub-space, the epochs it was trained for, and what became of it.

    Attributes
    ----------
    subspace
        The samples it is trained on.
    start_epoch, end_epoch
        It was trained from one to the other; epochs count from the root.
    path
        Child numbers from the root, which is ``()``.
    checkpoint
        Lightning checkpoint at ``end_epoch``; ``None`` before.
    metric
        What the evaluator reported after training (the mean over random samples of the sub-space).
    split
        How it was split, or what was found where nothing separates; ``None`` where no split was due.
    children
        Empty for a leaf.
    """

    subspace: SubSpace
    start_epoch: int
    end_epoch: int
    path: tuple[int, ...] = ()
    checkpoint: Path | None = None
    metric: float | None = None
    split: Split | None = None
    children: list[Node] = field(default_factory=list)

    @property
    def name(self) -> str:
        """``'0'`` for the root, ``'0.1'`` for its second child."""
        return '.'.join(map(str, (0, *self.path)))

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
    def cost(self) -> int:
        """Epochs trained in this node and all below: the number of epochs of a supernet that cost the same."""
        return sum(node.end_epoch - node.start_epoch for node in self if node.checkpoint)

    def __repr__(self) -> str:
        return (
            f'Node({self.name}, epochs {self.start_epoch}-{self.end_epoch}, {format_size(self.subspace.size)} samples, '
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


def save_tree(root: Node, path: Path, **settings: Any) -> None:
    """Write the tree as JSON, with the settings that made it; the file is replaced in one step, never half written."""
    text = json.dumps(
        {**settings, 'cost': root.cost, 'nodes': [node.to_dict() for node in root]}, indent=2, default=str
    )
    unfinished = path.with_suffix('.tmp')
    unfinished.write_text(text)
    os.replace(unfinished, path)


def format_size(size: int) -> str:
    """A number of samples for people.

    >>> format_size(15625), format_size(2 ** 64)
    ('15,625', '1.8e+19')
    """
    return f'{size:,}' if size < 10**9 else f'{size:.1e}'
