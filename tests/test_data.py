"""Loaders, data modules and batches of any kind that Lightning takes."""

import json
import logging
import random
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from nni_naslid.criteria.evidence import ByLabel
from nni_naslid.train.data import describe_data, take_batches, tensors_in, two_sizes
from nni_naslid.train.rng import own_generators, seeded

import nni
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from pytorch_lightning.utilities import CombinedLoader
from small import Convs, Plain, images, make_evaluator, same_weights, tokens
from torch import nn
from torch.utils.data import IterableDataset, RandomSampler, Sampler, TensorDataset


@pytest.fixture
def log(caplog, monkeypatch):
    """What NNI's loggers, and so ours, say."""
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    caplog.set_level(logging.INFO)
    return caplog


class Pixels(pl.LightningDataModule):
    """Bytes or floats that become numbers near 1 where the device is."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.dtype = dtype

    def loader(self, n, seed):
        x, y = images(n, seed).tensors
        return DataLoader(TensorDataset((x * 20 + 100).clamp(0, 255).to(self.dtype), y), 24, shuffle=seed == 0)

    def train_dataloader(self):
        return self.loader(96, 0)

    def val_dataloader(self):
        return self.loader(48, 1)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return [batch[0].float(), batch[1]]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [(batch[0] - 100) / 20, batch[1]]


class NotesMeans(Plain):
    def loss(self, batch):
        self.seen.append((self.trainer.state.fn.value, round(batch[0].mean().item())))
        return super().loss(batch)


@pytest.mark.parametrize('dtype', [torch.float32, torch.uint8])
def test_hooks_of_a_data_module_are_called_at_every_stage(small, dtype):
    """In training, in profiles, calibration and scores (which are validation to Lightning), and in ``evaluate``."""
    strategy = small(make_evaluator(NotesMeans(), data=Pixels(dtype)))
    strategy.evaluate([{'stem': 0, 'body': 0}])
    assert set(NotesMeans.seen) == {('fit', 1), ('validate', 1)}


def test_a_traced_data_module(small):
    strategy = small(make_evaluator(NotesMeans(), data=nni.trace(Pixels)()))
    assert {mean for _, mean in NotesMeans.seen} == {1}
    assert strategy.tree.metric < 2


class AsksItsTrainer(pl.LightningDataModule):
    """The batch size depends on the trainer, and what is loaded on what it does."""

    def setup(self, stage):
        assert self.trainer.state.fn.value == 'fit'
        self.batch_size = 24 // self.trainer.world_size

    def train_dataloader(self):
        assert self.trainer.training
        return DataLoader(images(), self.batch_size, shuffle=True)

    def val_dataloader(self):
        assert not self.trainer.training
        return DataLoader(images(48, seed=1), self.batch_size)


def test_a_data_module_that_asks_its_trainer(small):
    assert small(make_evaluator(data=AsksItsTrainer())).tree.metric < 2


class Stream(IterableDataset):
    def __init__(self, n, seed):
        self.n, self.seed = n, seed

    def __iter__(self):
        return iter(images(self.n, self.seed))


def test_streams_without_a_length(small, log):
    strategy = small(make_evaluator(train=DataLoader(Stream(96, 0), 24), val=DataLoader(Stream(48, 1), 24)))
    assert 'epochs of an unknown number of steps' in log.text
    assert all(leaf.end_epoch == 3 for leaf in strategy.leaves)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield from images(48, seed=1)


def test_an_endless_validation_set_is_read_up_to_its_limit(small):
    """Its first two batches are those of 48 images."""
    strategy = small(make_evaluator(val=DataLoader(Endless(), 24), limit_val_batches=2), split_epochs=())
    sample = {'stem': 1, 'body': 1}
    (endless,) = strategy.evaluate([sample])
    strategy._evaluator.trainer.limit_val_batches = 1.0
    strategy._evaluator.val_dataloaders = DataLoader(images(48, seed=1), 24)
    strategy._found, strategy._scorer = None, None
    (strategy.workdir / 'scores.jsonl').unlink()
    strategy._search_due(set())
    assert strategy.evaluate([sample]) == [endless]


@pytest.mark.parametrize('share', [0.5, 1.0])
def test_a_part_of_the_validation_set(small, share):
    """The limit holds once, not again for what is kept."""
    made = make_evaluator(NotesMeans(), limit_val_batches=share)
    strategy = small(made, split_epochs=(), calibration_batches=0)
    before = len(NotesMeans.seen)
    strategy._scorer._known.clear()
    strategy.evaluate([{'stem': 1, 'body': 1}])
    assert len(NotesMeans.seen) - before == 2 * share


class ByTokens(Sampler):
    """As many texts as have some number of words together; says that there are 12 batches."""

    def __init__(self, lengths, most):
        self.lengths, self.most = lengths, most

    def __iter__(self):
        batch, longest = [], 0
        for i in torch.randperm(len(self.lengths)).tolist():
            if batch and max(longest, self.lengths[i]) * (len(batch) + 1) > self.most:
                yield batch
                batch, longest = [], 0
            batch.append(i)
            longest = max(longest, self.lengths[i])
        yield batch

    def __len__(self):
        return 12


class Bag(ModelSpace):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.a = LayerChoice([nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())], label='a')
        self.b = LayerChoice([nn.Linear(8, 8), nn.Identity()], label='b')
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.b(self.a(self.embed(x).mean(1))))


@pytest.mark.parametrize('most', [200, 1000])
def test_batches_of_different_sizes(small, most):
    """With 1000 words there are fewer batches than the sampler says, so that Lightning never sees the last one."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 16, (160,), generator=generator).tolist()
    texts = [(torch.randint(50, (n,), generator=generator), i % 4) for i, n in enumerate(lengths)]

    def pad(items):
        return nn.utils.rnn.pad_sequence([x for x, _ in items], batch_first=True), torch.tensor([y for _, y in items])

    train = DataLoader(texts, batch_sampler=ByTokens(lengths, most), collate_fn=pad)
    val = DataLoader(texts[:48], 24, collate_fn=pad)
    strategy = small(make_evaluator(train=train, val=val), space=Bag, n_neighbors=3, calibration_batches=10)
    assert all(node.metric is not None for node in strategy.tree)


@pytest.mark.parametrize(
    'trainer, epochs',
    [
        ({'check_val_every_n_epoch': None, 'val_check_interval': 8}, [2, 4, 6]),
        ({'check_val_every_n_epoch': 5}, [2, 4, 5, 6]),
    ],
)
def test_a_node_is_validated_at_its_end_and_else_at_the_rhythm_of_the_user(small, trainer, epochs):
    """Splits at 2 and 4 of 6 epochs, of four batches each."""

    class Notes(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                Plain.seen.append(trainer.current_epoch + 1)

    strategy = small(make_evaluator(epochs=6, callbacks=[Notes()], **trainer), split_epochs=(2, 4), criterion='random')
    assert sorted(set(Plain.seen)) == epochs
    assert len(Plain.seen) == 1 + 2 + 4 * len(epochs[2:])
    assert all(node.metric is not None for node in strategy.tree)


@dataclass
class Pair:
    x: torch.Tensor
    y: torch.Tensor


class Own:
    """A batch that no library knows, and that begins with something else than the images."""

    def __init__(self, items):
        self.step = torch.tensor(3)
        self.x, self.y = (torch.stack(parts) for parts in zip(*items, strict=True))

    def to(self, device):
        return self


def as_pair(items):
    return Pair(*(torch.stack(parts) for parts in zip(*items, strict=True)))


def as_numpy(items):
    return Pair(*(np.stack(parts) for parts in zip(*items, strict=True)))


class TakesPairs(Plain):
    def loss(self, batch):
        return F.cross_entropy(self(torch.as_tensor(batch.x)), torch.as_tensor(batch.y))

    def validation_step(self, batch, batch_idx):
        self.log('val_loss', self.loss(batch), batch_size=24)


@pytest.mark.slow
@pytest.mark.parametrize('collate', [as_pair, as_numpy, Own])
def test_batches_of_other_classes(small, collate):
    train = DataLoader(images(), 24, shuffle=True, collate_fn=collate)
    val = DataLoader(images(48, seed=1), 24, collate_fn=collate)
    strategy = small(make_evaluator(TakesPairs(), train=train, val=val))
    assert strategy.tree.metric < 2


def test_a_combined_loader_is_refused_for_what_it_is(small):
    combined = CombinedLoader({'a': DataLoader(images(), 24)}, 'max_size_cycle')
    with pytest.raises(TypeError, match=r'training batches to validation_step too, .* a CombinedLoader of them'):
        small(make_evaluator(train=combined))


class Fresh(TensorDataset):
    """New tensors each time, as image files give."""

    def __getitem__(self, index):
        return tuple(tensor.clone() for tensor in super().__getitem__(index))


class NormalisesBatch(NotesMeans):
    def loss(self, batch):
        batch[0].sub_(100).div_(20)
        return super().loss(batch)


class NormalisesInput(Convs):
    def forward(self, x):
        x.sub_(100).div_(20)
        Plain.seen.append(round(x.mean().item()))
        return super().forward(x)


@pytest.mark.parametrize('where', ['step', 'model'])
def test_kept_batches_that_the_users_code_writes_to(small, where):
    def pixels(n, seed):
        x, y = images(n, seed).tensors
        return Fresh(x * 20 + 100, y)

    train, val = DataLoader(pixels(96, 0), 24, shuffle=True), DataLoader(pixels(48, 1), 24)
    made = make_evaluator(NormalisesBatch() if where == 'step' else Plain(), train=train, val=val)
    strategy = small(made, space=Convs if where == 'step' else NormalisesInput)
    samples = [{'stem': stem, 'body': body} for stem in range(3) for body in range(3)]
    scores = strategy.evaluate(samples)
    strategy._scorer._known.clear()
    assert strategy.evaluate(samples[::-1]) == scores[::-1]
    assert {mean[1] if where == 'step' else mean for mean in type(made.module).seen} == {1}


def set_generator(kind, loader):
    """A loader whose order comes from a generator of its own."""
    dataset = loader.dataset
    if kind == 'loader':
        return DataLoader(dataset, 24, shuffle=True, generator=torch.Generator().manual_seed(3))
    if kind == 'sampler':
        return DataLoader(dataset, 24, sampler=RandomSampler(dataset, generator=torch.Generator().manual_seed(3)))
    return DataLoader(dataset, 24, sampler=Shuffled(len(dataset), kind))


class Shuffled(Sampler):
    def __init__(self, n, kind):
        self.n = n
        self.random = {
            'numpy': np.random.default_rng(3),
            'mt19937': np.random.Generator(np.random.MT19937(3)),
            'old numpy': np.random.RandomState(3),
            'python': random.Random(3),
        }[kind]

    def __iter__(self):
        order = list(range(self.n))
        self.random.shuffle(order)
        return iter(order)

    def __len__(self):
        return self.n


class Kill(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 1 and Plain.seen == ['kill']:
            raise RuntimeError('killed')


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['loader', 'sampler', 'numpy', 'mt19937', 'old numpy', 'python'])
def test_generators_of_loaders_and_samplers_go_on_after_a_kill(small, tmp_path, kind):
    def weights(name, kill=False):
        made = make_evaluator(train=set_generator(kind, DataLoader(images(), 24)), epochs=4, callbacks=[Kill()])
        Plain.seen[:] = ['kill'] if kill else []
        strategy = small(made, split_epochs=(), search_budget=1, workdir=tmp_path / name, retries=0)
        strategy.load(strategy.leaves[0])
        return {name: value.clone() for name, value in strategy.supernet.state_dict().items()}

    undisturbed = weights('undisturbed')
    with pytest.raises(RuntimeError, match='killed'):
        weights('killed', kill=True)
    assert same_weights(weights('killed'), undisturbed)


class Counting(Sampler):
    """Begins elsewhere each time it is asked."""

    times = 0

    def __iter__(self):
        self.times += 1
        return iter((torch.arange(96) + self.times) % 96)

    def __len__(self):
        return 96


def test_data_that_never_come_the_same_way_are_named(small, log):
    small(make_evaluator(train=DataLoader(images(), 24, sampler=Counting())), split_epochs=())
    assert 'The first training batches differ when they are read again with the same random seeds' in log.text


def other_evaluator(what):
    if what == 'training data':
        return make_evaluator(train=DataLoader(images(seed=5), 24, shuffle=True))
    if what == 'validation data':
        return make_evaluator(val=DataLoader(images(48, seed=5), 24))
    if what == 'resolution':
        x, y = images().tensors
        return make_evaluator(train=DataLoader(TensorDataset(x[:, :, :7], y), 24, shuffle=True))
    if what == 'workers':
        return make_evaluator(train=DataLoader(images(), 24, shuffle=True, num_workers=1))
    if what == 'sampler':
        return make_evaluator(train=DataLoader(images(), 24))
    return make_evaluator(limit_train_batches=3)


@pytest.mark.parametrize(
    'what, match',
    [
        ('training data', 'first training batches='),
        ('validation data', 'first validation batches='),
        ('resolution', 'first training batches='),
        ('workers', 'training num_workers=0, but this one has training num_workers=1'),
        ('sampler', "training sampler='RandomSampler', but this one has training sampler='SequentialSampler'"),
        ('limit', r'limit_train_batches=1.0, but this one has limit_train_batches=3'),
    ],
)
def test_other_data_in_the_work_folder(small, what, match):
    small(split_epochs=(), search_budget=1)
    small(split_epochs=(), search_budget=1)
    with pytest.raises(ValueError, match=match):
        small(other_evaluator(what), split_epochs=(), search_budget=1)


def test_the_fingerprint_of_shuffled_and_augmented_data_is_that_of_the_data():
    descriptions = [describe_data(make_evaluator(), seed=0) for _ in range(2)]
    assert descriptions[0] == descriptions[1] == json.loads(json.dumps(descriptions[0]))
    assert descriptions[0]['first training batches'] != descriptions[0]['first validation batches']


def test_batches_are_taken_without_a_smaller_last_one():
    loader = DataLoader(torch.arange(10), 4)
    assert [len(batch) for batch in take_batches(loader, 5)] == [4] * 5
    assert [batch[0] for batch in take_batches(loader, 3)] == [0, 4, 0]
    assert [len(batch) for batch in take_batches(DataLoader(torch.arange(3), 4), 2)] == [3, 3]
    assert [len(batch) for batch in take_batches([[1], [2], [3]], 4)] == [1, 1, 1, 1]


def test_one_sample_less_is_left_out_before_samples_are_put_together():
    def time_first(items):
        return torch.stack([x for x, _ in items], 1)

    whole, fewer, n = two_sizes(DataLoader(tokens(), 24, collate_fn=time_first))
    assert (whole.shape, fewer.shape, n) == ((7, 24), (7, 23), 24)
    assert torch.equal(whole[:, :23], fewer)
    whole, fewer, n = two_sizes(DataLoader(Stream(96, 0), 24))
    assert (whole[0].shape[0], fewer[0].shape[0], n) == (24, 23, 24)
    assert two_sizes([torch.zeros(3)]) is None


def test_tensors_are_found_in_everything():
    a, b, c, d = (torch.full((1,), float(i)) for i in range(4))
    own = Own([(c, d)])
    own.itself = own
    found = tensors_in({'x': [a, (b, 'text')], 'own': own, 'none': None, 'pair': Pair(d, c)})
    assert sorted(tensor.item() for tensor in found) == [0, 1, 2, 2, 3, 3, 3]


def test_generators_are_found_and_left_as_they_were():
    generators = [torch.Generator(), np.random.default_rng(0), np.random.RandomState(0), random.Random(0)]

    class Data(pl.LightningDataModule):
        def __init__(self):
            super().__init__()
            self.transforms = [lambda x: x, {'deep': generators[0]}]
            self.others = generators

    found = own_generators([None, Data()])
    assert {id(g) for g in found.values()} == {id(g) for g in generators}
    draws = []
    for seed in (1, 1, 2):
        with seeded(seed, data=Data()):
            draws.append([torch.rand(1, generator=generators[0]).item(), *(g.random() for g in generators[1:3])])
    assert draws[0] == draws[1]
    assert all(x != y for x, y in zip(draws[0], draws[2], strict=True))
    assert generators[1].random() == np.random.default_rng(0).random()
    assert next(islice(iter([generators[3].random()]), 1)) == random.Random(0).random()


class Splits(pl.LightningDataModule):
    """What is held out is drawn in ``setup``, as in many tutorials."""

    held_out: ClassVar[set] = set()

    def __init__(self, generator=None):
        super().__init__()
        self.generator = generator

    def setup(self, stage):
        self.train, self.val = torch.utils.data.random_split(images(120), [96, 24], generator=self.generator)
        self.held_out.add(tuple(self.val.indices))

    def train_dataloader(self):
        return DataLoader(self.train, 24, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 24)


@pytest.mark.parametrize('generator', [None, 'own'])
def test_what_a_data_module_holds_out_is_never_trained_on(small, generator):
    Splits.held_out.clear()
    data = Splits(torch.Generator().manual_seed(1) if generator else None)
    strategy = small(make_evaluator(data=data), criterion='random')
    strategy.evaluate([{'stem': 0, 'body': 0}])
    assert len(strategy.leaves) == 2
    assert len(Splits.held_out) == 1


class DrawsItself(Plain):
    """Noise of a generator of its own."""

    def __init__(self):
        super().__init__()
        self.noise = torch.Generator().manual_seed(5)

    def training_step(self, batch, batch_idx):
        return super().training_step(
            [batch[0] + torch.randn(batch[0].shape, generator=self.noise), batch[1]], batch_idx
        )


class Noisy(Pixels):
    def __init__(self):
        super().__init__()
        self.noise = torch.Generator().manual_seed(5)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = super().on_after_batch_transfer(batch, dataloader_idx)
        return [x + torch.randn(x.shape, generator=self.noise), y]


class NoisySet(TensorDataset):
    def __init__(self):
        super().__init__(*images(48, seed=1).tensors)
        self.noise = np.random.default_rng(5)

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + torch.from_numpy(self.noise.normal(size=x.shape).astype(np.float32)), y


@pytest.mark.parametrize('where', ['module', 'data module', 'validation set'])
def test_other_generators_of_the_user_go_on_after_a_kill(small, tmp_path, where):
    def outcome(name, kill=False):
        given = {
            'module': {'module': DrawsItself()},
            'data module': {'data': Noisy()},
            'validation set': {'val': DataLoader(NoisySet(), 24)},
        }[where]
        made = make_evaluator(**given, epochs=4, callbacks=[Kill()])
        Plain.seen[:] = ['kill'] if kill else []
        strategy = small(made, split_epochs=(), search_budget=1, workdir=tmp_path / name, retries=0)
        strategy.load(strategy.leaves[0])
        return strategy.tree.metric, {name: value.clone() for name, value in strategy.supernet.state_dict().items()}

    metric, weights = outcome('undisturbed')
    with pytest.raises(RuntimeError, match='killed'):
        outcome('killed', kill=True)
    again, same = outcome('killed')
    assert again == metric
    assert same_weights(same, weights)


def takes_apart(items):
    return torch.stack([item.pop('x') for item in items]), torch.stack([item.pop('y') for item in items])


def test_a_collate_function_may_take_samples_apart(small):
    samples = [{'x': x, 'y': y} for x, y in images(48)]

    class Dicts(torch.utils.data.Dataset):
        def __len__(self):
            return 48

        def __getitem__(self, index):
            return dict(samples[index])

    loader = DataLoader(Dicts(), 24, collate_fn=takes_apart)
    assert small(make_evaluator(train=loader, val=[loader])).tree.metric < 2


def test_where_validation_is_sorted_by_class_it_tells_nothing_of_chance(small):
    """Batches of one class: the same loss whichever output belongs to which sample. So the profile decides."""
    x, y = images(400, seed=1).tensors
    order = y.argsort()
    val = DataLoader(TensorDataset(x[order], y[order]), 24)
    strategy = small(make_evaluator(val=val, limit_val_batches=3))
    assert isinstance(strategy.tree.split.evidence, ByLabel)
