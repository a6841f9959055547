"""Additive scores: against brute force and closed formulas, uniform, and refused where they would take too much."""

import os
import subprocess
import sys
from collections import Counter
from itertools import combinations, pairwise, product
from math import comb

from nni_naslid import SubSpace
from nni_naslid.space.additive import AdditiveScore, Joint, Term, equal_bands, tabulate
from nni_naslid.space.band import EVERY, Band

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.mutable import Categorical, CategoricalMultiple
from nni.nas.hub.pytorch import NasBench201
from numpy.random import RandomState
from scipy.stats import chisquare


def space_of(**choices) -> SubSpace:
    return SubSpace({label: Categorical(values, label=label) for label, values in choices.items()})


def key(sample: dict) -> tuple:
    return tuple(tuple(choice) if isinstance(choice, list) else choice for choice in sample.values())


def gated(costs: np.ndarray) -> tuple[SubSpace, AdditiveScore]:
    """Stages of four blocks, two to four of which are there; costs ``[stages, 4, kernels, expansions]``."""
    choices, terms = {}, []
    for i in range(len(costs)):
        choices[f's{i}_depth'] = [2, 3, 4]
        for j in range(4):
            choices |= {f's{i}_{j}_ks': [3, 5, 7], f's{i}_{j}_exp': [3, 4, 6]}
    space = space_of(**choices)
    for i, stage in enumerate(costs):
        for j, block in enumerate(stage):
            table = np.stack([block * (j < depth) for depth in (2, 3, 4)])
            terms.append(Term((f's{i}_depth', f's{i}_{j}_ks', f's{i}_{j}_exp'), table))
    return space, AdditiveScore(space, terms)


@pytest.fixture
def abc() -> AdditiveScore:
    """Scores 0 to 3, of 8, 12, 6 and 1 samples."""
    space = space_of(a='xyz', b='xyz', c='xyz')
    return AdditiveScore(space, [Term((label,), [0, 1, 0]) for label in 'abc'])


@st.composite
def small_spaces(draw):
    """A space, a sub-space of it, terms, and the score of every sample of the sub-space by looking it up."""
    mutables, narrowed, choices = {}, {}, {}
    for label in 'abcde'[: draw(st.integers(1, 5))]:
        values = list('wxyz'[: draw(st.integers(1, 4))])
        some = [value for value in values if draw(st.booleans())] or values[:1]
        if (n := draw(st.sampled_from([0, 0, 0, 1, 2]))) and n <= len(some):
            mutables[label] = CategoricalMultiple(values, n_chosen=n, label=label)
            narrowed[label] = CategoricalMultiple(some, n_chosen=n, label=label)
            choices[label] = list(combinations(values, n))
        else:
            mutables[label], narrowed[label] = Categorical(values, label=label), Categorical(some, label=label)
            choices[label] = values
    subspace, terms, lookups = SubSpace(narrowed), [], []
    for _ in range(draw(st.integers(0, 4))):
        labels = draw(st.lists(st.sampled_from(list(mutables)), max_size=3, unique=True))
        shape = [len(choices[label]) for label in labels]
        n = int(np.prod(shape))
        entries = draw(st.lists(st.integers(-9, 9), min_size=n, max_size=n))
        factor = draw(st.sampled_from([1, 3, 1000]))
        terms.append(Term(tuple(labels), factor * np.array(entries, int).reshape(shape)))
        options = product(*(choices[label] for label in labels))
        lookups.append((labels, dict(zip(options, (factor * entry for entry in entries), strict=True))))
    own = [
        [choice for choice in choices[label] if set(choice) <= set(mutable.values)]
        for label, mutable in narrowed.items()
    ]
    scores = {}
    for sample in product(*own):
        chosen = dict(zip(mutables, sample, strict=True))
        scores[sample] = sum(table[tuple(chosen[label] for label in labels)] for labels, table in lookups)
    return SubSpace(mutables), subspace, terms, scores


@settings(deadline=None, max_examples=150)
@given(small_spaces(), st.integers(-20, 20), st.integers(0, 20))
def test_counts_are_those_of_all_samples(small, low, width):
    space, subspace, terms, scores = small
    score = AdditiveScore(space, terms)
    counts = score.count(subspace)
    assert counts.histogram == Counter(scores.values())
    assert list(counts.histogram) == sorted(counts.histogram)
    inside = {sample for sample, total in scores.items() if low <= total <= low + width}
    assert counts.size(low, low + width) == len(inside)
    samples = [counts.at(rank, low, low + width) for rank in range(len(inside))]
    assert {key(sample) for sample in samples} == inside
    assert all(sample in subspace for sample in samples)
    assert [score.of(sample) for sample in samples] == sorted(scores[sample] for sample in inside)


@settings(deadline=None, max_examples=150)
@given(small_spaces(), st.none() | st.integers(-60, 60), st.none() | st.integers(-60, 60))
def test_what_is_not_asked_for_is_not_counted(small, low, high):
    """From either end, also where nothing is left; sums that are not counted take no memory."""
    space, subspace, terms, scores = small
    score = AdditiveScore(space, terms)
    counts = score.count(subspace, low, high)
    inside = {
        each for each, total in scores.items() if (low is None or low <= total) and (high is None or total <= high)
    }
    assert counts.histogram == Counter(scores[each] for each in inside)
    assert {key(counts.at(rank)) for rank in range(counts.size())} == inside
    places = counts.possible(list(counts.histogram))
    for i, (label, mutable) in enumerate(subspace.mutables.items()):
        choices = list(mutable.grid({})) if isinstance(mutable, CategoricalMultiple) else mutable.values
        left = {tuple(choices[place]) for place in places[label]} if inside else set()
        assert left == {tuple(each[i]) for each in inside}
    assert score.extent(subspace) == (min(scores.values()), max(scores.values()))


def test_a_tight_limit_is_counted_in_fine_steps():
    """The lowest of many scores, as by counting all of them; together with another score, as by looking at each."""
    random_state, labels = RandomState(0), 'abcdefghijkl'
    space = space_of(**dict.fromkeys(labels, range(5)))
    tables = [random_state.randint(20_000, size=(5, 5)) * (np.arange(5) > 0) for _ in labels[1:]]
    score = AdditiveScore(space, map(Term, pairwise(labels), tables), 'cost')
    every = score.count().histogram
    limited = Band(space, score, EVERY[0], 4_000)
    counts = score.count(None, None, 4_000)
    assert counts.histogram == {value: n for value, n in every.items() if value <= 4_000}
    samples = [counts.at(rank) for rank in range(counts.size())]
    assert len(set(map(key, samples))) == len(samples) == limited.size > 20
    assert all(score.of(each) <= 4_000 for each in samples)
    pools = AdditiveScore(space, [Term((label,), [0, 0, 1, 1, 2]) for label in labels], 'pools')
    for low, high in ((0, 0), (1, 2), (3, EVERY[1])):
        assert Band(limited, pools, low, high).size == sum(low <= pools.of(each) <= high for each in samples)


def test_samples_are_those_that_the_subspace_itself_draws():
    """Of several values, lists: in any order to be scored, in that of the values when drawn."""
    values = CategoricalMultiple([1, 2, 3], n_chosen=2, label='in')
    space = SubSpace({'in': values, 'one': CategoricalMultiple('xy', n_chosen=1, label='one')})
    score = AdditiveScore(space, [Term(('in',), [3, 4, 5]), Term(('one',), [0, 10])])
    assert score.of({'in': [3, 1], 'one': ['y']}) == 14
    counts = score.count()
    assert [counts.at(i) for i in range(3)] == [{'in': pair, 'one': ['x']} for pair in ([1, 2], [1, 3], [2, 3])]
    counts.at(0)['in'].append('mine')
    assert counts.at(0)['in'] == [1, 2]


def test_any_number_of_values():
    space = SubSpace({'in': CategoricalMultiple('xyz', label='in')})
    n_inputs = AdditiveScore(space, [Term(('in',), tabulate(space, ['in'], len))])
    assert n_inputs.count().histogram == {0: 1, 1: 3, 2: 3, 3: 1}


def test_architectures_of_nasbench201_by_their_convolutions():
    space = SubSpace.of(NasBench201(4, 1, 10))
    n_convs = AdditiveScore(
        space, [Term((label,), tabulate(space, [label], lambda op: 'conv' in op)) for label in space.mutables]
    )
    histogram = n_convs.count().histogram
    assert histogram == {n: comb(6, n) * 2**n * 3 ** (6 - n) for n in range(7)}
    assert sum(histogram.values()) == 15625
    left, _ = space.split(next(iter(space.mutables)), [[2], [0, 1, 3, 4]])
    assert n_convs.count(left).histogram == {n + 1: comb(5, n) * 2**n * 3 ** (5 - n) for n in range(6)}


def test_depths_of_stages_gate_their_blocks():
    """Every stage enumerated by itself, then the stages added up."""
    costs = RandomState(0).randint(1, 30, size=(5, 4, 3, 3))
    space, score = gated(costs)
    expected = Counter({0: 1})
    for stage in costs:
        blocks = np.ix_(*(block.ravel() for block in stage))
        sums = [sum(block * (j < depth) for j, block in enumerate(blocks)) for depth in (2, 3, 4)]
        sums = Counter(np.concatenate([np.broadcast_to(each, [9] * 4).ravel() for each in sums]).tolist())
        total = Counter()
        for (low, n), (more, m) in product(expected.items(), sums.items()):
            total[low + more] += n * m
        expected = total
    counts = score.count()
    assert counts.histogram == expected
    assert counts.size() == space.size == 3**5 * 9**20 > 2**64


def test_sizes_are_exact_beyond_64_bits():
    """Forty labels in a row: how many neighbours are equal."""
    labels = [f'w{i}' for i in range(40)]
    space = space_of(**dict.fromkeys(labels, range(7)))
    n_equal = AdditiveScore(space, [Term(pair, np.eye(7, dtype=int)) for pair in pairwise(labels)])
    counts = n_equal.count()
    assert counts.histogram == {n: 7 * comb(39, n) * 6 ** (39 - n) for n in range(40)}
    last = counts.size(30, 39) - 1
    assert n_equal.of(counts.at(last, 30, 39)) == 39


def test_draws_are_uniform_within_a_range(abc):
    random_state = RandomState(0)
    band = Band(abc.space, abc, 1, 2)
    drawn = Counter(key(band.sample(random_state)) for _ in range(9000))
    assert set(drawn) == {each for each in product('xyz', repeat=3) if 1 <= each.count('y') <= 2}
    assert chisquare(list(drawn.values())).pvalue > 0.001


def test_draws_are_uniform_where_terms_share_labels():
    random_state = RandomState(0)
    space = space_of(a=range(3), b=range(3), c=range(3), d=range(3))
    score = AdditiveScore(
        space, [Term(pair, random_state.randint(-5, 5, size=(3, 3))) for pair in ('ab', 'bc', 'cd', 'ad')]
    )
    band = Band(space, score, *equal_bands(score.count().histogram, 3)[1])
    drawn = Counter(key(band.sample(random_state)) for _ in range(9000))
    assert len(drawn) == band.size
    assert chisquare(list(drawn.values())).pvalue > 0.001


def test_draws_of_a_large_space_are_uniform_and_in_the_band():
    space, score = gated(RandomState(0).randint(1, 30, size=(5, 4, 3, 3)))
    random_state = RandomState(0)
    whole = Band(space, score, *EVERY)
    drawn = [whole.sample(random_state) for _ in range(1500)]
    p_values = [chisquare(list(Counter(s[label] for s in drawn).values())).pvalue for label in space.mutables]
    assert min(p_values) > 0.001 / len(p_values)
    for low, high in equal_bands(score.count().histogram, 4):
        band = Band(space, score, low, high)
        assert all(low <= score.of(band.sample(random_state)) <= high for _ in range(50))


def test_balanced_draws_have_every_score_equally_often(abc):
    band, random_state = Band(abc.space, abc, *EVERY), RandomState(0)
    drawn = Counter(key(band.balanced(random_state, 'score', range(4))) for _ in range(8000))
    assert len(drawn) == 27
    expected = [2000 / [8, 12, 6, 1][each.count('y')] for each in drawn]
    assert chisquare(list(drawn.values()), expected).pvalue > 0.001


def test_a_filter_keeps_what_it_lets_pass_equally_likely(abc):
    abc.space.filter = lambda sample: sample['a'] == 'y' or sample['b'] == 'y'
    band, random_state = Band(abc.space, abc, 1, 1), RandomState(0)
    drawn = Counter(key(band.sample(random_state)) for _ in range(4000))
    assert set(drawn) == {('y', 'x', 'x'), ('y', 'x', 'z'), ('y', 'z', 'x'), ('y', 'z', 'z')} | {
        ('x', 'y', 'x'), ('x', 'y', 'z'), ('z', 'y', 'x'), ('z', 'y', 'z'),
    }  # fmt: skip
    assert chisquare(list(drawn.values())).pvalue > 0.001
    with pytest.raises(RuntimeError, match=r'filter lets none of 10,000 random architectures pass'):
        Band(abc.space, abc, 0, 0).sample(random_state)


def test_several_scores_are_counted_together():
    """Against all samples: how many have which scores, which candidates they leave, and uniform draws."""
    random_state = RandomState(1)
    space = space_of(a=range(4), b=range(3), c=range(3), d=range(2))
    one = AdditiveScore(
        space, [Term(pair, 3 * random_state.randint(-4, 5, size=(4, 3)) - 1) for pair in ('ab', 'ac')], 'one'
    )
    other = AdditiveScore(space, [Term(('b',), [2, 0, 7]), Term(('d',), [0, 5])], 'other')
    third = AdditiveScore(space, [], 'none')
    everything = [dict(zip('abcd', places, strict=True)) for places in product(range(4), range(3), range(3), range(2))]
    joint = Joint([one, other, third], space)
    expected = Counter((one.of(sample), other.of(sample), 0) for sample in everything)
    scores = map(tuple, joint.scores_of(list(joint.counts.histogram)).tolist())
    assert dict(zip(scores, joint.counts.histogram.values(), strict=True)) == expected
    for (low, high), (least, most) in (((-30, 0), (2, 7)), ((-8, 30), (0, 5)), (EVERY, (12, 12))):
        inside = [each for each in everything if low <= one.of(each) <= high and least <= other.of(each) <= most]
        band = Band(Band(space, one, low, high), other, least, most)
        assert band.size == len(inside) and all((each in band) == (each in inside) for each in everything)
        assert {label: set(mutable.values) for label, mutable in band.mutables.items()} == {
            label: {each[label] for each in inside} for label in 'abcd'
        }
        assert band.histogram('one') == dict(sorted(Counter(map(one.of, inside)).items()))
        drawn = Counter(key(band.sample(random_state)) for _ in range(200 * len(inside)))
        assert len(drawn) == len(inside) and chisquare(list(drawn.values())).pvalue > 0.001
        values = sorted({other.of(each) for each in inside})
        drawn = Counter(other.of(band.balanced(random_state, 'other', values)) for _ in range(2000))
        assert set(drawn) == set(values) and not chisquare(list(drawn.values())).pvalue < 0.001  # of one value NaN


def test_a_coarser_score():
    space = space_of(a=range(4), b=range(4))
    score = AdditiveScore(space, [Term((label,), [0, 1, 400, 999]) for label in 'ab'], 'cost', unit=2)
    assert score.coarser(2000) is score
    coarse = score.coarser(100)
    assert coarse.unit == 200 and sorted(coarse.count().histogram) == [0, 4, 8, 10, 14, 20]
    steps = AdditiveScore(space, [Term((label,), [0, 500, 1000, 1500]) for label in 'ab'])
    assert steps.coarser(7) is steps


def test_weights_of_choices_are_not_counted():
    space = SubSpace({'a': Categorical([1, 2], weights=[0.0, 1.0], label='a')})
    assert AdditiveScore(space, [Term(('a',), [0, 1])]).count().histogram == {0: 1, 1: 1}


def test_the_same_seed_draws_the_same_in_any_process():
    code = """
from nni_naslid.space.additive import AdditiveScore, Term
from nni_naslid.space.band import Band
from nni_naslid.space.subspace import SubSpace
from nni.mutable import Categorical
from numpy.random import RandomState
space = SubSpace({label: Categorical('xyz', label=label) for label in 'abcdef'})
score = AdditiveScore(space, [Term(pair, RandomState(1).randint(9, size=(3, 3))) for pair in ('ab', 'bc', 'cd', 'ef')])
print(*(Band(space, score, 9, 20).sample(RandomState(seed)) for seed in (1, 1, 2)), sep='\\n')
"""
    outputs = [
        subprocess.run(
            [sys.executable, '-c', code], env={**os.environ, 'PYTHONHASHSEED': seed},
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()
        for seed in '12'
    ]  # fmt: skip
    assert outputs[0] == outputs[1]
    assert outputs[0][0] == outputs[0][1] != outputs[0][2]


def test_rounded_terms_are_off_by_half_a_unit_each():
    space = space_of(a=range(4), b=range(4), c=range(4))
    tables = RandomState(0).uniform(-1, 1, size=(3, 4))
    score = AdditiveScore(space, [Term.rounded([label], t, 0.01) for label, t in zip('abc', tables, strict=True)])
    errors = [
        score.of(dict(zip('abc', places, strict=True))) * 0.01 - tables[range(3), places].sum()
        for places in product(range(4), repeat=3)
    ]
    assert 0.005 < max(map(abs, errors)) <= 3 / 2 * 0.01 + 1e-12


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=9), st.integers(1, 5))
def test_bands_are_as_equal_as_any(sizes, n_bands):
    histogram = {3 * i - 5: size for i, size in enumerate(sizes)}
    scores = [score for score, size in histogram.items() if size]
    if len(scores) < n_bands:
        with pytest.raises(ValueError, match=f'from 1 to {len(scores)}, the number of different scores, .* {n_bands}'):
            equal_bands(histogram, n_bands)
        return
    bands = equal_bands(histogram, n_bands)
    assert len(bands) == n_bands
    assert [s for low, high in bands for s in scores if low <= s <= high] == scores

    def squares(cuts):
        edges = [0, *cuts, len(scores)]
        return sum(sum(histogram[score] for score in scores[i:j]) ** 2 for i, j in pairwise(edges))

    best = min(squares(cuts) for cuts in combinations(range(1, len(scores)), n_bands - 1))
    assert squares([scores.index(low) for low, _ in bands[1:]]) == best


def test_what_would_take_too_much_is_refused():
    labels = [f'l{i}' for i in range(12)]
    space = space_of(**dict.fromkeys(labels, range(5)))
    everything = AdditiveScore(space, [Term(pair, np.eye(5, dtype=int)) for pair in combinations(labels, 2)])
    with pytest.raises(ValueError, match=r"tie the labels \['l\d+', .*244,140,625 combinations .* at most 1,000,000"):
        everything.count()
    fine = AdditiveScore(space, [Term((label,), [0, 1, 2, 10**9 + i, 7]) for i, label in enumerate(labels)])
    with pytest.raises(ValueError, match=r"terms of \['l0', .* 12,000,000,067 scores, .* GiB.*Term\.rounded"):
        fine.count()
    many = SubSpace({'in': CategoricalMultiple(range(20), label='in')})
    with pytest.raises(ValueError, match=r"'in' has 1,048,576 choices of several values, but at most 10,000"):
        AdditiveScore(many, []).count()


def test_scores_may_be_far_apart():
    """What takes memory are steps of the common divisor."""
    space = space_of(a=range(3), b=range(3))
    histogram = (
        AdditiveScore(space, [Term((label,), [5, 10**15 + 5, 3 * 10**15 + 5]) for label in 'ab']).count().histogram
    )
    assert histogram == {10 + n * 10**15: size for n, size in ((0, 1), (1, 2), (2, 1), (3, 2), (4, 2), (6, 1))}


def test_bad_input(abc):
    space, score = abc.space, abc
    for make, error, message in (
        (lambda: Term(('a',), [0.5]), TypeError, r"table of \('a',\) must hold integers .* float64"),
        (lambda: Term(('a', 'a'), [[1]]), ValueError, r"labels must differ, but got \('a', 'a'\)"),
        (lambda: Term(('a',), [2**60, 0]), ValueError, r'below 2\*\*60, but goes from 0 to 1152921504606846976'),
        (lambda: Term.rounded(['a'], [1.0], 0), ValueError, 'unit must be positive and finite, but got 0'),
        (lambda: Term.rounded(['a'], [np.nan], 1), ValueError, r"table of \('a',\) must be finite"),
        (lambda: tabulate(space, ['d'], len), ValueError, r"reads 'd', but the space has only .*\['a', 'b', 'c'\]"),
        (lambda: AdditiveScore(space, [Term(('d',), [1])]), ValueError, "reads 'd'"),
        (lambda: AdditiveScore(space, [Term(('a', 'b'), [1, 2, 3])]), ValueError, r'shape \(3, 3\), but has \(3,\)'),
        (lambda: score.of({'a': 'x', 'b': 'x'}), ValueError, "no choice for 'c'"),
        (lambda: score.of({'a': 'x', 'b': 'x', 'c': 'v'}), ValueError, r"'v' is no choice of 'c' .*\['x', 'y', 'z'\]"),
        (lambda: score.count(space_of(a='x', b='x')), ValueError, "reads 'c', but the space has only"),
        (lambda: score.count(space_of(a='xv', b='x', c='x')), ValueError, "'v' is no choice of 'a'"),
        (lambda: score.count().at(6, 2, 2), IndexError, 'below 6, the size of the range, but got 6'),
        (lambda: equal_bands({1: 5}, 0), ValueError, 'n_bands must be from 1 to 1, .* but got 0'),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            make()


def test_no_score_is_possible_for_no_choice():
    space = SubSpace({name: Categorical([1, 2], label=name) for name in 'ab'})
    counts = AdditiveScore(space, [Term(('a',), [1, 2])]).count(space, 5)
    assert counts.histogram == {} and counts.possible([]) == {'a': [], 'b': []}
