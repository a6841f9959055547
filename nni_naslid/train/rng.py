"""Random generators: the global ones, and those that loaders, samplers and data sets have for themselves."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from lightning_fabric.utilities.seed import _collect_rng_states, _set_rng_states
from pytorch_lightning.utilities.seed import isolate_rng

__all__ = ['get_states', 'global_states', 'own_generators', 'seeded', 'set_global_states', 'set_states']

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
DEPTH = 6  # a loader's batch sampler's sampler's generator is at 3, one of a composed transform at 4 or 5
LONGEST = 64  # a list of transforms, not one of samples


@contextmanager
def seeded(*entropy: int, data: Any = None) -> Iterator[np.random.RandomState]:
    """Run with all random generators seeded, and leave their states as they were. Yields one more generator.

    Parameters
    ----------
    entropy
        What the seeds are made of.
    data
        Where the user's own generators are looked for: a loader, a data module, or a list of these.
    """
    seeds = np.random.SeedSequence(entropy).generate_state(4)
    generators = own_generators(data)
    before = get_states(generators)
    with isolate_rng():
        torch.manual_seed(int(seeds[0]))
        np.random.seed(seeds[1])
        random.seed(int(seeds[2]))
        for path, generator in generators.items():  # by its place: others may be made before it or not
            _seed(generator, int(np.random.SeedSequence([*entropy, zlib.crc32(path.encode())]).generate_state(1)[0]))
        try:
            yield np.random.RandomState(seeds[3])
        finally:
            set_states(generators, before)


def own_generators(data: Any) -> dict[str, Generator]:
    """The random generators that are attributes of loaders, or of their samplers, data sets, transforms ...

    By where they are, such as ``'[0].sampler.generator'``; each once.
    """
    found: dict[str, Generator] = {}
    seen: set[int] = set()
    left = [('', data, 0)]
    while left:
        path, thing, depth = left.pop()
        if id(thing) in seen or depth > DEPTH:
            continue
        seen.add(id(thing))
        if isinstance(thing, Generator):
            found[path] = thing
        elif isinstance(thing, (list, tuple)):
            left += [(f'{path}[{i}]', part, depth + 1) for i, part in enumerate(thing if len(thing) <= LONGEST else ())]
        elif isinstance(thing, dict):
            left += [(f'{path}.{k}', part, depth + 1) for k, part in (thing.items() if len(thing) <= LONGEST else ())]
        elif not isinstance(thing, (torch.Tensor, type, ModuleType)) and not _is_of_lightning(thing):
            left.append((path, getattr(thing, '__dict__', None), depth))
    return dict(sorted(found.items()))


def _is_of_lightning(thing: Any) -> bool:
    """Whether it is a trainer or a module, to which a data module has a way; data are not found there."""
    return isinstance(thing, torch.nn.Module) or type(thing).__module__.startswith('pytorch_lightning.trainer')


def _seed(generator: Generator, seed: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    else:
        generator.seed(seed)


def get_states(generators: dict[str, Generator]) -> dict[str, Any]:
    """The states of generators, in tensors and plain types."""
    return {path: _plain(_get_state(generator)) for path, generator in generators.items()}


def _get_state(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state(legacy=False) if isinstance(generator, np.random.RandomState) else generator.getstate()


def _plain(state: Any) -> Any:
    """NumPy's arrays and scalars as plain types, which a checkpoint may hold."""
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, (np.ndarray, np.generic)) else state


def set_states(generators: dict[str, Generator], states: dict[str, Any]) -> None:
    """Give generators the states that :func:`get_states` has read of those in the same places."""
    for path in generators.keys() & states.keys():
        generator, state = generators[path], states[path]
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(state)
        else:
            generator.setstate(_as_tuples(state))


def _as_tuples(state: Any) -> Any:
    """What Python's generator takes, whether it has been kept as tuples or as lists."""
    return tuple(map(_as_tuples, state)) if isinstance(state, (list, tuple)) else state


def global_states() -> dict[str, Any]:
    """The states of the global generators, in tensors and plain types."""
    states = _collect_rng_states()
    name, key, *rest = states['numpy']
    return {**states, 'numpy': (name, torch.from_numpy(key.astype(np.int64)), *rest)}


def set_global_states(states: dict[str, Any]) -> None:
    """Give the global generators the states that :func:`global_states` has read."""
    name, key, *rest = states['numpy']
    of_devices = states['torch.cuda'][: torch.cuda.device_count()]  # of a machine that may have shown more of them
    _set_rng_states({**states, 'numpy': (name, key.numpy().astype(np.uint32), *rest), 'torch.cuda': of_devices})
