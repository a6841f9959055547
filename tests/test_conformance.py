"""What every space, every kind of sub-space and every criterion must do. A new one joins its list here."""

import json

from nni_naslid import SubSpace

import numpy as np
import pytest
import torch
from nni.mutable import Categorical, CategoricalMultiple
from nni.nas.evaluator.pytorch import DataLoader
from small import Convs, make_evaluator
from test_export import SPACES
from torch import nn
from torch.utils.data import TensorDataset

# Sub-spaces, small enough to list all their samples.


def narrowed():
    space = SubSpace({'a': Categorical(['x', 'y', 'z'], label='a'), 'b': Categorical([1, 2], label='b')})
    return space.split('a', [[0, 2], [1]])[0]


SUBSPACES = {
    'choices': lambda: SubSpace({name: Categorical([1, 2, 3], label=name) for name in 'abc'}),
    'of other types': lambda: SubSpace({'a': Categorical([(1, 2), None, True], label='a')}),
    'weighted': lambda: SubSpace({'a': Categorical([1, 2], weights=[0.9, 0.1], label='a')}),
    'one input of three': lambda: SubSpace({'a': CategoricalMultiple([0, 1, 2], n_chosen=1, label='a')}),
    'two inputs of three': lambda: SubSpace({'a': CategoricalMultiple([0, 1, 2], n_chosen=2, label='a')}),
    'narrowed': narrowed,
}


def drawn(subspace: SubSpace, n: int = 300) -> set[str]:
    random_state = np.random.RandomState(0)
    return {repr(sorted(subspace.sample(random_state).items())) for _ in range(n)}


@pytest.mark.parametrize('name', SUBSPACES)
def test_a_sub_space(name):
    subspace = SUBSPACES[name]()
    samples = drawn(subspace)
    assert len(samples) == subspace.size
    for sample in (dict(eval(text)) for text in samples):
        assert sample in subspace
        assert subspace.decode(json.loads(json.dumps(subspace.encode(sample)))) == sample
    assert all(sample in subspace for sample in subspace.extremes)
    assert drawn(subspace, 5) == drawn(subspace, 5)
    kept = SubSpace.from_dict(json.loads(json.dumps(subspace.to_dict(), default=str)), subspace.multiple)
    assert kept.size == subspace.size
    for label, candidates in subspace.splittable.items():
        groups = [[0], list(range(1, len(candidates)))]
        parts = [drawn(part) for part in subspace.split(label, groups)]
        assert parts[0] | parts[1] == samples
        assert not parts[0] & parts[1]


# Spaces: trained, profiled, split, searched, exported.


def spaces():
    for name, (make, size) in SPACES.items():
        yield pytest.param(make, size, marks=[] if name in ('nasbench201', 'repeat') else [pytest.mark.slow], id=name)
    yield pytest.param(Convs, 8, id='own')


@pytest.mark.parametrize('make, size', spaces())
def test_a_space(small, tmp_path, make, size):
    """From the first epoch to networks that compute what was scored; a second run finds all of it."""
    generator = torch.Generator().manual_seed(0)

    def loader(n):
        y = torch.randint(4, (n,), generator=generator)
        return DataLoader(TensorDataset(torch.randn(n, 3, size, size, generator=generator), y), 12)

    train, val = loader(24), loader(12)
    settings = {'search_budget': 3, 'criterion': 'random', 'split_epochs': (1,), 'calibration_batches': 1}
    strategy = small(make_evaluator(train=train, val=val, epochs=2), make, **settings)
    assert sum(leaf.subspace.size for leaf in strategy.leaves) == strategy.tree.subspace.size
    models = list(strategy.list_models(limit=3))
    assert len({repr(sorted(model.sample.items())) for model in models}) == len(models)
    for model in models:
        network = model.executable_model().eval()
        (metrics,) = strategy.evaluate([model.sample])
        with torch.no_grad():
            losses = [nn.functional.cross_entropy(network(x), y).item() for x, y in val]
        assert metrics['val_loss'] == pytest.approx(np.mean(losses), rel=1e-3)
    again = small(make_evaluator(train=train, val=val, epochs=2), make, **settings)
    assert [model.metric for model in again.list_models(limit=3)] == [model.metric for model in models]
