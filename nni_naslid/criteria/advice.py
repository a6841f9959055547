"""Where splits do not pay, as far as it is known. Without torch."""

from __future__ import annotations

from typing import Any

from nni_naslid.criteria.bands import Bands
from nni_naslid.criteria.gradient import Gradient
from nni_naslid.criteria.joint import Joint
from nni_naslid.criteria.lid import LID
from nni_naslid.criteria.zero_cost import ZeroCost

__all__ = ['doubt_about_splits']

COUNTED_PAY = 7_680  # steps in all, from which on bands of convolutions paid in examples/bench_splits.csv
BREAK_EVEN = 200_000  # steps in all, from which on published splits have cost no order


def doubt_about_splits(criterion: Any, steps: int) -> str | None:
    """Why not to split a run of so many steps in all, for people; ``None`` where nothing known speaks against it.

    See "What pays at equal cost" in ``examples/README.md``. Nothing is said of splits that the user gives, of a
    control, or of a criterion of the user's.
    """
    if isinstance(criterion, LID | Gradient | Joint | ZeroCost) and steps < BREAK_EVEN:
        return (
            f'splits of one choice at a time ranked worse than one supernet of {COUNTED_PAY:,} steps, where bands of '
            f'whole networks, the default criterion, ranked better. Published splits cost no order from {BREAK_EVEN:,} '
            f'steps on, and here are {steps:,}'
        )
    if isinstance(criterion, Bands) and criterion.is_counted and steps < COUNTED_PAY:
        return (
            f'bands of convolutions ranked worse than one supernet of 2,560 steps, and better from {COUNTED_PAY:,} on; '
            f'here are {steps:,}. Bands by live parameters and LID, the default, ranked better at both lengths'
        )
    return None
