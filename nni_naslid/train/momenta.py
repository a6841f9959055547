"""What an optimizer keeps of the gradients, such as momentum, for each of some bands of networks."""

from __future__ import annotations

import copy
import logging
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

from nni_naslid.space.additive import equal_bands
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.structure import COUNTED, histogram_of, structural_score

from nni.mutable import Sample
from torch import nn, optim
from torch.optim import Optimizer

__all__ = ['Momenta', 'check_optimizers']

_logger = logging.getLogger(__name__)

# Others may keep weights in their state, as ASGD and what users derive, or look at it before the closure, as LBFGS.
GO = (
    optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.Adagrad, optim.Adadelta,
    optim.RMSprop, optim.Rprop,
)  # fmt: skip

State = dict[Any, Any]  # of an optimizer: by weight; in a checkpoint, by its place


class Momenta:
    """Let networks of each band train shared weights with a momentum of their own.

    In a step, momentum moves shared weights on as the paths of the steps before would have them. Small and large
    networks want them elsewhere, so each band goes on with what its own paths have left: the momentum separation of
    `DYNAS (CVPR 2025) <https://arxiv.org/abs/2503.10740>`__, by the size of networks. Bands are of the number of
    convolutions in the whole space, and of sizes as equal as they can be (with a filter or constraints, of a thousand
    networks). Apart is all that the optimizer keeps for each weight, such as both moments of Adam and its number of
    steps. The schedule is one for all.

    Parameters
    ----------
    supernet
        The supernet.
    space
        The whole space.
    n_bands
        How many; less where networks have fewer different numbers of convolutions.
    optional
        Whether all networks have one momentum where the optimizers do not go with this, instead of an error.

    Raises
    ------
    ValueError
        If convolutions cannot be counted, or if all networks have as many.
    """

    def __init__(self, supernet: nn.Module, space: SubSpace, n_bands: int, optional: bool = False):
        needs = f'momentum_bands={n_bands} needs networks with different numbers of {COUNTED}, but'
        try:
            self._score = structural_score(supernet, space, COUNTED)
        except ValueError as error:
            raise ValueError(f'{needs} {error}. Take 1.') from error
        histogram = histogram_of(self._score, space)
        if len(histogram) < 2:
            within = ' that filter and constraints let pass' if space.filter is not None or space.ranges else ''
            raise ValueError(f'{needs} all{within} have {next(iter(histogram))}. Take 1.')
        self.bands = equal_bands(histogram, min(n_bands, len(histogram)))
        self._optional = optional
        self._scores: list[int] = []  # of the paths since the last step
        self._loaded: dict[str, Any] = {}
        self._optimizers: list[Optimizer] = []  # whose states these are
        self._present = 0  # the band whose states the optimizers have
        self._states: list[list[State]] = []  # by band and optimizer; those of the present band are out of date

    def __str__(self) -> str:
        ranges = ' | '.join(str(low) if low == high else f'{low} to {high}' for low, high in self.bands)
        return f'{len(self.bands)} momenta, of networks with {ranges} {COUNTED}'

    def use(self, optimizers: Sequence[Optimizer], sample: Sample) -> None:
        """Prepare the step to come, which trains a path. Of several paths, their mean number of convolutions counts.

        Raises
        ------
        ValueError
            If an optimizer is none of those that keep no weights, unless all this is optional.
        """
        self._begin(optimizers)
        self._scores.append(self._score.of(sample))
        mean = sum(self._scores) / len(self._scores)
        band = bisect_left([high for _, high in self.bands[:-1]], mean)
        if band != self._present:
            self._states[self._present] = [optimizer.state for optimizer in optimizers]
            for optimizer, state in zip(optimizers, self._states[band], strict=True):
                optimizer.state = state
            self._present = band

    def stepped(self) -> None:
        """After a step."""
        self._scores.clear()

    def state_dict(self, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
        """For a checkpoint, beside the states that the optimizers have."""
        self._begin(optimizers)
        states = [
            _by_place(optimizers, each) if band != self._present else []  # which the optimizers have
            for band, each in enumerate(self._states)
        ]
        return {'bands': self.bands, 'present': self._present, 'states': states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from these, once the optimizers have theirs; of other bands, from what the optimizers have."""
        if [tuple(band) for band in state_dict['bands']] == self.bands:
            self._loaded = state_dict

    def _begin(self, optimizers: Sequence[Optimizer]) -> None:
        if self._optimizers == optimizers:
            return
        try:
            check_optimizers(optimizers)
        except ValueError as error:
            if not self._optional:
                raise
            if len(self.bands) > 1:
                _logger.info('All networks have one momentum: %s', error)
            self.bands = [(self.bands[0][0], self.bands[-1][1])]
        if len(self.bands) == 1:  # the optimizers have it, whatever they are
            self._present, self._states, self._optimizers, self._loaded = 0, [[]], list(optimizers), {}
            return
        if not self._optional and any(map(_without_momentum, optimizers)):
            _logger.warning('momentum_bands makes no difference, as the momentum of SGD is 0.')
        self._present = self._loaded.get('present', 0)
        states = self._loaded.get('states')
        if states is None:
            states = [_by_place(optimizers, [optimizer.state for optimizer in optimizers])] * len(self.bands)
        self._states = [
            _by_weight(optimizers, each) if band != self._present else [] for band, each in enumerate(states)
        ]
        self._optimizers, self._loaded = list(optimizers), {}


def check_optimizers(optimizers: Iterable[Optimizer], needs_momentum: bool = False) -> None:
    """Raise if one is none of those that keep no weights, or has no momentum, where it should."""
    for optimizer in optimizers:
        if getattr(optimizer, '__wrapped__', type(optimizer)) not in GO:  # nni.trace wraps classes
            known = ', '.join(each.__name__ for each in GO)
            raise ValueError(
                f'momentum_bands goes with these optimizers of torch: {known}, but this one is '
                f'{type(optimizer).__name__}. Others, derived classes among them, may keep weights in their state, '
                'but all networks must have the same ones.'
            )
        if needs_momentum and _without_momentum(optimizer):
            raise ValueError('momentum_bands needs momentum, but that of SGD is 0.')


def _without_momentum(optimizer: Optimizer) -> bool:
    return isinstance(optimizer, optim.SGD) and not any(group['momentum'] for group in optimizer.param_groups)


def _blank(optimizer: Optimizer, state: State) -> Optimizer:
    """An optimizer of the same groups, which nobody else has, to pack and unpack states as torch does."""
    blank = Optimizer([dict(group) for group in optimizer.param_groups], {})
    blank.state.update(state)
    return blank


def _by_place(optimizers: Sequence[Optimizer], states: Sequence[State]) -> list[State]:
    """The states of optimizers as in a checkpoint."""
    return [_blank(*pair).state_dict()['state'] for pair in zip(optimizers, states, strict=True)]


def _by_weight(optimizers: Sequence[Optimizer], states: Sequence[State]) -> list[State]:
    """Copies of such states, on the devices of the weights."""
    found = []
    for optimizer, state in zip(optimizers, states, strict=True):
        blank = _blank(optimizer, {})
        blank.load_state_dict({**blank.state_dict(), 'state': copy.deepcopy(state)})
        found.append(blank.state)
    return found
