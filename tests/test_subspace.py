"""Sub-spaces: disjoint, complete, uniform."""

import json
from collections import Counter
from itertools import product

from nni_naslid import SubSpace
from nni_naslid.analysis.truth import nasbench201_architectures, nasbench201_sample

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.mutable import Categorical, CategoricalMultiple, ExpressionConstraint, Numerical
from nni.mutable.utils import label
from nni.nas.hub.pytorch import NasBench201
from scipy.stats import chisquare


def random_tree(space: SubSpace, rounds: int, seed: int) -> list[SubSpace]:
    """Leaves after splitting every node, by random labels and random groups."""
    rng = np.random.RandomState(seed)
    leaves = [space]
    for _ in range(rounds):
        children = []
        for leaf in leaves:
            labels = list(leaf.splittable)
            if not labels:
                children.append(leaf)
                continue
            label = labels[rng.randint(len(labels))]
            order = rng.permutation(len(leaf.splittable[label])).tolist()
            cut = rng.randint(1, len(order))
            children += leaf.split(label, [order[:cut], order[cut:]])
        leaves = children
    return leaves


@settings(deadline=None, max_examples=5)
@given(st.integers(1, 5), st.integers(0, 2**31))
def test_leaves_are_disjoint_and_cover_all_15625(rounds, seed):
    space = SubSpace.of(NasBench201(4, 1, 10))
    leaves = random_tree(space, rounds, seed)
    owners = Counter()
    for arch in nasbench201_architectures():
        sample = nasbench201_sample(arch)
        containing = [i for i, leaf in enumerate(leaves) if sample in leaf]
        assert len(containing) == 1
        owners[containing[0]] += 1
    assert [owners[i] for i in range(len(leaves))] == [leaf.size for leaf in leaves]
    assert sum(owners.values()) == space.size == 15625


def test_of_a_space_and_of_its_supernet(nasbench201, proxyless, naslid):
    for make, size in ((nasbench201, 5**6), (proxyless, 4**5 * 6**21)):
        space = make()
        assert SubSpace.of(space).size == size
        assert SubSpace.of(naslid().mutate_model(space)).size == size


def test_sampling_is_uniform_and_complete():
    space = SubSpace({'a': Categorical([1, 2, 3], label='a'), 'b': Categorical('xyz', label='b')})
    part = space.split('a', [[0, 2], [1]])[0]
    rng = np.random.RandomState(0)
    counts = Counter(tuple(part.sample(rng).values()) for _ in range(6000))
    assert set(counts) == set(product([1, 3], 'xyz'))
    assert chisquare(list(counts.values())).pvalue > 0.001


def test_samples_are_those_that_nni_draws_from_the_same_random_state():
    weights = np.random.RandomState(0).dirichlet([1] * 7).tolist()
    mutables = {
        'a': Categorical(range(7), weights=weights, label='a'),
        'in': CategoricalMultiple(range(4), n_chosen=2, label='in'),
        'one': CategoricalMultiple(range(3), n_chosen=1, weights=[0.2, 0.7, 0.1], label='one'),
        'b': Categorical([0.1, None], weights=[0, 1], label='b'),
    }
    ours, theirs = np.random.RandomState(1), np.random.RandomState(1)
    for _ in range(300):
        expected = {label: mutable.random(random_state=theirs) for label, mutable in mutables.items()}
        assert SubSpace(mutables).sample(ours) == expected


def test_weights_of_the_user_are_kept():
    space = SubSpace({'a': Categorical([1, 2, 3], weights=[0.6, 0.3, 0.1], label='a')})
    part = space.split('a', [[0, 2], [1]])[0]
    assert part.mutables['a'].weights == pytest.approx([6 / 7, 1 / 7])


def test_multiple_choices_are_sampled_whole():
    space = SubSpace({'in': CategoricalMultiple(range(4), n_chosen=2, label='in'), 'a': Categorical([1, 2], label='a')})
    assert space.size == 12
    assert list(space.splittable) == ['a']
    assert space.unsplittable == ['in']
    assert space.sample(np.random.RandomState(0)) in space


def test_one_input_of_several_is_split_like_any_choice():
    """NNI calls it multiple; in samples it stays the list of one that NNI wants."""
    weights = [0.2, 0.2, 0.6]
    space = SubSpace({'cell/in': CategoricalMultiple('xyz', n_chosen=1, weights=weights, label=label(['cell', 'in']))})
    assert space.splittable == {'cell/in': [['x'], ['y'], ['z']]}
    assert (space.size, space.unsplittable) == (3, [])
    left, right = space.split('cell/in', [[0, 2], [1]])
    assert (left.size, right.size) == (2, 1)
    assert [{'cell/in': choice} in left for choice in space.splittable['cell/in']] == [True, False, True]
    assert not right.splittable
    random_state = np.random.RandomState(0)
    counts = Counter(left.sample(random_state)['cell/in'][0] for _ in range(4000))
    assert set(counts) == {'x', 'z'}
    assert chisquare([counts['x'], counts['z']], [1000, 3000]).pvalue > 0.001
    for each in (left, right):
        kept = SubSpace.from_dict(*json.loads(json.dumps([each.to_dict(), each.multiple])))
        assert (kept.to_dict(), kept.splittable, kept.size) == (each.to_dict(), each.splittable, each.size)
        sample = each.sample(random_state)
        assert each.decode(json.loads(json.dumps(each.encode(sample)))) == sample


def test_what_a_file_keeps_of_a_space():
    space = SubSpace({'in': CategoricalMultiple(range(4), n_chosen=2, label='in'), 'a': Categorical([1, 2], label='a')})
    for each in (space, SubSpace.of(NasBench201(4, 1, 10))):
        kept = SubSpace.from_dict(*json.loads(json.dumps([each.to_dict(), each.multiple])))
        assert (kept.to_dict(), kept.multiple, kept.size) == (each.to_dict(), each.multiple, each.size)
        label = next(iter(kept.splittable))
        assert kept.split(label, [[0], list(range(1, len(kept.splittable[label])))])[0].size == each.size // len(
            each.splittable[label]
        )


def test_repr_names_the_choices():
    assert repr(SubSpace({'a': Categorical([1, 2], label='a')})) == 'SubSpace(a: 1|2)'


def test_bad_input():
    space = SubSpace({'a': Categorical([1, 2, 3], label='a'), 'b': Categorical([1], label='b')})
    with pytest.raises(ValueError, match=r"one of \['a'\], but got 'b'"):
        space.split('b', [[0]])
    for groups in ([[0, 1, 2]], [[0], [1]], [[0, 1], [1, 2]], [[0, 1, 2], []]):
        with pytest.raises(ValueError, match='partition of the 3 candidates'):
            space.split('a', groups)
    for choices, match in (
        ({'b': [0]}, r"one of \['a'\], but got 'b'"),
        ({'a': []}, r'different numbers below 3, but got \[\]'),
        ({'a': [0, 0]}, r'different numbers below 3, but got \[0, 0\]'),
        ({'a': [-1]}, r'different numbers below 3, but got \[-1\]'),
        ({'a': [3]}, r'different numbers below 3, but got \[3\]'),
    ):
        with pytest.raises(ValueError, match=match):
            space.narrow(choices)
    with pytest.raises(TypeError, match="Label 'rate' is a Numerical"):
        SubSpace({'rate': Numerical(0, 1, label='rate')})


def test_constraints_between_choices_are_part_of_the_filter():
    a, b = Categorical(range(4), label='a'), Categorical(range(4), label='b')
    several = CategoricalMultiple(range(3), label='several')
    mutables = {'a': a, 'b': b, 'several': several, 'rule': ExpressionConstraint(a + b == 3, label='rule')}
    space = SubSpace(mutables, lambda sample: 2 not in sample['several'])
    assert list(space.mutables) == ['a', 'b', 'several'] and space.size == 4 * 4 * 8
    expected = {(a, 3 - a, several) for a in range(4) for several in ((), (0,), (1,), (0, 1))}
    part, other = space.split('a', [[1], [0, 2, 3]])
    for each, inside in ((space, range(4)), (part, [1]), (other, [0, 2, 3])):
        random_state = np.random.RandomState(0)
        drawn = [each.sample(random_state) for _ in range(400)]
        assert all(sample in each for sample in drawn)
        assert {(s['a'], s['b'], tuple(s['several'])) for s in drawn} == {x for x in expected if x[0] in inside}
    assert {'a': 1, 'b': 1, 'several': []} in space.unfiltered()
    assert {'a': 1, 'b': 1, 'several': []} not in space
    assert {'a': 1, 'b': 2, 'several': [2]} not in space
    assert space.canonical({'a': 1, 'b': 2, 'several': [0, 1]}, {'a', 'b'}) == {'a': 1, 'b': 2, 'several': []}
    kept = SubSpace.from_dict(*json.loads(json.dumps([space.to_dict(), space.multiple])))
    sample = {'a': 1, 'b': 2, 'several': [0, 1]}
    assert kept.decode(json.loads(json.dumps(kept.encode(sample)))) == sample


def test_samples_to_compare_keep_to_constraints_with_every_candidate_where_they_can():
    a, b, c = (Categorical(range(3), label=label) for label in 'abc')
    loose = SubSpace({'a': a, 'b': b, 'c': c, 'rule': ExpressionConstraint(a + b < 4, label='rule')})
    for seed in range(20):
        sample = loose.sample_to_compare(np.random.RandomState(seed))
        assert sample['a'] < 2 and sample['b'] < 2
    tight = SubSpace({'a': a, 'b': b, 'rule': ExpressionConstraint(a + b == 3, label='rule')})
    assert tight.sample_to_compare(np.random.RandomState(0)) in tight
    free, drawn = SubSpace({'a': a, 'b': b}), np.random.RandomState(1)
    assert free.sample_to_compare(np.random.RandomState(1)) == free.sample(drawn)
