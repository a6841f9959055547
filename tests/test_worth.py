"""A split is certain, large enough, and of a network that knows something; it takes no more repeats than it needs."""

import json
import logging
import math

from nni_naslid import NASLID
from nni_naslid.criteria.chance import Chance, chance_level
from nni_naslid.criteria.clearest import clearest_label
from nni_naslid.criteria.evidence import AtChance, AtRandom, ByLabel
from nni_naslid.trial import InProcess

import nni
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.random import RandomState
from small import Plain, images, make_evaluator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LABELS = {'one': [1, 3, 5, 7], 'two': [1, 3, 5, 7]}


def lids(differences: dict[str, float], noise: dict[str, float] | float = 0.05, seed: int = 0) -> dict:
    """64 repeats: the last two candidates have log LIDs that are higher by so much, and noise of each repeat's own."""
    generator = torch.Generator().manual_seed(seed)
    profiles = {}
    for label in LABELS:
        scale = noise[label] if isinstance(noise, dict) else noise
        logs = 2 + scale * torch.randn(64, 4, 6, generator=generator)
        logs[:, 2:] += differences.get(label, 0)
        profiles[label] = logs.clamp_min(0).exp() - 1
    return profiles


def decide(profiles: dict, min_contrast: float = 0.01):
    """The evidence, and after how many repeats it was looked at."""
    asked = []

    def first(n: int) -> dict:
        asked.append(n)
        return {label: found[:n] for label, found in profiles.items()}

    return clearest(first, 64, min_contrast), asked


def clearest(profiles, repeats: int, min_contrast: float = 0.01) -> ByLabel:
    return clearest_label(
        profiles, LABELS, repeats=repeats, paths_per_repeat=7, max_groups=2, min_contrast=min_contrast,
        random_state=RandomState(0),
    )  # fmt: skip


def test_a_clear_split_costs_few_passes():
    evidence, asked = decide(lids({'two': 0.5}))
    assert asked == [8]
    assert (evidence.label, evidence.partition.groups, evidence.objection) == ('two', [[0, 1], [2, 3]], None)
    assert evidence.partition.score == pytest.approx(1 - math.exp(-0.25), abs=0.05)
    assert (evidence.n_repeats, evidence.n_passes) == (8, 8 * 7)  # the base path, and three others of each label
    assert evidence.contrasts['one'].upper < evidence.partition.lower
    assert evidence.p_value == pytest.approx(evidence.partition.p_value * 2 * 4)  # two labels, four looks


@pytest.mark.parametrize('seed', range(3))
def test_noise_is_given_all_repeats_and_not_split(seed):
    evidence, asked = decide(lids({}, noise=1.0, seed=seed))
    assert asked == [8, 16, 32, 64]
    assert evidence.objection == 'no label separates beyond its noise'


def test_what_is_certain_must_also_be_large_enough():
    """Profiles that differ by a factor of 1.05: a contrast of .0024."""
    small = lids({'two': 0.05}, noise=0.02)
    evidence, _ = decide(small)
    assert evidence.p_value < 0.05
    assert evidence.partition.score == pytest.approx(1 - math.exp(-0.0025), rel=0.3)
    assert evidence.objection == 'no contrast is surely above 0.01'
    assert decide(small, min_contrast=0)[0].objection is None


def test_where_nothing_can_be_gained_it_ends_at_once():
    evidence, asked = decide(lids({}, noise=0.02))
    assert asked == [8]
    assert all(contrast.upper < 0.01 for contrast in evidence.contrasts.values())
    assert evidence.objection is not None


def test_labels_are_compared_by_their_lower_bounds():
    """The higher contrast is of a label that differs much in few repeats only."""
    profiles = lids({'one': 0.3}, noise=0.02)
    profiles['two'][:, 2:] *= torch.where(torch.arange(64) % 4 == 0, 12.0, 1.0).view(-1, 1, 1)
    evidence, asked = decide(profiles)
    assert asked == [8, 16, 32, 64]
    one, two = evidence.contrasts['one'], evidence.contrasts['two']
    assert one.score < two.score and two.lower < one.lower < two.upper
    assert evidence.label == 'one' and evidence.objection is None


def test_the_decision_at_the_limit_does_not_depend_on_the_looks_before():
    """Two labels that differ alike are never clear of each other; with a limit of 8 there is one look."""
    profiles = lids({'one': 0.2, 'two': 0.2}, noise=0.1)
    evidence, asked = decide(profiles)
    assert asked[-1] == 64
    only = clearest(lambda n: profiles, 15)
    assert evidence.partition.p_value == pytest.approx(only.partition.p_value)
    assert (evidence.label, evidence.contrasts[evidence.label].lower) == (only.label, only.contrasts[only.label].lower)


@pytest.mark.parametrize('value', [1, -0.1, math.nan, True, 'much', None])
def test_the_smallest_effect_is_a_contrast(value):
    with pytest.raises(ValueError, match=f'min_contrast must be a number of at least 0 and below 1, but got {value!r}'):
        NASLID([1], criterion='lid', min_contrast=value)


# Chance level.


class Task:
    """Classification by a network: what its validation measures."""

    def __init__(self, seed: int = 0, n: int = 20, n_batches: int = 3):
        self.generator = torch.Generator().manual_seed(seed)
        self.batches = [
            (torch.randn(n, 5, generator=self.generator), torch.randint(3, (n,), generator=self.generator))
            for _ in range(n_batches)
        ]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def learn(self):
        """By heart."""
        optimizer = torch.optim.Adam(self.network.parameters(), 0.02)
        for _ in range(30):
            for x, y in self.batches:
                optimizer.zero_grad()
                F.cross_entropy(self.network(x), y).backward()
                optimizer.step()
        return self

    def loss(self) -> float:
        return np.mean([F.cross_entropy(self.network(x), y).item() for x, y in self.batches])

    def accuracy(self) -> float:
        return np.mean([(self.network(x).argmax(1) == y).float().mean().item() for x, y in self.batches])


@pytest.mark.parametrize('metric, mode', [('loss', 'min'), ('accuracy', 'max')])
def test_a_trained_network_is_above_chance_and_an_untrained_one_is_not(metric, mode):
    untrained, trained = Task(), Task().learn()
    chance = chance_level(untrained.network, getattr(untrained, metric), {}, mode, RandomState(0))
    assert chance.is_at_chance
    assert chance.describe('m') == (
        f'at chance level (m {chance.metric:.4f}; {chance.as_good} of 19 random assignments of its outputs to samples '
        'are as good)'
    )
    chance = chance_level(trained.network, getattr(trained, metric), {}, mode, RandomState(0))
    assert chance.as_good == 0
    assert not chance.is_at_chance


def test_what_knows_nothing_is_above_chance_in_one_of_twenty_cases():
    """All numbers of better assignments are equally likely."""
    n = 200
    counts = []
    for seed in range(n):
        task = Task(seed, n_batches=1)
        counts.append(chance_level(task.network, task.loss, {}, 'min', RandomState(seed)).as_good)
    assert np.mean(np.array(counts) == 0) == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / n))
    assert np.mean(counts) == pytest.approx(9.5, abs=3 * np.sqrt((20**2 - 1) / 12 / n))


def test_a_metric_that_is_not_a_number_is_no_better_than_chance():
    task = Task()
    assert chance_level(task.network, lambda: task.loss() * math.nan, {}, 'min', RandomState(0)).as_good == 19


def test_several_outputs_of_one_sample_stay_together():
    """What two rounds on other paths say of a sample goes to the same other sample, of all shapes of output."""
    seen = []

    class Two(nn.Module):
        def forward(self, x):
            return {'time first': x.T.clone(), 'nested': [x, x.sum()]}

    network, x = Two(), torch.arange(12.0).view(6, 2)

    def measure() -> float:
        outputs = [network(x) for _ in range(2)]
        seen.append([(o['time first'].T.tolist(), o['nested'][0].tolist(), o['nested'][1].item()) for o in outputs])
        return 0.0

    chance_level(network, measure, {}, 'min', RandomState(0), n_rounds=2)
    assert len(seen) == 20
    assert any(first != seen[0][0] for first, _ in seen)
    for first, second in seen:
        assert first == second
        assert first[0] == first[1] and sorted(first[0]) == x.tolist() and first[2] == 66


@pytest.mark.parametrize('n, forward', [(1, lambda x: x), (6, lambda x: x.sum())], ids=['one sample', 'a number'])
def test_where_outputs_are_not_of_samples_there_is_no_test(n, forward):
    class Network(nn.Module):
        def forward(self, x):
            return forward(x)

    network = Network()
    assert chance_level(network, lambda: network(torch.rand(n, 4)).sum().item(), {}, 'min', RandomState(0)) is None
    assert chance_level(network, lambda: 1.0, {}, 'min', RandomState(0)) is None  # it is not called at all


def test_it_leaves_no_trace():
    task = Task()
    task.network.eval()
    task.network[1].train()
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    modes = [module.training for module in task.network.modules()]
    random = torch.get_rng_state()

    def measure() -> float:
        torch.rand(1)
        task.network.eval()  # as Lightning does
        return task.loss()

    chance_level(task.network, measure, {}, 'min', RandomState(0))
    assert all(torch.equal(value, before[name]) for name, value in task.network.state_dict().items())
    assert [module.training for module in task.network.modules()] == modes
    assert torch.equal(random, torch.get_rng_state())
    assert 'forward' not in vars(task.network)


def test_the_statistics_are_those_of_the_batch():
    """Running ones of a supernet, here far off, do not make a network that knows everything one that knows nothing."""
    task = Task().learn()
    task.network[1].running_mean.fill_(1e6)

    def measure() -> float:
        task.network.eval()
        return task.loss()

    assert not chance_level(task.network, measure, {}, 'min', RandomState(0)).is_at_chance


class Scored(Plain):
    """Logs the accuracy, too."""

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log('val_loss', F.cross_entropy(logits, batch[1]))
        self.log('val_acc', (logits.argmax(1) == batch[1]).float().mean())


def by_lot() -> TensorDataset:
    x, y = images(48).tensors
    return TensorDataset(x, y[torch.randperm(48, generator=torch.Generator().manual_seed(0))])


@pytest.mark.parametrize('monitor, mode', [('val_loss', 'min'), ('val_acc', 'max')])
def test_a_node_at_chance_level_is_not_split_and_says_so(small, tmp_path, caplog, monkeypatch, monitor, mode):
    """Nothing can be learnt of labels that are drawn by lot."""
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    for _ in range(2):  # the second time all is there
        caplog.clear()
        with caplog.at_level(logging.INFO):
            made = make_evaluator(Scored(), val=DataLoader(by_lot(), 24), num_sanity_val_steps=0)
            strategy = small(made, monitor=monitor, mode=mode)
        assert f'Node 0 is not split: at chance level ({monitor} ' in caplog.text
        assert not strategy.tree.split.children
        objection = strategy.tree.split.evidence.objection
        assert objection.endswith('of 19 random assignments of its outputs to samples are as good)')
        assert strategy.tree.end_epoch == strategy.tree.cost == 3
        (node,) = json.loads((tmp_path / 'tree.json').read_text())['nodes']
        assert node['split'] == {
            'children': [], 'evidence': {'at_chance': objection}, 'objection': objection, 'figures': '',
        }  # fmt: skip
        assert not list(tmp_path.glob('*profile*')) and not list(tmp_path.glob('split-*.png'))


class Reporting(Scored):
    """Tells NNI, too."""

    def on_validation_epoch_end(self):
        if nni.get_current_parameter() is not None:
            nni.report_intermediate_result(self.trainer.callback_metrics['val_acc'].item())


def test_nni_hears_nothing_of_what_is_tried(small):
    strategy = small(make_evaluator(Reporting(), val=DataLoader(by_lot(), 24), num_sanity_val_steps=0))
    assert isinstance(strategy.tree.split.evidence, AtChance)
    nodes = [model for model in strategy.experiment._engine.list_models() if isinstance(model, InProcess)]
    assert len(nodes[0].metrics.intermediates) == 3  # epochs


def test_chance_is_no_matter_for_the_control(small):
    strategy = small(make_evaluator(val=DataLoader(by_lot(), 24)), criterion='random')
    assert len(strategy.leaves) == 2
    assert strategy.tree.split.evidence == AtRandom()


@pytest.mark.slow
@pytest.mark.parametrize('split_epoch', [1, 2])
def test_a_node_that_has_learnt_is_profiled(small, split_epoch, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    with caplog.at_level(logging.INFO):
        strategy = small(make_evaluator(Scored(), epochs=4), split_epochs=(split_epoch,), repeats=16)
    evidence = strategy.tree.split.evidence
    assert set(evidence.contrasts) == {'stem', 'body'}
    assert evidence.n_passes == 5 * evidence.n_repeats
    assert f'{evidence.describe()})' in caplog.text


def test_chance_in_one_line():
    assert Chance(2.31049, 12).describe('val_loss') == (
        'at chance level (val_loss 2.3105; 12 of 19 random assignments of its outputs to samples are as good)'
    )
