"""When to split, so that a tree costs what one supernet would. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from numbers import Integral

from nni_naslid.run.checks import brief, integer, sequence

__all__ = ['plan_epochs']


def plan_epochs(total: int, max_groups: int | Sequence[int] = 4) -> tuple[list[int], int]:
    """Split epochs, and ``max_epochs`` of a trainer, of a tree whose training costs at most so many epochs in all.

    The root has a quarter of them, and the levels below share the others equally. This is the division by which splits
    are compared with one supernet in ``examples/bench_splits.py``. Four bands by live parameters and LID found better
    networks than one supernet with 2,560, 7,680 and 20,480 steps in all, four bands of convolutions not with 2,560.
    Splits of one choice (two to four leaves, 4,800 to 7,680 steps) ranked worse. In the released full-scale runs of
    `EFS-NAS <https://arxiv.org/abs/2412.14678>`__ the order of all networks broke even at about 200,000 steps.

    Parameters
    ----------
    total
        Epochs in all, over all nodes of the tree: of one supernet of the same cost, its ``max_epochs``. With
        ``sampling='sandwich'`` each batch trains four paths, so a quarter of these epochs cost as much.
    max_groups
        For each split, from the root on, into how many parts, as of the criterion; a single number is of one split.

    Returns
    -------
    tuple
        ``split_epochs`` of :class:`~nni_naslid.strategy.NASLID`, and ``max_epochs``.

    Raises
    ------
    ValueError
        If there are too few epochs for each node to have one.

    Examples
    --------
    >>> plan_epochs(96)  # 24 + 4 x 18
    ([24], 42)
    >>> plan_epochs(96, [2, 2])  # 24 + 2 x 18 + 4 x 9
    ([24, 42], 51)
    >>> plan_epochs(96, [])
    ([], 96)
    """
    total = integer('total', total, 1)
    given = [max_groups] if isinstance(max_groups, Integral) else sequence('max_groups', max_groups)
    groups = [integer('max_groups', each, 2) for each in given]
    if not groups:
        return [], total
    nodes = list(accumulate(groups, lambda above, here: above * here))
    least = max(4, (4 * len(groups) * prod(groups) - 1) // 3)  # n - n // 4 is 3 n / 4, rounded up
    root = total // 4
    levels = [(total - root) // len(groups) // n for n in nodes]
    if total < least:
        raise ValueError(
            f'total must be at least {least} epochs, so that each node of a tree of {brief(groups)} parts has one, '
            f'but is {total}.'
        )
    *splits, end = accumulate([root, *levels])
    return splits, end
