"""Effective rank against numpy's SVD, where it is known, and what must not matter."""

from nni_naslid.lid import effective_rank

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

# Computed in float64, and rounded once to float32 (6e-8). What points of float32 lose when a test turns, scales and
# moves them is less than 1e-5 of their spread, and a share of the variance is as sensitive.
FLOAT32 = 1e-5
FLOAT64 = 1e-9


def by_svd(points: np.ndarray) -> float:
    """From singular values of the centred points, by scipy's entropy, which divides by the sum."""
    centred = points - points.mean(0)
    return float(np.exp(scipy.stats.entropy(np.linalg.svd(centred, compute_uv=False) ** 2)))


@pytest.mark.parametrize('shape', [(40, 7), (40, 200), (3, 2), (5, 1)], ids=str)
@pytest.mark.parametrize('offset', [0, 1000])
def test_agrees_with_numpy(shape, offset):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * torch.arange(1, shape[1] + 1) + offset
    assert effective_rank(x).item() == pytest.approx(by_svd(x.numpy()), rel=FLOAT64)
    assert effective_rank(x.float()).item() == pytest.approx(by_svd(x.float().double().numpy()), rel=FLOAT32)


@pytest.mark.parametrize('k', [1, 2, 5, 9])
def test_equal_orthogonal_directions_count_one_each(k):
    """Also where there are more features, and more points, than directions."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(12, k, generator=generator, dtype=torch.float64))[0].T
    cross = torch.cat([axes, -axes]) + 3
    for points in (cross, cross.repeat(2, 1)) if k > 1 else (cross.repeat(2, 1),):
        assert effective_rank(points).item() == pytest.approx(k, rel=FLOAT64)


def test_the_corners_of_a_simplex_have_one_direction_less():
    assert effective_rank(torch.eye(8)).item() == pytest.approx(7)


@settings(deadline=None, max_examples=25)
@given(st.floats(1e-30, 1e30), st.floats(-10, 10), st.integers(0, 2**31))
def test_scale_rotation_translation_and_order_do_not_matter(scale, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 6, generator=generator) * torch.arange(1, 7)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    moved = scale * ((x @ rotation)[torch.randperm(20, generator=generator)] + offset)
    assert effective_rank(moved).item() == pytest.approx(effective_rank(x).item(), rel=FLOAT32)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_batches(dtype):
    x = torch.randn(2, 3, 40, 7).to(dtype)
    found = effective_rank(x)
    assert found.shape == (2, 3) and found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found[1, 2].item() == pytest.approx(by_svd(x[1, 2].double().numpy()), rel=FLOAT32)


def test_constants_have_none_however_they_are_rounded():
    for value in (0, 1, 1 / 3, 1e-30, -1e4):
        for dtype in (torch.float16, torch.float32, torch.float64):
            assert effective_rank(torch.full((30, 5), value, dtype=dtype)) == 0
    assert effective_rank(torch.stack([torch.ones(30, 5), torch.randn(30, 5)]))[0] == 0


def test_numbers_whose_squares_leave_the_range():
    x = torch.rand(30, 5, dtype=torch.float64) - 0.5
    for scale in (1e308, 1e-300):
        assert effective_rank(x * scale).item() == pytest.approx(effective_rank(x).item(), rel=FLOAT64)
    assert effective_rank(x.float() * 1e38).item() == pytest.approx(effective_rank(x).item(), rel=FLOAT32)


def test_points_that_are_not_finite_are_left_out_or_refused():
    x = torch.randn(3, 40, 5)
    x[1, 7, 2], x[1, 0, 0], x[2] = torch.nan, torch.inf, torch.nan
    with pytest.raises(ValueError, match=r'features must be finite, but points \(1, 0\), \(1, 7\), \(2, 0\), .* more'):
        effective_rank(x)
    found = effective_rank(x, non_finite='nan')
    others = [i for i in range(40) if i not in (0, 7)]
    assert found[0].item() == pytest.approx(effective_rank(x[0]).item())
    assert found[1].item() == pytest.approx(effective_rank(x[1, others]).item())
    assert found[2] == 0


def test_it_changes_nothing_and_has_no_gradient():
    x = torch.randn(30, 5, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    assert not effective_rank(x).requires_grad
    assert torch.equal(x, before)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(effective_rank(x), effective_rank(before))
    compiled = torch.compile(effective_rank, fullgraph=True, backend='aot_eager')
    assert compiled(before, non_finite='nan').item() == pytest.approx(effective_rank(x).item())


@pytest.mark.parametrize(
    'features, error, match',
    [
        (torch.ones(30), ValueError, r'shape \[..., N, D\] with D > 0, but got \(30,\)'),
        (torch.ones(2, 5), ValueError, 'at least 3 points, but got N = 2'),
        (torch.ones(30, 5, dtype=torch.uint8), TypeError, 'be floating point, but got torch.uint8'),
        (np.ones((30, 5)), TypeError, 'be tensors, but got ndarray; torch.as_tensor makes one'),
        (torch.eye(30).to_sparse(), TypeError, 'be dense tensors, but got a sparse_coo tensor'),
    ],
)
def test_bad_input(features, error, match):
    with pytest.raises(error, match=f'^features .*{match}'):
        effective_rank(features)
