"""Numbers in lines and pages for people."""

from __future__ import annotations

__all__ = ['amount', 'rounded']


def rounded(value: float, digits: int = 3, sign: str = '') -> str:
    """With so many digits after the point, and no minus before zeros; with ``sign='+'`` a sign before all numbers.

    >>> rounded(-0.0004), rounded(-0.25, 2), rounded(0.125, 3, '+')
    ('0.000', '-0.25', '+0.125')
    """
    return f'{round(float(value), digits) + 0.0:{sign}.{digits}f}'


def amount(cost: float) -> str:
    """Integers as they are, others with four digits."""
    return f'{cost:,}' if isinstance(cost, int) else f'{cost:.4g}'
