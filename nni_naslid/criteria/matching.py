"""How alike the gradients are that candidates give to the weights they share, repeat by repeat."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.notes import kept_repeats
from nni_naslid.run.checks import brief
from nni_naslid.run.files import append_line
from nni_naslid.train.data import Batches, as_validation, loaders, take_batches
from nni_naslid.train.path import PathModule, forget_paths, labels_read, set_path
from nni_naslid.train.validation import validate, validation_trainer
from nni_naslid.traits.profile import untouched

import pytorch_lightning as pl
import torch
from nni.mutable import Sample
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from tqdm.auto import tqdm

__all__ = [
    'Matching', 'candidate_similarities', 'check_loss', 'each_batch', 'gradient', 'gradient_similarity', 'loss_of',
]  # fmt: skip

Gradients = Sequence[Tensor | None]  # one for each weight; None of a weight that is not used


class Matching:
    """The similarities of the candidates of a node, computed when they are asked for.

    All batches (of training) and paths are drawn beforehand, so a repeat is the same however many there will be. What
    the notes of the same node and weights have is not computed again.

    Parameters
    ----------
    context
        The node.
    limit
        The largest number of repeats.
    similarity
        See :func:`gradient_similarity`.
    """

    def __init__(self, context: Context, limit: int, similarity: str):
        self.context = context
        self.similarity = similarity
        self._known = kept_repeats(context, 'similarities')
        self._batches = take_batches(loaders(context.evaluator)[0], limit)
        self._paths = [context.subspace.sample_to_compare(context.random_state) for _ in self._batches]

    def similarities(self, n_repeats: int) -> dict[str, Tensor]:
        """Similarities ``[R, C, C]`` of the candidates of each label in the first ``R`` repeats."""
        context, labels = self.context, self.context.subspace.splittable
        missing = [i for i in range(n_repeats) if i not in self._known]
        if missing:
            bar = iter(
                tqdm(missing, desc=f'Gradients of node {context.name}', unit='repeat', leave=False, disable=None)
            )

            def compare(module: PathModule, *batch: Any) -> None:
                i = next(bar)
                read = labels_read(context.supernet, self._paths[i])
                gradient_of = _gradients(module, *batch)
                found = candidate_similarities(gradient_of, self._paths[i], labels, read, self.similarity)
                self._known[i] = {label: values.tolist() for label, values in found.items()}
                append_line(context.notes, {**context.about, 'repeat': i, 'similarities': self._known[i]})

            each_batch(context, [self._batches[i] for i in missing], compare)
            next(bar, None)  # which takes it away
        return {
            label: torch.tensor([self._known[i][label] for i in range(n_repeats)], dtype=torch.float64)
            for label in labels
        }


def check_loss(context: Context) -> None:
    """Compute the gradients of the smallest and the largest path once.

    Raises
    ------
    ValueError
        If ``training_step`` of the user's module returns no loss with a gradient, or raises an error.
    """
    batches = take_batches(loaders(context.evaluator)[0], 1)

    def compute(module: PathModule, *batch: Any) -> None:
        for sample in context.subspace.extremes:
            _gradients(module, *batch)(sample)

    each_batch(context, batches, compute)


def candidate_similarities(
    gradient_of: Callable[[Sample], Gradients],
    sample: Sample,
    labels: Mapping[str, Sequence[Any]],
    read: Collection[str],
    similarity: str,
) -> dict[str, Tensor]:
    """How alike the gradients are of the candidates of each label, put in place of the choice of one path.

    The gradients of one label are in memory at a time, and that of the path.

    Parameters
    ----------
    gradient_of
        Gives the gradients of a path.
    sample
        The path.
    labels
        The candidates of each label.
    read
        The labels that make a difference to the path; candidates of others are all the same.
    similarity
        See :func:`gradient_similarity`.

    Returns
    -------
    For each label, similarities of shape ``[C, C]``, float64.
    """
    found = {}
    of_path = gradient_of(sample)
    for label, candidates in labels.items():
        found[label] = torch.ones(len(candidates), len(candidates), dtype=torch.float64)
        seen: list[Gradients] = []
        for j, candidate in enumerate(candidates if label in read else ()):
            is_of_path = repr(candidate) == repr(sample[label])
            seen.append(of_path if is_of_path else gradient_of({**sample, label: candidate}))
            for i in range(j):
                found[label][i, j] = found[label][j, i] = gradient_similarity(seen[i], seen[j], similarity)
    return found


def gradient_similarity(one: Gradients, other: Gradients, similarity: str = 'cosine') -> Tensor:
    r"""How alike two gradients are, over all weights that have one in both.

    .. math:: \mathrm{cosine} = \frac{a \cdot b}{|a| \, |b|}, \qquad
              \mathrm{l2} = 1 - \frac{|a - b|^2}{|a|^2 + |b|^2} = \frac{2 \, a \cdot b}{|a|^2 + |b|^2}

    Parameters
    ----------
    one, other
        A gradient for each weight; ``None`` where the weight is not used.
    similarity
        ``'cosine'`` and ``'l2'`` of all weights as one vector; ``'per_filter'`` is the mean cosine of all output
        filters, the first dimension of weights of two or more.

    Returns
    -------
    Similarity, float64, in ``[-1, 1]``; 0 where one gradient is zero or something is not finite, 1 where both are zero
    or no weight is shared. Filters that are zero in both do not count.

    Examples
    --------
    >>> one, other = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    >>> round(gradient_similarity([one, None], [other, one]).item(), 4)
    0.96
    """
    shared = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if similarity == 'per_filter':
        shared = [(a.flatten(1), b.flatten(1)) for a, b in shared if a.ndim > 1]
        sums = [(_dot(a, b), _dot(a, a), _dot(b, b)) for a, b in shared]
        dot, of_one, of_other = (torch.cat(each) for each in zip(*sums, strict=True)) if sums else torch.zeros(3, 1)
    else:
        shared = [(a.flatten(), b.flatten()) for a, b in shared]
        sums = [(_dot(a, b), _dot(a, a), _dot(b, b)) for a, b in shared]
        dot, of_one, of_other = (sum(each)[None] for each in zip(*sums, strict=True)) if sums else torch.zeros(3, 1)
    scale = (of_one + of_other) / 2 if similarity == 'l2' else of_one.sqrt() * of_other.sqrt()
    alike = (dot / scale).nan_to_num(0, 0, 0).clamp(-1, 1)
    counts = of_one + of_other != 0
    mean = alike.sum() / counts.sum().clamp_min(1)
    return torch.where(counts.any(), mean, 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Of vectors, or of rows; float64."""
    a, b = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (a, b))
    return (a @ b if a.ndim == 1 else (a * b).sum(1)).double()


def gradient(loss: Callable[[], Tensor], weights: Sequence[Tensor]) -> Gradients:
    """The gradients of a loss; those that the weights have already are left alone, and so are random generators."""
    with torch.enable_grad(), isolate_rng():  # all candidates draw the same random numbers
        return torch.autograd.grad(loss(), weights, allow_unused=True)


def loss_of(module: pl.LightningModule, batch: Any, batch_idx: int = 0) -> Tensor:
    """The loss that ``training_step`` returns of a batch.

    Raises
    ------
    ValueError
        If it returns no loss with a gradient, or cannot be called outside of training.
    """
    name = type(getattr(module, 'training_module', module)).__name__
    try:
        returned = module.training_step(batch, batch_idx)
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(f'training_step of {name} cannot be called outside of training: {error!r}') from error
    loss = returned.get('loss') if isinstance(returned, Mapping) else returned
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise ValueError(f'training_step of {name} must return a loss with a gradient, but returned {brief(loss)}.')
    return loss.sum()


def _gradients(module: PathModule, batch: Any, batch_idx: int) -> Callable[[Sample], Gradients]:
    """What gives the gradients of a path by the loss of a batch."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]

    def gradient_of(sample: Sample) -> Gradients:
        set_path(module, sample)
        return gradient(partial(loss_of, module, batch, batch_idx), weights)

    return gradient_of


def each_batch(context: Context, batches: Sequence[Any], function: Callable[[PathModule, Any, int], None]) -> None:
    """Call a function in turn for each batch, with a module that does what the user's does in training, and its number.

    The module is in the mode of training; afterwards it is as it was.
    """
    module = _Steps(context.module.training_module, function)
    before = [(weight, weight.grad) for weight in module.parameters()]  # Lightning clears them
    try:
        with untouched(module):
            module.train()
            trainer = validation_trainer(context.evaluator, limit_val_batches=1.0)
            validate(trainer, module, as_validation(context.evaluator, Batches(batches)))
    finally:
        for weight, grad in before:
            weight.grad = grad
        forget_paths(module)


class _Steps(PathModule):
    """Does something else with each batch where the user's module would validate it, and logs nothing.

    So batches are moved to the device, and changed there, by all hooks that the user has for that.
    """

    def __init__(self, training_module: pl.LightningModule, function: Callable[[PathModule, Any, int], None]):
        super().__init__(training_module)
        self.function = function
        for name in dir(pl.LightningModule):
            if name.startswith('on_validation'):  # they may expect that there were steps, or change modes
                setattr(self, name, lambda *args: None)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Not of a path that nobody trains."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.function(self, batch, batch_idx)
