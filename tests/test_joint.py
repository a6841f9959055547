"""Joint splits: of which labels, into which children, and what speaks against it."""

import json
from dataclasses import replace
from itertools import product

from nni_naslid import LID, NASLID, Fixed, Gradient, Joint, RandomSplit, SubSpace, ZeroCost
from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.named import check_travels, criterion_of
from nni_naslid.criteria.together import clearest_node, nodes_of
from nni_naslid.run.settings import Settings
from nni_naslid.run.spec import make
from nni_naslid.space.split import Split

import pytest
import torch
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.hub.pytorch import DARTS
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.strategy import RandomOneShot
from numpy.random import RandomState
from small import make_context, make_evaluator
from test_zero_cost import Mean, Scale
from torch import nn
from torch.utils.data import TensorDataset

FACTORS = {  # by which candidates of a label differ
    'a': [1.0, 1.0, 10.0, 10.0],
    'b': [1.0, 8.0, 8.0],
    'c': [1.0, 1.0, 1.0],
    'd': [1.0, 30.0, 1.0, 30.0],
    'e': [1.0, 3.0],
}


class Product(ModelSpace):
    def __init__(self):
        super().__init__()
        self.choices = nn.Sequential(*(LayerChoice(list(map(Scale, f)), label=name) for name, f in FACTORS.items()))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.choices(self.head(x))


def logarithm(network, inputs):
    """Of the length of the output: a sum of what each label has."""
    return network(inputs).norm().log()


BY = ZeroCost(logarithm, repeats=16)


def context_of(tmp_path, criterion: Joint, space=None) -> Context:
    data = TensorDataset(torch.randn(24, 8), torch.zeros(24))
    evaluator = make_evaluator(Mean(), train=DataLoader(data, 12), val=DataLoader(data, 12))
    context = make_context(evaluator, RandomOneShot().mutate_model(space or Product()), tmp_path / 'notes.jsonl')
    return replace(context, checked=json.loads(json.dumps(criterion.check(context))))


def choices(split: Split) -> list[dict]:
    return [{label: kept for label, kept in child.to_dict().items() if len(kept) < len(FACTORS[label])}
            for child in split.children]  # fmt: skip


def test_all_labels_of_the_clearest_node_are_split_together(tmp_path):
    criterion = Joint(BY, [['a', 'b'], ['c', 'e'], ['d']])
    context = context_of(tmp_path, criterion)
    split = criterion.choose(context)
    assert split.separates
    assert choices(split) == [{'a': a, 'b': b} for a, b in product([[0, 1], [2, 3]], [[0], [1, 2]])]
    context.subspace.check_parts(split.children)
    assert [part.label for part in split.evidence.parts] == ['a', 'b']
    by_label = split.evidence.parts[0].contrasts
    assert by_label['d'].score > by_label['a'].score > by_label['b'].score > by_label['e'].score  # as the factors are
    assert by_label['d'].score < by_label['a'].score + by_label['b'].score
    scalars = split.scalars()
    assert scalars['contrasts/c'] == pytest.approx(0)
    assert scalars['contrast_lower/b'] > 0.01 and 'contrast_lower/e' not in scalars and scalars['p/a'] < 0.05
    assert 'a: contrast' in split.evidence.describe() and 'b: contrast' in split.evidence.describe()
    titles = [axes.get_title() for axes in split.evidence.figure('Node 0').axes]
    assert [title for title in titles if title] == [
        'Similarity of the candidates of a', 'Similarity of the candidates of b',
        'Contrast of each label, with its 95 % bounds',
    ]  # fmt: skip


@pytest.mark.parametrize(
    'labels, max_groups, split',
    [
        ([['a', 'b', 'd', 'e']], 2, ['d']),
        ([['a', 'b', 'd', 'e']], 7, ['d', 'a']),  # those with the highest lower bound
        ([['a', 'b', 'd', 'e']], 8, ['d', 'a', 'b']),
        ([['a', 'c', 'd']], 8, ['d', 'a']),  # candidates of c are all the same
        ([['c', 'e'], ['b', 'a']], 4, ['a', 'b']),
        ([['b', 'e'], ['c', 'd']], 4, ['d']),  # which alone is clearer than these two
    ],
)
def test_which_labels_have_a_part_in_the_split(tmp_path, labels, max_groups, split):
    criterion = Joint(BY, labels, max_groups)
    found = criterion.choose(context_of(tmp_path, criterion))
    assert [part.label for part in found.evidence.parts] == split
    assert len(found.children) == 2 ** len(split) <= max_groups


def test_a_label_that_is_not_worth_it_has_no_part(tmp_path):
    """By the test of the criterion that groups the candidates."""
    context = context_of(tmp_path, Joint(BY, [['b', 'e']]))
    contrasts = Joint(BY, [['b', 'e']]).choose(context).evidence.parts[0].contrasts
    between = (contrasts['b'].lower + contrasts['e'].upper) / 2
    strict = Joint(replace(BY, min_contrast=between), [['b', 'e']])
    assert [part.label for part in strict.choose(context).evidence.parts] == ['b']
    none = Joint(replace(BY, min_contrast=0.99), [['b', 'e']]).choose(context)
    assert not none.separates and none.evidence.objection == 'no contrast is surely above 0.99'
    assert [part.label for part in none.evidence.parts] == ['b']
    same = Joint(BY, [['c', 'b']])
    alike = replace(context_of(tmp_path, same), subspace=context.subspace.narrow({'b': [1, 2]}), about={'run': 'other'})
    assert same.choose(alike).evidence.objection == 'no label separates beyond its noise'


def test_a_node_that_has_been_split_leaves_the_others(tmp_path):
    criterion = Joint(BY, [['a', 'b'], ['c', 'e']])
    context = context_of(tmp_path, criterion)
    part = context.subspace.narrow({'a': [0], 'b': [0]})
    assert [each.label for each in criterion.choose(replace(context, subspace=part)).evidence.parts] == ['e']
    nothing = part.narrow({'c': [0], 'e': [1]})
    assert nothing.splittable and not criterion.can_split(nothing)
    split = criterion.choose(replace(context, subspace=nothing))
    assert not split.separates and split.evidence.figure('') is None and split.evidence.describe() == ''
    assert split.evidence.objection == 'no node has a label with two candidates left'


class Wild:
    """Profiles that need more repeats: of one label candidates differ by about their noise."""

    asked = 0

    def __call__(self, n: int) -> dict[str, torch.Tensor]:
        self.asked = n
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(64, 3, 1, generator=generator).double()
        clear = torch.tensor([0.0, 0.0, 3.0]).view(3, 1)
        profiles = {'clear': clear.expand(64, 3, 1), 'vague': (noise + clear / 4).abs(), 'noise': noise.abs()}
        return {label: found[:n].double() for label, found in profiles.items()}


@pytest.mark.parametrize(
    'nodes, n', [([['clear'], ['noise']], 8), ([['clear', 'vague']], 64), ([['clear', 'vague'], ['noise']], 64)]
)
def test_repeats_are_added_until_the_node_is_decided(nodes, n):
    profiles = Wild()
    found = clearest_node(
        profiles, {label: [0, 1, 2] for label in ('clear', 'vague', 'noise')}, nodes=nodes, most=2, repeats=64,
        paths_per_repeat=7, max_groups=2, min_contrast=0.01, random_state=RandomState(0),
    )  # fmt: skip
    assert profiles.asked == n
    assert found[0].label == 'clear' and found[0].n_repeats == n and found[0].n_passes == 7 * n
    assert all(each.objection is None and each.partition.groups == [[0, 1], [2]] for each in found)


def test_nodes_of_the_cells_of_nni(nasbench201):
    assert nodes_of(RandomOneShot().mutate_model(nasbench201())) == [
        ['cell/0_1'], ['cell/0_2', 'cell/1_2'], ['cell/0_3', 'cell/1_3', 'cell/2_3'],
    ]  # fmt: skip
    supernet = RandomOneShot().mutate_model(DARTS(4, 3, 'cifar'))
    nodes = nodes_of(supernet)
    assert nodes[0] == ['normal/op_2_0', 'normal/input_2_0', 'normal/op_2_1', 'normal/input_2_1']
    assert len(nodes) == 8 and sorted(label for node in nodes for label in node) == sorted(
        SubSpace.of(supernet).splittable
    )


def test_nasbench201_is_split_at_a_node(run):
    strategy = run((1,), epochs=2, criterion=Joint('random'), search_budget=3)
    narrowed = strategy.tree.children[0].subspace.narrowed(strategy.tree.subspace)
    assert len({label[-1] for label in narrowed}) == 1  # which ends in the same node
    assert len(strategy.leaves) == 2 ** len(narrowed)
    assert sum(leaf.subspace.size for leaf in strategy.leaves) == 15_625


def not_both(sample):
    return sample['a'] < 2 or sample['b'] == 0


def test_a_filter_that_leaves_no_network_of_a_combination(tmp_path):
    criterion = Joint(BY, [['a', 'b']])
    context = context_of(tmp_path, criterion)
    space = SubSpace(context.subspace.mutables, not_both)
    split = criterion.choose(replace(context, subspace=space))
    assert [part.label for part in split.evidence.parts] == ['a']
    assert choices(split) == [{'a': [0, 1]}, {'a': [2, 3]}]
    assert all(child.sample(RandomState(0)) in child for child in split.children)


def test_a_control_at_random_has_groups_of_all_kinds(tmp_path):
    criterion = Joint('random', [['a', 'b'], ['d', 'e', 'c']])
    context = context_of(tmp_path, criterion)
    found = [criterion.choose(replace(context, random_state=RandomState(i))) for i in range(30)]
    labels = {tuple(sorted({label for child in choices(split) for label in child})) for split in found}
    assert labels == {('a', 'b'), ('d', 'e'), ('c', 'd'), ('c', 'e')}
    assert criterion.cost(context.subspace) == 0 and not criterion.uses_metric


def test_a_node_at_chance_level_is_not_split(small):
    """As LID says of a network whose labels are drawn by lot."""
    generator = torch.Generator().manual_seed(0)

    def by_lot(n: int) -> DataLoader:
        x, y = torch.randn(n, 3, 8, 8, generator=generator), torch.randint(4, (n,), generator=generator)
        return DataLoader(TensorDataset(x, y), 24)

    criterion = Joint(LID(n_neighbors=5, repeats=8), [['stem', 'body']])
    strategy = small(make_evaluator(train=by_lot(96), val=by_lot(48), epochs=2), criterion=criterion)
    assert 'at chance level' in strategy.tree.split.evidence.objection and len(strategy.leaves) == 1
    assert criterion.uses_metric and criterion.cost(strategy.tree.subspace) == 8 * 5


# Settings, and what cannot work.


def test_settings_go_to_trials_with_those_of_the_other_criterion():
    criterion = Joint(LID(n_neighbors=5), [['a', 'b'], ['c']], 8)
    check_travels(criterion)
    settings = Settings([1], criterion)
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    spec = {'className': 'nni_naslid.Joint', 'classArgs': {
        'by': {'className': 'nni_naslid.LID', 'classArgs': {'n_neighbors': 5}}, 'labels': [['a', 'b'], ['c']],
        'max_groups': 8,
    }}  # fmt: skip
    assert make(spec, 'criterion') == criterion
    assert Joint('gradient') == Joint(Gradient()) and criterion_of('joint', {}) == Joint(LID())
    assert NASLID([1], criterion='joint').settings.criterion == Joint('lid')
    with pytest.raises(ValueError, match='trials cannot import mine of __main__'):
        check_travels(Joint(ZeroCost('__main__.mine')))


@pytest.mark.parametrize(
    'settings, match',
    [
        ({'by': 'bands'}, r'by must be one of lid, gradient, zero_cost, random, or an object such as LID\(\), but got'),
        ({'by': Fixed({'a': [[0], [1]]})}, 'by must be one of lid'),
        ({'by': LID}, 'by must be one of lid'),
        ({'by': RandomSplit(4)}, r'by must have max_groups=2, as each label is cut into two groups, but got RandomSpl'),
        ({'labels': 'ab'}, "labels must be a list, but got 'ab'"),
        ({'labels': ['ab']}, "labels must be a list, but got 'ab'"),
        ({'labels': [['a', 1]]}, 'labels must be lists of different labels'),
        ({'labels': [['a', 'b'], ['a']]}, 'labels must be lists of different labels'),
        ({'labels': [['a'], ['b']]}, 'labels must have two that belong together'),
        ({'max_groups': 1}, 'max_groups must be an integer of at least 2'),
    ],
)
def test_settings_that_cannot_work(settings, match):
    with pytest.raises(ValueError, match=f'^{match}'):
        Joint(**settings)


@pytest.mark.parametrize(
    'labels, match',
    [
        (None, r'Joint: Convs has no cell of NNI with two labels into one node\. Say which belong together, labels='),
        ([['stem', 'Body']], "Joint: 'Body' must be one of (stem, body|body, stem), which can be split"),
        ([['Stem', 'Body']], "Joint: 'Stem' must be one of (stem, body|body, stem), which can be split"),
    ],
)
def test_what_does_not_belong_together_is_named_before_training(small, tmp_path, labels, match):
    with pytest.raises(ValueError, match=f'^{match}'):
        small(make_evaluator(), criterion=Joint('random', labels))
    assert not (tmp_path / 'tree.json').exists()
