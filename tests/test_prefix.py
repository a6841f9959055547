"""Shared beginnings of paths: the profiles of plain runs, with less to compute and one activation more in memory."""

import gc
from collections import Counter
from functools import partial

from nni_naslid import SubSpace
from nni_naslid.criteria.repeats import candidate_profiles
from nni_naslid.train.data import Inputs
from nni_naslid.train.path import set_path
from nni_naslid.traits.places import Place
from nni_naslid.traits.prefix import BasePath
from nni_naslid.traits.profile import path_profile, profile_layers, untouched

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from nni.mutable import Categorical, CategoricalMultiple
from nni.nas.hub.pytorch import DARTS
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, Repeat
from nni.nas.strategy import RandomOneShot
from torch import Tensor, nn
from torch.nn import functional as F

N_NEIGHBORS = 5


def choice(label: str) -> LayerChoice:
    in_place = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8))
    return LayerChoice(
        [nn.Linear(8, 8), in_place, nn.Identity(), nn.Sequential(nn.Linear(8, 8), nn.Tanh())], label=label
    )


class Chain(ModelSpace):
    """Two choices, and a block between them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.one = choice('one')
        self.middle = self.make_middle()
        self.two = choice('two')
        self.head = nn.Linear(8, 5)

    def make_middle(self) -> nn.Module:
        return nn.Linear(8, 8)

    def forward(self, x):
        return self.head(self.two(self.middle(self.one(self.stem(x)))))


class InPlace(Chain):
    def make_middle(self):
        return nn.ReLU(inplace=True)


class Functional(Chain):
    def forward(self, x):
        x = F.relu(self.one(self.stem(x - 1)), inplace=True)
        x = self.middle(x.view(x.size(0), 2, 4).transpose(1, 2).flatten(1))
        return self.head(F.normalize(self.two(x.clamp(-2, 2))))


class Pair(Chain):
    class Middle(nn.Module):
        def forward(self, x):
            return [{'twice': 2 * x, 'depth': 3}, x]

    def make_middle(self):
        return self.Middle()

    def forward(self, x):
        extra, x = self.middle(self.one(self.stem(x)))
        return self.head(self.two(x + extra['depth'] * extra['twice'].tanh()))


class Twice(Chain):
    def forward(self, x):
        return self.head(self.two(self.middle(self.one(self.middle(self.stem(x))))))


class Nested(Chain):
    """The block between the choices calls the first block."""

    class Middle(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x).relu()

    def make_middle(self):
        return self.Middle(self.stem)


class Remembers(Chain):
    """A block hands features on as an attribute."""

    class Middle(nn.Linear):
        def forward(self, x):
            self.seen = super().forward(x)
            return self.seen.tanh()

    def make_middle(self):
        return self.Middle(8, 8)

    def forward(self, x):
        return self.head(self.two(self.middle(self.one(self.stem(x)))) + self.middle.seen)


class Bypasses(Chain):
    """A block that does not call the choice in it as modules are called."""

    class Middle(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = choice('inner')

        def forward(self, x):
            return type(self.inner).forward(self.inner, x)

    def make_middle(self):
        return self.Middle()


class Borrows(Chain):
    """A block that uses the choice of another block, which does not run itself."""

    class Middle(nn.Module):
        def __init__(self, owner):
            super().__init__()
            self.owner = [owner]  # no module of this one

        def forward(self, x):
            return self.owner[0].inner(x)

    def make_middle(self):
        self.owner = Bypasses.Middle()
        return self.Middle(self.owner)


class Skip(Chain):
    def forward(self, x):
        early = self.stem(x)
        return self.head(self.two(self.middle(self.one(early))) + early)


class SkipInPlace(Chain):
    def forward(self, x):
        early = self.stem(x)
        x = self.two(self.middle(self.one(early)))
        x += early
        return self.head(x)


class Gate(Chain):
    def forward(self, x):
        gate = self.stem(x).mean()
        return self.head(self.two(self.middle(self.one(self.stem(x)))).mul_(gate))


class Selects(Chain):
    """An early output that nothing is computed with: it only may become the input of the head."""

    def __init__(self):
        super().__init__()
        self.select = InputChoice(2, 1, label='select')

    def forward(self, x):
        early = self.stem(x)
        return self.head(self.select([early, self.two(self.middle(self.one(early)))]))


class Collects(Chain):
    """A block appends to a list that it is given."""

    class Middle(nn.Linear):
        def forward(self, x, collected):
            collected.append(x.tanh())
            return super().forward(x)

    def make_middle(self):
        return self.Middle(8, 8)

    def forward(self, x):
        collected = []
        x = self.two(self.middle(self.one(self.stem(x)), collected))
        return self.head(x + sum(collected))


class Overwrites(Chain):
    """A block overwrites what it is given, which is not the output of a block."""

    def make_middle(self):
        return nn.Threshold(0.5, 0.1, inplace=True)

    def forward(self, x):
        shifted = x + 1
        self.middle(shifted)
        return self.head(self.two(self.one(self.stem(x))) + shifted)


CHAINS = [Chain, InPlace, Functional, Pair, Twice, Remembers, Bypasses, Borrows]


class Takes(nn.Module):
    def __init__(self, index):
        super().__init__()
        self.index = index

    def forward(self, *args):
        return args[self.index]


class OverwritesForOthers(Chain):
    """A block overwrites what only some paths use."""

    def __init__(self):
        super().__init__()
        self.select = LayerChoice([Takes(0), Takes(1)], label='select')

    def make_middle(self):
        return nn.Threshold(0.5, 0.1, inplace=True)

    def forward(self, x):
        shifted = x + 1
        self.middle(shifted)
        return self.head(self.select(self.two(self.one(self.stem(x))), shifted))


class CollectsForOthers(Chain):
    """A block appends to a list that only some paths use."""

    def __init__(self):
        super().__init__()
        self.select = LayerChoice([Takes(0), Takes(1)], label='select')

    def make_middle(self):
        return Collects.Middle(8, 8)

    def forward(self, x):
        collected = []
        y = self.two(self.middle(self.one(self.stem(x)), collected))
        return self.head(self.select(y, x + sum(collected)))


OTHERS = [Nested, Skip, SkipInPlace, Gate, Selects, Collects, Overwrites, OverwritesForOthers, CollectsForOthers]


@pytest.fixture
def inputs() -> Inputs:
    return Inputs((torch.randn(37, 8),), {})


@pytest.fixture
def frozen_objects():
    """Objects from before the test are no objects to ``gc``."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def supernet_of(space: ModelSpace) -> ModelSpace:
    return RandomOneShot().mutate_model(space)


def places_of(supernet: ModelSpace) -> dict[str, Place]:
    return dict.fromkeys(profile_layers(supernet), Place())


def plain_profiles(
    supernet: ModelSpace, inputs: Inputs, seed: int, space: SubSpace | None = None, estimator: str = 'mle'
) -> dict[str, Tensor]:
    """Every path run on its own."""
    space, places = space or SubSpace.of(supernet), places_of(supernet)
    base = space.sample(np.random.RandomState(seed))
    profiles = {}
    with untouched(supernet):
        for label, candidates in space.splittable.items():
            rows = []
            for candidate in candidates:
                set_path(supernet, {**base, label: candidate})
                rows.append(path_profile(supernet, inputs, places, N_NEIGHBORS, estimator))
            profiles[label] = torch.stack(rows)[None]
    return profiles


def shared_profiles(
    supernet: ModelSpace, inputs: Inputs, seed: int, space: SubSpace | None = None, estimator: str = 'mle'
) -> dict[str, Tensor]:
    space = space or SubSpace.of(supernet)
    paths = [space.sample(np.random.RandomState(seed))]
    return candidate_profiles(
        supernet, space, [inputs], places_of(supernet), paths=paths, n_neighbors=N_NEIGHBORS, estimator=estimator
    )


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit: on one machine, each block computes the same from the same, however often it runs."""
    assert list(actual) == list(expected)
    for label, profile in expected.items():
        assert torch.equal(actual[label], profile), label
    assert any(len(profile[0].unique(dim=0)) > 1 for profile in expected.values())


@pytest.mark.parametrize('space', CHAINS + OTHERS)
def test_profiles_are_those_of_plain_runs(space, inputs):
    supernet = supernet_of(space())
    for seed in range(4):
        assert_same(shared_profiles(supernet, inputs, seed), plain_profiles(supernet, inputs, seed))


@pytest.mark.parametrize('space', CHAINS + OTHERS)
def test_which_networks_share(space, inputs):
    supernet = supernet_of(space())
    labels = SubSpace.of(supernet).splittable
    sample = {**dict.fromkeys(labels, 0), 'select': [0]}
    if 'select' in labels:
        sample['select'] = 0
    with untouched(supernet):
        path = BasePath(supernet, sample, inputs, places_of(supernet), N_NEIGHBORS)
        path.profiles(labels)
    assert path.shares == (space in CHAINS)


@pytest.mark.parametrize('estimator', ['mle', 'two_nn', 'effective_rank'])
def test_profiles_of_nasbench201(nasbench201, estimator):
    supernet = supernet_of(nasbench201())
    inputs = Inputs((torch.randn(20, 3, 8, 8),), {})
    for seed in range(2):
        of = {'seed': seed, 'estimator': estimator}
        assert_same(shared_profiles(supernet, inputs, **of), plain_profiles(supernet, inputs, **of))


@pytest.mark.slow
@pytest.mark.parametrize('depth', [3, 6])
def test_profiles_of_darts(depth):
    """Each cell takes two predecessors and returns two tensors; a stage of one cell skips a block."""
    pl.seed_everything(0, verbose=False)
    supernet = supernet_of(DARTS(width=4, num_cells=(3, 6), dataset='cifar'))
    inputs = Inputs((torch.randn(12, 3, 8, 8),), {})
    mutables = SubSpace.of(supernet).mutables
    few = {'depth', 'normal/op_3_0', 'normal/input_4_0', 'reduce/op_2_1', 'reduce/op_5_0'}

    def only(mutable: Categorical | CategoricalMultiple) -> Categorical | CategoricalMultiple:
        if isinstance(mutable, Categorical):
            return Categorical(mutable.values[-1:], label=mutable.label)
        return CategoricalMultiple(mutable.values[-1:], n_chosen=1, label=mutable.label)

    space = SubSpace({label: mutable if label in few else only(mutable) for label, mutable in mutables.items()})
    seed = next(i for i in range(9) if space.sample(np.random.RandomState(i))['depth'] == depth)
    profiles = shared_profiles(supernet, inputs, seed, space)
    assert set(profiles) == few
    assert_same(profiles, plain_profiles(supernet, inputs, seed, space))


@pytest.mark.slow
def test_each_block_runs_only_for_labels_read_by_then(proxyless):
    """Counted inside the blocks, against what each path has to run by the order of its blocks."""
    supernet = supernet_of(proxyless())
    space, seed = SubSpace.of(supernet), 0
    inputs = Inputs((torch.randn(12, 3, 32, 32),), {})
    layers = profile_layers(supernet)
    readers = {
        module.label: name for name, module in supernet.named_modules() if isinstance(module, (LayerChoice, Repeat))
    }
    runs = Counter()
    for name in ['stem', *layers[:-1]]:  # the last has nothing inside
        block = supernet.get_submodule(name)
        for child in block.children() if isinstance(block, LayerChoice) else [next(block.children())]:
            child.register_forward_hook(lambda *_, name=name: runs.update([name]))

    def run(sample: dict) -> tuple[list[str], Tensor]:
        runs.clear()
        set_path(supernet, sample)
        profile = path_profile(supernet, inputs, places_of(supernet), N_NEIGHBORS)
        assert set(runs.values()) == {1}
        return list(runs), profile

    base = space.sample(np.random.RandomState(seed))
    with untouched(supernet):
        order, _ = run(base)
        expected, plain = Counter(order), {}
        inactive = []
        for label, candidates in space.splittable.items():
            paths = {candidate: run({**base, label: candidate}) for candidate in candidates}
            plain[label] = torch.stack([profile for _, profile in paths.values()])[None]
            read = [i for i, name in enumerate(order) if f'{name}.'.startswith(f'{readers[label]}.')]
            if not read:
                inactive.append(label)
                continue
            start = read[0] - label.endswith('depth')  # the depth of a stage is read with the block before it
            for candidate, (blocks, _) in paths.items():
                if candidate != base[label]:
                    expected.update(set(blocks).difference(order[:start]))
    expected.update(order)  # the base path again: from the place of one label to that of the next, and to the end
    runs.clear()
    profiles = shared_profiles(supernet, inputs, seed)
    assert runs == expected
    assert runs['stem'] == 2
    assert inactive  # beyond the depth of their stage
    assert_same(profiles, plain)


def test_one_activation_is_kept(frozen_objects):
    """At the end of each block there are its input, its output, and the kept one: of these alone is the shape."""

    class Deep(ModelSpace):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 8), *(choice(f'label{i}') for i in range(6)))

        def forward(self, x):
            return self.body(x)

    supernet = supernet_of(Deep())
    inputs = Inputs((torch.randn(37, 6),), {})
    counts = []

    def count(*_) -> None:
        counts.append(sum(type(each) is Tensor and each.shape == (37, 8) for each in gc.get_objects()))

    for block in supernet.body:
        block.register_forward_hook(count)
    expected = plain_profiles(supernet, inputs, 0)
    assert max(counts) == 2
    counts.clear()
    profiles = shared_profiles(supernet, inputs, 0)
    assert len(counts) > 6 * 6
    assert max(counts) == 3
    assert_same(profiles, expected)
    count()
    assert counts[-1] == 0


def test_an_error_of_the_network_is_raised_and_leaves_no_trace(inputs):
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError('broken')

    class Breaks(Chain):
        def __init__(self):
            super().__init__()
            self.two = LayerChoice([nn.Linear(8, 8), Broken()], label='two')

    supernet = supernet_of(Breaks())
    supernet.stem.forward = own = partial(nn.Linear.forward, supernet.stem)
    bases = set()
    for seed in range(6):  # the error comes with the base path, or with another one
        bases.add(SubSpace.of(supernet).sample(np.random.RandomState(seed))['two'])
        with pytest.raises(ValueError, match='broken'):
            shared_profiles(supernet, inputs, seed)
        assert [name for name, module in supernet.named_modules() if 'forward' in vars(module)] == ['stem']
        assert supernet.stem.forward is own
        assert not any(module._forward_hooks for module in supernet.modules())
    assert bases == {0, 1}
