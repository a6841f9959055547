"""Files of a run, which may be killed or lose power at any time, in a folder that others may write to.

Each file is flushed to disk before it takes its name, carries or has elsewhere its SHA-256, and is read wholly or
refused. No symbolic link is followed in writing. Nothing is unpickled here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL, EIO, ELOOP, ENOTSUP
from pathlib import Path
from typing import Any

__all__ = [
    'append_line', 'check_workdir', 'digest', 'locked', 'moved', 'read_json', 'read_lines', 'replacing',
    'sha256_of', 'write_json',
]  # fmt: skip

_logger = logging.getLogger(__name__)

REDO = 'Delete it: what it stood for is done again.'


def check_workdir(workdir: Path) -> None:
    """Raise if a work folder cannot be written to, unless it holds a run, which can be read."""
    probe = workdir / f'{uuid.uuid4().hex}.tmp'
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        if not (workdir / 'tree.json').exists():
            raise OSError(f'workdir cannot be written to: {workdir} ({error}).') from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the path, and the likely cause, of whatever goes wrong inside with writing it."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch raises the latter where a disk is full
        code, reason = getattr(error, 'errno', None) or EIO, getattr(error, 'strerror', None) or error
        if code == ELOOP:
            raise OSError(code, f'{path} is a symbolic link, which is not followed. Delete it') from error
        raise OSError(
            code,
            f'{path} cannot be written ({reason}). Is the disk full, a quota reached, or the folder read-only? '
            'What was finished is kept: mend this and start again',
        ) from error


def _open(path: Path, flags: int) -> int:
    """A descriptor of a file to write to, which is made if it is not there."""
    with _naming(path):
        return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Inside, no other process is inside with the same path; one that is killed leaves."""
    descriptor = _open(path, os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _logger.warning('The task %s is locked by another process; waiting for it.', what)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``, which it replaces at the end, if nothing was raised.

    Its name is its own: two processes may write the same path. Nothing but writing it belongs inside.

    Raises
    ------
    OSError
        Naming the path, and the likely cause, if that fails.
    """
    unfinished = path.with_name(f'{path.name}.{uuid.uuid4().hex[:8]}.tmp')
    with _naming(path):
        try:
            yield unfinished
            _flush(unfinished)
            os.replace(unfinished, path)
            _flush(path.parent)
        finally:
            with suppress(OSError):
                unfinished.unlink()


def moved(source: Path, target: Path) -> None:
    """Give a file another name, so that it stays so."""
    with _naming(target):
        os.replace(source, target)
        _flush(target.parent)


def _flush(path: Path) -> None:
    """Have a file, or the names in a folder, written to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (EINVAL, ENOTSUP):  # what storage says that cannot do it for folders
            raise
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of what is in a file, in hexadecimal digits."""
    found = hashlib.sha256()
    with open(path, 'rb') as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()


def digest(content: Any) -> str:
    """SHA-256 of what JSON makes of something; what JSON does not know counts as a string."""
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def _signed(content: dict[str, Any]) -> dict[str, Any]:
    """What JSON keeps of a dict, with its own SHA-256."""
    assert 'sha256' not in content
    content = json.loads(json.dumps(content, default=str))
    return {**content, 'sha256': digest(content)}


def _verified(text: bytes, needed: tuple[str, ...]) -> dict[str, Any]:
    """What :func:`_signed` has made, with all the ``needed`` keys.

    Raises
    ------
    ValueError
        If it is anything else, saying what it is.
    """
    if not text.strip(b'\0'):
        raise ValueError('is full of zeros' if text else 'is empty')
    try:
        content = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f'is damaged ({error})') from error
    if not isinstance(content, dict) or 'sha256' not in content:
        raise ValueError('is not from nni_naslid, or from another version (it has no SHA-256)')
    if content.pop('sha256') != digest(content):
        raise ValueError('is damaged (its SHA-256 is not that of its content)')
    if missing := [key for key in needed if key not in content]:
        raise ValueError(f'is not from nni_naslid, or from another version (it has no {missing})')
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file, unless it says the same already; what JSON does not know becomes a string."""
    text = json.dumps(_signed(content), indent=1).encode()
    if path.is_file() and path.read_bytes() == text:
        return
    with replacing(path) as unfinished:
        unfinished.write_bytes(text)


def read_json(path: Path, needed: tuple[str, ...], advice: str = REDO) -> dict[str, Any]:
    """Read what :func:`write_json` has written, which has all the ``needed`` keys.

    Raises
    ------
    ValueError
        If it is damaged or is something else; it ends with the advice.
    """
    try:
        return _verified(path.read_bytes(), needed)
    except ValueError as error:
        raise ValueError(f'{path} {error}. {advice}') from error


def append_line(path: Path, content: dict[str, Any]) -> None:
    """Add one line to a file, wholly or not at all, whoever else is adding some."""
    descriptor = _open(path, os.O_RDWR | os.O_APPEND)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        line = json.dumps(_signed(content)).encode() + b'\n'
        if size and os.pread(descriptor, 1, size - 1) != b'\n':
            line = b'\n' + line  # half a line is there, of a process that was killed
        with _naming(path):
            try:
                while line:  # a disk that gets full takes a part, and raises at the next one
                    line = line[os.write(descriptor, line) :]
                os.fsync(descriptor)
                if not size:
                    _flush(path.parent)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
    finally:
        os.close(descriptor)


def read_lines(path: Path, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    """Read what :func:`append_line` has written; there is nothing where there is no file.

    Damaged lines are left out, with one warning for all of them: what they stood for is done again.
    """
    if not path.exists():
        return []
    found, damaged = [], []
    for number, line in enumerate(path.read_bytes().split(b'\n'), 1):
        if line:
            try:
                found.append(_verified(line, needed))
            except ValueError as error:
                damaged.append(f'line {number} {error}')
    if damaged:
        _logger.warning(
            '%s: %d damaged line(s) left out, what they stood for is done again: %s.', path, len(damaged), damaged[0]
        )
    return found
