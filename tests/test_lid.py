"""LID against scikit-dimension, by hand, and on manifolds of known dimension."""

import re

from nni_naslid import lid_mle, lid_profile, two_nn
from nni_naslid.lid import mean_lid, to_points
from nni_naslid.lid.reference import lid_mle_published, nearest_neighbors_reference

import numpy as np
import pytest
import skdim
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

# Relative tolerances of LIDs that are computed in two ways. A squared distance is right to 32 eps of its dtype (what
# cancels more is measured anew, see test_neighbors.py), and its logarithm to as much; a LID of up to 10 is 10 times as
# sensitive as the mean of 20 such logarithms. Two machines, or two layouts of the points, differ by no more.
# What is one operation away from exact numbers has pytest's 1e-6: float32 rounds to 6e-8.
FLOAT32 = 1e-4
FLOAT64 = 1e-9


def sphere(dimension: int, n: int, ambient: int = 30, seed: int = 0) -> torch.Tensor:
    """Points spread evenly on a sphere of some dimension, in a space of more."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dimension + 1, generator=generator, dtype=torch.float64)
    x = x / x.norm(dim=1, keepdim=True)
    rotation = torch.linalg.qr(torch.randn(ambient, dimension + 1, generator=generator, dtype=torch.float64))[0]
    return x @ rotation.T


def test_by_hand():
    x = torch.tensor([[0.0], [1.0], [3.0], [-7.0], [20.0]])
    # From 0 the three nearest lie at 1, 3, 7: (3 - 2) / (ln 7/1 + ln 7/3).
    assert lid_mle(x, 3)[0].item() == pytest.approx(1 / (np.log(7) + np.log(7 / 3)))


@pytest.mark.parametrize('dimension', [2, 5, 10])
@pytest.mark.parametrize('k', [5, 20])
def test_agrees_with_scikit_dimension(dimension, k):
    x = sphere(dimension, 128)
    for correction, unbiased in ((1, False), (2, True)):
        expected = skdim.id.MLE(unbiased=unbiased, K=k).fit_transform_pw(x.numpy(), n_neighbors=k)
        np.testing.assert_allclose(lid_mle(x, k, correction=correction).numpy(), expected, rtol=FLOAT64)


@pytest.mark.parametrize('comb', ['mle', 'mean'])
def test_means_agree_with_scikit_dimension(comb):
    x = sphere(5, 128)
    lid = lid_mle(x, 20, correction=1)
    expected = skdim.id.MLE(K=20).fit(x.numpy(), n_neighbors=20, comb=comb).dimension_
    assert mean_lid(lid, 'harmonic' if comb == 'mle' else 'arithmetic').item() == pytest.approx(expected, rel=FLOAT64)


@pytest.mark.parametrize('method', ['linear', 'mle'])
@pytest.mark.parametrize('discard', [0.1, 0.35])
def test_two_nn_agrees_with_scikit_dimension(method, discard):
    for x in (sphere(3, 128), sphere(8, 77)):
        expected = skdim.id.TwoNN(discard_fraction=discard, method=method).fit(x.numpy()).dimension_
        found = two_nn(x, method=method, discard_fraction=discard).item()
        assert found == pytest.approx(expected, rel=10 * FLOAT64)  # of two distances, whose ratio is close to 1


def test_two_nn_without_discarding():
    x = sphere(3, 100)
    squared = nearest_neighbors_reference(x, 2)[0]
    ratios = (squared[:, 1] / squared[:, 0]).log().sort().values / 2
    assert two_nn(x, method='mle', discard_fraction=0).item() == pytest.approx(99 / ratios.sum().item())
    y = -np.log1p(-np.arange(1, 100) / 100)  # the fit leaves out the last, where the logarithm is infinite
    expected = (ratios[:99].numpy() @ y) / ratios[:99].square().sum().item()
    assert two_nn(x, discard_fraction=0).item() == pytest.approx(expected)


def test_two_nn_of_batches_with_duplicates_and_ties():
    x = torch.stack([sphere(3, 60), sphere(3, 60, seed=1), torch.zeros(60, 30), torch.eye(60, 30)]).float()
    x[1, 40:] = x[1, :20]  # twenty pairs at distance zero
    found = two_nn(x)
    assert found[0] == pytest.approx(two_nn(x[0]).item(), rel=FLOAT32)
    squared = nearest_neighbors_reference(x[1], 2)[0][20:40]  # only those have no copy
    ratios = ((squared[:, 1] / squared[:, 0]).log() / 2).sort().values[:18].numpy()
    assert found[1] == pytest.approx(ratios @ -np.log1p(-np.arange(1, 19) / 20) / (ratios @ ratios), rel=FLOAT32)
    assert found[2] == 0
    assert two_nn(torch.eye(30)).isinf()
    assert two_nn(torch.eye(30), method='mle').isinf()
    x[0, 5, 1] = torch.nan
    assert two_nn(x, non_finite='nan')[0] == pytest.approx(two_nn(torch.cat([x[0, :5], x[0, 6:]])).item(), rel=FLOAT32)


def test_published_estimate():
    """k in the numerator, on points where its faults do not show."""
    x = torch.randn(60, 40)
    torch.testing.assert_close(lid_mle(x, 20, correction=0), lid_mle_published(x, 20), rtol=FLOAT32, atol=0)


def test_published_estimate_is_biased():
    x = sphere(2, 1000)
    assert lid_mle_published(x, 20).mean() / lid_mle(x, 20).mean() == pytest.approx(20 / 18)
    duplicates = torch.randn(40, 3).repeat(2, 1)
    assert (lid_mle_published(duplicates, 5) == 0).any()
    assert (lid_mle(duplicates, 5) > 0).all()


def test_two_nn_of_ratios_beyond_float32():
    x = torch.cat([torch.tensor([[0.0, 0, 0], [1e-11, 0, 0]]), 1e10 * torch.randn(8, 3)])
    for method in ('linear', 'mle'):
        found = two_nn(x, method=method, discard_fraction=0).item()
        assert found == pytest.approx(two_nn(x.double(), method=method, discard_fraction=0).item(), rel=FLOAT32)


def test_profile_of_feature_maps():
    maps = [torch.randn(50, 8, 6, 6), torch.randn(50, 12), torch.randn(50, 4, 4), torch.zeros(50, 3)]
    maps[0] = maps[0].contiguous(memory_format=torch.channels_last)
    profile = lid_profile(maps, 10)
    expected = [lid_mle(each.reshape(50, -1), 10).mean() for each in maps]
    torch.testing.assert_close(profile, torch.stack(expected), rtol=FLOAT32, atol=0)
    harmonic = lid_profile(maps, 10, correction=1, mean='harmonic')
    expected = [1 / (1 / lid_mle(each.reshape(50, -1), 10, correction=1)).mean() for each in maps]
    torch.testing.assert_close(harmonic, torch.stack(expected), rtol=FLOAT32, atol=0)


def test_means_leave_out_what_is_no_dimension():
    lid = torch.tensor(
        [[2.0, 4.0, 0.0], [2.0, torch.inf, torch.nan], [0.0, 0.0, 0.0], [torch.inf, torch.inf, torch.inf]]
    )
    assert mean_lid(lid).tolist() == [2, 2, 0, 0]
    assert mean_lid(lid, 'harmonic').tolist() == pytest.approx([8 / 3, 2, 0, 0])


def test_channels_last_is_not_copied():
    maps = torch.randn(4, 3, 5, 6)
    last = maps.contiguous(memory_format=torch.channels_last)
    assert to_points(last).data_ptr() == last.data_ptr()
    assert torch.equal(to_points(maps), maps.flatten(1))
    assert torch.equal(to_points(last).sort(1).values, maps.flatten(1).sort(1).values)
    assert torch.equal(to_points(maps[:, 0, 0]), maps[:, 0, 0])


def test_compiles_into_one_graph():
    x, maps = torch.randn(2, 40, 30), [torch.randn(30, 4, 5), torch.randn(30, 7)]
    compiled = torch.compile(lid_mle, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x, 10), lid_mle(x, 10), rtol=FLOAT32, atol=0)
    compiled = torch.compile(two_nn, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), two_nn(x), rtol=FLOAT32, atol=0)
    for dynamic in (False, True):
        profile = torch.compile(lid_profile, fullgraph=True, dynamic=dynamic, backend='aot_eager')
        torch.testing.assert_close(profile(maps, 10), lid_profile(maps, 10), rtol=FLOAT32, atol=0)


@pytest.mark.parametrize('dimension', [1, 2, 3, 5])
def test_recovers_the_dimension_of_spheres(dimension):
    means = [lid_mle(sphere(dimension, 1000, seed=seed), 20).mean().item() for seed in range(5)]
    assert np.mean(means) == pytest.approx(dimension, rel=0.08)


def test_underestimates_high_dimensions_in_small_batches():
    assert 6.5 < lid_mle(sphere(10, 128), 20).mean() < 10


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-35, 1e37), st.integers(0, 2**31))
def test_scale_rotation_and_order_do_not_matter(scale, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 6, generator=generator)
    order = torch.randperm(30, generator=generator)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    torch.testing.assert_close(
        lid_mle((scale * x @ rotation)[order], 8), lid_mle(x, 8)[order], rtol=2 * FLOAT32, atol=FLOAT32
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_batches(dtype):
    x = torch.randn(2, 3, 40, 7).to(dtype)
    lid = lid_mle(x, 10)
    assert lid.shape == (2, 3, 40)
    assert lid.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(lid[1, 2].double(), lid_mle(x[1, 2].double(), 10), rtol=FLOAT32, atol=0)


def test_autocast_and_gradients_change_nothing():
    """Bit for bit: it is the same computation on one machine."""
    x = torch.randn(40, 30)
    with torch.autocast('cpu', torch.bfloat16):
        inside = lid_mle(x, 20)
    assert torch.equal(inside, lid_mle(x, 20))
    assert torch.equal(lid_mle(x.clone().requires_grad_(), 20), lid_mle(x, 20))
    assert not lid_mle(x.clone().requires_grad_(), 20).requires_grad


@pytest.mark.parametrize('correction, fewest', [(0, 2), (1, 2), (2, 3)])
def test_fewest_neighbors(correction, fewest):
    assert lid_mle(torch.randn(30, 4), fewest, correction=correction).gt(0).all()
    with pytest.raises(ValueError, match=f'at least {fewest} with correction={correction}, but got {fewest - 1}'):
        lid_mle(torch.randn(30, 4), fewest - 1, correction=correction)


def test_non_finite_points_have_no_dimension():
    x = torch.randn(40, 5)
    x[7, 2] = torch.nan
    with pytest.raises(ValueError, match='but point 7 holds NaN'):
        lid_mle(x, 10)
    lid = lid_mle(x, 10, non_finite='nan')
    others = [i for i in range(40) if i != 7]
    assert lid[7].isnan()
    torch.testing.assert_close(lid[others], lid_mle(x[others], 10), rtol=FLOAT32, atol=0)
    assert lid_mle(x[:12], 11, non_finite='nan').isnan().all()  # only ten neighbours each


def test_degenerate_points_have_the_documented_values():
    constant = torch.ones(30, 5)
    assert (lid_mle(constant, 10) == 0).all()
    assert lid_mle(torch.eye(30), 10).isinf().all()  # all neighbours at one distance
    assert lid_mle(0.7 * torch.eye(30) + 1 / 3, 10).isinf().all()  # also where rounding makes them differ
    assert (lid_mle(torch.full((30, 5), 1 / 3), 10) == 0).all()
    assert (lid_mle(torch.stack([torch.zeros(30, 5), torch.randn(30, 5)]), 10)[0] == 0).all()
    # A duplicate is left out of k and of the sum: as by hand above, with one more point at 0.
    x = torch.tensor([[0.0], [0.0], [1.0], [3.0], [-7.0], [20.0]])
    assert lid_mle(x, 4)[0].item() == pytest.approx(1 / (np.log(7) + np.log(7 / 3)))


@pytest.mark.parametrize(
    'features, k, error, match',
    [
        (torch.ones(30, 5, dtype=torch.long), 5, TypeError, 'floating point, but got torch.int64'),
        (np.ones((30, 5)), 5, TypeError, 'must be tensors, but got ndarray'),
        (torch.ones(30), 5, ValueError, r'shape \[..., N, D\] with D > 0, but got \(30,\)'),
        (torch.ones(30, 0), 5, ValueError, r'D > 0, but got \(30, 0\)'),
        (torch.ones(2, 5), 3, ValueError, 'at least 3 points, but got N = 2'),
        (torch.ones(30, 5), 30, ValueError, r'in \[1, N\) with N = 30 points, but got 30'),
        (torch.ones(30, 5), 2, ValueError, 'at least 3 with correction=2, but got 2'),
        (torch.full((30, 5), torch.nan), 5, ValueError, 'hold NaN or infinity'),
    ],
)
def test_bad_input(features, k, error, match):
    with pytest.raises(error, match=match):
        lid_mle(features, k)


@pytest.mark.parametrize(
    'call, match',
    [
        (lambda x: lid_mle(x, correction=3), 'correction must be 0, 1 or 2, but got 3'),
        (lambda x: lid_mle(x, precision='low'), "precision must be one of .* but got 'low'"),
        (lambda x: lid_profile([x], mean='median'), "mean must be one of .* but got 'median'"),
        (lambda x: lid_profile([]), 'at least one set of points'),
        (lambda x: lid_profile([x, x[1:]]), r'but got \(30, 5\) and \(29, 5\)'),
        (lambda x: two_nn(x, method='fit'), "must be 'linear' or 'mle', but got 'fit'"),
        (lambda x: two_nn(x, discard_fraction=1), r'in \[0, 1\), but got 1'),
        (lambda x: two_nn(x * torch.nan), 'and 20 more hold NaN'),
    ],
)
def test_bad_options(call, match):
    with pytest.raises(ValueError, match=match):
        call(torch.ones(30, 5))


ESTIMATES = [lid_mle, two_nn, lambda features: lid_profile([features])]


@pytest.mark.parametrize('estimate', ESTIMATES, ids=['lid_mle', 'two_nn', 'lid_profile'])
@pytest.mark.parametrize(
    'features, match',
    [
        (np.ones((30, 5)), 'must be tensors, but got ndarray; torch.as_tensor makes one'),
        ([[1.0, 2.0]] * 30, 'must be tensors, but got list'),
        ({'stem': torch.ones(30, 5)}, 'must be tensors, but got dict'),
        ((torch.ones(30, 5) for _ in range(2)), 'must be tensors, but got generator'),
        (None, 'must be tensors, but got None'),
        ('x' * 1000, 'must be tensors, but got .x{60,90}'),
        (
            torch.eye(30).to_sparse(),
            r'must be dense tensors, but got a sparse_coo tensor of torch.float32 and shape \(30, 30\)',
        ),
        (torch.eye(30).to_sparse_csr(), 'must be dense tensors, but got a sparse_csr tensor'),
        (torch.nested.nested_tensor([torch.ones(30, 5)]), 'must be dense tensors, but got a nested tensor'),
        (torch.ones(30, 5, dtype=torch.uint8), 'must be floating point, but got torch.uint8'),
        (torch.ones(30, 5, dtype=torch.complex64), 'must be floating point, but got torch.complex64'),
    ],
    ids=['numpy', 'list', 'dict', 'generator', 'None', 'text', 'sparse', 'csr', 'nested', 'uint8', 'complex'],
)
def test_what_is_no_tensor_of_points(estimate, features, match):
    with pytest.raises(TypeError, match=f'^features {match}') as caught:
        estimate(features)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    'features, match',
    [
        (torch.ones(30, 5), r'a tensor of torch.float32 and shape \(30, 5\)'),  # one map, or thirty of one feature?
        ({'stem': torch.ones(30, 5)}, 'dict'),
        (None, 'None'),
        (3, '3'),
    ],
    ids=['tensor', 'dict', 'None', 'number'],
)
def test_what_is_no_list_of_feature_maps(features, match):
    with pytest.raises(TypeError, match=f'^features must be a list of feature maps, but got {match}'):
        lid_profile(features)


def test_feature_maps_of_any_number_of_dimensions():
    """A map ``[N]`` is one feature of each point, so that its dimension is about 1."""
    x = torch.rand(400)
    profile = lid_profile(each for each in (x, x.view(400, 1), x.view(400, 1, 1, 1)))  # a generator will do
    assert profile[0] == pytest.approx(1, abs=0.1)
    assert torch.equal(profile, lid_mle(x.view(400, 1)).mean().expand(3))
    with pytest.raises(ValueError, match=r'features must have shape \[N, \.\.\.\], but got a single number'):
        lid_profile([torch.tensor(1.0)])


def test_number_of_neighbors():
    x = torch.randn(40, 5)
    for k in (np.int64(10), np.int32(10), np.array(10), torch.tensor(10)):
        assert torch.equal(lid_mle(x, k), lid_mle(x, 10))
        assert torch.equal(lid_profile([x], k), lid_profile([x], 10))
    for k, said in ((10.0, '10.0'), ('10', "'10'"), (None, 'None'), (10.5, '10.5'), (np.nan, 'nan'), ([10], 'list')):
        for call in (lid_mle, lambda x, k: lid_profile([x], k)):
            with pytest.raises(TypeError, match=f'^n_neighbors must be an integer, but got {re.escape(said)}'):
                call(x, k)


@pytest.mark.parametrize('lid', [np.ones(3), [1.0, 2.0], None, torch.eye(3).to_sparse(), torch.ones(3) * 1j])
def test_means_of_what_is_no_tensor(lid):
    with pytest.raises(TypeError, match=r'^lid must be .* but got '):
        mean_lid(lid)


@pytest.mark.parametrize('fraction', ['0.1', None, torch.tensor(0.1)])
def test_fractions_that_are_no_numbers(fraction):
    with pytest.raises(TypeError, match=r'^discard_fraction must be a number, but got '):
        two_nn(torch.ones(30, 5), discard_fraction=fraction)
