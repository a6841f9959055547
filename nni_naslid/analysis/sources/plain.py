"""Pickles of plain data, read without running anything that they name."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any, BinaryIO

import numpy as np

__all__ = ['NotPlainError', 'load_plain']


class NotPlainError(pickle.UnpicklingError):
    """A pickle calls for a class or function, which could run code."""


def load_plain(file: BinaryIO) -> Any:
    """The next pickle of a file, if it holds numbers, text, and Python's dicts, lists, tuples and sets of them only.

    Raises
    ------
    NotPlainError
        If it names any other class or function: a pickle can call what it names.
    """
    return _PlainUnpickler(file).load()


class _Dtype:
    """Stands for ``numpy.dtype``, whose own ``__setstate__`` believes whatever it is given."""

    def __init__(self, kind: str, *_: bool) -> None:
        self.kind = kind

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]


def _number(dtype: _Dtype, content: bytes) -> int | float:
    """A numpy number as one of Python."""
    return np.frombuffer(content, np.dtype(dtype.order + dtype.kind))[0].item()


def _bytes(text: str, encoding: str) -> bytes:
    """How protocol 2, that of torch, writes bytes."""
    if encoding != 'latin1':
        raise NotPlainError(f'it holds bytes in the encoding {encoding!r:.200}')
    return text.encode('latin1')


PLAIN = {
    ('builtins', 'set'): set,
    ('__builtin__', 'set'): set,
    ('collections', 'OrderedDict'): OrderedDict,
    ('numpy', 'dtype'): _Dtype,
    ('numpy.core.multiarray', 'scalar'): _number,
    ('numpy._core.multiarray', 'scalar'): _number,
    ('_codecs', 'encode'): _bytes,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN:
            raise NotPlainError(f'it calls for {f"{module}.{name}":.200}, which is no plain data')
        return PLAIN[module, name]
