"""Spaces of NNI's hub, and of users, from end to end at toy size: train, split, search, export, go on, profile."""

import json
from itertools import product

from nni_naslid import LID, NASLID, Bands, Fixed, Gradient, SubSpace, ZeroCost
from nni_naslid.cli import main
from nni_naslid.run.folder import RunFolder
from nni_naslid.run.record import read_record
from nni_naslid.start import space_of_run
from nni_naslid.train.path import labels_read
from nni_naslid.train.supernet import make_supernet

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.hub.pytorch import (
    DARTS,
    ENAS,
    PNAS,
    AmoebaNet,
    AutoFormer,
    NasBench101,
    NasBench201,
    NASNet,
    ProxylessNAS,
    ShuffleNetSpace,
)
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.space import model_context
from nni.nas.strategy import RandomOneShot
from own_space import Everything
from recurrent_space import CHARACTERS, NextCharacter, Recurrent, loaders
from small import make_evaluator, n_edges, profiled
from test_search import small_mobilenet
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

SPACES = {
    'NasBench201': (lambda: NasBench201(4, 1, 4), 8),
    'ProxylessNAS': (lambda: ProxylessNAS(4, base_widths=(8,) * 9), 32),
    'MobileNetV3': (small_mobilenet, 32),
    'ShuffleNet': (lambda: ShuffleNetSpace(num_labels=4), 64),
    'AutoFormer': (
        lambda: AutoFormer(
            search_embed_dim=(64, 128), search_mlp_ratio=(2.0, 3.0), search_num_heads=(2, 4), search_depth=(2, 3),
            img_size=32, patch_size=8, num_labels=4,
        ),
        32,
    ),
    **{cell.__name__: (lambda cell=cell: cell(width=4, num_cells=3, dataset='cifar'), 16)
       for cell in (DARTS, NASNet, ENAS, PNAS, AmoebaNet)},
    'Everything': (Everything, 16),
}  # fmt: skip


def images(size: int) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (48,), generator=generator)
    x = torch.randn(48, 3, size, size, generator=generator) + y.view(-1, 1, 1, 1) / 2
    return DataLoader(TensorDataset(x, y), 24)


def operations(network: torch.nn.Module, size: int) -> float:
    """Of one image."""
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):  # which is the one that PyTorch counts on a CPU
        network.eval()(torch.randn(2, 3, size, size))
    return counter.get_total_flops() / 2


def frozen(make, sample: dict) -> torch.nn.Module:
    """As NNI makes it anew."""
    with model_context(dict(sample)):
        return make()


@pytest.mark.slow
@pytest.mark.parametrize('name', SPACES)
def test_a_space(small, tmp_path, name):
    make, size = SPACES[name]
    pl.seed_everything(0)
    space = SubSpace.of(RandomOneShot().mutate_model(make()))
    networks = [frozen(make, space.sample(np.random.RandomState(seed))) for seed in range(6)]
    limit = float(np.median([operations(network, size) for network in networks]))
    label, choices = next(iter(space.splittable.items()))
    settings = {
        'space': make, 'criterion': Fixed({label: [[0], list(range(1, len(choices)))]}), 'search_budget': 5,
        'constraints': {'flops': (None, limit)},
    }  # fmt: skip
    strategy = small(make_evaluator(train=images(size), val=images(size)), **settings)
    assert len(strategy.leaves) == 2
    assert sum(leaf.subspace.size for leaf in strategy.leaves) == strategy.tree.subspace.size < space.size
    models = list(strategy.list_models(limit=5))
    assert len(models) == 5
    x = torch.randn(3, 3, size, size)
    for model in models[:2]:
        network = model.executable_model()
        with torch.no_grad():  # the supernet is set to the path that was exported
            assert torch.equal(network(x), strategy.supernet.eval()(x))
        assert operations(network, size) <= limit
        assert not [part for part in network.modules() if isinstance(part, BaseSuperNetModule)]
        torch.save(network, tmp_path / 'network.pt')
        assert torch.equal(torch.load(tmp_path / 'network.pt', weights_only=False)(x), network(x))
        assert strategy.evaluate([model.sample])[0]['val_loss'] == -model.metric
    again = small(make_evaluator(train=images(size), val=images(size)), **settings)
    assert found(again) == found(strategy)
    assert read_record(tmp_path).finished
    contrasts = profiled(make_evaluator(train=images(size)), make_supernet(make()), tmp_path / 'notes', 3).contrasts
    assert contrasts.keys() == space.splittable.keys()
    assert all(np.isfinite(contrast.score) for contrast in contrasts.values())


def found(strategy: NASLID) -> list[tuple[dict, float]]:
    return [(model.sample, model.metric) for model in strategy.list_models(limit=5)]


@pytest.mark.slow
@pytest.mark.parametrize(
    'criterion',
    [
        LID(n_neighbors=5, repeats=8, min_contrast=0), Gradient(repeats=8, min_contrast=0),
        Fixed({'cell/num_nodes': [[0, 1, 2, 3], [4, 5]], 'cell/op2': [[0], [1, 2]]}),
    ],
    ids=lambda criterion: type(criterion).__name__,
)  # fmt: skip
def test_nasbench101(small, tmp_path, criterion):
    """Where choices constrain each other, under a limit and a filter of the user's."""
    settings = {
        'space': lambda: NasBench101(8, 2, 1, num_labels=4), 'split_epochs': [1, 2], 'search_budget': 20,
        'filter': lambda sample: sample['cell/op1'] != 'maxpool3x3' or sample['cell/num_nodes'] > 3,
        'constraints': {'edges': (None, 8, n_edges)},
        'prior': {'parameters': 1, 'live_parameters': 1, 'flops': -1},
        'criterion': criterion,
    }  # fmt: skip
    strategy = small(make_evaluator(train=images(8), val=images(8)), **settings)
    space = strategy.tree.subspace
    if isinstance(criterion, Fixed):
        assert len(strategy.leaves) == 4
    assert sum(leaf.subspace.size for leaf in strategy.leaves) == space.size == 3057647616
    models, x = list(strategy.list_models(limit=20)), torch.randn(3, 3, 8, 8)
    networks = set()
    for i, model in enumerate(models):
        sample = model.sample
        assert sample.keys() == space.mutables.keys() and sample in space and n_edges(sample) <= 8
        written = dict(sample)
        NasBench101(8, 2, 1, num_labels=4).freeze(written)  # NNI accepts it, and writes into it
        assert strategy.evaluate([written]) == strategy.evaluate([sample])
        networks.add(strategy._scorer.network(sample))
        if i < 3:
            network = model.executable_model()
            with torch.no_grad():
                assert torch.equal(network(x), strategy.supernet.eval()(x))
            assert not any(isinstance(part, BaseSuperNetModule) for part in network.modules())
            score, costs = strategy.evaluate([sample])[0], strategy.costs([sample], ['parameters', 'flops'])[0]
            assert score['with_prior'] == model.metric
            assert costs['parameters'] == sum(weight.numel() for weight in network.parameters())
            assert costs['flops'] == operations(network, 8)
    assert len(networks) == len(models) == 20
    with pytest.raises(ValueError, match='does not keep to the filter or the constraints'):
        strategy.evaluate([{**models[0].sample, 'cell/input1': [], 'cell/num_nodes': 2}])
    assert found(small(make_evaluator(train=images(8), val=images(8)), **settings)) == found(strategy)
    assert read_record(tmp_path).finished
    # What a trial makes of it.
    folder, whole = RunFolder(tmp_path), make_supernet(settings['space']())
    part = space_of_run(whole, folder, strategy.settings, settings['filter'])
    random_states = [np.random.RandomState(0) for _ in range(2)]
    assert [part.sample(random_states[0]) for _ in range(20)] == [space.sample(random_states[1]) for _ in range(20)]
    # A truth may have any sample of a network.
    truth = tmp_path / 'truth.csv'
    rows = ['arch,test_acc,params']
    for i, model in enumerate(models):
        other = dict(model.sample)
        for label in set(other) - labels_read(strategy.supernet, other):
            other[label] = space.mutables[label].values[-1] if '/op' in label else [0]
        rows.append('"{}",{},{}'.format(json.dumps(other).replace('"', '""'), i, 100 + i))
    truth.write_text('\n'.join(rows))
    assert main(['report', str(tmp_path), '--truth', str(truth), '--out', str(tmp_path / 'page.html')]) == 0
    assert 'on the 20 of ' in (tmp_path / 'page.html').read_text()


ACTIVATION_COSTS = {'tanh': 3, 'relu': 1, 'sigmoid': 2, 'identity': 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    'criterion',
    [
        LID(n_neighbors=5, repeats=32, min_contrast=0, layers=['cell.activations.3', 'cell', 'decoder']),
        Gradient(repeats=8, min_contrast=0), ZeroCost(repeats=8, min_contrast=0), Bands('lid', max_groups=2),
        Fixed({'input3': [[0, 1], [2, 3]], 'activation0': [[0, 2], [1, 3]]}),
    ],
    ids=lambda criterion: type(criterion).__name__,
)  # fmt: skip
def test_a_recurrent_space(small, tmp_path, criterion):
    """A language model whose cell is called in each step of time, under a limit by a table."""
    table = {f'activation{i}': ACTIVATION_COSTS for i in range(4)}
    table |= {f'input{i}': {str(j): j for j in range(i + 1)} for i in range(1, 4)}
    settings = {
        'space': Recurrent, 'split_epochs': [2], 'criterion': criterion, 'search_budget': 12,
        'constraints': {'latency': (None, 9, table)}, 'prior': {'lid': 1, 'live_parameters': 1},
    }  # fmt: skip

    def evaluator():
        train, val = loaders()
        return make_evaluator(NextCharacter(2.0), train=train, val=val, epochs=4, gradient_clip_val=1.0)

    def latency(sample):
        activations = sum(ACTIVATION_COSTS[sample[f'activation{i}']] for i in range(4))
        return activations + sum(sample[f'input{i}'][0] for i in range(1, 4))

    strategy = small(evaluator(), **settings)
    if not isinstance(criterion, Bands):  # of which a sum may explain too little
        assert len(strategy.leaves) == 2
    every = [dict(zip(table, each, strict=True)) for each in product(*map(list, table.values()))]
    every = [{k: [int(v)] if 'input' in k else v for k, v in each.items()} | {'input0': [0]} for each in every]
    n_within = sum(latency(sample) <= 9 for sample in every)
    assert sum(leaf.subspace.size for leaf in strategy.leaves) == strategy.tree.subspace.size == n_within < 6144
    models, x = list(strategy.list_models(limit=12)), next(iter(loaders()[1]))[0]
    assert len(models) == 12 and all(latency(model.sample) <= 9 for model in models)
    for model in models[:3]:
        network = model.executable_model()
        assert not any(isinstance(part, BaseSuperNetModule) for part in network.modules())
        with torch.no_grad():
            assert torch.equal(network(x), strategy.supernet.eval()(x))
        assert strategy.evaluate([model.sample])[0]['with_prior'] == model.metric
    losses = [each['val_loss'] for each in strategy.evaluate([model.sample for model in models])]
    assert min(losses) < 0.95 * np.log(len(CHARACTERS))  # it has learnt something
    assert found(small(evaluator(), **settings)) == found(strategy)
    assert read_record(tmp_path).finished
