"""Try out the user's search before training starts: whether it draws networks of this space."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nni_naslid.run.identity import ARGUMENTS
from nni_naslid.run.settings import Settings
from nni_naslid.search.nsga2 import NSGA2, costs_of_search
from nni_naslid.search.score import InheritedModel
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.path import PathModule
from nni_naslid.train.reports import quiet
from nni_naslid.train.rng import seeded
from nni_naslid.traits.costs import check_costs

from nni.nas.evaluator.pytorch import Lightning
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.execution.event import TrainingEndEvent
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.space import ModelStatus, RawFormatModelSpace
from nni.nas.strategy.base import Strategy, StrategyStatus
from nni.nas.strategy.middleware import Chain

__all__ = ['check_search', 'try_search']

_logger = logging.getLogger(__name__)

MANY_TRIES = 20  # before one of its architectures is within constraints and filter


def check_search(search: Strategy | None, settings: Settings) -> None:
    """Raise if a search is not a multi-trial strategy of NNI, has been used before, or if a cost has two meanings.

    A name of ours, such as ``'latency'``, may stand for a table or a function where it is limited: then networks cannot
    be ranked by it.
    """
    if search is not None and (not isinstance(search, Strategy) or hasattr(search, 'mutate_model')):
        raise TypeError(f'search must be a multi-trial strategy of NNI, but got {search!r}.')
    if search is not None and search._status != StrategyStatus.EMPTY:
        raise ValueError(f'search must be a strategy that has not been used yet, but got {search!r}.')

    sources = {name for name, each in (settings.constraints or {}).items() if len(each) > 2}
    if both := [name for name in (*(settings.prior or ()), *costs_of_search(search)) if name in sources]:
        raise ValueError(
            f'{both[0]} is by a table or function in constraints, and another one in prior or search: call it something'
            f' else in constraints, such as my_{both[0]}. To rank by your table, give a function that reads it.'
        )


def try_search(search: Strategy | None, supernet: ModelSpace, evaluator: Lightning, settings: Settings) -> None:
    """Raise if a search cannot draw a first sample of this space, or what it minimises cannot be had.

    A copy is tried; the search itself stays unused.
    """
    if search is None:
        return
    main = search[0] if isinstance(search, Chain) else search  # filters draw no samples
    if costs := costs_of_search(search):
        module = PathModule(copy.deepcopy(evaluator.module))
        module.set_model(supernet)
        check_costs('costs', costs, module, evaluator)
    if isinstance(main, NSGA2) and main.population_size >= settings.search_budget:
        _logger.warning(
            'search=%r draws its first %d networks at random, so search_budget=%d should be several times that.',
            main, main.population_size, settings.search_budget,
        )  # fmt: skip
    try:
        args, kwargs = copy.deepcopy(getattr(main, ARGUMENTS))
        unused = type(main)(*args, **kwargs)
    except Exception:  # it cannot be made again, so it cannot be tried
        return
    engine = _FirstOnly(SubSpace.of(supernet))
    try:
        with _told_if_long(main, supernet, engine), seeded(settings.seed), quiet():
            unused(InheritedModel(supernet, None), engine)  # as in the search
    except Exception as error:
        reason = f'{type(error).__name__}: {str(error).strip()}'.splitlines()[0]
        raise ValueError(f'search={main!r} cannot run on {type(supernet).__name__}: {reason}') from error
    if not engine.submitted:
        raise ValueError(f'search={main!r} submits no architecture of {type(supernet).__name__}.')
    if engine.found and engine.submitted > MANY_TRIES:
        _logger.warning(
            'search=%r does not look at constraints and filter: its architecture number %d is the first that keeps to '
            'them, so it will take long. The default, and Random, do.', main, engine.submitted,
        )  # fmt: skip
    if not engine.found:
        raise ValueError(
            f'search={main!r} does not look at constraints and filter: none of its first {engine.submitted:,} '
            'architectures keeps to them. Take the default, or Random, which do.'
        )


@contextmanager
def _told_if_long(search: Strategy, supernet: ModelSpace, engine: _FirstOnly) -> Iterator[None]:
    """Inside, warn if a search does not come to a first architecture: its own loop cannot be ended here."""

    def tell() -> None:
        if not engine.submitted:
            _logger.warning(
                'search=%r has not come to a first architecture of %s in %g s, and is still at it: one that tries all '
                'combinations, as GridSearch, may take for ever to find one that goes with the constraints between '
                'choices. Ctrl-C ends it. The default, and Random, take no time.',
                search, type(supernet).__name__, engine.seconds,
            )  # fmt: skip

    timer = threading.Timer(engine.seconds, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _FirstOnly(SequentialExecutionEngine):
    """Take samples until one is in the space, and do not run it.

    Tuners of NNI take a second for each, hence the limit of time.
    """

    patience, seconds = 2000, 60.0

    def __init__(self, space: SubSpace):
        super().__init__()
        self.space, self.submitted, self.found = space, 0, False
        self.begun = time.monotonic()

    def submit_models(self, *models: RawFormatModelSpace) -> None:
        for model in models:
            self.submitted += 1
            self.found |= model.sample in self.space
            self.dispatch_model_event(TrainingEndEvent(model, ModelStatus.Invalid))

    def budget_available(self) -> bool:
        in_time = not self.submitted or time.monotonic() - self.begun < self.seconds
        return not self.found and self.submitted < self.patience and in_time
