"""How networks of different sizes are trained: at which rate, with which momentum, and which are drawn."""

from __future__ import annotations

import copy
import functools
import logging
from contextlib import suppress
from dataclasses import dataclass, replace

from nni_naslid.run.settings import PLAIN, Settings
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.learning_rate import LearningRateBySize
from nni_naslid.train.momenta import Momenta, check_optimizers
from nni_naslid.train.path import PathModule
from nni_naslid.train.sampling import Draw, draw_from
from nni_naslid.train.structure import COUNTED, histogram_of, structural_score

from nni.nas.evaluator.pytorch import Lightning
from nni.nas.nn.pytorch import ModelSpace
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

__all__ = ['Options', 'options_of', 'settled']

_logger = logging.getLogger(__name__)

N_BANDS = 4  # of 'auto', as was measured: examples/README.md
TOLD = {  # where it is as in SPOS
    'lr_by_size': 'The learning rate does not depend on the size of the path',
    'momentum_bands': 'All networks have one momentum',
    'sampling': 'Drawing is not balanced',
}


@dataclass(frozen=True)
class Options:
    """What :class:`~nni_naslid.train.path.SubSupernetModule` trains by; ``None`` for what is as it is without."""

    learning_rate: LearningRateBySize | None
    momenta: Momenta | None
    draw: Draw


def options_of(settings: Settings, supernet: ModelSpace, subspace: SubSpace) -> Options:
    """The options of a node, by :func:`settled` settings.

    Parameters
    ----------
    settings
        Of the run.
    supernet
        The supernet.
    subspace
        The sub-space of the node.

    Raises
    ------
    ValueError
        If an option does not go with the space.
    """
    space, n_bands = SubSpace.of(supernet), settings.momentum_bands
    is_optional = n_bands == 'auto'
    return Options(
        LearningRateBySize(supernet, space) if settings.lr_by_size else None,
        None if n_bands == 1 else Momenta(supernet, space, N_BANDS if is_optional else n_bands, is_optional),
        draw_from(settings.sampling, subspace, supernet),
    )


def settled(settings: Settings, supernet: ModelSpace, evaluator: Lightning) -> Settings:
    """Settings with what ``'auto'`` comes to; the log says what is as in SPOS, and why.

    Momenta stay ``'auto'`` where nothing speaks against them: the optimizers of training, which may be other ones than
    a module makes before it, have the last word in the first step.

    Parameters
    ----------
    settings
        As the user has given them.
    supernet
        A supernet that is used for nothing else, with filter and constraints.
    evaluator
        The user's evaluator.

    Raises
    ------
    ValueError
        If ``momentum_bands`` are asked for, and the optimizers do not go with them.
    """
    space = SubSpace.of(supernet)
    if settings.momentum_bands not in (1, 'auto'):
        check_optimizers(_optimizers(supernet, evaluator) or [], needs_momentum=True)

    @functools.cache  # two options look at them
    def numbers_of_convolutions() -> list[int]:
        return list(histogram_of(structural_score(supernet, space, COUNTED), space))

    def check_convolutions(asked_for: str) -> None:
        """Raise if networks should not be told apart by their convolutions, unless that is asked for."""
        if space.filter is not None or space.ranges:
            raise ValueError(
                'with a filter or constraints, it may take long to draw networks of each number of convolutions; '
                f'{asked_for} asks for it'
            )
        if len(numbers := numbers_of_convolutions()) < 2:
            raise ValueError(f'all have {numbers[0]} {COUNTED}')

    def lr_by_size() -> bool:
        if len(sizes := LearningRateBySize(supernet, space).sizes) < 2:
            raise ValueError(f'all have {sizes[0]:,} parameters')
        return True

    def momentum_bands() -> str:
        check_convolutions(f'momentum_bands={N_BANDS}')
        trainer = evaluator.trainer
        scheduled = any(isinstance(each, GradientAccumulationScheduler) for each in trainer.callbacks)
        if trainer.accumulate_grad_batches > 1 or scheduled:
            raise ValueError('steps train several paths, most often of middling size (accumulate_grad_batches)')
        made = _optimizers(supernet, evaluator)
        if made == []:
            raise ValueError('the module of the evaluator has no optimizer')
        check_optimizers(made or [], needs_momentum=True)
        return 'auto'

    def sampling() -> str:
        check_convolutions("sampling='balanced'")
        draw_from('balanced', space, supernet)
        return 'balanced'

    found = {}
    for name, choose in {'lr_by_size': lr_by_size, 'momentum_bands': momentum_bands, 'sampling': sampling}.items():
        if getattr(settings, name) == 'auto':
            try:
                found[name] = choose()
            except Exception as error:  # counting runs code of the user's on meta tensors
                _logger.info('%s: %s.', TOLD[name], str(error).removesuffix('.'))
                found[name] = PLAIN[name]
    return replace(settings, **found)


def _optimizers(supernet: ModelSpace, evaluator: Lightning) -> list[Optimizer] | None:
    """Those of a copy of the user's module; ``None`` if it cannot make them, as the trainer has no data yet, say."""
    with suppress(Exception):
        module = PathModule(copy.deepcopy(evaluator.module))
        module.set_model(copy.deepcopy(supernet))
        module.training_module.trainer = copy.copy(evaluator.trainer)  # many ask it for max_epochs
        made = tree_leaves(module.training_module.configure_optimizers())
        return [each for each in made if isinstance(each, Optimizer)]
    return None
