"""Cells of NAS-Bench-101 in a supernet: what NNI's fixed cell computes with the same weights."""

import copy
import json
import pickle

from nni_naslid import NSGA2, Bands, SubSpace
from nni_naslid.criteria.zero_cost_scores import naswot
from nni_naslid.finished import open_search
from nni_naslid.search.batchnorm import recalibrate
from nni_naslid.search.export import frozen_network
from nni_naslid.search.export_files import load_network
from nni_naslid.space.reads import same_network
from nni_naslid.train.data import Inputs
from nni_naslid.train.nasbench101 import PathSamplingNasBench101Cell
from nni_naslid.train.path import choices_read, graphs_of, labels_read, set_path
from nni_naslid.train.reads import conditions_of_labels
from nni_naslid.train.supernet import make_supernet
from nni_naslid.traits.live import live_parameters
from nni_naslid.traits.passes import flops

import nni.nas.nn.pytorch as nas
import numpy as np
import pytest
import torch
from nni.nas.hub.pytorch import NasBench101
from nni.nas.hub.pytorch.modules.nasbench101 import NasBench101Cell
from small import Plain, make_evaluator
from torch import nn


def small_nasbench101(width: int = 7, n_nodes: int = 7) -> NasBench101:
    """Two cells; of a width that three or four vertices do not divide evenly."""
    return NasBench101(width, 2, 1, n_nodes, num_labels=4, bn_eps=1e-3, bn_momentum=0.1)


@pytest.fixture(scope='module')
def trained():
    """A supernet with other weights and batch norms than it was made with, its space, and what it is called with."""
    torch.manual_seed(0)
    supernet = make_supernet(small_nasbench101())
    space, random_state = SubSpace.of(supernet), np.random.RandomState(0)
    x = torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        for weight in supernet.parameters():
            weight += 0.1 * torch.randn_like(weight)
    for _ in range(30):
        set_path(supernet, space.sample(random_state))
        supernet(x + torch.randn_like(x))
    return supernet.eval(), space, x


def fixed(supernet, sample) -> nn.Module:
    """NNI's own frozen network, made anew, with the weights that the supernet has for it: the first of each."""
    network = small_nasbench101().freeze(sample).eval()
    for part, wide in zip(network.features, supernet.features, strict=True):
        if not hasattr(part, 'connection_matrix'):
            continue
        last = sample['cell/num_nodes'] - 1
        edges = [(u, v) for v in range(1, last + 1) for u in sample[f'cell/input{v}']]
        ways = reached([0], edges) & reached([last], [(v, u) for u, v in edges])
        for i, vertex in enumerate(sorted(ways - {0}), start=1):
            pairs = [(part.projections[i], wide.projections[vertex if vertex != last else -1])]
            if vertex != last:
                pairs.append((part.ops[i], wide.ops[vertex][sample[f'cell/op{vertex}']]))
            for narrow, full in pairs:
                state = full.state_dict()
                narrow.load_state_dict(
                    {name: state[name][tuple(map(slice, tensor.shape))] for name, tensor in narrow.state_dict().items()}
                )
    for name in ('stem_conv', 'classifier'):
        getattr(network, name).load_state_dict(getattr(supernet, name).state_dict())
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    return network


def reached(vertices, edges):
    found = set(vertices)
    while more := {v for u, v in edges if u in found} - found:
        found |= more
    return found


def output(network, x):
    with torch.no_grad():
        return network(x)


@pytest.mark.slow
def test_it_computes_what_the_fixed_cell_does(trained):
    supernet, space, x = trained
    random_state, n_nodes = np.random.RandomState(1), set()
    for i in range(36):
        sample = space.sample(random_state)
        n_nodes.add(sample['cell/num_nodes'])
        set_path(supernet, sample)
        expected = output(fixed(supernet, sample), x)
        assert torch.equal(output(supernet, x), expected)
        if i % 6 == 0:
            network, why = frozen_network(supernet, sample, Inputs((x,), {}))
            assert network is not None, why
            assert torch.equal(output(network, x), expected)
            assert not any(isinstance(part, PathSamplingNasBench101Cell) for part in network.modules())
            assert all(part.eps == 1e-3 for part in network.modules() if isinstance(part, nn.BatchNorm2d))
            pickle.dumps(network)
    assert len(n_nodes) > 3


def test_training_goes_the_same_way_and_leaves_other_channels_alone(trained):
    supernet, space, x = trained
    supernet, y = copy.deepcopy(supernet).train(), torch.arange(6) % 4
    sample = {label: choice[0] if isinstance(choice, tuple) else choice for label, choice in space.extremes[1].items()}
    sample |= {'cell/num_nodes': 5, 'cell/op2': 'conv3x3-bn-relu', 'cell/op1': 'conv1x1-bn-relu',
               'cell/input1': [0], 'cell/input2': [0, 1], 'cell/input3': [0], 'cell/input4': [0, 1, 2, 3]}  # fmt: skip
    network = fixed(supernet, sample).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    set_path(supernet, sample)
    before = copy.deepcopy(supernet.state_dict())
    for each in (network, supernet):
        nn.functional.cross_entropy(each(x), y).backward()
        with torch.no_grad():
            for weight in each.parameters():
                weight -= 0 if weight.grad is None else 0.1 * weight.grad
    expected = output(network.eval(), x)
    assert torch.allclose(output(supernet.eval(), x), expected, atol=1e-5)
    conv = 'features.0.ops.2.conv3x3-bn-relu.conv_bn_relu.0.weight'
    norm = 'features.0.ops.2.conv3x3-bn-relu.conv_bn_relu.1.running_var'
    after = supernet.state_dict()
    for name in (conv, norm):  # 7 channels, divided into 3, 2, 2
        changed = (after[name] != before[name]).flatten(1).any(1) if name == conv else after[name] != before[name]
        assert changed.tolist() == [True] * 2 + [False] * 5
    assert all((after[name] == before[name]).all() for name in after if 'ops.4' in name)


def test_what_is_read_against_trying_it_out(trained):
    """A choice that is not read makes no difference to the output; one of an operation that is read does."""
    supernet, space, x = trained
    random_state = np.random.RandomState(2)
    n_unread = n_ops = 0
    for _ in range(25):
        sample = space.sample(random_state)
        read = labels_read(supernet, sample)
        set_path(supernet, sample)
        expected = output(supernet, x)
        for label in space.mutables:
            others = [space.mutables[label].random(random_state=random_state) for _ in range(3)]
            if label not in read:
                for other in others:
                    changed = {**sample, label: other}
                    if changed in space:  # not more edges than there may be
                        set_path(supernet, changed)
                        assert torch.equal(output(supernet, x), expected)
                        n_unread += 1
            elif '/op' in label:
                for other in space.splittable[label]:
                    set_path(supernet, {**sample, label: other})
                    assert torch.equal(output(supernet, x), expected) == (other == sample[label])
                    n_ops += 1
        chosen = choices_read(supernet, sample)
        plain = space.canonical({**sample, **chosen}, chosen)
        assert plain in space and chosen.keys() == labels_read(supernet, plain)
        set_path(supernet, plain)
        assert torch.equal(output(supernet, x), expected)
    assert n_unread > 50 and n_ops > 50


def test_samples_of_one_network_have_one_name(trained):
    """Also for who looks at a run, without the model; and only those whose fixed cells are the same, of any size."""
    supernet, space, _ = trained
    graphs, read_if = graphs_of(supernet), json.loads(json.dumps(conditions_of_labels(supernet, space)))
    assert len(graphs) == 1 and not read_if
    random_state, keys = np.random.RandomState(3), {}
    for _ in range(400):
        sample = space.sample(random_state)
        sample['cell/num_nodes'] = min(sample['cell/num_nodes'], 4)  # so few that many are the same
        if sample not in space:
            continue
        chosen = choices_read(supernet, sample)
        plain = space.canonical({**sample, **chosen}, chosen)
        assert same_network(space, read_if, json.loads(json.dumps(sample)), graphs) == plain
        read = {label: sample[label] for label in labels_read(supernet, sample)}
        assert same_network(space, read_if, read, graphs) == plain
        assert same_network(space, read_if, {k: v for k, v in sample.items() if k != 'cell/num_nodes'}, graphs) is None
        last = sample['cell/num_nodes'] - 1
        edges = [(u, v) for v in range(1, last + 1) for u in sample[f'cell/input{v}']]
        ways = reached([0], edges) & reached([last], [(v, u) for u, v in edges])
        ops = [(v, sample[f'cell/op{v}']) for v in sorted(ways - {0, last})]
        network = str((sorted((u, v if v < last else 99) for u, v in edges if ways.issuperset((u, v))), ops))
        assert keys.setdefault(str(plain), network) == network
    assert len(set(keys.values())) == len(keys) > 20
    for none in ('other', 99):  # only not of the space
        assert same_network(space, read_if, dict.fromkeys(space.mutables, none), graphs) is not None
    assert same_network(space, read_if, {'other': 1}, graphs) is None


def test_sizes_and_statistics_are_those_of_the_frozen_network(trained):
    supernet, space, x = trained
    supernet = copy.deepcopy(supernet)
    live, random_state, inputs = live_parameters(supernet, Inputs((x,), {})), np.random.RandomState(4), Inputs((x,), {})
    for _ in range(12):
        sample = space.sample(random_state)
        network = supernet.freeze(sample).eval()
        assert live(sample) == live_parameters(network, inputs)({})
        assert flops(supernet, inputs)(sample) == flops(network, inputs)({})
        set_path(supernet, sample)
        assert naswot(supernet, inputs) == pytest.approx(naswot(network, inputs))
        for each in (supernet, network):
            recalibrate(each, [inputs, Inputs((x.flip(0) * 2,), {})])
        assert torch.equal(output(supernet, x), output(network, x))


def test_choices_that_are_no_cell_give_zeros(trained):
    supernet, space, _ = trained
    with pytest.raises(RuntimeError, match='No path of NasBench101Cell is set'):
        make_supernet(small_nasbench101())(torch.randn(2, 3, 8, 8))
    cell = supernet.features[0]
    for broken in ({'cell/num_nodes': 2, 'cell/input1': []}, {f'cell/input{i}': list(range(i)) for i in range(1, 7)}):
        sample = {**space.extremes[1], **broken}
        assert sample not in space
        set_path(supernet, sample)
        assert output(cell, torch.randn(2, 7, 4, 4)).equal(torch.zeros(2, 7, 4, 4))
    drawn = cell.resample({'cell/num_nodes': 3})
    assert drawn.keys() == set(cell.graph.labels) - {'cell/num_nodes'}
    assert {**drawn, 'cell/num_nodes': 3} in space
    with pytest.raises(RuntimeError, match=r'cell/op1.* go with the others'):
        cell.resample({'cell/num_nodes': 2, 'cell/input1': []})


class Norms(nn.Module):
    """Whose arguments, not only the shapes of its parameters, depend on its width."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=width)
        self.norm = nn.GroupNorm(width, width)
        self.register_buffer('seen', torch.zeros(width))
        self.width = width

    def forward(self, x):
        assert x.shape[1] == self.width
        if self.training:
            self.seen = self.seen + x.detach().mean((0, 2))  # not in place
        return self.norm(self.conv(x)) + self.seen.view(-1, 1)


class Own(nas.ModelSpace):
    def __init__(self, op=Norms, out_features: int = 9):
        super().__init__()
        ops = {'plain': op, 'none': lambda width: nn.Identity()}
        self.cell = NasBench101Cell(ops, 3, out_features, lambda i, o: nn.Conv1d(i, o, 1), 6, 9, label='own')

    def forward(self, x):
        return self.cell(x)


def test_modules_of_a_users_own():
    supernet = make_supernet(Own())
    space, random_state, x = SubSpace.of(supernet), np.random.RandomState(0), torch.randn(4, 3, 5)
    for training in (True, False):
        for _ in range(20):
            sample = space.sample(random_state)
            set_path(supernet, sample)
            network = copy.deepcopy(supernet.freeze(sample))
            assert torch.equal(supernet.train(training)(x), network.train(training)(x))
            after = supernet.freeze(sample).state_dict()
            assert all(torch.equal(after[name], tensor) for name, tensor in network.state_dict().items())
    assert supernet.cell.ops[1]['plain'].seen.any() and supernet.cell.ops[1]['plain'].width == 9


def test_what_cannot_share_weights_is_refused():
    class Grows(nn.Linear):
        def __init__(self, width: int):
            super().__init__(20 - width, width)

    def choice(width: int) -> nn.Module:
        return nas.LayerChoice([nn.Identity(), nn.Tanh()], label='inner')

    with pytest.raises(TypeError, match=r'plain of NasBench101Cell .*weight \[9, 11\].* \[2, 18\]'):
        make_supernet(Own(Grows))
    with pytest.raises(TypeError, match=r'ops.1.plain of NasBench101Cell has choices of its own.*inner'):
        make_supernet(Own(choice))
    with pytest.raises(ValueError, match='up to 4 parts, so out_features must be at least 4, but is 3'):
        make_supernet(Own(out_features=3))


def n_labels(sample) -> int:
    return len(sample)


def test_a_search_for_cheap_networks_and_its_files(small, tmp_path):
    """Crossing two networks may give what the constraint of the cell forbids."""

    def made():
        return make_evaluator(Plain(), epochs=1)

    def space():
        return small_nasbench101(n_nodes=5)

    search = NSGA2(['flops'], population_size=4)
    strategy = small(made(), space, (), search=search, search_budget=16)
    models, x = list(strategy.list_models(limit=16)), torch.randn(3, 3, 8, 8)
    assert len(models) == 16 and all(model.sample in strategy.tree.subspace for model in models)
    before = copy.deepcopy([model.sample for model in models])
    costs = strategy.costs(before[:1], ['parameters', 'test_nasbench101.n_labels'])[0]
    strategy.export(top=2)
    for i, model in enumerate(models[:2], start=1):
        network = load_network(tmp_path / 'export' / str(i), space())
        assert torch.equal(output(network, x), output(model.executable_model(), x))
    scorer, found = open_search(tmp_path, space(), made())
    assert [sample for sample, _ in found] == before == [model.sample for model in models]
    assert costs['test_nasbench101.n_labels'] == len(before[0])
    assert torch.equal(output(scorer.instance(found[0][0]), x), output(models[0].executable_model(), x))


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        ({'constraints': {'flops': (None, 1e9)}}, "choices of 'cell/num_nodes' have different weights.* function"),
        ({'constraints': {'parameters': (None, 1e6)}}, "choices of 'cell/num_nodes' have different weights.* function"),
        ({'criterion': Bands('convolutions')}, 'convolutions of features.0 .NasBench101Cell. depend on its whole'),
        ({'criterion': 'bands'}, r"choices of 'cell/num_nodes' have the weights .* such as LID\(\)"),
        ({'lr_by_size': True}, 'parameters of features.0 .NasBench101Cell. depend on its whole graph'),
        ({'sampling': 'balanced'}, 'convolutions of features.0 .NasBench101Cell. depend on its whole graph'),
        ({'sampling': 'sandwich'}, 'parameters of features.0 .NasBench101Cell. depend on its whole graph'),
        ({'sampling': 'fair'}, 'a constraint between choices would not let all paths pass'),
    ],
)
def test_what_cannot_be_counted_is_refused_before_training(small, settings, match):
    with pytest.raises(ValueError, match=match):
        small(make_evaluator(Plain()), space=lambda: small_nasbench101(n_nodes=4), **settings)
