"""Partitions against brute force and independent definitions."""

from itertools import combinations, permutations, product

from nni_naslid.criteria.evidence import ByLabel, Contrast, Partition
from nni_naslid.criteria.groupings import proposed_groupings, set_partitions
from nni_naslid.criteria.partition import best_partition, best_partition_of_similarities, contrast
from nni_naslid.criteria.similarity import similarity_matrix
from nni_naslid.lid import lid_profile
from nni_naslid.lid.reference import lid_mle_published

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import SpectralClustering

# The exponent of a similarity is a difference of sums of some 100 float64 products of about 10: each order of summing
# and each BLAS leaves rounding errors of up to 100 * 10 * 2.2e-16, and the exponential makes them relative ones.
FLOAT64 = 1e-12
FLOAT32 = 1e-4  # of LIDs, as in test_lid.py

BELL = {2: 2, 3: 5, 4: 15, 5: 52, 6: 203}


def brute_force_contrast(similarity: np.ndarray, groups: tuple) -> float:
    inside = [similarity[i, j] for i, j in combinations(range(len(groups)), 2) if groups[i] == groups[j]]
    between = [similarity[i, j] for i, j in combinations(range(len(groups)), 2) if groups[i] != groups[j]]
    return (np.mean(inside) if inside else 1) - np.mean(between)


def random_profiles(n_repeats: int, n: int, seed: int) -> torch.Tensor:
    return torch.rand(n_repeats, n, 7, generator=torch.Generator().manual_seed(seed)) * 30


@pytest.mark.parametrize('n', BELL)
def test_set_partitions_are_all_and_distinct(n):
    found = list(set_partitions(n, n))
    as_sets = {frozenset(frozenset(i for i in range(n) if g[i] == k) for k in g) for g in found}
    assert len(found) == len(as_sets) == BELL[n] - 1  # all but the one group
    assert len(list(set_partitions(n, 2))) == 2 ** (n - 1) - 1


def test_similarity_by_its_formula():
    profiles = random_profiles(4, 3, seed=0)
    logs = np.log1p(profiles.double().numpy())
    expected = np.zeros((3, 3))
    for a, b in product(range(3), repeat=2):
        delta = logs[:, a] - logs[:, b]
        expected[a, b] = np.exp(-np.mean([np.mean(delta[r] * delta[s]) for r, s in permutations(range(4), 2)]))
    found = similarity_matrix(profiles).numpy()
    np.testing.assert_allclose(found, expected, rtol=FLOAT64)
    # Not bit for bit: a product of several matrices is another routine of BLAS than that of one.
    np.testing.assert_allclose(similarity_matrix(torch.stack([profiles] * 2))[1], found, rtol=FLOAT64)


@pytest.mark.parametrize('similarity', ['euclidean', 'cosine', 'pearson'])
def test_ratios_by_their_formulas(similarity):
    profiles = random_profiles(4, 3, seed=0).double().numpy()
    profiles[:, 1] += 10 * np.arange(7)
    profiles[:, 2] = profiles[:, 1] / 2 + profiles[:, 2] / 10
    x = profiles - profiles.mean(-1, keepdims=True) if similarity == 'pearson' else profiles
    of = np.array([[sum(x[r, a] @ x[s, b] for r, s in permutations(range(4), 2)) for b in range(3)] for a in range(3)])
    for a, b in product(range(3), repeat=2):
        scale = (of[a, a] + of[b, b]) / 2 if similarity == 'euclidean' else np.sqrt(of[a, a] * of[b, b])
        found = similarity_matrix(torch.tensor(profiles), similarity)[a, b].item()
        expected = of[a, b] / scale if of[a, a] > 0 < of[b, b] else float(a == b)
        assert found == pytest.approx(np.clip(expected, -1, 1) if similarity == 'pearson' else expected)


def test_of_one_profile_in_all_repeats_similarities_are_those_of_the_published_code():
    """Cosine and correlation, by other packages. The bias of its LID, ``k / (k - 2)``, is a factor, which neither sees.

    Our distance is not the published one.
    """
    maps = [
        [torch.randn(40, 6, generator=torch.Generator().manual_seed(7 * c + i)) for i in range(5)] for c in range(3)
    ]
    maps = [[x * torch.arange(1, 7) ** (i * c / 4) for i, x in enumerate(row)] for c, row in enumerate(maps)]
    published = torch.tensor([[lid_mle_published(x, 10).mean() for x in row] for row in maps])  # [C, L]
    ours = torch.stack([lid_profile(row, 10) for row in maps])
    cosine = similarity_matrix(ours.repeat(3, 1, 1), 'cosine')
    np.testing.assert_allclose(cosine, sklearn.metrics.pairwise.cosine_similarity(published), rtol=FLOAT32)
    pearson = similarity_matrix(ours.repeat(3, 1, 1), 'pearson')
    np.testing.assert_allclose(pearson, np.corrcoef(published), rtol=100 * FLOAT32)  # of what profiles do not share
    assert cosine.min() > 0.95 > 0.9 > pearson.min()


def test_similarity_of_profiles_that_differ_by_noise_only_is_one_in_expectation():
    logs = [similarity_matrix(random_profiles(8, 2, seed))[0, 1].log().item() for seed in range(400)]
    assert abs(np.mean(logs)) < 3 * np.std(logs) / 20
    # Of a ratio, nearly so: here noise, which is large, brings the cosine of mean profiles down by .01.
    profiles = [random_profiles(32, 2, seed) for seed in range(200)]
    plain = [sklearn.metrics.pairwise.cosine_similarity(each.mean(0))[0, 1] for each in profiles]
    assert np.mean(plain) < 0.992
    for similarity in ('euclidean', 'cosine'):
        assert np.mean([similarity_matrix(each, similarity)[0, 1] for each in profiles]) == pytest.approx(1, abs=0.003)


def test_similarity_of_what_has_no_direction():
    """Profiles of zero (of ``none``), and for the correlation flat ones, are like each other and like nothing else."""
    profiles = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 2, 3], [0.1, 0.1, 0.1], [0.3, 0.3, 0.3]]).repeat(4, 1, 1)
    alone = [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    for similarity in ('euclidean', 'cosine', 'pearson'):
        found = similarity_matrix(profiles, similarity)
        assert found[:3, :3].tolist() == pytest.approx(np.array(alone), abs=FLOAT64)
    assert found[3:, [0, 3, 4]].tolist() == [[1, 1, 1], [1, 1, 1]] and found[3:, 2].tolist() == [0, 0]
    assert similarity_matrix(profiles, 'cosine')[3, 4] == pytest.approx(1)
    assert similarity_matrix(profiles, 'euclidean')[3, 4] == pytest.approx(2 * 3 / (1 + 9))
    assert (similarity_matrix(random_profiles(3, 6, seed=0), 'pearson').abs() <= 1).all()  # noise only, about flat


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 6), st.integers(2, 4), st.integers(0, 2**31))
def test_best_partition_is_the_best_of_all(n, max_groups, seed):
    profiles = random_profiles(4, n, seed)
    partition = best_partition(profiles, max_groups, n_permutations=1)
    similarity = similarity_matrix(profiles).numpy()
    every = [g for g in product(range(max_groups), repeat=n) if 1 < len(set(g)) < n]
    best = max(brute_force_contrast(similarity, g) for g in every)
    groups = [next(i for i, group in enumerate(partition.groups) if c in group) for c in range(n)]
    assert brute_force_contrast(similarity, groups) == pytest.approx(best)
    assert partition.score == pytest.approx(best)
    assert partition.similarity == pytest.approx(similarity)


def test_error_is_that_of_the_jackknife():
    profiles = random_profiles(6, 4, seed=1)
    partition = best_partition(profiles, n_permutations=1)
    groups = tuple(next(i for i, group in enumerate(partition.groups) if c in group) for c in range(4))
    without = [
        brute_force_contrast(similarity_matrix(profiles[[s for s in range(6) if s != r]]), groups) for r in range(6)
    ]
    error = np.sqrt(5 / 6 * sum((c - np.mean(without)) ** 2 for c in without))
    assert partition.error == pytest.approx(error)
    bounds = scipy.stats.t.interval(0.95, df=5, loc=partition.score, scale=error)
    assert (partition.lower, partition.upper) == pytest.approx(bounds)


def test_p_value_of_two_candidates_is_that_of_all_swaps():
    """Two candidates in five repeats: 32 ways to swap them, of which two (none and all) give the same distance."""
    profiles = torch.tensor([10.0, 12.0]).view(1, 2, 1) + random_profiles(5, 2, seed=0) / 60
    n_better = 0
    for swaps in product([False, True], repeat=5):
        swapped = torch.stack([p.flip(0) if swap else p for p, swap in zip(profiles, swaps, strict=True)])
        n_better += bool(similarity_matrix(swapped)[0, 1] <= similarity_matrix(profiles)[0, 1] + 1e-12)
    assert n_better == 2
    assert best_partition(profiles, n_permutations=4000).p_value == pytest.approx(2 / 32, abs=0.012)


@pytest.mark.parametrize('sizes', [(2, 3), (1, 4), (5, 6), (1, 1), (3, 9)], ids=str)
def test_finds_planted_groups(sizes):
    base = torch.cat([torch.full((size, 6), level) for size, level in zip(sizes, (5.0, 15.0), strict=True)])
    generator = torch.Generator().manual_seed(0)
    profiles = base + torch.rand(8, sum(sizes), 6, generator=generator)
    partition = best_partition(profiles)
    assert sorted(map(sorted, partition.groups)) == [list(range(sizes[0])), list(range(sizes[0], sum(sizes)))]
    assert partition.p_value < 0.02


@pytest.mark.parametrize('partition', ['enumeration', 'spectral', 'gaussian_mixture'])
def test_three_planted_groups_need_max_groups(partition):
    profiles = torch.tensor([5.0, 5, 15, 15, 45, 45]).repeat(4, 1).unsqueeze(-1) + torch.rand(4, 6, 5)
    assert best_partition(profiles, 3, 0, partition=partition).groups == [[0, 1], [2, 3], [4, 5]]
    assert len(best_partition(profiles, max_groups=2, n_permutations=0, partition=partition).groups) == 2
    assert len(best_partition(profiles, max_groups=9, n_permutations=0, partition=partition).groups) < 6


@pytest.mark.parametrize('partition', ['spectral', 'gaussian_mixture'])
@pytest.mark.parametrize('similarity', ['log_euclidean', 'euclidean', 'pearson', 'cosine'])
@pytest.mark.parametrize('sizes', [(2, 3), (1, 1), (4, 9)], ids=str)
def test_other_methods_find_planted_groups(partition, similarity, sizes):
    """LID rises along the layers in one group and is least in the middle in the other, at another level."""
    rising, bent = torch.linspace(2, 14, 6), torch.tensor([20.0, 10, 5, 5, 10, 20])
    base = torch.cat([rising.repeat(sizes[0], 1), bent.repeat(sizes[1], 1)])
    profiles = base + torch.rand(8, sum(sizes), 6, generator=torch.Generator().manual_seed(0))
    found = best_partition(profiles, n_permutations=99, similarity=similarity, partition=partition)
    assert found.groups == [list(range(sizes[0])), list(range(sizes[0], sum(sizes)))]
    assert found.p_value < 0.05


@settings(deadline=None, max_examples=15)
@given(st.integers(3, 7), st.integers(0, 2**31))
def test_the_lightest_cut_is_the_lightest_of_all(n, seed):
    similarity = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    similarity = (similarity + similarity.T) / 2
    (found,) = proposed_groupings('stoer_wagner', similarity, 2).tolist()

    def cut(groups) -> float:
        return sum(similarity[i, j].item() for i, j in combinations(range(n), 2) if groups[i] != groups[j])

    assert cut(found) == pytest.approx(min(map(cut, set_partitions(n, 2))))


def test_cuts_go_on_with_the_part_that_is_lightest_to_cut():
    """First the two fall off; then between them is less than between the pairs of the others, which are alike."""
    similarity = torch.full((6, 6), 0.4).fill_diagonal_(1)
    similarity[4:, :4] = similarity[:4, 4:] = 0
    similarity[4, 5] = similarity[5, 4] = 0.9
    assert proposed_groupings('stoer_wagner', similarity, 3).tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 2]]


def test_the_number_of_groups_is_chosen_by_contrast():
    """Where all candidates are apart by about the same, two groups that keep two pairs together separate best."""
    similarity = torch.full((4, 4), 0.1).fill_diagonal_(1)
    similarity[0, 1] = similarity[1, 0] = similarity[2, 3] = similarity[3, 2] = 0.9
    for partition in ('spectral', 'stoer_wagner'):
        found = best_partition_of_similarities(similarity.repeat(3, 1, 1), 3, 0, partition=partition)
        assert found.groups == [[0, 1], [2, 3]]


def test_p_values_of_other_methods_are_those_of_all_permutations():
    """Three candidates in three repeats: 216 permutations, each searched by scikit-learn itself."""
    profiles = random_profiles(3, 3, seed=4)
    profiles[:, 2] += 12

    def contrast_of(profiles) -> float:
        similarity = similarity_matrix(profiles).numpy()
        groups = SpectralClustering(2, affinity='precomputed', assign_labels='cluster_qr').fit_predict(similarity)
        return brute_force_contrast(similarity, tuple(groups))

    score = contrast_of(profiles)
    orders = [list(order) for order in permutations(range(3))]
    every = [
        contrast_of(torch.stack([p[order] for p, order in zip(profiles, of_all, strict=True)]))
        for of_all in product(orders, repeat=3)
    ]
    expected = np.mean([value > score - 1e-9 for value in every])
    found = best_partition(profiles, n_permutations=1000, partition='spectral')
    assert found.score == pytest.approx(score)
    assert 0.05 < expected < 0.95
    assert found.p_value == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / 1000))


@pytest.mark.slow
def test_noise_separates_by_cuts_as_rarely_as_its_p_value_says():
    p_values = np.array(
        [best_partition(random_profiles(8, 4, seed), 2, 99, partition='stoer_wagner').p_value for seed in range(100)]
    )
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p_values <= level) == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 100))


@pytest.mark.slow
@pytest.mark.parametrize('n', [2, 3, 5, 12])
def test_noise_separates_as_rarely_as_its_p_value_says(n):
    """Candidates that differ by noise only, fresh in each repeat."""
    n_tables = 200 if n <= 5 else 100
    p_values = np.array([best_partition(random_profiles(16, n, seed), 2, 99).p_value for seed in range(n_tables)])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p_values <= level) == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / n_tables))


def test_equal_candidates_have_no_contrast():
    partition = best_partition(torch.ones(4, 5, 3))
    assert partition.score == pytest.approx(0, abs=FLOAT64)
    assert partition.error == pytest.approx(0, abs=FLOAT64)
    assert partition.p_value == 1


def test_a_small_clear_difference_loses_to_a_large_one():
    """The contrast is absolute: groups a hundredth apart do not beat groups a factor apart."""
    small = torch.tensor([10.0, 10, 10.1, 10.1]).repeat(4, 1).unsqueeze(-1)
    large = torch.tensor([10.0, 11, 20, 21]).repeat(4, 1).unsqueeze(-1)
    scores = [best_partition(p.repeat(1, 1, 5)).score for p in (small, large)]
    assert scores[0] < 0.02 < 0.3 < scores[1]


def test_contrast_of_several_at_once():
    similarity = torch.stack([similarity_matrix(random_profiles(3, 5, seed)) for seed in range(3)])
    groups = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 2, 0, 1]])
    expected = [[brute_force_contrast(s.numpy(), tuple(g.tolist())) for g in groups] for s in similarity]
    np.testing.assert_allclose(contrast(similarity, groups).numpy(), expected)


def test_what_is_not_finite_separates_nothing():
    """Each candidate is beyond all bounds in another repeat: similarities of candidates overflow, contrasts are NaN."""
    profiles = torch.zeros(3, 3, 1, dtype=torch.float64)
    profiles.diagonal().fill_(1e38)
    partition = best_partition(profiles, n_permutations=99)
    assert partition.p_value == 1
    assert ByLabel('op', ['0', '1', '2'], partition, {'op': Contrast(0, 0, 0)}).objection
    for score, error in ((np.nan, 0.1), (np.inf, 0.1), (0.3, np.nan), (0.3, np.inf)):
        assert ByLabel('op', ['0', '1', '2'], sure(score, error), {'op': Contrast(0, 0, 0)}).objection
    assert ByLabel('op', ['0', '1', '2'], sure(0.3, 0.1), {'op': Contrast(0, 0, 0)}).objection is None


def sure(score: float, error: float) -> Partition:
    return Partition([[0], [1, 2]], score, error, 0.001, [], score - 2 * error, score + 2 * error)


@pytest.mark.parametrize(
    'call, match',
    [
        (lambda: similarity_matrix(torch.ones(1, 3, 2)), r'shape \[..., R, C, L\] with R >= 2, but got \(1, 3, 2\)'),
        (lambda: similarity_matrix(torch.ones(4, 3, 0)), r'at least one layer, but got shape \(4, 3, 0\)'),
        (lambda: best_partition(torch.ones(4, 3, 0)), r'at least one layer, but got shape \(4, 3, 0\)'),
        (lambda: similarity_matrix(-torch.ones(4, 3, 2)), 'finite and non-negative'),
        (lambda: similarity_matrix(torch.full((4, 3, 2), torch.inf)), 'finite and non-negative'),
        (lambda: best_partition(torch.ones(4, 1, 5)), r'with R >= 3 and C >= 2, but got \(4, 1, 5\)'),
        (lambda: best_partition(torch.ones(4, 5, 5), max_groups=1), 'max_groups must be at least 2, but got 1'),
        (
            lambda: similarity_matrix(torch.ones(4, 3, 2), 'l1'),
            "similarity must be one of log_euclidean, euclidean, pearson, cosine, but got 'l1'",
        ),
        (lambda: best_partition(torch.ones(4, 5, 5), similarity='l1'), "similarity must be one of .* but got 'l1'"),
        (
            lambda: best_partition(torch.ones(4, 5, 5), partition='k_means'),
            "one of enumeration, spectral, stoer_wagner, gaussian_mixture, but got 'k_means'",
        ),
        (
            lambda: best_partition_of_similarities(torch.ones(4, 5, 5), partition='gaussian_mixture'),
            "partition must be one of enumeration, spectral, stoer_wagner, but got 'gaussian_mixture'",
        ),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
