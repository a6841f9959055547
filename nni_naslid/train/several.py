"""One step of several paths: all see the same batch, and the step goes down the mean of their losses.

US-Net and BigNAS add the gradients of the paths up. Here they are averaged, as Lightning does for the batches of
``accumulate_grad_batches``: so the learning rate and the clipping that suit one path suit several. One loss is
returned, with which Lightning does what it does with any: so mixed precision, clipping, accumulation and DDP (for which
a step is one forward pass) work as for one path. The price is memory: the activations of all paths are held at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from nni_naslid.train.data import copied
from nni_naslid.train.rng import Generator, get_states, set_states

import torch
import torch.nn.functional as F
from nni.mutable import Sample
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

__all__ = ['check_logits', 'soft_loss', 'step_of_several']


def step_of_several(
    step: Callable[[Sample, Any], Any], paths: Sequence[Sample], batch: Any, module: nn.Module, distill: float
) -> Any:
    """What a training step of the user's returns, with the mean loss of several paths.

    Each path gets a copy of the batch, which the user's step may change, and begins with the same random numbers: what
    is augmented in a step is augmented alike for all. What the user logs in a step is logged for each path: the mean of
    an epoch is over all paths, and the value of a step is that of the last one.

    Parameters
    ----------
    step
        Calls the user's step with the supernet set to a path; it returns the loss, or a dict with it, or ``None``.
    paths
        The largest network first.
    batch
        As it comes from Lightning.
    module
        The user's module.
    distill
        The weight of soft labels: see :func:`soft_loss`. The loss of all paths but the first is ``1 - distill`` times
        the user's and ``distill`` times that. BigNAS has 1.

    Returns
    -------
    The loss; a dict, that of the first path with the mean loss, if that is what it returns; ``None`` if all paths do.

    Raises
    ------
    RuntimeError
        If the supernet was not called alike for all paths, or gives no logits.
    """
    own = {name: value for name, value in vars(module).items() if isinstance(value, Generator)}
    states = get_states(own)
    returned, losses, teacher = [], [], None
    for i, path in enumerate(paths):
        is_last = i == len(paths) - 1
        set_states(own, states)
        with nullcontext() if is_last else isolate_rng(), _calls_of(module.model) as outputs:
            output = step(path, batch if is_last else copied(batch))
        if distill and i == 0:
            teacher = [check_logits(logits).detach() for logits in outputs]
        if output is None:  # a step that the user leaves out
            continue
        loss = output['loss'] if isinstance(output, Mapping) else output
        if distill and i > 0:
            loss = (1 - distill) * loss + distill * soft_loss(outputs, teacher)
        returned.append(output)
        losses.append(loss)
    if not losses:
        return None
    mean = torch.stack(losses).mean()
    return {**returned[0], 'loss': mean} if isinstance(returned[0], Mapping) else mean


@contextmanager
def _calls_of(model: nn.Module) -> Iterator[list[Any]]:
    """What a model returns, inside, each time that it is called.

    A hook, and not soft labels in the batch: so the user's module need not know of it, whatever its batches, its loss
    and its metrics are. It is there during the step only, since copies of the model (an average) would have it, too.
    """
    outputs: list[Any] = []
    handle = model.register_forward_hook(lambda _, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def check_logits(output: Any) -> Tensor:
    """What a supernet returns, if it is logits ``[N, C]`` of at least two classes.

    Raises
    ------
    RuntimeError
        Saying what it is, if not.
    """
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.dim() == 2 and output.shape[1] > 1:
            return output
        given = f'{str(output.dtype).removeprefix("torch.")} of shape {list(output.shape)}'
    else:
        given = f'a {type(output).__name__}'
    raise RuntimeError(
        f'distill needs a model that returns logits of shape [N, C], with two classes or more, but it returns {given}.'
    )


def soft_loss(outputs: Sequence[Any], teacher: Sequence[Tensor]) -> Tensor:
    r"""The divergence of a network from its teacher, over all calls of the model in a step.

    .. math:: \frac{1}{N} \sum_{i=1}^{N} \sum_{c=1}^{C} p_{ic} \log \frac{p_{ic}}{q_{ic}}

    where :math:`p` are the probabilities of the teacher, and :math:`q` those of the network: the gradient is that of
    the cross-entropy with soft labels, as in `US-Net <https://arxiv.org/abs/1903.05134>`__.

    Raises
    ------
    RuntimeError
        If there are not as many logits as of the teacher, or none.
    """
    logits = [check_logits(output) for output in outputs]
    shapes, of_teacher = ([list(each.shape) for each in some] for some in (logits, teacher))
    if shapes != of_teacher or not shapes:
        raise RuntimeError(
            'distill needs a training_step that calls its model, and alike for each path of a step, but it returned '
            f'logits of shapes {of_teacher} for the largest network, and {shapes} for another one.'
        )
    terms = [
        F.kl_div(q.float().log_softmax(1), p.float().log_softmax(1), reduction='batchmean', log_target=True)
        for q, p in zip(logits, teacher, strict=True)
    ]
    return torch.stack(terms).mean()
