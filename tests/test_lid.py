"""LID against scikit-dimension, by hand, and on manifolds of known dimension."""

from nni_naslid import lid_mle

import numpy as np
import pytest
import skdim
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


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
    x = sphere(dimension, 128).numpy()
    expected = skdim.id.MLE(unbiased=True, K=k).fit_transform_pw(x, n_neighbors=k)
    np.testing.assert_allclose(lid_mle(torch.tensor(x), k).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize('dimension', [1, 2, 3, 5])
def test_recovers_the_dimension_of_spheres(dimension):
    means = [lid_mle(sphere(dimension, 1000, seed=seed), 20).mean().item() for seed in range(5)]
    assert np.mean(means) == pytest.approx(dimension, rel=0.08)


def test_underestimates_high_dimensions_in_small_batches():
    assert 6.5 < lid_mle(sphere(10, 128), 20).mean() < 10


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-30, 1e37), st.integers(0, 2**31))
def test_scale_rotation_and_order_do_not_matter(scale, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 6, generator=generator)
    order = torch.randperm(30, generator=generator)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    torch.testing.assert_close(lid_mle((scale * x @ rotation)[order], 8), lid_mle(x, 8)[order], rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_batches(dtype):
    x = torch.randn(2, 3, 40, 7).to(dtype)
    lid = lid_mle(x, 10)
    assert lid.shape == (2, 3, 40)
    assert lid.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(lid[1, 2].double(), lid_mle(x[1, 2].double(), 10), rtol=1e-4, atol=0)


def by_differences(x: torch.Tensor, k: int) -> torch.Tensor:
    """The definition in float64, from the differences of all pairs."""
    r = (x.double()[:, None] - x.double()[None]).norm(dim=-1).fill_diagonal_(torch.inf).sort(1).values[:, :k]
    return (k - 2) / (r[:, -1:] / r).log().sum(1)


@pytest.mark.parametrize('offset', [0, 100, 1000])
def test_far_from_the_origin(offset):
    x = torch.randn(2, 64, 100) + torch.tensor([offset, 0]).view(2, 1, 1)
    for batch, lid in zip(x, lid_mle(x, 20), strict=True):
        torch.testing.assert_close(lid.double(), by_differences(batch, 20), rtol=1e-5, atol=0)


@pytest.mark.parametrize('distance', [1e-5, 1e-3, 1e-2])
def test_near_duplicates(distance):
    x = torch.randn(40, 300)
    x = torch.cat([x, x + distance * torch.randn(40, 300)])
    torch.testing.assert_close(lid_mle(x, 20).double(), by_differences(x, 20), rtol=1e-4, atol=0)


@pytest.mark.parametrize('spread', [1e-1, 1e-3, 1e-5])
def test_tight_clusters(spread):
    """All neighbours are near-duplicates: three clusters of forty points, five-dimensional, on a plane far away."""
    plane = torch.randn(5, 300, dtype=torch.float64)
    centres = torch.randn(3, 1, 300, dtype=torch.float64)
    x = (centres + spread * torch.randn(3, 40, 5, dtype=torch.float64) @ plane).flatten(0, 1).float()
    torch.testing.assert_close(lid_mle(x, 20).double(), by_differences(x, 20), rtol=1e-4, atol=0)


def test_autocast_changes_nothing():
    x = torch.randn(40, 30)
    with torch.autocast('cpu', torch.bfloat16):
        inside = lid_mle(x, 20)
    assert torch.equal(inside, lid_mle(x, 20))


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
        (torch.ones(30), 5, ValueError, r'shape \[..., N, D\] with D > 0, but got \(30,\)'),
        (torch.ones(30, 0), 5, ValueError, r'D > 0, but got \(30, 0\)'),
        (torch.ones(30, 5), 30, ValueError, r'in \[3, N\) with N = 30 points, but got 30'),
        (torch.ones(30, 5), 2, ValueError, 'but got 2'),
        (torch.full((30, 5), torch.nan), 5, ValueError, 'hold NaN or infinity'),
    ],
)
def test_bad_input(features, k, error, match):
    with pytest.raises(error, match=match):
        lid_mle(features, k)
