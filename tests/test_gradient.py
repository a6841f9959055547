"""Gradient matching: gradients are those of networks made by NNI, similarities those of other packages or of hand."""

import weakref
from dataclasses import replace

from nni_naslid import Gradient
from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.groupings import set_partitions
from nni_naslid.criteria.matching import candidate_similarities, gradient_similarity
from nni_naslid.criteria.partition import best_partition_of_similarities

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.strategy import RandomOneShot
from numpy.random import RandomState
from small import Convs, Plain, images, make_context, make_evaluator, same_weights
from torch import nn
from torch.utils.data import TensorDataset


def context_of(tmp_path, space=None, module=None, data=None) -> Context:
    """A supernet whose batches are all the same."""
    evaluator = make_evaluator(module, train=DataLoader(data or images(24), 24))
    supernet = RandomOneShot().mutate_model(Convs() if space is None else space)
    return make_context(evaluator, supernet, tmp_path / 'notes.jsonl')


def cosine(one: list, other: list) -> float:
    return F.cosine_similarity(*(torch.cat([g.flatten() for g in each]) for each in (one, other)), dim=0).item()


def per_filter(one: list, other: list) -> float:
    pairs = [(a.flatten(1), b.flatten(1)) for a, b in zip(one, other, strict=True) if a.ndim > 1]
    found = torch.cat([F.cosine_similarity(a, b) for a, b in pairs])
    used = torch.cat([a.abs().sum(1) + b.abs().sum(1) for a, b in pairs]) > 0
    return found[used].mean().item()


def l2(one: list, other: list) -> float:
    a, b = (np.concatenate([g.numpy().ravel() for g in each]) for each in (one, other))
    return 1 - np.linalg.norm(a - b) ** 2 / (np.linalg.norm(a) ** 2 + np.linalg.norm(b) ** 2)


@pytest.mark.parametrize('similarity', [cosine, per_filter, l2])
def test_similarities_of_networks_that_nni_has_frozen(tmp_path, similarity):
    context = context_of(tmp_path)
    context = replace(context, subspace=context.subspace.narrow({'stem': [1]}))  # so all repeats are the same
    split = Gradient(similarity.__name__).choose(context)
    x, y = next(iter(context.evaluator.train_dataloaders))
    gradients = []
    for choice in context.subspace.splittable['body']:
        network = context.supernet.freeze({'stem': 1, 'body': choice})
        shared = [weight for name, weight in network.train().named_parameters() if not name.startswith('body')]
        gradients.append(torch.autograd.grad(F.cross_entropy(network(x), y), shared))
    right = [[similarity(a, b) for a in gradients] for b in gradients]
    assert split.evidence.label == 'body'
    assert np.allclose(split.evidence.partition.similarity, right, atol=1e-5)  # sums of some hundred float32 products
    assert np.diag(split.evidence.partition.similarity) == pytest.approx(1)
    assert split.evidence.partition.error == pytest.approx(0, abs=1e-6)


class Scale(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Opposed(ModelSpace):
    """Two of the four candidates want the shared weights changed the other way; the other label is about nothing."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(8, 5)
        self.side = LayerChoice([Scale(1.0), Scale(1.0)], label='side')
        self.sign = LayerChoice([Scale(1.0), Scale(-1.0), Scale(2.0), Scale(-0.5)], label='sign')

    def forward(self, x):
        return self.sign(self.side(self.shared(x)))


class Mean(Plain):
    def loss(self, batch):
        return self(batch[0]).mean() + 0 * batch[1].sum()


@pytest.mark.parametrize('similarity', ['cosine', 'per_filter', 'l2'])
def test_opposed_candidates_are_split(tmp_path, similarity):
    data = TensorDataset(torch.randn(24, 8), torch.zeros(24))
    evidence = Gradient(similarity).choose(context_of(tmp_path, Opposed(), Mean(), data)).evidence
    assert (evidence.label, evidence.partition.groups) == ('sign', [[0, 2], [1, 3]])
    assert evidence.objection is None
    right = np.array([1, -1, 2, -0.5])
    lengths = right**2 + right[:, None] ** 2 if similarity == 'l2' else 2 * abs(right * right[:, None])
    assert np.allclose(evidence.partition.similarity, 2 * right * right[:, None] / lengths, atol=1e-6)
    assert evidence.contrasts['side'].score == pytest.approx(0)  # identical candidates
    assert evidence.n_passes == 3 * 5 * evidence.n_repeats


class Careful(Plain):
    """Takes notice when it is called otherwise than in training, and logs."""

    def on_validation_epoch_end(self):
        raise RuntimeError('there was no step')

    def validation_step(self, batch, batch_idx):
        raise RuntimeError('nobody validates')

    def training_step(self, batch, batch_idx):
        assert self.training and self.model.training and torch.is_grad_enabled()
        self.seen.append(batch[0].mean().item())
        loss = self.loss(batch)
        self.log('train_loss', loss, prog_bar=True)
        return {'loss': loss, 'other': None}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] + 100, batch[1]


def test_the_loss_is_that_of_the_training_step_and_no_trace_is_left(tmp_path):
    context = context_of(tmp_path, module=Careful())
    for weight in context.supernet.head.parameters():
        weight.grad = torch.full_like(weight, 7)
    context.module.eval()
    context.supernet.head.train()
    before = {name: value.clone() for name, value in context.supernet.state_dict().items()}
    modes = [module.training for module in context.module.modules()]
    criterion = Gradient(repeats=8)
    assert criterion.check(context) == {}
    Careful.seen.clear()
    split = criterion.choose(context)
    assert len(Careful.seen) == 8 * 5 and min(Careful.seen) > 90  # one network, and two more for each label
    assert criterion.cost(context.subspace) == 3 * 8 * 5
    assert same_weights(before, context.supernet.state_dict())
    assert modes == [module.training for module in context.module.modules()]
    grads = {name: weight.grad for name, weight in context.supernet.named_parameters()}
    assert all((grad is not None) == name.startswith('head') for name, grad in grads.items())
    assert all((grad == 7).all() for grad in grads.values() if grad is not None)

    Careful.seen.clear()
    again = criterion.choose(replace(context, random_state=RandomState(0)))  # after a kill: all is in the notes
    assert not Careful.seen
    assert again.evidence.partition.similarity == split.evidence.partition.similarity


def test_a_narrowed_node_compares_its_own_candidates(tmp_path):
    context = context_of(tmp_path)
    part = context.subspace.split('body', [[0, 2], [1]])[0]
    evidence = Gradient(min_contrast=0).choose(replace(context, subspace=part)).evidence
    assert set(evidence.contrasts) == {'stem', 'body'}
    assert len(evidence.partition.similarity) == len(part.splittable[evidence.label])


@pytest.mark.parametrize(
    'returned, match',
    [
        (lambda module, loss: None, 'must return a loss with a gradient, but returned None'),
        (lambda module, loss: loss.detach(), r'must return a loss with a gradient, but returned tensor\('),
        (lambda module, loss: {'val': loss}, 'must return a loss with a gradient, but returned None'),
        (lambda module, loss: loss * module.optimizers()[0].lr, 'cannot be called outside of training: IndexError'),
    ],
)
def test_a_training_step_without_a_gradient_is_named_before_training(small, tmp_path, returned, match):
    class Wrong(Plain):
        def training_step(self, batch, batch_idx):
            return returned(self, self.loss(batch))

    with pytest.raises(ValueError, match=f'^training_step of Wrong {match}'):
        small(make_evaluator(Wrong()), criterion='gradient')
    assert not (tmp_path / 'tree.json').exists()


@pytest.mark.parametrize(
    'settings, match',
    [
        ({'similarity': 'cos'}, "similarity must be one of cosine, per_filter, l2, but got 'cos'"),
        ({'repeats': 7}, 'repeats must be an integer of at least 8'),
        ({'min_contrast': 1}, 'min_contrast must be a number of at least 0 and below 1'),
    ],
)
def test_settings_that_cannot_work(settings, match):
    with pytest.raises(ValueError, match=match):
        Gradient(**settings)


@pytest.mark.parametrize('similarity', ['cosine', 'per_filter', 'l2'])
def test_gradients_that_say_little(similarity):
    one, zero = torch.eye(3), torch.zeros(3, 3)
    assert gradient_similarity([one, None], [one, one], similarity) == pytest.approx(1)
    assert gradient_similarity([one], [zero], similarity) == 0
    assert gradient_similarity([zero], [zero], similarity) == 1
    assert gradient_similarity([one, None], [None, one], similarity) == 1
    assert gradient_similarity([one], [one * torch.inf], similarity) == 0
    assert gradient_similarity([one * 1e-25], [one * 1e-25], similarity) in (1, pytest.approx(1))


def test_gradients_of_one_label_are_in_memory_at_a_time():
    alive, most = set(), 0

    def gradient_of(sample):
        nonlocal most
        found = torch.randn(5)
        alive.add(id(found))
        weakref.finalize(found, alive.discard, id(found))
        most = max(most, len(alive))
        return [found]

    labels = {name: list(range(4)) for name in 'abcdef'}
    candidate_similarities(gradient_of, dict.fromkeys(labels, 0), labels, labels, 'cosine')
    assert most <= 4 + 1  # the path is a candidate of each label; the last gradient leaves when the next label begins


def test_the_best_partition_of_similarities_is_the_best_of_all():
    random_state = RandomState(0)
    similarities = torch.tensor(random_state.uniform(-1, 1, (6, 5, 5)))
    similarities = (similarities + similarities.mT) / 2
    similarities.diagonal(dim1=1, dim2=2).fill_(1)
    found = best_partition_of_similarities(similarities, n_permutations=1)
    mean = similarities.mean(0).numpy()

    def score(groups, mean=mean):
        same = np.equal.outer(groups, groups)
        return mean[same & ~np.eye(5, dtype=bool)].mean() - mean[~same].mean()

    best = max(map(np.array, set_partitions(5, 2)), key=score)
    assert found.score == pytest.approx(score(best))
    assert sorted(found.groups) == sorted([i for i in range(5) if best[i] == g] for g in (0, 1))
    each = [score(best, similarities[r].numpy()) for r in range(6)]
    assert found.error == pytest.approx(np.std(each, ddof=1) / np.sqrt(6))  # a mean has the error of a mean


def test_permuted_candidates_are_as_good_as_others_where_nothing_differs():
    """A difference in all repeats is found, and the same one between other candidates in each repeat is not."""
    similarities = torch.full((12, 4, 4), 0.9).double()
    similarities[:, :2, 2:] = similarities[:, 2:, :2] = 0.1
    similarities.diagonal(dim1=1, dim2=2).fill_(1)
    assert best_partition_of_similarities(similarities).p_value < 0.01
    orders = torch.stack([torch.tensor(RandomState(r).permutation(4)) for r in range(12)])
    mixed = torch.stack([s[order][:, order] for s, order in zip(similarities, orders, strict=True)])
    assert best_partition_of_similarities(mixed).p_value > 0.05


def test_many_candidates_of_negative_similarity_are_clustered():
    signs = torch.tensor([1.0, -1.0] * 6)
    found = best_partition_of_similarities((signs * signs[:, None]).repeat(3, 1, 1), n_permutations=0)
    assert found.groups == [list(range(0, 12, 2)), list(range(1, 12, 2))] or found.groups == [
        list(range(1, 12, 2)), list(range(0, 12, 2))
    ]  # fmt: skip
