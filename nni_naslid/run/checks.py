"""Settings in plain types, or an error of one line that names the setting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

__all__ = ['brief', 'group_numbers', 'groups_at', 'integer', 'one_of', 'plain', 'real', 'sequence']


def integer(name: str, value: Any, least: int, or_else: str = '') -> int:
    """An integer of Python or numpy (but not True or False), as one of Python."""
    if type(value := plain(value)) is not int or value < least:
        raise ValueError(f'{name} must be an integer of at least {least}{or_else}, but got {brief(value)}.')
    return value


def group_numbers(name: str, value: Any) -> int | list[int]:
    """A largest number of groups, or a list of them, one for each level of the tree."""
    items = value.tolist() if hasattr(value, 'tolist') else value
    if not isinstance(items, (list, tuple, range)) or not items:
        return integer(name, value, 2)
    return [integer(name, each, 2) for each in items]


def groups_at(level: int, max_groups: int | Sequence[int]) -> int:
    """The largest number of groups at a level of the tree, where the root is at 0.

    >>> [groups_at(level, [4, 2]) for level in range(3)], groups_at(1, 3)
    ([4, 2, 2], 3)
    """
    return max_groups if isinstance(max_groups, Integral) else max_groups[min(level, len(max_groups) - 1)]


def real(name: str, value: Any, least: float, below: float) -> float:
    """A number that is at least one number, and below another one."""
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= value < below:
        raise ValueError(f'{name} must be a number of at least {least:g} and below {below:g}, but got {brief(value)}.')
    return float(value)


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """One of some names."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f'{name} must be one of {", ".join(known)}, but got {brief(value)}.')
    return value


def sequence(name: str, value: Any) -> list:
    """A list of what is one, or an array."""
    items = value.tolist() if hasattr(value, 'tolist') else value
    if isinstance(items, (str, bytes)) or not isinstance(items, Sequence):
        raise ValueError(f'{name} must be a list, but got {brief(value)}.')
    return list(items)


def plain(value: Any) -> Any:
    """Integers of numpy as those of Python, for JSON; anything else, also True and False, as it is."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def brief(value: Any) -> str:
    """A value in one line of an error."""
    return f'{" ".join(repr(value).split()):.100}'
