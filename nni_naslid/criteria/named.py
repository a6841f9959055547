"""Criteria by name, with their settings among those of a run. Without torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from nni_naslid.criteria.criterion import Criterion
from nni_naslid.criteria.lid import LID
from nni_naslid.criteria.random import RandomSplit
from nni_naslid.run.checks import brief

__all__ = ['CRITERIA', 'SETTINGS', 'criterion_of']

_logger = logging.getLogger(__name__)

CRITERIA = {'lid': LID, 'random': RandomSplit}
SETTINGS = tuple(dict.fromkeys(field.name for cls in CRITERIA.values() for field in fields(cls)))


def criterion_of(given: str | Criterion, settings: Mapping[str, Any]) -> Criterion:
    """A criterion as it is, or from its name and the settings beside it.

    Raises
    ------
    ValueError
        If it is none, or if a setting of it cannot work.
    TypeError
        If there are settings beside one that has its own.
    """
    if not isinstance(given, str):
        _check(given)
        for name in settings:
            raise TypeError(f'{name} must be set in the criterion, {type(given).__name__}({name}=...), not beside it.')
        return given
    if given not in CRITERIA:
        raise ValueError(_message(given))
    known = [field.name for field in fields(CRITERIA[given])]
    if others := [name for name in settings if name not in known]:
        _logger.info('criterion=%r does not use %s.', given, ', '.join(others))
    return CRITERIA[given](**{name: value for name, value in settings.items() if name in known})


def _message(given: Any) -> str:
    return f'criterion must be one of {", ".join(CRITERIA)}, or an object such as LID(), but got {brief(given)}.'


def _check(given: Any) -> None:
    methods = [name for name in vars(Criterion) if not name.startswith('_')]
    missing = [name for name in (*methods, 'max_groups', 'uses_metric') if not hasattr(given, name)]
    if isinstance(given, type) or not is_dataclass(given) or len(missing) == len(methods) + 2:
        raise ValueError(_message(given))
    if missing:
        names = ', '.join(missing)
        raise ValueError(f'criterion: {type(given).__name__} has no {names}; see nni_naslid.criteria.criterion.')
    try:
        json.dumps(asdict(given))
    except TypeError as error:
        raise ValueError(f'criterion: the settings of {brief(given)} must be plain values. {error}') from error
