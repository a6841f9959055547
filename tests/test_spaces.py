"""The spaces of NNI's hub from end to end, at toy size: train, split, search within a limit, export, start again."""

from nni_naslid import Fixed, SubSpace
from nni_naslid.run.record import read_record

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
    NasBench201,
    NASNet,
    ProxylessNAS,
    ShuffleNetSpace,
)
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.strategy import RandomOneShot
from small import make_evaluator
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


@pytest.mark.slow
@pytest.mark.parametrize('name', SPACES)
def test_a_space_of_the_hub(small, tmp_path, name):
    make, size = SPACES[name]
    pl.seed_everything(0)
    space = SubSpace.of(RandomOneShot().mutate_model(make()))
    networks = [make().freeze(space.sample(np.random.RandomState(seed))) for seed in range(6)]
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
    assert [(model.sample, model.metric) for model in again.list_models(limit=5)] == [
        (model.sample, model.metric) for model in models
    ]
    assert read_record(tmp_path).finished
