"""What a criterion has noted of a node before it was killed."""

from __future__ import annotations

from typing import Any

from nni_naslid.criteria.criterion import Context
from nni_naslid.run.files import read_lines

__all__ = ['kept_repeats']


def kept_repeats(context: Context, what: str) -> dict[int, Any]:
    """What the notes of the same node, weights and code have of each repeat, by its number."""
    return {
        line['repeat']: line[what]
        for line in read_lines(context.notes, (*context.about, 'repeat', what))
        if all(line[key] == value for key, value in context.about.items())
    }
