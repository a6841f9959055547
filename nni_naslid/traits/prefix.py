"""Profiles of paths that differ in one choice, each computed only from where this choice is first read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from nni_naslid.train.data import Inputs, call, tensors_in
from nni_naslid.train.path import own_labels, set_path
from nni_naslid.traits.places import INPUT, Place, watched
from nni_naslid.traits.profile import Lids, block_names, in_order, layer_lid, note_lid, path_profile

import torch
from nni.mutable import Sample
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only

__all__ = ['BasePath', 'wrapped']


class BasePath:
    """A path of a supernet, and the profiles of the paths that differ from it in one choice.

    Up to where the choice is first read, such a path computes what the base path computes, so this is done once. To go
    on from there the network is run with the blocks before only returning what they returned on the base path: the last
    one really, a copy of what is kept of it, the others tensors without data. A network that is no chain of blocks, as
    one with a connection that skips some, needs these data and fails. Then all paths are run in full, and so they are
    if the base path, when it goes on like this, does not get its own profile: blocks may have changed their arguments.

    Use it under :func:`~nni_naslid.traits.profile.untouched`. Afterwards the supernet is set to some path.

    Parameters
    ----------
    supernet
        The supernet.
    sample
        The base path.
    inputs, places, n_neighbors, estimator
        See :func:`~nni_naslid.traits.profile.path_profile`.

    Attributes
    ----------
    profile
        LID profile of the base path, of shape ``[L]``.
    shares
        Whether beginnings are shared: true until the network turns out not to permit it.
    """

    def __init__(
        self,
        supernet: ModelSpace,
        sample: Sample,
        inputs: Inputs,
        places: Mapping[str, Place],
        n_neighbors: int,
        estimator: str = 'mle',
    ):
        self.supernet = supernet
        self.sample = sample
        self.inputs = inputs
        self.places = places
        self.layers = [name for name in places if name != INPUT]
        self._of_lid = {'n_neighbors': n_neighbors, 'estimator': estimator}
        self._lid_of = partial(layer_lid, **self._of_lid)
        self.shares = True
        self._blocks = [supernet.get_submodule(name) for name in block_names('', supernet)]
        self._lids: list[Lids] = []  # for each call of a block, LIDs of the layers that had run before
        self._outputs: list[Any] = []  # for each call of a block, what it returned, without data
        self._read: dict[str, int] = {}  # for each label that is read, the latest call of a block by then
        self._start, self._kept = 0, None  # the call of a block to run paths from, what the call before returned
        self.profile = self._record()

    def profiles(self, labels: dict[str, list[Any]]) -> dict[str, Tensor]:
        """Profiles ``[C, L]`` of the candidates of each label, put in place of the choice of the base path."""

        def compute() -> dict[str, Tensor]:
            as_read = sorted(labels, key=lambda label: self._read.get(label, 0))
            return {label: torch.stack([self._profile_with(label, c) for c in labels[label]]) for label in as_read}

        try:
            found = compute()
            if self._start:  # every start was reached from the one before: a mistake at any of them shows at the last
                again = self._profile(self.sample, self._start)
                self.shares = torch.allclose(again, self.profile, rtol=1e-3, equal_nan=True)
        except Exception:  # whatever tensors without data lead to; an error of the network itself comes again below
            self.shares = False
        self._start, self._kept = 0, None
        return found if self.shares else compute()

    def _profile_with(self, label: str, choice: Any) -> Tensor:
        if label not in self._read or repr(choice) == repr(self.sample[label]):
            return self.profile
        return self._profile({**self.sample, label: choice}, self._read[label])

    def _profile(self, sample: Sample, start: int) -> Tensor:
        if not self.shares or start <= 0:
            set_path(self.supernet, sample)
            return path_profile(self.supernet, self.inputs, self.places, **self._of_lid)
        if start > self._start:
            set_path(self.supernet, self.sample)
            with suppress(_Arrived):
                self._run(until=start)
        set_path(self.supernet, sample)
        return self._run()

    def _record(self) -> Tensor:
        """Run the base path, and note what its blocks return and where labels are read."""
        lids: Lids = {}
        labels = {module: read for module in self.supernet.modules() if (read := _labels([module]))}
        # A block that runs may use any module in it, by whatever method.
        labels |= {block: _labels(block.modules()) for block in self._blocks}
        without_data = FakeTensorMode().from_tensor

        def wrap(module: nn.Module, forward: Callable) -> Callable:
            def run(*args, **kwargs):
                call = len(self._outputs)
                if module in self._blocks:
                    self._outputs.append(None)
                    self._lids.append(dict(lids))
                for label in labels[module]:
                    self._read.setdefault(label, len(self._outputs) - 1)
                if module not in self._blocks:
                    return forward(*args, **kwargs)
                given = tensors_in((args, kwargs))
                versions = [tensor._version for tensor in given]
                output = forward(*args, **kwargs)
                # A block that is not run does not do this, whatever path it is for. What only the block before has
                # made is kept as this block leaves it.
                written = [t for t, version in zip(given, versions, strict=True) if t._version != version]
                if len(tensors_in((args, kwargs))) != len(given) or not _storages(written) <= latest:
                    self.shares = False
                latest.clear()
                latest.update(_storages(tensors_in(output)))
                self._outputs[call] = tree_map_only(Tensor, without_data, output)
                return output

            return run

        latest: set[int] = set()  # memory of what the latest block has returned

        def watcher(name: str, output: Any) -> None:
            note_lid(lids, name, output, self.places[name], self._lid_of)

        set_path(self.supernet, self.sample)
        with wrapped(labels, wrap), watched(self.supernet, self.layers, watcher):
            call(self.supernet, self.inputs)
        return in_order(lids, self.inputs, self.places, self._lid_of)

    def _run(self, until: int | None = None) -> Tensor:
        """Run the path that is set from the start to its end, or raise as soon as ``until`` has become the start."""
        start, kept = self._start, self._kept
        lids = dict(self._lids[start])
        n_calls = 0

        def wrap(block: nn.Module, forward: Callable) -> Callable:
            def run(*args, **kwargs):
                nonlocal n_calls
                n_calls += 1
                call = n_calls - 1
                if call < start - 1:
                    return self._outputs[call]
                if call == start - 1:
                    return copy.deepcopy(kept)  # the next block may work in place
                output = forward(*args, **kwargs)
                if call + 1 == until:
                    self._start, self._kept = until, output
                    raise _Arrived
                return output

            return run

        def watcher(name: str, output: Any) -> None:
            if n_calls > start:
                if any(isinstance(tensor, FakeTensor) for tensor in tensors_in(output)):
                    raise RuntimeError(f'The output of {name} has no data.')
                note_lid(lids, name, output, self.places[name], self._lid_of)

        layers = self.layers if until is None else []
        with wrapped(self._blocks, wrap), watched(self.supernet, layers, watcher):
            call(self.supernet, self.inputs)
        return in_order(lids, self.inputs, self.places, self._lid_of)


class _Arrived(Exception):
    """A forward pass has come as far as it was to come."""


def _labels(modules: Iterable[nn.Module]) -> set[str]:
    """Labels that these modules of a supernet read themselves; those of their children are the children's."""
    return {label for module in modules if isinstance(module, BaseSuperNetModule) for label in own_labels(module)}


def _storages(tensors: list[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


@contextmanager
def wrapped(modules: Iterable[nn.Module], wrap: Callable[[nn.Module, Callable], Callable]) -> Iterator[None]:
    """Inside, ``forward`` of each module is ``wrap(module, forward)``."""
    own = {module: vars(module).get('forward') for module in modules}  # None where the class has it, as usual
    try:
        for module in own:
            vars(module)['forward'] = wrap(module, module.forward)
        yield
    finally:
        for module, forward in own.items():
            vars(module).pop('forward', None)
            if forward is not None:
                vars(module)['forward'] = forward
