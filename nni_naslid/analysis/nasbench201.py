"""The architectures of NAS-Bench-201, and the names that different tools give them."""

from __future__ import annotations

import json
import re
from itertools import product

from nni_naslid.space.subspace import SubSpace

from nni.mutable import Sample

__all__ = [
    'FORMAT', 'NASBENCH201', 'OPERATIONS', 'PATTERN', 'arch_name', 'nasbench201_arch', 'nasbench201_architectures',
    'nasbench201_sample',
]  # fmt: skip

FORMAT = '|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|'
"""The official string of the operations of the edges 0-1, 0-2, 1-2, 0-3, 1-3 and 2-3."""

PATTERN = FORMAT.replace('{}', 'op')

OPERATIONS = {
    'none': 'none',
    'skip_connect': 'skip_connect',
    'conv_1x1': 'nor_conv_1x1',
    'conv_3x3': 'nor_conv_3x3',
    'avg_pool_3x3': 'avg_pool_3x3',
}
"""NNI's name of an operation and the official one, in the official order."""

EDGES = ('0_1', '0_2', '1_2', '0_3', '1_3', '2_3')
NASBENCH201 = SubSpace.from_dict({f'cell/{edge}': list(OPERATIONS) for edge in EDGES}, {})


def nasbench201_architectures() -> list[str]:
    """All 15,625 official architecture strings, in an order of our own (the last edge changes fastest)."""
    return [FORMAT.format(*operations) for operations in product(OPERATIONS.values(), repeat=6)]


def nasbench201_sample(arch: str) -> Sample:
    """The NNI sample (label to choice) of an official architecture string.

    >>> sample = nasbench201_sample('|none~0|+|nor_conv_1x1~0|none~1|+|none~0|none~1|skip_connect~2|')
    >>> sample['cell/0_2'], sample['cell/2_3']
    ('conv_1x1', 'skip_connect')

    Raises
    ------
    ValueError
        If ``arch`` is not such a string.
    """
    names = {official: name for name, official in OPERATIONS.items()}
    found = re.findall(r'(\w+)~\d', arch) if isinstance(arch, str) else []
    if len(found) != 6 or not names.keys() >= set(found) or FORMAT.format(*found) != arch:
        raise ValueError(f'Not a NAS-Bench-201 architecture: {arch!r:.200}; expected {PATTERN}.')
    return {f'cell/{edge}': names[operation] for edge, operation in zip(EDGES, found, strict=True)}


def nasbench201_arch(sample: Sample) -> str:
    """The official architecture string of an NNI sample.

    >>> arch = '|none~0|+|nor_conv_1x1~0|none~1|+|none~0|none~1|skip_connect~2|'
    >>> nasbench201_arch(nasbench201_sample(arch)) == arch
    True

    Raises
    ------
    TypeError, ValueError
        If it is not a sample of NasBench201: it names the label, the choice and what would be right.
    """
    NASBENCH201.check(sample)
    return FORMAT.format(*(OPERATIONS[sample[f'cell/{edge}']] for edge in EDGES))


def arch_name(sample: Sample) -> str:
    """What an architecture of any space is called in a truth: the official string of one of NasBench201; of others the
    sample as JSON, with sorted labels.

    >>> arch_name({'stem': 'conv5', 'depth': 2})
    '{"depth": 2, "stem": "conv5"}'
    """
    try:
        return nasbench201_arch(sample)
    except ValueError:
        return json.dumps(sample, sort_keys=True, default=str)
