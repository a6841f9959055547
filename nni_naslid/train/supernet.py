"""Making a model space a supernet, by NNI's single-path modules and those that it has not."""

from __future__ import annotations

from collections.abc import Sequence

from nni_naslid import compat as compat  # before nni.nas
from nni_naslid.train.nasbench101 import PathSamplingNasBench101Cell

from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.strategy import MutationHook
from nni.nas.strategy import RandomOneShot

__all__ = ['MUTATION_HOOKS', 'make_supernet']

MUTATION_HOOKS: list[MutationHook] = [PathSamplingNasBench101Cell.mutate]  # beside those of NNI's strategies


def make_supernet(space: ModelSpace, hooks: Sequence[MutationHook] = ()) -> ModelSpace:
    """Make a model space a supernet, in place; ``hooks`` are the user's, for modules of theirs."""
    return RandomOneShot(mutation_hooks=[*hooks, *MUTATION_HOOKS]).mutate_model(space)
