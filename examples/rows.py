"""What benchmarks write their rows with."""

from __future__ import annotations

import csv
import platform
import subprocess
from pathlib import Path

import pandas as pd


def processor() -> str:
    lines = Path('/proc/cpuinfo').read_text().splitlines() if Path('/proc/cpuinfo').exists() else []
    return next((line.split(': ')[1] for line in lines if line.startswith('model name')), platform.processor())


def commit() -> str:
    """Of this repository, as ``git describe`` has it; 'unknown' where there is no git or no history."""
    describe = ['git', 'describe', '--always', '--dirty']
    try:
        done = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return 'unknown'
    return done.stdout.strip() or 'unknown'


def append(rows: pd.DataFrame, path: Path) -> None:
    """Add rows to a CSV. What is there stays as it is, but that columns that are new are empty in it."""
    if not path.exists() or not path.stat().st_size:
        rows.to_csv(path, index=False)
        return
    header, *lines = path.read_text().splitlines()  # rows of benchmarks are of one line each
    columns = next(csv.reader([header]))
    new = [column for column in rows if column not in columns]
    if new:
        header = ','.join([header, *new])
        path.write_text('\n'.join([header, *(line + ',' * len(new) for line in lines)]) + '\n')
    rows.reindex(columns=[*columns, *new]).to_csv(path, mode='a', header=False, index=False)
