"""How networks of different sizes are trained: at which rate, with which momentum, and which are drawn."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nni_naslid.run.settings import PLAIN, Settings
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.learning_rate import LearningRateBySize
from nni_naslid.train.momenta import Momenta
from nni_naslid.train.sampling import Draw, draw_from
from nni_naslid.train.structure import COUNTED, histogram_of, structural_score

from torch import nn

__all__ = ['Options', 'options_of']

_logger = logging.getLogger(__name__)

AUTO = {'lr_by_size': True, 'momentum_bands': 4, 'sampling': 'balanced'}  # which ranked best: examples/README.md
TOLD = {  # of what is plain
    'lr_by_size': 'The learning rate does not depend on the size of the path',
    'momentum_bands': 'All networks have one momentum',
    'sampling': 'Paths are drawn uniformly',
}


@dataclass(frozen=True)
class Options:
    """What :class:`~nni_naslid.train.path.SubSupernetModule` trains by; ``None`` for what is as it is without."""

    learning_rate: LearningRateBySize | None
    momenta: Momenta | None
    draw: Draw


def options_of(settings: Settings, supernet: nn.Module, subspace: SubSpace, level: int = logging.DEBUG) -> Options:
    """The options of a node, by the settings; with ``'auto'`` what the space allows.

    Parameters
    ----------
    settings
        Of the run.
    supernet
        The supernet.
    subspace
        The sub-space of the node.
    level
        Of the log lines that say what ``'auto'`` has come to.

    Raises
    ------
    ValueError
        If an option that is asked for, and not by ``'auto'``, does not go with the space.
    """
    space = SubSpace.of(supernet)
    check = functools.cache(functools.partial(_check_by_convolutions, supernet, space))

    def option(name: str, make: Callable[[Any], Any]) -> Any:
        if (wanted := getattr(settings, name)) != 'auto':
            return make(wanted)
        try:
            if name != 'lr_by_size':
                check()
            return make(AUTO[name])
        except Exception as error:  # counting runs code of the user's on meta tensors
            _logger.log(level, '%s: %s', TOLD[name], error)
            return make(PLAIN[name])

    def drawn(sampling: str) -> Draw:
        draw = draw_from(sampling, subspace, supernet)
        if sampling == 'balanced':
            _logger.log(level, 'Each number of convolutions is drawn equally often.')
        return draw

    learning_rate = option('lr_by_size', lambda wanted: LearningRateBySize(supernet, space) if wanted else None)
    optional = settings.momentum_bands == 'auto'
    momenta = option('momentum_bands', lambda n: Momenta(supernet, space, n, optional) if n > 1 else None)
    if momenta is not None:
        _logger.log(level, 'Training has %s.', momenta)
    return Options(learning_rate, momenta, option('sampling', drawn))


def _check_by_convolutions(supernet: nn.Module, space: SubSpace) -> None:
    """Raise if networks should not be told apart by their convolutions, unless that is asked for."""
    if space.filter is not None or space.ranges:
        raise ValueError('with a filter, a constraint of the space or constraints each draw may take long')
    if len(histogram := histogram_of(structural_score(supernet, space, COUNTED), space)) < 2:
        raise ValueError(f'all have {next(iter(histogram))} {COUNTED}')
