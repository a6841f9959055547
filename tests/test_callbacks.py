"""Callbacks, steps and modules of any kind that Lightning takes."""

import gc

from nni_naslid.run.settings import PLAIN
from nni_naslid.train.path import SubSupernetModule

import nni
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.nn.pytorch import LayerChoice
from nni.nas.strategy import RandomOneShot
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging, StochasticWeightAveraging, Timer
from small import Convs, Plain, images, make_evaluator, same_weights
from torch import nn
from torch.optim.swa_utils import AveragedModel


def group_norm_convs():
    return Convs(norm=lambda channels: nn.GroupNorm(2, channels))


CALLBACKS = {
    'none': list,
    'ema': lambda: [EMAWeightAveraging(decay=0.9)],
    'swa': lambda: [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)],
}


@pytest.mark.slow
@pytest.mark.parametrize('name', list(CALLBACKS))
def test_a_stop_at_a_split_epoch_changes_nothing_of_training(small, tmp_path, monkeypatch, name):
    """A node that does not separate goes on as if it had not stopped."""
    monkeypatch.setattr('nni_naslid.criteria.evidence.is_certain', lambda partition, n_labels: False)
    weights = []
    for split_epochs in ((), (2,)):
        made = make_evaluator(
            train=DataLoader(images(), 24), callbacks=CALLBACKS[name](), epochs=4, num_sanity_val_steps=0
        )
        strategy = small(
            made, group_norm_convs, split_epochs, workdir=tmp_path / str(split_epochs), search_budget=1, **PLAIN
        )  # fmt: skip
        assert len(strategy.leaves) == 1
        strategy.load(strategy.leaves[0])
        weights.append({key: value.clone() for key, value in strategy.supernet.state_dict().items()})
    assert same_weights(*weights)


class AtTheEnd(Plain):
    def on_train_end(self):
        self.seen.append(('module', self.trainer.current_epoch))


class AtTheEndToo(pl.Callback):
    def on_train_end(self, trainer, pl_module):
        Plain.seen.append(('callback', trainer.current_epoch))


class Configures(AtTheEnd):
    def configure_callbacks(self):
        return [AtTheEndToo()]


@pytest.mark.parametrize('configured', [False, True])
def test_the_end_of_training_is_that_of_a_leaf(small, configured):
    module, callbacks = (Configures(), []) if configured else (AtTheEnd(), [AtTheEndToo()])
    strategy = small(make_evaluator(module, callbacks=callbacks), criterion='random')
    assert sorted(Plain.seen) == [('callback', 3)] * 2 + [('module', 3)] * 2
    assert len(strategy.leaves) == 2


class Short(Plain):
    def training_step(self, batch):
        return self.loss(batch)

    def validation_step(self, batch):
        self.log('val_loss', self.loss(batch))


class Long(Plain):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log('val_loss', self.loss(batch))


class Inference(Plain):
    @torch.inference_mode()
    def validation_step(self, batch, batch_idx):
        self.log('val_loss', self.loss(batch))


class Gradients(Plain):
    """What comes before the supernet has weights of its own, and validation needs gradients."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def loss(self, batch):
        with torch.enable_grad():
            return F.cross_entropy(self(batch[0] * self.scale), batch[1])


class Averaged(Plain):
    """Validates an average of the supernet's weights, a copy of the supernet."""

    def set_model(self, model):
        super().set_model(model)
        self.average = AveragedModel(model)

    def training_step(self, batch, batch_idx):
        self.average.update_parameters(self.model)
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.average(batch[0])
        self.log('val_loss', self.loss(batch))


@pytest.mark.parametrize('module', [Short, Long, Inference, Gradients, Averaged])
def test_steps_of_any_kind(small, module):
    strategy = small(make_evaluator(module()))
    assert [set(metrics) for metrics in strategy.evaluate([{'stem': 1, 'body': 1}])] == [{'val_loss'}]
    assert strategy.tree.metric < 2


class TakesDict(Convs):
    def forward(self, batch, *, scale):
        return super().forward(batch['image'] * scale)


class GivesDict(Plain):
    def loss(self, batch):
        return F.cross_entropy(self.model({'image': batch[0]}, scale=torch.ones(1)), batch[1])


@pytest.mark.parametrize('split_epochs', [(), (1,)])
def test_arguments_of_any_kind(small, split_epochs):
    strategy = small(make_evaluator(GivesDict()), space=TakesDict, split_epochs=split_epochs)
    assert strategy.tree.metric < 2


class Grows(Convs):
    """Keeps all that it has seen in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer('kept', torch.zeros(1, 4), persistent=False)

    def forward(self, x):
        x = super().forward(x)
        self.kept = torch.cat([self.kept, x.detach()])
        return x


def test_buffers_that_change_their_shape(small):
    assert small(space=Grows).tree.metric < 2


@pytest.mark.parametrize(
    'trainer, match',
    [
        ({'limit_train_batches': 0}, 'needs training, but .* has limit_train_batches=0'),
        ({'barebones': True, 'enable_progress_bar': None}, 'has barebones=True'),
        ({'fast_dev_run': True}, 'has fast_dev_run=True'),
        ({'max_time': '00:00:01:00'}, 'has Timer, which stops before'),
        ({'callbacks': [EarlyStopping('val_loss')]}, 'has EarlyStopping, which stops before'),
        ({'callbacks': [Timer('00:00:01:00')]}, 'has Timer, which stops before'),
    ],
)
def test_trainers_that_do_not_train_to_the_end_are_refused(small, trainer, match):
    if 'barebones' in trainer:
        trainer = {'barebones': True, **dict.fromkeys(['logger', 'enable_checkpointing', 'enable_progress_bar'])}
        trainer |= {'enable_model_summary': None}
    with pytest.raises(ValueError, match=match):
        small(make_evaluator(**trainer))


def test_a_step_that_takes_the_iterator_of_batches_is_refused(small):
    class Iterates(Plain):
        def training_step(self, dataloader_iter):
            return self.loss(next(dataloader_iter)[0])

    with pytest.raises(ValueError, match='gives batches to training_step, but that of the evaluator takes'):
        small(make_evaluator(Iterates()))


@pytest.fixture
def trained_by_nni(experiment, tmp_path):
    """A checkpoint of two epochs of NNI's own one-shot training."""
    made = make_evaluator(epochs=2, enable_checkpointing=True, default_root_dir=tmp_path / 'given')
    pl.seed_everything(0, verbose=False)
    experiment(Convs(), made, RandomOneShot()).run()
    return made.trainer.checkpoint_callback.best_model_path


class Rates(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        momentum = trainer.optimizers[0].state_dict()['state']
        Plain.seen.append((trainer.current_epoch, trainer.global_step, bool(momentum)))


@pytest.mark.parametrize('split_epochs', [(2,), (3,), (1, 3), ()])
def test_the_root_starts_from_a_checkpoint_of_the_user(small, trained_by_nni, split_epochs):
    """With its weights, momentum and epoch; split at once where it is due."""
    made = make_evaluator(epochs=4, fit_kwargs={'ckpt_path': trained_by_nni}, callbacks=[Rates()])
    strategy = small(made, split_epochs=split_epochs, criterion='random')
    root = strategy.tree
    assert (root.start_epoch, root.end_epoch) == (2, {(2,): 2, (): 4}.get(split_epochs, 3))
    assert Plain.seen[0] == (2, 8, True)
    assert all(leaf.end_epoch == 4 for leaf in strategy.leaves)
    assert len(strategy.leaves) == (2 if split_epochs else 1)
    if split_epochs == (2,):
        given, kept = (torch.load(path, weights_only=True)['state_dict'] for path in (trained_by_nni, root.checkpoint))
        assert same_weights(given, kept)


def test_checkpoints_that_training_cannot_start_from(small, trained_by_nni, tmp_path):
    with pytest.raises(ValueError, match="ckpt_path must be a checkpoint, but 'last' is not a file"):
        small(make_evaluator(fit_kwargs={'ckpt_path': 'last'}))
    with pytest.raises(ValueError, match='has been trained for 2 epochs, so max_epochs of the trainer must be more'):
        small(make_evaluator(epochs=2, fit_kwargs={'ckpt_path': trained_by_nni}))
    with pytest.raises(ValueError, match='is not of this space'):
        small(make_evaluator(fit_kwargs={'ckpt_path': trained_by_nni}), space=group_norm_convs)
    torch.save({'object': Plain()}, tmp_path / 'object.ckpt')
    with pytest.raises(ValueError, match='holds objects that could run code'):
        small(make_evaluator(fit_kwargs={'ckpt_path': tmp_path / 'object.ckpt'}))


class FillsAtTheEnd(Plain):
    def on_train_end(self):
        with torch.no_grad():
            self.model.head.weight.fill_(7)


class CallbackFills(pl.Callback):
    def on_train_end(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.model.head.weight.fill_(7)


class ConfiguresFilling(Plain):
    def configure_callbacks(self):
        return [CallbackFills()]


@pytest.mark.parametrize(
    'module, callbacks', [(FillsAtTheEnd, []), (ConfiguresFilling, []), (Plain, [CallbackFills()])]
)
def test_what_is_done_to_weights_at_the_end_is_what_leaves_have(small, module, callbacks):
    strategy = small(make_evaluator(module(), callbacks=callbacks), criterion='random')
    filled = []
    for node in strategy.tree:
        state = torch.load(node.checkpoint, weights_only=True)['state_dict']
        filled.append(bool((state['training_module._model.head.weight'] == 7).all()))
    assert filled == [False, True, True]


def test_one_device_by_ddp_is_one_device(small):
    assert small(make_evaluator(strategy='ddp')).tree.metric < 2


@nni.trace
class Regularised(Plain):
    def __init__(self, milestones=(1,), max_epochs=2):
        super().__init__()


class Dropping(Convs):
    def __init__(self, p=0.0):
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(p), nn.Linear(32, 4))


@pytest.mark.parametrize(
    'module, space, of',
    [
        (lambda: Regularised(milestones=(2,)), lambda: Dropping(0.0), 'module'),
        (lambda: Regularised(max_epochs=9), lambda: Dropping(0.0), 'module'),
        (Regularised, lambda: Dropping(p=0.9), 'space'),
    ],
)
def test_other_arguments_in_the_work_folder(small, module, space, of):
    small(make_evaluator(Regularised((1,))), space=lambda: Dropping(p=0.0), split_epochs=(), search_budget=1)
    small(make_evaluator(Regularised(milestones=(1,))), space=lambda: Dropping(0.0), split_epochs=(), search_budget=1)
    with pytest.raises(ValueError, match=f'holds a run with arguments of the {of}='):
        small(make_evaluator(module()), space=space, split_epochs=(), search_budget=1)


def test_only_paths_that_the_filter_lets_pass_are_tried_out(small):
    class TooLarge(Convs):
        def __init__(self):
            super().__init__()
            self.body = LayerChoice([nn.Identity(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 99)], label='body')

    strategy = small(space=TooLarge, filter=lambda sample: sample['body'] != 2, criterion='random', split_epochs=())
    assert all(model.sample['body'] != 2 for model in strategy.list_models(limit=6))


@pytest.mark.slow
@pytest.mark.parametrize('criterion', ['lid', 'random'])
def test_trained_nodes_do_not_stay_in_memory(small, criterion):
    def alive() -> int:
        gc.collect()
        return sum(type(thing) is SubSupernetModule for thing in gc.get_objects())

    before = alive()
    strategy = small(make_evaluator(epochs=4), split_epochs=(1, 2), criterion=criterion)
    assert len(list(strategy.tree)) == (7 if criterion == 'random' else 1)
    assert alive() <= before + 1
