"""Ground truth: true accuracies of NAS-Bench-201 architectures, and the names that different tools give them."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from nni_naslid.space.subspace import SubSpace

import numpy as np
import pandas as pd
from nni.mutable import Sample

__all__ = [
    'DIGITS_TRUTH',
    'load_truth',
    'nasbench201_arch',
    'nasbench201_architectures',
    'nasbench201_sample',
    'truth_setting',
]

DIGITS_TRUTH = Path(str(files('nni_naslid.analysis') / 'data' / 'nasbench201_digits.csv'))
"""The table that comes with the package, measured by ``examples/measure_truth.py`` with its defaults."""

PATTERN = '|op~0|+|op~0|op~1|+|op~0|op~1|op~2|'

# NNI's name of an operation and the official one.
OPERATIONS = {
    'none': 'none',
    'skip_connect': 'skip_connect',
    'conv_1x1': 'nor_conv_1x1',
    'conv_3x3': 'nor_conv_3x3',
    'avg_pool_3x3': 'avg_pool_3x3',
}

EDGES = [f'cell/{a}_{b}' for a in range(3) for b in range(a + 1, 4)]
NASBENCH201 = SubSpace.from_dict({edge: list(OPERATIONS) for edge in EDGES}, {})


def nasbench201_architectures() -> list[str]:
    """All 15,625 official architecture strings, in an order of our own (the last edge changes fastest)."""
    pattern = PATTERN.replace('op', '{}')
    return [pattern.format(*operations) for operations in product(OPERATIONS.values(), repeat=6)]


def nasbench201_sample(arch: str) -> Sample:
    """The NNI sample (label to choice) of an official architecture string.

    >>> sample = nasbench201_sample('|none~0|+|nor_conv_1x1~0|none~1|+|none~0|none~1|skip_connect~2|')
    >>> sample['cell/0_2'], sample['cell/2_3']
    ('conv_1x1', 'skip_connect')

    Raises
    ------
    ValueError
        If ``arch`` is not such a string.
    """
    if not isinstance(arch, str):
        raise ValueError(f'Not a NAS-Bench-201 architecture: {arch!r:.200}; expected {PATTERN}.')
    names = {official: name for name, official in OPERATIONS.items()}
    sample = {
        f'cell/{source}_{target}': names.get(operation)
        for target, node in enumerate(arch.split('+'), start=1)
        for operation, source in re.findall(r'(\w+)~(\d)', node)
    }
    if sorted(sample) != EDGES or None in sample.values() or nasbench201_arch(sample) != arch:
        raise ValueError(f'Not a NAS-Bench-201 architecture: {arch!r:.200}; expected {PATTERN}.')
    return sample


def nasbench201_arch(sample: Sample) -> str:
    """The official architecture string of an NNI sample.

    >>> arch = '|none~0|+|nor_conv_1x1~0|none~1|+|none~0|none~1|skip_connect~2|'
    >>> nasbench201_arch(nasbench201_sample(arch)) == arch
    True

    Raises
    ------
    TypeError, ValueError
        If it is not a sample of NasBench201: it names the label, the choice and what would be right.
    """
    NASBENCH201.check(sample)
    return '+'.join(
        '|' + ''.join(f'{OPERATIONS[sample[f"cell/{source}_{target}"]]}~{source}|' for source in range(target))
        for target in (1, 2, 3)
    )


def truth_setting(path: str | Path) -> dict[str, Any]:
    """How a truth table of ``examples/measure_truth.py`` was measured: its options; empty for any other file.

    Raises
    ------
    ValueError
        If the first line begins like options, but cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() != '.csv':
        return {}
    with path.open(encoding='utf-8-sig') as file:
        try:
            first = file.readline()
            return json.loads(first[1:]) if first.startswith('# {') else {}
        except ValueError as error:
            raise ValueError(f'{path}, line 1 does not hold the setting as JSON: {error}.') from error


def load_truth(path: str | Path, column: str) -> pd.Series:
    """True accuracies by architecture.

    Parameters
    ----------
    path
        A ``.csv`` (lines that start with ``#`` are comments) or ``.npz`` with a column ``arch`` of official
        architecture strings and columns of accuracies. Several rows of one architecture are averaged; where there
        is a column ``seed`` they must have different ones.
    column
        Which accuracy: ``test_acc`` or ``valid_acc`` in the table of the package.

    Returns
    -------
    Accuracies, float64, in the unit of the file, indexed by architecture string.

    Raises
    ------
    ValueError
        If the file is of another kind, cannot be read, has no such columns or no rows; or naming the line or row, if an
        architecture is none of NAS-Bench-201, if it comes twice with one seed, or if its accuracy is no finite number.
    """
    path = Path(path)
    readers = {'.csv': _csv_rows, '.npz': _npz_rows}
    if path.suffix.lower() not in readers:
        raise ValueError(f'A truth table must be a .csv or .npz file, but got {path}.')
    known = set(nasbench201_architectures())
    measured: dict[tuple[str, str], str] = {}
    archs, accuracies = [], []
    for where, row in readers[path.suffix.lower()](path, column):
        arch, seed = row['arch'], row.get('seed')
        if arch not in known:
            raise ValueError(f'{where}: arch must be {PATTERN}, but is {arch!r:.200}.')
        if seed is not None and (other := measured.setdefault((arch, seed), where)) is not where:
            raise ValueError(f'{where}: {arch} with seed {seed} comes twice, first in {other}.')
        archs.append(arch)
        accuracies.append(_number(row[column], f'{where}: {column}'))
    if not archs:
        raise ValueError(f'{path} has no rows.')
    table = pd.DataFrame({'arch': archs, column: accuracies})
    return table.groupby('arch', sort=False)[column].mean()


def _csv_rows(path: Path, column: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row is, and its fields by the name of the column."""
    with path.open(newline='', encoding='utf-8-sig') as file:
        # Comments become empty lines, so that lines keep their numbers.
        reader = csv.reader('\n' if line.lstrip().startswith('#') else line for line in file)
        header = None
        try:
            for row in reader:
                fields = [field.strip() for field in row]
                where = f'{path}, line {reader.line_num}'
                if not any(fields):
                    continue
                if header is None:
                    header = fields
                    _check_columns(path, header, column)
                elif len(fields) != len(header):
                    raise ValueError(
                        f'{where} has {len(fields)} fields, but the header has {len(header)}: {row!r:.200}.'
                    )
                else:
                    yield where, dict(zip(header, fields, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f'{path} cannot be read after line {reader.line_num}: {error}.') from error
    if header is None:
        raise ValueError(f'{path} is empty.')


def _npz_rows(path: Path, column: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row is, and its values by the name of the column."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            arrays = {name: file[name] for name in names if name in ('arch', 'seed', column)}
    except OSError:
        raise
    except Exception as error:  # of zipfile, zlib and numpy
        raise ValueError(f'{path} cannot be read: {" ".join(str(error).split())}') from error
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


def _check_columns(path: Path, columns: Sequence[str], column: str) -> None:
    for name in ('arch', column):
        if name not in columns:
            raise ValueError(f'{path} has no column {name!r}; it has {", ".join(columns):.200}.')
    if twice := sorted(name for name in {'arch', 'seed', column} if columns.count(name) > 1):
        raise ValueError(f'{path} has more than one column {twice[0]!r}.')


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        value = value.decode(errors='replace') if isinstance(value, bytes) else value
        raise ValueError(f'{what} must be a number such as 93.5, but is {str(value)!r:.200}.')
    return number
