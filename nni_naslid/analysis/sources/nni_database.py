"""The NAS-Bench-201 database that NNI offers for download, read by Python's own SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from nni_naslid.analysis.nasbench201 import nasbench201_arch
from nni_naslid.analysis.sources.columns import benchmark_column

__all__ = ['nni_database_rows']

QUERY = """
    SELECT trial.id, config.arch, trial.seed, trial.{split}_acc
    FROM nb201trialstats AS trial JOIN nb201trialconfig AS config ON trial.config_id = config.id
    WHERE config.dataset = ? AND config.num_epochs = ?
"""


def nni_database_rows(path: Path, column: str) -> Iterator[tuple[str, str, int, Any]]:
    """Where each run is, its architecture, its seed and its accuracy."""
    dataset, split, epochs = benchmark_column(column)
    if (dataset, split) == ('cifar10', 'valid'):
        # NNI's valid_acc of 'cifar10' is on test images: those runs have trained on all others.
        dataset = 'cifar10-valid'
    path.stat()  # SQLite does not say which file it cannot open
    try:
        with closing(sqlite3.connect(f'{path.resolve().as_uri()}?mode=ro', uri=True)) as database:
            trials = database.execute(QUERY.format(split=split), (dataset.lower(), epochs)).fetchall()
    except sqlite3.Error as error:
        raise ValueError(f'{path} is no NAS-Bench-201 database of NNI: {error}.') from error
    for trial, arch, seed, accuracy in trials:
        where = f'{path}, trial {trial}'
        try:
            sample = {f'cell/{edge}': operation for edge, operation in json.loads(arch).items()}
            arch = nasbench201_arch(sample)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f'{where}: arch must be a dict of the six edges as JSON, but is {arch!r:.200}.') from error
        yield where, arch, seed, accuracy
