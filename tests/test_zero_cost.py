"""Zero-cost scores are those of numpy and of formulas; splits by them are those that were put into the space."""

import json
import logging
import math
from dataclasses import replace
from itertools import product

from nni_naslid import ZeroCost, lid_score
from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.named import check_travels, criterion_of
from nni_naslid.criteria.partition import best_partition
from nni_naslid.criteria.scoring import as_profiles
from nni_naslid.criteria.zero_cost_scores import naswot, snip, synflow
from nni_naslid.run.spec import make
from nni_naslid.train.data import Inputs

import numpy as np
import pytest
import torch
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.strategy import RandomOneShot
from numpy.random import RandomState
from small import Convs, Plain, images, make_context, make_evaluator, same_weights
from torch import nn
from torch.utils.data import TensorDataset


def relus() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 30), nn.ReLU(), nn.Linear(30, 20), nn.BatchNorm1d(20), nn.ReLU(inplace=True))


def test_naswot_is_the_log_determinant_of_the_shared_codes():
    model, x = relus(), torch.randn(7, 5)
    first = model[0](x)
    second = model[2](first.relu())
    second = (second - second.mean(0)) / (second.var(0, correction=0) + 1e-5).sqrt()
    codes = torch.cat([first, second], 1).detach().numpy() > 0
    kernel = np.zeros((7, 7))
    for i, j in product(range(7), range(7)):
        kernel[i, j] = 50 - sum(a != b for a, b in zip(codes[i], codes[j], strict=True))
    assert np.linalg.eigvalsh(kernel).min() > 1
    assert naswot(model, x) == pytest.approx(np.linalg.slogdet(kernel)[1])
    assert naswot(model, Inputs((), {'input': x})) == naswot(model, x)


def test_naswot_of_samples_that_are_not_told_apart_is_finite():
    model = nn.Sequential(nn.Linear(5, 30), nn.ReLU())
    x = torch.randn(4, 5)
    assert naswot(model, x[[0, 0, 0, 0]]) == pytest.approx(math.log(4 * 30))  # one eigenvalue, three are 0
    assert 0 < naswot(model, x[[0, 1, 2, 2]]) < naswot(model, x)
    assert naswot(Skipped(), x) == 0


class Skipped(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        return x


class Rows(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x).repeat(2, 1))


def test_what_naswot_needs():
    with pytest.raises(ValueError, match=r'^naswot needs modules of nn\.ReLU, but Linear has none\.$'):
        naswot(nn.Linear(5, 3), torch.randn(4, 5))
    with pytest.raises(ValueError, match=r'^naswot needs ReLUs that get a row .* those of Rows get 4 and 8 rows\.$'):
        naswot(Rows(nn.ReLU(), nn.ReLU()), torch.randn(4, 5))


def test_synflow_of_a_chain_is_its_flow_once_for_each_layer():
    chain = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False), nn.Linear(3, 2, False))
    ws = [abs(chain[i].weight.detach().numpy().astype(float)) for i in (0, 2, 3)]
    flow = (np.ones(2) @ ws[2] @ ws[1] @ ws[0] @ np.ones(4)).item()
    assert synflow(chain, torch.randn(9, 4)) == pytest.approx(3 * flow)

    norm = nn.BatchNorm1d(3)
    norm.running_var.fill_(4.0)
    norm.weight.data = torch.tensor([1.0, -2.0, 3.0])
    normed = nn.Sequential(*chain[:3], norm, chain[3]).train()
    scale = np.array([1.0, 2.0, 3.0]) / np.sqrt(4 + 1e-5)
    flow = (np.ones(2) @ ws[2] @ np.diag(scale) @ ws[1] @ ws[0] @ np.ones(4)).item()
    assert synflow(normed, torch.randn(9, 4)) == pytest.approx(3 * flow)  # the norm's own factors are not scored


def test_synflow_of_a_deep_chain_and_of_a_cut_one():
    deep = nn.Sequential(*(nn.Linear(50, 50, bias=False) for _ in range(60)))
    for layer in deep:
        nn.init.constant_(layer.weight, -2.0)  # 100 times as much after each layer: float32 ends at 1e38
    assert math.log10(synflow(deep, torch.zeros(2, 50))) == pytest.approx(math.log10(60 * 50) + 2 * 60)
    assert synflow(nn.Sequential(nn.Linear(4, 4), nn.Flatten(), Cut()), torch.randn(2, 4)) == 0
    assert synflow(Skipped(), torch.randn(2, 4)) == 0
    words = nn.Embedding(3, 2)
    flow = 3 * words.weight[1].abs().sum().item()  # of numbers that are no features, ones too
    assert synflow(words, torch.tensor([[0, 2, 2], [1, 1, 2]])) == pytest.approx(flow)


class Cut(nn.Module):
    def forward(self, x):
        return x * 0


class Mean(Plain):
    def loss(self, batch):
        return self(batch[0]).mean() + 0 * batch[1].sum()


def lightning(model: nn.Module) -> Mean:
    module = Mean()
    module.set_model(model)
    return module


def test_snip_of_a_linear_network():
    model, x = nn.Linear(4, 3), torch.randn(6, 4)
    right = np.abs(model.weight.detach().numpy() * x.mean(0).numpy() / 3).sum()
    assert snip(lightning(model), (x, torch.zeros(6))) == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize('score', ['naswot', 'synflow', 'snip'])
@pytest.mark.parametrize('fails', [False, True])
def test_a_score_leaves_no_trace(score, fails):
    def wrong(*args):
        torch.rand(1)
        raise ArithmeticError

    model, x = nn.Sequential(relus(), nn.Dropout(0.5), nn.Linear(20, 3)), torch.randn(6, 5)
    module = lightning(model)
    model[0][0].weight.grad = torch.ones(30, 5)
    model.eval()
    model[0].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    held = [(id(weight), weight.data_ptr(), weight.dtype) for weight in model.parameters()]
    modes, buffers = [part.training for part in model.modules()], [id(each) for each in model.buffers()]
    random = torch.get_rng_state()
    if fails:
        model[2].register_forward_pre_hook(wrong)

    def compute() -> float:
        if score == 'snip':
            return snip(module, (x, torch.zeros(6)))
        return {'naswot': naswot, 'synflow': synflow}[score](model, x)

    if fails:
        with pytest.raises(ArithmeticError):
            compute()
    else:
        assert compute() > 0
    assert same_weights(before, model.state_dict())
    assert held == [(id(weight), weight.data_ptr(), weight.dtype) for weight in model.parameters()]
    assert modes == [part.training for part in model.modules()]
    assert buffers == [id(each) for each in model.buffers()]
    assert [weight.grad is None for weight in model.parameters()] == [False, *[True] * 7]
    assert (model[0][0].weight.grad == 1).all()
    assert all(weight.requires_grad for weight in model.parameters())
    assert fails or torch.equal(random, torch.get_rng_state())


# What contrasts mean.


def of_groups(difference: float, n_repeats: int = 400) -> dict[str, torch.Tensor]:
    """Scores of two labels: of one candidates 0 and 1 are lower than 2, of the other all are the same."""
    of_path = torch.tensor(RandomState(0).uniform(-1, 1, (n_repeats, 1)))
    return {'a': of_path + torch.tensor([0, 0, difference]), 'b': of_path.expand(-1, 3)}


def contrast_of(scores: dict[str, torch.Tensor], label: str = 'a', score: str = 'naswot') -> float:
    return best_partition(as_profiles(scores, score)[label], n_permutations=0).score


def test_a_contrast_is_of_standard_deviations():
    """Uniform scores between -1 and 1, cut at .9: their variance is .324, and 90 % of the difference are left."""
    scores = of_groups(0.1)
    assert contrast_of(scores) == pytest.approx(1 - math.exp(-((0.1 * 0.9) ** 2) / 0.324), rel=0.1)
    assert contrast_of(scores, 'b') == pytest.approx(0)
    assert contrast_of(of_groups(0.1 * math.sqrt(0.324) / 0.9)) == pytest.approx(0.01, rel=0.1)


def test_the_scale_of_a_score_does_not_count():
    scores = of_groups(0.3)
    right = contrast_of(scores)
    assert contrast_of({label: 1e6 * each - 1e9 for label, each in scores.items()}) == pytest.approx(right)
    sums = {label: (each + 20).expm1() for label, each in scores.items()}  # over orders of magnitude
    for score in ('synflow', 'snip'):
        assert contrast_of(sums, score=score) == pytest.approx(right)


def test_a_few_scores_that_are_far_from_all_others_do_not_hide_a_difference():
    scores = of_groups(0.3)
    right = contrast_of(scores)
    scores = {label: each.clone() for label, each in scores.items()}
    scores['b'][:4] = -1e9
    scores['a'][4:6] = 1e9
    assert contrast_of(scores) == pytest.approx(right, rel=0.1)


def test_scores_that_are_not_finite_are_the_lowest():
    worse = of_groups(0.3)
    worse['a'][3, 0], worse['a'][5, 1] = torch.nan, torch.inf
    profiles = as_profiles(worse, 'naswot')['a']
    assert (profiles >= 0).all() and profiles.isfinite().all()
    assert profiles[3, 0] == profiles[5, 1] == 0
    assert (as_profiles({'a': torch.ones(8, 3)}, 'naswot')['a'] == 0).all()
    with pytest.raises(RuntimeError, match=r'^No path has a finite naswot\.$'):
        as_profiles({'a': torch.full((8, 3), torch.nan)}, 'naswot')


# The criterion.


class Scale(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return self.factor * x


class Factors(ModelSpace):
    """Two of the four candidates let ten times as much through; the other label is about nothing."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(8, 5)
        self.side = LayerChoice([Scale(1.0), Scale(1.0)], label='side')
        self.kind = LayerChoice([Scale(1.0), Scale(10.0), Scale(1.1), Scale(-9.0)], label='kind')
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.kind(self.side(self.shared(x))).abs())


def context_of(tmp_path, space=None, module=None) -> Context:
    data = images(24) if space is None else TensorDataset(torch.randn(24, 8), torch.zeros(24))
    evaluator = make_evaluator(module, train=DataLoader(data, 12))
    supernet = RandomOneShot().mutate_model(Convs() if space is None else space)
    return make_context(evaluator, supernet, tmp_path / 'notes.jsonl')


calls = []


def mean_output(network, inputs):
    """A score of a user's."""
    calls.append(inputs)
    return -network(inputs).mean()


def undefined(network, inputs):
    value = network(inputs).mean().item()
    return value if value < 3 else math.nan


@pytest.mark.parametrize('score', ['synflow', 'snip', mean_output])
def test_candidates_of_different_scores_are_split(tmp_path, score):
    criterion = ZeroCost(score)
    context = context_of(tmp_path, Factors(), Mean())
    evidence = criterion.choose(context).evidence
    assert (evidence.label, evidence.partition.groups) == ('kind', [[0, 2], [1, 3]])
    assert evidence.objection is None
    assert evidence.contrasts['side'].score == pytest.approx(0)
    assert evidence.n_passes == (1 if score is mean_output else 3) * 5 * evidence.n_repeats
    means = np.array([evidence.scalars()[f'score/kind/{i}'] for i in range(4)])
    assert means == pytest.approx(means[0] * np.array([1, 10, 1.1, 9]), rel=0.1)
    assert len(evidence.figure('Node 0').axes) == 4  # with the colour bar


class Dead(ModelSpace):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(8, 40)
        self.kind = LayerChoice([nn.Identity(), Cut(), nn.Linear(40, 40)], label='kind')
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.kind(self.stem(x)))


def test_naswot_tells_a_dead_candidate_from_others(tmp_path):
    evidence = ZeroCost().choose(context_of(tmp_path, Dead(), Mean())).evidence
    assert (evidence.label, evidence.partition.groups, evidence.objection) == ('kind', [[0, 2], [1]], None)


class Wide(ModelSpace):
    """One candidate leaves three directions of eight."""

    def __init__(self):
        super().__init__()
        self.kind = LayerChoice([nn.Identity(), Scale(2.0), nn.Linear(8, 3)], label='kind')
        self.head = Head()

    def forward(self, x):
        return self.head(self.kind(x))


class Head(nn.Module):
    def forward(self, x):
        return x.sum(1)


def test_lid_is_a_score_as_others_are(tmp_path):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(60, 8), torch.zeros(60))
    supernet = RandomOneShot().mutate_model(Wide())
    context = make_context(make_evaluator(Mean(), train=DataLoader(data, 30)), supernet, tmp_path / 'notes.jsonl')
    criterion = ZeroCost('lid', repeats=32)
    context = replace(context, checked=json.loads(json.dumps(criterion.check(context))))
    evidence = criterion.choose(context).evidence
    assert (evidence.label, evidence.partition.groups, evidence.objection) == ('kind', [[0, 1], [2]], None)
    batches = [data.tensors[0][i : i + 30] for i in (0, 30)]  # which are taken in turn
    of_candidates = [lid_score(supernet, [{'kind': i}], batches, n_neighbors=20).item() for i in range(3)]
    assert evidence.means == pytest.approx(of_candidates)
    assert evidence.n_passes == 3 * evidence.n_repeats == criterion.cost(context.subspace) * evidence.n_repeats / 32


def test_lid_needs_more_than_20_samples_in_a_batch(small):
    with pytest.raises(ValueError, match='LID takes 20 neighbours, so training batches must have at least 21 samples'):
        small(make_evaluator(Plain(), train=DataLoader(images(24), 12)), criterion=ZeroCost('lid'))


class Saturated(ModelSpace):
    """SynFlow sends ones: what is above 6 passes nothing back, whatever the candidate."""

    def __init__(self):
        super().__init__()
        self.kind = LayerChoice([Scale(10.0), Scale(20.0)], label='kind')
        self.relu = nn.ReLU6()
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.relu(self.kind(x)))


def test_a_score_that_tells_no_networks_apart_is_said_before_training(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    ZeroCost('synflow').check(context_of(tmp_path, Factors(), Mean()))
    assert not caplog.records
    context = context_of(tmp_path, Saturated(), Mean())
    ZeroCost('synflow').check(context)
    flow = 6 * context.supernet.head.weight.abs().sum().item()
    assert f'ZeroCost: synflow is {flow:g} of the smallest and of the largest network.' in caplog.text


def test_candidates_without_a_finite_score_are_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    with caplog.at_level(logging.WARNING):
        evidence = ZeroCost(undefined).choose(context_of(tmp_path, Factors(), Mean())).evidence
    name = f'{__name__}.undefined'
    assert f'{name} is not finite with 1 for kind in 100 % of the repeats; it counts as the lowest.' in caplog.text
    assert 'with 0 for kind' not in caplog.text and 'for side' not in caplog.text
    assert evidence.means[1] is None and 'score/kind/1' not in evidence.scalars()
    assert len(evidence.figure('Node 0').axes) == 4


def test_what_was_scored_before_a_kill_is_not_scored_again(tmp_path):
    context, criterion = context_of(tmp_path), ZeroCost(mean_output, repeats=8)
    calls.clear()
    split = criterion.choose(context)
    assert len(calls) == 8 * 5 and criterion.cost(context.subspace) == 8 * 5
    calls.clear()
    again = criterion.choose(replace(context, random_state=RandomState(0)))
    assert not calls and again.evidence == split.evidence


# What cannot work is named before training.


class Quiet(ModelSpace):
    def __init__(self):
        super().__init__()
        self.kind = LayerChoice([nn.Identity(), nn.Tanh()], label='kind')
        self.head = nn.Linear(3 * 64, 4)

    def forward(self, x):
        return self.head(self.kind(x).flatten(1))


class NoLoss(Plain):
    def training_step(self, batch, batch_idx):
        return None


def broken(network, inputs):
    return network(inputs).no_such_thing


def wordy(network, inputs):
    return 'very good'


def matrix(network, inputs):
    return network(inputs)


@pytest.mark.parametrize(
    'score, space, module, match',
    [
        ('naswot', Quiet, Plain, r'naswot needs modules of nn\.ReLU, but Quiet has none\.'),
        ('snip', Convs, NoLoss, r'training_step of NoLoss must return a loss with a gradient, but returned None\.'),
        (broken, Convs, Plain, r"score: test_zero_cost\.broken raised AttributeError: 'Tensor' object has no .*"),
        (wordy, Convs, Plain, r"score: test_zero_cost\.wordy must return a number, but returned 'very good'\."),
        (matrix, Convs, Plain, r'score: test_zero_cost\.matrix must return a number, but returned tensor.*'),
        ('no_such.function', Convs, Plain, r'score: no_such\.function cannot be imported \(No module named .*'),
        ('math.no_such', Convs, Plain, r"score: math\.no_such cannot be imported \(module 'math' has no .*"),
    ],
)  # fmt: skip
def test_what_has_no_score_is_named_before_training(small, tmp_path, score, space, module, match):
    with pytest.raises(ValueError, match=f'^{match}$'):
        small(make_evaluator(module()), space, criterion=ZeroCost(score))
    assert not (tmp_path / 'tree.json').exists()


@pytest.mark.parametrize(
    'settings, match',
    [
        (
            {'score': 'nwot'},
            "score must be one of naswot, synflow, snip, lid, or a function or its full name.*got 'nwot'",
        ),
        ({'score': 'a.b c'}, 'score must be one of'),
        ({'score': None}, 'score must be one of'),
        ({'score': lambda network, inputs: 0}, 'score must be a function at the top of a module, so that it can be'),
        ({'score': nn.ReLU()}, 'score must be a function at the top of a module'),
        ({'repeats': 7}, 'repeats must be an integer of at least 8'),
        ({'min_contrast': 1}, 'min_contrast must be a number of at least 0 and below 1'),
        ({'max_groups': 1}, 'max_groups must be an integer of at least 2'),
    ],
)
def test_settings_that_cannot_work(settings, match):
    with pytest.raises(ValueError, match=f'^{match}'):
        ZeroCost(**settings)


def test_a_function_goes_to_trials_by_its_name():
    criterion = ZeroCost(mean_output)
    assert criterion == ZeroCost(f'{__name__}.mean_output')
    assert criterion == make(
        {'className': 'nni_naslid.ZeroCost', 'classArgs': {'score': f'{__name__}.mean_output'}}, 'criterion'
    )
    check_travels(criterion)
    with pytest.raises(ValueError, match=r'trials cannot import mine of __main__; put it at the top of a module of'):
        check_travels(ZeroCost('__main__.mine'))
    assert criterion_of('zero_cost', {'score': 'snip', 'repeats': 8}) == ZeroCost('snip', repeats=8)


def test_a_run_does_not_go_on_with_another_function_of_the_same_name(small, monkeypatch):
    small(make_evaluator(), criterion=ZeroCost(f'{__name__}.mean_output', repeats=8))
    small(make_evaluator(), criterion=ZeroCost(f'{__name__}.mean_output', repeats=8))
    monkeypatch.setitem(globals(), 'mean_output', undefined)
    with pytest.raises(ValueError, match=r'code=.*mean_output.*, but this one has code=.*undefined'):
        small(make_evaluator(), criterion=ZeroCost(f'{__name__}.mean_output', repeats=8))
