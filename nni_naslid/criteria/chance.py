"""Whether a network knows anything yet: what it says of a sample must fit better than what it says of another one."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, NamedTuple

from nni_naslid.criteria.criterion import Context
from nni_naslid.run.text import rounded
from nni_naslid.train.data import Batches, Inputs, as_validation, copied, loaders, own_data, tensors_in
from nni_naslid.train.path import SubSupernetModule, forget_paths
from nni_naslid.train.rng import seeded
from nni_naslid.train.validation import validate, validation_trainer
from nni_naslid.traits.places import Place, n_samples
from nni_naslid.traits.prefix import wrapped
from nni_naslid.traits.profile import untouched

import torch
from numpy.random import RandomState
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ['PERMUTATIONS', 'Chance', 'chance_level', 'why_at_chance']

_logger = logging.getLogger(__name__)

CHANCE = 1_000_003  # keeps its random stream apart from others of a node; no node has such a number
CHANCE_PATHS = 8  # with a batch of validation each
PERMUTATIONS = 19  # the network is better than all of them by chance in one of 20 cases


class Chance(NamedTuple):
    """A metric, and how many of :data:`PERMUTATIONS` random assignments of outputs to samples are as good."""

    metric: float
    as_good: int

    @property
    def is_at_chance(self) -> bool:
        """Whether the network may know nothing: p > .05."""
        return self.as_good > 0

    def describe(self, monitor: str) -> str:
        """In one line."""
        return (
            f'at chance level ({monitor} {rounded(self.metric, 4)}; {self.as_good} of {PERMUTATIONS} random '
            'assignments of its outputs to samples are as good)'
        )


def why_at_chance(context: Context, places: Mapping[str, Place]) -> str | None:
    """Why no split of a node is looked for, for people: it is at chance level. ``None`` if that is not so, or unknown.

    Parameters
    ----------
    context
        The node.
    places
        Where the supernet has the samples: see :func:`chance_level`.
    """
    evaluator = context.evaluator
    with seeded(*context.seed, CHANCE, data=own_data(evaluator)) as random_state:
        limit = evaluator.trainer.limit_val_batches
        n_batches = min(limit, CHANCE_PATHS) if isinstance(limit, int) else CHANCE_PATHS
        batches = list(islice(loaders(evaluator)[1], n_batches))
        n_rounds = math.ceil(CHANCE_PATHS / max(len(batches), 1))
        data = as_validation(evaluator, Batches(batches * n_rounds))
        # Each batch has a random path.
        sampling = SubSupernetModule(context.module.training_module, context.subspace, context.seed)

        def measure() -> float:
            with isolate_rng():
                trainer = validation_trainer(evaluator, limit_val_batches=1.0)
                return validate(trainer, sampling, data)[0][context.monitor]

        chance = chance_level(context.supernet, measure, places, context.mode, random_state, n_rounds)
        forget_paths(sampling)
    return chance.describe(context.monitor) if chance is not None and chance.is_at_chance else None


def chance_level(
    supernet: nn.Module,
    measure: Callable[[], float],
    places: Mapping[str, Place],
    mode: str,
    random_state: RandomState,
    n_rounds: int = 1,
) -> Chance | None:
    """Compare a metric with what it is where outputs of the network are assigned to samples at random.

    An exact permutation test: if outputs say nothing about what belongs to a sample, they could as well be those of any
    other sample of the batch, so the metric is better than all of 19 such assignments in one of 20 cases only. Nothing
    is assumed of the metric, but that it depends on which output belongs to which sample.

    The network computes once, as in profiles: batch norms by the statistics of the batch, for the running ones of a
    supernet are a mixture of all its paths. No trace is left: see :func:`~nni_naslid.traits.profile.untouched`.

    Parameters
    ----------
    supernet
        The network.
    measure
        Calls the network on some batches, and returns the metric; always the same ones in the same order.
    places
        Where the network has the samples in what it takes: see :func:`~nni_naslid.traits.places.find_places`.
    mode
        Whether ``'max'`` or ``'min'`` is good.
    random_state
        Source of the permutations.
    n_rounds
        How often ``measure`` goes through the same batches, on other paths. What is assigned to a sample is then what
        all these paths say of another one.

    Returns
    -------
    ``None`` where there is no such test: no output of the network has as many entries in a dimension as there are
    samples, or there are too few samples in a batch, or not the network but a copy of it is called, or all assignments
    give the same metric (batches of one class, or a network that computes its loss itself).
    """
    outputs: list[Any] = []
    counts: list[int] = []

    def record(module: nn.Module, forward: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            counts.append(_count(Inputs(args, kwargs), places))
            for each in module.modules():
                if isinstance(each, _BatchNorm):
                    each.train(counts[-1] > 1)  # Lightning has put all into the mode of evaluation
            output = forward(*args, **kwargs)
            outputs.append(copied(output))
            return output

        return run

    def say_again(given: list[Any]) -> Callable:
        left = iter(given)
        return lambda module, forward: lambda *args, **kwargs: copied(next(left))

    with untouched(supernet):
        with wrapped([supernet], record):
            metric = measure()
        dims = [[_dim(tensor.shape, n) for tensor in tensors_in(o)] for o, n in zip(outputs, counts, strict=True)]
        once = counts[: len(counts) // n_rounds]
        of_samples = [n for n, found in zip(once, dims, strict=False) if any(dim is not None for dim in found)]
        if once * n_rounds != counts or math.prod(map(math.factorial, of_samples)) <= PERMUTATIONS:
            _logger.debug('Chance level is not known: %d of %d outputs are of samples.', len(of_samples), len(once))
            return None
        others: list[float] = []
        for _ in range(PERMUTATIONS):
            orders = [torch.tensor(random_state.permutation(n)) for n in once] * n_rounds
            with wrapped([supernet], say_again(list(map(_permuted, outputs, dims, orders)))):
                others.append(measure())
    if all(math.isclose(other, metric, rel_tol=1e-4) for other in others):  # but for the order of sums
        _logger.debug('Chance level is not known: the metric does not depend on which output belongs to which sample.')
        return None
    # What is not a number is not better.
    return Chance(metric, sum(not (metric > other if mode == 'max' else metric < other) for other in others))


def _count(inputs: Inputs, places: Mapping[str, Place]) -> int:
    """How many samples a network is called with."""
    n = n_samples(inputs, places)
    return next((t.shape[0] for t in tensors_in(inputs) if t.ndim), 0) if n is None else n


def _dim(shape: torch.Size, n: int) -> int | None:
    """Which dimension counts the samples."""
    return next((dim for dim, size in enumerate(shape) if size == n), None)


def _permuted(output: Any, dims: list[int | None], order: torch.Tensor) -> Any:
    """An output with its samples in another order."""
    swapped = {
        id(tensor): tensor if dim is None else tensor.index_select(dim, order.to(tensor.device))
        for tensor, dim in zip(tensors_in(output), dims, strict=True)
    }
    return copy.deepcopy(output, swapped)
