"""The search over the leaves, after training: by a strategy of NNI, on inherited weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from nni_naslid.run.files import read_json, write_json
from nni_naslid.run.identity import identity
from nni_naslid.run.pareto import order_by_rank, pareto_ranks
from nni_naslid.run.progress import tenth
from nni_naslid.run.run import Run
from nni_naslid.run.text import rounded
from nni_naslid.search.calibration import calibration_batches_of
from nni_naslid.search.nsga2 import costs_of_search
from nni_naslid.search.score import InheritedModel, LeafScorer
from nni_naslid.space.subspace import SubSpace
from nni_naslid.space.tree import Node
from nni_naslid.train.loggers import log_scalars, loggers_of
from nni_naslid.train.reports import current_trial, quiet
from nni_naslid.train.rng import seeded
from nni_naslid.traits.costs import codes_of

import nni
from nni.mutable import Sample
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.execution.event import ModelEventType, TrainingEndEvent
from nni.nas.space import ModelStatus
from nni.nas.strategy import RegularizedEvolution
from nni.nas.strategy.base import Strategy
from nni.nas.strategy.middleware import Chain, Filter
from tqdm.auto import tqdm

__all__ = ['SEARCH', 'filter_of', 'read_search', 'run_search']

_logger = logging.getLogger(__name__)

SEARCH = 1_000_002  # keeps random streams apart; no node has such a path


def identify(run: Run, root: Node) -> dict[str, Any]:
    """What the outcome of a search of a tree depends on."""
    chosen = {name: getattr(run.settings, name) for name in ('search_budget', 'monitor', 'mode')}
    chosen['calibration_batches'] = calibration_batches_of(run, root)
    # Without these, searches of earlier versions are the same.
    prior, costs = run.settings.prior, costs_of_search(run.search)
    functions = codes_of(dict.fromkeys([*(prior or ()), *costs]))
    added = {'prior': prior, 'costs': costs, 'functions': functions}
    chosen |= {name: value for name, value in added.items() if value}
    return {'run': run.id, 'search': identity(run.search), **chosen, 'weights': root.weights_of_leaves}


def run_search(run: Run, root: Node, subnets: InheritedModel) -> None:
    """Search the union of the leaves, that is the whole space, and write ``search.json``.

    Parameters
    ----------
    run, root
        The run and its tree.
    subnets
        The space, with a :class:`~nni_naslid.search.score.LeafScorer`, which keeps what it has scored: a search that
        was killed goes through the same samples again, without scoring them again.

    Raises
    ------
    RuntimeError
        If no sub-network has a score.
    """
    settings, search, subspace = run.settings, run.search, SubSpace.of(run.supernet)
    depends_on = identify(run, root)
    if subnets.evaluator.n_outdated:
        _logger.info(
            'Leaves have been trained again: %d scores of their old weights are not used, those networks are scored '
            'again.', subnets.evaluator.n_outdated,
        )  # fmt: skip
    if run.folder.search.exists():
        others = ' and '.join(_changed(read_json(run.folder.search, ()), depends_on))
        _logger.info('%s is of a search that differs in %s: the search is done anew.', run.folder.search, others)
    if settings.calibration_batches is None:
        _logger.info('Search: batch norms of each network are recalibrated on %d training batches.',
                     depends_on['calibration_batches'])  # fmt: skip
    engine = _Networks(settings.search_budget, subnets.evaluator, subspace)
    if search is None:
        search = RegularizedEvolution(
            population_size=50,
            sample_size=10,
            mutation_prob=max(0.05, 1 / len([*subspace.splittable, *subspace.unsplittable])),
            seed=settings.seed,
        )
    _maximize(search)
    with tqdm(total=settings.search_budget, desc='Searching', unit='subnet', leave=False, disable=None) as bar:
        engine.register_model_event_callback(ModelEventType.TrainingEnd, _Report(bar, engine))
        with seeded(settings.seed, SEARCH), quiet(), current_trial():
            search(subnets, engine)
    if engine.has_given_up:
        _logger.info('The search ends after %d networks of %d: %d architectures brought no other.',
                     len(engine.networks), engine.budget, engine.without_news + engine.n_invalid)  # fmt: skip
    elif len(engine.networks) < engine.budget:
        _logger.info('The search has ended by itself after %d networks of %d.', len(engine.networks), engine.budget)
    found = [
        {
            'score': model.metric,
            'sample': subspace.encode(model.sample),
            'choices': model.sample,
            **subnets.evaluator.parts(model.sample),
        }
        for model in engine.networks.values()
        if model.metric is not None
    ]
    found, best = _in_order(found, costs := costs_of_search(search))
    if not all(map(math.isfinite, best)):
        raise RuntimeError(
            f'None of the {len(found)} sub-networks that were scored has a finite '
            f'{" and ".join([settings.monitor, *costs])}. Has training diverged?'
        )
    write_json(run.folder.search, {**depends_on, 'found': found})


def _in_order(found: list[dict[str, Any]], costs: list[str]) -> tuple[list[dict[str, Any]], list[float]]:
    """What a search has found, the best first, and what counts of the first one, less is better.

    That is the score; with costs, each gets its ``'rank'``: see :func:`~nni_naslid.run.pareto.pareto_ranks`.
    """
    points = [[-each['score'], *(each[name] for name in costs)] for each in found]
    if not found:
        return [], [math.inf]
    if costs:
        found = [{**each, 'rank': int(rank)} for each, rank in zip(found, pareto_ranks(points), strict=True)]
        order = order_by_rank(points)
    else:
        order = sorted(range(len(found)), key=lambda i: points[i][0])
    return [found[i] for i in order], points[order[0]]


def _maximize(search: Strategy) -> None:
    """Let a tuner that is a search look for the largest scores, as ours are: NNI's minimise by default."""
    tuner = getattr(search[0] if isinstance(search, Chain) else search, 'tuner', None)
    mode = getattr(tuner, 'optimize_mode', None)
    if getattr(mode, 'value', None) == 'minimize':
        tuner.optimize_mode = type(mode)('maximize')


def filter_of(search: Strategy | None) -> Callable[[InheritedModel], bool] | None:
    """What the filters of a search let pass; ``None`` if that cannot be told, as of a search that is not NNI's."""
    middlewares = [search[i] for i in range(1, 1 + len(search._middlewares))] if isinstance(search, Chain) else []
    main = search[0] if isinstance(search, Chain) else search
    if any(type(part).__module__.partition('.')[0] != 'nni' for part in (*middlewares, main) if part is not None):
        return None
    filters = [middleware.filter_fn for middleware in middlewares if isinstance(middleware, Filter)]
    return lambda model: all(passes(model) for passes in filters)


class _Networks(SequentialExecutionEngine):
    """Runs what a search submits, and counts networks: two samples may describe the same one.

    What filter and limits of the space do not let pass is not run; the search is told that it is invalid, as by NNI's
    own ``Filter``.

    Attributes
    ----------
    networks
        The first model of each network.
    """

    patience = 500  # as NNI's Random has for duplicates
    patience_with_invalid = 20_000  # architectures that are not let pass, which cost nothing

    def __init__(self, budget: int, scorer: LeafScorer, subspace: SubSpace):
        super().__init__()
        self.budget = budget
        self.scorer = scorer
        self.subspace = subspace
        self.networks: dict[str, InheritedModel] = {}
        self.without_news = 0
        self.n_invalid = 0  # since the latest network

    def submit_models(self, *models: InheritedModel) -> None:
        for model in models:
            if model.sample not in self.subspace:
                self.n_invalid += 1
                self.dispatch_model_event(TrainingEndEvent(model, ModelStatus.Invalid))
                continue
            self.without_news += 1
            if self.networks.setdefault(self.scorer.network(model.sample), model) is model:
                self.without_news = self.n_invalid = 0
            super().submit_models(model)

    def budget_available(self) -> bool:
        return len(self.networks) < self.budget and not self.has_given_up

    @property
    def has_given_up(self) -> bool:
        """Whether the search has brought no other network for too long."""
        return self.without_news >= self.patience or self.n_invalid >= self.patience_with_invalid


def _changed(content: dict[str, Any], depends_on: dict[str, Any]) -> list[str]:
    """In what a search that is kept differs from this one."""
    return [key for key in {**depends_on, 'prior': None} if content.get(key) != depends_on.get(key)]


class _Report:
    """Count what is scored; tell of the best so far.

    The user's loggers get it with each network that is scored, not with those that a killed process has scored and
    told them of. NNI gets it a hundred times in all; where there is no bar, the log has it ten times.
    """

    def __init__(self, bar: tqdm, engine: _Networks):
        self.bar = bar
        self.engine = engine
        self.rhythm = max(1, engine.budget // 100)
        self.trial = nni.trial._params  # models that run in this process take its place
        self.best: InheritedModel | None = None
        self.loggers = loggers_of(engine.scorer.run.evaluator.trainer, 'search')
        self.n_logged = engine.scorer.n_scored

    def __call__(self, event: TrainingEndEvent) -> None:
        if self.engine.without_news or self.engine.n_invalid:
            return
        self.bar.update()
        model = event.model
        if model.metric is not None and (self.best is None or model.metric > self.best.metric):
            self.best = model
        if self.best is None:
            return
        scorer, budget, n = self.engine.scorer, self.engine.budget, len(self.engine.networks)
        monitor = scorer.run.settings.monitor
        value = scorer.metrics(self.best.sample)[monitor]
        if self.bar.disable and tenth(n, budget):
            what = 'best %s so far' if scorer.run.settings.prior is None else 'first so far has %s'
            _logger.info(f'Search: %d of %d scored; the {what} %s', n, budget, monitor, rounded(value, 4))
        if scorer.n_scored > self.n_logged:
            self.n_logged = scorer.n_scored
            log_scalars(self.loggers, 'search', {f'best_{monitor}': value}, n)
        if n % self.rhythm == 0:
            nni.trial._params = self.trial
            nni.report_intermediate_result(scorer.report(self.best.sample))


def read_search(run: Run, root: Node) -> list[tuple[Sample, float]] | None:
    """Samples and scores, in the order of the search, of a finished one; ``None`` if there is none with these settings.

    Nor if it is of other weights than the leaves have now.
    """
    if not run.folder.search.exists():
        return None
    depends_on = identify(run, root)
    content = read_json(run.folder.search, (*(set(depends_on) - {'prior', 'costs', 'functions'}), 'found'))
    if _changed(content, depends_on):
        return None
    subspace = SubSpace.of(run.supernet)
    return [(subspace.decode(each['sample']), each['score']) for each in content['found']]
