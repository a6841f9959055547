"""Read and write the files of a run, which may be killed at any time, in a folder that others may write to.

A file is flushed to disk before it gets its name. Its SHA-256 is in it, or in another file. A damaged file is refused.
Writing follows no symbolic links. Nothing is unpickled here.
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
    'append_line', 'digest', 'is_locked', 'locked', 'moved', 'read_json', 'read_lines', 'replacing',
    'sha256_of', 'write_json',
]  # fmt: skip

_logger = logging.getLogger(__name__)

REDO = 'Delete it: what it stood for is done again.'


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """If writing fails inside, raise an OSError that names the path and the likely cause."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch raises the latter where a disk is full
        code, reason = getattr(error, 'errno', None) or EIO, getattr(error, 'strerror', None) or error
        if code == ELOOP:
            raise OSError(code, f'{path} is a symbolic link, which is not followed. Delete it') from error
        raise OSError(
            code,
            f'{path} cannot be written ({reason}). Is the disk full, a quota reached, or the folder read-only? '
            'What was finished is kept: fix this and start again',
        ) from error


def _open(path: Path, flags: int) -> int:
    """Open a file for writing, and create it if it does not exist; return its descriptor."""
    with _naming(path):
        return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock inside: one process at a time. The lock of a killed process is released."""
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


def is_locked(path: Path) -> bool:
    """Whether a process of this machine holds a lock; ``True`` if that cannot be told. Nothing is written.

    Of a process on another machine that shares the folder, not all storage can tell.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: who else asks does not take this for a holder
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path``. At the end it replaces ``path``, unless an exception was raised.

    Its name is unique, so two processes may write the same path. Only write the file inside: any error counts as one of
    writing.

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
    """Rename a file, and flush the new name to disk."""
    with _naming(target):
        os.replace(source, target)
        _flush(target.parent)


def _flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (EINVAL, ENOTSUP):  # some storage cannot flush folders, and says so
            raise
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    found = hashlib.sha256()
    with open(path, 'rb') as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()


def digest(content: Any) -> str:
    """SHA-256 of some content as JSON; objects that JSON does not know are converted to strings."""
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def _signed(content: dict[str, Any]) -> dict[str, Any]:
    """A dict as JSON keeps it, with its own SHA-256 added."""
    assert 'sha256' not in content
    content = json.loads(json.dumps(content, default=str))
    return {**content, 'sha256': digest(content)}


def _verified(text: bytes, needed: tuple[str, ...]) -> dict[str, Any]:
    """Parse the text of a dict from :func:`_signed`, check its SHA-256, and check that it has the ``needed`` keys.

    Raises
    ------
    ValueError
        If it is anything else; the message says what is wrong.
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
    """Write a file, unless it has this content already; objects that JSON does not know become strings."""
    text = json.dumps(_signed(content), indent=1).encode()
    if path.is_file() and path.read_bytes() == text:
        return
    with replacing(path) as unfinished:
        unfinished.write_bytes(text)


def read_json(path: Path, needed: tuple[str, ...], advice: str = REDO) -> dict[str, Any]:
    """Read a file of :func:`write_json`, and check that it has all the ``needed`` keys.

    Raises
    ------
    ValueError
        If the file is damaged or is something else; the message ends with the advice.
    """
    try:
        return _verified(path.read_bytes(), needed)
    except ValueError as error:
        raise ValueError(f'{path} {error}. {advice}') from error


def append_line(path: Path, content: dict[str, Any]) -> None:
    """Add one whole line to a file, or nothing. Other processes may add lines at the same time."""
    descriptor = _open(path, os.O_RDWR | os.O_APPEND)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        line = json.dumps(_signed(content)).encode() + b'\n'
        if size and os.pread(descriptor, 1, size - 1) != b'\n':
            line = b'\n' + line  # a killed process has left half a line
        with _naming(path):
            try:
                while line:  # a disk that gets full writes a part, and raises at the next call
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
    """Read the lines of :func:`append_line`; an empty list if there is no file.

    Damaged lines are left out, so what they stood for is done again. One warning is logged for all of them.
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
