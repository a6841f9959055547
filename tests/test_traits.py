"""What can be told of a network without training it: live parameters by trying each, LID scores by hand."""

import copy
import sys
from itertools import combinations

from nni_naslid import lid_score
from nni_naslid.analysis.baselines import live_edges, nasbench201_costs
from nni_naslid.analysis.truth import DIGITS_TRUTH, load_truth, nasbench201_sample
from nni_naslid.criteria.zero_cost_scores import synflow
from nni_naslid.lid import lid_mle
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.data import Inputs
from nni_naslid.train.path import set_path
from nni_naslid.traits.live import live_parameters
from nni_naslid.traits.passes import flops, latency

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from nni.nas.hub.pytorch import DARTS, AutoFormer, MobileNetV3Space, NasBench201, ProxylessNAS
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.strategy import RandomOneShot
from numpy.random import RandomState
from scipy.stats import kendalltau, rankdata
from small import Convs, images, same_weights, tokens
from torch import nn

SPACES = {
    'NasBench201': (lambda: NasBench201(4, 1, 10), 8),
    'DARTS': (lambda: DARTS(4, 3, 'cifar'), 16),
    'MobileNetV3': (lambda: MobileNetV3Space(10, base_widths=(8,) * 9, width_multipliers=1.0), 64),
    'ProxylessNAS': (lambda: ProxylessNAS(10, base_widths=(8,) * 9), 32),
    'AutoFormer': (
        lambda: AutoFormer(
            search_embed_dim=(32, 48), search_mlp_ratio=(2.0, 4.0), search_num_heads=(2, 4), search_depth=(2, 3),
            img_size=16, patch_size=8, num_labels=10,
        ),
        16,
    ),
}  # fmt: skip


SLOW = 'DARTS', 'ProxylessNAS'
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SPACES]


def tried(network: nn.Module, x: torch.Tensor) -> int:
    """How many parameters are in tensors that change the output, each tried by itself."""
    network.double().eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, 0.1, 0.2)
    expected, n = network(x), 0
    for weight in network.parameters():
        before = weight.detach().clone()
        with torch.no_grad():
            weight.add_(torch.rand_like(weight) / 8)
            n += weight.numel() * bool((network(x) != expected).any())
            weight.copy_(before)
    return n


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ('ProxylessNAS', 'DARTS', 'MobileNetV3') else name
        for name in SPACES
    ],
)
def test_live_parameters_are_those_that_change_the_output(name):
    make, size = SPACES[name]
    torch.manual_seed(0)
    space = make()
    supernet = RandomOneShot().mutate_model(copy.deepcopy(space))
    x = torch.randn(4, 3, size, size)
    count, random_state = live_parameters(supernet, Inputs((x,), {})), RandomState(0)
    samples = [SubSpace.of(supernet).sample(random_state) for _ in range(12 if name == 'NasBench201' else 2)]
    if name == 'NasBench201':  # where no edge is live, rounding after the last norm makes a difference
        samples = [sample for sample in samples if live_edges(sample)]
    found = [count(sample) for sample in samples]
    assert found == [tried(copy.deepcopy(space).freeze(sample), x.double()) for sample in samples]
    assert [count(sample) for sample in samples] == found
    if name == 'NasBench201':  # which does not count the biases of norms of zeros
        assert kendalltau(found, nasbench201_costs(samples, 4, 1, 10, 8)['live parameters']).statistic > 0.9


def test_live_parameters_do_not_depend_on_the_weights():
    supernet = RandomOneShot().mutate_model(Convs())
    sample, inputs = {'stem': 1, 'body': 0}, Inputs((torch.randn(4, 3, 8, 8),), {})
    expected = live_parameters(supernet, inputs)(sample)
    assert expected == sum(weight.numel() for weight in Convs().freeze(sample).parameters())
    for value in (0.0, float('nan')):
        for weight in supernet.parameters():
            nn.init.constant_(weight, value)
        assert live_parameters(supernet, inputs)(sample) == expected


class Words(ModelSpace):
    """An embedding with sparse gradients, a table of indices, and a parameter without numbers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8, sparse=True)
        self.order = nn.Parameter(torch.tensor([[2, 1, 0]]), requires_grad=False)
        self.none = nn.Parameter(torch.empty(0, 3))
        self.body = LayerChoice([nn.Linear(8, 8), nn.Identity()], label='body')
        self.register_buffer('mask', torch.tensor([[True, False, True]]))

    def forward(self, x):
        return self.body(self.embedding(x)[:, self.order[0]] * self.mask[0, :, None]).mean(1)


def test_parameters_of_all_kinds():
    supernet = RandomOneShot().mutate_model(Words())
    inputs = Inputs((tokens().tensors[0],), {})
    assert [live_parameters(supernet, inputs)({'body': choice}) for choice in (0, 1)] == [400 + 72, 400]
    for choice in (0, 1):
        set_path(supernet, {'body': choice})
        assert synflow(supernet, inputs) > 0
    assert lid_score(Words(), [{'body': 0}, {'body': 1}], inputs.args[0]).isfinite().all()


def by_hand(space: Convs, sample: dict, x: torch.Tensor) -> float:
    network = copy.deepcopy(space).freeze(sample).train()  # batch norms by the batch
    features, logs = x, []
    for part in (network.stem, network.body, network.pool, lambda x: network.head(x.flatten(1))):
        features = part(features)
        logs.append(lid_mle(features.detach().flatten(1), 20).mean().log1p().item())
    return sum(logs) / 4


def test_the_score_is_that_of_the_formula():
    torch.manual_seed(0)
    space = Convs()
    x, y = images().tensors[0].split(48)
    samples = [{'stem': stem, 'body': body} for stem in range(3) for body in range(3)]
    before, state = copy.deepcopy(space.state_dict()), torch.get_rng_state()
    scores = lid_score(space, samples, [x, y])
    assert scores.tolist() == pytest.approx(
        [(by_hand(space, each, x) + by_hand(space, each, y)) / 2 for each in samples], rel=1e-4
    )
    assert lid_score(space, samples[:2], x, layers=['stem']).tolist() == pytest.approx(
        [lid_mle(copy.deepcopy(space).freeze(each).train().stem(x).detach().flatten(1), 20).mean().log1p().item()
         for each in samples[:2]], rel=1e-4,
    )  # fmt: skip
    supernet = RandomOneShot().mutate_model(copy.deepcopy(space))
    assert lid_score(supernet, samples, [x, y]).tolist() == scores.tolist()
    assert same_weights(space.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_scores_that_cannot_be_had():
    x = images().tensors[0]
    with pytest.raises(ValueError, match='n_neighbors must be less than a batch has samples, but got 20 and 20'):
        lid_score(Convs(), [{'stem': 0, 'body': 0}], [x, x[:20]])
    with pytest.raises(ValueError, match=r"estimator must be one of mle, two_nn, effective_rank, but got 'MLE'"):
        lid_score(Convs(), [], x, estimator='MLE')
    with pytest.raises(TypeError, match='batches must be a tensor, or tensors, but got'):
        lid_score(Convs(), [], x.numpy())
    with pytest.raises(TypeError, match='samples must be a list of architectures, but got'):
        lid_score(Convs(), {'stem': 0, 'body': 0}, x)
    with pytest.raises(ValueError, match=r"layers: 'neck' matches no block"):
        lid_score(Convs(), [{'stem': 0, 'body': 0}], x, layers=['neck'])
    with pytest.raises(ValueError, match=r"samples\[0\] has 7 for 'stem', which must be one of 0, 1, 2"):
        lid_score(Convs(), [{'stem': 7, 'body': 0}], x)
    assert lid_score(Convs(), [], x).shape == (0,)
    assert lid_score(Convs(), [{'stem': 0, 'body': 0}], torch.ones(64, 3, 8, 8)).tolist() == [0]


@pytest.mark.slow
def test_the_benchmark_of_the_examples(digits, tmp_path, monkeypatch, capsys):
    """Its weights are chosen on one half, its figures are of the other; all by hand from the scores."""
    import bench_lid_score

    monkeypatch.setattr(bench_lid_score, 'data_of', lambda *_: digits)
    options = '--epochs 8 --ranked 60 --seeds 0 --batch-size 40 --images 40 --n-neighbors 10 --whole-table'
    given = [*options.split(), '--runs', str(tmp_path / 'runs'), '--output', str(tmp_path / 'rows.csv')]
    monkeypatch.setattr(sys, 'argv', ['bench_lid_score.py', *given])
    bench_lid_score.main()
    rows = pd.read_csv(tmp_path / 'rows.csv').set_index(['on', 'scores'])
    names = [' + '.join(each) for each in bench_lid_score.COMBINATIONS]
    chosen = [
        f'{part}{name} of chosen layers' for name in ('initial LID', 'LID') for part in ('', 'live parameters + ')
    ]
    assert rows.loc[30].index.tolist() == ['initial LID of the first cell', 'LID of the first cell', *chosen, *names]
    assert rows.loc[500].index.tolist() == ['live parameters', 'LID', 'live parameters + LID']
    truth = load_truth(DIGITS_TRUTH, 'test_acc')
    ranked = truth.iloc[np.sort(np.random.RandomState(0).permutation(500)[:60])]
    other = np.random.RandomState(0).permutation(60) % 2 == 1
    samples = [nasbench201_sample(arch) for arch in ranked.index]
    live = nasbench201_costs(samples, 8, 1, 10, 8)['live parameters']
    expected = kendalltau(live[other], ranked[other]).statistic
    assert rows['tau'][30, 'live parameters'] == pytest.approx(expected, abs=1e-4)
    pl.seed_everything(0, verbose=False)
    images = digits.train.tensors[0][np.random.RandomState(0).permutation(200)[:40]]
    initial = NasBench201(8, 1, 10)
    lid = lid_score(initial, samples, images, n_neighbors=10).numpy()
    expected = kendalltau(lid[other], ranked[other]).statistic
    assert rows['tau'][30, 'initial LID'] == pytest.approx(expected, abs=1e-4)
    weights = [float(weight) for weight in rows['weights'][30, 'live parameters + initial LID'].split()]
    both = sum(weight * rankdata(values) for weight, values in zip(weights, (live, lid), strict=True))
    expected = kendalltau(both[other], ranked[other]).statistic
    assert rows['tau'][30, 'live parameters + initial LID'] == pytest.approx(expected, abs=1e-4)
    by_layer = [lid_score(initial, samples, images, layers=[f'cells.{i}'], n_neighbors=10).numpy()
                for i in range(5)]  # fmt: skip
    found = {}
    for layers in (each for n in range(1, 6) for each in combinations(range(5), n)):
        values = np.mean([by_layer[i] for i in layers], 0)
        top = set(np.argsort(values[~other])[::-1][:3]) & set(np.argsort(ranked.to_numpy()[~other])[::-1][:3])
        found[layers] = kendalltau(values[~other], ranked[~other]).statistic + len(top) / 3
    best = max(found, key=found.get)
    weight, *layers = rows['weights'][30, 'initial LID of chosen layers'].split(' of ')
    assert (weight, layers) == ('1', [' '.join(f'cells.{i}' for i in best)])
    expected = kendalltau(np.mean([by_layer[i] for i in best], 0)[other], ranked[other]).statistic
    assert rows['tau'][30, 'initial LID of chosen layers'] == pytest.approx(expected, abs=1e-4)
    assert 'spearman_given_live' in capsys.readouterr().out


def test_layers_that_tell_nothing_are_chosen_without_the_truth():
    import bench_lid_score

    by_layer, half = {'cells.0': np.ones(20), 'cells.1': np.ones(20)}, np.arange(20) < 10
    name, values = bench_lid_score.of_chosen_layers(by_layer, None, half, np.arange(20.0))
    assert name == '1 of cells.0' and len(set(values)) == 1


class ToItself(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x)


class Attention(ModelSpace):
    """What PyTorch has fused operations for."""

    def __init__(self):
        super().__init__()
        self.kind = LayerChoice(
            {
                'attention': ToItself(8, 2, batch_first=True),
                'lstm': nn.LSTM(8, 8, batch_first=True),
                'linear': nn.Linear(8, 8),
                'deep': nn.Sequential(*(nn.Linear(8, 8) for _ in range(100))),
            },
            label='kind',
        )

    def forward(self, x):
        return self.kind(x)


def test_flops_by_hand():
    """Of 3 texts of 5 words: each linear map has 2 x 8 x 8 a word, attention 2 x 2 x 5 x 5 x 8 a text."""
    supernet = RandomOneShot().mutate_model(Attention())
    inputs = Inputs((torch.randn(3, 5, 8),), {})
    count = flops(supernet, inputs)
    linear = 2 * 8 * 8 * 3 * 5
    assert count({'kind': 'linear'}) == linear
    assert count({'kind': 'deep'}) == 100 * linear
    assert count({'kind': 'attention'}) == 4 * linear + 3 * 2 * 2 * 5 * 5 * 8
    assert count({'kind': 'lstm'}) == 4 * 2 * linear  # four gates, each of the word and of the state
    assert torch.backends.mha.get_fastpath_enabled() and torch.backends.mkldnn.enabled
    seconds = latency(supernet, inputs)
    assert seconds({'kind': 'deep'}) > 5 * seconds({'kind': 'linear'}) > 0
