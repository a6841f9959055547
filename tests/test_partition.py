"""Partitions against brute force and independent definitions."""

from itertools import combinations, product

from nni_naslid.partition import best_partition, contrast, set_partitions, similarity_matrix

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from scipy.stats import t

BELL = {2: 2, 3: 5, 4: 15, 5: 52, 6: 203}


def brute_force_contrast(similarity: np.ndarray, groups: tuple) -> float:
    inside = [similarity[i, j] for i, j in combinations(range(len(groups)), 2) if groups[i] == groups[j]]
    between = [similarity[i, j] for i, j in combinations(range(len(groups)), 2) if groups[i] != groups[j]]
    return (np.mean(inside) if inside else 1) - np.mean(between)


def random_similarity(n_repeats: int, n: int, seed: int) -> torch.Tensor:
    profiles = torch.rand(n_repeats, n, 7, generator=torch.Generator().manual_seed(seed)) * 30
    return similarity_matrix(profiles)


@pytest.mark.parametrize('n', BELL)
def test_set_partitions_are_all_and_distinct(n):
    found = list(set_partitions(n, n))
    as_sets = {frozenset(frozenset(i for i in range(n) if g[i] == k) for k in g) for g in found}
    assert len(found) == len(as_sets) == BELL[n] - 1  # all but the one group
    assert len(list(set_partitions(n, 2))) == 2 ** (n - 1) - 1


def test_similarity_is_the_exponential_of_the_log_euclidean_distance():
    profiles = torch.rand(5, 17) * 30
    distance = squareform(pdist(np.log1p(profiles.double().numpy()))) / np.sqrt(17)
    np.testing.assert_allclose(similarity_matrix(profiles).numpy(), np.exp(-distance), rtol=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 6), st.integers(2, 4), st.integers(0, 2**31))
def test_best_partition_is_the_best_of_all(n, max_groups, seed):
    similarity = random_similarity(4, n, seed)
    partition = best_partition(similarity, max_groups)
    mean = similarity.mean(0).numpy()
    groups = [next(i for i, group in enumerate(partition.groups) if c in group) for c in range(n)]
    every = [g for g in product(range(max_groups), repeat=n) if 1 < len(set(g)) < n]
    assert brute_force_contrast(mean, groups) == pytest.approx(max(brute_force_contrast(mean, g) for g in every))
    assert partition.similarity == pytest.approx(mean)


def test_score_is_measured_on_the_half_that_did_not_choose():
    similarity = random_similarity(7, 4, seed=1)
    every = list(set_partitions(4, 2))
    held_out = []
    for choose, test in ((similarity[::2], similarity[1::2]), (similarity[1::2], similarity[::2])):
        chosen = max(every, key=lambda g: brute_force_contrast(choose.mean(0).numpy(), g))
        held_out.append([brute_force_contrast(s.numpy(), chosen) for s in test])
    partition = best_partition(similarity)
    assert partition.score == pytest.approx(np.mean([*held_out[0], *held_out[1]]))
    error = np.sqrt(sum(np.var(half, ddof=1) * len(half) for half in held_out)) / 7
    assert partition.error == pytest.approx(error)
    assert partition.p_value == pytest.approx(t.sf(partition.score / error, 5))


@pytest.mark.parametrize('sizes', [(2, 3), (1, 4), (5, 6), (1, 1), (3, 9)], ids=str)
def test_finds_planted_groups(sizes):
    base = torch.cat([torch.full((size, 6), level) for size, level in zip(sizes, (5.0, 15.0), strict=True)])
    generator = torch.Generator().manual_seed(0)
    profiles = base + torch.rand(8, sum(sizes), 6, generator=generator)
    partition = best_partition(similarity_matrix(profiles))
    assert sorted(map(sorted, partition.groups)) == [list(range(sizes[0])), list(range(sizes[0], sum(sizes)))]
    assert partition.p_value < 1e-4


def test_three_planted_groups_need_max_groups():
    profiles = torch.tensor([5.0, 5, 15, 15, 45, 45]).repeat(4, 1).unsqueeze(-1) + torch.rand(4, 6, 5)
    assert len(best_partition(similarity_matrix(profiles), max_groups=3).groups) == 3
    assert len(best_partition(similarity_matrix(profiles), max_groups=2).groups) == 2


def test_noise_separates_as_rarely_as_its_p_value_says():
    """Candidates that differ by noise only, fresh in each repeat."""
    p_values = np.array([best_partition(random_similarity(16, 5, seed)).p_value for seed in range(400)])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p_values < level) == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 400))


def test_equal_candidates_have_no_contrast():
    partition = best_partition(similarity_matrix(torch.ones(4, 5, 3)))
    assert partition.score == partition.error == 0
    assert partition.p_value == 1


def test_a_small_clear_difference_loses_to_a_large_one():
    """The contrast is absolute: groups a hundredth apart do not beat groups a factor apart."""
    small = torch.tensor([10.0, 10, 10.1, 10.1]).repeat(4, 1).unsqueeze(-1)
    large = torch.tensor([10.0, 11, 20, 21]).repeat(4, 1).unsqueeze(-1)
    scores = [best_partition(similarity_matrix(p.repeat(1, 1, 5))).score for p in (small, large)]
    assert scores[0] < 0.02 < 0.3 < scores[1]


def test_contrast_of_several_at_once():
    similarity = random_similarity(3, 5, seed=2)
    groups = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 2, 0, 1]])
    expected = [[brute_force_contrast(s.numpy(), tuple(g.tolist())) for g in groups] for s in similarity]
    np.testing.assert_allclose(contrast(similarity, groups).numpy(), expected)


@pytest.mark.parametrize(
    'call, match',
    [
        (lambda: similarity_matrix(torch.ones(3)), r'shape \[..., C, L\], but got \(3,\)'),
        (lambda: similarity_matrix(-torch.ones(3, 2)), 'finite and non-negative'),
        (lambda: similarity_matrix(torch.full((3, 2), torch.inf)), 'finite and non-negative'),
        (lambda: best_partition(torch.ones(1, 5, 5)), r'R >= 4 and C >= 2, but got \(1, 5, 5\)'),
        (lambda: best_partition(torch.ones(4, 5, 5), max_groups=1), 'max_groups must be at least 2, but got 1'),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
