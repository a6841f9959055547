"""What is known of an architecture without training it: the rankings that every method should be compared with."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from nni_naslid.analysis.nasbench201 import NASBENCH201, OPERATIONS, nasbench201_sample

import numpy as np
from nni.mutable import Sample

__all__ = ['live_edges', 'nasbench201_costs']

EDGES = sorted(NASBENCH201.mutables)
KERNELS = {'conv_1x1': 1, 'conv_3x3': 9}  # the operations with parameters, and the weights of a pair of channels


def live_edges(sample: Sample) -> list[str]:
    """The edges of a NAS-Bench-201 cell whose output reaches the output of the cell, and whose input comes from its
    input: those on a path from node 0 to node 3 without ``none``.

    Examples
    --------
    >>> live_edges(nasbench201_sample('|none~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|'))
    ['cell/0_3']
    """
    kept = [(edge, *edge[5:].split('_')) for edge in EDGES if sample[edge] != 'none']
    reached, useful = {'0'}, {'3'}
    for _, source, target in kept:  # all edges into a node come before those out of it
        if source in reached:
            reached.add(target)
    for _, source, target in reversed(kept):
        if target in useful:
            useful.add(source)
    return [edge for edge, source, target in kept if source in reached and target in useful]


def nasbench201_costs(
    archs: Iterable[str | Sample], channels: int = 16, cells: int = 5, classes: int = 10, image_size: int = 32
) -> dict[str, np.ndarray]:
    """Parameters and FLOPs of NAS-Bench-201 architectures, for the ``costs`` of a report.

    Parameters
    ----------
    archs
        Official architecture strings, or NNI's samples.
    channels, cells, classes
        ``stem_out_channels``, ``num_modules_per_stack`` and ``num_labels`` of
        :class:`nni.nas.hub.pytorch.NasBench201`; the defaults are those of the benchmark.
    image_size
        Height and width of the images, a multiple of 4.

    Returns
    -------
    By name, each of shape ``[A]``: ``parameters``; ``live parameters``, without the edges that are not
    :func:`live <live_edges>`; ``FLOPs``: multiplications and additions, as one, of convolutions and the linear layer;
    ``live FLOPs``.

    Raises
    ------
    ValueError
        If one of ``archs`` is no architecture of NAS-Bench-201.

    Examples
    --------
    >>> arch = '|none~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|'
    >>> {name: int(values[0]) for name, values in nasbench201_costs([arch]).items()}
    {'parameters': 559386, 'live parameters': 73306, 'FLOPs': 78561920, 'live FLOPs': 7783040}
    """
    samples = [nasbench201_sample(arch) if isinstance(arch, str) else arch for arch in archs]
    for sample in samples:
        if sorted(sample) != EDGES or not set(sample.values()) <= set(OPERATIONS):
            raise ValueError(f'Not a sample of NAS-Bench-201: {sample!r:.200}.')
    fixed, of_kernel = _costs(channels, cells, classes, image_size)
    found = {'parameters': [], 'live parameters': [], 'FLOPs': [], 'live FLOPs': []}
    for sample in samples:
        for prefix, edges in (('', sample), ('live ', live_edges(sample))):
            total = fixed + sum(of_kernel[KERNELS[op]] for edge in edges if (op := sample[edge]) in KERNELS)
            found[f'{prefix}parameters'].append(total[0])
            found[f'{prefix}FLOPs'].append(total[1])
    return {name: np.array(values) for name, values in found.items()}


def _costs(channels: int, cells: int, classes: int, image_size: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Parameters and FLOPs of what every architecture has, and of a convolution on one edge of all cells, by kernel."""
    stages = [(channels << stage, image_size // 2**stage) for stage in range(3)]

    def convolution(kernel: int, inputs: int, outputs: int, size: int, norm: bool = True) -> np.ndarray:
        weights = kernel * inputs * outputs
        return np.array([weights + 2 * outputs * norm, weights * size**2])

    fixed = convolution(9, 3, channels, image_size)
    for (inputs, _), (outputs, size) in pairwise(stages):
        fixed += convolution(9, inputs, outputs, size) + convolution(9, outputs, outputs, size)
        fixed += convolution(1, inputs, outputs, size, norm=False)  # the shortcut, after average pooling
    last = stages[-1][0]
    fixed += np.array([2 * last + (last + 1) * classes, last * classes])
    of_kernel = {
        kernel: cells * sum(convolution(kernel, width, width, size) for width, size in stages)
        for kernel in KERNELS.values()
    }
    return fixed, of_kernel
