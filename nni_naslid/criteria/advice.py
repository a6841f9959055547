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
BREAK_EVEN = 200_000  # steps in all, from which on splits of EFS-NAS, which are of whole networks, have cost no order


def doubt_about_splits(criterion: Any, steps: int) -> str | None:
    """Why not to split a run of at most so many steps, for people; ``None`` where nothing known speaks against it.

    See "What pays at equal cost" in ``examples/README.md``. Nothing is said of splits that the user gives, of a
    control, or of a criterion of the user's.
    """
    by = criterion.by if isinstance(criterion, Joint) else criterion
    if isinstance(by, LID | Gradient | ZeroCost) and steps < BREAK_EVEN:
        return (
            f'splits of single choices lost order (tau) against one supernet of {MEASURED:,} steps, and bands by live '
            'parameters and LID, the default criterion, did not. Published splits, of whole networks, lost none from '
            f'{BREAK_EVEN:,} steps on, and here are at most {steps:,}'
        )
    if isinstance(criterion, Bands) and criterion.score == 'convolutions' and steps < MEASURED:
        return (
            f'bands of convolutions ranked worse than one supernet of 2,560 steps, and better from {MEASURED:,} on; '
            f'here are at most {steps:,}. Bands by live parameters and LID, the default, ranked better at both lengths'
        )
    return None
