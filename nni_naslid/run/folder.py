"""The files of a run: each has its name here, and nowhere else."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nni_naslid.run.files import read_json, read_lines, write_json

__all__ = ['RunFolder', 'check_workdir', 'find_epochs', 'of_epoch']

RESULT = (
    'run', 'name', 'end_epoch', 'checkpoint_sha256', 'weights', 'parent_weights', 'report', 'split', 'seconds',
    'finished',
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """Names of the files in a work folder.

    Attributes
    ----------
    path
        The work folder, the same path on all machines.
    """

    path: Path

    @property
    def tree(self) -> Path:
        """The tree, and all that determines it."""
        return self.path / 'tree.json'

    @property
    def init(self) -> Path:
        """The checkpoint that the root starts from."""
        return self.path / 'init.ckpt'

    @property
    def search(self) -> Path:
        """What the search has found."""
        return self.path / 'search.json'

    @property
    def scores(self) -> Path:
        """What samples have scored, a line each."""
        return self.path / 'scores.jsonl'

    @property
    def costs(self) -> Path:
        """What samples cost, by the names of a search, a prior or a user, a line each."""
        return self.path / 'costs.jsonl'

    @property
    def export(self) -> Path:
        """Where networks are exported to, a folder for each, unless the user names another place."""
        return self.path / 'export'

    def checkpoint(self, node: str) -> Path:
        """Checkpoint of a node at its last epoch."""
        return self.path / f'node-{node}.ckpt'

    def unfinished(self, node: str, end_epoch: int) -> Path:
        """How the names of checkpoints of a node begin that is on its way to an epoch."""
        return self.path / f'node-{node}-to-{end_epoch}'

    def kept(self, node: str) -> Path:
        """How the names of checkpoints of a node begin that are kept of epochs before its end."""
        return self.path / f'node-{node}'

    def profile(self, node: str) -> Path:
        """Finished repeats of a node's profile, a line each."""
        return self.path / f'node-{node}.profile.jsonl'

    def curve(self, node: str) -> Path:
        """Validation metrics of a node's epochs, a line each."""
        return self.path / f'node-{node}.curve.jsonl'

    def read_curve(self, node: str, run: str) -> dict[int, dict[str, float]]:
        """What validation while training a node has found, by epoch: of one that was trained again, the latest line."""
        lines = read_lines(self.curve(node), ('run', 'epoch', 'metrics'))
        return {line['epoch']: line['metrics'] for line in lines if line['run'] == run}

    def recipe(self, digest: str) -> Path:
        """What a YAML says of a run, by the SHA-256 of its content."""
        return self.path / f'recipe-{digest[:32]}.json'

    def trials(self, experiment: str) -> Path:
        """Which task each trial of an experiment has."""
        return self.path / f'trials-{experiment}.json'

    def error(self, task: str) -> Path:
        """What a task has raised."""
        return self.path / f'failed-{task.replace(" ", "-")}.txt'

    def lock(self, task: str) -> Path:
        """Held by the process that is at a task."""
        return self.path / f'{task.replace(" ", "-")}.lock'

    def picture(self, name: str) -> Path:
        """A picture for people."""
        return self.path / f'{name}.png'

    def result(self, node: str) -> Path:
        """What has become of a node."""
        return self.path / f'node-{node}.json'

    def write_result(self, node: str, run: str, **result: Any) -> None:
        """Keep what has become of a node, or has so far."""
        write_json(self.result(node), {'run': run, 'name': node, **result})

    def read_result(self, node: str, run: str) -> dict[str, Any] | None:
        """What :meth:`write_result` has kept of a node; ``None`` if there is nothing.

        Raises
        ------
        ValueError
            If the file is damaged, or of another run or node.
        """
        if not self.result(node).exists():
            return None
        result = read_json(self.result(node), RESULT, self.advice(node))
        if (result['run'], result['name']) != (run, node):
            raise ValueError(
                f'{self.result(node)} is of node {result["name"]} of run {result["run"]}, not of node {node} of run '
                f'{run}. Put it back where it belongs. {self.advice(node)}'
            )
        return result

    def advice(self, node: str) -> str:
        """What to do about a file of a node that cannot be used: all that came from it goes, too."""
        if node == 'init':
            return f'Delete it and {self.tree}: both are made again.'
        return (
            f'To train node {node} again, with those below it, delete node-{node}.* and node-{node}-to-* in that '
            'folder, and start again. What was scored with other weights is then scored again.'
        )


def of_epoch(begin: Path, epoch: int, sha256: str) -> Path:
    """A checkpoint whose name begins so and holds its epoch and the beginning of its SHA-256."""
    return begin.with_name(f'{begin.name}.at-{epoch}.{sha256[:16]}.ckpt')


def find_epochs(begin: Path, epochs: Collection[int] | None = None) -> list[tuple[int, str, Path]]:
    """Checkpoints whose names begin so, of these epochs or of all, the latest first.

    Of each its epoch, the beginning of the SHA-256 that it should have, and the file.
    """
    found = []
    for path in begin.parent.glob(f'{begin.name}.at-*.ckpt'):
        match = re.search(r'\.at-(\d+)\.([0-9a-f]{16})\.ckpt$', path.name)
        if match and (epochs is None or int(match[1]) in epochs):
            found.append((int(match[1]), match[2], path))
    return sorted(found, reverse=True)


def check_workdir(workdir: Path) -> None:
    """Raise if a work folder cannot be written to, unless it holds a run: a finished run is only read."""
    probe = workdir / f'{uuid.uuid4().hex}.tmp'
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        if not RunFolder(workdir).tree.exists():
            raise OSError(f'workdir cannot be written to: {workdir} ({error}).') from error
