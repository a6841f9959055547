"""The Triton kernels against the reference: on a GPU, or without one in Triton's interpreter (see test_triton.py)."""

import functools

from nni_naslid.lid import kernels, lid_mle, lid_profile
from nni_naslid.lid.estimators import _from_squares, _mle_on_cuda
from nni_naslid.lid.op import _nearest_neighbors_cuda as op
from nni_naslid.lid.op import irregular, is_eager
from nni_naslid.lid.reference import nearest_neighbors_reference

import pytest
import torch

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)  # in the interpreter


@pytest.fixture(autouse=True)
def _nothing_is_zero_by_chance(monkeypatch):
    """Memory that nobody has written to is NaN."""
    empty = torch.empty

    def filled(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else -7)

    monkeypatch.setattr(torch, 'empty', filled)


def check(x, k, rtol=1e-5, **options):
    squared, index, status = kernels.nearest_neighbors_triton([x.to(DEVICE)], k, **options)
    x = x.detach().cpu()
    expected, _ = nearest_neighbors_reference(x, k)
    torch.testing.assert_close(squared[0].cpu().double(), expected, rtol=rtol, atol=0)
    points = x.double()
    chosen = torch.gather(points, -2, index[0].cpu().flatten(-2)[..., None].expand(*x.shape[:-2], -1, x.shape[-1]))
    difference = chosen.view(*index.shape[1:], -1) - points.unsqueeze(-2)
    torch.testing.assert_close(difference.square().sum(-1), expected, rtol=rtol, atol=0)
    assert not status.any()
    return squared


@pytest.mark.parametrize('n, d, k', [(3, 1, 2), (16, 40, 15), SLOW(65, 37, 20), (9, 1100, 7)])
def test_points(n, d, k):
    check(torch.randn(n, d), k)


@pytest.mark.parametrize('dtype', [torch.float16, SLOW(torch.bfloat16)])
def test_half_precision(dtype):
    check(torch.randn(20, 30).to(dtype), 5)


LAYOUTS = {
    'columns of more': lambda: torch.randn(10, 64)[:, 3:40],
    'transposed': lambda: torch.randn(40, 10).T,
    'every second column': lambda: torch.randn(10, 40)[:, ::2],
    'one column for all': lambda: torch.randn(10, 1).expand(10, 8),
    'batches, transposed': lambda: torch.randn(9, 2, 5).transpose(0, 1),
    'with a gradient': lambda: torch.randn(10, 30, requires_grad=True),
}


@pytest.mark.parametrize('name', [SLOW(name) if i > 1 else name for i, name in enumerate(LAYOUTS)])
def test_layouts(name):
    x = LAYOUTS[name]()
    on_device = x.detach().to(DEVICE).requires_grad_(x.requires_grad) if DEVICE == 'cuda' else x
    check(on_device, 5)


def test_inside_of_a_transform_the_op_is_called():
    """And nothing of it stays in what is kept for later calls."""
    x = torch.randn(10, 5, device=DEVICE)
    expected = lid_mle(x, 4)
    gradient = torch.func.grad(lambda y: y * lid_mle(x, 4).sum())(torch.tensor(1.0, device=DEVICE))
    torch.testing.assert_close(gradient, expected.sum())
    assert not torch.func.grad(lambda y: y * float(is_eager(x)))(torch.tensor(1.0))
    assert is_eager(x)
    assert torch.equal(lid_mle(x, 4), expected)


@pytest.mark.slow
def test_batches():
    check(torch.randn(2, 2, 9, 5), 5)


@pytest.mark.slow
def test_sets_of_different_sizes():
    sets = [torch.randn(2, 9, d) for d in (3, 1030, 16)]
    squared, index, _ = kernels.nearest_neighbors_triton([each.to(DEVICE) for each in sets], 5)
    for points, distances, neighbors in zip(sets, squared.cpu(), index.cpu(), strict=True):
        expected, neighbor = nearest_neighbors_reference(points, 5)
        torch.testing.assert_close(distances.double(), expected, rtol=1e-5, atol=0)
        assert torch.equal(neighbors, neighbor)


@pytest.mark.slow
def test_launches_in_pieces(monkeypatch):
    monkeypatch.setattr(kernels, 'WORKSPACE', 2 * 9**2)
    test_sets_of_different_sizes()


@pytest.mark.slow
def test_offsets_near_duplicates_and_ties():
    check(torch.randn(10, 30) + 1000, 5)
    x = torch.randn(6, 30)
    check(torch.cat([x, x + 1e-4 * torch.randn(6, 30)]), 5)
    check(torch.cat([x, x]), 5)  # distances of exactly zero
    clusters = torch.randn(2, 1, 30).expand(2, 8, 30).reshape(16, 30) + 1e-4 * torch.randn(16, 3) @ torch.randn(3, 30)
    check(clusters, 5)
    assert (check(torch.full((10, 30), 1 / 3), 5) == 0).all()
    check(torch.eye(10), 5)


@pytest.mark.slow
def test_what_the_kernels_cannot_do_is_said():
    sets = [torch.randn(10, 30) * scale for scale in (1, 1e25, 1e-25)] + [torch.randn(10, 30) for _ in range(2)]
    sets[3][9, 2] = torch.nan
    sets[4][1, 5] = torch.inf
    status = kernels.nearest_neighbors_triton([each.to(DEVICE) for each in sets], 5)[2]
    assert status.any(1).tolist() == [False, True, True, True, True]
    assert irregular(status) == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize('outlier', [0, 17])
def test_points_of_very_different_sizes(outlier):
    """Squares that underflow are not taken for zero."""
    x = 1e-25 * torch.randn(18, 10)
    x[outlier] = 1
    assert kernels.nearest_neighbors_triton([x.to(DEVICE)], 3)[2].any()


@pytest.mark.parametrize('correction', [2, SLOW(1), SLOW(0)])
def test_lid(correction):
    """Of sets at once, in the same launches, as the definition has it."""
    n = 12
    x = torch.randn(n, 3)
    ring = torch.eye(n)  # all at one distance
    most_coincide = torch.cat([torch.zeros(n - 2, 4), torch.randn(2, 4)])
    sets = [torch.randn(n, 1030), x, torch.cat([x[: n // 2]] * 2), ring, torch.ones(n, 5), most_coincide, x + 1000]
    lid, status = kernels.lid_triton([each.to(DEVICE) for each in sets], 5, correction)
    assert not status.any()
    for points, found in zip(sets, lid.cpu(), strict=True):
        squared = nearest_neighbors_reference(points, 5)[0].float()
        torch.testing.assert_close(found, _from_squares(squared, correction), rtol=2e-5, atol=0)
    assert lid[3].isinf().all() and not lid[4].any()


def test_lid_by_the_public_functions():
    """Also of batches, and of sets that the kernels cannot take."""
    sets = [torch.randn(2, 10, d) for d in (5, 30)]
    sets[1][1] *= 1e25
    lid = _mle_on_cuda(kernels, [each.to(DEVICE) for each in sets], 4, 2, 'highest', 'raise')
    for points, found in zip(sets, lid.cpu(), strict=True):
        torch.testing.assert_close(found, lid_mle(points, 4), rtol=2e-5, atol=0)
        torch.testing.assert_close(lid_mle(points.to(DEVICE), 4).cpu(), found, rtol=2e-5, atol=0)
    sets[0][0, 3, 2] = torch.nan
    found = _mle_on_cuda(kernels, [each.to(DEVICE) for each in sets], 4, 2, 'highest', 'nan').cpu()
    torch.testing.assert_close(found[0], lid_mle(sets[0], 4, non_finite='nan'), rtol=2e-5, atol=0, equal_nan=True)
    with pytest.raises(ValueError, match=r'point \(0, 3\) holds NaN'):
        _mle_on_cuda(kernels, [each.to(DEVICE) for each in sets], 4, 2, 'highest', 'raise')


def test_one_neighbor_and_no_points():
    check(torch.randn(9, 4), 1)
    assert op([torch.randn(0, 9, 4, device=DEVICE)], 3)[0].shape == (1, 0, 9, 3)


def test_the_op_uses_them():
    """With what they cannot do done by plain torch."""
    sets = [torch.randn(10, d) for d in (5, 30)]
    found = op([each.to(DEVICE) for each in sets], 4)
    for points, squared, index in zip(sets, *found, strict=True):
        expected, neighbor = nearest_neighbors_reference(points, 4)
        torch.testing.assert_close(squared.cpu().double(), expected, rtol=1e-5, atol=0)
        assert torch.equal(index.cpu(), neighbor)
    huge = torch.stack([sets[0], 1e25 * sets[0]])
    assert torch.equal(op([huge.to(DEVICE)], 4)[1][0, 1].cpu(), nearest_neighbors_reference(sets[0], 4)[1])
    sets[1][3, 7] = torch.nan
    with pytest.raises(ValueError, match='but point 3 holds NaN'):
        op([each.to(DEVICE) for each in sets], 4)
    assert op([each.to(DEVICE) for each in sets], 4, non_finite='nan')[0][1].isnan().sum() == 4


def test_the_op_says_why_it_does_not_use_them(caplog):
    x = torch.randn(10, 5).double()
    expected, _ = nearest_neighbors_reference(x, 4)
    torch.testing.assert_close(op([x.to(DEVICE)], 4)[0][0].cpu(), expected)
    assert 'searched by plain torch: float64 has no kernel' in caplog.text


def test_the_default_dtype_changes_nothing():
    x = torch.randn(10, 5)
    expected = check(x, 4)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(kernels.nearest_neighbors_triton([x.to(DEVICE)], 4)[0], expected)
        assert kernels.lid_triton([x.to(DEVICE)], 4, 2)[0].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_tf32_rounds_as_it_says():
    """The error of numbers of 11 bits, and norms that fit: no distance is negative."""
    x = torch.randn(16, 200) + 100
    rounded = x - x[:16].mean(0)
    rounded = ((rounded.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    squared = check(x, 5, rtol=2e-3, precision='high')
    torch.testing.assert_close(squared[0].cpu().double(), nearest_neighbors_reference(rounded, 5)[0], rtol=1e-4, atol=0)


@pytest.mark.skipif(DEVICE == 'cpu', reason='the interpreter multiplies the bits of bfloat16')
@pytest.mark.parametrize('precision, rtol', [('highest', 1e-5), ('high', 1e-3), ('medium', 1e-2)])
def test_full_size_on_a_gpu(precision, rtol):
    for n, d, k in [(128, 16384, 20), (256, 4096, 20), (200, 333, 40)]:
        check(torch.randn(n, d) + 3, k, rtol=rtol, precision=precision)


@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
@pytest.mark.parametrize('precision, rtol', [('highest', 1e-5), ('high', 1e-3), ('medium', 5e-3)])
def test_a_profile_on_a_gpu(precision, rtol):
    """As on the CPU, with and without autocast, torch.compile, and channels last."""
    torch.manual_seed(0)
    maps = [torch.randn(128, 20) @ torch.randn(20, c * s * s) / 4 + torch.randn(128, c * s * s) / 3 + 1
            for c, s in [(16, 32), (32, 16), (64, 8)]]  # fmt: skip
    maps = [each.view(128, c, s, s) for each, (c, s) in zip(maps, [(16, 32), (32, 16), (64, 8)], strict=True)]
    expected = lid_profile(maps)
    on_gpu = [each.to(DEVICE) for each in maps]
    on_gpu[1] = on_gpu[1].to(memory_format=torch.channels_last)
    torch.testing.assert_close(lid_profile(on_gpu, precision=precision).cpu(), expected, rtol=rtol, atol=0)
    with torch.autocast('cuda', dtype=torch.bfloat16):
        torch.testing.assert_close(lid_profile(on_gpu, precision=precision).cpu(), expected, rtol=rtol, atol=0)
    compiled = torch.compile(functools.partial(lid_profile, precision=precision), fullgraph=True)
    torch.testing.assert_close(compiled(on_gpu).cpu(), expected, rtol=rtol, atol=0)


@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
def test_the_same_each_time():
    sets = [torch.randn(128, d, device=DEVICE) for d in (100, 5000, 16384)]
    first = kernels.nearest_neighbors_triton(sets, 20)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, kernels.nearest_neighbors_triton(sets, 20), strict=True))
