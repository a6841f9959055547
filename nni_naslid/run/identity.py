"""Telling searches and filters apart by what they are made of: arguments, values, the code of functions.

Without torch: the tuner, which must start fast, uses it too.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import inspect
import json
import re
import sys
import sysconfig
import types
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ['UNSTABLE', 'check_identifiable', 'code_of', 'difference', 'digest_of_arguments', 'identity']

ARGUMENTS = '_naslid_arguments'  # where compat.py notes what a strategy was made with
UNSTABLE = 'never the same'  # of data that cannot be told from others
INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ('stdlib', 'purelib', 'platlib'))

_known: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def identity(thing: Any) -> str:
    """What tells a search or a filter from others, the same in every process: a description and a digest.

    It is that of the first time it is asked for, because a search has another state after it was used.
    """
    if thing is None:
        return 'None'
    try:
        known = _known.get(thing)
    except TypeError:  # not hashable
        known = None
    if known is None:
        known = f'{re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))} [{_Digest().of(thing)[:12]}]'
        with suppress(TypeError):
            _known[thing] = known
    return known


def code_of(criterion: Any) -> str:
    """What tells the class of a user's criterion from another one of the same name; empty for those of this package."""
    cls = type(criterion)
    return '' if cls.__module__.startswith('nni_naslid.') else identity(cls)


def digest_of_arguments(thing: Any) -> str:
    """SHA-256 of what a traced object was made with, the same however its arguments were passed."""
    positional, by_name = (
        list(getattr(thing, 'trace_args', None) or []),
        dict(getattr(thing, 'trace_kwargs', None) or {}),
    )
    try:
        bound = inspect.signature(thing.trace_symbol).bind(*positional, **by_name)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
    except (AttributeError, TypeError, ValueError):
        arguments = {'': positional, **by_name}
    return _Digest().of(arguments)[:16]


def difference(kept: dict[str, Any], found: dict[str, Any], whose: str) -> str | None:
    """How a run differs from the one that a work folder holds, for people; ``None`` if it does not.

    Parameters
    ----------
    kept, found
        Values by part and name, in plain types, as they are in ``tree.json`` and as they are here.
    whose
        What has the values that are found, such as ``'this one'``.
    """
    for part, values in found.items():
        for name in [*values, *kept[part]]:
            before, now = kept[part].get(name), values.get(name)
            if before != now:
                name_of = f'arguments of the {name}' if part == 'arguments' else name
                name_of, before, now = _innermost(name_of, before, now)
                return f'{_told(name_of, before)}, but {whose} has {_told(name_of, now)}'
    return None


def _told(name: str, value: Any) -> str:
    return f'no {name}' if value is None else f'{name}={value!r:.300}'


def _innermost(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """Where two values that differ do: of large tables, the entry; ``None`` where one has it not."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if key not in before or key not in now or before[key] != now[key]]
        return _innermost(f'{name}[{keys[0]!r}]', before.get(keys[0]), now.get(keys[0]))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        i = next(i for i, pair in enumerate(zip(before, now, strict=True)) if pair[0] != pair[1])
        if isinstance(before[i], dict) and isinstance(now[i], dict):
            return _innermost(f'{name}[{i}]', before[i], now[i])
    return name, before, now


def check_identifiable(thing: Any, name: str) -> None:
    """Raise if something has parts that cannot be told from others.

    Raises
    ------
    ValueError
        Naming the argument and the part.
    """
    digest = _Digest()
    digest.of(thing)
    if digest.unknown:
        raise ValueError(
            f'{name} cannot be told from another one by its content, because it holds a {digest.unknown[0]}, so a run '
            'in a named workdir could be mistaken for another. Leave that out, or name no workdir.'
        )


class _Digest:
    """SHA-256 of all that a thing is made of. Of parts that do not tell (locks, files) only the type counts.

    It is the same for what NNI makes of a thing when it sends it to a trial: lists of tuples, plain dicts of others,
    plain numbers of NumPy's and of enumerations, and texts of the keys of a dict.
    """

    def __init__(self) -> None:
        self.unknown: list[str] = []
        self._done: dict[int, tuple[Any, str]] = {}  # holds the things, too, for an id may be given again

    def of(self, thing: Any) -> str:
        numpy = sys.modules.get('numpy')
        if isinstance(thing, enum.Enum) and isinstance(thing, (int, str)):
            thing = thing.value
        elif numpy and (isinstance(thing, numpy.generic) or (isinstance(thing, numpy.ndarray) and not thing.ndim)):
            thing = thing.item()
        if id(thing) not in self._done:
            self._done[id(thing)] = thing, 'itself'  # what it is to its own parts
            sha = hashlib.sha256(_name(_kind(thing)).encode())
            for part in self._parts(thing):
                sha.update(part if isinstance(part, bytes) else f'|{part}'.encode())
            self._done[id(thing)] = thing, sha.hexdigest()
        return self._done[id(thing)][1]

    def _parts(self, thing: Any) -> Iterator[str | bytes]:
        torch, pandas = sys.modules.get('torch'), sys.modules.get('pandas')
        if thing is None or isinstance(thing, (bool, int, float, complex, str, bytes)):
            yield repr(thing)
        elif isinstance(thing, (list, tuple)):
            yield from map(self.of, thing)
        elif isinstance(thing, (set, frozenset)):
            yield from sorted(map(self.of, thing))
        elif isinstance(thing, (dict, types.MappingProxyType)):
            yield from sorted(f'{self.of(_as_key(key))}:{self.of(value)}' for key, value in thing.items())
        elif isinstance(thing, types.ModuleType):
            yield thing.__name__
        elif isinstance(thing, types.FunctionType):
            yield from self._function(thing)
        elif isinstance(thing, types.CodeType):
            yield thing.co_code
            yield self.of(tuple(c for c in thing.co_consts if not isinstance(c, str) or c != thing.co_name))
            yield self.of((thing.co_names, thing.co_varnames, thing.co_freevars))
        elif isinstance(thing, (types.MethodType, types.BuiltinFunctionType)):
            yield _name(thing)
            if not isinstance(thing.__self__, types.ModuleType | None):
                yield self.of(thing.__self__)
        elif isinstance(thing, functools.partial):
            yield self.of((thing.func, thing.args, thing.keywords))
        elif isinstance(thing, type):
            yield from self._class(thing)
        elif torch and isinstance(thing, torch.Tensor):
            plain = thing.detach().cpu().contiguous()
            yield f'{plain.dtype}{tuple(plain.shape)}'
            yield plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b''
        elif pandas and isinstance(thing, (pandas.DataFrame, pandas.Series)):
            columns = thing.columns.tolist() if isinstance(thing, pandas.DataFrame) else None
            yield self.of((columns, thing.index.tolist(), thing.to_numpy().tolist()))
        elif hasattr(thing, ARGUMENTS):
            yield self.of((type(thing), *getattr(thing, ARGUMENTS)))
        elif hasattr(thing, 'trace_kwargs'):  # what NNI makes anew from its arguments, such as a space
            yield self.of((thing.trace_symbol, thing.trace_args, thing.trace_kwargs))
        elif torch and isinstance(thing, torch.nn.Module):
            yield self.of((type(thing), repr(thing), dict(thing.state_dict())))
        else:
            yield from self._reduced(thing)

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        yield _name(function)
        if _is_installed(function.__module__):
            return
        yield self.of((function.__code__, function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                yield self.of(cell.cell_contents)
            except ValueError:  # not filled yet
                yield 'empty'
        for name in sorted(_globals_read(function.__code__)):
            if name in function.__globals__:
                yield f'{name}={self.of(function.__globals__[name])}'

    def _class(self, cls: type) -> Iterator[str]:
        yield _name(cls)
        if not _is_installed(cls.__module__):
            yield from map(self.of, cls.__bases__)
            yield from (
                f'{name}={self.of(value)}'
                for name, value in sorted(vars(cls).items())
                if (isinstance(value, (types.FunctionType, int, float, str, tuple)) and not name.startswith('__'))
                or name in ('__init__', '__call__')
            )  # fmt: skip

    def _reduced(self, thing: Any) -> Iterator[str]:
        """By what pickle would make it from."""
        try:
            made_from = thing.__reduce_ex__(4)
        except Exception:
            self.unknown.append(_name(type(thing)))
            return
        if isinstance(made_from, str):
            yield made_from
        else:
            yield self.of(type(thing))
            yield from (self.of(list(part) if isinstance(part, Iterator) else part) for part in made_from)


def _kind(thing: Any) -> type:
    """The type of a thing; that of which JSON has no subclasses."""
    if isinstance(thing, (list, tuple)):
        return list
    return dict if isinstance(thing, dict) else type(thing)


def _as_key(key: Any) -> Any:
    """What JSON makes of the key of a dict."""
    return json.dumps(key) if key is None or isinstance(key, (bool, int, float)) else key


def _globals_read(code: types.CodeType) -> set[str]:
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ('LOAD_GLOBAL', 'LOAD_NAME')}
    return names.union(*(_globals_read(const) for const in code.co_consts if isinstance(const, types.CodeType)))


def _is_installed(module: str | None) -> bool:
    """Whether a module is Python's or an installed package's, whose code is told by its name."""
    if module == '__main__':  # in a trial this is another one than where the function comes from
        return False
    file = getattr(sys.modules.get(module or ''), '__file__', None)
    if file is None:
        return True
    return any(folder in Path(file).resolve().parents for folder in INSTALLED)


def _name(thing: Any) -> str:
    return f'{getattr(thing, "__module__", "")}.{getattr(thing, "__qualname__", repr(thing))}'
