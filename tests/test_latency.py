"""Times of networks, and tables of what choices add to them."""

from nni_naslid import NASLID, SubSpace, measure_latency
from nni_naslid.run.constraints import parse_constraints, table_of
from nni_naslid.space.additive import choices_of
from nni_naslid.traits.latency import _Columns, _fitted
from nni_naslid.traits.limits import _read_only

import numpy as np
import pytest
import torch
from nni.mutable import Categorical
from nni.nas.hub.pytorch import NasBench101
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableConv2d, MutableLinear, Repeat
from numpy.random import RandomState
from torch import nn


class Deep(ModelSpace):
    """Up to three blocks of two kernels, at one of three widths."""

    def __init__(self):
        super().__init__()
        width = Categorical([16, 64, 128], label='width')
        self.stem = MutableConv2d(3, width, 1)
        self.body = Repeat(
            lambda i: LayerChoice({
                'skip': nn.Identity(), 'conv': MutableConv2d(width, width, 3, padding=1),
            }, label=f'op{i}'),
            (1, 3), label='depth',
        )  # fmt: skip
        self.head = MutableLinear(width, 4)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def milliseconds(sample) -> float:
    """A formula: depth, operations that are read, and parameters of these."""
    convs = sum(sample[f'op{i}'] == 'conv' for i in range(sample['depth']))
    return 2 + 0.25 * sample['depth'] + 0.5 * convs + 1e-5 * convs * (9 * sample['width'] ** 2 + sample['width'])


def test_a_table_says_what_a_formula_says():
    """Of operations that are read only, and of parameters, which depend on the width."""
    supernet = NASLID().mutate_model(Deep())
    space, random_state = SubSpace.of(supernet), RandomState(0)
    samples = [space.sample(random_state) for _ in range(120)]
    table, predicted = _fitted(_Columns.of(supernet, space, samples), np.array(list(map(milliseconds, samples))))
    assert predicted == pytest.approx(list(map(milliseconds, samples)), rel=0.02)
    choices = {label: choices_of(space, label) for label in space.mutables}
    (_, _, kept), *_ = parse_constraints({'ms': (None, 9, table)}).values()
    costs = _read_only(table_of('ms', kept, choices), supernet, space)
    for sample in (space.sample(random_state) for _ in range(100)):
        places = {label: each.index(sample[label]) for label, each in choices.items()}
        cost = sum(each[tuple(places[label] for label in labels)] for labels, each in costs.items())
        assert cost == pytest.approx(milliseconds(sample), rel=0.02)


@pytest.mark.slow
def test_times_are_of_the_device_and_make_a_limit(tmp_path, small):
    """Convolutions of 128 channels take many times as long as what else there is."""
    torch.manual_seed(0)
    space = Deep()
    before = {name: tensor.clone() for name, tensor in space.state_dict().items()}
    latency = measure_latency(space, torch.randn(2, 3, 32, 32), n_paths=50, min_run_time=0.005)
    assert all(torch.equal(tensor, before[name]) for name, tensor in space.state_dict().items())
    assert latency.milliseconds.shape == (len(latency.samples), 3) and (np.diff(latency.milliseconds) >= 0).all()
    convs = [sum(each[f'op{i}'] == 'conv' for i in range(each['depth'])) for each in latency.samples]
    wide = [each['width'] == 128 for each in latency.samples]
    times = {
        n: np.median(
            [time for time, *at in zip(latency.milliseconds[:, 1], convs, wide, strict=True) if at == [n, True]]
        )
        for n in (0, 2)
    }
    assert times[2] > 2 * times[0]
    assert str(latency).startswith(f'Latency({len(latency.samples)} networks, ')
    latency.save(tmp_path / 'table.json')
    limits = {'latency': (None, float(np.median(latency.milliseconds[:, 1])), tmp_path / 'table.json')}
    strategy = small(space=Deep, split_epochs=(), constraints=limits, search_budget=4)
    assert all(model.sample in strategy.tree.subspace for model in strategy.list_models(limit=4))
    assert {'width': 128, 'depth': 3, 'op0': 'conv', 'op1': 'conv', 'op2': 'conv'} not in strategy.tree.subspace


def test_what_cannot_be_timed():
    inputs = torch.randn(1, 3, 8, 8)
    with pytest.raises(TypeError, match=r'of which no supernet was made, but is a supernet\.'):
        measure_latency(NASLID().mutate_model(Deep()), inputs)
    with pytest.raises(TypeError, match=r'must be a model space .*, but is Linear'):
        measure_latency(nn.Linear(2, 2), inputs)
    with pytest.raises(ValueError, match='n_paths must be an integer of at least 10, but got 3'):
        measure_latency(Deep(), inputs, n_paths=3)
    with pytest.raises(ValueError, match=r'An architecture cannot be timed: RuntimeError: .*channels.*depth'):
        measure_latency(Deep(), torch.randn(1, 5, 8, 8))
    with pytest.raises(ValueError, match=r'parameters of features.0 \(NasBench101Cell\) depend on its whole graph'):
        measure_latency(NasBench101(8, 1, 1), inputs)
