"""How long networks take on the device at hand, and a table of what each choice adds to that."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from nni_naslid import compat as compat  # before nni.nas
from nni_naslid.run.checks import brief, integer
from nni_naslid.run.constraints import AND
from nni_naslid.space.additive import choices_of
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.path import labels_read
from nni_naslid.train.reads import conditions_of_labels
from nni_naslid.train.structure import structural_score
from nni_naslid.train.supernet import make_supernet
from nni_naslid.traits.passes import pass_seconds

import numpy as np
import torch
from nni.mutable import Sample
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.strategy import is_supernet
from numpy.random import RandomState
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from tqdm.auto import tqdm

__all__ = ['Latency', 'measure_latency']

_logger = logging.getLogger(__name__)

WARM_UP = 3  # passes that are not timed: memory is taken, libraries choose their kernels
PENALTIES = np.logspace(-3, 3, 13)
QUANTILES = 0.2, 0.5, 0.8
LEAST_PASSES = 5


@dataclass(frozen=True, eq=False)
class Latency:
    """Times of some networks of a space, and what they say of all others.

    Attributes
    ----------
    table
        By label and choice, as text, what the choice adds, in milliseconds, if the network reads it; and of labels
        together, ``'a & b'``, what combinations of their choices add. What all networks have in common is in the
        entries of one label. To be a ``constraints`` of :class:`~nni_naslid.strategy.NASLID`:
        ``{'latency': (None, 20, latency.table)}``.
    samples
        The networks that were timed.
    milliseconds
        For each of them the 20 %, 50 % and 80 % quantile of its passes, of shape ``[S, 3]``: of their ratios to
        passes of the first one, times the median of that.
    predicted
        What a table made without it says of each of them, ten-fold, of shape ``[S]``, in milliseconds.
    """

    table: dict[str, dict[str, float]]
    samples: list[Sample]
    milliseconds: np.ndarray
    predicted: np.ndarray

    @property
    def r2(self) -> float:
        """The share of the variance of times that the table explains, of networks it was not made from; 0 if none."""
        median = self.milliseconds[:, 1]
        return float(1 - np.mean((median - self.predicted) ** 2) / np.var(median)) if np.ptp(median) else 0.0

    @property
    def error(self) -> float:
        """By how much such a network is wrong in the median, as a share of its time."""
        median = self.milliseconds[:, 1]
        return float(np.median(abs(self.predicted - median) / median))

    def save(self, path: str | PathLike) -> None:
        """Write the table to a ``.json``, whose path ``constraints`` take, too."""
        Path(path).write_text(json.dumps(self.table, indent=1))

    def __repr__(self) -> str:
        low, high = self.milliseconds[:, 1].min(), self.milliseconds[:, 1].max()
        return (
            f'Latency({len(self.samples)} networks, {low:.3g} to {high:.3g} ms; of others: R2 {self.r2:.2f}, '
            f'wrong by {100 * self.error:.1f} % in the median)'
        )


def measure_latency(
    space: ModelSpace,
    inputs: Tensor | Sequence[Any],
    *,
    n_paths: int = 200,
    min_run_time: float = 0.1,
    seed: int = 0,
) -> Latency:
    """Time random networks of a space where their inputs are, and tell from that what each choice takes.

    Each network is the space frozen to an architecture, in evaluation mode and inference mode, with the weights that it
    happens to have. After a few passes for warming up, its passes are timed in turn with those of the first network,
    and their ratio is taken: a machine that others slow down for a while slows both. What a choice takes is fitted by
    ridge regression: on which choices a network reads, and on how many parameters it has in each place, to which the
    operations there are in proportion.

    Parameters
    ----------
    space
        A model space, before any strategy has made a supernet of it; it is left as it was.
    inputs
        What it is called with: a tensor, or its arguments in a row. The batch size and the device are those that the
        latency is of.
    n_paths
        How many networks are timed: a few times as many as all labels have choices together.
    min_run_time
        For how many seconds each is timed, with the first one, at least.
    seed
        Of the draw.

    Returns
    -------
    Latency
        Look at its ``r2`` and ``error`` before you rely on its table: on a busy machine it says little.

    Raises
    ------
    TypeError
        If ``space`` is no model space, or a supernet.
    ValueError
        If there are too few networks; if their parameters are no sum over choices, as those of NAS-Bench-101; or if one
        cannot be frozen or run: the message has its architecture.

    Examples
    --------
    >>> from nni.nas.hub.pytorch import NasBench201
    >>> space = NasBench201(stem_out_channels=8, num_modules_per_stack=1)
    >>> latency = measure_latency(space, torch.randn(1, 3, 16, 16), n_paths=10, min_run_time=0)
    >>> sorted(latency.table['cell/0_1'])
    ['avg_pool_3x3', 'conv_1x1', 'conv_3x3', 'none', 'skip_connect']
    """
    if not isinstance(space, ModelSpace) or is_supernet(space):
        kind = 'a supernet' if isinstance(space, ModelSpace) else brief(space)
        raise TypeError(f'space must be a model space of which no supernet was made, but is {kind}.')
    args = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    integer('n_paths', n_paths, 10)
    space = copy.deepcopy(space)
    supernet = make_supernet(copy.deepcopy(space))
    subspace, random_state = SubSpace.of(supernet), RandomState(seed)
    drawn = [subspace.sample(random_state) for _ in range(n_paths)]
    # Each network once: samples may differ in what is not read.
    samples = list({repr(subspace.canonical(each, labels_read(supernet, each))): each for each in drawn}.values())
    if len(samples) < 10:
        raise ValueError(f'At least 10 networks must be timed, but the space has only {len(samples)} or so.')
    columns = _Columns.of(supernet, subspace, samples)
    device = next((each.device for each in args if isinstance(each, Tensor)), None)
    ratios, of_first = [], []
    first: nn.Module | None = None
    for sample in tqdm(samples, desc='Timing', unit='network', leave=False, disable=None):
        try:
            network = space.freeze(dict(sample)).to(device).eval()
            first = network if first is None else first
            pairs = _timed_in_turn(first, network, args, device, min_run_time)
        except Exception as error:
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            raise ValueError(f'An architecture cannot be timed: {reason} ({sample}).') from error
        of_first.append(np.median(pairs[:, 0]))
        ratios.append(np.quantile(pairs[:, 1] / pairs[:, 0], QUANTILES))
    milliseconds = 1000 * np.median(of_first) * np.array(ratios)
    table, predicted = _fitted(columns, milliseconds[:, 1])
    latency = Latency(table, samples, milliseconds, predicted)
    _logger.info('%r', latency)
    return latency


def _timed_in_turn(
    first: nn.Module, second: nn.Module, args: Sequence[Any], device: torch.device | None, min_run_time: float
) -> np.ndarray:
    """Seconds of passes of two networks, one after the other, of shape ``[passes, 2]``."""
    with torch.inference_mode():
        for _ in range(WARM_UP):
            first(*args)
            second(*args)
        pairs: list[tuple[float, float]] = []
        start = time.perf_counter()
        while len(pairs) < LEAST_PASSES or time.perf_counter() - start < min_run_time:
            pairs.append(tuple(pass_seconds(each, args, device=device) for each in (first, second)))
    return np.array(pairs)


class _Columns(NamedTuple):
    """What times are told by: which choices a network reads, and how many parameters it has in each place.

    Attributes
    ----------
    entries
        For each column by label, or by labels together, the entries of a table that it counts in, and how often.
    features
        Of networks, of shape ``[S, columns]``.
    common
        A label that all networks read.
    """

    entries: list[tuple[str, dict[str, int]]]
    features: np.ndarray
    common: str

    @classmethod
    def of(cls, supernet: nn.Module, space: SubSpace, samples: Sequence[Sample]) -> _Columns:
        """Those of a space.

        Raises
        ------
        ValueError
            If parameters are no sum over choices, or no label is read by all networks.
        """
        terms = [term for term in structural_score(supernet, space, 'parameters', exact=True).terms if term.labels]
        choices = {label: choices_of(space, label) for label in space.mutables}
        sometimes = conditions_of_labels(supernet, space)
        if (common := next((label for label in choices if label not in sometimes), None)) is None:
            raise ValueError('No label is read by all networks: there is no entry for what they have in common.')
        single = [(label, place) for label, each in choices.items() for place in range(len(each))]
        entries = [(label, {str(choices[label][place]): 1}) for label, place in single]
        for term in terms:
            combinations = product(*(choices[label] for label in term.labels))
            texts = (AND.join(map(str, combination)) for combination in combinations)
            entries.append((AND.join(term.labels), dict(zip(texts, term.table.ravel().tolist(), strict=True))))
        features = []
        for sample in samples:
            at = {label: each.index(sample[label]) for label, each in choices.items()}
            read = labels_read(supernet, sample)
            features.append([
                *(label in read and at[label] == place for label, place in single),
                *(term.table[tuple(at[label] for label in term.labels)] for term in terms),
            ])  # fmt: skip
        return cls(entries, np.array(features, float), common)


def _fitted(columns: _Columns, values: np.ndarray) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """The table, and the value of each network by a table that was made without it."""
    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    predicted = cross_val_predict(model, columns.features, values, cv=KFold(10, shuffle=True, random_state=0))
    scaler, ridge = (step for _, step in model.fit(columns.features, values).steps)
    shares = ridge.coef_ / scaler.scale_
    base = ridge.intercept_ - shares @ scaler.mean_
    table: dict[str, dict[str, float]] = {}
    for (key, entries), share in zip(columns.entries, shares.tolist(), strict=True):
        for text, n in entries.items():
            of_key = table.setdefault(key, {})
            of_key[text] = of_key.get(text, 0.0) + share * n
    table[columns.common] = {text: share + float(base) for text, share in table[columns.common].items()}
    return table, predicted
