"""Ground truth: true accuracies of NAS-Bench-201 architectures, and the names that different tools give them."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

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

DIGITS_TRUTH = Path(str(files('nni_naslid') / 'data' / 'nasbench201_digits.csv'))
"""The table that comes with the package, measured by ``examples/measure_truth.py`` with its defaults."""

# NNI's name of an operation and the official one.
OPERATIONS = {
    'none': 'none',
    'skip_connect': 'skip_connect',
    'conv_1x1': 'nor_conv_1x1',
    'conv_3x3': 'nor_conv_3x3',
    'avg_pool_3x3': 'avg_pool_3x3',
}


def nasbench201_architectures() -> list[str]:
    """All 15,625 official architecture strings, in an order of our own (the last edge changes fastest)."""
    pattern = '|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|'
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
    names = {official: name for name, official in OPERATIONS.items()}
    sample = {
        f'cell/{source}_{target}': names.get(operation)
        for target, node in enumerate(arch.split('+'), start=1)
        for operation, source in re.findall(r'(\w+)~(\d)', node)
    }
    if sorted(sample) != [f'cell/{a}_{b}' for a in range(3) for b in range(a + 1, 4)] or None in sample.values():
        raise ValueError(f'Not a NAS-Bench-201 architecture: {arch!r}; expected |op~0|+|op~0|op~1|+|op~0|op~1|op~2|.')
    return sample


def nasbench201_arch(sample: Sample) -> str:
    """The official architecture string of an NNI sample.

    >>> arch = '|none~0|+|nor_conv_1x1~0|none~1|+|none~0|none~1|skip_connect~2|'
    >>> nasbench201_arch(nasbench201_sample(arch)) == arch
    True
    """
    return '+'.join(
        '|' + ''.join(f'{OPERATIONS[sample[f"cell/{source}_{target}"]]}~{source}|' for source in range(target))
        for target in (1, 2, 3)
    )


def truth_setting(path: str | Path) -> dict[str, Any]:
    """How a truth table of ``examples/measure_truth.py`` was measured: its options; empty for any other file."""
    path = Path(path)
    if path.suffix != '.csv':
        return {}
    with path.open() as file:
        first = file.readline()
    return json.loads(first[1:]) if first.startswith('# {') else {}


def load_truth(path: str | Path, column: str) -> pd.Series:
    """True accuracies by architecture.

    Parameters
    ----------
    path
        A ``.csv`` (lines that start with ``#`` are comments) or ``.npz`` with a column ``arch`` of official
        architecture strings and columns of accuracies. Several rows of one architecture (seeds) are averaged.
    column
        Which accuracy: ``test_acc`` or ``valid_acc`` in the table of the package.

    Returns
    -------
    Accuracies, float64, in the unit of the file, indexed by architecture string.

    Raises
    ------
    ValueError
        If the file is of another kind, has no such columns, or accuracies are missing.
    """
    path = Path(path)
    if path.suffix == '.csv':
        table = pd.read_csv(path, comment='#')
    elif path.suffix == '.npz':
        with np.load(path, allow_pickle=False) as file:
            table = {name: file[name] for name in ('arch', column) if name in file}
            table = pd.DataFrame(table) if len(table) == 2 else pd.DataFrame(columns=file.files)
    else:
        raise ValueError(f'A truth table must be a .csv or .npz file, but got {path}.')
    missing = [name for name in ('arch', column) if name not in table]
    if missing:
        raise ValueError(f'{path} has no column {missing[0]!r}; it has {", ".join(map(str, table.columns))}.')
    truth = table.groupby('arch', sort=False)[column].mean().astype(float)
    if truth.isna().any():
        raise ValueError(f'{path}: {truth.isna().sum()} architectures have no number in column {column!r}.')
    return truth
