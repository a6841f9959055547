"""Objects as a YAML names them: a class (or function) with its arguments, which may be such objects in their turn.

Without torch: the tuner, which must start fast, uses it too.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import field, fields, is_dataclass
from typing import Any

__all__ = ['check_spec', 'identity_of_spec', 'imported', 'later', 'make', 'name_of', 'spec_of']

KEYS = ('className', 'classArgs')
MEANT = {name.lower(): name for name in KEYS}  # where they are written as in another language


def check_spec(spec: Any, key: str) -> None:
    """Raise if something is not what :func:`make` takes.

    Parameters
    ----------
    spec
        ``{'className': 'module.Class', 'classArgs': {...}}``, the second one optional. Arguments may be such objects,
        and lists and dicts of them.
    key
        Where it is in the YAML; it is named in errors.

    Raises
    ------
    ValueError
        Naming the key and what is wrong with its value.
    """
    if not isinstance(spec, dict) or 'className' not in spec:
        raise ValueError(f'{key} must have a className (and maybe classArgs), but is {spec!r}.')
    if unknown := [name for name in spec if name not in KEYS]:
        raise ValueError(f'{key} has {", ".join(map(repr, unknown))}, but may only have className and classArgs.')
    name, arguments = spec['className'], spec.get('classArgs', {})
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split('.')) or '.' not in name:
        raise ValueError(f"{key}.className must be a full name such as 'package.module.Class', but is {name!r}.")
    if not isinstance(arguments, dict) or not all(isinstance(argument, str) for argument in arguments):
        raise ValueError(f'{key}.classArgs must be arguments by name, but is {arguments!r}.')
    for argument, value in arguments.items():
        _check_value(value, f'{key}.classArgs.{argument}')


def _check_value(value: Any, key: str) -> None:
    if isinstance(value, dict) and 'className' in value:
        check_spec(value, key)
    elif isinstance(value, dict):
        for name, each in value.items():
            meant = MEANT.get(str(name).lower().replace('_', '').replace('-', ''))
            if meant:
                raise ValueError(f'{key} has {name!r}, but must have a className to be an object; is {meant} meant?')
            _check_value(each, f'{key}.{name}')
    elif isinstance(value, list):
        for i, each in enumerate(value):
            _check_value(each, f'{key}[{i}]')


def spec_of(thing: Any) -> dict[str, Any]:
    """What :func:`make` takes to make a dataclass anew, and those that are its arguments."""
    cls = type(thing)
    arguments = {field.name: getattr(thing, field.name) for field in fields(thing) if field.init}
    arguments = {
        name: spec_of(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in arguments.items()
    }
    return {'className': f'{cls.__module__}.{cls.__qualname__}', 'classArgs': arguments}


def name_of(function: Any) -> str | None:
    """The full name that :func:`imported` finds a function by; ``None`` where there is none, as of a lambda."""
    module, name = getattr(function, '__module__', None), getattr(function, '__qualname__', '')
    return f'{module}.{name}' if getattr(sys.modules.get(module), name, None) is function else None


def imported(name: str, key: str) -> Any:
    """What has a full name; ``key`` is what asks for it.

    Raises
    ------
    ValueError
        Naming both, if there is no such thing.
    """
    module, _, attribute = name.rpartition('.')
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError, ValueError) as error:
        raise ValueError(f'{key}: {name} cannot be imported ({error}).') from error


def later(default: Any) -> Any:
    """A field that a dataclass had not from the beginning: with its default, things are what they were without it."""
    return field(default=default, metadata={'later': True})


def identity_of_spec(thing: Any) -> dict[str, Any]:
    """The arguments of :func:`spec_of`, without those of later versions where they are at their defaults."""
    added = {each.name: each.default for each in fields(thing) if 'later' in each.metadata}
    arguments = spec_of(thing)['classArgs']
    return {name: value for name, value in arguments.items() if name not in added or value != added[name]}


def make(spec: dict[str, Any], key: str) -> Any:
    """The object that a specification names.

    Parameters
    ----------
    spec, key
        As in :func:`check_spec`.

    Raises
    ------
    ValueError
        Naming the key, if there is no such class, or if it refuses its arguments.
    """
    check_spec(spec, key)
    module, _, name = spec['className'].rpartition('.')
    try:
        called = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f'{key}.className: {spec["className"]} cannot be imported ({error}). '
            'Modules of your own must be in the folder that trials start in, trialCodeDirectory; that of a criterion '
            "also in the tuner's codeDirectory."
        ) from error
    arguments = {
        argument: _make_value(value, f'{key}.classArgs.{argument}')
        for argument, value in spec.get('classArgs', {}).items()
    }
    try:
        return called(**arguments)
    except Exception as error:
        raise ValueError(f'{key}.classArgs: {spec["className"]} raised {type(error).__name__}: {error}') from error


def _make_value(value: Any, key: str) -> Any:
    if isinstance(value, dict) and 'className' in value:
        return make(value, key)
    if isinstance(value, dict):
        return {name: _make_value(each, f'{key}.{name}') for name, each in value.items()}
    if isinstance(value, list):
        return [_make_value(each, f'{key}[{i}]') for i, each in enumerate(value)]
    return value
