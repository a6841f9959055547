"""Truth tables as files: .csv and .npz."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ['is_table', 'table_columns', 'table_rows']


def is_table(path: Path) -> bool:
    """Whether the name is one of a table."""
    return path.suffix.lower() in ('.csv', '.npz')


def table_columns(path: Path) -> list[str]:
    """The names of the columns; none of an empty table."""
    if path.suffix.lower() == '.csv':
        return [name.strip() for name in next((row for _, row in _csv_lines(path)), [])]
    return _npz_arrays(path, ())[0]


def table_rows(path: Path, column: str) -> Iterator[tuple[str, str, Any, Any]]:
    """Where each row is, its architecture, its seed or None, and its accuracy."""
    rows = _csv_rows if path.suffix.lower() == '.csv' else _npz_rows
    for where, row in rows(path, column):
        yield where, row['arch'], row.get('seed'), row[column]


def _csv_rows(path: Path, column: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row is, and its fields by the name of the column."""
    header = None
    for where, row in _csv_lines(path):
        fields = [field.strip() for field in row]
        if header is None:
            header = fields if 'arch' in fields else ['arch' if f == 'architecture' else f for f in fields]
            _check_columns(path, header, column)
        elif len(fields) != len(header):
            raise ValueError(f'{where} has {len(fields)} fields, but the header has {len(header)}: {row!r:.200}.')
        else:
            yield where, dict(zip(header, fields, strict=True))
    if header is None:
        raise ValueError(f'{path} is empty.')


def _csv_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Where each line is that is neither empty nor a comment, and its fields; the first one is the header."""
    with path.open(newline='', encoding='utf-8-sig') as file:
        # Comments become empty lines, so that lines keep their numbers.
        reader = csv.reader('\n' if line.lstrip().startswith('#') else line for line in file)
        try:
            for row in reader:
                if any(field.strip() for field in row):
                    yield f'{path}, line {reader.line_num}', row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f'{path} cannot be read after line {reader.line_num}: {error}.') from error


def _npz_rows(path: Path, column: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row is, and its values by the name of the column."""
    names, arrays = _npz_arrays(path, ('arch', 'seed', column))
    _check_columns(path, names, column)
    shape = arrays['arch'].shape
    if arrays.get('seed', arrays['arch']).shape != shape:
        del arrays['seed']  # one number for the whole file, say
    for name, array in arrays.items():
        if array.ndim != 1 or array.shape != shape:
            raise ValueError(
                f'{path}: {name} must have one value for each arch, but their shapes are {array.shape}, {shape}.'
            )
    for i, values in enumerate(zip(*arrays.values(), strict=True)):
        row = dict(zip(arrays, values, strict=True))
        row['arch'] = row['arch'].decode(errors='replace') if isinstance(row['arch'], bytes) else str(row['arch'])
        yield f'{path}, row {i}', row


def _npz_arrays(path: Path, wanted: Sequence[str]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of all arrays, and those that are wanted."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return file.files, {name: file[name] for name in file.files if name in wanted}
    except OSError:
        raise
    except Exception as error:  # of zipfile, zlib and numpy
        raise ValueError(f'{path} cannot be read: {" ".join(str(error).split())}') from error


def _check_columns(path: Path, columns: Sequence[str], column: str) -> None:
    for name in ('arch', column):
        if name not in columns:
            raise ValueError(f'{path} has no column {name!r}; it has {", ".join(columns):.200}.')
    if twice := sorted(name for name in {'arch', 'seed', column} if columns.count(name) > 1):
        raise ValueError(f'{path} has more than one column {twice[0]!r}.')
