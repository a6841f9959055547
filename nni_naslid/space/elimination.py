"""Count the combinations of places that give each sum of some tables, and find them by rank: a dynamic programme.

Labels are taken one after the other, those that the same tables read at once. For each combination of the places that
later tables still need, the counts of all sums so far are held: where tables form chains, as stages of a network do,
these are few. The counts of one combination are one long integer, some bytes for each sum: to add to all sums is a
shift, to add counts is one addition. A combination is found backwards, by reading a few counts for each label.

Labels are taken along a line (path width), not along a tree (tree width, the domain of networkx): so counts are never
multiplied with each other, and no sum has to be divided among branches. For stages and cells in a row, the widths are
the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

__all__ = ['MAX_BYTES', 'MAX_COMBINATIONS', 'Sums', 'least_sum']

MAX_COMBINATIONS = 1_000_000  # that are taken at once
MAX_BYTES = 2**30  # of all counts

Table = tuple[tuple[str, ...], np.ndarray]  # labels, and an entry for each combination of their places


class _Step(NamedTuple):
    """How some labels are taken.

    ``options`` has the combinations of their places. A state is a combination of places that are still needed: those
    before the step have ``counts``, those after it ``moves``: the state before, what is added, options that do both.
    """

    labels: tuple[str, ...]
    options: list[tuple[int, ...]]
    counts: list[bytes]
    moves: list[list[tuple[int, int, list[int]]]]


class Sums:
    """All combinations of places by the sum of their entries in the tables.

    Time is about the number of combinations that are taken at once, memory the number of states, times the largest sum,
    times the bytes of a count.

    Parameters
    ----------
    lengths
        Label to number of its places; each label is read by a table.
    tables
        What is added up: integers, none of them negative.
    most
        The largest sum that is counted; larger ones take neither time nor memory. ``None``: all are.

    Attributes
    ----------
    sizes
        Number of combinations of each sum from 0.

    Raises
    ------
    ValueError
        If too many labels depend on each other, or there are too many sums.
    """

    def __init__(self, lengths: dict[str, int], tables: list[Table], most: int | None = None):
        self._width = width = (math.prod(lengths.values()).bit_length() + 7) // 8  # bytes of a count
        largest = sum(int(table.max()) for _, table in tables)
        most = largest if most is None else min(most, largest)
        plan = _plan(lengths, tables)
        _check(plan, lengths, tables, width, most)
        counted = (1 << (8 * width * (most + 1))) - 1  # the bits of what is counted
        self._steps: list[_Step] = []
        counts, kept = [1], ()  # one combination of nothing, with the sum 0
        for labels, keep in plan:
            scope = keep + labels
            shape = [lengths[label] for label in scope]
            n_states = math.prod(shape[: len(keep)])
            states = np.arange(len(counts)).reshape([lengths[label] for label in kept])
            states = np.broadcast_to(_onto(scope, kept, states), shape).reshape(n_states, -1)
            added = np.zeros(shape, np.int64)
            for read, table in tables:
                if set(read) & set(labels):
                    added += _onto(scope, read, table)
            tables = [(read, table) for read, table in tables if not set(read) & set(labels)]
            moves = []
            for row in zip(states.tolist(), added.reshape(n_states, -1).tolist(), strict=True):
                options: dict[tuple[int, int], list[int]] = {}
                for option, move in enumerate(zip(*row, strict=True)):
                    if move[1] <= most:
                        options.setdefault(move, []).append(option)
                moves.append([(*move, each) for move, each in options.items()])
            places = list(product(*(range(lengths[label]) for label in labels)))
            self._steps.append(_Step(labels, places, [_to_bytes(count) for count in counts], moves))
            counts = [
                sum((counts[i] * len(each)) << (8 * width * more) for i, more, each in row) & counted for row in moves
            ]
            kept = keep
        last = _to_bytes(counts[0])
        self.sizes = [int.from_bytes(last[i : i + width], 'little') for i in range(0, len(last), width)]

    def places(self, total: int, rank: int) -> dict[str, int]:
        """The combination with this sum and rank, from 0 to ``sizes[total] - 1``: label to place."""
        found: dict[str, int] = {}
        state = 0
        for labels, places, counts, moves in reversed(self._steps):
            for before, added, options in moves[state]:
                if added > total:
                    continue
                start = (total - added) * self._width
                count = int.from_bytes(counts[before][start : start + self._width], 'little')
                if rank < count * len(options):
                    break
                rank -= count * len(options)
            option, rank = divmod(rank, count)
            found.update(zip(labels, places[options[option]], strict=True))
            state, total = before, total - added
        return found

    def possible(self, totals: Sequence[int]) -> dict[str, list[int]]:
        """Which places of each label are in a combination whose sum is one of these; all empty if there is none."""
        found: dict[str, set[int]] = {}
        wanted = np.zeros(len(self.sizes), np.uint8)
        wanted[totals] = 1
        needed = {
            0: int.from_bytes(np.packbits(wanted, bitorder='little').tobytes(), 'little')
        }  # by state, a bit a sum
        for labels, places, counts, moves in reversed(self._steps):
            there = [self._bits(count) for count in counts]
            earlier: dict[int, int] = {}
            options: set[int] = set()
            for state, sums in needed.items():
                for before, added, some in moves[state]:
                    if bits := sums >> added & there[before]:
                        earlier[before] = earlier.get(before, 0) | bits
                        options.update(some)
            for at, label in enumerate(labels):
                found[label] = {places[i][at] for i in options}
            needed = earlier
        return {label: sorted(taken) for label, taken in found.items()}

    def _bits(self, count: bytes) -> int:
        """A bit for each sum that some combination has."""
        digits = np.frombuffer(count.ljust(-(-len(count) // self._width) * self._width, b'\0'), np.uint8)
        is_there = digits.reshape(-1, self._width).any(1)
        return int.from_bytes(np.packbits(is_there, bitorder='little').tobytes(), 'little')


def least_sum(lengths: dict[str, int], tables: list[Table]) -> float:
    """The smallest sum that any combination of places has, of tables of any real numbers.

    Raises
    ------
    ValueError
        If too many labels depend on each other.
    """
    plan = _plan(lengths, tables)
    _check_combinations(plan, lengths)
    least, kept = np.zeros((), np.int64), ()  # for each combination of the places that are still needed
    left = tables
    for labels, keep in plan:
        scope = keep + labels
        read = [each for each in left if set(each[0]) & set(labels)]
        left = [each for each in left if not set(each[0]) & set(labels)]
        total = sum((_onto(scope, *each) for each in read), _onto(scope, kept, least))
        least = np.broadcast_to(total, [lengths[label] for label in scope]).min(tuple(range(len(keep), len(scope))))
        kept = keep
    return least.item() + sum(table.item() for _, table in left)  # constants


def _to_bytes(count: int) -> bytes:
    return count.to_bytes((count.bit_length() + 7) // 8, 'little')


def _onto(scope: tuple[str, ...], labels: tuple[str, ...], table: np.ndarray) -> np.ndarray:
    """A table with a dimension for each label of a scope, of length 1 for those that it does not read."""
    order = sorted(range(len(labels)), key=lambda i: scope.index(labels[i]))
    lengths = dict(zip(labels, table.shape, strict=True))
    return table.transpose(order).reshape([lengths.get(label, 1) for label in scope])


def _check(
    plan: list[tuple[tuple[str, ...], tuple[str, ...]]],
    lengths: dict[str, int],
    tables: list[Table],
    width: int,
    most: int,
) -> None:
    """Refuse what takes too much, before any of it is done."""
    _check_combinations(plan, lengths)
    n_bytes, n_sums, taken = 0, 1, set()
    for labels, keep in plan:
        taken.update(labels)
        n_sums = min(most, sum(int(table.max()) for read, table in tables if taken & set(read))) + 1
        n_bytes += math.prod(lengths[label] for label in keep) * n_sums * width
    if n_bytes > MAX_BYTES:
        raise ValueError(
            f'The terms of {list(lengths)} give up to {n_sums:,} scores, whose counts take {n_bytes / 2**30:,.1f} GiB, '
            f'but at most {MAX_BYTES / 2**30:.1f} GiB can be kept. Give terms in a coarser unit: see Term.rounded.'
        )


def _check_combinations(plan: list[tuple[tuple[str, ...], tuple[str, ...]]], lengths: dict[str, int]) -> None:
    for labels, keep in plan:
        if (n := math.prod(lengths[label] for label in keep + labels)) > MAX_COMBINATIONS:
            raise ValueError(
                f'The terms tie the labels {list(keep + labels)} together: {n:,} combinations of their choices must be '
                f'counted at once, but at most {MAX_COMBINATIONS:,} can be. Leave out terms, or labels of them.'
            )


def _plan(lengths: dict[str, int], tables: list[Table]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Which labels are taken at each step, and which are still needed after it.

    Greedy, the fewest combinations next, from the best of all starts: a row of stages is best begun at one end.
    """
    reads = list(dict.fromkeys(frozenset(labels) for labels, _ in tables))
    reads = [read for read in reads if not any(read < other for other in reads)]
    alike: dict[frozenset[int], list[str]] = {}  # labels that the same tables read
    for label in lengths:
        alike.setdefault(frozenset(i for i, read in enumerate(reads) if label in read), []).append(label)
    groups = list(alike.values())
    n_options = [math.prod(lengths[label] for label in labels) for labels in groups]
    near = [{j for j, others in enumerate(alike) if tables & others} for tables in alike]
    plan: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    left = set(range(len(groups)))
    while left:
        part: set[int] = set()  # of groups that depend on each other
        more = {min(left)}
        while more > part:
            part, more = more, more.union(*(near[i] for i in more))
        _, order = min((_greedy(start, part, near, n_options) for start in sorted(part)), key=lambda found: found[0])
        for taken, kept in order:
            plan.append((tuple(groups[taken]), tuple(label for i in sorted(kept) for label in groups[i])))
        left -= part
    return plan


def _greedy(
    start: int, part: set[int], near: list[set[int]], n_options: list[int]
) -> tuple[int, list[tuple[int, set[int]]]]:
    """The combinations that an order takes, and the order: each group, and the groups that are needed after it."""
    left, kept, n_all, order = set(part), set(), 0, []
    while left:
        ready = left.intersection(kept.union(*(near[i] for i in kept))) if kept else [start]
        scopes = {i: kept | (near[i] & left) for i in sorted(ready)}
        sizes = {i: math.prod(n_options[j] for j in scope) for i, scope in scopes.items()}
        taken = min(scopes, key=lambda i: (sizes[i], sizes[i] // n_options[i]))
        n_all += sizes[taken]
        kept = scopes[taken] - {taken}
        left.discard(taken)
        order.append((taken, kept))
    return n_all, order
