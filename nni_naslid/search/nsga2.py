"""A search for several things at once: networks that are good, and cheap.

The algorithm is Optuna's, asked for architectures and told what they are worth. What is ours is how a sample of NNI's
is written as choices of Optuna's, and that each network counts once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from nni_naslid import compat as compat  # before nni.nas
from nni_naslid.run.checks import integer
from nni_naslid.run.costs import cost_names
from nni_naslid.space.subspace import SubSpace

from nni.mutable import Categorical, Sample, SampleValidationError
from nni.nas.execution import ExecutionEngine
from nni.nas.space import ExecutableModelSpace
from nni.nas.strategy.base import Strategy
from nni.nas.strategy.middleware import Chain
from numpy.random import RandomState

if TYPE_CHECKING:
    from optuna.study import Study

__all__ = ['NSGA2', 'costs_of_search']

STALE = 50  # architectures in a row that bring no other network; the next ones are drawn from the space
PATIENCE = 5000  # of these, where the engine does not stop the search


class NSGA2(Strategy):
    """A search for networks that are good and cheap, by NSGA-II: ``NASLID(search=NSGA2(['flops']))``.

    The first population is drawn from the space. Then two of the best are crossed, and a choice is drawn anew: see
    :class:`optuna.samplers.NSGAIISampler`, whose defaults these are. The best are those that no other one beats in both
    metric and cost, then those that only these beat, and of equals those that are far from others.

    Samples that are the same network count once. What filter or constraints do not let pass is not scored.

    Parameters
    ----------
    costs
        What else counts, less is better: names as of a ``prior`` of :class:`~nni_naslid.strategy.NASLID`, such as
        ``['flops', 'parameters']``, functions of an architecture, or their full names, ``'module.function'``.
    population_size
        How many networks a generation has, at least 2. ``search_budget`` should be a multiple of it.
    seed
        Source of all that is random in it.

    Notes
    -----
    After the search ``export_top_models(n)`` has the front first, and of a front larger than ``n`` some that are spread
    over it; ``NASLID.pareto_front()`` is all of the front. The metric of a model is what NASLID ranks by: the monitored
    one, and with a ``prior`` the sum with that.

    Raises
    ------
    ValueError
        Naming the argument, if it cannot work.
    ImportError
        Without Optuna.

    Examples
    --------
    >>> NSGA2(['flops'], population_size=20)
    NSGA2(costs=['flops'], population_size=20, seed=0)
    """

    def __init__(self, costs: Sequence[str | Callable[[Sample], float]], *, population_size: int = 50, seed: int = 0):
        super().__init__()
        self.costs = cost_names('costs', costs)
        self.population_size = integer('population_size', population_size, 2)
        self.seed = integer('seed', seed, 0)
        if find_spec('optuna') is None:
            raise ImportError("NSGA2 needs Optuna: pip install 'nni-naslid[pareto]', or optuna.")

    def extra_repr(self) -> str:
        return f'costs={self.costs}, population_size={self.population_size}, seed={self.seed}'

    def _initialize(self, model_space: ExecutableModelSpace, engine: ExecutionEngine) -> ExecutableModelSpace:
        if model_space.evaluator is not None and not hasattr(model_space.evaluator, 'costs'):
            raise TypeError('NSGA2 searches a trained supernet: give it to NASLID(search=NSGA2(...)).')
        return model_space

    def _run(self) -> None:
        from optuna.distributions import CategoricalDistribution
        from optuna.trial import TrialState

        space, random_state = SubSpace.of(self.model_space.model_space), RandomState(self.seed)
        genes = {gene: CategoricalDistribution(range(n)) for gene, n in genes_of(space).items()}
        networks: set[str] = set()
        n_told = without_news = 0
        with _study(self.seed, self.population_size, len(self.costs)) as study:
            while self.wait_for_resource() and without_news < PATIENCE:
                if n_told < self.population_size or without_news >= STALE:
                    study.enqueue_trial(encode(space, space.sample(random_state)))
                trial = study.ask(genes)
                values = self._values(decode(space, trial.params), networks)
                without_news = 0 if values else without_news + 1
                n_told += bool(values)
                study.tell(trial, values, None if values else TrialState.FAIL)

    def _values(self, sample: Sample, networks: set[str]) -> list[float] | None:
        """Metric and costs of a new network; ``None`` of one that is known, or kept out, or where one is not finite."""
        try:
            model = self.model_space.freeze(sample)
        except SampleValidationError:  # by a constraint between choices, which crossing does not look at
            return None
        self.engine.submit_models(model)
        if model.metric is None or (network := model.evaluator.network(model.sample)) in networks:
            return None
        networks.add(network)
        values = [model.metric, *model.evaluator.costs(model.sample, self.costs).values()]
        return values if all(map(math.isfinite, values)) else None


@contextmanager
def _study(seed: int, population_size: int, n_costs: int) -> Iterator[Study]:
    """A study in memory; inside, Optuna says nothing but what is wrong."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        sampler = optuna.samplers.NSGAIISampler(population_size=population_size, seed=seed)
        yield optuna.create_study(directions=['maximize', *['minimize'] * n_costs], sampler=sampler)
    finally:
        optuna.logging.set_verbosity(before)


def genes_of(space: SubSpace) -> dict[str, int]:
    """The choices that Optuna makes, of so many each; every combination is a sample, whatever the filter says.

    A label of one choice has one. Of several there is one for each value if any number may be chosen: whether it is.
    If ``n`` are chosen, there are ``n``: which of the values that are left.
    """
    return {gene: n for label in space.mutables for gene, n in _genes(space, label).items() if n > 1}


def _genes(space: SubSpace, label: str) -> dict[str, int]:
    mutable = space.mutables[label]
    n = len(mutable.values)
    if isinstance(mutable, Categorical):
        return {label: n}
    if mutable.n_chosen is None:
        return {f'{label} [{i}]': 2 for i in range(n)}
    return {f'{label} [{i}]': n - i for i in range(mutable.n_chosen)}


def encode(space: SubSpace, sample: Sample) -> dict[str, int]:
    """A sample as choices of Optuna's, of which several choices of a label are one order of them."""
    found: dict[str, int] = {}
    for label, places in space.encode(sample).items():
        mutable, genes = space.mutables[label], _genes(space, label)
        if isinstance(mutable, Categorical):
            numbers = [places]
        elif mutable.n_chosen is None:
            numbers = [int(i in places) for i in range(len(mutable.values))]
        else:
            left = list(range(len(mutable.values)))
            numbers = [_taken(left, place) for place in sorted(places)]
        found |= {gene: number for (gene, n), number in zip(genes.items(), numbers, strict=True) if n > 1}
    return found


def _taken(left: list[int], place: int) -> int:
    """Where a place is among those that are left; it is no longer there."""
    number = left.index(place)
    del left[number]
    return number


def decode(space: SubSpace, numbers: dict[str, int]) -> Sample:
    """The sample that Optuna has chosen; several choices are in the order of the space."""
    places: dict[str, int | list[int]] = {}
    for label, mutable in space.mutables.items():
        of_label = [numbers.get(gene, 0) for gene in _genes(space, label)]
        if isinstance(mutable, Categorical):
            places[label] = of_label[0]
        elif mutable.n_chosen is None:
            places[label] = [i for i, chosen in enumerate(of_label) if chosen]
        else:
            left = list(range(len(mutable.values)))
            places[label] = sorted(left.pop(number) for number in of_label)
    return space.decode(places)


def costs_of_search(search: Strategy | None) -> list[str]:
    """What a search minimises beside its metric, by the names of costs; nothing, but of :class:`NSGA2`."""
    main = search[0] if isinstance(search, Chain) else search
    return main.costs if isinstance(main, NSGA2) else []
