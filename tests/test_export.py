"""Exported networks: what the supernet's path computes, in as few parameters as a network of their own needs."""

import logging
import pickle
import re

from nni_naslid import SubSpace
from nni_naslid.search.export import frozen_network
from nni_naslid.search.fixed import path_network
from nni_naslid.train.data import Inputs
from nni_naslid.train.path import set_path

import nni
import nni.nas.nn.pytorch as nas
import numpy as np
import pytest
import torch
from nni.nas.hub.pytorch import (
    DARTS,
    ENAS,
    AmoebaNet,
    AutoFormer,
    NasBench201,
    NASNet,
    ProxylessNAS,
    ShuffleNetSpace,
)
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from nni.nas.oneshot.pytorch.supermodule.sampling import PathSamplingLayer
from nni.nas.space import model_context
from nni.nas.strategy import RandomOneShot
from test_search import Cells, Deep, Images, op, small_mobilenet
from torch import nn

SPACES = {
    'nasbench201': (lambda: NasBench201(4, 1, 10), 16),
    'proxylessnas': (lambda: ProxylessNAS(10, base_widths=(8,) * 9), 32),
    'mobilenetv3': (small_mobilenet, 32),
    'shufflenet': (lambda: ShuffleNetSpace(num_labels=10), 64),
    'autoformer': (
        lambda: AutoFormer(
            search_embed_dim=(64, 128), search_mlp_ratio=(2.0, 3.0), search_num_heads=(2, 4), search_depth=(2, 3),
            img_size=32, patch_size=8, num_labels=10,
        ),
        32,
    ),
    'darts': (lambda: DARTS(width=8, num_cells=3, dataset='cifar'), 32),
    'cells': (Cells, 8),
    'repeat': (Deep, 8),
}  # fmt: skip


def some_slow(names, *quick) -> list:
    """All names, those that are not quick marked as slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def path_of(space: nas.ModelSpace, seed: int = 0, dtype: torch.dtype = torch.float32):
    """A supernet set to a path, with batch-norm statistics unlike those of a new network."""
    torch.manual_seed(0)
    supernet = RandomOneShot().mutate_model(space).to(dtype).eval()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    sample = SubSpace.of(supernet).sample(np.random.RandomState(seed))
    set_path(supernet, sample)
    return supernet, sample


def accuracy(network: nn.Module, strategy, dtype: torch.dtype = torch.float32) -> float:
    images, labels = strategy._evaluator.val_dataloaders.dataset.tensors
    with torch.no_grad():
        return (network(images.to(dtype)).argmax(1) == labels).float().mean().item()


def n_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize('name', SPACES)
def test_a_frozen_network_computes_what_the_path_does_and_has_nothing_else(name):
    make, size = SPACES[name]
    supernet, sample = path_of(make())
    images = torch.randn(3, 3, size, size)
    network, why = frozen_network(supernet, sample, Inputs((images,), {}))
    assert why == ''
    assert torch.equal(network(images), supernet(images))
    with model_context(sample):  # built by NNI from scratch
        reference = make()
    assert n_parameters(network) == n_parameters(reference)
    assert set(network.parameters()).isdisjoint(supernet.parameters())
    assert set(network.buffers()).isdisjoint(supernet.buffers())


@pytest.mark.slow
@pytest.mark.parametrize('name', ['nasbench201', 'mobilenetv3', 'darts'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_frozen_network_has_the_dtype_of_the_supernet(name, dtype):
    make, size = SPACES[name]
    supernet, sample = path_of(make(), dtype=dtype)
    images = torch.randn(3, 3, size, size).to(dtype)
    network, why = frozen_network(supernet, sample, Inputs((images,), {}))
    assert why == ''
    assert {tensor.dtype for tensor in network.parameters()} == {dtype}
    assert torch.equal(network(images), supernet(images))
    assert torch.get_default_dtype() == torch.float32


JOINING_ALL = {
    'nasnet': (lambda: NASNet(width=4, num_cells=3, dataset='cifar'), 16),
    'enas': (lambda: ENAS(width=4, num_cells=3, dataset='cifar'), 16),
    'amoebanet': (lambda: AmoebaNet(width=4, num_cells=3, dataset='cifar'), 16),
    # Widths and depths, down to one cell in a stage.
    'nasnet-deep': (lambda: NASNet(width=(4, 8), num_cells=(3, 6), dataset='imagenet', drop_path_prob=0.2), 64),
}  # fmt: skip


def parameters_of_calls(supernet: nn.Module, sample: dict, images: torch.Tensor) -> int:
    """Parameters of all modules that the supernet calls on its path, as often as it calls them."""
    counts = []

    def count(module, inputs, output):
        if isinstance(module, MixedOperation):
            module = module.freeze(sample)
        counts.append(sum(parameter.numel() for parameter in module.parameters(recurse=False)))

    handles = [module.register_forward_hook(count) for module in supernet.modules()]
    supernet(images)
    for handle in handles:
        handle.remove()
    return sum(counts)


@pytest.mark.parametrize('name', some_slow(JOINING_ALL, 'nasnet'))
def test_cells_that_join_all_nodes_are_networks_of_their_own(name):
    """NNI's frozen cells join only nodes that no other node takes as its input, as is told by `loose_end`."""
    make, size = JOINING_ALL[name]
    images = torch.randn(2, 3, size, size)
    for seed in (1,) if name == 'nasnet' else (0, 1):
        supernet, sample = path_of(make(), seed)
        network, why = frozen_network(supernet, sample, Inputs((images,), {}))
        assert why == ''
        assert torch.equal(network(images), supernet(images))
        assert not [part for part in network.modules() if isinstance(part, BaseSuperNetModule)]
        assert n_parameters(network) == parameters_of_calls(supernet, sample, images) < n_parameters(supernet) / 5
        assert n_parameters(network) > n_parameters(make().freeze(sample))  # what joins less reads less
        assert set(network.parameters()).isdisjoint(supernet.parameters())
        assert torch.equal(pickle.loads(pickle.dumps(network))(images), supernet(images))
        network.train()(images).sum().backward()
        assert next(network.parameters()).grad is not None  # of the stem


@pytest.mark.parametrize('name', some_slow(SPACES, 'nasbench201', 'mobilenetv3', 'autoformer', 'cells', 'repeat'))
def test_a_path_taken_out_of_a_supernet_is_as_nni_freezes_it(name):
    make, size = SPACES[name]
    supernet, sample = path_of(make(), seed=1)
    images = torch.randn(2, 3, size, size)
    network = path_network(supernet, sample).eval()
    assert torch.equal(network(images), supernet(images))
    assert not [part for part in network.modules() if isinstance(part, BaseSuperNetModule)]
    assert n_parameters(network) == n_parameters(make().freeze(sample))
    assert set(network.parameters()).isdisjoint(supernet.parameters())


class Branches(Images):
    """Two of three inputs, put together; a choice among the candidates of a choice, which is used twice."""

    def __init__(self, reduction):
        super().__init__(op(3, 3), nn.Identity(), channels=8 if reduction == 'concat' else 4)
        inner = nas.LayerChoice({'one': op(4, 1), 'three': op(4, 3)}, label='inner')
        self.outer = nas.LayerChoice([inner, nn.Identity()], label='outer')
        self.choice = nas.InputChoice(3, 2, reduction, label='input')
        self.reduction = reduction

    def forward(self, x):
        x = self.stem(x)
        y = self.outer(x)
        return self.head(self.choice([x, y, self.outer(y)]))


@pytest.mark.parametrize('reduction', ['sum', 'mean', 'concat'])
def test_inputs_and_nested_choices_are_taken_out(reduction):
    images = torch.randn(2, 3, 8, 8)
    for seed in range(6):
        supernet, sample = path_of(Branches(reduction), seed)
        network = path_network(supernet, sample).eval()
        assert torch.equal(network(images), supernet(images))
        assert not [part for part in network.modules() if isinstance(part, BaseSuperNetModule)]
        assert n_parameters(network) == n_parameters(supernet) - sum(
            n_parameters(supernet.outer[0][name])
            for name in ('one', 'three')
            if sample['outer'] == 1 or sample['inner'] != name
        )


class Unlike(Deep):
    """A space with a ``freeze`` of the user's, which fails or gives something else."""

    def __init__(self, freezing):
        super().__init__()
        self.freezing = freezing

    def freeze(self, sample):
        return self.freezing(self, sample)


def fails(space, sample):
    raise KeyError('no weights')


def rescaled(space, sample):
    frozen = nas.ModelSpace.freeze(space, sample)
    frozen.head.append(nn.Softmax(-1))
    return frozen


def without_a_head(space, sample):
    frozen = nas.ModelSpace.freeze(space, sample)
    frozen.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 7))
    return frozen


@pytest.mark.parametrize('freezing', [fails, rescaled, without_a_head])
def test_where_a_freeze_fails_the_path_is_taken_out(monkeypatch, freezing):
    monkeypatch.setattr(Unlike, 'trace_copy', lambda self: fails(self, None))
    supernet, sample = path_of(Unlike(freezing))
    images = torch.randn(2, 3, 8, 8)
    network, why = frozen_network(supernet, sample, Inputs((images,), {}))
    assert why == ''
    assert torch.equal(network(images), supernet(images))
    assert n_parameters(network) == n_parameters(Deep().freeze(sample))


class Doubled(PathSamplingLayer):
    """A supernet module of the user's, by a mutation hook: NNI's frozen network does not know what it does."""

    def _reduction(self, items, sampled):
        return 2 * super()._reduction(items, sampled)


@pytest.mark.parametrize(
    'freezing, match',
    [
        (fails, "KeyError: 'no weights'"),
        (rescaled, r'its output differs by [\d.e+-]+, where the largest value is [\d.]+'),
        (without_a_head, r'head.2.weight has the shape \[7, 16\], in the supernet \[10, 16\]'),
    ],
)
def test_what_cannot_be_taken_out_is_a_copy_with_the_reasons(run, caplog, monkeypatch, freezing, match):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    monkeypatch.setattr(Unlike, 'trace_copy', lambda self: fails(self, None))
    strategy = run((), space=Unlike(freezing), epochs=1, search_budget=1, mutation_hooks=[Doubled.mutate])
    best = next(strategy.list_models())
    network = best.executable_model()
    assert n_parameters(network) == n_parameters(strategy.supernet)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith('Exporting a copy of the supernet set to the architecture, not a frozen network: ')
    assert re.search(match, warning)
    assert 'stem is a Doubled, which takes its path in a way of its own' in warning
    assert pytest.approx(best.metric) == accuracy(network, strategy)


@pytest.mark.slow
def test_darts_is_exported_as_a_network_of_its_own(run):
    strategy = run((1,), space=DARTS(width=4, num_cells=3, dataset='cifar'), epochs=2, search_budget=2)
    for model in strategy.list_models(limit=2):
        network = model.executable_model()
        assert n_parameters(network) < n_parameters(strategy.supernet) / 3
        assert accuracy(network, strategy) == pytest.approx(model.metric, abs=1e-6)


class Widths(nas.ModelSpace):
    def __init__(self):
        super().__init__()
        width, kernel = nni.choice('width', [4, 8]), nni.choice('kernel', [1, 3])
        self.stem = nas.MutableConv2d(3, width, kernel_size=kernel, padding=kernel // 2)
        self.norm = nas.MutableBatchNorm2d(width)
        self.body = nas.MutableConv2d(width, 8, kernel_size=3, padding=1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))

    def forward(self, x):
        return self.head(self.body(self.norm(self.stem(x)).relu()))


@pytest.mark.parametrize('precision, dtype', [('64-true', torch.float64), ('bf16-true', torch.bfloat16)])
def test_a_run_in_another_precision_exports_in_it(experiment, evaluator, naslid, precision, dtype):
    strategy = naslid((), search_budget=2)
    experiment(Widths(), evaluator(1, precision=precision), strategy).run()
    for model in strategy.list_models(limit=2):
        network = model.executable_model()
        assert {tensor.dtype for tensor in network.parameters()} == {dtype}
        assert network.stem.out_channels == model.sample['width']
        assert accuracy(network, strategy, dtype) == pytest.approx(model.metric, abs=0.011)
