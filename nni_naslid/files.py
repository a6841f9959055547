"""Files of a run, which is killed at any time: each is replaced in one step, and read wholly or refused."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

__all__ = ['append_line', 'check_workdir', 'locked', 'read_json', 'read_lines', 'replacing', 'write_json']

_logger = logging.getLogger(__name__)


def check_workdir(workdir: Path) -> None:
    """Raise if a work folder cannot be written to."""
    probe = workdir / f'{uuid.uuid4().hex}.tmp'
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f'workdir cannot be written to: {workdir} ({error}).') from error


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Inside, no other process is inside with the same path; one that is killed leaves."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _logger.warning('Another process is at the %s; waiting for it.', what)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``, which it replaces at the end, if nothing was raised.

    Its name is its own: two processes may write the same path.
    """
    unfinished = path.with_name(f'{path.name}.{uuid.uuid4().hex[:8]}.tmp')
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file; what JSON does not know becomes a string."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1, default=str))


def read_json(path: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    """Read a file of ours, which has all the ``needed`` keys.

    Raises
    ------
    ValueError
        If it is damaged or is something else.
    """
    return _parse(path.read_text(errors='replace'), needed, lambda: f'{path}')


def append_line(path: Path, content: dict[str, Any]) -> None:
    """Add one line to a file, by one write."""
    line = json.dumps(content, default=str) + '\n'
    with open(path, 'ab', buffering=0) as file:
        file.write(line.encode())


def read_lines(path: Path, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    """Read the lines of a file of ours; there are none where there is no file.

    Raises
    ------
    ValueError
        If one is damaged or is something else.
    """
    if not path.exists():
        return []
    lines = path.read_text(errors='replace').splitlines()
    return [_parse(line, needed, lambda i=i: f'Line {i} of {path}') for i, line in enumerate(lines, 1)]


def _parse(text: str, needed: tuple[str, ...], name: Callable[[], str]) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f'{name()} is damaged ({error}). Delete it: what it stood for is done again.') from error
    if missing := [key for key in needed if not isinstance(content, dict) or key not in content]:
        raise ValueError(f'{name()} is not from nni_naslid, or from another version: it has no {missing}.')
    return content
