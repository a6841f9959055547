"""What a forward pass of a path costs: operations, and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

from nni_naslid import compat as compat  # before nni.nas
from nni_naslid.train.data import Inputs, call, copied
from nni_naslid.train.path import set_path
from nni_naslid.traits.profile import untouched

import torch
from nni.mutable import Sample
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

__all__ = ['N_PASSES', 'counted', 'flops', 'latency', 'pass_seconds']

N_PASSES = 5  # that a latency is the median of, after one that is not timed


def flops(supernet: nn.Module, inputs: Inputs) -> Callable[[Sample], int]:
    """What counts the floating-point operations of a path, with PyTorch's own counter.

    They are those of matrix products, convolutions and attention, additions and multiplications counted apart, for all
    samples of the batch together.

    Parameters
    ----------
    supernet
        The supernet; it stays as it is, but for its path.
    inputs
        A batch, as the supernet is called with it.

    Returns
    -------
    A function of a sample. It takes a forward pass.
    """

    def count(sample: Sample) -> int:
        set_path(supernet, sample)
        with untouched(supernet), counted() as counter:
            call(supernet, inputs)
        return counter.get_total_flops()

    return count


def latency(supernet: nn.Module, inputs: Inputs) -> Callable[[Sample], float]:
    """What times the forward pass of a path, in seconds: the median of :data:`N_PASSES`, where the supernet is now.

    Parameters
    ----------
    supernet
        The supernet; it stays as it is, but for its path. What NNI does to take a path is timed with it.
    inputs
        A batch, as the supernet is called with it.

    Returns
    -------
    A function of a sample.
    """

    device = next((weight.device for weight in supernet.parameters()), None)

    def timed() -> float:
        args, kwargs = copied(inputs, device)  # a network may write to what it gets
        return pass_seconds(supernet, args, kwargs, device)

    def measure(sample: Sample) -> float:
        set_path(supernet, sample)
        with untouched(supernet):
            supernet.eval()  # batch norms, too: this is the network as it will be used
            return median([timed() for _ in range(1 + N_PASSES)][1:])

    return measure


def pass_seconds(
    network: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
) -> float:
    """How long one forward pass takes, in seconds; on a GPU, too."""
    _wait(device)
    start = time.perf_counter()
    network(*args, **(kwargs or {}))
    _wait(device)
    return time.perf_counter() - start


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """Gives a counter of what is done inside.

    Attention and recurrent layers as the products that they are made of: PyTorch does not count its fused ones.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            torch.backends.mkldnn.flags(enabled=False),
            FlopCounterMode(display=False) as counter,
        ):
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _wait(device: torch.device | None) -> None:
    """A GPU runs on its own."""
    if device is not None and device.type == 'cuda':
        torch.cuda.synchronize(device)
