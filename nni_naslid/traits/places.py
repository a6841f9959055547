"""Where the samples of a batch are in what a network takes and in what its layers return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from nni_naslid.train.data import Inputs, call, tensors_in

from torch import Tensor, nn

__all__ = ['INPUT', 'Place', 'find_places', 'n_samples', 'watched']

INPUT = ''  # the place of what the network takes, among those of its layers


class Place(NamedTuple):
    """Which tensor of several, counted from the last one, and which of its dimensions counts the samples."""

    tensor: int = -1
    dim: int = 0


@contextmanager
def watched(model: nn.Module, layers: Sequence[str], watcher: Callable[[str, Any], None]) -> Iterator[None]:
    """Inside, ``watcher(name, output)`` is called whenever one of the layers has run."""
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: watcher(name, output))
        for name in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def n_samples(inputs: Inputs, places: dict[str, Place]) -> int | None:
    """How many samples a network is called with; ``None`` if no tensor tells it."""
    if INPUT not in places:
        return None
    return tensors_in(inputs)[places[INPUT].tensor].shape[places[INPUT].dim]


def find_places(
    model: nn.Module, layers: Sequence[str], inputs: Inputs, fewer: tuple[Inputs, int] | None
) -> tuple[int, dict[str, Place], dict[str, str]]:
    """Where samples are counted, found out by calling a network twice: what has one sample less counts them.

    Call it under :func:`~nni_naslid.traits.profile.untouched`.

    Parameters
    ----------
    model
        A network, or a supernet whose path is set.
    layers
        Names of modules.
    inputs
        What the network gets of a batch.
    fewer
        What it gets of the same batch with one sample less, and how many samples the whole batch has. Without it the
        first dimension is taken for that of the samples.

    Returns
    -------
    tuple
        The number of samples that the network gets, which may be a multiple of the batch's (several views of each).
        The place of the samples in the output of each layer that ran, and in the inputs (of the name ``''``) if a
        tensor of theirs tells it. Why layers cannot be used that ran too, but have no finite features for each sample.
    """
    whole = tensors_in(inputs)
    places: dict[str, Place] = {}
    if fewer is None:
        counts = next((t.shape[0] for t in whole if t.ndim), 0), None
        if counts[0]:
            places[INPUT] = next(Place(i - len(whole)) for i, t in enumerate(whole) if t.ndim)
    else:
        n, part = fewer[1], tensors_in(fewer[0])
        found = (
            (Place(i - len(whole), d), (a, b))
            for i, (x, y) in enumerate(zip(whole, part, strict=False))
            if len(whole) == len(part) and x.ndim == y.ndim
            for d, (a, b) in enumerate(zip(x.shape, y.shape, strict=True))
            if a != b and a * (n - 1) == b * n
        )
        place, counts = next(found, (None, (n, n - 1)))
        if place is not None:
            places[INPUT] = place
    outputs = _outputs(model, layers, inputs)
    others = outputs if fewer is None else _outputs(model, layers, fewer[0])
    reasons: dict[str, str] = {}
    for name, output in outputs.items():
        place = _place(output, others.get(name, []), counts)
        if isinstance(place, str):
            reasons[name] = f'{name} ({type(model.get_submodule(name)).__name__}) returns {place}'
        else:
            places[name] = place
    return counts[0], places, reasons


def _outputs(model: nn.Module, layers: Sequence[str], inputs: Inputs) -> dict[str, list[_Seen]]:
    outputs: dict[str, list[_Seen]] = {}
    with watched(model, layers, lambda name, output: outputs.update({name: [_Seen.of(t) for t in tensors_in(output)]})):
        call(model, inputs)
    return outputs


class _Seen(NamedTuple):
    """What a layer returned, without its data."""

    shape: tuple[int, ...]
    is_float: bool
    is_finite: bool

    @classmethod
    def of(cls, tensor: Tensor) -> _Seen:
        is_float = tensor.is_floating_point()
        return cls(tuple(tensor.shape), is_float, is_float and bool(tensor.isfinite().all()))


def _place(seen: list[_Seen], others: list[_Seen], counts: tuple[int, int | None]) -> Place | str:
    """The place of the samples in one output, or what is wrong with it."""
    n, n_fewer = counts
    if len(seen) == len(others):
        for i in reversed(range(len(seen))):
            x, y = seen[i], others[i]
            if not (x.is_finite and y.is_finite) or len(x.shape) != len(y.shape):
                continue
            dims = range(len(x.shape)) if n_fewer is not None else range(min(1, len(x.shape)))
            for dim in dims:
                if x.shape[dim] == n and (n_fewer is None or y.shape[dim] == n_fewer):
                    return Place(i - len(seen), dim)
    if not seen:
        return 'no tensor'
    shapes = ', '.join(str(list(x.shape)) for x in seen)
    if not any(x.is_float for x in seen):
        return f'{shapes}, not floating-point features'
    if any(n in x.shape for x in seen if x.is_float and not x.is_finite):
        return f'{shapes}, with numbers that are not finite'
    return f'{shapes}, where no dimension counts the {n} samples'
