"""Routing, batch-norm statistics, and networks of their own."""

from collections import Counter

from nni_naslid import SubSpace
from nni_naslid.analysis.truth import nasbench201_architectures, nasbench201_sample
from nni_naslid.search.batchnorm import recalibrate
from nni_naslid.train.data import Inputs
from nni_naslid.train.path import set_path

import numpy as np
import pytest
import torch
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.strategy import RandomOneShot
from small import images, make_evaluator
from torch.utils.data import TensorDataset


@pytest.fixture
def supernet(nasbench201):
    return RandomOneShot().mutate_model(nasbench201())


@pytest.mark.slow
def test_every_sample_goes_to_the_leaf_that_contains_it(run):
    strategy = run((1, 2))
    scorer = strategy._scorer
    for arch in nasbench201_architectures()[::7]:
        sample = nasbench201_sample(arch)
        leaf = scorer.leaf_of(sample)
        assert all(sample[label] in choices for label, choices in leaf.subspace.to_dict().items())
    with pytest.raises(ValueError, match="sample has 'conv_9x9' for 'cell/0_1', which must be one of 'none', 'skip_co"):
        scorer.leaf_of({**sample, 'cell/0_1': 'conv_9x9'})


def test_architectures_that_are_none_are_refused_before_any_is_scored(run, tmp_path):
    """The message names the place in the list, the label, the choice, and what would be right."""
    strategy = run((), epochs=1, search_budget=1)
    scored = (tmp_path / 'scores.jsonl').read_text()
    right = dict.fromkeys(('cell/0_1', 'cell/0_2', 'cell/1_2', 'cell/0_3', 'cell/1_3', 'cell/2_3'), 'conv_3x3')
    missing = {label: choice for label, choice in right.items() if label != 'cell/1_3'}
    choices = r"which must be one of 'none', 'skip_connect', 'conv_1x1', 'conv_3x3', 'avg_pool_3x3'\.$"
    for wrong, error, match in (
        ({**right, 'cell/1_3': 'conv_5x5'}, ValueError, rf"samples\[1\] has 'conv_5x5' for 'cell/1_3', {choices}"),
        ({**right, 'cell/1_3': ['none']}, ValueError, rf"samples\[1\] has \['none'\] for 'cell/1_3', {choices}"),
        (missing, ValueError, rf"samples\[1\] has no choice for 'cell/1_3', {choices}"),
        (
            {**right, 'cell/1_4': 'none'}, ValueError,
            r"samples\[1\] has 'none' for 'cell/1_4', which is no label of the space; its labels are 'cell/0_1', ",
        ),
        ('conv_3x3', TypeError, r"samples\[1\] must be a dict of label to choice, but got 'conv_3x3'\.$"),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            strategy.evaluate([right, wrong])
    with pytest.raises(TypeError, match='samples must be a list of dicts of label to choice, but got one dict, '):
        strategy.evaluate(right)
    assert (tmp_path / 'scores.jsonl').read_text() == scored


class CountsReads(TensorDataset):
    """How often each image has been read."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.reads = Counter()

    def __getitem__(self, index):
        self.reads[index] += 1
        return super().__getitem__(index)


def test_validation_data_are_read_once_for_all_that_is_scored(small):
    """In the search, and after it. The last image is beyond what is read to tell the data from others."""
    data = CountsReads(*images(96, seed=1).tensors)
    strategy = small(make_evaluator(val=DataLoader(data, 24), epochs=1), split_epochs=())
    in_training, in_the_search = 1, 1
    assert data.reads[95] == in_training + in_the_search
    assert len(list(strategy.list_models(limit=9))) == 9
    assert data.reads[95] == in_training + in_the_search


def test_a_sample_is_scored_with_the_weights_of_its_leaf(run):
    strategy = run((1,))
    scorer = strategy._scorer
    for leaf in reversed(strategy.leaves):
        sample = leaf.subspace.sample(np.random.RandomState(0))
        scorer.prepare(sample)
        weights = torch.load(leaf.checkpoint, weights_only=False)['state_dict']
        for name, value in strategy.supernet.named_parameters():
            assert torch.equal(value, weights[f'training_module._model.{name}'])


def test_recalibration_gives_the_mean_statistics_of_the_batches(supernet):
    sample = SubSpace.of(supernet).sample(np.random.RandomState(1))
    set_path(supernet, sample)
    batches = [torch.randn(20, 3, 8, 8) * (i + 1) for i in range(3)]
    recalibrate(supernet, [Inputs((x,), {}) for x in batches])
    inputs = [supernet.stem[0](x).transpose(0, 1).flatten(1) for x in batches]  # [C, pixels] before the first norm
    norm = supernet.stem[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(1) for x in inputs]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var(1) for x in inputs]).mean(0))
    assert norm.momentum == 0.1
    assert not supernet.training


def test_scores_do_not_depend_on_what_was_scored_before(run):
    strategy = run((1,))
    samples = [strategy.tree.subspace.sample(np.random.RandomState(i)) for i in range(6)]
    scores = strategy.evaluate(samples)
    assert strategy.evaluate(samples[::-1]) == scores[::-1]
    assert [strategy.evaluate([sample])[0] for sample in samples] == scores


def test_exported_networks_share_nothing_with_the_supernet(run):
    strategy = run((1,), epochs=2)
    (network,) = strategy.experiment.export_top_models(1, formatter='instance')
    before = {name: value.clone() for name, value in strategy.supernet.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in strategy.supernet.state_dict().items())
