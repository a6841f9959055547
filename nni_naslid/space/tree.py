"""The tree of sub-supernets: what has become of each node, and which are due. Without torch: the tuner uses it too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nni_naslid.space.split import Split
from nni_naslid.space.subspace import SubSpace

__all__ = ['Node', 'format_size']

WIDTH = 40  # of choices on an axis of the web UI, in characters


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
    weights
        SHA-256 of the weights in it, the same for a run that was killed, where the file is another; ``None`` before.
    kept
        By epoch the checkpoint, its SHA-256, and that of the weights in it: of the end, and of earlier epochs that were
        to be kept; empty before the end.
    parent_weights
        Those of its parent, which it is trained from; ``None`` for the root.
    report
        What the user's module logged in validation after training (means over random paths of the sub-space), and as
        ``'default'`` what it reported to NNI; empty before.
    split
        How it was split, or what was found where nothing separates; ``None`` where no split was due.
    stopped
        Why training was stopped before its end: ``epoch`` (after which), ``metric`` (its name), ``predicted`` and
        ``std`` (of the metric at the end), ``best`` (of the ``leaves`` that had finished), ``probability`` (to be worse
        than that); ``None`` where it was not.
    children
        Empty for a leaf.
    """

    subspace: SubSpace
    start_epoch: int = 0
    end_epoch: int | None = None
    path: tuple[int, ...] = ()
    checkpoint: Path | None = None
    sha256: str | None = None
    weights: str | None = None
    kept: dict[int, tuple[Path, str, str]] = field(default_factory=dict)
    parent_weights: str | None = None
    report: dict[str, float] = field(default_factory=dict)
    split: Split | None = None
    stopped: dict[str, Any] | None = None
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
    def metric(self) -> float | None:
        """What was reported to NNI; ``None`` before."""
        return self.report.get('default')

    @property
    def earliest_stop(self) -> int:
        """The first epoch at which it may be split: a root may start from a checkpoint that is due, a child trains."""
        return self.start_epoch if self.parent_name is None else self.start_epoch + 1

    @property
    def epochs(self) -> str:
        """For people: ``'epochs 8-16'``."""
        return f'epochs {self.start_epoch}-{"" if self.end_epoch is None else self.end_epoch}'

    @property
    def why_stopped(self) -> str | None:
        """For people: why training was stopped before its end; ``None`` where it was not."""
        if self.stopped is None:
            return None
        return (
            'stopped after epoch {epoch}: {metric} {predicted:.4g} ± {std:.2g} is expected at the end, but the best of '
            '{leaves} finished leaves has {best:.4g} (worse with probability {probability:.3f})'
        ).format(**self.stopped)

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
    def weights_of_leaves(self) -> dict[str, str | None]:
        """The :attr:`weights` of each leaf: what the scores of samples depend on."""
        return {leaf.name: leaf.weights for leaf in self.leaves}

    @property
    def kept_epochs(self) -> list[int]:
        """The epochs of which there are the weights of all nodes that were trained then, in order."""
        epochs = sorted({epoch for node in self for epoch in node.kept})
        return [epoch for epoch in epochs if all(node._kept_at(epoch) for node in self._trained_at(epoch))]

    def at(self, epoch: int) -> list[Node]:
        """The nodes that were trained at an epoch of :attr:`kept_epochs`, as they were then.

        Their sub-spaces are disjoint and cover this one's. At the epoch of a split it is the parent. A leaf that was
        stopped before has the weights that it was left with.
        """
        return [
            replace(node, end_epoch=epoch, checkpoint=path, sha256=sha256, weights=weights, report={}, split=None,
                    children=[])
            for node in self._trained_at(epoch)
            for path, sha256, weights in [node._kept_at(epoch)]
        ]  # fmt: skip

    def _kept_at(self, epoch: int) -> tuple[Path, str, str] | None:
        return self.kept.get(epoch if self.stopped is None else min(epoch, self.end_epoch))

    def _trained_at(self, epoch: int) -> list[Node]:
        if not self.children or epoch <= self.end_epoch:
            return [self]
        return [node for child in self.children for node in child._trained_at(epoch)]

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
        return {
            'node': self.name,
            'parent': self.parent_name or '',
            'depth': len(self.path),
            'epochs': f'{self.start_epoch}-{stop}',
            'architectures': format_size(self.subspace.size),
        }

    def narrowed(self, whole: SubSpace) -> dict[str, str]:
        """For people: the choices left of each label that has fewer than in the whole space, as ``'3x3|5x5'``."""
        narrowed = self.subspace.narrowed(whole)
        return {label: _brief('|'.join(map(str, choices))) for label, choices in narrowed.items()}

    def __repr__(self) -> str:
        return (
            f'Node({self.name}, {self.epochs}, {format_size(self.subspace.size)} architectures, '
            f'{len(self.children)} children)'
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            'name': self.name,
            'start_epoch': self.start_epoch,
            'end_epoch': self.end_epoch,
            'checkpoint': self.checkpoint.name if self.checkpoint else None,
            'weights': self.weights,
            'metric': self.metric,
            'size': self.subspace.size,
            'subspace': self.subspace.to_dict(),
            'split': self.split.to_dict(self.subspace) if self.split else None,
            'children': [child.name for child in self.children],
            **({'stopped': self.stopped} if self.stopped else {}),
        }


def _brief(choices: str) -> str:
    return choices if len(choices) <= WIDTH else f'{choices[: WIDTH - 1]}…'


def format_size(size: int) -> str:
    """A number of architectures for people.

    >>> format_size(15625), format_size(2 ** 64)
    ('15,625', '1.8e+19')
    """
    return f'{size:,}' if size < 10**9 else f'{size:.1e}'
