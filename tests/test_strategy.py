"""The whole strategy, on NNI's own engine."""

import json
import logging
import math
import re
import signal
from typing import ClassVar

from nni_naslid import NASLID
from nni_naslid.analysis.truth import nasbench201_architectures, nasbench201_sample
from nni_naslid.criteria.repeats import candidate_profiles
from nni_naslid.search.batchnorm import recalibrate
from nni_naslid.search.score import LeafScorer
from nni_naslid.train.path import SubSupernetModule

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.strategy import TPE, Random
from nni.nas.strategy.base import StrategyStatus
from recipe import Data, Recipe
from small import Convs, brightened, images, profiled
from small import make_evaluator as make_small
from torch.utils.flop_counter import FlopCounterMode


@pytest.fixture(scope='module')
def digits(digits):
    """Easy ones, so that an epoch tells a split."""
    return Data(*map(brightened, digits))


class Watch(pl.Callback):
    """Note the learning rate, momentum buffer and step count at the start of each epoch of each fit."""

    seen: ClassVar[list[tuple]] = []

    def on_train_epoch_start(self, trainer, pl_module):
        optimizer = trainer.optimizers[0]
        momentum = [optimizer.state[p].get('momentum_buffer') for p in optimizer.param_groups[0]['params']]
        total = sum(m.abs().sum().item() for m in momentum if m is not None)
        weights = sum(p.abs().sum().item() for p in pl_module.parameters())
        self.seen.append((trainer.current_epoch, trainer.global_step, optimizer.param_groups[0]['lr'], total, weights))


@pytest.mark.parametrize(
    'split_epochs, plan, epochs',
    [
        ([1], 'up to 2 leaves', '1 + 2 x 3 = 7'),
        pytest.param([1, 2], 'up to 4 leaves', '1 + 2 x 1 + 4 x 2 = 11', marks=pytest.mark.slow),
    ],
    ids=['a split', 'splits of splits'],
)
def test_end_to_end_on_nasbench201(run, tmp_path, caplog, monkeypatch, split_epochs, plan, epochs):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    with caplog.at_level(logging.INFO):
        strategy = run(split_epochs, criterion='lid', repeats=32, min_contrast=0)
    assert len(strategy.leaves) > 1
    assert all(node.split.separates for node in strategy.tree if node.children)
    tree = json.loads((tmp_path / 'tree.json').read_text())
    assert [node['name'] for node in tree['nodes']] == [node.name for node in strategy.tree]
    assert sum(leaf.subspace.size for leaf in strategy.leaves) == 15625
    assert all((tmp_path / node['checkpoint']).exists() for node in tree['nodes'])
    for picture in ['tree.png', *(f'split-{n.name}.png' for n in strategy.tree if n.split)]:
        assert (tmp_path / picture).read_bytes().startswith(b'\x89PNG')
    text = caplog.text
    assert f'Plan: {plan} of 15,625 architectures; training costs at most {epochs} epochs' in text
    steps = 5 * int(epochs.split()[-1])
    assert re.search(rf'Consider not splitting yet: where we measured it, .* and here are at most {steps}\.', text)
    for node in strategy.tree:
        assert f'Node {node.name}: trained to epoch' in text
        if node.split is not None:
            assert f'Node {node.name} is {"" if node.children else "not "}split: ' in text
    assert re.search(r'\(contrast 0\.\d{3}, 95 % \S+ to 0\.\d{3}, p 0\.0\d+, \d+ repeats, [\d,]+ passes\)', text)
    assert 'Search: scored 12 networks' in text
    assert tree['cost'] == strategy.tree.cost == sum(n['end_epoch'] - n['start_epoch'] for n in tree['nodes'])

    samples = strategy.experiment.export_top_models(3, formatter='dict')
    networks = strategy.experiment.export_top_models(3, formatter='instance')
    scores = [model.metric for model in strategy.list_models(limit=3)]
    assert scores == sorted(scores, reverse=True)
    assert [metrics['val_acc'] for metrics in strategy.evaluate(samples)] == pytest.approx(scores)
    for sample, network, score in zip(samples, networks, scores, strict=True):
        assert accuracy(network, strategy) == pytest.approx(score, abs=1e-6)
        reference = type(network).frozen_factory(sample)(4, 1, 10)  # the same layers, built by NNI from scratch
        assert [p.shape for p in network.parameters()] == [p.shape for p in reference.parameters()]


def accuracy(network, strategy) -> float:
    x, y = strategy._evaluator.val_dataloaders.dataset.tensors
    return (network(x).argmax(1) == y).float().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize('criterion', ['lid', 'random'])
def test_end_to_end_on_proxylessnas(run, evaluator, proxyless, criterion, tmp_path):
    strategy = run((1,), space=proxyless(), epochs=2, search_budget=4, criterion=criterion)
    if criterion == 'lid':  # five steps leave it at chance level; asked anyway, all labels are tried
        assert strategy.tree.split.evidence.objection.startswith('at chance level')
        evidence = profiled(evaluator(2), strategy.supernet, tmp_path / 'profile.jsonl')
        assert set(evidence.contrasts) == set(strategy.tree.subspace.mutables)
    assert sum(leaf.subspace.size for leaf in strategy.leaves) == 4**5 * 6**21
    (network,) = strategy.experiment.export_top_models(1, formatter='instance')
    best = next(strategy.list_models())
    assert accuracy(network, strategy) == pytest.approx(best.metric, abs=1e-6)
    depths = [depth for label, depth in best.sample.items() if 'depth' in label]
    assert [len(stage) for stage in network.blocks[1:6]] == depths


def test_training_never_leaves_its_sub_space(run, sampled):
    strategy = run((1, 2))
    assert len(sampled) == 5 * strategy.tree.cost  # five batches an epoch
    assert all(sample in subspace for subspace, _, sample in sampled)
    owner = {repr(node.subspace): node for node in strategy.tree}
    assert len(owner) == 7
    for subspace, epoch, _ in sampled:
        assert owner[repr(subspace)].start_epoch <= epoch < owner[repr(subspace)].end_epoch


def test_training_reaches_all_of_its_sub_space(evaluator, nasbench201, naslid, sampled):
    """A sub-space of 2 x 2 x 1 x 1 x 1 x 1 samples is covered in a few steps, evenly."""
    from nni_naslid import SubSpace

    from nni.mutable import Categorical

    space = nasbench201()
    mutables = SubSpace.of(space).mutables
    keep = {label: m.values[:2] if i < 2 else m.values[2:3] for i, (label, m) in enumerate(mutables.items())}
    small = SubSpace({label: Categorical(values, label=mutables[label].label) for label, values in keep.items()})
    supernet = naslid().mutate_model(space)
    lightning = evaluator(16)
    module = SubSupernetModule(lightning.module, small, [0])
    module.set_model(supernet)
    lightning.trainer.fit(module, lightning.train_dataloaders, lightning.val_dataloaders)
    counts = np.unique([repr(sample) for _, _, sample in sampled], return_counts=True)[1]
    assert len(counts) == small.size == 4
    assert counts.sum() == 80
    assert counts.min() > 8


def test_children_continue_the_schedule_of_their_parent(experiment, evaluator, nasbench201, naslid, tmp_path):
    """Learning rate, momentum, epoch and step at each epoch are those of one undisturbed run, from the parent's."""
    seen = {}
    for split_epochs in ((), (2,)):
        Watch.seen = []
        strategy = naslid(split_epochs, search_budget=1, workdir=tmp_path / str(len(split_epochs)))
        experiment(nasbench201(), evaluator(4, callbacks=[Watch()]), strategy).run()
        seen[split_epochs] = Watch.seen
    whole, split = seen[()], seen[(2,)]
    assert [s[0] for s in whole] == [0, 1, 2, 3]
    assert [s[0] for s in split] == [0, 1, 2, 3, 2, 3]
    for epoch, step, rate, _, _ in split:
        assert (epoch, step, rate) == pytest.approx(whole[epoch][:3])
    falling = (10 - 4) / (19 - 4)  # of 20 steps, 5 rise
    assert split[2][2] == pytest.approx(0.2 * (1 + np.cos(np.pi * falling)) / 2, rel=1e-5)
    assert split[0][3] == 0  # no momentum yet
    assert split[2][3:] == split[4][3:]  # both children start with one parent's momentum and weights
    assert split[2][3] > 0


@pytest.mark.slow
def test_same_seed_same_tree_and_ranking(run, tmp_path):
    results = []
    for i, seed in enumerate((0, 0, 1)):
        torch.rand(i + 1)  # the state of the user's generators does not matter
        strategy = run(
            (1,), epochs=2, criterion='lid', repeats=16, min_contrast=0, seed=seed, workdir=tmp_path / str(i)
        )
        assert len(strategy.leaves) == 2 or seed == 1
        nodes = [(n.name, n.metric, n.subspace.to_dict(), n.split and n.split.evidence) for n in strategy.tree]
        ranking = [(model.sample, model.metric) for model in strategy.list_models(limit=None)]
        results.append((nodes, ranking))
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_the_run_leaves_the_generators_of_the_user_alone(experiment, evaluator, nasbench201, naslid):
    strategy = naslid((1,), search_budget=2)
    started = experiment(nasbench201(), evaluator(2), strategy)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    started.run()
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == np.random.get_state()[1].tolist()


def test_without_splits_it_is_plain_one_shot_training(run):
    strategy = run((), epochs=2)
    assert strategy.leaves == [strategy.tree]
    assert strategy.tree.cost == 2
    assert strategy.tree.split is None


def test_where_nothing_separates_the_node_stays_a_leaf_and_says_so(run, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)

    def noise(supernet, subspace, batches, layers, **kwargs):
        generator = torch.Generator().manual_seed(0)
        return {k: 10 * torch.rand(8, len(v), 5, generator=generator) for k, v in subspace.splittable.items()}

    monkeypatch.setattr('nni_naslid.criteria.repeats.candidate_profiles', noise)
    with caplog.at_level(logging.INFO):
        strategy = run((1, 2), criterion='lid')
    assert strategy.leaves == [strategy.tree]
    assert strategy.tree.end_epoch == strategy.tree.cost == 4
    assert not strategy.tree.split.separates
    assert 'Node 0 is not split: no label separates beyond its noise; the best: ' in caplog.text


def test_any_number_of_models_can_be_exported(run):
    strategy = run((1,), epochs=2, search_budget=3)
    assert len(list(strategy.list_models())) == 1
    samples = strategy.experiment.export_top_models(7, formatter='dict')
    assert len({repr(sample) for sample in samples}) == 7


def test_any_search_strategy_and_loss(run):
    strategy = run((1,), epochs=2, search=Random(seed=0), search_budget=5, monitor='val_loss', mode='min')
    models = list(strategy.list_models(limit=5))
    assert [m.metric for m in models] == sorted((m.metric for m in models), reverse=True)
    assert models[0].metric < 0  # the negative loss


def classification(digits, epochs) -> Classification:
    return Classification(
        train_dataloaders=DataLoader(digits.train, 40, shuffle=True), val_dataloaders=DataLoader(digits.valid, 50),
        num_classes=10, max_epochs=epochs, accelerator='cpu', logger=False, enable_checkpointing=False,
        enable_progress_bar=False,
    )  # fmt: skip


def test_evaluator_of_nni_itself(experiment, digits, nasbench201, naslid):
    """`Classification` builds its own trainer and reports by itself."""
    evaluator = classification(digits, 2)
    strategy = naslid((1,), search_budget=3)
    started = experiment(nasbench201(), evaluator, strategy)
    started.run()
    assert 0 <= strategy.tree.metric <= 1
    assert len(started.export_top_models(2, formatter='dict')) == 2


def test_a_data_module(experiment, digits, nasbench201, naslid, evaluator):
    class Digits(pl.LightningDataModule):
        def setup(self, stage):
            self.ready = True

        def train_dataloader(self):
            assert self.ready
            return DataLoader(digits.train, 40, shuffle=True)

        def val_dataloader(self):
            return DataLoader(digits.valid, 50)

    made = evaluator(2)
    made.train_dataloaders = made.val_dataloaders = None
    made.datamodule = Digits()
    strategy = naslid((1,), search_budget=2)
    experiment(nasbench201(), made, strategy).run()
    assert strategy.tree.cost == 3


@pytest.mark.parametrize('criterion', ['lid', 'random'])
def test_a_diverged_run_says_so(experiment, evaluator, nasbench201, naslid, criterion):
    made = evaluator(2)
    made.module.lr = 1e30
    started = experiment(nasbench201(), made, naslid((1,), criterion=criterion))
    with pytest.raises(RuntimeError, match=r'Node 0 has diverged by epoch 1: .*weight is not finite'):
        started.run()


def test_leaves_are_ready_to_go_on_from(run):
    strategy = run((1,), epochs=2)
    for leaf in strategy.leaves:
        strategy.load(leaf)
        weights = torch.load(leaf.checkpoint, weights_only=False)['state_dict']
        for name, value in strategy.supernet.state_dict().items():
            assert torch.equal(value, weights[f'training_module._model.{name}'])


def test_before_it_has_run():
    strategy = NASLID(split_epochs=[50, 75, 90])
    assert repr(strategy) == (
        "NASLID(split_epochs=[50, 75, 90], criterion=Bands(score={'lid': 0.5, 'live_parameters': 1.0}, max_groups=4, "
        'paths=400))'
    )
    for use in (lambda: strategy.leaves, lambda: strategy.evaluate([]), lambda: next(strategy.list_models())):
        with pytest.raises(RuntimeError, match='before it has run'):
            use()


def test_what_is_only_evaluated_does_not_join_the_search(run):
    strategy = run((1,), epochs=2)
    strategy.evaluate([nasbench201_sample(arch) for arch in nasbench201_architectures()[::1500]])
    assert len(list(strategy.list_models(limit=None))) == 12


def test_what_the_module_does_before_the_supernet_is_done_in_profiles_and_recalibration_too(
    experiment, evaluator, nasbench201, naslid, digits, monkeypatch
):
    """Batches are dicts, and the module normalises them."""

    class Normalising(Recipe):
        def training_step(self, batch, batch_idx):
            return super().training_step((3 * batch['x'] + 4, batch['y']), batch_idx)

        def validation_step(self, batch, batch_idx):
            return super().validation_step((3 * batch['x'] + 4, batch['y']), batch_idx)

    seen = []
    monkeypatch.setattr('nni_naslid.criteria.repeats.candidate_profiles', spy(candidate_profiles, seen, position=2))
    monkeypatch.setattr('nni_naslid.search.score.recalibrate', spy(recalibrate, seen, position=1))
    made = evaluator(2)
    made.module = Normalising(0.05, augment=False)
    images = [{'x': x, 'y': y} for x, y in digits.train]
    made.train_dataloaders = DataLoader(images, 40, shuffle=True)
    made.val_dataloaders = DataLoader(images[:100], 50)
    experiment(nasbench201(), made, naslid((1,), criterion='lid', search_budget=2)).run()
    everything = {tuple(image.flatten().tolist()) for image in 3 * digits.train.tensors[0] + 4}
    assert len(seen) > 2
    for batches in seen:
        assert all(tuple(image.flatten().tolist()) in everything for (x,), _ in batches for image in x)


def spy(function, seen, position):
    def call(*args, **kwargs):
        seen.append(args[position])
        return function(*args, **kwargs)

    return call


def test_parameters_of_the_module_itself_are_trained_and_inherited(experiment, evaluator, nasbench201, naslid):
    class Tempered(Recipe):
        def __init__(self, lr, augment):
            super().__init__(lr, augment)
            self.temperature = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return super().forward(x) * self.temperature

    made = evaluator(2)
    made.module = Tempered(0.05, augment=False)
    strategy = naslid((1,), search_budget=2)
    experiment(nasbench201(), made, strategy).run()
    scorer = strategy._scorer
    for leaf in strategy.leaves:
        strategy.load(leaf)
        trained = torch.load(leaf.checkpoint, weights_only=False)['state_dict']['training_module.temperature']
        assert trained != 1
        assert torch.equal(scorer.module.training_module.temperature, trained)


def test_hooks_of_the_user_are_called(experiment, evaluator, nasbench201, naslid):
    called = set()

    class Hooked(Recipe):
        def optimizer_step(self, *args, **kwargs):
            called.add('optimizer_step')
            super().optimizer_step(*args, **kwargs)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            called.add('on_after_batch_transfer')
            return batch

        def configure_gradient_clipping(self, optimizer, *args, **kwargs):
            called.add('configure_gradient_clipping')
            self.clip_gradients(optimizer, 1.0, 'norm')

        def on_validation_batch_end(self, *args):
            called.add('on_validation_batch_end')

        def on_save_checkpoint(self, checkpoint):
            called.add('on_save_checkpoint')

        def on_load_checkpoint(self, checkpoint):
            called.add('on_load_checkpoint')

    made = evaluator(2)
    made.module = Hooked(0.05, augment=False)
    experiment(nasbench201(), made, naslid((1,), search_budget=1)).run()
    assert called == {name for name in vars(Hooked) if not name.startswith('_')}


@pytest.mark.slow
@pytest.mark.parametrize('rhythm', [2, 3, 4])
def test_every_node_is_validated_at_its_end(run, evaluator, experiment, nasbench201, naslid, rhythm):
    strategy = naslid((1, 3), search_budget=1)
    experiment(nasbench201(), evaluator(4, check_val_every_n_epoch=rhythm), strategy).run()
    assert len(list(strategy.tree)) == 7
    assert all(node.metric is not None for node in strategy.tree)


def test_training_that_is_stopped_early_is_no_silent_loss(experiment, evaluator, nasbench201, naslid):
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    started = experiment(nasbench201(), evaluator(6, callbacks=[Stop()]), naslid((5,)))
    with pytest.raises(RuntimeError, match='Node 0 was stopped after epoch 1 instead of 5'):
        started.run()


def interrupt(*args):
    raise KeyboardInterrupt


def interrupts():
    """A loader in which the user presses Ctrl-C."""
    interrupt()
    yield


def test_interrupts_reach_nni(experiment, evaluator, nasbench201, naslid, monkeypatch):
    """In training and in the search."""
    for phase in ('training', 'search'):
        made = evaluator(1)
        strategy = naslid((), search_budget=3)
        started = experiment(nasbench201(), made, strategy)

        if phase == 'training':
            monkeypatch.setattr(SubSupernetModule, 'training_step', interrupt)
        else:
            monkeypatch.setattr(
                LeafScorer, 'prepare', lambda self, *_: setattr(self, 'validation', {'dataloaders': interrupts()})
            )
        started.run()
        assert strategy._status == StrategyStatus.INTERRUPTED
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        monkeypatch.undo()


@pytest.mark.slow
def test_search_by_a_tuner_where_the_module_reports_by_itself(experiment, digits, nasbench201, naslid):
    evaluator = classification(digits, 1)
    strategy = naslid((), search=TPE(), search_budget=4)
    experiment(nasbench201(), evaluator, strategy).run()
    assert all(0 <= model.metric <= 1 for model in strategy.list_models(limit=4))


def test_a_leaf_that_diverged_is_never_the_best(run):
    strategy = run((1,), epochs=2, search_budget=12, monitor='val_loss', mode='min')
    scorer = strategy._scorer
    with torch.no_grad():
        scorer.load(strategy.leaves[0])
        scorer._weights[strategy.leaves[0].weights]['training_module._model.classifier.bias'].fill_(torch.nan)
    scorer._known.clear()
    scorer.reload()
    samples = [leaf.subspace.sample(np.random.RandomState(0)) for leaf in strategy.leaves]
    assert scorer.evaluate(samples[0]) == -math.inf
    assert math.isfinite(scorer.evaluate(samples[1]))


def test_scores_are_those_of_the_leaf_whatever_was_done_to_the_supernet(run):
    strategy = run((1,), epochs=2)
    samples = [strategy.tree.subspace.sample(np.random.RandomState(0))]
    scores = strategy.evaluate(samples)
    with torch.no_grad():
        for parameter in strategy.supernet.parameters():
            parameter.zero_()
    assert strategy.evaluate(samples) == scores


def test_default_work_folders_are_new(experiment, evaluator, nasbench201, naslid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    strategies = [naslid((), search_budget=1, workdir=None) for _ in range(2)]
    for strategy in strategies:
        experiment(nasbench201(), evaluator(1), strategy).run()
        assert (strategy.workdir / 'tree.json').exists()
    assert strategies[0].workdir != strategies[1].workdir


def test_fit_does_what_an_experiment_does(small, tmp_path):
    """The same networks with the same scores; and it goes on from a work folder."""
    expected = small(make_small(), criterion='random', search_budget=6, workdir=tmp_path / 'experiment')
    found = []
    for _ in range(2):
        pl.seed_everything(0, verbose=False)
        strategy = NASLID([1], criterion='random', search_budget=6, calibration_batches=2, workdir=tmp_path / 'fit')
        assert strategy.fit(Convs(), make_small()) is strategy
        found.append([(model.sample, model.metric) for model in strategy.list_models(limit=6)])
    assert found[0] == found[1] == [(model.sample, model.metric) for model in expected.list_models(limit=6)]


def width(sample):
    return 10 * sample['stem'] + sample['body']


def test_costs_of_any_architecture(small):
    strategy = small(make_small(train=DataLoader(images(), 24)), criterion='random')
    samples = [{'stem': stem, 'body': body} for stem, body in ((0, 1), (2, 2), (0, 1))]
    costs = strategy.costs(samples, ['parameters', 'flops', width, 'lid'])
    networks = [Convs().freeze(sample) for sample in samples]
    assert [each['parameters'] for each in costs] == [sum(w.numel() for w in net.parameters()) for net in networks]
    assert [each['test_strategy.width'] for each in costs] == [1, 22, 1]
    with FlopCounterMode(display=False) as counter:
        networks[1](torch.zeros(3, 3, 8, 8))
    assert costs[1]['flops'] == counter.get_total_flops() / 3
    assert costs[0] == costs[2] and math.isfinite(costs[0]['lid'])
    assert strategy.costs(samples, ['parameters']) == [{'parameters': each['parameters']} for each in costs]
    for names, match in ((['size'], 'names must be of parameters, live_parameters'), ('flops', 'names must be a list')):
        with pytest.raises(ValueError, match=match):
            strategy.costs(samples, names)
    with pytest.raises(ValueError, match=r"samples\[0\] has 9 for 'stem'"):
        strategy.costs([{'stem': 9, 'body': 0}], ['flops'])
