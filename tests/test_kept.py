"""Looking back after training: scores by the weights of earlier epochs, and by other numbers of calibration batches."""

import gc
import logging
import shutil
from contextlib import suppress
from pathlib import Path

from nni_naslid import LID
from nni_naslid.run.files import read_json, read_lines
from nni_naslid.search import calibration

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.strategy import RandomOneShot
from small import Convs, Plain, images, make_evaluator
from torch.utils.data import IterableDataset

SAMPLES = [{'stem': i, 'body': j} for i in range(3) for j in range(3)]


class Notes(pl.Callback):
    """What a user could do without us: note the weights of each epoch of each node, in the order of training."""

    def on_train_epoch_end(self, trainer, pl_module):
        weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        Plain.seen.append((trainer.current_epoch + 1, weights))


def loss_by_hand(weights: dict, sample: dict) -> float:
    """Mean of the two validation batches, with the batch-norm statistics of the supernet."""
    supernet = RandomOneShot().mutate_model(Convs())
    supernet.load_state_dict({name.removeprefix('training_module._model.'): each for name, each in weights.items()})
    for module in supernet.modules():
        if isinstance(module, BaseSuperNetModule):
            module.resample(memo=sample)
    x, y = images(48, seed=1).tensors
    with torch.no_grad():
        return F.cross_entropy(supernet.eval()(x), y).item()


class Stream(IterableDataset):
    """Images that nobody has counted."""

    def __iter__(self):
        return iter(images())


def losses(strategy, samples=SAMPLES, **kwargs) -> list[float]:
    return [metrics['val_loss'] for metrics in strategy.evaluate(samples, **kwargs)]


def kept(workdir: Path) -> dict:
    """SHA-256 of the weights that are kept, by node and epoch."""
    results = [read_json(path, ()) for path in sorted(workdir.glob('node-*.json'))]
    return {result['name']: {epoch: weights for epoch, _, weights in result['kept']} for result in results}


def test_scores_at_an_epoch_are_those_of_the_weights_then(small):
    """Also after others were calibrated, which changes statistics in the supernet."""
    strategy = small(make_evaluator(epochs=4, callbacks=[Notes()]), None, (2,), criterion='random', keep_epochs=[1, 3])
    assert [epoch for epoch, _ in Plain.seen] == [1, 2, 3, 4, 3, 4]
    assert strategy.tree.kept_epochs == [1, 2, 3, 4]
    nodes = {epoch: [weights for seen, weights in Plain.seen if seen == epoch] for epoch in (1, 2, 3, 4)}
    second = [strategy.leaves[1].subspace.covers(sample) for sample in SAMPLES]
    assert 0 < sum(second) < len(SAMPLES)
    for epoch in (3, 1, 4, 2):
        calibrated = losses(strategy, epoch=epoch)
        expected = [loss_by_hand(nodes[epoch][i if epoch > 2 else 0], s) for i, s in zip(second, SAMPLES, strict=True)]
        assert losses(strategy, epoch=epoch, calibration_batches=0) == pytest.approx(expected, abs=1e-5)
        assert calibrated != pytest.approx(expected, abs=1e-3)
    assert losses(strategy, epoch=4) == losses(strategy)
    assert losses(strategy, calibration_batches=0) == losses(strategy, epoch=4, calibration_batches=0)


def test_weights_tree_and_ranking_are_the_same_with_and_without(small, tmp_path):
    for name, epochs in (('with', [1, 3]), ('without', ())):
        small(make_evaluator(epochs=4), None, (2,), criterion='random', keep_epochs=epochs, workdir=tmp_path / name)
    for name in ('tree.json', 'search.json'):
        assert read_json(tmp_path / 'with' / name, ()) == read_json(tmp_path / 'without' / name, ())
    assert {node: [*epochs] for node, epochs in kept(tmp_path / 'with').items()} == {'0': [1], '0.0': [3], '0.1': [3]}
    more = {path.name for path in (tmp_path / 'with').iterdir()} - {p.name for p in (tmp_path / 'without').iterdir()}
    assert sorted(name[: name.rfind('.', 0, -5)] for name in more) == ['node-0.0.at-3', 'node-0.1.at-3', 'node-0.at-1']


def test_a_node_that_is_not_split_keeps_the_epoch_at_which_it_might_have_been(small):
    made = make_evaluator(callbacks=[Notes()])
    strategy = small(made, criterion=LID(n_neighbors=5, repeats=8, min_contrast=0.9), keep_epochs=[1, 2])
    assert strategy.leaves == [strategy.tree] and strategy.tree.kept_epochs == [1, 2, 3]
    for epoch, weights in Plain.seen:
        expected = [loss_by_hand(weights, sample) for sample in SAMPLES]
        assert losses(strategy, epoch=epoch, calibration_batches=0) == pytest.approx(expected, abs=1e-5)


def test_calibration_of_a_call_is_that_of_the_setting(small, tmp_path):
    """Fewer batches, and more than there are in an epoch."""
    strategy = small(criterion='random', calibration_batches=2)
    for batches in (7, 1, 0):
        found = losses(strategy, calibration_batches=batches)
        (tmp_path / 'scores.jsonl').unlink()
        assert losses(small(criterion='random', calibration_batches=batches)) == found
    assert losses(strategy, calibration_batches=2) == losses(strategy)


@pytest.mark.slow
@pytest.mark.parametrize(
    'networks, samples, sized, limit, expected',
    [
        (
            4,
            6400,
            True,
            1.0,
            22,
        ),  # epochs 1 + 2 x 2 of 24 steps of 3 passes, of which a quarter is 90, for four networks
        (10, 6400, True, 1.0, 10),  # 9 for each of ten: the least
        (1, 6400, True, 1.0, 24),  # an epoch
        (1, 6400, True, 16, 16),
        (1, 6400, True, 0.5, 12),
        (1, 49, True, 1.0, 13),  # batches of 4
        (1, 6400, False, 1.0, 10),
    ],
)
def test_calibration_takes_by_default_what_training_affords(
    small, tmp_path, monkeypatch, networks, samples, sized, limit, expected
):
    monkeypatch.setattr(calibration, 'SAMPLES', samples)
    monkeypatch.setattr(calibration, 'NETWORKS', networks)
    settings = {'criterion': 'random', 'search_budget': 2}

    def found(calibration_batches):
        train = DataLoader(images() if sized else Stream(), 4)
        made = make_evaluator(train=train, limit_train_batches=limit)
        return losses(small(made, calibration_batches=calibration_batches, **settings))

    values = found(None)
    assert read_json(tmp_path / 'search.json', ())['calibration_batches'] == expected
    assert found(expected) == values
    assert {line['calibration_batches'] for line in read_lines(tmp_path / 'scores.jsonl', ())} == {expected}


def test_without_a_number_a_finished_search_stays_as_it_is(small, tmp_path):
    settings = {'criterion': 'random', 'search_budget': 2}
    small(calibration_batches=3, **settings)
    kept = [(tmp_path / name).read_bytes() for name in ('search.json', 'scores.jsonl')]
    again = small(calibration_batches=None, **settings)
    again.evaluate([model.sample for model in again.list_models(limit=2)])
    assert kept == [(tmp_path / name).read_bytes() for name in ('search.json', 'scores.jsonl')]


def test_scores_are_kept_for_their_weights_and_calibration(small, tmp_path):
    strategy = small(criterion='random', keep_epochs=[2], search_budget=9)
    calls = [{'epoch': 1}, {'epoch': 2}, {'calibration_batches': 0}, {'epoch': 3, 'calibration_batches': 0}, {}]
    found = [losses(strategy, **call) for call in calls]
    lines = read_lines(tmp_path / 'scores.jsonl', ())
    assert len(lines) == 9 * (1 + 1 + 1 + 1)  # the last two calls and the search found all that they asked for
    assert len({(line['weights'], line['calibration_batches']) for line in lines}) == 1 + 2 + 2 + 2
    again = small(criterion='random', keep_epochs=[2], search_budget=9)
    assert [losses(again, **call) for call in calls] == found
    assert read_lines(tmp_path / 'scores.jsonl', ()) == lines


def test_scores_of_earlier_epochs_are_no_scores_of_leaves_that_were_trained_again(small, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    caplog.set_level(logging.INFO)
    losses(small(criterion='random', keep_epochs=[2]), epoch=2)
    small(criterion='random', keep_epochs=[2], search_budget=7)
    assert 'trained again' not in caplog.text


def bytes_of_tensors() -> int:
    gc.collect()
    alive = {}
    for found in gc.get_objects():
        if isinstance(found, torch.Tensor):
            with suppress(RuntimeError):  # sparse ones, and those of compilers, of other tests: they have no storage
                alive[found.untyped_storage().data_ptr()] = found.nbytes
    return sum(alive.values())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_epochs_that_are_looked_at(small):
    strategy = small(make_evaluator(epochs=5), None, (1,), criterion='random', keep_epochs=[2, 3, 4])
    losses(strategy)
    losses(strategy, epoch=2)
    before = bytes_of_tensors()
    for epoch in (1, 2, 3, 4):
        losses(strategy, epoch=epoch)
    assert bytes_of_tensors() <= before


class Copies(pl.Callback):
    """The copy is what a run has left that is killed as an epoch begins."""

    def __init__(self, epoch: int, workdir: Path, copy: Path):
        self.epoch, self.workdir, self.copy = epoch, workdir, copy

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch and not self.copy.exists():
            shutil.copytree(self.workdir, self.copy)


def back_on_the_way(workdir: Path) -> None:
    """As if the run had been killed before the checkpoint of epoch 1 was set aside."""
    for path in workdir.glob('node-0.at-1.*'):
        path.rename(workdir / path.name.replace('node-0.at-1', 'node-0-to-4.at-1'))


def flip_latest(workdir: Path) -> None:
    (path,) = workdir.glob('node-0-to-4.at-2.*')
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.slow
@pytest.mark.parametrize(
    'damage, keep_epochs, there',
    [
        (lambda workdir: None, [1, 3], [1, 3]),
        (back_on_the_way, [1, 3], [1, 3]),
        (flip_latest, [1, 3], [1, 3]),  # training begins anew
        (lambda workdir: None, [2, 3], [1, 2, 3]),  # what was kept stays, what is asked for now comes
        (flip_latest, [3], [3]),
    ],
    ids=['as-it-is', 'before-it-was-set-aside', 'latest-damaged', 'other-epochs', 'latest-damaged-other-epochs'],
)
def test_killed_and_started_again(small, tmp_path, damage, keep_epochs, there):
    undisturbed, killed = tmp_path / 'undisturbed', tmp_path / 'killed'
    copies = Copies(2, undisturbed, killed)
    small(make_evaluator(epochs=4, callbacks=[copies]), None, (), keep_epochs=[1, 2, 3], workdir=undisturbed)
    for path in killed.glob('node-0.at-2.*'):
        path.unlink()
    damage(killed)
    strategy = small(make_evaluator(epochs=4, callbacks=[copies]), None, (), keep_epochs=keep_epochs, workdir=killed)
    assert strategy.tree.kept_epochs == [*there, 4]
    everything = kept(undisturbed)['0']
    assert kept(killed)['0'] == {epoch: everything[epoch] for epoch in there}
    assert not list(killed.glob('node-0-to-*'))
    assert len(list(killed.glob('node-0.at-*'))) == len(there)


def test_what_was_kept_is_there_also_if_it_is_not_asked_for_again(small, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    small(criterion='random', keep_epochs=[2])
    strategy = small(criterion='random')
    assert strategy.tree.kept_epochs == [1, 2, 3]
    assert 'keep_epochs' not in caplog.text


def test_a_finished_run_started_again_with_other_epochs(small, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    small(make_evaluator(epochs=4), None, (1,), criterion='random')
    strategy = small(make_evaluator(epochs=4), None, (1,), criterion='random', keep_epochs=[1, 2, 3])
    said = 'keep_epochs: the weights of epochs [2, 3] are not there, of nodes that were trained before that was'
    assert caplog.text.count(said) == 1
    assert 'There are those of epochs [1, 4].' in caplog.text
    for epoch in (2, 0, 5, True, '1', 1.0):
        with pytest.raises(ValueError, match=rf'epoch must be one whose weights are there, 1, 4, but got .?{epoch}'):
            strategy.evaluate(SAMPLES, epoch=epoch)
    for batches in (-1, True, 'all'):
        with pytest.raises(ValueError, match='calibration_batches must be an integer of at least 0, but got '):
            strategy.evaluate(SAMPLES, calibration_batches=batches)


def test_a_damaged_file_is_named_and_others_are_used(small, tmp_path):
    strategy = small(criterion='random', keep_epochs=[2])
    flipped = next(tmp_path.glob('node-0.1.at-2.*'))
    flipped.write_bytes(flipped.read_bytes()[:-10])
    of_first = [sample for sample in SAMPLES if strategy.leaves[0].subspace.covers(sample)]
    assert len(losses(strategy, of_first, epoch=2)) == len(of_first)
    with pytest.raises(ValueError, match=rf'{flipped.name} is damaged: its SHA-256 .* delete node-0\.1\.\* and node'):
        losses(strategy, epoch=2)


def test_epochs_that_cannot_be_kept_are_refused_before_training(small, experiment, tmp_path):
    with pytest.raises(ValueError, match=r"keep_epochs must be below the evaluator's max_epochs=3, but got \[2, 3\]"):
        small(keep_epochs=[2, 3])
    made = make_evaluator(epochs=2, enable_checkpointing=True, default_root_dir=tmp_path / 'given')
    experiment(Convs(), made, RandomOneShot()).run()
    given = made.trainer.checkpoint_callback.best_model_path  # of two epochs
    workdir = tmp_path / 'run'
    for split_epochs, epochs, least in (((3,), [2, 3], 3), ((2,), [1, 3], 2)):
        with pytest.raises(ValueError, match=rf'keep_epochs must be at least {least}, because training starts from a'):
            small(make_evaluator(epochs=4, fit_kwargs={'ckpt_path': given}), None, split_epochs, keep_epochs=epochs,
                  workdir=workdir)  # fmt: skip
    assert not list(workdir.glob('*.json'))
    strategy = small(make_evaluator(epochs=4, fit_kwargs={'ckpt_path': given}), None, (2,), criterion='random',
                     keep_epochs=[2, 3], workdir=workdir)  # fmt: skip
    assert strategy.tree.kept_epochs == [2, 3, 4]
