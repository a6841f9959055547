"""One node on two devices: two processes on the CPU."""

import atexit
import json
import os
import shutil
from datetime import timedelta
from pathlib import Path

from nni_naslid.run.files import read_lines
from nni_naslid.train.devices import spawning_strategy
from nni_naslid.trial import InProcess

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.strategy import RandomOneShot
from pytorch_lightning.strategies import DDPStrategy
from recipe import Recipe
from small import Convs, Plain, make_evaluator, profiled, same_weights, seed_all


class Recorded(Recipe):
    """Writes down which path each process trains in each step, and on which images; and its threads when it ends."""

    def __init__(self, path: str):
        super().__init__(0.05, augment=False)
        self.path = path
        self.pid = os.getpid()

    def training_step(self, batch, batch_idx):
        chosen = [str(m._sampled) for m in self.model.modules() if isinstance(m, BaseSuperNetModule)]
        step = (self.current_epoch, batch_idx)
        with open(self.path, 'a') as file:
            file.write(json.dumps([self.global_rank, step, chosen, batch[0].sum((1, 2, 3)).tolist()]) + '\n')
        return super().training_step(batch, batch_idx)

    def __setstate__(self, state):
        super().__setstate__(state)
        if os.getpid() != self.pid:  # before all else there, and so at its end after all else
            atexit.register(self.write_threads)

    def write_threads(self):
        with open(f'{self.path}-threads', 'a') as file:
            names = [path.read_text().strip() for path in Path('/proc/self/task').glob('*/comm') if path.exists()]
            file.write(json.dumps([name for name in names if 'gloo' in name]) + '\n')


@pytest.mark.slow
def test_a_tree_on_two_devices(experiment, evaluator, nasbench201, naslid, tmp_path):
    made = evaluator(4, devices=2)
    made.module = Recorded(str(tmp_path / 'steps.jsonl'))
    strategy = naslid((2,), workdir=tmp_path / 'run', keep_epochs=[1, 3])
    started = experiment(nasbench201(), made, strategy)
    assert started.run()
    assert [node.end_epoch for node in strategy.tree] == [2, 4, 4]
    assert strategy.tree.kept_epochs == [1, 2, 3, 4]
    assert len(started.export_top_models(3)) == 3

    steps = [json.loads(line) for line in (tmp_path / 'steps.jsonl').read_text().splitlines()]
    assert len(steps) == 2 * 3 * 2 * 2  # processes x nodes x epochs x steps
    for first, second in zip(*([step[1:] for step in steps if step[0] == rank] for rank in (0, 1)), strict=True):
        assert first[:2] == second[:2]  # the same path in the same step
        assert len(first[2]) == len(second[2]) == 40 and first[2] != second[2]  # of other images
    assert len({str(step[2]) for step in steps}) > 6
    ends = (tmp_path / 'steps.jsonl-threads').read_text().splitlines()
    # Processes x nodes, and those that profile: none of gloo's threads is left, which could abort them.
    assert len(ends) >= 2 * 3 and set(ends) == {'[]'}

    reported = {model.task: model.metrics for model in started._engine.list_models() if isinstance(model, InProcess)}
    assert [len(reported[task].intermediates) for task in ('node 0', 'node 0.0', 'node 0.1')] == [2, 2, 2]
    assert reported['node 0'].final == reported['node 0'].intermediates[-1] == strategy.tree.metric


class DrawsByData(Plain):
    """Adds noise to some of the images, so that each process draws other numbers, and other many, than the others."""

    def training_step(self, batch, batch_idx):
        images, labels = batch
        bright = images.mean((1, 2, 3)) > 0.5
        images = images.clone()
        images[bright] += torch.randn_like(images[bright])
        return self.loss((images, labels))


class CopiesTheRun(pl.Callback):
    """The copy is what a run has kept that is killed as its last epoch begins."""

    def __init__(self, workdir: Path, copy: Path):
        self.workdir = workdir
        self.copy = copy

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == trainer.max_epochs - 1 and trainer.is_global_zero and not self.copy.exists():
            shutil.copytree(self.workdir, self.copy)


@pytest.mark.slow
@pytest.mark.parametrize('momentum_bands', [1, 2])
def test_a_run_on_two_devices_that_was_killed_ends_as_if_undisturbed(experiment, naslid, tmp_path, momentum_bands):
    undisturbed, killed = tmp_path / 'undisturbed', tmp_path / 'killed'

    def run(workdir, devices=2):
        callbacks = [CopiesTheRun(undisturbed, killed)]
        made = make_evaluator(DrawsByData(), devices=devices, strategy='ddp_spawn', callbacks=callbacks)
        seed_all()
        settings = {'monitor': 'val_loss', 'mode': 'min', 'search_budget': 1, 'workdir': workdir}
        strategy = naslid((), momentum_bands=momentum_bands, **settings)
        experiment(Convs(), made, strategy).run()
        return torch.load(strategy.tree.checkpoint, weights_only=True)['state_dict']

    expected = run(undisturbed)
    assert len(list(killed.glob('node-0-to-3.at-2.*'))) == 1
    with pytest.raises(ValueError, match='holds a run with devices=2, but this one has devices=1'):
        run(killed, devices=1)
    assert same_weights(run(killed), expected)


def test_what_the_user_says_of_ddp_is_kept(evaluator):
    given = DDPStrategy(timeout=timedelta(seconds=77), process_group_backend='gloo', gradient_as_bucket_view=True)
    strategy = spawning_strategy(evaluator(2, devices=2, strategy=given).trainer)['strategy']
    assert (strategy._timeout, strategy._process_group_backend) == (timedelta(seconds=77), 'gloo')
    assert strategy._ddp_kwargs == {'gradient_as_bucket_view': True, 'find_unused_parameters': True}


@pytest.mark.slow
def test_profiles_are_the_same_on_two_devices(evaluator, nasbench201, tmp_path):
    supernet = RandomOneShot().mutate_model(nasbench201())
    found = []
    for devices in (1, 2):
        seed_all()
        notes = tmp_path / f'{devices}.jsonl'
        found.append(profiled(evaluator(2, devices=devices), supernet, notes, limit=9))
        assert sorted(line['repeat'] for line in read_lines(notes, ())) == list(range(found[-1].n_repeats))
    assert found[0] == found[1]
    assert max(contrast.score for contrast in found[0].contrasts.values()) > 0


def test_ways_to_distribute_that_do_not_go(experiment, evaluator, nasbench201, naslid):
    class Another(DDPStrategy):
        pass

    for trainer, match in (
        ({'devices': 2, 'strategy': Another()}, "several devices by strategy='ddp' only, but the trainer has Another"),
        ({'devices': 2, 'strategy': 'ddp_fork'}, r"strategy='ddp_fork' \(or 'ddp_notebook'\) hangs"),
        ({'devices': 1, 'num_nodes': 2}, 'on one machine, but the trainer has 2'),
    ):
        with pytest.raises(ValueError, match=match):
            experiment(nasbench201(), evaluator(2, **trainer), naslid((1,))).run()
