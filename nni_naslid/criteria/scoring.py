"""Zero-cost scores of all candidates of a node, repeat by repeat; what is finished survives a kill."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any

from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.matching import each_batch
from nni_naslid.criteria.notes import kept_repeats
from nni_naslid.criteria.zero_cost_scores import naswot, snip, synflow
from nni_naslid.run.checks import brief
from nni_naslid.run.files import append_line
from nni_naslid.run.identity import identity
from nni_naslid.run.spec import imported
from nni_naslid.train.data import Inputs, copied, loaders, on_device, take_batches
from nni_naslid.train.path import PathModule, labels_read, set_path
from nni_naslid.train.validation import supernet_inputs
from nni_naslid.traits.costs import N_NEIGHBORS, lid_places
from nni_naslid.traits.lid_score import by_lid
from nni_naslid.traits.places import Place
from nni_naslid.traits.profile import untouched

import numpy as np
import torch
from nni.mutable import Sample
from torch import Tensor, nn
from tqdm.auto import tqdm

__all__ = ['Scoring', 'as_profiles', 'candidate_scores', 'check_score', 'name_non_finite']

_logger = logging.getLogger(__name__)

OF_NETWORKS = {'naswot': naswot, 'synflow': synflow}
SUMS = ('synflow', 'snip')  # which go over orders of magnitude
TAIL = 0.05  # a path that nothing flows through is so far from all others that nothing else would be seen


class Scoring:
    """The scores of the candidates of a node, computed when they are asked for.

    All batches (of training) and paths are drawn beforehand, so a repeat is the same however many there will be. What
    the notes of the same node and weights have is not computed again.

    Parameters
    ----------
    context
        The node.
    score
        See :class:`~nni_naslid.criteria.zero_cost.ZeroCost`.
    limit
        The largest number of repeats.
    """

    def __init__(self, context: Context, score: str, limit: int):
        self.context = context
        self.score = score
        self._known = kept_repeats(context, 'scores')
        self._batches = take_batches(loaders(context.evaluator)[0], limit)
        self._paths = [context.subspace.sample_to_compare(context.random_state) for _ in self._batches]

    def scores(self, n_repeats: int) -> dict[str, Tensor]:
        """Scores ``[R, C]`` of the candidates of each label in the first ``R`` repeats."""
        context, labels = self.context, self.context.subspace.splittable
        missing = [i for i in range(n_repeats) if i not in self._known]
        if missing:
            description = f'{self.score} of node {context.name}'
            bar = iter(tqdm(missing, desc=description, unit='repeat', leave=False, disable=None))

            def compute(score_of: Callable[[Sample], float]) -> None:
                i = next(bar)
                read = labels_read(context.supernet, self._paths[i])
                self._known[i] = candidate_scores(score_of, self._paths[i], labels, read)
                append_line(context.notes, {**context.about, 'repeat': i, 'scores': self._known[i]})

            _each_batch(context, self.score, [self._batches[i] for i in missing], compute)
            next(bar, None)  # which takes it away
        return {
            label: torch.tensor([self._known[i][label] for i in range(n_repeats)], dtype=torch.float64)
            for label in labels
        }


def check_score(context: Context, score: str) -> dict[str, Any]:
    """Compute the scores of the smallest and the largest path once.

    Returns
    -------
    What the code of a user's function is; of which layers LID is taken.

    Raises
    ------
    ValueError
        If there is no such function, or if it fails or returns no number.
    """

    def compute(score_of: Callable[[Sample], float]) -> None:
        scores = {score_of(sample) for sample in context.subspace.extremes}
        if len(scores) == 1:  # such as SynFlow of a space whose ReLU6 saturate
            _logger.warning('ZeroCost: %s is %g of the smallest and of the largest network.', score, *scores)

    found: dict[str, Any] = {'code': identity(imported(score, 'score'))} if '.' in score else {}
    if score == 'lid':
        places = lid_places(context.evaluator, context.module, context.subspace)
        found['places'] = {name: list(place) for name, place in places.items()}
        context = replace(context, checked=found)
    _each_batch(context, score, take_batches(loaders(context.evaluator)[0], 1), compute)
    return found


def candidate_scores(
    score_of: Callable[[Sample], float], sample: Sample, labels: Mapping[str, Sequence[Any]], read: Collection[str]
) -> dict[str, list[float]]:
    """Scores of the candidates of each label, put in place of the choice of one path.

    Parameters
    ----------
    score_of
        Gives the score of a path.
    sample
        The path.
    labels
        The candidates of each label.
    read
        The labels that make a difference to the path; candidates of others all have its score.
    """
    of_path = score_of(sample)
    return {
        label: [
            of_path
            if label not in read or repr(candidate) == repr(sample[label])
            else score_of({**sample, label: candidate})
            for candidate in candidates
        ]
        for label, candidates in labels.items()
    }


def as_profiles(scores: Mapping[str, Tensor], score: str) -> dict[str, Tensor]:
    """Scores ``[R, C]`` of each label as profiles ``[R, C, 1]``, in standard deviations of all of them.

    Sums that go over orders of magnitude enter by ``log(1 + s)``. What is not between the 5 % and the 95 % quantile
    counts as these, and what is not finite as the lower one. Profiles are compared by the logarithm of one more, in
    which only differences count, so they are the exponential, less one.

    Raises
    ------
    RuntimeError
        If no score is finite.
    """
    values = torch.cat([each.flatten() for each in scores.values()])
    is_finite = values.isfinite()
    if not is_finite.any():
        raise RuntimeError(f'No path has a finite {score}.')
    values = values.log1p() if score in SUMS else values
    low, high = (np.quantile(values[is_finite], TAIL), np.quantile(values[is_finite], 1 - TAIL))
    values = torch.where(is_finite, values, low).clamp(low, high) - low
    unit = values.std(correction=0)
    parts = (values / torch.where(unit > 0, unit, 1)).expm1().split([each.numel() for each in scores.values()])
    return {label: part.view(*scores[label].shape, 1) for label, part in zip(scores, parts, strict=True)}


def name_non_finite(scores: Mapping[str, Tensor], labels: Mapping[str, Sequence[Any]], score: str) -> None:
    """Log the candidates whose score is not finite more often than that of the others of their label."""
    for label, found in scores.items():
        share = (~found.isfinite()).double().mean(0)  # [C]
        for candidate, value in zip(labels[label], share.tolist(), strict=True):
            if value > share.min():
                _logger.warning(
                    '%s is not finite with %s for %s in %.0f %% of the repeats; it counts as the lowest.',
                    score, candidate, label, 100 * value,
                )  # fmt: skip


def _each_batch(
    context: Context, score: str, batches: Sequence[Any], function: Callable[[Callable[[Sample], float]], None]
) -> None:
    """Call a function in turn for each batch, with what gives the score of a path."""
    if score == 'snip':

        def on_batch(module: PathModule, batch: Any, batch_idx: int) -> None:
            def snip_of(sample: Sample) -> float:
                set_path(module, sample)
                return snip(module, batch, batch_idx)

            function(snip_of)

        each_batch(context, batches, on_batch)
        return
    supernet, device = context.supernet, context.evaluator.trainer.strategy.root_device
    set_path(context.module, context.subspace.extremes[0])  # any path: for what the module gives it
    inputs = supernet_inputs(context.evaluator, context.module, batches)
    supernet.to(device)  # Lightning has taken it to the CPU
    try:
        for given in inputs:
            function(_score_of(context, score, on_device(given, device)))
    finally:
        supernet.cpu()


def _score_of(context: Context, score: str, given: Inputs) -> Callable[[Sample], float]:
    supernet = context.supernet
    if score == 'lid':
        places = {name: Place(*place) for name, place in context.checked['places'].items()}
        return by_lid(supernet, places, [given], N_NEIGHBORS)
    compute = OF_NETWORKS.get(score) or partial(_score_of_user, score, imported(score, 'score'))

    def score_of(sample: Sample) -> float:
        set_path(supernet, sample)
        return compute(supernet, given)

    return score_of


def _score_of_user(name: str, function: Callable[[nn.Module, Any], Any], network: nn.Module, inputs: Inputs) -> float:
    """What a function of the user's returns; what it does to the network is undone.

    Raises
    ------
    ValueError
        If it raises an error, or returns no number.
    """
    inputs = copied(inputs)
    given = inputs.args[0] if len(inputs.args) == 1 and not inputs.kwargs else inputs
    before = [(weight, weight.data, weight.detach().clone(), weight.grad) for weight in network.parameters()]
    try:
        with untouched(network), torch.enable_grad():
            for weight, *_ in before:
                weight.grad = None
            value = function(network, given)
    except Exception as error:
        reason = ' '.join(str(error).split())
        raise ValueError(f'score: {name} raised {type(error).__name__}: {reason}') from error
    finally:
        for weight, data, values, grad in before:
            weight.data = data.copy_(values)
            weight.grad = grad
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f'score: {name} must return a number, but returned {brief(value)}.')
    return float(value)
