"""Where splits do not pay, as far as it is known. Without torch."""

from __future__ import annotations

from typing import Any

from nni_naslid.criteria.bands import Bands
from nni_naslid.criteria.gradient import Gradient
from nni_naslid.criteria.joint import Joint
from nni_naslid.criteria.lid import LID
from nni_naslid.criteria.zero_cost import ZeroCost

__all__ = ['doubt_about_splits']

MEASURED = 7_680  # steps in all, of most rows of examples/bench_splits.csv
SHORTEST = 2_560  # steps in all of any row
BREAK_EVEN = 200_000  # steps in all, from which on splits of EFS-NAS, which are of whole networks, have cost no order


def doubt_about_splits(criterion: Any, steps: int) -> str | None:
    """Why not to split a run of at most so many steps, for people; ``None`` where nothing known speaks against it.

    See "What pays at equal cost" in ``examples/README.md``. Nothing is said of splits that the user gives, of a
    control, or of a criterion of the user's.
    """
    by = criterion.by if isinstance(criterion, Joint) else criterion
    if isinstance(by, LID | Gradient | ZeroCost) and steps < BREAK_EVEN:
        return (
            f'splits of single choices ranked networks worse (by tau) than one supernet of {MEASURED:,} steps. In '
            f'published runs, splits of whole networks ranked no worse from {BREAK_EVEN:,} steps on, and here are at '
            f'most {steps:,}'
        )
    if isinstance(criterion, Bands) and criterion.score == 'convolutions' and steps < MEASURED:
        return (
            f'bands of convolutions ranked worse than one supernet of {SHORTEST:,} steps, and better from {MEASURED:,} '
            f'on; here are at most {steps:,}. Bands by live parameters and LID, the default, ranked better at both '
            'lengths'
        )
    if isinstance(criterion, Bands) and not isinstance(criterion.score, str) and steps < SHORTEST:
        return f'runs had {SHORTEST:,} steps or more; of fewer nothing is known, and here are at most {steps:,}'
    return None
