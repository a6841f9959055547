"""Rankings of the same architectures by one run: at several epochs, or with several numbers of calibration batches."""

from __future__ import annotations

from collections.abc import Mapping

from nni_naslid.analysis.compare import LEAST
from nni_naslid.analysis.truth import arch_name
from nni_naslid.run.record import Record, Score

import pandas as pd

__all__ = ['by_calibration', 'over_training']


def over_training(record: Record) -> tuple[int, pd.DataFrame] | None:
    """Estimates of the same architectures by the weights of several epochs.

    Returns
    -------
    The number of calibration batches, and a table with a row for each architecture and a column for each epoch; larger
    is better. ``None`` if no two epochs have :data:`~nni_naslid.analysis.compare.LEAST` architectures in common.
    """
    tables = []
    for batches in sorted({batches for _, batches in record.instances}, reverse=True):  # of equal ones, the calibrated
        epochs = {epoch: scores for (epoch, n), scores in record.instances.items() if n == batches}
        tables.append((batches, _shared(record, epochs)))
    return max((found for found in tables if len(found[1])), key=lambda found: found[1].size, default=None)


def by_calibration(record: Record) -> tuple[int, pd.DataFrame] | None:
    """Estimates of the same architectures by the same weights, with several numbers of calibration batches.

    Returns
    -------
    The epoch of the weights (the latest one if there are several), and a table with a row for each architecture and a
    column for each number of batches; larger is better. ``None`` if no two numbers have
    :data:`~nni_naslid.analysis.compare.LEAST` architectures in common.
    """
    for last in sorted({epoch for epoch, _ in record.instances}, reverse=True):
        numbers = {batches: scores for (epoch, batches), scores in record.instances.items() if epoch == last}
        if len(table := _shared(record, numbers)):
            return last, table
    return None


def _shared(record: Record, instances: Mapping[int, list[Score]]) -> pd.DataFrame:
    """Estimates of the architectures that at least two instances share; empty if these are too few.

    An instance of few architectures would leave few to all, so those are taken that have most to compare: successive
    instances times architectures.
    """
    columns = {
        name: pd.Series({arch_name(score.sample): record.estimate(score) for score in scores}, dtype=float)
        for name, scores in instances.items()
    }
    largest = sorted(columns, key=lambda name: -len(columns[name]))
    tables = [
        pd.DataFrame({name: columns[name] for name in sorted(largest[:n])}).dropna() for n in range(2, 1 + len(largest))
    ]
    return max(
        (table for table in tables if len(table) >= LEAST),
        key=lambda table: len(table) * (len(table.columns) - 1),
        default=pd.DataFrame(),
    )
