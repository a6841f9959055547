"""What an optimizer remembers, such as momentum, for each of some bands of networks."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any

from nni_naslid.space.additive import equal_bands
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.structure import histogram_of, structural_score

from nni.mutable import Sample
from torch import nn
from torch.optim import Optimizer

__all__ = ['Momenta']

COUNTED = 'convolutions'

Memory = dict[Any, Any]  # what an optimizer keeps of each of its weights: its `state`


class Momenta:
    """Let networks of each band train shared weights with a momentum of their own.

    In a step the momentum moves shared weights on as the paths of steps before would have them. Small and large
    networks want them elsewhere, and so each band goes on with what its own paths have left. Bands are those of the
    number of convolutions in the whole space, of sizes as equal as they can be; what is kept apart is the whole state
    of any optimizer (moments and numbers of steps of Adam, ...), and of those inside it. Optimizers that read their
    state before they call the closure, such as LBFGS, have that of the step before.

    Parameters
    ----------
    supernet
        The supernet.
    space
        The whole space.
    n_bands
        How many; less where networks have fewer different numbers of convolutions.

    Raises
    ------
    ValueError
        If convolutions cannot be counted, or if all networks have as many.
    """

    def __init__(self, supernet: nn.Module, space: SubSpace, n_bands: int):
        self._score = structural_score(supernet, space, COUNTED)
        histogram = histogram_of(self._score, space)
        if len(histogram) < 2:
            raise ValueError(
                f'momentum_bands={n_bands} needs networks of different size, but all of this space have '
                f'{next(iter(histogram))} {COUNTED}.'
            )
        self.bands = equal_bands(histogram, min(n_bands, len(histogram)))
        self._scores: list[int] = []  # of the paths since the last step
        self._loaded: list[list[Memory]] | None = None  # from a checkpoint, by band and optimizer
        self._memories: list[list[Memory]] = []  # by band and optimizer; what is there of the present band is old
        self._present: int | None = None  # the band whose memory the optimizers have

    def band_of(self, score: float) -> int:
        """The number of the first band that goes up to a number of convolutions."""
        return bisect_left([high for _, high in self.bands[:-1]], score)

    def use(self, optimizers: Iterable[Optimizer], sample: Sample) -> None:
        """Prepare the step to come, which trains a path. Of several paths, their mean number counts."""
        optimizers = list(_with_inner(optimizers))
        self._begin(optimizers)
        self._scores.append(self._score.of(sample))
        self._change_to(self.band_of(sum(self._scores) / len(self._scores)), optimizers)

    def stepped(self) -> None:
        """After a step."""
        self._scores.clear()

    def state_dict(self, optimizers: Iterable[Optimizer]) -> list[list[Memory]]:
        """Of each band, and each optimizer, the ``state`` of its ``state_dict``. That of the last band is left."""
        optimizers = list(_with_inner(optimizers))
        self._begin(optimizers)
        states = []
        for band in range(len(self.bands)):
            self._change_to(band, optimizers)
            states.append([optimizer.state_dict()['state'] for optimizer in optimizers])
        return states

    def load_state_dict(self, states: list[list[Memory]]) -> None:
        """Go on from these, once there are optimizers."""
        self._loaded = states

    def _begin(self, optimizers: list[Optimizer]) -> None:
        """What the optimizers remember now is that of each band, if it has not been loaded."""
        if self._memories:
            return
        found = [optimizer.state_dict()['state'] for optimizer in optimizers]
        self._memories = [
            [_remembered(*pair) for pair in zip(optimizers, states, strict=True)]
            for states in self._loaded or [found] * len(self.bands)
        ]
        self._loaded = None
        self._change_to(0, optimizers)

    def _change_to(self, band: int, optimizers: list[Optimizer]) -> None:
        """In place: wrappers of optimizers share the dict."""
        if band == self._present:
            return
        if self._present is not None:
            self._memories[self._present] = [dict(optimizer.state) for optimizer in optimizers]
        for optimizer, memory in zip(optimizers, self._memories[band], strict=True):
            optimizer.state.clear()
            optimizer.state.update(memory)
        self._present = band


def _with_inner(optimizers: Iterable[Optimizer]) -> Iterator[Optimizer]:
    """Optimizers, and those that they wrap; of those that share their state one is enough."""
    known = set()
    for optimizer in optimizers:
        for each in (optimizer, *(value for value in vars(optimizer).values() if isinstance(value, Optimizer))):
            if id(each.state) not in known:
                known.add(id(each.state))
                yield each


def _remembered(optimizer: Optimizer, state: Memory) -> Memory:
    """A copy of the ``state`` of a ``state_dict``, by weights, and where these are."""
    if not state:
        return {}
    optimizer.load_state_dict({**optimizer.state_dict(), 'state': copy.deepcopy(state)})
    return dict(optimizer.state)
