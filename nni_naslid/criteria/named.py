"""Criteria by name, with their settings among those of a run. Without torch."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from nni_naslid.criteria.bands import Bands
from nni_naslid.criteria.criterion import Criterion
from nni_naslid.criteria.fixed import Fixed
from nni_naslid.criteria.gradient import Gradient
from nni_naslid.criteria.joint import Joint
from nni_naslid.criteria.lid import LID
from nni_naslid.criteria.random import RandomSplit
from nni_naslid.criteria.zero_cost import ZeroCost
from nni_naslid.run.checks import brief, group_numbers
from nni_naslid.run.spec import make, spec_of

__all__ = ['CRITERIA', 'SETTINGS', 'check_travels', 'criterion_of', 'described']

_logger = logging.getLogger(__name__)

CRITERIA = {
    'lid': LID, 'gradient': Gradient, 'zero_cost': ZeroCost, 'joint': Joint, 'bands': Bands, 'random': RandomSplit,
}  # fmt: skip
DEFAULT = 'bands'  # of those measured in examples/README.md, with its defaults, it paid most
SETTINGS = (  # may stand beside the name
    'n_neighbors', 'repeats', 'min_contrast', 'max_groups', 'layers', 'score', 'paths', 'estimator', 'similarity',
    'partition',
)  # fmt: skip


def criterion_of(given: str | Criterion | None, settings: Mapping[str, Any]) -> Criterion:
    """A criterion as it is, or from its name and the settings beside it; ``None`` is the default one.

    Raises
    ------
    ValueError
        If it is none, or if a setting of it cannot work.
    TypeError
        If there are settings beside one that has its own, or settings that the default one has not.
    """
    if given is None:
        for name in settings:
            if name not in _settings_of(DEFAULT):
                meant = ' or '.join(f'criterion={each!r}' for each in CRITERIA if name in _settings_of(each))
                raise TypeError(f'{name} is no setting of the default criterion, {DEFAULT!r}; say {meant}.')
        given = DEFAULT
    if not isinstance(given, str):
        _check(given)
        for name in settings:
            kind = type(given).__name__
            if name not in [field.name for field in fields(given)]:
                raise TypeError(f'{name} is no setting of the criterion, {kind}.')
            raise TypeError(f'{name} must be set in the criterion, {kind}({name}=...), not beside it.')
        return given
    if given not in CRITERIA:
        raise ValueError(_message(given))
    known = _settings_of(given)
    if others := [name for name in settings if name not in known]:
        _logger.info('criterion=%r does not use %s.', given, ', '.join(others))
    return CRITERIA[given](**{name: value for name, value in settings.items() if name in known})


def _settings_of(name: str) -> list[str]:
    return [field.name for field in fields(CRITERIA[name])]


def _message(given: Any) -> str:
    meant = f'; is {given.__name__}() meant?' if isinstance(given, type) else '.'
    return f'criterion must be one of {", ".join(CRITERIA)}, or an object such as LID(), but got {brief(given)}{meant}'


def _check(given: Any) -> None:
    if isinstance(given, type) or not hasattr(given, 'choose'):
        raise ValueError(_message(given))
    name = type(given).__name__
    if not is_dataclass(given):
        raise ValueError(f'criterion: {name} must be a dataclass, @dataclass(frozen=True).')
    needed = [*(name for name in vars(Criterion) if not name.startswith('_')), 'max_groups', 'uses_metric']
    if missing := [each for each in needed if not hasattr(given, each)]:
        raise ValueError(f'criterion: {name} has no {", ".join(missing)}; see nni_naslid.criteria.criterion.')
    group_numbers(f'max_groups of {name}', given.max_groups)
    try:
        json.dumps(spec_of(given))
    except TypeError as error:
        raise ValueError(f'criterion: the settings of {brief(given)} must be plain values. {error}') from error


def check_travels(criterion: Criterion) -> None:
    """Raise if trials cannot make a criterion anew from its class and settings.

    Raises
    ------
    ValueError
        Naming what is wrong.
    """
    cls = type(criterion)
    if cls.__module__ == '__main__' or '.' in cls.__qualname__:
        raise ValueError(
            f'criterion: trials cannot import {cls.__qualname__} of {cls.__module__}; put it at the top of a module of '
            'its own.'
        )
    spec = json.dumps(spec_of(criterion))
    if function := re.search(r'"__main__\.(\w+)"', spec):  # a setting that names it
        raise ValueError(
            f'criterion: trials cannot import {function[1]} of __main__; put it at the top of a module of its own.'
        )
    again = make(json.loads(spec), 'criterion')
    if again != criterion:
        raise ValueError(
            f'criterion: trials would make {again!r} of {criterion!r}; its settings must be what JSON has.'
        )


def described(name: str, settings: Mapping[str, Any]) -> str:
    """A criterion in a line, with those settings that are not at their defaults; all of them where it is a user's.

    The score of :class:`~nni_naslid.criteria.bands.Bands` is always told.

    >>> described('nni_naslid.criteria.bands.Bands', {'score': {'lid': 1.0}, 'max_groups': 4})
    "Bands(score={'lid': 1.0})"

    Parameters
    ----------
    name
        The full name of its class.
    settings
        Its settings, as JSON has them.
    """
    ours = (*CRITERIA.values(), Fixed)
    cls = next((cls for cls in ours if f'{cls.__module__}.{cls.__qualname__}' == name), None)
    defaults = (
        {} if cls is None else {field.name: field.default for field in fields(cls) if field.default is not MISSING}
    )
    short = name if cls is None else cls.__name__
    told = []
    for key, value in settings.items():
        if isinstance(value, dict) and 'className' in value:
            value = described(value['className'], value.get('classArgs', {}))
            told.append(f'{key}={value}')
        elif key not in defaults or json.dumps(value) != json.dumps(defaults[key]):
            told.append(f'{key}={brief(value)}')
    return f'{short}({", ".join(told)})' if told else short
